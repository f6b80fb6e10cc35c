"""What a trained model is worth: on conversations it never saw, and in the eyes of a judge.

Takes a recipe's `Evals` block, held-out parquet files and model folders; gives losses per
conversation, and differences between two models on the same conversations with an interval that
says how far the sample of conversations matters. Or takes a benchmark's questions, served models
and a judge (`judged`); gives grades and win rates with intervals."""

from hubkit.evaluation.held_out_loss import (
    Candidate,
    Comparison,
    HeldOut,
    Seating,
    compare,
    heldout,
    heldout_loss,
    perplexity,
)
from hubkit.evaluation.judged import Judged, judged
from hubkit.evaluation.setup import Player, Setup
from hubkit.evaluation.termination import Termination, termination

__all__ = [
    "Candidate",
    "Comparison",
    "HeldOut",
    "Judged",
    "Player",
    "Seating",
    "Setup",
    "Termination",
    "compare",
    "heldout",
    "heldout_loss",
    "judged",
    "perplexity",
    "termination",
]
