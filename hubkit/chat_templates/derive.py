"""A base's own chat template → its `Layout`, by rendering sentinel conversations and cutting.

Nothing here is believed: `hubkit.chat_templates.proof` compares what a layout prints with what the
template prints before anybody uses it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubkit.chat_templates.base_template import BaseTemplate
from hubkit.chat_templates.layout import Layout, SystemPlace
from hubkit.errors import TemplateError

_USER = ("Xu0qZ", "Xu1qZ", "Xu2qZ")
_ASSISTANT = ("Xa0qZ", "Xa1qZ")
_SYSTEM = "XsysqZ"
_THINKING = ("Xk0qZ", "Xk1qZ")
_OPEN_TAG = re.compile(r"<[^<>]*$|\[/?[A-Z_]*$")
_TAG = re.compile(r"\s*<[^<>]+>")
_REST_OF_TAG = re.compile(r"^[^<>]*>|^[A-Z_]*\]")
DEFAULT_SYSTEM = ("", "\n\n")


@dataclass(frozen=True, slots=True)
class _Cuts:
    """What a template prints around two rounds and a third human turn."""

    opening: str
    user_to_assistant: str
    assistant_to_user: str
    prompt: str
    user_close: str
    last_answer: str
    answer_close: str


def derive(template: BaseTemplate, tokens: Collection[str] = ()) -> tuple[Layout, list[str]]:
    """Derive the layout of `template`.

    Args:
        template: The base's own.
        tokens: The tokenizer's added tokens, none of which is cut in two.

    Returns:
        The layout, and a sentence for each thing that a reader should know about it.

    Raises:
        TemplateError: The template prints turns in a way that no layout can."""
    notes: list[str] = []
    cuts = _cuts(template)
    links = [cuts.user_to_assistant, cuts.prompt, cuts.last_answer]
    user_close = _closing(cuts.user_close, links, tokens)
    open_user = not user_close.strip()
    if open_user:
        user_close = _whole_tags(_common_prefix(links), links, tokens)
        if first := _first_token(user_close, tokens):
            user_close = first
    if not user_close:
        raise TemplateError("nothing closes a human's turn, so an asker cannot learn to end it")
    user_tail = cuts.user_close if open_user else cuts.user_close[len(user_close) :]
    user_end, user_gap = _split_gap(user_close)
    answer_close = _closing(cuts.answer_close, [cuts.assistant_to_user], tokens)
    open_answer, answer_end, tail = False, None, cuts.answer_close[len(answer_close) :]
    header = cuts.assistant_to_user[len(answer_close) :]
    if not answer_close.strip():
        header = _common_suffix(cuts.opening, cuts.assistant_to_user)
        answer_close = cuts.assistant_to_user[: len(cuts.assistant_to_user) - len(header)]
        if not answer_close.strip():
            answer_close = cuts.assistant_to_user
            if cuts.answer_close.strip() and (tag := _TAG.match(answer_close)):
                answer_close = tag[0]  # past answers have an end too: the first tag after them
            header = cuts.assistant_to_user[len(answer_close) :]
        open_answer = not cuts.answer_close.strip()
        if not open_answer:
            answer_end, tail = _split_gap(cuts.answer_close)
        else:
            tail = cuts.answer_close
    if not answer_close.strip():
        raise TemplateError("nothing closes an answer, so a chat model cannot learn to end it")
    assistant_end, assistant_gap = _split_gap(answer_close)
    if header and not cuts.opening.endswith(header):
        raise TemplateError(
            f"a first human turn is opened by {cuts.opening[-40:]!r} and a later one by {header!r}"
        )
    headers = [link[len(user_close) :] for link in links]
    if answer_end is None and tail.startswith(assistant_gap):
        tail = tail[len(assistant_gap) :] if not answer_close.endswith(assistant_gap) else tail
    layout = Layout(
        prefix=cuts.opening[: len(cuts.opening) - len(header)],
        user=header,
        user_end=user_end,
        user_gap=user_gap,
        assistant=headers[0],
        assistant_end=assistant_end,
        assistant_gap=assistant_gap,
        prompt=headers[1],
        answer=None if headers[2] == headers[0] else headers[2],
        answer_end=answer_end,
        tail=(tail, user_tail),
        open_user=open_user,
        open_answer=open_answer,
        name=template.origin,
    )
    if answer_end is not None:
        layout = replace(layout, tail=(tail.removeprefix(assistant_gap), user_tail))
    layout = _with_system(template, layout, cuts, notes)
    return _with_thinking(template, layout), notes


def _rounds(count: int, *, last_user: bool, system: bool = False) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": _SYSTEM}] if system else []
    for index in range(count):
        messages.append({"role": "user", "content": _USER[index]})
        messages.append({"role": "assistant", "content": _ASSISTANT[index]})
    return [*messages, {"role": "user", "content": _USER[count]}] if last_user else messages


_SENTINELS = [_USER[0], _ASSISTANT[0], _USER[1], _ASSISTANT[1], _USER[2]]


def _cuts(template: BaseTemplate) -> _Cuts:
    prompted = cut(
        template.render(_rounds(2, last_user=True), add_generation_prompt=True), _SENTINELS
    )
    closed_user = cut(template.render(_rounds(2, last_user=True)), _SENTINELS)
    closed = cut(template.render(_rounds(2, last_user=False)), _SENTINELS[:4])
    opening, first, second, third, fourth, prompt = prompted
    if (first, second) != (third, fourth):
        raise TemplateError("the marks between turns differ from one round to the next")
    return _Cuts(opening, first, second, prompt, closed_user[-1], closed[3], closed[4])


def cut(text: str, marks: Sequence[str]) -> list[str]:
    """What stands between `marks` in `text`.

    Raises:
        TemplateError: A mark is not printed, or not in this order."""
    pieces, position = [], 0
    for mark in marks:
        start = text.find(mark, position)
        if start < 0:
            raise TemplateError("the text of a turn is not printed, or not in the order of turns")
        pieces.append(text[position:start])
        position = start + len(mark)
    return [*pieces, text[position:]]


def _closing(closed: str, links: Sequence[str], tokens: Collection[str]) -> str:
    """What closes a turn: what the text ends with, as far as every link begins with it."""
    return _whole_tags(_common_prefix([closed, *links]), [closed, *links], tokens)


def _first_token(text: str, tokens: Collection[str]) -> str | None:
    """The token, or else the tag, that `text` begins with."""
    matches = [token for token in tokens if text.startswith(token)]
    tag = _TAG.match(text)
    return max(matches, key=len, default=tag[0] if tag else None)


def _common_prefix(texts: Sequence[str]) -> str:
    size = 0
    for characters in zip(*texts, strict=False):
        if len(set(characters)) > 1:
            break
        size += 1
    return texts[0][:size]


def _common_suffix(first: str, second: str) -> str:
    suffix = _common_prefix([first[::-1], second[::-1]])[::-1]
    for text in (first, second):  # not from the middle of a tag
        before = text[: len(text) - len(suffix)]
        if _OPEN_TAG.search(before) and (remainders := _REST_OF_TAG.match(suffix)):
            suffix = suffix[remainders.end() :]
    return suffix


def _whole_tags(prefix: str, texts: Sequence[str], tokens: Collection[str]) -> str:
    """`prefix`, less a token or tag such as ``<|im_end|>`` that it holds only a part of."""
    for token in tokens:
        for size in range(min(len(token) - 1, len(prefix)), 0, -1):
            remainders = (text[len(prefix) :] for text in texts)
            if prefix.endswith(token[:size]) and any(
                r.startswith(token[size:]) for r in remainders
            ):
                return prefix[: len(prefix) - size]
    if any(prefix.endswith(token) for token in tokens):
        return prefix
    opened = _OPEN_TAG.search(prefix)
    if opened and any(_REST_OF_TAG.match(text[len(prefix) :]) for text in texts):
        return prefix[: opened.start()]
    return prefix


def _split_gap(closing: str) -> tuple[str, str]:
    """The end that a seat writes, and white space after it."""
    end = closing.rstrip()
    return (end, closing[len(end) :]) if end else (closing, "")


def _with_system(template: BaseTemplate, layout: Layout, cuts: _Cuts, notes: list[str]) -> Layout:
    try:
        return _printed_system(template, layout, cuts)
    except TemplateError as error:
        notes.append(
            f"the base's template takes no system message ({error}); it is put before the "
            "first human turn's text"
        )
        return replace(layout, system_place="first_user", system=DEFAULT_SYSTEM, takes_system=False)


def _printed_system(template: BaseTemplate, layout: Layout, cuts: _Cuts) -> Layout:
    text = template.render(_rounds(2, last_user=True, system=True), add_generation_prompt=True)
    if text.count(_SYSTEM) != 1:
        raise TemplateError(f"it is printed {text.count(_SYSTEM)} times")
    position = text.index(_SYSTEM)
    before = [mark for mark in _SENTINELS if text.index(mark) < position]
    pieces = cut(text, [*before, _SYSTEM, *_SENTINELS[len(before) :]])
    opening, after = pieces[len(before)], pieces[len(before) + 1]
    if len(before) == 4:
        link = cuts.assistant_to_user
        if not opening.startswith(link):
            raise TemplateError("it changes what stands before the last human turn")
        system_place: SystemPlace = "last_user"
        return replace(
            layout,
            system_place=system_place,
            system_prefix=_prefix_unless(pieces[0], layout.user, layout.prefix),
            system=(opening[len(link) :], after),
        )
    if before:
        raise TemplateError("it is printed between turns")
    if after.endswith(layout.user) and (layout.user or layout.prefix == opening):
        end = after[: len(after) - len(layout.user)]
        return replace(layout, system_place="own", system_prefix="", system=(opening, end))
    if not layout.user and after.strip():  # the header of a human turn ends the system text
        return replace(layout, system_place="own", system_prefix="", system=(opening, after))
    start = opening.rfind(layout.user) if layout.user else -1
    if start < 0:
        raise TemplateError("it stands neither in a turn of its own nor in a human turn")
    prefix, lead = opening[:start], opening[start + len(layout.user) :]
    return replace(
        layout,
        system_place="first_user",
        system_prefix=None if prefix == layout.prefix else prefix,
        system=(lead, after),
    )


def _prefix_unless(opening: str, header: str, prefix: str) -> str | None:
    opened = opening[: len(opening) - len(header)]
    return None if opened == prefix else opened


def _with_thinking(template: BaseTemplate, layout: Layout) -> Layout:
    """Find what is printed around an answer's thinking, in the last answer and in earlier ones."""
    messages = _rounds(2, last_user=False)
    for index, message in enumerate(m for m in messages if m["role"] == "assistant"):
        message["thinking"] = _THINKING[index]
    try:
        text = template.render(messages)
    except TemplateError:
        return layout
    user_close = layout.user_end + layout.user_gap
    around: list[tuple[str, str] | None] = []
    for index in range(2):
        between = text.partition(_USER[index])[2].partition(_ASSISTANT[index])[0]
        before, mark, after = between.partition(_THINKING[index])
        if not mark or not before.startswith(user_close):
            around.append(None)
            continue
        around.append((before[len(user_close) :], after))
    past, final = around
    return replace(layout, past_thinking=past, thinking=final)
