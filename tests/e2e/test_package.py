"""What is built is what people get: the wheel and the sdist hold all that a run needs, with no
checkout in sight.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from support.hub_server import HubServer
from support.mock_endpoint import mock
from support.paths import ROOT

NEEDED = (
    "hubkit/recipes/parrot.yaml",
    "hubkit/_assets/cards/chat.md.jinja",
    "hubkit/_assets/spaces/chat/app.py",
    "hubkit/_assets/spaces/asker/app.py",
    "hubkit/_assets/spaces/common/models.py",
)
TALK = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Because of Rayleigh scattering in the air."},
    {"role": "user", "content": "And why is it red in the evening?"},
    {"role": "assistant", "content": "The light has a longer way through the air then."},
]


def run(*command: str | Path, cwd: Path, timeout_s: int = 300, **environment: str) -> str:
    """Output of a command that must succeed, run where no checkout is on the path."""
    inherited = {
        k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("HUBKIT")
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, built from the sdist, and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    # Without an environment of its own where what builds it is here: that takes a download.
    here = ["--no-isolation"] if find_spec("hatchling") else []
    run(sys.executable, "-m", "build", *here, "--outdir", out, ROOT, cwd=out)
    return out


def test_wheel_and_sdist_hold_what_a_run_needs(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert set(NEEDED) <= names
    shipped = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "hubkit").rglob("*") if path.is_file()
    }
    shipped = {name for name in shipped if "__pycache__" not in name and "_assets" not in name}
    assert shipped <= names, sorted(shipped - names)
    assert not [name for name in names if name.startswith("tests/")]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "spaces/chat/app.py",
        "cards/chat.md.jinja",
    } <= inside


def test_the_wheel_works_where_no_checkout_is(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    code = "import hubkit, hubkit.cli; print(hubkit.__file__); hubkit.cli.main()"
    home = {"PYTHONPATH": str(tmp_path / "site"), "HUBKIT_HOME": str(tmp_path / "home")}
    said = run(sys.executable, "-c", code, "recipes", cwd=tmp_path, **home)
    assert str(tmp_path / "site") in said and "parrot" in said and "laptop" in said


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_clean_environment_runs_the_whole_loop(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    wheel = next(built.glob("*.whl"))
    run(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        ROOT / "constraints.txt",
        f"{wheel}[demo]",
        cwd=tmp_path,
        timeout_s=1800,
    )
    command = (
        tmp_path / "env" / "bin" / "hubkit",
        "run",
        "parrot",
        "--profile",
        "laptop",
        "--json",
    )
    run(*command, cwd=tmp_path, timeout_s=3000, HUBKIT_HOME=str(tmp_path / "home"))
    said = run(*command, cwd=tmp_path, HUBKIT_HOME=str(tmp_path / "home"))
    assert '"skipped": true' in said and '"skipped": false' not in said


CORE_BYTES = 500_000_000
MISSING = [
    (["hub", "start"], "local"),
    (["serve", "local/some-model"], "local"),
    (["train", "asker", "parrot", "--profile", "laptop"], "train"),
    (["eval", "asker", "some-asker"], "eval"),
    (["rollout", "parrot", "--on", "ray"], "ray"),
    (["env", "some-asker"], "env"),
]


@pytest.fixture(scope="module")
def core(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds hubkit without any extra."""
    folder = tmp_path_factory.mktemp("core")
    venv.create(folder / "env", with_pip=True)
    python, wheel = folder / "env" / "bin" / "python", next(built.glob("*.whl"))
    constraints = ("-c", ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "-q", *constraints, wheel, cwd=folder, timeout_s=1800)
    return folder / "env"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_core_is_small_and_cleans(core: Path, server: HubServer, tmp_path: Path) -> None:
    run(core / "bin" / "python", "-m", "pip", "check", cwd=tmp_path)
    installed = sum(p.lstat().st_size for p in core.rglob("*") if p.is_file())
    assert installed <= CORE_BYTES, f"the core takes {installed / 1e6:.0f} MB"
    (tmp_path / "chats.jsonl").write_text(
        "".join(json.dumps({"messages": TALK, "id": str(n)}) + "\n" for n in range(9))
    )
    elsewhere = {"HUBKIT_HUB": server.url, "HF_TOKEN": server.token, "HUBKIT_HOME": str(tmp_path)}
    command = partial(run, core / "bin" / "hubkit", cwd=tmp_path, **elsewhere)
    assert "rollout" in command("--help")
    assert "hubkit-simulators[local,train," in command("doctor", "--json")
    assert "exact_duplicates" in command(
        "clean", "chats.jsonl", "--out", "cleaned", "--profile", "laptop"
    )


def _values(url: str) -> list[str]:
    """A recipe whose both seats answer at `url`: what is left of it for the core alone."""
    values = [
        "corpus.sources=[{path: chats.jsonl, license: mit}]",
        "corpus.filters=[{name: alternate_roles}, {name: exact_duplicates}]",
        "corpus.openings=4",
        "corpus.test=3",
        "curate.filters=[{name: empty_turn}]",
        "curate.measure=null",
        "asker.base=local/some-asker",
        "rollout.dialogues=4",
        "rollout.turns={kind: fixed, value: 2}",
        "rollout.baseline=null",
        "rollout.asker.repo=local/some-asker",
        "rollout.chat.repo=null",
        "rollout.chat.name=some model",
        "rollout.chat.license=mit",
    ]
    for seat in ("asker", "chat"):
        values += [f"rollout.{seat}.endpoints=[{url}]", f"rollout.{seat}.profile=openai"]
    return [word for value in values for word in ("--set", value)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_core_makes_and_measures_dialogues_of_two_servers(
    core: Path, server: HubServer, tmp_path: Path
) -> None:
    rows = [
        {"id": str(n), "messages": [{**m, "content": f"{m['content']} {n}"} for m in TALK]}
        for n in range(12)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    HfApi(server.url, token=server.token).create_repo("local/some-asker", exist_ok=True)
    elsewhere = {"HUBKIT_HUB": server.url, "HF_TOKEN": server.token, "HUBKIT_HOME": str(tmp_path)}
    command = partial(run, core / "bin" / "hubkit", cwd=tmp_path, **elsewhere)
    with mock() as endpoint:
        recipe = ("parrot", "--profile", "laptop", "--json", *_values(endpoint.url))
        for stage in ("corpus", "rollout", "curate"):
            (made,) = json.loads(command(stage, *recipe))["stages"]
    assert made["report"]["kept"] == 4
    measured = json.loads(
        command(
            "stats", "parrot-40k", "--baseline", "parrot-sharegpt:test", "--no-topics", "--json"
        )
    )
    assert [dataset["dialogues"] for dataset in measured["datasets"]] == [4, 3]
    assert "some model (declared; licence: mit)" in command("lineage", "parrot-40k")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("arguments", "extra"), MISSING, ids=lambda v: str(v[0]))
def test_where_an_extra_is_missing_one_sentence_has_the_command(
    core: Path, tmp_path: Path, arguments: list[str], extra: str
) -> None:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HUBKIT_HUB")}
    done = subprocess.run(
        [core / "bin" / "hubkit", *arguments],
        env={**inherited, "HUBKIT_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "pip install 'hubkit-simulators[" in last, done.stderr
    assert extra in last.partition("hubkit-simulators[")[2] or "[local]" in last
