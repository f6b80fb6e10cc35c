"""A chat model before a judge, from Python: what suits a judge and a benchmark, what a run would
ask and cost, the run itself, and its report.

``hubkit eval chat`` is argument parsing and printing over this module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubkit.errors import EvalError
from hubkit.evaluation import report
from hubkit.evaluation.benchmarks import NAMED
from hubkit.evaluation.items import MODES, Benchmark, Mode, Question
from hubkit.evaluation.judged import Judged, judged
from hubkit.evaluation.records import Find
from hubkit.evaluation.setup import Player, Setup
from hubkit.evaluation.verdict_files import Format, read_verdicts, write_verdicts
from hubkit.judging import Prompts, check_judge, default_prompts, read_prompts, small_prompts
from hubkit.progress import Progress, silent
from hubkit.recipe import Judging, Published, available, load
from hubkit.recipe import judging as judging_block
from hubkit.serving.budget import Spent
from hubkit.tokenization import most_tokens
from hubkit.untrusted import JsonObject

EMBEDDED_IN_FLIGHT, IN_FLIGHT = 4, 8
EMBEDDED_TOKENS, TOKENS = 96, 1024
EMBEDDED_VERDICT_TOKENS, VERDICT_TOKENS = 48, 1024
Serve = Callable[[Sequence[Player]], AbstractContextManager[list[Player]]]
"""Players → the same with addresses, for the length of a block."""


def dialect_of(url: str) -> str:
    """The dialect to speak at an address that nothing else is known of: a hosted API's at https,
    that of a server of one's own at http. Models and judges are spoken to alike."""
    return "openai" if url.startswith("https://") else "tgi"


@dataclass(frozen=True, slots=True)
class JudgeChoice:
    """Who judges, and what it may take.

    Attributes:
        name: ``URL[#MODEL]``, ``REPO_ID``, or, with `deployed`, a repo that an endpoint is made
            for.
        settings: ``KEY=VALUE`` pairs of the judging block, such as ``judge.token_env=KEY``.
        in_flight: Most requests at once; None: what suits the judge."""

    name: str
    deployed: bool = False
    settings: Sequence[str] = ()
    budget_usd: float | None = None
    budget_tokens: int | None = None
    in_flight: int | None = None

    @property
    def hosted(self) -> bool:
        """Whether it is at an address of its own."""
        return self.name.startswith(("http://", "https://"))

    def block(self) -> Judging:
        """Make the judging block: what suits the kind of judge, then the settings, then the caps.

        Raises:
            RecipeError: A setting is not known, or the judge could not be asked with it."""
        remote = self.hosted or self.deployed
        seat = {
            "repo": self.name,
            "endpoints": ["deploy" if self.deployed else "embedded"],
            "profile": dialect_of(self.name) if self.hosted else "tgi",
            "model": (self.name.partition("#")[2] if self.hosted else "") or "tgi",
            "context": 8192,
            "sampling": {
                "temperature": 0.0,
                "max_tokens": VERDICT_TOKENS if remote else EMBEDDED_VERDICT_TOKENS,
            },
        }
        in_flight = self.in_flight or (IN_FLIGHT if remote else EMBEDDED_IN_FLIGHT)
        block = judging_block({"judge": seat, "in_flight": in_flight}, list(self.settings))
        caps = {"budget_usd": self.budget_usd, "budget_tokens": self.budget_tokens}
        block = block.model_copy(update={k: cap for k, cap in caps.items() if cap is not None})
        check_judge(block, at_address=self.hosted)
        return block


def mode_for(mode: str | None, benchmark: Benchmark) -> Mode:
    """The scoring kind `mode`; without one the named benchmark's own, or what the items of a file
    are made for. Raises `EvalError` for a mode that is not known."""
    for candidate in MODES:
        if mode == candidate:
            return candidate
    if mode is not None:
        raise EvalError(f"--mode {mode!r} is none of {', '.join(MODES)}")
    if entry := NAMED.get(benchmark.name):
        return entry.mode
    if all(question.criteria for question in benchmark.questions):
        return "criteria"
    return "checks" if all(any(q.checks) for q in benchmark.questions) else "single"


