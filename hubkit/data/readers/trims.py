"""What is made right while a conversation is read: each change is safe, and each is counted."""

from __future__ import annotations

import html
import re
from itertools import pairwise
from typing import cast

from hubkit.conversation import Message, blank, select_fields
from hubkit.data.readers.rules import Draft, Unreadable

_ENTITY = re.compile(r"&(?:lt|gt|amp|quot|apos|nbsp|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
_BARE = re.compile(r"[<>]|&(?!(?:lt|gt|amp|quot|apos|nbsp|#\d{1,6}|#x[0-9a-fA-F]{1,5});)")
_THINK = re.compile(r"\s*<(think|thinking|thought)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_THINK_START = re.compile(r"<(?:think|thinking|thought)>")
_THINK_END = re.compile(r"</(?:think|thinking|thought)>")

NOTES = {
    "blank_system_removed": "a blank system message is none",
    "system_column_first": "the text of a system column becomes the first message",
    "second_system_merged": "a further system message is added to the first one",
    "repeated_turns_merged": "two turns of one seat in a row become one",
    "blank_last_answer_cut": "a blank or missing last answer is cut, with its question",
    "thinking_split_off": "`<think>…</think>` at the start of an answer becomes `thinking`",
    "entities_resolved": "`&lt;` and the like become characters, where a conversation is escaped"
    " as a whole",
    "has_thinking": "thinking is carried in the field `thinking`",
    "thinking_left_out": "thinking is left out, as the recipe says",
    "has_tools": "tool calls and results are carried",
    "tool_traffic_left_out": "tool calls and results are left out, as the recipe says",
    "turns_without_loss": "turns that the source excludes from the loss carry `train: false`",
    "fractional_loss_weight": "a loss weight between 0 and 1 counts as 1",
}


def trim(draft: Draft) -> list[Message]:
    """Give the messages of `draft` as they are kept, and note each change in it. Raises
    `Unreadable`.
    """
    messages = draft.messages
    if draft.missing:
        _check_missing(draft)
    if messages and blank(messages[-1]["content"]):
        messages = _without_blank_end(messages, draft)
    text = "\n".join([m["content"] for m in messages])
    if "&" in text:
        messages = _unescaped(messages, text, draft)
    if "</th" in text or "<th" in text:
        messages = [_think_apart(m, draft) for m in messages]
    roles = [m["role"] for m in messages]
    if "system" in roles:
        messages = _one_system(messages, draft)
    messages = _merged(messages, draft)
    if any([len(m) > 2 for m in messages]):
        messages = _selected(messages, draft)
    return messages


def _check_missing(draft: Draft) -> None:
    last = len(draft.messages) - 1
    if draft.missing != {last} or draft.messages[last]["role"] != "assistant":
        raise Unreadable("turn_without_text", draft.textless)


def _without_blank_end(messages: list[Message], draft: Draft) -> list[Message]:
    """`messages` up to the last whole exchange, where the last answer is blank."""
    last = messages[-1]
    if last["role"] != "assistant" or "tool_calls" in last or "thinking" in last:
        return messages
    end = len(messages) - 1
    while end and messages[end - 1]["role"] != "assistant":
        end -= 1
    if not any(m["role"] == "user" for m in messages[:end]):
        if len(messages) - 1 in draft.missing:
            raise Unreadable("turn_without_text", draft.textless)
        return messages
    draft.note("blank_last_answer_cut")
    return messages[:end]


def _unescaped(messages: list[Message], text: str, draft: Draft) -> list[Message]:
    """Entities resolved once, where the whole conversation is escaped: it has entities, and no
    character that an escaped text cannot have.
    """
    if not _ENTITY.search(text) or _BARE.search(text):
        return messages
    draft.note("entities_resolved")
    return [_with_content(m, html.unescape(m["content"])) for m in messages]


def _think_apart(message: Message, draft: Draft) -> Message:
    """An answer's thinking, inside marks at its start, apart from its content."""
    content = message["content"]
    if message["role"] != "assistant":
        return message
    thinking, answer = "", content
    if match := _THINK.match(content):
        ends = [m.end() for m in _THINK_END.finditer(content)]
        end = ends[-1] if ends else len(content)
        thinking, answer = content[match.start(2) : end], content[end:]
    elif (closing := list(_THINK_END.finditer(content))) and not _THINK_START.search(content):
        # The opening mark was in the prompt.
        thinking, answer = content[: closing[-1].start()], content[closing[-1].end() :]
    else:
        return message
    thinking = re.sub(r"</?(?:think|thinking|thought)>", "", thinking).strip()
    draft.note("thinking_split_off")
    split = _with_content(message, answer.strip())
    earlier = split.get("thinking")
    if thinking:
        split["thinking"] = f"{earlier}\n\n{thinking}" if earlier else thinking
    return split


def _one_system(messages: list[Message], draft: Draft) -> list[Message]:
    """`messages` with one system message at most, at the start."""
    if any(m["role"] == "system" and blank(m["content"]) for m in messages):
        messages = [m for m in messages if m["role"] != "system" or not blank(m["content"])]
        draft.note("blank_system_removed")
    first, later = messages[:1], messages[1:]
    systems = [m for m in later if m["role"] == "system"]
    if not systems:
        return messages
    if draft.rules.second_system == "drop":
        raise Unreadable("system_not_first")
    head = [m for m in first if m["role"] == "system"]
    text = "\n\n".join(m["content"] for m in [*head, *systems])
    draft.note("second_system_merged")
    turns = [m for m in messages if m["role"] != "system"]
    return [{"role": "system", "content": text}, *turns]


def _merged(messages: list[Message], draft: Draft) -> list[Message]:
    roles = [m["role"] for m in messages]
    if not any([before == role for before, role in pairwise(roles)]):
        return messages
    if not any(_repeats(before, message) for before, message in pairwise(messages)):
        return messages
    if draft.rules.repeated_turns == "drop":
        raise Unreadable("roles_not_alternating")
    merged: list[Message] = []
    for message in messages:
        if merged and _repeats(merged[-1], message):
            merged[-1] = _joined(merged[-1], message)
        else:
            merged.append(message)
    draft.note("repeated_turns_merged")
    return merged


def _repeats(before: Message, message: Message) -> bool:
    if before["role"] != message["role"] or message["role"] not in ("user", "assistant"):
        return False
    calls = "tool_calls" in before or "tool_calls" in message
    return not calls and bool(before["content"].strip() and message["content"].strip())


def _joined(before: Message, message: Message) -> Message:
    """Two turns as one; loss falls on it only where it may fall on both."""
    joined: Message = {**before, **message}
    joined["content"] = f"{before['content']}\n\n{message['content']}"
    if "thinking" in before and "thinking" in message:
        joined["thinking"] = f"{before['thinking']}\n\n{message['thinking']}"
    if "train" in before or "train" in message:
        joined["train"] = before.get("train", True) and message.get("train", True)
    return joined


def _selected(messages: list[Message], draft: Draft) -> list[Message]:
    rules = draft.rules
    if any("tool_calls" in m or m["role"] == "tool" for m in messages):
        draft.note("has_tools" if rules.tools == "keep" else "tool_traffic_left_out")
    if any("thinking" in m for m in messages):
        draft.note("has_thinking" if rules.thinking == "keep" else "thinking_left_out")
    if any(m.get("train") is False for m in messages):
        draft.note("turns_without_loss")
    return select_fields(messages, tools=rules.tools, thinking=rules.thinking)


def _with_content(message: Message, content: str) -> Message:
    return cast("Message", {**message, "content": content})
