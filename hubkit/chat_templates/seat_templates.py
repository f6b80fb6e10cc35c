"""One way to print a conversation for either seat of a base: in training, evaluation and serving.

`for_base` derives the layout from the base's own chat template and proves it; a base without one
gets its family's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hubkit.chat_templates.base_template import BaseTemplate, read_base_template, special_tokens
from hubkit.chat_templates.derive import derive
from hubkit.chat_templates.encode import Encoded, encode_segments
from hubkit.chat_templates.families import (
    FAMILIES,
    PLAIN,
    added_tokens,
    family_layout,
    plain_layout,
)
from hubkit.chat_templates.layout import Layout, Segment, text_of
from hubkit.chat_templates.proof import Proof, prove, same_as_base
from hubkit.chat_templates.source import jinja_source, without_marks
from hubkit.chat_templates.text_tokenizer import text_tokenizer
from hubkit.chat_templates.tool_rows import has_tools, tool_segments
from hubkit.conversation import Message, Seat
from hubkit.errors import TemplateError
from hubkit.untrusted import JsonObject

Thinking = Literal["off", "keep"]
Method = Literal["derived", "family", "plain"]
_THINKING: dict[str, JsonObject] = {
    "off": {"enable_thinking": False, "thinking": False},
    "keep": {"enable_thinking": True, "thinking": True},
}


@dataclass(frozen=True)
class SeatTemplates:
    """The printed form of conversations for both seats of one base.

    Messages are in the seat's view: its own turns have the role ``assistant``.

    Attributes:
        layout: What stands around the turns.
        method: Derived from a chat template and proven, a family's, or plain labels.
        base: The template that `layout` was derived from.
        tokens: The tokenizer's special and added tokens.
        bos_token: Its beginning of text; empty where it has none.
        thinking: Whether answers are printed with their thinking.
        notes: What a reader should know, a sentence each."""

    layout: Layout
    method: Method
    base: BaseTemplate | None
    tokens: frozenset[str]
    thinking: Thinking = "off"
    notes: tuple[str, ...] = ()
    bos_token: str = ""

    @cached_property
    def proofs(self) -> Mapping[Seat, Proof]:
        """What was compared with the base's own template, for each seat; empty without one."""
        if self.base is None:
            return {}
        base, layout = self.base, self.layout
        return {seat: prove(layout, base, seat) for seat in ("user", "assistant")}

    def require(self, seat: Seat) -> None:
        """Raise `TemplateError` unless the layout is proven for `seat`."""
        proof = self.proofs.get(seat)
        if proof is not None and not proof.holds:
            raise TemplateError(_refusal(f"in the {seat} seat it {proof.faults[0]}"))

    def describe(self, seat: Seat) -> str:
        """One sentence: where the template for `seat` comes from and how it was proven."""
        if self.base is None:
            return {
                "family": f"the family {self.layout.name}, told by its special tokens",
                "plain": "plain labels between the tokenizer's own ends of text",
            }.get(self.method, self.layout.name)
        proof = self.proofs[seat]
        return (
            f"derived from {self.base.origin}; {proof.checked} of {proof.checked} conversations "
            f"print the same"
        )

    def segments(
        self, messages: Sequence[Message], seat: Seat, *, add_generation_prompt: bool = False
    ) -> list[Segment]:
        """Print `messages` as pieces of text, each a mark or contents, with loss or without."""
        self.require(seat)
        return self.layout.segments(messages, seat, add_generation_prompt=add_generation_prompt)

    def render(self, messages: Sequence[Message], seat: Seat) -> str:
        """Print a whole conversation.

        Raises:
            TemplateError: The layout is not proven for `seat`, or cannot print a message."""
        return text_of(self.segments(messages, seat))

    def prompt(self, messages: Sequence[Message], seat: Seat) -> str:
        """Print the text after which `seat` writes its next turn. Raises as `render` does."""
        return text_of(self.segments(messages, seat, add_generation_prompt=True))

    def encode_prompt(self, tokenizer: Any, messages: Sequence[Message], seat: Seat) -> list[int]:
        """The prompt as token ids; control tokens in contents are read as text."""
        segments = self.segments(messages, seat, add_generation_prompt=True)
        return text_tokenizer(tokenizer).encode(segments).ids

    def encode(
        self,
        tokenizer: Any,
        messages: Sequence[Message],
        seat: Seat,
        *,
        max_length: int | None = None,
        trim: bool = True,
    ) -> Encoded:
        """A whole conversation with loss on each of the seat's turns; see `encode_segments`."""
        segments = self.segments(messages, seat)
        return encode_segments(tokenizer, segments, max_length=max_length, trim=trim)

    def examples(
        self, messages: Sequence[Message], seat: Seat, *, tools: list[Any] | None = None
    ) -> list[list[Segment]]:
        """What is trained on of a conversation: one text, or one for each answer.

        One for each where the base prints earlier answers differently from its last one: what the
        seat reads before an answer must be what it will be prompted with.

        Raises:
            TemplateError: The layout is not proven for `seat`, or the base's template cannot print
                the conversation's tools."""
        self.require(seat)
        if has_tools(messages):
            return [self._tool_example(messages, tools)]
        has_system = bool(messages) and messages[0]["role"] == "system"
        if self.layout.extends(seat, system=has_system):
            return [self.layout.segments(messages, seat)]
        examples = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or not message.get("train", True):
                continue
            text = self.layout.segments(messages[: index + 1], seat, loss_from=index)
            prompt = self.layout.segments(messages[:index], seat, add_generation_prompt=True)
            if text_of(text).startswith(text_of(prompt)):
                examples.append(text)
        return examples

    def _tool_example(self, messages: Sequence[Message], tools: list[Any] | None) -> list[Segment]:
        if self.base is None:
            raise TemplateError(f"the family {self.layout.name} prints no tools")
        return tool_segments(self.base, messages, tools, control_tokens=self.tokens)

    def source(self, seat: Seat, *, marks: bool = False) -> str:
        """Jinja source for `seat`, to publish with its weights.

        Args:
            seat: Who is served.
            marks: Whether own turns are inside ``{% generation %}`` marks, as TRL reads them.

        Raises:
            TemplateError: The layout is not proven for `seat`."""
        self.require(seat)
        source = jinja_source(self.layout, seat)
        return source if marks else without_marks(source)

    def digest(self, seat: Seat) -> str:
        """sha256 (hex) of the source for `seat`, with its marks."""
        return hashlib.sha256(self.source(seat, marks=True).encode()).hexdigest()

    def stop_texts(self, seat: Seat) -> list[str]:
        """What ends a turn of `seat`: a server stops on any of these texts."""
        ends = [self.layout.end(seat)]
        if seat == "assistant":
            ends.append(self.layout.assistant_end)
        tokens = [_first_token(end, self.tokens) for end in ends]
        stops = (token or end.strip(" ") for token, end in zip(tokens, ends, strict=True))
        return list(dict.fromkeys(stops))

    @property
    def turn_marks(self) -> tuple[str, ...]:
        """The control tokens that open turns: a turn that spells one out has left its seat."""
        headers = [self.layout.header("user"), self.layout.header("assistant")]
        headers += [self.layout.last_header, self.layout.seat_prompt("assistant")]
        opened = {t for t in self.tokens if t != self.bos_token and any(t in h for h in headers)}
        return tuple(sorted(opened))

    def end_token(self, seat: Seat) -> str | None:
        """The control token that ends a turn of `seat`; None where its end is only text.

        Where an end is several tokens, the first: what follows it says nothing more."""
        return _first_token(self.layout.end(seat), self.tokens)

    def same_as_base(self, messages: Sequence[Message], seat: Seat) -> bool | None:
        """Whether the base prints this conversation (as recorded) the same; None: nothing to
        compare with."""
        if self.base is None or has_tools(messages):
            return None
        return same_as_base(self.layout, self.base, seat, messages)


