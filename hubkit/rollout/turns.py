"""A generated turn, and a failed attempt at one, as the driver keeps them and as the journal does.

The journal's records have short keys, which stay as they are: journals of earlier versions are
read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hubkit.conversation import Seat
from hubkit.untrusted import JsonObject


@dataclass(slots=True)
class Turn:
    """What one answer of a seat came to.

    Attributes:
        dialogue: The dialogue's number in its run.
        position: Its place among all of the dialogue's turns, from 0.
        seat: Who wrote it.
        content: Its text, without thinking and end mark.
        finish_reason: How its generation ended.
        prompt_tokens: As the server counted them, or None; so for the next two.
        seed: Sampling seed.
        attempts: How many attempts it took, itself included.
        address: Who answered, as a URL; None in a dialogue that was read back from a shard.
        created_at: Seconds since the epoch.
        trimmed: How many of the dialogue's messages were left out of its prompt.
        closing: Whether these are the asker's last words, which get no answer.
        flaw: The check that it fails, and is kept in spite of; empty for a good turn.
        failure: For a failed attempt, the check that it failed; empty for a turn.
        earlier_failures: The checks that the attempts before it failed.
        thinking: What its model thought, where the recipe keeps it.
        thinking_chars: The length of that, whether kept or not.
        model: The model's name as the server gave it.
    """

    dialogue: int
    position: int
    seat: Seat
    content: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    seed: int
    attempts: int
    address: str | None
    created_at: float
    trimmed: int
    closing: bool = False
    flaw: str = ""
    failure: str = ""
    earlier_failures: list[str] = field(default_factory=list)
    thinking: str = ""
    thinking_chars: int = 0
    model: str = ""

    def to_record(self) -> JsonObject:
        """As the journal keeps it."""
        record: JsonObject = {
            "k": "try" if self.failure else "turn", "d": self.dialogue, "t": self.position,
            "seat": self.seat, "content": self.content, "finish": self.finish_reason,
            "in": self.prompt_tokens, "out": self.completion_tokens, "cached": self.cached_tokens,
            "seed": self.seed, "tries": self.attempts, "url": self.address, "at": self.created_at,
            "cut": self.trimmed,
        }  # fmt: skip
        if self.failure:
            record["why"] = self.failure
        elif self.earlier_failures:
            record["why"] = self.earlier_failures
        if self.closing:
            record["closing"] = True
        if self.flaw:
            record["flaw"] = self.flaw
        if self.thinking_chars:
            record["thought"] = self.thinking_chars
            if self.thinking:
                record["thinking"] = self.thinking
        if self.model:
            record["model"] = self.model
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Turn:
        """The inverse of `to_record`, also for records of earlier versions.

        Raises `KeyError` for a record of another kind."""
        failed = record["k"] == "try"
        return cls(
            dialogue=record["d"],
            position=record["t"],
            seat=record["seat"],
            content=record["content"],
            finish_reason=record["finish"],
            prompt_tokens=record["in"],
            completion_tokens=record["out"],
            cached_tokens=record["cached"],
            seed=record["seed"],
            attempts=record["tries"],
            address=record["url"],
            created_at=record["at"],
            trimmed=record["cut"],
            closing=bool(record.get("closing")),
            flaw=record.get("flaw", ""),
            failure=record["why"] if failed else "",
            earlier_failures=[] if failed else list(record.get("why", ())),
            thinking=record.get("thinking", ""),
            thinking_chars=record.get("thought", 0),
            model=record.get("model", ""),
        )
