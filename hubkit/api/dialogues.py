"""Dialogues of an asker and a chat model: raw, or curated."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hubkit.api.conversations import FilterLike, filters_of
from hubkit.api.history import History, file_ref, library_folder, push
from hubkit.conversation import Conversation, ConversationRow
from hubkit.data import curation
from hubkit.data.parquet import read_batches
from hubkit.errors import StageError
from hubkit.hub import Ref
from hubkit.recipe import Curate
from hubkit.untrusted import JsonObject


@dataclass(frozen=True)
class Dialogues:
    """Dialogues with everything that says where they come from. Iterate over it for
    `hubkit.conversation.Conversation`s; `rows` gives every column.

    `raw` are the parquet files as rolled out, `kept` and `dropped` those that curation wrote.
    """

    raw: tuple[Path, ...]
    report: JsonObject
    history: History
    kept: tuple[Path, ...] | None = None
    dropped: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The parquet files of these dialogues."""
        return self.raw if self.kept is None else self.kept

    def rows(self) -> Iterator[ConversationRow]:
        """Every dialogue as a row of the dataset."""
        for path in self.files:
            for batch in read_batches(path):
                yield from batch.to_pylist()

    def __iter__(self) -> Iterator[Conversation]:
        for row in self.rows():
            meta = {k: v for k, v in row.items() if k not in ("id", "messages", "source")}
            yield Conversation(row["id"], row["messages"], row.get("source") or "", meta)

    def __len__(self) -> int:
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(path).num_rows for path in self.files)

    def curate(self, filters: Iterable[FilterLike]) -> Dialogues:
        """Keep the dialogues that every filter keeps, in order.

        Args:
            filters: Names, or names with arguments.

        Returns:
            What is kept; its `report` counts what was dropped, and why.

        Raises:
            RecipeError: A filter or an argument of one is not known.
        """
        block = Curate(filters=filters_of(filters), measure=None)
        inputs = {"rollout": file_ref("dialogues", list(self.raw))}
        facts = [block.model_dump(mode="json"), inputs["rollout"].revision]
        folder = library_folder("curated", facts)
        started = time.monotonic()
        report = curation.curate(block, list(self.raw), folder).to_dict()
        history = self.history.with_blocks(curate=block)
        history = history.after("curate", inputs, report, time.monotonic() - started)
        parts = {
            split: tuple(sorted((folder / "data").glob(f"{split}-*.parquet")))
            for split in ("train", "dropped")
        }
        return Dialogues(self.raw, report, history, parts["train"], parts["dropped"])

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str = "other",
        private: bool | None = None,
        allow: Iterable[str] = (),
    ) -> Ref:
        """Commit them as a dataset with card, lineage and licence, and tag the next version.

        Args:
            repo_id: ``name``, or ``namespace/name``.
            license: Its licence, as the Hub names it.
            private: By default private, except on the embedded Hub.
            allow: Kinds of personal data and secrets that may be in it.

        Raises:
            PublishError: A file holds a secret, or, where it is public, personal data.
        """
        if self.kept == ():
            raise StageError(
                f"none of {self.report['rows_read']:,} dialogues is kept; curate them with other "
                "filters (`report` counts what each of these dropped), then push"
            )
        parts = (*self.raw, *(self.kept or ()), *self.dropped)
        files = {f"data/{path.name}": path for path in parts}
        return push(
            files,
            repo_id,
            "dialogues",
            self.history,
            ("rollout", "curate"),
            license=license,
            private=private,
            allow=allow,
        )
