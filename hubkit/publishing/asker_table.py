"""A table of askers: every one that was measured, next to people, as a dataset with its page.

Takes scorecards that ``hubkit eval asker`` wrote (the evidence); gives a folder in which each
figure comes from one of them. Nothing can be typed in: rows are read from the evidence whenever the
table is built, evidence is named after what it holds, and only scorecards of the same contexts,
seed and sampling share a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubkit.data.parquet import disk_errors
from hubkit.errors import SourceError
from hubkit.metrics import scorecards
from hubkit.metrics.definitions import card_definitions
from hubkit.metrics.scorecards import BASE, PEOPLE, Row, Scorecard
from hubkit.publishing import markdown
from hubkit.publishing import scorecard as shown
from hubkit.recipe import digest
from hubkit.untrusted import JsonObject

EVIDENCE, ROWS, PAGE = "evidence", "askers.jsonl", "README.md"
_PICTURE, _DIGEST_CHARS = "scorecard-{}.png", 12
_PROTOCOL = ("contexts", "contexts_sha256", "other_contexts", "ends", "openings", "context_chars",
             "sampling", "seed", "resamples", "embedder")  # fmt: skip
_FRONT = """---
pretty_name: Askers, measured
tags: [user-simulator, hubkit]
configs:
  - config_name: default
    data_files: askers.jsonl
---

# Askers, measured

Models that play the human side of a conversation, next to people. Every figure is in a scorecard
under `evidence/`, which `hubkit eval asker` or a run of a recipe wrote; `askers.jsonl` has a row a
measure. `hubkit askers FOLDER --add SCORECARD` adds more; other contexts, another seed or other
sampling make a table of their own.
"""


@dataclass(frozen=True)
class Protocol:
    """What scorecards in one table share: `digest` of their settings, and all of their rows."""

    digest: str
    card: Scorecard
    evidence: Mapping[str, str]
    """Row → its evidence file."""


def add(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Take scorecards into the table in `folder` as evidence, each once; of a run's results, the
    scorecard in them.

    Raises:
        SourceError: A file is no scorecard of this version, or its rows contradict others."""
    new = []
    for file in files:
        content = _scorecard(_read(file))
        _card(content, file)
        path = folder / EVIDENCE / f"{hashlib.sha256(content).hexdigest()[:16]}.json"
        if not path.exists():
            new.append((path, content))
    _protocols([*_evidence(folder), *new])
    with disk_errors(folder):
        for path, content in new:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return [path for path, _ in new]


def build(folder: Path) -> list[Protocol]:
    """Write the table's rows, pictures and page, out of the evidence alone.

    Raises:
        SourceError: There is no evidence, or a file is not what its name says."""
    protocols = _protocols(_evidence(folder))
    if not protocols:
        raise SourceError(
            f"{folder} holds no evidence; measure an asker with `hubkit eval asker REPO --out "
            "CARD`, then add CARD/scorecard.json with --add"
        )
    lines = [json.dumps(row, ensure_ascii=False) for p in protocols for row in rows(p)]
    page = [_FRONT]
    with disk_errors(folder):
        for stale in folder.glob(_PICTURE.format("?" * _DIGEST_CHARS)):
            stale.unlink()
        for protocol in protocols:
            picture = _PICTURE.format(protocol.digest)
            (folder / picture).write_bytes(scorecards.picture(protocol.card))
            page.append(_section(protocol, picture))
        (folder / ROWS).write_text("\n".join(lines) + "\n", "utf-8")
        (folder / PAGE).write_text("\n".join(page), "utf-8")
    return protocols


def rows(protocol: Protocol) -> list[JsonObject]:
    """Every figure of a table: whose, of which measure, with its interval and its evidence."""
    settings = protocol.card.settings
    return [
        {
            "protocol": protocol.digest,
            "asker": row.name,
            "kind": _kind(row, settings),
            "repo_id": (row.model or {}).get("repo_id"),
            "revision": (row.model or {}).get("revision"),
            "measure": measure,
            **{key: row.values[measure].get(key) for key in ("value", "low", "high", "n")},
            "seed": settings["seed"],
            "hubkit": settings["hubkit"],
            "evidence": protocol.evidence[row.name],
        }
        for row in protocol.card.rows
        for measure in card_definitions()
        if measure in row.values
    ]


def _kind(row: Row, settings: Mapping[str, Any]) -> str:
    if row.name == PEOPLE:
        return PEOPLE
    kind = "prompted base" if row.name == BASE else "asker"
    return str(settings.get("kinds", {}).get(row.name, kind))


