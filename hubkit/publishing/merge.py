"""A card that is already on the Hub, and the one we are about to write: what people added there
stays.

Two things are theirs: metadata keys that we never write (a gate's text, a thumbnail), and
everything below the line that says so."""

from __future__ import annotations

import re

import yaml
from huggingface_hub.repocard_data import CardData

from hubkit.bounded_yaml import parse_yaml
from hubkit.untrusted import JsonObject

KEEP = "<!-- What you write below this line stays when the card is published again. -->"
# Every key that this room ever writes; one of these that is missing from the new card is gone on
# purpose.
_OUR_KEYS = """
annotations_creators base_model base_model_relation configs dataset_info datasets language
library_name license license_link license_name model-index model_name pipeline_tag pretty_name
size_categories source_datasets tags task_categories
"""
OWN_KEYS = frozenset(_OUR_KEYS.split())
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n", re.DOTALL)


def with_existing(card: str, existing: str) -> str:
    """`card` with the keys and the text that people added to `existing`, and the line below which
    text is theirs.
    """
    added = {key: value for key, value in metadata(existing).items() if key not in OWN_KEYS}
    match = _FRONT_MATTER.match(card)
    if added and match:
        rendered = parse_yaml(match[1])
        card = f"---\n{CardData(**{**rendered, **added}).to_yaml()}\n---\n{card[match.end() :]}"
    _, mark, below = existing.partition(KEEP)
    return f"{card.rstrip()}\n\n{KEEP}\n" + (below.lstrip("\n") if mark else "")


def metadata(card: str) -> JsonObject:
    """The front matter of a card; nothing where it has none that can be read."""
    match = _FRONT_MATTER.match(card)
    try:
        data = parse_yaml(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}
