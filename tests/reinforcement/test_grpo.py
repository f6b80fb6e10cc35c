"""GRPO of a tiny chat model against an asker that is a function: what carries loss, what a group is
worth, what a kill leaves, and when a run stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_base, write_rows

from hubkit import chat_templates
from hubkit.conversation import Message
from hubkit.recipe import Reinforce, SeatConfig
from hubkit.reinforcement import (
    REWARDS,
    AskerSeat,
    Episode,
    GRPOTask,
    Opening,
    RewardContext,
    register,
    reinforce,
)
from hubkit.serving.callable_server import served_callable

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

    def agent(self, messages: list[Message]) -> str:
        self.asked.append(messages)
        return f"And <|im_end|> what about number {len(messages)}?"

    def task(self, model: Any) -> GRPOTask:
        return GRPOTask(
            self.block,
            self.base,
            self.base,
            [AskerSeat("asker", model, SeatConfig(**SEAT))],
            RewardContext(self.folder / "rewards"),
            OPENINGS,
            [Opening("h0", "What is rye?"), Opening("h1", "What is yeast?")][: self.block.held_out],
            self.folder / "journal",
            {"asker": "a@1"},
            printed_as=self.family,
        )

    def run(self, spy: Callable[[Any], None] | None = None) -> dict[str, Any]:
        with served_callable(self.agent) as model:
            task = self.task(model)
            if spy is not None:
                make = task.trainer

                def trainer(*args: Any) -> Any:
                    made = make(*args)
                    spy(made)
                    return made

                task.trainer = trainer  # type: ignore[method-assign]
            return reinforce(
                task, self.data, self.folder / "out", base_repo_id="x/base", seed=1,
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
