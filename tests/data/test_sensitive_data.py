"""Secrets and personal data: found where they are, not where they are not, and never shown."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubkit.data.sensitive_data import KINDS, mask, scan_files, scan_folder, scan_text

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
    assert scan_folder(tmp_path) == {"aws_key": 1, "email": 3}
    assert scan_files(tmp_path) == {"README.md": {"email": 3}, "sub/d.parquet": {"aws_key": 1}}
    assert scan_files(tmp_path / "README.md") == {"README.md": {"email": 3}}


def test_a_secret_on_the_edge_of_a_block_is_found(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("x" * ((1 << 20) - 10) + f" {REAL['github_token']}\n")
    assert scan_folder(tmp_path) == {"github_token": 1}
