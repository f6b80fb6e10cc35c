"""Dialogues compared with people's held-out conversations and with the baseline: the table and
plots of a card.
"""

from __future__ import annotations

from pathlib import Path

from hubkit import metrics
from hubkit.errors import HubError, SourceError
from hubkit.hub import Hub, Ref
from hubkit.pipeline.inputs import encoder
from hubkit.pipeline.stage import RunContext, StageDirs, parquet
from hubkit.pipeline.stages import baseline
from hubkit.progress import Progress
from hubkit.untrusted import JsonObject

PEOPLE = "people, held out"
ALONE = "the chat model told to play the user"


def measure(
    context: RunContext, inputs: dict[str, Ref], dirs: StageDirs, raw: list[Path]
) -> JsonObject | None:
    """Measure the dialogues of `raw`, those kept in ``dirs.out``, the baseline's and people's,
    alike.

    Writes ``stats.json`` and plots into ``dirs.out``; gives what the card shows of them, or None
    where the recipe does not want it. An encoder that cannot be had leaves topics out and says why.
    Raises `SourceError`."""
    block, hub = context.recipe.curate.measure, context.hub
    if block is None:
        return None
    asker = context.recipe.names.asker
    datasets = {
        f"{asker}, raw": raw,
        f"{asker}, kept": sorted((dirs.out / "data").glob("train-*.parquet")),
        ALONE: parquet(hub, inputs["rollout"], baseline.SPLIT, may_be_empty=True),
        PEOPLE: parquet(hub, inputs["corpus"], "test", may_be_empty=True),
    }
    embedder, why = (
        _encoder(hub, dirs.progress)
        if block.topics
        else (None, "the recipe does not ask for topics")
    )
    report = metrics.stats(
        {name: files for name, files in datasets.items() if files},
        dirs.out,
        baseline=PEOPLE,
        helpers=metrics.Helpers(
            hub.snapshot(inputs["tokenizer"], allow_patterns=["tokenizer.json"]), embedder
        ),
        size=block.sample,
        seed=context.recipe.seed,
        progress=dirs.progress,
    )
    return _card_facts(report, why) | {
        "roles": {"asker": f"{asker}, raw", "baseline": ALONE, "people": PEOPLE}
    }


def _encoder(hub: Hub, progress: Progress) -> tuple[Path | None, str]:
    try:
        return encoder(hub, progress=progress), ""
    except (HubError, SourceError) as error:
        return None, f"no encoder could be had: {error}"


def _card_facts(report: metrics.StatsReport, without_topics: str) -> JsonObject:
    columns, rows = report.table()
    likeness = {dataset.name: dataset.values.get("likeness_auc") for dataset in report.datasets}
    return {
        "columns": columns,
        "rows": rows,
        "unit": report.unit,
        "sampled": {dataset.name: dataset.sampled for dataset in report.datasets},
        "missing": {
            dataset.name: dataset.missing for dataset in report.datasets if dataset.missing
        },
        "likeness": {name: [v.value, v.low, v.high] for name, v in likeness.items() if v},
        "without_topics": without_topics,
        "files": report.files,
    }
