"""Small inputs after public reports: each is read as its EXPECTED.md says, and every row is
accounted for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.paths import SHARED_DATA

from hubkit.conversation import fault
from hubkit.data.corpus import CorpusReport, build
from hubkit.errors import SourceError
from hubkit.recipe import Corpus

CASES = SHARED_DATA / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not here")
Rows = list[dict[str, Any]]


def cleaned(path: Path, out: Path, **keys: Any) -> tuple[CorpusReport, Rows]:
    """The report and the rows of every split, the openings among them."""
    source = {"path": str(path), **keys.pop("source", {})}
    filters = keys.pop("filters", [])
    block = Corpus.model_validate(
        {"sources": [source], "openings": 1, "test": 1, "filters": filters, **keys}
    )
    report = build(block, [path], out, seed=1, few=True)
    rows = [
        {**row, "split": shard.name.split("-")[0]}
        for shard in sorted((out / "data").glob("*.parquet"))
        for row in pq.read_table(shard).to_pylist()
    ]
    assert report.rows_read + report.added == sum(
        (report.kept, report.dropped, report.unreadable, report.joined)
    )
    assert len(rows) == report.kept
    return report, rows


def notes(report: CorpusReport) -> dict[str, int]:
    return {word: tally.count for file in report.files for word, tally in file.notes.items()}


def roles(row: dict[str, Any]) -> list[str]:
    return [message["role"] for message in row["messages"]]


def texts(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]]


PLAIN = [
    "06-content-parts/lf_value.jsonl",
    "06-content-parts/single_dict.jsonl",
    "07-odd-columns/alpaca_history.jsonl",
    "07-odd-columns/hh_rlhf.jsonl",
    "07-odd-columns/firefly.jsonl",
    "07-odd-columns/json_string.jsonl",
    "07-odd-columns/dict_of_lists.jsonl",
    "08-top-level-dict/data.json",
    "08-top-level-dict/by_id.json",
    "08-top-level-dict/pandas_columns.json",
    "09-json-syntax/array_nan.json",
    "09-json-syntax/jsonl_nan.jsonl",
    "09-json-syntax/jsonl_commas.jsonl",
    "09-json-syntax/trailing_comma_array.json",
    "17-roles-and-turns/role_colon.jsonl",
    "17-roles-and-turns/author_dict.jsonl",
]


@pytest.mark.parametrize("name", PLAIN)
def test_known_layouts_give_their_turns_in_order(tmp_path: Path, name: str) -> None:
    report, rows = cleaned(CASES / name, tmp_path)
    assert (report.rows_read, report.kept) == (6, 6)
    for row in rows:
        assert fault(row["messages"]) is None and roles(row) == ["user", "assistant"] * 2
        assert all(t.startswith("How should I ") for t in texts(row)[::2])
        assert all(t.startswith("Start slowly") for t in texts(row)[1::2])
        if name != "17-roles-and-turns/author_dict.jsonl":
            assert "step 0" in texts(row)[0] and "step 1" in texts(row)[2]


def test_prompt_and_completion(tmp_path: Path) -> None:
    report, rows = cleaned(CASES / "07-odd-columns/prompt_completion.jsonl", tmp_path)
    assert report.kept == 6 and all(roles(row) == ["user", "assistant"] for row in rows)


@pytest.mark.parametrize("name", ["struct_of_lists.parquet", "merged_keys_emptystr.parquet"])
def test_parquet_of_merged_schemas(tmp_path: Path, name: str) -> None:
    report, rows = cleaned(CASES / "12-parquet" / name, tmp_path)
    assert report.kept == 12 and all(roles(row) == ["user", "assistant"] * 2 for row in rows)
    assert all(text.strip() for row in rows for text in texts(row))


@pytest.mark.parametrize(("name", "turns"), [("step", 2), ("consecutive", 4)])
@pytest.mark.parametrize("join", [True, False])
def test_numbered_ids(tmp_path: Path, name: str, turns: int, join: bool) -> None:
    path = CASES / f"01-numbered-ids/{name}.jsonl"
    report, rows = cleaned(path, tmp_path, join_parts=join)
    assert (report.kept, report.joined) == (40, 0)
    assert {len(row["messages"]) for row in rows} == {turns}
    assert {row["split"] for row in rows} == {"train", "openings", "test"}
    every = {"openings": 20, "test": 19}
    report, rows = cleaned(path, tmp_path / "every", join_parts=join, **every)
    assert report.splits == {"train": 1, **every}, "each may open a dialogue, and is its own group"


def test_the_export_of_chatgpt(tmp_path: Path) -> None:
    report, rows = cleaned(CASES / "02-chatgpt-export/conversations.json", tmp_path)
    assert report.kept == 6 and all(roles(row) == ["user", "assistant"] * 2 for row in rows)
    text = "\n".join(text for row in rows for text in texts(row))
    assert "Talk" not in text and "regenerated" not in text
    assert notes(report) == {"hidden_nodes_left_out": 6}
    assert report.files[0].other_branches == 6


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("keep", ["user", "assistant", "tool", "assistant", "user", "assistant"]),
        ("drop", ["user", "assistant"] * 2),
        ("only_final", ["user", "assistant"] * 2),
    ],
)
def test_tools(tmp_path: Path, policy: str, expected: list[str]) -> None:
    report, rows = cleaned(CASES / "04-tools/openai_tool_calls.jsonl", tmp_path, tools=policy)
    assert [roles(row) for row in rows] == [expected] * 6
    assert all(fault(row["messages"]) is None for row in rows)
    word = "has_tools" if policy == "keep" else "tool_traffic_left_out"
    assert notes(report) == {word: 6}
    calls = [m["tool_calls"] for row in rows for m in row["messages"] if m.get("tool_calls")]
    assert len(calls) == (6 if policy == "keep" else 0)
    for (call,) in calls:
        assert call["function"] == {"name": "look", "arguments": "{}"} and call["id"] == "c"


@pytest.mark.parametrize("name", ["weight", "train"])
def test_loss_flags(tmp_path: Path, name: str) -> None:
    report, rows = cleaned(CASES / f"05-loss-flags/{name}.jsonl", tmp_path)
    assert notes(report) == {"turns_without_loss": 6}
    for row in rows:
        assert [m["train"] for m in row["messages"]] == [None, False, None, True]
        assert "MUST NOT BE LEARNED" in texts(row)[1]


@pytest.mark.parametrize("name", ["reasoning_content", "think_inline"])
def test_thinking(tmp_path: Path, name: str) -> None:
    path = CASES / f"06-content-parts/{name}.jsonl"
    report, rows = cleaned(path, tmp_path / "keep")
    assert notes(report)["has_thinking"] == 6
    for row in rows:
        assert all(m["thinking"] for m in row["messages"] if m["role"] == "assistant")
        assert "think" not in "\n".join(texts(row))
    report, rows = cleaned(path, tmp_path / "drop", thinking="drop")
    assert notes(report)["thinking_left_out"] == 6
    assert all(m.keys() == {"role", "content"} for row in rows for m in row["messages"])
    _, rows = cleaned(path, tmp_path / "final", thinking="only_final")
    kept = [[bool(m["thinking"]) for m in row["messages"]] for row in rows]
    assert kept == [[False, False, False, True]] * 6


def test_a_system_column_comes_first(tmp_path: Path) -> None:
    _, rows = cleaned(CASES / "07-odd-columns/sharegpt_system_top.jsonl", tmp_path)
    assert [texts(row)[0] for row in rows] == ["Answer in rhymes."] * 6
    assert all(fault(row["messages"]) is None for row in rows)


@pytest.mark.parametrize(("name", "encoding"), [("gbk", "gb18030"), ("utf16le_nobom", "utf-16-le")])
def test_text_that_is_not_utf8(tmp_path: Path, name: str, encoding: str) -> None:
    path = CASES / f"10-encodings/{name}.jsonl"
    with pytest.raises(SourceError, match=f"not UTF-8, but likely {encoding}; set it with"):
        cleaned(path, tmp_path)
    report, rows = cleaned(path, tmp_path, source={"encoding": encoding})
    assert report.kept == 6 and "�" not in "\n".join(t for row in rows for t in texts(row))


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    report, _ = cleaned(CASES / "11-folders/saved_to_disk", tmp_path)
    assert (report.rows_read, report.kept) == (12, 12)
    assert set(report.passed_over) == {"dataset_info.json", "state.json"}


def test_a_folder_of_all_sorts(tmp_path: Path) -> None:
    shutil.copytree(CASES / "11-folders/mixed", tmp_path / "in")
    (tmp_path / "in" / "dot-git-rename-to-.git").rename(tmp_path / "in" / ".git")
    report, _ = cleaned(tmp_path / "in", tmp_path / "out")
    assert (report.rows_read, report.kept) == (12, 12)
    assert {file.file for file in report.files} == {
        "train.jsonl", "more.parquet", "extra.json.gz", "empty.jsonl", "space.jsonl"
    }  # fmt: skip
    seen = {file.file for file in report.files}
    hidden = (".git", "__MACOSX", ".ipynb_checkpoints")
    for path in (tmp_path / "in").rglob("*"):
        name = str(path.relative_to(tmp_path / "in"))
        inside = name.startswith(hidden)
        assert path.is_dir() or path.name in seen or inside or name in report.passed_over, name
    assert {f"{name}/" for name in hidden} <= set(report.passed_over)


@pytest.mark.parametrize("name", ["en", "ja", "zh"])
def test_scripts_are_read_whole(tmp_path: Path, name: str) -> None:
    assert cleaned(CASES / f"13-scripts/{name}.jsonl", tmp_path)[0].kept == 3


def test_typed_control_tokens_stay_text(tmp_path: Path) -> None:
    _, rows = cleaned(CASES / "15-control-tokens/chatml.jsonl", tmp_path)
    assert all(roles(row) == ["user", "assistant"] * 2 for row in rows)
    assert all("<|im_start|>assistant" in texts(row)[0] for row in rows)


def test_a_blank_last_answer_is_cut(tmp_path: Path) -> None:
    report, rows = cleaned(CASES / "17-roles-and-turns/last_answer_empty.jsonl", tmp_path)
    assert all(roles(row) == ["user", "assistant"] * 2 for row in rows)
    assert notes(report) == {"blank_last_answer_cut": 6}


def test_a_blank_system_message_is_none(tmp_path: Path) -> None:
    report, rows = cleaned(CASES / "17-roles-and-turns/system_empty.jsonl", tmp_path)
    assert all(roles(row)[0] == "user" for row in rows)
    assert notes(report) == {"blank_system_removed": 6}


@pytest.mark.parametrize(
    ("name", "key", "note", "reason"),
    [
        ("system_mid", "second_system", "second_system_merged", "system_not_first"),
        ("two_users_in_a_row", "repeated_turns", "repeated_turns_merged", "roles_not_alternating"),
    ],
)
def test_turns_out_of_order(tmp_path: Path, name: str, key: str, note: str, reason: str) -> None:
    path = CASES / f"17-roles-and-turns/{name}.jsonl"
    report, rows = cleaned(path, tmp_path)
    assert notes(report) == {note: 6} and all(fault(row["messages"]) is None for row in rows)
    text = "\n".join(texts(rows[0]))
    assert "Now be brief." in text or "One more thing about that question." in text
    with pytest.raises(SourceError, match=f"all 6 rows are counted as {reason}"):
        cleaned(path, tmp_path / "drop", **{key: "drop"})


def test_pictures_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="all 6 rows are counted as turn_not_text"):
        cleaned(CASES / "17-roles-and-turns/image_marker.jsonl", tmp_path)


def test_entities_are_resolved_once(tmp_path: Path) -> None:
    report, rows = cleaned(CASES / "17-roles-and-turns/html_entities.jsonl", tmp_path)
    assert notes(report) == {"entities_resolved": 6}
    assert all("<div> not close" in texts(row)[0] and "it's" in texts(row)[0] for row in rows)


def test_a_tar_archive_is_read(tmp_path: Path) -> None:
    report, _ = cleaned(CASES / "18-other-containers/chats.tar", tmp_path)
    assert (report.rows_read, report.kept) == (12, 12)


@pytest.mark.parametrize(
    ("name", "says"),
    [("lfs_pointer.json", "it is a Git LFS pointer"), ("html_error.json", "it is an HTML page")],
)
def test_other_things_are_named(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        cleaned(CASES / "18-other-containers" / name, tmp_path)


def test_unreadable_as_a_whole_is_one_sentence_and_exit_status_1(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"who": "x", "said": ["hello"]}\n' * 3)
    done = cli("clean", str(path), "-o", str(tmp_path / "out"), "--profile", "laptop")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "all 3 rows have the keys said, who; turns are" in last
    assert "Traceback" not in done.stderr and not (tmp_path / "out" / "data").exists()
