"""What a reply is: the answer that a server's JSON or event stream holds, apart from its thinking.

Pure functions. Thinking (between tags, before a closing tag alone, in fields or parts of its own)
is never part of an answer. `finish_reason` is a closed set, ``stop`` and ``length``; any other
value keeps the server's own word and marks a failed attempt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from hubkit.errors import EndpointError
from hubkit.untrusted import JsonObject

_MOST_TOKENS = 1 << 31
STOP, LENGTH = "stop", "length"
_FINISH = {
    **dict.fromkeys(
        ("", "eos", "eos_token", "stop_sequence", "end_turn", "stop", "completed", "end"),
        STOP,
    ),
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length"),
        LENGTH,
    ),
}
_TAGS = r"(?:think|thinking|thought|reasoning|reason|seed:think)"
_CLOSING = re.compile(rf"(?<!`)(?:</{_TAGS}>|\[/THINK\]|◁/think▷)(?!`)", re.IGNORECASE)
_OPENING = re.compile(rf"\s*(?:<{_TAGS}>|\[THINK\]|◁think▷)", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*final\s*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_OPENING = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>")
_OPENS = re.compile(rf"{_OPENING.pattern}|{_CHANNEL_OPENING.pattern}", re.IGNORECASE)
_CHANNEL_MARK = re.compile(r"<\|[a-z_]+\|>")


@dataclass(frozen=True, slots=True)
class Reply:
    """One generated turn.

    Attributes:
        content: The answer, without thinking.
        finish_reason: ``stop`` (its model ended it), ``length`` (cut off), or the server's own word
            for an attempt that failed.
        prompt_tokens: Tokens of the prompt; None where the server does not say.
        completion_tokens: Generated tokens, thinking included; None where the server does not say.
        cached_tokens: Prompt tokens that came from a cache; None where the server does not say.
        latency_s: Seconds of the request alone.
        address: Who answered, as a URL.
        thinking: What the model thought before it answered; empty where it did not.
        model: The model's name as the server gives it; empty where it gives none.
        refused: Whether `content` is the model's refusal, which the server marked as one.
        opened_in_prompt: Whether the thinking was closed but not opened: the chat template opens
            it.
    """

    content: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    latency_s: float
    address: str
    thinking: str = ""
    model: str = ""
    refused: bool = False
    opened_in_prompt: bool = False

    @property
    def failed(self) -> bool:
        """Whether the attempt failed: it ended in neither of the two ways of an answer."""
        return self.finish_reason not in (STOP, LENGTH)


def split_thinking(text: str) -> tuple[str, str, bool]:
    """Split a model's text into its answer and its thinking.

    Everything up to the last closing tag is thinking, with or without an opening one: some chat
    templates open it in the prompt. A tag in backticks is a mention and stays.

    Returns:
        The answer, the thinking, and whether the thinking was never closed.
    """
    if "</" in text or "[/THINK]" in text or "◁/" in text:
        closings = list(_CLOSING.finditer(text))
        if closings:
            last = closings[-1]
            thinking = _OPENING.sub("", text[: last.start()], count=1)
            return text[last.end() :].strip(), thinking.strip(), False
    if "<|channel|>" in text and _CHANNEL_OPENING.match(text):
        finals = list(_CHANNEL.finditer(text))
        if not finals:
            return "", _CHANNEL_MARK.sub(" ", text).strip(), True
        final = finals[-1]
        thinking = _CHANNEL_MARK.sub(" ", text[: final.start()]).strip()
        return _CHANNEL_MARK.sub("", text[final.end() :]).strip(), thinking, False
    if opening := _OPENING.match(text):
        return "", text[opening.end() :].strip(), True
    return text, "", False


def read_chat(answer: Any, *, latency_s: float, address: str) -> Reply:
    """Read a chat completion, or a completion of text.

    Raises:
        EndpointError: `answer` is neither.
    """
    try:
        choice = answer["choices"][0]
        message = choice.get("message")
        if message is None:
            message = {"content": choice["text"]}
        content, thinking = _texts(message.get("content"))
        thinking += _thinking_of(message)
        finish = choice.get("finish_reason") or STOP
        usage = answer.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        counts = (
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            details.get("cached_tokens"),
        )
        model, refusal = answer.get("model"), message.get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise not_an_answer(answer, address) from None
    if not isinstance(finish, str):
        raise not_an_answer(answer, address)
    prompt, completion, cached = map(_count, counts)
    refused = not content and isinstance(refusal, str) and bool(refusal.strip())
    raw = Reply(
        refusal if refused else content, finish, prompt, completion, cached, latency_s, address,
        thinking, model if isinstance(model, str) else "", refused,
    )  # fmt: skip
    return _without_thinking(raw)


def read_generate(
    answer: Any, *, latency_s: float, address: str, prompt_tokens: int | None
) -> Reply:
    """Read TGI's answer to ``/generate``.

    Raises:
        EndpointError: `answer` is none.
    """
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    try:
        content = answer["generated_text"]
        details = answer.get("details") or {}
        finish = details.get("finish_reason") or STOP
        completion = _count(details.get("generated_tokens"))
    except (TypeError, KeyError, AttributeError):
        raise not_an_answer(answer, address) from None
    if not isinstance(content, str) or not isinstance(finish, str):
        raise not_an_answer(answer, address)
    raw = Reply(content, finish, prompt_tokens, completion, None, latency_s, address)
    return _without_thinking(raw)


def _without_thinking(raw: Reply) -> Reply:
    """`raw` as the server sent it, its thinking apart, its ``finish_reason`` a known one."""
    content, tagged, unclosed = split_thinking(raw.content)
    finish = _FINISH.get(raw.finish_reason.lower(), raw.finish_reason)
    if not tagged and not raw.thinking and content is raw.content and finish == raw.finish_reason:
        return raw
    return replace(
        raw,
        content=content,
        finish_reason=LENGTH if unclosed and finish == STOP else finish,
        thinking="\n\n".join(filter(None, (raw.thinking.strip(), tagged))),
        opened_in_prompt=bool(tagged) and not unclosed and not _OPENS.match(raw.content),
    )


def _texts(content: Any) -> tuple[str, str]:
    """The (answer, thinking) of a message's content: text, parts, or nothing."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise ValueError
    answer, thinking = "", ""
    for part in content:
        if isinstance(part, str):
            answer += part
            continue
        kind = str(part.get("type") or "text")
        if "think" in kind or "reason" in kind:
            inner = part.get("thinking") or part.get("text") or part.get("reasoning")
            thinking += _texts(inner)[0]
        elif "text" in kind:
            answer += str(part.get("text") or "")
    return answer, thinking


