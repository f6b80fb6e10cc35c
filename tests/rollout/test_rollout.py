"""Rollout through its own door, against a server in another process: what each seat is sent, how
dialogues end, and that nothing acknowledged is lost or asked for twice, whatever stops the
driver."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batch_server import batch_server
from support.mock_endpoint import Handle, mock
from support.waiting import until

from hubkit.conversation import Conversation, fault, swap_roles
from hubkit.errors import (
    DiskFullError,
    HubError,
    MisconfiguredEndpointError,
    RecipeError,
    RunLockedError,
    SourceError,
    StageError,
)
from hubkit.recipe import Rollout
from hubkit.rollout import JournalSpec, RolloutReport, Seats, Status, Watch, estimate, run
from hubkit.rollout.journal import decode, encode, newest, read
from hubkit.rollout.plan import turn_seed
from hubkit.serving import ServedModel

PROVENANCE = {
    "asker": {"repo_id": "me/asker", "revision": "a" * 40},
    "chat": {"repo_id": "me/chat", "revision": "b" * 40},
}


def block(**changes: Any) -> Rollout:
    """A small rollout block; `changes` are its keys, `asker` and `chat` merged into the seats."""
    seats = {
        "asker": {"repo": "asker", "system": "You are a person.", "context": 4096},
        "chat": {"repo": "base", "system": "You help.", "context": 4096},
    }
    for seat in seats:
        seats[seat] |= changes.pop(seat, {})
    given = {"dialogues": 6, "turns": {"kind": "fixed", "value": 3}, "in_flight": 4}
    return Rollout.model_validate({**given, **changes, **seats})


def openings(count: int = 100, text: str = "opening {}") -> list[Conversation]:
    """Held-out first turns."""
    return [
        Conversation(
            f"o{i}",
            [
                {"role": "user", "content": text.format(i)},
                {"role": "assistant", "content": f"given {i}"},
            ],
            "real",
        )
        for i in range(count)
    ]


def seats(given: Rollout, *urls: str) -> Seats:
    """Both seats of a block at `urls`."""
    return Seats(ServedModel.of(given.asker, urls), ServedModel.of(given.chat, urls))


def roll(
    server: Handle, folder: Path, given: Rollout | None = None, **options: Any
) -> RolloutReport:
    """One call of `run` with both seats at `server`."""
    given = given or block()
    journal = JournalSpec(
        folder / "journal", options.pop("seed", 7), options.pop("provenance", PROVENANCE)
    )
    opened = options.pop("openings", None) or openings()
    models = options.pop("models", None) or seats(given, server.url)
    shards = options.pop("earlier_shards", ())
    watch = Watch(**options)
    return run(given, opened, folder / "out", models, journal, watch=watch, earlier_shards=shards)


def rows(folder: Path) -> list[dict[str, Any]]:
    """What the run wrote."""
    return pq.read_table(folder / "out" / "data").to_pylist()


def sent(server: Handle) -> list[dict[str, Any]]:
    """The bodies of all answered requests."""
    return [entry["body"] for entry in server.ledger()]


def test_dialogues_alternate_and_say_where_they_come_from(tmp_path: Path) -> None:
    with mock() as server:
        report = roll(server, tmp_path)
    assert report.dialogues == 6 and report.human_turns == 18 and report.generated_turns == 30
    assert report.end_reasons == {"target_turns": 6} and report.unfinished == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report.to_dict()
    for i, row in enumerate(rows(tmp_path)):
        assert fault(row["messages"]) is None and row["messages"][-1]["role"] == "assistant"
        assert row["messages"][0]["content"] == f"opening {i}" and row["opening"] == {
            "id": f"o{i}",
            "source": "real",
        }
        assert (
            row["human_turns"] == 3
            and row["asker"] == PROVENANCE["asker"]
            and row["chat"] == PROVENANCE["chat"]
        )
        assert row["finish_reasons"] == [None, "stop", "stop", "stop", "stop", "stop"]
        assert row["seeds"][1:] == [turn_seed(7, i, turn, 0) for turn in range(1, 6)]
        assert json.loads(row["sampling"])["asker"]["system"] == "You are a person."
        assert row["usage"]["chat_prompt_tokens"] > 0 and row["created_at"].year > 2000


def test_each_seat_sees_its_own_side(tmp_path: Path) -> None:
    with mock() as server:
        roll(server, tmp_path, block(dialogues=1))
        bodies = sent(server)
    said = rows(tmp_path)[0]["messages"]
    for number, body in enumerate(bodies):
        so_far = said[: number + 1]
        asker = number % 2 == 1
        system = {"role": "system", "content": "You are a person." if asker else "You help."}
        assert body["messages"] == [system, *(swap_roles(so_far) if asker else so_far)]
        assert body["messages"][-1]["role"] == "user"


def test_seats_that_ask_by_batch_answer_in_waves(tmp_path: Path) -> None:
    with batch_server() as server:
        server.polls = 0
        server.outcome = lambda body, batch: (
            f"wave {batch} after {body['messages'][-1]['content'][:12]}"
        )
        seat = {
            "repo": "acme/m", "endpoints": [server.url], "profile": "openai", "batch": True,
            "usd_per_million_input": 2.0,
        }  # fmt: skip
        given = block(asker=seat, chat=seat, in_flight=1, turns={"kind": "fixed", "value": 2})
        report = roll(server, tmp_path, given)
        assert [len(batch) for batch in server.batches] == [6, 6, 6]
    assert report.end_reasons == {"target_turns": 6} and report.generated_turns == 18
    assert report.usd == pytest.approx(18 * 100 * 2.0 / 1e6 / 2)


def test_it_runs_where_a_loop_already_runs(tmp_path: Path) -> None:
    async def notebook() -> RolloutReport:
        return roll(server, tmp_path)

    with mock() as server:
        assert asyncio.run(notebook()).dialogues == 6


def test_same_seed_same_dialogues(tmp_path: Path) -> None:
    with mock(deterministic=True) as server:
        roll(server, tmp_path / "a")
        roll(server, tmp_path / "b", block(in_flight=1))
        roll(server, tmp_path / "c", seed=8)
    a, b, c = ([row["messages"] for row in rows(tmp_path / run)] for run in "abc")
    assert a == b and a != c


def test_target_turns_follow_the_recipes_distribution(tmp_path: Path) -> None:
    with mock() as server:
        weights = {"kind": "choice", "weights": {1: 0.5, 2: 0.5, 3: 0.0}}
        roll(server, tmp_path, block(dialogues=60, turns=weights))
    turns = Counter(row["human_turns"] for row in rows(tmp_path))
    assert set(turns) == {1, 2} and min(turns.values()) >= 15


def test_question_and_answer_seeds(tmp_path: Path) -> None:
    mixed = [*openings(2), Conversation("q", [{"role": "user", "content": "alone"}], "real")]
    with mock() as server:
        roll(
            server,
            tmp_path,
            block(mode="seeded_qa", dialogues=3, turns={"value": 2}),
            openings=mixed,
        )
    first, _, alone = rows(tmp_path)
    assert [m["content"] for m in first["messages"][:2]] == ["opening 0", "given 0"]
    assert first["finish_reasons"] == [None, None, "stop", "stop"] and alone["finish_reasons"][
        :2
    ] == [None, "stop"]


def test_free_and_intent_modes_open_with_a_system_message_alone(tmp_path: Path) -> None:
    with mock() as server:
        given = block(
            mode="intent", intents=["buy a bicycle", "learn Latin"], personas=["a nurse"],
            dialogues=12,
            turns={"value": 1}, asker={"system": "You are {persona}. You want to {intent}."},
        )  # fmt: skip
        roll(server, tmp_path / "a", given)
        first = sent(server)[0]["messages"]
        roll(server, tmp_path / "b", block(mode="free", dialogues=2))
    assert (
        len(first) == 1
        and first[0]["role"] == "system"
        and first[0]["content"].startswith("You are a nurse. You want")
    )
    assert {row["intent"] for row in rows(tmp_path / "a")} == {"buy a bicycle", "learn Latin"}
    assert all(
        row["messages"][0]["role"] == "user" and len(row["messages"]) == 6
        for row in rows(tmp_path / "b")
    )


def test_the_askers_end_mark_ends(tmp_path: Path) -> None:
    with mock() as server:
        server.script(texts=["sure", "thanks <end>"])
        roll(server, tmp_path, block(dialogues=1, end_mark="<end>", turns={"value": 9}))
    [row] = rows(tmp_path)
    assert row["end_reason"] == "end_mark" and [m["content"] for m in row["messages"]] == [
        "opening 0",
        "sure",
    ]
    assert row["unanswered"] == "thanks"


def test_failed_checks_are_asked_again_with_another_seed_and_counted(tmp_path: Path) -> None:
    with mock() as server:
        server.script(texts=["", "User: hi", "good", "question", "fine"])
        report = roll(server, tmp_path, block(dialogues=1, turns={"value": 2}))
        seeds = [body["seed"] for body in sent(server)]
    [row] = rows(tmp_path)
    assert [m["content"] for m in row["messages"]] == ["opening 0", "good", "question", "fine"]
    assert row["retries"] == ["empty", "role_leak"] and row["attempts"] == [None, 3, 1, 1]
    assert report.retries == {"empty": 1, "role_leak": 1} and len(set(seeds)) == len(seeds)
    assert report.requests == 5


def test_a_token_that_opens_turns_of_the_seats_own_template_is_a_leak(tmp_path: Path) -> None:
    given = block(dialogues=1, turns={"value": 1})
    answers = ["so <~user~> it is", "so it is"]
    for marks, expected in (((), answers[:1]), (("<~user~>",), answers[1:])):
        with mock() as server:
            server.script(texts=answers)
            plain = seats(given, server.url)
            models = Seats(
                replace(plain.asker, turn_marks=marks), replace(plain.chat, turn_marks=marks)
            )
            folder = tmp_path / str(len(marks))
            report = roll(server, folder, given, models=models)
        [row] = rows(folder)
        assert [m["content"] for m in row["messages"][1:]] == expected
        assert report.turn_marks == list(marks), "curation reads it there"


def test_repetition_and_emptiness_end_after_the_retries(tmp_path: Path) -> None:
    with mock() as server:
        server.script(texts=["fine", "Opening  0"])
        report = roll(server, tmp_path / "a", block(dialogues=1))
        server.script(texts=["fine", " "])
        roll(server, tmp_path / "b", block(dialogues=1))
    [repeated], [empty] = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert repeated["end_reason"] == "repetition" and len(repeated["messages"]) == 2
    assert repeated["retries"] == ["repeated"] * 3 == ["repeated"] * report.retries["repeated"]
    assert empty["end_reason"] == "empty_turn"


def test_a_time_of_empty_answers_ends_no_dialogue_and_one_that_is_always_empty_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = block(dialogues=30, turns={"value": 1}, in_flight=8)
    with mock() as server:
        server.script(texts=["fine"] * 10 + [""] * 24 + ["fine"])
        report = roll(server, tmp_path / "all", given)
    assert report.end_reasons == {"target_turns": 30} and report.retries == {"empty": 24}
    with mock() as server:
        server.script(texts=["fine"], rules=[["opening 5$", [""]]])
        report = roll(server, tmp_path / "one", given)
    assert report.end_reasons == {"target_turns": 29, "empty_turn": 1}
    assert report.retries == {"empty": 3}, "its failures are its own: it is not asked any more"

    monkeypatch.setattr("hubkit.rollout.driver._LAST_WAITS_S", (0.0, 0.0, 0.0))
    last = given.model_copy(update={"dialogues": 12})
    with mock() as server:
        server.script(texts=["fine"] * 8 + [""] * 18 + ["fine"])
        report = roll(server, tmp_path / "last", last)
    assert report.end_reasons == {"target_turns": 12} and report.retries == {"empty": 18}
    with mock() as server:
        server.script(texts=["fine"] * 8 + [""])
        report = roll(server, tmp_path / "never", last)
    assert report.end_reasons == {"target_turns": 8, "empty_turn": 4}
    assert report.retries == {"empty": 4 * (3 + 3)}, "each three times, and once after each wait"


def test_each_repeat_is_resampled_a_little_hotter(tmp_path: Path) -> None:
    with mock() as server:
        server.script(texts=["fine", "", "Opening  0", "opening 0", "why?", "fine"])
        keys = block(
            dialogues=1, turns={"value": 2}, retries_per_turn=5, repeat_temperature_step=0.05
        )
        roll(server, tmp_path, keys)
        temperatures = [body["temperature"] for body in sent(server)]
    assert temperatures == [0.7, 0.7, 0.7, 0.75, 0.8, 0.7]  # an empty attempt is no repeat


def test_cut_off_turns_are_kept_when_nothing_better_comes(tmp_path: Path) -> None:
    with mock() as server:
        server.script(finish="length")
        report = roll(server, tmp_path, block(dialogues=1, turns={"value": 1}))
    [row] = rows(tmp_path)
    assert (
        row["finish_reasons"] == [None, "length"]
        and row["flaws"] == ["", "cut_off"]
        and report.retries["cut_off"] == 2
    )


def test_a_full_context_loses_its_oldest_exchanges_but_never_its_system_message(
    tmp_path: Path,
) -> None:
    small = {"context": 300, "sampling": {"max_tokens": 100}}
    given = block(dialogues=1, turns={"value": 6}, chat=small)
    with mock(padding="word " * 40) as server:
        report = roll(server, tmp_path / "trim", given)
        for body in sent(server)[::2]:
            roles = [m["role"] for m in body["messages"]]
            assert (
                roles == ["system", *(["user", "assistant"] * 6)[: len(roles) - 1]]
                and roles[-1] == "user"
            )
            assert len(roles) <= 6
        starts = [body["messages"][1]["content"] for body in sent(server)[::2]]
        assert len(set(starts)) < len(starts)  # a trim holds for several turns
        roll(server, tmp_path / "end", given.model_copy(update={"context_full": "end"}))
    [trimmed], [ended] = rows(tmp_path / "trim"), rows(tmp_path / "end")
    assert (
        trimmed["human_turns"] == 6 and trimmed["trimmed"][-1] >= 6 and trimmed["trimmed"][1] == 0
    )
    assert report.end_reasons == {"target_turns": 1}
    assert ended["end_reason"] == "context_full" and 1 <= ended["human_turns"] < 6


def test_a_window_smaller_than_we_think_is_learned_from_the_refusal(tmp_path: Path) -> None:
    given = block(
        dialogues=1, turns={"value": 6}, chat={"context": 700, "sampling": {"max_tokens": 100}}
    )
    with mock(padding="word " * 40, longest=1100) as server:
        roll(server, tmp_path, given)
    [row] = rows(tmp_path)
    assert (
        row["end_reason"] in ("target_turns", "error")
        and row["human_turns"] >= 3
        and max(row["trimmed"]) >= 2
    )


def test_openings_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    bad = [
        Conversation("blank", [{"role": "user", "content": " "}]),
        Conversation("long", [{"role": "user", "content": "x" * 9999}]),
        Conversation("starts wrong", [{"role": "assistant", "content": "x"}]),
        *openings(2),
    ]
    with mock() as server:
        report = roll(server, tmp_path, openings=bad)
    assert report.openings_skipped == {"empty_turn": 1, "opening_too_long": 1, "wrong_start": 1}
    assert report.dialogues == 2 and report.wanted == 6


def test_nothing_to_do_is_an_error_that_says_why(tmp_path: Path) -> None:
    with mock() as server, pytest.raises(StageError, match="opening_too_long"):
        roll(server, tmp_path, openings=openings(3, "x" * 9999))


def test_a_refused_request_is_a_row_with_its_reason(tmp_path: Path) -> None:
    mixed = [
        *openings(4),
        Conversation("bad", [{"role": "user", "content": "x" * 3000}]),
        *openings(8)[4:],
    ]
    with mock(longest=2000) as server:
        report = roll(server, tmp_path, block(dialogues=8), openings=mixed)
    bad = rows(tmp_path)[4]
    assert (
        bad["end_reason"] == "error"
        and bad["error"]["status"] == 422
        and bad["error"]["seat"] == "chat"
    )
    assert (
        bad["messages"] == []
        and "too long" in bad["error"]["message"]
        and report.refused == {"http_422": 1}
    )
    assert report.end_reasons == {"error": 1, "target_turns": 7}


@pytest.mark.parametrize(
    ("options", "status"), [({"key": "k"}, 401), ({"model": "other"}, 404), ({"longest": 1}, 422)]
)
def test_a_misconfigured_run_stops_at_once_and_can_be_mended(
    tmp_path: Path, options: dict, status: int
) -> None:
    with mock(**options) as server, pytest.raises(MisconfiguredEndpointError) as caught:
        roll(server, tmp_path, block(in_flight=32, dialogues=50))
    assert caught.value.status == status and "\n" not in str(caught.value)
    with mock() as server:
        assert roll(server, tmp_path, block(dialogues=50)).end_reasons == {"target_turns": 50}


def test_a_recipe_that_cannot_run_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with mock() as server:
        with pytest.raises(RecipeError, match=r"asker\.system"):
            roll(server, tmp_path, block(asker={"system": None}))
        with pytest.raises(RecipeError, match="intents"):
            roll(server, tmp_path, block(mode="intent"))
        with pytest.raises(RecipeError, match="NO_SUCH_TOKEN"):
            roll(server, tmp_path, block(asker={"token_env": "NO_SUCH_TOKEN"}))
        assert server.stats()["requests"] == 0


def test_faults_lose_nothing(tmp_path: Path) -> None:
    with mock(faults=0.15, latency=0.002) as server:
        report = roll(server, tmp_path, block(dialogues=60, in_flight=16))
    assert report.end_reasons == {"target_turns": 60} and sum(report.errors.values()) > 10
    assert report.requests == 60 * 5


def test_token_budget_is_never_passed_and_survives(tmp_path: Path) -> None:
    seats = {"sampling": {"max_tokens": 20}}
    with mock(latency=0.002) as server:
        given = block(dialogues=200, budget_tokens=2000, asker=seats, chat=seats)
        first = roll(server, tmp_path, given)
        spent = sum(sum(seat.values()) for seat in first.tokens.values())
        assert first.stopped == "budget_tokens" and 1500 < spent <= 2000
        assert first.end_reasons.get("budget_tokens") and first.dialogues < 200
        assert len(rows(tmp_path)) == first.dialogues  # nothing but the dialogues is given out
        before = server.stats()["requests"]
        again = roll(server, tmp_path, given)  # what is left may do for one short turn more
        assert server.stats()["requests"] <= before + 3 and again.stopped == "budget_tokens"
        assert spent <= sum(sum(seat.values()) for seat in again.tokens.values()) <= 2000
        more = roll(server, tmp_path, given.model_copy(update={"budget_tokens": 4000}))
    assert (
        more.dialogues > first.dialogues
        and sum(sum(seat.values()) for seat in more.tokens.values()) <= 4000
    )


def test_money_is_counted_over_both_seats(tmp_path: Path) -> None:
    price = {
        "usd_per_million_input": 1000.0,
        "usd_per_million_output": 2000.0,
        "sampling": {"max_tokens": 20},
    }
    with mock() as server:
        report = roll(
            server, tmp_path, block(dialogues=100, budget_usd=1.0, asker=price, chat=price)
        )
    cost = sum(
        seat["prompt"] * 0.001 + seat["completion"] * 0.002 for seat in report.tokens.values()
    )
    assert (
        report.stopped == "budget_usd"
        and report.usd == pytest.approx(cost, abs=1e-5)
        and 0.6 < cost <= 1.0
    )


def test_hours_are_capped(tmp_path: Path) -> None:
    with mock(latency=0.05) as server:
        report = roll(server, tmp_path, block(dialogues=500, max_hours=0.5 / 3600))
    assert report.stopped == "max_hours" and report.seconds < 3


def test_status_and_progress_tell_how_it_goes(tmp_path: Path) -> None:
    seen: list[Status] = []
    notes: list[tuple] = []
    with mock(latency=0.02) as server:
        roll(
            server,
            tmp_path,
            block(dialogues=40),
            on_status=seen.append,
            progress=lambda *a: notes.append(a),
        )
    assert (
        seen[-1].dialogues == seen[-1].wanted == 40
        and max(sum(s.in_flight.values()) for s in seen) > 0
    )
    assert any(s.eta_s for s in seen) and notes[-1][:2] == (1, 1)
    assert "40 of 40 dialogues" in notes[-1][2] and "tok/s" in notes[-1][2]
    shares = [completed for completed, *_ in notes]
    assert shares == sorted(shares) and all(
        (share == 1) == note.startswith("40 of 40") for share, _, note in notes
    )


def test_an_estimate_from_a_sample_comes_near_and_the_run_goes_on_from_it(tmp_path: Path) -> None:
    prices = {"usd_per_million_input": 1000.0, "usd_per_million_output": 2000.0}
    given = block(
        dialogues=60, turns={"kind": "choice", "weights": {2: 1, 5: 1}}, asker=prices, chat=prices
    )
    with mock(latency=0.01, padding="some words " * 5) as server:
        journal = JournalSpec(tmp_path / "journal", 7, PROVENANCE)
        guess = estimate(given, openings(), seats(given, server.url), journal, dialogues=10)
        asked = server.stats()["answered"]
        report = roll(server, tmp_path, given)
        assert server.stats()["answered"] == report.requests  # the sample was not asked for again
    assert guess.sampled == 10 and asked < 100
    assert sum(guess.requests.values()) == pytest.approx(report.requests, rel=0.2)
    for seat in ("asker", "chat"):
        assert guess.prompt_tokens[seat] == pytest.approx(report.tokens[seat]["prompt"], rel=0.3)
        assert guess.completion_tokens[seat] == pytest.approx(
            report.tokens[seat]["completion"], rel=0.2
        )
    assert (
        guess.usd == pytest.approx(report.usd, rel=0.3)
        and 0 < guess.spread < 1
        and guess.seconds > 0
    )


# --- what is on disk
# -------------------------------------------------------------------------------------------------


DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from rollout.test_rollout import block, openings, seats, PROVENANCE
from hubkit.rollout import JournalSpec, Watch, run
o = json.loads(sys.argv[1])
given = block(**o["block"])
run(given, openings(o["openings"]), Path(o["folder"]) / "out", seats(given, *o["urls"]),
    JournalSpec(Path(o["folder"]) / "journal", 7, PROVENANCE),
    watch=Watch(lambda d, t, n="": print(d, n, flush=True)))
"""


