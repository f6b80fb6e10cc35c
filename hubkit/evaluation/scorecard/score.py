"""What the turns of a player are like, measure by measure, compared with people's at the same
contexts.

Takes contexts and played turns; gives rows of a `Scorecard`. Each function's docstring holds its
formula and source; `hubkit/metrics/scorecard.yaml` says the same to readers of a card."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hubkit import __version__
from hubkit.conversation import Conversation
from hubkit.data.filters import FILTERS
from hubkit.evaluation.scorecard.contexts import Context, Contexts
from hubkit.evaluation.scorecard.embedding import MEASURES as EMBEDDED
from hubkit.evaluation.scorecard.embedding import Embed, EmbeddingSpace
from hubkit.evaluation.scorecard.play import Played, Player
from hubkit.evaluation.scorecard.turing import MEASURES as TURING
from hubkit.metrics import Measured, Value
from hubkit.metrics.human_likeness import human_likeness
from hubkit.metrics.lexical import leans_on_context, self_rouge, words
from hubkit.metrics.sampling import Dialogue
from hubkit.metrics.scorecards import PEOPLE, Row
from hubkit.recipe import Scorecard, digest
from hubkit.statistics import Bootstrap, Number
from hubkit.untrusted import JsonObject

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
    embed: Embed | None = None,
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
    space = (
        EmbeddingSpace(embed, reference.turns, resamples=block.resamples, seed=seed)
        if embed
        else None
    )
    people = Measured(PEOPLE, len(real.turns), len(real.turns))
    _text_measures(people, real, reference, block, seed, space)
    _first(people, sampled.first, seed, "no first turns were drawn")
    _cut_off_of_people(people)
    result_rows = [
        _row(people, None, {"contexts": len(real.turns), "openings": len(sampled.first)})
    ]
    for player in players:
        result = played[player.name]
        row = Measured(player.name, len(result.next), len(result.next))
        _player(row, player, result, sampled, reference, block, seed, space)
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
    space: EmbeddingSpace | None,
) -> None:
    """Every measure of one player. A turn that only ends a conversation has no text: it is an end,
    not a turn.
    """
    why = "people's turns were not scored under it"
    row.record_number("perplexity", player.perplexity or Number(None, 0), why)
    row.missing |= dict.fromkeys(TURING, "no judge was asked")
    why = "no opening was asked for" if player.system else "it has no system message to open from"
    _first(row, [turn.text for turn in result.first if turn.text], seed, why)
    turns = {number: turn for number, turn in result.next.items() if turn.text or not turn.ended}
    spoken_turns = _TurnSample(
        [(sampled.next[number], turn.text) for number, turn in turns.items() if turn.text]
    )
    empty = len(turns) - len(spoken_turns.turns)
    _text_measures(row, spoken_turns, reference, block, seed, space, empty=empty)
    row.record_mean("cut_off", [float(turn.cut_off) for turn in turns.values()], seed)
    _endings(row, player, result, sampled, block, seed)


def _cut_off_of_people(people: Measured) -> None:
    for measure in ("perplexity", "cut_off", "end_precision", "end_recall", *TURING):
        people.missing[measure] = "people are what this is measured against"


def _text_measures(
    row: Measured,
    sample: _TurnSample,
    reference: _TurnSample,
    block: Scorecard,
    seed: int,
    space: EmbeddingSpace | None,
    *,
    empty: int = 0,
) -> None:
    """What is measured of turns alone, held against those of `reference`; `empty` turns count as
    out of role.
    """
    _median_words(row, sample, block, seed)
    row.record_mean("context_share", [float(leans_on_context(text)) for text in sample.texts], seed)
    row.record_mean(
        "role_leaks", [float(out_of_role(*turn)) for turn in sample.turns] + [1.0] * empty, seed
    )
    row.record_mean("repetition", [repetition(*turn) for turn in sample.turns], seed)
    if any(context.intent for context, _ in sample.turns):
        row.record_mean("intent_adherence", intent_adherence(sample.turns), seed)
        row.record_mean("intent_coverage", intent_coverage(sample.turns), seed)
    else:
        row.missing |= dict.fromkeys(
            ("intent_adherence", "intent_coverage"), "the conversations have no intents"
        )
    _distances(row, sample, reference, block, seed)
    _likeness(row, sample, reference, block, seed)
    if space:
        space.measure(row, sample.turns)
    else:
        row.missing |= dict.fromkeys(EMBEDDED, "no encoder was given")


def _first(row: Measured, turns: Sequence[str], seed: int, why: str) -> None:
    if len(turns) < 2:
        row.missing["first_turn_diversity"] = why
    else:
        number = Bootstrap(seed=seed).mean_over_pairs(_jaccard_distances(turns))
        row.record_number("first_turn_diversity", number)


def first_turn_diversity(turns: Sequence[str]) -> list[float]:
    """Per turn, its mean distance to the others: 1 − |words in both| / |words in either| (Jaccard
    1912).

    Their mean is the mean over pairs. That user models should differ in how they begin is from
    arXiv 2510.06552."""
    distances = _jaccard_distances(turns)
    return [sum(gaps) / max(len(turns) - 1, 1) for gaps in distances]


def _jaccard_distances(turns: Sequence[str]) -> list[list[float]]:
    """Of every pair of turns; 0 between a turn and itself."""
    sets = [set(words(turn)) for turn in turns]
    return [
        [
            1 - len(words & other_words) / len(words | other_words) if words | other_words else 0.0
            for other_words in sets
        ]
        for words in sets
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


def intent_coverage(turns: Sequence[tuple[Context, str]]) -> list[float | None]:
    """Per turn, the share of its intent's content words not said in earlier human turns that it
    says; None where there is no intent, or nothing of it is left to say.

    That a user model should reveal all of its intent over a conversation is from arXiv 2510.06552;
    there a judge counts the parts, here words are counted, one turn at a time."""
    shares: list[float | None] = []
    for context, text in turns:
        earlier_words = set().union(*(_content(turn) for turn in context.earlier_turns))
        unsaid_words = _content(str(context.intent or "")) - earlier_words
        shares.append(
            len(_content(text) & unsaid_words) / len(unsaid_words) if unsaid_words else None
        )
    return shares


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
    """Both distances from the turns of `reference`, with bootstrap intervals over either side.

    A distance between samples is biased upwards, and that of resamples twice, so the interval is
    moved back by as much (`Bootstrap.of_two`)."""
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
    distances: dict[str, Callable[[Floats, Floats], float]] = {
        "length_distance": length_distance,
        "style_distance": partial(style_distance, spread=spread),
    }
    bootstrap = Bootstrap(block.resamples, seed=seed)
    for name, distance in distances.items():
        value = distance(sample_styles, reference_styles)
        low, high = bootstrap.of_two(
            (len(sample_styles), len(reference_styles)),
            lambda first, second, distance=distance: distance(
                sample_styles[first], reference_styles[second]
            ),  # type: ignore[misc]
            value=value,
            lowest=0.0,
        )
        row.values[name] = Value(value, len(sample_styles), low, high)


def _median_words(row: Measured, sample: _TurnSample, block: Scorecard, seed: int) -> None:
    if not sample.turns:
        row.missing["words_per_turn"] = "no turn has text"
        return
    lengths = [len(words(text)) for text in sample.texts]
    row.record_number("words_per_turn", Bootstrap(block.resamples, seed=seed).median_of(lengths))


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


def _endings(
    row: Measured, player: Player, result: Played, sampled: Contexts, block: Scorecard, seed: int
) -> None:
    """Precision and recall of the end mark: contexts at which people ended against those at which
    they went on; their intervals draw conversations.

    They depend on how many of either were asked for; both numbers are in the results. Dialogue
    termination as a property of user models: arXiv 2510.06552."""
    if not player.end_mark:
        row.missing |= dict.fromkeys(("end_precision", "end_recall"), "it has no end mark")
        return
    chances = [
        (sampled.next[number].id, False, turn.ended) for number, turn in result.next.items()
    ] + [(sampled.ends[number].id, True, turn.ended) for number, turn in result.ends.items()]
    bootstrap = Bootstrap(block.resamples, seed=seed)
    precision = bootstrap.mean((id_, float(people)) for id_, people, ended in chances if ended)
    recall = bootstrap.mean((id_, float(ended)) for id_, people, ended in chances if people)
    row.record_number("end_precision", precision, "it never ended")
    row.record_number("end_recall", recall, "no conversation ended on an answer")


def settings(block: Scorecard, sampled: Contexts, seed: int, data: Any) -> JsonObject:
    """What a reader must know to compare two scorecards: the contexts, how they were drawn, and the
    sampling.
    """
    return {
        "contexts": len(sampled.next),
        "contexts_sha256": digest(asdict(sampled)),
        "hubkit": __version__,
        "resamples": block.resamples,
        "embedder": block.embedder,
        "other_contexts": len(sampled.reference),
        "ends": len(sampled.ends),
        "openings": block.openings,
        "context_chars": block.context_chars,
        "sampling": block.sampling.model_dump(),
        "seed": seed,
        "data": data,
    }
