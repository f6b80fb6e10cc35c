"""The push, against a real embedded Hub through huggingface_hub: what it changes, leaves and holds
back.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, SpaceCard
from publishing.test_cards import REPORTS, RESULTS

from hubkit import recipe as recipes
from hubkit.errors import CommitConflictError, PublishError
from hubkit.hub import Hub, Ref, connect
from hubkit.publishing import PushOptions, collection, lineage, lint, publish
from hubkit.publishing.merge import KEEP
from hubkit.recipe import Recipe

PARQUET = {
    "corpus": ("train", "openings", "test"),
    "rollout": ("raw",),
    "curate": ("train", "dropped"),
}


@pytest.fixture(scope="module")
def hub(hubkit_home: Path) -> Hub:
    pytest.importorskip("hubkit.local_hub.__main__", reason="the embedded Hub is not there")
    return connect()


@pytest.fixture(scope="module")
def rows() -> Callable[[str], bytes]:
    """A split's parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def of(split: str) -> bytes:
        messages = [
            {"role": "user", "content": f"hi {split}"},
            {"role": "assistant", "content": "hello"},
        ]
        out = io.BytesIO()
        pq.write_table(pa.table({"id": ["a"], "messages": [messages], "source": ["test"]}), out)
        return out.getvalue()

    return of


@pytest.fixture
def recipe() -> Recipe:
    """A recipe of its own for every test, under repo names that no other test has."""
    loaded = recipes.load("parrot", profiles=["laptop"])
    mark = f"{random.randrange(10**8):08d}"
    repos = {
        key: f"{value}-{mark}" for key, value in loaded.repos.model_dump(exclude_none=True).items()
    }
    base = {"base": f"somebody/base-{mark}"}
    return loaded.model_copy(
        update={
            "repos": loaded.repos.model_copy(update={**repos, "collection": f"T {mark}"}),
            "asker": loaded.asker.model_copy(update=base),
            "chat": loaded.chat.model_copy(update=base),
        }
    )


def stage(
    hub: Hub,
    recipe: Recipe,
    name: str,
    repo: str,
    repo_type: str,
    inputs: dict[str, Ref],
    files: dict[str, bytes],
    folder: Path,
) -> Ref:
    """Commit what a stage would: its files and its record."""
    report: dict[str, Any] = RESULTS if name == "eval" else REPORTS.get(name, {})
    record = {"stage": name, "inputs": {role: ref.to_dict() for role, ref in inputs.items()},
              "report": report, "packages": {"torch": "2.13.0"}}  # fmt: skip
    out = folder / name
    for path, content in {**files, f"provenance/{name}.json": json.dumps(record).encode()}.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(content)
    return hub.commit(hub.qualify(getattr(recipe.repos, repo)), out, f"{name}", repo_type=repo_type)


@pytest.fixture
def outputs(
    hub: Hub, recipe: Recipe, rows: Callable[[str], bytes], tmp_path: Path
) -> dict[str, Ref]:
    """Commits as the stages leave them, small but whole."""
    made: dict[str, Ref] = {}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    base = hub.commit(recipe.asker.base, tmp_path / "base", "base")

    def add(
        name: str,
        repo: str,
        repo_type: str,
        inputs: dict[str, Ref],
        extra: dict[str, bytes] | None = None,
    ) -> None:
        files = {
            f"data/{split}-00000-of-00001.parquet": rows(split) for split in PARQUET.get(name, ())
        }
        made[name] = stage(
            hub, recipe, name, repo, repo_type, inputs, {**files, **(extra or {})}, tmp_path
        )

    weights = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}"}
    add("corpus", "corpus", "dataset", {})
    add("asker", "asker", "model", {"base": base, "corpus": made["corpus"]}, weights)
    add(
        "rollout",
        "dialogues",
        "dataset",
        {"openings": made["corpus"], "asker": made["asker"], "chat model": base},
    )
    add("curate", "dialogues", "dataset", {"rollout": made["rollout"]})
    add("chat", "chat", "model", {"base": base, "dialogues": made["curate"]}, weights)
    add("eval", "results", "dataset",
        {"corpus": made["corpus"], "asker": made["asker"], "chat": made["chat"]},
        {"results.json": json.dumps(RESULTS).encode()})  # fmt: skip
    return made