def start(urls: list[str], folder: Path, count: int = 100, **changes: Any) -> subprocess.Popen:
    """The same run in a process of its own."""
    options = json.dumps({"urls": urls, "folder": str(folder), "block": changes, "openings": count})
    here = Path(__file__).resolve().parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, options, str(here)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here.parent,
    )  # fmt: skip


def acknowledged(folder: Path) -> dict[tuple[int, int], str]:
    """Every turn on disk (shards and journal): (dialogue, position) → text; failed attempts have a
    third key.
    """
    found: dict[tuple[int, int], str] = {}
    for path in sorted((folder / "journal" / "shards").glob("raw-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            for position, message in enumerate(row["messages"]):
                if row["finish_reasons"][position] is not None:
                    found[row["index"], position] = message["content"]
    journal = newest(folder / "journal") if (folder / "journal").exists() else None
    for record in read(journal) if journal else ():
        if record and record["k"] == "turn" and (record["d"], record["t"]) not in found:
            found[record["d"], record["t"]] = record["content"]
    return found


def spoken(server: Handle) -> dict[str, list[tuple[int, int]]]:
    """Every text the server said, and for which turns (it says no text twice)."""
    found: dict[str, list[tuple[int, int]]] = {}
    for entry in server.ledger():
        body = entry["body"]
        index = int(body["user"].split("-")[1])
        found.setdefault(entry["said"], []).append(
            (index, len([m for m in body["messages"] if m["role"] != "system"]))
        )
    return found


def check_against_ledger(folder: Path, server: Handle) -> tuple[int, int]:
    """The journal's turns are the server's acknowledged turns, exactly. Gives (turns on disk,
    answers lost to kills).

    A turn counts as acknowledged to the server once a later request builds on it.
    """
    on_disk = acknowledged(folder)
    said = spoken(server)
    answers = Counter(key for keys in said.values() for key in keys)
    for key, text in on_disk.items():
        assert said.get(text) == [key], f"{key} holds a text that was not said for it"
    built_on: dict[tuple[int, int], set[str]] = {}
    for entry in server.ledger():
        turns = [m for m in entry["body"]["messages"] if m["role"] != "system"]
        index = int(entry["body"]["user"].split("-")[1])
        for position, message in enumerate(turns):
            if position:
                built_on.setdefault((index, position), set()).add(message["content"])
    for key, texts in built_on.items():
        assert texts == {on_disk[key]}, f"{key} was acknowledged and then asked for again, or lost"
    last = {}
    for text, [key] in said.items():
        last[key] = text
    assert all(last[key] == text for key, text in on_disk.items()), (
        "a turn was asked for again after it was on disk"
    )
    return len(on_disk), sum(answers.values()) - len(on_disk)


@pytest.mark.parametrize("fsync", ["turn", "interval"])
def test_kill_9_loses_nothing_and_asks_for_nothing_twice(tmp_path: Path, fsync: str) -> None:
    given = {"dialogues": 40, "in_flight": 8, "shard_dialogues": 5, "fsync": fsync}
    with mock(latency=0.02) as server:
        for delay in (0.03, 0.07, 0.02, 0.05):
            before = server.stats()["answered"]
            driver = start([server.url], tmp_path, **given)
            while driver.poll() is None and server.stats()["answered"] < before + 20:
                time.sleep(0.01)
            time.sleep(delay)
            driver.kill()
            driver.wait()
            check_against_ledger(tmp_path, server)
        report = roll(server, tmp_path, block(**given))
        turns, lost = check_against_ledger(tmp_path, server)
    assert report.end_reasons == {"target_turns": 40} and turns == 40 * 5 and lost <= 4 * 8
    assert len({row["index"] for row in rows(tmp_path)}) == len(rows(tmp_path)) == 40
    assert report.session["turns"] < 200


def test_a_shard_that_falls_due_as_the_run_ends_does_not_keep_it(tmp_path: Path) -> None:
    given = block(dialogues=4, shard_dialogues=4, in_flight=4, turns={"kind": "fixed", "value": 1})
    done = threading.Event()

    def many(server: Handle) -> None:
        for number in range(40):
            roll(server, tmp_path / str(number), given)
        done.set()

    with mock() as server:
        threading.Thread(target=many, args=(server,), daemon=True).start()
        assert done.wait(240), "a run that had nothing left to do did not end"


def test_ctrl_c_takes_what_is_on_its_way_and_goes_on_later(tmp_path: Path) -> None:
    given = {"dialogues": 60, "in_flight": 8}
    with mock(latency=0.1) as server:
        driver = start([server.url], tmp_path, **given)
        driver.stdout.readline()
        time.sleep(0.6)
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=240)
        assert driver.returncode != 0 and "RunInterruptedError" in said and "resumes there" in said
        answered = server.stats()["answered"]
        turns, lost = check_against_ledger(tmp_path, server)
        assert (turns, lost) == (answered, 0)
        assert roll(server, tmp_path, block(**given)).dialogues == 60
        assert check_against_ledger(tmp_path, server) == (300, 0)


def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    with mock(latency=600) as server:  # no answer comes while the test runs
        driver = start([server.url], tmp_path)
        driver.stdout.readline()
        until(lambda: server.stats()["requests"] > 0)
        driver.send_signal(signal.SIGINT)
        lines = iter(driver.stdout.readline, "")
        told = next(line for line in lines if "finishing" in line)
        assert re.search(r"finishing \d+ answers; press again", told), told
        assert driver.poll() is None
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=240)


