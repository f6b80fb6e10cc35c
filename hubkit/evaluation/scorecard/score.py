"""What the turns of a player are like, measure by measure, compared with people's at the same
contexts.

Takes contexts and played turns; gives rows of a `Scorecard`. Each function's docstring holds its
formula and source; `hubkit/metrics/scorecard.yaml` says the same to readers of a card."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hubkit.conversation import Conversation
from hubkit.data.filters import FILTERS
from hubkit.evaluation.scorecard.contexts import Context, Contexts
from hubkit.evaluation.scorecard.play import Played, Player, Turn
from hubkit.metrics import Measured, Value
from hubkit.metrics.human_likeness import human_likeness
from hubkit.metrics.lexical import leans_on_context, self_rouge, words
from hubkit.metrics.sampling import Dialogue
from hubkit.metrics.scorecards import PEOPLE, Row
from hubkit.metrics.statistics import Bootstrap
from hubkit.recipe import Scorecard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_CONTENT = re.compile(r"[a-z][a-z'’]{3,}")
_QUANTILES = 101


@dataclass(frozen=True, slots=True)
class _TurnSample:
    """Turns to measure: each with the context it was said in."""

    turns: list[tuple[Context, str]]

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.turns]


def rows(
    block: Scorecard,
    players: Sequence[Player],
    sampled: Contexts,
    played: dict[str, Played],
    seed: int,
) -> list[Row]:
    """People's row, then a row a player, in the order given.

    Everybody's distances and AUC, people's own too, are those to *other* people, at contexts of
    other conversations: people's row says what a player that is exactly like people would score on
    so few turns."""
    real = _TurnSample(
        [(context, context.real) for context in sampled.next if context.real is not None]
    )
    reference = _TurnSample(
        [(context, context.real) for context in sampled.reference if context.real is not None]
    )
    people = Measured(PEOPLE, len(real.turns), len(real.turns))
    _text_measures(people, real, reference, block, seed)
    _first(people, sampled.first, seed, "no first turns were drawn")
    _cut_off_of_people(people)
    result_rows = [
        _row(people, None, {"contexts": len(real.turns), "openings": len(sampled.first)})
    ]
    for player in players:
        result = played[player.name]
        row = Measured(player.name, len(result.next), len(result.next))
        _player(row, player, result, sampled, reference, block, seed)
        result_rows.append(_row(row, player, {"asked": result.requests, "failed": result.failed}))
    return result_rows


def _row(measured: Measured, player: Player | None, counts: dict[str, int]) -> Row:
    values = {name: asdict(value) for name, value in measured.values.items()}
    model = dict(player.model) if player and player.model else None
    return Row(measured.name, model, values, measured.missing, counts)


def _player(
    row: Measured,
    player: Player,
    result: Played,
    sampled: Contexts,
    reference: _TurnSample,
    block: Scorecard,
    seed: int,
) -> None:
    """Every measure of one player. A turn that only ends a conversation has no text: it is an end,
    not a turn.
    """
    row.record("perplexity", player.perplexity, 1, "not measured")
    why = "no opening was asked for" if player.system else "it has no system message to open from"
    _first(row, [turn.text for turn in result.first if turn.text], seed, why)
    turns = {number: turn for number, turn in result.next.items() if turn.text or not turn.ended}
    spoken_turns = _TurnSample(
        [(sampled.next[number], turn.text) for number, turn in turns.items() if turn.text]
    )
    _text_measures(
        row, spoken_turns, reference, block, seed, empty=len(turns) - len(spoken_turns.turns)
    )
    row.record_mean("cut_off", [float(turn.cut_off) for turn in turns.values()], seed)
    _endings(row, player, list(result.next.values()), list(result.ends.values()))


def _cut_off_of_people(people: Measured) -> None:
    for measure in ("perplexity", "cut_off", "end_precision", "end_recall"):
        people.missing[measure] = "people are what this is measured against"


def _text_measures(
    row: Measured,
    sample: _TurnSample,
    reference: _TurnSample,
    block: Scorecard,
    seed: int,
    *,
    empty: int = 0,
) -> None:
    """What is measured of turns alone, held against those of `others`; `empty` turns count as out
    of role.
    """
    _median_words(row, sample, block, seed)
    row.record_mean("context_share", [float(leans_on_context(text)) for text in sample.texts], seed)
    row.record_mean(
        "role_leaks", [float(out_of_role(*turn)) for turn in sample.turns] + [1.0] * empty, seed
    )
    row.record_mean("repetition", [repetition(*turn) for turn in sample.turns], seed)
    if any(context.intent for context, _ in sample.turns):
        row.record_mean("intent_adherence", intent_adherence(sample.turns), seed)
    else:
        row.missing["intent_adherence"] = "the conversations have no intents"
    _distances(row, sample, reference, block, seed)
    _likeness(row, sample, reference, block, seed)


def _first(row: Measured, turns: Sequence[str], seed: int, why: str) -> None:
    if len(turns) < 2:
        row.missing["first_turn_diversity"] = why
    else:
        row.record_mean("first_turn_diversity", first_turn_diversity(turns), seed)


def first_turn_diversity(turns: Sequence[str]) -> list[float]:
    """Per turn, its mean distance to the others: 1 − |words in both| / |words in either| (Jaccard
    1912).

    Their mean is the mean over pairs. That user models should differ in how they begin is from
    arXiv 2510.06552."""
    sets = [set(words(turn)) for turn in turns]
    return [
        fmean(
            1 - len(words_here & words_there) / len(words_here | words_there)
            if words_here | words_there
            else 0.0
            for k, words_there in enumerate(sets)
            if k != at
        )
        for at, words_here in enumerate(sets)
    ]


def out_of_role(context: Context, turn: str) -> bool:
    """Whether the filter ``role_leak`` finds that `turn` is an assistant's, another seat's, or an
    echo of the answer.

    The answer is put where the filter does not look (an opening), so that only `turn`
    is."""
    answer = context.messages[-1]["content"]
    pair = Conversation(
        context.id, [{"role": "user", "content": answer}, {"role": "user", "content": turn}]
    )
    return FILTERS["role_leak"]()(pair) is not None


def repetition(context: Context, turn: str) -> float | None:
    """The highest ROUGE-L F1 (0–100; Lin 2004, W04-1013) of `turn` with an earlier human turn; None
    without one.
    """
    scores = [
        score
        for earlier in context.earlier_turns
        if (score := self_rouge([turn, earlier])) is not None
    ]
    return max(scores, default=None)


def intent_adherence(turns: Sequence[tuple[Context, str]]) -> list[float | None]:
    """Per turn, 1 if it shares more content words with its own intent than with the next
    conversation's, 0 if fewer, ½ if as many; None where there is no intent. Content words have four
    letters or more. The mean is 0.5 by chance."""
    intents = [context.intent for context, _ in turns]
    with_intent = [at for at, intent in enumerate(intents) if intent]
    adherence: list[float | None] = [None] * len(turns)
    for index, next_index in pairwise([*with_intent, *with_intent[:1]]):
        if intents[index] != intents[next_index]:
            content = _content(turns[index][1])
            own_overlap, next_overlap = (
                len(content & _content(str(intents[at]))) for at in (index, next_index)
            )
            adherence[index] = 0.5 * (
                1 + (own_overlap > next_overlap) - (own_overlap < next_overlap)
            )
    return adherence


def _content(text: str) -> set[str]:
    return set(_CONTENT.findall(text.lower()))


def length_distance(sample: Floats, reference: Floats) -> float:
    """1-Wasserstein distance of log2(1 + words): mean absolute difference of the quantiles
    (Vallender 1974).
    """
    import numpy as np

    at = np.linspace(0, 1, _QUANTILES)
    return float(np.abs(np.quantile(sample[:, 0], at) - np.quantile(reference[:, 0], at)).mean())


def style_distance(sample: Floats, reference: Floats, spread: Floats | None = None) -> float:
    """Mean over the surface features of |difference of means| / standard deviation of people's,
    `other`'s by default.

    Burrows's Delta (2002, doi 10.1093/llc/17.3.267) on the features of `style` instead of frequent
    words. A feature that does not vary among people is left out."""
    import numpy as np

    spread = reference[:, 1:].std(axis=0) if spread is None else spread
    varies = spread > 0
    if not varies.any():
        return 0.0
    gaps = (
        np.abs(sample[:, 1:].mean(axis=0) - reference[:, 1:].mean(axis=0))[varies] / spread[varies]
    )
    return float(gaps.mean())


def style(turn: str) -> list[float]:
    """log2(1 + words), then the surface features of a turn (none of which is its length)."""
    tokens = words(turn)
    number, text = max(len(tokens), 1), turn.strip()
    return [
        math.log2(1 + len(tokens)),
        sum(map(len, tokens)) / number,
        text.count(",") / number,
        float("?" in text),
        float("!" in text),
        float("\n" in text),
        float(text[:1].isupper()),
        float(text.endswith(".")),
        float("i" in tokens or any(word.startswith(("i'", "i’")) for word in tokens)),
        float("you" in tokens or "your" in tokens),
        float(any(word in ("please", "thanks", "thank", "pls") for word in tokens)),
    ]


def _distances(
    row: Measured, sample: _TurnSample, reference: _TurnSample, block: Scorecard, seed: int
) -> None:
    """Both distances from the turns of `others`, with bootstrap intervals over either side.

    A distance between samples is biased upwards, and that of resamples twice: so the resampled
    distances are moved by what their mean is above the sample's own, and cut at 0."""
    import numpy as np

    if len(sample.turns) < 2 or len(reference.turns) < 2:
        row.missing |= dict.fromkeys(
            ("length_distance", "style_distance"), "fewer than 2 turns on a side"
        )
        return
    sample_styles, reference_styles = (
        np.array([style(text) for text in side.texts]) for side in (sample, reference)
    )
    spread = reference_styles[:, 1:].std(axis=0)
    rng = np.random.default_rng(seed)
    draws = [
        (
            sample_styles[rng.integers(0, len(sample_styles), len(sample_styles))],
            reference_styles[rng.integers(0, len(reference_styles), len(reference_styles))],
        )
        for _ in range(block.resamples)
    ]
    for name, distance in (
        ("length_distance", length_distance),
        ("style_distance", partial(style_distance, spread=spread)),
    ):
        resampled, value = (
            np.array([distance(*draw) for draw in draws]),
            distance(sample_styles, reference_styles),
        )
        shifted = np.maximum(resampled - resampled.mean() + value, 0)
        low, high = Bootstrap().ends(shifted, min(len(sample_styles), len(reference_styles)))
        row.values[name] = Value(value, len(sample_styles), low, high)


