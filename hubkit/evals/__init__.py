"""What a trained model is worth on conversations it never saw.

Takes a recipe's `Evals` block, held-out parquet files and model folders; gives losses per conversation, and differences
between two models on the same conversations with an interval that says how far the sample of conversations matters.
"""

from hubkit.evals.heldout import Candidate, Comparison, HeldOut, compare, heldout, heldout_loss
from hubkit.evals.termination import Termination, termination

__all__ = ["Candidate", "Comparison", "HeldOut", "Termination", "compare", "heldout", "heldout_loss", "termination"]
