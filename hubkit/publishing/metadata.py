"""The YAML on top of a card: what the Hub indexes, filters and loads by.

Takes `CardFacts`, gives huggingface_hub's card data for that kind of repo. Keys and values follow
the Hub's own specifications of model and dataset card metadata."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from huggingface_hub.repocard_data import CardData

from hubkit.publishing import card_data as read
from hubkit.publishing import scorecard
from hubkit.publishing.card_data import CardFacts, Input
from hubkit.recipe import Recipe, Training
from hubkit.serving.model_names import is_another_model
from hubkit.untrusted import JsonObject

TAG = "hubkit"
TrainedKind = Literal["asker", "chat", "aligned", "reinforced"]
_PATTERNS: dict[str, dict[str, dict[str, str]]] = {
    "corpus": {
        "default": {split: f"data/{split}-*.parquet" for split in ("train", "openings", "test")}
    },
    "dialogues": {
        "default": {"train": "data/train-*.parquet"},
        "raw": {"train": "data/raw-*.parquet"},
        "dropped": {"train": "data/dropped-*.parquet"},
        "baseline": {"train": "data/baseline-*.parquet"},
    },
    "benchmark": {
        "default": {"test": "mt-bench-8.jsonl"},
        "offline-16": {"test": "offline-16.jsonl"},
        "offline-checks": {"test": "offline-checks.jsonl"},
    },
    "preference": {"default": {"train": "data/train-*.parquet"}},
    "results": {
        "default": {"test": "data/results-*.parquet"},
        "reinforced": {"train": "data/reinforced-*.parquet"},
        "against": {"train": "data/against-*.parquet"},
    },
}
_SHARD = re.compile(r"data/(.+)-\d{5}-of-\d{5}\.parquet")
# Only a licence that the Hub has no word for needs a name.
_OTHER_NAME = {"corpus": "rights-of-the-writers-unclear", "source": "rights-of-the-writers-unclear"}


def card_data(facts: CardFacts) -> CardData:
    """The front matter of `facts`' repo."""
    if facts.kind in ("asker", "chat", "aligned", "reinforced"):
        return _trained_model(facts, facts.kind)
    if facts.kind == "base":
        return _imported_base(facts)
    return _dataset(facts)


def configs(facts: CardFacts) -> list[JsonObject]:
    """The dataset's configs as the Hub wants them, only those whose files are there (all when no
    file is named).
    """
    entries: list[JsonObject] = []
    for name, splits in _PATTERNS.get(facts.kind, {}).items():
        present = {
            s: p for s, p in splits.items() if not facts.files or fnmatch.filter(facts.files, p)
        }
        if present:
            entries.append(_config(name, present))
    return entries


def configs_by_name(files: Sequence[str]) -> list[dict[str, Any]]:
    """A config for each of the datasets among `files` (``data/NAME-00000-of-…parquet``), called as
    it is: they have columns of their own."""
    names = {m[1] for path in files if (m := _SHARD.fullmatch(path))}
    return [
        _config(name, {"train": f"data/{name}-?????-of-?????.parquet"}) for name in sorted(names)
    ]


def _config(name: str, splits: Mapping[str, str]) -> dict[str, Any]:
    data_files = [{"split": split, "path": path} for split, path in splits.items()]
    return {"config_name": name, "data_files": data_files}


def license_of(facts: CardFacts) -> str:
    """The licence id of `facts`' repo, as the recipe states it."""
    recipe = facts.recipe
    if facts.kind == "base":
        return "apache-2.0"
    if facts.kind == "benchmark":
        return "cc-by-4.0"
    if recipe is None or facts.kind == "source":
        return "other"
    if facts.kind == "corpus":
        stated = {source.license for source in recipe.corpus.sources}
        return stated.pop() if len(stated) == 1 else "other"
    if facts.kind == "results":
        return "cc0-1.0"
    by_kind = {"asker": "license_asker", "chat": "license_chat", "dialogues": "license_dialogues"}
    by_kind |= {"preference": "license_dialogues", "aligned": "license_chat"}
    by_kind |= {"reinforced": "license_chat"}
    return str(getattr(recipe.publish, by_kind[facts.kind]))


