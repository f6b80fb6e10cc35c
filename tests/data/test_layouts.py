"""Layouts: each known one is read as it stands, and what is not read is named and counted."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from hubkit.conversation import Conversation
from hubkit.data.corpus import FileReport, SourceFile, build, read
from hubkit.data.readers import containers
from hubkit.data.readers.files import select_files
from hubkit.data.readers.layouts import LAYOUTS
from hubkit.data.readers.rules import ReadingRules
from hubkit.data.readers.table import layout_tables
from hubkit.errors import RecipeError, SourceError
from hubkit.recipe import Corpus, load

Q, A, Q2, A2 = "What is a sextant?", "An instrument.", "Who made it?", "Several people."
TURNS = [("user", Q), ("assistant", A), ("user", Q2), ("assistant", A2)]


def opened(
    tmp_path: Path, *rows: Any, rules: ReadingRules | None = None
) -> tuple[list[Conversation], FileReport]:
    """What a JSON Lines file of `rows` is read as."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = FileReport(path.name, "", 0)
    return list(read(path, report=report, rules=rules)), report


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in conversation.messages]


def openai(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


HH = f"\n\nHuman: {Q}\n\nAssistant: {A}\n\nHuman: {Q2}\n\nAssistant: {A2}"
BAIZE = (
    "The conversation between human and AI assistant.\n"
    f"[|Human|] {Q}\n[|AI|] {A}\n[|Human|] {Q2}\n[|AI|] {A2}\n[|Human|] "
)
MOSS = {
    "meta_instruction": "",
    "chat": {
        f"turn_{n}": {
            "Human": f"<|Human|>: {q}<eoh>\n",
            "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
            "MOSS": f"<|MOSS|>: {a}<eom>\n",
        }
        for n, (q, a) in enumerate(((Q, A), (Q2, A2)), 1)
    },
}
FOUR_TURNS = {
    "alpaca with history": {"instruction": Q2, "input": "", "output": A2, "history": [[Q, A]]},
    "baize": {"topic": "", "input": BAIZE},
    "moss": MOSS,
    "moss, plain text": {"plain_text": f"[Human]: {Q}<eoh> [MOSS]: {A}<eoa> [Human]: {Q2}<eoh> "
                         f"[MOSS]: {A2}<eoa>"},
    "hh-rlhf": {"chosen": HH, "rejected": ""},
    "firefly": {"conversation": [{"human": Q, "assistant": A}, {"human": Q2, "assistant": A2}]},
    "capybara": {"conversation": [{"input": Q, "output": A}, {"input": Q2, "output": A2}]},
    "pippa": {"conversation": [{"message": t, "is_human": r == "user"} for r, t in TURNS]},
    "chatml": {"text": "".join(f"<|im_start|>{r}\n{t}<|im_end|>\n" for r, t in TURNS)},
    "guanaco": {"text": f"### Human: {Q}### Assistant: {A}### Human: {Q2}### Assistant: {A2}"},
    "dpo, sharegpt": {
        "conversations": [{"from": "human" if r == "user" else "gpt", "value": t}
                          for r, t in TURNS[:3]],
        "chosen": {"from": "gpt", "value": A2}, "rejected": {"from": "gpt", "value": ""}},
    "dpo, messages": {"prompt": Q, "chosen": openai(Q, A, Q2, A2), "rejected": []},
    "dpo, prompt of turns": {"prompt": openai(Q, A, Q2), "chosen": openai(Q2, A2)[1:]},
    "kto": {"messages": openai(Q, A, Q2, A2), "label": True},
    "prompt and completion": {"prompt": openai(Q, A, Q2), "completion": openai(Q, A2)[1:]},
    "texts": {"messages": [Q, A, Q2, A2]},
    "pairs": {"conversation": [[Q, A], [Q2, A2]]},
    "columns": {"messages": {"role": ["user", "assistant"] * 2, "content": [Q, A, Q2, A2]}},
    "json text": {"messages": json.dumps(openai(Q, A, Q2, A2))},
    "a transcript in a turn list": {"conversation": HH},
    "claude": {"chat_messages": [{"sender": "human" if r == "user" else r, "text": t,
                                  "content": [{"type": "text", "text": t}]} for r, t in TURNS]},
    "claude, content only": {"chat_messages": [
        {"sender": "human" if r == "user" else r, "text": "",
         "content": [{"type": "text", "text": t}]} for r, t in TURNS]},
    "blank first spelling": {"messages": [], "conversations": openai(Q, A, Q2, A2)},
    "blank key of a turn": {"messages": [{"from": "", "role": r, "value": "", "content": t}
                                         for r, t in TURNS]},
    "a list of turns": openai(Q, A, Q2, A2),
    "author": {"messages": [{"author": {"role": r}, "content": {"parts": None, "text": t}}
                            for r, t in TURNS]},
    "gemini": {"contents": [{"role": "model" if r == "assistant" else r, "parts": [{"text": t}]}
                            for r, t in TURNS]},
    "responses": {"input": [{"role": r, "content": [{"type": "input_text", "text": t}]}
                            for r, t in TURNS[:3]],
                  "output": [{"type": "reasoning", "summary": []},
                             {"type": "message", "role": "assistant",
                              "content": [{"type": "output_text", "text": A2}]}]},
    "python's text": {"messages": repr(openai(Q, A, Q2, A2))},
    "numpy's text": {"messages": repr(openai(Q, A, Q2, A2)).replace("}, {", "}\n {")},
    "input and output parts": {"messages": [
        {"role": r, "content": [{"type": "input_text" if r == "user" else "output_text",
                                 "text": t}]} for r, t in TURNS]},
}  # fmt: skip


@pytest.mark.parametrize("name", FOUR_TURNS)
def test_layouts_of_known_projects(tmp_path: Path, name: str) -> None:
    (conversation,), report = opened(tmp_path, FOUR_TURNS[name])
    assert turns(conversation) == TURNS
    assert not report.unread_fields.keys() - {"text before the first turn"}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_each_entry_of_the_table_reads_its_example(tmp_path: Path, layout: Any) -> None:
    (conversation,), _ = opened(tmp_path, layout.example)
    (_, question), (seat, answer) = turns(conversation)
    assert question.split() == ["What", "is", "a", "sextant?"] and seat == "assistant" and answer
    assert any(line.startswith(f"| {layout.name} |") for line in layout_tables())


def test_alpaca_without_history(tmp_path: Path) -> None:
    rows = [{"instruction": "Translate.", "input": "Bonjour", "output": "Hello", "system": "Be."}]
    (conversation,), report = opened(tmp_path, *rows)
    assert turns(conversation)[1:] == [("user", "Translate.\nBonjour"), ("assistant", "Hello")]
    assert turns(conversation)[0] == ("system", "Be.") and not report.unread_columns


def test_a_chat_log_is_one_conversation_a_header(tmp_path: Path) -> None:
    header = {"user_name": "You", "character_name": "Bot", "chat_metadata": {}}
    lines = [{"name": "x", "is_user": r == "user", "mes": t} for r, t in TURNS]
    hidden = {"name": "x", "is_user": False, "is_system": True, "mes": "Chat starts."}
    found, report = opened(tmp_path, header, hidden, *lines, header, *lines[:2])
    assert [turns(c) for c in found] == [TURNS, TURNS[:2]]
    assert (report.rows, report.joined) == (9, 7)
    assert report.unread_columns["hidden lines"] == 1


CALL = {"name": "look", "arguments": {"at": "sky"}}
ARGUMENTS = '{"at": "sky"}'


@pytest.mark.parametrize(
    "messages",
    [
        [{"from": "function_call", "value": json.dumps(CALL)},
         {"from": "observation", "value": "42"}],
        [{"role": "assistant", "content": "", "function_call": {**CALL, "arguments": ARGUMENTS}},
         {"role": "function", "name": "look", "content": "42"}],
        [{"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "look",
                                            "input": {"at": "sky"}}]},
         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c",
                                       "content": [{"type": "text", "text": "42"}]}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "c",
                                                                "function": CALL}]},
         {"role": "tool", "content": "42", "tool_call_id": "c"}],
        [{"type": "function_call", "call_id": "c", "name": "look", "arguments": ARGUMENTS},
         {"type": "function_call_output", "call_id": "c", "output": "42"}],
    ],
)  # fmt: skip
def test_tool_calls_in_every_spelling(tmp_path: Path, messages: list[dict[str, Any]]) -> None:
    start, end = {"role": "user", "content": Q}, {"role": "assistant", "content": A}
    tools = [{"type": "function", "function": {"name": "look"}}]
    row = {"messages": [start, *messages, end], "tools": json.dumps(tools)}
    (conversation,), report = opened(tmp_path, row)
    _, call, result, answer = conversation.messages
    assert call["tool_calls"][0]["function"] == {"name": "look", "arguments": ARGUMENTS}
    assert (result["role"], result["content"]) == ("tool", "42") and answer["content"] == A
    assert json.loads(conversation.meta["tools"]) == tools
    assert not report.unread_columns and not report.unread_fields


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": A, "reasoning_content": "Hm."},
        {"role": "assistant", "content": A, "thinking": "Hm."},
        {"role": "assistant", "content": f"<think>\nHm.\n</think>\n\n{A}"},
        {"role": "assistant", "content": f"Hm.\n</think>\n{A}"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."},
                                          {"type": "text", "text": A}]},
    ],
)  # fmt: skip
def test_thinking_in_every_spelling(tmp_path: Path, answer: dict[str, Any]) -> None:
    (conversation,), report = opened(
        tmp_path, {"messages": [{"role": "user", "content": Q}, answer]}
    )
    assert conversation.messages[1] == {"role": "assistant", "content": A, "thinking": "Hm."}
    assert report.notes["has_thinking"].count == 1


