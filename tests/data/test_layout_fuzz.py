"""Layouts that nobody wrote down: no readable text disappears without being kept or counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubkit.conversation import Conversation
from hubkit.data.corpus import FileReport, read
from hubkit.data.readers.rules import ReadingRules

settings.register_profile(
    "layouts",
    deadline=None,
    max_examples=100,
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("layouts")

NAMES = st.sampled_from(
    ["messages", "conversations", "conversation", "items", "dialog", "turns", "chat", "data",
     "prompt", "completion", "response", "chosen", "rejected", "instruction", "input", "output",
     "history", "system", "system_prompt", "tools", "text", "transcript", "label", "image",
     "mapping", "chat_messages", "question", "answer", "title", "notes", "ü", "", "0"]
)  # fmt: skip
TURN_KEYS = st.sampled_from(
    ["content", "value", "text", "markdown", "message", "mes", "thinking", "reasoning_content",
     "weight", "train", "name", "comment", "human", "assistant", "input", "output", "replies",
     "tool_calls", "parts", "ü"]
)  # fmt: skip
ROLE_NAMES = st.sampled_from(
    ["human", "gpt", "user", "assistant", "Human:", " User ", "system", "tool", "function_call",
     "observation", "alien", "", "moss"]
)  # fmt: skip
ROLE_KEYS = st.sampled_from(["from", "role", "author", "speaker", "sender", "who"])
WORDS = st.sampled_from(
    ["", "<think>hm</think>", "a &lt; b", "Human: ", "<|im_end|>", "é", "{", "\n"]
)


@st.composite
def texts(draw: st.DrawFn, counter: list[int]) -> str:
    """A text with a token that is in no other."""
    counter[0] += 1
    return f"{draw(WORDS)}token{counter[0]:04d}x {draw(WORDS)}"


def values(counter: list[int]) -> st.SearchStrategy[Any]:
    """A text, no text, or texts in lists and mappings."""
    leaf = texts(counter) | st.sampled_from([None, "", " ", 0, 1.5, True, False])
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(TURN_KEYS | st.just("type"), inner, max_size=3)
            | st.fixed_dictionaries({"type": st.sampled_from(["text", "x"]), "text": inner})
        ),
        max_leaves=4,
    )


@st.composite
def conversation_turns(draw: st.DrawFn, counter: list[int]) -> list[Any]:
    role_key, text_key = draw(ROLE_KEYS), draw(TURN_KEYS)
    turns: list[Any] = []
    for index in range(draw(st.integers(1, 5))):
        role = draw(ROLE_NAMES | st.just(("human", "gpt")[index % 2]))
        turn: dict[str, Any] = {role_key: {"role": role} if draw(st.booleans()) else role}
        turn[text_key] = draw(texts(counter) | values(counter))
        if draw(st.booleans()):
            turn[draw(TURN_KEYS)] = draw(values(counter))
        turns.append(turn)
    return turns


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    counter, made = [0], []
    list_name = draw(NAMES)
    for number in range(draw(st.integers(1, 4))):
        turns = draw(conversation_turns(counter))
        shape = draw(st.sampled_from(["turns", "turns", "turns", "json", "texts", "value"]))
        body: Any = {
            "turns": turns,
            "json": json.dumps(turns),
            "texts": [draw(texts(counter)) for _ in turns],
            "value": draw(values(counter)),
        }[shape]
        row = {"id": f"row-{number}", list_name: body}
        for _ in range(draw(st.integers(0, 2))):
            row.setdefault(draw(NAMES), draw(values(counter)))
        made.append(row)
    return made


def in_array(rows: list[Any]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def in_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def spread(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row, indent=1) for row in rows).encode()


def wrapped(rows: list[Any]) -> bytes:
    return json.dumps({"version": 1, "data": rows}).encode()


def by_name(rows: list[Any]) -> bytes:
    return json.dumps({f"key-{n}": row for n, row in enumerate(rows)}, indent=1).encode()


def in_cells(rows: list[Any]) -> list[dict[str, str | None]]:
    """Rows as a table's cells hold them: text, or JSON text; none where it is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in names] for row in rows]
    return [
        {
            name: (cell if isinstance(cell, str) else "" if cell is None else json.dumps(cell))
            or None
            for name, cell in zip(names, row, strict=True)
        }
        for row in cells
    ]


