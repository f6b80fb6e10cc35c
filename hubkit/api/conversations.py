"""Conversations: read from files or a dataset, cleaned, split."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hubkit.api.history import History, file_ref, library_folder, push
from hubkit.conversation import Conversation
from hubkit.data import corpus
from hubkit.data.filters import Context, Dropped
from hubkit.data.filters.parallel import run as run_filters
from hubkit.data.parquet import ShardWriter, conversation_schema, read_batches
from hubkit.data.readers.files import find_files
from hubkit.errors import SourceError
from hubkit.hub import Ref, connect
from hubkit.pipeline.inputs import files_of, locate
from hubkit.recipe import Corpus, Filter, Source
from hubkit.untrusted import JsonObject

FilterLike = str | Mapping[str, Any] | Filter
"""A filter by its name, or with arguments:
``{"name": "min_turns", "args": {"human_turns": 2}}``."""


def filters_of(filters: Iterable[FilterLike]) -> list[Filter]:
    """Filters as a recipe holds them."""
    return [
        Filter(name=item)
        if isinstance(item, str)
        else Filter.model_validate(dict(item))
        if isinstance(item, Mapping)
        else item
        for item in filters
    ]


@dataclass(frozen=True)
class Conversations:
    """Conversations to train on, to open dialogues with, or to measure against.

    Nothing is read before it is needed. Iterate over it for `hubkit.conversation.Conversation`s.

    Example:
        >>> from hubkit import Conversations
        >>> people = Conversations.read(chats).clean(["alternate_roles", "exact_duplicates"])
        >>> splits = people.split(openings=2, test=2)
        >>> len(splits.openings), len(splits.test)
        (2, 2)
    """

    sources: tuple[Source, ...] = ()
    filters: tuple[Filter, ...] = ()
    files: tuple[Path, ...] = ()
    """Parquet files that hold it as it is; empty: it is read from `sources` through `filters`."""
    history: History = field(default_factory=History)
    ref: Ref | None = None
    """Where it is on a Hub, or what stands for its files."""

    @classmethod
    def read(
        cls,
        *sources: str | Path,
        revision: str = "main",
        files: Sequence[str] = (),
        license: str = "other",
    ) -> Conversations:
        """Take files, folders, or dataset repos, of any layout that hubkit reads.

        Args:
            sources: Paths, or repos such as ``me/my-chats``.
            revision: Branch, tag or commit of the repos.
            files: Only these files of them.
            license: Their licence, as the Hub names it.

        Raises:
            SourceError: Without sources, or where there is neither a path nor a repo.
        """
        if not sources:
            raise SourceError("give at least one file, folder or dataset repo to read")
        return cls(tuple(_source(str(s), revision, files, license) for s in sources))

    def clean(self, filters: Iterable[FilterLike]) -> Conversations:
        """The same after further filters, in order: names, or names with arguments."""
        return replace(self, filters=(*self.filters, *filters_of(filters)))

    def split(self, *, openings: int, test: int, seed: int = 42) -> Splits:
        """Set conversations aside to open dialogues with, and to test on.

        Args:
            openings: Conversations whose first turns open dialogues.
            test: Conversations held out for evaluation.
            seed: Draws them.

        Raises:
            SourceError: A source cannot be read.
            RecipeError: A filter or an argument of one is not known.
            StageError: Too few conversations are left.
        """
        block = Corpus(
            sources=list(self.sources),
            filters=list(self.filters),
            openings=openings,
            test=test,
        )
        inputs = self._inputs()
        facts = [block.model_dump(mode="json"), seed, {k: str(v) for k, v in inputs.items()}]
        folder = library_folder("corpus", facts)
        started = time.monotonic()
        report = corpus.build(block, self._source_files(inputs), folder, seed=seed).to_dict()
        history = self.history.with_blocks(corpus=block)
        history = history.after("corpus", inputs, report, time.monotonic() - started)
        parts = {
            split: tuple(sorted((folder / "data").glob(f"{split}-*.parquet")))
            for split in ("train", "openings", "test")
        }
        ref = file_ref("corpus", [path for paths in parts.values() for path in paths])
        train, opening, held_out = (
            Conversations(files=paths, history=history, ref=ref) for paths in parts.values()
        )
        return Splits(train, opening, held_out, report)

    def __iter__(self) -> Iterator[Conversation]:
        if self.files:
            for batch in (batch for path in self.files for batch in read_batches(path)):
                for row in batch.to_pylist():
                    meta = {k: v for k, v in row.items() if k not in ("id", "messages", "source")}
                    yield Conversation(row["id"], row["messages"], row["source"] or "", meta)
            return
        rows = (
            conversation
            for path in find_files(self._source_files(self._inputs()))[0]
            for conversation in corpus.read(path, source=path.name)
        )
        _, results = run_filters(self.filters, Context(), rows, workers=0)
        for _, results_of_row in results:
            yield from (item for item in results_of_row if not isinstance(item, Dropped))

    def __len__(self) -> int:
        """How many there are; this reads them."""
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self)

    def parquet(self) -> list[Path]:
        """Files that hold these conversations, written first where it is not split."""
        if self.files:
            return list(self.files)
        facts = [
            [f.model_dump() for f in self.filters],
            {k: str(v) for k, v in self._inputs().items()},
        ]
        folder = library_folder("conversations", facts)
        schema = conversation_schema(
            [], optional_fields={k for c in self for m in c.messages for k in m}
        )
        with ShardWriter(folder, "train", schema) as writer:
            for conversation in self:
                writer.write(
                    {
                        "id": conversation.id,
                        "messages": conversation.messages,
                        "source": conversation.source,
                    }
                )
            return list(writer.paths)

    def _inputs(self) -> dict[str, Ref]:
        hub = connect() if any(source.repo_id for source in self.sources) else None
        return {
            f"source {number}": locate(hub, source)  # type: ignore[arg-type]  # a path needs none
            for number, source in enumerate(self.sources, start=1)
        }

    def _source_files(self, inputs: Mapping[str, Ref]) -> list[Path]:
        hub = connect() if any(source.repo_id for source in self.sources) else None
        return [
            path
            for source, ref in zip(self.sources, inputs.values(), strict=True)
            for path in files_of(hub, source, ref)  # type: ignore[arg-type]
        ]


@dataclass(frozen=True)
class Splits:
    """Conversations in three parts that share no conversation and no opening, and the `report` of
    what became of every row.
    """

    train: Conversations
    openings: Conversations
    test: Conversations
    report: JsonObject

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str = "other",
        private: bool | None = None,
        allow: Iterable[str] = (),
    ) -> Ref:
        """Commit all three parts as a dataset, with card and lineage.

        Args:
            repo_id: ``name``, or ``namespace/name``.
            license: Its licence, as the Hub names it.
            private: By default private, except on the embedded Hub.
            allow: Kinds of personal data and secrets that may be in it.

        Returns:
            The commit. Askers trained and dialogues opened from these splits before keep naming
            the files; push first to have the repo in their lineage.

        Raises:
            PublishError: A file holds a secret, or, where it is public, personal data.
        """
        parts = (self.train, self.openings, self.test)
        files = {f"data/{path.name}": path for part in parts for path in part.files}
        history = self.train.history
        return push(
            files,
            repo_id,
            "corpus",
            history,
            ("corpus",),
            license=license,
            private=private,
            allow=allow,
        )


def _source(name: str, revision: str, files: Sequence[str], license: str) -> Source:
    if Path(name).expanduser().exists():
        return Source(path=str(Path(name).expanduser()), files=list(files), license=license)
    if name.count("/") > 1 or name.startswith(("/", ".", "~")) or Path(name).suffix:
        raise SourceError(f"there is no file or folder {name!r}; check the path")
    return Source(repo_id=name, revision=revision, files=list(files), license=license)
