"""The key ``template`` of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def _read(value: str | None) -> str | None:
    """A Jinja file becomes its text: what decides the result is what it says."""
    if value is None or not value.endswith((".jinja", ".jinja2", ".j2")):
        return value
    try:
        return Path(value).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{value} cannot be read ({type(error).__name__})") from None


TemplateSource = Annotated[str | None, AfterValidator(_read)]