@pytest.mark.parametrize("key", ["weight", "loss_weight", "train", "training", "loss"])
def test_loss_flags_in_every_spelling(tmp_path: Path, key: str) -> None:
    row = [{**m, key: i > 1} for i, m in enumerate(openai(Q, A, Q2, A2))]
    (conversation,), _ = opened(tmp_path, {"messages": row})
    assert [m["train"] for m in conversation.messages] == [False, False, True, True]


def test_undesirable_rows_and_pictures_are_counted(tmp_path: Path) -> None:
    bad = {"messages": openai(Q, A), "label": False}
    picture = {"messages": openai(f"<image>{Q}", A), "images": ["x.png"]}
    part = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}
    found, report = opened(tmp_path, bad, picture, part, {"messages": openai(Q, A)})
    assert len(found) == 1
    assert {r: t.count for r, t in report.unreadable.items()} == {
        "labelled_undesirable": 1,
        "turn_not_text": 2,
    }


@pytest.mark.parametrize(
    "value",
    [
        {"data": [{"messages": openai(Q, A)}] * 3, "version": 1},
        {"train": [{"messages": openai(Q, A)}] * 2, "test": [{"messages": openai(Q, A)}]},
        {str(n): {"conversations": openai(Q, A)} for n in range(3)},
        {"a": {"b": {"rows": [{"messages": openai(Q, A)}] * 3}}},
        {"id": {"0": "a", "1": "b", "2": "c"}, "messages": dict.fromkeys("012", openai(Q, A))},
        {"columns": ["messages"], "index": [0, 1, 2], "data": [[openai(Q, A)]] * 3},
        {"schema": {"fields": []}, "data": [{"index": n, "messages": openai(Q, A)} for n in "012"]},
        {"data": [{"instruction": Q, "output": A}] * 3},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_objects_around_the_rows(tmp_path: Path, value: Any, indent: int | None) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value, indent=indent))
    report = FileReport(path.name, "", 0)
    found = list(read(path, report=report))
    assert [turns(c) for c in found] == [TURNS[:2]] * 3 and not report.unreadable
    assert report.rows == 3


