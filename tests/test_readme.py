"""README says what is so: its figures stand in the files that commands wrote, its commands exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
from places import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def test_figures_are_those_of_the_results_files() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tests" / "bench" / "readme.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.filled(README) == README, "run `python tests/bench/readme.py`"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"`?make ([a-z][a-z-]+)", README)):
        assert re.search(rf"^(?:[a-z -]*\b)?{target}\b[a-z -]*:", makefile, re.MULTILINE), f"no target {target}"


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"(?m)(?:^|`|\$\(|face\.co )hubkit ([a-z]+)", README))))
def test_commands_exist(verb: str) -> None:
    done = subprocess.run([sys.executable, "-m", "hubkit", verb, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"README names `hubkit {verb}`: {done.stderr}"
