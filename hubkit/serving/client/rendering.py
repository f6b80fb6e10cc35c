"""Whether a server renders a conversation as we do, asked before the first request.

A trained seat reads what it was trained on, character for character. A server that ignores the
model's own chat template (vLLM with an adapter, TGI with one template for all) would put it into
another seat without a word; so its prompts are sent as chat only to a server that proves, with
sentinels, that it renders the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubkit.conversation import Message
from hubkit.errors import EndpointUnreachableError
from hubkit.serving.client.address import COMPLETIONS, Address
from hubkit.serving.client.client_template import ClientTemplate
from hubkit.serving.client.transport import HttpClient

_PROBE_S = 20.0  # longest wait for one answer
_SYSTEM: Message = {"role": "system", "content": "Sentinel zero: cedar."}
SENTINELS: tuple[tuple[Message, ...], ...] = (
    (
        _SYSTEM,
        {"role": "assistant", "content": "Sentinel one: river?"},
        {"role": "user", "content": "Sentinel two: stone."},
    ),
    (
        _SYSTEM,
        {"role": "user", "content": "Sentinel one: river?"},
        {"role": "assistant", "content": "Sentinel two: stone."},
        {"role": "user", "content": "Sentinel three: cloud?"},
    ),
)
"""A conversation as each seat sees it: the asker spoke first, or the partner did."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a server said of its rendering: `same` is None where it cannot be asked.

    `difference` shows both renderings where they differ first."""

    same: bool | None
    difference: str = ""


async def compare(
    http: HttpClient,
    address: Address,
    *,
    profile: str,
    model: str,
    template: ClientTemplate,
    kwargs: Mapping[str, Any],
) -> Comparison:
    """Compare the server's rendering of `SENTINELS` with that of `template`.

    Raises:
        RecipeError: `template` refuses all of them.
    """
    outcome = Comparison(None)
    for messages in SENTINELS:
        prompt = template.render(messages)
        renderings = await _server_rendering(
            http, address, profile, model, messages, prompt, kwargs
        )
        if renderings is None:
            return Comparison(None)
        expected, actual = renderings
        if _without_start(expected, template) != _without_start(actual, template):
            return Comparison(False, _difference(expected, actual))
        outcome = Comparison(True)
    return outcome


async def _server_rendering(
    http: HttpClient,
    address: Address,
    profile: str,
    model: str,
    messages: Sequence[Message],
    prompt: str,
    kwargs: Mapping[str, Any],
) -> tuple[Any, Any] | None:
    """(Ours, the server's) as texts or as tokens; None where the server cannot say."""
    chat: dict[str, Any] = {"model": model, "messages": list(messages)}
    if kwargs:
        chat["chat_template_kwargs"] = dict(kwargs)
    if profile == "tgi":
        answer = await _json_from(http, f"{address.root}/chat_tokenize", chat)
        text = answer.get("templated_text")
        return (prompt, text) if isinstance(text, str) else None
    if profile == "llamacpp":
        answer = await _json_from(http, f"{address.root}/apply-template", chat)
        text = answer.get("prompt")
        return (prompt, text) if isinstance(text, str) else None
    chat |= {"add_generation_prompt": True, "add_special_tokens": False}
    chat_tokens = (await _json_from(http, f"{address.root}/tokenize", chat)).get("tokens")
    plain = {"model": model, "prompt": prompt, "add_special_tokens": False}
    prompt_tokens = (await _json_from(http, f"{address.root}/tokenize", plain)).get("tokens")
    return (
        (prompt_tokens, chat_tokens)
        if isinstance(chat_tokens, list) and isinstance(prompt_tokens, list)
        else None
    )


async def starts_twice(
    http: HttpClient, address: Address, *, profile: str, model: str, prompt: str, bos_token: str
) -> bool:
    """Whether the server puts another beginning-of-text token before a rendered `prompt` that has
    one; False where it cannot be asked.
    """
    if profile == "transformers":  # it says only how many tokens it has read
        body: dict[str, Any] = {"model": model, "prompt": bos_token, "max_tokens": 1}
        answer = await _json_from(http, address.route(COMPLETIONS), body)
        usage = answer.get("usage")
        return isinstance(usage, dict) and usage.get("prompt_tokens") == 2
    body = {"model": model, "prompt": prompt}
    if profile == "tgi":
        body = {"inputs": prompt}
    elif profile == "llamacpp":
        body = {"content": prompt, "add_special": True, "parse_special": True}
    answer = await _json_from(http, f"{address.root}/tokenize", body)
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or len(tokens) < 2:
        return False
    first, second = (t.get("id") if isinstance(t, dict) else t for t in tokens[:2])
    return bool(first == second)


async def _json_from(http: HttpClient, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object at `url`, or ``{"tokens": […]}`` for a list; empty without one."""
    try:
        async with asyncio.timeout(_PROBE_S):
            status, answer = await http.probe(url, body)
    except (EndpointUnreachableError, TimeoutError):
        return {}
    if status != 200:
        return {}
    if isinstance(answer, list):
        return {"tokens": answer}
    return answer if isinstance(answer, dict) else {}


def _without_start(rendering: Any, template: ClientTemplate) -> Any:
    """A text without its beginning-of-text token,
    which some servers add only when they tokenize."""
    if isinstance(rendering, str) and template.bos_token:
        return rendering.removeprefix(template.bos_token)
    return rendering


def _difference(expected: Any, actual: Any) -> str:
    """Both renderings, from a little before they part."""
    at = next(
        (
            i
            for i, (left_item, right_item) in enumerate(zip(expected, actual, strict=False))
            if left_item != right_item
        ),
        min(len(expected), len(actual)),
    )
    start = max(0, at - 20)
    kind = "characters" if isinstance(expected, str) else "tokens"
    return (
        f"from {kind[:-1]} {at} on it renders {actual[start : at + 40]!r}, "
        f"and the model was trained on {expected[start : at + 40]!r}"
    )
