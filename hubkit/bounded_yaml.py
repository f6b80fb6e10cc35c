"""YAML that strangers wrote, read within bounds."""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARS = 4 << 20
MAX_VALUES = 200_000  # with aliases and merge keys unfolded
MAX_DEPTH = 100
MAX_DIGITS = 300  # of a number

_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What the constructors of PyYAML raise for `!!int ""`, `!!timestamp x`, `2020-13-45` and the like.
_CONSTRUCTION = (ValueError, LookupError, ArithmeticError, AttributeError, TypeError)


class UnboundedError(yaml.YAMLError, ValueError):
    """YAML that unfolds into more than anybody means; the message says what."""


def parse_yaml(text: str) -> Any:
    """Parse YAML as `yaml.safe_load` does, within bounds.

    The events of the text are walked first, without recursion: libyaml's loader recurses in C, and
    deep nesting would end the process.

    Raises:
        yaml.YAMLError: `text` is not YAML, or it is too long, nests too deeply, unfolds by aliases
            and merge keys into too many values, or holds a number of hundreds of digits.
    """
    if len(text) > MAX_CHARS:
        raise UnboundedError(f"it is longer than {MAX_CHARS:,} characters")
    try:
        _check_bounds(text)
        return yaml.load(text, Loader=_BoundedLoader)
    except RecursionError:
        raise UnboundedError("it nests too deeply") from None
    except _CONSTRUCTION as error:
        if isinstance(error, yaml.YAMLError):
            raise
        raise yaml.YAMLError(f"a value in it cannot be read: {error}") from None


class _BoundedLoader(_FastLoader):  # type: ignore[misc]
    """PyYAML's safe loader, with a bound on the digits of a number."""

    def construct_number(self, node: yaml.Node) -> int | float:
        if len(str(node.value)) > MAX_DIGITS:
            raise UnboundedError(f"it holds a number of {len(node.value):,} digits")
        is_int = node.tag.endswith(":int")
        number: int | float = (
            self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        )
        return number


for _tag in ("int", "float"):
    _BoundedLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _BoundedLoader.construct_number)


def _check_bounds(text: str) -> None:
    """Refuse what nests too deeply, or unfolds into too many values."""
    sizes: dict[str, int] = {}  # by anchor: the values that a whole node unfolds into
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the values counted before it
    open_anchors: set[str] = set()
    values = 0
    for event in yaml.parse(text, Loader=_FastLoader):
        match event:
            case yaml.AliasEvent():
                if event.anchor in open_anchors:
                    raise UnboundedError("it holds itself by an alias")
                values += sizes.get(event.anchor or "", 1)
            case yaml.ScalarEvent():
                values += 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            case yaml.CollectionStartEvent():
                open_nodes.append((event.anchor, values))
                if event.anchor is not None:
                    open_anchors.add(event.anchor)
                if len(open_nodes) > MAX_DEPTH:
                    raise UnboundedError(f"it nests more than {MAX_DEPTH} levels deep")
                values += 1
            case yaml.CollectionEndEvent():
                anchor, before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = values - before
                    open_anchors.discard(anchor)
        if values > MAX_VALUES:
            raise UnboundedError(f"it unfolds into more than {MAX_VALUES:,} values")
