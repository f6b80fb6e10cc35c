"""What bytes are, by how they begin, and what texts hide: encodings of text, compression, archives,
base64 and its like, escapes."""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from hubkit.untrusted import marked_encoding, wide_encoding

_BASE64 = re.compile(
    r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{16,}"
    r"(?:[ \t]*(?:\r?\n|\\r\\n|\\n)[ \t]*[A-Za-z0-9+/_-]+)*={0,2}"
)
"""Wrapped over lines too, and where JSON holds the lines."""
_GAP = re.compile(r"(?:\s|\\r|\\n)+")
_HEX = re.compile(r"(?<![0-9A-Fa-f])(?:[0-9A-Fa-f]{2}){16,}(?![0-9A-Fa-f])")
_BASE32 = re.compile(r"(?<![A-Z2-7=])[A-Z2-7]{32,}={0,6}(?![A-Z2-7=])")
_LEAST_CHARS = 24  # of base64
_LEAST_LETTERS = 8  # different ones: less is a line or a pattern
_HEAD_BYTES = 8192
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
_ENTITY = re.compile(r"&(?:#\d{2,6}|#[xX][0-9a-fA-F]{1,6}|[a-z]{2,8});")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_QUOTED = re.compile(r"=([0-9A-F]{2})|=\r?\n")
_CODE = re.compile(r"\\x([0-9a-fA-F]{2})|\\u\{([0-9a-fA-F]{1,6})\}|\\([0-3][0-7]{2})")


def unescaped(text: str) -> Iterator[str]:
    """What `text` says without the escapes of URLs, HTML, e-mails and programs, and without
    characters that are not visible: once for each kind of them that it has.
    """
    if "\0" in text:  # of UTF-16 behind something else
        yield text.replace("\0", "")
    if _INVISIBLE.search(text):
        yield _INVISIBLE.sub("", text)
    if _ENTITY.search(text):
        yield html.unescape(text)
    if _PERCENT.search(text):
        yield unquote(text)
    if _QUOTED.search(text):
        yield _QUOTED.sub(lambda match: _character(match[1] or "", 16), text)
    if _CODE.search(text):
        yield _CODE.sub(
            lambda match: (
                _character(match[3], 8) if match[3] else _character(match[1] or match[2], 16)
            ),
            text,
        )


def _character(digits: str, base: int) -> str:
    code = int(digits, base) if digits else 0
    return chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else ""


def encoded(text: str) -> Iterator[bytes]:
    """What base64, base32 and hexadecimal digits in `text` stand for, where that is text or a
    file that can be looked into.
    """
    for match in _BASE64.finditer(text):
        is_first = match.start() == 0
        lines = _GAP.split(match[0])
        whole = list(_from_base64("".join(lines), is_first=is_first))
        yield from whole
        for line in lines if len(lines) > 1 else ():
            if not whole or len(line) % 4:  # each line by itself
                yield from _from_base64(line, is_first=is_first)
    for match in _HEX.finditer(text):
        yield from _worth(bytes.fromhex(match[0]))
    for match in _BASE32.finditer(text):
        value = match[0].rstrip("=")
        try:
            yield from _worth(base64.b32decode(value + "=" * (-len(value) % 8)))
        except (ValueError, binascii.Error):
            continue


def _from_base64(value: str, *, is_first: bool) -> Iterator[bytes]:
    """At the start of a text it may be the rest of what began before: at any of four places."""
    if len(value) < _LEAST_CHARS or len(set(value)) < _LEAST_LETTERS:
        return
    plain = value.rstrip("=").replace("-", "+").replace("_", "/")
    for start in range(4 if is_first else 1):
        padded = plain[start:]
        padded = padded[: len(padded) - (len(padded) % 4 == 1)]
        try:
            data = base64.b64decode(padded + "=" * (-len(padded) % 4))
        except (ValueError, binascii.Error):
            continue
        yield from _worth(data)


