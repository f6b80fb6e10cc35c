"""One turn of a source's own making to messages: roles, content parts, tools, thinking,
loss flags."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hubkit.conversation import Message, Role, ToolCall
from hubkit.data.readers.json_text import parse_json
from hubkit.data.readers.paths import Keys, resolve, unread_in, value_at
from hubkit.data.readers.rules import TURN, Draft, Unreadable, clean_text, has_text, keys_of
from hubkit.untrusted import JsonObject, number_of

ROLES: dict[str, Role] = {
    **dict.fromkeys(
        ("human", "user", "prompter", "person", "question", "instruction", "usr"), "user"
    ),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "gpt-3.5-turbo", "gpt-4", "gpt4", "bing", "bard", "claude",
         "gemini", "palm", "model", "bot", "ai", "chatbot", "answer", "response", "moss"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "function", "observation", "ipython", "tool_response", "function_response"), "tool"
    ),
}  # fmt: skip
_CALL_ROLES = ("function_call", "tool_call")
ROLE_KEYS = ("from", "role", "author", "speaker", "sender")
SEAT_FLAGS = ("is_user", "is_human", "isUser")
# `markdown` before `value`: an export that has both holds HTML in `value`.
TEXT_KEYS = ("content", "markdown", "value", "text", "message", "mes", "utterance", "body")
THINKING_KEYS = ("thinking", "reasoning_content", "reasoning")
LOSS_KEYS = ("weight", "loss_weight", "loss", "train", "training", "trainable")
_CALL_KEYS = ("tool_calls", "function_call")
_FLAG_KEYS = frozenset((*SEAT_FLAGS, *LOSS_KEYS))
PAIR_KEYS = (
    ("instruction", "output"), ("instruction", "response"), ("human", "assistant"),
    ("user", "assistant"), ("Human", "Assistant"), ("user", "bot"), ("input", "output"),
    ("question", "answer"), ("prompt", "response"), ("query", "response"),
    ("prompt", "completion"),
)  # fmt: skip
_GROUPS = frozenset((
    "conversation", "conversations", "conv", "dialog", "dialogue", "thread", "session", "chat",
    "ticket", "case", "room", "channel", "conversationid", "dialogid", "dialogueid", "threadid",
    "sessionid", "chatid", "ticketid",
))  # fmt: skip
# Keys of what a turn says, which two turns may well have in common.
SPOKEN_KEYS = frozenset((
    *ROLE_KEYS, *SEAT_FLAGS, *TEXT_KEYS, *THINKING_KEYS, *LOSS_KEYS, *_CALL_KEYS, "tool_call_id",
    "name", *(key for pair in PAIR_KEYS for key in pair),
))  # fmt: skip
# Keys of a turn that say nothing that a conversation could hold.
_METADATA = frozenset(("id", "type", "tool_call_id", "message_id", "parent_id", "rank"))
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_THINKING_PARTS = ("thinking", "reasoning", "redacted_thinking")
_CALL_PARTS = ("tool_use", "tool_call", "function_call")
_RESULT_PARTS = ("tool_result", "tool_response")


def is_turn(value: Any) -> bool:
    """Whether `value` says who speaks: what a turn has and a row has not."""
    return isinstance(value, dict) and any(key in value for key in (*ROLE_KEYS, *SEAT_FLAGS))


def looks_like_turn(value: Any) -> bool:
    """Whether `value` names a known role and has a text: a turn, and no row."""
    if not isinstance(value, dict) or not any(key in value for key in TEXT_KEYS):
        return False
    if any(key in value for key in ("id", "conversation_id", "message_id", "message_tree_id")):
        return False  # one message a row, of any number of conversations
    names = [value[key] for key in ROLE_KEYS if isinstance(value.get(key), str)]
    return any(name.strip().rstrip(":").lower() in ROLES for name in names)


def several_conversations(turns: Sequence[Any]) -> bool:
    """Whether a list of turns seems to be of more than one conversation: a column of a name like
    ``thread`` has more than one value.
    """
    names = {key for turn in turns if isinstance(turn, dict) for key in turn if names_group(key)}
    values = ([t.get(name) for t in turns if isinstance(t, dict)] for name in names)
    return any(len({str(value) for value in column if value is not None}) > 1 for column in values)


def names_group(key: str) -> bool:
    """Whether a column's name is one that is usual for what tells conversations apart."""
    return not _GROUPS.isdisjoint(str(key).lower().replace(".", "_").split("_"))


