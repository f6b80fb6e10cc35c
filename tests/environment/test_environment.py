"""An asker as an environment, driven by OpenEnv's own client."""

from __future__ import annotations

import asyncio
import http.server
import json
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from openenv.core.generic_client import GenericEnvClient
from support.waiting import OPENENV
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from hubkit.environment import (
    DEFAULT_LIMITS,
    AskerEnvironment,
    Limits,
    Opening,
    require_own,
    served,
)
from hubkit.errors import EndpointUnreachableError, EngineError
from hubkit.recipe import Rollout, SeatConfig, Turns
from hubkit.reinforcement import Episode, Outcome
from hubkit.serving import ServedModel
from hubkit.serving.callable_server import served_callable
from hubkit.serving.client import ClientLimits, Request

OPENINGS = [Opening("a", "How do I bake bread?", "wants to bake"), Opening("b", "Why is it blue?")]


def block(turns: int = 3, **keys: Any) -> Rollout:
    return Rollout(
        dialogues=1,
        turns=Turns(value=turns),
        end_mark="[bye]",
        asker=SeatConfig(repo="me/ask", system="You are a person. {intent}"),
        chat=SeatConfig(
            repo=None, name="trainer's", license="-", endpoints=["http://trainer.invalid"]
        ),
        **keys,
    )


class Person:
    """An asker whose turns a test writes; it keeps what it read."""

    def __init__(self, turn: Callable[[list[Any]], str] | None = None) -> None:
        self.views: list[list[Any]] = []
        self._turn = turn or (lambda view: f"And then, after {len(view) - 1} turns?")

    def __call__(self, view: list[Any]) -> str:
        self.views.append(view)
        return self._turn(view)


@contextmanager
def environment(
    person: Person | ServedModel,
    *,
    limits: Limits = DEFAULT_LIMITS,
    token: str | None = None,
    **keys: Any,
) -> Iterator[tuple[str, AskerEnvironment]]:
    """A server in front of `person`; keys are those of `block` and of `AskerEnvironment`."""
    reward, openings = keys.pop("reward", None), keys.pop("openings", OPENINGS)
    settings, opened = block(**keys), []

    @contextmanager
    def asker() -> Iterator[ServedModel]:
        if isinstance(person, ServedModel):
            yield person
        else:
            with served_callable(person) as model:
                yield model

    with asker() as model:

        @asynccontextmanager
        async def open_environment() -> AsyncIterator[AskerEnvironment]:
            patience = ClientLimits(patience_s=0.1)
            async with model.endpoint(settings.asker, limits=patience, name="asker") as endpoint:
                opened.append(AskerEnvironment("ask", settings, endpoint, openings, reward))
                yield opened[0]

        with served(open_environment, token=token, limits=limits) as url:
            yield url, opened[0]


def client(url: str) -> Any:
    return GenericEnvClient(base_url=url, **OPENENV).sync()


def test_the_stock_client_talks_with_an_asker_until_the_turns_are_over() -> None:
    person = Person()

    async def words(episode: Episode) -> Outcome:
        assert (episode.end_reason, episode.cut_off) == ("answers", 1)
        assert (episode.intent, len(episode.answers)) == ("wants to bake", 3)
        return Outcome(0.5, {"words": 0.5})

    with environment(person, reward=words) as (url, shared), client(url) as env:
        first = env.reset(seed=0, prompt="columns of a trainer's row are no business of ours")
        assert first.observation["message"] == OPENINGS[0].text and first.reward is None
        assert env.reset(seed=1).observation["message"] == OPENINGS[1].text, "drawn by the seed"
        env.reset(seed=2, episode_id="e")
        second = env.step({"message": "<think>hm</think>Knead it."})
        assert (second.done, second.reward) == (False, None)
        assert second.observation["message"] == "And then, after 2 turns?"
        assert person.views[-1] == [
            {"role": "system", "content": "You are a person. wants to bake"},
            {"role": "assistant", "content": OPENINGS[0].text},
            {"role": "user", "content": "Knead it."},
        ], "from the other seat, with its intent, without thinking"
        env.step({"message": "Bake it."})
        last = env.step({"message": "Eat it", "finish_reason": "length"})
        assert last.done and last.reward == 0.5 and last.observation["rewards"] == {"words": 0.5}
        assert last.observation["end_reason"] == "target_turns"
        assert [m["role"] for m in last.observation["messages"]] == ["user", "assistant"] * 3
        assert "wants to bake" not in json.dumps(last.observation), "the chat model never sees it"
        state = env.state()
        assert (state["episode_id"], state["step_count"], state["intent"]) == (
            "e", 3, "wants to bake",
        )  # fmt: skip
        with pytest.raises(RuntimeError, match=r"has ended \(target_turns\); call reset"):
            env.step({"message": "More?"})
        assert dict(shared.counts) == {"target_turns": 1}


