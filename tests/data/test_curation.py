"""Curation: what is kept keeps all its columns, what is dropped says why, and the two add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubkit.data.curation import CurateReport, curate, nothing_kept
from hubkit.errors import RecipeError, SourceError
from hubkit.recipe import Curate, Filter

CHAIN = [
    Filter(name="empty_turn"),
    Filter(name="cut_off_turn"),
    Filter(name="repeated_turn"),
    Filter(name="min_turns", args={"human_turns": 2}),
    Filter(name="exact_duplicates"),
]


def dialogue(name: str, *turns: str, finish: list[str | None] | None = None) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "id": name,
        "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)],
        "human_turns": (len(turns) + 1) // 2,
        "asker": {"repo_id": "me/asker", "revision": "0" * 40},
        "finish_reasons": finish or [None, *["stop"] * (len(turns) - 1)],
        "seeds": [7, 8],
    }


def run(tmp_path: Path, rows: list[dict[str, Any]], filters: list[Filter] = CHAIN) -> CurateReport:
    raw = tmp_path / "raw-00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows), raw)
    return curate(Curate(filters=filters), [raw], tmp_path / "out")


def rows_of(tmp_path: Path, split: str) -> list[dict[str, Any]]:
    return [
        r
        for p in sorted((tmp_path / "out" / "data").glob(f"{split}-*"))
        for r in pq.read_table(p).to_pylist()
    ]


def test_kept_and_dropped_with_reasons(tmp_path: Path) -> None:
    rows = [
        dialogue("good", "a", "b", "c", "d"),
        dialogue("empty", "a", "", "c", "d"),
        dialogue("cut", "a", "b", "c", "dd", finish=[None, "stop", "stop", "length"]),
        dialogue("repeats", "a", "b", "A!", "d"),
        dialogue("short", "a", "b"),
        dialogue("good-again", "a", "b", "c", "d"),
    ]
    report = run(tmp_path, rows)
    assert rows_of(tmp_path, "train") == [rows[0]], (
        "every column of a kept row travels on untouched"
    )
    dropped = {r["id"]: (r["step"], r["reason"]) for r in rows_of(tmp_path, "dropped")}
    assert dropped == {
        "empty": ("empty_turn", "empty_turn"),
        "cut": ("cut_off_turn", "cut_off_assistant_turn"),
        "repeats": ("repeated_turn", "repeated_user_turn"),
        "short": ("min_turns", "too_few_turns"),
        "good-again": ("exact_duplicates", "exact_duplicate"),
    }
    assert (report.rows_read, report.kept, report.dropped) == (6, 1, 5)
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    assert stored["human_turns"] == {"2": 1}


def test_cleaned_text_replaces_messages_only(tmp_path: Path) -> None:
    rows = [dialogue("x", " a\r\n", "b"), dialogue("y", "c", "d")]
    run(tmp_path, rows, [Filter(name="clean_text")])
    first, second = rows_of(tmp_path, "train")
    assert first["messages"][0]["content"] == "a" and first["seeds"] == [7, 8] and second == rows[1]


def test_nothing_kept_gives_no_file_of_it_and_says_why(tmp_path: Path) -> None:
    report = run(tmp_path, [dialogue("s", "a", "b")])
    assert "keeps none of 1 dialogues (min_turns: too_few_turns 1)" in str(nothing_kept(report))
    assert (report.kept, rows_of(tmp_path, "train"), len(rows_of(tmp_path, "dropped"))) == (
        0,
        [],
        1,
    )


def test_files_with_columns_of_their_own_come_together(tmp_path: Path) -> None:
    old, new = dialogue("o", "a", "b", "c", "d"), dialogue("n", "e", "f", "g", "h") | {"usage": 5}
    for name, row in (("1", old), ("2", new)):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name)
    curate(Curate(filters=CHAIN), [tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    assert [r["usage"] for r in rows_of(tmp_path, "train")] == [None, 5]


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="run the rollout first"):
        curate(Curate(), [], tmp_path / "out")
    (tmp_path / "broken").write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match="not a parquet file"):
        curate(Curate(), [tmp_path / "broken"], tmp_path / "out")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other")
    with pytest.raises(SourceError, match="no column messages"):
        curate(Curate(), [tmp_path / "other"], tmp_path / "out")
    continuation = {
        **dialogue("c", "a", "b"),
        "messages": [{"role": "assistant", "content": "x"}] * 1
        + [{"role": "user", "content": "y"}],
    }
    with pytest.raises(RecipeError, match=r"only corpus\.filters may"):
        run(tmp_path, [continuation], [Filter(name="alternate_roles")])


def test_tool_calls_thinking_and_loss_flags_travel_through(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    nothing = {"thinking": None, "tool_calls": None, "tool_call_id": None, "train": None}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": " What is it? "},
        {"role": "assistant", "content": "", "tool_calls": [call], "thinking": "Look."},
        {"role": "tool", "content": "", "tool_call_id": "c"},
        {"role": "assistant", "content": "It is 42.", "train": False},
    ]
    row = {"id": "a", "messages": [{**nothing, **turn} for turn in turns]}
    chain = ("alternate_roles", "empty_turn", "clean_text", "exact_duplicates")
    report = run(tmp_path, [row], [Filter(name=name) for name in chain])
    assert (report.kept, report.dropped) == (1, 0)
    (stored,) = rows_of(tmp_path, "train")
    row["messages"][0]["content"] = "What is it?"  # type: ignore[index]
    assert stored == row


def test_the_bar_counts_dialogues(tmp_path: Path) -> None:
    raw = tmp_path / "raw-00000.parquet"
    rows = [dialogue(f"d{number}", "hi", f"answer {number}") for number in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), raw)
    told: list[tuple[float, float | None]] = []
    curate(
        Curate(filters=CHAIN),
        [raw],
        tmp_path / "out",
        progress=lambda done, total=None, note="": told.append((done, total)),
    )
    assert told == [(0, 300), (128, 300), (256, 300), (300, 300)]


def test_masked_ids_and_turns_leave_the_other_columns_alone(tmp_path: Path) -> None:
    mail = "jane.doe@" + "university.edu"
    rows = [dialogue(f"{mail}-1", "a", f"I am {mail}."), dialogue("plain", "c", "d")]
    report = run(tmp_path, rows, [Filter(name="personal_data")])
    masked, plain = rows_of(tmp_path, "train")
    assert plain == rows[1]
    assert masked["messages"][1]["content"] == "I am [EMAIL]."
    assert masked["id"].startswith("[EMAIL]") and mail not in json.dumps(report.to_dict())
    same = [name for name in rows[0] if name not in ("id", "messages")]
    assert [masked[name] for name in same] == [rows[0][name] for name in same]


def test_ids_that_are_numbers_stay_numbers(tmp_path: Path) -> None:
    rows = [{**dialogue("", "a\r", "b"), "id": 7}]
    run(tmp_path, rows, [Filter(name="clean_text")])
    assert rows_of(tmp_path, "train")[0]["id"] == 7
