"""Held-out loss: equal to the model's own, comparable only over the same tokens, with an honest
interval.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_models import tiny_base, write_rows

from hubkit import evaluation
from hubkit.conversation import swap_roles
from hubkit.errors import SourceError
from hubkit.evaluation import Candidate, HeldOut, Seating, compare, heldout, heldout_loss
from hubkit.recipe import Evals, Training
from hubkit.training import Base, train

ROWS = [
    [
        ("user", f"How do I bake bread number {n}?"),
        ("assistant", "Mix flour, water and yeast."),
        ("user", "And rye?"),
    ]
    for n in range(8)
]
BLOCK = Evals(conversations=8, max_tokens=128, resamples=500)
SFT = {
    "learning_rate": 2e-2,
    "max_length": 128,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "test.parquet", [*ROWS, [("user", " ")]])


@pytest.fixture(scope="module")
def asker(
    tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path
) -> tuple[Training, Path]:
    folder = tmp_path_factory.mktemp("asker")
    lora = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    block = Training(base="acme/tiny", seat="user", system="You ask.", lora=lora, sft=SFT)
    train(block, [data], Base(base, "acme/tiny"), folder / "out", seed=1, work=folder / "work")
    return block, folder / "out"


def test_the_loss_is_the_models_own_over_the_seats_tokens(base, data):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubkit import chat_templates

    found = heldout_loss(BLOCK, base, None, [data], Seating("user", "You ask."))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base),
        AutoTokenizer.from_pretrained(base),
    )
    for row, nats, tokens in zip(ROWS, found.nats, found.tokens, strict=True):
        view = [
            {"role": "system", "content": "You ask."},
            *swap_roles({"role": r, "content": c} for r, c in row),
        ]
        encoded = chat_templates.for_base(base).encode(tokenizer, view, "user", trim=False)
        labels = torch.tensor([encoded.labels])
        with torch.no_grad():
            mean = model(torch.tensor([encoded.input_ids]), labels=labels).loss
        assert nats == pytest.approx(float(mean) * tokens, rel=1e-4)
        assert tokens == encoded.loss_tokens
    assert found.loss == pytest.approx(sum(found.nats) / sum(found.tokens))


def test_each_conversation_is_scored_under_its_own_intent(tmp_path, base, data):
    import pyarrow.parquet as pq

    rows = pq.read_table(data)
    intents = [["find out about rye"], ["bake a loaf"], [None]]
    for number, intent in enumerate(intents):
        one = rows.slice(0, 1).append_column("intent", [intent])
        pq.write_table(one, tmp_path / f"{number}.parquet")
    files = [tmp_path / f"{number}.parquet" for number in range(3)]
    told = heldout_loss(
        BLOCK, base, None, files, Seating("user", "You want to {intent}.", "intent")
    )
    alone = [
        heldout_loss(BLOCK, base, None, [data], Seating("user", f"You want to {text}."))
        for text in ("find out about rye", "bake a loaf")
    ]
    assert told.nats == [loss.nats[0] for loss in alone] and told.nats[0] != told.nats[1]
    assert told.skipped == {"no_intent": 1}
    block = Training(base="acme/tiny", seat="user", system="You want to {intent}.",
                     intent_column="intent")  # fmt: skip
    folder = Candidate(block, base, base)
    found = heldout(BLOCK, files, {"asker": folder}, seed=1)["asker"]["arms"]
    assert found["trained"]["nats"] == told.nats, "as the eval stage scores it"


def test_an_end_is_predicted_under_the_conversation_s_intent(tmp_path, base):
    import pyarrow.parquet as pq

    closed = write_rows(tmp_path / "c.parquet", [[*ROWS[0], ("assistant", "Use less water.")]])
    files = {}
    for name, intent in (("rye", "find out about rye"), ("loaf", "bake a loaf"), ("none", None)):
        files[name] = tmp_path / f"{name}.parquet"
        pq.write_table(pq.read_table(closed).append_column("intent", [[intent]]), files[name])
    values = {"base": "acme/tiny", "seat": "user", "end_mark": "[bye]"}
    block = Training(**values, system="You want to {intent}.", intent_column="intent")

    def at_ends(training: Training, name: str) -> float:
        return evaluation.termination(BLOCK, training, base, base, [files[name]]).at_ends

    by_hand = Training(**values, system="You want to find out about rye.")
    assert at_ends(block, "rye") == at_ends(by_hand, "none") != at_ends(block, "loaf")
    with pytest.raises(SourceError, match="no held-out conversation that ends on an answer"):
        at_ends(block, "none")


def test_a_trained_asker_beats_its_base_outside_the_noise(base, data, asker):
    block, trained = asker
    results = heldout(BLOCK, [data], {"asker": Candidate(block, base, trained)}, seed=3)["asker"]
    arms, against = results["arms"], results["against"]
    assert arms["trained"]["loss"] < arms["base"]["loss"]
    assert against["base"]["outside_noise"] and against["base"]["high"] < 0
    assert against["base"]["low"] <= against["base"]["difference"] <= against["base"]["high"]
    assert (
        arms["prompted"]["tokens"] == arms["trained"]["tokens"] and len(arms["trained"]["ids"]) == 8
    )
    assert arms["prompted"]["loss"] != arms["base"]["loss"]
    json.dumps(results)


def test_whole_weights_and_their_adapter_score_the_same(tmp_path, base, data, asker):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, trained = asker
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), trained
    ).merge_and_unload()
    merged.save_pretrained(tmp_path)
    scores = [heldout_loss(BLOCK, base, m, [data], Seating("user")) for m in (trained, tmp_path)]
    assert scores[0].nats == pytest.approx(scores[1].nats, rel=1e-4)


def test_the_interval_covers_zero_for_equals_and_narrows_with_conversations():
    import numpy as np

    def scores(shift: float, rows: int, seed: int) -> HeldOut:
        noise = np.random.default_rng(seed).normal(0, 5, rows)
        return HeldOut(
            "user", [str(i) for i in range(rows)], list(100 + shift * 50 + noise), [50] * rows
        )

    same = compare(scores(0, 40, 1), scores(0, 40, 2), resamples=1000, confidence=0.95)
    assert same.low < 0 < same.high and not same.outside_noise
    better = compare(scores(-0.2, 40, 1), scores(0, 40, 2), resamples=1000, confidence=0.95)
    assert better.outside_noise and better.difference == pytest.approx(-0.2, abs=0.05)
    more = compare(scores(-0.2, 400, 1), scores(0, 400, 2), resamples=1000, confidence=0.95)
    assert more.high - more.low < better.high - better.low
    assert compare(scores(-0.2, 40, 1), scores(0, 40, 2), resamples=1000, confidence=0.95) == better


def test_an_asker_that_learned_its_end_mark_ends_where_people_did(tmp_path, base):
    closed = [[*row, ("assistant", "Use less water.")] for row in ROWS]
    data = write_rows(tmp_path / "closed.parquet", [*closed, ROWS[0]])
    lora = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    sft = {**SFT, "num_train_epochs": 12}
    block = Training(base="acme/tiny", seat="user", end_mark="[bye]", lora=lora, sft=sft)
    train(
        block,
        [data],
        Base(base, "acme/tiny"),
        tmp_path / "out",
        seed=1,
        work=tmp_path / "work",
    )
    found = evaluation.termination(BLOCK, block, base, tmp_path / "out", [data])
    assert (found.conversations, found.chances, found.ends, found.real_turns) == (8, 16, 8, 2.0)
    assert found.at_ends > found.before_ends, (
        "the mark is likelier behind the last answer than behind the first"
    )
    assert sum(count for _, _, count in found.bins) == 16 and 0 <= found.predicted_rate <= 1
    with pytest.raises(SourceError, match="without an end mark"):
        evaluation.termination(
            BLOCK, block.model_copy(update={"end_mark": None}), base, tmp_path / "out", [data]
        )


def test_calibration_figures_are_what_they_say():
    from hubkit.evaluation.termination import summarise

    sure = summarise([[0.0, 0.0, 1.0], [1.0]])
    assert (sure.brier, sure.predicted_turns, sure.real_turns, sure.real_rate) == (
        0.0,
        2.0,
        2.0,
        0.5,
    )
    flat = summarise([[0.5, 0.5], [0.5, 0.5]])
    assert flat.brier == flat.brier_constant == 0.25 and flat.predicted_turns == 1.5
    cut = summarise([[0.5, 0.25], [0.75]], cut={0})
    assert (cut.ends, cut.chances, cut.at_ends, cut.before_ends) == (1, 3, 0.75, 0.375)
    assert (cut.real_turns, summarise([[0.5]], cut={0}).at_ends) == (1.0, None)


def test_only_the_same_conversations_can_be_compared():
    one, other = HeldOut("user", ["a"], [1.0], [1]), HeldOut("user", ["b"], [1.0], [1])
    with pytest.raises(ValueError, match="same conversations"):
        compare(one, other, resamples=10, confidence=0.9)


def test_unusable_rows_are_counted_and_no_rows_are_an_error(tmp_path, base, data):
    found = heldout_loss(
        Evals(conversations=50, max_tokens=64), base, None, [data], Seating("user")
    )
    assert found.skipped == {"empty_turn": 1} and len(found.ids) == 8
    bad = write_rows(tmp_path / "bad.parquet", [[("user", " ")]])
    with pytest.raises(SourceError, match="none of the held-out rows"):
        heldout_loss(BLOCK, base, None, [bad], Seating("user"))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="cannot be read as parquet"):
        heldout_loss(BLOCK, base, None, [broken], Seating("user"))
    assert evaluation.__doc__
