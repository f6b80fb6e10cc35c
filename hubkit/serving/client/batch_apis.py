"""The batch APIs of providers: many requests handed in at once, answered within a day at half the
price.

OpenAI's takes a file of requests (``/v1/files``, ``/v1/batches``) and gives a file of results;
Anthropic's takes them in one body (``/v1/messages/batches``). Both give results in any order, and
may leave requests unanswered. Here a batch is submitted, found again, looked at and read; what
follows from that is decided in `batch_queue`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import orjson

from hubkit.errors import EndpointError
from hubkit.serving.client.address import Address
from hubkit.serving.client.batch_ledger import Batch
from hubkit.serving.client.dialects import folded
from hubkit.serving.client.refusals import refusal
from hubkit.serving.client.transport import HttpClient
from hubkit.untrusted import JsonObject, count_in, object_in, text_in

Requests = Mapping[str, Mapping[str, Any]]
"""Bodies of chat requests by their id."""
_CLOCK_SLACK_S = 600.0  # by how much a provider's clock may be behind this one
_ANTHROPIC_VERSION = "2023-06-01"
_ANTHROPIC_TOKENS = 4096  # most tokens of an answer, where the recipe sets no limit
_PAGE = 100


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a batch is at its provider.

    Attributes:
        ended: Whether nothing more is worked on.
        answered: Requests that are answered.
        total: All of them.
        problem: Why it ended without having been worked on, in the provider's words; or empty.
        sources: URLs of its results.
    """

    ended: bool
    answered: int
    total: int
    problem: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """What became of one request: a chat completion, an error, or neither (it expired, or was
    canceled)."""

    id: str
    answer: JsonObject | None = None
    error: EndpointError | None = None


class BatchApi(Protocol):
    """One account's batches."""

    most_bytes: int
    """The largest batch, in bytes of its requests."""

    async def submit(self, batch_id: str, requests: Requests) -> str:
        """Hand `requests` in as the batch that is called `batch_id` here; gives the provider's name
        of it."""
        ...

    async def find(self, batch: Batch, others: Collection[str]) -> tuple[str, bool] | None:
        """The provider's name of a batch whose submission may have been received, and whether it
        is surely ours; None where there is none. `others` are names that it does not have."""
        ...

    async def status(self, name: str) -> BatchStatus:
        """How far the batch called `name` there is."""
        ...

    def results(self, status: BatchStatus) -> AsyncIterator[Item]:
        """What became of its requests, in any order."""
        ...


class OpenAIBatches:
    """``/v1/files`` and ``/v1/batches``, as OpenAI has them and others after it."""

    most_bytes = 100 << 20

    def __init__(self, http: HttpClient, address: Address) -> None:
        self._http, self._address = http, address

    async def submit(self, batch_id: str, requests: Requests) -> str:
        """Upload the requests as a file, and make a batch of it."""
        url = "/v1/chat/completions"
        lines = [
            orjson.dumps({"custom_id": key, "method": "POST", "url": url, "body": body})
            for key, body in requests.items()
        ]
        data, content_type = _form(f"{batch_id}.jsonl", b"\n".join(lines) + b"\n")
        file, _, _ = await self._http.call(
            "POST", self._address.route("/files"), data, {"Content-Type": content_type}
        )
        body = {
            "input_file_id": _text(file, "id"),
            "endpoint": url,
            "completion_window": "24h",
            "metadata": {"hubkit": batch_id},
        }
        created, _, _ = await self._http.post(
            self._address.route("/batches"), body, {"Idempotency-Key": batch_id}
        )
        return _text(created, "id")

    async def find(self, batch: Batch, others: Collection[str]) -> tuple[str, bool] | None:
        """The batch whose metadata hold our name of it."""
        async for entry in _listed(self._http, self._address, "/batches", "after"):
            if text_in(object_in(entry, "metadata"), "hubkit") == batch.id:
                return _text(entry, "id"), True
            if _seconds(entry.get("created_at")) < batch.submitted_at - _CLOCK_SLACK_S:
                break
        return None

    async def status(self, name: str) -> BatchStatus:
        """``completed``, ``expired``, ``failed`` and ``cancelled`` are the ends."""
        entry, _, _ = await self._http.call("GET", self._address.route(f"/batches/{name}"))
        state, counts = _text(entry, "status"), entry.get("request_counts") or {}
        files = [entry.get(key) for key in ("output_file_id", "error_file_id")]
        faults = (entry.get("errors") or {}).get("data") or []
        problem = "; ".join(str(f.get("message") or f.get("code")) for f in faults[:3])
        if state == "failed" and not problem:
            problem = "it failed"
        return BatchStatus(
            state in ("completed", "expired", "failed", "cancelled"),
            int(counts.get("completed") or 0) + int(counts.get("failed") or 0),
            int(counts.get("total") or 0),
            problem if state == "failed" else "",
            tuple(self._address.route(f"/files/{file}/content") for file in files if file),
        )

    async def results(self, status: BatchStatus) -> AsyncIterator[Item]:
        """The lines of both files, answers and errors."""
        for url in status.sources:
            async for line in _records(self._http, url):
                key, response = str(line.get("custom_id")), line.get("response")
                if isinstance(response, dict) and response.get("status_code"):
                    code, body = int(response["status_code"]), response.get("body")
                    if code == 200 and isinstance(body, dict):
                        yield Item(key, answer=body)
                    else:
                        yield self._error(key, code, body)
                elif text_in(fault := object_in(line, "error"), "code") in _UNANSWERED:
                    yield Item(key)
                else:
                    yield self._error(key, 500, {"error": fault})

    def _error(self, key: str, status: int, body: Any) -> Item:
        return Item(key, error=refusal(self._address.url, status, {}, orjson.dumps(body)))


