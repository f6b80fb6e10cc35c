"""What all tests share: a clean environment, and one hubkit home per test session with its own
embedded Hub.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from support import durations
from support.paths import ROOT, TESTS

from hubkit.loopback import CLIENT_TIMEOUTS
from hubkit.openmp import spin_briefly

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from support.hub_server import HubServer

Command = Callable[..., subprocess.CompletedProcess[str]]

for _name in [n for n in os.environ if n.startswith(("HF_", "HUBKIT_", "TRANSFORMERS_"))]:
    del os.environ[_name]
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HUBKIT_UPSTREAM"] = "off"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
for _name in CLIENT_TIMEOUTS:  # before anything reads them: the stock clients' own are ten seconds
    os.environ[_name] = "240"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
spin_briefly()  # as the command line does
os.environ["PYTHONPATH"] = str(ROOT)
# What is compiled is kept: every child process would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# The same made-up input in every run, or with FUZZ (`make fuzz`) another one in each; the profiles
# of single files follow from this one.
hypothesis.settings.register_profile("hubkit", derandomize=not os.environ.get("FUZZ"))
hypothesis.settings.load_profile("hubkit")
# Started in a shell's background, the tests ignore Ctrl-C, and so would every process they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Workers take files in the order of the collection."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    by_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.path.relative_to(TESTS).as_posix(), []).append(item)
    order = durations.longest_first(by_file, durations.recorded())
    items[:] = [item for file in order for item in by_file[file]]


@pytest.fixture(scope="module", autouse=True)
def _environment_is_left_as_it_was() -> Iterator[None]:
    """What a file sets would be another file's environment, in one order of the files alone."""
    before = _ours()
    yield
    changed = {name: value for name, value in _ours().items() if before.get(name) != value}
    missing = before.keys() - _ours().keys()
    assert not changed and not missing, f"left in the environment: {changed}, missing: {missing}"


def _ours() -> dict[str, str]:
    """Variables that hubkit or a Hub client reads; those of `hubkit_home` last as long as it, and
    those that make libraries quiet may stay. (NO_PROXY is left out: OpenEnv's client leaves it.)
    """
    from hubkit.cli import QUIET

    ours = ("HUBKIT_", "HF_", "http", "HTTP", "OPENAI_", "TRANSFORMERS_")
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(ours) and name not in ("HUBKIT_HOME", "HF_HOME", *QUIET)
    }


@pytest.fixture(scope="session")
def hubkit_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh ``HUBKIT_HOME`` for the whole session; its embedded Hub is stopped at the end."""
    from hubkit.hub import embedded

    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setenv("HUBKIT_HOME", str(home))
    patch.setenv("HF_HOME", str(home / "hf"))
    yield home
    embedded.stop()
    patch.undo()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """One embedded Hub a file, with nothing in it."""
    from support.hub_server import HubServer

    running = HubServer(tmp_path_factory.mktemp("hub")).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def api(server: HubServer) -> HfApi:
    """Its owner's stock client."""
    return server.api()


@pytest.fixture
def repo(api: HfApi) -> Iterator[str]:
    """A model repo for one test."""
    made = api.create_repo(f"local/r{time.time_ns()}").repo_id
    yield made
    api.delete_repo(made, missing_ok=True)


@pytest.fixture
def cli() -> Command:
    """Run ``hubkit …`` in this process. Returns what `subprocess.run` returns."""
    from support import command

    return command.run


@pytest.fixture
def cli_process() -> Command:
    """Run ``hubkit …`` as a person would, in a process of its own, which costs seconds: where
    plug-ins, the encoding of streams or variables that libraries read once matter.
    """

    def call(*args: str, timeout_s: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hubkit", *args],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **env},
            check=False,
        )

    return call


@pytest.fixture(scope="module")
def nodes(hubkit_home: Path) -> Iterator[Any]:
    """A cluster of three nodes on this machine, each with room for one worker."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        made.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = made.address
    yield made
    del os.environ["RAY_ADDRESS"]
    made.shutdown()
