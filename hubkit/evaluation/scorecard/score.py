"""What the turns of a player are like, measure by measure, beside people's at the same contexts.

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
from hubkit.recipe import Scorecard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_CONTENT = re.compile(r"[a-z][a-z'’]{3,}")
_QUANTILES = 101


@dataclass(frozen=True, slots=True)
class _Said:
    """Turns to measure: each with the context it was said in."""

    turns: list[tuple[Context, str]]

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.turns]


def rows(
    block: Scorecard,
    players: Sequence[Player],
    found: Contexts,
    played: dict[str, Played],
    seed: int,
) -> list[Row]:
    """People's row, then a row a player, in the order given.

    Everybody's distances and AUC, people's own too, are those to *other* people, at contexts of
    other conversations: people's row says what a player that is exactly like people would score on
    so few turns."""
    real = _Said([(context, context.real) for context in found.next if context.real is not None])
    others = _Said(
        [(context, context.real) for context in found.others if context.real is not None]
    )
    people = Measured(PEOPLE, len(real.turns), len(real.turns))
    _text_measures(people, real, others, block, seed)
    _first(people, found.first, seed, "no first turns were drawn")
    _cut_off_of_people(people)
    made = [_row(people, None, {"contexts": len(real.turns), "openings": len(found.first)})]
    for player in players:
        result = played[player.name]
        row = Measured(player.name, len(result.next), len(result.next))
        _player(row, player, result, found, others, block, seed)
        made.append(_row(row, player, {"asked": result.asked, "failed": result.failed}))
    return made


def _row(measured: Measured, player: Player | None, counts: dict[str, int]) -> Row:
    values = {name: asdict(value) for name, value in measured.values.items()}
    model = dict(player.model) if player and player.model else None
    return Row(measured.name, model, values, measured.missing, counts)


def _player(
    row: Measured,
    player: Player,
    result: Played,
    found: Contexts,
    others: _Said,
    block: Scorecard,
    seed: int,
) -> None:
    """Every measure of one player. A turn that only ends a conversation has no text: it is an end,
    not a turn.
    """
    row.put("perplexity", player.perplexity, 1, "not measured")
    why = "no opening was asked for" if player.system else "it has no system message to open from"
    _first(row, [turn.text for turn in result.first if turn.text], seed, why)
    turns = {number: turn for number, turn in result.next.items() if turn.text or not turn.ended}
    said = _Said([(found.next[number], turn.text) for number, turn in turns.items() if turn.text])
    _text_measures(row, said, others, block, seed, empty=len(turns) - len(said.turns))
    row.put_mean("cut_off", [float(turn.cut_off) for turn in turns.values()], seed)
    _endings(row, player, list(result.next.values()), list(result.ends.values()))


def _cut_off_of_people(people: Measured) -> None:
    for measure in ("perplexity", "cut_off", "end_precision", "end_recall"):
        people.missing[measure] = "people are what this is measured against"


def _text_measures(
    row: Measured, said: _Said, others: _Said, block: Scorecard, seed: int, *, empty: int = 0
) -> None:
    """What is measured of turns alone, held against those of `others`; `empty` turns count as out
    of role.
    """
    _median_words(row, said, block, seed)
    row.put_mean("context_share", [float(leans_on_context(text)) for text in said.texts], seed)
    row.put_mean(
        "role_leaks", [float(out_of_role(*turn)) for turn in said.turns] + [1.0] * empty, seed
    )
    row.put_mean("repetition", [repetition(*turn) for turn in said.turns], seed)
    if any(context.intent for context, _ in said.turns):
        row.put_mean("intent_adherence", intent_adherence(said.turns), seed)
    else:
        row.missing["intent_adherence"] = "the conversations have no intents"
    _distances(row, said, others, block, seed)
    _likeness(row, said, others, block, seed)


def _first(row: Measured, turns: Sequence[str], seed: int, why: str) -> None:
    if len(turns) < 2:
        row.missing["first_turn_diversity"] = why
    else:
        row.put_mean("first_turn_diversity", first_turn_diversity(turns), seed)


def first_turn_diversity(turns: Sequence[str]) -> list[float]:
    """Per turn, its mean distance to the others: 1 − |words in both| / |words in either| (Jaccard 1912).

    Their mean is the mean over pairs. That user models should differ in how they begin is from
    arXiv 2510.06552."""
    sets = [set(words(turn)) for turn in turns]
    return [
        fmean(
            1 - len(one & other) / len(one | other) if one | other else 0.0
            for k, other in enumerate(sets)
            if k != at
        )
        for at, one in enumerate(sets)
    ]


def out_of_role(context: Context, turn: str) -> bool:
    """Whether the filter ``role_leak`` finds that `turn` is an assistant's, another seat's, or an
    echo of the answer.

    The answer stands in the place that the filter does not judge (an opening), so that only `turn`
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
    scores = [score for said in context.said if (score := self_rouge([turn, said])) is not None]
    return max(scores, default=None)


def intent_adherence(turns: Sequence[tuple[Context, str]]) -> list[float | None]:
    """Per turn, 1 if it shares more content words with its own intent than with the next
    conversation's, 0 if fewer, ½ if as many; None where there is no intent. Content words have four
    letters or more. The mean is 0.5 by chance."""
    intents = [context.intent for context, _ in turns]
    known = [at for at, intent in enumerate(intents) if intent]
    found: list[float | None] = [None] * len(turns)
    for one, other in pairwise([*known, *known[:1]]):
        if intents[one] != intents[other]:
            said = _content(turns[one][1])
            mine, theirs = (len(said & _content(str(intents[at]))) for at in (one, other))
            found[one] = 0.5 * (1 + (mine > theirs) - (mine < theirs))
    return found


