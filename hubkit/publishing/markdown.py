"""Text from strangers, made safe to use in Markdown; and the Jinja environment in which that is
the default.

Takes any value, gives `Markup`: Markdown that means exactly the characters it was made from. A
template that prints a plain string prints it escaped, so forgetting a filter can make a card ugly
but never a hole."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hubkit.statistics import noise

# Characters that start Markdown or HTML syntax anywhere in a line. An underscore between letters
# starts nothing, and repo ids are full of them.
_ANYWHERE = re.compile(r"([\\`*\[\]<>|~])|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile(r"&(?=#|\w)")
_LINE_START = re.compile(r"^(\s*)([#+=-]|\d{1,9}(?=[.)](?:\s|$)))")
_HTML = {"<": "&lt;", ">": "&gt;"}


def text(value: object) -> Markup:
    """`value` as inline Markdown: line breaks become spaces, all syntax is escaped."""
    line = " ".join(str(value).split())
    line = _ENTITY.sub("&amp;", line)
    line = _ANYWHERE.sub(lambda m: _HTML.get(m[0], "\\" + m[0]), line)
    return Markup(_LINE_START.sub(_escape_line_start, line))


def _escape_line_start(match: re.Match[str]) -> str:
    # "1." is escaped after the number, as "1\.".
    return f"{match[1]}{match[2]}\\" if match[2].isdigit() else f"{match[1]}\\{match[2]}"


def code(value: object, *, table: bool = False) -> Markup:
    """`value` as inline code, with a fence longer than any run of backticks inside. `table`: for a
    table's cell.
    """
    line = " ".join(str(value).split()) or " "
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    if table:
        line = line.replace("|", "\\|")
    return Markup(f"{fence}{pad}{line}{pad}{fence}")


def block(value: object, language: str = "") -> Markup:
    """`value` as a fenced code block that its content cannot close."""
    body = str(value).rstrip("\n")
    fence = "`" * max(3, _longest_run(body) + 1)
    return Markup(f"{fence}{language}\n{body}\n{fence}")


def py(value: object) -> Markup:
    """`value` as a Python literal on one line, for a snippet."""
    # JSON's strings are Python's too, in double quotes as a formatter would leave them.
    return Markup(json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value))


def number(value: object, digits: int = 3) -> Markup:
    """`value` as people write it: thousands separated, floats to `digits` places. No number: "not
    recorded".
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Markup("not recorded")
    if isinstance(value, int):
        return Markup(f"{value:,}")
    return Markup(
        f"{value:,.{digits}f}" if abs(value) >= 10**-digits or value == 0 else f"{value:.2e}"
    )


def _longest_run(line: str) -> int:
    return max((len(run) for run in re.findall(r"`+", line)), default=0)


def environment(templates: Path | Sequence[Path]) -> jinja2.Environment:
    """The Jinja environment of the cards: plain strings come out escaped for Markdown, a missing
    name is an error.
    """
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    env.filters.update(text=text, code=code, block=block, py=py, number=number, noise=noise)
    return env


def _finalize(value: Any) -> Any:
    if isinstance(value, jinja2.Undefined | Markup):
        return value
    return text(value) if isinstance(value, str) else Markup(str(value))
