"""The stages, in order: what each reads, what it builds, what its card is rendered from. A table of
contents.

Builders are a few lines each: fetch the inputs' files, call the room that does the work, return its
report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubkit import evaluation, publishing, training
from hubkit.data import corpus as corpora
from hubkit.data import curation
from hubkit.data.filters import needs_questions, needs_tokenizer
from hubkit.hub import Ref
from hubkit.metrics import plots
from hubkit.pipeline import players, seats
from hubkit.pipeline.answering import judge_input
from hubkit.pipeline.inputs import locate, require
from hubkit.pipeline.stage import WEIGHTS, Context, Stage, Work, parquet
from hubkit.pipeline.stages import baseline, dialogue_stats, intents, preference, rollout
from hubkit.progress import Progress
from hubkit.recipe import Filter, Recipe, Source, Training

# 1. corpus: people's conversations, cleaned and split


def _corpus_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    block = context.recipe.corpus
    named = {f"source {number}": source for number, source in enumerate(block.sources, start=1)}
    inputs = {
        role: locate(context.hub, source, progress=progress) for role, source in named.items()
    }
    inputs |= _question_inputs(context, block.filters, progress)
    if needs_tokenizer(block.filters):
        inputs["tokenizer"] = _base(context, context.recipe.asker, progress)
    return inputs | (judge_input(context, block.intents.judging, progress) if block.intents else {})


def _question_inputs(context: Context, filters: list[Filter], progress: Progress) -> dict[str, Ref]:
    """The benchmarks' questions, where a filter of `filters` looks for them."""
    named = context.recipe.corpus.questions if needs_questions(filters) else {}
    return {
        f"questions {name}": locate(context.hub, source, progress=progress)
        for name, source in named.items()
    }


def _questions(context: Context, inputs: dict[str, Ref]) -> dict[str, Path]:
    """Their files, by name."""
    named = context.recipe.corpus.questions.items()
    roles = {name: f"questions {name}" for name, _ in named if f"questions {name}" in inputs}
    return {
        name: _files(context, source, inputs, roles[name])[0]
        for name, source in named
        if name in roles
    }


def _tokenizer(context: Context, inputs: dict[str, Ref]) -> Path | None:
    """The folder of the tokenizer that lengths are counted with, where one was asked for."""
    return (
        context.hub.snapshot(inputs["tokenizer"], allow_patterns=WEIGHTS[1:])
        if "tokenizer" in inputs
        else None
    )


