"""Strangers' bytes: no input gives a stack trace or a loop without end, and no whole row is lost in
silence.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hubkit.conversation import Conversation
from hubkit.data.corpus import FileReport, build, read
from hubkit.errors import HubkitError
from hubkit.recipe import Corpus, Filter, Source

settings.register_profile(
    "files", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("files")

KEYS = st.sampled_from(
    ["id", "conversations", "messages", "from", "value", "role", "content", "data", "prompt",
     "replies", "text", "items", "conversation", "rank", "message_id", "message_tree_id",
     "parent_id", "markdown", "type"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
ROLE = st.sampled_from(["human", "gpt", "system", "User", " assistant ", "prompter", "alien", ""])
TURN = st.fixed_dictionaries({"from": ROLE, "value": st.text(max_size=30)}) | JSON
ROW = (
    st.fixed_dictionaries(
        {"id": st.text(max_size=8) | st.none(), "conversations": st.lists(TURN, max_size=5)}
    )
    | JSON
)


def check(path: Path) -> tuple[list[Conversation], FileReport]:
    """Read `path` whole; hold it to what every reader owes."""
    report = FileReport(path.name, "", 0)
    found = list(read(path, report=report))
    assert report.rows == len(found) + report.joined + sum(
        tally.count for tally in report.unreadable.values()
    )
    for conversation in found:
        conversation.id.encode()
        for message in conversation.messages:
            assert message["role"] in ("user", "assistant", "system")
            message["content"].encode()
    return found, report


@given(st.binary(max_size=400))
@example(b"[")
@example(b"{")
@example(b"PAR1")
@example(b"PAR1" + b"\0" * 40 + b"PAR1")
@example(b"\x1f\x8b")
@example(b"\x28\xb5\x2f\xfd")
@example(b"[" * 5000)
@example(b'{"a":' * 5000)
@example(b"[1e999, 1, -]")
@example(b'[{"id": "\xff"}]')
@example(b'[{"id": 123456789012345678901234567890, "messages": []}]')
@example(b"[NaN]")
@example(b'{"messages": NaN}\n')
@example(b"\xef\xbb\xbf")
@example("[]".encode("utf-16"))
@example("[]".encode("utf-32"))
@example("".encode("utf-32"))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    _, report = check(path)
    wide = "utf-32" if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else "utf-16"
    is_marked = wide == "utf-32" or data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode(wide, "replace").encode() if is_marked else data
    text = text.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
    assert report.rows or not text or text[:1] == b"[", (
        "bytes that are no row are an unreadable one"
    )


@given(
    st.binary(max_size=200),
    st.sampled_from([gzip.compress, zstandard.compress]),
    st.integers(0, 60),
)
def test_any_bytes_packed_and_cut(tmp_path: Path, data: bytes, pack: Any, cut: int) -> None:
    path = tmp_path / "x"
    packed = pack(b'{"messages": [{"role": "user", "content": "hello"}]}\n' + data)
    path.write_bytes(packed[: len(packed) - cut])
    check(path)


@settings(max_examples=60)
@given(st.lists(ROW, max_size=4), st.sampled_from(["array", "lines", "spread"]))
def test_any_json(tmp_path: Path, rows: list[Any], layout: str) -> None:
    path = tmp_path / "x"
    texts = [json.dumps(row, indent=2 if layout == "spread" else None) for row in rows]
    path.write_text("[" + ",".join(texts) + "]" if layout == "array" else "\n".join(texts))
    _, report = check(path)
    if layout == "array" or (layout == "lines" and not (rows and isinstance(rows[0], list))):
        assert (
            report.rows >= len(rows) or "NaN" in path.read_text() or "Infinity" in path.read_text()
        )


@given(st.data())
def test_good_lines_survive_bad_neighbours(tmp_path: Path, data: st.DataObject) -> None:
    good = [
        json.dumps({"id": f"g{i}", "messages": [{"role": "user", "content": "x"}]}).encode()
        for i in range(4)
    ]
    bad = st.binary(min_size=1, max_size=60).filter(
        lambda b: b"\n" not in b and b.strip(b" \t\r") != b""
    )
    lines = [
        good[0],
        *(data.draw(bad) for _ in range(2)),
        good[1],
        data.draw(bad),
        good[2],
        good[3],
    ]
    path = tmp_path / "x"
    path.write_bytes(b"\n".join(lines))
    found, report = check(path)
    assert {"g0", "g1", "g2", "g3"} <= {conversation.id for conversation in found}
    assert report.rows == 7


@given(st.integers(0, 1500), st.integers(0, 255))
def test_one_wrong_byte_in_an_array_never_hides_the_loss(
    tmp_path: Path, at: int, byte: int
) -> None:
    rows = [
        {"id": f"g{i}", "conversations": [{"from": "human", "value": "hello there"}]}
        for i in range(20)
    ]
    raw = bytearray(json.dumps(rows).encode())
    raw[at % len(raw)] = byte
    path = tmp_path / "x"
    path.write_bytes(raw)
    found, report = check(path)
    assert len(found) == 20 or sum(tally.count for tally in report.unreadable.values()) >= 1


def nested(number: int) -> bytes:
    """A row whose turns have ids of their own and quote what looks like a row."""
    quoted = 'see {"id": "x", "conversations": []}'
    turns = [
        {"id": f"t{turn}", "from": ("human", "gpt")[turn % 2], "value": f"{quoted} {turn}"}
        for turn in range(4)
    ]
    return json.dumps({"id": f"g{number}", "conversations": turns}).encode()


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        (b'{"id": "g3", "conversations": [{"from": "human", "value": "no end', {"g3"}),
        (b'{"id": "g3", "conversations": [{"from": "human" "value": "x"}]}', {"g3"}),
        (nested(3)[:-2], {"g3"}),  # the next rows pass for turns of this one
        (nested(3)[:-2] + b"}", {"g3"}),
        (nested(3)[:-60], {"g3"}),
        (b"x" + nested(3)[60:], {"g3"}),
        (b"what is this?", set()),
        (nested(3).replace(b'"t2"', b'"t2'), {"g3"}),
        (b"]", set()),
        (b"[", set()),
    ],
)
@pytest.mark.parametrize("pad", [0, (1 << 16) - 700, (1 << 16) - 30])
def test_a_broken_row_in_an_array_costs_that_row_alone(
    tmp_path: Path, row: bytes, lost: set[str], pad: int
) -> None:
    path = tmp_path / "x"
    rows = [nested(n) for n in range(8)]
    rows[2:3] = [rows[2], b" " * pad + row] if not lost else [rows[2]]
    if lost:
        rows[3] = b" " * pad + row
    path.write_bytes(b"[" + b", ".join(rows) + b"]")
    found, report = check(path)
    assert {conversation.id for conversation in found} == {f"g{n}" for n in range(8)} - lost
    (tally,) = report.unreadable.values()
    assert (
        tally.count == 1 and report.cut_off_at is None and report.lost_bytes <= pad + len(row) + 8
    )
    if lost and b'"id": "g3"' in row:
        assert tally.examples == ["g3"]


@settings(max_examples=150)
@example(4, 30, b"")
@given(st.integers(0, 2000), st.integers(1, 40), st.binary(max_size=12))
def test_wherever_an_array_is_hurt_rows_further_on_are_read(
    tmp_path: Path, at: int, hurt: int, new: bytes
) -> None:
    rows = [nested(n) for n in range(10)]
    whole = b"[" + b",\n".join(rows) + b"]"
    at = 1 + at % (len(whole) - 1)
    path = tmp_path / "x"
    path.write_bytes(whole[:at] + new + whole[at + hurt :])
    found, report = check(path)
    places = [(whole.find(row), whole.find(row) + len(row)) for row in rows]
    touched = {n for n, (start, end) in enumerate(places) if at - 2 < end and start < at + hurt + 1}
    ids = {conversation.id for conversation in found}
    assert {f"g{n}" for n in range(10)} - ids <= {f"g{n}" for n in touched}
    assert len(ids) == 10 or report.unreadable


@pytest.mark.parametrize(
    "piece", [b'{"id":', b'{"id":[', b'[{"id":1},', b'{"id":"', b'{"messages":[]}']
)
def test_no_array_makes_the_reader_go_round_in_circles(tmp_path: Path, piece: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"[" + piece * 40_000)
    check(path)


@pytest.mark.parametrize(
    "edge", [(1 << 16) - 2, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, (1 << 17) - 1]
)
def test_rows_that_end_at_the_edge_of_a_block(tmp_path: Path, edge: int) -> None:
    row = {"id": "first", "messages": [{"role": "user", "content": ""}]}
    row["messages"][0]["content"] = "x" * (edge - len(json.dumps(row)) - 1)  # type: ignore[index]
    last = {"id": "last", "messages": [{"role": "user", "content": "y"}]}
    for text in (json.dumps([row, last]), json.dumps(row) + "\n" + json.dumps(last)):
        (tmp_path / "x").write_text(text)
        assert [c.id for c in check(tmp_path / "x")[0]] == ["first", "last"]


@settings(max_examples=40)
@given(st.lists(ROW, max_size=30), st.integers(0, 200))
def test_the_whole_corpus_accounts_for_every_row(tmp_path: Path, rows: list[Any], cut: int) -> None:
    good = [
        {
            "id": f"g{i}_0",
            "conversations": [{"from": "human", "value": f"q {i}"}, {"from": "gpt", "value": "a"}],
        }
        for i in range(8)
    ]
    path = tmp_path / "x.json"
    text = json.dumps(good + rows).encode()
    path.write_bytes(text[: max(len(json.dumps(good)) + 1, len(text) - cut)])
    filters = [
        "clean_text",
        "alternate_roles",
        "provider_mentions",
        "role_leak",
        "near_duplicates",
        "personal_data",
    ]
    block = Corpus(
        sources=[Source(path="chats.jsonl")],
        filters=[Filter(name=f) for f in filters],
        openings=1,
        test=1,
        join_parts=True,
    )
    try:
        report = build(block, [path], tmp_path / "out", seed=1)
    except HubkitError:  # nearly everything may be a duplicate of "q 0"
        return
    assert (
        report.rows_read + report.added
        == report.kept + report.dropped + report.unreadable + report.joined
    )


def test_message_trees_one_message_a_row(tmp_path: Path) -> None:
    def message(
        name: str, parent: str | None, role: str, text: str, rank: int | None = None
    ) -> dict[str, Any]:
        return {
            "message_id": name,
            "parent_id": parent,
            "message_tree_id": "t",
            "role": role,
            "text": text,
            "rank": rank,
        }

    rows = [
        message("t", None, "prompter", "q"),
        message("a", "t", "assistant", "second best", 1),
        message("b", "t", "assistant", "best", 0),
        message("c", "b", "prompter", "more"),
        message("lost", "gone", "assistant", "?"),
        message("b", "t", "assistant", "again"),
        {**message("u", None, "prompter", "another"), "message_tree_id": "u"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, report = check(path)
    assert [[m["content"] for m in c.messages] for c in found] == [
        ["q", "best", "more"],
        ["another"],
    ]
    assert (report.rows, report.joined, report.other_branches) == (7, 3, 1)
    assert {reason: tally.examples for reason, tally in report.unreadable.items()} == {
        "duplicate_message": ["b"],
        "orphan_message": ["lost"],
    }