_UNANSWERED = ("batch_expired", "batch_cancelled", "batch_canceled")
_STATUS_OF = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402,
    "permission_error": 403, "not_found_error": 404, "request_too_large": 413,
    "rate_limit_error": 429, "overloaded_error": 529,
}  # fmt: skip


class AnthropicBatches:
    """``/v1/messages/batches``. A client cannot name a batch there: one whose submission may
    have been received is known by its requests, once it has ended."""

    most_bytes = 200 << 20

    def __init__(self, http: HttpClient, address: Address) -> None:
        self._http, self._address = http, address

    async def submit(self, batch_id: str, requests: Requests) -> str:
        """Send the requests in one body."""
        entries = [
            {"custom_id": key, "params": message_params(body)} for key, body in requests.items()
        ]
        created, _, _ = await self._http.post(
            self._address.route("/messages/batches"),
            {"requests": entries},
            {"Idempotency-Key": batch_id},
        )
        return _text(created, "id")

    async def find(self, batch: Batch, others: Collection[str]) -> tuple[str, bool] | None:
        """The batch of as many requests, made after ours was to be submitted, whose results have
        our ids. One that has no results yet is not surely ours."""
        async for entry in _listed(self._http, self._address, "/messages/batches", "after_id"):
            if _seconds(entry.get("created_at")) < batch.submitted_at - _CLOCK_SLACK_S:
                break
            name, status = _text(entry, "id"), self._status_of(entry)
            if name in others or status.total != len(batch.requests):
                continue
            if not status.ended or await self._holds(status, batch):
                return name, status.ended
        return None

    async def _holds(self, status: BatchStatus, batch: Batch) -> bool:
        async for item in self.results(status):
            return item.id in batch.requests
        return False

    async def status(self, name: str) -> BatchStatus:
        """``ended`` is the end."""
        entry, _, _ = await self._http.call("GET", self._address.route(f"/messages/batches/{name}"))
        return self._status_of(entry)

    def _status_of(self, entry: JsonObject) -> BatchStatus:
        # The results are asked for at the address that was given, not at the URL in the answer:
        # the key goes nowhere else.
        ended = entry.get("processing_status") == "ended"
        url = self._address.route(f"/messages/batches/{_text(entry, 'id')}/results")
        given = object_in(entry, "request_counts")
        counts = {key: count_in(given, key) for key in given}
        total = sum(counts.values())
        answered = total - counts.get("processing", 0)
        return BatchStatus(ended, answered, total, sources=(url,) if ended else ())

    async def results(self, status: BatchStatus) -> AsyncIterator[Item]:
        """The lines of its results."""
        for url in status.sources:
            async for line in _records(self._http, url):
                key, result = str(line.get("custom_id")), object_in(line, "result")
                kind = result.get("type")
                if kind == "succeeded":
                    yield Item(key, answer=completion_of(object_in(result, "message")))
                elif kind == "errored":
                    error = object_in(result, "error")
                    inner = object_in(error, "error") or error
                    code = _STATUS_OF.get(str(inner.get("type")), 500)
                    words = orjson.dumps({"error": inner})
                    yield Item(key, error=refusal(self._address.url, code, {}, words))
                else:
                    yield Item(key)


