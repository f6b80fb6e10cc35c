"""TGI's own OpenAPI file, driven by schemathesis against the embedded engine: no 5xx, every body
valid.

What is left out or amended, and why, is `AMENDED` and `EXCLUDED_CHECKS`; every route of the file is
called."""

from __future__ import annotations

import copy
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.engine_server import shared_engine
from support.paths import SHARED_DATA

OPENAPI = SHARED_DATA / "tgi" / "openapi.json"
if not OPENAPI.exists():
    pytest.skip(f"{OPENAPI} is not here", allow_module_level=True)
schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
from hypothesis import HealthCheck, settings  # noqa: E402

_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
# (path, status) → what the file does not say and TGI's router does.
AMENDED = {
    ("/tokenize", "422"): "a body that is not a request is refused, as everywhere",
    ("/chat_tokenize", "422"): "likewise; templates may also refuse messages",
    (
        "/generate_stream",
        "422",
    ): "the file says text/event-stream; its own client parses the body as JSON",
}
EXCLUDED_CHECKS = {
    "positive_data_acceptance": (
        "TGI's validation is stricter than its schema (top_p < 1, at most 4 stops, tools, …)"
    ),
    "negative_data_rejection": "unknown keys are ignored, as by TGI's own deserialiser",
    "unsupported_method": "the file does not describe what other methods answer",
    "missing_required_header": "no header is required",
}
_FEW_TOKENS = 3


def amended() -> dict[str, Any]:
    """The file, with `AMENDED`; without the schemas of streams, which schemathesis takes for the
    whole event while TGI means its data: `test_every_event_of_a_stream_is_valid` checks those."""
    spec = json.loads(OPENAPI.read_text("utf-8"))
    for operations in spec["paths"].values():
        for operation in operations.values():
            operation["responses"]["200"].get("content", {}).get("text/event-stream", {}).pop(
                "schema", None
            )
    _as_openapi_3_0(spec)
    for path, status in AMENDED:
        spec["paths"][path]["post"]["responses"][status] = {
            "description": "refused",
            "content": _ERROR,
        }
    return spec


def _as_openapi_3_0(node: Any) -> None:
    """In place: the file says 3.0 and writes exclusive bounds as numbers, which only 3.1 knows."""
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list):
            _as_openapi_3_0(child)
    if isinstance(node, dict) and isinstance(node.get("exclusiveMinimum"), int | float):
        node["minimum"], node["exclusiveMinimum"] = node["exclusiveMinimum"], True


schema = schemathesis.openapi.from_dict(amended())


def _shortened(body: Any) -> Any:
    """The same request, but never hundreds of tokens long: the tests are about the contract, not
    about patience.
    """
    body = copy.deepcopy(body)
    if isinstance(body, dict):
        if "messages" in body or "prompt" in body:
            _cap(body, "max_tokens")
        elif isinstance(body.get("parameters", {}), dict):
            _cap(body.setdefault("parameters", {}), "max_new_tokens")
    return body


def _cap(parameters: dict[str, Any], key: str) -> None:
    value = parameters.get(key)
    if value is None or (isinstance(value, int) and value > _FEW_TOKENS):
        parameters[key] = _FEW_TOKENS


@schema.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_route(case) -> None:
    case.body = _shortened(case.body)
    excluded = [getattr(schemathesis.checks, name, None) for name in EXCLUDED_CHECKS]
    excluded += [
        check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in EXCLUDED_CHECKS
    ]
    case.call_and_validate(
        base_url=shared_engine().url(), excluded_checks=[check for check in excluded if check]
    )


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (
            "/generate_stream",
            {"inputs": "Hi", "parameters": {"max_new_tokens": 4, "top_n_tokens": 2}},
            "StreamResponse",
        ),
        (
            "/",
            {"inputs": "Hi", "stream": True, "parameters": {"max_new_tokens": 4}},
            "StreamResponse",
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "Hi"}],
                "stream": True,
                "max_tokens": 4,
                "logprobs": True,
            },
            "ChatCompletionChunk",
        ),
        ("/v1/completions", {"prompt": ["Hi", "Ho"], "stream": True, "max_tokens": 4}, "Chunk"),
    ],
)
def test_every_event_of_a_stream_is_valid(path: str, body: dict[str, Any], kind: str) -> None:
    from jsonschema import Draft4Validator

    spec = amended()
    validator = Draft4Validator(
        {"$ref": f"#/components/schemas/{kind}", "components": _nullable(spec["components"])}
    )
    request = urllib.request.Request(shared_engine().url() + path, data=json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [
            line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")
        ]
    assert len(events) >= 4
    for event in events:
        if event != "[DONE]":
            validator.validate(json.loads(event))


def _nullable(node: Any) -> Any:
    """OpenAPI 3.0's `nullable` in plain JSON Schema; its boolean-or-number `exclusiveMinimum` is
    left out.
    """
    if isinstance(node, list):
        return [_nullable(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        k: _nullable(v)
        for k, v in node.items()
        if k not in ("nullable", "exclusiveMinimum", "example")
    }
    return {"anyOf": [kept, {"type": "null"}]} if node.get("nullable") is True else kept