def add_turn(turn: Any, draft: Draft) -> None:
    """Append the messages of one turn to `draft`. Raises `Unreadable`."""
    if not isinstance(turn, dict):
        raise Unreadable("turn_not_an_object")
    if len(turn) == 2 and draft.rules.plain and _add_plain(turn, draft):  # nearly all
        return
    role = role_of(turn, draft)
    if role is None:
        if add_pair(turn, draft) or add_item(turn, draft):
            return
        raise Unreadable("turn_without_role", TURN + keys_of(turn))
    key, content = _text_of(turn, draft)
    _note_unread(turn, key, draft, *(("name",) if ROLES.get(role) == "tool" else ()))
    if role in _CALL_ROLES:
        _add_calls(_calls(content), draft)
        return
    seat = draft.rules.roles.get(role) or ROLES.get(role)
    if seat is None:
        raise Unreadable("unknown_role", role)
    if type(content) is str and not (turn.keys() & _EXTRAS):  # nearly all
        draft.messages.append({"role": seat, "content": clean_text(content)})  # type: ignore[typeddict-item]
        return
    _add_message(seat, content, turn, draft)  # type: ignore[arg-type]


def _add_plain(turn: JsonObject, draft: Draft) -> bool:
    """Append a turn of the two most common spellings, if it is one."""
    role, content = turn.get("from"), turn.get("value")
    if role is None:
        role, content = turn.get("role"), turn.get("content")
    seat = ROLES.get(role) if type(role) is str else None
    if seat is None or type(content) is not str:
        return False
    draft.messages.append({"role": seat, "content": clean_text(content)})
    return True


_EXTRAS = frozenset((*THINKING_KEYS, *LOSS_KEYS, *_CALL_KEYS, "tool_call_id", "name"))


def role_of(turn: Mapping[str, Any], draft: Draft) -> str | None:
    """The name of the role of `turn`, in lower case and without a colon; one that is known, where
    several keys hold one.
    """
    rules = draft.rules
    names = []
    for key in (rules.role,) if rules.role else ROLE_KEYS:
        value = turn.get(key)
        if value is None:
            if not rules.role:
                continue
            value = value_at(turn, key)
        if isinstance(value, dict):  # author: {"role": …}
            value = value.get("role")
        if isinstance(value, str) and (name := value.strip().rstrip(":").strip().lower()):
            if name in rules.roles or name in ROLES or name in _CALL_ROLES:
                return name
            names.append(name)
    for key in SEAT_FLAGS:
        if (flag := _flag(turn.get(key))) is not None:
            return "user" if flag else "assistant"
    return names[0] if names else None


