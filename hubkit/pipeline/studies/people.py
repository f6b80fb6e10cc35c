"""People in the asker's seat: a server that says what the person who wrote an opening really said
next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hubkit.conversation import Conversation, Message
from hubkit.recipe import Sampling, SeatConfig
from hubkit.serving import ServedModel
from hubkit.serving.callable_server import served_callable

_NO_WINDOW = 1 << 20  # what people said is looked up, not read


def people_seat(repo_id: str) -> SeatConfig:
    """The asker's seat of a rollout for people whose conversations are in dataset `repo_id`."""
    return SeatConfig(
        repo=repo_id,
        system="The person who wrote this opening says what they really said next.",
        sampling=Sampling(temperature=0.0, max_tokens=4096),
        context=_NO_WINDOW,
    )


@contextmanager
def served_people(conversations: Iterable[Conversation]) -> Iterator[ServedModel]:
    """Answer as the person of one of `conversations`, told by its first turn, until the block
    ends."""
    turns = {}
    for conversation in conversations:
        human_turns = [m["content"] for m in conversation.messages if m["role"] == "user"]
        turns[_key(human_turns[0])] = human_turns

    def next_turn(messages: list[Message]) -> str:
        own_turns = [m["content"] for m in messages if m["role"] == "assistant"]
        return turns[_key(own_turns[0])][len(own_turns)]

    with served_callable(next_turn) as model:
        yield model


def _key(text: str) -> str:
    return " ".join(text.split())
