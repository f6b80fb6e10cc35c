"""A rollout lives on the Hub while it runs: any machine goes on from there, and only one at a
time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.mock_endpoint import Handle, mock
from support.small_run import small_recipe
from support.waiting import until

from hubkit.hub import Hub, Ref, connect
from hubkit.hub.branch import Branch
from hubkit.hub.places import runs

REQUESTS = 3  # of a dialogue with two human turns, the first given


@pytest.fixture(scope="module")
def recipe(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_recipe(
        tmp_path_factory.mktemp("chats"), "rollout-hub", count=60, openings=40,
        rollout__shard_dialogues=4, rollout__in_flight=4,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def corpus(recipe: list[str]) -> None:
    from hubkit.cli.options import OutputOptions, RecipeOptions
    from hubkit.cli.run import walk

    walk(RecipeOptions("parrot", [], recipe[2::2]), OutputOptions(json=True), "corpus")


def options(server: Handle, temperature: float, **changes: Any) -> list[str]:
    """What a test's runs share: addresses, and a temperature of the test's own, so that none goes
    on from another.
    """
    given = ["--asker-url", server.url, "--chat-url", server.url]
    changes["chat.sampling.temperature"] = temperature
    return [
        *given,
        *[part for key, value in changes.items() for part in ("--set", f"rollout.{key}={value}")],
    ]


def start(*args: str, **env: str) -> subprocess.Popen[str]:
    """``hubkit rollout …`` beside the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "hubkit", "rollout", *args],
        env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def branches(hub: Hub) -> list[str]:
    """The run branches of the dialogues' repo."""
    try:
        refs = hub.api.list_repo_refs(hub.qualify("rollout-hub-dialogues"), repo_type="dataset")
    except Exception:  # not made yet
        return []
    return [branch.name for branch in refs.branches if branch.name != "main"]


def shards_on(hub: Hub) -> list[Path]:
    """The shards on the one branch that there is."""
    names = branches(hub)
    if not names:
        return []
    branch = Branch(hub, hub.qualify("rollout-hub-dialogues"), names[0], repo_type="dataset")
    branch.open()
    return branch.files(["shards/*.parquet"])


def expire_lease(hub: Hub) -> None:
    """Let the time pass in which the run is its driver's."""
    [name] = branches(hub)
    branch = Branch(hub, hub.qualify("rollout-hub-dialogues"), name, repo_type="dataset")
    branch.open()
    lease = json.loads(branch.read("lease.json") or b"{}")
    branch.commit({"lease.json": json.dumps(lease | {"until": 1.0}).encode()}, "Time has passed")


def rows(hub: Hub, done: subprocess.CompletedProcess[str] | str) -> list[dict[str, Any]]:
    """The dialogues that a ``--json`` run of the stage committed."""
    [stage] = json.loads(done if isinstance(done, str) else done.stdout)["stages"]
    ref = Ref(stage["repo_id"], stage["repo_type"], stage["revision"])
    return pq.read_table(hub.snapshot(ref, allow_patterns=["data/raw-*"]) / "data").to_pylist()


def asked(server: Handle) -> Counter[int]:
    """How often each dialogue was asked for."""
    return Counter(int(entry["body"]["user"].split("-")[1]) for entry in server.ledger())


def rollout_commits(hub: Hub, temperature: float) -> int:
    """Commits of the stage on ``main`` at this temperature."""
    repo = hub.qualify("rollout-hub-dialogues")
    found = [
        commit.commit_id
        for commit in hub.api.list_repo_commits(repo, repo_type="dataset")
        if "[rollout:" in commit.title
    ]
    records = [
        json.loads(hub.read(Ref(repo, "dataset", sha), "provenance/rollout.json")) for sha in found
    ]
    return sum(
        record["block"]["chat"]["sampling"]["temperature"] == temperature for record in records
    )


