"""Finished dialogues as rows, and rows as parquet shards that are whole or not there.

A shard's rows carry everything that says where they came from. `index` is the dialogue's number in
its run: a run is continued from its shards alone by leaving out the numbers they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from hubkit.conversation import Message
from hubkit.errors import DiskFullError, SourceError
from hubkit.files import sync_folder
from hubkit.recipe import Rollout
from hubkit.rollout.dialogue import Dialogue, ended_on_answer
from hubkit.serving.model_names import is_another_model
from hubkit.untrusted import JsonObject, parse_json

if TYPE_CHECKING:
    import pyarrow as pa


class Source(TypedDict):
    """The model of a seat."""

    repo_id: str | None
    revision: str | None


class Row(TypedDict, total=False):
    """A dialogue, as a shard holds it; shards of earlier versions lack columns. Lists of turns are
    parallel to `messages`, with nothing for those of the opening."""

    asker: Source
    chat: Source
    sampling: str
    provenance: str
    run: str
    seed: int
    id: str
    index: int
    messages: list[Message]
    human_turns: int
    end_reason: str
    source: str | None
    opening: dict[str, str]
    intent: str | None
    persona: str | None
    target_turns: int
    finish_reasons: list[str | None]
    seeds: list[int | None]
    attempts: list[int | None]
    trimmed: list[int]
    prompt_tokens: list[int | None]
    completion_tokens: list[int | None]
    cached_tokens: list[int | None]
    flaws: list[str]
    thinking: list[str | None]
    models: list[str | None]
    retries: list[str]
    usage: dict[str, int]
    unanswered: str | None
    error: JsonObject | None
    created_at: datetime


_DIGESTS = "digests.txt"
_LEDGER = b"hubkit.ledger"
_SHARD = re.compile(r"raw-\d+(-[0-9a-f]+)*")
_PER_TURN = (
    "finish_reasons",
    "seeds",
    "attempts",
    "trimmed",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
)


@cache
def schema() -> pa.Schema:
    """The columns of a shard."""
    import pyarrow as pa

    text, count = pa.string(), pa.int64()
    model = pa.struct([("repo_id", text), ("revision", text)])
    columns: list[tuple[str, pa.DataType]] = [
        ("id", text),
        ("messages", pa.list_(pa.struct([("role", text), ("content", text)]))),
        ("human_turns", pa.int32()),
        ("end_reason", text),
        ("source", text),
        ("opening", pa.struct([("id", text), ("source", text)])),
        ("intent", text),
        ("persona", text),
        ("asker", model),
        ("chat", model),
        ("sampling", text),
        ("provenance", text),
        ("run", text),
        ("index", count),
        ("seed", count),
        ("target_turns", pa.int32()),
        ("finish_reasons", pa.list_(text)),
        *[(name, pa.list_(count)) for name in _PER_TURN[1:]],
        ("flaws", pa.list_(text)),
        ("thinking", pa.list_(text)),
        ("models", pa.list_(text)),
        ("retries", pa.list_(text)),
        (
            "usage",
            pa.struct(
                [
                    (f"{s}_{k}_tokens", count)
                    for s in ("asker", "chat")
                    for k in ("prompt", "completion")
                ]
            ),
        ),
        ("unanswered", text),
        ("error", pa.struct([("seat", text), ("status", pa.int32()), ("message", text)])),
        ("created_at", pa.timestamp("ms", tz="UTC")),
    ]
    return pa.schema(columns)


class Rows:
    """Makes rows for one run: what all of them share is worked out once."""

    def __init__(
        self, block: Rollout, *, seed: int, digest: str, provenance: Mapping[str, Any]
    ) -> None:
        def model(seat: str) -> Source:
            source = provenance.get(seat) or {}
            return {
                "repo_id": source.get("repo_id") or getattr(block, seat).repo,
                "revision": source.get("revision"),
            }

        def sampling(seat: str) -> JsonObject:
            config = getattr(block, seat)
            return {
                **config.sampling.model_dump(),
                "system": config.system,
                "context": config.context,
            }

        self.seed, self.provenance = seed, provenance
        self._seats = block.seats
        self._shared = {
            "asker": model("asker"),
            "chat": model("chat"),
            "sampling": json.dumps(
                {"asker": sampling("asker"), "chat": sampling("chat")}, sort_keys=True
            ),
            "provenance": json.dumps(dict(provenance), sort_keys=True, default=str),
            "run": digest,
            "seed": seed,
        }

    def row(self, dialogue: Dialogue) -> Row:
        """The row of a dialogue that has ended. Per-turn lists are parallel to `messages`, with
        nothing for those of the opening.
        """
        plan = dialogue.plan
        messages, unanswered = ended_on_answer(dialogue.messages)
        if dialogue.turns and dialogue.turns[-1].closing:
            unanswered = dialogue.turns[-1].content
        turns = dialogue.turns[: max(0, len(messages) - len(plan.messages))]
        opening = len(messages) - len(turns)
        values = {
            **self._shared,
            **self._other_models(dialogue),
            "id": plan.id,
            "index": plan.index,
            "messages": messages,
            "human_turns": sum(m["role"] == "user" for m in messages),
            "end_reason": dialogue.end_reason,
            "source": plan.opening.get("source") or None,
            "opening": plan.opening,
            "intent": plan.intent or None,
            "persona": plan.persona or None,
            "target_turns": plan.human_turns,
            "finish_reasons": [None] * opening + [turn.finish_reason for turn in turns],
            "seeds": [None] * opening + [turn.seed for turn in turns],
            "attempts": [None] * opening + [turn.attempts for turn in turns],
            "trimmed": [0] * opening + [turn.trimmed for turn in turns],
            "prompt_tokens": [None] * opening + [turn.prompt_tokens for turn in turns],
            "completion_tokens": [None] * opening + [turn.completion_tokens for turn in turns],
            "cached_tokens": [None] * opening + [turn.cached_tokens for turn in turns],
            "flaws": [""] * opening + [turn.flaw for turn in turns],
            "thinking": [None] * opening + [turn.thinking or None for turn in turns],
            "models": [None] * opening + [turn.model or None for turn in turns],
            "retries": [why for turn in dialogue.turns for why in turn.earlier_failures]
            + [attempt.failure for attempt in dialogue.failed_attempts],
            "usage": _usage(dialogue),
            "unanswered": unanswered or None,
            "error": dialogue.error,
            "created_at": datetime.fromtimestamp(dialogue.ended_at, UTC),
        }
        return cast("Row", values)

    def _other_models(self, dialogue: Dialogue) -> dict[str, Source]:
        """The seats whose servers, at addresses of the user's own, gave their model another name
        than the recipe does.
        """
        named: dict[str, Source] = {}
        for role, config in self._seats.items():
            names = {turn.model for turn in dialogue.turns if turn.seat == role}
            repo = config.repo or config.name or ""
            if not config.is_elsewhere or repo == "asker":
                continue
            names_of_others = sorted(n for n in names if is_another_model(n, repo, config.model))
            if names_of_others:
                seat = "asker" if role == "user" else "chat"
                named[seat] = {"repo_id": ", ".join(names_of_others), "revision": None}
        return named


def _usage(dialogue: Dialogue) -> dict[str, int]:
    usage = dict.fromkeys(
        [f"{s}_{k}_tokens" for s in ("asker", "chat") for k in ("prompt", "completion")], 0
    )
    for turn in dialogue.turns:
        seat = "asker" if turn.seat == "user" else "chat"
        usage[f"{seat}_prompt_tokens"] += turn.prompt_tokens or 0
        usage[f"{seat}_completion_tokens"] += turn.completion_tokens or 0
    return usage


def write(rows: Sequence[Row], path: Path, ledger: Mapping[str, Mapping[str, float]]) -> None:
    """Write `rows` to `path`, whole or not at all, and durably.

    `ledger` says what each driver of the run had spent by then (see `State.ledger`). It travels in
    the file, so that caps hold on the next machine too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _replacing(path) as part:
        about = schema().with_metadata({_LEDGER: json.dumps(ledger, sort_keys=True)})
        table = pa.Table.from_pylist(sorted(rows, key=lambda row: int(row["index"])), schema=about)
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)


