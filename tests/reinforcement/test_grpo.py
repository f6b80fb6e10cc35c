"""GRPO of a tiny chat model against an asker that is a function: what carries loss, what a group is
worth, what a kill leaves, and when a run stops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_base, write_rows
from support.waiting import until

from hubkit import chat_templates
from hubkit.conversation import Message
from hubkit.errors import RecipeError, TrainingError
from hubkit.recipe import Reinforce, SeatConfig
from hubkit.reinforcement import (
    REWARDS,
    AskerSeat,
    Episode,
    GRPOTask,
    Masked,
    Opening,
    RewardContext,
    register,
    reinforce,
)
from hubkit.serving import ServedModel
from hubkit.serving.callable_server import served_callable
from hubkit.training import Base

OPENINGS = [Opening(f"o{i}", f"How do I bake bread number {i}?") for i in range(4)]
SEAT = {"endpoints": ["http://127.0.0.1:9"], "repo": None, "name": "a", "license": "none",
        "profile": "openai", "model": "agent", "system": "You are a person."}  # fmt: skip


def block(**changes: Any) -> Reinforce:
    grpo = {
        "num_generations": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "max_steps": 2, "max_completion_length": 6, "learning_rate": 1e-3, "beta": 0.01,
        "gradient_checkpointing": False, "bf16": False, **changes.pop("grpo", {}),
    }  # fmt: skip
    values = {
        "askers": {"asker": SEAT}, "answers": 2, "openings": 4, "held_out": 2, "context": 256,
        "rewards": [{"name": "letters"}], "lora": {"r": 2, "target_modules": ["q_proj"]},
        "checkpoint_minutes": 0.0001, "resamples": 50, **changes,
    }  # fmt: skip
    return Reinforce(grpo=grpo, **values)


@pytest.fixture(autouse=True)
def letters() -> Any:
    @register
    def letters() -> Callable[[Episode], float]:
        return lambda episode: float(sum(map(len, episode.answers)) % 7)

    yield
    del REWARDS["letters"]


class Case:
    """A run in a folder, and what its asker was asked."""

    def __init__(self, folder: Path, family: str = "chatml", **changes: Any) -> None:
        self.folder, self.asked = folder, []  # type: ignore[var-annotated]
        self.base = tiny_base(folder / "base", family)
        self.family, self.block = family, block(**changes)
        self.data = [write_rows(folder / "openings.parquet", [[("user", "Hi")]])]
        self.judges: dict[int, list[tuple[ServedModel, str]]] = {}

    def agent(self, messages: list[Message]) -> str:
        self.asked.append(messages)
        return f"And <|im_end|> what about number {len(messages)}?"

    def task(self, model: Any) -> GRPOTask:
        return GRPOTask(
            self.block,
            self.base,
            self.base,
            [AskerSeat("asker", model, SeatConfig(**SEAT))],
            RewardContext(self.folder / "rewards", "run", self.judges),
            OPENINGS,
            [Opening("h0", "What is rye?"), Opening("h1", "What is yeast?")][: self.block.held_out],
            self.folder / "journal",
            {"asker": "a@1"},
            printed_as=self.family,
        )

    def run(self, spy: Callable[[Any], None] | None = None, model: Any = None) -> dict[str, Any]:
        served = served_callable(self.agent) if model is None else nullcontext(model)
        with served as model:
            task = self.task(model)
            if spy is not None:
                make = task.trainer

                def trainer(*args: Any) -> Any:
                    made = make(*args)
                    spy(made)
                    return made

                task.trainer = trainer  # type: ignore[method-assign]
            return reinforce(
                task, self.data, Base(self.base, "x/base"), self.folder / "out", seed=1,
                work=self.folder / "work",
            )  # fmt: skip


@pytest.mark.parametrize("family", ["chatml", "llama-3"])
def test_only_what_the_policy_wrote_carries_loss(tmp_path: Path, family: str) -> None:
    case, batches = Case(tmp_path, family), []  # type: ignore[var-annotated]

    def spy(trainer: Any) -> None:
        inner = trainer.rollout_func

        def rollout(prompts: Any, given: Any) -> Any:
            batches.append(inner(prompts, given))
            return batches[-1]

        trainer.rollout_func = rollout

    report = case.run(spy)
    assert report["steps"] == 2 and len(batches) == 2
    templates = chat_templates.for_base(case.base, template=family)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case.base)
    user_text = "And <|im_end|> what about"
    for batch in batches:
        for prompt, ids, mask in zip(
            batch["prompt_ids"], batch["completion_ids"], batch["env_mask"], strict=True
        ):
            assert len(ids) == len(mask) and prompt[-1] != tokenizer.eos_token_id
            spans = [[]]  # type: ignore[var-annotated]
            for token, flag in zip(ids, mask, strict=True):
                if spans[-1] and spans[-1][-1][1] != flag:
                    spans.append([])
                spans[-1].append((token, flag))
            flags = [span[0][1] for span in spans]
            assert flags == [1, 0, 1]  # two answers, and what is between them
            first, between, second = ([token for token, _ in span] for span in spans)
            assert len(first) <= 6 and len(second) <= 6
            printed = tokenizer.decode(between)
            assert user_text in printed.replace("< |", "<|")
            # The asker typed an end token; it is text, no control token.
            end = tokenizer.convert_tokens_to_ids(templates.end_token("assistant"))
            closes = [token for token in between if token == end]
            ended = first[-1] == end
            assert len(closes) == (1 if ended else 2)  # the asker's own end, and a cut-off answer's
            opened = templates.layout.seat_prompt("assistant")
            assert printed.endswith(opened)


class Kill(BaseException):
    """Ends a run where it is, as a signal would."""


def fall() -> None:
    """End this run here."""
    raise Kill


def killing(place: str, strike: Callable[[], None] = fall) -> Callable[[Any], None]:
    """Call `strike` at some moment in the middle of generation, rewarding, or an optimiser step."""

    def spy(trainer: Any) -> None:
        owner, name, call = {
            "generation": (trainer, "_generate_single_turn", 4),
            "rewarding": (trainer.run.task, "", 0),
            "step": (trainer, "training_step", 3),
        }[place]
        if place == "rewarding":
            kill_while_scoring(trainer, strike)
            return
        inner, calls = getattr(owner, name), []  # type: ignore[var-annotated]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                strike()
            return inner(*args, **kwargs)

        setattr(owner, name, counted)

    return spy


def kill_while_scoring(trainer: Any, strike: Callable[[], None]) -> None:
    inner = trainer.run.open

    def opened() -> Any:
        conversations = inner()
        score, calls = conversations.rewards.score, []  # type: ignore[var-annotated]

        async def counted(episodes: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                strike()
            return await score(episodes)

        conversations.rewards.score = counted
        return conversations

    trainer.run.open = opened


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("generation", marks=pytest.mark.slow),
        "rewarding",
        pytest.param("step", marks=pytest.mark.slow),
    ],
)
def test_a_kill_costs_no_step_and_nothing_is_asked_twice(tmp_path: Path, place: str) -> None:
    case = Case(tmp_path, held_out=1)
    with pytest.raises(Kill):
        case.run(killing(place))
    assert case.asked
    report = case.run()
    assert report["steps"] == 2
    # Two steps of four conversations, one before and one after, with one turn of the asker each.
    assert len(case.asked) == 2 * 4 + 2
    found = report["reinforcement"]
    assert found["conversations"] == 10 and found["askers"]["requests"] == 10
    assert found["difference"]["n"] == 1 and [e["step"] for e in found["curve"]] == [1, 2]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    import pyarrow.parquet as pq

    [shard] = (tmp_path / "out" / "conversations").glob("*.parquet")
    rows = pq.read_table(shard).to_pylist()
    assert sorted({row["group"] for row in rows}) == ["after", "before", "g0", "g1"]
    assert all(row["reward"] == row["rewards"][0]["value"] for row in rows)


CHILD = """
import sys, threading
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import test_grpo as tests
from hubkit.reinforcement import register
from hubkit.serving import ServedModel
folder, url, token, place = Path(sys.argv[2]), *sys.argv[3:]
@register
def letters():
    return lambda episode: float(sum(map(len, episode.answers)) % 7)
