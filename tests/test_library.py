"""The library's face: the loop in a few lines of Python, its docstrings' examples, and what it
costs to import.
"""

from __future__ import annotations

import doctest
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mock_endpoint import mock
from support.tiny_models import tiny_base

import hubkit
from hubkit import Asker, Conversations, Dialogues, api, load_recipe, rollout
from hubkit.errors import PublishError, RecipeError, SourceError
from hubkit.hub import Ref, connect

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUICK = {
    "sft": {"max_length": 128, "max_steps": 2, "per_device_train_batch_size": 1, "bf16": False},
    "lora": {"r": 4, "target_modules": "all-linear"},
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """People's conversations, one of them twice."""
    path = tmp_path_factory.mktemp("chats") / "my-chats.jsonl"
    topics = ["bread", "chess", "rain", "Rome", "tea", "maps", "trains", "music", "winter", "boats"]
    rows = [
        {
            "id": f"c{number}",
            "messages": [
                {"role": "user", "content": f"Tell me about {topic} number {number}."},
                {"role": "assistant", "content": f"{topic} is a long story."},
                {"role": "user", "content": f"Then shorten the part about {topic}."},
                {"role": "assistant", "content": "Here it is in one line."},
            ],
        }
        for number, topic in enumerate(topics * 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return path


@pytest.fixture(scope="module")
def tiny(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base of two layers on the embedded Hub."""
    hub = connect()
    folder = tiny_base(tmp_path_factory.mktemp("tiny"))
    return hub.commit(hub.qualify("library-base"), folder, "A base").repo_id


@pytest.fixture(scope="module")
def people(chats: Path, hubkit_home: Path) -> api.Splits:
    cleaned = Conversations.read(chats).clean(["alternate_roles", "exact_duplicates"])
    return cleaned.split(openings=4, test=4)


@pytest.fixture(scope="module")
def asker(people: api.Splits, tiny: str) -> Iterator[Asker]:
    with Asker.train(people.train, base=tiny, **QUICK) as trained:
        yield trained


def my_agent(messages: list[dict[str, str]]) -> str:
    return f"You said {len(messages)} things, the last of them: {messages[-1]['content'][:40]}"


def test_conversations_are_cleaned_and_split_with_every_row_counted(people: api.Splits) -> None:
    assert len(people.openings) == len(people.test) == 4
    report = people.report
    assert report["rows_read"] == 21 and report["kept"] + report["dropped"] == 21
    assert report["steps"][1]["dropped"]["exact_duplicate"]["count"] == 1
    ids = [conversation.id for part in (people.train, people.openings, people.test)
           for conversation in part]  # fmt: skip
    assert len(set(ids)) == report["kept"]


def test_conversations_without_a_split_are_read_when_they_are_needed(chats: Path) -> None:
    everything = Conversations.read(chats)
    assert len(everything) == 21 and len(everything.clean(["exact_duplicates"])) == 20
    short = everything.clean([{"name": "min_turns", "args": {"human_turns": 3}}])
    assert len(short) == 0
    with pytest.raises(SourceError, match="no file or folder"):
        Conversations.read("gone.jsonl")
    with pytest.raises(RecipeError, match="no filter"):
        len(everything.clean(["alternate_rolls"]))


def test_the_same_training_is_found_and_a_turn_is_a_persons(
    asker: Asker, people: api.Splits, tiny: str
) -> None:
    started = time.perf_counter()
    again = Asker.train(people.train, base=tiny, **QUICK)
    assert again.source == asker.source
    assert again.history.records["asker"]["report"] == asker.history.records["asker"]["report"]
    messages = [
        {"role": "user", "content": "How do I bake bread?"},
        {"role": "assistant", "content": "Mix flour and water."},
    ]
    first = asker.next_turn(messages, seed=3, max_tokens=8)
    assert isinstance(first, str) and first == asker.next_turn(messages, seed=3, max_tokens=8)
    assert time.perf_counter() - started < 240


def test_an_agent_in_python_is_questioned_and_what_came_of_it_is_pushed(
    asker: Asker, people: api.Splits
) -> None:
    dialogues = rollout(
        asker,
        chat=my_agent,
        openings=people.openings,
        n=3,
        turns=2,
        retries_per_turn=0,
        asker_sampling={"max_tokens": 8},
    )
    assert len(dialogues) == 3 and dialogues.report["human_turns"] >= 3
    answers = [m["content"] for d in dialogues for m in d.messages if m["role"] == "assistant"]
    assert answers and all(answer.startswith("You said ") for answer in answers)
    kept = dialogues.curate(["empty_turn", "repeated_turn"])
    assert (
        len(kept)
        + sum(tally["count"] for step in kept.report["steps"] for tally in step["dropped"].values())
        == 3
    )
    ref = kept.push_to_hub("library-dialogues", license="cc-by-4.0")
    hub = connect()
    card = hub.read(ref, "README.md").decode()
    assert "license: cc-by-4.0" in card and "user-simulator" in card
    record = json.loads(hub.read(ref, "provenance/rollout.json"))
    assert record["inputs"]["chat"]["repo_id"].endswith("my_agent")
    assert hub.tags(ref.repo_id, repo_type="dataset") == {"v1": ref.revision}
    assert kept.push_to_hub("library-dialogues", license="cc-by-4.0").repo_id == ref.repo_id


def test_a_function_that_fails_is_a_reason_and_no_crash(asker: Asker, people: api.Splits) -> None:
    def broken(messages: list[dict[str, str]]) -> str:
        raise ValueError("my bug")

    try:
        dialogues = rollout(
            asker, chat=broken, openings=people.openings, n=1, turns=2, patience_s=5
        )
        reasons = json.dumps([conversation.meta for conversation in dialogues], default=str)
    except hubkit.errors.EndpointError as error:
        reasons = str(error)
    assert "my bug" in reasons


def test_a_url_is_questioned_under_its_models_name(asker: Asker, people: api.Splits) -> None:
    with mock() as server:
        options: dict[str, Any] = {"n": 2, "turns": 2, "asker_sampling": {"max_tokens": 8}}
        dialogues = rollout(
            asker, chat=f"{server.url}/v1", model="Qwen/Qwen3-8B", openings=people.openings,
            retries_per_turn=0, **options,
        )  # fmt: skip
        assert {entry["body"]["model"] for entry in server.ledger()} == {"Qwen/Qwen3-8B"}
        answered = server.stats()["answered"]
        again = rollout(
            asker, chat=f"{server.url}/v1", model="Qwen/Qwen3-8B", openings=people.openings,
            retries_per_turn=0, **options,
        )  # fmt: skip
        assert server.stats()["answered"] == answered
    assert [d.messages for d in again] == [d.messages for d in dialogues]


def test_an_asker_is_pushed_with_its_lineage_and_loaded_again(
    asker: Asker, people: api.Splits, tiny: str
) -> None:
    ref = asker.push_to_hub("library-asker", license="apache-2.0")
    hub = connect()
    card = hub.read(ref, "README.md").decode()
    assert "license: apache-2.0" in card and f"base_model: {tiny}" in card
    loaded = Asker.from_pretrained("library-asker")
    assert (loaded.source, loaded.system) == (ref, asker.system)
    assert isinstance(loaded.base, Ref) and loaded.base.repo_id == tiny
    assert isinstance(asker.source, Path)
    here = Asker.from_pretrained(asker.source)
    assert here.system == asker.system and here.base == loaded.base
    with pytest.raises(SourceError, match="is on the Hub already"):
        loaded.push_to_hub("again")


def test_a_secret_is_not_pushed(chats: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.jsonl"
    key = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
    path.write_text(chats.read_text().replace("a long story", f"a long story {key}"))
    splits = Conversations.read(path).split(openings=2, test=2)
    with pytest.raises(PublishError, match="token"):
        splits.push_to_hub("library-secret")


def test_a_scorecard_compares_asker_base_and_people(asker: Asker, people: api.Splits) -> None:
    card = asker.scorecard(people.test, contexts=4, openings=2, max_tokens=8)
    assert [row["name"] for row in card.to_dict()["rows"]] == ["people", "asker", "base as user"]


@pytest.mark.slow
def test_the_whole_example_with_the_small_model(chats: Path, hubkit_home: Path) -> None:
    people = Conversations.read(chats).clean(["alternate_roles", "exact_duplicates"])
    splits = people.split(openings=4, test=4)
    with Asker.train(splits.train, base=BASE, max_tokens=2000, **QUICK) as asker:
        dialogues = rollout(asker, chat=BASE, openings=splits.openings, n=4, turns=4,
                            chat_sampling={"max_tokens": 32},
                            asker_sampling={"max_tokens": 32})  # fmt: skip
        kept = dialogues.curate(["empty_turn", "repeated_turn"])
        assert isinstance(kept, Dialogues) and len(dialogues) == 4
        asker.scorecard(splits.test, contexts=4, openings=2, max_tokens=16)
        kept.push_to_hub("whole-dialogues")
        asker.push_to_hub("whole-asker")


def test_the_examples_in_docstrings_run(asker: Asker, people: api.Splits, chats: Path) -> None:
    assert isinstance(asker.source, Path)
    recipe = load_recipe(
        "parrot",
        profiles=["laptop"],
        overrides=[
            f"corpus.sources=[{{path: {chats}}}]", "corpus.filters=[]", "corpus.openings=2",
            "repos.corpus=library-run",
        ],
    )  # fmt: skip
    names = {
        "asker": asker, "openings": people.openings, "chats": chats, "folder": asker.source,
        "recipe": recipe,
    }  # fmt: skip
    examples = 0
    for item in (api.Address, api.Asker, api.Conversations, api.rollout, api.run):
        text = inspect.getdoc(item) or ""
        test = doctest.DocTestParser().get_doctest(text, dict(names), item.__name__, None, None)
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
        assert result.failed == 0, item
        examples += result.attempted
    assert examples >= 10


def test_importing_it_loads_nothing_of_weight() -> None:
    code = (
        "import sys; import hubkit; print(sorted(m for m in sys.modules if m.partition('.')[0] in "
        "{'torch', 'transformers', 'pydantic', 'huggingface_hub', 'pyarrow', 'yaml', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_typed() -> None:
    for name in hubkit.__all__:
        assert getattr(hubkit, name) is not None
    assert (Path(hubkit.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'rollouts'"):
        _ = hubkit.rollouts
