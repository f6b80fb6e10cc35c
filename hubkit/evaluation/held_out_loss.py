"""Held-out loss of a seat: how well a model predicts the turns that were really written in it.

Takes a base folder, an adapter or model folder or none, and conversations; gives nats and tokens
per conversation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubkit import chat_templates
from hubkit.conversation import Message, Seat, fault
from hubkit.errors import SourceError
from hubkit.progress import Progress, part, silent
from hubkit.recipe import Evals, Training
from hubkit.statistics import Bootstrap, Number, ratio
from hubkit.tokenization import load_tokenizer
from hubkit.training.config import quiet_environment
from hubkit.training.likelihood import load_model, score
from hubkit.training.rows import seat_view
from hubkit.untrusted import JsonObject


@dataclass(frozen=True)
class HeldOut:
    """One model on one set of conversations. Row ``i`` of `ids`, `nats` and `tokens` is one
    conversation: the summed negative log-likelihood of the seat's tokens in it (nats), and how many
    they are. `skipped` counts rows by reason."""

    seat: str
    ids: list[str]
    nats: list[float]
    tokens: list[int]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Nats per token over all conversations together."""
        return sum(self.nats) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """e to the power of `loss`."""
        return math.exp(self.loss)

    def to_dict(self) -> JsonObject:
        """Plain data, `loss` and `perplexity` included."""
        return {**asdict(self), "loss": self.loss, "perplexity": self.perplexity}


def perplexity(nats: Sequence[float], tokens: Sequence[int], bootstrap: Bootstrap) -> Number:
    """Estimate e to the power of the loss per token; the interval draws conversations.

    Args:
        nats: The summed negative log-likelihood of each conversation.
        tokens: How many tokens of each that is of.
        bootstrap: How the interval is made."""
    value = math.exp(sum(nats) / sum(tokens))
    low, high = bootstrap.interval(len(nats), ratio(nats, tokens))
    if math.isnan(low):
        return Number(value, len(nats))
    return Number(value, len(nats), math.exp(low), math.exp(high))


@dataclass(frozen=True)
class Comparison:
    """`difference` is the first model's loss less the second's (nats per token; negative: the first
    predicts better), `low` and `high` the bootstrap interval at `confidence`, over `conversations`
    drawn with replacement."""

    difference: float
    low: float
    high: float
    confidence: float
    resamples: int
    conversations: int

    @property
    def outside_noise(self) -> bool:
        """Whether the interval lies on one side of zero."""
        number = Number(self.difference, self.conversations, self.low, self.high)
        return number.excludes_zero

    def to_dict(self) -> JsonObject:
        """Plain data, `outside_noise` included."""
        return {**asdict(self), "outside_noise": self.outside_noise}


@dataclass(frozen=True)
class Seating:
    """Whose turns are scored, and what is read before them.

    Attributes:
        seat: Who wrote them.
        system: The system message in front.
        intent_column: The column whose text goes into it, as in training; rows without are skipped.
        printed_as: Prints the turns under the other speaker's label: a base that is *told* to play
            the user, instead of sitting in the user's seat. None: `seat`.
        template: How conversations are printed, as in the recipe's block; None: as the base does.
        thinking: As in the recipe's block.
    """

    seat: Seat
    system: str | None = None
    intent_column: str | None = None
    printed_as: Seat | None = None
    template: str | None = None
    thinking: chat_templates.Thinking = "off"

    @classmethod
    def of(cls, training: Training, *, printed_as: Seat | None = None) -> Seating:
        """As `training` trains its seat."""
        return cls(
            training.seat, training.system, training.intent_column, printed_as,
            training.template, training.thinking or "off",
        )  # fmt: skip

    def view(self, row: Mapping[str, Any]) -> list[Message] | str:
        """A row's messages as the seat sees them, or why they cannot be scored."""
        messages = row["messages"]
        reason = fault(messages, first=None) if isinstance(messages, list) else "bad_message"
        if reason is not None:
            return reason
        intent = row.get(self.intent_column) if self.intent_column else None
        if self.intent_column and not (isinstance(intent, str) and intent.strip()):
            return "no_intent"
        return seat_view(messages, self.seat, self.system, intent=intent)


def heldout_loss(
    block: Evals,
    base: Path,
    adapter: Path | None,
    data: Sequence[Path],
    seating: Seating,
    *,
    progress: Progress = silent,
) -> HeldOut:
    """Loss of a seat's turns under the model in `base`, with `adapter` (an adapter or a whole model
    folder) if given.

    The first ``block.conversations`` usable rows of `data` are scored, each cut to
    ``block.max_tokens``. Every model is given the same text, as `seating` says.

    Raises `SourceError` when data or models cannot be read, or when no row is usable.
    """
    quiet_environment()
    tokenizer = load_tokenizer(base)
    skipped: dict[str, int] = {}
    seat = seating.seat
    templates = chat_templates.for_base(base, template=seating.template, thinking=seating.thinking)
    printer = _Printer(tokenizer, templates, seat, seating.printed_as or seat, block)
    rows = list(_encoded(block, data, printer, seating, skipped))
    if not rows:
        raise SourceError(
            f"none of the held-out rows has a turn of seat {seat!r} ({skipped}); "
            "check the test split"
        )
    model = load_model(base, adapter)
    nats: list[float] = []
    for index, (_, encoded) in enumerate(rows):
        progress(index, len(rows), f"conversations · held-out loss, {seat} seat")
        nats.append(score(model, encoded))
    progress(len(rows), len(rows), f"conversations · held-out loss, {seat} seat")
    return HeldOut(
        seat, [row_id for row_id, _ in rows], nats, [e.loss_tokens for _, e in rows], skipped
    )


