"""One row of a dataset to one conversation, whatever the layout; or a word for what it lacks.

Each known layout is an entry of `LAYOUTS`: how it is recognised, how it is read, an example, and
what of it is not read. The table in the reference is made of these entries, and a test reads every
example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from hubkit.conversation import Conversation, Message, blank, fault
from hubkit.data.readers.exports import (
    add_best_path,
    add_chat_messages,
    add_contents,
    add_mapping,
)
from hubkit.data.readers.json_text import parse_json, parse_python_literal
from hubkit.data.readers.paths import resolve, unread_in
from hubkit.data.readers.rules import (
    Draft,
    ReadingRules,
    Unreadable,
    clean_text,
    has_text,
    keys_of,
)
from hubkit.data.readers.transcripts import turns_in
from hubkit.data.readers.trims import trim
from hubkit.data.readers.turns import (
    PAIR_KEYS,
    add_content,
    add_thoughts,
    add_turn,
    is_turn,
    looks_like_turn,
    pair_in,
    several_conversations,
    to_json,
)
from hubkit.untrusted import JsonObject

TURN_LISTS = (
    "messages", "conversations", "conversation", "items", "dialog", "dialogue", "turns", "chat",
)  # fmt: skip
IDS = ("id", "conversation_id", "conversation_hash", "prompt_id", "uuid", "message_tree_id")
_SYSTEM_KEYS = ("system", "system_prompt", "meta_instruction", "systemPrompt")
_TOOL_KEYS = ("tools", "functions")
_MEDIA_KEYS = frozenset(("image", "images", "video", "videos", "audio", "audios"))
_TRANSCRIPT_KEYS = ("text", "transcript", "plain_text", "input", *TURN_LISTS)
_ALPACA = (("instruction", "output"), ("instruction", "response"))
_CONTEXT_KEYS = ("input", "context")
_NO_RULES = ReadingRules()


class Reading(NamedTuple):
    """A conversation, and what reading it has changed or left out."""

    conversation: Conversation
    draft: Draft


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay a conversation out in a row. `read` gives False where the row is laid out
    another way after all.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Draft], bool | None]
    example: Mapping[str, Any]
    text: str
    not_read: str = "other columns"


def read_row(
    row: Any,
    source: str,
    position: str,
    rules: ReadingRules = _NO_RULES,
    *,
    label: str | None = None,
    turns: Sequence[JsonObject] | None = None,
) -> Reading:
    """Read the conversation that `row` holds.

    Args:
        row: The row's value.
        source: Where it came from, for `Conversation.source`.
        position: Names the row ("file:17") where it has no id.
        rules: What the recipe says about columns, roles and parts.
        label: The row's key in an object of rows; its id, where it has no other.
        turns: The turns of the conversation `label`, which had a row each; `row` holds what these
            had in common.

    Returns:
        The conversation, whose meta holds ``group`` (rows that no split may tear apart share it),
        ``is_start`` (it begins with a person's turn) and ``tools``; and what was changed.

    Raises:
        Unreadable: The row holds no conversation."""
    bare = isinstance(row, list) and bool(row) and all(map(looks_like_turn, row))
    if bare:
        if several_conversations(row):
            raise Unreadable("list_of_turns_of_several_conversations", keys_of(row[0]))
        row = {"messages": row}
    if not isinstance(row, dict):
        raise Unreadable("not_an_object")
    draft = Draft(rules)
    if turns is None:
        _read_layout(row, draft)
    else:
        for turn in turns:
            add_turn(turn, draft)
    if draft.thoughts:
        add_thoughts(draft)
    if (media := row.keys() & _MEDIA_KEYS) and any(row[key] for key in media):
        raise Unreadable("turn_not_text")
    if (
        "label" in row
        and _says_no(row["label"])
        and (turns or draft.used & {*TURN_LISTS, "prompt"})
    ):
        raise Unreadable("labelled_undesirable")
    _add_system(row, draft)
    messages = trim(draft)
    if bare and (fault(messages, first=None) or "repeated_turns_merged" in draft.notes):
        raise Unreadable("list_of_turns_of_several_conversations")
    own_id = id_of(row) if turns is None else None
    identity = own_id or (clean_text(label) if label else None)
    name = identity or f"{position}-{_digest(messages)}"
    first = next((m["role"] for m in messages if m["role"] != "system"), None)
    meta: JsonObject = {"group": name, "is_start": first == "user"}
    if rules.tools == "keep" and (tools := _tools(row, draft)):
        meta["tools"] = tools
    return Reading(Conversation(name, messages, source, meta), draft)


def _says_no(label: Any) -> bool:
    """Whether a label says that a row is undesirable, in JSON or in a table's words."""
    return label is False or (isinstance(label, str) and label.lower() == "false")


def unread_columns(row: Mapping[str, Any], draft: Draft) -> list[str]:
    """Name the columns of `row` that hold text and were not read; of those of which a part was
    read, the other parts.
    """
    names = row.keys() - draft.used - _labels(row, IDS)
    if not draft.used_inside:
        return [str(name) for name in names if has_text(row[name])] if names else []
    paths = draft.used_inside
    return [column for name in names for column in unread_in(row[name], paths, (str(name),))]


def _labels(row: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Those of `names` that name the row: not where turns or other values may stand inside."""
    return {name for name in names if not isinstance(row.get(name), list | dict)}


def id_of(row: Any) -> str | None:
    """The row's own id, where it has one that says something."""
    if isinstance(row, dict):
        for key in IDS:
            value = row.get(key)
            if (isinstance(value, str) and value.strip()) or (
                isinstance(value, int) and not isinstance(value, bool)
            ):
                return clean_text(str(value))
    return None


def holds_turns(row: Any) -> bool:
    """Whether `row` has the shape of a conversation, or of one message of a tree: what a piece of
    one has not.
    """
    if not isinstance(row, dict):
        return False
    lists = any(isinstance(row.get(key), list) for key in _LISTS)
    trees = isinstance(row.get("prompt"), dict) or isinstance(row.get("mapping"), dict)
    return lists or trees or "message_tree_id" in row


_LISTS = (*TURN_LISTS, "data", "chat_messages", "contents")


def is_row(value: Any) -> bool:
    """Whether `value` looks like a row of a known layout, and not like a turn."""
    if not isinstance(value, dict) or is_turn(value):
        return False
    return any(layout.matches(value) for layout in LAYOUTS[:-1])  # any text may be a transcript


def _read_layout(row: Mapping[str, Any], draft: Draft) -> None:
    rules = draft.rules
    if rules.turns:
        keys, turns = resolve(row, rules.turns)
        if not keys:
            raise Unreadable("no_turns_key", keys_of(row))
        draft.use(keys)
        if _add_turns(turns, draft) is False:
            raise Unreadable("turns_not_a_list", keys_of(row))
        return
    if not (row.keys() & _BEFORE_TURN_LISTS):  # nearly all
        for key in TURN_LISTS:
            if type(turns := row.get(key)) is list and turns:
                draft.used.add(key)
                _add_turns(turns, draft)
                return
    for layout in LAYOUTS:
        if layout.matches(row) and layout.read(row, draft) is not False:
            return
        if draft.messages:
            draft.messages.clear()
    raise Unreadable("no_turns_key", keys_of(row))


_BEFORE_TURN_LISTS = frozenset(("mapping", "chat_messages", "chosen"))


def _turns_key(row: Mapping[str, Any]) -> str | None:
    """The first turn list that is not empty, else the first that there is."""
    keys = [key for key in TURN_LISTS if isinstance(row.get(key), list | dict | str)]
    return next((key for key in keys if row[key]), keys[0] if keys else None)


def _read_turn_list(row: Mapping[str, Any], draft: Draft) -> bool | None:
    key = _turns_key(row)
    if key is None or _add_turns(row[key], draft) is False:
        return False
    draft.used.add(key)
    chosen = row.get("chosen")
    if isinstance(chosen, dict) and "rejected" in row:
        add_turn(chosen, draft)
        draft.used.add("chosen")
    return None


def _add_turns(turns: Any, draft: Draft) -> bool | None:
    """Append a list of turns in any spelling: objects, texts that take turns, pairs, columns, JSON
    text, a transcript. False where it is none of these.
    """
    if isinstance(turns, str):
        value, reason = parse_json(turns.encode("utf-8", "replace"))
        if reason is not None:
            value = parse_python_literal(turns)
        if isinstance(value, list | dict):
            return _add_turns(value, draft)
        return _add_transcript(turns, draft)
    if isinstance(turns, dict):
        return _add_turn_columns(turns, draft)
    if not isinstance(turns, list):
        return False
    if turns and all(isinstance(turn, list | tuple) for turn in turns):
        turns = [text for pair in turns for text in pair]
    if turns and all(isinstance(turn, str) for turn in turns):
        for index, text in enumerate(turns):
            add_content("assistant" if index % 2 else "user", text, draft)
        return None
    for turn in turns:
        add_turn(turn, draft)
    return None


def _add_turn_columns(columns: Mapping[str, Any], draft: Draft) -> bool | None:
    """Append turns of which each key holds a list: ``{"role": […], "content": […]}``."""
    lists = {key: value for key, value in columns.items() if isinstance(value, list)}
    if len({len(value) for value in lists.values()}) != 1 or len(lists) != len(columns):
        return False
    for values in zip(*lists.values(), strict=True):
        add_turn(dict(zip(lists, values, strict=True)), draft)
    return None


def _add_transcript(text: str, draft: Draft) -> bool | None:
    transcript = turns_in(text)
    if transcript is None:
        return False
    header, turns = transcript
    if header:
        draft.unread_fields["text before the first turn"] += 1
    while turns and not turns[-1]["content"]:
        turns.pop()
    for turn in turns:
        draft.add({"role": turn["role"], "content": clean_text(turn["content"])})
    return None


def _read_flat(row: Mapping[str, Any], draft: Draft) -> bool | None:
    draft.used.add("data")
    texts = row["data"]
    if any(not isinstance(text, str | dict) for text in texts):
        raise Unreadable("turn_not_text")
    if several_conversations(texts):
        raise Unreadable("list_of_turns_of_several_conversations", keys_of(texts[0]))
    return _add_turns(texts, draft)


def _read_mapping(row: Mapping[str, Any], draft: Draft) -> bool | None:
    nodes = row["mapping"].values()
    if not all(isinstance(n, dict) and {"message", "children"} & n.keys() for n in nodes):
        return False
    draft.used |= {"mapping", *_labels(row, ("current_node", "title"))}
    add_mapping(row, draft)
    return None


def _read_chat_messages(row: Mapping[str, Any], draft: Draft) -> None:
    draft.used |= {"chat_messages", *_labels(row, ("name",))}
    add_chat_messages(row, draft)


def _read_contents(row: Mapping[str, Any], draft: Draft) -> bool | None:
    if not all(isinstance(turn, dict) and "parts" in turn for turn in row["contents"]):
        return False
    draft.used |= {"contents", *add_contents(row, draft)}
    return None


def _read_tree(row: Mapping[str, Any], draft: Draft) -> None:
    draft.used.add("prompt")
    add_best_path(row["prompt"], draft)


def _read_moss(row: Mapping[str, Any], draft: Draft) -> bool | None:
    for turn in row["chat"].values():
        if not isinstance(turn, dict):
            return False
        for key, value in turn.items():
            text = value if isinstance(value, str) else ""
            text = text.partition("|>:")[2].partition("<eo")[0].strip() if "|>:" in text else text
            if key in ("Human", "MOSS"):
                draft.add(
                    {"role": "user" if key == "Human" else "assistant", "content": clean_text(text)}
                )
            elif has_text(text) and text != "None":
                draft.unread_fields[key] += 1
    draft.used.add("chat")
    return None


def _read_pair(row: Mapping[str, Any], draft: Draft) -> bool | None:
    pair = pair_in(row)
    if pair is None:
        return False
    question, answer = row[pair[0]], row[pair[1]]
    if isinstance(history := row.get("history"), list):
        _add_turns(history, draft)
        draft.used.add("history")
    if pair in _ALPACA:
        for key in _CONTEXT_KEYS:
            if isinstance(text := row.get(key), str) and isinstance(question, str):
                question = f"{question}\n{text}" if text.strip() else question
                draft.used.add(key)
    _add_side("user", question, draft)
    _add_side("assistant", answer, draft)
    if pair == ("input", "output") and isinstance(answer, list):  # OpenAI's Responses
        if isinstance(text := row.get("instructions"), str) and not blank(text):
            draft.messages.insert(0, {"role": "system", "content": clean_text(text)})
            draft.thoughts = {at + 1: thought for at, thought in (draft.thoughts or {}).items()}
            draft.missing = {at + 1 for at in draft.missing}
        draft.used.add("instructions")
    draft.used |= {*pair}
    return None


def _add_side(seat: Any, value: Any, draft: Draft) -> None:
    """Append one side of a pair: text, or a list of turns."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        for turn in value:
            add_turn(turn, draft)
    else:
        add_content(seat, value, draft)
        if value is None:
            draft.missing.add(len(draft.messages) - 1)


def _read_preference(row: Mapping[str, Any], draft: Draft) -> bool | None:
    prompt, chosen = row.get("prompt"), row["chosen"]
    if isinstance(chosen, str) and _add_transcript(chosen, draft) is None:
        draft.used |= {"chosen"}
        return None
    if isinstance(chosen, list) and chosen and is_turn(chosen[0]):
        first = chosen[0]
        whole = any(turn == first for turn in prompt) if isinstance(prompt, list) else True
        if isinstance(prompt, list) and not whole:
            _add_turns(prompt, draft)
        elif len(chosen) == 1 and isinstance(prompt, str):
            add_content("user", prompt, draft)
        _add_turns(chosen, draft)
        words = {m["content"] for m in draft.messages}
        draft.used |= {"chosen"} | (
            {"prompt"} if isinstance(prompt, list) or prompt in words else set()
        )
        return None
    if isinstance(prompt, str | list) and isinstance(chosen, str):
        _add_side("user", prompt, draft)
        add_content("assistant", chosen, draft)
        draft.used |= {"prompt", "chosen"}
        return None
    return False


def _read_transcript(row: Mapping[str, Any], draft: Draft) -> bool | None:
    for key in _TRANSCRIPT_KEYS:
        if isinstance(text := row.get(key), str) and _add_transcript(text, draft) is None:
            draft.used.add(key)
            return None
    return False


def _add_system(row: Mapping[str, Any], draft: Draft) -> None:
    """Put the text of a system column in front; a system turn that says the same is no second
    one.
    """
    for key in (draft.rules.system,) if draft.rules.system else _SYSTEM_KEYS:
        keys, text = resolve(row, key) if draft.rules.system else ((key,), row.get(key))
        if isinstance(text, str):
            draft.use(keys)
            text = clean_text(text).strip()
            heads = [m["content"].strip() for m in draft.messages if m["role"] == "system"]
            if not text or text in heads:
                continue
            draft.messages.insert(0, {"role": "system", "content": text})
            draft.missing = {index + 1 for index in draft.missing}
            draft.note("system_column_first")


def _tools(row: Mapping[str, Any], draft: Draft) -> str | None:
    """The descriptions of the tools, as JSON text."""
    for key in _TOOL_KEYS:
        value = row.get(key)
        if isinstance(value, str):
            value, reason = parse_json(value.encode("utf-8", "replace"))
            if reason:
                continue
        if value and isinstance(value, list | dict):
            draft.used.add(key)
            return clean_text(to_json(value))
    return None


def _digest(messages: Sequence[Message]) -> str:
    joined = "\x1e".join(message["content"] for message in messages)
    return blake2b(joined.encode(), digest_size=6).hexdigest()


_Q, _A = "What is a sextant?", "An instrument for angles."
_TURNS = [{"role": "user", "content": _Q}, {"role": "assistant", "content": _A}]
_SHAREGPT = [{"from": "human", "value": _Q}, {"from": "gpt", "value": _A}]


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(row.get(key) is not None for key in keys)


def _is(key: str, kind: Any) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: isinstance(row.get(key), kind)


LAYOUTS = (
    Layout(
        "ChatGPT's export", _is("mapping", dict), _read_mapping,
        {"current_node": "b", "mapping": {
            "a": {"message": {"author": {"role": "user"}, "content": {"parts": [_Q]}}},
            "b": {"parent": "a", "message": {"author": {"role": "assistant"},
                                             "content": {"parts": [_A]}}}}},
        "the path that ends at `current_node`; thoughts as thinking",
        "other branches, hidden, system and tool nodes, titles",
    ),
    Layout(
        "Claude's export", _is("chat_messages", list), _read_chat_messages,
        {"chat_messages": [{"sender": "human", "text": _Q}, {"sender": "assistant", "text": _A}]},
        "`sender`, `text`, else `content`", "attachments, names",
    ),
    Layout(
        "MOSS", _is("chat", dict), _read_moss,
        {"chat": {"turn_1": {"Human": f"<|Human|>: {_Q}<eoh>\n",
                             "MOSS": f"<|MOSS|>: {_A}<eom>\n"}}},
        "`Human` and `MOSS`; `meta_instruction` as the system message",
        "inner thoughts, commands, tool responses",
    ),
    Layout(
        "list of turns", lambda row: _turns_key(row) is not None, _read_turn_list,
        {"messages": _TURNS},
        "one of " + ", ".join(f"`{key}`" for key in TURN_LISTS) + ": turns with a role ("
        "`from`, `role`, `author`, `speaker`, `sender`, `is_user`, `is_human`) and a text ("
        "`content`, `markdown`, `value`, `text`, `message`, `mes`, `utterance`, `body`; a string or"
        " content parts), question-and-answer pairs, texts that take turns, lists by key, or all of"
        " it as JSON text or Python's; LLaMA-Factory's `chosen` as the last answer",
        "images, sound and video: such a row is not read",
    ),
    Layout(
        "Gemini's tuning data", _is("contents", list), _read_contents,
        {"contents": [{"role": "user", "parts": [{"text": _Q}]},
                      {"role": "model", "parts": [{"text": _A}]}]},
        "`contents` with `role` and `parts`: text, thoughts, `functionCall`, `functionResponse`;"
        " `systemInstruction` or `system_instruction` first",
        "files and other parts that are no text: such a row is not read",
    ),
    Layout(
        "chosen / rejected", _has("chosen"), _read_preference,
        {"prompt": _Q, "chosen": _A, "rejected": "A fish."},
        "`prompt` and `chosen`: texts, lists of turns, or transcripts", "`rejected`",
    ),
    Layout(
        "texts that take turns", _is("data", list), _read_flat, {"data": [_Q, _A]},
        "`data`, the person first",
    ),
    Layout(
        "tree of replies", _is("prompt", dict), _read_tree,
        {"prompt": {"role": "prompter", "text": _Q, "replies": [
            {"role": "assistant", "text": _A, "rank": 0}]}},
        "the replies that people ranked first", "other replies, labels",
    ),
    Layout(
        "question and answer", lambda row: pair_in(row) is not None, _read_pair,
        {"instruction": "What is", "input": "a sextant?", "output": _A, "history": []},
        "one of " + ", ".join(f"`{a}` / `{b}`" for a, b in PAIR_KEYS) + ": texts or lists of turns;"
        " after an `instruction` also `input` or `context`; `history` before it; `input` and"
        " `output` of OpenAI's Responses, with `instructions`, reasoning, tool calls and results",
    ),
    Layout(
        "transcript", lambda row: any(isinstance(row.get(k), str) for k in _TRANSCRIPT_KEYS),
        _read_transcript, {"text": f"Human: {_Q}\n\nAssistant: {_A}"},
        "one of " + ", ".join(f"`{key}`" for key in _TRANSCRIPT_KEYS[:4]) + " in which marks"
        " name who speaks", "text before the first mark",
    ),
)  # fmt: skip

PLACES = (
    ("JSON array", "every element", "elements that are no row"),
    ("JSON Lines", "every line, also with a comma after it; a line may be a list of turns", ""),
    ("JSON objects one after another", "each, over any number of lines", ""),
    ("object around the rows", "rows by name, in lists, or column by column as pandas writes them",
     "other values around the rows"),
    ("parquet, Arrow stream, Arrow file", "every row", "a broken row or page"),
    ("CSV, TSV, by `.csv` or `.tsv`", "every row, as a mapping of the columns that the first line"
     " names; commas, semicolons, tabs or bars; quoted cells, also with line ends",
     "rows of more or fewer cells, of broken quotes, or over 16 MiB"),
    ("gzip, zstd",
     "the JSON, table or tar archive inside; up to 1 GiB or 200 times the packed size",
     "containers inside"),
    ("tar, packed or not", "the members that a folder's files would be",
     "hidden and other members"),
    ("a message a row", "message trees by `message_tree_id`; chat logs of `is_user` and `mes`",
     "orphans and doubles; hidden lines"),
    ("a turn a row", "where `--column conversation=NAME` or `columns:` name the column that says"
     " which rows are one conversation: in their order, or that of the column `order`",
     "rows without a value in it"),
    ("columns of its own", "`--column KIND=NAME` or `columns:`, for turns, role, text, system and"
     " person: names, or paths of keys (`thread.posts`, `author.role`, `choices.0.text`)", ""),
    ("text", "UTF-8, UTF-16 and UTF-32 with a mark, or `encoding:`; NaN, Infinity, trailing commas",
     "other encodings, with the likely one"),
)  # fmt: skip
"""Containers, what is read of each, and what is not."""
