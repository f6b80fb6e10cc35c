"""One 502, 503 or dropped connection of a Hub, of a job's status or of an endpoint's poll ends no
command and does nothing twice; an endpoint that could not be ended is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gateway import DROP, LOST, Action, Gateway, gateway
from support.hub_server import HubServer

from hubkit import cloud
from hubkit.cloud import endpoints, leases, prices
from hubkit.errors import EndpointError, HubError
from hubkit.hub import Hub, Ref
from hubkit.hub.places import home
from hubkit.progress import Lasting

FAULTS: list[Action] = [502, 503, DROP]
JOB = r"GET /api/jobs/me/j1$"
ENDPOINT = r"GET /v2/endpoint/me/tiny$"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubkit.hub.network._FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(endpoints, "POLL_S", 0.001)


@pytest.fixture(scope="module")
def direct(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub whose token may go through a gateway: that of the home's own goes to it alone."""
    server = HubServer(tmp_path_factory.mktemp("direct")).start()
    yield Hub(server.url, server.token, "local", embedded=False)
    server.stop()


@pytest.fixture
def scripted(hubkit_home: Path) -> Iterator[tuple[Gateway, Hub]]:
    with gateway() as between:
        yield between, Hub(between.url, "hf_x", "me", embedded=False)


def behind(between: Gateway, hub: Hub) -> Hub:
    """A Hub, reached through the gateway."""
    return Hub(between.url, hub.token, hub.namespace, embedded=False)


# The Hub


@pytest.mark.parametrize("fault", [*FAULTS, LOST])
def test_a_commit_is_made_once_whatever_becomes_of_its_answer(
    direct: Hub, tmp_path: Path, fault: Action
) -> None:
    repo = f"local/gateway-{fault}".lower()
    (tmp_path / "data.txt").write_text("words")
    with gateway(direct.url) as between:
        hub = behind(between, direct)
        between.script = [
            (r"POST /api/repos/create", fault),
            (r"POST /api/datasets/.*/preupload", fault),
            (r"POST /api/datasets/.*/commit/main", fault),
            (r"POST /api/datasets/.*/tag/", fault),
            (r"GET /api/datasets/.*/refs", fault),
        ]
        made = hub.commit(repo, tmp_path, "All of it", repo_type="dataset")
        hub.tag(made, "v1", "the first")
        assert hub.tags(repo, repo_type="dataset") == {"v1": made.revision}
        assert between.script == []
        posts = between.count("POST .*/commit/main")
    commits = direct.commits(repo, "All of it", repo_type="dataset")
    assert commits == [made] and direct.read(made, "data.txt") == b"words"
    assert posts == (1 if fault == LOST else 2)


def test_a_hub_that_stays_away_is_said_and_a_refusal_is_not_repeated(
    direct: Hub, tmp_path: Path
) -> None:
    (tmp_path / "data.txt").write_text("words")
    with gateway(direct.url) as between:
        hub = behind(between, direct)
        between.script = [(r"POST .*/commit/main", 502)] * 4
        with pytest.raises(HubError, match="502"):
            hub.commit("local/gateway-away", tmp_path, "All of it", repo_type="dataset")
        between.script = [(r"POST .*/commit/main", 400)]
        with pytest.raises(HubError, match="400"):
            hub.commit("local/gateway-away", tmp_path, "All of it", repo_type="dataset")
        assert between.count("POST .*/commit/main") == 5


# A job's status


def job(stage: str) -> dict[str, Any]:
    return {
        "id": "j1", "createdAt": "2026-01-01T00:00:00.000Z", "dockerImage": "python:3.12",
        "command": ["true"], "arguments": [], "environment": {}, "secrets": {},
        "flavor": "cpu-basic", "status": {"stage": stage, "message": None},
        "owner": {"id": "1", "name": "me", "type": "user"}, "durations": {"runningSecs": 7},
    }  # fmt: skip


COMMAND = cloud.Command(("true",), {"key": "k1"}, "cpu-basic", 60.0, image="python:3.12")


def test_a_job_is_started_once_and_followed_to_its_end(scripted: tuple[Gateway, Hub]) -> None:
    between, hub = scripted
    log = f"data: {json.dumps({'data': 'a line', 'timestamp': '2026-01-01T00:00:00Z'})}\n\n"
    between.script = [
        (r"GET /api/jobs/me(\?|$)", 502), (r"GET /api/jobs/me(\?|$)", []),
        (r"POST /api/jobs/me", 503),  # it had been started: the next list has it
        (r"GET /api/jobs/me(\?|$)", [job("RUNNING")]),
        (r"GET /api/jobs/me/j1/logs", 502), (r"GET /api/jobs/me/j1/logs", log.encode()),
        (JOB, 502), (JOB, DROP), (JOB, 503), (JOB, job("COMPLETED")),
    ]  # fmt: skip
    lines: list[str] = []
    outcome = cloud.run_job(hub, COMMAND, on_line=lines.append)
    assert outcome.ok and outcome.seconds == 7 and "a line" in lines
    assert between.count(r"POST /api/jobs/me") == 1
    assert not [action for _, action in between.script if action in FAULTS]


