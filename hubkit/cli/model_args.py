"""What commands that name models share."""

from __future__ import annotations

from hubkit.cli import console
from hubkit.untrusted import JsonObject, list_in, number_in

HARDWARE = "aws-nvidia-l40s-x1"
"""What endpoints that are made run on, unless said."""


def show_endpoints(rows: list[JsonObject]) -> None:
    """The endpoints that would be made, with their price."""
    from hubkit.cloud import prices

    if not rows:
        return
    cells = [
        [
            ", ".join(map(str, list_in(row, "serves"))),
            row["engine"],
            row["hardware"],
            f"{number_in(row, 'usd_per_hour'):,.2f}",
        ]
        for row in rows
    ]
    console.table(
        "endpoints that would be made",
        ["for", "engine", "hardware", "US dollars an hour, at most"],
        cells,
    )
    console.say(
        "each is up for as long as it is asked, and given back at the end; "
        f"prices of {prices.date()}"
    )
