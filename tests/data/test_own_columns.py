"""A way round for every layout: paths of keys, tables as text, and rows of one turn each."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubkit.conversation import Conversation
from hubkit.data.corpus import FileReport, read
from hubkit.data.readers import delimited
from hubkit.data.readers.explain import nothing_readable
from hubkit.data.readers.rules import ReadingRules
from hubkit.errors import RecipeError
from hubkit.recipe import load

Q, A = "What is a sextant?", "An instrument, or so;\nit has two mirrors."
QUESTION, ANSWER = {"role": "user", "content": Q}, {"role": "assistant", "content": A}


def opened(path: Path, **rules: Any) -> tuple[list[Conversation], FileReport]:
    """What `path` is read as; every row of it is accounted for."""
    report = FileReport(path.name, "", 0)
    found = list(read(path, report=report, rules=ReadingRules(**rules)))
    unreadable = sum(tally.count for tally in report.unreadable.values())
    assert report.rows == len(found) + report.joined + unreadable
    return found, report


def in_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_table(path: Path, *rows: list[str], delimiter: str = ",", end: str = "\r\n") -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


def sentence(report: FileReport) -> str:
    return str(nothing_readable([report]))


def options_in(text: str) -> dict[str, str]:
    """The names that a sentence gives to `--column`."""
    words = text.replace(",", " ").split()
    pairs = [words[at + 1].partition("=") for at, w in enumerate(words) if w == "--column"]
    return {kind: name for kind, _, name in pairs}


DEEP = {
    "posts": {"thread": {"posts": [{"author": "user", "body": Q}, {"author": "bot", "body": A}]}},
    "authors": {"a": {"b": [{"author": {"kind": "user", "id": "x"}, "said": {"md": Q}},
                            {"author": {"kind": "assistant", "id": "y"}, "said": {"md": A}}]}},
    "json text": {"thread": json.dumps({"posts": [{"who": "user", "said": Q},
                                                  {"who": "assistant", "said": A}]})},
    "texts": {"utterances": [Q, A]},
    "a space": {"all turns": {"x": [{"role": "user", "t": Q}, {"role": "assistant", "t": A}]}},
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_a_sentence_gives_the_options_that_read_the_file(tmp_path: Path, name: str) -> None:
    path = in_lines(tmp_path / "x.jsonl", DEEP[name], DEEP[name])
    found, report = opened(path)
    assert not found and "try --column turns=" in sentence(report)
    options = options_in(sentence(report).replace("'all turns.x'", "all_turns.x"))
    options = {kind: value.replace("all_turns", "all turns") for kind, value in options.items()}
    found, report = opened(path, **options)
    assert [c.messages for c in found] == [[QUESTION, ANSWER]] * 2


def test_roles_that_are_not_known_are_named_with_the_options(tmp_path: Path) -> None:
    posts = [{"who": "Caller", "said": Q}, {"who": "Desk", "said": A}]
    path = in_lines(tmp_path / "x.jsonl", {"call": {"log": posts}})
    text = sentence(opened(path)[1])
    assert "--role Caller=SEAT --role Desk=SEAT with user or assistant for SEAT" in text
    roles = {"caller": "user", "desk": "assistant"}
    found, _ = opened(path, **options_in(text), roles=roles)
    assert found[0].messages == [QUESTION, ANSWER]


def test_what_stands_beside_a_path_is_counted(tmp_path: Path) -> None:
    posts = [{"author": {"role": "user", "name": "Bo"}, "content": {"md": Q, "title": "One"}},
             {"author": {"role": "bot", "name": "Al"}, "content": {"md": A}}]  # fmt: skip
    row = {"thread": {"posts": posts, "brief": "Be brief.", "title": "Talk", "of": {"who": "p1"}}}
    path = in_lines(tmp_path / "x.jsonl", row)
    rules = {"turns": "thread.posts", "role": "author.role", "text": "content.md"}
    (conversation,), report = opened(path, **rules, system="thread.brief")
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        ANSWER,
    ]
    assert report.unread_columns == {"thread.title": 1, "thread.of": 1}
    assert report.unread_fields == {"author.name": 2, "content.title": 1}


def test_a_key_with_a_dot_comes_before_a_path(tmp_path: Path) -> None:
    other = [{"role": "user", "a.b": "No."}]
    turns = [{"r.x": m["role"], "r": {"x": "alien"}, "t.x": m["content"]}
             for m in (QUESTION, ANSWER)]  # fmt: skip
    path = in_lines(tmp_path / "x.jsonl", {"a.b": turns, "a": {"b": other}})
    (conversation,), _ = opened(path, turns="a.b", role="r.x", text="t.x")
    assert conversation.messages == [QUESTION, ANSWER]
    path = in_lines(tmp_path / "y.jsonl", {"v1.0": {"turns": turns}, "list": [0, {"turns": turns}]})
    for name in ("v1.0.turns", "list.1.turns"):
        (conversation,), _ = opened(path, turns=name, role="r.x", text="t.x")
        assert conversation.messages == [QUESTION, ANSWER]


@pytest.mark.parametrize("around", [lambda rows: {"data": rows}, lambda rows: rows])
def test_rows_with_a_path_inside_other_values(tmp_path: Path, around: Callable[..., Any]) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(around([DEEP["posts"]] * 3), indent=1))
    found, _ = opened(path, turns="thread.posts")
    assert len(found) == 3 and all(c.messages == [QUESTION, ANSWER] for c in found)


def test_the_command_takes_paths(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = in_lines(tmp_path / "x.jsonl", *[DEEP["posts"]] * 30)
    shape = ("clean", str(path), "-o", str(tmp_path / "out"), "--profile", "laptop",
             "--set", "corpus.filters=[]")  # fmt: skip
    done = cli(*shape)
    assert done.returncode == 1 and "try --column turns=thread.posts --column role=author" in (
        done.stderr
    )
    done = cli(*shape, "--column", "turns=thread.posts", "--column", "text=body")
    assert done.returncode == 0 and "30 rows read, 0 unreadable" in done.stdout
    assert "Dropped" not in done.stdout


# Tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "X.CSV", "x.csv.gz"])
def test_tables(tmp_path: Path, delimiter: str, end: str, name: str) -> None:
    rows = [["id", "instruction", "output"], ["1", f'{Q} "So?", a; b | c', A], ["2", Q, A]]
    path = in_table(tmp_path / name, *rows, delimiter=delimiter, end=end)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + f"3{delimiter}short{end}".encode())
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    found, report = opened(path)
    assert [c.id for c in found] == ["1", "2"]
    assert [m["content"] for c in found for m in c.messages] == [rows[1][1], A, Q, A]
    assert {r: t.count for r, t in report.unreadable.items()} == {"row_of_other_width": 1}


@pytest.mark.parametrize(
    ("names", "cells"),
    [
        (["prompt", "response"], [Q, A]),
        (["messages"], [json.dumps([QUESTION, ANSWER])]),
        (["conversation", "label"], [repr([QUESTION, ANSWER]), "True"]),
        (["text"], [f"Human: {Q}\n\nAssistant: {A}"]),
    ],
)
def test_columns_of_tables_are_layouts(tmp_path: Path, names: list[str], cells: list[str]) -> None:
    found, report = opened(in_table(tmp_path / "x.csv", names, cells, cells))
    assert [c.messages for c in found] == [[QUESTION, ANSWER]] * 2 and not report.unreadable


def test_words_of_tables_are_flags(tmp_path: Path) -> None:
    rows = [["prompt", "completion", "label"], [Q, A, "True"], [Q, A, "False"]]
    found, report = opened(in_table(tmp_path / "x.csv", *rows))
    assert len(found) == 1 and report.unreadable["labelled_undesirable"].count == 1
    turns = [["c", "is_user", "text", "weight"], ["1", "True", Q, ""], ["1", "False", A, "0"]]
    (conversation,), _ = opened(in_table(tmp_path / "y.csv", *turns), conversation="c")
    assert conversation.messages == [QUESTION, {**ANSWER, "train": False}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp1252"])
def test_tables_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    rows = [f'"question","answer"\r\n"Où {n}?","À côté, bien sûr : déjà là."\r\n' for n in "12"]
    path = tmp_path / "x.csv"
    path.write_bytes("".join(rows).replace('\r\n"question","answer"', "").encode(encoding))
    found, report = opened(path, encoding=encoding if encoding == "cp1252" else None)
    assert [c.messages[1]["content"] for c in found] == ["À côté, bien sûr : déjà là."] * 2
    if encoding == "cp1252":
        _, report = opened(path)
        assert report.unreadable["not_utf8"].count == 2 and "--encoding" in sentence(report)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_broken_quote_costs_its_row_alone(tmp_path: Path, at: int) -> None:
    rows = [f'{n},"Why, {n}?","Because\nof ""{n}""."\n' for n in range(6)]
    rows[at] = f'{at},"Why, {at}?,"Because of {at}."\n'
    path = tmp_path / "x.csv"
    path.write_text("id,question,answer\n" + "".join(rows))
    found, report = opened(path)
    assert [c.id for c in found] == [str(n) for n in range(6) if n != at]
    assert all(c.messages[1]["content"] == f'Because\nof "{c.id}".' for c in found)
    assert report.rows == 6 and len(report.unreadable) == 1


def test_a_quote_that_nothing_closes_costs_what_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 1 << 12)
    rows = [f"{n},Why {n}?,Because.\n" for n in range(2000)]
    rows[700] = '700,"Why?,Because.\n'
    path = tmp_path / "x.csv"
    path.write_text("id,question,answer\n" + "".join(rows))
    found, report = opened(path)
    assert len(found) == 1999 and report.unreadable["row_too_long"].count == 1


def test_a_table_that_is_cut_off(tmp_path: Path) -> None:
    path = in_table(tmp_path / "x.csv.gz", ["question", "answer"], *[[Q, A * 20]] * 400)
    whole = gzip.compress(path.read_bytes())
    path.write_bytes(whole[: len(whole) * 2 // 3])
    found, report = opened(path)
    assert 0 < len(found) < 400 and report.unreadable["cut_off"].count == 1
    assert all(c.messages[1]["content"] == A * 20 for c in found)


def test_a_transcript_as_plain_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("User: Hello.\nAssistant: Hi.\nUser: Bye.\n")
    assert "it is a transcript as plain text" in sentence(opened(path)[1])
    path.write_text("A letter.\n\nDear all,\n")
    assert "it is plain text, and no table" in sentence(opened(path)[1])
    in_lines(path, {"messages": [QUESTION, ANSWER]})
    assert len(opened(path)[0]) == 1


# One turn a row

NAMES = ("conversation_id", "speaker", "text")
MIXED = [
    ("b", "user", "b1"), ("a", "user", "a1"), ("b", "bot", "b2"), ("c", "user", "c1"),
    ("a", "bot", "a2"), ("c", "bot", "c2"), ("a", "user", "a3"), ("a", "bot", "a4"),
]  # fmt: skip
JOINED = {"b": ["b1", "b2"], "a": ["a1", "a2", "a3", "a4"], "c": ["c1", "c2"]}


def as_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    return in_lines(path.with_suffix(".jsonl"), *rows)


def as_array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def around(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"version": 1, "data": rows}))
    return path


def as_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    return in_table(path.with_suffix(".csv"), [*rows[0]], *[[*row.values()] for row in rows])


@pytest.mark.parametrize("write", [as_lines, as_array, around, as_table])
@pytest.mark.parametrize("name", ["conversation_id", "thread", "x"])
def test_rows_of_one_turn_are_joined_where_a_column_says_so(
    tmp_path: Path, write: Callable[..., Path], name: str
) -> None:
    rows = [dict(zip((name, *NAMES[1:]), row, strict=True)) for row in MIXED]
    path = write(tmp_path / "x.json", rows)
    found, report = opened(path, conversation=name)
    assert {c.id: [m["content"] for m in c.messages] for c in found} == JOINED
    assert [c.id for c in found] == [*JOINED], "in the order of their first rows"
    assert (report.rows, report.joined) == (8, 5) and not report.unread_columns
    if name != "x":
        found, report = opened(path)
        assert not found, "never by itself"
        assert f"--column conversation={name} --column role=speaker" in sentence(report)


def test_rows_in_the_order_of_a_column(tmp_path: Path) -> None:
    rows = [{"meta": {"c": 7.0, "at": at}, "role": role, "body": body}
            for at, role, body in (("10", "bot", "d"), (2, "bot", "b"), (1.5, "user", "a"),
                                   ("3", "user", "c"))]  # fmt: skip
    rules = {"conversation": "meta.c", "order": "meta.at"}
    (conversation,), report = opened(in_lines(tmp_path / "x.jsonl", *rows), **rules)
    assert conversation.id == "7" and not report.unread_fields
    assert [m["content"] for m in conversation.messages] == ["a", "b", "c", "d"]
    rows[1]["meta"].pop("at")
    found, report = opened(in_lines(tmp_path / "x.jsonl", *rows), **rules)
    assert not found and report.unreadable["turn_without_order"].count == 1


def test_what_all_turns_share_is_the_conversations(tmp_path: Path) -> None:
    rows = [{"c": 1, "role": m["role"], "content": m["content"], "system": "Be brief.",
             "title": "Talk", "mood": mood, "weight": 1}
            for m, mood in ((QUESTION, "glad"), (ANSWER, "sad"))]  # fmt: skip
    (conversation,), report = opened(in_lines(tmp_path / "x.jsonl", *rows), conversation="c")
    assert conversation.messages[0] == {"role": "system", "content": "Be brief."}
    assert [m.get("train") for m in conversation.messages[1:]] == [True, True]
    assert report.unread_columns == {"title": 1} and report.unread_fields == {"mood": 2}


def test_rows_without_a_conversation_are_counted(tmp_path: Path) -> None:
    rows = [{"c": "1", "role": "user", "content": Q}, {"c": "1", "role": "gpt", "content": A},
            {"c": None, "role": "user", "content": Q}, {"role": "user", "content": Q},
            {"c": " ", "role": "user", "content": Q}, {"c": "2", "role": "alien", "content": Q},
            7]  # fmt: skip
    found, report = opened(in_lines(tmp_path / "x.jsonl", *rows), conversation="c")
    assert [c.messages for c in found] == [[QUESTION, ANSWER]] and report.joined == 1
    assert {r: t.count for r, t in report.unreadable.items()} == {
        "no_conversation": 3,
        "unknown_role": 1,
        "not_an_object": 1,
    }
    _, report = opened(tmp_path / "x.jsonl", conversation="nothing")
    assert "no value in the column that --column conversation names" in sentence(report)


def test_many_conversations_wait_on_the_disk(tmp_path: Path) -> None:
    rows = [{"c": n % 500, "role": ("user", "bot")[n // 500 % 2], "text": f"text {n}"}
            for n in range(3000)]  # fmt: skip
    found, report = opened(in_lines(tmp_path / "x.jsonl", *rows), conversation="c")
    assert len(found) == 500 and report.joined == 2500
    assert [m["content"] for m in found[7].messages] == [f"text {7 + 500 * n}" for n in range(6)]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("{turns: a, conversation: b}", "exclude each other"),
        ("{order: a}", "order needs conversation"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(columns: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load("realm", overrides=[f"corpus.sources=[{{path: x, columns: {columns}}}]"])
