"""What each dialogue of a run is before it begins: its opening, its target, its seeds. All of it
follows from the seed.

A dialogue's number in the run (`index`) fixes everything that chance decides, so a run that is
stopped, moved to another machine or split over several draws the same dialogues."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from hubkit.conversation import Conversation, Message, fault
from hubkit.errors import RecipeError
from hubkit.recipe import Rollout, content_of
from hubkit.recipe import digest as recipe_digest
from hubkit.serving.budget import check_prices
from hubkit.untrusted import Json, JsonObject

# Keys that decide how much of a run is made, not what its dialogues say: a run may be resumed
# under other values of them.
_EXTENT = ("dialogues", "openings", "baseline")
# What the digests of version 0.1 covered, without sizes, pace, caps and addresses.
_KEYS_OF_0_1 = {
    "mode", "intents", "personas", "end_mark", "context_full", "turns", "max_opening_chars",
    "retries_per_turn", "retry_on",
}  # fmt: skip
_SEAT_KEYS_OF_0_1 = {"profile", "repo", "model", "system", "sampling", "context"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One dialogue to come. `messages` is what it opens with (unswapped), `human_turns` how many it
    is to reach.
    """

    index: int
    id: str
    messages: tuple[Message, ...]
    human_turns: int
    opening: dict[str, str] = field(default_factory=dict)  # id, source
    intent: str = ""
    persona: str = ""

    def to_record(self) -> JsonObject:
        """As the journal keeps it."""
        return {
            "id": self.id, "messages": cast("Json", self.messages),
            "human_turns": self.human_turns,
            "opening": self.opening, "intent": self.intent, "persona": self.persona,
        }  # fmt: skip

    @classmethod
    def from_record(cls, index: int, record: Mapping[str, Any]) -> Plan:
        """The inverse of `to_record`."""
        return cls(index=index, **{**record, "messages": tuple(record["messages"])})


def run_digest(block: Rollout, seed: int, provenance: Mapping[str, Any]) -> str:
    """sha256 (hex) over all that decides what a run's dialogues say. Two runs with the same one are
    the same run.
    """
    content = content_of(Rollout, block.model_dump(mode="json"), without=_EXTENT)
    return recipe_digest([content, seed, dict(provenance)])


def run_digest_of_0_1(block: Rollout, seed: int, provenance: Mapping[str, Any]) -> str:
    """The digest that version 0.1 gave this run, for journals and shards that it wrote."""
    plain = block.model_dump(include=_KEYS_OF_0_1)
    for seat in ("asker", "chat"):
        plain[seat] = getattr(block, seat).model_dump(include=_SEAT_KEYS_OF_0_1)
    return recipe_digest([plain, seed, dict(provenance)])


def turn_seed(seed: int, index: int, turn: int, attempt: int) -> int:
    """The sampling seed (31 bits) of one attempt at one turn of one dialogue."""
    digest = hashlib.blake2b(f"{seed}/{index}/{turn}/{attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF


def plans(
    block: Rollout,
    openings: Iterable[Conversation],
    *,
    seed: int,
    digest: str,
    skip: Callable[[int], bool],
    skipped: Counter[str],
) -> Iterator[Plan]:
    """The run's dialogues in order of index, without those that `skip` knows; openings are read as
    they are needed.

    An opening that cannot be used takes no index; its reason is counted in `skipped`.
    """
    index = 0
    for opening in _openings(block, openings):
        if index >= block.dialogues:
            return
        messages, reason = _first_messages(block, opening)
        if reason:
            skipped[reason] += 1
            continue
        if not skip(index):
            yield _plan(block, index, opening, messages, seed=seed, digest=digest)
        index += 1


def _openings(block: Rollout, openings: Iterable[Conversation]) -> Iterator[Conversation]:
    if block.mode in ("seeded", "seeded_qa"):
        yield from openings
        return
    for _ in range(block.dialogues):
        yield Conversation(id="", messages=[])


def _first_messages(
    block: Rollout, opening: Conversation
) -> tuple[tuple[Message, ...], str | None]:
    """What a dialogue opens with, and why it cannot (a reason to count)."""
    if block.mode in ("free", "intent"):
        return (), None
    turns = [m for m in opening.messages if m.get("role") != "system"]
    count = 2 if block.mode == "seeded_qa" else 1
    first = tuple(turns[:count])
    if opening.meta.get("intent") == "":  # this asker was trained with one, always
        return (), "no_intent"
    if reason := fault(first):
        return (), reason
    if sum(len(m["content"]) for m in first) > block.max_opening_chars:
        return (), "opening_too_long"
    return first, None


def _plan(
    block: Rollout,
    index: int,
    opening: Conversation,
    messages: tuple[Message, ...],
    *,
    seed: int,
    digest: str,
) -> Plan:
    chance = random.Random(f"{seed}/{index}")
    return Plan(
        index=index,
        id=f"{digest[:8]}-{index:06d}",
        messages=messages,
        human_turns=_target(block, chance),
        opening={"id": opening.id, "source": opening.source},
        intent=chance.choice(block.intents)
        if block.mode == "intent"
        else str(opening.meta.get("intent", "")),
        persona=chance.choice(block.personas) if block.personas else "",
    )


def _target(block: Rollout, chance: random.Random) -> int:
    if block.turns.kind == "fixed":
        return block.turns.value
    counts = sorted(block.turns.weights)
    return chance.choices(counts, weights=[block.turns.weights[count] for count in counts])[0]


def expected_human_turns(block: Rollout) -> float:
    """The mean of the turns that `block` draws."""
    if block.turns.kind == "fixed":
        return float(block.turns.value)
    weights = block.turns.weights
    return sum(count * weight for count, weight in weights.items()) / sum(weights.values())


def check(block: Rollout) -> None:
    """Raise `RecipeError` for a block that cannot be run, before anything is sent."""
    seats = {"rollout.asker": block.asker, "rollout.chat": block.chat}
    check_prices(block.budget_usd, seats)
    for name, seat in seats.items():
        if (seat.sampling.max_tokens or 0) >= seat.context:
            raise RecipeError(
                f"{name}.context is {seat.context} tokens, and {name}.sampling.max_tokens "
                f"{seat.sampling.max_tokens}: no room is left for a prompt; raise the first or "
                "lower the second"
            )
    if not (block.asker.system or "").strip():
        raise RecipeError(
            "rollout.asker.system is missing: the asker's side must open with a system "
            "message, because its own first turn may not come first on every server; "
            "say there who it is"
        )
    if block.mode == "intent" and not block.intents:
        raise RecipeError(
            "rollout.mode is intent, but rollout.intents is empty; list what askers want"
        )
    if block.turns.kind == "choice":
        weights = block.turns.weights
        if (
            not weights
            or min(weights) < 1
            or min(weights.values()) < 0
            or sum(weights.values()) <= 0
        ):
            raise RecipeError(
                f"rollout.turns.weights must give counts of at least 1 positive weights, got "
                f"{weights}"
            )
