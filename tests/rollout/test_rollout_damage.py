"""A run's folder as others leave it, and answers as no model should give them: a clear error or a
counted row.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from rollout.test_rollout import PROVENANCE, block, roll, rows
from support.mock_endpoint import mock

from hubkit.conversation import blank, fault
from hubkit.errors import MisconfiguredEndpointError, SourceError, StageError
from hubkit.rollout import run_digest, shards
from hubkit.rollout.journal import encode, newest


def test_files_that_somebody_copied_there_are_not_taken_for_the_runs_own(tmp_path: Path) -> None:
    with mock() as server:
        roll(server, tmp_path)
        folder = tmp_path / "journal"
        shutil.copy(newest(folder), folder / "journal-99999999 (copy).log")
        shard = next((folder / "shards").glob("raw-*.parquet"))
        shutil.copy(shard, shard.with_name("raw-00000 (1).parquet"))
        report = roll(server, tmp_path, block(dialogues=8))
    assert report.dialogues == 8 and sorted(row["index"] for row in rows(tmp_path)) == list(
        range(8)
    )


@pytest.mark.parametrize(
    "record", [{"k": "turn", "d": 0}, {"k": "later"}, {"k": "clock", "s": "long"}]
)
def test_a_journal_of_another_version_is_named_not_guessed_at(tmp_path: Path, record: dict) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    header = {
        "k": "run",
        "digest": run_digest(block(), 7, PROVENANCE),
        "published": [],
        "counts": {},
    }
    header |= {
        "spent": [{"user": [0, 0], "assistant": [0, 0]}, 0, 0, 0.0],
        "id": "x",
        "elsewhere": {},
    }
    plan = {"k": "open", "d": 0, "plan": {}}
    records = [header, record] if record["k"] != "turn" else [header, plan]
    (folder / "journal-00000000.log").write_bytes(b"".join(map(encode, records)))
    with (
        mock() as server,
        pytest.raises(StageError, match=r"journal-00000000\.log holds a .* record"),
    ):
        roll(server, tmp_path)
    assert server.ledger_path.exists() is False


def test_a_shard_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        shards.write([], tmp_path / "gone" / "raw-00000.parquet", {})


@pytest.mark.parametrize("nothing", ["\u200b", "\ufeff\u2060 \n", "\u00ad", "\u3000"])
def test_what_nobody_can_see_is_an_empty_turn(tmp_path: Path, nothing: str) -> None:
    assert blank(nothing) and not blank(nothing + "x")
    assert fault([{"role": "user", "content": nothing}]) == "empty_turn"
    with mock() as server:
        server.script(texts=["hello", nothing])
        report = roll(server, tmp_path, block(dialogues=2, retries_per_turn=1))
    assert report.end_reasons == {"empty_turn": 2} and report.retries == {"empty": 4}


def test_a_run_without_any_answer_stops_and_leaves_its_dialogues_open(tmp_path: Path) -> None:
    given = block(dialogues=40, retries_per_turn=1)
    with mock() as server:
        server.script(texts=[" "], finish="length")
        with pytest.raises(MisconfiguredEndpointError, match=r"'length'.*raise max_tokens"):
            roll(server, tmp_path, given)
        assert server.stats()["requests"] < 30
        server.script(texts=[" "])
        with pytest.raises(MisconfiguredEndpointError, match="the last 2 dialogues"):
            roll(server, tmp_path, block(dialogues=2, retries_per_turn=1))
        server.script()
        assert roll(server, tmp_path, given).end_reasons == {"target_turns": 40}


def test_an_answer_of_megabytes_ends_its_dialogue_not_the_run(tmp_path: Path) -> None:
    with mock() as server:
        server.script(texts=["word " * 400_000])
        report = roll(server, tmp_path, block(dialogues=2))
    assert report.dialogues == 2 and report.end_reasons == {"context_full": 2}
    assert all(len(row["messages"][-1]["content"]) > 1_000_000 for row in rows(tmp_path))


def _damage_lines(journal: Path, count: int) -> None:
    """Flip a bit in each of the first `count` lines."""
    lines = journal.read_bytes().splitlines(keepends=True)
    for number in range(count):
        line = lines[number]
        lines[number] = line[:40] + bytes([line[40] ^ 1]) + line[41:]
    journal.write_bytes(b"".join(lines))


@pytest.mark.attack
def test_a_damaged_header_of_the_journal_forgets_no_cap(tmp_path: Path) -> None:
    seats = {"sampling": {"max_tokens": 20}}
    with mock(latency=0.002) as server:
        given = block(dialogues=200, budget_tokens=2000, asker=seats, chat=seats)
        first = roll(server, tmp_path, given)
        assert first.stopped == "budget_tokens"
        spent = sum(map(sum, (seat.values() for seat in first.tokens.values())))
        journal = newest(tmp_path / "journal")
        _damage_lines(journal, 1)
        again = roll(server, tmp_path, given)
        assert again.stopped == "budget_tokens" and again.damaged_records == 1
        assert spent <= sum(map(sum, (seat.values() for seat in again.tokens.values()))) <= 2000
        journal = newest(tmp_path / "journal")
        good = journal.read_bytes()
        _damage_lines(journal, 2)
        asked = server.stats()["requests"]
        with pytest.raises(StageError, match="caps would not hold"):
            roll(server, tmp_path, given)
        journal.write_bytes(b"")
        with pytest.raises(StageError, match="caps would not hold"):
            roll(server, tmp_path, given)
        assert server.stats()["requests"] == asked
        journal.write_bytes(good)
        assert roll(server, tmp_path, given).stopped == "budget_tokens"


def test_a_shard_that_has_changed_where_no_page_says_so_is_refused(tmp_path: Path) -> None:
    given = block(dialogues=4, shard_dialogues=4)
    with mock() as server:
        roll(server, tmp_path, given)
        [shard] = (tmp_path / "journal" / "shards").glob("*.parquet")
        shard.write_bytes(shard.read_bytes().replace(b"parquet-cpp", b"parquet-cqp"))
        with pytest.raises(SourceError, match=f"{shard.name} is damaged: it has changed since"):
            roll(server, tmp_path, given)
    assert not list((tmp_path / "data").glob("*.txt")), "what is delivered has the Hub's digests"


@pytest.mark.attack
def test_flipped_bits_in_a_run_s_files_are_counted_or_named(tmp_path: Path) -> None:
    """Chaos in what a run has written: no answer comes out other than it was given."""
    with mock() as server:
        roll(server, tmp_path / "whole", block(dialogues=12, shard_dialogues=4))
        given = {row["index"]: row["messages"] for row in rows(tmp_path / "whole")}
        journal = tmp_path / "whole" / "journal"
        files = [newest(journal), *sorted((journal / "shards").glob("*.parquet"))]
        dice = random.Random(5)
        named = 0
        for number in range(24):
            folder = tmp_path / str(number)
            shutil.copytree(journal, folder / "journal")
            path = folder / files[number % len(files)].relative_to(tmp_path / "whole")
            data = bytearray(path.read_bytes())
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            path.write_bytes(data)
            try:
                roll(server, folder, block(dialogues=12, shard_dialogues=4))
            except (SourceError, StageError) as error:
                assert path.name in str(error)
                named += 1
            else:
                now = {row["index"]: row["messages"] for row in rows(folder)}
                assert now == given, f"{path.name} has other answers now"
    assert named > 5
