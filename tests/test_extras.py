"""Optional packages: one sentence with the command where one is missing;
extras are what pyproject says."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from support.paths import ROOT

from hubkit import extras
from hubkit.errors import MissingDependencyError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_extras_are_those_of_the_project() -> None:
    declared = set(PROJECT["optional-dependencies"])
    assert set(extras.modules()) <= declared
    assert {"local", "train", "eval", "spaces", "ray"} <= set(extras.modules())


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    extras.require("local", "the embedded Hub")
    real = extras.util.find_spec
    monkeypatch.setattr(
        extras.util, "find_spec", lambda name: None if name == "dulwich" else real(name)
    )
    with pytest.raises(
        MissingDependencyError,
        match=r"Hub needs dulwich, .*pip install 'hubkit-simulators\[local\]'",
    ):
        extras.require("local", "the embedded Hub")


def test_the_core_has_no_datasets_and_load_dataset_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hubkit.hub.load import load_dataset

    assert not any(line.startswith("datasets") for line in PROJECT["dependencies"])
    assert "datasets" in PROJECT["optional-dependencies"]
    monkeypatch.setattr(extras, "modules", lambda: {"datasets": {"datasets": "datasets"}})
    monkeypatch.setattr(extras.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'hubkit-simulators\[datasets\]'"
    ):
        load_dataset("parrot-40k")


@pytest.mark.parametrize(
    ("module", "extra"), [("inspect_ai", "eval"), ("gradio", "spaces"), ("trl", "train")]
)
def test_the_command_line_gives_a_sentence_instead_of_a_stack_trace(
    module: str, extra: str
) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from hubkit import cli\n"
        f"cli.app.command('probe')(lambda: __import__({module!r}))\n"
        "sys.argv = ['hubkit', 'probe']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"hubkit-simulators[{extra}]" in done.stderr
