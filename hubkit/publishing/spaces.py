"""The Spaces as a recipe pushes them: their own files, the modules that they share, and
``space.json``, which says which models they show.

A pushed Space is complete and imports nothing of hubkit. Which files go into it is listed here, so
that nothing else that lies in those folders leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import SpaceCard

from hubkit.publishing import assets
from hubkit.publishing.plan import Content
from hubkit.recipe import Recipe, SeatConfig, Training
from hubkit.untrusted import JsonObject, object_in, text_in

SETTINGS = "space.json"
_SPACE_FILES = ("README.md", "app.py", "preview.png", "requirements.txt")
_COMMON = ("models.py", "page.py", "votes.py")
_MODULES = {"chat": ("blind.py",), "asker": ()}


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
    composed: dict[str, Content] = {**sources(space.folder)}
    values = settings(recipe, qualify)
    readme = assets.folder("spaces") / space.folder / "README.md"
    composed[SETTINGS] = (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()
    composed["README.md"] = _card(readme, space, recipe, values).encode()
    return composed


def sources(name: str) -> dict[str, Path]:
    """Path in the repo → file, of the Space `name`: its own files and those that all share."""
    root = assets.folder("spaces")
    own_files = (*_SPACE_FILES, *_MODULES[name])
    space_files = {path: root / name / path for path in own_files}
    return space_files | {path: root / "common" / path for path in _COMMON}


def left_out(space: Space) -> list[str]:
    """Files in the folder of `space`, or in the one that all share, which no push takes: people
    put them there.
    """
    root = assets.folder("spaces")
    listed = {path for name in _MODULES for path in sources(name).values()}
    listed |= {root / name / SETTINGS for name in _MODULES}
    paths = (path for name in (space.folder, "common") for path in (root / name).rglob("*"))
    return sorted(
        path.relative_to(root).as_posix()
        for path in paths
        if path.is_file() and path not in listed and "__pycache__" not in path.parts
    )


def settings(recipe: Recipe, qualify: Callable[[str], str]) -> JsonObject:
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


def _model(name: str, repo_id: str, training: Training, seat: SeatConfig) -> JsonObject:
    return {
        "name": name,
        "repo_id": repo_id,
        "base": training.base,
        "adapter": training.gives_adapter,
        "system": training.system,
        "end_mark": training.end_mark,
        "temperature": seat.sampling.temperature,
        "top_p": seat.sampling.top_p,
        "max_tokens": seat.sampling.max_tokens,
    }


def _card(readme: Path, space: Space, recipe: Recipe, values: JsonObject) -> str:
    """The Space's own README with the metadata of this recipe: title, models, datasets."""
    card = SpaceCard(readme.read_text("utf-8"))
    stages = ("chat",) if space.folder == "chat" else ("asker", "chat")
    name = text_in(object_in(values, space.named_after), "name")
    card.data["title"] = (
        f"Chat with {name}" if space.folder == "chat" else f"{name}: be the assistant"
    )
    card.data["models"] = list(
        dict.fromkeys(
            object_in(values, stage).get(key) for stage in stages for key in ("repo_id", "base")
        )
    )
    card.data["datasets"] = [
        text_in(
            object_in(values, "dialogues" if space.folder == "chat" else "conversations"), "repo_id"
        )
    ]
    card.data["tags"] = ["hubkit", *recipe.tags, "mcp-server"]
    return str(card)
