"""The embedded Hub does not stop as idle under a process that uses it, and does once
it is let go.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import until

from hubkit.errors import HubError
from hubkit.hub import connect, embedded
from hubkit.hub.places import local_root


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path))
    monkeypatch.setenv("HUBKIT_HUB_IDLE_S", "0.5")
    yield tmp_path
    embedded.stop()


def test_a_hub_in_use_outlasts_its_idle_time_and_stops_when_it_is_let_go(own_home: Path) -> None:
    hub = connect()
    log = local_root() / "server.log"
    until(lambda: log.read_text().count("a process uses it: staying") >= 2)  # a long training
    hub.make("local/next-stage")
    assert hub.allowing(["email"]).resolve("local/next-stage").revision
    del hub
    gc.collect()
    until(lambda: "stopping" in log.read_text())
    until(lambda: embedded.running() is None)
    assert connect().api.whoami()["name"] == "local", "the next command starts it again"


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_an_idle_time_that_is_none_is_one_sentence(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HUBKIT_HUB_IDLE_S", value)
    with pytest.raises(HubError, match=r"HUBKIT_HUB_IDLE_S is .*set it to seconds.*or to 0"):
        connect()


def test_zero_turns_the_idle_stop_off(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBKIT_HUB_IDLE_S", "0")
    assert embedded.idle_limit_s() == 0
    assert embedded.stops_when() == "It runs until `hubkit hub stop`."
