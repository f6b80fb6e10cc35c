"""How a model that writes people's turns says that a conversation is over.

It generates a token of its own there, which most servers take out of the text that they give
back. It is looked for where each says it: in the text, among the generated tokens (TGI), as the
reason to stop (vLLM, SGLang). Where a server says it nowhere, a turn without a word that stopped
by itself counts as the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hubkit.conversation import blank
from hubkit.serving.client.replies import STOP, Reply

SHOW_SPECIAL_TOKENS: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"skip_special_tokens": False},
    "sglang": {"skip_special_tokens": False},
}
"""What asks a kind of server to leave special tokens in its text, so that they can stop it."""


def with_end_token(reply: Reply, answer: Any, end_token: str, stops: Sequence[str]) -> Reply:
    """`reply` with `end_token` at its end if the model ended the conversation there, and without
    any of the other texts that `stops` it.

    Args:
        reply: What was read of the answer.
        answer: The server's JSON.
        end_token: The text of the token.
        stops: Texts that end a turn.
    """
    text, ended, _ = reply.content.partition(end_token)
    is_over = bool(ended) or any(word == end_token for word in _side_channel(answer))
    for stop in stops:
        text = text.partition(stop)[0]
    is_over = is_over or (blank(text) and reply.finish_reason == STOP and not reply.thinking)
    return replace(reply, content=text.strip() + (end_token if is_over else ""))


def _side_channel(answer: Any) -> Iterator[Any]:
    """What a server says of a generation besides its text: its tokens, or what stopped it."""
    if isinstance(answer, list):
        answer = answer[0] if answer else {}
    choices = answer.get("choices")
    details = answer.get("details")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        yield from (choices[0].get(key) for key in ("stop_reason", "matched_stop"))
    tokens = details.get("tokens") if isinstance(details, dict) else None
    for token in tokens if isinstance(tokens, list) else []:
        yield token.get("text") if isinstance(token, dict) else None
