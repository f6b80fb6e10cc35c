"""Planted askers (a copy machine, turns from elsewhere, an assistant in the user's seat, other real
people): each measure ranks them as it must."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mock_endpoint import mock
from support.tiny_models import tiny_base, write_rows

from hubkit.evaluation import Seating, heldout_loss, perplexity
from hubkit.evaluation.scorecard import Contexts, Played, Player, TuringTest, Turn
from hubkit.evaluation.scorecard.contexts import Context
from hubkit.evaluation.scorecard.score import rows
from hubkit.evaluation.scorecard.turing import TuringPair, length_matched, pairs_of, turing
from hubkit.judging import PromptedJudge, turing_prompts
from hubkit.metrics.definitions import card_definitions
from hubkit.metrics.two_sample import (
    alike_in_length,
    cluster_divergence,
    coverage,
    two_sample,
)
from hubkit.recipe import Evals, Judging, Scorecard, SeatConfig
from hubkit.serving import ServedModel
from hubkit.statistics import Bootstrap, Number

TOPICS = ["bread", "taxes", "python", "roses", "chess", "rivers", "guitars", "stars"]
PARTS = ["winter", "storage", "history", "beginners"]
ASKS = [
    "how long does {0} take",
    "ok and {0} in {1}?",
    "tell me more about {0} please",
    "what should i know about {0} {1}",
    "so {0} is hard for {1} then",
    "hm can you say that about {0} again but shorter",
    "no i meant {0} in {1} but only what matters most",
    "why do people like {0} so much when {1} is hard",
]


def person(rng: random.Random, topic: str, part: str) -> str:
    return rng.choice(ASKS).format(topic, part)


def contexts(number: int, seed: int = 0) -> list[Context]:
    rng = random.Random(seed)
    made = []
    for n in range(number):
        topic, part = TOPICS[n % len(TOPICS)], PARTS[n // len(TOPICS) % len(PARTS)]
        opening = f"Please explain {topic} to me, part {n}"
        answer = f"Certainly! {topic} is a wide field, and here is an overview of it."
        messages: list[Any] = [
            {"role": "user", "content": opening},
            {"role": "assistant", "content": answer},
        ]
        said = person(rng, topic, part)
        made.append(Context(f"{seed}/c{n}", messages, said, f"learn {topic} {part}"))
    return made


def planted(kind: str, found: list[Context]) -> dict[int, str]:
    rng = random.Random(kind)
    turns = {}
    for number, context in enumerate(found):
        topic, part = str(context.intent).split()[1:]
        other = TOPICS[(TOPICS.index(topic) + 3) % len(TOPICS)]
        turns[number] = {
            "people": person(rng, topic, part),
            "elsewhere": person(rng, other, PARTS[(PARTS.index(part) + 1) % len(PARTS)]),
            "copy machine": context.messages[0]["content"],
            "assistant": f"Certainly! Here is an overview of {topic}. I can help with that.",
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


OTHERS = {"people": "other people"}  # "people" is the row of those that all are held against
KINDS_AND_ENDS = {"people": 0.9, "elsewhere": 0.5, "copy machine": 0.0, "assistant": 1.0}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads of so small a model would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def perplexities(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Number]:
    """Of people's turns, under tiny models that were trained on what each of three kinds says."""
    folder = tmp_path_factory.mktemp("tiny")
    base = tiny_base(folder / "base")
    test = write_rows(folder / "test.parquet", [_said(c, str(c.real)) for c in contexts(16, 3)])
    block, seating = Evals(conversations=16, max_tokens=256), Seating("user", "You are a person.")
    found = {}
    for kind in ("people", "copy machine", "assistant"):
        trained = trained_on(base, planted(kind, contexts(32)), folder / kind)
        loss = heldout_loss(block, base, trained, [test], seating)
        found[kind] = perplexity(loss.nats, loss.tokens, Bootstrap(200))
    return found


def _said(context: Context, turn: str) -> list[tuple[str, str]]:
    return [*((m["role"], m["content"]) for m in context.messages), ("user", turn)]


