"""Bases that travel along: an adapter is nothing without the model it was trained on.

The real Hub has the bases that people train from. An embedded Hub has what was pushed to it and
nothing else, so a push to one brings the base under its own name, unless a repo of that name with
other files exists already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hubkit.hub import Hub, Ref
from hubkit.publishing.plan import RepoPlan, compare
from hubkit.serving.client import on_loopback


def needed(
    source: Hub, target: Hub, records: Iterable[Mapping[str, Mapping[str, Any]]]
) -> list[Ref]:
    """The bases that the stages' `records` name as their input and that `target` has to be
    given.
    """
    if source.url == target.url or not on_loopback(target.url):
        return []
    inputs = [
        record.get("inputs", {}).get("base") for stages in records for record in stages.values()
    ]
    return list(dict.fromkeys(Ref(**ref) for ref in inputs if ref))


def plan(source: Hub, target: Hub, base: Ref, *, private: bool) -> RepoPlan:
    """What bringing `base` to `target` would change: nothing where another one has its name. Raises
    `HubError`.
    """
    folder = source.snapshot(base)
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files.pop(".gitattributes", None)
    changes_plan = compare(target, base.repo_id, base.repo_type, files, private=private)
    if any(change.action == "update" for change in changes_plan.changes):
        return replace(changes_plan, write={}, changes=(), is_kept=True)
    return changes_plan
