"""The seat swap and what a well-formed conversation is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubkit.conversation import fault, swap_roles
from hubkit.errors import SchemaError

roles = st.sampled_from(["system", "user", "assistant"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": st.text()}))


@given(messages)
def test_swapping_twice_is_the_same_conversation(conversation: list) -> None:
    assert swap_roles(swap_roles(conversation)) == conversation


@given(messages)
def test_swapping_keeps_every_word_and_moves_only_the_seats(conversation: list) -> None:
    swapped = swap_roles(conversation)
    assert [m["content"] for m in swapped] == [m["content"] for m in conversation]
    for before, after in zip(conversation, swapped, strict=True):
        assert (before["role"] == "system") == (after["role"] == "system")
        assert before["role"] == "system" or before["role"] != after["role"]


def test_an_unknown_role_is_an_error_that_names_it() -> None:
    with pytest.raises(SchemaError, match="'human'") as caught:
        swap_roles([{"role": "human", "content": "hi"}])
    assert caught.value.reason == "unknown_role"
    assert isinstance(caught.value, ValueError)


def _talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (_talk(("user", "a"), ("assistant", "b")), None),
        (_talk(("system", "s"), ("user", "a")), None),
        ([], "empty_conversation"),
        (_talk(("system", "s")), "empty_conversation"),
        (_talk(("user", " \n")), "empty_turn"),
        (_talk(("assistant", "b")), "wrong_start"),
        (_talk(("system", "s"), ("assistant", "b")), "wrong_start"),
        (_talk(("user", "a"), ("user", "b")), "roles_not_alternating"),
        (_talk(("user", "a"), ("system", "s")), "system_not_first"),
        (_talk(("human", "a")), "unknown_role"),
        ([{"role": "user"}], "bad_message"),
        ([{"role": "user", "content": ["a"]}], "bad_message"),
    ],
)
def test_the_first_fault_has_a_name(conversation: list, reason: str | None) -> None:
    assert fault(conversation) == reason


def test_a_segment_may_start_with_either_seat_when_asked() -> None:
    segment = _talk(("assistant", "b"), ("user", "c"))
    assert fault(segment, first=None) is None
    assert fault(segment, first="assistant") is None
