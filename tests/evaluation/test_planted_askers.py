"""Planted askers (a copy machine, turns from elsewhere, an assistant in the user's seat, other real
people): each measure ranks them as it must."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mock_endpoint import mock

from hubkit.evaluation.scorecard.contexts import Context
from hubkit.evaluation.scorecard.turing import TuringPair, length_matched, pairs_of, turing
from hubkit.judging import PromptedJudge, turing_prompts
from hubkit.metrics.two_sample import coverage, two_sample
from hubkit.recipe import Judging, SeatConfig
from hubkit.serving import ServedModel

TOPICS = ["bread", "taxes", "python", "roses", "chess", "rivers", "guitars", "stars"]
ASKS = ["how long does {} take", "is {} hard", "tell me more about {}", "what about {} then",
        "ok and {} in winter?", "no i meant {}"]  # fmt: skip


def person(rng: random.Random, topic: str) -> str:
    return rng.choice(ASKS).format(topic)


def contexts(number: int, seed: int = 0) -> list[Context]:
    rng = random.Random(seed)
    made = []
    for n in range(number):
        topic = TOPICS[n % len(TOPICS)]
        opening = f"Please explain {topic} to me, part {n}"
        answer = f"Certainly! {topic} is a wide field, and here is an overview of it."
        messages: list[Any] = [
            {"role": "user", "content": opening},
            {"role": "assistant", "content": answer},
        ]
        made.append(Context(f"c{n}", messages, person(rng, topic)))
    return made


def planted(kind: str, found: list[Context]) -> dict[int, str]:
    rng = random.Random(kind)
    turns = {}
    for number, context in enumerate(found):
        topic = TOPICS[number % len(TOPICS)]
        turns[number] = {
            "people": person(rng, topic),
            "elsewhere": person(rng, TOPICS[(number + 3) % len(TOPICS)]),
            "copy machine": context.messages[0]["content"],
            "assistant": f"Certainly! Here is an overview of {topic}.",
        }[kind]
    return turns


def vectors(texts: list[str]) -> Any:
    """Unit vectors of words: a small stand-in for an encoder."""
    from sklearn.feature_extraction.text import HashingVectorizer

    plain = [" ".join(w for w in text.split() if not w.isdigit()) for text in texts]
    return HashingVectorizer(n_features=64, alternate_sign=False).fit_transform(plain).toarray()


KINDS = ["people", "elsewhere", "copy machine", "assistant"]


def test_the_classifier_finds_machines_and_not_people() -> None:
    found, others = contexts(160), contexts(160, seed=1)
    real = vectors([c.real or "" for c in others])
    results = {
        kind: two_sample(vectors(list(planted(kind, found).values())), real, permutations=100)
        for kind in KINDS
    }
    assert results["people"].p_value > 0.05 and results["people"].auc < results["people"].null_high
    for kind in ("copy machine", "assistant"):
        assert results[kind].auc > 0.95 and results[kind].p_value <= 0.01
        assert results[kind].power > 0.99
    assert results["elsewhere"].p_value > 0.05, "wording alone does not show a wrong topic"
    assert results["people"].power < 0.5 and results["people"].n == 160


def test_the_test_keeps_its_level_and_its_power_grows() -> None:
    rng = np.random.default_rng(0)

    def drawn(n: int, shift: float) -> Any:
        x = rng.normal(0, 1, (n, 16))
        x[:, 0] += shift
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    p = [two_sample(drawn(60, 0), drawn(60, 0), permutations=40, seed=s).p_value for s in range(40)]
    assert np.mean(np.array(p) <= 0.05) <= 0.15
    small = two_sample(drawn(40, 0.8), drawn(40, 0), permutations=60)
    large = two_sample(drawn(400, 0.8), drawn(400, 0), permutations=60)
    assert large.null_high < small.null_high and large.power > 0.95 and large.p_value < 0.05


def test_turns_of_a_conversation_are_not_independent() -> None:
    rng = np.random.default_rng(1)

    def talkers(number: int) -> tuple[Any, list[int]]:
        centres = rng.normal(0, 1, (number, 16))
        rows = np.concatenate([c + rng.normal(0, 0.05, (8, 16)) for c in centres])
        who = [n for n in range(number) for _ in range(8)]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), who

    (one, first), (other, second) = talkers(12), talkers(12)
    assert two_sample(one, other, groups=(first, second), permutations=60).p_value > 0.05


def test_coverage_falls_where_little_is_said_and_density_where_it_is_unlike() -> None:
    found, others = contexts(160), contexts(160, seed=1)
    real = vectors([c.real or "" for c in others])
    people = coverage(vectors(list(planted("people", found).values())), real)
    copies = coverage(vectors(list(planted("copy machine", found).values())), real)
    one = coverage(vectors(["tell me more about bread"] * 160), real)
    assert people and copies and one
    assert people.coverage > 0.9 and copies.coverage < 0.2 and one.coverage < 0.3
    assert people.density > copies.density and coverage(real[:4], real) is None


# A judge that sees: copies of what was said, an assistant's opening, another topic than the
# answer's.
def perceptive() -> list[list[Any]]:
    rules: list[list[Any]] = []
    for mark, verdict in (("message_a", "[[B]]"), ("message_b", "[[A]]")):
        rules.append([f"<{mark}>\n(Certainly!|Please explain)", [verdict]])
    for topic in TOPICS:
        shown = f"Certainly! {topic} is(.|\n)*"
        other = f"(?![^\n]*{topic})[^\n]+\n"
        rules.append([f"{shown}<message_a>\n{other}", ["[[B]]"]])
        rules.append([f"{shown}<message_b>\n{other}", ["[[A]]"]])
    return [*rules, [".", ["I cannot tell. [[C]]"]]]


def judge(url: str, folder: Path) -> PromptedJudge:
    block = Judging(judge=SeatConfig(repo="j", profile="openai"), in_flight=8)
    return PromptedJudge(
        block, ServedModel.at(url), turing_prompts(), "turing-v1", identity="j", run="r",
        folder=folder
    )  # fmt: skip


def test_a_turing_judge_ranks_planted_askers_and_people_are_not_told(tmp_path: Path) -> None:
    found = contexts(24)
    taken = {}
    with mock() as server:
        server.script(rules=perceptive())
        for kind in KINDS:
            pairs = pairs_of(found, planted(kind, found))
            result = turing(judge(server.url, tmp_path), pairs, ratio=10)
            taken[kind] = result.wins.win_rate.value
            assert result.wins.flip_rate.value == 0 and result.pairs == 24
    assert taken == {"people": 0.5, "elsewhere": 0.0, "copy machine": 0.0, "assistant": 0.0}


@pytest.mark.parametrize("verdict", ["[[A]]", "[[B]]"])
def test_a_judge_that_goes_by_position_finds_nothing_and_shows_it(
    tmp_path: Path, verdict: str
) -> None:
    found = contexts(12)
    with mock() as server:
        server.script(rules=[[".", [verdict]]])
        result = turing(
            judge(server.url, tmp_path), pairs_of(found, planted("people", found)), ratio=10
        )
    assert result.wins.win_rate.value == 0.5 and result.wins.flip_rate.value == 1.0


def test_pairs_of_unlike_length_are_left_out_and_counted(tmp_path: Path) -> None:
    context = contexts(1)[0]
    pairs = [
        TuringPair(context, "why", "because of what"),
        TuringPair(context, "why", " ".join(["word"] * 40)),
        TuringPair(context, " ".join(["word"] * 40), " ".join(["word"] * 60)),
    ]
    kept, left_out = length_matched(pairs)
    assert [len(p.model.split()) for p in kept] == [3, 60] and left_out == 1
    assert pairs_of([context], {0: " "}) == []
