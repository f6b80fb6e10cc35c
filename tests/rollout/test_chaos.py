"""A server that becomes another one again and again: no dialogue is lost,
no answer paid for twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rollout.test_rollout import block, check_against_ledger, openings, roll
from support.mock_endpoint import mock

from hubkit.errors import (
    CreditExhaustedError,
    EndpointUnreachableError,
    MisconfiguredEndpointError,
)


def until_done(
    folder: Path, dialogues: int, *, seed: int, latency: float, **chaos: float
) -> tuple[int, int]:
    """Run the same command until it ends well; gives how often it stopped, and what the server
    answered. `chaos` says when the server becomes another one.
    """
    given = block(
        dialogues=dialogues, in_flight=16, retries_per_turn=60, shard_dialogues=20, patience_s=120
    )
    stops = 0
    with mock(seed=seed, latency=latency, **chaos) as server:
        while True:
            try:
                report = roll(server, folder, given, openings=openings(dialogues))
                break
            except (CreditExhaustedError, EndpointUnreachableError, MisconfiguredEndpointError):
                stops += 1
                assert stops < 1000
            check_against_ledger(folder, server)
        turns, lost = check_against_ledger(folder, server)
        answered = server.stats()["answered"]
    assert report.end_reasons == {"target_turns": dialogues} and lost == 0
    assert turns == answered == dialogues * 5
    return stops, answered


def test_no_dialogue_is_lost_and_nothing_paid_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubkit.serving.client.endpoint._BACK_OFF_S", (0.01, 0.1))
    monkeypatch.setattr("hubkit.serving.client.replica.COOL_DOWN_S", (0.02, 0.1))
    stops, _ = until_done(tmp_path, 40, chaos=8, seed=3, latency=0.002)
    assert stops  # the account was empty at least once


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_minutes_of_it(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    started, rounds = time.monotonic(), 0
    while time.monotonic() < started + 600:
        until_done(tmp_path / str(rounds), 400, chaos_s=3.0, seed=rounds, latency=0.02)
        rounds += 1
    record_property("rounds", rounds)