def _trained_model(facts: CardFacts, kind: TrainedKind) -> ModelCardData:
    recipe = _recipe(facts)
    adapter = adapter_of(recipe, kind)
    roles = {"asker": "corpus", "chat": "dialogues", "aligned": "preference"}
    data = facts.input({**roles, "reinforced": "openings"}[kind])
    results = _eval_results(facts, kind)
    return ModelCardData(
        license=license_of(facts),
        language=list(recipe.publish.language),
        base_model=base_of(facts, kind).repo_id,
        base_model_relation="adapter" if adapter else "finetune",
        datasets=[data.repo_id] if data else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=_tags(
            recipe,
            "user-simulator" if kind == "asker" else "chat",
            "trl",
            {"aligned": "dpo", "reinforced": "grpo"}.get(kind, "sft"),
        ),
        model_name=getattr(recipe.names, kind) if results else None,
        eval_results=results,
        **_license_extra(facts),
    )


def adapter_of(recipe: Recipe, kind: TrainedKind) -> bool:
    """Whether the model of that kind is pushed as an adapter. On pairs, one stays one, unless it is
    merged.
    """
    if kind == "asker":
        return recipe.asker.gives_adapter
    blocks = {"aligned": recipe.preference, "reinforced": recipe.reinforce}
    block = blocks.get(kind)
    if block is not None and block.merge_adapter:
        return False
    return recipe.chat.gives_adapter or (block is not None and block.lora is not None)


def base_of(facts: CardFacts, kind: TrainedKind) -> Input:
    """What the model of that kind was trained from: the recipe's base, or the whole model that was
    optimised.
    """
    recipe = _recipe(facts)
    training: Training = recipe.asker if kind == "asker" else recipe.chat
    further = kind in ("aligned", "reinforced")
    whole = facts.input("chat") if further and not training.gives_adapter else None
    return (
        whole
        or facts.input("base")
        or Input("base", training.base, "model", training.base_revision)
    )


def _eval_results(facts: CardFacts, kind: TrainedKind) -> list[EvalResult] | None:
    comparison, corpus = read.held_out(facts.results, kind), facts.input("held-out", "corpus")
    if comparison is None or corpus is None:
        return None
    turn = "human" if kind == "asker" else "assistant"
    card = scorecard.from_results(facts.results) if kind == "asker" else None
    return [
        scorecard.held_out_result(
            corpus, "loss", f"Loss per {turn}-turn token (nats)", comparison.model
        ),
        *(scorecard.model_index(card, corpus) if card else ()),
    ]


def _imported_base(facts: CardFacts) -> ModelCardData:
    return ModelCardData(
        license="apache-2.0",
        language=["en"],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["imported", "dequantized", "q4_1", TAG],
    )


def _dataset(facts: CardFacts) -> DatasetCardData:
    recipe = facts.recipe
    upstream = (
        facts.input("source 1", "source", "corpus", "openings", "dialogues")
        if facts.kind != "results"
        else None
    )
    pretty = {
        "corpus": "asker",
        "dialogues": "dialogues",
        "preference": "dialogues",
        "results": "system",
    }
    name = (
        getattr(recipe.names, pretty[facts.kind])
        if recipe and facts.kind in pretty
        else facts.repo_id
    )
    suffix = {
        "corpus": "human conversations",
        "preference": "preference pairs",
        "results": "results",
    }
    language = list(recipe.publish.language) if recipe else ["en"]
    return DatasetCardData(
        license=license_of(facts),
        language=language,
        pretty_name=f"{name} {suffix.get(facts.kind, '')}".strip(),
        task_categories=["text-generation"] if facts.kind != "results" else None,
        size_categories=read.size_category(rows_of(facts)),
        annotations_creators=_ANNOTATED_BY.get(facts.kind),
        source_datasets=[upstream.repo_id]
        if upstream and upstream.repo_type == "dataset"
        else None,
        tags=_tags(recipe, *_DATASET_TAGS[facts.kind]),
        configs=configs(facts) or None,
        **_license_extra(facts),
    )


