"""The Spaces' own code where no page is needed: borrowing a GPU from ZeroGPU, or from nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.spaces import write_sources

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


REMOTE_CODE = """
import sys, types
import models
stub = types.ModuleType("transformers")
stub.AutoTokenizer = None
sys.modules["transformers"] = stub
def refused(model):
    raise ValueError("contains custom code; pass trust_remote_code=True to allow it")
models._Weights.of = refused
model = models.Model("chat", "Chat", "lab/chat", "", False)
try:
    list(models._from_here(model, [], max_tokens=1))
except models.ModelError as error:
    print(error)
"""


def test_a_model_that_needs_code_of_its_own_is_refused_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REMOTE_CODE],
        capture_output=True, text=True, timeout=240, check=False,
        cwd=write_sources("chat", tmp_path / "chat"),
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": "."},
    )  # fmt: skip
    assert "lab/chat; it needs Python code of its own repo" in done.stdout, done.stderr[-2000:]
