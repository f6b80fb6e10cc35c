"""People's votes: strengths recover the truth, spam is screened, and what the Spaces write is what
``hubkit eval votes`` reads."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.loading import splits_of
from support.spaces import write_sources
from typer import Typer
from typer.testing import CliRunner

from hubkit.cli import eval_votes
from hubkit.errors import SourceError
from hubkit.evaluation import votes as library
from hubkit.evaluation.votes import PERSON, Screen, Vote, screened
from hubkit.hub import connect
from hubkit.metrics.bradley_terry import Comparison, bradley_terry
from hubkit.statistics import Bootstrap


def test_strengths_recover_the_truth_and_cover_it_over_visitors() -> None:
    rng = np.random.default_rng(0)
    truth = {"a": 0.0, "b": 0.8, "c": -0.5}
    names, hits, errors = list(truth), [], []
    for _ in range(60):
        votes = []
        for visitor in range(40):
            taste = {name: rng.normal(0, 0.3) for name in names}
            for _ in range(6):
                one, other = rng.choice(3, 2, replace=False)
                first, second = names[one], names[other]
                gap = truth[first] + taste[first] - truth[second] - taste[second]
                wins = float(rng.random() < 1 / (1 + math.exp(-gap)))
                votes.append(Comparison(visitor, first, second, wins))
        found = bradley_terry(votes, "a", Bootstrap(resamples=100))
        for name in ("b", "c"):
            number = found[name]
            assert number.value is not None and number.low is not None and number.high is not None
            errors.append(number.value - truth[name])
            hits.append(number.low <= truth[name] <= number.high)
    assert abs(np.mean(errors)) < 0.06 and 0.89 <= np.mean(hits) <= 0.99, (
        np.mean(errors),
        np.mean(hits),
    )


def test_strengths_by_hand() -> None:
    votes = [Comparison(n, "a", "b", float(n % 4 != 0)) for n in range(40)]
    found = bradley_terry(votes, "b", Bootstrap(resamples=50))
    assert found["a"].value == pytest.approx(math.log(30.5 / 10.5), abs=1e-4) and found["a"].n == 40
    always = bradley_terry([Comparison(n, "a", "b", 1.0) for n in range(9)], "b", Bootstrap(50))
    assert always["a"].value == pytest.approx(math.log(9.5 / 0.5), abs=1e-3)
    apart = [*votes, Comparison(0, "c", "d", 1.0)]
    assert bradley_terry(apart, "b", Bootstrap(50))["c"].value is None


def vote(visitor: str, number: int, choice: str = "left", seconds: float = 5.0) -> Vote:
    return Vote("who-is-human", f"p{number}", PERSON, "me/ask", visitor, choice, seconds)


def test_spam_is_screened_by_reason() -> None:
    honest = [vote("v", n, ("left", "right")[n % 2]) for n in range(10)]
    fast = [vote("bot", n, ("left", "right")[n % 2], 0.3) for n in range(10)]
    sided = [vote("lazy", n) for n in range(8)]
    few = [vote("new", n) for n in range(7)]
    again = [vote("v", 0), vote("v", 1)]
    slip = [vote("w", 0, seconds=0.2), vote("w", 1)]
    counting, reasons = screened([*honest, *fast, *sided, *few, *again, *slip])
    assert reasons == {"too fast": 11, "one-sided": 8, "repeated": 2}
    assert len(counting) == 10 + 7 + 1
    many = [vote("x", n, ("left", "right")[n % 2]) for n in range(12)]
    assert screened(many, Screen(most=5))[1] == {"too many": 7}


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The votes module as a Space has it, beside the page that it shares."""
    monkeypatch.syspath_prepend(str(write_sources("asker", tmp_path / "space")))
    monkeypatch.delenv("VOTES_TOKEN", raising=False)
    import votes

    yield votes
    for name in ("votes", "page"):
        sys.modules.pop(name, None)


def visitor(number: int) -> Any:
    return SimpleNamespace(headers={}, client=SimpleNamespace(host=f"10.0.0.{number}"))


