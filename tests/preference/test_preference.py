"""Preference pairs: questions that need their context, three ways to lose it, nothing asked twice,
and DPO.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.batch_server import batch_server
from support.mock_endpoint import mock
from support.tiny_models import tiny_base, write_rows

from hubkit.errors import EndpointError, RecipeError, SourceError, TrainingError
from hubkit.preference import STRATEGIES, build, dependence
from hubkit.recipe import Preference, SeatConfig, Training
from hubkit.serving import ServedModel
from hubkit.serving.reply_journal import JournalSpec
from hubkit.training import Base, Launch, Policy, plan, train, train_dpo

DIALOGUES = [
    [
        ("user", f"How do I bake bread number {n}?"),
        ("assistant", "Mix flour and water."),
        ("user", f"And how long does {n} take?"),
        ("assistant", f"About {n} hours."),
        ("user", "What is the capital of France?"),
        ("assistant", "Paris."),
    ]
    for n in range(4)
]
CHAT = SeatConfig(repo="acme/chat")


def block(**changes) -> Preference:
    return Preference(**{"chat": CHAT, "in_flight": 4, **changes})


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "dialogues.parquet", DIALOGUES)


def read(out: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return [
        row
        for path in sorted((out / "data").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.mark.parametrize(
    ("turn", "kind"),
    [
        ("Why?", "ellipsis"),
        ("what about rye", "ellipsis"),
        ("Can you make it shorter?", "pronoun"),
        ("Who wrote those books?", "pronoun"),
        ("Please give another example with numbers", "reference"),
        ("Translate the above into French for my sister", "reference"),
        ("What is the capital of France?", None),
        ("Is it possible to learn Spanish in a month?", None),
        ("Write a poem about " + "rain and " * 40 + "it", None),
        ("", None),
    ],
)
def test_which_questions_need_their_context(turn, kind):
    assert dependence(turn) == kind


def test_pairs_hold_the_given_answer_and_one_that_lost_the_context(tmp_path, dialogues):
    with mock(deterministic=True) as server:
        out = tmp_path / "out"
        report = build(
            block(),
            [dialogues],
            out,
            ServedModel.at(server.url),
            JournalSpec(tmp_path / "journal", 1),
        )
        asked = [entry["body"]["messages"] for entry in server.ledger()]
    rows = read(out)
    assert (
        report.turns == 8
        and report.dependent == {"ellipsis": 4}
        and report.wanted == report.pairs == 12
    )
    assert report.by_strategy == dict.fromkeys(STRATEGIES, 4)
    assert {row["strategy"] for row in rows} == set(STRATEGIES)
    for row in rows:
        original = DIALOGUES[int(row["dialogue"][1:])]
        assert [(m["role"], m["content"]) for m in row["prompt"]] == original[:3]
        assert row["chosen"] == [{"role": "assistant", "content": original[3][1]}]
        assert row["rejected"][0]["content"].startswith("answer ")
    question = "And how long does 0 take?"
    assert [{"role": "user", "content": question}] in asked, "neglect: no history"
    assert any(len(m) == 1 and question in m[0]["content"] != question for m in asked), (
        "hallucination: told to guess"
    )
    misled = [(m[0]["content"][-2], m[2]["content"].split()[4]) for m in asked if len(m) == 3]
    assert len(misled) == 4 and all(history != own for history, own in misled), (
        "misunderstanding: another history"
    )
    assert json.loads((out / "report.json").read_text()) == report.to_dict()


def test_stock_datasets_reads_them_in_trls_format(tmp_path, dialogues):
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    with mock() as server:
        build(
            block(pairs=5),
            [dialogues],
            tmp_path,
            ServedModel.at(server.url),
            JournalSpec(tmp_path / "journal", 1),
        )
    loaded = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 5 and is_conversational(loaded[0])


def test_rejected_answers_are_asked_for_by_batch(tmp_path, dialogues):
    with batch_server() as server:
        server.outcome = lambda body, batch: f"About {body['messages'][-1]['content'][-9:]}"
        seat = {"repo": "a/b", "endpoints": [server.url], "profile": "openai", "batch": True}
        given = block(chat=seat, in_flight=1)
        chat, journal = ServedModel.of(given.chat), tmp_path / "journal"
        report = build(given, [dialogues], tmp_path / "out", chat, JournalSpec(journal, 1))
        assert [len(batch) for batch in server.batches] == [report.wanted] == [report.asked]
    assert report.pairs + sum(report.dropped.values()) == report.wanted and report.pairs


def test_what_cannot_be_used_is_dropped_by_reason(tmp_path, dialogues):
    with mock() as server:
        server.script(text="", texts=["", "About 0 hours.", "About 1 hours.", "  ", "Never."])
        report = build(
            block(in_flight=1),
            [dialogues],
            tmp_path,
            ServedModel.at(server.url),
            JournalSpec(tmp_path / "journal", 1),
        )
    assert report.wanted == 12 == report.pairs + sum(report.dropped.values())
    assert report.dropped["empty"] == 2
    bad = write_rows(tmp_path / "bad.parquet", [[("user", "Hi"), ("user", "there")], *DIALOGUES])
    with mock() as server:
        report = build(
            block(pairs=1),
            [bad],
            tmp_path,
            ServedModel.at(server.url),
            JournalSpec(tmp_path / "other", 1),
        )
    assert report.skipped_dialogues == {"roles_not_alternating": 1} and report.dialogues == 5


def test_answers_that_ran_into_their_limit_are_dropped_or_cut_back(tmp_path, dialogues):
    found = {}
    for cut_off in ("drop", "whole_sentences"):
        with mock() as server:
            server.script(
                texts=["It takes a while. Then it", "no end in sight", "Two hours"], finish="length"
            )
            found[cut_off] = build(
                block(in_flight=1, pairs=3, cut_off=cut_off),
                [dialogues],
                tmp_path / cut_off,
                ServedModel.at(server.url),
                JournalSpec(tmp_path / f"{cut_off}-journal", 1),
            )
    assert found["drop"].dropped == {"cut_off": 3} and found["drop"].pairs == 0
    kept = found["whole_sentences"]
    assert (kept.pairs, kept.cut_back, kept.dropped) == (1, 1, {"cut_off": 2})
    assert read(tmp_path / "whole_sentences")[0]["rejected"][0]["content"] == "It takes a while."


def test_the_model_is_asked_under_its_own_system_message_and_key(tmp_path, dialogues, monkeypatch):
    seat = SeatConfig(repo="acme/chat", system="Be brief.", token_env="PREFER_KEY")
    with mock(key="secret") as server:
        with pytest.raises(RecipeError, match="PREFER_KEY, which is not set"):
            ServedModel.of(seat)
        monkeypatch.setenv("PREFER_KEY", "secret")
        said = block(chat=seat, pairs=3)
        chat = ServedModel.of(seat, [server.url])
        build(said, [dialogues], tmp_path, chat, JournalSpec(tmp_path / "journal", 1))
        asked = [entry["body"]["messages"] for entry in server.ledger()]
    assert len(asked) == 3 and all(
        m[0] == {"role": "system", "content": "Be brief."} for m in asked
    )


def test_a_run_that_broke_off_asks_for_nothing_twice(tmp_path, dialogues):
    journal = tmp_path / "journal"
    with mock(deterministic=True) as server:
        first = build(
            block(pairs=5),
            [dialogues],
            tmp_path / "a",
            ServedModel.at(server.url),
            JournalSpec(journal, 1),
        )
        with (journal / "replies.jsonl").open("ab") as file:
            file.write(b'{"key": "c0/1/negl')  # what a kill leaves
        second = build(
            block(),
            [dialogues],
            tmp_path / "b",
            ServedModel.at(server.url),
            JournalSpec(journal, 1),
        )
        assert (first.asked, second.asked, second.from_journal) == (5, 7, 5)
        assert server.stats()["answered"] == 12
        again = build(
            block(),
            [dialogues],
            tmp_path / "c",
            ServedModel.at(server.url),
            JournalSpec(journal, 1),
        )
        assert again.asked == 0 and read(tmp_path / "c") == read(tmp_path / "b")
        other = build(
            block(),
            [dialogues],
            tmp_path / "d",
            ServedModel.at(server.url),
            JournalSpec(journal, 2),
        )
        assert other.from_journal == 0, "another run's answers are not mixed in"


def test_what_stops_the_whole_run_is_an_error(tmp_path, dialogues):
    with pytest.raises(
        RecipeError, match="'neglet' is none of neglect, hallucination, misunderstanding"
    ):
        build(
            block(strategies=["neglet"]),
            [dialogues],
            tmp_path,
            ServedModel.at("http://x"),
            JournalSpec(tmp_path, 1),
        )
    plain = write_rows(tmp_path / "plain.parquet", [DIALOGUES[0][:2]])
    with pytest.raises(SourceError, match="nothing to prefer"):
        build(block(), [plain], tmp_path, ServedModel.at("http://x"), JournalSpec(tmp_path, 1))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1PAR1")
    with pytest.raises(SourceError, match=r"broken\.parquet"):
        build(
            block(),
            [tmp_path / "broken.parquet"],
            tmp_path,
            ServedModel.at("http://x"),
            JournalSpec(tmp_path, 1),
        )
    with mock(key="secret") as server, pytest.raises(EndpointError):
        build(
            block(),
            [dialogues],
            tmp_path,
            ServedModel.at(server.url),
            JournalSpec(tmp_path / "j", 1),
        )


# DPO


DPO = {
    "learning_rate": 5e-3,
    "max_length": 96,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 2,
    "beta": 0.1,
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    data = write_rows(folder / "train.parquet", DIALOGUES)
    sft = {"max_steps": 2, "max_length": 96, "learning_rate": 1e-3}
    training = Training(base="acme/tiny", seat="assistant", lora=LORA, sft=sft)
    train(
        training,
        [data],
        Base(base, "acme/tiny"),
        folder / "out",
        seed=1,
        work=folder / "work",
    )
    return folder / "out"


def write_pairs(path: Path, pairs: list[dict]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    pq.write_table(
        pa.Table.from_pylist(
            pairs, pa.schema([(n, messages) for n in ("prompt", "chosen", "rejected")])
        ),
        path,
    )
    return path


def pair(history: list[tuple[str, str]], chosen: str, rejected: str) -> dict:
    said = [{"role": r, "content": c} for r, c in history]
    answers = {"chosen": chosen, "rejected": rejected}
    return {
        "prompt": said,
        **{k: [{"role": "assistant", "content": v}] for k, v in answers.items()},
    }


PAIRS = [
    pair([("user", f"How long does it take, {n}?")], "About two hours.", "Nobody knows at all.")
    for n in range(8)
]


def test_dpo_goes_on_training_the_chat_models_own_adapter(tmp_path, base, chat):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = write_pairs(tmp_path / "pairs.parquet", PAIRS)
    folders = {"out": tmp_path / "out", "work": tmp_path / "work"}
    report = train_dpo(
        block(dpo=DPO), [data], Policy(Base(base, "acme/tiny"), chat), seed=1, **folders
    )
    accuracies = [e["rewards/accuracies"] for e in report.loss_curve]
    assert report.loss_curve[-1]["loss"] < report.loss_curve[0]["loss"] and accuracies[-1] == 1.0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (
        config["base_model_name_or_path"] == "acme/tiny" and not (tmp_path / "out" / "ref").exists()
    )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    assert list(model.peft_config) == ["default"] and report.rows["pairs_used"] == 8
    again = train_dpo(
        block(dpo=DPO), [data], Policy(Base(base, "acme/tiny"), chat), seed=1, **folders
    )
    assert again.to_dict() == report.to_dict(), "a finished run is not trained again"


def test_over_long_histories_lose_their_oldest_exchanges_and_are_counted(tmp_path, base, chat):
    from hubkit.chat_templates import for_base
    from hubkit.tokenization import load_tokenizer
    from hubkit.training.dpo import PairEncoder, fit

    long = [
        ("system", "Be kind."),
        ("user", "word " * 30),
        ("assistant", "word " * 30),
        ("user", "And now?"),
    ]
    pairs = [
        pair(long, "Yes.", "No."),
        pair([("user", "word " * 200)], "Yes.", "No."),
        pair([("user", "Hi")], "Same.", "Same."),
        pair([("user", "Hi")], "Yes.", " "),
        PAIRS[0],
    ]
    data = write_pairs(tmp_path / "pairs.parquet", pairs)
    tokenizer, templates = load_tokenizer(chat), for_base(base)
    encoder = PairEncoder(templates, tokenizer)
    rows, stats = fit([data], encoder, 64, 1.0)
    prompts = [tokenizer.decode(row["prompt_ids"]) for row in rows]
    trimmed = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "And now?"},
    ]
    assert prompts[0] == templates.prompt(trimmed, "assistant")
    assert prompts[1] == templates.prompt(PAIRS[0]["prompt"], "assistant")
    assert tokenizer.decode(rows[0]["chosen_ids"]) == "Yes.<|im_end|>"
    assert tokenizer.decode(rows[0]["rejected_ids"]) == "No.<|im_end|>"
    with_system = fit([data], encoder, 96, 1.0, system="Short.")[0][-1]
    assert "system\nShort.<|im_end|>" in tokenizer.decode(with_system["prompt_ids"])
    assert stats.dropped == {"too_long": 1, "no_difference": 1, "empty_rejected": 1}
    assert (stats.pairs_read, stats.pairs_used, stats.trimmed, stats.exchanges_trimmed) == (
        5,
        2,
        1,
        1,
    )
    with pytest.raises(TrainingError, match=r"3 of 5 pairs cannot be used .*max_drop_share of 50%"):
        fit([data], encoder, 64, 0.5)


def test_the_optimised_adapter_is_merged_where_the_recipe_says_so(tmp_path, base, chat):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = write_pairs(tmp_path / "pairs.parquet", PAIRS)
    found = {}
    for merged in (False, True):
        asked = block(dpo={**DPO, "num_train_epochs": 1}, merge_adapter=merged)
        out = tmp_path / f"out-{merged}"
        report = train_dpo(
            asked,
            [data],
            Policy(Base(base, "a/t"), chat),
            out,
            seed=1,
            work=tmp_path / f"work-{merged}",
        )
        assert report.kind == ("merged" if merged else "adapter")
        model = AutoModelForCausalLM.from_pretrained(out if merged else base)
        found[merged] = model if merged else PeftModel.from_pretrained(model, out)
    ids = torch.arange(10, 40)[None]
    one, other = (model.eval()(ids).logits for model in found.values())
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def losses(report) -> list[float]:
    return [entry["loss"] for entry in report.loss_curve]


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_prefer_what_one_does(tmp_path, base, chat, strategy, whole, monkeypatch):
    from training.test_training import shard_over_processors

    if strategy == "fsdp2":
        shard_over_processors(monkeypatch)
    data = write_pairs(tmp_path / "pairs.parquet", PAIRS)
    dpo = {**DPO, "num_train_epochs": 2, "per_device_train_batch_size": 1, "logging_steps": 1,
           "bf16": False}  # fmt: skip
    model, found = base if whole else chat, {}
    for name, steps, launch in (("one", 4, None), ("two", 2, Launch(strategy, 2))):
        changed = {**dpo, "gradient_accumulation_steps": steps}
        found[name] = train_dpo(
            block(dpo=changed), [data], Policy(Base(base, "acme/tiny"), model), tmp_path / name,
            seed=1, work=tmp_path / f"{name}-work", launch=launch,
        )  # fmt: skip
    one, two = found["one"], found["two"]
    assert (
        (one.processes, two.processes) == (1, 2) and one.rows == two.rows and one.kind == two.kind
    )
    assert len(losses(one)) == 4 and losses(one) == pytest.approx(losses(two), rel=1e-3)
    assert losses(one)[-1] < losses(one)[0]


def test_dpo_keys_are_checked(tmp_path, base, chat):
    data = write_pairs(tmp_path / "pairs.parquet", PAIRS)
    folders = {"out": tmp_path / "out", "work": tmp_path / "work"}
    with pytest.raises(
        RecipeError, match=r"dpo\.bata is not a key of DPOConfig; did you mean 'beta'"
    ):
        train_dpo(
            block(dpo={"bata": 1}), [data], Policy(Base(base, "acme/tiny"), chat), seed=1, **folders
        )


@pytest.mark.parametrize("whole", [False, True])
def test_a_plan_of_dpo_agrees_with_the_run_it_plans(tmp_path, base, chat, whole):
    data = write_pairs(
        tmp_path / "pairs.parquet", [*PAIRS, pair([("user", "word " * 200)], "Yes.", "No.")]
    )
    training = Training(base="acme/tiny", seat="assistant", lora=None if whole else LORA)
    asked = block(
        dpo={**DPO, "num_train_epochs": 1}, expected={"conversations": 100, "tokens": 500}
    )
    planned = plan(asked, [data], Base(base, "acme/tiny"), seed=1, chat=training)
    folders = {"out": tmp_path / "out", "work": tmp_path / "work"}
    model = base if whole else chat
    report = train_dpo(asked, [data], Policy(Base(base, "acme/tiny"), model), seed=1, **folders)
    assert (planned.kind, planned.rows, planned.steps) == (
        "dpo",
        report.rows["pairs_used"],
        report.steps,
    )
    assert planned.tokens == report.tokens and planned.loss_tokens == report.loss_tokens
    assert planned.dropped_share == pytest.approx(1 / 9) and planned.refusals == []
    assert planned.trainable_parameters == report.trainable_parameters
    from_recipe = plan(asked, [], Base(base, "acme/tiny"), seed=1, chat=training)
    assert (from_recipe.rows, from_recipe.tokens) == (100, 100 * 2 * 96), (
        "a pair is cut at twice max_length"
    )


def test_what_a_reference_takes_depends_on_the_chat_model(tmp_path):
    from hubkit.training.estimate import Size, memory_gib

    class Config:
        max_length, per_device_train_batch_size, gradient_checkpointing = 512, 1, True

    class Text:
        hidden_size, num_hidden_layers, vocab_size = 512, 8, 32000

    sizes = {
        kind: Size(10**9, 10**7, Text, True, reference=kind)
        for kind in (None, "base", "adapter", "model")
    }
    need = {
        kind: memory_gib(size, Config, 2, 1, gpu=True)["reference"] for kind, size in sizes.items()
    }
    assert need[None] == need["base"] == 0
    assert need["adapter"] == pytest.approx(4e7 / 2**30, abs=1e-3)
    assert need["model"] == pytest.approx(4e9 / 2**30, abs=1e-3)
    once = sizes[None].flops_per_token(recompute=False)
    assert sizes["adapter"].flops_per_token(recompute=False) == once + 2e9, "its forward pass"
