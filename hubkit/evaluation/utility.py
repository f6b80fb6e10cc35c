"""What students of different arms are worth: their loss on a teacher's answers to people's
follow-ups, by turn depth.

A student is scored on held-out dialogues in which people's turns are real and a teacher answered
them; arms are compared on the same dialogues, paired, with intervals over conversations and over
the students' seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from hubkit import chat_templates
from hubkit.conversation import Message
from hubkit.errors import EvalError
from hubkit.evaluation.held_out_loss import usable_rows_with_ids
from hubkit.progress import Progress, silent
from hubkit.recipe import Training
from hubkit.statistics import Bootstrap, among_several, noise
from hubkit.tokenization import load_tokenizer
from hubkit.training.config import quiet_environment
from hubkit.training.likelihood import load_model, token_losses
from hubkit.training.rows import seat_view
from hubkit.untrusted import JsonObject

FOLLOW_UPS = "follow-ups"
_FIRST = 1


@dataclass(frozen=True)
class TurnLosses:
    """One model on held-out dialogues. `nats[i][d]` and `tokens[i][d]` are of answer ``d + 1`` in
    dialogue `ids[i]`: its summed negative log-likelihood, and its tokens."""

    ids: list[str]
    nats: list[list[float]]
    tokens: list[list[int]]

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return {"ids": self.ids, "nats": self.nats, "tokens": self.tokens}


def turn_losses(
    training: Training,
    base: Path,
    adapter: Path | None,
    dialogues: Sequence[Path],
    *,
    max_tokens: int,
    progress: Progress = silent,
) -> TurnLosses:
    """Score every answer in `dialogues` under a student.

    Args:
        training: The block that the student was trained by: its system message and template.
        base: The folder of its base.
        adapter: Its own folder (an adapter or a whole model); None scores the base.
        dialogues: Parquet files with ``id`` and ``messages``.
        max_tokens: Where a dialogue is cut off.

    Raises:
        EvalError: There is nothing to score."""
    quiet_environment()
    tokenizer = load_tokenizer(base)
    templates = chat_templates.for_base(
        base, template=training.template, thinking=training.thinking or "off"
    )
    rows = list(usable_rows_with_ids(dialogues))
    if not rows:
        raise EvalError("there are no held-out dialogues to score; look at study.conversations")
    model = load_model(base, adapter)
    losses = TurnLosses([], [], [])
    for number, (row_id, messages) in enumerate(rows):
        progress(number, len(rows), "dialogues · held-out loss")
        view: list[Message] = seat_view(messages, "assistant", training.system)
        encoded = templates.encode(tokenizer, view, "assistant", max_length=max_tokens)
        nats, counts = _by_turn(encoded, token_losses(model, encoded))
        losses.ids.append(row_id)
        losses.nats.append(nats)
        losses.tokens.append(counts)
    progress(len(rows), len(rows), "dialogues · held-out loss")
    return losses


def _by_turn(
    encoded: chat_templates.Encoded, losses: Sequence[float]
) -> tuple[list[float], list[int]]:
    """Sums over each unbroken stretch of loss-bearing tokens: one answer each."""
    nats: list[float] = []
    counts: list[int] = []
    values, was_loss = iter(losses), False
    for label in encoded.labels[1:]:
        is_loss = label != chat_templates.IGNORE
        if is_loss and not was_loss:
            nats.append(0.0)
            counts.append(0)
        if is_loss:
            nats[-1] += next(values)
            counts[-1] += 1
        was_loss = is_loss
    return nats, counts


def summary(
    scores: Mapping[str, Sequence[TurnLosses]],
    *,
    statistics: Bootstrap,
    baseline: TurnLosses,
) -> JsonObject:
    """Losses of every arm, and the paired difference of every two arms, by turn depth.

    Args:
        scores: Arm → its students' losses, one a seed.
        statistics: How intervals are made.
        baseline: The losses of the student's base, untrained.

    Returns:
        ``depths`` (names, ``1``, ``2``, … and ``follow-ups`` for all after the first), ``arms``
        (arm → depth → estimate), ``base`` (depth → nats per token), ``less_base`` (arm → depth →
        the paired difference from the base), ``differences`` (a list of
        ``arm`` less ``against`` at each ``depth``; negative: the arm's students predict better).
        A difference's ``p_holm`` is adjusted for all pairs of arms at its depth, and its
        ``outside_noise`` goes by it.

    Raises:
        EvalError: The arms were not scored on the same dialogues."""
    for arm, each in scores.items():
        for losses in each:
            if losses.ids != baseline.ids or losses.tokens != baseline.tokens:
                raise EvalError(
                    f"students of arm {arm!r} were not scored on the dialogues of the others"
                )
    deepest = max(map(len, baseline.tokens))
    depths: dict[str, tuple[int, ...]] = {str(d): (d,) for d in range(1, deepest + 1)}
    depths[FOLLOW_UPS] = tuple(range(_FIRST + 1, deepest + 1))
    arms: dict[str, JsonObject] = {}
    base: dict[str, float] = {}
    less_base: dict[str, JsonObject] = {}
    differences: list[JsonObject] = []
    for name, included in depths.items():
        tokens = _sums(baseline.tokens, included)
        untrained = _sums(baseline.nats, included)
        base[name] = float(sum(untrained) / sum(tokens))
        by_arm = {
            arm: [_sums(losses.nats, included) for losses in each] for arm, each in scores.items()
        }
        for arm, students in by_arm.items():
            estimate = statistics.over_replicates(students, tokens)
            arms.setdefault(arm, {})[name] = estimate.to_dict()
            gained = [
                [
                    trained_nats - base_nats
                    for trained_nats, base_nats in zip(student, untrained, strict=True)
                ]
                for student in students
            ]
            estimate = statistics.over_replicates(gained, tokens)
            less_base.setdefault(arm, {})[name] = estimate.to_dict()
        differences += _differences(name, by_arm, tokens, statistics)
    return {
        "depths": list(depths), "arms": arms, "base": base, "less_base": less_base,
        "differences": differences,
    }  # fmt: skip


def _differences(
    depth: str,
    by_arm: Mapping[str, Sequence[Sequence[float]]],
    tokens: Sequence[float],
    statistics: Bootstrap,
) -> list[JsonObject]:
    """Every arm less every other one, by their students' nats."""
    compared = {
        (first, second): statistics.over_replicates(
            [
                [a - b for a, b in zip(one, other, strict=True)]
                for one, other in zip(by_arm[first], by_arm[second], strict=True)
            ],
            tokens,
        )
        for first, second in permutations(by_arm, 2)
    }
    # Both directions of a pair are one comparison.
    judged = among_several({pair: compared[pair] for pair in combinations(by_arm, 2)})
    return [
        {
            "arm": first, "against": second, "depth": depth, **estimate.to_dict(),
            **asdict(judged.get((first, second)) or judged[second, first]),
        }
        for (first, second), estimate in compared.items()
    ]  # fmt: skip


def _sums(turns: Sequence[Sequence[float]], depths: Sequence[int]) -> list[float]:
    return [sum(row[d - 1] for d in depths if d <= len(row)) for row in turns]


def table(report: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """The title, columns and rows of a study's table: loss of each arm by depth, with intervals.

    Args:
        report: What `summary` gave, with ``titles``, ``seeds`` and ``balance``."""
    depths = report["depths"]
    balance = report["balance"]
    title = (
        f"Nats per token on the teacher's answers in {_clusters(report)} held-out conversations, "
        f"{balance['loss_tokens']:,} loss-bearing tokens a student, {len(report['seeds'])} seeds"
    )
    heads = ["arm", *(d if d == FOLLOW_UPS else f"turn {d}" for d in depths)]
    rows = [["untrained base", *(f"{report['base'][d]:.3f}" for d in depths)]]
    for arm, at in report["arms"].items():
        rows.append([report["titles"].get(arm, arm), *(_interval(at[d], "") for d in depths)])
    return title, heads, rows


def curve_table(report: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]] | None:
    """The title, columns and rows of the asker's learning curve; None where the study has none.

    Args:
        report: The report of a study's result."""
    points = report.get("learning_curve")
    if not points:
        return None
    title = (
        "The asker by what it was trained on: nats per token of people's turns in "
        f"{points[0]['conversations']} held-out conversations"
    )
    rows = []
    for point in points:
        difference = point.get("against_base")
        less = "" if difference is None else _interval(difference, "+", "difference")
        sizes = [f"{point[name]:,}" for name in ("tokens", "loss_tokens")]
        rows.append([*sizes, f"{point['loss']:.3f}", less])
    return title, ["tokens", "loss-bearing tokens", "loss", "less the base"], rows


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """What the differences on people's follow-ups allow one to say, one sentence a pair of arms;
    arms that come earlier in the study are what later ones are compared with."""
    order = {arm: number for number, arm in enumerate(report["arms"])}
    sentences = []
    for entry in report["differences"]:
        later = order[entry["arm"]] > order[entry["against"]]
        if entry["depth"] != FOLLOW_UPS or not later:
            continue
        words = noise(entry["outside_noise"])
        titles = [report["titles"].get(name, name) for name in (entry["arm"], entry["against"])]
        sentences.append(
            f"{titles[0]} compared with {titles[1]}, {FOLLOW_UPS}: {_interval(entry, '+')} nats "
            f"per token, {_p_value(entry)}{words}{_detectable(entry)}"
        )
    return sentences


def _detectable(entry: Mapping[str, Any]) -> str:
    smallest = entry["smallest_detectable"]
    if smallest is None:
        return ""
    return f"; a true difference of {smallest:.3f} would be found with 80 % power"


def _p_value(entry: Mapping[str, Any]) -> str:
    p_value = entry.get("p_holm")
    return "" if p_value is None else f"p {p_value:.2g} (Holm), "


def _clusters(report: Mapping[str, Any]) -> int:
    return int(next(iter(report["arms"].values()))[report["depths"][0]]["clusters"])


def _interval(entry: Mapping[str, Any], sign: str, name: str = "value") -> str:
    if entry["low"] is None:
        return f"{entry[name]:{sign}.3f}"
    return f"{entry[name]:{sign}.3f} [{entry['low']:{sign}.3f}, {entry['high']:{sign}.3f}]"
