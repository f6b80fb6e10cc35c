"""A model that judges answers: what it is asked, what its words mean, and how it is asked no more
than it must be.

Takes a recipe's `Judging` block and an endpoint; gives verdicts. A verdict that cannot be read is
missing, with a reason; it is never a low grade and never left out of the count."""

from hubkit.judging.judge import Judge, Verdict, check_judge, judging, requests_at_once
from hubkit.judging.prompted_judge import PromptedJudge, clipped, context_judge, turn_values
from hubkit.judging.prompts import (
    REFERENCE_CATEGORIES,
    Kind,
    Prompts,
    Turns,
    default_prompts,
    question_prompts,
    read_prompts,
    small_prompts,
    turing_prompts,
)
from hubkit.judging.verdicts import Parse, ParsedReply, Winner, line, rating, winner, yes_or_no

__all__ = [
    "REFERENCE_CATEGORIES",
    "Judge",
    "Kind",
    "Parse",
    "ParsedReply",
    "PromptedJudge",
    "Prompts",
    "Turns",
    "Verdict",
    "Winner",
    "check_judge",
    "clipped",
    "context_judge",
    "default_prompts",
    "judging",
    "line",
    "question_prompts",
    "rating",
    "read_prompts",
    "requests_at_once",
    "small_prompts",
    "turing_prompts",
    "turn_values",
    "winner",
    "yes_or_no",
]
