"""The benchmarks as inspect-ai tasks: a solver that plays all user turns, a scorer that asks the
judge.

Takes a `Bench` (questions, who answers, who judges); gives tasks whose logs ``inspect view`` shows.
Imported only where an evaluation runs: inspect-ai takes a second to import."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
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

from hubkit.conversation import Message
from hubkit.errors import HubkitError
from hubkit.evaluation.aggregate import POINTS, Checked, Compared, Outcome, Rated
from hubkit.evaluation.checkers import passed
from hubkit.evaluation.contestants import Contestant, NoAnswerError
from hubkit.evaluation.items import Benchmark, Mode, Question
from hubkit.judging import Judge, Kind, Prompts, Turns, Verdict
from hubkit.rollout.dialogue import split_end_mark
from hubkit.training.rows import seat_view

ROWS = "rows"
_AGAINST, _QUESTION, _TURN = "against", "question", "turn"
_REVEAL = (
    "You are a person who asks an assistant for help, a bit at a time. In your next message, "
    "say only this, in your own words, as part of the conversation: {intent}"
)


@dataclass
class Bench:
    """What an evaluation runs on.

    Attributes:
        user: Words and reveals the parts of a task, in items that are `Question.revealed`.
        judged: Called after each verdict.
        failure: What concerns the whole run."""

    benchmark: Benchmark
    judge: Judge | None
    prompts: Prompts
    judged: Callable[[], None] = lambda: None
    user: Contestant | None = None
    user_system: str = _REVEAL
    user_end_mark: str | None = None
    failure: HubkitError | None = None
    questions: dict[str, Question] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.questions = {question.id: question for question in self.benchmark.questions}

    async def verdict(self, kind: Kind, turns: Turns, conversation: str) -> Verdict:
        """Ask for a verdict on the last answer of `turns`, which are part of `conversation`."""
        assert self.judge is not None, "checks need no judge, and everything else has one"
        try:
            verdict = await self.judge.verdict(
                kind, self.prompts.render(kind, turns), conversation=conversation
            )
        except HubkitError as error:
            self.failure = self.failure or error
            raise
        self.judged()
        return verdict

    async def user_turn(self, question: Question, turn: int, history: Sequence[Message]) -> str:
        """What the user says next: the turn as written, or, of a task that is revealed part by
        part, in the simulated user's words. Raises `NoAnswerError` when it says nothing."""
        text = question.turns[turn - 1]
        if self.user is None or not question.revealed:
            return text
        view = seat_view(history, "user", self.user_system, intent=text)
        try:
            answer = await self.user.answer(f"{question.id}/user", turn, view, 0.7)
        except NoAnswerError:
            raise
        except HubkitError as error:
            self.failure = self.failure or error
            raise
        worded, _ = split_end_mark(answer.content, self.user_end_mark)
        if not worded.strip():
            raise NoAnswerError(f"{self.user.name} said nothing at turn {turn} of {question.id}")
        return worded


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
            metadata = input[-1].metadata or {}
            answer = await self._contestant.answer(
                str(metadata[_QUESTION]), int(metadata[_TURN]), messages, config.temperature or 0.0
            )
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


