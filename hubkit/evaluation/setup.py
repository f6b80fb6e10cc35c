"""What a judged evaluation is made of: its questions, who answers them, who judges, and by what
prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hubkit.errors import EvalError
from hubkit.evaluation.checkers import refuse_unknown
from hubkit.evaluation.items import Benchmark, Mode
from hubkit.judging import Kind, Prompts
from hubkit.recipe import Judging
from hubkit.serving import ServedModel
from hubkit.statistics import Bootstrap
from hubkit.untrusted import JsonObject

_KINDS: dict[Mode, Kind] = {"single": "single", "pairwise": "pairwise", "criteria": "criterion"}


@dataclass(frozen=True)
class Player:
    """Who answers or judges: a `name` for reports, an `identity` that says exactly who (a repo at a
    commit, an address and a model, a file's sha256), and either where it is `served` or, for one
    who answers, `recorded` answers by question id.

    `system` and `end_mark` are an asker's, for one who plays the user. `embedded` says that it runs
    on this machine for as long as the evaluation does."""

    name: str
    identity: str
    served: ServedModel | None = None
    recorded: Mapping[str, Sequence[str]] | None = None
    embedded: bool = False
    system: str | None = None
    end_mark: str | None = None

    @property
    def served_model(self) -> ServedModel:
        """Where it answers. Raises `EvalError` for one that is not served."""
        if self.served is None:
            raise EvalError(f"{self.name} answers nowhere: serve it, or give its recorded answers")
        return self.served

    def to_dict(self) -> JsonObject:
        """What a result says of it."""
        return {"name": self.name, "identity": self.identity, "embedded": self.embedded}


@dataclass(frozen=True)
class Setup:
    """One evaluation. `max_tokens` bounds an answer; `in_flight` conversations are played at a
    time; `user` words and reveals the parts of a task, in items that are revealed part by part.
    """

    benchmark: Benchmark
    mode: Mode
    model: Player
    against: Player | None
    judge: Player
    prompts: Prompts
    block: Judging
    user: Player | None = None
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
        """How many answers are to be played, the simulated user's turns included: those of a file
        are there."""
        playing = sum(player.recorded is None for player in self.players)
        revealed = sum(len(q.turns) for q in self.benchmark.questions if q.revealed)
        return self.turns * playing + (revealed * len(self.players) if self.user else 0)

    @property
    def judged(self) -> bool:
        """Whether a judge is asked: checkers in code need none."""
        return self.mode != "checks"

    @property
    def judgments(self) -> int:
        """How many verdicts there are to be: one an answer or criterion, or, pairwise, two a
        pair."""
        questions = self.benchmark.questions
        if self.mode == "criteria":
            return len(self.players) * sum(len(question.criteria) for question in questions)
        if self.mode == "checks":
            return len(self.players) * sum(
                bool(turn_checks) for q in questions for turn_checks in q.checks
            )
        return self.turns * (2 if self.mode == "pairwise" else len(self.players))

    def check(self) -> None:
        """Refuse what a run would refuse.

        Raises:
            EvalError: A pair of one, or of twins; items without what this mode scores by; checkers
                that are not known or not installed.
            SourceError: Prompts that cannot judge this."""
        self._check_items()
        if self.mode in _KINDS:
            for checklist in {bool(q.checklist) for q in self.benchmark.questions}:
                by_checklist = checklist and self.mode != "criteria"
                self.prompts.check(
                    _KINDS[self.mode], self.benchmark.most_turns, checklist=by_checklist
                )
        if self.user and self.mode == "pairwise":
            raise EvalError("a simulated user says other things to each model; compare by --mode")
        if self.mode == "pairwise" and self.against is None:
            raise EvalError(
                "comparing in pairs needs two models; name the other one with --against"
            )
        if self.against and self.against.name == self.model.name:
            raise EvalError(f"{self.model.name} cannot be compared with itself; name another model")

    def _check_items(self) -> None:
        questions = self.benchmark.questions
        if self.mode == "criteria" and (bare := [q.id for q in questions if not q.criteria]):
            raise EvalError(
                f"{len(bare)} items of {self.benchmark.name} have no criteria (such as {bare[0]}); "
                "use another --mode, or leave --turns out"
            )
        if self.mode == "checks":
            if bare := [q.id for q in questions if not any(q.checks)]:
                raise EvalError(
                    f"{len(bare)} items of {self.benchmark.name} have nothing that code can check "
                    f"(such as {bare[0]}); use another --mode"
                )
            refuse_unknown(questions)

    def to_dict(self) -> JsonObject:
        """What identifies it, and what a result says of it."""
        judge = {
            **self.judge.to_dict(),
            "prompts": self.prompts.to_dict(),
            "sampling": self.block.judge.sampling.model_dump(),
            "attempts": self.block.attempts,
        }
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
            "judge": judge if self.judged else None,
            "max_tokens": self.max_tokens,
            **({"user": self.user.to_dict()} if self.user else {}),
        }

    @property
    def digest(self) -> str:
        """sha256 (hex) over what identifies it and every item that is played."""
        items: list[Any] = []
        for question in self.benchmark.questions:
            plain = replace(question.first_turns, reference=question.reference)
            entry: list[Any] = [question.id, list(question.turns)]
            items.append(entry if question == plain else [*entry, asdict(question)])
        return hashlib.sha256(
            json.dumps([self.to_dict(), items], sort_keys=True).encode()
        ).hexdigest()
