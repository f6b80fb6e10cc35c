"""The cross-simulator table: what conversations of every chat model with every asker are worth.

Takes one reward a conversation (or the reason why there is none); gives the mean of each pair with
its interval, and what each chat model has over the first one with the same asker, paired by
opening."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubkit.conversation import Message
from hubkit.metrics import plots
from hubkit.statistics import Bootstrap, among_several, noise
from hubkit.untrusted import JsonObject

ALL = "all askers"


@dataclass(frozen=True, slots=True)
class Scored:
    """One conversation, or one that did not come about.

    Attributes:
        asker: The asker's name.
        chat: The chat model's.
        opening: The opening's number: what pairs conversations.
        reward: What it is worth; None where that is not known.
        parts: Each reward's own value, by label.
        reason: Why `reward` is None.
        end_reason: How the conversation ended.
        answers: How many answers it has.
        messages: What was said.
        intent: What the person of the opening wanted, where that is known.
    """

    asker: str
    chat: str
    opening: int
    reward: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""
    end_reason: str = ""
    answers: int = 0
    messages: Sequence[Message] = ()
    intent: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A chat model with an asker: mean reward, interval, and what is missing, by reason."""

    asker: str
    chat: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    failures: dict[str, int]
    parts: dict[str, float]
    ends: dict[str, int]
    mean_answers: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What `chat` has over `than` with `asker`, over the openings that both have a reward for.

    `p_holm` is the sign-flip test's p-value, adjusted for all differences of the table;
    `outside_noise` goes by it."""

    asker: str
    chat: str
    than: str
    difference: float | None
    low: float | None
    high: float | None
    n: int
    p_value: float | None
    p_holm: float | None
    outside_noise: bool


@dataclass(frozen=True, slots=True)
class CrossTable:
    """The whole table. `stopped` names the cap that ended it early; `settings` says how it was
    made."""

    askers: list[str]
    chats: list[str]
    cells: list[Cell]
    differences: list[Difference]
    settings: JsonObject = field(default_factory=dict)
    stopped: str = ""

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)

    def cell(self, asker: str, chat: str) -> Cell:
        """The cell of a pair."""
        return next(cell for cell in self.cells if (cell.asker, cell.chat) == (asker, chat))


def of(data: Mapping[str, Any]) -> CrossTable:
    """The inverse of `CrossTable.to_dict`. Raises `KeyError` or `TypeError` for other data."""
    return CrossTable(
        **{
            **data,
            "cells": [Cell(**cell) for cell in data["cells"]],
            "differences": [Difference(**entry) for entry in data["differences"]],
        }
    )


def cross_table(
    askers: Sequence[str],
    chats: Sequence[str],
    scored: Sequence[Scored],
    *,
    bootstrap: Bootstrap,
    settings: Mapping[str, Any] | None = None,
    stopped: str = "",
) -> CrossTable:
    """Make the table.

    Args:
        askers: Names of the columns.
        chats: Names of the rows; the others are compared with the first.
        scored: One entry for each conversation.
        bootstrap: How intervals are made; openings are drawn.
        settings: What the result says of how it was made.
        stopped: The cap that ended the run early.
    """
    by_pair: dict[tuple[str, str], list[Scored]] = {
        (asker, chat): [] for asker in askers for chat in chats
    }
    for entry in scored:
        by_pair[entry.asker, entry.chat].append(entry)
    cells = [_cell(asker, chat, entries, bootstrap) for (asker, chat), entries in by_pair.items()]
    differences = _differences(askers, chats, by_pair, bootstrap)
    return CrossTable(list(askers), list(chats), cells, differences, dict(settings or {}), stopped)


def _cell(asker: str, chat: str, entries: Sequence[Scored], bootstrap: Bootstrap) -> Cell:
    rewards = {entry.opening: entry.reward for entry in entries if entry.reward is not None}
    number = bootstrap.mean(sorted(rewards.items()))
    labels = dict.fromkeys(label for entry in entries for label in entry.parts)
    values = {
        label: [v for entry in entries if (v := entry.parts.get(label)) is not None]
        for label in labels
    }
    ended = [entry for entry in entries if entry.answers]
    return Cell(
        asker, chat, number.value, number.low, number.high, number.n,
        failures=dict(Counter(e.reason for e in entries if e.reward is None).most_common()),
        parts={label: sum(part) / len(part) for label, part in values.items() if part},
        ends=dict(Counter(entry.end_reason for entry in ended).most_common()),
        mean_answers=sum(entry.answers for entry in ended) / len(ended) if ended else None,
    )  # fmt: skip


def _differences(
    askers: Sequence[str],
    chats: Sequence[str],
    by_pair: Mapping[tuple[str, str], Sequence[Scored]],
    bootstrap: Bootstrap,
) -> list[Difference]:
    differences = {}
    for chat in chats[1:]:
        for asker in [*askers, *([ALL] if len(askers) > 1 else [])]:
            columns = askers if asker == ALL else [asker]
            sides = [
                {
                    (entry.opening, entry.asker): entry.reward
                    for column in columns
                    for entry in by_pair[column, name]
                    if entry.reward is not None
                }
                for name in (chat, chats[0])
            ]
            differences[asker, chat] = bootstrap.difference(*sides)
    judged = among_several(differences)
    return [
        Difference(
            asker, chat, chats[0], d.difference, d.low, d.high, d.n, d.p_value,
            judged[asker, chat].p_holm, judged[asker, chat].outside_noise,
        )
        for (asker, chat), d in differences.items()
    ]  # fmt: skip


def table(result: CrossTable) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: one row a chat model, one column an asker."""
    rows = [
        [chat, *(_shown(result.cell(asker, chat)) for asker in result.askers)]
        for chat in result.chats
    ]
    return ["chat model", *(f"with {asker}" for asker in result.askers)], rows


def _shown(cell: Cell) -> str:
    if cell.mean is None:
        return "n/a"
    return f"{cell.mean:.3g}{_interval(cell.low, cell.high)}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"


def notes(result: CrossTable) -> list[str]:
    """One sentence for each difference, for each pair that lacks conversations, and for a cap."""
    tested = sum(entry.p_holm is not None for entry in result.differences)
    correction = f" (Holm's correction for {tested} comparisons)" if tested > 1 else ""
    sentences = [
        f"{entry.chat} less {entry.than}, with {entry.asker}: {entry.difference:+.3g}"
        f"{_interval(entry.low, entry.high)} over {entry.n} pairs, "
        f"{noise(entry.outside_noise)}, p {entry.p_holm:.2g}{correction}"
        for entry in result.differences
        if entry.difference is not None and entry.p_holm is not None
    ]
    sentences += [
        f"{cell.chat} with {cell.asker}: {sum(cell.failures.values())} without a reward "
        f"({', '.join(f'{reason} {count}' for reason, count in cell.failures.items())})"
        for cell in result.cells
        if cell.failures
    ]
    if result.stopped:
        sentences.append(
            f"{result.stopped} ended it early; the same command under a larger cap resumes"
        )
    return sentences


def picture(result: CrossTable) -> bytes:
    """The heat map of the means, as PNG."""
    cells = [[result.cell(asker, chat) for asker in result.askers] for chat in result.chats]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "against.png"
        plots.heat_map(
            path,
            result.chats,
            result.askers,
            [[cell.mean for cell in row] for row in cells],
            [[_shown(cell).replace(" (", "\n(") for cell in row] for row in cells],
            title="mean reward",
        )
        return path.read_bytes()