@pytest.fixture
def some(outputs: dict[str, Ref]) -> dict[str, Ref]:
    """Two of them, where two are enough."""
    return {name: outputs[name] for name in ("corpus", "chat")}


def heads(hub: Hub, recipe: Recipe) -> dict[str, list[str]]:
    """Every repo's whole history, newest first."""
    repos = [
        (getattr(recipe.repos, kind), kind)
        for kind in ("corpus", "asker", "dialogues", "chat", "results")
    ]
    types = {"asker": "model", "chat": "model"}
    found = {}
    for name, kind in repos:
        commits = hub.api.list_repo_commits(hub.qualify(name), repo_type=types.get(kind, "dataset"))
        found[kind] = [c.commit_id for c in commits]
    return found


def card_of(hub: Hub, repo_id: str, repo_type: str = "model") -> str:
    return hub.read(hub.resolve(repo_id, repo_type=repo_type), "README.md").decode()


def test_a_push_makes_final_cards_spaces_and_a_collection(
    hub: Hub, recipe: Recipe, outputs: dict[str, Ref]
) -> None:
    changes = publish(hub, recipe, outputs)
    for kind, repo_type in (("corpus", "dataset"), ("asker", "model"), ("dialogues", "dataset"),
                            ("chat", "model"), ("results", "dataset")):  # fmt: skip
        card = card_of(hub, hub.qualify(getattr(recipe.repos, kind)), repo_type)
        assert lint(card, kind) == []  # type: ignore[arg-type]
        assert "![Lineage" in card
    asker = card_of(hub, hub.qualify(recipe.repos.asker))
    assert outputs["corpus"].revision in asker and "3.1234" in asker and "Held-out" in asker
    space = SpaceCard(card_of(hub, hub.qualify(recipe.repos.asker), "space"))
    assert hub.qualify(recipe.repos.asker) in space.data.models
    assert {c.action for c in changes} == {"create", "add"} and all(
        c.commit for c in changes if c.path == "README.md"
    )


def test_the_collection_holds_every_repo_once(
    hub: Hub, recipe: Recipe, outputs: dict[str, Ref]
) -> None:
    if not collection.supported(hub):
        pytest.skip("this embedded Hub keeps no collections")
    for _ in range(2):
        publish(hub, recipe, outputs)
        (found,) = [
            c
            for c in hub.api.list_collections(owner=hub.namespace)
            if c.title == recipe.repos.collection
        ]
        assert len(hub.api.get_collection(found.slug).items) == 7


def test_a_second_push_makes_no_commit_and_a_changed_one_only_that(
    hub: Hub, recipe: Recipe, outputs: dict[str, Ref]
) -> None:
    publish(hub, recipe, outputs)
    before = heads(hub, recipe)
    assert publish(hub, recipe, outputs) == []
    assert heads(hub, recipe) == before
    noted = recipe.model_copy(
        update={"publish": recipe.publish.model_copy(update={"license_chat": "mit"})}
    )
    changes = publish(hub, noted, outputs)
    assert [(c.repo_id, c.path) for c in changes] == [(hub.qualify(recipe.repos.chat), "README.md")]
    after = heads(hub, recipe)
    assert [kind for kind in after if after[kind] != before[kind]] == ["chat"]
    assert after["chat"][1:] == before["chat"]


def test_a_dry_run_names_every_file_and_touches_nothing(
    hub: Hub, recipe: Recipe, outputs: dict[str, Ref]
) -> None:
    before = heads(hub, recipe)
    planned = publish(hub, recipe, outputs, dry_run=True)
    assert heads(hub, recipe) == before
    assert not hub.api.repo_exists(hub.qualify(recipe.repos.chat), repo_type="space")
    assert [(c.repo_id, c.action, c.path) for c in planned] == [
        (c.repo_id, c.action, c.path) for c in publish(hub, recipe, outputs)
    ]