def keep_digests(folder: Path) -> None:
    """Make `folder` one in which every shard that is written has its digest kept beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _DIGESTS).touch()


def _note_digest(part: Path, path: Path) -> None:
    """Keep the sha256 of a shard, written to `part`, that is to be at `path`, where its folder
    keeps digests: a page's checksum says nothing of the names, types and places that follow the
    pages.

    A line is added and none removed, so that a shard which was not replaced after all still has
    its own."""
    digests_path = path.parent / _DIGESTS
    if not digests_path.exists():
        return
    with part.open("rb") as file, digests_path.open("a", encoding="ascii") as digests:
        digests.write(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
        digests.flush()
        os.fsync(digests.fileno())


def _require_whole(path: Path) -> None:
    """Raise `SourceError` for a shard that is other than it was written. One of which no digest
    was kept, as of a commit, has the Hub's."""
    try:
        lines = (path.parent / _DIGESTS).read_text("ascii", errors="replace").splitlines()
    except OSError:
        return
    digests = {digest for digest, _, name in (line.partition("  ") for line in lines)
             if name == path.name}  # fmt: skip
    with path.open("rb") as file:
        if digests and hashlib.file_digest(file, "sha256").hexdigest() not in digests:
            raise SourceError(
                f"{path} is damaged: it has changed since it was written; remove it: what it held "
                "is asked for again"
            )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path`: it is, durably, when the block ends.

    Raises `DiskFullError`, or `SourceError` for another failure to write.
    """
    part = path.with_suffix(".part")
    try:
        yield part
        _note_digest(part, path)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left for the shard {path}; free some and run the same command"
            ) from None
        raise SourceError(
            f"the shard {path} cannot be written: {error.strerror or error}"
        ) from None


def standing(folder: Path) -> list[Path]:
    """The run's shards in `folder`, in order: ``raw-NUMBER``, made here, or with the driver or
    commit that they came from appended. Files of other names (a copy that a user made) are
    none."""
    return sorted(path for path in folder.glob("raw-*.parquet") if _SHARD.fullmatch(path.stem))


def read_runs(path: Path) -> set[str]:
    """The digests of the runs whose dialogues a shard holds; empty for a file that is no shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["run"], page_checksum_verification=True)
        return set(table["run"].unique().to_pylist())
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return set()


def is_of_commit(path: Path) -> bool:
    """Whether a shard was copied from a commit on ``main``,
    whose revision its name then ends on."""
    return re.fullmatch(r"raw-\d+-[0-9a-f]{8}", path.stem) is not None


def read_indices(path: Path, digest: str) -> list[int]:
    """The dialogue numbers that a shard holds. Raises `SourceError` when it is no shard, or one of
    another run.
    """
    table = _read(path, ["index", "run"])
    _require_whole(path)
    runs = set(table["run"].unique().to_pylist())
    if runs - {digest}:
        raise SourceError(
            f"{path} belongs to another run ({', '.join(sorted(str(run)[:8] for run in runs))}, "
            f"not {digest[:8]}): the recipe's rollout block, the seed or a model has changed. "
            "Use another folder for this run"
        )
    indices: list[int] = table["index"].to_pylist()
    return indices


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Columns of a shard (all without any named), each page against its checksum. Raises
    `SourceError`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise SourceError(
            f"{path} is not a rollout shard, or is damaged: "
            f"{' '.join(str(error).split())[:200]}; remove it: what it held is asked for again"
        ) from None


def read_ledger(path: Path) -> dict[str, dict[str, float]]:
    """What each driver of the run had spent when the shard was written; empty for a shard that does
    not say.
    """
    import pyarrow.parquet as pq

    try:
        ledger = parse_json((pq.read_schema(path).metadata or {}).get(_LEDGER, b"{}"))
        return {
            str(driver): {str(k): float(v) for k, v in sums.items()}
            for driver, sums in ledger.items()
        }
    except (ValueError, AttributeError, TypeError):
        return {}


def read_rows(path: Path, ended: Sequence[str]) -> list[Row]:
    """The rows of a shard that ended for one of the reasons `ended`."""
    import pyarrow.parquet as pq

    rows: list[Row] = pq.read_table(path, filters=[("end_reason", "in", list(ended))]).to_pylist()
    return rows


def copy(path: Path, to: Path, *, leave: Callable[[int, str], bool]) -> int:
    """Copy a shard without the rows whose (index, end reason) `leave` names, durably, as `write`
    does. Gives how many rows are left.
    """
    import pyarrow.parquet as pq

    table = _read(path)  # all of it: whatever is damaged is not passed on
    named = zip(table["index"].to_pylist(), table["end_reason"].to_pylist(), strict=True)
    places = [row for row, (index, reason) in enumerate(named) if not leave(index, reason)]
    if not places:
        return 0
    with _replacing(to) as part:
        if len(places) == table.num_rows and pq.read_schema(path).names == schema().names:
            shutil.copyfile(path, part)
        else:
            rows = _with_all_columns(table.take(places))
            pq.write_table(rows, part, compression="zstd", write_page_checksum=True)
    return len(places)


def _with_all_columns(table: pa.Table) -> pa.Table:
    """A table of an earlier version with the columns that it lacks, empty: the files of a dataset
    must agree.
    """
    import pyarrow as pa

    for field in schema():
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    columns = [name for name in schema().names if name in table.column_names]
    return table.select(columns)


def totals(paths: Iterable[Path]) -> tuple[int, dict[str, int], int, int]:
    """Over finished shards: dialogues, end reasons, human turns and generated turns; read column by
    column.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    dialogues = human = generated = 0
    ends: dict[str, int] = {}
    for path in paths:
        table = pq.read_table(path, columns=["end_reason", "human_turns", "seeds"])
        dialogues += table.num_rows
        human += pc.sum(table["human_turns"]).as_py() or 0
        seeds = pc.list_flatten(table["seeds"])
        generated += len(seeds) - seeds.null_count
        for entry in pc.value_counts(table["end_reason"]).to_pylist():
            ends[entry["values"]] = ends.get(entry["values"], 0) + entry["counts"]
    return dialogues, ends, human, generated
