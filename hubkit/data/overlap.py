"""Whether what is evaluated on was trained on: the same conversation, a near-duplicate, the same
user.

Takes held-out conversations, then any number of training sets; gives every overlap, with both ids.
Human turns are compared, since they are what people wrote; runs of words are looked up in an index
of the held-out ones, so a training set is read once and nothing of it is kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from hubkit.conversation import Conversation
from hubkit.data.filters.shingles import shingles, words_of
from hubkit.untrusted import JsonObject

Kind = Literal["conversation", "near_duplicate", "user"]
_RUN_WORDS = 5
_FEWEST_RUNS = 8  # a human side with fewer says what strangers say too: only equality counts


@dataclass(frozen=True, slots=True)
class Overlap:
    """A held-out conversation that is in a training set.

    `share` is how much of the held-out human side's runs of words the other one holds."""

    kind: Kind
    held_out: str
    training_set: str
    training: str
    share: float = 1.0

    def __str__(self) -> str:
        words = {
            "conversation": "is",
            "near_duplicate": f"is a near-duplicate ({self.share:.0%} of its runs of words) of",
            "user": "is by the user of",
        }[self.kind]
        return f"held-out {self.held_out} {words} {self.training} in {self.training_set}"

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)


class HeldOutIndex:
    """Held-out conversations, to be looked for in training sets.

    A conversation's ``meta`` may name its ``user`` and its ``origin``, the id of the conversation
    that it was made from.

    Args:
        conversations: What is evaluated on.
        near_duplicate: Share of a held-out human side's runs of five words from which a training
            conversation that holds them counts as a near-duplicate."""

    def __init__(self, conversations: Iterable[Conversation], *, near_duplicate: float) -> None:
        self._threshold = near_duplicate
        self._ids: list[str] = []
        self._origins: defaultdict[str, list[int]] = defaultdict(list)
        self._texts: defaultdict[bytes, list[int]] = defaultdict(list)
        self._users: defaultdict[str, list[int]] = defaultdict(list)
        self._runs: defaultdict[int, list[int]] = defaultdict(list)
        self._sizes: list[int] = []
        for number, conversation in enumerate(conversations):
            self._ids.append(conversation.id)
            for origin in _origins(conversation):
                self._origins[origin].append(number)
            text = _human_side(conversation)
            self._texts[_normal(text)].append(number)
            if user := _user(conversation):
                self._users[user].append(number)
            runs = set(shingles(text, _RUN_WORDS).tolist())
            self._sizes.append(len(runs))
            for run in runs if len(runs) >= _FEWEST_RUNS else ():
                self._runs[run].append(number)

    @property
    def has_users(self) -> bool:
        """Whether any held-out conversation names its user."""
        return bool(self._users)

    def overlaps(
        self, training_set: str, conversations: Iterable[Conversation]
    ) -> Iterator[Overlap]:
        """Every overlap of the held-out conversations with `conversations`, of the set of that
        name."""
        for conversation in conversations:
            for kind, number, share in self._matches(conversation):
                yield Overlap(kind, self._ids[number], training_set, conversation.id, share)

    def _matches(self, conversation: Conversation) -> Iterator[tuple[Kind, int, float]]:
        text = _human_side(conversation)
        matches = {number for o in _origins(conversation) for number in self._origins.get(o, ())}
        matches.update(self._texts.get(_normal(text), ()))
        yield from (("conversation", number, 1.0) for number in sorted(matches))
        shared: Counter[int] = Counter()
        for run in set(shingles(text, _RUN_WORDS).tolist()):
            shared.update(self._runs.get(run, ()))
        for number, count in shared.items():
            share = count / self._sizes[number]
            if share >= self._threshold and number not in matches:
                yield "near_duplicate", number, share
        if user := _user(conversation):
            yield from (("user", number, 1.0) for number in self._users.get(user, ()))


def _human_side(conversation: Conversation) -> str:
    return "\n".join(m["content"] for m in conversation.messages if m["role"] == "user")


def _normal(text: str) -> bytes:
    return b" ".join(words_of(text)) or text.strip().encode("utf-8", "replace")


def _origins(conversation: Conversation) -> list[str]:
    names = (conversation.id, conversation.meta.get("origin"))
    return [str(name) for name in names if name]


def _user(conversation: Conversation) -> str:
    return str(conversation.meta.get("user") or "")