def test_what_people_added_to_a_card_stays(hub: Hub, recipe: Recipe, some: dict[str, Ref]) -> None:
    publish(hub, recipe, some)
    repo_id = hub.qualify(recipe.repos.chat)
    card = ModelCard(card_of(hub, repo_id))
    card.data["thumbnail"] = "https://example.org/x.png"
    text = str(card).replace(KEEP, f"{KEEP}\n\nOur own note.")
    hub.api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo_id)
    hub.api.upload_file(path_or_fileobj=b"hello", path_in_repo="extra.txt", repo_id=repo_id)
    noted = recipe.model_copy(
        update={"publish": recipe.publish.model_copy(update={"license_chat": "mit"})}
    )
    publish(hub, noted, some)
    final = card_of(hub, repo_id)
    assert (
        "Our own note." in final
        and ModelCard(final).data["thumbnail"] == "https://example.org/x.png"
    )
    assert ModelCard(final).data.license == "mit"
    assert hub.read(hub.resolve(repo_id), "extra.txt") == b"hello"


def test_a_secret_stops_the_push_before_the_first_byte(
    hub: Hub, recipe: Recipe, some: dict[str, Ref]
) -> None:
    leaky = recipe.model_copy(
        update={
            "publish": recipe.publish.model_copy(
                update={"license_note": "use hf_" + "Ab1" * 11 + "A"}
            )
        }
    )
    before = heads(hub, recipe)
    with pytest.raises(PublishError, match="huggingface token") as caught:
        publish(hub, leaky, some)
    assert "Ab1Ab1" not in str(caught.value)
    assert heads(hub, recipe) == before


def test_a_card_that_does_not_lint_is_not_pushed(
    hub: Hub, recipe: Recipe, some: dict[str, Ref]
) -> None:
    wrong = recipe.model_copy(
        update={"publish": recipe.publish.model_copy(update={"license_chat": "apache2"})}
    )
    before = heads(hub, recipe)
    with pytest.raises(PublishError, match="apache2"):
        publish(hub, wrong, some)
    assert heads(hub, recipe) == before


