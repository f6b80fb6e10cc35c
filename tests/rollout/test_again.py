"""Another server or model under the same recipe: whose answers are reused is told, and ``--again``
makes a stage anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.mock_endpoint import Handle, mock
from support.small_run import small_recipe

from hubkit import pipeline
from hubkit.errors import HubkitError, StageError
from hubkit.hub import connect
from hubkit.hub.places import runs
from hubkit.recipe import load

REQUESTS = 3  # of a dialogue with two human turns, the first given


@pytest.fixture(scope="module")
def values(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    given = small_recipe(
        tmp_path_factory.mktemp("chats"), "again", count=20, openings=10, rollout__in_flight=1
    )[2::2]
    list(pipeline.run(load("parrot", overrides=given), connect(), only="corpus"))
    return given


@pytest.fixture
def servers() -> Iterator[tuple[Handle, Handle]]:
    with mock(answers_as="one/model") as one, mock(answers_as="two/model") as two:
        yield one, two


def roll(
    values: list[str], server: Handle, count: int, temperature: float, again: tuple[str, ...] = ()
) -> tuple[list[set[str]], str]:
    """The models that answered in each dialogue of the stage's commit, and what the run said."""
    recipe = load("parrot", overrides=[
        *values, f"rollout.dialogues={count}", f"rollout.chat.sampling.temperature={temperature}",
        *(f"rollout.{seat}.endpoints=[{server.url}]" for seat in ("asker", "chat")),
    ])  # fmt: skip
    notes: list[str] = []

    def progress(done: float, total: float | None = None, note: str = "") -> None:
        notes.append(note)

    hub = connect()
    [result] = pipeline.run(
        recipe, hub, only="rollout", progress_for=lambda _: progress, again=again
    )
    table = pq.read_table(hub.snapshot(result.ref, allow_patterns=["data/raw-*"]) / "data")
    assert sorted(table["index"].to_pylist()) == list(range(count))
    answered = [{name for name in row if name} for row in table["models"].to_pylist()]
    return answered, " ".join(notes)


@pytest.fixture
def left() -> Callable[[], set[Path]]:
    """The folders of unfinished dialogues that a test leaves behind."""
    before = set(runs().glob("dialogues-*"))
    return lambda: set(runs().glob("dialogues-*")) - before


def test_a_finished_stage_is_reused_told_and_made_anew_on_demand(
    values: list[str], servers: tuple[Handle, Handle], left: Callable[[], set[Path]]
) -> None:
    one, two = servers
    assert roll(values, one, 4, 0.1)[0] == [{"one/model"}] * 4
    reused, told = roll(values, two, 4, 0.1)
    assert reused == [{"one/model"}] * 4 and two.stats()["requests"] == 0
    assert f"with the answers of asker: {one.url}, not {two.url}" in told
    assert "--again rollout" in told
    for times in (1, 2):  # once made anew, it can be made anew
        assert roll(values, two, 4, 0.1, ("rollout",))[0] == [{"two/model"}] * 4
        assert two.stats()["answered"] == times * 4 * REQUESTS
    assert roll(values, two, 4, 0.1)[0] == [{"two/model"}] * 4
    assert (
        roll(values, two, 6, 0.1)[0] == [{"two/model"}] * 6
    )  # a larger run goes on from the newer
    assert two.stats()["answered"] == (2 * 4 + 2) * REQUESTS
    assert one.stats()["answered"] == 4 * REQUESTS
    assert not left()


def test_a_larger_run_says_whose_answers_it_goes_on_from(values: list[str]) -> None:
    with mock() as first, mock() as second:  # they name no model
        roll(values, first, 2, 0.2)
        told = roll(values, second, 4, 0.2)[1]
        assert second.stats()["answered"] == 2 * REQUESTS
    assert f"2 dialogues have the answers of asker: {first.url}, not {second.url}" in told
    assert "--again rollout" in told


def test_a_run_made_anew_resumes_where_it_was_interrupted(
    values: list[str], servers: tuple[Handle, Handle], left: Callable[[], set[Path]]
) -> None:
    one, two = servers
    one.script(status=401, after=5)
    with pytest.raises(HubkitError, match="401"):
        roll(values, one, 4, 0.3)
    with pytest.raises(StageError, match=r"begun with 'one/model'.*--again rollout"):
        roll(values, two, 4, 0.3)
    asked_in_vain = len(two.ledger())
    two.script(status=401, after=7)
    with pytest.raises(HubkitError, match="401"):
        roll(values, two, 4, 0.3, ("rollout",))
    two.script()
    assert roll(values, two, 4, 0.3, ("rollout",))[0] == [{"two/model"}] * 4
    assert len(two.ledger()) == asked_in_vain + 4 * REQUESTS
    assert not left()


def test_a_stage_to_make_anew_is_one_of_the_recipe(values: list[str]) -> None:
    recipe: Any = load("parrot", overrides=values)
    for use in (pipeline.run, pipeline.plan):
        with pytest.raises(StageError, match="no stage 'rolout'"):
            list(use(recipe, connect(), again=["rolout"]))
    assert "done" in {p.state for p in pipeline.plan(recipe, connect(), only="corpus")}
    anew = pipeline.plan(recipe, connect(), only="corpus", again=["corpus"])
    assert [p.state for p in anew] == ["to run"]
