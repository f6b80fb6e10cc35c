"""Secrets and personal data: found where they are, not where they are not, and never shown."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sensitive_samples

from hubkit.sensitive_data import (
    KINDS,
    mask,
    personal_rules,
    scan_file,
    scan_files,
    scan_folder,
    scan_text,
    secret_rules,
)
from hubkit.sensitive_data.prefilter import Prefilter
from hubkit.sensitive_data.rules import Finding, Rule, Text, before

# Put together here, so that no scanner of this repository takes them for real ones.
TOKEN = base64.urlsafe_b64encode(json.dumps({"alg": "HS256"}).encode()).decode().rstrip("=")
REAL = {
    "aws_key": "AK" + "IAIOSFODNN7ABCDEFG",
    "github_token": "gh" + "p_" + "a1B2" * 9,
    "gitlab_token": "gl" + "pat-" + "a1B2c3" * 4,
    "huggingface_token": "h" + "f_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
    "openai_key": "s" + "k-" + "a1B2c3D4" * 6,
    "anthropic_key": "s" + "k-ant-" + "a1B2c3D4" * 6,
    "google_key": "AI" + "za" + "a1B2c" * 7,
    "slack_token": "xo" + "xb-" + "123456789012-abcdef123456",
    "stripe_key": "sk" + "_live_" + "a1B2c3D4" * 3,
    "json_web_token": TOKEN + "." + TOKEN + ".c2lnbmF0dXJl",
    "private_key": "-----BEGIN RSA PRIVATE "
    + "KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE "
    + "KEY-----",
    "password_in_url": "://" + "admin:hunter22@",
    "email": "jane.doe@" + "university.edu",
    "phone_number": "+49 30 " + "901820",
    "credit_card": "4539 1488 " + "0343 6467",
    "iban": "DE89 3704 0044 " + "0532 0130 00",
    "us_social_security_number": "536-90-" + "4399",
    "ip_address": "93.184." + "216.34",
}


@pytest.mark.parametrize("kind", sorted(REAL))
def test_found_whole_and_masked_whole(kind: str) -> None:
    value = REAL[kind]
    text = f"Before it ({value}) and after it."
    if kind == "password_in_url":
        text = f"Before it (https{value}db.host) and after it."
    (finding,) = scan_text(text)
    assert finding.kind == kind and text[finding.start : finding.end] == value
    assert mask(text) == text.replace(value, f"[{kind.upper()}]")


@pytest.mark.parametrize(
    "text",
    [
        "Version 1.2.3.4 of 2021-10-11, chapters 10.2.3.1 and 3.4",
        "Write to user@example.com or noreply@github.com; see icon@2x.png",
        "call 555-555-0199 or (212) 555-0123",
        "2019 2020 2021 2022 and 1234 5678 9012 3456",
        "postgres://user:password@localhost/db and https://${USER}:${PASS}@host",
        "sk-learn, ask-me, hf_hub_download, eyJust.kidding.here",
        "ISBN 978-3-16-148410-0, 123-45-6789, 192.168.1.1, 127.0.0.1, 8.8.8.8",
        "The quick brown fox jumps over 13 lazy dogs 27 times.",
    ],
)
def test_examples_versions_and_plain_text_are_nobody_s(text: str) -> None:
    assert scan_text(text) == []


def test_only_the_kinds_asked_for() -> None:
    both = f"{REAL['email']} {REAL['google_key']}"
    assert [f.kind for f in scan_text(both, {"email"})] == ["email"]
    with pytest.raises(ValueError, match=r"no kind .* is called mail"):
        scan_text("x", {"mail"})


@settings(deadline=None)
@given(st.text(max_size=300), st.sampled_from(sorted(REAL)), st.text(max_size=300))
def test_masking_ends_and_leaves_nothing_to_find(before: str, kind: str, after: str) -> None:
    text = f"{before} {REAL[kind]} {after}"
    findings = scan_text(text)
    assert all(f.kind in KINDS and 0 <= f.start < f.end <= len(text) for f in findings)
    assert all(one.end <= two.start for one, two in pairwise(findings))


def test_folders_are_counted_by_kind_down_to_parquet_s_nested_strings(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"mail {REAL['email']}\n" * 3)
    (tmp_path / "sub").mkdir()
    rows = [
        {
            "id": "a",
            "messages": [{"role": "user", "content": f"key {REAL['aws_key']}"}],
            "meta": {"x": ["y"]},
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sub" / "d.parquet")
    (tmp_path / "weights.safetensors").write_bytes(b"\x00\x01" + REAL["aws_key"].encode())
    assert scan_folder(tmp_path) == {"aws_key": 2, "email": 3}
    assert scan_files(tmp_path) == {
        "README.md": {"email": 3},
        "sub/d.parquet": {"aws_key": 1},
        "weights.safetensors": {"aws_key": 1},
    }
    assert scan_files(tmp_path / "README.md") == {"README.md": {"email": 3}}


def test_a_secret_on_the_edge_of_a_block_is_found(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("x" * ((1 << 20) - 10) + f" {REAL['github_token']}\n")
    assert scan_folder(tmp_path) == {"github_token": 1}


@pytest.mark.parametrize(("group", "bound"), [("secret", 60 / 64), ("personal", 45 / 54)])
def test_recall_on_samples_that_the_rules_were_not_written_for(group: str, bound: float) -> None:
    chosen = [
        s for n in range(3) for s in sensitive_samples.samples(n) if s.group == group and s.held_out
    ]
    missed = {s.name for s in chosen if not s.is_right}
    assert sum(s.is_right for s in chosen) >= bound * len(chosen), missed


def test_false_alarms_on_look_alikes() -> None:
    chosen = [s for n in range(3) for s in sensitive_samples.samples(n) if s.group == "look-alike"]
    alarms = [s.name for s in chosen if not s.is_right]
    assert len(alarms) <= 3 / 84 * len(chosen), alarms


@pytest.mark.parametrize(
    "unit",
    [
        "jane.doe@university.edu ",
        "-----BEGIN RSA PRIVATE " + "KEY-----",
        "password=",
        "(415) 736-1234 ",
        "a.b@",
        "eyJ.",
        "1-2.3 ",
        "東京都新宿区",
    ],
)
def test_the_cost_of_a_scan_is_linear_in_the_text(unit: str) -> None:
    def steps(size: int) -> int:
        """Function calls that a scan of `size` characters makes: a clock that no load disturbs."""
        text, calls = unit * (size // len(unit)), 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            scan_text(text)
        finally:
            sys.setprofile(None)
        return calls

    steps(1000)
    assert steps(40_000) <= 2.5 * steps(20_000) + 2000


def _archive(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("inner/file.txt", content)
    return out.getvalue()


def _tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("file.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _arrow(content: bytes) -> bytes:
    out = io.BytesIO()
    table = pa.table({"x": [content]})
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


HIDING = {
    "utf-16": lambda b: b.decode().encode("utf-16"),
    "utf-16 without a mark": lambda b: b.decode().encode("utf-16-le"),
    "utf-32": lambda b: b.decode().encode("utf-32"),
    "latin-1": lambda b: "café ".encode("latin-1") + b,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
    "zip": _archive,
    "tar": _tar,
    "gzip in zip": lambda b: _archive(gzip.compress(b)),
    "base64": lambda b: b'{"x": "' + base64.b64encode(b"some text " + b) + b'"}',
    "base64 of gzip": lambda b: b"x = " + base64.b64encode(gzip.compress(b)),
    "json escapes": lambda b: b.replace(b"@", b"\\u0040").replace(b"_", b"\\u005f"),
    "arrow": _arrow,
    "binary": lambda b: b"\x00\x01\x02\xff" * 9 + b + b"\x00\x03",
    "binary, wide": lambda b: b"\x00\x01\x02\xff" * 9 + b.decode().encode("utf-16-le") + b"\x07",
    "safetensors": lambda b: (
        len(b + b'{"__metadata__":{"x":""}}').to_bytes(8, "little")
        + b'{"__metadata__":{"x":"' + b + b'"}}' + b"\0" * 64
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", sorted(HIDING))
def test_found_in_whatever_a_file_may_be(how: str) -> None:
    inside = f" {REAL['github_token']} {REAL['email']} "
    findings = scan_file("file.bin", HIDING[how](inside.encode()))
    assert set(findings.counts) == {"github_token", "email"}
    assert REAL["email"] not in str(findings) and REAL["github_token"] not in str(findings)


def _column(value: str) -> dict[str, pa.Array]:
    pair = pa.array([[("k", value)]], pa.map_(pa.string(), pa.string()))
    return {
        "string": pa.array([value]),
        "large_string": pa.array([value], pa.large_string()),
        "string_view": pa.array([value], pa.string_view()),
        "binary": pa.array([value.encode()]),
        "large_binary": pa.array([value.encode()], pa.large_binary()),
        "fixed_binary": pa.array([value.encode()], pa.binary(len(value))),
        "dictionary": pa.array([value]).dictionary_encode(),
        "list": pa.array([[value]]),
        "large_list": pa.array([[value]], pa.large_list(pa.string())),
        "fixed_list": pa.array([[value]], pa.list_(pa.string(), 1)),
        "map_value": pair,
        "map_key": pa.array([[(value, "v")]], pa.map_(pa.string(), pa.string())),
        "struct": pa.array([{"a": {"b": [{"c": value}]}}]),
        "list_of_dictionary": pa.array([[value]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    }


@pytest.mark.parametrize("kind", sorted(_column("x")))
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_every_column_of_every_type_is_read(kind: str, form: str) -> None:
    out = io.BytesIO()
    table = pa.table({"x": _column(REAL["email"])[kind]})
    if form == "parquet":
        pq.write_table(table, out)
    else:
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    findings = scan_file("d", out.getvalue())
    assert findings.counts == {"email": 1} and "column x" in findings.places["email"]


def test_numbers_names_and_metadata_of_tables_are_read() -> None:
    card = int(REAL["credit_card"].replace(" ", ""))
    table = pa.table({"card": pa.array([card]), REAL["email"]: pa.array([1])})
    table = table.replace_schema_metadata({"owner": REAL["github_token"]})
    out = io.BytesIO()
    pq.write_table(table, out)
    assert set(scan_file("d.parquet", out.getvalue()).counts) == {
        "credit_card", "email", "github_token",
    }  # fmt: skip


def test_a_file_s_own_name_is_read() -> None:
    findings = scan_file(f"mails/{REAL['email']}.txt", b"nothing")
    assert str(findings) == "1 email (the file's name)"


def test_a_bomb_is_bounded_and_counted() -> None:
    nested = b"x"
    for _ in range(8):
        nested = gzip.compress(nested)
    assert "unreadable" in scan_file("bomb.gz", nested).counts


def test_every_repetition_of_every_pattern_has_an_end() -> None:
    """What makes a scan linear: no pattern can run over a text from each of its places."""
    rules = (*secret_rules.secret_rules(), *personal_rules.personal_rules())
    patterns = [pattern for rule in rules for pattern in rule.patterns]
    assert len(patterns) > 150
    assert [p.pattern for p in patterns if _repeats_without_end(p)] == []


def _repeats_without_end(pattern: re.Pattern[str]) -> bool:
    def walk(parts: Any) -> bool:
        return any(
            (str(name) in ("MAX_REPEAT", "MIN_REPEAT") and value[1] == re._constants.MAXREPEAT)
            or any(walk(inner) for inner in _inside(value))
            for name, value in parts
        )

    return walk(re._parser.parse(pattern.pattern, pattern.flags))


def _inside(value: Any) -> Iterator[Any]:
    """The parts of a pattern inside one of its parts."""
    if isinstance(value, re._parser.SubPattern):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inside(item)


@settings(deadline=None)
@given(st.text(max_size=200), st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=20))
def test_no_literal_of_a_text_is_left_out(text: str, literals: list[str]) -> None:
    cut = [text[at : at + 5] for at in range(0, len(text), 7)]
    every = [literal.lower() for literal in [*literals, *filter(None, cut)]]
    lower = text.lower()
    held = {at for at, literal in enumerate(every) if literal in lower}
    assert held <= set(Prefilter(every).possible(lower))


def test_nothing_is_found_by_one_rule_that_all_together_leave_out() -> None:
    """Hints, shapes, runs and numbers only say where not to look."""
    rules = (*secret_rules.secret_rules(), *personal_rules.personal_rules())
    for sample in sensitive_samples.samples(7):
        text = f"Ünd {sample.text} İ"
        subject = Text(text)
        alone = {f for rule in rules for f in rule.findings(subject, rule.hints)}
        whole = {f for rule in rules for p in rule.patterns for f in _everywhere(rule, p, text)}
        assert set(scan_text(text)) <= alone
        assert {f.kind for f in whole if f.kind != "phone_number"} <= {f.kind for f in alone}


def _everywhere(rule: Rule, pattern: re.Pattern[str], text: str) -> Iterator[Finding]:
    """What a pattern finds in all of a text, whatever the rule says of where to look."""
    group = "value" if "value" in pattern.groupindex else 0
    for match in pattern.finditer(text):
        context = rule.context is None or rule.context.search(before(match))
        if context and match.end(group) > match.start(group) and rule.check(match):
            yield Finding(rule.kind, *match.span(group))
