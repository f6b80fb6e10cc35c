"""How each kind of server is asked: what its dialect of OpenAI's API takes, and what it refuses.

Pure functions over plain data. Sampling values are sent rather than left to servers' own defaults,
which differ (vLLM takes the model's generation_config, llama.cpp top_k 40 and min_p 0.05). A value
of None is not sent; nor is a key that the dialect refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hubkit.conversation import Message
from hubkit.errors import RecipeError

Profile = Literal[
    "tgi", "vllm", "sglang", "llamacpp", "openai", "openai-reasoning", "claude", "mistral",
    "gemini", "grok", "ollama", "lmstudio", "transformers", "inference-providers",
]  # fmt: skip
TextRoute = Literal["completions", "generate", ""]
_PENALTIES = ("frequency_penalty", "presence_penalty")
_NO_PENALTIES = frozenset(_PENALTIES)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a kind of server takes.

    Attributes:
        neutral: Keys that switch the server's own sampling defaults off.
        refuses: Sampling keys that it does not take. A penalty or stop text that is set is then an
            error; a temperature or top_p is left out.
        length_key: Name of the cap on generated tokens.
        seed_key: Name of the seed; empty where the server takes none.
        one_of_temperature_and_top_p: Whether only one of the two may be sent.
        most_stops: How many stop texts it takes; 0 for any number.
        session: Where a request names its dialogue, so that its cached prefix is found: a key of
            the body, or ``header:NAME``; empty for nowhere.
        text_route: The route that takes a rendered prompt; empty where there is none.
        checks_rendering: Whether it can be asked how it renders a conversation.
        json_schema: How ``response_format`` holds a schema that answers must fit: as OpenAI's
            ``json_schema``, or as TGI's grammar; empty where the server does not enforce one.
        batch: Whose batch API it has; empty for none.
        keeps_stops: Whether a stop text stays in the answer that it ends.
    """

    neutral: Mapping[str, Any] = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()
    length_key: str = "max_tokens"
    seed_key: str = "seed"
    one_of_temperature_and_top_p: bool = False
    most_stops: int = 0
    session: str = ""
    text_route: TextRoute = ""
    checks_rendering: bool = False
    json_schema: Literal["openai", "tgi", ""] = "openai"
    batch: Literal["openai", "anthropic", ""] = ""
    keeps_stops: bool = False


