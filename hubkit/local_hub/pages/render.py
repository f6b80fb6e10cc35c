"""Templates, Markdown, and the headers that every page carries."""

from __future__ import annotations

import re
from base64 import b64encode
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jinja2
import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from hubkit.local_hub.api.http import Call

_FOLDER = Path(__file__).parent
_SCRIPT = (_FOLDER / "copy.js").read_text("utf-8")
_SCRIPT_HASH = b64encode(sha256(_SCRIPT.encode()).digest()).decode()
HEADERS = {
    # No script but this very one, by its hash, and nothing loaded from anywhere else: a card of a
    # stranger can only be looked at.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    f"script-src 'sha256-{_SCRIPT_HASH}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
MAX_MARKDOWN = 400_000


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "day": lambda text: _moment(text, "%d %b %Y"),
        "moment": lambda text: _moment(text, "%d %b %Y, %H:%M UTC"),
    }
    env.filters["size"] = human_size
    env.filters["breakable"] = breakable
    return env


def breakable(name: str) -> Markup:
    """`name` as text that is broken after its dots, dashes and underscores rather than within
    words."""
    return Markup("<wbr>").join(re.split(r"(?<=[._-])(?=.)", name))


def _moment(text: str, layout: str) -> str:
    return datetime.fromisoformat(text).strftime(layout)


def human_size(size: int) -> str:
    """A number of bytes for people."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def page(
    call: Call, template: str, status: int = 200, *, frame: str | None = None, **values: Any
) -> Response:
    """A page from a template. `frame` is the one address that it may show in a frame."""
    common = {
        "user": call.identity.user if call.identity else None,
        "search": call.query("search"),
        "active": None,
        "script": Markup(_SCRIPT),
    }
    policy = (
        {"Content-Security-Policy": f"{HEADERS['Content-Security-Policy']}; frame-src {frame}"}
        if frame
        else {}
    )
    text = _templates().get_template(template).render({**common, **values})
    return HTMLResponse(text, status, {**HEADERS, **policy})


def stylesheet() -> Response:
    """/static/hub.css"""
    return Response(
        (_FOLDER / "hub.css").read_bytes(),
        media_type="text/css",
        headers={"Cache-Control": "max-age=300"},
    )


_STYLED_CELL = re.compile(r'<(t[hd]) style="text-align:(left|right|center)">')
"""How the Markdown engine aligns cells; styles go, with all else that a card may not hold."""


def markdown(text: str, link_base: str = "", image_base: str = "") -> Markup:
    """Markdown (with the HTML that cards use) as harmless HTML; relative links lead into the
    repository.
    """
    engine = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    html = _STYLED_CELL.sub(r'<\1 align="\2">', engine.render(text[:MAX_MARKDOWN]))

    def rewrite(tag: str, name: str, value: str) -> str | None:
        if (tag, name) in (("a", "href"), ("img", "src")) and _is_relative(value):
            return (image_base if tag == "img" else link_base) + quote(value, safe="/#?=&%.-_~")
        return value

    return Markup(
        nh3.clean(
            html,
            attribute_filter=rewrite,
            link_rel="noopener noreferrer nofollow",
            # What can be wider than the page is scrolled by keyboard too.
            set_tag_attribute_values={tag: {"tabindex": "0"} for tag in ("pre", "table")},
        )
    )


def _is_relative(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return not parts.scheme and not parts.netloc and not address.startswith(("/", "#", "\\"))


def diff_lines(text: str, limit: int = 4000) -> tuple[list[tuple[str, str]], bool]:
    """A diff as (kind, line), at most `limit` of them, and whether some were left out."""
    kinds = {"+": "plus", "-": "minus", "@": "meta", "d": "meta", "i": "meta"}
    lines = text.splitlines()
    return [(kinds.get(line[:1], ""), line[:2000]) for line in lines[:limit]], len(lines) > limit
