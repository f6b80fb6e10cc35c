"""The embedded Hub's figures, beside what the same machine does without it. Printed, and written to results/."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hub_server import ROOT, HubServer, run_client

pytestmark = pytest.mark.bench
BLOCK = 4 * 2**20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub").start()
    yield running
    running.stop()


def report(name: str, **figures: float) -> None:
    rounded = {key: round(value, 3) for key, value in figures.items()}
    sys.stderr.write(f"\n{name}: {json.dumps(rounded)}\n")
    path = ROOT / "tests" / "bench" / "results" / "local_hub.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, name: rounded}, indent=2) + "\n")


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
api.create_repo("local/big")
start = time.perf_counter()
api.upload_file(path_or_fileobj="big.bin", path_in_repo="big.bin", repo_id="local/big")
print(time.perf_counter() - start)
"""


@pytest.mark.parametrize("transfer", ["xet", "lfs"])
def test_one_gibibyte_up(server: HubServer, tmp_path: Path, transfer: str) -> None:
    source = tmp_path / "big.bin"
    with source.open("wb") as file:
        for _ in range(2**30 // BLOCK):
            file.write(os.urandom(BLOCK))
    raw_s = seconds(lambda: raw_copy(source, tmp_path / "copy.bin"))
    (tmp_path / "copy.bin").unlink()
    env = {"HF_HUB_DISABLE_XET": "1"} if transfer == "lfs" else {}
    upload_s = float(run_client(server, UPLOAD, tmp_path, **env).split()[-1])
    figures = {"upload_s": upload_s, "raw_s": raw_s, "ratio": upload_s / raw_s, "server_peak_mib": server.rss_mib()}
    report(f"1 GiB up by {transfer}", **figures)


def test_one_file_into_two_thousand(server: HubServer) -> None:
    from huggingface_hub import CommitOperationAdd

    api = server.api()
    api.create_repo("local/many")
    files = [CommitOperationAdd(f"d/{n}.txt", b"%d" % n) for n in range(2000)]
    all_s = seconds(lambda: api.create_commit("local/many", operations=files, commit_message="many"))

    def commit(number: int) -> float:
        import httpx

        lines = [
            {"key": "header", "value": {"summary": "one"}},
            {"key": "file", "value": {"path": f"d/n{number}.txt", "content": "x", "encoding": "utf-8"}},
        ]
        body = "\n".join(json.dumps(line) for line in lines)
        headers = {"Authorization": f"Bearer {server.token}"}
        url = f"{server.url}/api/models/local/many/commit/main"
        return seconds(lambda: httpx.post(url, content=body, headers=headers).raise_for_status())

    times = [commit(number) for number in range(40)]
    bare = statistics.median(seconds(lambda: fsyncs(server.root / "tmp" / "probe")) for _ in range(10))
    figures = {
        "commit_median_ms": statistics.median(times) * 1000,
        "of_2000_files_s": all_s,
        "ten_fsyncs_ms": bare * 1000,
    }
    report("one file into 2,000", **figures)


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
    server = HubServer(tmp_path / "hub")
    start_s = seconds(server.start)
    report("start", start_s=start_s, server_mib=server.rss_mib())
    server.stop()