def test_the_asker_ends_a_conversation_and_may_open_one() -> None:
    def turn(view: list[Any]) -> str:
        return "Hello there." if len(view) == 1 else "Thanks! [bye]"

    with environment(Person(turn), openings=[]) as (url, _), client(url) as env:
        opened = env.reset()
        assert opened.observation["message"] == "Hello there.", "no openings: it opens itself"
        last = env.step({"message": "Hi."})
        assert last.done and last.reward is None and last.observation["end_reason"] == "end_mark"
        assert [m["content"] for m in last.observation["messages"]] == ["Hello there.", "Hi."]
        given = env.reset(opening="Where is Rome?", intent="a trip")
        assert given.observation["message"] == "Where is Rome?"
        assert env.state()["intent"] == "a trip"


def test_one_seed_is_one_conversation() -> None:
    seeds: list[int] = []

    with environment(Person()) as (url, shared):
        ask = shared.endpoint.attempt

        async def noting(request: Request, **options: Any) -> Any:
            seeds.append(request.seed)
            return await ask(request, **options)

        shared.endpoint.attempt = noting  # type: ignore[method-assign]
        with client(url) as env:
            for seed in (7, 7, 8):
                env.reset(seed=seed)
                env.step({"message": "Yes."})
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("turn", "end"),
    [(lambda view: "How do I bake bread?", "repetition"), (lambda view: " ", "empty_turn")],
)
def test_a_turn_that_fails_a_check_is_asked_again_and_then_ends(turn: Any, end: str) -> None:
    person = Person(turn)
    with environment(person, retries_per_turn=2) as (url, _), client(url) as env:
        env.reset(seed=0)
        last = env.step({"message": "Yes."})
        assert last.done and last.observation["end_reason"] == end and len(person.views) == 3


def test_what_cannot_be_rewarded_is_masked_and_counted() -> None:
    async def judge(episode: Episode) -> Outcome:
        raise TimeoutError("the judge does not answer")

    with environment(Person(), turns=1, reward=judge) as (url, shared), client(url) as env:
        env.reset(seed=0)
        last = env.step({"message": "Yes."})
        assert last.done and last.reward is None
        assert last.observation["masked"] == {"reward": "TimeoutError: the judge does not answer"}
        assert shared.counts["no_reward"] == 1
        env.reset(seed=0)
        assert env.step({"message": ""}).observation["end_reason"] == "empty_turn"


def test_a_cap_ends_conversations_masks_them_and_is_said_at_the_next_reset() -> None:
    async def never(episode: Episode) -> Outcome:
        raise AssertionError("a conversation that a cap ended is not rewarded")

    most = block().asker.reply_tokens
    with environment(Person(), reward=never, budget_tokens=most + 60) as (url, shared):
        with client(url) as env:
            env.reset(seed=0)
            assert not env.step({"message": "Knead it."}).done
            last = env.step({"message": "Bake it. " * 20})
            assert (last.done, last.reward) == (True, None)
            assert last.observation["end_reason"] == "budget_tokens"
            assert last.observation["masked"] == {"asker": "budget_tokens"}
            with pytest.raises(RuntimeError, match=r"budget_tokens is reached, after \d+ tokens"):
                env.reset(seed=1)
        assert 0 < shared.budget.spent.total <= most + 60 and shared.counts["no_reward"] == 1


