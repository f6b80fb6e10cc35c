"""Chat templates for both seats, and the proof of which tokens carry loss.

Takes a model folder and a seat; gives Jinja source: with ``{% generation %}`` marks for training,
the same source without them for serving. `encode` turns a conversation, seen from the seat that is
trained, into token ids and labels.

A row always stands in the seat's own view: the seat's turns have role ``assistant`` (for the asker
that is `hubkit.conversation.swap_roles` of the recorded conversation). What changes per seat is
only which of the base's speaker labels is printed around them, so an instruct base starts where it
already is closest to a user."""

from hubkit.chat_templates.encode import IGNORE, Encoded, encode
from hubkit.chat_templates.families import FAMILIES, Family, family_of
from hubkit.chat_templates.source import (
    for_inference,
    for_training,
    render_source,
    stops,
    without_marks,
)

__all__ = [
    "FAMILIES",
    "IGNORE",
    "Encoded",
    "Family",
    "encode",
    "family_of",
    "for_inference",
    "for_training",
    "render_source",
    "stops",
    "without_marks",
]
