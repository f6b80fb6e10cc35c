"""What a static scanner reports is what docs/security.md gives reasons for."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.slow
def test_every_report_of_bandit_has_a_reason_and_every_reason_a_report() -> None:
    command = [sys.executable, "-m", "bandit", "-q", "-ll", "-r", "hubkit", "-f", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = json.loads(done.stdout)["results"]
    reported = {(r["test_id"], r["filename"].removeprefix("hubkit/")) for r in results}
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    rows = re.findall(r"^\| (B\d+) \| ([^|]+) \| [^|]{20,} \|$", page, re.MULTILINE)
    reasons = {(rule, path.strip()) for rule, paths in rows for path in paths.split(",")}
    assert reported == reasons
