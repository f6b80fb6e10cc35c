"""Models that play the human, and where they answer for as long as they are asked.

Takes repos at commits; gives addresses. What is served elsewhere keeps its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from hubkit import chat_templates
from hubkit.evaluation.scorecard import Player
from hubkit.hub import Hub, Ref
from hubkit.pipeline.serving import Model, Reached, serving
from hubkit.progress import Progress
from hubkit.recipe import Deploy
from hubkit.serving.client import ClientTemplate, key_in

BASE = "base as user"
_REACHED = fields(Reached)
_TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True)
class Asker:
    """A model that plays the human: `base` is what it is an adapter of (None: whole weights),
    `data` the commit of the conversations that it was held out from. `prompted`: it keeps its own
    seat and is only told to play the user. `urls` serve it elsewhere, spoken to as `profile`, under
    the name `served_as`, with `token` or the key in ``$token_env``; with `template`, its prompts
    are rendered here. With `deploy`, an endpoint is made for it."""

    name: str
    ref: Ref
    base: Ref | None = None
    system: str | None = None
    end_mark: str | None = None
    intent_column: str | None = None
    data: Ref | None = None
    prompted: bool = False
    urls: tuple[str, ...] = ()
    profile: str = "tgi"
    served_as: str = "tgi"
    token_env: str | None = None
    token: str | None = field(default=None, repr=False)
    template: ClientTemplate | None = None
    deploy: Deploy | None = None

    def player(self, perplexity: float | None = None) -> Player:
        """This model as the scorecard asks it. Raises `RecipeError` when the variable with its key
        is not set.
        """
        token = (
            self.token
            if self.token_env is None
            else key_in(self.token_env, said_by=f"{self.name}: token_env")
        )
        return Player(
            self.name, self.urls, self.system, self.end_mark, self.ref.to_dict(), self.profile, self.served_as, token,
            perplexity, self.template,
        )  # fmt: skip


def _templates(hub: Hub, askers: Sequence[Asker]) -> dict[str, ClientTemplate]:
    """Templates for models that are told to play and have none, as bases often do: their family's,
    for their own seat.

    The server puts the beginning-of-text token in front itself, so it is left out here. Raises
    `SourceError` where the family of such a base is not known."""
    found = {}
    for asker in askers:
        if not asker.prompted:
            continue
        folder = hub.snapshot(asker.ref, allow_patterns=_TEXTS)
        if not _has_template(folder):
            family = chat_templates.for_base(folder)
            layout = replace(
                family.layout, prefix=family.layout.prefix.removeprefix(family.bos_token)
            )
            source = replace(family, layout=layout).source("assistant")
            found[asker.name] = ClientTemplate(source, {}, stops=family.stop_texts("assistant"))
    return found


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    try:
        said = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and bool(said.get("chat_template"))


@contextmanager
def served(
    hub: Hub, askers: Sequence[Asker], log: Path, progress: Progress, *, slots: int, tokens: int
) -> Iterator[list[Asker]]:
    """`askers` with addresses and what is spoken there: those that are given, or as `serving` gives
    them.
    """
    own = _templates(hub, askers)
    models = {
        asker.name: Model(asker.ref, asker.base, asker.deploy) for asker in askers if not asker.urls
    }
    with serving(hub, models, log, progress, slots=slots, tokens=tokens) as found:
        seated = [
            asker
            if asker.urls
            else replace(asker, **{f.name: getattr(found[asker.name], f.name) for f in _REACHED})
            for asker in askers
        ]
        yield [replace(asker, template=own.get(asker.name) or asker.template) for asker in seated]