def _evidence(folder: Path) -> list[tuple[Path, bytes]]:
    """What is kept, each checked against its name."""
    evidence = []
    for path in sorted((folder / EVIDENCE).glob("*.json")):
        content = _read(path)
        if hashlib.sha256(content).hexdigest()[:16] != path.stem:
            raise SourceError(
                f"{path} is not what its name says: it was changed after it was added; put the "
                "scorecard back as `hubkit eval asker` wrote it, or remove it"
            )
        evidence.append((path, content))
    return evidence


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None


def _scorecard(content: bytes) -> bytes:
    """The scorecard in a run's results; anything else as it is."""
    try:
        data = json.loads(content)
    except ValueError:
        return content
    if not isinstance(data, dict) or "rows" in data or not isinstance(data.get("scorecard"), dict):
        return content
    return (json.dumps(data["scorecard"], indent=1, ensure_ascii=False) + "\n").encode()


def _card(content: bytes, path: Path) -> Scorecard:
    try:
        data = json.loads(content)
        card = scorecards.of({"rows": data["rows"], "settings": data["settings"]})
    except (ValueError, KeyError, TypeError):
        raise SourceError(
            f"{path} is no scorecard; give the scorecard.json that `hubkit eval asker --out` "
            "writes, or the results.json of a run"
        ) from None
    missing = [key for key in (*_PROTOCOL, "hubkit") if key not in card.settings]
    if not isinstance(card.settings.get("data"), Mapping):
        missing.append("data")
    if missing or not card.rows or card.rows[0].name != PEOPLE:
        raise SourceError(
            f"{path} does not say {', '.join(missing) or 'what people are like'}: it was written "
            "by an older version; measure again"
        )
    unnamed = [row.name for row in card.rows[1:] if not (row.model or {}).get("revision")]
    if unnamed:
        raise SourceError(
            f"{path}: {', '.join(unnamed)} has no commit, so it cannot be measured again; push "
            "it, and measure it from there"
        )
    return card


def _protocols(evidence: Sequence[tuple[Path, bytes]]) -> list[Protocol]:
    """The scorecards of each protocol as one. Raises `SourceError` where two disagree."""
    groups: dict[str, list[tuple[Path, Scorecard]]] = {}
    for path, content in evidence:
        card = _card(content, path)
        # What a later commit of the data changes of the contexts changes their hash.
        data = [card.settings["data"].get(key) for key in ("repo_id", "split")]
        shared = {key: card.settings[key] for key in _PROTOCOL} | {"data": data}
        groups.setdefault(digest(shared)[:_DIGEST_CHARS], []).append((path, card))
    return [_merged(name, cards) for name, cards in sorted(groups.items())]


def _merged(digest: str, cards: Sequence[tuple[Path, Scorecard]]) -> Protocol:
    merged: dict[str, Row] = {}
    source: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for path, card in cards:
        for row in card.rows:
            name = row.name if row.name == PEOPLE else _name(row, card)
            kinds[name] = _kind(row, card.settings)
            present = merged.get(name)
            if present is None:
                merged[name], source[name] = replace(row, name=name), f"{EVIDENCE}/{path.name}"
            elif _disagree(present, row):
                raise SourceError(
                    f"{path}: {name} has other figures than in {source[name]}, on the same "
                    "contexts; leave one of them out"
                )
    settings = {**cards[0][1].settings, "kinds": kinds}
    ordered = sorted(merged.values(), key=lambda row: (row.name != PEOPLE, row.name))
    return Protocol(digest, Scorecard(ordered, settings), source)


def _name(row: Row, card: Scorecard) -> str:
    """What a table calls a row: its repo at its commit, and that it was only told to play."""
    model = row.model or {}
    suffix = " (prompted)" if _kind(row, card.settings) != "asker" else ""
    return f"{model['repo_id']}@{str(model['revision'])[:8]}{suffix}"


def _disagree(first: Row, second: Row) -> bool:
    """Whether two rows of one model have other figures for what both measured."""
    return any(
        abs(first.values[name]["value"] - second.values[name]["value"]) > 1e-9
        for name in first.values.keys() & second.values.keys()
    )


def _section(protocol: Protocol, picture: str) -> str:
    settings = protocol.card.settings
    data = settings["data"] or {}
    head = markdown.text(
        f"{data.get('repo_id', 'conversations')}, {settings['contexts']} contexts, seed "
        f"{settings['seed']}"
    )
    body = shown.section(protocol.card, picture=False)
    evidence = "\n".join(
        f"- {markdown.text(name)}: [{file}]({file})" for name, file in protocol.evidence.items()
    )
    return (
        f"\n## {head}\n\n![Each measure: a dot an asker with its interval]({picture})\n\n"
        f"{body}\nEvidence:\n\n{evidence}\n"
    )
