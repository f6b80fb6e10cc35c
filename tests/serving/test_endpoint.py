"""The door to generation, against a server in another process: what it sends, what it bears, and
when it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mock_endpoint import mock
from support.waiting import until

from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    EngineError,
    HubkitError,
    MisconfiguredEndpointError,
    RecipeError,
)
from hubkit.recipe import Sampling
from hubkit.serving.client import (
    PROFILES,
    ClientLimits,
    ClientTemplate,
    Endpoint,
    Reply,
    RequestOptions,
    start_engine,
)
from hubkit.serving.client.address import parse_address
from hubkit.serving.client.dialects import DIALECTS, chat_fields
from hubkit.serving.client.endpoint import _BY_CHANCE
from hubkit.serving.client.health import Outcomes, OwnFailures
from hubkit.serving.client.refusals import server_words
from hubkit.serving.client.replica import BREAK_AFTER, Replica
from hubkit.serving.client.replies import read_chat, read_generate

SAMPLING = Sampling().model_dump()
HELLO = [{"role": "user", "content": "hello"}]


def ask(
    urls: list[str], count: int = 1, *, messages: list | None = None, **options: object
) -> list:
    """Ask `count` times at once; gives replies or errors."""

    async def go() -> list:
        given = {"profile": "tgi", "model": "tgi", "sampling": SAMPLING, "name": "chat", **options}
        async with Endpoint(urls, **given) as endpoint:
            calls = [endpoint.chat(messages or HELLO, seed=i, key=f"d{i}") for i in range(count)]
            return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(go())


def test_a_reply_carries_what_the_server_said() -> None:
    with mock() as server:
        [reply] = ask([server.url + "/v1/"])
    assert isinstance(reply, Reply)
    assert (
        reply.content.startswith("answer")
        and reply.finish_reason == "stop"
        and reply.address == server.url
    )
    assert reply.prompt_tokens == 5 and reply.completion_tokens > 0


@pytest.mark.parametrize("profile", PROFILES)
def test_every_sampling_value_is_sent(profile: str) -> None:
    dialect = DIALECTS[profile]
    values = {**SAMPLING, "temperature": 0.3, "top_p": 0.9, "max_tokens": 7}
    values["stop"] = [] if "stop" in dialect.refuses else ["X"]
    with mock() as server:
        ask([server.url], profile=profile, model="m", sampling=values)
        [entry] = server.ledger()
    body = entry["body"]
    sent = {"temperature": 0.3, "top_p": 0.9, "stop": ["X"], dialect.length_key: 7}
    sent |= {"frequency_penalty": 0.0, "presence_penalty": 0.0}
    for key in dialect.refuses | ({"top_p"} if dialect.one_of_temperature_and_top_p else set()):
        sent.pop(key, None)
        assert key not in body
    assert {key: body[key] for key in sent} == sent
    assert not dialect.seed_key or body[dialect.seed_key] == 0
    if profile in ("vllm", "sglang", "llamacpp"):
        assert "top_k" in body and body["min_p"] == 0


def test_values_a_server_cannot_honour_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(RecipeError, match="presence_penalty"):
        chat_fields("tgi", "tgi", {**SAMPLING, "presence_penalty": 0.5})
    with pytest.raises(RecipeError, match="at most 4"):
        chat_fields("openai", "m", {**SAMPLING, "stop": list("abcde")})
    with pytest.raises(RecipeError, match="profile"):
        chat_fields("no-such-server", "m", SAMPLING)
    with pytest.raises(RecipeError, match="assistant message"):
        raise ask(["http://127.0.0.1:9"], messages=[*HELLO, {"role": "assistant", "content": "x"}])[
            0
        ]


def test_overload_is_waited_out_and_teaches_the_limit() -> None:
    with mock(capacity=6, latency=0.02) as server:
        replies = ask([server.url], 150)
        assert server.stats()["answered"] == 150
    assert all(isinstance(reply, Reply) for reply in replies)


def test_retry_after_is_honoured() -> None:
    with mock() as server:
        server.script(status=429, first=1, headers={"Retry-After": "1"})
        started = time.monotonic()
        [reply] = ask([server.url])
    assert isinstance(reply, Reply) and time.monotonic() - started >= 1


def test_a_cold_start_is_waited_for() -> None:
    with mock() as server:
        server.script(status=503, first=3)
        replies = ask([server.url], 5)
    assert all(isinstance(reply, Reply) for reply in replies)


def test_a_404_while_everything_is_404_is_loading() -> None:
    with mock() as server:
        server.script(status=404, first=2)
        [reply] = ask([server.url])
    assert isinstance(reply, Reply)


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        ({"key": "right"}, 401, "key"),
        ({"model": "llama"}, 404, "llama"),
        ({"longest": 2}, 422, "all of the first"),
    ],
)
def test_a_misconfigured_endpoint_stops_within_its_first_requests(
    options: dict, status: int, says: str
) -> None:
    with mock(latency=0.01, **options) as server:
        errors = ask([server.url], 64, request=RequestOptions(token="wrong"))
        assert server.stats()["requests"] <= 8
    assert all(isinstance(error, MisconfiguredEndpointError) for error in errors)
    assert (
        errors[0].status == status
        and says in str(errors[0])
        and "wrong" not in str(errors[0]).split()
    )


def test_one_refused_request_among_good_ones_is_its_own_fault() -> None:
    async def go(url: str) -> list:
        async with Endpoint([url], profile="tgi", model="tgi", sampling=SAMPLING) as endpoint:
            long = [{"role": "user", "content": "x" * 100}]
            calls = [endpoint.chat(long if i < 3 else HELLO, seed=i) for i in range(12)]
            return await asyncio.gather(*calls, return_exceptions=True)

    with mock(longest=50, latency=0.05) as server:
        answers = asyncio.run(go(server.url))
        assert server.stats()["requests"] == 12  # refused ones are not sent again
    assert [type(answer) for answer in answers[:3]] == [EndpointError] * 3
    assert all(isinstance(answer, Reply) for answer in answers[3:])


def test_nothing_listening_is_an_error_that_names_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hubkit.serving.client.endpoint._FIRST_CONTACT_S", 0.1)
    [error] = ask(["http://127.0.0.1:9"])
    assert isinstance(error, EndpointUnreachableError) and "127.0.0.1:9" in str(error)


@pytest.mark.parametrize("status", [503, 429])
def test_patience_ends(status: int) -> None:
    with mock() as server:
        server.script(status=status)
        [error] = ask([server.url], limits=ClientLimits(patience_s=0.5))
    assert isinstance(error, EndpointUnreachableError) and "run the same command" in str(error)
    assert f"http_{status}" in str(error)


def test_a_request_that_breaks_the_server_is_given_up_when_the_server_is_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hubkit.serving.client.endpoint._BACK_OFF_S", (0.01, 0.1))

    async def go(url: str, script: object) -> list:
        async with Endpoint([url], profile="tgi", model="tgi", sampling=SAMPLING) as endpoint:
            await endpoint.chat(HELLO, seed=0)
            script()
            bad = asyncio.create_task(
                endpoint.chat([{"role": "user", "content": "poison"}], seed=0)
            )
            while not bad.done():
                await endpoint.chat(HELLO, seed=0)
            return await asyncio.gather(bad, return_exceptions=True)

    with mock(poison="poison", latency=0.005) as server:
        [error] = asyncio.run(go(server.url, lambda: None))
        assert isinstance(error, EndpointError) and error.status == 500


@pytest.mark.parametrize(
    "body", ["<html>", "[]", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}', ""]
)
def test_an_answer_that_is_none_is_an_error_not_a_crash(body: str) -> None:
    with mock() as server:
        server.script(body=body)
        [error] = ask([server.url], limits=ClientLimits(patience_s=0.2))
    assert isinstance(error, HubkitError)


JSON_KEYS = (
    "choices", "message", "content", "usage", "finish_reason", "generated_text", "details",
)  # fmt: skip


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(JSON_KEYS), x),
        max_leaves=12,
    )
)
def test_no_json_breaks_the_readers(answer: object) -> None:
    for read in (
        lambda: read_chat(answer, latency_s=0, address="a"),
        lambda: read_generate(answer, latency_s=0, address="a", prompt_tokens=None),
    ):
        with contextlib.suppress(EndpointError):
            read()


@given(st.binary(max_size=300))
def test_no_error_body_breaks_its_explanation(raw: bytes) -> None:
    assert len(server_words(raw)) <= 300


def test_a_dead_address_is_gone_round_and_dialogues_keep_their_replica() -> None:
    async def go(urls: list[str], kill: object) -> list[list[str]]:
        async with Endpoint(urls, profile="tgi", model="tgi", sampling=SAMPLING) as endpoint:
            rounds = []
            for round_ in range(6):
                if round_ == 3:
                    kill()
                calls = [endpoint.chat(HELLO, seed=0, key=f"d{i}") for i in range(24)]
                rounds.append([reply.address for reply in await asyncio.gather(*calls)])
            return rounds

    with mock(latency=0.005) as one, mock(latency=0.005) as two, mock(latency=0.005) as three:
        rounds = asyncio.run(go([one.url, two.url, three.url], one.kill))
    assert rounds[0] == rounds[1] == rounds[2] and len(set(rounds[0])) == 3
    for before, after in zip(rounds[0], rounds[4], strict=True):
        assert after != one.url and (before == one.url or before == after)
    assert rounds[4] == rounds[5]


def test_the_breaker_opens_and_tries_again() -> None:
    now = [0.0]

    async def go() -> None:
        replica = Replica(parse_address("http://a"), ceiling=8, clock=lambda: now[0])
        for _ in range(BREAK_AFTER):
            assert await replica.acquire()
            replica.failed()
            replica.release()
        assert replica.broken and not await replica.acquire()
        now[0] = 1.5
        assert await replica.acquire() and not await replica.acquire()  # one tries
        replica.succeeded(0.1)
        replica.release()
        assert await replica.acquire() and await replica.acquire()

    asyncio.run(go())


def simulate(replica: Replica, answer: object, rounds: int) -> None:
    """Keep `replica` full for `rounds` windows; `answer(limit)` gives a latency, or None for a
    429.
    """

    async def go() -> None:
        for _ in range(rounds):
            slots = replica.limit
            for _ in range(slots):
                await replica.acquire()
            for _ in range(slots):
                latency = answer(slots)
                replica.overloaded(None) if latency is None else replica.succeeded(latency)
                replica.release()

    asyncio.run(go())


def test_the_limit_grows_while_that_pays_and_no_further() -> None:
    free = Replica(parse_address("http://a"), ceiling=256)
    simulate(free, lambda slots: 1.0, 40)
    assert free.limit == 256
    flat = Replica(
        parse_address("http://a"), ceiling=256
    )  # throughput stops growing at 32 in flight
    simulate(flat, lambda slots: max(1.0, slots / 32), 60)
    assert 24 <= flat.limit <= 64


def test_the_limit_shrinks_on_overload_and_recovers() -> None:
    capacity, sent = [20], [0]

    def answer(slots: int) -> float | None:
        sent[0] += 1
        return None if sent[0] % slots >= capacity[0] else 1.0

    replica = Replica(parse_address("http://a"), ceiling=64)
    simulate(replica, answer, 60)
    assert 8 <= replica.limit <= 26
    capacity[0] = 1000
    simulate(replica, answer, 300)
    assert replica.limit == 64


def test_a_stray_refusal_costs_nothing() -> None:
    sent = [0]

    def answer(slots: int) -> float | None:
        sent[0] += 1
        return None if sent[0] % 50 == 0 else 1.0

    replica = Replica(parse_address("http://a"), ceiling=64)
    simulate(replica, answer, 40)
    assert replica.limit == 64


@pytest.mark.parametrize(
    "address", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/chat/completions"]
)
def test_addresses_as_people_paste_them(address: str) -> None:
    parsed = parse_address(address)
    assert parsed.url == parsed.root == "http://h:1"
    assert parsed.route("/chat/completions") == "http://h:1/v1/chat/completions"


def test_an_address_that_is_none() -> None:
    with pytest.raises(RecipeError, match="URL"):
        parse_address("embedded")


def test_templates_render_here_in_a_sandbox() -> None:
    source = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    source += "{% if add_generation_prompt %}<go>{% endif %}"
    assert ClientTemplate(source, {"bos_token": "<s>"}).render(HELLO) == "<s><user>hello<go>"
    for hostile in (
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{% for",
        "{{ messages[9].x }}",
    ):
        with pytest.raises(RecipeError, match="template"):
            ClientTemplate(hostile, {}).render(HELLO)


def test_generate_is_asked_with_the_rendered_prompt() -> None:
    with mock() as server:
        template = ClientTemplate(
            "{% for m in messages %}[{{ m.content }}]{% endfor %}", {}, stops=["</s>"]
        )
        [reply] = ask([server.url], template=template, model="asker")
        [entry] = server.ledger()
    assert isinstance(reply, Reply) and reply.prompt_tokens == 3
    assert entry["body"]["inputs"] == "[hello]"
    assert (
        entry["body"]["parameters"]["stop"] == ["</s>"]
        and entry["body"]["parameters"]["adapter_id"] == "asker"
    )


FAKE_ENGINE = """
import json, os, sys, time
args = sys.argv
if "--model" in args and args[args.index("--model") + 1] == "broken":
    sys.exit("cannot load broken: no such repo")
