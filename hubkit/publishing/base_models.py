"""Bases that travel along: an adapter is nothing without the model it was trained on.

The real Hub has the bases that people train from. An embedded Hub has what was pushed to it and
nothing else, so a push to one brings the base under its own name, unless a repo of that name with
other files exists already."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from hubkit.hub import Hub, Ref
from hubkit.loopback import on_loopback
from hubkit.publishing.plan import MADE_BY_HUBS, RepoPlan, compare

_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".md"}
_TERMS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


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
    names = source.files(base.repo_id, repo_type=base.repo_type, revision=base.revision)
    needed_names = sorted(name for name in names if is_needed(name))
    folder = source.snapshot(base, allow_patterns=[glob.escape(name) for name in needed_names])
    files = {name: folder / name for name in needed_names}
    changes_plan = compare(target, base.repo_id, base.repo_type, files, private=private)
    changes_plan = replace(changes_plan, left_out=sorted({*names} - {*needed_names, *MADE_BY_HUBS}))
    if any(change.action == "update" for change in changes_plan.changes):
        return replace(changes_plan, write={}, changes=(), left_out=(), is_kept=True)
    return changes_plan


def is_needed(name: str) -> bool:
    """Whether a base's file is needed to load it, or says who made it and under which terms. Other
    formats of the same weights, and folders with other models, are not.
    """
    path = PurePosixPath(name)
    if len(path.parts) > 1 or name.startswith("."):
        return False
    return path.suffix in _SUFFIXES or path.stem.upper().startswith(_TERMS)
