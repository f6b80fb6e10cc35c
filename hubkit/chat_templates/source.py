"""A family's Jinja source for one seat: with generation marks for training, without them for
serving.

Takes a family and a seat; gives text. There is one source: the served template is the trained one
less its marks, so what is served renders, character for character, what was trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hubkit.chat_templates.families import Family, family_of
from hubkit.conversation import Seat

# Servers strip only some spellings of these marks, so the pushed template carries none at all.
_MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}\n?")


def for_training(base_dir: Path, seat: Seat) -> str:
    """Jinja source for `seat` on the base in `base_dir`, each own turn and its end inside ``{%
    generation %}`` marks.

    Rows come in the seat's view: own turns have role ``assistant``. Raises `SourceError` for an
    unknown base."""
    return render_source(family_of(base_dir), seat)


def for_inference(base_dir: Path, seat: Seat) -> str:
    """The source of `for_training` without its marks: what is pushed as ``chat_template.jinja``."""
    return without_marks(for_training(base_dir, seat))


def without_marks(source: str) -> str:
    """`source` without ``{% generation %}`` and ``{% endgeneration %}``, in any spelling."""
    return _MARK.sub("", source)


def stops(base_dir: Path, seat: Seat) -> list[str]:
    """What a server must stop on when it writes for `seat`: the end of the seat's own turn."""
    return [family_of(base_dir).end(seat)]


def render_source(family: Family, seat: Seat) -> str:
    """Write the Jinja source. Every tag and expression trims its surroundings, so layout never
    reaches the text.

    Turns may stand in any order and may start with either seat; a role that is none of the three is
    an error. Texts are stripped, so that the border between a header and its text is the same in
    training and in serving."""
    own, other = family.header(seat), family.header("assistant" if seat == "user" else "user")
    own_end, other_end = family.end(seat), family.end("assistant" if seat == "user" else "user")
    fold_own = family.fold_system and seat == "user"
    fold_other = family.fold_system and seat == "assistant"
    lines = [f"{{{{- {_q(family.bos)} -}}}}"] if family.bos else []
    lines += _system_lines(family)
    lines += [
        "{%- for message in messages -%}",
        "{%- if message['role'] == 'assistant' -%}",
        _say(own, fold_own),
        "{%- generation -%}",
        f"{{{{- (message['content'] | trim) + {_q(own_end)} -}}}}",
        "{%- endgeneration -%}",
        *_gap(family),
        "{%- elif message['role'] == 'user' -%}",
        _say(other, fold_other),
        f"{{{{- (message['content'] | trim) + {_q(other_end)} -}}}}",
        *_gap(family),
        "{%- elif message['role'] != 'system' or not loop.first -%}",
        "{{- raise_exception('roles are user and assistant, with at most one system message in front') -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        _say(own, fold_own),
        "{%- endif -%}",
    ]
    return "\n".join(lines) + "\n"


def _system_lines(family: Family) -> list[str]:
    before, after = family.system.split("{system}")
    text = f"{_q(before)} + (messages[0]['content'] | trim) + {_q(after)}"
    condition = "{%- if messages and messages[0]['role'] == 'system' -%}"
    if not family.fold_system:
        return [condition, f"{{{{- {text} -}}}}", "{%- endif -%}"]
    return [
        "{%- set ns = namespace(system='') -%}",
        condition,
        f"{{%- set ns.system = {text} -%}}",
        "{%- endif -%}",
    ]


def _say(header: str, fold: bool) -> str:
    """Print a header; with `fold` also the system text, once, behind the first user header."""
    if not fold:
        return f"{{{{- {_q(header)} -}}}}" if header else "{#- no header -#}"
    return f"{{{{- {_q(header)} + ns.system -}}}}\n{{%- set ns.system = '' -%}}"


def _gap(family: Family) -> list[str]:
    return [f"{{{{- {_q(family.gap)} -}}}}"] if family.gap else []


def _q(text: str) -> str:
    """`text` as a Jinja string literal: JSON's escapes, which all renderers share."""
    return json.dumps(text)