def _median_words(row: Measured, sample: _TurnSample, block: Scorecard, seed: int) -> None:
    if not sample.turns:
        row.missing["words_per_turn"] = "no turn has text"
        return
    lengths = [len(words(text)) for text in sample.texts]
    number = Bootstrap(block.resamples, seed=seed).median_of(lengths)
    assert number.value is not None
    row.values["words_per_turn"] = Value(number.value, number.n, number.low, number.high)


def _likeness(
    row: Measured, sample: _TurnSample, reference: _TurnSample, block: Scorecard, seed: int
) -> None:
    sides = [
        [Dialogue(context.id, [*context.messages, {"role": "user", "content": text}],
                  len(context.messages))
         for context, text in side.turns]
        for side in (sample, reference)
    ]  # fmt: skip
    likeness = human_likeness(*sides, seed=seed, resamples=block.resamples)
    if likeness is None:
        row.missing["likeness_auc"] = "fewer than 25 turns on a side"
    else:
        row.values["likeness_auc"] = Value(
            likeness.auc, likeness.turns, likeness.low, likeness.high
        )


def _endings(row: Measured, player: Player, went_on: Sequence[Turn], ended: Sequence[Turn]) -> None:
    """Precision and recall of the end mark: contexts at which people ended against those at which
    they went on.

    They depend on how many of either were asked for; both numbers are in the results. Dialogue
    termination as a property of user models: arXiv 2510.06552."""
    if not player.end_mark:
        row.missing |= dict.fromkeys(("end_precision", "end_recall"), "it has no end mark")
        return
    hits, false = sum(turn.ended for turn in ended), sum(turn.ended for turn in went_on)
    row.record(
        "end_precision",
        hits / (hits + false) if hits + false else None,
        hits + false,
        "it never ended",
    )
    row.record(
        "end_recall",
        hits / len(ended) if ended else None,
        len(ended),
        "no conversation ended on an answer",
    )


def settings(block: Scorecard, sampled: Contexts, seed: int, data: Any) -> dict[str, Any]:
    """What a reader must know to compare two scorecards: the contexts, how they were drawn, and the
    sampling.
    """
    return {
        "contexts": len(sampled.next),
        "other_contexts": len(sampled.reference),
        "ends": len(sampled.ends),
        "openings": block.openings,
        "context_chars": block.context_chars,
        "sampling": block.sampling.model_dump(),
        "seed": seed,
        "data": data,
    }
