"""A base's own chat template as a program: found in its folder, compiled in a sandbox, rendered.

A chat template comes from a model repo, so it runs in Jinja's immutable sandbox with the names that
transformers gives it, and its steps and what it writes are bounded (`sandbox`). Its clock stands
still: a prompt that was trained on one day must render the same on any other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from hubkit.chat_templates.sandbox import MAX_CHARS, BoundError, bounded_environment
from hubkit.errors import SourceError, TemplateError
from hubkit.untrusted import parse_json

FROZEN_CLOCK = datetime(2026, 1, 1)
"""The date that templates which print one are rendered at."""
_OTHER_CLOCK = datetime(2031, 12, 24)
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class BaseTemplate:
    """A chat template as its base publishes it.

    Attributes:
        source: Jinja source.
        special_tokens: The tokenizer's special tokens by name, such as ``{"bos_token": "<s>"}``.
        variables: What else the template is rendered with, such as ``{"enable_thinking": False}``.
        origin: Where the source was read."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "template"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Render `messages` as recorded.

        Contents are handed over as text, or as a list of one text part where the template reads
        nothing else.

        Raises:
            TemplateError: The template refuses the messages, fails on them or writes too much."""
        prepared = [_prepared(message) for message in messages]
        if self.content_parts:
            prepared = [_in_parts(message) for message in prepared]
        names = {"add_generation_prompt": add_generation_prompt, **variables}
        return self._render(prepared, names)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        clock: datetime | None = None,
    ) -> str:
        import jinja2

        names: dict[str, Any] = {"tools": None, "documents": None, **self.special_tokens}
        if clock is not None:
            names["strftime_now"] = clock.strftime
        names |= {**self.variables, **variables}
        pieces: list[str] = []
        size = 0
        self._compiled.environment.steps.reset()
        try:
            for piece in self._compiled.generate(messages=[dict(m) for m in messages], **names):
                size += len(piece)
                if size > MAX_CHARS:
                    raise TemplateError(
                        f"{self.origin} writes more than {MAX_CHARS} characters; it may loop"
                    )
                pieces.append(piece)
        except jinja2.TemplateError as error:
            raise TemplateError(f"{self.origin} refuses these messages: {error}") from None
        except BoundError as error:
            raise TemplateError(f"{self.origin} does too much: {error}") from None
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            IndexError,
            RecursionError,
            OverflowError,
            MemoryError,
        ) as error:
            raise TemplateError(
                f"{self.origin} fails on these messages: {type(error).__name__}: {error}"
            ) from None
        return "".join(pieces)

    @cached_property
    def _compiled(self) -> Any:
        return compile_template(self.source, self.origin)

    @cached_property
    def content_parts(self) -> bool:
        """Whether contents must be lists of parts: text alone is not printed as it stands."""
        text = "XtextqZ"
        turn: dict[str, Any] = {"role": "user", "content": text}
        for message, parts in ((turn, False), (_in_parts(turn), True)):
            try:
                if text in self._render([message], {"add_generation_prompt": True}):
                    return parts
            except TemplateError:
                continue
        return False

    @cached_property
    def prints_date(self) -> bool:
        """Whether what is rendered depends on the day."""
        if "strftime_now" not in self.source:
            return False
        turns = [{"role": "user", "content": "x"}]
        turns = [_in_parts(m) for m in turns] if self.content_parts else turns
        try:
            text, other_text = (
                self._render(turns, {"add_generation_prompt": True}, clock)
                for clock in (FROZEN_CLOCK, _OTHER_CLOCK)
            )
        except TemplateError:
            return False
        return text != other_text


def compile_template(source: str, origin: str = "the chat template") -> Any:
    """Compile Jinja source with the options, filters and globals that transformers gives it.

    Raises:
        TemplateError: It is not Jinja."""
    import jinja2

    try:
        return environment().from_string(source)
    except jinja2.TemplateError as error:
        raise TemplateError(f"{origin} cannot be read: {error}; it must be Jinja") from None


def environment() -> Any:
    """The sandbox in which chat templates run, with a clock that stands still."""
    from jinja2 import TemplateError as JinjaError
    from jinja2.ext import Extension, loopcontrols

    class Generation(Extension):
        """``{% generation %}`` marks, without an effect."""

        tags = {"generation"}  # noqa: RUF012 - as jinja declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise JinjaError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    compiler = bounded_environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    compiler.filters["tojson"] = tojson
    compiler.globals.update(raise_exception=raise_exception, strftime_now=FROZEN_CLOCK.strftime)
    return compiler


def read_base_template(base_dir: Path) -> BaseTemplate | None:
    """The chat template that the model in `base_dir` publishes, or None where it has none.

    Raises:
        SourceError: A file of the tokenizer cannot be read."""
    config = read_json(base_dir / "tokenizer_config.json")
    source: Any = config.get("chat_template")
    origin = "tokenizer_config.json"
    for name in _TEMPLATE_FILES:
        path = base_dir / name
        if path.exists():
            source = (
                path.read_text("utf-8")
                if name.endswith(".jinja")
                else read_json(path).get("chat_template")
            )
            origin = name
            break
    if isinstance(source, list):  # several templates by name
        named = {entry.get("name"): entry.get("template") for entry in source if entry}
        source = named.get("default")
    if not isinstance(source, str) or not source.strip():
        return None
    return BaseTemplate(source, special_tokens(base_dir), origin=f"the base's {origin}")


def special_tokens(base_dir: Path) -> dict[str, str]:
    """Special tokens by name, as `tokenizer_config.json` and `special_tokens_map.json` say."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(base_dir / file).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                names[key] = text
    return names


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        SourceError: It is not JSON."""
    try:
        data = parse_json(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as JSON ({type(error).__name__}); fetch the model again"
        ) from None
    return data if isinstance(data, dict) else {}


def _prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """`message` as templates read it: thinking under both names that they use."""
    prepared = {key: value for key, value in message.items() if key != "train"}
    if thinking := prepared.get("thinking"):
        prepared["reasoning_content"] = thinking
    return prepared


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