def test_two_drivers_refuse_each_other(tmp_path: Path) -> None:
    with mock(latency=0.3) as server:
        driver = start([server.url], tmp_path)
        driver.stdout.readline()
        with pytest.raises(RunLockedError, match=str(driver.pid)):
            roll(server, tmp_path)
        driver.kill()
        driver.wait()
        assert roll(server, tmp_path).dialogues == 6  # the lock went with the process


def test_a_torn_last_record_is_recognised(tmp_path: Path) -> None:
    with mock(latency=0.02) as server:
        driver = start([server.url], tmp_path, dialogues=20)
        driver.stdout.readline()
        time.sleep(0.5)
        driver.kill()
        driver.wait()
        journal = newest(tmp_path / "journal")
        before = acknowledged(tmp_path)
        with journal.open("ab") as file:
            file.write(encode({"k": "turn", "d": 0, "t": 99, "content": "x" * 50})[:-20])
        report = roll(server, tmp_path, block(dialogues=20))
    after = acknowledged(tmp_path)
    assert (
        report.damaged_records == 1
        and before
        and before.items() <= after.items()
        and len(after) == 100
    )


def test_a_damaged_record_costs_only_its_own_dialogue(tmp_path: Path) -> None:
    with mock(latency=0.02) as server:
        driver = start([server.url], tmp_path, dialogues=20)
        driver.stdout.readline()
        time.sleep(0.6)
        driver.kill()
        driver.wait()
        journal = newest(tmp_path / "journal")
        lines = journal.read_bytes().splitlines(keepends=True)
        place = next(i for i, line in enumerate(lines) if b'"turn"' in line)
        hit = decode(lines[place][:-1])
        before = {key: text for key, text in acknowledged(tmp_path).items() if key[0] != hit["d"]}
        lines[place] = lines[place][:30] + b"\x00" + lines[place][31:]
        journal.write_bytes(b"".join(lines))
        report = roll(server, tmp_path, block(dialogues=20))
    assert report.damaged_records >= 1 and report.dialogues == 20
    assert before.items() <= acknowledged(tmp_path).items()


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(-(2**53), 2**53)),
        max_size=5,
    ),
    st.data(),
)
def test_records_come_back_whole_or_not_at_all(records: list[dict], data: st.DataObject) -> None:
    raw = b"".join(map(encode, records))
    assert [decode(line) for line in raw.split(b"\n")[:-1]] == records
    if raw:
        place = data.draw(st.integers(0, len(raw) - 1))
        broken = (
            raw[:place]
            + bytes([raw[place] ^ (1 << data.draw(st.integers(0, 7)))])
            + raw[place + 1 :]
        )
        survivors = [r for r in map(decode, broken.split(b"\n")) if r is not None]
        assert all(r in records for r in survivors)