def play(space: ModuleType, votes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine visitors who find the person 7 times in 10, and one who clicks at once on the left."""
    rng = np.random.default_rng(1)
    clock = [1_000_000.0]
    monkeypatch.setattr(space.time, "time", lambda: clock[0])
    for round_number in range(10):
        for who in range(10):
            person_left = bool(rng.integers(2))
            names = (PERSON, "me/ask") if person_left else ("me/ask", PERSON)
            question = space.ballot("who-is-human", f"context {round_number}", *names)
            clock[0] += 0.2 if who == 9 else float(rng.uniform(3, 9))
            right = "left" if person_left else "right"
            wrong = "right" if person_left else "left"
            choice = "left" if who == 9 else right if rng.random() < 0.7 else wrong
            votes.cast(question, choice, visitor(who), left_words=4, right_words=6)


def test_ten_visitors_one_of_them_a_spammer_from_the_space_to_the_report(
    space: ModuleType, hubkit_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = connect()
    repo = hub.qualify("ask-votes")
    votes = space.Votes(
        repo, send=space.committer(repo, hub.token, hub.url), folder=tmp_path / "kept",
        every_s=3600, per_minute=1000,
    )  # fmt: skip
    assert votes.kept and repo in votes.notice
    with monkeypatch.context() as owned:
        play(space, votes, owned)
    question = space.ballot("who-is-human", "context 0", PERSON, "me/ask")
    with pytest.raises(space.VoteRefusedError, match="voted on this pair"):
        votes.cast(question, "left", visitor(3))
    assert votes.flush() == 1 and votes.flush() == 0, "one commit for all of them"
    app = Typer()
    app.command()(eval_votes.votes)
    done = CliRunner().invoke(app, [repo, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["total"] == 100 and report["screened"] == {"too fast": 10}
    assert report["screened_share"] == 0.1
    (standing,) = report["standings"]
    assert (standing["votes"], standing["visitors"], standing["anchor"]) == (90, 9, PERSON)
    (rate,) = standing["rates"]
    assert (rate["model"], rate["against"]) == ("me/ask", PERSON)
    assert 0.15 < rate["low"] < rate["value"] < rate["high"] < 0.5
    assert standing["strengths"]["me/ask"]["high"] < 0
    assert "screened out" in CliRunner().invoke(app, [repo]).stdout
    folder = hub.snapshot(hub.resolve(repo, repo_type="dataset"))
    assert "with their consent" in (folder / "README.md").read_text()
    written = "".join(file.read_text() for file in folder.rglob("*.jsonl"))
    assert "10.0.0." not in written, "no address is kept"


def test_votes_of_every_kind_are_one_dataset(space: ModuleType, tmp_path: Path) -> None:
    def send(path: str, content: bytes) -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)

    (tmp_path / "README.md").write_text(space.CARD)
    votes = space.Votes("me/v", send=send, folder=tmp_path / "kept", every_s=3600)
    words = {"left_words": 4, "right_words": 6}
    guess = space.ballot("who-is-human", "1", PERSON, "a")
    votes.cast(guess, "left", visitor(1), **words)
    assert votes.flush() == 1
    better = space.ballot("which-is-better", "2", "a", "b")
    votes.cast(better, "tie", visitor(2), turns=3, **words)
    assert votes.flush() == 1
    rows = splits_of(tmp_path, tmp_path / "cache")["default", "train"]
    assert sorted(rows["kind"]) == ["which-is-better", "who-is-human"]
    assert {row["kind"]: row["turns"] for row in rows} == {
        "who-is-human": None, "which-is-better": 3,
    }  # fmt: skip
    written = json.loads(next((tmp_path / "votes").glob("*.jsonl")).read_text().splitlines()[0])
    assert set(written) <= set(rows.column_names)


def test_votes_wait_for_a_hub_that_is_down_and_for_a_restart(
    space: ModuleType, tmp_path: Path
) -> None:
    sent: dict[str, bytes] = {}
    down = [True]

    def send(path: str, content: bytes) -> None:
        if down[0]:
            raise OSError("no route")
        sent[path] = content

    def at(folder: Path) -> Any:
        return space.Votes("me/v", send=send, folder=folder, every_s=3600, per_minute=2)

    votes = at(tmp_path / "kept")
    for number in range(2):
        assert votes.cast(space.ballot("which-is-better", str(number), "a", "b"), "tie", visitor(1))
    with pytest.raises(space.VoteRefusedError, match="not kept"):
        votes.cast(space.ballot("which-is-better", "9", "a", "b"), "tie", visitor(1))
    assert votes.flush() == 0 and not sent
    down[0] = False
    assert at(tmp_path / "kept").flush() == 1, "what another process left is sent"
    (content,) = sent.values()
    assert len(content.splitlines()) == 2
    off = space.Votes("")
    assert not off.kept and "VOTES_TOKEN" in off.notice and not off.cast({}, "left", visitor(1))


def test_files_without_votes_are_refused_and_odd_rows_counted(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"kind": 1}\nnot json\n\n[1]\n')
    with pytest.raises(SourceError, match="no vote to report"):
        library.report([tmp_path / "odd.jsonl"])
    assert library.read_votes([tmp_path / "odd.jsonl"]) == ([], 3)
