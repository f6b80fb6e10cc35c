"""Whether the name that a server gives its model is that of another model than was configured."""

from __future__ import annotations

import re

_SUFFIX = re.compile(r"(\.gguf|\.safetensors|:[\w.-]+)$", re.IGNORECASE)


def is_another_model(name: str, repo: str, alias: str) -> bool:
    """Whether a server that answers as `name` serves another model than `repo`.

    A name that says nothing counts as the same: the alias that requests use, where it is no repo,
    and paths on the server's disk.

    Args:
        name: The model's name in answers.
        repo: The repo that the recipe names.
        alias: The model's name in requests.
    """
    is_path = name.startswith(("/", "./", "~")) or "\\" in name
    if not name or is_path or (name == alias and "/" not in name):
        return False
    served_name, configured = _plain(name), _plain(repo)
    return served_name not in configured and configured not in served_name


def _plain(name: str) -> str:
    """The last part of a name, without file endings, case and punctuation."""
    last = _SUFFIX.sub("", name.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^a-z0-9]", "", last.lower())