def _flag(value: Any) -> bool | None:
    """Whether `value` says yes or no: a table in text has words for it."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def add_pair(turn: Mapping[str, Any], draft: Draft) -> bool:
    """Append a turn that holds a question and its answer, if it does."""
    pair = pair_in(turn)
    if pair is None:
        return False
    for key, role in zip(pair, ("user", "assistant"), strict=True):
        _add_message(role, turn[key], {}, draft)  # type: ignore[arg-type]
    _note_unread(turn, pair[0], draft, *pair)
    return True


def pair_in(value: Mapping[str, Any]) -> tuple[str, str] | None:
    """The keys of a question and its answer in `value`, if it has such a pair."""
    for pair in PAIR_KEYS:
        if pair[0] in value and pair[1] in value:
            return pair
    return None


def add_item(item: Mapping[str, Any], draft: Draft) -> bool:
    """Append an item of OpenAI's Responses that is no message (thinking, a tool's call, its
    result), if it is one. Raises `Unreadable`.
    """
    kind = item.get("type")
    if kind == "reasoning":
        texts = [t for k in ("summary", "content") for t in _texts_in(item.get(k))]
        at, before = len(draft.messages), draft.thoughts or {}
        if thoughts := [t for t in (before.get(at), *texts) if t and t.strip()]:
            draft.thoughts = {**before, at: "\n\n".join(thoughts)}
    elif kind == "function_call":
        (call,) = _calls(dict(item))
        if isinstance(item.get("call_id"), str):
            call["id"] = clean_text(item["call_id"])
        last = draft.messages[-1] if draft.messages else None
        if last and "tool_calls" in last and not last["content"]:
            last["tool_calls"].append(call)
        else:
            draft.add({"role": "assistant", "content": "", "tool_calls": [call]})
    elif kind == "function_call_output":
        parts = _Parts()
        parts.read(item.get("output"))
        result: Message = {"role": "tool", "content": clean_text("\n".join(parts.texts))}
        if isinstance(item.get("call_id"), str):
            result["tool_call_id"] = clean_text(item["call_id"])
        draft.add(result)
    else:
        return False
    _note_unread(item, None, draft, *_ITEM_KEYS[kind])
    return True


_ITEM_KEYS = {
    "reasoning": ("summary", "content"),
    "function_call": ("name", "arguments", "call_id"),
    "function_call_output": ("output", "call_id"),
}


def _texts_in(parts: Any) -> list[str]:
    """The texts of content parts, whatever their type."""
    parts = parts if isinstance(parts, list) else []
    return [p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str)]


def add_thoughts(draft: Draft) -> None:
    """Put what was thought into the answer that followed; what no answer followed is counted."""
    for at, text in (draft.thoughts or {}).items():
        message = draft.messages[at] if at < len(draft.messages) else None
        if message and message["role"] == "assistant" and "thinking" not in message:
            message["thinking"] = clean_text(text)
        elif has_text(text):
            draft.unread_fields["reasoning"] += 1


def add_content(role: Role, content: Any, draft: Draft) -> None:
    """Append a message of plain content: text, or content parts. Raises `Unreadable`."""
    _add_message(role, content, {}, draft)


def _text_of(turn: Mapping[str, Any], draft: Draft) -> tuple[str | None, Any]:
    """The key and the content of a turn: the first that is not blank."""
    first: tuple[str | None, Any] = (None, None)
    for key in (draft.rules.text,) if draft.rules.text else TEXT_KEYS:
        content = turn.get(key)
        if content is None and draft.rules.text:
            content = value_at(turn, key)
        if content is None:
            continue
        if not isinstance(content, str) or (not content.isspace() and content):
            return key, content
        if first[0] is None:
            first = (key, content)
    return first


def _note_unread(turn: Mapping[str, Any], text_key: str | None, draft: Draft, *used: str) -> None:
    """Count the keys of `turn` whose text is read by nothing."""
    thinking = next((key for key in THINKING_KEYS if isinstance(turn.get(key), str)), None)
    text = turn.get(text_key) if text_key else None
    inside: set[Keys] | None = None
    if draft.rules.role or draft.rules.text:
        text = value_at(turn, text_key) if text_key else None
        names = (draft.rules.role, text_key)
        inside = {resolve(turn, name)[0] for name in names if name and name not in turn} - {()}
    for key in turn.keys() - {text_key, thinking, draft.rules.role, *used, *_METADATA}:
        value = turn[key]
        if inside and any(keys[0] == key for keys in inside):
            draft.unread_fields.update(unread_in(value, inside, (key,)))
            continue
        if (isinstance(value, str) and key in ROLE_KEYS) or key in _CALL_KEYS:
            continue
        if isinstance(value, dict) and key in ROLE_KEYS:
            value = {name: inner for name, inner in value.items() if name != "role"}
        if has_text(value) and value != text and not (key in _FLAG_KEYS and _says_flag(value)):
            draft.unread_fields[str(key)] += 1


def _add_message(role: Role, content: Any, turn: Mapping[str, Any], draft: Draft) -> None:
    parts = _Parts()
    missing = parts.read(content)
    if missing and draft.textless is None:
        draft.textless = TURN + keys_of(turn)
    message: Message = {"role": role, "content": clean_text("\n".join(parts.texts))}
    thinking = [turn[k] for k in THINKING_KEYS if isinstance(turn.get(k), str)][:1] + parts.thinking
    if text := "\n\n".join(t.strip() for t in thinking if t.strip()):
        message["thinking"] = clean_text(text)
    calls = [*_calls(turn.get("tool_calls")), *_calls(turn.get("function_call")), *parts.calls]
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        for key in ("tool_call_id", "name"):
            if isinstance(turn.get(key), str) and turn[key]:
                message[key] = clean_text(turn[key])
    _add_loss_flag(message, turn, draft)
    for result in parts.results:
        draft.add(result)
    if not parts.results or has_text(message["content"]) or len(message) > 2:
        draft.add(message, missing=missing and not calls and role != "tool" and not parts.results)


def _add_loss_flag(message: Message, turn: Mapping[str, Any], draft: Draft) -> None:
    for key in LOSS_KEYS:
        flag = turn.get(key)
        if isinstance(flag, str):
            flag = _weight(flag)
        if isinstance(flag, bool | int | float):
            message["train"] = flag > 0
            if 0 < flag < 1:
                draft.note("fractional_loss_weight")
            return
    if message["role"] == "tool":
        message.pop("train", None)


def _says_flag(value: Any) -> bool:
    return isinstance(value, str) and _weight(value) is not None


def _weight(text: str) -> float | None:
    flag = _flag(text)
    return number_of(text) if flag is None else flag


class _Parts:
    """The content of one turn, taken apart."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thinking: list[str] = []
        self.calls: list[ToolCall] = []
        self.results: list[Message] = []

    def read(self, content: Any) -> bool:
        """Take `content` in; gives whether there was none. Raises `Unreadable`."""
        if content is None:
            return True
        for part in content if isinstance(content, list) else [content]:
            self._read_part(part)
        return False

    def _read_part(self, part: Any) -> None:
        if isinstance(part, str):
            self.texts.append(part)
            return
        if not isinstance(part, dict):
            raise Unreadable("turn_not_text")
        kind = part.get("type")
        if kind in _THINKING_PARTS:
            self.thinking.append(_first_text(part, ("thinking", "text", "value", "content")))
        elif kind in _CALL_PARTS:
            self.calls += _calls(dict(part) if "name" in part else part.get("value"))
        elif kind in _RESULT_PARTS:
            inner = _Parts()
            inner.read(part.get("content", part.get("value")))
            result: Message = {"role": "tool", "content": clean_text("\n".join(inner.texts))}
            for key in ("tool_use_id", "tool_call_id"):
                if isinstance(part.get(key), str):
                    result["tool_call_id"] = part[key]
            self.results.append(result)
        elif kind is None or kind in _TEXT_PARTS:
            text = _first_text(part, ("text", "value", "content", "refusal"))
            if not text and any(has_text(value) for key, value in part.items() if key != "type"):
                raise Unreadable("turn_not_text")
            self.texts.append(text)
        else:
            raise Unreadable("turn_not_text")


