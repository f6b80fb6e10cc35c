"""Results as one tidy table, a row for each number: what a Hub's viewer and a plot read alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from hubkit.metrics import scorecards
from hubkit.publishing import card_data, scorecard

PATH = "results.csv"
COLUMNS = ("model", "measure", "compared_with", "value", "low", "high", "conversations", "unit")
_Row = tuple[Any, ...]


def render(results: Mapping[str, Any]) -> bytes:
    """The table of an eval stage's results, as CSV with the columns `COLUMNS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(results))
    return text.getvalue().encode()


def _rows(results: Mapping[str, Any]) -> Iterator[_Row]:
    for seat in ("asker", "chat", "aligned"):
        held_out = card_data.held_out(results, seat)
        if held_out is None:
            continue
        n, loss, unit = held_out.conversations, "held-out loss", "nats per token"
        yield seat, loss, "", held_out.model, "", "", n, unit
        for arm in held_out.against:
            yield arm.arm + " of " + seat, loss, "", arm.loss, "", "", n, unit
            yield seat, f"{loss}, difference", arm.arm, arm.difference, arm.low, arm.high, n, unit
    card = scorecard.from_results(results)
    if card is not None:
        columns, rows = scorecards.table(card)
        for row in rows:
            for name, value in zip(columns[1:], row[1:], strict=True):
                yield name, row[0], "", value, "", "", "", "as shown in the scorecard"
