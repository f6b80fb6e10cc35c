"""What a refusal is: read from the status, and from the body where the status does not tell.

Servers and gateways use one status for many things (429 for a busy minute and for an empty account,
403 for a wrong key and for one moderated conversation), and some answer 200 with an error inside.
Here a status and a body become one kind; what follows from a kind is decided in `endpoint`."""

from __future__ import annotations

import email.utils
import html
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

from hubkit.errors import EndpointError
from hubkit.untrusted import number_of

KINDS = {
    "credit": "the account has no credit or quota left",
    "daily": "the quota of a day or a month is used up",
    "moderation": "this conversation was flagged",
    "too_long": "prompt and answer exceed the window",
    "roles": "the chat template refuses these roles",
    "parameter": "a sampling key is not supported",
    "policy": "the account's settings exclude every provider",
    "unknown_model": "no such model",
    "not_implemented": "the server has no such route",
}
_LONGEST_WORDS = 300
_READ_BYTES = 20_000

# The first that matches counts. Each is matched against the lower-cased body.
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.DOTALL))
    for kind, pattern in (
        (
            "too_long",
            r"context_length_exceeded|exceed_context_size|context_window_exceeded|"
            r"maximum context length|max(imum)? model length|maximum (input|prompt) length|"
            r"exceeds? the (available|model'?s|maximum) (context|input|model)|"
            r"context (size|length|window) (has been |was |is )?exceeded|"
            r"(context|input|prompt|request|messages?)[^.]{0,40} (is|are|was) too (long|large)|"
            r"prompt is too long|input is too long|too many (input )?tokens|"
            r"longer than the (maximum )?model|exceeds? (the )?(context|max_model_len|n_ctx)|"
            r"must have less than \d+ tokens|input token count[^.]*exceeds|"
            r"reduce (your |the )?(length of the )?(prompt|messages|input)|"
            r"inputs?\W{0,3}(tokens|must have)[^.]{0,80}max_new_tokens|\bmax_total_tokens\b",
        ),
        (
            "moderation",
            r"flagged by|moderation|content_filter|content[ _]management|content[ _]policy|"
            r"responsibleaipolicy|safety (system|filter)|\bguardrail|data_inspection_failed|"
            r"usage[ _-]polic(y|ies) violation|prohibited_content",
        ),
        (
            "daily",
            r"per[-_ ]?day|perday|daily|per month|monthly|\((tpd|rpd)\)|tokens per day",
        ),
        (
            "credit",
            r"insufficient[_ ](quota|credits?|balance|funds)|exceeded your current quota|"
            r"credit balance|out of credits?|no credits?|used all available credits|"
            r"billing[_ ](hard[_ ])?(limit|not active)|included credits|payment required|"
            r"never purchased credits|add (more )?(credits|funds)|exceeded_current_quota|"
            r"account (is )?(suspended|deactivated)|spending limit|arrear",
        ),
        (
            "policy",
            r"data policy|privacy settings|no (allowed )?(endpoints|providers)[^.]*"
            r"(match|available|support)|guardrail restrictions",
        ),
        (
            "roles",
            r"roles? must alternate|system role (is )?not supported|"
            r"(developer|system) (instruction|message|role)[^.]{0,30}not (supported|enabled)|"
            r"(conversation|first|last)[^.]{0,30} must (start|begin) with (a |the )?.?user|"
            r"does not support .?system.? (role|messages?)|only user(,| and| or) assistant|"
            r"unexpected role|unsupported role|role .?system.? is not",
        ),
        (
            "unknown_model",
            r"model[_ ]not[_ ]found|not a valid model|unknown model|invalid model|"
            r"model .{0,120}(does not exist|not exist|is not found|not found|not supported)|"
            r"no (such )?model|does not exist or you do not have access",
        ),
        (
            "parameter",
            r"unsupported[_ ](parameter|value)|unknown_parameter|unrecognized request argument|"
            r"cannot both be specified|extra inputs are not permitted|extra_forbidden|"
            r"(is|are) not (supported|permitted|allowed) (with|for|by) this model|"
            r"does not support[^.]*(parameter|argument)|penalty is not enabled",
        ),
    )
)
_PER_MINUTE = re.compile(r"per[-_ ]?min|\((tpm|rpm)\)|per[-_ ]?second|rate.limit(ed)?[_ ]")
_WINDOW = re.compile(
    r"(?:maximum context length is|available context size \(|maximum model length of|"
    r"model's context length of|context (?:window|length) (?:of|is)|max_model_len(?:gth)?\W+|"
    r"max_new_tokens` must be <=|\"n_ctx\":)\s*(\d{2,8})"
)
_WAIT = re.compile(
    r"(?:retrydelay\W{1,6}|(?:try again|retry|wait)(?: again)?(?: in| after)? )"
    r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+) ?(ms|s))?"
)


