"""What goes over the wire: the request body that each kind of server needs, and what its answer
means.

Pure functions over plain data; nothing here sends anything. A profile is the few ways in which a
server differs from OpenAI's chat completions. Every sampling value is sent, because servers' own
defaults differ (vLLM takes the model's generation_config, llama.cpp top_k 40 and min_p 0.05); a
value that a server cannot express is left out only where leaving it out means the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubkit.conversation import Message
from hubkit.errors import EndpointError, RecipeError

PROFILES = ("tgi", "vllm", "sglang", "llamacpp", "openai", "inference-providers")

# What switches a server's own sampling defaults off, so that only what the recipe says is sampled
# with.
_NEUTRAL: dict[str, dict[str, Any]] = {
    "tgi": {},
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "cache_prompt": True},
    "openai": {},
    "inference-providers": {},
}
# Servers of one's own may be told which dialogue a request belongs to (`user`): it helps them find
# a cached prefix.
NAMES_DIALOGUES = frozenset({"tgi", "vllm", "sglang", "llamacpp"})
_MOST_TOKENS = 1 << 31
_MOST_STOPS = {"tgi": 4, "openai": 4}
# Spellings of the same two ends: a turn that its model ended, and one that ran out of tokens.
_FINISH = {"eos_token": "stop", "stop_sequence": "stop", "end_turn": "stop", "max_tokens": "length"}


@dataclass(frozen=True, slots=True)
class Reply:
    """One generated turn. Token counts are None where the server does not say; `latency_s` is the
    request alone.

    `finish_reason` is ``stop`` (its model ended it), ``length`` (cut off at max_tokens) or what the
    server says."""

    content: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    latency_s: float
    address: str


def chat_fields(profile: str, model: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a chat request that is the same for every turn of a seat.

    `sampling` has the keys temperature, top_p, max_tokens, stop, frequency_penalty,
    presence_penalty. Raises `RecipeError` for a profile that is not known and for a value that this
    kind of server cannot honour."""
    _check(profile, sampling)
    fields: dict[str, Any] = {"model": model, "stream": False, **_NEUTRAL[profile]}
    fields["temperature"] = sampling["temperature"]
    fields["max_completion_tokens" if profile == "openai" else "max_tokens"] = sampling[
        "max_tokens"
    ]
    if (
        profile != "tgi" or sampling["top_p"] < 1
    ):  # TGI refuses top_p = 1; without it, it samples from everything
        fields["top_p"] = sampling["top_p"]
    if sampling["stop"]:
        fields["stop"] = list(sampling["stop"])
    for penalty in ("frequency_penalty", "presence_penalty"):
        # TGI turns presence_penalty x into a repetition penalty of x + 2, so even 0 must not be
        # sent.
        if profile != "tgi" or sampling[penalty]:
            fields[penalty] = sampling[penalty]
    return fields


def generate_fields(sampling: Mapping[str, Any], adapter: str | None) -> dict[str, Any]:
    """The `parameters` of TGI's ``/generate`` for the same sampling. `adapter` is its
    `adapter_id`.
    """
    _check("tgi", sampling)
    fields: dict[str, Any] = {
        "max_new_tokens": sampling["max_tokens"],
        "return_full_text": False,
        "details": True,
        "do_sample": sampling["temperature"] > 0,
    }
    if sampling["temperature"] > 0:
        fields["temperature"] = sampling["temperature"]
        if sampling["top_p"] < 1:
            fields["top_p"] = sampling["top_p"]
    if sampling["frequency_penalty"]:
        fields["frequency_penalty"] = sampling["frequency_penalty"]
    if sampling["stop"]:
        fields["stop"] = list(sampling["stop"])
    if adapter:
        fields["adapter_id"] = adapter
    return fields


def at_temperature(fields: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """`generate_fields` with another temperature; 0 is greedy, which TGI says by not sampling."""
    changed = {**fields, "do_sample": temperature > 0, "temperature": temperature}
    if not temperature:
        del changed["temperature"]
        changed.pop("top_p", None)
    return changed


def _check(profile: str, sampling: Mapping[str, Any]) -> None:
    if profile not in PROFILES:
        raise RecipeError(f"profile {profile!r} is not known; use one of {', '.join(PROFILES)}")
    if profile == "tgi" and sampling["presence_penalty"]:
        raise RecipeError(
            f"presence_penalty {sampling['presence_penalty']} cannot be sent to TGI, which turns it into a repetition "
            "penalty; set it to 0, or use frequency_penalty"
        )
    most = _MOST_STOPS.get(profile)
    if most and len(sampling["stop"]) > most:
        raise RecipeError(
            f"{len(sampling['stop'])} stop strings: {profile} takes at most {most}; leave some out"
        )


def read_chat(answer: Any, *, latency_s: float, address: str) -> Reply:
    """The `Reply` in a chat completion; raises `EndpointError` when it is not one."""
    try:
        choice = answer["choices"][0]
        content = choice["message"]["content"]
        usage = answer.get("usage") or {}
        finish = choice.get("finish_reason") or "stop"
        details = usage.get("prompt_tokens_details") or {}
        counts = (
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            details.get("cached_tokens"),
        )
    except (TypeError, KeyError, IndexError, AttributeError):
        raise _not_an_answer(answer, address) from None
    if not isinstance(content, str | None) or not isinstance(finish, str):
        raise _not_an_answer(answer, address)
    prompt, completion, cached = map(_count, counts)
    return Reply(
        content or "", _FINISH.get(finish, finish), prompt, completion, cached, latency_s, address
    )


def read_generate(
    answer: Any, *, latency_s: float, address: str, prompt_tokens: int | None
) -> Reply:
    """The `Reply` in TGI's answer to ``/generate``; raises `EndpointError` when it is not one."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    try:
        content = answer["generated_text"]
        details = answer.get("details") or {}
        finish = details.get("finish_reason") or "stop"
        completion = _count(details.get("generated_tokens"))
    except (TypeError, KeyError, AttributeError):
        raise _not_an_answer(answer, address) from None
    if not isinstance(content, str) or not isinstance(finish, str):
        raise _not_an_answer(answer, address)
    return Reply(
        content, _FINISH.get(finish, finish), prompt_tokens, completion, None, latency_s, address
    )


def _count(said: Any) -> int | None:
    """A number of tokens as a server says it, or None for what can be none: it would stand in sums,
    caps and files.
    """
    return said if type(said) is int and 0 <= said <= _MOST_TOKENS else None


def _not_an_answer(answer: Any, address: str) -> EndpointError:
    return EndpointError(
        f"{address} answered 200 with something that is not a completion: {str(answer)[:200]!r}; "
        "check that the address is a chat completions endpoint",
        status=200,
    )


def alternates(messages: Sequence[Message]) -> bool:
    """Whether a request may be sent as it is: it ends on the partner's turn (or is a system message
    alone).
    """
    return bool(messages) and messages[-1]["role"] != "assistant"