def api_of(kind: str, http: HttpClient, address: Address) -> BatchApi:
    """The API of a `kind` (``openai``, ``anthropic``) at an address."""
    return (AnthropicBatches if kind == "anthropic" else OpenAIBatches)(http, address)


def headers_of(kind: str, token: str | None, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with which a `kind` of API is asked."""
    if kind != "anthropic":
        return {**({"Authorization": f"Bearer {token}"} if token else {}), **headers}
    provider_headers = {
        "anthropic-version": _ANTHROPIC_VERSION,
        **({"x-api-key": token} if token else {}),
    }
    return {**provider_headers, **headers}


def message_params(body: Mapping[str, Any]) -> JsonObject:
    """The body of a chat request as parameters of Anthropic's messages API."""
    left_out = ("messages", "stream", "stop", "max_tokens", "max_completion_tokens", "seed")
    params = {key: value for key, value in body.items() if key not in left_out}
    messages = list(body["messages"])
    if all(message["role"] == "system" for message in messages):
        messages = folded(messages)
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    params["messages"] = [m for m in messages if m["role"] != "system"]
    params["max_tokens"] = (
        body.get("max_tokens") or body.get("max_completion_tokens") or _ANTHROPIC_TOKENS
    )
    if system:
        params["system"] = system
    if body.get("stop"):
        params["stop_sequences"] = list(body["stop"])
    return params


def completion_of(message: Mapping[str, Any]) -> JsonObject:
    """A message of Anthropic's API as a chat completion."""
    usage = message.get("usage") or {}
    cached = usage.get("cache_read_input_tokens") or 0
    prompt = usage.get("input_tokens")
    if isinstance(prompt, int):
        prompt += cached + (usage.get("cache_creation_input_tokens") or 0)
    return {
        "model": message.get("model"),
        "choices": [
            {
                "message": {"role": "assistant", "content": message.get("content")},
                "finish_reason": message.get("stop_reason"),
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": usage.get("output_tokens"),
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


async def _listed(
    http: HttpClient, address: Address, path: str, cursor: str
) -> AsyncIterator[JsonObject]:
    """The account's batches, the newest first."""
    url = address.route(path)
    query = f"{'&' if '?' in url else '?'}limit={_PAGE}"
    while True:
        page, _, _ = await http.call("GET", url + query)
        entries = [entry for entry in page.get("data") or [] if isinstance(entry, dict)]
        for entry in entries:
            yield entry
        if not page.get("has_more") or not entries:
            return
        last = f"&{cursor}={entries[-1].get('id')}"
        query = query.partition(f"&{cursor}=")[0] + last


async def _records(http: HttpClient, url: str) -> AsyncIterator[JsonObject]:
    """The JSON objects of a file of lines; what is no object is passed over, so that its request
    counts as unanswered."""
    async for line in http.lines(url):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(record, dict):
            yield record


def _form(name: str, content: bytes) -> tuple[bytes, str]:
    """(body, content type) of a form that uploads a file for a batch."""
    boundary = uuid.uuid4().hex
    start = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    body = start.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def _text(answer: Any, key: str) -> str:
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value:
        raise EndpointError(
            f"the batch API answered without {key!r}: {str(answer)[:200]!r}", status=200
        )
    return value


def _seconds(created_at: Any) -> float:
    """A time of creation in seconds since 1970, from a number or an ISO date; now where it is
    neither."""
    if isinstance(created_at, (int, float)):
        return float(created_at)
    try:
        return datetime.fromisoformat(str(created_at)).timestamp()
    except ValueError:
        return time.time()
