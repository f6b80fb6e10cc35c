"""One run over a Ray cluster of several nodes: every turn asked for once, whoever is killed on the
way.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rollout.test_rollout import PROVENANCE, block, openings, rows, seats
from support.mock_endpoint import Handle, mock
from support.small_run import small_recipe
from support.waiting import until

ray = pytest.importorskip("ray", reason="needs hubkit-simulators[ray]")

from hubkit.hub.places import runs  # noqa: E402
from hubkit.rollout import JournalSpec, RolloutReport, run  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NODES = 3  # of the fixture's cluster


def roll(server: Handle, folder: Path, **changes: Any) -> RolloutReport:
    """The run over the cluster; `changes` are the block's."""
    given = block(
        **{"dialogues": 60, "in_flight": 12, "shard_dialogues": 4, "on": "ray", **changes}
    )
    return run(
        given, openings(), folder / "out", seats(given, server.url),
        JournalSpec(folder / "journal", 7, PROVENANCE),
    )  # fmt: skip


def workers() -> list[int]:
    """The processes that drive a part at this moment."""
    found = []
    for note in runs().glob("parts-*/*/lock.pid"):
        try:
            found.append(int(note.read_text()))
        except (OSError, ValueError):
            continue
    return found


def check_ledger(server: Handle, folder: Path, dialogues: int) -> int:
    """Every turn that was kept was asked for once after it was kept. Gives how many answers were
    lost to kills.
    """
    made = rows(folder)
    assert sorted(row["index"] for row in made) == list(range(dialogues))
    kept = {
        (row["index"], position): message["content"]
        for row in made
        for position, message in enumerate(row["messages"])
        if row["finish_reasons"][position] is not None
    }
    answers: dict[tuple[int, int], list[str]] = {}
    for entry in server.ledger():
        turns = [message for message in entry["body"]["messages"] if message["role"] != "system"]
        key = (int(entry["body"]["user"].split("-")[1]), len(turns))
        answers.setdefault(key, []).append(entry["said"])
        for position, message in enumerate(turns):
            if position:
                assert kept[key[0], position] == message["content"], (
                    "a turn that was built on was asked for again"
                )
    assert kept.keys() == answers.keys()
    assert all(said[-1] == kept[key] for key, said in answers.items())
    return sum(len(said) - 1 for said in answers.values())


def test_workers_run_this_hubkit_whatever_is_installed_there(nodes: Any) -> None:
    from hubkit import ray_session

    def where() -> list[tuple[str, str]]:
        """Each place on a worker's path that holds hubkit, in order, and its text of one module."""
        import sys

        files = [Path(place) / "hubkit" / "ray_session.py" for place in sys.path]
        return [(str(file), file.read_text("utf-8")) for file in files if file.is_file()]

    with ray_session.connected() as ray:
        places = ray.get(ray.remote(where).options(num_cpus=0).remote())
    sent = [at for at, (file, _) in enumerate(places) if "py_modules" in file]
    installed = [at for at, (file, _) in enumerate(places) if "site-packages" in file]
    assert sent and sent[0] < min(installed, default=len(places))
    assert places[sent[0]][1] == Path(ray_session.__file__).read_text("utf-8")


def test_parts_share_one_run(nodes: Any, tmp_path: Path) -> None:
    with mock(latency=0.05) as server:
        report = roll(server, tmp_path)
        assert check_ledger(server, tmp_path, 60) == 0
        assert server.stats()["most"] > 4  # more than one part's share at once
    assert report.end_reasons == {"target_turns": 60} and report.session["parts"] == NODES
    assert (
        report.requests == 300
        and not list(runs().glob("parts-*/*"))
        and not (tmp_path / "journal/parts.json").exists()
    )


