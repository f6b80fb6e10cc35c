"""The whole loop on every architecture: trained, merged, served, rolled out, evaluated, pushed,
loaded.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from support.tiny_architectures import ARCHITECTURES

from hubkit.hub import connect

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matrix", BENCH / "architecture_matrix.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_goes_through_the_whole_loop(
    matrix: ModuleType, hubkit_home: Path, tmp_path: Path, architecture: str
) -> None:
    row = matrix.Loop(architecture, tmp_path, connect()).run()
    assert "failed" not in row and all(row[step] for step in matrix.STEPS), row
    assert row["engine"] == ("transformers" if architecture == "GPT2" else "llamacpp")


def test_the_results_that_the_docs_show_have_no_failure() -> None:
    rows = json.loads((BENCH / "results" / "architectures.json").read_text("utf-8"))["rows"]
    assert not [row for row in rows if "failed" in row]
    assert len({row["architecture"] for row in rows}) == len(rows) <= len(ARCHITECTURES)
