"""The seat swap and what a well-formed conversation is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubkit.conversation import compact, fault, select_fields, swap_roles
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


CALL = {"type": "function", "function": {"name": "look", "arguments": "{}"}, "id": "c"}
TOOL_TALK: list = [
    {"role": "user", "content": "What is it?", "train": True},
    {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL], "thinking": "Hm."},
    {"role": "tool", "content": "42", "tool_call_id": "c"},
    {"role": "assistant", "content": "It is 42.", "thinking": "So."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes.", "thinking": "Quite."},
]


def test_tool_traffic_is_kept_joined_or_reduced_to_the_final_answer() -> None:
    assert select_fields(TOOL_TALK) == TOOL_TALK
    joined, final = (select_fields(TOOL_TALK, tools=word) for word in ("drop", "only_final"))
    assert [m["content"] for m in joined][1] == "Let me look.\n\nIt is 42."
    assert [m["content"] for m in final] == ["What is it?", "It is 42.", "Sure?", "Yes."]
    assert joined[1]["thinking"] == "Hm.\n\nSo." and final[1]["thinking"] == "So."
    assert fault(joined) is fault(final) is None


def test_thinking_is_kept_dropped_or_left_on_the_last_answer() -> None:
    def places(word: str) -> list[int]:
        view = select_fields(TOOL_TALK, thinking=word)  # type: ignore[arg-type]
        return [i for i, m in enumerate(view) if "thinking" in m]

    assert (places("keep"), places("drop"), places("only_final")) == ([1, 3, 5], [], [5])


def test_the_asker_hears_the_final_words_only() -> None:
    assert swap_roles(TOOL_TALK) == [
        {"role": "assistant", "content": "What is it?", "train": True},
        {"role": "user", "content": "It is 42."},
        {"role": "assistant", "content": "Sure?"},
        {"role": "user", "content": "Yes."},
    ]


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (TOOL_TALK, None),
        (TOOL_TALK[:2], None),  # it ends in a call
        (TOOL_TALK[:3], "ends_in_tool_result"),
        ([TOOL_TALK[0], TOOL_TALK[2]], "tool_result_without_call"),
        ([*TOOL_TALK[:2], TOOL_TALK[4]], "tool_call_without_result"),
        ([*TOOL_TALK[:3], TOOL_TALK[4]], "roles_not_alternating"),
        ([*TOOL_TALK[:1], {"role": "assistant", "content": "", "tool_calls": [CALL]}], None),
    ],
)
def test_faults_of_tool_traffic(conversation: list, reason: str | None) -> None:
    assert fault(conversation) == reason
    assert fault(compact([{**m, "name": None} for m in conversation])) == reason
