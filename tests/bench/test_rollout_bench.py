"""Rollout against others on one mock: how fast, how even under trouble, how much memory, how soon
it goes on.

``python -m pytest tests/bench/test_rollout_bench.py -m bench`` writes results/rollout.json
(BENCH_RESULTS names another folder; BENCH_ROUNDS, BENCH_CALLS and BENCH_DIALOGUES make it smaller).
Contenders run one after the other, interleaved over the rounds; figures are medians, with the least
and the most beside them. Contenders that another interpreter must run are found through
BENCH_DATATROVE and BENCH_DISTILABEL (paths of a Python that has the package)."""

from __future__ import annotations

import heapq
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from figures import spread, write
from rollout_contenders import REQUESTS
from support.mock_endpoint import mock

HERE = Path(__file__).resolve().parent
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
DIALOGUES, IN_FLIGHT, LATENCY_S = int(os.environ.get("BENCH_CALLS", "16000")) // REQUESTS, 64, 0.05
WARM_UP = 8  # dialogues, so that imports are made before the clock runs
TAIL = (
    0.05,
    20,
)  # the share of answers that are slow in `mock(tail=True)`, and how many times slower
POLICY = (
    "hubkit: each turn fdatasync'ed before its dialogue goes on, turns that come together share one"
)

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]


def report(key: str, figures: dict[str, Any]) -> None:
    """Enter `figures` under `key` in the results file."""
    about = (
        f"Rollout against a server that answers in {LATENCY_S * 1000:.0f} ms, "
        f"{IN_FLIGHT} requests in flight."
    )
    write("rollout", about, "pytest -m bench tests/bench/test_rollout_bench.py", {key: figures})


