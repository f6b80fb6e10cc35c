"""Models that write people's turns themselves take the asker's seat: their prompts are their own
template's, seats not swapped, with the next user header opened, and their end token ends a
conversation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from openenv.core.generic_client import GenericEnvClient
from support.mock_endpoint import mock
from support.people_models import END, people_model
from support.tiny_models import write_rows
from support.waiting import OPENENV

from hubkit.conversation import Message
from hubkit.errors import RecipeError
from hubkit.hub import Hub, Ref, connect
from hubkit.pipeline import run
from hubkit.pipeline.asker_environment import EnvironmentOptions
from hubkit.pipeline.asker_environment import prepare as prepare_environment
from hubkit.pipeline.asker_scorecards import AskerComparison, addresses, prepare
from hubkit.pipeline.seat_plan import engine_of
from hubkit.recipe import Sampling, Scorecard, load
from hubkit.rollout.dialogue import split_end_mark
from hubkit.serving import ModelSpec, ServedModel, serve, with_people_template
from hubkit.serving.client import Reply

SEEN_BY_ASKER: list[Message] = [
    {"role": "system", "content": "You want: bread."},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "Hello!"},
]
PROMPTS = {
    "llama-3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou want: bread."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "chatml": "<|im_start|>system\nYou want: bread.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n",
    "vicuna": "<s>You want: bread. USER: hi ASSISTANT: Hello!</s>USER:",
}
TURN_ENDS = {"llama-3": "<|eot_id|>", "chatml": "<|im_end|>", "vicuna": "ASSISTANT:"}


@pytest.fixture(scope="module")
def hub(hubkit_home: Path) -> Hub:
    return connect()


@pytest.fixture(scope="module")
def models(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ref]:
    """A repo on the Hub for each shape of tokenizer; the first has weights that always end."""
    refs = {}
    for shape in PROMPTS:
        folder = people_model(
            tmp_path_factory.mktemp("people") / "model", shape, weights=shape == "llama-3"
        )
        refs[shape] = hub.commit(hub.qualify(f"people-{shape}"), folder, "People's turns")
    return refs


def reply_of(hub: Hub, spec: ModelSpec, log: Path) -> Reply:
    """The next human turn of the model, as a rollout would ask for it."""
    return told_and_reply(hub, spec, log)[1]


def told_and_reply(hub: Hub, spec: ModelSpec, log: Path) -> tuple[str, Reply]:
    """What is said of who answers, and the next human turn."""
    notes: list[str] = []

    def progress(completed: float, total: float | None = None, note: str = "") -> None:
        notes.append(note)

    async def ask(model: ServedModel) -> Reply:
        sampling = Sampling(temperature=0.0, max_tokens=8)
        async with model.endpoint(sampling=sampling) as endpoint:
            return await endpoint.chat(SEEN_BY_ASKER, seed=1)

    options: dict[str, Any] = {"progress": progress, "slots": 1, "tokens": 256}
    with serve(hub, {"asker": spec}, log_dir=log, **options) as served:
        return notes[-1], asyncio.run(ask(served["asker"]))


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "llamacpp", "tgi"])
@pytest.mark.parametrize("shape", PROMPTS)
def test_prompts_are_the_model_s_own_with_the_user_header_opened(
    hub: Hub, models: dict[str, Ref], tmp_path: Path, shape: str, dialect: str
) -> None:
    end_token = None if shape == "vicuna" else END
    with mock() as server:
        address = ServedModel.at(server.url, dialect=dialect)
        spec = with_people_template(ModelSpec(address), hub, models[shape], end_token=end_token)
        told, reply = told_and_reply(hub, spec, tmp_path)
        assert told.startswith(f"asker: the server at {server.url} (profile {dialect})")
        body = server.ledger()[-1]["body"]
    parameters = body.get("parameters", body)
    assert body["inputs" if dialect == "tgi" else "prompt"] == PROMPTS[shape]
    assert parameters["stop"] == [*([end_token] if end_token else []), TURN_ENDS[shape]]
    shows = {"skip_special_tokens": False} if dialect in ("vllm", "sglang") and end_token else {}
    assert {k: v for k, v in body.items() if k == "skip_special_tokens"} == shows
    assert split_end_mark(reply.content, END) == (reply.content, False) and reply.content


def choice(text: str, **keys: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": "stop", **keys}]}


def generated(text: str, *tokens: str) -> dict[str, Any]:
    listed = [{"id": 1, "text": token, "special": token.startswith("<|")} for token in tokens]
    return {"generated_text": text, "details": {"finish_reason": "eos_token", "tokens": listed}}


@pytest.mark.parametrize(
    ("dialect", "answer", "text", "ended"),
    [
        ("vllm", choice("thanks"), "thanks", False),
        ("vllm", choice(f"thanks{END}"), "thanks", True),
        ("vllm", choice("thanks", stop_reason=END), "thanks", True),
        ("vllm", choice("thanks<|eot_id|>", stop_reason="<|eot_id|>"), "thanks", False),
        ("sglang", choice("", matched_stop=END), "", True),
        ("llamacpp", choice(" "), "", True),  # it says nowhere which token it was
        ("tgi", generated("thanks", "thanks", "<|eot_id|>"), "thanks", False),
        ("tgi", generated("", END), "", True),
        ("tgi", generated(f"thanks{END}", "thanks", END), "thanks", True),
    ],
)
def test_the_end_token_is_seen_wherever_a_server_says_it(
    hub: Hub, models: dict[str, Ref], tmp_path: Path,
    dialect: str, answer: dict[str, Any], text: str, ended: bool,
) -> None:  # fmt: skip
    with mock() as server:
        server.script(raw=[answer])
        address = ServedModel.at(server.url, dialect=dialect)
        spec = with_people_template(ModelSpec(address), hub, models["llama-3"], end_token=END)
        reply = reply_of(hub, spec, tmp_path)
    assert split_end_mark(reply.content, END) == (text, ended)


def test_the_local_engine_s_model_ends_the_dialogue(
    hub: Hub, models: dict[str, Ref], tmp_path: Path
) -> None:
    spec = with_people_template(ModelSpec(models["llama-3"]), hub, models["llama-3"], end_token=END)
    told, reply = told_and_reply(hub, spec, tmp_path)
    planned = engine_of(hub, models["llama-3"], context=256)
    by = f"by the embedded engine ({planned.engine}): {planned.reason}"
    model = models["llama-3"]
    assert told == f"asker: {model.repo_id}@{model.revision}, {by}"
    assert reply.content == END and reply.finish_reason == "stop"
    with pytest.raises(RecipeError, match="'<bye>' is no token of"):
        with_people_template(spec, hub, models["llama-3"], end_token="<bye>")


def test_such_a_model_asks_in_a_rollout_and_stands_in_a_scorecard(
    hub: Hub, models: dict[str, Ref], tmp_path: Path
) -> None:
    talks = [
        [("user", f"How do I bake bread number {n}?"), ("assistant", "Mix flour."),
         ("user", f"Now rye {n}?"), ("assistant", "Use less water.")]
        for n in range(24)
    ]  # fmt: skip
    chats = write_rows(tmp_path / "chats.parquet", talks)
    name = models["llama-3"].repo_id
    with mock() as asker, mock() as chat:
        asker.script(raw=[choice("and with rye?"), choice("", stop_reason=END)])
        values = {
            "corpus": {"sources": [{"path": str(chats)}], "filters": [], "openings": 6, "test": 12},
            "repos": {p: f"people-{p}" for p in ("corpus", "asker", "dialogues", "chat")},
            "asker.base": name, "chat.base": name,
            "rollout.dialogues": 1, "rollout.turns": {"kind": "fixed", "value": 9},
            "rollout.asker": {
                "repo": name, "endpoints": [asker.url], "profile": "vllm", "model": "them",
                "speaks": "user", "end_token": END, "system": "You want: bread.",
            },
            "rollout.chat": {"repo": name, "endpoints": [chat.url]},
        }  # fmt: skip
        recipe = load("parrot", overrides=[f"{k}={json.dumps(v)}" for k, v in values.items()])
        assert recipe.rollout.end_mark == END
        for stage in ("corpus", "rollout"):
            [made] = run(recipe, hub, only=stage)
        prompts = [entry["body"]["prompt"] for entry in asker.ledger()]
        [row] = pq.read_table(hub.snapshot(made.ref) / "data").to_pylist()
        assert row["end_reason"] == "end_mark" and len(row["messages"]) == 4
        opening = row["messages"][0]["content"]
        assert f"user<|end_header_id|>\n\n{opening}<|eot_id|>" in prompts[0]
        assert prompts[1].startswith(prompts[0] + "and with rye?<|eot_id|>")

        comparison = AskerComparison(
            [name],
            Scorecard(contexts=4, openings=2, embedder=None, resamples=10, in_flight=1),
            data="chats",
            system="You want: bread.",
            speaks_user={name: END},
            served_at=addresses([name], [f"{name}={asker.url}#them"]),
            perplexity=False,
        )
        asker.script(raw=[choice("and with rye?"), choice("", stop_reason=END)])
        ready = prepare(hub, comparison, lambda _: ([chats], None))
        card, _ = ready.run(hub)
        prompts = [entry["body"]["prompt"] for entry in asker.ledger()[len(prompts) :]]
        with pytest.raises(RecipeError, match="--speaks-user names nobody"):
            prepare(hub, AskerComparison([name], Scorecard(), speaks_user={"nobody": None}), None)  # type: ignore[arg-type]
        options = EnvironmentOptions(
            name, "chats", "You want: bread.", [f"{asker.url}#them"],
            speaks_user=True, end_token=END,
        )  # fmt: skip
        asker.script(raw=[choice("and with rye?"), choice("", stop_reason=END)])
        before = len(asker.ledger())
        with (
            prepare_environment(hub, options, lambda _: [chats]).served(hub) as (url, _),
            GenericEnvClient(base_url=url, **OPENENV).sync() as env,
        ):
            opening = env.reset(seed=0).observation["message"]
            assert env.step({"message": "Mix."}).observation["message"] == "and with rye?"
            assert env.step({"message": "Less."}).observation["end_reason"] == "end_mark"
        played = [entry["body"]["prompt"] for entry in asker.ledger()[before:]]
        assert f"user<|end_header_id|>\n\n{opening}<|eot_id|>" in played[0] and len(played) == 2
    assert all(
        p.endswith("<|start_header_id|>user<|end_header_id|>\n\n") for p in [*prompts, *played]
    )
    assert len(prompts) == 2 + 4 + 4  # first turns, next turns, and where people ended
    row = card.rows[-1]
    assert row.name == name and card.settings["trained_on"] == {name: None}


def test_what_cannot_be_such_a_seat_is_refused() -> None:
    for override, says in [
        ("rollout.asker.end_token=<end>", "speaks: user"),
        ("rollout.asker.speaks=user", "not for the asker of this recipe"),
        ("rollout.chat.speaks=user", "can only sit in the asker's seat"),
    ]:
        with pytest.raises(RecipeError, match=says):
            load("parrot", overrides=[override])
