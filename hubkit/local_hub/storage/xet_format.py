"""The two binary formats of the Xet protocol, as far as an upload needs them: xorbs and shards.

Layouts after the public specification (huggingface.co/docs/xet). Everything is little-endian and
comes from strangers: each length is checked before it is used, and decompression is bounded by the
length promised.

A xorb is a run of chunks, each `version u8, compressed length u24, scheme u8, length u24` and its
bytes; a footer may follow. A shard is a header of 48 bytes, then records of 48 bytes: for each file
one head, its segments, optionally as many verification records, optionally one with the sha256."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from hubkit.local_hub.errors import Refusal

MAX_CHUNK_BYTES = 256 * 2**10
MAX_XORB_BYTES = 66 * 2**20
MAX_XORB_CHUNKS = 64 * 2**10
MAX_SHARD_BYTES = 64 * 2**20
_RECORD = 48
_FOOTER_IDENT = b"XETBLOB"
_SHARD_MAGIC = b"HFRepoMetaData\0"
_HAS_VERIFICATION, _HAS_SHA256 = 1 << 31, 1 << 30


def _bad(reason: str) -> Refusal:
    return Refusal(400, f"Malformed upload: {reason}.")


@dataclass(frozen=True)
class Chunk:
    """Where a chunk's compressed bytes are in its xorb, and how to read them."""

    offset: int
    packed: int
    scheme: int
    size: int


def scan_xorb(file: BinaryIO, total: int) -> list[Chunk]:
    """The chunks of a xorb of `total` bytes. Raises `Refusal` 400."""
    chunks: list[Chunk] = []
    position = 0
    while position < total:
        file.seek(position)
        head = file.read(8)
        if head[:7] == _FOOTER_IDENT or total - position == 4:
            break
        if len(head) < 8 or head[0] != 0:
            raise _bad("a chunk has no valid header")
        packed, scheme, size = (
            int.from_bytes(head[1:4], "little"),
            head[4],
            int.from_bytes(head[5:8], "little"),
        )
        if (
            not 0 < size <= MAX_CHUNK_BYTES
            or not 0 < packed <= size + 1024
            or position + 8 + packed > total
        ):
            raise _bad("a chunk has an impossible length")
        chunks.append(Chunk(position + 8, packed, scheme, size))
        if len(chunks) > MAX_XORB_CHUNKS:
            raise _bad("too many chunks")
        position += 8 + packed
    return chunks


def decode_chunk(data: bytes, scheme: int, size: int) -> bytes:
    """A chunk's bytes, exactly `size` of them. Raises `Refusal` 400, also for one that would unpack
    to more.
    """
    if scheme == 0:
        plain = data
    elif scheme in (1, 2):
        plain = _unpack(data, size)
        if scheme == 2:
            plain = _regroup(plain)
    else:
        raise _bad(f"unknown compression {scheme}")
    if len(plain) != size:
        raise _bad("a chunk does not have the promised length")
    return plain


def _unpack(data: bytes, size: int) -> bytes:
    import lz4.frame

    unpacker = lz4.frame.LZ4FrameDecompressor()
    try:
        plain: bytes = unpacker.decompress(data, max_length=size + 1)
    except RuntimeError:
        raise _bad("a chunk cannot be decompressed") from None
    return plain


def _regroup(data: bytes) -> bytes:
    """Undo byte grouping: the first quarter holds bytes 0, 4, 8…, the second 1, 5, 9…, and so
    on.
    """
    plain = bytearray(len(data))
    start = 0
    for lane in range(4):
        count = (len(data) + 3 - lane) // 4
        plain[lane::4] = data[start : start + count]
        start += count
    return bytes(plain)


@dataclass(frozen=True)
class Segment:
    """A run of chunks of one xorb."""

    xorb: str
    size: int
    first: int
    end: int


@dataclass(frozen=True)
class ShardFile:
    """How one file is put together; `sha256` is what its bytes must hash to (None where the client
    does not say).
    """

    segments: tuple[Segment, ...]
    sha256: str | None

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(segment.size for segment in self.segments)


def parse_shard(data: bytes) -> list[ShardFile]:
    """The files of a shard. Raises `Refusal` 400."""
    if len(data) < 2 * _RECORD or not data.startswith(_SHARD_MAGIC):
        raise _bad("not a shard")
    return list(_files(data))


def _files(data: bytes) -> Iterator[ShardFile]:
    position = _RECORD

    def record() -> bytes:
        nonlocal position
        piece = data[position : position + _RECORD]
        if len(piece) < _RECORD:
            raise _bad("the shard ends too early")
        position += _RECORD
        return piece

    while (head := record())[:32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", head, 32)
        if count > (len(data) - position) // _RECORD:
            raise _bad("the shard promises more segments than it has bytes")
        segments = tuple(_segment(record()) for _ in range(count))
        if flags & _HAS_VERIFICATION:
            for _ in range(count):
                record()
        yield ShardFile(segments, _hash_hex(record()) if flags & _HAS_SHA256 else None)


def _segment(piece: bytes) -> Segment:
    _, size, first, end = struct.unpack_from("<IIII", piece, 32)
    if not first < end:
        raise _bad("a segment is empty")
    return Segment(_hash_hex(piece), size, first, end)


def _hash_hex(piece: bytes) -> str:
    """Hashes are stored as four 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<QQQQ", piece))