def compare(
    first: HeldOut, second: HeldOut, *, resamples: int, confidence: float, seed: int = 0
) -> Comparison:
    """Paired bootstrap over conversations of the difference in loss per token, `first` less
    `second`.

    Conversations, not tokens, are drawn: tokens of one conversation are not independent. Percentile
    interval (Efron). Raises `ValueError` unless both hold the same conversations with the same
    numbers of tokens."""
    import numpy as np

    if first.ids != second.ids or first.tokens != second.tokens:
        raise ValueError(
            "only losses over the same conversations and the same tokens can be compared"
        )
    differences = np.array(first.nats) - np.array(second.nats)
    statistic = ratio(differences, first.tokens)
    low, high = Bootstrap(resamples, confidence, seed).interval(len(first.tokens), statistic)
    return Comparison(first.loss - second.loss, low, high, confidence, resamples, len(first.tokens))


@dataclass(frozen=True)
class Candidate:
    """A trained model to be judged: the block it was trained by, its base's folder and its own.

    `rivals` are further models on that base (name → folder) that it is held against.
    """

    training: Training
    base: Path
    trained: Path
    rivals: Mapping[str, Path] = field(default_factory=dict)


def heldout(
    block: Evals,
    data: Sequence[Path],
    candidates: Mapping[str, Candidate],
    *,
    seed: int,
    progress: Progress = silent,
) -> JsonObject:
    """The content of a results file: per candidate its own held-out loss, its base's, and the
    paired difference.

    ``{name: {"seat", "system", "arms": {arm: losses}, "trained": "trained", "against": {arm:
    comparison}}}``, with the arms ``trained``, ``base`` (in the same seat) and, for askers and with
    ``block.prompted_base``, ``prompted``: the base that keeps its own seat and is only asked, by
    its system message, to play the user. A candidate's rivals are arms too. A model that several
    candidates are held against is scored once."""
    scored: dict[tuple[Any, ...], HeldOut] = {}
    return {
        name: _judge(
            block,
            data,
            candidate,
            seed,
            scored,
            part(progress, number, len(candidates), name, "held-out losses"),
        )
        for number, (name, candidate) in enumerate(candidates.items())
    }


def _judge(
    block: Evals,
    data: Sequence[Path],
    candidate: Candidate,
    seed: int,
    scored: dict[tuple[Any, ...], HeldOut],
    progress: Progress,
) -> JsonObject:
    training = candidate.training
    seat, system = training.seat, training.system
    plans: dict[str, tuple[Path | None, Seat]] = {
        "base": (None, seat),
        "trained": (candidate.trained, seat),
    }
    plans |= {name: (folder, seat) for name, folder in candidate.rivals.items()}
    if seat == "user" and block.prompted_base:
        plans["prompted"] = (None, "assistant")
    arms: dict[str, HeldOut] = {}
    for number, (arm, (folder, printed_as)) in enumerate(plans.items()):
        arm_progress = part(progress, number, len(plans), arm, "models")
        seating = Seating.of(training, printed_as=printed_as)
        key = (candidate.base, folder, seating)
        if key not in scored:
            scored[key] = heldout_loss(
                block, candidate.base, folder, data, seating, progress=arm_progress
            )
        arms[arm] = scored[key]
    trained = arms["trained"]
    against = {
        name: compare(
            trained, arm, resamples=block.resamples, confidence=block.confidence, seed=seed
        ).to_dict()
        for name, arm in arms.items()
        if arm is not trained
    }
    return {
        "seat": seat,
        "system": system,
        "arms": {name: arm.to_dict() for name, arm in arms.items()},
        "trained": "trained",
        "against": against,
    }


class _Printer:
    """Messages in the seat's view → what is scored. Printed under other labels, exactly the same
    tokens are scored.
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: chat_templates.SeatTemplates,
        seat: Seat,
        printed_as: Seat,
        block: Evals,
    ) -> None:
        self.tokenizer, self.seat, self.max_length = tokenizer, seat, block.max_tokens
        self.templates = templates
        self.printed_as = printed_as

    def __call__(self, view: list[Message]) -> chat_templates.Encoded:
        encode = self.templates.encode
        seated = encode(self.tokenizer, view, self.seat, max_length=self.max_length)
        if self.printed_as == self.seat:
            return seated
        return encode(self.tokenizer, view, self.printed_as).upto(seated.loss_tokens)


def _encoded(
    block: Evals,
    data: Sequence[Path],
    printer: _Printer,
    seating: Seating,
    skipped: dict[str, int],
) -> Iterator[tuple[str, chat_templates.Encoded]]:
    usable = 0
    for index, row in enumerate(rows_of(data)):
        if usable == block.conversations:
            return
        view = seating.view(row)
        if not isinstance(view, str):
            encoded = printer(view)
            if encoded.loss_tokens:
                usable += 1
                yield str(row.get("id", index)), encoded
                continue
        reason = view if isinstance(view, str) else "no_loss_tokens"
        skipped[reason] = skipped.get(reason, 0) + 1


def usable_rows_with_ids(data: Sequence[Path]) -> Iterator[tuple[str, list[Message]]]:
    """The id and the messages of every well-formed row, in order."""
    for index, row in enumerate(rows_of(data)):
        if isinstance(row["messages"], list) and fault(row["messages"], first=None) is None:
            yield str(row.get("id", index)), row["messages"]


def rows_of(data: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Every row of parquet files, in order. Raises `SourceError` for what is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in data:
        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
                yield from batch.to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(
                f"{path} cannot be read as parquet ({type(error).__name__}); write it again"
            ) from None