def for_base(
    base_dir: Path, *, template: str | None = None, thinking: Thinking = "off"
) -> SeatTemplates:
    """The seat templates of the model in `base_dir`.

    Args:
        base_dir: A snapshot's folder, or one with the tokenizer's files alone.
        template: None: the base's own, or its family's where it has none. ``base``: the base's own.
            The name of a family, ``plain``, Jinja source, or the path of a Jinja file: that one.
        thinking: ``off``: answers stand without thinking, and the base is told not to think.
            ``keep``: answers stand with the thinking that messages carry.

    Raises:
        TemplateError: The template cannot be derived from; the sentence says what to write.
        SourceError: The folder holds no tokenizer."""
    tokens = frozenset(added_tokens(base_dir))
    bos_token = special_tokens(base_dir).get("bos_token", "")
    templates = _for_base(base_dir, tokens, template, thinking)
    return replace(templates, bos_token=bos_token)


def _for_base(
    base_dir: Path, tokens: frozenset[str], template: str | None, thinking: Thinking
) -> SeatTemplates:
    base: BaseTemplate | None
    if template in FAMILIES or template == PLAIN:
        layout = plain_layout(base_dir) if template == PLAIN else FAMILIES[template]
        return _without_template(layout, tokens, thinking)
    if template is None or template == "base":
        base = read_base_template(base_dir)
        if base is None and template == "base":
            raise TemplateError(
                f"template: base, but {base_dir} publishes no chat template; write a family's name "
                f"({', '.join(FAMILIES)}, {PLAIN}) or the path of a Jinja file"
            )
    else:
        base = _from_recipe(template, base_dir)
    if base is None:
        return _without_template(family_layout(base_dir), tokens, thinking)
    return _derived(base, tokens, thinking)