_DATASET_TAGS: dict[str, tuple[str, ...]] = {
    "corpus": ("conversational", "multi-turn"),
    "dialogues": ("conversational", "multi-turn", "synthetic", "user-simulator"),
    "preference": ("conversational", "multi-turn", "synthetic", "preference", "dpo"),
    "results": ("evaluation",),
    "source": ("conversational", "imported"),
    "benchmark": ("evaluation", "benchmark", "multi-turn", "arxiv:2306.05685"),
}
_ANNOTATED_BY = {
    "corpus": "found",
    "source": "found",
    "dialogues": "machine-generated",
    "preference": "machine-generated",
    "benchmark": "expert-generated",
}


def rows_of(facts: CardFacts) -> int | None:
    """Rows in the dataset's default config, as its report has them."""
    if facts.kind == "corpus":
        rows = read.first(facts.report("corpus"), "kept")
    elif facts.kind == "dialogues":
        rows = read.first(facts.report("curate"), "kept")
    elif facts.kind == "preference":
        rows = read.first(facts.report("prefer"), "pairs")
    elif facts.kind == "source":
        rows = read.first(facts.report("import"), "conversations")
    elif facts.kind == "benchmark":
        rows = read.first(facts.report("benchmark"), "questions")
    else:
        rows = None
    return rows if isinstance(rows, int) else None


def _tags(recipe: Recipe | None, *tags: str) -> list[str]:
    return [*tags, TAG, *(recipe.tags if recipe else [])]


def _license_extra(facts: CardFacts) -> dict[str, Any]:
    name = _OTHER_NAME.get(facts.kind, "see-the-licence-section")
    return {"license_name": name} if license_of(facts) == "other" else {}


def _recipe(facts: CardFacts) -> Recipe:
    if facts.recipe is None:
        raise ValueError(
            f"a {facts.kind} card is rendered from a recipe; give CardFacts(recipe=...)"
        )
    return facts.recipe


def answering_model(facts: CardFacts) -> str:
    """Who wrote the dialogues' answers: the recipe's model, or what the server at its address said
    it was, where that is another.
    """
    seat = _recipe(facts).rollout.chat
    source = facts.input("chat model", "chat")
    name = source.repo_id if source and seat.repo else seat.model_name
    models = facts.reports.get("rollout", {}).get("models", {}).get("chat", {})
    if not seat.is_elsewhere:
        return name
    repo = seat.repo or seat.name or ""
    other_models = [model for model in models if is_another_model(model, repo, seat.model)]
    if other_models:
        return f"{', '.join(other_models)} (so named by the server; the recipe names {name})"
    return name


def license_notes(facts: CardFacts, sources: Sequence[str] = ()) -> list[str]:
    """What a card says about rights, line by line."""
    recipe = _recipe(facts)
    stated = license_of(facts)
    notes = [
        f"This repo: {stated}."
        if stated != "other"
        else "This repo: no standard licence fits; read on."
    ]
    if facts.kind in ("asker", "chat", "aligned", "reinforced"):
        base = (recipe.asker if facts.kind == "asker" else recipe.chat).base
        notes.append(f"It derives from {base}, whose licence and use policy go with it.")
    if facts.kind == "dialogues":
        notes.append(
            f"Its answers were written by {answering_model(facts)}; that model's terms on the "
            f"use of "
            "its output go with them."
        )
    if facts.kind == "preference":
        made_wrong = facts.input("answers")
        rejected = made_wrong.repo_id if made_wrong else "a chat model"
        notes.append(
            f"Its chosen answers were written by {answering_model(facts)}, its rejected ones by "
            f"{rejected}; the "
            "models' terms on the use of their output go with them."
        )
    for source in recipe.corpus.sources if facts.kind != "results" else ():
        where = source.repo_id or "a local file"
        notes.append(f"Human turns go back to {where}. {source.license_note}".strip())
    if recipe.publish.license_note:
        notes.append(recipe.publish.license_note)
    return notes