def test_an_asker_that_is_gone_is_an_error_and_the_answer_is_not_lost() -> None:
    with served_callable(Person()) as model:
        pass  # nothing listens there any more
    with environment(model) as (url, _), client(url) as env:
        env.reset(seed=0)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"the asker cannot be asked.*EXECUTION_ERROR"):
                env.step({"message": "Yes."})
        assert [m["content"] for m in env.state()["messages"]] == [OPENINGS[0].text, "Yes."]


@pytest.mark.parametrize(
    ("sent", "code", "says"),
    [
        ("{", "INVALID_JSON", "Invalid JSON"),
        ("[]", "UNKNOWN_TYPE", "Unknown message type"),
        ('{"type": "fly"}', "UNKNOWN_TYPE", "fly"),
        ('{"type": "step", "data": {"message": "Hi"}}', "EXECUTION_ERROR", "call reset first"),
        ('{"type": "step", "data": {"text": "Hi"}}', "VALIDATION_ERROR", "no 'text'"),
        ('{"type": "step"}', "VALIDATION_ERROR", "data must be an object"),
        ('{"type": "reset", "data": {"seed": -1}}', "VALIDATION_ERROR", "seed must be a whole"),
        ('{"type": "reset", "data": {"seed": true}}', "VALIDATION_ERROR", "seed must be a whole"),
        ('{"type": "reset", "data": {"opening": "\\ud800"}}', "VALIDATION_ERROR", "surrogate"),
        ('{"type": "reset", "data": {"opening": ""}}', "VALIDATION_ERROR", "opening is blank"),
        ('{"type": "reset", "data": {"intent": 3}}', "VALIDATION_ERROR", "intent must be text"),
    ],
)
def test_mistakes_are_answered_and_the_session_lives(
    url: str, sent: str, code: str, says: str
) -> None:
    with connect(url.replace("http", "ws") + "/ws") as socket:
        socket.send(sent)
        answer = json.loads(socket.recv(timeout=240))
        assert answer["type"] == "error" and answer["data"]["code"] == code
        assert says in answer["data"]["message"]
        socket.send('{"type": "state"}')
        assert json.loads(socket.recv(timeout=240))["type"] == "state"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with environment(Person()) as (address, _):
        yield address


