"""The YAML at the head of a README: read it, judge it, and what follows from it for a repository's
tags.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

import yaml

from hubkit.bounded_yaml import parse_yaml
from hubkit.untrusted import JsonObject

MAX_YAML_BYTES = 2 * 2**20
_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class CardError(ValueError):
    """The YAML of a card cannot be read; the message says why."""


def split(text: str) -> tuple[str | None, str]:
    """The YAML block (None where there is none) and the text below it."""
    match = _FRONT.match(text)
    return (match[1], text[match.end() :]) if match else (None, text)


def metadata(text: str) -> JsonObject:
    """The metadata of a README as JSON values; empty where there is none. Raises `CardError`."""
    block, _ = split(text)
    if block is None or not block.strip():
        return {}
    if len(block) > MAX_YAML_BYTES:
        raise CardError(f"the metadata is larger than {MAX_YAML_BYTES} bytes")
    try:
        value = parse_yaml(block)
    except yaml.YAMLError as error:
        raise CardError(" ".join(str(error).split())[:300]) from error
    if not isinstance(value, dict):
        raise CardError("the metadata must be a mapping of keys to values")
    return {str(key): _plain(item) for key, item in value.items()}


def _plain(value: Any) -> Any:
    """`value` as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def safe_metadata(text: str) -> JsonObject:
    """As `metadata`, but empty for a card that cannot be read."""
    try:
        return metadata(text)
    except CardError:
        return {}


def tags_of(kind: str, card: JsonObject, paths: list[str]) -> list[str]:
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
