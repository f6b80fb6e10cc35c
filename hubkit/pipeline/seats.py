"""Who sits where in a rollout: which models, which openings, and at which addresses they answer.

A seat is served by the addresses that the recipe names, or, for ``embedded``, by an engine that
runs as long as the rollout does. Seats that share a base share one engine: its weights once in
memory, each adapter at its own address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubkit.conversation import Conversation
from hubkit.hub import Ref
from hubkit.pipeline import deployed
from hubkit.pipeline.inputs import require
from hubkit.pipeline.serving import Model, engines
from hubkit.pipeline.stage import Context, Work
from hubkit.progress import Progress
from hubkit.publishing.metadata import is_adapter
from hubkit.recipe import EMBEDDED, Rollout


def model(context: Context, repo: str, progress: Progress) -> Ref:
    """A seat's `repo` at a commit: what this recipe trained (``asker``), or a repo on the Hub."""
    if repo == "asker":
        return context.before("asker")
    return require(context.hub, repo, progress=progress)


def openings(shards: list[Path], intent_column: str | None = None) -> Iterator[Conversation]:
    """Held-out conversations that may open dialogues, in the order of the shards, with what their
    human wanted.
    """
    import pyarrow.parquet as parquet

    for shard in shards:
        for row in parquet.read_table(shard).to_pylist():
            meta = {"intent": row.get(intent_column) or ""} if intent_column else {}
            yield Conversation(row["id"], row["messages"], row["source"], meta)


@contextmanager
def served(
    context: Context, inputs: dict[str, Ref], work: Work, block: Rollout
) -> Iterator[tuple[list[str], list[str]]]:
    """The addresses of asker and chat model of `block`, with embedded engines started for the
    length of the context.
    """
    recipe = context.recipe
    urls = {"asker": list(block.asker.endpoints), "chat": list(block.chat.endpoints)}
    models = {seat: Model(inputs[seat]) for seat in urls if seat in inputs}
    if EMBEDDED in urls["asker"] and block.asker.repo == "asker" and is_adapter(recipe.asker):
        models["asker"] = Model(
            inputs["asker"],
            require(context.hub, recipe.asker.base, revision=recipe.asker.base_revision),
        )
    embedded = {seat: model for seat, model in models.items() if EMBEDDED in urls[seat]}
    tokens = max(block.asker.context, block.chat.context)
    with (
        deployed.addresses(context, inputs, work, block) as made,
        engines(
            embedded,
            work.scratch,
            work.progress,
            slots=block.in_flight,
            tokens=tokens,
            at_once=True,
        ) as started,
    ):
        urls |= {seat: [url] for seat, url in {**made, **started}.items()}
        yield urls["asker"], urls["chat"]