def test_a_new_machine_goes_on_from_the_hub_alone(
    recipe: list[str], cli: Callable[..., Any]
) -> None:
    hub = connect()
    with mock() as server:
        args = [*recipe, *options(server, 0.1), "--dialogues", "24", "--json"]
        server.script(status=503, after=45)  # it cannot end
        driver = start(*args)
        until(lambda: len(shards_on(hub)) >= 2)
        driver.kill()
        driver.communicate()
        server.script()
        shutil.rmtree(runs())  # the machine is lost
        # What it had sent is still counted while the server answers it.
        until(lambda: server.stats()["in_flight"] == 0)
        before = asked(server)
        refused = cli("rollout", *args)
        assert refused.returncode == 1 and f"process {driver.pid} on" in refused.stderr, (
            refused.stderr
        )
        assert "Traceback" not in refused.stderr and asked(server) == before
        expire_lease(hub)
        held = {  # also what was on its way when the machine was lost
            index for path in shards_on(hub) for index in pq.read_table(path)["index"].to_pylist()
        }
        done = cli("rollout", *args)
        assert done.returncode == 0, done.stderr
        again = asked(server) - before
    made = rows(hub, done)
    assert len(held) >= 8 and not held & set(again), (
        "a dialogue that was on the Hub was asked for again"
    )
    assert sum(again.values()) == (24 - len(held)) * REQUESTS
    assert sorted(row["index"] for row in made) == list(range(24))
    report = json.loads(done.stdout)["stages"][0]["report"]
    assert report["requests"] >= 24 * REQUESTS  # what the lost machine spent counts
    assert (
        rollout_commits(hub, 0.1) == 1
        and branches(hub) == []
        and not list(runs().glob("dialogues-*"))
    )


def test_more_dialogues_go_on_from_fewer_and_fewer_ask_for_nothing(
    recipe: list[str], cli: Callable[..., Any]
) -> None:
    hub = connect()
    with mock() as server:
        args = [*recipe, *options(server, 0.2), "--json", "--dialogues"]
        sizes = {}
        for count in (5, 9, 3):
            done = cli("rollout", *args, str(count))
            assert done.returncode == 0, done.stderr
            sizes[count] = server.stats()["answered"]
            assert sorted(row["index"] for row in rows(hub, done)) == list(range(count))
    assert sizes == {5: 5 * REQUESTS, 9: 9 * REQUESTS, 3: 9 * REQUESTS}


def test_another_address_is_told_whose_answers_it_reuses(
    recipe: list[str], cli: Callable[..., Any]
) -> None:
    with mock() as server:
        args = [*recipe, *options(server, 0.25), "--dialogues", "2"]
        assert cli("rollout", *args).returncode == 0
        same = cli("rollout", *args)
        args[args.index("--chat-url") + 1] = "http://127.0.0.1:9"
        other = cli("rollout", *args)
        answered = server.stats()["answered"]
    assert same.returncode == other.returncode == 0, other.stderr
    assert "with the answers of" not in same.stderr + same.stdout
    told = " ".join((other.stderr + other.stdout).split())
    assert f"with the answers of chat: {server.url}, not http://127.0.0.1:9" in told
    assert answered == 2 * REQUESTS


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(
    recipe: list[str], cli: Callable[..., Any]
) -> None:
    hub = connect()
    with mock() as server:
        args = [
            *recipe,
            *options(
                server, 0.3, **{"asker.sampling.max_tokens": 20, "chat.sampling.max_tokens": 20}
            ),
        ]
        args += ["--json", "--dialogues", "12"]
        done = cli("rollout", *args, "--budget-tokens", "700")
        assert done.returncode == 0, done.stderr
        first = rows(hub, done)
        capped = [row for row in first if row["end_reason"] == "budget_tokens"]
        report = json.loads(done.stdout)["stages"][0]["report"]
        assert report["stopped"] == "budget_tokens" and capped and len(first) < 12
        lower = cli("rollout", *args, "--budget-tokens", "600")
        assert json.loads(lower.stdout)["stages"][0]["skipped"], lower.stderr
        done = cli("rollout", *args)
        assert done.returncode == 0, done.stderr
        answered = server.stats()["answered"]
        pace = [*args, "--set", "rollout.in_flight=3", "--set", "rollout.patience_s=60"]
        again = json.loads(cli("rollout", *pace, "--budget-tokens", "600").stdout)["stages"][0]
        assert (
            again["skipped"]
            and again["revision"] == json.loads(done.stdout)["stages"][0]["revision"]
        )
        assert server.stats()["answered"] == answered
    whole = {row["index"]: row for row in rows(hub, done)}
    assert sorted(whole) == list(range(12)) and {row["end_reason"] for row in whole.values()} == {
        "target_turns"
    }
    for row in first:
        assert whole[row["index"]]["messages"][: len(row["messages"])] == row["messages"]
    begun_without_an_answer = sum(row["unanswered"] is not None for row in capped)
    assert (
        answered <= 12 * REQUESTS + begun_without_an_answer + 4
    )  # at most what was in flight is asked for again
    spent = json.loads(done.stdout)["stages"][0]["report"]
    assert spent["requests"] == answered, "what the smaller budget paid for counts"


