"""What a judged evaluation is made of: its questions, who answers them, who judges, and by what
prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubkit.errors import EvalError
from hubkit.evaluation.benchmarks import Benchmark, Mode
from hubkit.judging import Prompts
from hubkit.metrics.statistics import Bootstrap
from hubkit.recipe import Judging
from hubkit.serving import ServedModel


@dataclass(frozen=True)
class Player:
    """Who answers or judges: a `name` for reports, an `identity` that says exactly who (a repo at a
    commit, an address and a model, a file's sha256), and either where it is `served` or, for one
    who answers, `recorded` answers by question id.

    `embedded` says that it runs on this machine for as long as the evaluation does."""

    name: str
    identity: str
    served: ServedModel | None = None
    recorded: Mapping[str, Sequence[str]] | None = None
    embedded: bool = False

    @property
    def served_model(self) -> ServedModel:
        """Where it answers. Raises `EvalError` for one that is not served."""
        if self.served is None:
            raise EvalError(f"{self.name} answers nowhere: serve it, or give its recorded answers")
        return self.served

    def to_dict(self) -> dict[str, Any]:
        """What a result says of it."""
        return {"name": self.name, "identity": self.identity, "embedded": self.embedded}


@dataclass(frozen=True)
class Setup:
    """One evaluation. `max_tokens` bounds an answer; `in_flight` conversations are played at a
    time.
    """

    benchmark: Benchmark
    mode: Mode
    model: Player
    against: Player | None
    judge: Player
    prompts: Prompts
    block: Judging
    max_tokens: int = 1024
    in_flight: int = 8
    request_timeout_s: float = 600.0
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    @property
    def players(self) -> list[Player]:
        """Who answers."""
        return [self.model, *([self.against] if self.against else [])]

    @property
    def turns(self) -> int:
        """User turns of all conversations together."""
        return sum(len(question.turns) for question in self.benchmark.questions)

    @property
    def answers(self) -> int:
        """How many answers are to be played: those of a file are there."""
        return self.turns * sum(player.recorded is None for player in self.players)

    @property
    def judgments(self) -> int:
        """How many verdicts there are to be: one an answer, or, pairwise, two a pair."""
        return self.turns * (2 if self.mode == "pairwise" else len(self.players))

    def check(self) -> None:
        """Raise `EvalError` for a pair of one, or of twins, and `SourceError` for prompts that
        cannot judge this.
        """
        self.prompts.check(self.mode, self.benchmark.most_turns)
        if self.mode == "pairwise" and self.against is None:
            raise EvalError(
                "comparing in pairs needs two models; name the other one with --against"
            )
        if self.against and self.against.name == self.model.name:
            raise EvalError(f"{self.model.name} cannot be compared with itself; name another model")

    def to_dict(self) -> dict[str, Any]:
        """What identifies it, and what a result says of it."""
        return {
            "benchmark": {
                "name": self.benchmark.name,
                "files": self.benchmark.files,
                "questions": len(self.benchmark.questions),
                "turns": self.turns,
            },
            "mode": self.mode,
            "model": self.model.to_dict(),
            "against": self.against.to_dict() if self.against else None,
            "judge": {
                **self.judge.to_dict(),
                "prompts": self.prompts.to_dict(),
                "sampling": self.block.judge.sampling.model_dump(),
                "attempts": self.block.attempts,
            },
            "max_tokens": self.max_tokens,
        }

    @property
    def digest(self) -> str:
        """sha256 (hex) over what identifies it and every turn that is played."""
        turns = [[question.id, list(question.turns)] for question in self.benchmark.questions]
        return hashlib.sha256(
            json.dumps([self.to_dict(), turns], sort_keys=True).encode()
        ).hexdigest()