def trained_on(base: Path, turns: dict[int, str], out: Path) -> Path:
    """A copy of `base`, trained for some steps to say these turns at their contexts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubkit.chat_templates import for_base
    from hubkit.training.rows import seat_view

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base),
        AutoTokenizer.from_pretrained(base),
    )
    templates, optimizer = for_base(base), torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for context, turn in zip(contexts(len(turns)), turns.values(), strict=True):
        messages: list[Any] = [{"role": r, "content": t} for r, t in _said(context, turn)]
        view = seat_view(messages, "user", "You are a person.")
        encoded = templates.encode(tokenizer, view, "user")
        ids, labels = (torch.tensor([x]) for x in (encoded.input_ids, encoded.labels))
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def measured(
    perplexities: dict[str, Number], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Measure → row → its value, of planted turns."""
    sampled = Contexts(
        contexts(96),
        contexts(96, seed=1),
        contexts(96, seed=2),
        [f"{person(random.Random(n), t, 'winter')} {n}" for n, t in enumerate(TOPICS * 3)],
    )
    played = {}
    for kind, share in KINDS_AND_ENDS.items():
        rng = random.Random(f"ends {kind}")
        false = share if kind in ("elsewhere", "assistant") else 0.05 if share else 0.0
        played[OTHERS.get(kind, kind)] = Played(
            next={
                n: Turn(text, rng.random() < false, kind == "assistant" and rng.random() < 0.5)
                for n, text in planted(kind, sampled.next).items()
            },
            ends={n: Turn("bye", rng.random() < share, False) for n in range(96)},
            first=[
                Turn(
                    "What is bread?" if kind == "copy machine" else text,
                    False,
                    False,
                )
                for text in sampled.first
            ],
        )
    players = [
        Player(OTHERS.get(kind, kind), None, "You are a person.", "[END]",
               perplexity=perplexities.get(kind))
        for kind in KINDS
    ]  # fmt: skip
    block = Scorecard(contexts=96, resamples=40)
    made = rows(block, players, sampled, played, 0, vectors)
    turns = {
        kind: {n: turn.text for n, turn in result.next.items()} for kind, result in played.items()
    }
    folder = tmp_path_factory.mktemp("judge")
    with mock() as server:
        server.script(rules=perceptive())
        test = TuringTest(lambda: nullcontext(judge(server.url, folder)), "scripted", 16)
        made = test.judged(made, sampled.next, turns, Bootstrap(200))
    names = {name for row in made for name in row.values}
    assert [row.name for row in made] == ["people", *played], "people's own row is beside"
    for row in made:
        for value in row.values.values():
            assert {type(part) for part in value.values()} <= {float, int, type(None)}, value
    return {
        name: {
            row_of: row.values.get(name)
            for row_of, row in zip(["baseline", *KINDS], made, strict=True)
        }
        for name in names
    }


# Measure: (those that must score lower, those that must score higher), each interval apart from
# the other's.
RANKS: dict[str, tuple[set[str], set[str]]] = {
    "embedding_auc": ({"people", "elsewhere", "baseline"}, {"copy machine", "assistant"}),
    "embedding_auc_matched": ({"people", "elsewhere", "baseline"}, {"copy machine", "assistant"}),
    "likeness_auc": ({"people", "baseline"}, {"copy machine", "assistant"}),
    "density": ({"copy machine", "assistant"}, {"people", "elsewhere", "baseline"}),
    "perplexity": ({"people"}, {"copy machine", "assistant"}),
    "words_per_turn": ({"people", "elsewhere", "baseline"}, {"assistant"}),
    "context_share": ({"copy machine"}, {"people", "elsewhere", "baseline"}),
    "cut_off": ({"people", "elsewhere", "copy machine"}, {"assistant"}),
    "turing_rate": ({"elsewhere", "copy machine", "assistant"}, {"people"}),
    "turing_flips": ({"elsewhere", "copy machine", "assistant"}, {"people"}),
    "coverage": ({"copy machine", "assistant"}, {"people", "elsewhere", "baseline"}),
    "cluster_divergence": ({"people", "elsewhere", "baseline"}, {"copy machine", "assistant"}),
    "context_fit": ({"elsewhere"}, {"people", "baseline", "copy machine", "assistant"}),
    "intent_adherence": ({"elsewhere"}, {"people", "baseline"}),
    "intent_coverage": ({"elsewhere", "copy machine", "assistant"}, {"people", "baseline"}),
    "repetition": ({"people", "elsewhere", "baseline"}, {"copy machine"}),
    "role_leaks": ({"people", "elsewhere", "baseline"}, {"assistant"}),
    "style_distance": ({"people", "elsewhere", "baseline"}, {"copy machine", "assistant"}),
    "length_distance": ({"people", "elsewhere", "baseline"}, {"copy machine", "assistant"}),
    "first_turn_diversity": ({"copy machine"}, {"people", "baseline"}),
    "end_precision": ({"elsewhere", "assistant"}, {"people"}),
    "end_recall": ({"copy machine", "elsewhere"}, {"people", "assistant"}),
}


