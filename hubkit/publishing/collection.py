"""The collection that ties a recipe's repos together on the Hub, in the order of their lineage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hubkit.errors import HubError
from hubkit.hub import Hub
from hubkit.publishing.plan import Change
from hubkit.recipe import Recipe

Item = tuple[str, str]  # repo_id, repo_type


def plan(hub: Hub, recipe: Recipe, items: Sequence[Item]) -> list[Change]:
    """What `push` would change, touching nothing. Raises `HubError`."""
    if not supported(hub):
        return []
    existing = _find(hub, recipe)
    name = title(recipe)
    changes = [] if existing else [Change(name, "collection", "create")]
    missing = [item for item in items if item not in _items_of(existing)]
    return changes + [
        Change(name, "collection", "add", f"{repo_type} {repo_id}")
        for repo_id, repo_type in missing
    ]


def push(hub: Hub, recipe: Recipe, items: Sequence[Item], *, private: bool) -> list[Change]:
    """Make the collection when it is not there, and add the items that it lacks; others' items
    stay.

    Does nothing on a Hub without collections.
    """
    changes = plan(hub, recipe, items)
    if not changes:
        return []
    existing = _find(hub, recipe)
    with hub.translated(f"making the collection {title(recipe)!r}"):
        if existing is None:
            words = {
                "title": title(recipe),
                "description": _description(recipe),
                "namespace": hub.namespace,
            }
            hub.check("the collection was not made", {}, words.values())
            existing = hub.api.create_collection(**words, private=private, exists_ok=True)
        for repo_id, repo_type in items:
            if (repo_id, repo_type) not in _items_of(existing):
                kind: Any = repo_type  # a literal in the client's signature
                hub.api.add_collection_item(
                    existing.slug, item_id=repo_id, item_type=kind, exists_ok=True
                )
    return changes


def title(recipe: Recipe) -> str:
    """The collection's title."""
    return recipe.repos.collection or f"{recipe.names.system}: asker, dialogues, chat model"


def _description(recipe: Recipe) -> str:
    # The Hub takes at most 150 characters.
    origin = (
        f"Rebuilt with hubkit from arXiv:{recipe.paper.arxiv}"
        if recipe.paper
        else "Made with hubkit"
    )
    return f"{origin}; lineage in every card."[:150]


def _find(hub: Hub, recipe: Recipe) -> Any | None:
    with hub.translated("looking for the collection"):
        for candidate in hub.api.list_collections(owner=hub.namespace):
            if candidate.title == title(recipe):
                return hub.api.get_collection(candidate.slug)
    return None


def supported(hub: Hub) -> bool:
    """Whether this Hub keeps collections at all; not every Hub that speaks the rest of the contract
    does.
    """
    try:
        with hub.translated("asking for collections"):
            next(iter(hub.api.list_collections(owner=hub.namespace, limit=1)), None)
    except HubError as error:
        if error.status in (404, 501):
            return False
        raise
    return True


def _items_of(existing: Any | None) -> set[Item]:
    return {(item.item_id, item.item_type) for item in existing.items} if existing else set()