def task(bench: Bench, mode: Mode, models: Sequence[Model], *, name: str) -> Task:
    """The items of `bench` answered by the first of `models` (in mode ``pairwise`` also by the
    second) and scored."""
    scorers: dict[Mode, Callable[[Bench], Scorer]] = {
        "single": rated,
        "pairwise": compared,
        "criteria": judged_by_criteria,
        "checks": checked_by_code,
    }
    both = mode == "pairwise"
    return Task(
        dataset=_dataset(bench),
        solver=conversation(bench, both=both),
        scorer=scorers[mode](bench),
        model=models[0],
        model_roles={_AGAINST: models[1]} if both else None,
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
    """Plays all user turns of an item against the model, and with `both` against the other model
    too.

    A conversation ends early where an answer is missing: what follows it has no history to stand
    on."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        question = bench.questions[str(state.sample_id)]
        models = [get_model()] + ([get_model(role=_AGAINST, required=True)] if both else [])
        played = await asyncio.gather(*(_play(bench, model, question) for model in models))
        state.messages = played[0][2]
        state.metadata["answers"] = [answers for answers, _, _ in played]
        state.metadata["user_turns"] = played[0][1]
        state.output = ModelOutput.from_content(
            str(models[0]), played[0][0][-1] if played[0][0] else ""
        )
        return state

    return solve


_MESSAGES = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}


async def _play(
    bench: Bench, model: Model, question: Question
) -> tuple[list[str], list[str], list[ChatMessage]]:
    """The model's answers, the user's turns as they were said, and the whole conversation."""
    answers: list[str] = []
    turns: list[str] = []
    history: list[Message] = list(question.messages)
    messages: list[ChatMessage] = [_MESSAGES[m["role"]](content=m["content"]) for m in history]
    for turn in range(1, len(question.turns) + 1):
        try:
            text = await bench.user_turn(question, turn, history)
            turns.append(text)
            messages.append(
                ChatMessageUser(content=text, metadata={_QUESTION: question.id, _TURN: turn})
            )
            output = await model.generate(
                messages, config=GenerateConfig(temperature=question.temperature)
            )
        except NoAnswerError:
            break
        answers.append(output.completion)
        messages.append(output.message)
        history += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": output.completion},
        ]
    return answers, turns, messages


def _as_played(bench: Bench, state: TaskState) -> Question:
    """The item with the user's turns as they were said."""
    question = bench.questions[str(state.sample_id)]
    turns = tuple(state.metadata["user_turns"])
    return replace(question, turns=(*turns, *question.turns[len(turns) :]))


@scorer(metrics=[mean(), stderr()])
def rated(bench: Bench) -> Scorer:
    """The judge's grades of all answers; a sample's value is their mean."""

    async def score(state: TaskState, target: Target) -> Score:
        question, (answers,) = _as_played(bench, state), state.metadata["answers"]
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
        row = Rated(question.id, question.category, turn + 1, None, "no_answer")
        return replace(row, group=question.group), ""
    verdict = await bench.verdict(
        "single", _turns(question, turn, answers), f"{question.id}/{_mark(answers)}"
    )
    return Rated(
        question=question.id,
        category=question.category,
        turn=turn + 1,
        rating=verdict.rating,
        reason=verdict.reason,
        length=len(answers[turn]),
        group=question.group,
    ), verdict.text


@scorer(metrics=[mean(), stderr()])
def judged_by_criteria(bench: Bench) -> Scorer:
    """The judge's yes or no to each criterion of the last answer; a sample's value is whether all
    are met."""

    async def score(state: TaskState, target: Target) -> Score:
        question, (answers,) = _as_played(bench, state), state.metadata["answers"]
        turn = len(question.turns)
        row = Checked(question.id, question.category, turn, ())
        if len(answers) < turn:
            for _ in question.criteria:
                bench.judged()
            return _score([replace(row, reason="no_answer")], [""], [])
        met, reasons, words = [], [], []
        for criterion in question.criteria:
            turns = replace(_turns(question, turn - 1, answers), criterion=criterion.text)
            verdict = await bench.verdict("criterion", turns, f"{question.id}/{_mark(answers)}")
            met.append(verdict.answer == criterion.passes)
            reasons += [verdict.reason] if verdict.reason else []
            words.append(f"{criterion.text}\n{verdict.text}")
        row = replace(
            row,
            passed=tuple(met),
            reason="+".join(sorted(set(reasons))),
            length=len(answers[-1]),
        )
        value = row.all_passed
        return _score([row], ["\n\n".join(words)], [] if value is None else [value])

    return score


@scorer(metrics=[mean(), stderr()])
def checked_by_code(bench: Bench) -> Scorer:
    """What checkers in code say of each turn's answer; a sample's value is the share of turns that
    pass."""

    async def score(state: TaskState, target: Target) -> Score:
        question, (answers,) = _as_played(bench, state), state.metadata["answers"]
        rows, words = [], []
        for turn, checks in enumerate(question.checks, start=1):
            if not checks:
                continue
            row = Checked(question.id, question.category, turn, ())
            if turn > len(answers):
                row, text = replace(row, reason="no_answer"), ""
            else:
                answer, prompt = answers[turn - 1], question.turns[turn - 1]
                met = tuple(passed(check, answer, prompt) for check in checks)
                row = replace(row, passed=met, length=len(answer))
                text = ", ".join(
                    f"{check.name}: {'passed' if passes else 'failed'}"
                    for check, passes in zip(checks, met, strict=True)
                )
            bench.judged()
            rows.append(row)
            words.append(text)
        values = [row.all_passed for row in rows if row.all_passed is not None]
        return _score(rows, words, values)

    return score


@scorer(metrics=[mean(), stderr()])
def compared(bench: Bench) -> Scorer:
    """The judge's choice between both models' answers, asked in both orders; a sample's value is
    its win rate.
    """

    async def score(state: TaskState, target: Target) -> Score:
        question, (answers, opposing) = _as_played(bench, state), state.metadata["answers"]
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
    longer = len(answers[turn]) - len(opposing[turn])
    margin = bench.benchmark.length_margin
    row = Compared(
        question=question.id,
        category=question.category,
        turn=turn + 1,
        first=_outcome(_FIRST, shown_first, longer, margin),
        second=_outcome(_SECOND, shown_second, longer, margin),
        reasons=tuple(v.reason for v in (shown_first, shown_second) if v.reason),
        length=len(answers[turn]),
        against_length=len(opposing[turn]),
        margins=(shown_first.margin, shown_second.margin),
    )
    return row, f"shown first: {shown_first.text}\n\nshown second: {shown_second.text}"


def _outcome(
    names: dict[str, Outcome], verdict: Verdict, longer: int, length_margin: int | None
) -> Outcome | None:
    """What a verdict means for the model whose answer is `longer` characters longer: a slight win
    by more than `length_margin` of them is a tie."""
    if not verdict.winner:
        return None
    outcome = names[verdict.winner]
    ahead = {"win": longer, "loss": -longer, "tie": 0}[outcome]
    if length_margin is not None and verdict.margin < 2 and ahead > length_margin:
        return "tie"
    return outcome


def _mark(answers: Sequence[str]) -> str:
    """Tells conversations about one question apart by their first answer."""
    return hashlib.sha256(answers[0].encode()).hexdigest()[:8]


def _turns(
    question: Question, turn: int, answers: Sequence[str], against: Sequence[str] = ()
) -> Turns:
    upto = turn + 1
    return Turns(
        category=question.category,
        questions=question.turns[:upto],
        answers=answers[:upto],
        against=against[:upto],
        references=question.reference[:upto],
        history=question.messages,
        checklist=question.checklist,
    )


def _score(
    rows: Sequence[Rated | Compared | Checked], texts: Sequence[str], values: Sequence[float]
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