def _first_text(part: Mapping[str, Any], keys: Iterable[str]) -> str:
    texts = [part[key] for key in keys if isinstance(part.get(key), str)]
    return next((text for text in texts if text.strip()), texts[0] if texts else "")


def _calls(value: Any) -> list[ToolCall]:
    """Tool calls in any common spelling: OpenAI's, a bare name with arguments, a list, JSON text.
    Raises `Unreadable`.
    """
    if isinstance(value, str):
        if not value.strip():
            return []
        value, reason = parse_json(value.encode("utf-8", "replace"))
        if reason:
            raise Unreadable("tool_call_not_json")
    if value is None:
        return []
    calls: list[ToolCall] = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise Unreadable("tool_call_not_an_object")
        name = function.get("name")
        if not isinstance(name, str):
            raise Unreadable("tool_call_without_name")
        arguments: Any = next(
            (function[k] for k in ("arguments", "input", "parameters") if k in function), {}
        )
        if not isinstance(arguments, str):
            arguments = to_json(arguments)
        item: ToolCall = {
            "type": "function",
            "function": {"name": clean_text(name), "arguments": clean_text(arguments)},
        }
        if isinstance(call.get("id"), str):
            item["id"] = clean_text(call["id"])
        calls.append(item)
    return calls


def _add_calls(calls: list[ToolCall], draft: Draft) -> None:
    if not calls:
        raise Unreadable("tool_call_without_name")
    draft.add({"role": "assistant", "content": "", "tool_calls": calls})


def to_json(value: Any) -> str:
    """`value` as JSON text; what JSON cannot say becomes text."""
    return json.dumps(value, ensure_ascii=False, default=str)
