"""Whether a layout prints what its base's own template prints, for both seats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hubkit.chat_templates.base_template import BaseTemplate, compile_template
from hubkit.chat_templates.layout import Layout, text_of
from hubkit.chat_templates.source import jinja_source
from hubkit.conversation import Message, Seat, swap_roles
from hubkit.errors import TemplateError

_TURNS = (
    ("How do I bake bread?", "Mix flour and water.\n\n1. Knead.\n2. Bake."),
    ("What about rye? <b>now</b> {{ x }} é 🍞", "Less water."),
    ("Thanks", 'Print `{"a": [1, 2]}` & wait: 5 < 6.'),
)
_THOUGHT = "They ask.\nSo answer."
_SYSTEM = "Be kind. Answer in\nshort sentences."


@dataclass(frozen=True, slots=True)
class Proof:
    """How many renderings of how many agree; `faults` says what differs, first by first."""

    checked: int
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether all agree."""
        return not self.faults


def prove(layout: Layout, template: BaseTemplate, seat: Seat) -> Proof:
    """Render conversations by `layout` and by `template` and compare them.

    The assistant's seat must print each text as it is, and be prompted with a prefix of it. The
    asker's must print the same text, and be prompted with a prefix of the base's next human turn.
    What the base itself refuses is not compared."""
    compiled = compile_template(jinja_source(layout, seat))
    checked, faults = 0, []
    for messages in _conversations(layout, seat):
        checked += 1
        if fault := compare(layout, template, seat, messages, compiled):
            faults.append(fault)
    return Proof(checked, tuple(faults))


def _conversations(layout: Layout, seat: Seat) -> Iterator[list[Message]]:
    """One to three rounds, ending on either seat, with a system message and without."""
    head: Message = {"role": "system", "content": _SYSTEM}
    # for an asker a folded system text is in no turn, and the base prints no such text
    with_system = layout.takes_system and (seat == "assistant" or layout.system_place == "own")
    for opening in ([], [head]) if with_system else ([],):
        for rounds in range(1, len(_TURNS) + 1):
            messages: list[Message] = list(opening)
            for user, assistant in _TURNS[:rounds]:
                messages.append({"role": "user", "content": user})
                if len(messages) - len(opening) == 2 * rounds - 1:
                    yield list(messages)
                messages.append({"role": "assistant", "content": assistant})
            yield messages
            if layout.thinking and seat == "assistant":
                yield [
                    {**m, "thinking": _THOUGHT} if m["role"] == "assistant" else m for m in messages
                ]


def compare(
    layout: Layout,
    template: BaseTemplate,
    seat: Seat,
    messages: Sequence[Message],
    compiled: Any = None,
) -> str | None:
    """What `layout` prints of `messages` (as recorded) differently from `template`, or None."""
    view = swap_roles(messages) if seat == "user" else list(messages)
    printed = text_of(layout.segments(view, seat))
    is_own = view[-1]["role"] == "assistant"
    if is_own and layout.system_place == "last_user" and messages[0]["role"] == "system":
        # printed only while an answer is to follow: the answer's text goes after that prompt
        prompted = template.render(messages[:-1], add_generation_prompt=True)
        lead = layout.last_header[len(layout.seat_prompt(seat)) :]
        expected = f"{prompted}{lead}{messages[-1]['content']}{layout.last_end}"
        expected += layout.assistant_gap + layout.tail[0]
    else:
        expected = template.render(messages)
    is_open = layout.open_user if messages[-1]["role"] == "user" else layout.open_answer
    if is_own and is_open:  # the seat learns to end its turn where the base prints no end
        tail = layout.tail[messages[-1]["role"] == "user"]
        expected = expected.removesuffix(tail) + layout.end(seat)
    if printed != expected:
        return f"prints {_difference(printed, expected)}"
    if compiled is not None and compiled.render(messages=view) != printed:
        rendered = compiled.render(messages=view)
        return f"the source renders {_difference(rendered, printed)}"
    if is_own and (layout.thinking is None or view[-1].get("thinking")):
        prompt = text_of(layout.segments(view[:-1], seat, add_generation_prompt=True))
        if not printed.startswith(prompt):
            return f"prompts with {_difference(prompt, printed)}"
        if compiled is not None:
            rendered = compiled.render(messages=view[:-1], add_generation_prompt=True)
            if rendered != prompt:
                return f"the source prompts with {_difference(rendered, prompt)}"
    return None


def _difference(text: str, expected: str) -> str:
    position = next(
        (i for i, pair in enumerate(zip(text, expected, strict=False)) if pair[0] != pair[1]),
        min(len(text), len(expected)),
    )
    start = max(0, position - 12)
    return f"{text[start : position + 36]!r} where the base has {expected[start : position + 36]!r}"


def same_as_base(
    layout: Layout, template: BaseTemplate, seat: Seat, messages: Sequence[Message]
) -> bool | None:
    """Whether the base renders this conversation the same; None where it refuses to.

    Args:
        layout: How the seat prints it.
        template: The base's own.
        seat: Whose view.
        messages: As recorded, from the seat's own system message on."""
    stripped: list[Message] = [{**m, "content": m["content"].strip()} for m in messages]
    in_own_turn = layout.system_place == "own" or seat == "assistant"
    if stripped and stripped[0]["role"] == "system" and not (layout.takes_system and in_own_turn):
        stripped = stripped[1:]  # the base prints no such text
    try:
        return compare(layout, template, seat, stripped) is None
    except TemplateError:
        return None
