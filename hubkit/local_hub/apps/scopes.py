"""What a process that the Hub runs may read: least scope for its token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hubkit.errors import HubError
from hubkit.local_hub.storage import cards, trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH
from hubkit.local_hub.storage.repos import Repo, git, lookup
from hubkit.local_hub.storage.store import Store
from hubkit.untrusted import JsonObject, parse_json

MAX_CHAIN = 8


def scope_of_space(store: Store, repo: Repo) -> set[str]:
    """Return what a Space's app may read: its own repo, and what its card names."""
    card = _card(store, repo)
    scope = {_key("space", repo.id)}
    scope |= {_key("dataset", name) for name in _names(card.get("datasets"))}
    return scope | scope_of_models(store, _names(card.get("models")))


def scope_of_models(store: Store, ids: Iterable[str]) -> set[str]:
    """Return the keys of models, and of the bases that they name, as far as they are here.

    Which of them the token's user may read is checked when they are read."""
    scope: set[str] = set()
    todo = list(ids)
    for _ in range(MAX_CHAIN):
        todo = [name for name in todo if _key("model", name) not in scope]
        scope |= {_key("model", name) for name in todo}
        todo = [base for name in todo for base in _bases(store, name)]
    return scope


def _key(kind: str, name: str) -> str:
    return f"{kind}:{name}".lower()


def _bases(store: Store, name: str) -> list[str]:
    namespace, slash, model = name.partition("/")
    repo = lookup(store, "model", namespace, model, None)[0] if slash else None
    if repo is None:
        return []
    config = _json(store, repo, "adapter_config.json")
    return [
        *_names(config.get("base_model_name_or_path")),
        *_names(_card(store, repo).get("base_model")),
    ]


def _names(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and " " not in text][:100]


def _card(store: Store, repo: Repo) -> JsonObject:
    return cards.safe_metadata(_text(store, repo, "README.md"))


def _json(store: Store, repo: Repo, path: str) -> JsonObject:
    try:
        value = parse_json(_text(store, repo, path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(store: Store, repo: Repo, path: str) -> str:
    try:
        with git(store, repo) as opened:
            head = opened.resolve(DEFAULT_BRANCH)
            entry = trees.find(opened, opened.commit(head).tree, path) if head else None
            return (
                opened.blob(entry.sha).decode("utf-8", "replace") if entry and entry.is_file else ""
            )
    except HubError:
        return ""
