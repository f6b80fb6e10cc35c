"""The benchmarks as inspect-ai tasks: a solver that plays all user turns, a scorer that asks the
judge.

Takes a `Bench` (questions, who answers, who judges); gives tasks whose logs ``inspect view`` shows.
Imported only where an evaluation runs: inspect-ai takes a second to import."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    get_model,
    modelapi,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolChoice, ToolInfo

from hubkit.errors import HubkitError
from hubkit.evaluation.aggregate import POINTS, Compared, Outcome, Rated
from hubkit.evaluation.benchmarks import Benchmark, Question
from hubkit.evaluation.contestants import Contestant, NoAnswerError
from hubkit.judging import Judge, Kind, Prompts, Turns, Verdict

ROWS = "rows"
_AGAINST, _QUESTION = "against", "question"


@dataclass
class Bench:
    """What an evaluation runs on. `judged` is called after each verdict; `failure` is what concerns
    the whole run.
    """

    benchmark: Benchmark
    judge: Judge
    prompts: Prompts
    judged: Callable[[], None] = lambda: None
    failure: HubkitError | None = None
    questions: dict[str, Question] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.questions = {question.id: question for question in self.benchmark.questions}

    async def verdict(self, kind: Kind, turns: Turns, conversation: str) -> Verdict:
        """The judge's verdict on the last answer of `turns`, which are part of `conversation`."""
        try:
            verdict = await self.judge.verdict(
                kind, self.prompts.render(kind, turns), conversation=conversation
            )
        except HubkitError as error:
            self.failure = self.failure or error
            raise
        self.judged()
        return verdict


@modelapi(name="hubkit")
class ContestantAPI(ModelAPI):
    """inspect's view of a `Contestant`: its retries and waits are the contestant's own, inspect
    adds none.
    """

    def __init__(self, model_name: str, contestant: Contestant, bench: Bench, **_: Any) -> None:
        super().__init__(model_name)
        self._contestant, self._bench = contestant, bench

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """The contestant's answer. Raises `NoAnswerError`, and `HubkitError` for what concerns the
        whole run.
        """
        messages: list[Any] = [{"role": message.role, "content": message.text} for message in input]
        try:
            question = str((input[0].metadata or {})[_QUESTION])
            answer = await self._contestant.answer(question, messages, config.temperature or 0.0)
        except NoAnswerError:
            raise
        except HubkitError as error:
            self._bench.failure = self._bench.failure or error
            raise
        tokens_in, tokens_out = answer.prompt_tokens or 0, answer.completion_tokens or 0
        message = ChatMessageAssistant(
            content=answer.content, model=self.model_name, source="generate"
        )
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=message,
                    stop_reason="max_tokens" if answer.finish_reason == "length" else "stop",
                )
            ],
            usage=ModelUsage(
                input_tokens=tokens_in,
                output_tokens=tokens_out,
                total_tokens=tokens_in + tokens_out,
            ),
        )


def model(contestant: Contestant, bench: Bench, *, in_flight: int) -> Model:
    """`contestant` as an inspect model."""
    name = contestant.name.replace("://", "-")
    config = GenerateConfig(max_connections=in_flight)
    return get_model(
        f"hubkit/{name}", config=config, memoize=False, contestant=contestant, bench=bench
    )


def single(bench: Bench, of: Model, *, name: str) -> Task:
    """Each answer of `of` graded alone."""
    return Task(
        dataset=_dataset(bench),
        solver=conversation(bench),
        scorer=rated(bench),
        model=of,
        name=name,
    )


def pairwise(bench: Bench, of: Model, against: Model, *, name: str) -> Task:
    """Each answer of `of` compared with that of `against` to the same turn, in both orders."""
    return Task(
        dataset=_dataset(bench),
        solver=conversation(bench, both=True),
        scorer=compared(bench),
        model=of,
        model_roles={_AGAINST: against},
        name=name,
    )


def _dataset(bench: Bench) -> MemoryDataset:
    samples = [
        Sample(id=q.id, input=q.turns[0], metadata={"category": q.category, "turns": list(q.turns)})
        for q in bench.benchmark.questions
    ]
    return MemoryDataset(samples, name=bench.benchmark.name)


