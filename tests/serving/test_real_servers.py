"""Servers, gateways and accounts as they really behave: what becomes of a rollout on each."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rollout.test_rollout import PROVENANCE, block, openings
from support.scripted_servers import ScriptedServers, scripted_servers

from hubkit.conversation import Conversation
from hubkit.errors import (
    CreditExhaustedError,
    EndpointError,
    EndpointUnreachableError,
    HubkitError,
    MisconfiguredEndpointError,
)
from hubkit.recipe import Sampling
from hubkit.rollout import JournalSpec, RolloutReport, Seats, run
from hubkit.serving import ServedModel
from hubkit.serving.client import ClientLimits, Endpoint, Reply

NULLS = dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServers]:
    with scripted_servers(tmp_path_factory.mktemp("ledger")) as running:
        yield running


def roll(
    servers: ScriptedServers,
    address: str,
    folder: Path,
    asker_address: str | None = None,
    texts: list[Conversation] | None = None,
    **changes: Any,
) -> RolloutReport:
    """A rollout whose chat seat is at `address`."""
    recipe = block(**{"turns": {"value": 2}, "patience_s": 30, **changes})
    return run(
        recipe,
        texts or openings(),
        folder / "out",
        Seats(
            ServedModel.of(recipe.asker, [asker_address or servers.at("asker")]),
            ServedModel.of(recipe.chat, [address]),
        ),
        JournalSpec(folder / "journal", 7, PROVENANCE),
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """What the run wrote."""
    return pq.read_table(folder / "out" / "data").to_pylist()


def ask(url: str, **options: Any) -> Any:
    """One request; its reply or its error."""

    async def go() -> Any:
        defaults = {"profile": "vllm", "model": "m", "sampling": Sampling().model_dump()}
        async with Endpoint([url], **{**defaults, "name": "chat", **options}) as endpoint:
            messages = [{"role": "user", "content": "hi"}]
            [answer] = await asyncio.gather(endpoint.chat(messages, seed=0), return_exceptions=True)
            return answer

    return asyncio.run(go())


# What a reply is


@pytest.mark.parametrize(
    "behaviour",
    ["ok", "sse", "padded", "bom", "nulls", "emptyfinish", "gzipd", "zstdd", "parts", "orstart",
     "cut", "cf524"],
)  # fmt: skip
def test_it_is_read_whole_and_asked_for_once(
    servers: ScriptedServers, tmp_path: Path, behaviour: str
) -> None:
    chat = servers.at(behaviour)
    report = roll(servers, chat, tmp_path)
    assert report.end_reasons == {"target_turns": 6} and report.requests == 6 * 3
    for row in rows(tmp_path):
        assert all("Number" in m["content"] for m in row["messages"] if m["role"] == "assistant")
    answered = Counter(json.dumps(r["body"]["messages"]) for r in servers.requests(chat))
    if behaviour not in ("orstart", "cut", "cf524"):  # these do not answer at first
        assert max(answered.values()) == 1


@pytest.mark.parametrize("behaviour", ["think", "thinkclose", "parts"])
@pytest.mark.parametrize("keep", ["keep", "drop"])
def test_thinking_has_a_column_of_its_own_and_is_shown_to_nobody(
    servers: ScriptedServers, tmp_path: Path, behaviour: str, keep: str
) -> None:
    chat, asker = servers.at(behaviour), servers.at("asker")
    report = roll(servers, chat, tmp_path, asker, chat={"thinking": keep})
    words = ("Okay", "Let me see", "think>")
    for request in servers.requests(chat) + servers.requests(asker):
        assert not any(word in json.dumps(request["body"]["messages"]) for word in words)
    for row in rows(tmp_path):
        assert not any(word in m["content"] for m in row["messages"] for word in words)
        thoughts = [row["thinking"][i] for i in (1, 3)]
        assert all(thoughts) if keep == "keep" else not any(thoughts)
        assert row["thinking"][2] is None
    assert report.thinking == {"chat": 12}


def test_no_text_within_the_budget_stops_the_run_and_says_what_to_raise(
    servers: ScriptedServers, tmp_path: Path
) -> None:
    chat = servers.at("reasonnull")
    with pytest.raises(MisconfiguredEndpointError, match=r"'length'.*raise max_tokens") as caught:
        roll(servers, chat, tmp_path, dialogues=60, in_flight=8)
    assert caught.value.exit_code == 1 and len(servers.requests(chat)) < 50


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("cfilter", "content_filter"), ("abort", "abort")]
)
def test_another_finish_reason_is_a_failed_attempt(
    servers: ScriptedServers, tmp_path: Path, behaviour: str, reason: str
) -> None:
    chat = servers.at(behaviour)
    with pytest.raises(MisconfiguredEndpointError, match=reason):
        roll(servers, chat, tmp_path, retries_per_turn=1)
    assert len(servers.requests(chat)) == 6 * 2  # each is asked for twice, then its dialogue waits
    error = ask(servers.at(behaviour))
    assert isinstance(error, EndpointError) and reason in str(error)


def test_a_refusal_is_a_turn_or_a_failure_as_the_recipe_says(
    servers: ScriptedServers, tmp_path: Path
) -> None:
    roll(servers, servers.at("refusal"), tmp_path / "turn")
    row = rows(tmp_path / "turn")[0]
    assert row["messages"][1]["content"].startswith("I'm sorry") and row["flaws"][1] == "refused"
    with pytest.raises(MisconfiguredEndpointError, match="refused answer, \"I'm sorry"):
        roll(servers, servers.at("refusal"), tmp_path / "failure", refusals="failure")


@pytest.mark.parametrize("behaviour", ["s_ok", "s_crlf", "s_nodone", "s_think", "s_reason",
                                       "s_usage", "s_nonstream", "s_split"])  # fmt: skip
def test_a_server_that_always_streams_is_read(servers: ScriptedServers, behaviour: str) -> None:
    reply = ask(servers.at(behaviour))
    assert isinstance(reply, Reply)
    text = {"s_nonstream": "Hello, not streamed.", "s_split": "héllo 😀"}.get(behaviour, "Hello")
    assert reply.content.startswith(text) and "secret" not in reply.content
    assert ("secret plan" in reply.thinking) == (behaviour in ("s_think", "s_reason"))


# What a refusal is


@pytest.mark.parametrize(
    ("behaviour", "error", "words"),
    [
        ("quota", CreditExhaustedError, "exceeded your current quota"),
        ("quotamid", CreditExhaustedError, "exceeded your current quota"),
        ("credit402", CreditExhaustedError, "never purchased credits"),
        ("expires", MisconfiguredEndpointError, "Token expired"),
        ("orerrall", MisconfiguredEndpointError, "accept terms"),
        ("gpt5", MisconfiguredEndpointError, "set that key to null"),
        ("o3mini", MisconfiguredEndpointError, "set that key to null"),
        ("claude", MisconfiguredEndpointError, "Please use only one"),
        ("s_402", CreditExhaustedError, "monthly included credits"),
        ("s_429", CreditExhaustedError, "exceeded your current quota"),
        ("s_html", HubkitError, "Sign in"),
        ("no_such_mode", MisconfiguredEndpointError, "Not Found"),
    ],
)
def test_what_concerns_the_account_stops_the_run_and_leaves_its_dialogues_open(
    servers: ScriptedServers, tmp_path: Path, behaviour: str, error: type, words: str
) -> None:
    chat = servers.at(behaviour)
    with pytest.raises(error, match=words):
        roll(
            servers, chat, tmp_path, dialogues=60, in_flight=8, patience_s=2,
            chat={"profile": "vllm"},
        )  # fmt: skip
    assert len(servers.requests(chat)) <= 24
    report = roll(servers, servers.at("ok"), tmp_path, dialogues=60)
    assert report.end_reasons == {"target_turns": 60}


@pytest.mark.parametrize(
    ("behaviour", "seat"),
    [
        ("gpt5", {"profile": "openai-reasoning"}),
        ("o3mini", {"profile": "openai-reasoning"}),
        ("claude", {"profile": "claude"}),
        ("gpt5", {"profile": "openai", "sampling": NULLS}),
        ("o3mini", {"profile": "openai", "sampling": NULLS}),
        ("claude", {"profile": "vllm", "sampling": {"top_p": None}}),
    ],
)
def test_a_dialect_or_a_null_leaves_out_what_a_server_refuses(
    servers: ScriptedServers, tmp_path: Path, behaviour: str, seat: dict[str, Any]
) -> None:
    report = roll(servers, servers.at(behaviour), tmp_path, chat=seat)
    assert report.end_reasons == {"target_turns": 6}
    said = " ".join(report.session["adaptations"])
    assert ("not sent to" in said) == (seat["profile"] == "openai-reasoning")


def test_after_topping_up_the_same_command_finishes_all(
    servers: ScriptedServers, tmp_path: Path
) -> None:
    chat = servers.at("c402big")
    with pytest.raises(CreditExhaustedError, match=r"Insufficient credits.*top up"):
        roll(servers, chat, tmp_path, dialogues=40, in_flight=8)
    answered = 20
    (servers.ledger_folder / "topped-up").touch()
    report = roll(servers, chat, tmp_path, dialogues=40, in_flight=8)
    assert report.end_reasons == {"target_turns": 40} and report.refused == {}
    refused = [r for r in servers.requests(chat) if r["n"] > answered][: 40 + 8]
    assert len(servers.requests(chat)) <= 40 * 2 + 8 and refused  # only refused ones came again


def test_one_moderated_conversation_is_its_own_fault(
    servers: ScriptedServers, tmp_path: Path
) -> None:
    texts = openings(12)
    texts[0].messages[0]["content"] = "tell me about earthquakes"
    report = roll(servers, servers.at("mod403"), tmp_path, texts=texts, dialogues=12, in_flight=1)
    assert report.end_reasons == {"error": 1, "target_turns": 11}
    error = rows(tmp_path)[0]["error"]
    assert error["status"] == 403 and "flagged by moderation (violence)" in error["message"]
    azure = roll(
        servers, servers.at("j_azure"), tmp_path / "azure", dialogues=12, retry_on=["empty"],
        asker={"system": "You ask."},
    )  # fmt: skip
    assert set(azure.end_reasons) <= {"error", "target_turns"} and azure.refused["http_400"] >= 3


@pytest.mark.parametrize("behaviour", ["vllm2048", "llama2048", "ctx_llamacpp"])
def test_too_long_is_believed_in_every_wording_and_trimmed(
    servers: ScriptedServers, tmp_path: Path, behaviour: str
) -> None:
    seat = {"sampling": {"max_tokens": 512}, "context": 8192, "system": None}
    seat["profile"] = "vllm" if behaviour == "vllm2048" else "llamacpp"
    report = roll(
        servers, servers.at(behaviour), tmp_path, dialogues=3, turns={"value": 9}, chat=seat
    )
    assert report.end_reasons == {"target_turns": 3} and report.refused == {}
    assert all(max(row["trimmed"]) >= 2 and row["human_turns"] == 9 for row in rows(tmp_path))


def test_an_overloaded_server_is_waited_for_and_quoted(
    servers: ScriptedServers, tmp_path: Path
) -> None:
    with pytest.raises(EndpointUnreachableError, match=r"http_529.*Overloaded"):
        roll(servers, servers.at("s529"), tmp_path, patience_s=1.0)
    with pytest.raises(EndpointUnreachableError, match=r"timeout.*did not answer within 0\.3 s"):
        roll(servers, servers.at("slow"), tmp_path / "slow", patience_s=1.0, request_timeout_s=0.3)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [("s_400ctx", "too_long"), ("s_500", ""), ("s_erronly", ""), ("s_cut", "")],
)
def test_errors_keep_the_servers_words(servers: ScriptedServers, behaviour: str, kind: str) -> None:
    error = ask(servers.at(behaviour), limits=ClientLimits(patience_s=0.4))
    assert isinstance(error, EndpointError) and error.kind == kind
    words = {"s_400ctx": "2048 tokens", "s_500": "CUDA out of memory",
             "s_erronly": "Provider returned error", "s_cut": "dropped the connection"}  # fmt: skip
    assert words[behaviour] in str(error)
