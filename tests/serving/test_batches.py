"""A model asked by its provider's batch API: half the price, in any order, once however often the
process is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import batch_client
from support.batch_server import BatchServer, batch_server

from hubkit.errors import (
    CreditExhaustedError,
    EndpointError,
    EndpointUnreachableError,
    MisconfiguredEndpointError,
    RecipeError,
)
from hubkit.judging import PromptedJudge, question_prompts, yes_or_no
from hubkit.progress import Notice
from hubkit.recipe import Judging, SeatConfig
from hubkit.serving import ServedModel, spec_of
from hubkit.serving.budget import Spent
from hubkit.serving.client import BatchEndpoint, Reply, RequestOptions
from hubkit.serving.client.batch_queue import Pace

QUICK = Pace(
    gather_s=0.05, first_poll_s=0.01, longest_poll_s=0.01, settle_s=0.2, patience_s=0.5
)  # seconds
PROFILES = ("openai", "claude")


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with batch_server() as running:
        yield running


def ask(
    server: BatchServer, folder: Path, count: int = 4, profile: str = "openai", **options: Any
) -> list[Reply | EndpointError]:
    """What `count` questions come to, in order."""

    async def work() -> list[Any]:
        async with BatchEndpoint(
            [server.url], profile=profile, model="m", folder=folder, pace=QUICK,
            request=RequestOptions("secret"),
            sampling={"temperature": 0.0, "top_p": None, "max_tokens": 9, "stop": ["END"]},
            **options,
        ) as endpoint:  # fmt: skip
            return await asyncio.gather(
                *(
                    endpoint.chat(
                        [
                            {"role": "system", "content": "Be short."},
                            {"role": "user", "content": f"question {n}"},
                        ],
                        seed=n,
                    )
                    for n in range(count)
                ),
                return_exceptions=True,
            )

    return asyncio.run(work())


@pytest.mark.parametrize("profile", PROFILES)
def test_all_that_waits_is_one_batch_and_each_gets_its_own_answer(
    server: BatchServer, tmp_path: Path, profile: str
):
    server.outcome = lambda body, batch: f"of {body['messages'][-1]['content']}"
    replies = ask(server, tmp_path, 6, profile)
    assert [reply.content for reply in replies] == [f"of question {n}" for n in range(6)]
    assert [(r.prompt_tokens, r.completion_tokens) for r in replies] == [(100, 10)] * 6
    assert len(server.batches) == 1
    body = server.batches[0][0][1]
    if profile == "claude":
        assert body["system"] == "Be short." and body["stop_sequences"] == ["END"]
        assert {m["role"] for m in body["messages"]} == {"user"} and body["max_tokens"] == 9
        assert replies[0].thinking == "a plan" and replies[0].cached_tokens == 40
        assert all(h["x-api-key"] == "secret" for h in server.headers)
        assert not any("authorization" in h for h in server.headers)
    else:
        assert body["max_completion_tokens"] == 9 and body["messages"][0]["role"] == "system"
        assert all(h["authorization"] == "Bearer secret" for h in server.headers)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_expired_is_asked_again_and_what_is_refused_is_its_own(
    server: BatchServer, tmp_path: Path, profile: str
):
    def outcome(body: dict[str, Any], batch: int) -> Any:
        number = int(body["messages"][-1]["content"][-1])
        return {0: "" if batch == 0 else "late", 1: (400, "flagged by moderation"),
                2: (500, "oops"), 3: "fine"}[number]  # fmt: skip

    server.outcome = outcome
    late, flagged, broken, fine = ask(server, tmp_path, 4, profile)
    assert (late.content, fine.content) == ("late", "fine")
    assert isinstance(flagged, EndpointError) and flagged.kind == "moderation"
    assert isinstance(broken, EndpointError) and "3 batches" in str(broken)
    assert "oops" in str(broken)
    assert server.asked == {"question 0": 2, "question 1": 1, "question 2": 3, "question 3": 1}


ALL_DEATHS = ("creating", "created", "polled", "results", "results")


@pytest.mark.parametrize(
    ("profile", "deaths"),
    [
        ("openai", ("created", "polled")),
        pytest.param("openai", ALL_DEATHS, marks=pytest.mark.slow),
        pytest.param("claude", ALL_DEATHS, marks=pytest.mark.slow),
    ],
)
def test_however_often_it_is_killed_each_request_is_handed_in_once(
    server: BatchServer, tmp_path: Path, profile: str, deaths: tuple[str, ...]
):
    children: list[subprocess.Popen[str]] = []
    waiting, happened = list(deaths), []

    def die(event: str) -> None:
        if waiting and event == waiting[0]:
            happened.append(waiting.pop(0))
            children[-1].kill()
            children[-1].wait()
            if event == "creating":
                raise ConnectionError  # the batch is not received

    server.event = die
    command = [sys.executable, batch_client.__file__, server.url, profile, str(tmp_path)]
    while True:
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        answered, _ = children[-1].communicate()
        if children[-1].returncode == 0:
            break
        assert children[-1].returncode == -9
    assert happened == list(deaths)
    assert answered.split() == list("01234")
    assert len(server.batches) == 1 and set(server.asked.values()) == {1}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_submission_whose_answer_is_lost_is_found_again(
    server: BatchServer, tmp_path: Path, profile: str
):
    troubles = {"created": 1, "polled": 2, "results": 1}

    def trouble(event: str) -> int | None:
        if not troubles.get(event):
            return None
        troubles[event] -= 1
        if event == "created":
            raise ConnectionError  # received, but never answered
        return 502

    server.event = trouble
    assert {reply.content for reply in ask(server, tmp_path, 4, profile)} == {"[[7]]"}
    assert len(server.batches) == 1 and not any(troubles.values())


def test_what_concerns_the_account_stops_with_the_providers_words(
    server: BatchServer, tmp_path: Path
):
    server.outcome = lambda body, batch: (400, "the model m is not in your plan")
    errors = ask(server, tmp_path / "refused")
    assert {type(error) for error in errors} == {MisconfiguredEndpointError}
    assert "not in your plan" in str(errors[0])
    server.problem = "the file has too many tokens"
    errors = ask(server, tmp_path / "failed")
    assert {type(error) for error in errors} == {MisconfiguredEndpointError}
    assert "too many tokens" in str(errors[0])
    server.problem = ""
    cases = [(402, CreditExhaustedError), (401, MisconfiguredEndpointError),
             (404, MisconfiguredEndpointError), (503, EndpointUnreachableError)]  # fmt: skip
    for status, kind in cases:
        server.event = lambda event, status=status: status if event == "creating" else None
        errors = ask(server, tmp_path / str(status))
        assert {type(error) for error in errors} == {kind}, (status, errors)
    server.event, server.outcome = lambda event: None, lambda body, batch: "fine"
    for folder in ("refused", "failed", "402", "503"):  # the same command, after correcting it
        assert {reply.content for reply in ask(server, tmp_path / folder)} == {"fine"}


def test_a_judge_is_asked_by_batch_at_half_the_price(server: BatchServer, tmp_path: Path):
    server.outcome = lambda body, batch: (
        "" if batch == 0 and "number 3?" in str(body["messages"]) else "[[yes]]"
    )
    seat = {
        "repo": "acme/judge", "endpoints": [server.url], "profile": "openai", "model": "m",
        "usd_per_million_input": 10.0, "usd_per_million_output": 100.0, "batch": True,
    }  # fmt: skip
    block = Judging.model_validate({"judge": seat, "in_flight": 1, "budget_usd": 1.0})
    notes: list[str] = []

    def judge() -> PromptedJudge:
        model = ServedModel.of(block.judge)
        return PromptedJudge(
            block, model, question_prompts(), "context-v1", identity="j", run="r", folder=tmp_path
        )

    about = [(str(n), {"conversation": "…", "question": f"number {n}?"}) for n in range(12)]
    first = judge()
    answers = first.ask(about, yes_or_no, lambda done, total=None, note="": notes.append(note))
    assert answers == {str(n): "yes" for n in range(12)}
    assert [len(batch) for batch in server.batches] == [12, 1]
    assert first.stats["usd"] == pytest.approx(12 * (100 * 10 + 10 * 100) / 1e6 / 2)
    assert any(isinstance(note, Notice) and "batch_0 of 12 requests" in note for note in notes)
    second = judge()
    assert second.ask(about, yes_or_no, lambda *_: None) == answers
    assert second.stats["from_journal"] == 12 and len(server.batches) == 2


def test_batches_are_refused_where_there_are_none():
    address = "http://127.0.0.1:9"
    seat = {"repo": "a/b", "endpoints": [address], "profile": "vllm", "batch": True}
    with pytest.raises(RecipeError, match="no batch API"):
        spec_of(SeatConfig.model_validate(seat), None)
    for endpoints in (["embedded"], [address, "http://127.0.0.1:8"], ["vllm"]):
        with pytest.raises(ValueError, match="one address"):
            SeatConfig.model_validate({**seat, "endpoints": endpoints})
    plain = SeatConfig.model_validate({**seat, "profile": "openai"})
    with pytest.raises(RecipeError, match="one by one"):
        ServedModel.of(plain).endpoint(plain)
    spent = Spent({"s": [1_000_000, 0]})
    priced = plain.model_copy(update={"usd_per_million_input": 3.0})
    assert spent.usd({"s": priced}) == 1.5
