"""The YAML at the head of a README: read it, judge it, and what follows from it for a repository's
tags.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

import yaml
from starlette.responses import JSONResponse, PlainTextResponse, Response

from hubkit.local_hub.api.http import Call, field

MAX_YAML_BYTES = 2 * 2**20
_MAX_NODES = 200_000
_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda
    cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
    intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0
    postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community
    gemma unknown other
    """.split()  # noqa: SIM905 - one word a word
)
"""The identifiers of licences that the Hub accepts in a card."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CardError(ValueError):
    """The YAML of a card cannot be read; the message says why."""


def split(text: str) -> tuple[str | None, str]:
    """The YAML block (None where there is none) and the text below it."""
    match = _FRONT.match(text)
    return (match[1], text[match.end() :]) if match else (None, text)


def metadata(text: str) -> dict[str, Any]:
    """The metadata of a README as JSON values; empty where there is none. Raises `CardError`."""
    block, _ = split(text)
    if block is None or not block.strip():
        return {}
    if len(block) > MAX_YAML_BYTES:
        raise CardError(f"the metadata is larger than {MAX_YAML_BYTES} bytes")
    try:
        value = yaml.load(block, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CardError(" ".join(str(error).split())[:300]) from error
    if not isinstance(value, dict):
        raise CardError("the metadata must be a mapping of keys to values")
    budget = [_MAX_NODES]
    result = _plain(value, budget, 0)
    assert isinstance(result, dict)  # a mapping stays a mapping
    return result


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    """As JSON. Aliases can make a few bytes of YAML unfold into billions of values, so they are
    counted.
    """
    budget[0] -= 1
    if budget[0] < 0 or depth > 60:
        raise CardError("the metadata unfolds into too many values")
    if isinstance(value, dict):
        return {str(key): _plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, budget, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def safe_metadata(text: str) -> dict[str, Any]:
    """As `metadata`, but empty for a card that cannot be read."""
    try:
        return metadata(text)
    except CardError:
        return {}


def validate(call: Call) -> Response:
    """POST /api/validate-yaml."""
    body = call.json()
    content, kind = field(body, "content", str), field(body, "repoType", str, "model")
    errors: list[str] = []
    warnings: list[str] = []
    try:
        card = metadata(content)
    except CardError as error:
        card, errors = {}, [str(error)]
    if not card and not errors:
        warnings.append("empty or missing yaml metadata in repo card")
    errors += _problems(card, kind)
    if call.request.headers.get("accept") == "text/plain":
        lines = [f"- Error: {message}" for message in errors] + [
            f"- Warning: {message}" for message in warnings
        ]
        return PlainTextResponse("\n".join(lines), 400 if errors else 200)
    answer = {
        "errors": [{"message": m} for m in errors],
        "warnings": [{"message": m} for m in warnings],
    }
    return JSONResponse(
        {**answer, "error": "; ".join(errors)} if errors else answer, 400 if errors else 200
    )


def _problems(card: dict[str, Any], kind: str) -> list[str]:
    found = []
    names = card.get("license")
    for name in names if isinstance(names, list) else [names]:
        if name is not None and (not isinstance(name, str) or name not in _LICENSES):
            found.append(f'"license" must be one of [{", ".join(sorted(_LICENSES))}]')
    for key in ("tags", "datasets", "language"):
        if not isinstance(card.get(key), (list, str, type(None))):
            found.append(f'"{key}" must be a string or a list')
    if isinstance(card.get("tags"), list) and not all(isinstance(tag, str) for tag in card["tags"]):
        found.append('"tags" must be a list of strings')
    results = card.get("model-index")
    if kind == "model" and results is not None and not isinstance(results, list):
        found.append('"model-index" must be a list')
    return found


def tags_of(kind: str, card: dict[str, Any], paths: list[str]) -> list[str]:
    """The tags that a repository is listed under."""
    tags = [str(card["library_name"])] if isinstance(card.get("library_name"), str) else []
    tags += _format_tags(paths) if kind == "model" else []
    tags += _strings(card.get("tags"))
    if kind == "model":
        tags += _strings(card.get("pipeline_tag")) + _strings(card.get("language"))
        tags += [f"dataset:{name}" for name in _strings(card.get("datasets"))]
        tags += [f"base_model:{name}" for name in _strings(card.get("base_model"))]
        relation = card.get("base_model_relation")
        tags += (
            [f"base_model:{relation}:{n}" for n in _strings(card.get("base_model"))]
            if relation
            else []
        )
    if kind == "dataset":
        for key in ("task_categories", "task_ids", "language", "size_categories"):
            tags += [f"{key}:{value}" for value in _strings(card.get(key))]
    tags += [f"license:{name}" for name in _strings(card.get("license"))]
    return list(dict.fromkeys([*tags, "region:us"]))


def _format_tags(paths: list[str]) -> list[str]:
    names = {path.rpartition("/")[2] for path in paths}
    tags = ["safetensors"] if any(name.endswith(".safetensors") for name in names) else []
    tags += ["gguf"] if any(name.endswith(".gguf") for name in names) else []
    return tags + (["tensorboard"] if any("tfevents" in name for name in names) else [])


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [
        str(item) for item in values if isinstance(item, (str, int)) and not isinstance(item, bool)
    ]
