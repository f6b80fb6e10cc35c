"""Evals that name repos: an endpoint comes up for model, opponent, judge and asker, and is gone at
the end.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation.test_scorecard import write
from local_hub.test_local_hub_inference import tiny_model
from rollout.test_rollout_deploy import nothing_is_left, until, up
from support.mock_endpoint import mock
from support.tiny_models import tiny_adapter

from hubkit import cloud
from hubkit.hub import Hub, connect

BASE, ASKER = "local/judged-base", "local/judged-asker"
PLACE = ["--hardware", "intel-spr-x1"]


@pytest.fixture(scope="module")
def hub(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = connect()
    base = tiny_model(tmp_path_factory.mktemp("tiny"))
    config = json.loads((base / "config.json").read_text())
    wider = {**config, "max_position_embeddings": 2048}  # a judge's prompt fits in
    (base / "config.json").write_text(json.dumps(wider))
    hub.commit(BASE, base, "A model")
    hub.commit(
        ASKER,
        tiny_adapter(tmp_path_factory.mktemp("adapter") / "a", base, BASE),
        "An adapter of it",
    )
    yield hub
    for endpoint in cloud.listed(hub):
        cloud.delete(hub, endpoint.name)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question_id": n, "category": "travel", "turns": ["How far?", "And back?"]}
        for n in range(6)
    ]
    path = tmp_path / "far.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(questions: Path, *more: str) -> list[str]:
    args = [
        "eval",
        "chat",
        f"deploy:{ASKER}",
        "--against",
        f"deploy:{BASE}",
        "-b",
        str(questions),
        *PLACE,
    ]
    return [*args, "--max-tokens", "8", "--log-dir", str(questions.parent / "log"), *more]


class Watch(threading.Thread):
    """Which endpoints were up while something ran."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(daemon=True)
        self._hub, self._over, self.seen = hub, threading.Event(), set[str]()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.seen |= {one.repo_id for one in up(self._hub)}

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self.join()


def test_a_dry_run_names_the_endpoints_and_their_price_and_makes_none(
    cli: Any, hub: Hub, questions: Path
) -> None:
    more = [
        "--judge",
        f"deploy:{BASE}",
        "--set",
        "judge.deploy.engine=vllm",
        "--set",
        "judge.deploy.hardware=aws-nvidia-l4-x1",
    ]
    plan = json.loads(cli(*chat(questions, *more, "--dry-run", "--json")).stdout)
    both, judge = plan["endpoints"]
    assert len(both["serves"]) == 2 and (both["engine"], both["hardware"]) == (
        "tgi",
        "aws-intel-spr-x1",
    )
    assert judge["engine"] == "vllm" and judge["usd_per_hour"] > both["usd_per_hour"] > 0
    shown = cli(*chat(questions, *more, "--dry-run"))
    assert f"{judge['usd_per_hour']:.2f}" in shown.stdout and "prices of" in shown.stderr
    asked = cli("eval", "asker", ASKER, "--endpoint", f"{ASKER}=deploy", *PLACE, "--system",
                "You ask.", "--data",
                str(write(questions.parent / "rows.parquet")), "--dry-run", "--json")  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    (one,) = json.loads(asked.stdout)["endpoints"]
    assert one["usd_per_hour"] == both["usd_per_hour"]
    for wrong in (["--engine", "ollama"], ["--hardware", "aws-nvidia-l5-x1"]):
        said = cli(*chat(questions, *wrong, "--dry-run"))
        assert said.returncode == 2 and wrong[1] in said.stderr and "Traceback" not in said.stderr
    nothing_is_left(hub)


def test_model_and_opponent_share_an_endpoint_that_is_gone_at_the_end(
    cli: Any, hub: Hub, questions: Path
) -> None:
    with mock() as judge, Watch(hub) as watch:
        judge.script(rules=[[".", ["[[5]]"]]])
        done = cli(*chat(questions, "--judge", f"{judge.url}#j", "--json"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert watch.seen == {BASE}, "one endpoint, of the base, with the adapter on it"
    assert {name: table["mean"]["n"] for name, table in found["scores"].items()} == {
        ASKER: 12,
        BASE: 12,
    }
    assert (
        found["model"]["identity"].endswith(" on tgi, intel-spr-x1")
        and not found["model"]["embedded"]
    )
    said = [
        json.loads(line) for line in (questions.parent / "log" / "journal" / "answers.jsonl").open()
    ][1:]
    assert len({line["content"] for line in said if line["model"] == ASKER}) > 1
    nothing_is_left(hub)


@pytest.mark.slow
def test_a_judge_may_be_deployed_too(cli: Any, hub: Hub, questions: Path) -> None:
    answers = questions.parent / "old.jsonl"
    answers.write_text("".join(
        json.dumps({"question_id": n, "choices": [{"turns": [f"{n} km", "Yes."]}]}) + "\n"
        for n in range(6)
    ))  # fmt: skip
    args = [
        "eval",
        "chat",
        str(answers),
        "-b",
        str(questions),
        "--judge",
        f"deploy:{BASE}",
        *PLACE,
        "--json",
    ]
    args += [
        "--set",
        "judge.sampling.max_tokens=4",
        "--set",
        "attempts=1",
        "--log-dir",
        str(questions.parent / "log"),
    ]
    with Watch(hub) as watch:
        done = cli(*args, "--judge-prompts", "small")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert watch.seen == {BASE} and found["judging"]["asked"] == 12
    assert (
        sum(found["scores"]["old"]["missing"].values()) + found["scores"]["old"]["mean"]["n"] == 12
    )
    nothing_is_left(hub)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_it_is_given_back(
    hub: Hub, questions: Path, how: signal.Signals
) -> None:
    with mock(latency=0.5) as judge:
        judge.script(rules=[[".", ["[[5]]"]]])
        command = [
            sys.executable,
            "-m",
            "hubkit",
            *chat(questions, "--judge", f"{judge.url}#j", "--in-flight", "1"),
        ]
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        until(lambda: judge.stats()["answered"] >= 2 or run.poll() is not None)
        assert up(hub), run.communicate()
        run.send_signal(how)
        said = run.communicate(timeout=240)[1]
        if how == signal.SIGINT:
            assert run.returncode == 130 and "the same command resumes" in said
        else:
            reaped = [sys.executable, "-m", "hubkit", "deploy", "reap", "--json"]
            done = subprocess.run(reaped, capture_output=True, text=True, check=True)
            assert [one["outcome"] for one in json.loads(done.stdout)] == ["deleted"]
        nothing_is_left(hub)
        before = judge.stats()["answered"]
        assert subprocess.run([*command, "--json"], capture_output=True, check=True).returncode == 0
        assert judge.stats()["answered"] <= 24 + 1 and before >= 2
    nothing_is_left(hub)


@pytest.mark.slow
def test_an_asker_and_its_base_play_on_one_endpoint(cli: Any, hub: Hub, tmp_path: Path) -> None:
    args = [
        "eval",
        "asker",
        ASKER,
        "--endpoint",
        f"{ASKER}=deploy",
        *PLACE,
        "--system",
        "You ask.",
        "--no-perplexity",
    ]
    args += [
        "--data",
        str(write(tmp_path / "rows.parquet")),
        "-n",
        "6",
        "--openings",
        "4",
        "--max-tokens",
        "8",
    ]
    with Watch(hub) as watch:
        done = cli(*args, "--json")
    assert done.returncode == 0, done.stderr
    assert watch.seen == {BASE} and ASKER in done.stdout
    nothing_is_left(hub)
