"""Text that strangers wrote, read within bounds: YAML, paths inside a repo,
lines for a terminal."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import yaml

MAX_YAML_CHARS = 4 << 20
MAX_VALUES = 200_000
MAX_DIGITS = 300  # of a whole number


class UnboundedError(yaml.YAMLError, ValueError):
    """YAML that unfolds into more than anybody means; the message says what."""


def parse_yaml(text: str) -> Any:
    """`yaml.safe_load` within bounds.

    Raises:
        yaml.YAMLError: `text` is not YAML, or it is too long, nests too deeply, unfolds by aliases
            and merge keys into too many values, or holds a number of hundreds of digits.
    """
    if len(text) > MAX_YAML_CHARS:
        raise UnboundedError(f"it is longer than {MAX_YAML_CHARS:,} characters")
    try:
        value = yaml.load(text, Loader=_BoundedLoader)
        _count(value, {}, set())
    except RecursionError:
        raise UnboundedError("it nests too deeply") from None
    return value


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with bounds on merge keys and whole numbers."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES // 10:
            raise UnboundedError("its merge keys unfold into too many values")

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise UnboundedError(f"it holds a whole number of {len(node.value):,} digits")
        return int(super().construct_yaml_int(node))


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader.construct_yaml_int)


def _count(value: Any, sizes: dict[int, int], above: set[int]) -> int:
    """How many values `value` unfolds into; each object is counted once and multiplied."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    key = id(value)
    if key in above:
        raise UnboundedError("it holds itself by an alias")
    if key not in sizes:
        above.add(key)
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        sizes[key] = 1 + sum(_count(item, sizes, above) for item in items)
        above.discard(key)
        if sizes[key] > MAX_VALUES:
            raise UnboundedError(f"its aliases unfold into more than {MAX_VALUES:,} values")
    return sizes[key]


def is_inside(path: str) -> bool:
    """Whether `path`, relative to a folder, names something inside it."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and ":" not in parts[0]


_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)


def repo_name(value: object) -> str:
    """`value`, where it is the name of a repo and of nothing on this machine.

    Raises:
        ValueError: It is a path, or no name at all.
    """
    if not isinstance(value, str) or not _REPO.fullmatch(value) or ".." in value:
        raise ValueError(f"{printable(str(value))[:200]!r} is no repo's name")
    return value


# Control characters other than tab and line feed, and the ones that turn the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` with what a terminal would obey instead of show written as ``\\x1b``."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
