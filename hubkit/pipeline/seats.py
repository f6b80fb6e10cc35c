"""Who sits where in a rollout: which models, which openings, and at which addresses they answer.

A seat is served by the addresses that the recipe names, or, for ``embedded``, by an engine that runs as long as the
rollout does. Seats that share a base share one engine: its weights once in memory, each adapter at its own address.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hubkit import endpoint
from hubkit.hub import Ref, environment
from hubkit.hub.places import cache
from hubkit.pipeline import deployed
from hubkit.pipeline.imports import require
from hubkit.pipeline.stage import Context, Work
from hubkit.progress import Progress
from hubkit.recipe import EMBEDDED as EMBEDDED
from hubkit.recipe import Rollout, SeatConfig
from hubkit.schema import Conversation


def model(context: Context, seat: SeatConfig, progress: Progress) -> Ref:
    """The repo that sits in `seat`, at a commit: what this recipe trained (``asker``), or a repo on the Hub."""
    if seat.repo == "asker":
        return context.before("asker")
    return require(context.hub, seat.repo, progress=progress)


def openings(shards: list[Path]) -> Iterator[Conversation]:
    """Held-out conversations that may open dialogues, in the order of the shards."""
    import pyarrow.parquet as parquet

    for shard in shards:
        for row in parquet.read_table(shard).to_pylist():
            yield Conversation(row["id"], row["messages"], row["source"])


@contextmanager
def served(
    context: Context, inputs: dict[str, Ref], work: Work, block: Rollout
) -> Iterator[tuple[list[str], list[str]]]:
    """The addresses of asker and chat model of `block`, with embedded engines started for the length of the context."""
    recipe = context.recipe
    asker, chat = inputs["asker"], inputs["chat"]
    asker_urls, chat_urls = list(block.asker.endpoints), list(block.chat.endpoints)
    embedded = [urls for urls in (asker_urls, chat_urls) if EMBEDDED in urls]
    is_adapter = recipe.asker.lora is not None and not recipe.asker.merge_adapter
    shares_base = is_adapter and block.asker.repo == "asker" and recipe.asker.base == chat.repo_id
    same = block.asker.repo != "asker" and asker == chat
    together = len(embedded) == 2 and (shares_base or same)
    with ExitStack() as engines:
        for seat, url in engines.enter_context(deployed.addresses(context, inputs, work, block)).items():
            (asker_urls if seat == "asker" else chat_urls)[:] = [url]

        def start(name: str, model: Ref, adapters: dict[str, str], listen: list[str]) -> dict[str, str]:
            work.progress(0, None, f"starting the engine: {model}")
            engine = endpoint.start_engine(
                _at(model),
                adapters,
                listen=listen,
                env=environment(),
                log_path=work.scratch / f"engine-{name}.log",
                cache_dir=cache("engine"),
                context=max(block.asker.context, block.chat.context),
                slots=2 * block.in_flight if together else block.in_flight,
            )
            return engines.enter_context(engine).addresses

        if together and same:
            asker_urls = chat_urls = [start("both", chat, {}, ["base"])["base"]]
        elif together:
            addresses = start("both", chat, {"asker": _at(asker)}, ["asker", "base"])
            asker_urls, chat_urls = [addresses["asker"]], [addresses["base"]]
        else:
            if EMBEDDED in asker_urls and is_adapter and block.asker.repo == "asker":
                base = require(context.hub, recipe.asker.base, revision=recipe.asker.base_revision)
                asker_urls = [start("asker", base, {"asker": _at(asker)}, ["asker"])["asker"]]
            elif EMBEDDED in asker_urls:
                asker_urls = [start("asker", asker, {}, ["base"])["base"]]
            if EMBEDDED in chat_urls:
                chat_urls = [start("chat", chat, {}, ["base"])["base"]]
        yield asker_urls, chat_urls


def _at(ref: Ref) -> str:
    return f"{ref.repo_id}@{ref.revision}"
