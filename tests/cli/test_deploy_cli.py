"""``hubkit deploy``: what a person types, against the embedded Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from local_hub.test_local_hub_inference import tiny_model

from hubkit.hub import Hub, connect


@pytest.fixture(scope="module")
def hub(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    hub = connect()
    hub.commit(hub.qualify("typed"), tiny_model(tmp_path_factory.mktemp("tiny")), "A model")
    return hub


def said(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_dry_run_shows_what_would_be_sent_and_its_price_and_touches_nothing(
    cli: Any, hub: Hub
) -> None:
    options = (
        "--engine",
        "vllm",
        "--hardware",
        "gcp-nvidia-h100-x1",
        "--context",
        "2048",
        "--dry-run",
    )
    plan = said(cli("deploy", "typed", *options, "--json"))
    assert (
        plan["payload"]["custom_image"]["vLLM"]["port"] == 8000
        and plan["payload"]["repository"] == "local/typed"
    )
    assert plan["usd_per_hour"] == 10.0 and plan["prices"] == "2026-11-22"
    shown = cli("deploy", "typed", *options)
    assert "$10.00 per hour" in shown.stderr and "prices of 2026-11-22" in shown.stderr
    assert hub.token not in shown.stdout + shown.stderr
    assert said(cli("deploy", "list", "--json"))["endpoints"] == []


def test_from_create_to_delete(cli: Any, hub: Hub) -> None:
    made = said(
        cli("deploy", "typed@main", "--name", "typed-1", "--hardware", "intel-spr-x1", "--json")
    )
    assert (
        made["name"] == "typed-1" and made["state"] == "running" and made["url"].startswith(hub.url)
    )
    listed = said(cli("deploy", "list", "--json"))
    assert [one["name"] for one in listed["endpoints"]] == ["typed-1"] and listed[
        "usd_per_hour"
    ] == 0
    assert (
        said(cli("deploy", "update", "typed-1", "typed", "--context", "128", "--json"))["state"]
        == "updating"
    )
    assert said(cli("deploy", "scale-to-zero", "typed-1", "--json"))["state"] == "scaledToZero"
    assert said(cli("deploy", "resume", "typed-1", "--json"))["state"] in (
        "pending",
        "initializing",
        "running",
    )
    assert said(cli("deploy", "pause", "typed-1", "--json"))["state"] == "paused"
    table = cli("deploy", "list")
    assert (
        "typed-1" in table.stdout
        and "paused" in table.stdout
        and "$0.00 per hour now" in table.stderr
    )
    assert said(cli("deploy", "describe", "typed-1", "--json"))["repo_id"] == "local/typed"
    assert cli("deploy", "delete", "typed-1").returncode == 0
    assert said(cli("deploy", "reap", "--json")) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("typed", "--engine", "vlm"), "no engine 'vlm'"),
        (("typed", "--hardware", "nvidia-b300-x1"), "in the price table of 2026-11-22"),
        (("typed", "--engine", "llamacpp"), "--gguf FILE"),
        (("not-there",), "no such repo"),
        (("describe", "not-there"), "not found"),
        (("typed", "--adapter", "typed"), "is not an adapter of"),
    ],
)
def test_a_mistake_is_one_sentence(
    cli: Any, hub: Hub, arguments: tuple[str, ...], says: str
) -> None:
    done = cli("deploy", *arguments)
    assert done.returncode in (1, 2) and says in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )


@pytest.mark.parametrize("verb", ["run", "rollout"])
def test_a_dry_run_says_what_seats_on_endpoints_would_cost(cli: Any, hub: Hub, verb: str) -> None:
    done = cli(verb, "parrot", "--profile", "cloud", "--dry-run")
    assert done.returncode == 1, done.stderr  # the bases are nowhere
    said = " ".join(done.stderr.split())
    for seat in ("asker", "chat"):
        assert f"{seat}: an endpoint (vllm) on 2 x aws-nvidia-a100-x1" in said
    assert said.count("$5.00 an hour at most (prices of 2026-11-22") == 2
    assert not cli("deploy", "list", "--json").stdout.count('"name"')


def test_prices_are_said_where_nothing_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Hub's endpoint: what it costs now and cost so far at most, of the service's own
    description.
    """
    from datetime import UTC, datetime, timedelta

    from hubkit.cloud import endpoints

    hub = Hub("https://huggingface.co", "hf_x", "me", embedded=False)
    made = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    raw = {
        "name": "one", "tags": ["hubkit"], "type": "authenticated", "healthRoute": "/health",
        "provider": {"vendor": "aws", "region": "us-east-1"},
        "compute": {"instanceType": "nvidia-a100", "instanceSize": "x2"},
        "model": {"repository": "me/a-model", "revision": None,
                  "image": {"custom": {"url": "an/image"}}},
        "status": {"state": "running", "createdAt": made, "targetReplica": 2, "message": ""},
    }  # fmt: skip
    found = endpoints._deployed(hub, raw)
    assert found.usd_per_hour == 10.0 and found.usd_at_most == pytest.approx(30.0, rel=0.01)
    paused = endpoints._deployed(
        hub, {**raw, "status": {**raw["status"], "state": "paused", "targetReplica": 0}}
    )
    assert (
        paused.usd_per_hour == 0
        and not paused.up
        and paused.usd_at_most == pytest.approx(15.0, rel=0.01)
    )