def _worth(data: bytes) -> Iterator[bytes]:
    """`data`, where it is text or a file that can be looked into."""
    if len(data) < 8:
        return
    head = data[:_HEAD_BYTES]
    is_known = has_columns(head) or is_archive(head) or compression(head) or is_opaque(head)
    if is_known or text_encoding(head) not in (None, "latin-1"):
        yield data


def has_columns(head: bytes) -> str:
    """``parquet`` or ``arrow`` for a file of rows that begins so; empty for any other."""
    if head[:4] in (b"PAR1", b"PARE"):
        return "parquet"
    return "arrow" if head[:6] == b"ARROW1" else ""


def is_archive(head: bytes) -> str:
    """``zip`` or ``tar`` for an archive that begins so; empty for any other file."""
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    return "tar" if head[257:262] == b"ustar" else ""


def compression(head: bytes) -> Callable[[Any], Any] | None:
    """What opens a file that begins so, where it is compressed."""
    import bz2
    import gzip
    import lzma

    if head[:3] == b"\x1f\x8b\x08":
        return gzip.open
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return bz2.open
    if head[:6] == b"\xfd7zXZ\0":
        return lzma.open
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and 80 <= head[0] < 96):
        import zstandard

        return lambda file: zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True, closefd=False
        )
    return None


def may_be_compressed(head: bytes) -> Callable[[Any], Any] | None:
    """What may open a file that begins so, which other files do too."""
    import lzma

    if head[:3] == b"\x5d\0\0":
        return lzma.open
    is_zlib = head[:1] == b"\x78" and len(head) > 1 and not int.from_bytes(head[:2], "big") % 31
    return _Inflated if is_zlib else None


class _Inflated:
    """A file of zlib's, read in pieces."""

    def __init__(self, file: Any) -> None:
        import zlib

        self._file, self._inflater = file, zlib.decompressobj()

    def __enter__(self) -> _Inflated:
        return self

    def __exit__(self, *error: object) -> None:
        """The file is its owner's."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. Raises `ValueError` where it breaks off."""
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._file.read(size)
            if not packed:
                raise ValueError("it breaks off")
            if data := self._inflater.decompress(packed, size):
                return data
        return b""


_OPAQUE = (
    b"7z\xbc\xaf\x27\x1c",
    b"Rar!\x1a\x07",
    b"\x04\x22\x4d\x18",  # lz4
    b"LZIP",
    b"MSCF\0\0\0\0",
    b"%PDF-",
    b"Obj\x01",  # Avro
    b"ORC",
    b"\x89HDF\r\n\x1a\n",
    b"FEA1",
)


def is_opaque(head: bytes) -> bool:
    """Whether a file that begins so holds text in a form that is not read here."""
    return head.startswith(_OPAQUE)


def text_encoding(head: bytes) -> str | None:
    """The encoding of a text file that begins so; None for a binary file."""
    if encoding := marked_encoding(head):
        return encoding
    if b"\0" in head:
        return wide_encoding(head)
    controls = sum(byte < 9 or 13 < byte < 32 for byte in head)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "latin-1" if controls < 0.01 * len(head) else None
    return "utf-8"


_RUNS = (
    (re.compile(rb"[\x20-\x7e\t\r\n]{12,65536}"), "ascii"),
    (re.compile(rb"(?:[\x20-\x7e]\0){12,65536}"), "utf-16-le"),
    (re.compile(rb"(?:\0[\x20-\x7e]){12,65536}"), "utf-16-be"),
    (re.compile(rb"(?:[\x20-\x7e]\0\0\0){12,65536}"), "utf-32-le"),
    (re.compile(rb"(?:\0\0\0[\x20-\x7e]){12,65536}"), "utf-32-be"),
)


def printable_runs(data: bytes, *, wide: bool = True) -> list[str]:
    """The longer runs of printable characters in binary data, one and, where `wide`, more bytes
    wide.
    """
    wide = wide and b"\0" in data
    return [
        match[0].decode(encoding)
        for pattern, encoding in (_RUNS if wide else _RUNS[:1])
        for match in pattern.finditer(data)
    ]
