"""What a ``.gitignore`` names, matched in time that grows with the text and not with its wildcards:
patterns come from strangers, and a regular expression that never ends would stop the whole server.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hubkit.local_hub.errors import Refusal

MAX_LINES = 10_000
MAX_PATTERN_CHARS = 1024
MAX_COMPARISONS = 10_000_000
_ANY_DEPTH = "**"
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class _Rule:
    segments: tuple[str, ...]
    negated: bool
    only_folders: bool

    def matched(self, parts: Sequence[str], work: Counter[str]) -> set[int]:
        """The lengths of the paths and folders, from the first part on, that the rule names."""
        lengths = _prefixes(self.segments, parts, work)
        return lengths - {len(parts)} if self.only_folders else lengths


def ignore_rules(text: str) -> Callable[[str], bool]:
    """Read the lines of a ``.gitignore``.

    Returns:
        Whether a path of the repository is ignored, itself or by a folder above it. Asking raises
        `Refusal` 413 once all paths together have taken too many comparisons.
    """
    rules = [rule for line in text.splitlines()[:MAX_LINES] if (rule := _rule(line)) is not None]

    work: Counter[str] = Counter()

    def ignored(path: str) -> bool:
        parts = path.split("/")
        verdicts = [False] * (len(parts) + 1)  # by the last rule that names a folder, or the path
        for rule in rules:
            for length in rule.matched(parts, work):
                verdicts[length] = not rule.negated
        return any(verdicts[1:])

    return ignored


def _rule(line: str) -> _Rule | None:
    """The rule of a line; None for one that says nothing."""
    line = line.rstrip() if not line.rstrip().endswith("\\") else line.rstrip() + " "
    negated = line.startswith("!")
    pattern = line.removeprefix("!")
    if not pattern or line.startswith("#") or len(pattern) > MAX_PATTERN_CHARS:
        return None
    only_folders = pattern.endswith("/")
    pattern = pattern.rstrip("/")
    anchored = "/" in pattern
    segments = [part for part in pattern.split("/") if part]
    if not segments:
        return None
    if not anchored:
        segments.insert(0, _ANY_DEPTH)
    return _Rule(tuple(map(_for_fnmatch, segments)), negated, only_folders)


def _for_fnmatch(segment: str) -> str:
    """A segment as `fnmatch` reads it; git escapes by a backslash and negates sets by ``^``."""
    if segment == _ANY_DEPTH:
        return segment
    return _ESCAPED.sub(r"[\1]", segment).replace("[^", "[!")


def _prefixes(segments: Sequence[str], parts: Sequence[str], work: Counter[str]) -> set[int]:
    """The lengths of the prefixes of `parts` that match; ``**`` stands for any number of parts."""
    reached = {0}
    for number, segment in enumerate(segments):
        work["comparisons"] += len(reached)
        if work["comparisons"] > MAX_COMPARISONS:
            raise Refusal(413, "Matching these paths with .gitignore takes too long; shorten it.")
        if segment == _ANY_DEPTH:
            last = number == len(segments) - 1  # `a/**` is what is inside, not `a` itself
            start = min(reached) + (1 if last and number else 0)
            reached = set(range(start, len(parts) + 1))
        else:
            reached = {
                at + 1 for at in reached if at < len(parts) and fnmatchcase(parts[at], segment)
            }
        if not reached:
            break
    return reached