def recorded_opponent(benchmark: Benchmark, mode: Mode) -> Player | None:
    """In pairwise mode, the answers that came with the questions as a second model."""
    if mode != "pairwise" or not benchmark.recorded:
        return None
    name, answers = next(iter(benchmark.recorded.items()))
    return Player(name, f"answers in {benchmark.files[0]['name']}", recorded=answers)


def prompts_for(source: str | None, find: Find, judge: Player) -> Prompts:
    """The prompts ``default``, ``small`` or of a file; without a source, ours for small judges for
    a judge on the embedded engine, and the default ones for every other."""
    shipped = {"default": default_prompts, "small": small_prompts}
    source = source or ("small" if judge.embedded else "default")
    return shipped[source]() if source in shipped else read_prompts(*find(source))


def answer_tokens(players: Sequence[Player]) -> int:
    """Most tokens of an answer, unless said: less where the embedded engine answers."""
    return min(EMBEDDED_TOKENS if player.embedded else TOKENS for player in players)


def plan(setup: Setup, folder: Path, endpoints: Sequence[Mapping[str, Any]] = ()) -> JsonObject:
    """Say what a run would ask and cost at most: if every answer and verdict were as long as it may
    be. Refuses what the run would refuse (`Setup.check`)."""
    setup.check()
    prompt = completion = 0
    for question in setup.benchmark.questions if setup.judged else ():
        for turn, verdicts in _verdicts(setup, question):
            texts = question.turns[:turn] + tuple(m["content"] for m in question.messages)
            answers = turn * setup.max_tokens * (2 if setup.mode == "pairwise" else 1)
            prompt += verdicts * (sum(most_tokens(len(text)) for text in texts) + answers + 500)
            completion += verdicts * (setup.block.judge.sampling.max_tokens or VERDICT_TOKENS)
    judge = setup.block.judge
    usd = Spent({"judge": [prompt, completion]}).usd({"judge": judge})
    return {
        **setup.to_dict(),
        "answers": setup.answers,
        "judgments": setup.judgments,
        "at_most": {"prompt_tokens": prompt, "completion_tokens": completion, "usd": round(usd, 4)},
        "endpoints": list(endpoints),
        "log_dir": str(folder),
    }


def _verdicts(setup: Setup, question: Question) -> Iterator[tuple[int, int]]:
    """(turn from 1, verdicts on it) of one item."""
    if setup.mode == "criteria":
        yield len(question.turns), len(question.criteria) * len(setup.players)
        return
    each = 2 if setup.mode == "pairwise" else len(setup.players)
    for turn in range(1, len(question.turns) + 1):
        yield turn, each


@contextmanager
def _unserved(players: Sequence[Player]) -> Iterator[list[Player]]:
    yield list(players)


def run(
    setup: Setup,
    folder: Path,
    *,
    serve: Serve = _unserved,
    exports: Mapping[Format, Path] | None = None,
    progress: Progress = silent,
) -> Judged:
    """Run an evaluation, or resume it, and write its report.

    Args:
        folder: Where journals, logs, results, verdicts and the report in Markdown go.
        serve: Gives players without an address one; not needed where all have one.
        exports: Files that the verdicts are also written to, by form.

    Raises:
        As `hubkit.evaluation.judged.judged` does."""
    folder.mkdir(parents=True, exist_ok=True)
    players = [*setup.players, *([setup.user] if setup.user else [])]
    players += [setup.judge] if setup.judged else []
    with serve(players) as served_players:
        seats = iter(served_players)
        seated = replace(
            setup,
            model=next(seats),
            against=next(seats) if setup.against else None,
            user=next(seats) if setup.user else None,
        )
        if setup.judged:
            seated = replace(seated, judge=next(seats))
        result = judged(seated, folder, progress=progress)
    result.path.with_suffix(".md").write_text(report.markdown(result, published_tables()), "utf-8")
    for form, path in (exports or {}).items():
        write_verdicts(path, read_verdicts(result.verdicts), form)
    return result


def published_tables() -> list[Published]:
    """The published tables of every recipe that ships."""
    return [entry for name in available()["recipes"] for entry in load(name).eval.published]
