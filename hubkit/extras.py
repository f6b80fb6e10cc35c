"""Optional dependencies: which extra of the distribution brings a package, and one sentence where
it is missing.

What an extra holds is read from the installed distribution's own metadata, so that `pyproject.toml`
says it once.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata, util

from hubkit.errors import MissingDependencyError

DISTRIBUTION = "hubkit-simulators"
_IMPORTED_AS = {
    "scikit-learn": "sklearn",
    "inspect-ai": "inspect_ai",
    "markdown-it-py": "markdown_it",
}
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_NAME = re.compile(r"[\w.-]+")


@cache
def modules() -> dict[str, dict[str, str]]:
    """Extra → top-level module → the distribution that brings it."""
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, dict[str, str]] = {}
    for requirement in required:
        extra, name = _EXTRA.search(requirement), _NAME.match(requirement)
        if extra and name and name[0] != DISTRIBUTION:
            module = _IMPORTED_AS.get(name[0], name[0].replace("-", "_"))
            extras.setdefault(extra[1], {})[module] = name[0]
    return extras


def require(extra: str, purpose: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: The extra's name, such as ``train``.
        purpose: What needs it, as the subject of a sentence: "the embedded Hub".

    Raises:
        MissingDependencyError: At least one package is missing; the message holds the command that
            installs it.
    """
    absent = [
        name for module, name in modules().get(extra, {}).items() if util.find_spec(module) is None
    ]
    if absent:
        raise MissingDependencyError(
            f"{purpose} needs {', '.join(absent)}, not installed here: {command(extra)}"
        )


def command(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def advice(error: ModuleNotFoundError) -> str | None:
    """The sentence for a module that could not be imported, or None where no extra brings it."""
    module = (error.name or "").partition(".")[0]
    bringing = [
        extra for extra, brought in modules().items() if module in brought and extra != "dev"
    ]
    if not bringing:
        return None
    smallest = min(bringing, key=lambda extra: len(modules()[extra]))
    return f"this needs {modules()[smallest][module]}, not installed here: {command(smallest)}"
