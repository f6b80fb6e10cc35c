"""Why nothing could be read or nothing is left, in one sentence that names what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from hubkit.data.readers.advice import REASONS as OPTIONS_FOR
from hubkit.data.readers.layouts import TURN_LISTS
from hubkit.data.readers.rules import TURN
from hubkit.errors import SourceError, StageError

if TYPE_CHECKING:
    from hubkit.data.corpus import CorpusReport
    from hubkit.data.filters import Step, Tally

KINDS = {
    "lfs_pointer": "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`",
    "html_page": "an HTML page, such as a Hub gives instead of a file; look at it and fetch again",
    "xml_file": "an XML file; convert it to JSON Lines",
    "zip_archive": "a zip archive; unpack it",
    "7z_archive": "a 7z archive; unpack it",
    "rar_archive": "a RAR archive; unpack it",
    "bzip2_file": "packed by bzip2; unpack it",
    "xz_file": "packed by xz; unpack it",
    "nested_container": "a container inside a container; unpack the outer one",
    "unpacks_without_end": "a packed file that unpacks to far more than any text would",
    "sqlite_database": "an SQLite database; export its table as JSON Lines or parquet",
    "duckdb_database": "a DuckDB database; export its table as JSON Lines or parquet",
    "text_transcript": "a transcript as plain text, in which nothing says where one conversation "
    'ends; write each as a line of JSON, {"text": "…"}, with a blank line before every turn',
    "plain_text": "plain text, and no table; write each conversation as a line of JSON, or name "
    "the file .csv or .tsv if its first line names columns",
    "pickle_file": "a pickle, which could run code; export its rows as JSON Lines or parquet",
    "mac_resource_fork": "a Mac's record about a file, not the file itself",
}

REASONS = {
    "turn_not_text": " (images, sound or other parts that are no text)",
    "not_an_object": " (a row is an object with keys)",
    "broken_json": " (the text is no JSON)",
    "broken_csv": " (quotes in them are not closed, or not doubled)",
    "row_of_other_width": " (they have more or fewer cells than the first line has names)",
    "turn_without_order": " (their conversations have a turn without a value in that column)",
    "cut_off": " (the file ends in the middle of a row)",
    "labelled_undesirable": " (their label is false)",
}

_TURN_KEYS = {
    "turn_without_role": ("role", "nothing says who speaks"),
    "turn_without_text": ("text", "no text is found"),
}


class _File(Protocol):
    file: str
    rows: int
    unreadable: dict[str, Tally]
    unknown_roles: dict[str, int]
    unknown_keys: dict[str, int]
    options: str | None
    likely_encoding: str | None


def nothing_readable(files: Iterable[_File]) -> SourceError:
    """Say why no row of `files` is a conversation."""
    files = list(files)
    rows = sum(file.rows for file in files)
    names = ", ".join(file.file for file in files[:3]) + (", …" if len(files) > 3 else "")
    if not rows:
        return SourceError(f"{names} holds no rows; check that it is the file you mean")
    reasons: Counter[str] = Counter()
    for file in files:
        reasons.update({reason: tally.count for reason, tally in file.unreadable.items()})
    reason, number = reasons.most_common(1)[0]
    share = f"all {rows:,} rows" if number == rows else f"{number:,} of {rows:,} rows"
    encoding = next((file.likely_encoding for file in files if file.likely_encoding), None)
    why = _why(reason, files, share, encoding)
    return SourceError(f"nothing in {names} is readable as a conversation: {why}")


def _why(reason: str, files: list[_File], share: str, encoding: str | None) -> str:
    options = next((file.options for file in files if file.options), None)
    if options and reason in OPTIONS_FOR and reason not in _TURN_KEYS:
        in_recipe = ", or columns: in the recipe" if "--column" in options else ""
        return f"{share} have {_keys(files)}; {options}{in_recipe}"
    if reason == "no_conversation":
        column = "the column that --column conversation names"
        return f"{share} have {_keys(files)} and no value in {column}"
    if reason == "no_turns_key":
        return (
            f"{share} have {_keys(files)}; turns are looked for under {', '.join(TURN_LISTS)} and "
            "the other layouts of the reference. Name the column with --column turns=NAME, "
            "or columns: in the recipe"
        )
    if reason in _TURN_KEYS:
        counts = _total(file.unknown_keys for file in files)
        turns = Counter({k.removeprefix(TURN): n for k, n in counts.items() if k.startswith(TURN)})
        key, missing = _TURN_KEYS[reason]
        return (
            f"{share} have turns in which {missing}; their keys: {_few(turns)}. Name the right one "
            f"with --column {key}=NAME, or columns: in the recipe"
            + (f": {options}" if options else "")
        )
    if reason == "unknown_role":
        roles = _few(_total(file.unknown_roles for file in files))
        return (
            f"{share} have an unknown role: {roles}. Name it with --role NAME=user, or roles: in "
            "the recipe"
        )
    if reason == "not_utf8":
        likely = f", but likely {encoding}" if encoding else ""
        return (
            f"{share} are not UTF-8{likely}; set it with --encoding {encoding or 'NAME'}, or "
            "encoding: in the recipe"
        )
    if reason in KINDS:
        return (
            f"it is {KINDS[reason]}" if share.startswith("all 1 ") else f"{share}: {KINDS[reason]}"
        )
    return f"{share} are counted as {reason}{REASONS.get(reason, '')}"


def _keys(files: list[_File]) -> str:
    counts = _total(file.unknown_keys for file in files)
    counts = Counter({key.removeprefix(TURN): number for key, number in counts.items()})
    return f"the keys {next(iter(counts))}" if len(counts) == 1 else f"keys such as {_few(counts)}"


def _total(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _few(counts: Counter[str]) -> str:
    return "; ".join(f"{name} ({number:,})" for name, number in counts.most_common(3))


def nothing_left(report: CorpusReport) -> StageError:
    """Say which steps dropped every conversation."""
    return StageError(
        f"none of {report.rows_read - report.unreadable - report.joined:,} conversations is left "
        f"after cleaning ({most_dropped(report.steps)}); look at the filters, or add sources"
    )


def most_dropped(steps: Iterable[Step]) -> str:
    """The three reasons for which steps dropped most, with their numbers."""
    drops: Counter[str] = Counter()
    for step in steps:
        for reason, tally in step.dropped.items():
            drops[f"{step.name}: {reason}"] += tally.count
    return ", ".join(f"{reason} {number:,}" for reason, number in drops.most_common(3))