def test_a_job_whose_hub_stays_away_is_said_to_cost(scripted: tuple[Gateway, Hub]) -> None:
    between, hub = scripted
    between.script = [
        (r"GET /api/jobs/me(\?|$)", [job("RUNNING")]), (r"GET /api/jobs/me/j1/logs", b""),
        *[(JOB, 502)] * 30,
    ]  # fmt: skip
    with pytest.raises(HubError, match=r"502.*may still run and cost.*hf jobs cancel j1"):
        cloud.run_job(hub, COMMAND, on_line=lambda line: None)


# An endpoint's poll


def endpoint(between: Gateway, state: str) -> dict[str, Any]:
    times = dict.fromkeys(("createdAt", "updatedAt"), "2026-01-01T00:00:00.000Z")
    return {
        "name": "tiny", "type": "protected", "healthRoute": "/health", "tags": [],
        "provider": {"vendor": "nvidia", "region": "us-east-1"},
        "compute": {"instanceType": "l40s", "instanceSize": "x1", "scaling": {}},
        "model": {"repository": "me/model", "revision": "a" * 40, "framework": "custom",
                  "task": "text-generation", "image": {"huggingface": {}}},
        "status": {"state": state, "message": "", "url": between.url, **times},
    }  # fmt: skip


SPEC = cloud.EndpointSpec(
    Ref("me/model", "model", "a" * 40), "tgi", prices.hardware("nvidia-l40s-x1"), called="tiny"
)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_endpoint_is_made_once_waited_for_and_given_back(
    scripted: tuple[Gateway, Hub], fault: Action
) -> None:
    between, hub = scripted
    up = endpoint(between, "running")
    between.script = [
        (r"GET /v2/endpoint/me(\?|$)", {"items": []}),
        (ENDPOINT, fault), (ENDPOINT, 404),  # there is none yet
        (r"POST /v2/endpoint/me$", fault), (ENDPOINT, endpoint(between, "pending")),
        (ENDPOINT, fault), (ENDPOINT, endpoint(between, "initializing")),
        *[(ENDPOINT, 503)] * 5,  # longer than any one request bears
        (ENDPOINT, up), (r"GET /health", fault), (r"GET /health", {}), (ENDPOINT, up),
        (r"DELETE /v2/endpoint/me/tiny", fault), (r"DELETE /v2/endpoint/me/tiny", {}),
    ]  # fmt: skip
    with cloud.held(hub, cloud.LeaseRequest(SPEC, wait_s=60)) as [leased]:
        assert leased.url == between.url
    assert between.count(r"POST /v2/endpoint/me$") == 1
    assert between.count(r"DELETE") == 2 and not list((home() / "leases").glob("tiny.*.json"))


def test_an_endpoint_that_could_not_be_ended_is_told_and_ended_later(
    scripted: tuple[Gateway, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    between, hub = scripted
    up = endpoint(between, "running")
    between.script = [
        (r"GET /v2/endpoint/me(\?|$)", {"items": []}), (ENDPOINT, 404),
        (r"POST /v2/endpoint/me$", up), (ENDPOINT, up), (r"GET /health", {}),
        *[(r"DELETE", 502)] * 8, (r"DELETE", {}),
    ]  # fmt: skip
    notes: list[str] = []

    def progress(done: float, total: float | None = None, note: str = "") -> None:
        if isinstance(note, Lasting):
            notes.append(note)

    with cloud.held(hub, cloud.LeaseRequest(SPEC, wait_s=60), progress=progress):
        """The work is done, and what it made is kept."""
    [told] = notes
    assert "may still run and cost" in told and "hubkit deploy delete tiny" in told
    assert "502" in told and cloud.reap(hub) == []  # its holder lives
    monkeypatch.setattr(leases, "_started", lambda pid: "another process")
    [first] = cloud.reap(hub)
    assert "may still run and cost" in first.outcome
    [second] = cloud.reap(hub)
    assert second.outcome == "deleted" and cloud.reap(hub) == []


def test_an_endpoint_whose_hub_stays_away_is_waited_for_as_long_as_asked(
    scripted: tuple[Gateway, Hub],
) -> None:
    between, hub = scripted
    between.script = [(ENDPOINT, 502)] * 5000
    with pytest.raises(EndpointError, match=r"not to be seen after 0.05 s.*502"):
        cloud.wait(hub, "tiny", timeout_s=0.05)
    between.script = [(ENDPOINT, 404)]
    with pytest.raises(HubError) as missing:
        cloud.wait(hub, "tiny", timeout_s=0.05)
    assert missing.value.status == 404