def contend(
    name: str, urls: list[str], folder: Path, python: str = sys.executable
) -> dict[str, float] | str:
    """One run of one contender in a fresh process; its figures, or why there are none."""
    options = {
        "urls": urls, "dialogues": DIALOGUES, "warm_up": WARM_UP, "in_flight": IN_FLIGHT,
        "folder": str(folder),
    }  # fmt: skip
    try:
        done = subprocess.run(
            [python, str(HERE / "rollout_contenders.py"), name, json.dumps(options)],
            capture_output=True, text=True, timeout=600, check=False,
            env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "not done after ten minutes"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed without a word"])[-1][:300]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def medians(runs: dict[str, list[dict[str, float] | str]]) -> dict[str, Any]:
    """Per contender: requests per second and CPU milliseconds a request; or why there are none."""
    figures: dict[str, Any] = {}
    for name, all_runs in runs.items():
        good = [run for run in all_runs if isinstance(run, dict)]
        if not good:
            figures[name] = {"not run": all_runs[0] if all_runs else "not tried"}
            continue
        figures[name] = {
            "requests_per_s": spread((run["requests_per_s"] for run in good), 1),
            "cpu_ms_per_request": spread(
                run["cpu_s"] * 1000 / DIALOGUES / REQUESTS for run in good
            ),
        }
    return figures


def schedule(seed: int) -> float:
    """Seconds of the best that can be done without foreseeing which answers are slow: the next
    dialogue to whoever is free. A dialogue's turns come one after the other, so this is more than
    all answers' seconds over those in flight."""
    chance = random.Random(seed)
    free = [0.0] * IN_FLIGHT
    for _ in range(DIALOGUES):
        slow = sum(chance.random() < TAIL[0] for _ in range(REQUESTS))
        heapq.heappush(free, heapq.heappop(free) + LATENCY_S * (REQUESTS - slow + slow * TAIL[1]))
    return max(free)


def test_speed_beside_others(tmp_path: Path) -> None:
    ours = ["bare aiohttp", "hubkit", "hubkit, synced once a second"]
    datatrove, distilabel = os.environ.get("BENCH_DATATROVE"), os.environ.get("BENCH_DISTILABEL")
    theirs = {
        "datatrove": datatrove,
        "datatrove with its request cache": datatrove,
        "distilabel, single requests": distilabel,
    }
    runs: dict[str, list[dict[str, float] | str]] = {name: [] for name in [*ours, *theirs]}
    with mock(latency=LATENCY_S) as server:
        for _ in range(ROUNDS):
            for name in runs:
                python = theirs.get(name, sys.executable)
                before = server.stats()["answered"]
                run = (
                    contend(name, [server.url], tmp_path, python)
                    if python
                    else "no Python with it was named"
                )
                runs[name].append(run)
                asked = server.stats()["answered"] - before
                assert isinstance(run, str) or asked == (DIALOGUES + WARM_UP) * REQUESTS, (
                    f"{name} asked {asked} times"
                )
    figures = medians(runs)
    ratios = [
        mine["requests_per_s"] / bare["requests_per_s"]
        for mine, bare in zip(runs["hubkit"], runs["bare aiohttp"], strict=True)
        if isinstance(mine, dict) and isinstance(bare, dict)
    ]
    figures["hubkit over bare aiohttp"] = spread(ratios)
    figures["policy"] = POLICY
    report("speed", figures)


def test_trouble(tmp_path: Path) -> None:
    """A heavy tail, one answer in twenty wrong, and one of three addresses dead half-way, beside
    the ideal schedule.
    """
    ideal = statistics.median(map(schedule, range(21)))
    runs: dict[str, list[dict[str, float] | str]] = {"bare aiohttp with retries": [], "hubkit": []}
    with mock(latency=LATENCY_S, tail=True, faults=0.05) as server:
        for _ in range(ROUNDS):
            for name in runs:
                runs[name].append(contend(name, [server.url], tmp_path))
    makespans: list[float] = []
    for _ in range(ROUNDS):
        with (
            mock(latency=LATENCY_S, tail=True, faults=0.05) as dying,
            mock(latency=LATENCY_S, tail=True, faults=0.05) as second,
            mock(latency=LATENCY_S, tail=True, faults=0.05) as third,
        ):
            timer = threading.Timer(ideal / 2 + 1, dying.kill)
            timer.start()
            run = contend("hubkit", [dying.url, second.url, third.url], tmp_path)
            timer.cancel()
            assert isinstance(run, dict), (
                run
            )  # every dialogue reached its target, or the contender would have failed
            makespans.append(run["seconds"])
    figures = medians(runs)
    figures["ideal_seconds"] = round(ideal, 1)
    figures["ideal"] = (
        "dialogues dealt to whoever is free, with the mock's latencies and no faults; "
        "median of 21 draws"
    )
    for name, all_runs in runs.items():
        seconds = [run["seconds"] for run in all_runs if isinstance(run, dict)]
        if seconds:
            figures[name]["makespan_over_ideal"] = spread(value / ideal for value in seconds)
    figures["hubkit, one of three addresses dead half-way"] = {
        "makespan_over_ideal": spread(value / ideal for value in makespans),
        "dialogues_lost": 0,
    }
    report("trouble", figures)


MEMORY = """
import json, sys, time
from pathlib import Path
from hubkit.recipe import Rollout
from hubkit.rollout import JournalSpec, Seats, Watch, run
from hubkit.serving import ServedModel
from hubkit.conversation import Conversation
url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
seat = {"repo": "x", "system": "You are a person."}
given = {"dialogues": count, "turns": {"value": 1}, "asker": seat, "chat": seat, "in_flight": 64}
text = "opening {} " + "word " * 100
openings = (Conversation(str(i), [{"role": "user", "content": text.format(i)}])
            for i in range(count))
rss = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
seen = []
started = time.perf_counter()
report = run(
    Rollout.model_validate(given), openings, folder / "out",
    Seats(ServedModel.at(url), ServedModel.at(url)), JournalSpec(folder / "journal", 1),
    watch=Watch(on_status=lambda s: seen.append((s.dialogues, rss()))),
)
at = lambda n: next((m for d, m in seen if d >= n), None)
# Of this program alone: getrusage also counts what its parent held before it was one.
peak_kb = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(json.dumps({
    "seconds": time.perf_counter() - started, "at_1000": at(1000), "at_10000": at(10000),
    "peak_mb": peak_kb * 1024 / 1e6, "requests": report.session["requests"],
}))
"""


def test_memory_and_resume(tmp_path: Path) -> None:
    """Memory from 1,000 to `count` dialogues, and how long a finished run of that size takes to be
    taken up again.
    """
    count = int(os.environ.get("BENCH_DIALOGUES", "100000"))

    def go(url: str) -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, url, str(tmp_path), str(count)], capture_output=True,
            text=True, check=True,
            timeout=3000, env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
        )  # fmt: skip
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    with mock(latency=0.02, padding="word " * 200) as server:
        first = go(server.url)
        started = time.perf_counter()
        again = go(server.url)
        process_s = time.perf_counter() - started
    assert again["requests"] == 0
    report(
        "memory",
        {
            "dialogues": count,
            "rss_mb_at_1000": round(first["at_1000"] or 0),
            "rss_mb_at_10000": round(first["at_10000"] or 0),
            "peak_rss_mb": round(first["peak_mb"]),
            "resume_s": round(again["seconds"], 2),
            "resume_s_with_interpreter": round(process_s, 2),
        },
    )