@pytest.fixture
def machine(hubkit_home: Path, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Environments of machines that have the Hub in common and nothing else."""
    hub = connect()

    def environment(name: str) -> dict[str, str]:
        home = tmp_path / name
        return {
            "HUBKIT_HOME": str(home), "HF_HOME": str(home / "hf"), "HUBKIT_HUB": hub.url,
            "HF_TOKEN": hub.token or "", "HUBKIT_NAMESPACE": hub.namespace,
        }  # fmt: skip

    return environment


def test_two_machines_refuse_each_other_and_a_sleeper_that_lost_its_lease_stops(
    recipe: list[str], cli_process: Callable[..., Any], machine: Callable[[str], dict[str, str]]
) -> None:
    hub = connect()
    with mock() as first, mock() as second:
        args = [*recipe, "--dialogues", "32", "--json"]
        first.script(status=503, after=40)  # it cannot end before its lid is closed
        one = start(*args, *options(first, 0.4), **machine("one"))
        until(lambda: shards_on(hub) and first.stats()["requests"] > 40)
        one.send_signal(signal.SIGSTOP)
        args += options(second, 0.4)
        refused = cli_process("rollout", *args, **machine("two"))
        assert refused.returncode == 1 and f"process {one.pid} on" in refused.stderr, refused.stderr
        expire_lease(hub)
        held = {
            index for path in shards_on(hub) for index in pq.read_table(path)["index"].to_pylist()
        }
        second.script(status=503, after=20)  # nor the second before the first has woken up
        two = start(*args, **machine("two"))
        until(lambda: second.stats()["answered"] or two.poll() is not None)
        assert two.poll() is None, two.communicate()
        first.script()
        one.send_signal(signal.SIGCONT)
        _, said = one.communicate(timeout=240)
        second.script()
        out, complaint = two.communicate(timeout=240)
        assert two.returncode == 0, complaint
        assert one.returncode == 1 and f"process {two.pid} on" in said, said
    made = rows(hub, out)
    assert held and sorted(row["index"] for row in made) == list(range(32))
    assert rollout_commits(hub, 0.4) == 1 and branches(hub) == []


def test_ctrl_c_lets_go_at_once(
    recipe: list[str], cli_process: Callable[..., Any], machine: Callable[[str], dict[str, str]]
) -> None:
    hub = connect()
    with mock() as server:
        args = [*recipe, *options(server, 0.5), "--dialogues", "16", "--json"]
        server.script(status=503, after=30)  # it cannot end
        one = start(*args, **machine("one"))
        until(lambda: shards_on(hub))
        one.send_signal(signal.SIGINT)
        _, said = one.communicate(timeout=240)
        server.script()
        assert one.returncode == 130 and re.search("stopped with", said), said
        done = cli_process("rollout", *args, **machine("two"))
        assert done.returncode == 0, done.stderr
    assert len(rows(hub, done)) == 16
