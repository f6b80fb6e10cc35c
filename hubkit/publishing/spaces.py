"""The Spaces as a recipe pushes them: their own files, plus ``space.json`` that says which models
they show.

A Space is complete in its folder under top-level ``spaces/`` and imports nothing of ours; here only
its settings and its card's metadata are filled in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import SpaceCard

from hubkit.publishing import assets, metadata
from hubkit.publishing.plan import Content
from hubkit.recipe import Recipe, SeatConfig, Training

SETTINGS = "space.json"
_SKIP = ("__pycache__", ".pyc", SETTINGS)


@dataclass(frozen=True, slots=True)
class Space:
    """A Space: its folder, the repo whose name it takes, and the stages without which it has
    nothing to show.
    """

    folder: str
    named_after: Literal["asker", "chat"]
    needs: tuple[str, ...]


SPACES = (Space("chat", "chat", ("chat",)), Space("asker", "asker", ("asker",)))


def files(space: Space, recipe: Recipe, qualify: Callable[[str], str]) -> dict[str, Content]:
    """Path → content of the Space's repo for `recipe`; `qualify` gives repo names their
    namespace.
    """
    folder = assets.folder("spaces") / space.folder
    own: dict[str, Content] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part in str(path.relative_to(folder)) for part in _SKIP)
    }
    wanted = settings(recipe, qualify)
    own[SETTINGS] = (json.dumps(wanted, indent=1, ensure_ascii=False) + "\n").encode()
    own["README.md"] = _card(folder / "README.md", space, recipe, wanted).encode()
    return own


def settings(recipe: Recipe, qualify: Callable[[str], str]) -> dict[str, Any]:
    """What both Spaces read from ``space.json``: names, models, seats, data."""
    return {
        "system": recipe.names.system,
        "paper": recipe.paper.model_dump(include={"title", "url"}) if recipe.paper else None,
        "asker": _model(
            recipe.names.asker, qualify(recipe.repos.asker), recipe.asker, recipe.rollout.asker
        ),
        "chat": _model(
            recipe.names.chat, qualify(recipe.repos.chat), recipe.chat, recipe.rollout.chat
        ),
        "conversations": {"repo_id": qualify(recipe.repos.corpus), "split": "test"},
        "dialogues": {"repo_id": qualify(recipe.repos.dialogues)},
        "turns": recipe.rollout.turns.value if recipe.rollout.turns.kind == "fixed" else 8,
    }


def _model(name: str, repo_id: str, training: Training, seat: SeatConfig) -> dict[str, Any]:
    return {
        "name": name,
        "repo_id": repo_id,
        "base": training.base,
        "adapter": metadata.is_adapter(training),
        "system": training.system,
        "end_mark": training.end_mark,
        "temperature": seat.sampling.temperature,
        "top_p": seat.sampling.top_p,
        "max_tokens": seat.sampling.max_tokens,
    }


def _card(readme: Path, space: Space, recipe: Recipe, wanted: dict[str, Any]) -> str:
    """The Space's own README with the metadata of this recipe: title, models, datasets."""
    card = SpaceCard(readme.read_text("utf-8"))
    shown = ("chat",) if space.folder == "chat" else ("asker", "chat")
    name = wanted[space.named_after]["name"]
    card.data["title"] = (
        f"Chat with {name}" if space.folder == "chat" else f"{name}: be the assistant"
    )
    card.data["models"] = list(
        dict.fromkeys(wanted[who][key] for who in shown for key in ("repo_id", "base"))
    )
    card.data["datasets"] = [
        wanted["dialogues" if space.folder == "chat" else "conversations"]["repo_id"]
    ]
    card.data["tags"] = ["hubkit", *recipe.tags, "mcp-server"]
    return str(card)