def _from_recipe(template: str, base_dir: Path) -> BaseTemplate:
    """The template that a recipe names or holds."""
    if "{%" in template or "{{" in template:
        return BaseTemplate(template, special_tokens(base_dir), origin="the recipe's template")
    path = Path(template).expanduser()
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"template: {path} is neither a family ({', '.join(FAMILIES)}, {PLAIN}), nor base, nor "
            f"a Jinja file that can be read ({type(error).__name__})"
        ) from None
    return BaseTemplate(source, special_tokens(base_dir), origin=str(path))


def _derived(base: BaseTemplate, tokens: frozenset[str], thinking: Thinking) -> SeatTemplates:
    base = replace(base, variables=_THINKING[thinking])
    try:
        layout, notes = derive(base, tokens)
    except TemplateError as error:
        raise TemplateError(_refusal(str(error))) from None
    if thinking == "off":
        layout = replace(layout, thinking=None, past_thinking=None)
    elif layout.thinking is None:
        raise TemplateError(
            f"thinking: keep, but {base.origin} prints no thinking; write thinking: off"
        )
    if base.prints_date:
        notes.append("the base's template prints the day's date; here it always prints 2026-01-01")
    if layout.prompt is not None and layout.seat_prompt("assistant") != layout.prompt:
        notes.append(
            f"the base is prompted for an answer with {layout.prompt!r}, this model with "
            f"{layout.seat_prompt('assistant')!r}, as its answers are printed"
        )
    return SeatTemplates(layout, "derived", base, tokens, thinking, tuple(notes))


def _without_template(layout: Layout, tokens: frozenset[str], thinking: Thinking) -> SeatTemplates:
    if thinking == "keep":
        raise TemplateError(
            f"thinking: keep, but the template {layout.name} prints no thinking; write "
            "thinking: off"
        )
    method: Method = "plain" if layout.name == PLAIN else "family"
    return SeatTemplates(layout, method, None, tokens)


def _first_token(end: str, tokens: frozenset[str]) -> str | None:
    """The token that `end` begins with."""
    return max((t for t in tokens if end.lstrip().startswith(t)), key=len, default=None)


def _refusal(reason: str) -> str:
    return (
        f"the base's chat template cannot be used: {reason}; write template: NAME "
        f"({', '.join(FAMILIES)}, {PLAIN}) or template: FILE.jinja in the recipe"
    )