def stand_still():
    (folder / "here").touch()
    threading.Event().wait()
case = tests.Case(folder, held_out=1)
case.run(tests.killing(place, stand_still), ServedModel((url,), "openai", "agent", token))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["generation", "rewarding", "step"])
def test_kill_9_costs_no_step_and_nothing_is_asked_twice(tmp_path: Path, place: str) -> None:
    case = Case(tmp_path, held_out=1)
    with served_callable(case.agent) as model:
        arguments = [str(Path(__file__).parent), str(tmp_path), model.urls[0], str(model.token)]
        child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments, place])

        def is_there() -> bool:
            assert child.poll() is None, "the run ended by itself"
            return (tmp_path / "here").exists()

        try:
            until(is_there, timeout_s=300)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        assert case.asked
        report = case.run(model=model)
    assert report["steps"] == 2 and len(case.asked) == 2 * 4 + 2
    assert report["reinforcement"]["conversations"] == 10


def test_advantages_are_those_worked_out_by_hand_and_a_masked_one_has_none(tmp_path: Path) -> None:
    values: dict[str, Any] = {"0": 1.0, "1": 2.0, "2": 4.0, "3": Masked("unsure")}
    del REWARDS["letters"]

    @register
    def letters() -> Callable[[Episode], Any]:
        return lambda episode: values[episode.id.rpartition("/")[2]]

    grpo = {"num_generations": 4, "per_device_train_batch_size": 4, "max_steps": 1,
            "gradient_accumulation_steps": 1}  # fmt: skip
    case = Case(tmp_path, held_out=0, answers=1, grpo=grpo)
    batches = []

    def spy(trainer: Any) -> None:
        inner = trainer._generate_and_score_completions

        def scored(inputs: Any) -> Any:
            batches.append(inner(inputs))
            return batches[-1]

        trainer._generate_and_score_completions = scored

    report = case.run(spy)
    mean, deviation = 7 / 3, (7 / 3) ** 0.5  # of 1, 2 and 4: ((16 + 1 + 25) / 9) / 2 squared
    expected = [*((value - mean) / (deviation + 1e-4) for value in (1, 2, 4)), 0.0]
    [batch] = batches
    assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-5)
    assert batch["tool_mask"][3].sum() == (batch["tool_mask"].shape[1] - mask_length(batch, 3))
    assert report["reinforcement"]["masked"] == {"letters: unsure": 1}


