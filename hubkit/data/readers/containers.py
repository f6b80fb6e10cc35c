"""What a file is, told by its first bytes; and its bytes unpacked and decoded, block by block."""

from __future__ import annotations

import re
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hubkit.untrusted import marked_encoding, wide_encoding

OnBytes = Callable[[int], None]
BLOCK = 1 << 16
HEAD = 512  # bytes that tell what a file is
MAX_UNPACKED = 1 << 30  # more is read only where it is …
MAX_SWELLING = 200  # … at most so many times the packed bytes
_ZSTD_FEED = 1 << 12  # packed bytes unpacked at once: at most they swell to some 128 MB
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
FOREIGN = {
    b"PK\x03\x04": "zip_archive",
    b"PK\x05\x06": "zip_archive",
    b"BZh": "bzip2_file",
    b"\xfd7zXZ": "xz_file",
    b"7z\xbc\xaf\x27\x1c": "7z_archive",
    b"Rar!": "rar_archive",
    b"SQLite format 3\0": "sqlite_database",
    b"\x89HDF": "hdf5_file",
    b"\x93NUMPY": "numpy_file",
    b"%PDF": "pdf_file",
    b"ORC": "orc_file",
    b"Obj\x01": "avro_file",
    b"GGUF": "gguf_model",
    b"\0\x05\x16\x07": "mac_resource_fork",
    **{bytes((0x80, version, mark)): "pickle_file" for version in range(2, 6)
       for mark in b"cq}](K\x95"},
    b"version https://git-lfs.github.com/spec/": "lfs_pointer",
}  # fmt: skip
MARKUP = ((re.compile(rb"\s*(?:<!doctype html|<html)", re.I), "html_page"),
           (re.compile(rb"\s*<\?xml", re.I), "xml_file"))  # fmt: skip


def foreign_kind(head: bytes) -> str | None:
    """Name what a file is whose first bytes are `head`, where that is nothing that is read."""
    if head[8:12] == b"DUCK":
        return "duckdb_database"
    for mark, kind in FOREIGN.items():
        if head.startswith(mark):
            return kind
    return next((kind for pattern, kind in MARKUP if pattern.match(head)), None)


def is_tar(head: bytes) -> bool:
    """Whether a file whose first bytes are `head` is a tar archive."""
    return head[257:262] == b"ustar"


def unmarked_encoding(head: bytes) -> str | None:
    """Name the encoding of UTF-16 or UTF-32 text that does not say so."""
    return None if marked_encoding(head) else wide_encoding(head[:200])


def likely_encoding(text: bytes) -> str | None:
    """Guess the encoding of `text`, which is not UTF-8, as Python names it."""
    from charset_normalizer import from_bytes

    sample = text[: 1 << 16]
    best = from_bytes(sample, explain=False).best()
    if best is None:
        return None
    families = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs"}
    return families.get(best.encoding, best.encoding.replace("_", "-"))


class Blocks:
    """A file's bytes, unpacked, block by block; a broken end of a packed file sets `fault` and ends
    the stream.
    """

    def __init__(self, path: Path, head: bytes, on_bytes: OnBytes) -> None:
        self.fault: str | None = None
        self._path, self._head, self._on_bytes = path, head, on_bytes
        self._read = 0

    def __iter__(self) -> Iterator[bytes]:
        if self._head[:2] == GZIP:
            yield from self._bounded(self._gzip())
        elif self._head[:4] == ZSTD:
            yield from self._bounded(self._zstd())
        else:
            yield from self._plain()

    def _plain(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                while block := file.read(BLOCK):
                    self._read += len(block)
                    self._on_bytes(self._read)
                    yield block
        except OSError:
            self.fault = "disk_error"

    def _bounded(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """`blocks` until they are far more than any text would unpack to."""
        unpacked = 0
        for block in blocks:
            unpacked += len(block)
            if unpacked > MAX_UNPACKED and unpacked > MAX_SWELLING * self._read:
                self.fault = "unpacks_without_end"
                return
            yield block

    def _gzip(self) -> Iterator[bytes]:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            for block in self._plain():
                while block:
                    yield unpacker.decompress(block, 1 << 20)
                    while unpacker.unconsumed_tail:
                        yield unpacker.decompress(unpacker.unconsumed_tail, 1 << 20)
                    block = unpacker.unused_data if unpacker.eof else b""
                    if unpacker.eof and block:  # a gzip file may be several, one after another
                        unpacker = zlib.decompressobj(wbits=31)
        except zlib.error:
            self.fault = "broken_gzip"
            return
        if not unpacker.eof:
            self.fault = self.fault or "cut_off"

    def _zstd(self) -> Iterator[bytes]:
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        unpacker, complete = decompressor.decompressobj(), False
        try:
            for packed in self._plain():
                for at in range(0, len(packed), _ZSTD_FEED):
                    block = packed[at : at + _ZSTD_FEED]
                    while block:
                        yield unpacker.decompress(block)
                        complete = unpacker.eof
                        block = unpacker.unused_data if complete else b""
                        if complete:  # a zstd file may be several frames, one after another
                            unpacker = decompressor.decompressobj()
        except zstandard.ZstdError:
            self.fault = "broken_zstd"
            return
        if not complete:
            self.fault = self.fault or "cut_off"


def decoded(blocks: Iterable[bytes], head: bytes, encoding: str | None) -> Iterator[bytes]:
    """`blocks` of text as UTF-8: by `encoding` where it is given, else by a byte order mark. What
    cannot be decoded becomes U+FFFD.
    """
    encoding = encoding or marked_encoding(head)
    if encoding is None or encoding == "utf-8-sig":
        yield from blocks
        return
    decoder = getincrementaldecoder(encoding)("replace")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "replace")
    yield decoder.decode(b"", final=True).encode("utf-8", "replace")


def lines_in(stream: Iterator[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Lines with their ends; None for one of more than `max_bytes`. A long line is gathered in
    pieces, so that it costs its length once.
    """
    pieces: list[bytes] = []
    size = 0
    for block in stream:
        *whole, tail = block.split(b"\n")
        for line in whole:
            pieces.append(line + b"\n")
            yield b"".join(pieces) if size + len(line) <= max_bytes else None
            pieces, size = [], 0
        size += len(tail)
        if tail and size <= max_bytes:
            pieces.append(tail)
        elif tail:
            pieces = []
    if size > max_bytes:
        yield None
    elif pieces:
        yield b"".join(pieces)
