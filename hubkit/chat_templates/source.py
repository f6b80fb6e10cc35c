"""A layout's Jinja source for one seat: with generation marks for training, without for serving.

There is one source: what is served is what was trained, less its marks."""

from __future__ import annotations

import json
import re

from hubkit.chat_templates.layout import OTHER_SEAT, PREAMBLE_END, Layout
from hubkit.conversation import Seat

# Servers strip only some spellings of these marks, so the pushed template carries none at all.
_MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}\n?")


def without_marks(source: str) -> str:
    """`source` without ``{% generation %}`` and ``{% endgeneration %}``, in any spelling."""
    return _MARK.sub("", source)


def jinja_source(layout: Layout, seat: Seat) -> str:
    """Write the Jinja source of `layout` for `seat`.

    Every tag and expression trims its surroundings, so the source's own lines never reach the
    text. Turns may come in any order and start with either seat; a role that is none of the three
    is an error. Texts are stripped, so that the border between a header and its text is the same
    in training and in serving."""
    fold = layout.system_place != "own" and seat == "assistant"
    users = "assistant" if seat == "user" else "user"
    lines = []
    if fold:
        lines.append("{%- set ns = namespace(system='', place=-1) -%}")
    lines += _head(layout, fold=fold)
    if fold:
        lines += _fold_place(layout, users)
    lines += ["{%- for message in messages -%}"]
    is_own, other_seat = seat, OTHER_SEAT[seat]
    lines += [
        "{%- if message['role'] == 'assistant' -%}",
        *_turn(layout, is_own, is_own=True, fold=fold),
    ]
    lines += [
        "{%- elif message['role'] == 'user' -%}",
        *_turn(layout, other_seat, is_own=False, fold=fold),
    ]
    lines += [
        "{%- elif message['role'] != 'system' or not loop.first -%}",
        "{{- raise_exception('roles are user and assistant, with at most one system message "
        "in front') -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        _print(layout.seat_prompt(seat)),
    ]
    tails = [
        (role, layout.tail[speaker == "user"])
        for role, speaker in (("assistant", is_own), ("user", other_seat))
        if layout.tail[speaker == "user"] and not (speaker == seat and _is_open(layout, seat))
    ]
    for role, tail in tails:
        lines += [
            f"{{%- elif messages and messages[-1]['role'] == '{role}' -%}}",
            _print(tail),
        ]
    return "\n".join([*lines, "{%- endif -%}"]) + "\n"


def _is_open(layout: Layout, seat: Seat) -> bool:
    return layout.open_user if seat == "user" else layout.open_answer


def _head(layout: Layout, *, fold: bool) -> list[str]:
    text = "(messages[0]['content'] | trim)"
    prefix = layout.prefix if layout.system_prefix is None else layout.system_prefix
    if layout.system_place == "own":
        opened = [f"{{{{- {_q(prefix + layout.system[0])} + {text} + {_q(layout.system[1])} -}}}}"]
    elif fold:
        opened = [
            _print(prefix),
            f"{{%- set ns.system = {_q(layout.system[0])} + {text} + {_q(layout.system[1])} -%}}",
        ]
    else:
        opened = [f"{{{{- {_q(prefix)} + {text} + {_q(PREAMBLE_END)} -}}}}"]
    has_system = (
        "{%- if messages and messages[0]['role'] == 'system' and (messages[0]['content'] | trim)"
        " -%}"
    )
    plain = ["{%- else -%}", _print(layout.prefix)] if layout.prefix else []
    return [has_system, *opened, *plain, "{%- endif -%}"]


def _fold_place(layout: Layout, role: str) -> list[str]:
    first = " and ns.place < 0" if layout.system_place == "first_user" else ""
    return [
        "{%- for message in messages -%}",
        f"{{%- if message['role'] == '{role}'{first} -%}}",
        "{%- set ns.place = loop.index0 -%}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]


def _turn(layout: Layout, speaker: Seat, *, is_own: bool, fold: bool) -> list[str]:
    lines = (
        _user_turn(layout, is_own=is_own, fold=fold)
        if speaker == "user"
        else _answer(layout, is_own=is_own)
    )
    return [line for line in lines if line]


def _user_turn(layout: Layout, *, is_own: bool, fold: bool) -> list[str]:
    prompt = layout.seat_prompt("user")
    lead, text = layout.user[len(prompt) :], "(message['content'] | trim)"
    if fold:
        text = f"(ns.system if loop.index0 == ns.place else '') + {text}"
    body = f"{{{{- {_q(lead)} + {text} -}}}}" if lead else f"{{{{- {text} -}}}}"
    end = _end(_q(layout.user_end), is_open=layout.open_user, is_own=is_own)
    gap = _gap(layout.user_gap, is_open=layout.open_user)
    return [_print(prompt), *_marked([body, end], is_own=is_own), gap]


def _answer(layout: Layout, *, is_own: bool) -> list[str]:
    """A model's turn; its last one may be opened and closed differently."""
    plain = (layout.assistant, layout.last_header)
    final = "loop.last and not add_generation_prompt"
    prompt = layout.seat_prompt("assistant")
    openings = [
        *plain,
        *(around[0] for around in (layout.past_thinking, layout.thinking) if around),
    ]
    if len(set(openings)) == 1:
        prompt = prompt or openings[0].rstrip(" ")
    elif not all(opening.startswith(prompt) for opening in openings):
        prompt = ""

    def choose(past: str, last: str) -> str:
        return past if past == last else f"({last} if {final} else {past})"

    def opening(header: str, around: tuple[str, str] | None) -> str:
        lead = _q(header[len(prompt) :])
        if around is None:
            return lead
        thinking = "((message['thinking'] or message['reasoning_content'] or '') | trim)"
        block = f"{_q(around[0][len(prompt) :])} + {thinking} + {_q(around[1])}"
        return f"({block} if {thinking} else {lead})"

    lead = choose(opening(plain[0], layout.past_thinking), opening(plain[1], layout.thinking))
    text = "(message['content'] | trim)"
    body = f"{{{{- {text} -}}}}" if lead == '""' else f"{{{{- {lead} + {text} -}}}}"
    end = _end(
        choose(_q(layout.assistant_end), _q(layout.last_end)),
        is_open=layout.open_answer,
        is_own=is_own,
    )
    gap = _gap(layout.assistant_gap, is_open=layout.open_answer)
    return [_print(prompt), *_marked([body, end], is_own=is_own), gap]


def _end(end: str, *, is_open: bool, is_own: bool) -> str:
    if is_open and not is_own:
        return f"{{{{- '' if loop.last and not add_generation_prompt else {end} -}}}}"
    return f"{{{{- {end} -}}}}"


def _gap(gap: str, *, is_open: bool) -> str:
    if gap and is_open:
        return f"{{{{- '' if loop.last and not add_generation_prompt else {_q(gap)} -}}}}"
    return _print(gap)


def _marked(lines: list[str], *, is_own: bool) -> list[str]:
    return ["{%- generation -%}", *lines, "{%- endgeneration -%}"] if is_own else lines


def _print(text: str) -> str:
    return f"{{{{- {_q(text)} -}}}}" if text else ""


def _q(text: str) -> str:
    """`text` as a Jinja string literal: JSON's escapes, which all renderers share."""
    return json.dumps(text)
