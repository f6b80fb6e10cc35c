"""Does a question need the conversation before it? A stated heuristic: pronouns, references and
ellipses of English.

Takes a human turn; gives the kind of dependence, or None. It reads surface signs only, so it errs
both ways; a recipe may let a judge model look at what it finds."""

from __future__ import annotations

import re

# A pronoun early in a turn has its antecedent further back, unless the turn is long enough to hold
# it itself.
_EARLY_WORDS = 12
_LONG_TURN_WORDS = 40
_ELLIPSIS_WORDS = 7

_PRONOUN = re.compile(
    r"\b(it|its|they|them|their|theirs|these|those|this|that|he|she|him|his|hers)\b", re.IGNORECASE
)
_DUMMY = re.compile(
    r"\b(is it (possible|true|better|worth)|it is|it's (possible|true)|that is to say)\b",
    re.IGNORECASE,
)
_REFERENCE = re.compile(
    r"\b(the (above|former|latter|previous|first|second|third|last|same|other) ?\w*|above|"
    r"previous|again|instead|another (one|example|way)|more (examples?|details?|of)|the (code|"
    r"list|table|text|answer|story|example)|(your|you) (answer|response|said|mentioned|wrote|"
    r"gave))\b",
    re.IGNORECASE,
)
_ELLIPSIS = re.compile(
    r"^(and|or|but|so|also|then|why|how so|how come|what about|how about|what if|which one|"
    r"continue|go on|go ahead|more|another|shorter|longer|yes|no|ok|okay|sure|explain|elaborate|"
    r"rewrite|summari[sz]e|translate)\b",
    re.IGNORECASE,
)


def dependence(turn: str) -> str | None:
    """``ellipsis``, ``pronoun`` or ``reference`` where `turn` seems to need what came before, else
    None.

    >>> dependence("And with rye?"), dependence("Why does it rise?"), dependence("What is the
    capital of France?") ('ellipsis', 'pronoun', None)"""
    words = turn.split()
    if not words or len(words) > _LONG_TURN_WORDS:
        return None
    if len(words) <= _ELLIPSIS_WORDS and _ELLIPSIS.search(turn.strip()):
        return "ellipsis"
    early = _DUMMY.sub("", " ".join(words[:_EARLY_WORDS]))
    if _PRONOUN.search(early):
        return "pronoun"
    return "reference" if _REFERENCE.search(early) else None
