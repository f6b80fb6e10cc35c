"""Prompts rendered on our side, for servers that hold another chat template than the model's own.

A chat template is a program from an unknown author: it runs in Jinja's immutable sandbox, with the
few names that transformers gives it, and its steps and its output are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, cast

from hubkit.chat_templates.sandbox import bounded_environment
from hubkit.conversation import Message
from hubkit.errors import RecipeError
from hubkit.untrusted import TypedTokens

LONGEST_PROMPT = 4_000_000  # characters


class ClientTemplate:
    """A chat template (Jinja source) with the tokenizer's special tokens by name, such as
    ``{"bos_token": "<s>"}``.

    `stops` are texts that end a turn where the server's own end token is another model's.
    `control_tokens` are the tokenizer's, by which those that people typed are told.
    `end_token` is the text of a token with which the model ends the whole conversation; a reply
    then holds it wherever the server said so.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        stops: Sequence[str] = (),
        control_tokens: Iterable[str] = (),
        end_token: str | None = None,
    ) -> None:
        self._source, self._special = source, dict(special_tokens)
        self.stops = tuple(stops)
        self.end_token = end_token
        self._control = frozenset(control_tokens) | frozenset(self._special.values())

    @property
    def bos_token(self) -> str:
        """The text of the beginning-of-text token; empty where there is none."""
        return self._special.get("bos_token", "")

    @cached_property
    def _compiled(self) -> Any:
        import jinja2
        from jinja2.ext import loopcontrols

        environment = bounded_environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = lambda value, **kw: json.dumps(
            value, ensure_ascii=False, **kw
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self._source)
        except jinja2.TemplateError as error:
            raise RecipeError(
                f"the chat template cannot be read: {error}; it must be Jinja"
            ) from None

    def render_typed(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The prompt, and the ``[start, stop)`` ranges of control tokens that people typed in
        `messages`. Raises as `render` does.
        """
        typed = TypedTokens(self._control)
        hidden = [{**m, "content": typed.hide(m["content"])} for m in messages]
        return typed.restore(self.render(cast("list[Message]", hidden)))

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt after which the next turn is generated. Raises `RecipeError` when the template
        refuses.
        """
        import jinja2

        self._compiled.environment.steps.reset()
        try:
            prompt = self._compiled.render(
                messages=list(messages), add_generation_prompt=True, **self._special
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            RecursionError,
            OverflowError,
        ) as error:
            raise RecipeError(f"the chat template cannot render these messages: {error}") from None
        if len(prompt) > LONGEST_PROMPT:
            raise RecipeError(
                f"the chat template gave a prompt of {len(prompt)} characters; it may loop"
            )
        return str(prompt)


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
