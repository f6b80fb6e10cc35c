"""Wordings, shapes and addresses of real servers, each with what is right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hubkit.errors import RecipeError
from hubkit.loopback import on_loopback
from hubkit.serving.client.address import parse_address, proxy_of
from hubkit.serving.client.dialects import folded, left_out, sent_sampling
from hubkit.serving.client.refusals import error_inside, refusal
from hubkit.serving.client.replies import decode, read_chat, split_thinking


@pytest.mark.parametrize(
    ("text", "answer", "thinking", "unclosed"),
    [
        ("<think>\na\n</think>\n\nb", "b", "a", False),
        ("a\n</think>\n\nb", "b", "a", False),
        ("<think>a</think>b<think>c</think>d", "d", "a</think>b<think>c", False),
        ("  <thinking>a", "", "a", True),
        ("[THINK]a[/THINK]b", "b", "a", False),
        ("<seed:think>a</seed:think>b", "b", "a", False),
        ("Close it with `</think>`, then answer.", "Close it with `</think>`, then answer.", "",
         False),
        ("In HTML there is no <think> tag.", "In HTML there is no <think> tag.", "", False),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
         "b", "analysis a    assistant", False),
        ("<|channel|>analysis<|message|>a", "", "analysis a", True),
        ("", "", "", False),
    ],
)  # fmt: skip
def test_thinking_is_split_off(text: str, answer: str, thinking: str, unclosed: bool) -> None:
    got = split_thinking(text)
    assert (got[0], " ".join(got[1].split()), got[2]) == (
        answer,
        " ".join(thinking.split()),
        unclosed,
    )


@pytest.mark.parametrize(
    "message",
    [
        {"content": "b", "reasoning_content": "a"},
        {"content": "b", "reasoning": "a"},
        {"content": "b", "reasoning_details": [{"type": "reasoning.text", "text": "a"}]},
        {"content": [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]},
        {"content": [{"type": "reasoning", "text": "a"}, {"type": "output_text", "text": "b"}]},
    ],
)
def test_thinking_in_fields_and_parts_of_its_own(message: dict[str, Any]) -> None:
    reply = read_chat({"choices": [{"message": message}], "model": "m-1"}, latency_s=0, address="a")
    assert (reply.content, reply.thinking, reply.model) == ("b", "a", "m-1")


@pytest.mark.parametrize(
    ("finish", "means"),
    [(None, "stop"), ("", "stop"), ("eos", "stop"), ("end_turn", "stop"), ("STOP", "stop"),
     ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("content_filter", "content_filter"),
     ("tool_calls", "tool_calls"), ("error", "error")],
)  # fmt: skip
def test_finish_reason_is_a_closed_set(finish: str | None, means: str) -> None:
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": finish}]}
    reply = read_chat(answer, latency_s=0, address="a")
    assert reply.finish_reason == means and reply.failed == (means not in ("stop", "length"))


REFUSALS = [
    (402, "Insufficient Balance", "credit"),
    (400, "Your credit balance is too low to access the Anthropic API.", "credit"),
    (403, "Your team has either used all available credits or reached its spending limit.",
     "credit"),
    (429, "You exceeded your current quota, please check your plan and billing details.", "credit"),
    (429, 'You exceeded your current quota. quotaId: "GenerateRequestsPerDayPerProject"', "daily"),
    (429, 'You exceeded your current quota. quotaId: "GenerateRequestsPerMinutePerProject"', ""),
    (429, "Rate limit exceeded: free-models-per-day", "daily"),
    (429, "Rate limit exceeded: free-models-per-min", ""),
    (429, "Rate limit reached for model on tokens per day (TPD): Limit 100000", "daily"),
    (429, "Rate limit reached for requests", ""),
    (429, "Model is overloaded", ""),
    (403, "Input was flagged by moderation", "moderation"),
    (400, "filtered due to Azure OpenAI's content management policy", "moderation"),
    (403, "Invalid API key", ""),
    (400, "This model's maximum context length is 2048 tokens. However, you requested 2200",
     "too_long"),
    (400, "request (99 tokens) exceeds the available context size (64 tokens)", "too_long"),
    (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096", "too_long"),
    (422, "`inputs` must have less than 1024 tokens. Given: 2000", "too_long"),
    (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
     "too_long"),
    (400, "prompt is too long: 210000 tokens > 200000 maximum", "too_long"),
    (400, "The input token count (9) exceeds the maximum number of tokens allowed", "too_long"),
    (400, "Input is too long for requested model", "too_long"),
    (500, "request (99 tokens) exceeds the available context size", "too_long"),
    (413, "Request Entity Too Large", "too_long"),
    (400, "System role not supported", "roles"),
    (400, "Conversation roles must alternate user/assistant/user/assistant/...", "roles"),
    (400, "Developer instruction is not enabled for models/gemma-3", "roles"),
    (404, "No endpoints found matching your data policy (Free model training)", "policy"),
    (404, "The model `nope` does not exist.", "unknown_model"),
    (404, "Not Found", ""),
    (400, "Unsupported parameter: 'max_tokens' is not supported with this model.", "parameter"),
    (422, "Extra inputs are not permitted", "parameter"),
    (501, "This server does not support chat completions", "not_implemented"),
    (401, "Token expired", ""),
    (503, "Loading model", ""),
]  # fmt: skip


@pytest.mark.parametrize(("status", "message", "kind"), REFUSALS)
def test_a_refusal_has_a_kind_and_keeps_its_words(status: int, message: str, kind: str) -> None:
    raw = json.dumps({"error": {"message": message}}).encode()
    error = refusal("http://h", status, {}, raw)
    assert error.kind == kind and message in str(error)


def test_the_window_and_the_wait_are_read_from_the_words() -> None:
    long = b'{"error": {"message": "exceeds the available context size (64 tokens)", "n_ctx": 64}}'
    assert refusal("u", 400, {}, long).window == 64
    vllm = b'{"message": "This model\'s maximum context length is 2048 tokens."}'
    assert refusal("u", 400, {}, vllm).window == 2048
    for words, seconds in (("try again in 7m12.5s", 432.5), ("retry after 20s", 20.0),
                           ('"retryDelay": "34s"', 34.0),
                           ("try again in 250ms", 0.25)):  # fmt: skip
        assert refusal("u", 429, {}, words.encode()).retry_after_s == pytest.approx(seconds)
    assert refusal("u", 429, {"retry-after-ms": "1500"}, b"").retry_after_s == 1.5


def test_an_error_inside_a_200_counts_by_its_code() -> None:
    inner = {"error": {"message": "x", "code": 429}}
    assert error_inside(inner)[0] == 429
    assert error_inside({"choices": [{"error": {"code": 502, "message": "x"}}]})[0] == 502
    assert error_inside({"object": "error", "message": "x", "code": 400})[0] == 400
    assert error_inside({"error": {"code": "insufficient_quota"}})[0] == 429
    assert error_inside({"error": "broken"})[0] == 500
    good = {"error": None, "choices": [{"message": {"content": "x"}}]}
    assert error_inside(good) is None and error_inside([]) is None


def test_a_stream_that_ends_before_its_answer_is_no_answer() -> None:
    event = b'data: {"choices": [{"delta": {"content": "Hel"}, "finish_reason": null}]}\n\n'
    with pytest.raises(ConnectionError):
        decode(event, "text/event-stream")
    assert decode(event + b"data: [DONE]\n\n", "")["choices"][0]["message"]["content"] == "Hel"


@pytest.mark.parametrize(
    ("given", "chat", "root"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions", "http://h:1"),
        ("https://g.example/v1beta/openai/", "https://g.example/v1beta/openai/chat/completions",
         "https://g.example"),
        ("https://z.example/api/paas/v4/", "https://z.example/api/paas/v4/chat/completions",
         "https://z.example/api/paas"),
        ("https://p.example/chat/completions", "https://p.example/chat/completions",
         "https://p.example"),
        ("https://o.example/api/v1", "https://o.example/api/v1/chat/completions",
         "https://o.example/api"),
        ("https://a.example/openai/deployments/d?api-version=2024-10-21",
         "https://a.example/openai/deployments/d/chat/completions?api-version=2024-10-21",
         "https://a.example/openai/deployments/d"),
        ("http://h/v2/serve/3", "http://h/v2/serve/3/v1/chat/completions", "http://h/v2/serve/3"),
        ("http://h/think", "http://h/think/v1/chat/completions", "http://h/think"),
    ],
)  # fmt: skip
def test_an_address_is_used_as_given(given: str, chat: str, root: str) -> None:
    address = parse_address(given)
    assert address.route("/chat/completions") == chat and address.root == root


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(RecipeError, match=r"h\.example holds a user name") as caught:
        parse_address("https://me:hunter2@h.example/v1")
    assert "hunter2" not in str(caught.value)


def test_proxies_never_govern_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("https_proxy", "socks5://proxy:1080")
    for host in ("127.0.0.1:8080", "localhost", "[::1]:80", "a.localhost"):
        assert on_loopback(f"http://{host}") and proxy_of(f"http://{host}/v1") is None
    assert proxy_of("http://far.example/v1") == "http://proxy:3128"
    with pytest.raises(ImportError, match="SOCKS proxy"):
        proxy_of("https://far.example/v1")
    monkeypatch.setenv("no_proxy", "far.example")
    assert proxy_of("https://far.example/v1") is None


def test_roles_that_are_refused_are_folded() -> None:
    system = {"role": "system", "content": "s"}
    user, answer = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    assert folded([system, user]) == [{"role": "user", "content": "s\n\nu"}]
    assert folded([system, answer, user])[0] == {"role": "user", "content": "s"}
    assert folded([user]) == [user]


def test_what_a_dialect_does_not_take_is_left_out_or_refused() -> None:
    sampling = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 5, "stop": [],
                "frequency_penalty": 0.0, "presence_penalty": 0.0}  # fmt: skip
    assert left_out("openai-reasoning", sampling) == ["temperature", "top_p"]
    assert sent_sampling("openai-reasoning", sampling) == {"max_tokens": 5}
    assert "top_p" not in sent_sampling("claude", sampling)
    with pytest.raises(RecipeError, match="frequency_penalty 1"):
        sent_sampling("gemini", {**sampling, "frequency_penalty": 1.0})
    assert sent_sampling("vllm", dict.fromkeys(sampling)) == {}