# What so many turns can show: the same of anybody.
OF_ANYBODY = {"embedding_auc_null", "embedding_auc_detectable"}


def test_no_measure_of_the_scorecard_is_left_out() -> None:
    assert RANKS.keys() | OF_ANYBODY == card_definitions().keys()


@pytest.mark.parametrize("measure", RANKS)
def test_every_measure_ranks_planted_askers_with_intervals_apart(
    measured: dict[str, dict[str, Any]], measure: str
) -> None:
    lower, higher = RANKS[measure]
    found = measured[measure]
    for one in lower:
        for other in higher:
            assert found[one]["high"] < found[other]["low"], (one, other, found)


def test_what_people_score_and_what_so_few_turns_can_show(
    measured: dict[str, dict[str, Any]],
) -> None:
    auc, null = measured["embedding_auc"], measured["embedding_auc_null"]
    found = measured["embedding_auc_detectable"]
    for row in ("baseline", "people", "elsewhere"):
        assert auc[row]["value"] < null[row]["value"] < found[row]["value"] < 0.75
    for row in ("copy machine", "assistant"):
        assert auc[row]["low"] > found[row]["value"]
    fits = measured["context_fit"]
    assert fits["elsewhere"]["low"] < 0.5 < fits["people"]["low"]
    assert measured["end_precision"]["copy machine"] is None, "it never ended"


def test_length_alone_is_not_told_where_lengths_are_matched() -> None:
    rng = random.Random(3)

    def turns(longest: int) -> list[str]:
        return [
            " ".join(rng.choice(TOPICS) for _ in range(rng.randint(1, longest))) for _ in range(300)
        ]

    short, long = turns(8), turns(30)

    def with_length(texts: list[str]) -> Any:
        rows_of = np.array([[len(text.split()), 10.0] for text in texts])
        return rows_of / np.linalg.norm(rows_of, axis=1, keepdims=True)

    first, second = alike_in_length(short, long)
    assert len(first) == len(second) > 50
    assert two_sample(with_length(short), with_length(long)).p_value < 0.01
    matched = two_sample(
        with_length([short[n] for n in first]), with_length([long[n] for n in second])
    )
    assert matched.auc < matched.detectable


def test_one_cluster_apart_is_one_bit_and_few_turns_give_none() -> None:
    left, right = np.tile([1.0, 0.0], (30, 1)), np.tile([0.0, 1.0], (30, 1))
    assert cluster_divergence(left, right).value == pytest.approx(1.0)
    assert cluster_divergence(left, left).value == 0.0
    assert cluster_divergence(left[:10], right).value is None


# A judge that sees: copies of what was said, an assistant's opening, another topic than the
# answer's. Where it sees nothing it says what is shown first.
def perceptive() -> list[list[Any]]:
    rules: list[list[Any]] = []
    for mark, verdict in (("message_a", "[[B]]"), ("message_b", "[[A]]")):
        rules.append([f"<{mark}>\n(Certainly!|Please explain)", [verdict]])
    for topic in TOPICS:
        shown = f"Certainly! {topic} is(.|\n)*"
        other = f"(?![^\n]*{topic})[^\n]+\n"
        rules.append([f"{shown}<message_a>\n{other}", ["[[B]]"]])
        rules.append([f"{shown}<message_b>\n{other}", ["[[A]]"]])
    return [*rules, [".", ["I cannot tell. [[A]]"]]]


def judge(url: str, folder: Path) -> PromptedJudge:
    block = Judging(judge=SeatConfig(repo="j", profile="openai"), in_flight=8)
    return PromptedJudge(
        block, ServedModel.at(url), turing_prompts(), "turing-v1", identity="j", run="r",
        folder=folder
    )  # fmt: skip


@pytest.mark.parametrize(("verdict", "flips"), [("[[A]]", 1.0), ("[[B]]", 1.0), ("[[C]]", 0.0)])
def test_a_judge_that_goes_by_position_or_never_decides_finds_nothing_and_shows_it(
    tmp_path: Path, verdict: str, flips: float
) -> None:
    found = contexts(12)
    with mock() as server:
        server.script(rules=[[".", [verdict]]])
        result = turing(
            judge(server.url, tmp_path), pairs_of(found, planted("people", found)), ratio=10
        )
    assert result.wins.win_rate.value == 0.5 and result.wins.flip_rate.value == flips


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
