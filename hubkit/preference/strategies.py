"""Three ways to get a context-dependent question wrong, after what is reported of arXiv 2310.07301,
section 3.3.

Takes a question and dialogues; gives the messages whose answer is the rejected one. The prompts'
wording is ours: the paper's is not public."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hubkit.conversation import Message

GUESS = (
    "Answer the last question of a conversation that you have not seen. "
    "Where the question refers to something that was said before, make up what it may be, "
    "without saying that you do, and answer as if you knew.\n\n"
    "Question: {question}"
)


def neglect(question: str, unrelated: Sequence[Message]) -> list[Message]:
    """Context neglect: the question alone, as if it opened a conversation."""
    return [{"role": "user", "content": question}]


def hallucination(question: str, unrelated: Sequence[Message]) -> list[Message]:
    """Context hallucination: the question alone, with the order to guess what it refers to."""
    return [{"role": "user", "content": GUESS.format(question=question)}]


def misunderstanding(question: str, unrelated: Sequence[Message]) -> list[Message]:
    """Context misunderstanding: the question after `unrelated`, the history of a conversation it
    does not belong to.
    """
    return [*unrelated, {"role": "user", "content": question}]


STRATEGIES: dict[str, Callable[[str, Sequence[Message]], list[Message]]] = {
    "neglect": neglect,
    "hallucination": hallucination,
    "misunderstanding": misunderstanding,
}