def test_another_recipe_does_not_touch_this_runs_journal(tmp_path: Path) -> None:
    with mock() as server:
        roll(server, tmp_path)
        with pytest.raises((StageError, SourceError), match="another run"):
            roll(server, tmp_path, seed=8)
        with pytest.raises((StageError, SourceError), match="another run"):
            roll(server, tmp_path, block(asker={"system": "Someone else."}))
        assert (
            roll(server, tmp_path, block(dialogues=8, in_flight=2)).dialogues == 8
        )  # cadence and size may change


def test_shards_are_offered_and_a_new_machine_goes_on_from_them_alone(tmp_path: Path) -> None:
    taken: list[Path] = []

    def hub(path: Path) -> None:
        if len(taken) == 1 and not (tmp_path / "hub" / "failed").exists():
            (tmp_path / "hub" / "failed").touch()
            raise HubError("the Hub is down", status=503)
        (tmp_path / "hub" / path.name).write_bytes(path.read_bytes())
        taken.append(tmp_path / "hub" / path.name)

    (tmp_path / "hub").mkdir()
    given = block(dialogues=30, shard_dialogues=8)
    with mock(latency=0.04) as server:
        report = roll(server, tmp_path / "one", given, on_shard=hub)
        assert len(taken) == len(report.shards) >= 3
        before = server.stats()["requests"]
        second = roll(server, tmp_path / "two", given, earlier_shards=taken[:2])
        held = sum(pq.read_metadata(path).num_rows for path in taken[:2])
        assert server.stats()["requests"] - before == (30 - held) * 5
    ids = [row["id"] for row in rows(tmp_path / "two")]
    assert second.dialogues == 30 and sorted(ids) == sorted(
        row["id"] for row in rows(tmp_path / "one")
    )


