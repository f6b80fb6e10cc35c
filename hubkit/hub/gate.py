"""What must not leave this machine: the check before every commit to a Hub that is not local.

Scans each file of a commit, its path, the message and the repo's name. A finding is reported by
its place, never by its value; a kind that the owner allows passes and is noted in the commit. Rows
are masked first, of the kinds that the recipe's filters mask."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hubkit.errors import PublishError
from hubkit.sensitive_data import (
    KINDS,
    PERSONAL,
    SECRETS,
    FileFindings,
    Masker,
    mask,
    scan_file,
    scan_text,
    tables,
)
from hubkit.sensitive_data.files import UNREADABLE

Content = bytes | Path
ALLOWABLE = KINDS | {UNREADABLE}
GROUPS = {"personal_data": PERSONAL, "secrets": SECRETS}
_LISTED_FILES = 5  # files in a message
_REMEMBERED = 512  # scanned contents whose findings are remembered
_clean: set[tuple[str, str]] = set()  # rows in which nothing of these kinds is left to mask
_scanned: dict[tuple[str, str], FileFindings] = {}


def allowed_kinds(names: Iterable[str]) -> frozenset[str]:
    """The kinds that `names` stand for: kinds, or ``personal_data`` and ``secrets`` for all of one.

    Raises:
        PublishError: A name is neither.
    """
    kinds: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in ALLOWABLE:
            raise PublishError(
                f"{name!r} is no kind of secret or personal data that could be allowed; "
                f"known are {', '.join(sorted({*GROUPS, *ALLOWABLE}))}"
            )
        kinds |= GROUPS.get(name, {name})
    return frozenset(kinds)


def check(
    action: str,
    files: Mapping[str, Content],
    texts: Iterable[str] = (),
    *,
    allowed: frozenset[str] = frozenset(),
    kinds: frozenset[str] = KINDS,
) -> str:
    """Refuse `files` and `texts` that hold a value of `kinds` that is not `allowed`.

    Args:
        what: What is not done then, such as "dataset me/x was not pushed".
        files: Path in the repo → content.
        texts: What goes along with them: names, a commit's message.

    Returns:
        What was found of allowed kinds, for the commit's description; empty where nothing was.

    Raises:
        PublishError: Something was found; the message names places, kinds and numbers.
    """
    problems: list[str] = []
    passed: Counter[str] = Counter()
    for path, content in files.items():
        findings = findings_in(path, content, kinds)
        passed.update({k: n for k, n in findings.counts.items() if k in allowed})
        refused = findings.without(allowed)
        if refused.counts:
            problems.append(f"{mask(path)} holds {refused}")
    for text in texts:
        text_kinds = {f.kind for f in scan_text(text, kinds)} - allowed
        if text_kinds:
            problems.append(
                f"a name or message of the commit holds {', '.join(sorted(text_kinds))}"
            )
    if problems:
        unlisted = len(problems) - _LISTED_FILES
        listed = "; ".join(problems[:_LISTED_FILES]) + (
            f"; and {unlisted} more files" if unlisted > 0 else ""
        )
        raise PublishError(
            f"{action}: {listed}. Mask it with the recipe's filters `secrets` and `personal_data`, "
            f"or allow a kind by name: --allow KIND, or publish.allow in the recipe"
        )
    return ", ".join(f"{kind} {count}" for kind, count in sorted(passed.items()))


@contextmanager
def masked(
    files: Mapping[str, Content], kinds: frozenset[str]
) -> Iterator[tuple[dict[str, Content], str]]:
    """`files` with the rows among them masked, for the length of the context.

    Rows are parquet files and JSON Lines. What cannot be masked in them (numbers, binary columns,
    base64) is for `check` to refuse.

    Args:
        files: Path in the repo → content.
        kinds: What is masked; none: nothing.

    Yields:
        The files, and what was masked, for the commit's description; empty where nothing was.
    """
    masker = Masker(kinds)
    ready = dict(files)
    with tempfile.TemporaryDirectory(prefix="hubkit-masked-") as folder:
        for number, (path, content) in enumerate(files.items() if kinds else ()):
            if PurePosixPath(path).suffix not in tables.SUFFIXES:
                continue
            key = (_digest(path, content), ",".join(sorted(kinds)))
            target = Path(folder, str(number), PurePosixPath(path).name)
            target.parent.mkdir()
            if key not in _clean and tables.mask_rows(content, target, masker):
                ready[path] = target
                key = (_digest(path, target), key[1])
            if len(_clean) >= _REMEMBERED:
                _clean.clear()
            _clean.add(key)
        counts = sorted(masker.counts.items())
        yield ready, ", ".join(f"{kind} {count}" for kind, count in counts)


def findings_in(path: str, content: Content, kinds: frozenset[str] = KINDS) -> FileFindings:
    """The findings in one file; a content that was scanned before is not scanned again."""
    key = (_digest(path, content), ",".join(sorted(kinds)))
    if key not in _scanned:
        if len(_scanned) >= _REMEMBERED:
            _scanned.clear()
        _scanned[key] = scan_file(path, content, kinds)
    return _scanned[key]


def _digest(path: str, content: Content) -> str:
    digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass") + b"\0", digest_size=16)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
