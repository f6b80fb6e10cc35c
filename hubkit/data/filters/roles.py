"""Filters that only a rollout needs: seats that forget who they are, refusals, talk that never
moves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hubkit.conversation import Conversation
from hubkit.data.filters.chain import Context, Drop, Edit, FilterFn, Verdict, register
from hubkit.data.filters.shingles import COMMON_WORDS, is_unspaced, words_of

_NAMES = ("User", "Human", "Assistant", "ChatGPT", "USER", "HUMAN", "ASSISTANT")
_LABEL = re.compile(rf"^(?:\*\*|### ?)?(?:{'|'.join(_NAMES)})(?:\*\*)?:", re.MULTILINE)
_SPECIAL = re.compile(
    r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|<start_of_turn>|<end_of_turn>", re.I
)


def _phrases(*alternatives: str) -> re.Pattern[str]:
    """One pattern out of phrases, in either apostrophe."""
    return re.compile("(?:" + "|".join(alternatives).replace("'", "(?:'|’)?") + ")", re.IGNORECASE)


# How chat models, and hardly any people, begin a turn.
_ASSISTANT_OPENING = _phrases(
    r"\W*(?:certainly|absolutely|of course|sure(?: thing)?)[!,.:]",
    r"\W*you(?:'re| are) (?:very |most )?welcome",
    r"\W*(?:i'd|i would) be (?:happy|glad|delighted) to (?:help|assist)",
    r"\W*(?:how|what) (?:can|may) i (?:help|assist)",
    r"\W*(?:(?:that's|what) a )?(?:great|good|excellent) question",
    r"\W*thank you for (?:your|the) question",
    r"\W*(?:hello|hi)[!,.]? (?:i'm|i am) (?:here to|an ai)",
    r"\W*as an ai\b",
    r"\W*i can (?:certainly |definitely )?(?:help|assist)(?: you)? with (?:that|this|your)\b",
    r"\W*here's (?:a|an|the|some) [\w ]{2,40}:",
)
_ASSISTANT_ANYWHERE = _phrases(
    r"\bi(?:'m| am) here to (?:help|assist)\b",
    r"\bas an ai (?:language )?(?:model|assistant)\b",
    r"\bi(?:'m| am) an ai (?:language )?(?:model|assistant)\b",
    r"\b(?:let me know|feel free to (?:ask|let me know)) if you (?:have any|need any|need)\b",
    r"\b(?:is there anything else|how else) (?:that )?(?:i|you'd like me to) (?:can |could "
    r")?(?:help|assist)\b",
)
# Of these, each match of the pattern above holds one.
_IN_ASSISTANT_ANYWHERE = (
    "here to ",
    " an ai ",
    "let me know if you ",
    "feel free to ",
    "is there anything else ",
    "how else ",
)
_CANNOT = r"(?:can't|cannot|can not|am unable|'m unable|am not able|'m not able|won't)"
_REFUSAL = _phrases(
    rf"\W*(?:i'm|i am) (?:very |really |so )?(?:sorry|afraid)[^.\n]{{0,40}}?(?:i|,)? ?{_CANNOT}",
    r"\W*i (?:can't|cannot|won't) (?:assist|help|provide|fulfil|comply|engage|create|generate"
    r"|answer|do that)",
    r"\W*as an ai (?:language )?(?:model|assistant),? i (?:can't|cannot|do not|don't|am not|'m "
    r"not)",
    r"\W*(?:i'm|i am) unable to",
    r"\W*my apologies, but i",
    r"\W*(?:es )?tut mir (?:sehr )?leid[^.\n]{0,40}(?:kann|darf) (?:ich|dir|ihnen|das|diese)",
    r"\W*(?:ich )?kann (?:ich )?(?:dir|ihnen|dabei|das|diese)[^.\n]{0,40}nicht (?:helfen"
    r"|erstellen|tun)",
    r"\W*(?:je suis )?désolée?[^.\n]{0,40}je ne peux",
    r"\W*lo siento[^.\n]{0,40}no (?:puedo|me es posible)",
    r"\W*mi dispiace[^.\n]{0,40}non posso",
    r"\W*(?:sinto muito|desculpe)[^.\n]{0,40}não posso",
    r"\W*(?:извините|к сожалению|простите)[^.\n]{0,40}я не могу",
    r"\W*(?:很?抱歉|对不起|對不起)[^。\n]{0,20}(?:我|本)[^。\n]{0,8}(?:不能|无法|無法|不会)",
    r"\W*(?:申し訳(?:ございません|ありません)|すみません|残念ながら)[^。\n]{0,60}(?:できません|できかねます|お答えできない)",
)
# Scripts in which no refusal is known: Arabic, Hebrew, Indic ones, Thai, Hangul, Greek and others.
_OTHER_SCRIPT = re.compile(
    "[\u0370-\u03ff\u0530-\u06ff\u0900-\u0eff\u1000-\u109f\u10a0-\u10ff\u1200-\u137f"
    "\u1780-\u17ff\uac00-\ud7af]{3}"
)


@register
def role_leak(
    echo: float = 0.9, marks: list[str] | None = None, *, context: Context | None = None
) -> FilterFn:
    """Drop dialogues in which a seat forgets who it is.

    ``user_speaks_as_assistant``: a human turn opens as chat models do, thanks itself, or calls
    itself an AI. ``speaker_label``: a turn writes "User:" or "Assistant:" at the start of a line,
    going on for the other seat. ``special_token``: a turn holds a chat template's own marks: those
    of the usual templates, those that open turns of the seats' own (as the rollout says), and those
    that `marks` names.
    ``user_echoes`` / ``assistant_echoes``: a turn of five words or more repeats the one before it,
    word for word, for at least the share `echo` of both. The opening turn, which a person wrote, is
    not judged. How assistants open is known in English alone; labels, marks and echoes are found in
    any language."""

    opening_marks = (*(context.turn_marks if context else ()), *(marks or ()))

    def decide(conversation: Conversation) -> Verdict:
        before = ""
        opening = next((i for i, m in enumerate(conversation.messages) if m["role"] == "user"), -1)
        for index, message in enumerate(conversation.messages):
            text, role = message["content"], message["role"]
            if role == "system":
                continue
            if index != opening and (
                reason := _leak(text, role, opening_marks) or _echo(text, before, role, echo)
            ):
                return Drop(reason)
            before = text
        return None

    return decide


def _leak(text: str, role: str, marks: Sequence[str]) -> str | None:
    if _SPECIAL.search(text) or any(mark in text for mark in marks):
        return "special_token"
    # In code it is a mapping's key.
    if "```" not in text and any(map(text.__contains__, _NAMES)) and _LABEL.search(text):
        return "speaker_label"
    if role == "user" and (_ASSISTANT_OPENING.match(text) or _says_it_is_an_assistant(text)):
        return "user_speaks_as_assistant"
    return None


def _says_it_is_an_assistant(text: str) -> bool:
    lower = text.lower()  # literals are found many times faster than patterns
    return (
        any(map(lower.__contains__, _IN_ASSISTANT_ANYWHERE))
        and _ASSISTANT_ANYWHERE.search(text) is not None
    )


def _echo(text: str, before: str, role: str, share: float) -> str | None:
    if not share * len(before) * 0.9 <= len(text) <= len(before) / share / 0.9 or len(text) < 10:
        return None  # too different in length to be an echo; splitting into words costs most
    words, earlier_words = words_of(text), words_of(before)
    if len(words) < 5 or not earlier_words:
        return None
    common = sum(word == earlier for word, earlier in zip(words, earlier_words, strict=False))
    return f"{role}_echoes" if common >= share * max(len(words), len(earlier_words)) else None


@register
def refusals(max_share: float = 0.0) -> FilterFn:
    """Drop dialogues in which more than the share `max_share` of the answers opens with a refusal.

    Known are refusals in English, German, French, Spanish, Italian, Portuguese, Russian, Chinese
    and Japanese. A dialogue whose answers are written in another script is kept, and counted under
    ``refusals_not_judged``."""

    def decide(conversation: Conversation) -> Verdict:
        answers = [m["content"] for m in conversation.messages if m["role"] == "assistant"]
        refused = sum(bool(_REFUSAL.match(answer[:200])) for answer in answers)
        if refused > max_share * len(answers):
            return Drop("refusal")
        starts = (answer[:200] for answer in answers)
        if any(not start.isascii() and _OTHER_SCRIPT.search(start) for start in starts):
            return Edit([conversation], "refusals_not_judged")
        return None

    return decide


@register
def leaves_topic(overlap: float = 0.5, min_words: int = 3) -> FilterFn:
    """Drop dialogues whose human never leaves the first topic: a word heuristic, for recipes that
    want topics to move.

    A later human turn stays on the topic when at least the share `overlap` of its content words
    (four letters or more, common words aside) occurred in the opening exchange; turns of fewer than
    `min_words` content words ("go on") stay as well. A dialogue whose later turns all stay is
    dropped as ``never_leaves_topic``. Where a later human turn is in a script without spaces, words
    are not known: the dialogue is kept, and counted under ``topic_not_judged``. In languages other
    than English, common words count as content."""

    def decide(conversation: Conversation) -> Verdict:
        turns = [m for m in conversation.messages if m["role"] != "system"]
        if any(is_unspaced(turn["content"]) for turn in turns[2:] if turn["role"] == "user"):
            return Edit([conversation], "topic_not_judged")
        topic = {word for turn in turns[:2] for word in _content_words(turn["content"])}
        for turn in turns[2:]:
            if turn["role"] != "user":
                continue
            words = _content_words(turn["content"])
            if len(words) >= min_words and sum(word in topic for word in words) < overlap * len(
                words
            ):
                return None
        return Drop("never_leaves_topic")

    return decide


def _content_words(text: str) -> set[bytes]:
    return {word for word in words_of(text) if len(word) > 3 and word not in COMMON_WORDS}
