"""Names and paths from strangers: what may become a file in a repository, a repository, a
branch.
"""

from __future__ import annotations

import ntpath
import re
import unicodedata

from dulwich.index import validate_path_element_hfs, validate_path_element_ntfs
from dulwich.refs import check_ref_format

from hubkit.local_hub.errors import Refusal

MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_RESERVED_NAMESPACES = frozenset(
    """
    api models datasets spaces kernels buckets collections login logout healthz static xet
    settings v2
    """.split()  # noqa: SIM905 - one word a word
)


def checked_path(path: str) -> str:
    """A path inside a repository, unchanged. Raises `Refusal` 422 for one that could leave it or
    hide in it.

    Refused: absolute paths and drive letters, empty, `.` and `..` segments, backslashes, control
    characters, anything that some file system reads as `.git` (case, short names, invisible
    characters), over-long names."""
    if not path or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise Refusal(422, f"A path must be between 1 and {MAX_PATH_BYTES} bytes long.")
    if ntpath.splitdrive(path)[0] or not all(_good_segment(segment) for segment in path.split("/")):
        raise Refusal(422, f"Invalid path in repo: {path[:200]!r}.")
    return path


def _good_segment(segment: str) -> bool:
    if (
        segment in ("", ".", "..")
        or "\\" in segment
        or any(ord(c) < 32 or ord(c) == 127 for c in segment)
    ):
        return False
    try:
        raw = segment.encode()
    except UnicodeEncodeError:
        return False
    if len(raw) > MAX_NAME_BYTES:
        return False
    folded = unicodedata.normalize("NFKC", segment)
    if folded in (".", "..") or "/" in folded or folded.lower().rstrip(". ") == ".git":
        return False
    return bool(validate_path_element_ntfs(raw) and validate_path_element_hfs(raw))


def checked_name(name: str, label: str = "repo name") -> str:
    """The name of a repository or a namespace, unchanged. Raises `Refusal` 400."""
    ok = (
        _NAME.fullmatch(name)
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )
    if not ok or (label == "namespace" and name.lower() in _RESERVED_NAMESPACES):
        raise Refusal(
            400,
            f"Invalid {label} {name[:100]!r}: use letters, digits, '-', '_' and '.', 96 at most.",
        )
    return name


def checked_ref(kind: str, name: str) -> bytes:
    """`refs/heads/NAME` or `refs/tags/NAME` as git spells it. Raises `Refusal` 400."""
    try:
        full = f"refs/{kind}/{name}".encode()
    except UnicodeEncodeError:
        full = b""
    if (
        not name
        or len(full) > 250
        or not check_ref_format(full)
        or re.fullmatch(r"[0-9a-f]{40}", name)
    ):
        raise Refusal(400, f"Invalid reference name: {name[:100]!r}.")
    return full
