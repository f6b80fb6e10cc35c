"""Whatever carries a secret or an address: it is found, or its carrier is said to be unreadable."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from hubkit.errors import PublishError
from hubkit.hub import gate
from hubkit.sensitive_data import KINDS, scan_file

pytestmark = pytest.mark.attack

EMAIL = "jane.doe@" + "university.edu"
TOKEN = "gh" + "p_" + "a1B2c3D4e5F6" * 3
TEXT = f"my key is {TOKEN} and my mail {EMAIL}"
BYTES = TEXT.encode()
BOTH, ADDRESS, SAID = {"email", "github_token"}, {"email"}, {"unreadable"}
NOISE = random.Random(1).randbytes(4096).replace(b"\0", b"\1")


def zipped(change: Callable[[zipfile.ZipFile], Any]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        change(archive)
    return file.getvalue()


def member_with_comment(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo("a.txt")
    member.comment = BYTES
    archive.writestr(member, "x")


def tarred(mode: str = "w", content: bytes = b"", **facts: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("a")
        for name, value in facts.items():
            setattr(member, name, value)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def encrypted() -> bytes:
    data = bytearray(zipped(lambda archive: archive.writestr("a.txt", TEXT * 9)))
    for place in (6, data.find(b"PK\1\2") + 8):
        data[place] |= 1
    return bytes(data)


def saved(array: Any, *, packed: bool = False) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, a=array) if packed else np.save(file, array)
    return file.getvalue()


def gzip_of(name: str) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(filename=name, mode="wb", fileobj=file) as packed:
        packed.write(b"hello")
    return file.getvalue()


def safetensors_of(metadata: dict[str, str]) -> bytes:
    header = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header


def stream_of(text: str) -> bytes:
    file, table = io.BytesIO(), pa.table({"c": [text]})
    with pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    return file.getvalue()


BASE64 = base64.b64encode(BYTES).decode()
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"abcd"
LONG = BYTES * 200
FILES: dict[str, tuple[bytes, set[str]]] = {
    "gzip": (gzip.compress(BYTES), BOTH),
    "gzip, two members": (gzip.compress(b"x" * 99) + gzip.compress(BYTES), BOTH),
    "gzip, the name in it": (gzip_of(f"{EMAIL}.txt"), ADDRESS),
    "gzip in gzip in gzip": (gzip.compress(gzip.compress(gzip.compress(BYTES))), BOTH),
    "gzip, cut off": (gzip.compress(LONG)[:-9], SAID),
    "bzip2": (bz2.compress(BYTES), BOTH),
    "xz": (lzma.compress(BYTES), BOTH),
    "lzma": (lzma.compress(BYTES, format=lzma.FORMAT_ALONE), BOTH),
    "zlib": (zlib.compress(LONG), BOTH),
    "zstd, two frames": (zstandard.compress(b"x" * 99) + zstandard.compress(LONG), BOTH),
    "zstd behind a skippable frame": (SKIPPABLE + zstandard.compress(LONG), BOTH),
    "text behind gzip": (gzip.compress(b"x" * 99) + BYTES, BOTH | SAID),
    "text behind bzip2": (bz2.compress(b"x" * 99) + b"\n" + BYTES, BOTH),
    "text behind xz": (lzma.compress(b"x" * 99) + b"\n" + BYTES, BOTH),
    "text behind zstd": (zstandard.compress(b"x" * 99) + b"\n" + BYTES, BOTH),
    "text behind zlib": (zlib.compress(b"x" * 99) + b"\n" + BYTES, BOTH),
    "text behind tar": (tarred(content=b"x") + b"\n" + BYTES, BOTH),
    "text behind rows": (stream_of("hello") + b"\n" + BYTES, BOTH),
    "text before zip": (
        b"PK\3\4\0\0" + BYTES + zipped(lambda archive: archive.writestr("a.txt", "x")),
        BOTH,
    ),
    "a stream of rows": (stream_of(TEXT), BOTH),
    "7z": (b"7z\xbc\xaf\x27\x1c" + NOISE, SAID),
    "rar": (b"Rar!\x1a\x07\x01" + NOISE, SAID),
    "lz4": (b"\x04\x22\x4d\x18" + NOISE, SAID),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + zlib.compress(LONG) + NOISE, SAID),
    "parquet, damaged": (b"PAR1" + NOISE, SAID),
    "parquet, its footer encrypted": (b"PARE" + NOISE, SAID),
    "zip": (zipped(lambda archive: archive.writestr("a.txt", TEXT * 9)), BOTH),
    "zip, its comment": (zipped(lambda archive: setattr(archive, "comment", BYTES)), BOTH),
    "zip, a member's comment": (zipped(member_with_comment), BOTH),
    "zip, a folder's name": (zipped(lambda archive: archive.mkdir(EMAIL)), ADDRESS),
    "zip, a member's name": (zipped(lambda archive: archive.writestr(f"{EMAIL}.md", "x")), ADDRESS),
    "zip behind a program": (
        b"#!/bin/sh\n\0" + zipped(lambda archive: archive.writestr("a.txt", TEXT * 9)),
        BOTH,
    ),
    "zip, encrypted": (encrypted(), SAID),
    "zip, cut off": (zipped(lambda archive: archive.writestr("a.txt", TEXT * 9))[:-30], SAID),
    "tar": (tarred(content=BYTES), BOTH),
    "tar.gz": (tarred("w:gz", content=BYTES), BOTH),
    "tar, a folder's name": (tarred("w:xz", name=EMAIL, type=tarfile.DIRTYPE), ADDRESS),
    "tar, a link's target": (tarred(linkname=EMAIL, type=tarfile.SYMTYPE), ADDRESS),
    "tar, an owner": (tarred(uname=EMAIL), ADDRESS),
    "tar, a header of pax": (tarred(pax_headers={"comment": TEXT}), BOTH),
    "base64": (BASE64.encode(), BOTH),
    "base64 in lines": (base64.encodebytes(BYTES * 5), BOTH),
    "base64 in short lines": (
        "\n  ".join(BASE64[i : i + 20] for i in range(0, len(BASE64), 20)).encode(),
        BOTH,
    ),
    "base64 in lines, in JSON": (
        json.dumps({"a": base64.encodebytes(BYTES).decode()}).encode(),
        BOTH,
    ),
    "base64 of other letters": (base64.b64encode(f"日本語のメール、連絡先 {TEXT}".encode()), BOTH),
    "base64 of UTF-16": (base64.b64encode(TEXT.encode("utf-16-le")), BOTH),
    "base64 of gzip": (base64.b64encode(gzip.compress(BYTES)), BOTH),
    "base64 over blocks": (b"ab " + base64.b64encode(b"hello world, " * 90_000 + BYTES), BOTH),
    "base32": (base64.b32encode(BYTES), BOTH),
    "hexadecimal": (BYTES.hex().encode(), BOTH),
    "hexadecimal, upper case": (BYTES.hex().upper().encode(), BOTH),
    "percent signs": ("".join(f"%{byte:02x}" for byte in BYTES).encode(), BOTH),
    "entities": ("".join(f"&#{byte};" for byte in BYTES).encode(), BOTH),
    "quoted-printable": (
        TEXT.replace("@", "=40").replace("university", "uni=\nversity").encode(),
        BOTH,
    ),
    "a program's escapes": (TEXT.replace("@", r"\x40").encode(), BOTH),
    "a program's other escapes": (TEXT.replace("@", r"\u{40}").encode(), BOTH),
    "characters that nobody sees": (
        TEXT.replace("@", "\u200b@").replace("uni", "u\u00adni").encode(),
        BOTH,
    ),
    "UTF-16, no mark": (TEXT.encode("utf-16-be"), BOTH),
    "UTF-32, no mark": (TEXT.encode("utf-32-le"), BOTH),
    "behind the mark of UTF-16": (b"\xff\xfe" + BYTES * 2, BOTH),
    "UTF-16 behind other text": (b"hello " * 2000 + TEXT.encode("utf-16-le"), BOTH),
    "UTF-32 among other bytes": (b"\xfa\xfb\1" * 9 + TEXT.encode("utf-32-le") + NOISE, BOTH),
    "numpy": (saved(np.array([TEXT, "x"])), BOTH),
    "numpy, packed": (saved(np.array([TEXT, "x"]), packed=True), BOTH),
    "metadata of weights": (safetensors_of({"a": TEXT}), BOTH),
    "text that begins like parquet": (b"PAR1 " + BYTES, BOTH),
    "text that begins like bzip2": (b"BZh " + BYTES, BOTH),
    "text that begins like PDF": (b"%PDF-1.4 " + BYTES, BOTH),
}


@pytest.mark.parametrize("what", FILES)
def test_no_file_carries_a_value_past_the_scanner(what: str) -> None:
    data, kinds = FILES[what]
    assert set(scan_file("file.bin", data).counts) >= kinds


@pytest.mark.parametrize("shift", range(-44, 4, 4))
def test_no_value_is_cut_in_two_between_blocks(shift: int) -> None:
    before = bytes(range(128, 256)) * 8192
    binary = b"\0" + before[: (1 << 20) + shift] + BYTES + b"\0\xff" * 50
    assert dict(scan_file("file.bin", binary).counts) == {"email": 1, "github_token": 1}
    assert len(scan_file("a.txt", b"word " * 209_706 + b" " * (shift + 44) + BYTES).counts) == 2


def test_what_unpacks_to_more_than_is_looked_at_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(archive: zipfile.ZipFile) -> None:
        for number in range(9):
            archive.writestr(f"{number}.txt", " " * (1 << 19))

    assert not scan_file("no-bomb.zip", zipped(fill)).counts
    for bound in ("_UNPACKED_BYTES", "_ALL_UNPACKED_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(f"hubkit.sensitive_data.files.{bound}", 1 << 18)
            assert set(scan_file("bomb.zip", zipped(fill)).counts) == SAID


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"BZh9 hello\n" * 9, id="text"),
        pytest.param(zipped(lambda archive: archive.writestr("a.txt", "hello")), id="zip"),
        pytest.param(NOISE * 99, id="noise"),
        pytest.param(base64.b64encode(NOISE), id="base64 of noise"),
        pytest.param(saved(np.arange(9999)), id="numpy"),
        pytest.param(b"\xff\xff\xff\xff" + NOISE, id="begins like Arrow"),
        pytest.param(b"\x78\x9c" + NOISE, id="begins like zlib"),
    ],
)
def test_nothing_is_found_where_nothing_is(data: bytes) -> None:
    assert not scan_file("file.bin", data).counts


COLUMNS: dict[str, pa.Array] = {
    "string": pa.array([TEXT]),
    "string view": pa.array([TEXT], pa.string_view()),
    "large string": pa.array([TEXT], pa.large_string()),
    "binary": pa.array([BYTES]),
    "large binary": pa.array([BYTES], pa.large_binary()),
    "fixed size binary": pa.array([BYTES], pa.binary(len(BYTES))),
    "UTF-16 in binary": pa.array([TEXT.encode("utf-16-le")]),
    "gzip in binary": pa.array([gzip.compress(BYTES)]),
    "zlib in binary": pa.array([zlib.compress(BYTES)]),
    "dictionary": pa.array([TEXT, "x"]).dictionary_encode(),
    "unused value of a dictionary": pa.DictionaryArray.from_arrays(
        pa.array([1]), pa.array([TEXT, "x"])
    ),
    "struct in struct": pa.array([{"a": {"b": TEXT}}]),
    "name of a struct's field": pa.array([{"a": {TEXT: 1}}]),
    "list of struct": pa.array([[{"a": TEXT}]]),
    "list of list": pa.array([[[TEXT]]]),
    "list view": pa.array([[TEXT]], pa.list_view(pa.string())),
    "fixed size list": pa.array([[TEXT, "x"]], pa.list_(pa.string(), 2)),
    "list of bytes": pa.array([list(BYTES)], pa.list_(pa.uint8())),
    "value of a map": pa.array([[("k", TEXT)]], pa.map_(pa.string(), pa.string())),
    "key of a map": pa.array([[(TEXT, "v")]], pa.map_(pa.string(), pa.string())),
    "run ends": pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array([TEXT])),
    "union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([TEXT])]),
    "extension": pa.array([json.dumps({"a": TEXT})], pa.json_()),
    "JSON in JSON": pa.array([json.dumps({"a": json.dumps({"b": TEXT})})]),
    "text that is not UTF-8": pa.array([b"\xff\xfe " + BYTES]).view(pa.string()),
}


def ipc(table: pa.Table) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_file(
        file, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as out:
        out.write_table(table)
    return file.getvalue()


@pytest.mark.parametrize("what", COLUMNS)
def test_no_column_of_any_type_carries_a_value_past_the_scanner(what: str) -> None:
    table = pa.table({"c": COLUMNS[what]})
    files = [ipc(table)]
    try:
        pq.write_table(table, file := io.BytesIO())
        files.append(file.getvalue())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        assert what in ("run ends", "union", "list view")
    for data in files:
        assert set(scan_file("rows.bin", data).counts) >= BOTH


def test_rows_that_cannot_be_masked_are_refused() -> None:
    table = pa.table({"c": COLUMNS["text that is not UTF-8"]})
    pq.write_table(table, file := io.BytesIO())
    with gate.masked({"a.parquet": file.getvalue()}, KINDS) as (ready, said):
        assert said == ""
        with pytest.raises(PublishError, match=r"a\.parquet holds 1 email"):
            gate.check("not pushed", ready)


def test_a_number_with_a_fraction_may_be_a_cards() -> None:
    """Pandas makes floats of whole numbers where one is missing."""
    card = 4_539_148_803_436_467
    for column in (pa.array([card]), pa.array([float(card), None])):
        pq.write_table(pa.table({"card_number": column}), file := io.BytesIO())
        assert set(scan_file("a.parquet", file.getvalue()).counts) == {"credit_card"}
    pq.write_table(
        pa.table({"loss": pa.array([0.5, float("nan"), float("inf")])}), file := io.BytesIO()
    )
    assert not scan_file("a.parquet", file.getvalue()).counts


@pytest.mark.parametrize(
    "name",
    [
        f"data/{EMAIL}/x.txt",
        f"{EMAIL}.txt",
        f"{TOKEN}.json",
        f"{BASE64}.txt",
        EMAIL.replace("@", "%40"),
    ],
)
def test_no_name_of_a_file_carries_a_value_past_the_scanner(name: str) -> None:
    assert scan_file(name, b"hello").counts