def test_a_killed_worker_costs_nothing_acknowledged(nodes: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def killer() -> None:
        for answered in (60, 150):
            while server.stats()["answered"] < answered:
                time.sleep(0.02)
            victim = next(
                pid for pid in workers() if pid not in killed
            )  # a dead one's note stays a while
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    with mock(latency=0.1) as server:
        thread = threading.Thread(target=killer)
        thread.start()
        report = roll(server, tmp_path)
        thread.join()
        lost = check_ledger(server, tmp_path, 60)
    assert len(set(killed)) == 2 and lost <= 2 * 4  # what was in flight at the two kills
    assert report.end_reasons == {"target_turns": 60}


def test_a_lost_node_costs_nothing_acknowledged(nodes: Any, tmp_path: Path) -> None:
    gone = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()

    def remover() -> None:
        while server.stats()["answered"] < 100:
            time.sleep(0.02)
        nodes.remove_node(gone, allow_graceful=False)

    with mock(latency=0.1) as server:
        thread = threading.Thread(target=remover)
        thread.start()
        report = roll(server, tmp_path)
        thread.join()
        lost = check_ledger(server, tmp_path, 60)
    assert report.session["parts"] == NODES + 1 and lost <= 3


@pytest.mark.parametrize("cap", [{"budget_tokens": 3000}, {"budget_usd": 3.0}])
def test_caps_hold_over_all_parts_and_a_larger_one_goes_on(
    nodes: Any, tmp_path: Path, cap: dict[str, float]
) -> None:
    seats = {
        "sampling": {"max_tokens": 20},
        "usd_per_million_input": 1000.0,
        "usd_per_million_output": 1000.0,
    }
    with mock(latency=0.01) as server:
        first = roll(server, tmp_path, dialogues=60, asker=seats, chat=seats, **cap)
        spent = sum(sum(seat.values()) for seat in first.tokens.values())
        assert first.stopped == next(iter(cap)) and 2000 < spent <= 3000 and first.dialogues < 60
        report = roll(server, tmp_path, dialogues=60, asker=seats, chat=seats)
        assert check_ledger(server, tmp_path, 60) == 0
    assert report.end_reasons == {"target_turns": 60} and report.requests == 300


def test_over_the_hub_and_after_the_driver_was_killed(
    nodes: Any, hubkit_home: Path, cli_process: Callable[..., Any], tmp_path: Path
) -> None:
    from hubkit.hub import Ref, connect

    recipe = small_recipe(
        tmp_path, "rollout-ray", count=60, openings=40, rollout__shard_dialogues=4
    )
    assert cli_process("corpus", *recipe).returncode == 0
    with mock(latency=0.1) as server:
        args = [
            *recipe,
            "--asker-url",
            server.url,
            "--chat-url",
            server.url,
            "--dialogues",
            "40",
            "--in-flight",
            "6",
        ]
        args += ["--on", "ray", "--json"]
        driver = subprocess.Popen(
            [sys.executable, "-m", "hubkit", "rollout", *args], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=os.environ,
        )  # fmt: skip
        while server.stats()["answered"] < 60 and driver.poll() is None:
            time.sleep(0.05)
        driver.kill()
        driver.communicate()
        held = {
            index
            for path in runs().glob("dialogues-*/journal/shards/*.parquet")
            for index in pq.read_table(path)["index"].to_pylist()
        }
        refused = cli_process("rollout", *args[:-3], "--json")
        assert refused.returncode == 1 and "--on ray" in refused.stderr, refused.stderr
        until_gone()
        before = Counter(int(entry["body"]["user"].split("-")[1]) for entry in server.ledger())
        done = cli_process("rollout", *args)
        assert done.returncode == 0, done.stderr
        after = (
            Counter(int(entry["body"]["user"].split("-")[1]) for entry in server.ledger()) - before
        )
    [stage] = json.loads(done.stdout)["stages"]
    ref = Ref(stage["repo_id"], stage["repo_type"], stage["revision"])
    made = pq.read_table(
        connect().snapshot(ref, allow_patterns=["data/raw-*"]) / "data"
    ).to_pylist()
    assert sorted(row["index"] for row in made) == list(range(40)) and not held & set(after)
    assert sum(after.values()) + sum(before.values()) <= 40 * 3 + 6
    assert not list(runs().glob("parts-*/*"))
    shutil.rmtree(runs(), ignore_errors=True)


def until_gone() -> None:
    """Wait until the workers of a killed driver are gone too."""
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers()))