def mask_length(batch: Any, row: int) -> int:
    """Tokens of a completion, padding not included."""
    return int(batch["completion_mask"][row].sum())


@pytest.mark.parametrize(
    ("value", "changes", "sentence"),
    [
        (1.0, {"flat_batches": 1}, "1 batches in a row .* were rewarded the same"),
        (Masked("unsure"), {}, r"all 4 conversations of a batch are masked \(letters: unsure\)"),
    ],
)
def test_a_run_that_can_learn_nothing_stops_with_a_sentence(
    tmp_path: Path, value: Any, changes: dict[str, Any], sentence: str
) -> None:
    del REWARDS["letters"]

    @register
    def letters() -> Callable[[Episode], Any]:
        return lambda episode: value

    case = Case(tmp_path, held_out=0, **changes)
    with pytest.raises(TrainingError, match=sentence):
        case.run()
    assert len(case.asked) == 4  # one batch, and no more is spent


class Never:
    """A reward that does not answer."""

    async def score(self, episodes: Sequence[Episode]) -> Sequence[Any]:
        await asyncio.Event().wait()
        return []


@pytest.mark.slow
def test_a_run_whose_reward_never_answers_stops_with_a_sentence(tmp_path: Path) -> None:
    del REWARDS["letters"]

    @register
    def letters() -> Never:
        return Never()

    case = Case(tmp_path, held_out=0, rewards=[{"name": "letters", "timeout_s": 0.05}])
    with pytest.raises(TrainingError, match=r"all 4 conversations .* masked \(letters: timeout\)"):
        case.run()
    assert len(case.asked) == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(None, "judge_timeout", marks=pytest.mark.slow),
        ("It is wonderful.", "judge_no_verdict"),
    ],
)
def test_a_run_whose_judge_is_late_or_out_of_schema_stops_with_a_sentence(
    tmp_path: Path, answer: str | None, reason: str
) -> None:
    over = threading.Event()

    def judge(messages: list[Message]) -> str:
        if answer is None:
            over.wait()
        return answer or '{"explanation": "so so", "verdict": 8}'

    judging = {"judge": SEAT, "attempts": 1, "json_schema": True, "timeout_s": 0.2}
    case = Case(tmp_path, held_out=0, rewards=[{"name": "judges", "judges": [judging]}])
    with served_callable(judge) as model:
        case.judges = {0: [(model, "a judge")]}
        with pytest.raises(TrainingError, match=rf"all 4 conversations .* \(judges: {reason}\)"):
            case.run()
        over.set()
    assert len(case.asked) == 4, "one batch, and no more is spent"


def test_caps_and_batches_that_cannot_work_are_told_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    for changes, sentence in [
        ({"grpo": {"steps_per_generation": 3}}, "no multiple of gradient_accumulation_steps"),
        ({"grpo": {"generation_batch_size": 16}}, "a batch takes 8 openings, and there are 4"),
        ({"context": 16, "grpo": {"max_completion_length": 16}}, "leaves no room before an answer"),
        ({"grpo": {"max_stepps": 3}}, "did you mean 'max_steps'"),
    ]:
        case = Case(tmp_path, **changes)  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match=sentence):
            case.run()
        assert case.asked == []


def test_a_cap_keeps_what_was_reached(tmp_path: Path) -> None:
    # Each request may cost a prompt's estimate and a whole answer: the cap holds one batch.
    case = Case(tmp_path, held_out=0, budget_tokens=900, grpo={"max_steps": 4})
    report = case.run()
    assert 0 < report["steps"] < 4
    assert report["reinforcement"]["stopped"] == "budget_tokens"
