"""Filters: small functions that look at one conversation and keep it, change it, or drop it with a
reason.

A filter is made by a factory whose keyword arguments are the recipe's ``args``; called with a
`Conversation` it gives None (keep as it is), `Drop(reason)` or `Edit(rows, note)`. `Chain` composes
them as a recipe lists them and keeps the ledger. To add one: write the factory, decorate it with
`@register`, name it in a recipe."""

from hubkit.data.filters import (  # noqa: F401  (importing registers their filters)
    benchmarks,
    duplicates,
    privacy,
    roles,
    segments,
    text,
    turns,
)
from hubkit.data.filters.chain import (
    FILTERS,
    Chain,
    Context,
    Drop,
    Dropped,
    Edit,
    Spec,
    StatefulFilter,
    Step,
    Tally,
    check,
    count,
    is_stateful,
    needs,
    register,
)
from hubkit.data.filters.privacy import masked_kinds

__all__ = [
    "FILTERS",
    "Chain",
    "Context",
    "Drop",
    "Dropped",
    "Edit",
    "Spec",
    "StatefulFilter",
    "Step",
    "Tally",
    "check",
    "count",
    "is_stateful",
    "masked_kinds",
    "needs",
    "register",
]
