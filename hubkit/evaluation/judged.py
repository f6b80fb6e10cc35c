"""Runs a judged benchmark: plays its questions, asks the judge, and puts numbers, intervals and
logs into a folder.

Takes a `Setup` (questions, who answers, who judges); gives a `Judged`. Answers and replies of the
judge are in journals under the folder before they count, keyed by their content: killed at any
instant, the same call resumes from there, and another model's run in the same folder asks only for
what is new."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from hubkit import __version__
from hubkit.errors import EvalError, RunInterruptedError, RunLockedError
from hubkit.evaluation.aggregate import Passes, Scores, Wins
from hubkit.evaluation.contestants import Contestant, RecordedContestant, ServedContestant
from hubkit.evaluation.setup import Player, Setup
from hubkit.evaluation.verdict_files import VerdictSet, row_of, summarised, write_verdicts
from hubkit.judging import Judge, judging, requests_at_once
from hubkit.locks import FileLock, Timeout
from hubkit.progress import Notice, Progress, silent
from hubkit.serving.client import ClientLimits
from hubkit.serving.reply_journal import Journal
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog

    from hubkit.evaluation.tasks import Bench

_JOURNAL: JsonObject = {"layout": 1}


@dataclass(frozen=True)
class Judged:
    """What came out.

    Attributes:
        scores: In mode ``single`` grades, in ``criteria`` and ``checks`` met criteria, by model.
        difference: For two models, the paired difference of their scores.
        wins: In mode ``pairwise``.
        judging: What the judge was asked; empty where there is none.
        path: Where all of it is written; the verdicts themselves are next to it."""

    setup: Setup
    scores: dict[str, Scores | Passes]
    difference: JsonObject | None
    wins: Wins | None
    judging: JsonObject
    path: Path
    logs: Path

    @property
    def verdicts(self) -> Path:
        """The file of the verdicts that these numbers come from."""
        return self.path.with_name(f"verdicts-{self.setup.digest[:12]}.jsonl")

    @property
    def missing(self) -> int:
        """Judgments (in pairwise mode, pairs) without a verdict."""
        counts = [table.missing for table in self.scores.values()] + (
            [self.wins.missing] if self.wins else []
        )
        return sum(sum(count.values()) for count in counts)

    def to_dict(self) -> JsonObject:
        """Plain data, as in the results file."""
        return {
            "run": self.setup.digest,
            **self.setup.to_dict(),
            "scores": {name: table.to_dict() for name, table in self.scores.items()},
            "difference": self.difference,
            "wins": self.wins.to_dict() if self.wins else None,
            "judging": self.judging,
            "intervals": {
                "confidence": self.setup.bootstrap.confidence,
                "resamples": self.setup.bootstrap.resamples,
                "drawn": "questions",
            },
            "packages": {"hubkit": __version__, "inspect_ai": metadata.version("inspect_ai")},
            "logs": str(self.logs),
        }


def judged(setup: Setup, log_dir: Path, *, progress: Progress = silent) -> Judged:
    """Run `setup`, or go on with it, in `log_dir`: ``results-RUN.json``, ``logs/RUN`` for ``inspect
    view``, journals.

    Raises `SourceError` when the judge prompts cannot judge these conversations, `RunLockedError`
    when another process works in `log_dir`, `EndpointError` when a model or the judge cannot be
    asked at all, `RunInterruptedError` when told to stop; what was answered until then is kept."""
    setup.check()
    log_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(log_dir / "lock", timeout=0):
            return asyncio.run(_Run(setup, log_dir, progress).judged())
    except Timeout:
        raise RunLockedError(
            f"another process is evaluating in {log_dir}; wait for it, or use another --log-dir"
        ) from None


class _Run:
    """One session of one evaluation."""

    def __init__(self, setup: Setup, folder: Path, progress: Progress) -> None:
        self._setup, self._folder, self._progress = setup, folder, progress
        self._logs = folder / "logs" / setup.digest[:12]
        self._done = 0

    async def judged(self) -> Judged:
        setup = self._setup
        async with AsyncExitStack() as stack:
            answers, replies = (
                stack.enter_context(Journal(self._folder / "journal", _JOURNAL, name=name))
                for name in ("answers", "judgments")
            )
            players = [await self._contestant(player, answers, stack) for player in setup.players]
            user = await self._contestant(setup.user, answers, stack) if setup.user else None
            judge = await self._judge(replies, stack) if setup.judged else None
            with _quiet_inspect(self._folder):
                from hubkit.evaluation.tasks import Bench

                bench = Bench(setup.benchmark, judge, setup.prompts, self._one_more, user)
                if setup.user and setup.user.system:
                    bench.user_system = setup.user.system
                    bench.user_end_mark = setup.user.end_mark
                logs = await self._evaluate(bench, players)
            self._done = setup.answers + setup.judgments - 1  # with what a missing answer left out
            self._one_more()
            result = self._result(logs, judge.to_dict() if judge else {})
        result.path.write_text(
            json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
        return result

    async def _judge(self, replies: Journal, stack: AsyncExitStack) -> Judge:
        setup = self._setup
        return await stack.enter_async_context(
            judging(
                setup.block,
                setup.judge.served_model,
                replies,
                identity=setup.judge.identity,
                run=setup.digest,
                on_batch=lambda sentence: self._progress(self._done, None, Notice(sentence)),
            )
        )

    def _one_more(self) -> None:
        self._done += 1
        note = f"answers and verdicts, {self._setup.benchmark.name}"
        self._progress(self._done, self._setup.answers + self._setup.judgments, note)

    async def _contestant(
        self, player: Player, journal: Journal, stack: AsyncExitStack
    ) -> Contestant:
        setup = self._setup
        if player.recorded is not None:
            return RecordedContestant(player.name, player.identity, player.recorded)
        sampling = setup.block.judge.sampling.model_copy(
            update={"max_tokens": setup.max_tokens, "stop": []}
        )
        endpoint = player.served_model.endpoint(
            sampling=sampling,
            limits=ClientLimits(setup.in_flight, setup.request_timeout_s, setup.block.patience_s),
            name=player.name,
        )
        await stack.enter_async_context(endpoint)
        return ServedContestant(
            player.name,
            player.identity,
            endpoint,
            journal,
            max_tokens=setup.max_tokens,
            on_answer=self._one_more,
        )

    def _tasks(self, bench: Bench, players: Sequence[Contestant]) -> list[Task]:
        from hubkit.evaluation import tasks

        name, in_flight = self._setup.benchmark.name, self._setup.in_flight
        models = [tasks.model(player, bench, in_flight=in_flight) for player in players]
        mode = self._setup.mode
        if mode == "pairwise":
            return [tasks.task(bench, mode, models, name=f"{name}-pairwise")]
        return [tasks.task(bench, mode, [model], name=name) for model in models]

    async def _evaluate(self, bench: Bench, players: Sequence[Contestant]) -> list[EvalLog]:
        """The tasks' logs, in order. Older logs of the same run, which these hold too, are
        removed.
        """
        from inspect_ai import eval_async

        # A judge that is asked by batch has one batch of all that waits for a verdict.
        at_once = self._setup.in_flight
        if self._setup.block.judge.batch:
            at_once = max(at_once, requests_at_once(self._setup.block))
        before = set(self._logs.glob("*.eval"))
        logs = []
        for task in self._tasks(bench, players):
            task_logs = await eval_async(
                task,
                log_dir=str(self._logs),
                log_level="error",
                log_realtime=False,
                ctl_server=False,
                max_samples=at_once,
                metadata={"run": self._setup.digest},
            )
            self._raise_unless_whole(bench, task_logs)
            logs += task_logs
        for log in before:
            log.unlink(missing_ok=True)
        return logs

    def _raise_unless_whole(self, bench: Bench, logs: Sequence[EvalLog]) -> None:
        if bench.failure is not None:
            raise bench.failure
        if not logs or logs[0].status == "cancelled":  # inspect takes a Ctrl-C for itself
            raise RunInterruptedError(
                "stopped; every answer and verdict so far is kept, the same command resumes"
            )
        (log,) = logs
        if log.status != "success":
            reason = log.error.message if log.error else log.status
            raise EvalError(
                f"the evaluation stopped: {reason}; its log is {log.location}"
            ) from None

    def _result(self, logs: Sequence[EvalLog], judge_stats: JsonObject) -> Judged:
        setup = self._setup
        path = self._folder / f"results-{setup.digest[:12]}.json"
        result = Judged(setup, {}, None, None, judge_stats, path, self._logs)
        sets = self._verdict_sets(logs)
        write_verdicts(result.verdicts, sets)
        return replace(result, **summarised(sets, setup.bootstrap))

    def _verdict_sets(self, logs: Sequence[EvalLog]) -> list[VerdictSet]:
        """The verdicts in `logs`, those on each model."""
        setup = self._setup
        judge = setup.judge.name if setup.judged else ""
        name, sets = setup.benchmark.name, []
        for player, log in zip(setup.players, logs, strict=False):
            against = setup.against.name if setup.mode == "pairwise" and setup.against else ""
            rows = [row_of(setup.mode, row) for row in _rows(log)]
            sets.append(VerdictSet(name, setup.mode, player.name, judge, rows, against))
        return sets


def _rows(log: EvalLog) -> Iterator[JsonObject]:
    """What the scorer noted, sample by sample, in the order of the questions."""
    for sample in log.samples or []:
        for score in (sample.scores or {}).values():
            yield from (score.metadata or {})["rows"]


@contextmanager
def _quiet_inspect(folder: Path) -> Iterator[None]:
    """inspect-ai draws nothing, and writes its trace next to our files instead of into the user's
    home.
    """
    variables = {"INSPECT_DISPLAY": "none", "INSPECT_TRACE_FILE": str(folder / "trace.log")}
    variables = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(variables)
    from inspect_ai.util import display_type

    display_type()  # read now: later it would fall back to one that prints
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