names = [args[i + 1].split("=")[1] for i, a in enumerate(args) if a == "--listen"]
with open(args[args.index("--state-file") + 1], "w") as f:
    json.dump({"addresses": {n: "http://127.0.0.1:1" for n in names}}, f)
sys.stdin.buffer.read()
while os.path.exists(os.environ.get("STAYS_WHILE", "")):
    time.sleep(0.02)
"""


@pytest.fixture
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that keeps the engine's process contract, in place of the engine."""
    package = tmp_path / "hubkit"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "local_engine.py").write_text(FAKE_ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def alive(pid: int) -> bool:
    """Whether a process is there (and not only waiting to be reaped)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_the_engine_lives_as_long_as_the_block(fake_engine: Path) -> None:
    with (
        pytest.raises(ValueError, match="mine"),
        start_engine("m", listen=["asker", "chat"]) as engine,
    ):
        assert set(engine.addresses) == {"asker", "chat"} and alive(engine.pid)
        raise ValueError("mine")
    assert not alive(engine.pid)


def test_an_engine_that_does_not_come_up_says_why(fake_engine: Path) -> None:
    with (
        pytest.raises(EngineError, match="cannot load broken"),
        start_engine("broken", listen=["a"]),
    ):
        pass


def engine_of_a_killed_process(fake_engine: Path, **env: str) -> int:
    """The id of an engine whose starter was killed."""
    code = textwrap.dedent("""
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from hubkit.serving.client import start_engine
        with start_engine("m", listen=["a"], env={"PYTHONPATH": sys.argv[2]}) as engine:
            print(engine.pid, flush=True)
            time.sleep(60)
    """)
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", code, root, str(fake_engine)]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root, **env}
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    return pid


def test_the_engine_dies_with_us_even_on_kill_9(fake_engine: Path) -> None:
    pid = engine_of_a_killed_process(fake_engine)
    until(lambda: not alive(pid))


def test_the_folder_of_a_killed_engine_goes_at_the_next_start_and_no_other(
    fake_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, temporary = tmp_path / "stays", tmp_path / "temporary"
    stays.touch()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    pid = engine_of_a_killed_process(fake_engine, TMPDIR=str(temporary), STAYS_WHILE=str(stays))
    [left] = temporary.iterdir()
    (temporary / "hubkit-engine-made-this-moment").mkdir()
    (temporary / "hubkit-engine-link").symlink_to(left)
    others = {"hubkit-engine-made-this-moment", "hubkit-engine-link"}
    with start_engine("m", listen=["a"]):
        assert alive(pid) and (left / "lock").exists(), "it is still the engine's"
        stays.unlink()
        until(lambda pid=pid: not alive(pid))
        mine = {path.name for path in temporary.iterdir()} - {left.name} - others
        with start_engine("m", listen=["a"]):
            assert not left.exists() and mine <= {path.name for path in temporary.iterdir()}
    assert {path.name for path in temporary.iterdir()} == others


def test_the_folder_of_somebody_else_is_not_touched(
    fake_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "hubkit-engine-theirs"
    theirs.mkdir()
    (theirs / "lock").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for user, left in ((os.getuid() + 1, True), (os.getuid(), False)):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        with start_engine("m", listen=["a"]):
            assert theirs.exists() == left


def refused_in(
    answers: Callable[[float, int], bool], *, requests: int, seconds: float, latency_s: float = 1.0
) -> set[int]:
    """The requests that count as at fault themselves, in simulated time.

    Each of `requests` callers asks again and again, after a failure when its back-off is over.
    `answers(at, request)` says whether a request sent at that moment is answered, which takes
    `latency_s`; a failure comes at once.
    """
    outcomes, refused = Outcomes(), set()
    own, tries = [OwnFailures() for _ in range(requests)], [0] * requests
    todo = [(0.01 * number, number, 0) for number in range(requests)]
    while todo and todo[0][0] < seconds:
        now, number, sent_at = heapq.heappop(todo)
        if sent_at:
            outcomes.answered("a", sent_at)
        elif answers(now, number):
            heapq.heappush(todo, (now + latency_s, number, outcomes.sent()))
            continue
        else:
            outcomes.sent()
            outcomes.failed(own[number], "a")
            if own[number].chance() < _BY_CHANCE:
                refused.add(number)
            else:
                tries[number] += 1
                heapq.heappush(todo, (now + 0.75 * min(30, 0.25 * 2 ** tries[number]), number, 0))
                continue
        outcomes.forget(own[number])
        own[number], tries[number] = OwnFailures(), 0
        if number not in refused:
            heapq.heappush(todo, (now, number, 0))
    return refused


@pytest.mark.parametrize("latency_s", [0.2, 1.0, 120.0])
@pytest.mark.parametrize("requests", [2, 16, 64])
def test_a_servers_outages_are_no_requests_fault(requests: int, latency_s: float) -> None:
    moments = random.Random(requests)
    bad_seconds = {second for second in range(600) if moments.random() < 0.3}
    patterns: dict[str, Callable[[float, int], bool]] = {
        "all fail": lambda at, number: False,
        "one outage": lambda at, number: not 100 < at < 400,
        "short bursts": lambda at, number: at % 10 > 3,
        "long bursts": lambda at, number: at % 100 > 40,
        "bad seconds": lambda at, number: int(at) not in bad_seconds,
        "a fifth at random": lambda at, number: moments.random() > 0.2,
    }
    for name, pattern in patterns.items():
        options = {"requests": requests, "seconds": 600, "latency_s": latency_s}
        assert not refused_in(pattern, **options), name


def test_only_answers_to_requests_sent_after_a_failure_tell_against_it() -> None:
    outcomes, own, other = Outcomes(), OwnFailures(), OwnFailures()
    for sent_at in [outcomes.sent() for _ in range(50)]:
        outcomes.failed(own, "a")
        outcomes.answered("a", sent_at)  # begun before the outage
        outcomes.answered("b", outcomes.sent())  # elsewhere
    assert own.chance() == 1
    for _ in range(10):
        outcomes.failed(own, "a")
        outcomes.failed(other, "a")
        outcomes.failed(own, "a")
        outcomes.answered("a", outcomes.sent())
    assert own.chance() > _BY_CHANCE, "half of the others failed too"
    for _ in range(10):
        outcomes.failed(own, "a")
        outcomes.answered("a", outcomes.sent())
    assert own.chance() < _BY_CHANCE


@pytest.mark.parametrize(
    ("bad", "server"),
    [
        ({3}, lambda at: True),
        ({3, 4, 11}, lambda at: True),
        ({3}, lambda at: at % 60 > 10),
        ({0}, lambda at: not 50 < at < 300),
    ],
)
def test_what_fails_while_all_others_are_answered_is_at_fault(
    bad: set[int], server: Callable[[float], bool]
) -> None:
    refused = refused_in(
        lambda at, number: server(at) and number not in bad, requests=16, seconds=3000
    )
    assert refused == bad


def test_the_last_failing_request_is_compared_with_one_that_was_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hubkit.serving.client.endpoint._BACK_OFF_S", (0.01, 0.05))
    monkeypatch.setattr("hubkit.serving.client.replica.COOL_DOWN_S", (0.01, 0.05))

    async def go(url: str, before: Callable[[], None]) -> tuple[BaseException, list[str]]:
        async with Endpoint(
            [url],
            profile="tgi",
            model="tgi",
            sampling=SAMPLING,
            limits=ClientLimits(patience_s=0.3),
        ) as endpoint:
            await endpoint.chat(HELLO, seed=0)
            before()
            with pytest.raises(EndpointError) as caught:
                await endpoint.chat([{"role": "user", "content": "poison"}], seed=0)
            return caught.value, endpoint.adaptations

    with mock(poison="poison") as server:
        error, said = asyncio.run(go(server.url, lambda: None))
        assert type(error) is EndpointError and error.status == 500
        assert "was sent a second time" in said[-1] and server.stats()["answered"] == 2
    with mock() as server:
        error, said = asyncio.run(go(server.url, lambda: server.script(status=500)))
        assert isinstance(error, EndpointUnreachableError) and "http_500" in str(error)
        assert "was sent a second time" in said[-1] and not server.stats()["answered"]