def in_table(rows: list[Any], delimiter: str) -> bytes:
    cells = in_cells(rows)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(cells[0]), delimiter=delimiter)
    table.writeheader()
    table.writerows(cells)
    return text.getvalue().encode()


def packed_tar(data: bytes, name: str = "in/x.json") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


CONTAINERS = st.sampled_from([in_array, in_lines, spread, wrapped, by_name])
PACKS = st.sampled_from(
    [bytes, gzip.compress, zstandard.compress, packed_tar, lambda d: gzip.compress(packed_tar(d))]
)
ENCODINGS = st.sampled_from([None, None, None, "utf-16", "gb18030", "utf-16-le"])


def tokens_in(value: Any) -> set[str]:
    """The tokens that stand in a value, as JSON."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return {f"token{piece[:4]}x" for piece in text.split("token")[1:]}


def with_keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every token with the keys on the way to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from with_keys(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from with_keys(inner, path)
    elif isinstance(value, str):
        try:
            inner = json.loads(value)  # turns stored as a string have keys too
        except ValueError:
            inner = None
        if isinstance(inner, dict | list):
            yield from with_keys(inner, path)
        else:
            yield from ((path, token) for token in tokens_in(value))


def check(found: list[Conversation], report: FileReport, made: list[dict[str, Any]]) -> None:
    """Hold what was read against what was written."""
    unreadable = sum(tally.count for tally in report.unreadable.values())
    assert report.rows == len(found) + report.joined + unreadable
    carried = set().union(*(tokens_in([c.messages, c.meta]) for c in found))
    names = set(report.unread_columns) | set(report.unread_fields) | set(report.passed_over)
    cut = bool(report.notes.keys() & {"blank_last_answer_cut", "attachments_left_out"})
    ids = {conversation.id for conversation in found}
    lost = 0
    for number, row in enumerate(made):
        if not ids & {row["id"], f"{row['id']}"}:
            lost += 1
            continue
        for path, token in with_keys(row):
            parts = {".".join(path[a:b]) for a, b in combinations(range(len(path) + 1), 2)}
            named = names & {*parts, f"key-{number}", "text before the first turn"}
            assert token in carried or named or cut, (path, token, report)
    assert not found or lost <= unreadable + len(report.passed_over) + report.joined, report
    assert found or unreadable or not made, report


@given(rows(), CONTAINERS, PACKS, ENCODINGS)
def test_no_readable_text_disappears_uncounted(
    tmp_path: Path,
    made: list[dict[str, Any]],
    container: Callable[[list[Any]], bytes],
    pack: Callable[[bytes], bytes],
    encoding: str | None,
) -> None:
    path = tmp_path / "x.json"
    data = container(made)
    path.write_bytes(pack(data.decode().encode(encoding) if encoding else data))
    report = FileReport(path.name, "", 0)
    found = list(read(path, report=report, rules=ReadingRules(encoding=encoding)))
    check(found, report, made)


@pytest.mark.parametrize("name", ["title", "id", "current_node"])
def test_turns_under_a_name_of_the_row_are_named(tmp_path: Path, name: str) -> None:
    row = {"mapping": {}, name: [{"from": "human", "content": "Why?"}]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row]), "utf-8")
    report = FileReport(path.name, "", 0)
    list(read(path, report=report, rules=ReadingRules()))
    assert name in report.unread_columns


@pytest.mark.parametrize("time", [10**400, -(10**400), float("nan"), True, "now", [1], None])
def test_times_of_any_kind_order_branches(tmp_path: Path, time: Any) -> None:
    message = {"author": {"role": "user"}, "content": {"parts": ["Why?"]}, "create_time": time}
    nodes = {"a": {"message": message}, "b": {"message": {**message, "create_time": 1}}}
    row = {"title": "A talk", "mapping": nodes}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row]), "utf-8")
    report = FileReport(path.name, "", 0)
    [found] = read(path, report=report, rules=ReadingRules())
    assert [m["content"] for m in found.messages] == ["Why?"] and report.other_branches == 1


@given(rows(), st.sampled_from(",;\t|"), st.sampled_from(["", ".gz", ".tar"]), ENCODINGS)
def test_nor_in_tables_as_text(
    tmp_path: Path, made: list[dict[str, Any]], delimiter: str, pack: str, encoding: str | None
) -> None:
    data = in_table(made, delimiter)
    data = data.decode().encode(encoding) if encoding else data
    if pack:
        data = gzip.compress(data) if pack == ".gz" else packed_tar(data, "in/x.csv")
    path = tmp_path / f"x.csv{pack}"
    path.write_bytes(data)
    report = FileReport(path.name, "", 0)
    found = list(read(path, report=report, rules=ReadingRules(encoding=encoding)))
    assert report.rows >= len(made)
    check(found, report, in_cells(made))


@st.composite
def own_turns(draw: st.DrawFn, counter: list[int]) -> list[dict[str, Any]]:
    """Turns whose role and text stand inside other values, beside more."""
    extra = st.dictionaries(TURN_KEYS, values(counter), max_size=2)
    return [
        {
            **draw(extra),
            "by": {**draw(extra), "seat": draw(ROLE_NAMES | st.just(("human", "gpt")[index % 2]))},
            "said": {**draw(extra), "words": draw(texts(counter) | values(counter))},
        }
        for index in range(draw(st.integers(1, 5)))
    ]


OWN = {"role": "by.seat", "text": "said.words"}


@given(st.data(), NAMES, CONTAINERS, PACKS)
def test_nor_beside_paths(
    tmp_path: Path,
    data: st.DataObject,
    name: str,
    container: Callable[[list[Any]], bytes],
    pack: Callable[[bytes], bytes],
) -> None:
    counter = [0]
    made: list[dict[str, Any]] = []
    for number in range(data.draw(st.integers(1, 4))):
        turns: Any = data.draw(own_turns(counter))
        turns = json.dumps(turns) if data.draw(st.booleans()) else turns
        deep = {data.draw(NAMES): data.draw(values(counter)), name: turns}
        row = {data.draw(NAMES): data.draw(values(counter))}
        made.append({**row, "id": f"row-{number}", "deep": {"er": deep}})
    path = tmp_path / "x.json"
    path.write_bytes(pack(container(made)))
    report = FileReport(path.name, "", 0)
    rules = ReadingRules(turns=f"deep.er.{name}", **OWN)
    check(list(read(path, report=report, rules=rules)), report, made)


@given(st.data(), CONTAINERS | st.just(None), st.booleans(), st.booleans())
def test_nor_where_each_row_is_one_turn(
    tmp_path: Path,
    data: st.DataObject,
    container: Callable[[list[Any]], bytes] | None,
    mixed: bool,
    paths: bool,
) -> None:
    counter = [0]
    turns = (own_turns if paths else conversation_turns)(counter)
    made = [data.draw(turns) for _ in range(data.draw(st.integers(1, 4)))]
    rows = [
        {**turn, "to": f"row-{n}"} for n, conversation in enumerate(made) for turn in conversation
    ]
    rows = data.draw(st.permutations(rows)) if mixed else rows
    path = tmp_path / ("x.json" if container else "x.csv")
    path.write_bytes(container(rows) if container else in_table(rows, ","))
    if not container:
        rows = in_cells(rows)
    report = FileReport(path.name, "", 0)
    rules = ReadingRules(conversation="to", **(OWN if paths else {}))
    found = list(read(path, report=report, rules=rules))
    assert report.rows == len(rows) and report.joined == len(rows) - len(made)
    groups = [[row for row in rows if row["to"] == f"row-{n}"] for n in range(len(made))]
    check(found, report, [{"id": f"row-{n}", "rows": group} for n, group in enumerate(groups)])


@given(rows(), st.booleans())
def test_nor_in_tables(tmp_path: Path, made: list[dict[str, Any]], arrow: bool) -> None:
    columns = {key for row in made for key in row}
    try:
        table = pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in made])
        path = tmp_path / "x"
        if arrow:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table)
        else:
            pq.write_table(table, path)
    except (pa.ArrowException, ValueError, OverflowError):
        return  # columns of more than one type
    report = FileReport(path.name, "", 0)
    found = list(read(path, report=report))
    check(found, report, table.to_pylist())
