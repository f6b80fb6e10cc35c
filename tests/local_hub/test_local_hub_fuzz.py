"""Whatever strangers send, the parsers either understand it or refuse it: never another exception,
never more work than the input is worth."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hub_server import HubServer

from hubkit.local_hub.api import commit_body
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import cards, paths, trees, xet_format

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["header", "file", "lfsFile", "deletedFile", "deletedFolder", "other"])
FIELDS = st.sampled_from(
    ["path", "content", "encoding", "oid", "algo", "size", "summary", "description", "parentCommit"]
)
ODD_VALUES = JSON | st.sampled_from(
    ["a/b.txt", "../x", ".git/config", "base64", "utf-8", "sha256", "ab" * 32, "eA=="]
)
LINES = st.fixed_dictionaries(
    {"key": KEYS | JSON, "value": st.dictionaries(FIELDS, ODD_VALUES, max_size=6) | JSON}
)


async def _read(chunks: list[bytes], folder: Path) -> commit_body.CommitRequest:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return await commit_body.read_commit(stream(), folder)


@given(
    lines=st.lists(LINES, max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=5),
    junk=st.binary(max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_commits(
    lines: list[object], cuts: list[int], junk: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    body = (
        b"\n".join(
            [
                b'{"key":"header","value":{"summary":"s"}}',
                *(json.dumps(line).encode() for line in lines),
            ]
        )
        + junk
    )
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[a:b] for a, b in itertools.pairwise(places)]
    try:
        request = asyncio.run(_read(chunks, Path("/tmp")))
    except Refusal:
        return
    for path, blob in request.blobs.items():
        assert paths.checked_path(path) == path
        assert len(blob.load()) <= commit_body.MAX_REGULAR_BYTES
    request.spool.close()


@given(contents=st.lists(st.binary(max_size=2000), min_size=1, max_size=8), size=st.integers(1, 97))
@settings(max_examples=50, deadline=None)
def test_commits_come_out_as_they_went_in(contents: list[bytes], size: int) -> None:
    """However the body is cut into pieces."""
    lines = [{"key": "header", "value": {"summary": "s", "description": "d"}}]
    for number, content in enumerate(contents):
        value = {
            "path": f"f/{number}",
            "content": base64.b64encode(content).decode(),
            "encoding": "base64",
        }
        lines.append({"key": "file", "value": value})
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    request = asyncio.run(
        _read([body[i : i + size] for i in range(0, len(body), size)], Path("/tmp"))
    )
    assert [blob.load() for blob in request.blobs.values()] == contents
    assert request.message == "s\n\nd"
    request.spool.close()


def _chunks(data: bytes) -> int:
    """Decode every chunk; how many bytes come out."""
    file, total = io.BytesIO(data), 0
    for chunk in xet_format.scan_xorb(file, len(data)):
        file.seek(chunk.offset)
        total += len(xet_format.decode_chunk(file.read(chunk.packed), chunk.scheme, chunk.size))
    return total


@given(data=st.binary(max_size=4000))
@settings(max_examples=200, deadline=None)
def test_xorbs(data: bytes) -> None:
    with contextlib.suppress(Refusal):
        _chunks(data)


@given(
    plain=st.binary(min_size=1, max_size=5000),
    scheme=st.sampled_from([0, 1, 2]),
    flips=st.lists(st.integers(0, 60), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_chunks(plain: bytes, scheme: int, flips: list[int]) -> None:
    """A chunk decodes to what was packed; a damaged one is refused, or has at most the promised
    length.
    """
    import lz4.frame

    grouped = b"".join(plain[lane::4] for lane in range(4)) if scheme == 2 else plain
    packed = lz4.frame.compress(grouped) if scheme else plain
    if len(packed) > len(plain) + 1024:
        return
    head = (
        b"\0"
        + len(packed).to_bytes(3, "little")
        + bytes([scheme])
        + len(plain).to_bytes(3, "little")
    )
    assert _chunks(head + packed) == len(plain)
    assert xet_format.decode_chunk(packed, scheme, len(plain)) == plain
    damaged = bytearray(head + packed)
    for flip in flips:
        damaged[flip % len(damaged)] ^= 0x55
    with contextlib.suppress(Refusal):
        assert _chunks(bytes(damaged)) <= xet_format.MAX_CHUNK_BYTES * 64


def test_a_bomb_is_not_unpacked() -> None:
    """A chunk that would unfold into 64 MiB costs no more memory than the length that it
    promises.
    """
    import tracemalloc

    import lz4.frame

    bomb = lz4.frame.compress(b"\0" * (64 * 2**20))
    tracemalloc.start()
    with pytest.raises(Refusal):
        xet_format.decode_chunk(bomb, 1, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@given(data=st.binary(max_size=600), start=st.booleans())
@settings(max_examples=200, deadline=None)
def test_shards(data: bytes, start: bool) -> None:
    try:
        files = xet_format.parse_shard(
            (b"HFRepoMetaData\0".ljust(48, b"\0") if start else b"") + data
        )
    except Refusal:
        return
    assert sum(len(file.segments) for file in files) <= len(data) // 48


@given(text=st.text(max_size=300) | st.text(alphabet="-: \n[]{}&*!|>#'\"ab", max_size=200))
@settings(max_examples=300, deadline=None)
def test_cards(text: str) -> None:
    for content in (text, f"---\n{text}\n---\nbody"):
        try:
            json.dumps(cards.metadata(content), allow_nan=False)
        except cards.CardError:
            continue


@given(path=st.text(max_size=80) | st.text(alphabet="./\\gitGIT~1\u200c．", max_size=20))
@settings(max_examples=500, deadline=None)
def test_paths(path: str) -> None:
    """A path that is accepted stays inside the folder that it is joined to, on any system."""
    import ntpath
    import posixpath

    try:
        paths.checked_path(path)
    except Refusal:
        return
    assert posixpath.normpath(posixpath.join("/r", path)) == f"/r/{path}"
    assert ntpath.normpath(ntpath.join("C:\\r", path)).startswith("C:\\r\\")
    assert ".git" not in path.lower().split("/")


@given(
    oid=st.text(alphabet="0123456789abcdef", min_size=64, max_size=64),
    size=st.integers(0, 10**14),
    junk=st.binary(max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_pointers(oid: str, size: int, junk: bytes) -> None:
    pointer = trees.Pointer(oid, size)
    assert trees.parse_pointer(pointer.text()) == pointer
    if junk:
        assert trees.parse_pointer(junk + pointer.text()) is None


@pytest.fixture(scope="module")
def server(server: HubServer) -> HubServer:
    server.api().create_repo("local/fuzz")
    return server


PREFIXES = st.sampled_from(
    [
        "/",
        "/api/",
        "/api/models/",
        "/api/models/local/fuzz/",
        "/local/fuzz/",
        "/local/fuzz.git/info/lfs/",
        "/xet/",
        "/datasets/",
    ]
    + [
        f"/api/models/local/fuzz/{verb}/"
        for verb in ("tree", "commits", "revision", "discussions", "lfs-files", "tag", "branch")
    ]
    + [
        "/local/fuzz/resolve/",
        "/local/fuzz/tree/",
        "/local/fuzz/blob/",
        "/local/fuzz/commit/",
        "/local/fuzz/rows?",
        "/api/collections/",
    ]
)
TAILS = st.lists(st.text(alphabet="abz019%2fF.~-_=&?+;:@!$'()*,", max_size=12), max_size=4).map(
    "/".join
)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"]),
    prefix=PREFIXES,
    tail=TAILS,
    body=st.none() | JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50),
    etag=st.text(alphabet='bytes=0123456789-, "W/', max_size=20),
)
@settings(max_examples=250, deadline=None)
def test_no_request_is_an_internal_error(
    server: HubServer, method: str, prefix: str, tail: str, body: bytes | None, etag: str
) -> None:
    headers = {
        "Authorization": f"Bearer {server.token}",
        "Range": etag,
        "If-None-Match": etag,
        "Accept": "text/html",
    }
    status = _status(server, method, prefix + tail, body, headers)
    assert status < 500, (method, prefix + tail, body)


def _status(
    server: HubServer, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> int:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=240)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()