def test_a_crash_between_a_shard_and_the_new_journal_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubkit.rollout.journal import Journal

    class Crash(BaseException):
        pass

    async def crash(*_: object) -> None:
        raise Crash

    with mock() as server:
        monkeypatch.setattr(Journal, "rotate", crash)
        with pytest.raises(BaseException) as caught:
            roll(server, tmp_path, block(dialogues=10))
        assert not isinstance(caught.value, AssertionError)
        monkeypatch.undo()
        assert len(list((tmp_path / "journal" / "shards").glob("*.parquet"))) == 1
        before = server.stats()["answered"]
        report = roll(server, tmp_path, block(dialogues=10))
        assert server.stats()["answered"] == before == 50
    assert report.dialogues == 10 and [row["index"] for row in rows(tmp_path)] == list(range(10))


def test_a_full_disk_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from hubkit.rollout import journal

    real, room = journal._write, [3000]

    def write(fd: int, data: bytes) -> None:
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, data)

    with mock() as server:
        monkeypatch.setattr(journal, "_write", write)
        with pytest.raises(DiskFullError, match="free some"):
            roll(server, tmp_path)
        monkeypatch.undo()
        assert roll(server, tmp_path).dialogues == 6


def test_a_shard_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "journal" / "shards").mkdir(parents=True)
    (tmp_path / "journal" / "shards" / "raw-00000.parquet").write_bytes(b"PAR1 not really")
    with mock() as server, pytest.raises(SourceError, match="raw-00000"):
        roll(server, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_with_faults(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Kill the driver 200 times at random moments while the server fails now and then; account for
    every turn.
    """
    import random

    chance = random.Random(0)
    given = {"dialogues": 12000, "in_flight": 16, "shard_dialogues": 50, "request_timeout_s": 5.0}
    with mock(latency=0.02, faults=0.05) as server:
        kills = 0
        for _ in range(200):
            driver = start([server.url], tmp_path, 12500, **given)
            driver.stdout.readline()
            time.sleep(chance.uniform(0.0, 1.2))
            kills += driver.poll() is None
            driver.kill()
            driver.wait()
            if kills % 20 == 0:
                check_against_ledger(tmp_path, server)
        report = roll(server, tmp_path, block(**given), openings=openings(12500))
        turns, lost = check_against_ledger(tmp_path, server)
    record_property("kills", kills)
    assert kills >= 150 and lost <= kills * 16
    assert (
        report.dialogues == 12000
        and report.end_reasons == {"target_turns": 12000}
        and turns == 12000 * 5
    )
