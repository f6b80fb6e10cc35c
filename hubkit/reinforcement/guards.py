"""Rewards that need no judge: bounds on length, and on the form of answers."""

from __future__ import annotations

from collections.abc import Sequence

from hubkit.errors import RecipeError
from hubkit.reinforcement.rewards import Episode, Scorer, register

_MARKS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<start_of_turn>", "[INST]")
_LABELS = ("User:", "Human:", "### User", "### Human")


@register
def length(words: int = 300, over: float = 1.0) -> Scorer:
    """Penalises long answers: 0 up to `words` words an answer on average, then falling.

    ``r = -min(1, max(0, mean words of an answer - words) / (over * words))``

    Args:
        words: Words of an answer that cost nothing.
        over: How far beyond that, as a share of `words`, the full penalty of -1 is reached.
    """
    if words < 1 or over <= 0:
        raise RecipeError("reinforce.rewards: length needs words of 1 or more, and over above 0")

    def score(episode: Episode) -> float:
        answers = episode.answers
        mean = sum(len(answer.split()) for answer in answers) / max(len(answers), 1)
        return -min(1.0, max(0.0, mean - words) / (over * words))

    return score


@register
def format() -> Scorer:
    """Penalises broken answers: minus the share of answers that are empty, cut off by their token
    limit, speak for the user, hold marks of a template (the usual ones', or the chat model's
    own), or repeat an earlier answer word for word.
    """

    def score(episode: Episode) -> float:
        answers = episode.answers
        marks = (*_MARKS, *episode.turn_marks)
        broken = sum(_is_broken(text, answers[:index], marks) for index, text in enumerate(answers))
        return -min(1.0, (broken + episode.cut_off) / max(len(answers), 1))

    return score


def _is_broken(text: str, earlier: list[str], marks: Sequence[str]) -> bool:
    return (
        not text.strip()
        or any(mark in text for mark in marks)
        or any(line.startswith(_LABELS) for line in text.splitlines())
        or text.split() in [answer.split() for answer in earlier]
    )
