"""Conversations written as one text, with a mark before each turn."""

from __future__ import annotations

import re

from hubkit.conversation import Message, Role

# Per style: a pattern whose group `role` names who speaks, and what ends a turn.
_STYLES = (
    ("ChatML", re.compile(r"<\|im_start\|>\s*(?P<role>system|user|assistant|tool)\s*\n"),
     "<|im_end|>"),
    ("[|Human|] / [|AI|]", re.compile(r"\[\|(?P<role>Human|AI)\|\]:?[ ]?"), None),
    ("<|Human|>: / <|MOSS|>:", re.compile(r"<\|(?P<role>Human|MOSS)\|>:[ ]?"), "<eo"),
    ("[Human]: / [MOSS]:", re.compile(r"\[(?P<role>Human|MOSS)\]:[ ]?"), "<eo"),
    ("### Human: / ### Assistant:",
     re.compile(r"###[ ]?(?P<role>Human|User|Assistant|Instruction|Response|System):[ ]?"), None),
    ("Human: / Assistant: after a blank line",
     re.compile(r"(?:\A\s*|\n\n)(?P<role>Human|User|H|Assistant|A|AI|System):[ ]?"), None),
)  # fmt: skip
STYLES = tuple(name for name, _, _ in _STYLES)
_SEATS: dict[str, Role] = {
    **dict.fromkeys(("human", "user", "h", "instruction"), "user"),
    **dict.fromkeys(("assistant", "ai", "a", "moss", "response"), "assistant"),
    "system": "system",
    "tool": "tool",
}


_LINE_MARKS = re.compile(
    rb"^[ \t>*#-]*(human|user|assistant|ai|bot|chatgpt|gpt|claude|you|me|q|a)[ \t*]*:", re.I | re.M
)


def looks_like_transcript(text: bytes) -> bool:
    """Whether lines of `text` begin with the names of two who speak."""
    names = [name.lower() for name in _LINE_MARKS.findall(text)]
    return len(set(names)) > 1


def turns_in(text: str) -> tuple[str, list[Message]] | None:
    """Take a transcript apart.

    Returns:
        What comes before the first mark, and the turns; None where `text` is no transcript: it
        has no style's marks of both seats, the person's first."""
    for _, mark, end in _STYLES:
        marks = list(mark.finditer(text))
        seats = [_SEATS[m["role"].lower()] for m in marks]
        if "assistant" not in seats or "user" not in seats:
            continue
        if seats.index("user") > seats.index("assistant"):
            continue
        turns: list[Message] = []
        stops = [m.start() for m in marks[1:]] + [len(text)]
        for match, seat, stop in zip(marks, seats, stops, strict=True):
            turn = text[match.end() : stop]
            if end:
                turn = turn.partition(end)[0]
            turns.append({"role": seat, "content": turn.strip()})
        return text[: marks[0].start()].strip(), turns
    return None
