"""Conversations with tool calls and results, printed by the base's own template alone.

No layout describes how a base prints tools; its template does. Each such conversation is rendered
with sentinels for its contents and cut at them, and the loss-bearing spans are those between what
the base is prompted with and what it prints after the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from hubkit.chat_templates.base_template import BaseTemplate
from hubkit.chat_templates.layout import Segment
from hubkit.conversation import Message
from hubkit.errors import TemplateError
from hubkit.untrusted import parse_json

_SENTINEL = re.compile(r"Xc(\d+)([cta])qZ")


def has_tools(messages: Sequence[Message]) -> bool:
    """Whether any message calls a tool or holds a tool's result."""
    return any(m["role"] == "tool" or m.get("tool_calls") for m in messages)


def tool_segments(
    template: BaseTemplate,
    messages: Sequence[Message],
    tools: list[Any] | None = None,
    *,
    control_tokens: Collection[str] = (),
) -> list[Segment]:
    """Print `messages` (assistant's seat) with loss on its own turns, never on a tool's result.

    Contents are text, and so are `control_tokens` spelt out in a call's arguments or in `tools`.

    Raises:
        TemplateError: The template does not print the tools, or prints earlier turns differently
            from one answer to the next."""
    contents: dict[str, str] = {}
    typed: dict[str, str] = {}
    hide = partial(_hidden, tokens=control_tokens, typed=typed)
    probes = [_with_sentinels(index, m, contents, hide) for index, m in enumerate(messages)]
    tools = hide(tools)
    text = template.render(probes, tools=tools)
    for sentinel, content in contents.items():
        if text.count(sentinel) != 1:
            raise TemplateError(f"it does not print {content[:40]!r} once")
    contents |= typed
    for message in messages:
        for call in message.get("tool_calls") or []:
            if call["function"]["name"] not in text:
                raise TemplateError("it does not print tool calls")
    spans = [
        _span(template, probes, index, text, tools)
        for index, m in enumerate(messages)
        if m["role"] == "assistant" and m.get("train", True)
    ]
    return list(_cut(text, spans, contents))


def _with_sentinels(
    index: int, message: Message, contents: dict[str, str], hide: Callable[[Any], Any]
) -> dict[str, Any]:
    """`message` with its texts replaced; its calls' arguments as templates expect them."""
    probe: dict[str, Any] = {**message}
    if text := message["content"].strip():
        probe["content"] = f"Xc{index}cqZ"
        contents[probe["content"]] = text
    if thinking := (message.get("thinking") or "").strip():
        sentinel = f"Xc{index}tqZ"
        probe["thinking"] = sentinel
        contents[sentinel] = thinking
    if calls := message.get("tool_calls"):
        probe["tool_calls"] = [hide(_parsed(dict(call))) for call in calls]
    return probe


def _hidden(value: Any, *, tokens: Collection[str], typed: dict[str, str]) -> Any:
    """`value` (JSON data) with a sentinel for each control token that is spelt out in it."""
    if isinstance(value, str):
        for token in sorted(tokens, key=len, reverse=True):
            if token in value:
                sentinel = f"Xc{len(typed)}aqZ"
                typed[sentinel] = token
                value = value.replace(token, sentinel)
        return value
    if isinstance(value, list):
        return [_hidden(item, tokens=tokens, typed=typed) for item in value]
    if isinstance(value, dict):
        return {key: _hidden(item, tokens=tokens, typed=typed) for key, item in value.items()}
    return value


def _parsed(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = parse_json(function["arguments"])
        except ValueError:
            raise TemplateError("the arguments of a tool call are not JSON") from None
    return {**call, "function": function}


def _span(
    template: BaseTemplate,
    probes: Sequence[dict[str, Any]],
    index: int,
    text: str,
    tools: list[Any] | None,
) -> tuple[int, int]:
    prompt = template.render(probes[:index], add_generation_prompt=True, tools=tools)
    closed = template.render(probes[: index + 1], tools=tools).rstrip()
    if not text.startswith(prompt) or not text.startswith(closed):
        raise TemplateError("it prints earlier turns differently once there are later ones")
    return len(prompt), len(closed)


def _cut(text: str, spans: Sequence[tuple[int, int]], contents: dict[str, str]) -> list[Segment]:
    borders = sorted({0, len(text), *(position for span in spans for position in span)})
    segments = []
    for start, end in pairwise(borders):
        loss = any(first <= start and end <= last for first, last in spans)
        position = start
        for match in _SENTINEL.finditer(text, start, end):
            segments.append(Segment(text[position : match.start()], True, loss))
            segments.append(Segment(contents[match[0]], False, loss))
            position = match.end()
        segments.append(Segment(text[position:end], True, loss))
    return [segment for segment in segments if segment.text]
