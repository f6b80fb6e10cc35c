"""GRPO of a chat model against frozen askers, on TRL's own trainer.

Takes a recipe's `Reinforce` block and held-out openings; TRL's ``GRPOTrainer`` is given a function
that holds whole conversations and says which of their tokens the policy wrote. Answers are sampled
by the trainer itself (transformers on a CPU, vLLM where the recipe says ``use_vllm``), so what
answers is always the current policy; askers and judges are models at addresses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from hubkit import chat_templates
from hubkit.conversation import Seat
from hubkit.errors import RecipeError, SourceError, TrainingError
from hubkit.progress import Progress
from hubkit.recipe import Reinforce
from hubkit.reinforcement.conversations import (
    AskerSeat,
    CapReachedError,
    Conversations,
    Opening,
    Talk,
)
from hubkit.reinforcement.rewards import RewardContext, Rewards, labels_of
from hubkit.reinforcement.transcript import TranscriptPrinter
from hubkit.serving.reply_journal import JournalSpec
from hubkit.statistics import Bootstrap
from hubkit.training.config import grpo_config, lora_config, model_options
from hubkit.training.loading import (
    ChatWeights,
    require_context,
)
from hubkit.training.process import Rows
from hubkit.training.report import versions
from hubkit.training.trainer import NoTelemetry
from hubkit.training.trial import check_training
from hubkit.untrusted import JsonObject

BEFORE, AFTER = "before", "after"
CURVE = ("reward", "reward_std", "kl", "completions/mean_length", "entropy", "turns",
         "masked_share", "repeated_share", "frac_reward_zero_std")  # fmt: skip


@dataclass
class GRPOTask(ChatWeights):
    """`block` on the chat model in `chat`, an adapter of `base` or a whole model. A
    `hubkit.training.process.Task`.

    Args:
        block: What to do.
        base: The model below an adapter.
        chat: The chat model.
        askers: Who asks, where they answer.
        context: What rewards need.
        openings: What conversations open with: those of the training, and the held-out ones.
        folder: Where the journal is.
        identity: What tells this run from others: the commits of askers, judges and openings.
        system: The chat model's system message.
        printed_as: As in the chat model's own block.
        thinking: As in the chat model's own block.
    """

    block: Reinforce
    base: Path
    chat: Path
    askers: Sequence[AskerSeat]
    context: RewardContext
    openings: Sequence[Opening]
    held_out: Sequence[Opening]
    folder: Path
    provenance: Mapping[str, Any]
    system: str | None = None
    printed_as: str | None = None
    thinking: chat_templates.Thinking = "off"
    seat: Seat = "assistant"
    findings: JsonObject = field(default_factory=dict)
    rewards: dict[str, dict[str, float]] = field(default_factory=dict)
    records: list[JsonObject] = field(default_factory=list)

    @cached_property
    def identity(self) -> str:
        """Which chat model, askers and judges they are."""
        facts = json.dumps([self.provenance, self.system], sort_keys=True, default=str)
        return f"{self.weights_id} {facts} "

    @property
    def settings(self) -> JsonObject:
        """What went to TRL."""
        return self.block.grpo

    def configure(self, work: Path, *, seed: int) -> tuple[Any, list[str]]:
        """A ``GRPOConfig`` of as many steps as the recipe asks for, and notes."""
        config, notes = grpo_config(self.block, work, seed=seed)
        require_context("reinforce.context", self.start, self.block.context, "the chat model")
        lora_config(self.block)  # its mistakes are told before anything is loaded
        if config.world_size > 1:
            raise RecipeError(
                "reinforce runs in one process: conversations end at different times, so processes "
                "would wait for each other; run it without --launch, with grpo.use_vllm where "
                "there is a GPU"
            )
        check_batches(config, len(self.openings), self.block)
        config.reward_weights = [term.weight for term in self.block.rewards]
        config.max_steps = steps(config, len(self.openings))
        TranscriptPrinter(self.templates, self.tokenizer, self.system)
        options = model_options(self.block)
        findings = check_training(self.block, self.start, config, options=options)
        findings.require()
        return config, [*notes, *findings.notes]

    def rows(self, data: Sequence[Path], config: Any, work: Path, progress: Progress) -> Rows:
        """One row an opening and generation, in the order of use: a resumed run only skips."""
        count = config.generation_batch_size // config.num_generations
        generations = math.ceil(config.max_steps / updates_per_generation(config))
        order: list[Opening] = []
        chance = Random(config.seed)
        while len(order) < count * generations:
            order += chance.sample(list(self.openings), len(self.openings))
        ready = [
            {"prompt": [{"role": "user", "content": o.text, "opening": o.id}]}
            for o in order[: count * generations]
        ]
        stats = {"openings": len(self.openings), "held_out": len(self.held_out)}
        return Rows(ready, {**stats, "conversations": len(ready) * config.num_generations}, 0, 0)

    def trainer(self, config: Any, rows: Rows, watch: Any) -> Any:
        """TRL's ``GRPOTrainer`` over `rows`."""
        from datasets import Dataset
        from transformers.trainer_callback import PrinterCallback

        model, lora = self.trainable(self.block)
        _stop_at(model, self.tokenizer, self.templates)
        run = Run(self, config, watch)
        trainer = _trainer_class()(
            run,
            model=model,
            args=config,
            reward_funcs=[_reward_of(label) for label in labels_of(self.block.rewards)],
            train_dataset=Dataset.from_list(rows.ready),
            processing_class=self.tokenizer,
            peft_config=lora,
            callbacks=[*([watch] if watch else []), _callback(run)],
            rollout_func=run.rollout,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


class Run:
    """One run under way: its conversations, and what is watched about them."""

    def __init__(self, task: GRPOTask, config: Any, watch: Any) -> None:
        self.task, self.config, self.watch = task, config, watch
        self.by_id = {o.id: o for o in [*task.openings, *task.held_out]}
        self.updates = updates_per_generation(config)
        self.stopped = ""
        self.flat = 0
        self.last_mask = ""
        self.conversations: Conversations
        self.trainer: Any = None

    def open(self) -> Conversations:
        """The conversations, to be entered."""
        task = self.task
        context = task.context
        self.conversations = Conversations(
            task.block,
            task.askers,
            TranscriptPrinter(task.templates, task.tokenizer, task.system),
            Rewards(task.block.rewards, context),
            journal=JournalSpec(
                task.folder,
                self.config.seed,
                {"identity": task.identity, "seed": self.config.seed, "versions": versions()},
            ),
            max_tokens=self.config.max_completion_length,
            progress=self.say,
        )
        return self.conversations

    def say(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Show what is going on next to the step."""
        if self.watch is not None:
            state = self.trainer.state
            self.watch.say(state.global_step, state.max_steps, note)

    def generate(
        self, prompts: list[list[int]], seed: int
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """What the policy samples after each of `prompts`, by TRL's own generation."""
        import torch

        torch.manual_seed(seed)
        ids, logprobs = self.trainer._generate_single_turn(prompts, None, {}, 1)
        return [list(map(int, answer)) for answer in ids], logprobs

    def rollout(self, prompts: list[Any], trainer: Any) -> JsonObject:
        """TRL's ``rollout_func``: whole conversations, and which tokens the policy wrote."""
        generation = trainer.state.global_step // self.updates
        openings = [self.by_id[prompt[0]["opening"]] for prompt in prompts]
        talks = self.conversations.hold(f"g{generation}", openings, self.generate)
        self._watch(talks)
        trainer.tokens_trained += sum(len(talk.transcript.ids) for talk in talks)
        has_logprobs = any(talk.logprobs for talk in talks)
        return {
            "prompt_ids": [talk.transcript.prompt for talk in talks],
            "completion_ids": [talk.transcript.completion for talk in talks],
            "logprobs": [talk.logprobs for talk in talks] if has_logprobs else None,
            "env_mask": [loss_mask(talk) for talk in talks],
            "parts": [_parts(talk) for talk in talks],
        }

    def _watch(self, talks: Sequence[Talk]) -> None:
        """Record what is watched; stop where nothing can be learned."""
        facts = measured(talks)
        for name in ("turns", "masked_share", "repeated_share"):
            self.trainer._metrics["train"][name].append(facts[name])
        totals = [t.outcome.total if t.outcome else None for t in talks]
        reasons = [f"{k}: {v}" for t in talks if t.outcome for k, v in t.outcome.masks.items()]
        if all(total is None for total in totals):
            raise TrainingError(
                f"all {len(talks)} conversations of a batch are masked ({reasons[0]}), so nothing "
                "can be learned; correct the rewards, and run the same command: it resumes there"
            )
        size = self.config.num_generations
        groups = [totals[i : i + size] for i in range(0, len(totals), size)]
        is_flat = all(_is_flat(group) for group in groups)
        self.flat = self.flat + 1 if is_flat else 0
        if self.flat >= self.task.block.flat_batches:
            raise TrainingError(
                f"in {self.flat} batches in a row all conversations with the same opening were "
                f"rewarded the same (the last with {_first(totals):g}), so nothing can be "
                "learned; reward something that differs, sample at a higher grpo.temperature, or "
                "raise reinforce.flat_batches"
            )

    def measure(self, when: str) -> None:
        """Rewards on the held-out openings, by the policy as it is now."""
        if self.task.held_out:
            self.trainer.model.eval()
            talks = self.conversations.hold(when, self.task.held_out, self.generate)
            self.task.findings[when] = measured(talks)
            self.task.rewards[when] = {
                t.opening.id: t.outcome.total
                for t in talks
                if t.outcome and t.outcome.total is not None
            }

    def conclude(self) -> None:
        """What the report says of the whole run."""
        findings, conversations = self.task.findings, self.conversations
        first, second = (self.task.rewards.get(when, {}) for when in (BEFORE, AFTER))
        if first and second:
            bootstrap = Bootstrap(self.task.block.resamples, seed=self.config.seed)
            findings["difference"] = bootstrap.difference(
                {(key,): value for key, value in second.items()},
                {(key,): value for key, value in first.items()},
            ).to_dict()
        history = self.trainer.state.log_history
        findings["curve"] = [
            {"step": e["step"], **{k: e[k] for k in CURVE if e.get(k) is not None}}
            for e in history
            if "reward" in e
        ]
        spent = conversations.budget.spent
        findings["askers"] = {
            "tokens": {name: list(counts) for name, counts in spent.tokens.items()},
            "requests": spent.requests,
            **dict(conversations.counts),
        }
        records = conversations.finished()
        findings["masked"] = dict(sorted(_masks(records).items()))
        findings["ends"] = dict(sorted(_ends(records).items()))
        findings["seconds_by_part"] = {k: round(v, 1) for k, v in conversations.seconds.items()}
        findings["stopped"] = self.stopped
        self.task.records = records


def loss_mask(talk: Talk) -> list[int]:
    """1 for each token of the completion that carries loss: those that the policy wrote, in a
    conversation that has a reward."""
    if talk.outcome is None or talk.outcome.total is None:
        return [0] * len(talk.transcript.mask)
    return list(talk.transcript.mask)


def measured(talks: Sequence[Talk]) -> JsonObject:
    """What is watched about conversations: rewards by term, turns, lengths, repetition, masks."""
    outcomes = [talk.outcome for talk in talks if talk.outcome is not None]
    totals = [o.total for o in outcomes if o.total is not None]
    answers = [answer for talk in talks for answer in talk.episode.answers]
    labels = dict.fromkeys(label for o in outcomes for label in o.parts)
    return {
        "conversations": len(talks),
        "reward": _mean(totals),
        "rewards": {
            label: _mean([v for o in outcomes if (v := o.parts.get(label)) is not None])
            for label in labels
        },
        "turns": _mean([talk.answers for talk in talks]) or 0.0,
        "words": _mean([len(answer.split()) for answer in answers]),
        "repeated_share": _mean([repeated_share(answer) for answer in answers]) or 0.0,
        "masked_share": 1 - len(totals) / max(len(talks), 1),
    }


def repeated_share(answer: str, size: int = 4) -> float:
    """Share of the word n-grams of `answer` that stood in it before; 0 for a short one."""
    words = answer.split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def updates_per_generation(config: Any) -> int:
    """Optimiser steps for which one batch of conversations is used."""
    micro = config.steps_per_generation * config.num_iterations
    return int(max(1, micro // config.gradient_accumulation_steps))


def steps(config: Any, openings: int) -> int:
    """Optimiser steps: as said, or as the epochs take."""
    if config.max_steps > 0:
        return int(config.max_steps)
    each = config.generation_batch_size // config.num_generations
    generations = math.ceil(config.num_train_epochs * openings / each)
    return int(generations * updates_per_generation(config))


def check_batches(config: Any, openings: int, block: Reinforce) -> None:
    """Raise `RecipeError` or `SourceError` for a run that could not work."""
    micro = config.steps_per_generation * config.num_iterations
    if micro % config.gradient_accumulation_steps:
        raise RecipeError(
            f"grpo.steps_per_generation {config.steps_per_generation} times num_iterations "
            f"{config.num_iterations} is no multiple of gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps}: a batch of conversations would be used for "
            "part of a step"
        )
    each = config.generation_batch_size // config.num_generations
    if openings < 1:
        raise SourceError(
            "no held-out first turn can open a conversation here; raise corpus.openings, or "
            "reinforce.max_opening_chars"
        )
    if openings < each:
        raise RecipeError(
            f"a batch takes {each} openings, and there are {openings}; raise reinforce.openings "
            "or lower grpo.generation_batch_size"
        )
    if block.context <= config.max_completion_length:
        raise RecipeError(
            f"reinforce.context {block.context} leaves no room before an answer of "
            f"grpo.max_completion_length {config.max_completion_length} tokens"
        )


def _trainer_class() -> Any:
    from trl import GRPOTrainer

    class ConversationTrainer(NoTelemetry, GRPOTrainer):  # type: ignore[misc]
        """TRL's own; measures before and after, and keeps what was reached when a cap ends it."""

        def __init__(self, run: Run, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.run, run.trainer = run, self

        def train(self, *args: Any, **kwargs: Any) -> Any:
            """Train inside of open conversations."""
            run = self.run
            with run.open():
                result = None
                try:
                    run.measure(BEFORE)
                    result = super().train(*args, **kwargs)
                    run.measure(AFTER)
                except CapReachedError as cap:
                    if not self.state.global_step:
                        raise TrainingError(
                            f"reinforce.{cap.name} was reached before the first step; raise it, "
                            "and run the same command: it resumes from there"
                        ) from None
                    run.stopped = cap.name
                run.conclude()
            return result

    return ConversationTrainer


def _callback(run: Run) -> Any:
    from transformers import TrainerCallback

    class WholeGenerations(TrainerCallback):  # type: ignore[misc]
        """Checkpoints only where a batch of conversations is used up, so that a resumed run begins
        with a new one; and what is shown while it runs."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % run.updates:
                control.should_save = False

        def on_log(
            self, args: Any, state: Any, control: Any, logs: JsonObject | None = None, **kw: Any
        ) -> None:
            curves = {"reward": "reward", "kl": "KL", "completions/mean_length": "tokens",
                     "turns": "turns", "masked_share": "masked"}  # fmt: skip
            parts = [f"{name} {logs[k]:.3g}" for k, name in curves.items() if logs and logs.get(k)]
            if parts and run.watch is not None:
                run.watch.note = ", ".join(parts)

    return WholeGenerations()


def _reward_of(label: str) -> Any:
    """TRL's reward function of one term: what the conversations were given already."""

    def reward(parts: list[str], **kwargs: Any) -> list[float | None]:
        return [json.loads(part).get(label) for part in parts]

    reward.__name__ = label
    return reward


def _parts(talk: Talk) -> str:
    """Each reward by its label; none of a conversation that one of them masks, as TRL would count
    what is missing as 0."""
    outcome = talk.outcome
    return json.dumps(outcome.parts if outcome and outcome.total is not None else {})


def _stop_at(model: Any, tokenizer: Any, templates: chat_templates.SeatTemplates) -> None:
    """Let generation end at the end of the seat's turns, whatever the base's own defaults are."""
    ends = model.generation_config.eos_token_id
    ids = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    token = templates.end_token("assistant")
    if token is not None:
        end = tokenizer.convert_tokens_to_ids(token)
        ids = [end, *(token for token in ids if token != end)]
    model.generation_config.eos_token_id = ids


def _is_flat(group: Sequence[float | None]) -> bool:
    values = [value for value in group if value is not None]
    return len(values) < 2 or max(values) - min(values) < 1e-9


def _first(totals: Sequence[float | None]) -> float:
    return next(value for value in totals if value is not None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _masks(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        for label, reason in record["outcome"]["masks"].items():
            counts[f"{label}: {reason}"] = counts.get(f"{label}: {reason}", 0) + 1
    return counts


def _ends(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record["finish_reason"]] = counts.get(record["finish_reason"], 0) + 1
    return counts
