"""Text that strangers wrote: its encoding, JSON, paths inside a repo, names of repos, lines for a
terminal, control tokens spelt out in a message."""

from __future__ import annotations

import codecs
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What JSON holds."""
JsonObject: TypeAlias = dict[str, Json]
"""An object of JSON, by its keys."""

MAX_TOKENIZER_BYTES = 200 << 20


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


_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def marked_encoding(head: bytes) -> str | None:
    """The encoding that the mark at the beginning of a text names; None where it has none."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)


def wide_encoding(head: bytes) -> str | None:
    """The encoding of a text of more than one byte a character that begins so, without a mark; None
    for other files."""
    quarters = [head[lane::4].count(0) / max(len(head[lane::4]), 1) for lane in range(4)]
    if min(quarters[1:]) > 0.7 and quarters[0] == 0:
        return "utf-32-le"
    if min(quarters[:3]) > 0.7 and quarters[3] == 0:
        return "utf-32-be"
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > 0.7 * len(head[1::2]) and even == 0:
        return "utf-16-le"
    if even > 0.7 * len(head[0::2]) and odd == 0:
        return "utf-16-be"
    return None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; what nests too deeply is a `ValueError` as everything else that is no JSON.

    Raises:
        ValueError: `text` is no JSON, or nests too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def text_in(values: Mapping[str, object], key: str, default: str = "") -> str:
    """The text under `key`; `default` where there is none."""
    value = values.get(key)
    return value if isinstance(value, str) else default


def number_of(text: str) -> float | None:
    """The number that `text` spells; None where it spells none, or "nan"."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number == number else None


def number_in(values: Mapping[str, object], key: str, default: float = 0.0) -> float:
    """The number under `key`; `default` where there is none."""
    value = values.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else default  # type: ignore[arg-type]


def count_in(values: Mapping[str, object], key: str, default: int = 0) -> int:
    """The whole number under `key`; `default` where there is none."""
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def object_in(values: Mapping[str, object], key: str) -> JsonObject:
    """The object under `key`; an empty one where there is none."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def list_in(values: Mapping[str, object], key: str) -> list[Json]:
    """The list under `key`; an empty one where there is none."""
    value = values.get(key)
    return value if isinstance(value, list) else []


def texts_in(values: Mapping[str, object], key: str) -> dict[str, str]:
    """The texts in the object under `key`, by name; other values are left out."""
    members = object_in(values, key)
    return {name: value for name, value in members.items() if isinstance(value, str)}


def objects_in(values: Mapping[str, object], key: str) -> list[JsonObject]:
    """The objects in the list under `key`; other items are left out."""
    return [item for item in list_in(values, key) if isinstance(item, dict)]


_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def has_more_values(text: bytes, most: int) -> bool:
    """Whether JSON holds more than about `most` values, each of which costs a hundred bytes of
    memory, be it `[]`. Counted by its separators outside of strings; nothing is built.
    """
    if len(text) <= most or _separators(text, 0, len(text)) <= most:
        return False
    count = end = 0
    for string in _STRING.finditer(text):
        count += _separators(text, end, string.start())
        end = string.end()
        if count > most:
            return True
    return count + _separators(text, end, len(text)) > most


def _separators(text: bytes, start: int, end: int) -> int:
    return sum(text.count(separator, start, end) for separator in (b",", b"[", b"{"))


def require_tokenizer_size(file: Path) -> None:
    """Refuse a tokenizer.json that no tokenizer needs, before a parser builds many times its size.

    Raises:
        ValueError: It is larger than `MAX_TOKENIZER_BYTES`.
    """
    if file.is_file() and (size := file.stat().st_size) > MAX_TOKENIZER_BYTES:
        raise ValueError(
            f"it has {size:,} bytes, and may have {MAX_TOKENIZER_BYTES:,}; the largest known have "
            "a fifth of that"
        )


class TypedTokens:
    """Control tokens that people typed, told from those that a chat template prints.

    While a template is rendered, each stands as a word that cannot be guessed; `restore` says where
    in the prompt they are. An instance serves one prompt.

    Args:
        tokens: The spellings of the tokenizer's control tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = tuple(sorted(filter(None, tokens), key=len, reverse=True))
        self._nonce = secrets.token_hex(8)
        self._typed: list[str] = []

    def hide(self, value: Any) -> Any:
        """`value` (text, or JSON data) with a word in place of each control token in its texts."""
        if isinstance(value, str):
            spelt = [re.escape(token) for token in self._tokens if token in value]
            return re.sub("|".join(spelt), self._word, value) if spelt else value
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return value

    def restore(self, rendered: str) -> tuple[str, list[tuple[int, int]]]:
        """The prompt with the tokens as they were typed, and their ``[start, stop)`` ranges."""
        if not self._typed:
            return rendered, []
        pieces, spans, size = [], [], 0
        for number, piece in enumerate(re.split(f"xt{self._nonce}n([0-9]+)q", rendered)):
            text = self._typed[int(piece)] if number % 2 else piece
            if number % 2:
                spans.append((size, size + len(text)))
            pieces.append(text)
            size += len(text)
        return "".join(pieces), spans

    def _word(self, match: re.Match[str]) -> str:
        self._typed.append(match[0])
        return f"xt{self._nonce}n{len(self._typed) - 1}q"