def get(url: str, **headers: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=240
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_describes_itself(url: str) -> None:
    assert get(f"{url}/health") == (200, {"status": "healthy"})
    assert get(f"{url}/schema")[1]["action"]["required"] == ["message"]
    facts = get(f"{url}/metadata")[1]
    assert (facts["name"], facts["openings"], facts["most_user_turns"]) == ("ask", 2, 3)


def test_web_pages_elsewhere_are_refused(url: str) -> None:
    """A page that a browser on this machine shows must not reach the asker."""
    assert get(f"{url}/metadata", Origin="https://evil.example")[0] == 403
    assert get(f"{url}/metadata", Host="rebound.example")[0] == 403
    with pytest.raises(InvalidStatus, match="403"):
        connect(url.replace("http", "ws") + "/ws", origin="https://evil.example")  # type: ignore[arg-type]


def test_a_token_is_required_where_one_is_set() -> None:
    with environment(Person(), token="s3cret") as (url, _):
        assert get(f"{url}/health")[0] == 200
        assert get(f"{url}/metadata")[0] == 401
        assert get(f"{url}/metadata", Authorization="Bearer s3cret")[0] == 200
        socket = url.replace("http", "ws") + "/ws"
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic !"}):
            with pytest.raises(InvalidStatus, match="401"):
                connect(socket, additional_headers=headers)
        with connect(socket, additional_headers={"Authorization": "Bearer s3cret"}):
            pass
        with client(url.replace("//", "//env:s3cret@")) as env:  # the stock client has no headers
            assert env.reset(seed=0).observation["message"] == OPENINGS[0].text


@pytest.mark.attack
def test_an_environment_proves_whose_it_is_before_it_is_sent_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path / "mine"))
    with environment(Person(), token="s3cret") as (url, _):
        with_token = url.replace("//", "//env:s3cret@")
        assert require_own(with_token) == with_token
        assert stat.S_IMODE((tmp_path / "mine" / "env" / "key").stat().st_mode) == 0o600
        port = int(url.rpartition(":")[2])
        refused = pytest.raises(EndpointUnreachableError, match="does not prove that you started")
        with asked_of(port) as (other, heard), refused:
            require_own(other.replace("//", "//env:s3cret@"))
        assert heard, "it passed the question on to the real one, whose answer is for its own port"
        assert not any("s3cret" in line or "ZW52" in line for line in heard)
    for gone in (url, "http://127.0.0.1:1", "http://far.invalid:80", "ws://192.0.2.1:8090/ws"):
        with pytest.raises(EndpointUnreachableError, match="must not be sent a token"):
            require_own(gone)


@contextmanager
def asked_of(port: int) -> Iterator[tuple[str, list[str]]]:
    """A program that asks the environment at `port` whatever it is asked, and answers that: its
    address, and what it heard.
    """
    heard: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(f"{self.path}\n{self.headers}")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{self.path}") as answer:
                body = answer.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not a word."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", heard
        server.shutdown()


def test_sessions_are_bounded_and_idle_ones_end() -> None:
    with environment(Person(), limits=Limits(sessions=1)) as (url, _):
        with client(url) as env:
            env.reset(seed=0)
            with client(url) as late, pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
                late.reset(seed=0)
            assert env.step({"message": "Yes."}).done is False, "who was there stays"
        while get(f"{url}/metadata")[1]["sessions"]:
            pass
        with client(url) as env:
            env.reset(seed=0)
    with (
        environment(Person(), limits=Limits(idle_s=0.05)) as (url, _),
        connect(url.replace("http", "ws") + "/ws") as socket,
    ):
        answer = json.loads(socket.recv(timeout=240))
        assert answer["data"] == {
            "message": "no message for 0.05 s; session ended", "code": "SESSION_ERROR",
        }  # fmt: skip


def test_many_sessions_at_once_do_not_mix() -> None:
    """Each of 16 conversations is asked about its own words alone."""

    def turn(view: list[Any]) -> str:
        return f"more about {view[-1]['content']}, {len(view)}"

    barrier = threading.Barrier(16)

    async def play(url: str, number: int) -> None:
        async with GenericEnvClient(base_url=url, **OPENENV) as env:
            await env.reset(opening=f"topic {number}")
            await asyncio.to_thread(barrier.wait)
            for position in (3, 5):
                result = await env.step({"message": f"answer {number}"})
                told = f"more about answer {number}, {position}"
                assert result.observation["message"] == told

    async def all_of_them(url: str) -> None:
        loop = asyncio.get_running_loop()
        from concurrent.futures import ThreadPoolExecutor

        loop.set_default_executor(ThreadPoolExecutor(16))
        await asyncio.gather(*(play(url, number) for number in range(16)))

    with environment(Person(turn)) as (url, _):
        asyncio.run(all_of_them(url))


def test_a_port_that_is_taken_is_a_sentence(url: str) -> None:
    @asynccontextmanager
    async def nothing() -> AsyncIterator[Any]:
        yield None

    port = int(url.rpartition(":")[2])
    with pytest.raises(EngineError, match=f"{port} cannot be bound.*take another --port"):
        served(nothing, port=port).__enter__()