_TRUNCATIONS_OFF = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
DIALECTS: dict[str, Dialect] = {
    "tgi": Dialect(
        # presence_penalty x becomes a repetition penalty of x + 2, so even 0 must not be sent.
        refuses=frozenset({"presence_penalty"}),
        most_stops=4,
        session="user",
        text_route="generate",
        checks_rendering=True,
        json_schema="tgi",
    ),
    "vllm": Dialect(
        _TRUNCATIONS_OFF, session="user", text_route="completions", checks_rendering=True
    ),
    "sglang": Dialect(
        _TRUNCATIONS_OFF, session="user", text_route="completions", checks_rendering=True
    ),
    "llamacpp": Dialect(
        {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "cache_prompt": True},
        session="user",
        text_route="completions",
        checks_rendering=True,
    ),
    "openai": Dialect(
        length_key="max_completion_tokens",
        most_stops=4,
        session="prompt_cache_key",
        batch="openai",
    ),
    "openai-reasoning": Dialect(
        refuses=_NO_PENALTIES | {"temperature", "top_p", "stop"},
        length_key="max_completion_tokens",
        session="prompt_cache_key",
        batch="openai",
    ),
    "claude": Dialect(
        refuses=_NO_PENALTIES,
        seed_key="",
        one_of_temperature_and_top_p=True,
        json_schema="",
        batch="anthropic",
    ),
    "mistral": Dialect(seed_key="random_seed"),
    "gemini": Dialect(refuses=_NO_PENALTIES, most_stops=5),
    "grok": Dialect(
        refuses=_NO_PENALTIES | {"stop"},
        length_key="max_completion_tokens",
        session="header:x-grok-conv-id",
    ),
    "ollama": Dialect(),
    "lmstudio": Dialect({"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}),
    "transformers": Dialect(
        refuses=frozenset({"presence_penalty"}),
        text_route="completions",
        json_schema="",
        keeps_stops=True,
    ),
    "inference-providers": Dialect(),
}
PROFILES = tuple(DIALECTS)


def dialect_of(profile: str) -> Dialect:
    """The dialect of a profile. Raises `RecipeError` for one that is not known."""
    if profile not in DIALECTS:
        raise RecipeError(f"profile {profile!r} is not known; use one of {', '.join(PROFILES)}")
    return DIALECTS[profile]


def sent_sampling(profile: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `sampling` that a request to such a server carries, with their values.

    Args:
        profile: One of `PROFILES`.
        sampling: temperature, top_p, max_tokens, stop, frequency_penalty, presence_penalty; None
            for what is not to be sent.

    Raises:
        RecipeError: The profile is not known, or its servers cannot honour a value.
    """
    dialect = dialect_of(profile)
    values = {key: sampling.get(key) for key in _KEYS}
    for key in (*_PENALTIES, "stop"):
        if key in dialect.refuses and values[key]:
            why = (
                "TGI, which turns it into a repetition penalty"
                if profile == "tgi"
                else f"a server of profile {profile}"
            )
            raise RecipeError(
                f"{key} {values[key]} cannot be sent to {why}; set it to "
                f"{'[]' if key == 'stop' else '0, or use frequency_penalty'}"
            )
    stops = values["stop"] or []
    if dialect.most_stops and len(stops) > dialect.most_stops:
        raise RecipeError(
            f"{len(stops)} stop strings: {profile} takes at most {dialect.most_stops}; "
            "leave some out"
        )
    values_sent = {
        key: value
        for key, value in values.items()
        if value is not None and key not in dialect.refuses and not (key == "stop" and not value)
    }
    if profile == "tgi" and values_sent.get("top_p", 0) >= 1:
        del values_sent["top_p"]  # TGI refuses 1; without it, it samples from everything
    if dialect.one_of_temperature_and_top_p and "temperature" in values_sent:
        values_sent.pop("top_p", None)
    if "stop" in values_sent:
        values_sent["stop"] = list(values_sent["stop"])
    return values_sent


_KEYS = ("temperature", "top_p", "max_tokens", "stop", *_PENALTIES)


def left_out(profile: str, sampling: Mapping[str, Any]) -> list[str]:
    """The keys of `sampling` whose values differ from OpenAI's defaults and are not sent."""
    defaults = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    values_sent = sent_sampling(profile, sampling)
    return [
        key
        for key, default in defaults.items()
        if sampling.get(key) not in (None, default) and key not in values_sent
    ]


def chat_fields(profile: str, model: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a chat request that is the same for every turn of a seat.

    Raises `RecipeError` as `sent_sampling` does."""
    return {"model": model, "stream": False, **_sampling_fields(profile, sampling)}


def schema_fields(profile: str, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a chat request that holds its answer to a JSON `schema`, called `name`.

    Raises `RecipeError` for a profile whose servers do not enforce one."""
    dialect = dialect_of(profile)
    if not dialect.json_schema:
        capable = ", ".join(name for name, other in DIALECTS.items() if other.json_schema)
        raise RecipeError(
            f"a server of profile {profile} does not hold its answers to a JSON schema; unset "
            f"json_schema, or use a judge of another profile ({capable})"
        )
    if dialect.json_schema == "tgi":
        return {"response_format": {"type": "json", "value": dict(schema)}}
    form = {"name": name, "strict": True, "schema": dict(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def batch_api(profile: str) -> str:
    """Whose batch API the servers of a profile have.

    Raises `RecipeError` for a profile whose servers have none."""
    if kind := dialect_of(profile).batch:
        return kind
    capable = ", ".join(name for name, dialect in DIALECTS.items() if dialect.batch)
    raise RecipeError(
        f"servers of profile {profile} have no batch API that hubkit knows; leave batch out, or "
        f"use a model of another profile ({capable})"
    )


def completion_fields(profile: str, model: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The same for ``/v1/completions``, whose prompt is rendered text."""
    fields = _sampling_fields(profile, sampling)
    if "max_completion_tokens" in fields:
        fields["max_tokens"] = fields.pop("max_completion_tokens")
    return {"model": model, "stream": False, **fields}


def _sampling_fields(profile: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    dialect = dialect_of(profile)
    fields = {**dialect.neutral, **sent_sampling(profile, sampling)}
    if "max_tokens" in fields:
        fields[dialect.length_key] = fields.pop("max_tokens")
    return fields


def generate_fields(sampling: Mapping[str, Any], adapter: str | None) -> dict[str, Any]:
    """The `parameters` of TGI's ``/generate`` for the same sampling. `adapter` is its
    `adapter_id`.
    """
    values_sent = sent_sampling("tgi", sampling)
    temperature = values_sent.get("temperature", 1.0)
    fields: dict[str, Any] = {
        "return_full_text": False,
        "details": True,
        "do_sample": temperature > 0,
    }
    if "max_tokens" in values_sent:
        fields["max_new_tokens"] = values_sent["max_tokens"]
    if temperature > 0:
        fields.update(
            {key: values_sent[key] for key in ("temperature", "top_p") if key in values_sent}
        )
    if values_sent.get("frequency_penalty"):
        fields["frequency_penalty"] = values_sent["frequency_penalty"]
    if "stop" in values_sent:
        fields["stop"] = values_sent["stop"]
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


def may_be_answered(messages: Sequence[Message]) -> bool:
    """Whether a request may be sent as it is: it ends on the partner's turn, or is a system message
    alone. Servers would continue an assistant's turn.
    """
    return bool(messages) and messages[-1]["role"] != "assistant"


def folded(messages: Sequence[Message]) -> list[Message]:
    """`messages` for a server whose template refuses a system message, or one that starts with the
    assistant: the system message becomes the first user message, joined with one that follows it.
    """
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, turns = messages[0]["content"], list(messages[1:])
    if turns and turns[0]["role"] == "user":
        first: Message = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
        return [first, *turns[1:]]
    return [{"role": "user", "content": system}, *turns]