def server_words(raw: bytes) -> str:
    """The server's own words for an error, in one line, whichever of the usual shapes it uses."""
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError:
        text = raw[:_READ_BYTES].decode("utf-8", "replace")
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        if title:
            text = html.unescape(title[1])
        return " ".join(text[:1000].split())[:_LONGEST_WORDS] or "no further words"
    return " ".join(_words(answer).split())[:_LONGEST_WORDS] or "no further words"


def _words(answer: Any, depth: int = 0) -> str:
    if isinstance(answer, list) and answer and depth < 6:
        return "; ".join(_words(item, depth + 1) for item in answer[:3])
    if not isinstance(answer, dict) or depth >= 6:
        return str(answer)
    for key in ("error", "message", "detail", "msg", "error_description"):
        if answer.get(key):
            words = _words(answer[key], depth + 1)
            if key == "msg" and answer.get("loc"):
                words = f"{'.'.join(map(str, answer['loc']))}: {words}"
            return words + _upstream(answer.get("metadata"), depth)
    return str(answer)


def _upstream(metadata: Any, depth: int) -> str:
    """What a gateway quotes of the server that it asked."""
    if not isinstance(metadata, dict):
        return ""
    parts = []
    if raw := metadata.get("raw"):
        try:
            parts.append(_words(orjson.loads(raw), depth + 1))
        except (orjson.JSONDecodeError, TypeError):
            parts.append(str(raw))
    if reasons := metadata.get("reasons"):
        parts.append(", ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons))
    if provider := metadata.get("provider_name"):
        parts.append(f"from {provider}")
    return f" ({'; '.join(parts)})" if parts else ""


def refusal(
    url: str, status: int, headers: Mapping[str, str], raw: bytes, *, inside_200: bool = False
) -> EndpointError:
    """The error for an answer that is a refusal, with its kind, words and requested wait.

    Args:
        url: What was asked.
        status: The HTTP status, or the code in the body where that of the answer is 200.
        headers: The answer's headers.
        raw: The answer's body.
        inside_200: Whether the answer's own status was 200.
    """
    words = server_words(raw)
    if 300 <= status < 400:
        words = (
            f"it redirects to {headers.get('location', 'nowhere')}; "
            "give that address, if you trust it"
        )
    text = raw[:_READ_BYTES].decode("utf-8", "replace").lower()
    window = _WINDOW.search(text)
    return EndpointError(
        f"{url} answered {'200 with error ' if inside_200 else ''}{status}: {words}",
        status=status,
        retry_after_s=_retry_after(headers, text),
        kind=kind_of(status, text),
        window=int(window[1]) if window else None,
    )


def kind_of(status: int, text: str) -> str:
    """The kind of a refusal, a key of `KINDS`, or an empty string where the status says it all.

    `text` is the body in lower case."""
    if status == 402:
        return "credit"
    if status in (501, 505):
        return "not_implemented"
    if status == 401 or status >= 500:
        return "too_long" if status == 500 and _PATTERNS[0][1].search(text) else ""
    kind = next((kind for kind, pattern in _PATTERNS if pattern.search(text)), "")
    if status == 429:
        if kind == "daily" or (kind == "credit" and "perday" in text):
            return "daily"
        return "credit" if kind == "credit" and not _PER_MINUTE.search(text) else ""
    if kind == "daily":
        return "credit" if _PATTERNS[3][1].search(text) else ""
    if status == 403 and kind not in ("moderation", "credit", "policy"):
        return ""
    if status == 413:
        return "too_long"
    return kind


def error_inside(answer: Any) -> tuple[int, bytes] | None:
    """The (status, body) of an error that came with status 200; None for an answer without one."""
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    choices = answer.get("choices")
    if not error and isinstance(choices, list) and choices and isinstance(choices[0], dict):
        error = choices[0].get("error")
    elif error and choices:
        error = None
    if not error and answer.get("object") == "error":
        error = answer
    if not error:
        return None
    code = error.get("code") or error.get("status") if isinstance(error, dict) else None
    try:
        status = int(code)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        status = _STATUS_OF.get(str(code).lower(), 0)
    if not 400 <= status < 600:
        status = 500
    return status, orjson.dumps({"error": error})


_STATUS_OF = {
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "resource_exhausted": 429,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "unavailable": 503,
}


def _retry_after(headers: Mapping[str, str], text: str) -> float | None:
    """Seconds that the server asks to wait: a header (number or HTTP date), or its words."""
    if value := headers.get("retry-after-ms", "").strip():
        value = f"{number_of(value) or 0} ms"
    value = value.removesuffix(" ms") if value else headers.get("retry-after", "").strip()
    seconds = number_of(value)
    if "retry-after-ms" in headers and seconds is not None:
        seconds /= 1000
    elif value and seconds is None:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            seconds = None
    if seconds is None and (wait := _WAIT.search(text)) and any(wait.groups()):
        hours, minutes, seconds_text, unit = wait.groups()
        seconds = 3600 * int(hours or 0) + 60 * int(minutes or 0)
        seconds += (number_of(seconds_text or "0") or 0) / (1000 if unit == "ms" else 1)
    return None if seconds is None else min(max(seconds, 0.0), 86_400.0)
