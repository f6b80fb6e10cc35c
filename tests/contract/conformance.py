"""The clients' own test suites, run against a live embedded Hub: `make conformance`.

The suites come from the source distributions of the pinned `huggingface_hub` and `datasets` on the
package index, are unpacked into a temporary folder, and get the fixtures of `hub_plugin.py` and
`datasets_plugin.py`. Nothing of them is kept. Counted are the tests that send at least one request
to the server; `expected_failures.txt` lists those that need something a local Hub has no use for,
each with its reason. The figures go to ``tests/bench/results/conformance.json``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench.figures import write  # noqa: E402
from contract.sample_cards import SAMPLES  # noqa: E402
from support.hub_server import ROOT, HubServer  # noqa: E402

SUITES = {
    "huggingface_hub": (
        "test_hf_api.py",
        "test_hf_file_system.py",
        "test_snapshot_download.py",
        "test_repocard.py",
        "test_commit_scheduler.py",
        "test_file_download.py",
    ),
    "datasets": ("test_upstream_hub.py",),
}
STAGING = "https://hub-ci.huggingface.co"
GOAL = 0.97


def fetch(package: str, folder: Path) -> Path:
    """Download and unpack the source distribution of the installed version; the folder of its
    tests.
    """
    pinned = f"{package}=={version(package)}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
        pinned,
        "-d",
        str(folder),
    ]
    subprocess.run(command, check=True, timeout=600)
    archive = next(folder.glob(f"{package}-*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "tests"


def prepare(package: str, source: Path, work: Path, url: str) -> Path:
    """A `tests` package: the suite, our fixtures, and the server in place of the staging Hub."""
    target = work / package / "tests"
    (target / "fixtures").mkdir(parents=True)
    for path in source.glob("*.py"):
        if path.name.startswith("testing_") or path.name in SUITES[package]:
            (target / path.name).write_text(path.read_text("utf-8").replace(STAGING, url), "utf-8")
    for folder in (target, target / "fixtures"):
        (folder / "__init__.py").touch()
    plugin = "hub_plugin.py" if package == "huggingface_hub" else "datasets_plugin.py"
    shutil.copy(HERE / plugin, target / "conftest.py")
    shutil.copy(HERE / "reach.py", target / "reach.py")
    if package == "datasets":
        shutil.copy(HERE / "datasets_utils.py", target / "utils.py")
        shutil.copy(HERE / "datasets_accounts.py", target / "fixtures" / "hub.py")
        _make_media(target / "features" / "data")
    else:
        cards = target / "fixtures" / "cards"
        cards.mkdir()
        for name, text in SAMPLES.items():
            (cards / name).write_bytes(text.encode())
    return target


def _make_media(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    Image.new("RGB", (64, 48), (200, 30, 60)).save(folder / "test_image_rgb.jpg")


def seed(server: HubServer) -> None:
    """The users, tokens and organisations that the suites expect."""
    for account in json.loads((HERE / "accounts.json").read_text())["users"]:
        command = [
            sys.executable,
            "-m",
            "hubkit.local_hub",
            "account",
            "--root",
            str(server.root),
            "--user",
            account["user"],
        ]
        for org, role in account.get("orgs", {}).items():
            command += ["--org", f"{org}:{role}"]
        command += ["--private-by-default"] if account.get("private_by_default") else []
        command += ["--fullname", account["fullname"], "--token-stdin"]
        subprocess.run(
            command,
            input=account["token"],
            text=True,
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )


def run(
    package: str, tests: Path, server: HubServer, xet: bool, keyword: str | None
) -> list[dict[str, Any]]:
    """Run one suite; what became of each test, and how many requests it sent."""
    report = tests.parent / "report.jsonl"
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))
    }
    env |= {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": "",
        "HF_HOME": str(tests.parent / "home"),
        "REACH_REPORT": str(report),
    }
    env |= {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    env |= {} if xet else {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += [
        "--timeout",
        "180",
        "-o",
        "addopts=",
        "-m",
        "not production and not inference and not git_lfs",
    ]
    command += ["-k", keyword] if keyword else []
    command += [f"tests/{name}" for name in SUITES[package]]
    log = tests.parent / "pytest.log"
    with log.open("w") as out:
        subprocess.run(
            command,
            cwd=tests.parent,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=3600,
            check=False,
        )
    return [json.loads(line) for line in report.read_text().splitlines()]


def expected() -> dict[str, str]:
    """Test → why a local Hub does not pass it."""
    lines = (HERE / "expected_failures.txt").read_text().splitlines()
    pairs = [line.split("  # ", 1) for line in lines if line.strip() and not line.startswith("#")]
    return {name.strip(): reason.strip() for name, reason in pairs}


def judge(package: str, results: list[dict[str, Any]], excused: dict[str, str]) -> dict[str, Any]:
    """Figures of one suite."""
    reached = [result for result in results if result["requests"]]
    counts = Counter(result["outcome"] for result in reached if result["outcome"] != "skipped")
    failed = [r["test"] for r in reached if r["outcome"] == "failed"]
    offline_failed = [r["test"] for r in results if not r["requests"] and r["outcome"] == "failed"]
    offline_failed = [test for test in offline_failed if f"{package}/{test}" not in excused]
    surprises = [test for test in failed if f"{package}/{test}" not in excused]
    judged = sum(counts.values()) - (len(failed) - len(surprises))
    rate = (judged - len(surprises)) / judged if judged else 0.0
    return {
        "version": version(package),
        "tests": len(results),
        "reach_the_server": sum(counts.values()),
        "passed": counts["passed"],
        "expected_failures": len(failed) - len(surprises),
        "pass_rate_outside_the_list": round(rate, 4),
        "failed": surprises,
        "failed_without_reaching_the_server": offline_failed,
    }


def main() -> int:
    """Run everything; status 1 where fewer than `GOAL` of the tests outside the list pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-xet", action="store_true", help="also turn Xet off in the clients")
    parser.add_argument("--only", choices=list(SUITES))
    parser.add_argument("-k", dest="keyword", help="run a part only (figures are not written)")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="conformance-"))
    work.mkdir(parents=True, exist_ok=True)
    server = HubServer(work / "hub").start()
    try:
        seed(server)
        excused, figures = expected(), {}
        for package in [options.only] if options.only else list(SUITES):
            source = fetch(package, work / f"sdist-{package}")
            tests = prepare(package, source, work, server.url)
            figures[package] = judge(
                package, run(package, tests, server, not options.no_xet, options.keyword), excused
            )
    finally:
        server.stop()
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if not options.keyword and not options.only:
        about = "The clients' own test suites against the embedded Hub."
        write("conformance", about, "make conformance", figures, add=False)
    return (
        0 if all(suite["pass_rate_outside_the_list"] >= GOAL for suite in figures.values()) else 1
    )


if __name__ == "__main__":
    sys.exit(main())