def _content(text: str) -> set[str]:
    return set(_CONTENT.findall(text.lower()))


def length_distance(one: Floats, other: Floats) -> float:
    """1-Wasserstein distance of log2(1 + words): mean absolute difference of the quantiles
    (Vallender 1974).
    """
    import numpy as np

    at = np.linspace(0, 1, _QUANTILES)
    return float(np.abs(np.quantile(one[:, 0], at) - np.quantile(other[:, 0], at)).mean())


def style_distance(one: Floats, other: Floats, spread: Floats | None = None) -> float:
    """Mean over the surface features of |difference of means| / standard deviation of people's, `other`'s by default.

    Burrows's Delta (2002, doi 10.1093/llc/17.3.267) on the features of `style` instead of frequent
    words. A feature that does not vary among people is left out."""
    import numpy as np

    spread = other[:, 1:].std(axis=0) if spread is None else spread
    varies = spread > 0
    if not varies.any():
        return 0.0
    gaps = np.abs(one[:, 1:].mean(axis=0) - other[:, 1:].mean(axis=0))[varies] / spread[varies]
    return float(gaps.mean())


def style(turn: str) -> list[float]:
    """log2(1 + words), then the surface features of a turn (none of which is its length)."""
    said = words(turn)
    number, text = max(len(said), 1), turn.strip()
    return [
        math.log2(1 + len(said)),
        sum(map(len, said)) / number,
        text.count(",") / number,
        float("?" in text),
        float("!" in text),
        float("\n" in text),
        float(text[:1].isupper()),
        float(text.endswith(".")),
        float("i" in said or any(word.startswith(("i'", "i’")) for word in said)),
        float("you" in said or "your" in said),
        float(any(word in ("please", "thanks", "thank", "pls") for word in said)),
    ]


def _distances(row: Measured, said: _Said, others: _Said, block: Scorecard, seed: int) -> None:
    """Both distances from the turns of `others`, with bootstrap intervals over either side.

    A distance between samples is biased upwards, and that of resamples twice: so the resampled
    distances are moved by what their mean is above the sample's own, and cut at 0."""
    import numpy as np

    if len(said.turns) < 2 or len(others.turns) < 2:
        row.missing |= dict.fromkeys(
            ("length_distance", "style_distance"), "fewer than 2 turns on a side"
        )
        return
    one, other = (np.array([style(text) for text in side.texts]) for side in (said, others))
    spread = other[:, 1:].std(axis=0)
    rng = np.random.default_rng(seed)
    draws = [
        (one[rng.integers(0, len(one), len(one))], other[rng.integers(0, len(other), len(other))])
        for _ in range(block.resamples)
    ]
    for name, distance in (
        ("length_distance", length_distance),
        ("style_distance", partial(style_distance, spread=spread)),
    ):
        drawn, found = np.array([distance(*draw) for draw in draws]), distance(one, other)
        low, high = np.quantile(np.maximum(drawn - drawn.mean() + found, 0), [0.025, 0.975])
        row.values[name] = Value(found, len(one), float(low), float(high))


def _median_words(row: Measured, said: _Said, block: Scorecard, seed: int) -> None:
    import numpy as np

    if not said.turns:
        row.missing["words_per_turn"] = "no turn has text"
        return
    lengths = np.array([len(words(text)) for text in said.texts])
    rng = np.random.default_rng(seed)
    drawn = [
        np.median(lengths[rng.integers(0, len(lengths), len(lengths))])
        for _ in range(block.resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    row.values["words_per_turn"] = Value(
        float(np.median(lengths)), len(lengths), float(low), float(high)
    )


def _likeness(row: Measured, said: _Said, real: _Said, block: Scorecard, seed: int) -> None:
    sides = [
        [Dialogue(context.id, [*context.messages, {"role": "user", "content": text}], len(context.messages))
         for context, text in side.turns]
        for side in (said, real)
    ]  # fmt: skip
    found = human_likeness(*sides, seed=seed, resamples=block.resamples)
    if found is None:
        row.missing["likeness_auc"] = "fewer than 25 turns on a side"
    else:
        row.values["likeness_auc"] = Value(found.auc, found.turns, found.low, found.high)


def _endings(row: Measured, player: Player, went_on: Sequence[Turn], ended: Sequence[Turn]) -> None:
    """Precision and recall of the end mark: contexts at which people ended against those at which
    they went on.

    They depend on how many of either were asked for; both numbers are in the results. Dialogue
    termination as a property of user models: arXiv 2510.06552."""
    if not player.end_mark:
        row.missing |= dict.fromkeys(("end_precision", "end_recall"), "it has no end mark")
        return
    hits, false = sum(turn.ended for turn in ended), sum(turn.ended for turn in went_on)
    row.put(
        "end_precision",
        hits / (hits + false) if hits + false else None,
        hits + false,
        "it never ended",
    )
    row.put(
        "end_recall",
        hits / len(ended) if ended else None,
        len(ended),
        "no conversation ended on an answer",
    )


def settings(block: Scorecard, found: Contexts, seed: int, data: Any) -> dict[str, Any]:
    """What a reader must know to compare two scorecards: the contexts, how they were drawn, and the
    sampling.
    """
    return {
        "contexts": len(found.next),
        "other_contexts": len(found.others),
        "ends": len(found.ends),
        "openings": block.openings,
        "context_chars": block.context_chars,
        "sampling": block.sampling.model_dump(),
        "seed": seed,
        "data": data,
    }