def test_an_object_around_many_rows_streams_and_heals(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "messages": openai(f"{Q} {n} {'x' * 500}", A)} for n in range(3000)]
    text = json.dumps({"version": 1, "data": rows, "more": rows[:2]})
    path = tmp_path / "x.json"
    path.write_text(text)
    report = FileReport(path.name, "", 0)
    assert sum(1 for _ in read(path, report=report)) == 3002 and not report.unreadable
    at = text.index('"r1500"')
    path.write_text(text[:at] + text[at + 9 :])
    report = FileReport(path.name, "", 0)
    found = [c.id for c in read(path, report=report)]
    assert len(found) == 3001 and "r1500" not in found and report.rows == 3002


def test_names_and_roles_of_its_own(tmp_path: Path) -> None:
    row = {"rows": [{"w": "Caller", "t": Q}, {"w": "Desk", "t": A}], "setting": "Be brief."}
    _, report = opened(tmp_path, row)
    assert report.unknown_keys == {"rows, setting": 1}
    rules = ReadingRules(turns="rows", role="w", text="t", system="setting")
    _, report = opened(tmp_path, row, rules=rules)
    assert report.unknown_roles == {"caller": 1}
    block = Corpus.model_validate(
        {
            "sources": [
                {
                    "path": "x.jsonl",
                    "columns": {"turns": "rows", "role": "w", "text": "t", "system": "setting"},
                    "roles": {"Caller:": "user", "DESK": "assistant"},
                }
            ],
            "openings": 1,
            "test": 1,
        }
    )
    build(block, [tmp_path / "x.jsonl"], tmp_path / "out", seed=1, few=True)
    (table,) = (tmp_path / "out" / "data").glob("train-*")
    (stored,) = pq.read_table(table).to_pylist()
    assert [m["content"] for m in stored["messages"]] == ["Be brief.", Q, A]


