"""What a rollout reports: while it runs (`Status`) and when it is done (`RolloutReport`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from hubkit.progress import Notice
from hubkit.untrusted import JsonObject


@dataclass(frozen=True, slots=True)
class Status:
    """A run at this moment. Turns and rates are this session's; `tokens_per_s` are those that the
    models wrote, as their servers count them. `eta_s` is None until there is something to judge by.
    `under_way` is how much of the open dialogues is generated, in dialogues. `stopping` says that
    the run was interrupted: what is in flight is taken, and nothing more is sent.
    """

    dialogues: int
    wanted: int
    turns: int
    turns_per_s: float
    tokens_per_s: float
    in_flight: dict[str, int]
    limits: dict[str, int]
    errors: dict[str, int]
    retries: int
    usd: float
    tokens: int
    seconds: float
    eta_s: float | None
    under_way: float = 0.0
    stopping: str = ""

    @property
    def share(self) -> float:
        """How much of the run's turns is generated; 1 only once all dialogues have ended."""
        if self.dialogues >= self.wanted:
            return 1.0
        return min((self.dialogues + self.under_way) / self.wanted, 1 - 1e-9)

    def line(self) -> str:
        """The note of a progress bar."""
        in_flight = sum(self.in_flight.values())
        if self.stopping:
            answers = "answer" if in_flight == 1 else "answers"
            what = f"finishing {in_flight} {answers}" if in_flight else "writing what there is"
            return Notice(f"{what}; press again to stop now")
        parts = [
            f"{self.dialogues:,} of {self.wanted:,} dialogues",
            f"{self.turns:,} turns",
            *([f"{self.tokens_per_s:.0f} tok/s"] if self.tokens_per_s >= 0.5 else []),
            f"{in_flight} in flight",
        ]
        parts += [f"{kind} ×{count}" for kind, count in sorted(self.errors.items())]
        if self.retries:
            parts.append(f"{self.retries} retried")
        if self.usd:
            parts.append(f"${self.usd:.2f}")
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """What a run made, over all its sessions unless said otherwise.

    `stopped` names the cap that ended it (``budget_tokens``, ``budget_usd``, ``max_hours``), or is
    empty. `unfinished` dialogues stay in the journal. `retries`: failed checks by kind; `errors`:
    transport errors of this session by kind; `refused`: requests that a server refused for good, by
    status; `thinking`: answers by seat that came after thinking; `models`: answers by seat and by
    the name that the server gave its model; `turn_marks`: the control tokens that open turns of
    either seat's template, where it is known."""

    dialogues: int
    wanted: int
    unfinished: int
    stopped: str
    human_turns: int
    generated_turns: int
    end_reasons: dict[str, int]
    openings_skipped: dict[str, int]
    retries: dict[str, int]
    refused: dict[str, int]
    errors: dict[str, int]
    requests: int
    tokens: dict[str, dict[str, int]]
    cached_tokens: int
    usd: float
    seconds: float
    session: JsonObject
    damaged_records: int
    thinking: dict[str, int] = field(default_factory=dict)
    models: dict[str, dict[str, int]] = field(default_factory=dict)
    turn_marks: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    digest: str = ""

    def to_dict(self) -> JsonObject:
        """As ``report.json`` holds it."""
        return asdict(self)

    @property
    def paths(self) -> list[Path]:
        """The shards' paths below the output folder."""
        return [Path(shard) for shard in self.shards]