def test_somebody_else_s_commit_is_kept(
    hub: Hub, recipe: Recipe, some: dict[str, Ref], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They edit the card while we are about to commit ours: our parent is stale, so we look again
    and merge.
    """
    repo_id = hub.qualify(recipe.repos.chat)
    real = hub.api.create_commit
    meddled: list[str] = []

    def create_commit(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("parent_commit") and args[0] == repo_id and not meddled:
            meddled.append(repo_id)
            theirs = (
                f"---\nthumbnail: https://example.org/x.png\n---\n# Mine\n{KEEP}\nTheirs.\n"
            ).encode()
            hub.api.upload_file(path_or_fileobj=theirs, path_in_repo="README.md", repo_id=repo_id)
        return real(*args, **kwargs)

    monkeypatch.setattr(hub.api, "create_commit", create_commit)
    publish(hub, recipe, some)
    final = card_of(hub, repo_id)
    assert meddled and "Theirs." in final and "thumbnail" in final and lint(final, "chat") == []


def test_who_never_stops_committing_is_named(
    hub: Hub, recipe: Recipe, some: dict[str, Ref], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hub.api.create_commit

    def create_commit(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("parent_commit"):
            name = f"{random.random()}.txt"
            hub.api.upload_file(
                path_or_fileobj=b"x",
                path_in_repo=name,
                repo_id=args[0],
                repo_type=kwargs["repo_type"],
            )
        return real(*args, **kwargs)

    monkeypatch.setattr(hub.api, "create_commit", create_commit)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(CommitConflictError, match="push again later"):
        publish(hub, recipe, some, options=PushOptions(with_spaces=False))


def test_lineage_reaches_the_base_and_draws_the_same_twice(
    hub: Hub, recipe: Recipe, outputs: dict[str, Ref]
) -> None:
    tree = lineage.trace(outputs["chat"], functools.partial(lineage.records, hub))
    drawn = lineage.text(tree)
    assert (
        drawn.count(f"model {recipe.asker.base}") == 3
        and recipe.repos.corpus in drawn
        and "(above)" in drawn
    )
    assert drawn.splitlines()[0].startswith(f"model {hub.qualify(recipe.repos.chat)} @ ")
    first, second = lineage.picture(tree), lineage.picture(tree)
    assert first == second and first.startswith(b"\x89PNG")


@pytest.fixture
def other_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A second Hub that is not the embedded one of this configuration, as huggingface.co would
    be.
    """
    from hubkit.hub import embedded

    with monkeypatch.context() as patch:
        patch.setenv("HUBKIT_HOME", str(tmp_path / "other"))
        patch.setenv("HUBKIT_NAMESPACE", "someone")
        there = connect()
        (tmp_path / "other").mkdir(exist_ok=True)
        yield Hub(there.url, there.token, "someone", embedded=False)
        embedded.stop()


def test_a_push_to_another_hub_moves_everything_and_its_lineage(
    hub: Hub, recipe: Recipe, outputs: dict[str, Ref], other_hub: Hub
) -> None:
    planned = publish(other_hub, recipe, outputs, source=hub, dry_run=True)
    assert not other_hub.api.repo_exists(f"someone/{recipe.repos.chat}")
    assert any(c.path.endswith("adapter_model.safetensors") for c in planned)
    publish(other_hub, recipe, outputs, source=hub)
    chat = f"someone/{recipe.repos.chat}"
    card = card_of(other_hub, chat)
    dialogues = other_hub.resolve(f"someone/{recipe.repos.dialogues}", repo_type="dataset")
    assert dialogues.revision in card and "not on this Hub" not in card
    base = other_hub.resolve(recipe.chat.base)
    assert f'revision="{base.revision}"' in card, "the base that it lacked came along"
    assert other_hub.read(base, "config.json") == b"{}"
    assert "local/" not in card.split("## Paper")[0]
    assert other_hub.read(other_hub.resolve(chat), "adapter_model.safetensors") == b"weights"
    assert other_hub.tags(dialogues.repo_id, repo_type="dataset") == {"v1": dialogues.revision}
    assert (
        other_hub.api.repo_info(chat).private
        and other_hub.api.repo_info(chat, repo_type="space").private
    )
    before = other_hub.resolve(chat).revision
    assert publish(other_hub, recipe, outputs, source=hub) == []
    assert other_hub.resolve(chat).revision == before


def test_a_base_of_the_same_name_with_other_files_stays_as_it_is(
    hub: Hub, recipe: Recipe, some: dict[str, Ref], other_hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"theirs": true}')
    theirs = other_hub.commit(recipe.chat.base, tmp_path / "theirs", "another model of that name")
    publish(other_hub, recipe, some, source=hub, options=PushOptions(with_spaces=False))
    assert other_hub.resolve(recipe.chat.base) == theirs
    card = card_of(other_hub, f"someone/{recipe.repos.chat}")
    assert "not on this Hub" in card and theirs.revision not in card
    assert (
        publish(other_hub, recipe, some, source=hub, options=PushOptions(with_spaces=False)) == []
    )


def test_personal_data_does_not_go_to_a_real_hub_unasked(
    hub: Hub, recipe: Recipe, some: dict[str, Ref], other_hub: Hub, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "more" / "data").mkdir(parents=True)
    messages = [{"role": "user", "content": "write to jane.roe@mail.example.com please"}]
    rows = pa.table({"id": ["b"], "messages": [messages], "source": ["test"]})
    pq.write_table(rows, tmp_path / "more" / "data" / "test-00000-of-00001.parquet")
    corpus = hub.commit(some["corpus"].repo_id, tmp_path / "more", "more rows", repo_type="dataset")
    told = {**some, "corpus": corpus}
    assert publish(hub, recipe, told, options=PushOptions(with_spaces=False)), (
        "the embedded Hub is this machine"
    )
    with pytest.raises(
        PublishError, match=r"data/test-00000-of-00001\.parquet holds 1 email"
    ) as caught:
        publish(other_hub, recipe, told, source=hub, options=PushOptions(with_spaces=False))
    assert "jane" not in str(caught.value)
    assert not other_hub.api.repo_exists(f"someone/{recipe.repos.corpus}", repo_type="dataset")
    publish(
        other_hub, recipe, told, source=hub, options=PushOptions(with_spaces=False, allow=["email"])
    )
    assert other_hub.api.repo_exists(f"someone/{recipe.repos.corpus}", repo_type="dataset")


def test_rows_are_masked_on_a_push_and_a_second_push_changes_nothing(
    hub: Hub, recipe: Recipe, some: dict[str, Ref], other_hub: Hub, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard = tmp_path / "more" / "data" / "test-00000-of-00001.parquet"
    shard.parent.mkdir(parents=True)
    messages = [{"role": "user", "content": "write to jane.roe@mail.example.com please"}]
    pq.write_table(pa.table({"id": ["b"], "messages": [messages], "source": ["test"]}), shard)
    corpus = hub.commit(some["corpus"].repo_id, tmp_path / "more", "more rows", repo_type="dataset")
    told, there = {**some, "corpus": corpus}, other_hub.masking(["email"])
    publish(there, recipe, told, source=hub, options=PushOptions(with_spaces=False))
    pushed = other_hub.resolve(f"someone/{recipe.repos.corpus}", repo_type="dataset")
    (row,) = pq.read_table(other_hub.snapshot(pushed) / "data" / shard.name).to_pylist()
    assert row["messages"][0]["content"] == "write to [EMAIL] please"
    again = publish(there, recipe, told, source=hub, options=PushOptions(with_spaces=False))
    assert {change.action for change in again} <= {"leave"}


_PUSH = """
import json, os, sys
from hubkit import recipe as recipes
from hubkit.hub import Hub, Ref, connect
from hubkit.publishing import publish
from hubkit.recipe import Recipe
given = json.loads(sys.stdin.read())
here = connect()
there = (Hub(given["to"], os.environ["TOKEN_THERE"], "someone", embedded=False)
         if given["to"] else here)
publish(there, Recipe.model_validate(given["recipe"]),
        {k: Ref(**v) for k, v in given["outputs"].items()}, source=here)
"""


def pushed_and_killed(recipe: Recipe, outputs: dict[str, Ref], to: Hub | None) -> Iterator[int]:
    """A push killed at a random moment, fifty times over, with growing waits."""
    told = {"recipe": recipe.model_dump(), "outputs": {k: v.to_dict() for k, v in outputs.items()}}
    given = json.dumps({**told, "to": to.url if to else ""})
    env = {**os.environ, "TOKEN_THERE": (to.token or "") if to else ""}
    spread = random.Random(7)
    for round_ in range(50):
        command = [sys.executable, "-c", _PUSH]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL, env=env
        )
        assert process.stdin
        process.stdin.write(given)
        process.stdin.close()
        time.sleep(spread.uniform(0.5, 1.5 + 0.1 * round_))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        yield round_


@pytest.mark.slow
def test_killed_pushes_end_like_a_whole_one(
    hub: Hub,
    recipe: Recipe,
    outputs: dict[str, Ref],
    record_property: Callable[[str, object], None],
) -> None:
    """kill -9 at fifty random moments; then one push to the end: one commit a repo, no more."""
    before = heads(hub, recipe)
    kills = sum(1 for _ in pushed_and_killed(recipe, outputs, to=None))
    record_property("kills", kills)
    publish(hub, recipe, outputs)
    after = heads(hub, recipe)
    assert {kind: len(after[kind]) - len(before[kind]) for kind in after} == dict.fromkeys(after, 1)
    assert publish(hub, recipe, outputs) == []


@pytest.mark.slow
def test_killed_pushes_to_another_hub_end_like_a_whole_one(
    hub: Hub,
    recipe: Recipe,
    outputs: dict[str, Ref],
    other_hub: Hub,
    record_property: Callable[[str, object], None],
) -> None:
    """The same where data moves and is tagged: one commit a repo, and never a tag on what is not
    whole.
    """
    kills = 0
    dialogues = f"someone/{recipe.repos.dialogues}"
    wanted = {f"data/{split}-00000-of-00001.parquet" for split in ("raw", "train", "dropped")}
    for _ in pushed_and_killed(recipe, outputs, to=other_hub):
        kills += 1
        if other_hub.api.repo_exists(dialogues, repo_type="dataset"):
            for sha in other_hub.tags(dialogues, repo_type="dataset").values():
                assert wanted <= {
                    *other_hub.api.list_repo_files(dialogues, repo_type="dataset", revision=sha)
                }
    record_property("kills", kills)
    publish(other_hub, recipe, outputs, source=hub)
    after = heads(other_hub, recipe)
    assert {kind: len(commits) for kind, commits in after.items()} == dict.fromkeys(after, 2), (
        "its making, the push"
    )
    assert other_hub.tags(dialogues, repo_type="dataset") == {"v1": after["dialogues"][0]}
    assert publish(other_hub, recipe, outputs, source=hub) == []


def test_a_stray_file_beside_a_space_is_never_published(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from hubkit.publishing import assets, spaces

    shipped = [set(spaces.files(space, recipe, str)) for space in spaces.SPACES]
    copy = tmp_path / "spaces"
    shutil.copytree(assets.folder("spaces"), copy)
    for folder in (copy / "chat", copy / "asker", copy / "common", copy):
        for name in (".env", "notes.txt", "stub.py", "settings.local.json"):
            (folder / name).write_text("HF_TOKEN=x")
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("x")
    monkeypatch.setattr(assets, "folder", lambda name: tmp_path / name)
    assert [set(spaces.files(space, recipe, str)) for space in spaces.SPACES] == shipped


def test_what_a_push_does_not_take_along_is_named_and_counted(
    hub: Hub,
    recipe: Recipe,
    some: dict[str, Ref],
    other_hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    from hubkit.cli.push import _show
    from hubkit.publishing import assets

    shutil.copytree(assets.folder("spaces"), tmp_path / "spaces")
    shutil.copytree(assets.folder("cards"), tmp_path / "cards")
    (tmp_path / "spaces" / "chat" / ".env").write_text("HF_TOKEN=x")
    monkeypatch.setattr(assets, "folder", lambda name: tmp_path / name)
    mine = tmp_path / "mine"
    (mine / "notes").mkdir(parents=True)
    for name in ("modeling_own.py", "notes/mine.json"):
        (mine / name).write_text("{}")
    outputs = {**some, "chat": hub.commit(some["chat"].repo_id, mine, "what a person added")}
    changes = publish(other_hub, recipe, outputs, source=hub)
    left_out = {(c.repo_type, c.path) for c in changes if c.action == "leave"}
    assert left_out == {
        ("model", "modeling_own.py"),
        ("model", "notes/mine.json"),
        ("space", "chat/.env"),
    }
    there = {
        path
        for kind in ("model", "space")
        for path in other_hub.api.list_repo_files(f"someone/{recipe.repos.chat}", repo_type=kind)
    }
    assert "adapter_model.safetensors" in there and "app.py" in there
    assert not {"modeling_own.py", "notes/mine.json", ".env", "chat/.env"} & there
    again = publish(other_hub, recipe, outputs, source=hub)
    assert {(c.repo_type, c.path) for c in again} == left_out
    _show(again, other_hub.url, dry_run=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "2 files that no push takes along (modeling_own.py, notes/mine.json)" in said
    assert "1 file that no push takes along (chat/.env)" in said and "nothing to change" in said


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("config.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("tokenizer.model", True),
        ("chat_template.jinja", True),
        ("LICENSE", True),
        ("NOTICE.txt", True),
        ("USE_POLICY.md", True),
        ("pytorch_model.bin", False),
        ("onnx/model.onnx", False),
        ("original/params.json", False),
        ("model-Q4_K_M.gguf", False),
        (".env", False),
        ("modeling_own.py", False),
    ],
)
def test_of_a_base_only_what_loads_it_and_its_terms_travel(path: str, needed: bool) -> None:
    from hubkit.publishing.base_models import is_needed

    assert is_needed(path) is needed


@pytest.mark.parametrize(
    ("path", "leaves"),
    [
        ("README.md", True),
        ("adapter_model.safetensors", True),
        ("tokenizer.json", True),
        ("chat_template.jinja", True),
        ("data/train-00000-of-00001.parquet", True),
        ("provenance/asker.json", True),
        ("conversations/train-00000-of-00001.parquet", True),
        (".eval_results/scorecard.yaml", True),
        (".env", False),
        (".gitattributes", False),
        ("data/.env.json", False),
        ("notes/mine.json", False),
        ("modeling_own.py", False),
        ("pytorch_model.bin", False),
        ("data/deep/er.parquet", False),
    ],
)
def test_a_push_takes_what_stages_write_and_nothing_else(path: str, leaves: bool) -> None:
    from hubkit.publishing.push import may_leave

    assert may_leave(path) is leaves
