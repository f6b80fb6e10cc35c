"""The embedded Hub's figures, beside what the same machine does without it. Printed, and written to
results/.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures import spread, write
from support.hub_server import HubServer, run_client

pytestmark = pytest.mark.bench
BLOCK = 4 * 2**20
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub").start()
    yield running
    running.stop()


def report(name: str, **figures: Any) -> None:
    sys.stderr.write(f"\n{name}: {json.dumps(figures)}\n")
    about = "The embedded Hub, beside what the same machine needs for the same bytes without it."
    write(
        "local_hub", about, "pytest -m bench tests/bench/test_bench_local_hub.py", {name: figures}
    )


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def raw_copy(source: Path, target: Path) -> None:
    """Read, hash, write, fsync: what anybody has to do with the bytes."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(BLOCK):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())


UPLOAD = """
import time
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
repo = api.create_repo(f"local/big-{time.time_ns()}").repo_id
start = time.perf_counter()
api.upload_file(path_or_fileobj="big.bin", path_in_repo="big.bin", repo_id=repo)
print(time.perf_counter() - start)
"""


@pytest.mark.parametrize("transfer", ["xet", "lfs"])
def test_one_gibibyte_up(server: HubServer, tmp_path: Path, transfer: str) -> None:
    source = tmp_path / "big.bin"
    env = {"HF_HUB_DISABLE_XET": "1"} if transfer == "lfs" else {}
    pairs = []
    for _ in range(ROUNDS):
        with source.open(
            "wb"
        ) as file:  # other bytes every time: what the Hub has is not sent again
            for _ in range(2**30 // BLOCK):
                file.write(os.urandom(BLOCK))
        raw_s = seconds(lambda: raw_copy(source, tmp_path / "copy.bin"))
        (tmp_path / "copy.bin").unlink()
        pairs.append((float(run_client(server, UPLOAD, tmp_path, **env).split()[-1]), raw_s))
    report(
        f"1 GiB up by {transfer}",
        upload_s=spread(upload for upload, _ in pairs),
        raw_s=spread(raw for _, raw in pairs),
        upload_over_raw=spread(upload / raw for upload, raw in pairs),
        server_peak_mib=round(server.rss_mib()),
    )


def test_one_file_into_two_thousand(server: HubServer) -> None:
    from huggingface_hub import CommitOperationAdd

    api = server.api()
    api.create_repo("local/many")
    files = [CommitOperationAdd(f"d/{n}.txt", b"%d" % n) for n in range(2000)]
    all_s = seconds(
        lambda: api.create_commit("local/many", operations=files, commit_message="many")
    )

    def commit(number: int) -> float:
        import httpx

        lines = [
            {"key": "header", "value": {"summary": "one"}},
            {
                "key": "file",
                "value": {"path": f"d/n{number}.txt", "content": "x", "encoding": "utf-8"},
            },
        ]
        body = "\n".join(json.dumps(line) for line in lines)
        headers = {"Authorization": f"Bearer {server.token}"}
        url = f"{server.url}/api/models/local/many/commit/main"
        return seconds(lambda: httpx.post(url, content=body, headers=headers).raise_for_status())

    times = [commit(number) for number in range(40)]
    bare = [seconds(lambda: fsyncs(server.root / "tmp" / "probe")) for _ in range(10)]
    report(
        "one file into 2,000",
        commit_ms=spread((1000 * time_s for time_s in times), 1),
        commit_of_2000_files_s=round(all_s, 3),
        ten_fsyncs_ms=spread((1000 * time_s for time_s in bare), 1),
    )


def fsyncs(path: Path) -> None:
    """Ten small files made durable: about what one commit costs the disk."""
    for _ in range(10):
        with path.open("wb") as file:
            file.write(b"x" * 1000)
            file.flush()
            os.fsync(file.fileno())
    path.unlink()


def test_start(tmp_path: Path) -> None:
    HubServer(tmp_path / "hub").start().stop()
    times = []
    for _ in range(ROUNDS):
        server = HubServer(tmp_path / "hub")
        times.append(seconds(server.start))
        memory = server.rss_mib()
        server.stop()
    report("start", start_s=spread(times), server_mib=round(memory))
