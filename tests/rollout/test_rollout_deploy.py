"""A rollout that names repos: endpoints come up, serve, and are gone at the end, whatever happens
in between.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_hub.test_local_hub_inference import engines, tiny_model
from support import command
from support.small_run import small_recipe
from support.tiny_models import tiny_adapter
from support.waiting import until

from hubkit import cloud
from hubkit.cloud import leases
from hubkit.hub import Hub, connect

DIALOGUES = 60


@pytest.fixture(scope="module")
def hub(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = connect()
    base = tiny_model(tmp_path_factory.mktemp("tiny"))
    hub.commit(hub.qualify("seat-base"), base, "A model")
    adapter = tiny_adapter(tmp_path_factory.mktemp("adapter") / "a", base, hub.qualify("seat-base"))
    hub.commit(hub.qualify("seat-asker"), adapter, "An adapter of it")
    yield hub
    for endpoint in cloud.listed(hub):
        cloud.delete(hub, endpoint.name)


@pytest.fixture(scope="module")
def recipe(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = {"hardware": "intel-spr-x1"}
    seat = {
        "endpoints": ["deploy"],
        "deploy": place,
        "context": 512,
        "sampling": {"max_tokens": 12},
    }
    made = small_recipe(
        tmp_path_factory.mktemp("chats"), "deployed", count=DIALOGUES + 20, openings=DIALOGUES + 10,
        rollout__asker={**seat, "repo": hub.qualify("seat-asker"), "system": "You ask."},
        rollout__chat={**seat, "repo": hub.qualify("seat-base")},
        rollout__dialogues=DIALOGUES, rollout__in_flight=4, rollout__retries_per_turn=0,
        rollout__retry_on=[], rollout__turns={"kind": "fixed", "value": 3},
    )  # fmt: skip
    drop = {"rollout.asker.repo", "rollout.chat.repo"}  # they stand in the seats
    pairs = [text for text in made[2::2] if text.partition("=")[0] not in drop]
    made = ["parrot", *[part for text in pairs for part in ("--set", text)]]
    done = command.run("corpus", *made)
    assert done.returncode == 0, done.stderr
    return made


def start(recipe: list[str], seed: int, *more: str) -> subprocess.Popen[str]:
    """``hubkit rollout``; another seed is another run."""
    command = [
        sys.executable,
        "-m",
        "hubkit",
        "rollout",
        *recipe,
        "--set",
        f"rollout.max_opening_chars={4000 + seed}",
    ]
    return subprocess.Popen(
        [*command, "--json", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def up(hub: Hub) -> list[cloud.EndpointStatus]:
    return [one for one in cloud.listed(hub) if one.state == "running"]


def in_use(home: Path, hub: Hub, driver: subprocess.Popen[str]) -> cloud.EndpointStatus | None:
    """The endpoint, once answers of it are in the journal of the run that `driver` drives."""
    assert driver.poll() is None, driver.communicate()
    since = psutil.Process(driver.pid).create_time()
    journals = [p for p in (home / "runs").glob("dialogues-*/journal/*") if p.is_file()]
    written = [p for p in journals if p.stat().st_size > 2000 and p.stat().st_mtime > since]
    running = up(hub)
    return running[0] if running and written else None


def nothing_is_left(hub: Hub) -> None:
    from hubkit.hub import embedded

    assert not cloud.listed(hub) and not leases.holders()
    ours = [p for p in engines() if p.ppid() == embedded.running()["pid"]]
    assert not psutil.wait_procs(ours, timeout=240)[1]


def whole(finished: subprocess.Popen[str]) -> dict[str, Any]:
    said, wrong = finished.communicate(timeout=240)
    assert finished.returncode == 0, wrong
    stage = json.loads(said)["stages"][0]
    assert stage["report"]["dialogues"] == DIALOGUES and stage["report"]["unfinished"] == 0, stage[
        "report"
    ]
    return stage


def test_both_seats_share_an_endpoint_that_is_gone_at_the_end(
    hub: Hub, recipe: list[str], hubkit_home: Path
) -> None:
    driver = start(recipe, 1)
    found = until(lambda: up(hub))
    assert len(cloud.listed(hub)) == 1 and found[0].repo_id == "local/seat-base"
    stage = whole(driver)
    nothing_is_left(hub)
    import pyarrow.parquet as pq

    folder = hub.snapshot(
        hub.resolve(stage["repo_id"], repo_type="dataset", revision=stage["revision"])
    )
    rows = [
        row
        for path in (folder / "data").glob("raw-*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == DIALOGUES and {row["asker"]["repo_id"] for row in rows} == {
        "local/seat-asker"
    }
    assert any(len(row["messages"]) >= 4 for row in rows), [row["end_reason"] for row in rows]


@pytest.mark.slow
def test_after_kill_9_the_next_command_ends_what_was_left_and_goes_on(
    hub: Hub, recipe: list[str], hubkit_home: Path
) -> None:
    driver = start(recipe, 2)
    until(lambda: in_use(hubkit_home, hub, driver))
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert up(hub) and leases.holders()
    reaped = subprocess.run(
        [sys.executable, "-m", "hubkit", "deploy", "reap", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [one["outcome"] for one in json.loads(reaped.stdout)] == ["deleted"]
    nothing_is_left(hub)
    driver = start(recipe, 2)
    until(lambda: in_use(hubkit_home, hub, driver))
    driver.kill()
    driver.communicate()
    assert up(hub) and leases.holders()
    done = subprocess.run(
        [sys.executable, "-m", "hubkit", "corpus", *recipe],
        capture_output=True,
        text=True,
        check=True,
    )  # any other command
    assert "its run is gone; deleted" in done.stderr
    nothing_is_left(hub)
    stage = whole(start(recipe, 2))
    assert (
        stage["report"]["session"]["resumed"]["dialogues"]
        + stage["report"]["session"]["resumed"]["under_way"]
        > 0
    )
    nothing_is_left(hub)


def test_ctrl_c_gives_it_back(hub: Hub, recipe: list[str], hubkit_home: Path) -> None:
    driver = start(recipe, 3)
    until(lambda: in_use(hubkit_home, hub, driver))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=240)
    assert driver.returncode == 130
    nothing_is_left(hub)


@pytest.mark.slow
def test_scaled_to_zero_in_the_middle_it_waits_and_loses_nothing(
    hub: Hub, recipe: list[str], hubkit_home: Path
) -> None:
    driver = start(recipe, 4, "--in-flight", "2", "--set", "rollout.chat.sampling.max_tokens=32")
    found = until(lambda: in_use(hubkit_home, hub, driver))
    cloud.change(
        hub, found.name, "scale_to_zero"
    )  # the next request wakes it, maybe before this returns
    woken = until(lambda: up(hub))
    assert woken[0].name == found.name and driver.poll() is None
    stage = whole(driver)
    assert stage["report"]["errors"], "no request met the sleeping endpoint"
    nothing_is_left(hub)


@pytest.mark.slow
def test_one_that_fails_in_the_middle_ends_the_run_with_its_message(
    hub: Hub, recipe: list[str], hubkit_home: Path
) -> None:
    from hubkit.hub import embedded

    driver = start(recipe, 5, "--in-flight", "1", "--set", "rollout.chat.sampling.max_tokens=64")
    until(lambda: in_use(hubkit_home, hub, driver))
    for process in engines():
        if process.ppid() == embedded.running()["pid"]:
            process.kill()
    _, said = driver.communicate(timeout=240)
    assert (
        driver.returncode == 1 and "failed while it was used: the engine ended with status" in said
    ), said
    nothing_is_left(hub)
    whole(start(recipe, 5, "--set", "rollout.chat.sampling.max_tokens=64"))


def test_an_adapter_is_served_with_its_own_template_at_its_pinned_revision(
    hub: Hub, tmp_path: Path
) -> None:
    """On an engine with one template a server, and on one that has only its base's: then prompts
    are rendered here.
    """
    import httpx

    from hubkit.progress import silent
    from hubkit.recipe import Deploy
    from hubkit.serving import ModelSpec, serve

    ref, base = hub.resolve("local/seat-asker"), hub.resolve("local/seat-base")
    place = {"hardware": "intel-spr-x1"}
    vllm = {"asker": ModelSpec(ref, base, Deploy(engine="vllm", **place))}
    with serve(hub, vllm, log_dir=tmp_path, progress=silent, slots=2, tokens=256) as found:
        told = found["asker"]
        assert (told.dialect, told.name, told.template) == ("vllm", "local/seat-asker", None)
        body = {
            "model": told.name,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 3,
        }
        headers = {"Authorization": f"Bearer {told.token}"}
        answer = httpx.post(
            f"{told.urls[0]}/v1/chat/completions", json=body, headers=headers, timeout=240
        )
        assert answer.status_code == 200, answer.text
        assert (
            cloud.listed(hub)[0].repo_id == "local/seat-asker"
        )  # mounted, so that its revision is pinned
    nothing_is_left(hub)
    tgi = {
        "asker": ModelSpec(ref, base, Deploy(**place)),
        "base": ModelSpec(base, None, Deploy(**place)),
    }
    with serve(hub, tgi, log_dir=tmp_path, progress=silent, slots=2, tokens=256) as found:
        assert found["asker"].urls == found["base"].urls and len(cloud.listed(hub)) == 1
        assert found["asker"].template is not None and found["base"].template is None
    nothing_is_left(hub)


def test_deploy_stands_alone_in_a_seat() -> None:
    from hubkit.errors import RecipeError
    from hubkit.recipe import load

    with pytest.raises(RecipeError, match="'deploy' stands alone"):
        load("parrot", overrides=["rollout.chat.endpoints=[deploy, 'http://127.0.0.1:1']"])