@pytest.mark.parametrize("key", ["systemInstruction", "system_instruction"])
def test_what_gemini_is_told_and_calls(tmp_path: Path, key: str) -> None:
    contents = [
        {"role": "user", "parts": [{"text": Q}]},
        {"role": "model", "parts": [{"text": "Hm.", "thought": True},
                                    {"functionCall": {"name": "look", "args": {"at": "sky"}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"n": 1}}}]},
        {"role": "model", "parts": [{"text": A}]},
    ]  # fmt: skip
    row = {key: {"parts": [{"text": "Be brief."}]}, "contents": contents}
    (conversation,), report = opened(tmp_path, row)
    assert [m["role"] for m in conversation.messages] == [
        "system", "user", "assistant", "tool", "assistant"
    ]  # fmt: skip
    system, _, call, result, _ = conversation.messages
    assert (system["content"], call["thinking"], result["content"]) == (
        "Be brief.",
        "Hm.",
        '{"n": 1}',
    )
    assert call["tool_calls"][0]["function"] == {"name": "look", "arguments": ARGUMENTS}
    assert not report.unread_columns and not report.unread_fields
    picture = {"contents": [{"role": "user", "parts": [{"fileData": {"fileUri": "gs://x"}}]}]}
    _, report = opened(tmp_path, picture)
    assert report.unreadable["turn_not_text"].count == 1


def test_responses_carry_instructions_and_reasoning(tmp_path: Path) -> None:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": A}]},
    ]
    row = {"input": Q, "output": output, "instructions": "Be brief."}
    (conversation,), report = opened(tmp_path, row)
    assert turns(conversation) == [("system", "Be brief."), ("user", Q), ("assistant", A)]
    assert conversation.messages[2]["thinking"] == "Hm." and not report.unread_columns


def test_an_encoding_that_python_does_not_have_is_refused() -> None:
    with pytest.raises(RecipeError, match="no text encoding 'klingon'"):
        load("realm", overrides=["corpus.sources=[{path: x, encoding: klingon}]"])


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    Dataset.from_list([{"messages": openai(Q, A)}] * 5).save_to_disk(str(tmp_path / "saved"))
    (stream,) = (tmp_path / "saved").glob("*.arrow")
    assert sum(1 for _ in read(stream)) == 5
    table = pa.Table.from_pylist([{"messages": openai(Q, A)}] * 5)
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    assert sum(1 for _ in read(tmp_path / "x.arrow")) == 5
    stream.write_bytes(stream.read_bytes()[:-200])
    report = FileReport("x", "", 0)
    assert sum(1 for _ in read(stream, report=report)) + report.rows >= 1
    assert "broken_arrow" in report.unreadable or report.rows == 5


