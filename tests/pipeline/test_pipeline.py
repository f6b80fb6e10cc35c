"""A stage ends in one commit, is skipped when it is done, goes on when it was interrupted; versions
never move.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.tiny_models import tiny_tokenizer

from hubkit.errors import RepoMissingError, SourceError, StageError, TemplateError
from hubkit.hub import Hub, Ref, connect
from hubkit.pipeline import RunContext, Stage, plan, run
from hubkit.pipeline.stage import StageDirs
from hubkit.pipeline.stopwatch import Stopwatch
from hubkit.progress import silent
from hubkit.recipe import load


class Built:
    """A stage that writes one file and counts how often it was built."""

    def __init__(self, repo: str) -> None:
        self.times = 0
        self.stage = Stage(
            "curate",
            "dialogues",
            "dataset",
            inputs=lambda context, progress: {},
            build=self.build,
            card=lambda context, inputs, record, files: f"# {record['report']['rows']} rows\n",
            replace=("data/*",),
            tagged=True,
        )
        self.repo = repo

    def build(self, context: RunContext, inputs: dict[str, Ref], work: StageDirs) -> dict[str, Any]:
        self.times += 1
        (work.out / "data").mkdir()
        (work.out / "data" / f"{self.times}.txt").write_text("rows", "utf-8")
        return {"rows": self.times}

    def context(self, hub: Hub, *overrides: str) -> RunContext:
        return RunContext(
            load("parrot", overrides=[f"repos.dialogues={self.repo}", *overrides]), hub
        )


@pytest.fixture
def hub(hubkit_home: Path) -> Hub:
    return connect()


def test_a_stage_is_one_commit_with_its_provenance_and_is_then_found(hub: Hub) -> None:
    toy = Built("toy-found")
    context = toy.context(hub)
    assert toy.stage.find(context, {}) is None
    made = toy.stage.run(context, {}, silent)
    found = toy.stage.find(context, {})
    assert (
        found is not None
        and found.ref == made.ref
        and found.skipped
        and found.tag == made.tag == "v1"
    )
    record = json.loads(hub.read(made.ref, "provenance/curate.json"))
    assert (
        record["seed"] == 42
        and record["report"] == {"rows": 1}
        and record["packages"]["torch"] != "absent"
    )
    assert hub.read(made.ref, "README.md") == b"# 1 rows\n"
    titles = [c.title for c in hub.api.list_repo_commits(made.ref.repo_id, repo_type="dataset")]
    assert sum("[curate:" in title for title in titles) == 1


def test_other_values_or_inputs_make_another_version(hub: Hub) -> None:
    toy = Built("toy-versions")
    first = toy.stage.run(toy.context(hub), {}, silent)
    second = toy.stage.run(toy.context(hub, "curate.filters=[]"), {}, silent)
    assert (first.tag, second.tag) == ("v1", "v2")
    assert hub.tags(first.ref.repo_id, repo_type="dataset") == {
        "v1": first.ref.revision,
        "v2": second.ref.revision,
    }
    files = hub.api.list_repo_files(second.ref.repo_id, repo_type="dataset")
    assert "data/2.txt" in files and "data/1.txt" not in files
    assert toy.stage.key(toy.context(hub), {}) != toy.stage.key(
        toy.context(hub), {"corpus": first.ref}
    )


def test_a_run_that_died_before_its_commit_is_not_built_again(hub: Hub, monkeypatch: Any) -> None:
    toy = Built("toy-died")
    with monkeypatch.context() as dying:
        dying.setattr(Hub, "commit", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            toy.stage.run(toy.context(hub), {}, silent)
    made = toy.stage.run(toy.context(hub), {}, silent)
    assert toy.times == 1 and made.report == {"rows": 1}


def test_the_seconds_of_a_stage_are_those_of_all_the_processes_that_built_it(hub: Hub) -> None:
    toy = Built("toy-killed")
    context = toy.context(hub)
    folder = toy.stage.folder(context, toy.stage.key(context, {}))
    folder.mkdir(parents=True)
    (folder / "seconds").write_text("3600.0", "utf-8")  # as a killed process leaves it
    toy.stage.run(context, {}, silent)
    found = toy.stage.find(context, {})
    assert found is not None and 3600 <= found.seconds < 3700
    assert not folder.exists()


def test_a_stopwatch_counts_work_and_neither_pauses_nor_what_it_cannot_read(
    tmp_path: Path,
) -> None:
    now = [100.0]
    path = tmp_path / "seconds"
    first = Stopwatch(path, lambda: now[0])
    report = first.kept_by(silent)
    now[0] += 4
    report(0.1)
    assert not path.exists()  # so soon that it would only cost
    now[0] += 26
    report(0.2)
    now[0] += 5  # killed here: the seconds since the last report are lost
    now[0] += 1000
    second = Stopwatch(path, lambda: now[0])
    now[0] += 2
    assert second.seconds == 32
    second.keep()
    assert Stopwatch(path, lambda: now[0]).seconds == 32
    for damaged in ("", "12.3.4", "-5"):
        path.write_text(damaged, "utf-8")
        assert Stopwatch(path, lambda: now[0]).seconds == 0


def test_a_run_that_died_between_commit_and_tag_is_tagged_by_the_next(
    hub: Hub, monkeypatch: Any
) -> None:
    toy = Built("toy-untagged")
    with monkeypatch.context() as dying:
        dying.setattr(Hub, "tag", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            toy.stage.run(toy.context(hub), {}, silent)
    found = toy.stage.find(toy.context(hub), {})
    assert found is not None and found.tag == "v1" and toy.times == 1


def test_two_processes_do_not_build_the_same_stage(hub: Hub) -> None:
    toy = Built("toy-locked")
    context = toy.context(hub)
    folder = toy.stage.folder(context, toy.stage.key(context, {}))
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"), pytest.raises(StageError, match="another process"):
        toy.stage.run(context, {}, silent)


def test_a_stage_without_the_one_before_it_says_what_to_run() -> None:
    with pytest.raises(StageError, match="hubkit run parrot"):
        RunContext(load("parrot"), None).before("corpus")  # type: ignore[arg-type]


def test_what_a_later_stage_reads_is_looked_for_before_the_first_one_runs(
    hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "chats.jsonl").write_text("{}\n", "utf-8")
    given = [
        "rollout.chat.repo=nobody/misspelt",
        f"corpus.sources=[{{path: {tmp_path / 'chats.jsonl'}}}]",
    ]
    recipe = load("parrot", profiles=["laptop"], overrides=[*given, "repos.corpus=never-made"])
    with pytest.raises(RepoMissingError, match="nobody/misspelt"):
        next(run(recipe, hub))
    with pytest.raises(RepoMissingError):
        hub.resolve(hub.qualify("never-made"), repo_type="dataset")
    states = {planned.stage: planned.state for planned in plan(recipe, hub)}
    assert states["corpus"] == "to run" and "nobody/misspelt" in states["rollout"]


@pytest.mark.parametrize("seat", ["asker", "chat"])
def test_a_base_whose_template_cannot_be_used_is_refused_before_the_first_stage_runs(
    hub: Hub, tmp_path: Path, seat: str
) -> None:
    for name, template in (("good-base", None), ("bad-base", "{{ messages[0].content }}")):
        folder = tmp_path / name
        tiny_tokenizer(folder)
        (folder / "config.json").write_text("{}")
        if template:
            (folder / "chat_template.jinja").write_text(template)
        hub.commit(hub.qualify(name), folder, "A base")
    (tmp_path / "chats.jsonl").write_text("{}\n", "utf-8")
    bases = dict.fromkeys(("asker", "chat"), hub.qualify("good-base"))
    bases[seat] = hub.qualify("bad-base")
    given = [f"{name}.base={base}" for name, base in bases.items()]
    given += [f"corpus.sources=[{{path: {tmp_path / 'chats.jsonl'}}}]", "repos.corpus=not-made"]
    given += [f"rollout.chat.repo={hub.qualify('good-base')}"]
    recipe = load("parrot", profiles=["laptop"], overrides=given)
    with pytest.raises(TemplateError, match=rf"{seat}\.base .*bad-base: .*write template: NAME"):
        next(run(recipe, hub))
    with pytest.raises(RepoMissingError):
        hub.resolve(hub.qualify("not-made"), repo_type="dataset")
    proven = load("parrot", profiles=["laptop"], overrides=[*given, f"{seat}.template=chatml"])
    with pytest.raises(SourceError):  # the corpus is read now, and has no conversations
        next(run(proven, hub))


def test_another_pace_finds_what_was_made_and_tags_nothing(hub: Hub) -> None:
    toy = Built("toy-pace")
    first = toy.stage.run(toy.context(hub), {}, silent)
    found = toy.stage.find(toy.context(hub, "curate.on=ray"), {})
    assert found is not None and found.ref == first.ref and found.tag == "v1"


@pytest.mark.parametrize(("filters", "is_there"), [(None, True), ("[]", False)])
def test_a_commit_of_version_0_1_is_found_by_its_record(
    hub: Hub, tmp_path: Path, filters: str | None, is_there: bool
) -> None:
    """Its title holds a key that covered pace and repo names too; its record says what was read."""
    toy = Built("toy-earlier")
    context = toy.context(hub, *([f"curate.filters={filters}"] if filters else []))
    block = load("parrot").curate.model_dump(mode="json", exclude={"on"})
    record = {"stage": "curate", "key": "0" * 64, "block": block, "inputs": {}, "seed": 42}
    record |= {"digest": "1" * 64, "report": {"rows": 5}, "seconds": 3.5, "hubkit": "0.1.0"}
    (tmp_path / "provenance").mkdir()
    (tmp_path / "provenance" / "curate.json").write_text(json.dumps(record))
    title = f"Curate of recipe parrot [curate:{'0' * 12}]"
    ref = hub.commit(toy.stage.repo_id(context), tmp_path, title, repo_type="dataset")
    found = toy.stage.find(context, {})
    assert (found is not None) == is_there
    if found is not None:
        assert found.ref == ref and found.report == {"rows": 5} and found.tag == "v1"