@solver
def conversation(bench: Bench, both: bool = False) -> Solver:
    """Plays all user turns of a question against the model, and with `both` against the other model
    too.

    A conversation ends early where an answer is missing: what follows it has no history to
    stand on."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        question = bench.questions[str(state.sample_id)]
        players = [get_model()] + ([get_model(role=_AGAINST, required=True)] if both else [])
        played = await asyncio.gather(*(_play(player, question) for player in players))
        state.messages = played[0][1]
        state.metadata["answers"] = [answers for answers, _ in played]
        state.output = ModelOutput.from_content(
            str(players[0]), played[0][0][-1] if played[0][0] else ""
        )
        return state

    return solve


async def _play(player: Model, question: Question) -> tuple[list[str], list[ChatMessage]]:
    answers: list[str] = []
    messages: list[ChatMessage] = []
    for turn in question.turns:
        messages.append(ChatMessageUser(content=turn, metadata={_QUESTION: question.id}))
        try:
            output = await player.generate(
                messages, config=GenerateConfig(temperature=question.temperature)
            )
        except NoAnswerError:
            break
        answers.append(output.completion)
        messages.append(output.message)
    return answers, messages


@scorer(metrics=[mean(), stderr()])
def rated(bench: Bench) -> Scorer:
    """The judge's grades of all answers; a sample's value is their mean."""

    async def score(state: TaskState, target: Target) -> Score:
        question, (answers,) = bench.questions[str(state.sample_id)], state.metadata["answers"]
        # One after the other: each turn's prompt begins as the one before, and the judge has that
        # in its cache.
        judged = [
            await _rate(bench, question, answers, turn) for turn in range(len(question.turns))
        ]
        ratings = [row.rating for row, _ in judged if row.rating is not None]
        return _score([row for row, _ in judged], [text for _, text in judged], ratings)

    return score


async def _rate(
    bench: Bench, question: Question, answers: Sequence[str], turn: int
) -> tuple[Rated, str]:
    if turn >= len(answers):
        bench.judged()
        return Rated(question.id, question.category, turn + 1, None, "no_answer"), ""
    verdict = await bench.verdict(
        "single", _turns(question, turn, answers), f"{question.id}/{_mark(answers)}"
    )
    return Rated(
        question.id, question.category, turn + 1, verdict.rating, verdict.reason
    ), verdict.text


@scorer(metrics=[mean(), stderr()])
def compared(bench: Bench) -> Scorer:
    """The judge's choice between both models' answers, asked in both orders; a sample's value is
    its win rate.
    """

    async def score(state: TaskState, target: Target) -> Score:
        question, (answers, opposing) = (
            bench.questions[str(state.sample_id)],
            state.metadata["answers"],
        )
        judged = [
            await _compare(bench, question, answers, opposing, turn)
            for turn in range(len(question.turns))
        ]
        points = [POINTS[row.outcome] for row, _ in judged if row.outcome]
        return _score([row for row, _ in judged], [text for _, text in judged], points)

    return score


_FIRST: dict[str, Outcome] = {"A": "win", "B": "loss", "tie": "tie"}
_SECOND: dict[str, Outcome] = {"A": "loss", "B": "win", "tie": "tie"}


async def _compare(
    bench: Bench, question: Question, answers: Sequence[str], opposing: Sequence[str], turn: int
) -> tuple[Compared, str]:
    if turn >= min(len(answers), len(opposing)):
        bench.judged()
        bench.judged()
        return Compared(question.id, question.category, turn + 1, None, None, ("no_answer",)), ""
    shown_first, shown_second = await asyncio.gather(
        bench.verdict(
            "pairwise", _turns(question, turn, answers, opposing), f"{question.id}/{_mark(answers)}"
        ),
        bench.verdict(
            "pairwise",
            _turns(question, turn, opposing, answers),
            f"{question.id}/{_mark(opposing)}",
        ),
    )
    row = Compared(
        question.id,
        question.category,
        turn + 1,
        _FIRST[shown_first.winner] if shown_first.winner else None,
        _SECOND[shown_second.winner] if shown_second.winner else None,
        tuple(v.reason for v in (shown_first, shown_second) if v.reason),
        len(answers[turn]),
        len(opposing[turn]),
    )
    return row, f"shown first: {shown_first.text}\n\nshown second: {shown_second.text}"


def _mark(answers: Sequence[str]) -> str:
    """Tells conversations about one question apart by their first answer."""
    return hashlib.sha256(answers[0].encode()).hexdigest()[:8]


def _turns(
    question: Question, turn: int, answers: Sequence[str], against: Sequence[str] = ()
) -> Turns:
    upto = turn + 1
    references = question.reference[:upto]
    return Turns(
        question.category, question.turns[:upto], answers[:upto], against[:upto], references
    )


def _score(
    rows: Sequence[Rated | Compared], texts: Sequence[str], values: Sequence[float]
) -> Score:
    """A sample's score: the mean of its verdicts (nan without any), the rows, and the judge's own
    words.
    """
    explanation = "\n\n".join(
        f"turn {row.turn}: {text or row}" for row, text in zip(rows, texts, strict=True)
    )
    value = sum(values) / len(values) if values else float("nan")
    return Score(
        value=value, explanation=explanation, metadata={ROWS: [asdict(row) for row in rows]}
    )