def packed_tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_members_of_a_tar_archive(tmp_path: Path, pack: Any) -> None:
    line = json.dumps({"messages": openai(Q, A)}).encode() + b"\n"
    inner = packed_tar({"z.jsonl": line})
    members = {"a/x.jsonl": line * 2, "README.md": b"Read me", ".git/x.json": line,
               "b.json.gz": gzip.compress(line), "c.tar": inner}  # fmt: skip
    path = tmp_path / "x.tar"
    path.write_bytes(pack(packed_tar(members)))
    report = FileReport(path.name, "", 0)
    assert len(list(read(path, report=report))) == 3
    assert report.passed_over.keys() == {"README.md", ".git/x.json"}
    assert report.unreadable["nested_container"].count == 1
    path.write_bytes(path.read_bytes()[: 4000 if pack is bytes else 300])
    report = FileReport(path.name, "", 0)
    list(read(path, report=report))
    assert report.unreadable


def test_what_unpacks_without_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "MAX_UNPACKED", 1 << 20)
    path = tmp_path / "x.gz"
    line = json.dumps({"messages": openai(Q, A)}).encode() + b"\n"
    path.write_bytes(gzip.compress(line + b" " * (1 << 26)))
    report = FileReport(path.name, "", 0)
    assert len(list(read(path, report=report))) == 1
    assert report.unreadable["unpacks_without_end"].count == 1
    path.write_bytes(gzip.compress(path.read_bytes()))
    report = FileReport(path.name, "", 0)
    list(read(path, report=report))
    assert list(report.unreadable) == ["nested_container"]


@pytest.mark.parametrize("frame", ["{}\n", "[{}]", '{{"data": [{}]}}'])
def test_numbers_and_nesting_without_end_cost_no_row_but_their_own(
    tmp_path: Path, frame: str
) -> None:
    rows = [json.dumps({"id": f"r{n}", "messages": openai(Q, A)}) for n in range(3)]
    long = rows[1].replace("}]}", '}], "n": ' + "9" * 5000 + "}")
    deep = '{"id": "deep", "messages": ' + "[" * 100_000 + "]" * 100_000 + "}"
    separator = "\n" if frame == "{}\n" else ", "
    path = tmp_path / "x.json"
    path.write_text(frame.format(separator.join([rows[0], long, deep, rows[2]])))
    report = FileReport(path.name, "", 0)
    assert [c.id for c in read(path, report=report)] == ["r0", "r1", "r2"]
    assert (report.rows, sum(t.count for t in report.unreadable.values())) == (4, 1)


def test_a_source_is_called_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"messages": openai(f"{Q} {n}", A)}) + "\n" for n in "012"))
    block = load("parrot").corpus.model_copy(update={"filters": []})
    from hubkit.recipe import Source

    file = SourceFile(path, Source(path=str(path)))
    report = build(block, [file], tmp_path / "out", seed=1, few=True)
    assert report.files[0].source == "mine.jsonl"


def test_everything_dropped_is_an_error_that_names_the_step(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": openai(Q, A)}) + "\n")
    block = Corpus.model_validate(
        {
            "sources": [{"path": "x"}],
            "filters": [{"name": "min_turns", "args": {"human_turns": 2}}],
        }
    )
    from hubkit.errors import StageError

    with pytest.raises(StageError, match=r"min_turns: too_few_turns 1\)"):
        build(block, [path], tmp_path / "out", seed=1, few=True)
    with pytest.raises(SourceError, match="does not exist"):
        build(block, [tmp_path / "gone"], tmp_path / "out", seed=1, few=True)


def test_files_by_name_and_pattern(tmp_path: Path) -> None:
    for name in ("data/a.jsonl", "data/b.jsonl", "c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["c.jsonl", "data/*.jsonl"]
    selected = [p.relative_to(tmp_path).as_posix() for p in select_files(tmp_path, names)]
    assert selected == ["c.jsonl", "data/a.jsonl", "data/b.jsonl"]
    assert select_files(tmp_path, []) == [tmp_path]
    with pytest.raises(SourceError, match="holds no file"):
        select_files(tmp_path, ["*a" * 200 + "b"])
