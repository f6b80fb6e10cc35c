"""Jobs and clusters install this very hubkit: its wheel by URL and hash,
never a namesake from an index."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hubkit import __version__, extras
from hubkit.cloud import own_wheel
from hubkit.hub import Hub, connect


@pytest.fixture(scope="module")
def hub(hubkit_home: Path) -> Hub:
    return connect()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package index that holds a namesake of a much higher version."""
    root = tmp_path_factory.mktemp("index")
    for name in ("hubkit", "hubkit-simulators"):
        folder = root / "simple" / name
        folder.mkdir(parents=True)
        stem = f"{name.replace('-', '_')}-99.0"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            info = f"{stem}.dist-info"
            wheel.writestr("hubkit/__init__.py", "raise SystemExit('a namesake')")
            wheel.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n"
            )
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
        (folder / "index.html").write_text(
            f'<a href="{stem}-py3-none-any.whl">{stem}-py3-none-any.whl</a>'
        )
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(root))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()


def resolved(requirement: str, index: str) -> subprocess.CompletedProcess[str]:
    """What pip would install for `requirement`, as its report."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--isolated",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
    ]
    command += ["--quiet", "--report", "-", "--no-cache-dir", "--index-url", index, requirement]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_a_namesake_on_the_index_is_not_taken(hub: Hub, index: str) -> None:
    wheel = own_wheel.publish(hub)
    done = resolved(wheel.requirement, index)
    assert done.returncode == 0, done.stderr
    [install] = json.loads(done.stdout)["install"]
    assert install["metadata"]["version"] == __version__
    assert install["download_info"]["url"].startswith(hub.url)
    namesake = resolved(extras.DISTRIBUTION, index)  # what a bare name would have brought
    assert json.loads(namesake.stdout)["install"][0]["metadata"]["version"] == "99.0"


def test_a_wheel_with_other_bytes_is_refused(hub: Hub, index: str) -> None:
    wheel = own_wheel.publish(hub)
    other = wheel.requirement.replace(wheel.sha256, "0" * 64)
    done = resolved(other, index)
    assert done.returncode != 0 and "DO NOT MATCH" in done.stderr


def test_the_same_files_are_the_same_wheel_and_are_stored_once(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = own_wheel.build(tmp_path / "a"), own_wheel.build(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert own_wheel.publish(hub) == own_wheel.publish(hub)
    names = zipfile.ZipFile(first).namelist()
    assert {"hubkit/__init__.py", "hubkit/py.typed", "hubkit/recipes/laptop.yaml"} <= set(names)
    assert "hubkit/_assets/cards/chat.md.jinja" in names
    assert not [name for name in names if "__pycache__" in name or "/." in name]


def test_the_wheel_runs_alone(tmp_path: Path) -> None:
    wheel = own_wheel.build(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hubkit; "
        "print(hubkit.__file__, hubkit.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(wheel)], capture_output=True, text=True, check=True
    )
    assert wheel.name in done.stdout and __version__ in done.stdout
