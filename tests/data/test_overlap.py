"""Held-out conversations are found in training sets: themselves, near-duplicates, their users."""

from __future__ import annotations

from typing import Any

from hubkit.conversation import Conversation
from hubkit.data.overlap import HeldOutIndex

LETTER = "please help me write a letter to my landlord about the broken heating in my kitchen"
FOLLOW_UP = "now make it shorter and more polite but keep the deadline of two weeks"


def talk(name: str, *turns: str, **meta: Any) -> Conversation:
    messages: list[Any] = []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "Sure."}]
    return Conversation(name, messages, meta=meta)


def found(held_out: Conversation, *training: Conversation) -> list[tuple[str, str]]:
    index = HeldOutIndex([held_out], near_duplicate=0.5)
    return [(overlap.kind, overlap.training) for overlap in index.overlaps("set", training)]


def test_what_was_trained_on_is_found() -> None:
    held_out = talk("h", LETTER, FOLLOW_UP, user="ann")
    assert found(held_out, talk("copy", LETTER.upper(), FOLLOW_UP + "!")) == [
        ("conversation", "copy")
    ]
    assert found(held_out, talk("made", "hello", origin="h")) == [("conversation", "made")]
    assert found(held_out, talk("part", "hi", LETTER, FOLLOW_UP, "thanks")) == [
        ("near_duplicate", "part")
    ]
    assert found(held_out, talk("hers", "how do tides work", user="ann")) == [("user", "hers")]


def test_all_that_a_training_conversation_repeats_are_found() -> None:
    index = HeldOutIndex([talk("a", LETTER), talk("b", LETTER)], near_duplicate=0.5)
    overlaps = index.overlaps("set", [talk("copy", LETTER)])
    assert [(o.kind, o.held_out) for o in overlaps] == [
        ("conversation", "a"),
        ("conversation", "b"),
    ]


def test_strangers_may_say_the_same_short_things() -> None:
    others = [
        talk("a", "hi", "continue", user="bob"),
        talk("b", "please help me write a letter to my bank about a loan", user=""),
        talk("c", "thanks, now make it shorter"),
    ]
    assert found(talk("h", LETTER, FOLLOW_UP, user="ann"), *others) == []
    assert (
        found(talk("short", "tell me a joke please"), talk("d", "tell me a joke please", "x")) == []
    )