def _build_corpus(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    block = context.recipe.corpus
    pairs = [
        (path, source)
        for n, source in enumerate(block.sources, 1)
        for path in _files(context, source, inputs, f"source {n}")
    ]
    report = corpora.build(
        block,
        [path for path, _ in pairs],
        work.out,
        sources=[source for _, source in pairs],
        seed=context.recipe.seed,
        tokenizer=_tokenizer(context, inputs),
        questions=_questions(context, inputs),
        progress=work.progress,
    )
    return _with_funnel(intents.add(context, inputs, work, report.to_dict()), work)


def _with_funnel(report: dict[str, Any], work: Work) -> dict[str, Any]:
    """`report`, its drop funnel plotted beside it for the card."""
    plots.funnel(work.out / "funnel.png", report)
    return report


def _files(context: Context, source: Source, inputs: dict[str, Ref], role: str) -> list[Path]:
    """Where a source's files lie on this machine: in a snapshot of its repo, or at its path."""
    if not source.repo_id:
        return [Path(source.path)] if source.path else []
    folder = context.hub.snapshot(inputs[role], allow_patterns=source.files or None)
    return [folder / name for name in source.files] or [folder]


# 2. asker, and 5. chat: one trainer, two seats


def _asker_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    return {
        "base": _base(context, context.recipe.asker, progress),
        "corpus": context.before("corpus"),
    }


def _chat_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    return {
        "base": _base(context, context.recipe.chat, progress),
        "dialogues": context.before("curate"),
    }


def _base(context: Context, block: Training, progress: Progress) -> Ref:
    return require(context.hub, block.base, revision=block.base_revision, progress=progress)


def _build_asker(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    return _train(context, context.recipe.asker, inputs["base"], inputs["corpus"], work)


def _build_chat(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    return _train(context, context.recipe.chat, inputs["base"], inputs["dialogues"], work)


def _train(context: Context, block: Training, base: Ref, data: Ref, work: Work) -> dict[str, Any]:
    report = training.train(
        block,
        parquet(context.hub, data, "train"),
        context.hub.snapshot(base, allow_patterns=WEIGHTS),
        work.out,
        base_repo_id=base.repo_id,
        base_revision=base.revision,
        seed=context.recipe.seed,
        work=work.scratch,
        launch=context.launch,
        progress=work.progress,
    )
    return report.to_dict()


# 3. rollout: the asker questions the chat model


def _rollout_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    block = context.recipe.rollout
    inputs = {"openings": context.before("corpus")}
    for name, seat in (("asker", block.asker), ("chat", block.chat)):
        if seat.repo is not None:
            inputs[name] = seats.model(context, seat.repo, progress)
    return inputs


def _build_rollout(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    report = rollout.drive(context, inputs, work, context.recipe.rollout, shared=True).to_dict()
    beside = baseline.drive(context, inputs, work)
    return report | ({"baseline": beside} if beside else {})


# 4. curate: what is kept becomes a version, measured beside what people say


def _curate_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    block = context.recipe.curate
    inputs = {"rollout": context.before("rollout")} | _question_inputs(
        context, block.filters, progress
    )
    if block.measure:
        inputs["corpus"] = context.before("corpus")
    if block.measure or needs_tokenizer(block.filters):
        inputs["tokenizer"] = _base(context, context.recipe.asker, progress)
    return inputs


def _build_curate(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    raw = parquet(context.hub, inputs["rollout"], "raw")
    report = curation.curate(
        context.recipe.curate,
        raw,
        work.out,
        tokenizer=_tokenizer(context, inputs),
        questions=_questions(context, inputs),
        progress=work.progress,
    )
    measured = dialogue_stats.measure(context, inputs, work, raw)
    return _with_funnel(report.to_dict(), work) | ({"measures": measured} if measured else {})


# 6. prefer and align: only with a preference block; see hubkit.pipeline.stages.preference


# 7. eval: held-out loss of each seat beside its base


def _eval_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    recipe = context.recipe
    return {
        "corpus": context.before("corpus"),
        "asker base": _base(context, recipe.asker, progress),
        "asker": context.before("asker"),
        "chat base": _base(context, recipe.chat, progress),
        "chat": context.before("chat"),
        **preference.eval_inputs(context),
    }


def _build_eval(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    hub, recipe = context.hub, context.recipe
    candidates = {
        name: evaluation.Candidate(
            training=block,
            base=hub.snapshot(inputs[f"{name} base"], allow_patterns=WEIGHTS),
            trained=hub.snapshot(inputs[name], allow_patterns=WEIGHTS),
        )
        for name, block in {"asker": recipe.asker, "chat": recipe.chat}.items()
    } | preference.candidates(context, inputs)
    held_out = parquet(hub, inputs["corpus"], "test")
    results = evaluation.heldout(
        recipe.eval, held_out, candidates, seed=recipe.seed, progress=work.progress
    )
    if block := recipe.eval.scorecard:
        results["scorecard"] = players.card(
            context, block, inputs, held_out, results["asker"], work
        )
    (work.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    return results


# What they share


def _card(
    kind: publishing.Kind, stage: str
) -> Callable[[Context, dict[str, Ref], dict[str, Any]], str]:
    """A function that renders the card of `kind` from the record of `stage` and those that its repo
    held before.
    """

    def render(context: Context, inputs: dict[str, Ref], record: dict[str, Any]) -> str:
        repo_id = next(s for s in STAGES if s.name == stage).repo_id(context)
        records: dict[str, dict[str, Any]] = {}
        for ref in inputs.values():
            if ref.repo_id == repo_id:
                records |= publishing.records(context.hub, ref)
        records[stage] = record
        results = record["report"] if kind == "results" else None
        return publishing.render(
            publishing.from_records(kind, repo_id, context.recipe, records, results=results)
        )

    return render


STAGES: tuple[Stage, ...] = (
    Stage(
        "corpus",
        "corpus",
        "dataset",
        _corpus_inputs,
        _build_corpus,
        _card("corpus", "corpus"),
        ("data/*",),
        outgrown=intents.outgrown,
    ),
    Stage(
        "asker",
        "asker",
        "model",
        _asker_inputs,
        _build_asker,
        _card("asker", "asker"),
        ("*.safetensors",),
    ),
    Stage(
        "rollout",
        "dialogues",
        "dataset",
        _rollout_inputs,
        _build_rollout,
        _card("dialogues", "rollout"),
        ("data/raw-*", "data/baseline-*"),
        settle=rollout.settle,
        outgrown=rollout.outgrown,
    ),
    Stage(
        "curate",
        "dialogues",
        "dataset",
        _curate_inputs,
        _build_curate,
        _card("dialogues", "curate"),
        ("data/train-*", "data/dropped-*"),
        tagged=True,
    ),
    Stage(
        "chat",
        "chat",
        "model",
        _chat_inputs,
        _build_chat,
        _card("chat", "chat"),
        ("*.safetensors",),
    ),
    Stage(
        "prefer",
        "preference",
        "dataset",
        preference.prefer_inputs,
        preference.build_prefer,
        _card("preference", "prefer"),
        ("data/train-*",),
        tagged=True,
        needs="preference",
        outgrown=preference.outgrown,
    ),
    Stage(
        "align",
        "aligned",
        "model",
        preference.align_inputs,
        preference.build_align,
        _card("aligned", "align"),
        ("*.safetensors",),
        needs="preference",
    ),
    Stage("eval", "results", "dataset", _eval_inputs, _build_eval, _card("results", "eval")),
)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of `recipe`, in order: without those whose block it does not have."""
    return tuple(s for s in STAGES if not s.needs or getattr(recipe, s.needs) is not None)
