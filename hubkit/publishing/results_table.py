"""Results as one tidy table, a row for each number: what a Hub's viewer and a plot read alike.

It is parquet, as the conversations next to it are: the configs of a dataset are all read by what
reads the first one."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from hubkit.metrics import cross_table, scorecards
from hubkit.publishing import card_data, scorecard

PATH = "data/results-00000-of-00001.parquet"
_Row = tuple[Any, ...]


def render(results: Mapping[str, Any]) -> bytes:
    """The table of an eval stage's results.

    Each number is of a ``model`` and a ``measure`` (``compared_with`` what), with ``low`` and
    ``high`` of its interval, how many it is over (``n``), and its ``unit``; null where there is
    none."""
    import pyarrow as pa

    return as_parquet(
        [
            *((name, pa.string()) for name in ("model", "measure", "compared_with")),
            *((name, pa.float64()) for name in ("value", "low", "high")),
            ("n", pa.int64()),
            ("unit", pa.string()),
        ],
        [*_losses(results), *_ends(results), *_scorecard(results), *_against(results)],
    )


def as_parquet(fields: list[tuple[str, Any]], rows: list[_Row]) -> bytes:
    """`rows` as a parquet file whose columns are the Arrow `fields`; the same rows give the same
    bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name, _ in fields]
    columns = [dict(zip(names, row, strict=True)) for row in rows]
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(columns, schema=pa.schema(fields)), content)
    return content.getvalue()


def _losses(results: Mapping[str, Any]) -> Iterator[_Row]:
    for seat in ("asker", "chat", "aligned"):
        held_out = card_data.held_out(results, seat)
        if held_out is None:
            continue
        n, loss, unit = held_out.conversations, "held-out loss", "nats per token"
        yield seat, loss, None, held_out.model, None, None, n, unit
        for arm in held_out.against:
            yield arm.arm + " of " + seat, loss, None, arm.loss, None, None, n, unit
            yield seat, f"{loss}, difference", arm.arm, arm.difference, arm.low, arm.high, n, unit


def _ends(results: Mapping[str, Any]) -> Iterator[_Row]:
    ending = results.get("ending") or {}
    if "missing" in ending or not ending:
        return
    counts = {"at_ends": ending["ends"], "before_ends": ending["chances"] - ending["ends"]}
    places = {"at_ends": "where people ended", "before_ends": "where people went on"}
    for key, n in counts.items():
        name = f"probability of its end {places[key]}"
        yield "asker", name, None, ending[key], None, None, n, "probability"


def _scorecard(results: Mapping[str, Any]) -> Iterator[_Row]:
    card = scorecard.from_results(results)
    for row in card.rows if card else ():
        for name, entry in scorecards.measured(card).items() if card else ():
            if value := row.values.get(name):
                numbers = (value.get(key) for key in ("value", "low", "high", "n"))
                yield row.name, entry.title, None, *numbers, None


def _against(results: Mapping[str, Any]) -> Iterator[_Row]:
    data = results.get("against")
    if not data:
        return
    table = cross_table.of(data)
    for cell in table.cells:
        measure = f"reward with {cell.asker}"
        yield cell.chat, measure, None, cell.mean, cell.low, cell.high, cell.n, None
    for entry in table.differences:
        yield (
            entry.chat, f"reward with {entry.asker}, difference", entry.than,
            entry.difference, entry.low, entry.high, entry.n, None,
        )  # fmt: skip