def _thinking_of(message: Mapping[str, Any]) -> str:
    """The thinking in a message's fields of its own; the first that has any."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        text = message.get(name)
        if isinstance(text, str) and text.strip():
            return text
    details = message.get("reasoning_details")
    if isinstance(details, list):
        parts = [item for item in details if isinstance(item, dict)]
        return "".join(str(item.get("text") or item.get("summary") or "") for item in parts)
    return ""


def _count(value: Any) -> int | None:
    """A number of tokens, or None for a value that cannot be one: it would enter sums and caps."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def not_an_answer(answer: Any, address: str) -> EndpointError:
    """The error for a 200 that holds no completion."""
    return EndpointError(
        f"{address} answered 200 with something that is not a completion: {str(answer)[:200]!r}; "
        "check that the address is a chat completions endpoint",
        status=200,
    )


def decode(raw: bytes, content_type: str) -> Any:
    """Decode an answer's body: JSON, with a byte order mark or blank space before it, or the events
    of a gateway that always streams, as one answer.

    Raises:
        ValueError: It is neither.
        ConnectionError: The stream ends before the answer does.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    text = raw.removeprefix(b"\xef\xbb\xbf").strip()
    if "event-stream" in content_type or text.startswith((b"data:", b":", b"event:")):
        return _joined(_events(text))
    return orjson.loads(text)


def _events(raw: bytes) -> Iterable[Any]:
    """The JSON of each event's data, and None for the mark of the end."""
    for line in raw.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                yield None
            elif data:
                yield orjson.loads(data)


def _joined(events: Iterable[Any]) -> JsonObject:
    """One answer from the events of a stream."""
    whole: JsonObject = {}
    content, thinking, finish, complete = "", "", None, False
    for event in events:
        if event is None:
            complete = True
            continue
        if not isinstance(event, dict):
            raise ValueError("an event is no object")
        if event.get("error"):
            return event
        for key in ("model", "usage", "id"):
            whole[key] = event.get(key) or whole.get(key)
        for choice in (event.get("choices") or [])[:1]:
            delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            answer, thoughts = _texts(delta.get("content"))
            content += answer
            thinking += thoughts + _thinking_of(delta)
            finish = choice.get("finish_reason") or finish
    if not complete and finish is None:
        raise ConnectionError("the stream ended before its answer did")
    message = {"content": content, "reasoning_content": thinking}
    return {**whole, "choices": [{"message": message, "finish_reason": finish}]}
