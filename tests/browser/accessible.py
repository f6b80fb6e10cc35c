"""axe-core over a page: what would keep a person with a screen reader, or low vision, from it."""

from __future__ import annotations

from functools import cache
from typing import Any

GRAVE = ("serious", "critical")


@cache
def _axe() -> Any:
    from axe_playwright_python.sync_playwright import Axe

    return Axe()


def violations(page: Any) -> list[str]:
    """Each grave violation of axe-core's rules on `page`: the rule, where, and what is wrong."""
    found = []
    for violation in _axe().run(page).response["violations"]:
        if violation["impact"] not in GRAVE:
            continue
        for node in violation["nodes"]:
            why = " ".join(node["failureSummary"].split())
            found.append(f"{violation['id']}: {node['target']}: {why[:200]}")
    return found
