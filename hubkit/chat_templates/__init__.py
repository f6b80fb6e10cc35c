"""Any base's chat template, for either seat, proven to print what the base itself prints.

`for_base` takes a model folder and gives its `SeatTemplates`: texts and prompts, token ids with
loss on the seat's own turns, stop texts, and Jinja source to publish with trained weights.

A row is always in the seat's own view: the seat's turns have role ``assistant`` (for the asker
that is `hubkit.conversation.swap_roles` of the recorded conversation). What changes per seat is
only which of the base's speaker labels is printed around them, so an instruct base starts where it
already is closest to a user."""

from hubkit.chat_templates.base_template import BaseTemplate, read_base_template
from hubkit.chat_templates.derive import derive
from hubkit.chat_templates.encode import IGNORE, Encoded, encode_segments
from hubkit.chat_templates.families import FAMILIES, PLAIN, require_name
from hubkit.chat_templates.layout import Layout, Segment, text_of
from hubkit.chat_templates.proof import Proof, prove
from hubkit.chat_templates.seat_templates import SeatTemplates, Thinking, for_base
from hubkit.chat_templates.source import without_marks
from hubkit.chat_templates.text_tokenizer import TextTokenizer, text_tokenizer

__all__ = [
    "FAMILIES",
    "IGNORE",
    "PLAIN",
    "BaseTemplate",
    "Encoded",
    "Layout",
    "Proof",
    "SeatTemplates",
    "Segment",
    "TextTokenizer",
    "Thinking",
    "derive",
    "encode_segments",
    "for_base",
    "prove",
    "read_base_template",
    "require_name",
    "text_of",
    "text_tokenizer",
    "without_marks",
]
