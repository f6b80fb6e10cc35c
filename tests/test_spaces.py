"""The Spaces' own code where no page is needed: borrowing a GPU from ZeroGPU, or from nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hubkit.publishing.spaces import write_sources

LOOK = """
import inspect, sys
{before}
import models
assert inspect.isgeneratorfunction(models._generate) and "torch" not in sys.modules
print(models.on_gpu)
"""


@pytest.mark.parametrize("which", ["chat", "asker"])
@pytest.mark.parametrize("there", [True, False])
def test_a_space_runs_with_the_gpu_decorator_and_without(
    which: str, there: bool, tmp_path: Path
) -> None:
    """As installed on the Hub's machines (no GPU lent: the function as it is), and where the
    package is missing.
    """
    if there:
        pytest.importorskip("spaces.zero", reason="needs the package spaces")
    before = "import gradio" if there else "sys.modules['spaces'] = None"
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(before=before)],
        capture_output=True, text=True, timeout=240, check=False,
        cwd=write_sources(which, tmp_path / which),
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("partial" in done.stdout) is there, done.stdout
    if there:
        assert "duration=60" in done.stdout
