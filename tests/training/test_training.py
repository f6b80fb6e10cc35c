"""Training: the right tokens carry loss, bad rows are counted, a kill costs nothing, stock loaders
read the result.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tiny_models import tiny_base, write_rows

from hubkit.errors import RecipeError, SourceError, TrainingError
from hubkit.progress import Notice
from hubkit.recipe import Training
from hubkit.training import Base, Launch, train

TURNS = [
    ("user", "How do I bake bread?"),
    ("assistant", "Mix flour, water and yeast."),
    ("user", "What about rye?"),
]
GOOD = [[*TURNS, ("assistant", f"Use less water, {n} times.")] for n in range(12)]
SFT = {
    "num_train_epochs": 1,
    "learning_rate": 5e-3,
    "max_length": 128,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def block(seat: str = "user", **changes) -> Training:
    return Training(
        **{
            "base": "acme/tiny",
            "seat": seat,
            "system": "You ask.",
            "lora": LORA,
            "sft": SFT,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.parquet", GOOD)


def run(
    tmp_path: Path,
    base: Path,
    rows: Path,
    training: Training,
    out: str = "out",
    work: str = "work",
    **more,
):
    folders = {"out": tmp_path / out, "work": tmp_path / work}
    return train(training, [rows], Base(base, "acme/tiny"), seed=7, **folders, **more)


def test_the_result_is_a_folder_that_stock_loaders_read(tmp_path, base, rows):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = run(tmp_path, base, rows, block())
    out = tmp_path / "out"
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "training_report.json").read_text()) == report.to_dict()
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/tiny"
    assert str(base) not in "".join(
        p.read_text() for p in out.glob("*.json") if p.name != "tokenizer.json"
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\n"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == model.generation_config.eos_token_id
    losses = [e["loss"] for e in report.loss_curve if "loss" in e]
    assert report.steps == 6 and len(losses) == 6 and losses[-1] < losses[0]
    assert report.rows["rows_used"] == 12 and report.loss_tokens < report.tokens


@pytest.mark.parametrize("seat", ["user", "assistant"])
def test_labels_are_those_of_trls_own_assistant_only_loss(tmp_path, base, rows, seat):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from hubkit import chat_templates
    from hubkit.tokenization import load_tokenizer
    from hubkit.training.loading import load_base
    from hubkit.training.rows import RowMaker, seat_view

    training, tokenizer = block(seat), load_tokenizer(base)
    messages = [{"role": r, "content": c} for r, c in GOOD[0]]
    templates = chat_templates.for_base(base)
    [ours] = RowMaker(training, tokenizer, templates, max_length=128)(
        {"messages": messages}
    ).examples
    tokenizer.chat_template = templates.source(seat, marks=True)
    config = SFTConfig(
        tmp_path, assistant_only_loss=True, bf16=False, report_to="none", use_cpu=True
    )
    stock = SFTTrainer(
        load_base(base, adapter=False),
        config,
        train_dataset=Dataset.from_list([{"messages": seat_view(messages, seat, "You ask.")}]),
        processing_class=tokenizer,
    ).train_dataset[0]
    cut = len(ours.input_ids)
    assert stock["input_ids"][:cut] == ours.input_ids and stock["labels"][:cut] == ours.labels
    assert set(stock["labels"][cut:]) <= {-100}, "only tokens without loss are left out"


def test_the_sparse_head_gives_trls_loss_and_gradients(tmp_path, base, rows):
    import torch
    from trl import SFTTrainer

    from hubkit.training.sft import SFTTask

    task = SFTTask(
        block(lora=None, sft={**SFT, "per_device_train_batch_size": 3, "max_length": 60}), base
    )
    config, _ = task.configure(tmp_path, seed=1)
    trainer = task.trainer(config, task.rows([rows], config, tmp_path, lambda *_: None), None)
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"][:, 1:] != -100).sum()
    found = []
    for compute in (trainer.compute_loss, super(type(trainer), trainer).compute_loss):
        trainer.model.zero_grad()
        loss = compute(trainer.model, dict(batch), num_items_in_batch=count)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in trainer.model.parameters()]))
    assert trainer.sparse_head and isinstance(trainer, SFTTrainer)
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-4)


BAD = {
    "empty_turn": [("user", "Hi"), ("assistant", "  ")],
    "roles_not_alternating": [("user", "Hi"), ("user", "there")],
    "system_not_first": [("user", "Hi"), ("system", "x"), ("assistant", "yo")],
    "bad_message": [("user", None), ("assistant", "yo")],
    "unknown_role": [("human", "Hi"), ("gpt", "yo")],
    "empty_conversation": [],
    "no_seat_turn": [("assistant", "Nobody asked.")],
    "no_loss_tokens": [("assistant", "word " * 200), ("user", "Too far back.")],
}


def test_rows_that_cannot_be_trained_on_are_dropped_by_reason(tmp_path, base):
    data = write_rows(tmp_path / "rows.parquet", [*GOOD, *BAD.values()])
    report = run(tmp_path, base, data, block(sft={**SFT, "max_steps": 1}))
    assert report.rows["dropped"]["counts"] == dict.fromkeys(BAD, 1)
    assert report.rows["dropped"]["examples"]["empty_turn"] == ["c12"]
    assert (
        report.rows["rows_read"]
        == 20
        == report.rows["rows_used"] + 8 + report.rows["rows_over_budget"]
    )


def test_content_that_is_no_text_is_a_dropped_row(tmp_path, base):
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    message = pa.struct([("role", pa.string()), ("content", pa.list_(part))])
    said = [{"role": r, "content": [{"type": "image", "text": c}]} for r, c in TURNS]
    path = tmp_path / "parts.parquet"
    schema = pa.schema([("id", pa.string()), ("messages", pa.list_(message))])
    rows = pa.Table.from_pylist([{"id": "p", "messages": said}], schema)
    pq.write_table(rows, path)
    with pytest.raises(TrainingError, match=r"none of 1 rows can be trained on \(bad_message 1\)"):
        run(tmp_path, base, path, block())


def test_too_many_bad_rows_refuse_to_start(tmp_path, base):
    data = write_rows(tmp_path / "rows.parquet", [GOOD[0], BAD["empty_turn"], BAD["bad_message"]])
    with pytest.raises(
        TrainingError,
        match=r"2 of 3 rows \(67%\).*bad_message 1, empty_turn 1.*max_drop_share of 50%",
    ):
        run(tmp_path, base, data, block())
    only_bad = write_rows(tmp_path / "bad.parquet", [BAD["empty_turn"]])
    with pytest.raises(TrainingError, match="none of 1 rows"):
        run(tmp_path, base, only_bad, block(max_drop_share=1.0))
    assert not (tmp_path / "out").exists()


def test_budgets_bound_the_rows(tmp_path, base, rows):
    assert (
        run(tmp_path, base, rows, block(max_conversations=3, sft={**SFT, "max_steps": 1})).rows[
            "rows_used"
        ]
        == 3
    )
    report = run(
        tmp_path, base, rows, block(max_tokens=100, sft={**SFT, "max_steps": 1}), out="out2"
    )
    assert (
        100 <= report.tokens < 200
        and report.rows["rows_over_budget"] == 12 - report.rows["rows_used"]
    )


def test_unreadable_input_is_one_sentence(tmp_path, base, rows):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(rows.read_bytes()[:200])
    with pytest.raises(SourceError, match=r"broken\.parquet cannot be read as parquet"):
        run(tmp_path, base, broken, block())
    with pytest.raises(SourceError, match=r"missing\.parquet cannot be read"):
        run(tmp_path, base, tmp_path / "missing.parquet", block())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="no tokenizer"):
        run(tmp_path, empty, rows, block())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sft": {"learning_rat": 1}},
            "sft.learning_rat is not a key of SFTConfig; did you mean 'learning_rate'",
        ),
        ({"sft": {"assistant_only_loss": False}}, "sft.assistant_only_loss is not for recipes"),
        ({"sft": {"lr_scheduler_type": "cosin"}}, "did you mean .cosine."),
        (
            {"lora": {"lora_alpa": 1}},
            "lora.lora_alpa is not a key of LoraConfig; did you mean 'lora_alpha'",
        ),
    ],
)
def test_keys_that_trl_or_peft_do_not_know_are_errors(tmp_path, base, rows, changes, message):
    with pytest.raises(RecipeError, match=message):
        run(tmp_path, base, rows, block(**changes))


def test_shipped_recipes_hold_only_keys_that_trl_and_peft_know(tmp_path):
    from hubkit import recipe
    from hubkit.training.config import lora_config, sft_config

    for name in recipe.available()["recipes"]:
        for profiles in ([], ["laptop"]):
            loaded = recipe.load(name, profiles=profiles)
            for training in (loaded.asker, loaded.chat):
                config, notes = sft_config(training, tmp_path, seed=1)
                assert config.use_cpu or not notes
                lora_config(training)


@pytest.mark.parametrize("faster", [True, False])
def test_bf16_is_on_where_the_processor_is_faster_in_it_and_the_report_says_so(
    tmp_path, base, rows, monkeypatch, faster
):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: bf16 stays on")
    monkeypatch.setattr("hubkit.training.config.bf16_is_faster", lambda: faster)
    report = run(tmp_path, base, rows, block(sft={**SFT, "bf16": True, "max_steps": 1}))
    assert [note.split(":")[0] for note in report.notes] == [f"bf16 is {'on' if faster else 'off'}"]


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, rows):
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny_base(tmp_path / "nan")
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(base)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1; lower sft\.learning_rate"):
        run(tmp_path, base, rows, block())


@pytest.mark.parametrize("merge", [True, False])
def test_whole_weights_are_saved_in_the_bases_own_precision(tmp_path, base, rows, merge):
    from transformers import AutoModelForCausalLM

    changes = {"merge_adapter": True} if merge else {"lora": None}
    changes["sft"] = {**SFT, "max_steps": 2}
    report = run(tmp_path, base, rows, block("assistant", **changes))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert report.kind == ("merged" if merge else "full") and not hasattr(model, "peft_config")


def loss_ids(row) -> list[int]:
    """The tokens with loss of a row that is one example."""
    from hubkit.chat_templates import IGNORE

    [example] = row.examples
    return [label for label in example.labels if label != IGNORE]


def test_the_asker_learns_to_say_the_end_mark_behind_the_last_answer(tmp_path, base):
    from transformers import AutoTokenizer

    from hubkit import chat_templates
    from hubkit.training.rows import RowMaker

    tokenizer, templates = AutoTokenizer.from_pretrained(base), chat_templates.for_base(base)
    maker = RowMaker(block(end_mark="[goodbye]"), tokenizer, templates, max_length=None)
    closed, opened = ([{"role": r, "content": c} for r, c in turns] for turns in (GOOD[0], TURNS))
    said = loss_ids(maker({"messages": closed}))
    assert tokenizer.decode(said).endswith("<|im_end|>[goodbye]<|im_end|>")
    said = loss_ids(maker({"messages": opened}))
    assert "goodbye" not in tokenizer.decode(said), (
        "a conversation that ends on the human's turn did not end there"
    )
    short = RowMaker(block(end_mark="[goodbye]"), tokenizer, templates, max_length=40)
    [cut] = short({"messages": closed}).examples
    assert "goodbye" not in tokenizer.decode(cut.input_ids), "nor does one that was cut off"


def test_an_intent_goes_into_the_system_message_as_in_a_rollout(base):
    from transformers import AutoTokenizer

    from hubkit import chat_templates
    from hubkit.training.rows import RowMaker

    tokenizer, templates = AutoTokenizer.from_pretrained(base), chat_templates.for_base(base)
    row = {"messages": [{"role": r, "content": c} for r, c in TURNS], "wish": "bake rye bread"}
    for system, text in (
        ("Ask.", "Ask.\n\nbake rye bread"),
        ("You want: {intent}.", "You want: bake rye bread."),
    ):
        maker = RowMaker(
            block(system=system, intent_column="wish"), tokenizer, templates, max_length=None
        )
        assert tokenizer.decode(maker(row).examples[0].input_ids).startswith(
            f"<|im_start|>system\n{text}<|im_end|>"
        )
    assert maker({**row, "wish": None}) == "no_intent"


def test_early_stopping_looks_at_held_out_rows_and_ends_when_nothing_gets_better(
    tmp_path, base, rows
):
    sft = {**SFT, "num_train_epochs": 6, "learning_rate": 0.0}
    report = run(tmp_path, base, rows, block(sft=sft, holdout=0.25, early_stopping=1))
    held_out = [e["eval_loss"] for e in report.loss_curve if "eval_loss" in e]
    assert len(held_out) == 2 and held_out[0] == held_out[1]
    with pytest.raises(RecipeError, match="early_stopping needs held-out rows"):
        run(tmp_path, base, rows, block(early_stopping=1))


def test_packed_rows_give_the_same_loss_as_rows_alone(tmp_path, base, rows):
    sft = {
        **SFT,
        "max_steps": 1,
        "gradient_accumulation_steps": 1,
        "max_length": 512,
        "num_train_epochs": 1,
    }
    packed = run(tmp_path, base, rows, block(sft={**sft, "packing": True}), out="packed")
    alone = run(
        tmp_path, base, rows, block(sft={**sft, "per_device_train_batch_size": 12}), out="alone"
    )
    assert packed.loss_curve[0]["loss"] == pytest.approx(alone.loss_curve[0]["loss"], rel=1e-4)


def test_four_bits_are_refused_where_they_cannot_run(tmp_path, base, rows):
    import torch

    with pytest.raises(RecipeError, match="quantize is for adapters"):
        run(tmp_path, base, rows, block(quantize="4bit", lora=None))
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RecipeError, match="needs a CUDA GPU"):
        run(tmp_path, base, rows, block(quantize="4bit"))


def test_a_finished_folder_is_not_trained_again_and_other_inputs_are(tmp_path, base, rows):
    first = run(tmp_path, base, rows, block(sft={**SFT, "max_steps": 1}))
    stamp = (tmp_path / "out" / "training_report.json").stat().st_mtime_ns
    assert (
        run(tmp_path, base, rows, block(sft={**SFT, "max_steps": 1})).to_dict() == first.to_dict()
    )
    assert (tmp_path / "out" / "training_report.json").stat().st_mtime_ns == stamp
    assert run(tmp_path, base, rows, block(sft={**SFT, "max_steps": 2})).steps == 2


@pytest.mark.slow
def test_trackio_keeps_its_curves_on_this_machine(tmp_path, base, rows):
    pytest.importorskip("trackio", reason="trackio is not installed")
    sft = {**SFT, "max_steps": 2, "logging_steps": 1, "report_to": "trackio"}
    call = json.dumps(
        [block(sft=sft).model_dump(mode="json"), str(rows), str(base), str(tmp_path), 0]
    )
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HUBKIT_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_never_sent"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, call], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "home" / "trackio").glob("*.db")) or list(
        (tmp_path / "home" / "trackio").iterdir()
    )


def shard_over_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `Launch("fsdp2", …)` run without GPUs, its workers through ``sharded_worker.py``."""
    from hubkit.training import launch

    real = launch.command

    def command(*arguments):
        *front, _, _, job = real(*arguments)  # … -m hubkit.training.worker JOB
        config = Path(front[front.index("--config_file") + 1])
        config.write_text(
            config.read_text().replace("mixed_precision: bf16", 'mixed_precision: "no"')
        )
        return [*front, str(ROOT / "tests" / "support" / "sharded_worker.py"), job]

    monkeypatch.setattr(launch, "command", command)
    monkeypatch.setattr(launch, "refuse", lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "lora"), [("ddp", LORA), ("fsdp2", LORA), ("fsdp2", None)])
def test_two_processes_learn_what_one_does(tmp_path, base, rows, strategy, lora, monkeypatch):
    from safetensors.torch import load_file

    if strategy == "fsdp2":
        shard_over_processors(monkeypatch)
    one = run(
        tmp_path,
        base,
        rows,
        block(lora=lora, sft={**SFT, "logging_steps": 1, "bf16": False}),
        out="one",
        work="one-work",
    )
    halved = {**SFT, "gradient_accumulation_steps": 1, "logging_steps": 1, "bf16": False}
    two = run(
        tmp_path, base, rows, block(lora=lora, sft=halved), out="two", launch=Launch(strategy, 2)
    )
    assert (
        two.steps == one.steps == 6
        and two.rows == one.rows
        and (two.processes, two.kind) == (2, one.kind)
    )
    losses = [[e["loss"] for e in report.loss_curve] for report in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0][-1] < losses[0][0]
    if strategy == "fsdp2":
        assert (
            "SHARDED DistributedType.FSDP ['DTensor']"
            in (tmp_path / "work" / "launch.log").read_text()
        )
    weights = [load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert tensor.allclose(weights[1][name], atol=1e-3), name


@pytest.mark.slow
def test_a_mistake_in_a_launched_run_is_the_same_sentence(tmp_path, base, rows):
    with pytest.raises(RecipeError, match=r"sft\.learning_rat is not a key"):
        run(tmp_path, base, rows, block(sft={"learning_rat": 1}), launch=Launch("ddp", 2))


def test_the_shipped_deepspeed_configuration_is_what_accelerate_takes(tmp_path):
    """Parsed by accelerate's own launcher, not run: the package deepspeed needs a CUDA toolkit to
    build with.
    """
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    from hubkit.training.launch import command

    [*_, worker, job] = asked = command(Launch("deepspeed", 2), tmp_path / "job.json", 2)
    args = launch.launch_command_parser().parse_args(asked[3:])
    args, defaults, _ = launch._validate_launch_command(args)
    assert (
        args.use_deepspeed and args.training_script == worker and args.training_script_args == [job]
    )
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    _, env = prepare_deepspeed_cmd_env(args)
    assert (
        env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
        and env["ACCELERATE_MIXED_PRECISION"] == "bf16"
    )
    assert env["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"


def test_the_shipped_fsdp2_configuration_is_what_accelerate_takes(tmp_path):
    """Parsed by accelerate's own launcher; `test_two_processes_learn_what_one_does` runs it."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    from hubkit.training.launch import command

    [*_, worker, job] = asked = command(Launch("fsdp2", 2), tmp_path / "job.json", 2)
    args = launch.launch_command_parser().parse_args(asked[3:])
    args, _, _ = launch._validate_launch_command(args)
    assert (args.use_fsdp, args.num_processes) == (True, 2)
    assert args.training_script == worker and args.training_script_args == [job]
    env = prepare_multi_gpu_env(args)
    assert (env["ACCELERATE_USE_FSDP"], env["FSDP_VERSION"]) == ("true", "2")
    assert (env["FSDP_STATE_DICT_TYPE"], env["ACCELERATE_MIXED_PRECISION"]) == (
        "FULL_STATE_DICT",
        "bf16",
    )


LAUNCHED = """
import json, sys
from pathlib import Path
from hubkit.recipe import Training
from hubkit.training import Base, Launch, train
block, data, base, folder = json.loads(sys.argv[1])
train(Training(**block), [Path(data)], Base(Path(base), "acme/tiny"), Path(folder) / "out",
      seed=7, work=Path(folder) / "work", launch=Launch("ddp", 2))
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_launched_them(tmp_path, base, rows):
    psutil = pytest.importorskip("psutil", reason="psutil is not installed")
    longer = block(sft={**SFT, "num_train_epochs": 500})
    call = json.dumps([longer.model_dump(mode="json"), str(rows), str(base), str(tmp_path)])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen([sys.executable, "-c", LAUNCHED, call], env=env)
    said, deadline = tmp_path / "work" / "launch.progress", time.monotonic() + 200
    while not (said.exists() and "loss" in said.read_text()):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(driver.pid).children(recursive=True)
    assert len(children) >= 3, "the launcher and two workers"
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(children, timeout=240)
    assert not alive


def test_a_launch_that_cannot_run_here_is_refused(tmp_path, base, rows):
    with pytest.raises(RecipeError, match="none of ddp, fsdp2, deepspeed"):
        run(tmp_path, base, rows, block(), launch=Launch("fsdp3", 2))
    import torch

    if not torch.cuda.is_available():
        for strategy in ("fsdp2", "deepspeed"):
            with pytest.raises(RecipeError, match=f"{strategy} shards over GPUs"):
                run(tmp_path, base, rows, block(), launch=Launch(strategy, 2))
        with pytest.raises(RecipeError, match="needs a number of processes"):
            run(tmp_path, base, rows, block(), launch=Launch("ddp"))


SCRIPT = """
import json, sys, time
from pathlib import Path
from hubkit.recipe import Training
from hubkit.training import Base, train
block, data, base, folder, pause = json.loads(sys.argv[1])
train(Training(**block), [Path(data)], Base(Path(base), "acme/tiny"), Path(folder) / "out",
      seed=7, work=Path(folder) / "work",
      progress=lambda done, total=None, note="": time.sleep(pause))
"""


def test_ctrl_c_ends_behind_a_checkpoint_and_the_rest_is_bit_equal(tmp_path, base, rows):
    training = block(
        sft={**SFT, "logging_steps": 1, "lr_scheduler_type": "cosine"},
        lora={**LORA, "lora_dropout": 0.1},
    )
    whole = run(tmp_path, base, rows, training, out="whole", work="whole-work")

    notices = []

    def press(done: float, total: float | None = None, note: str = "") -> None:
        if isinstance(note, Notice):
            notices.append((done, total, note))
        elif (done, total) == (3, 6):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, base, rows, training, progress=press)
    assert (
        not (tmp_path / "out").exists()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    assert notices[0][:2] == (3, 6) and "press again" in notices[0][2]
    resumed = run(tmp_path, base, rows, training)
    assert resumed.resumed_from_step == 3 and resumed.steps == whole.steps == 6
    assert [e["loss"] for e in resumed.loss_curve] == [e["loss"] for e in whole.loss_curve]
    weights = [
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("out", "whole")
    ]
    assert weights[0] == weights[1] and not list((tmp_path / "work").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_and_ends_bit_equal_to_one_that_was_not(tmp_path, base, rows):
    training = block(
        checkpoint_minutes=1e-9, sft={**SFT, "num_train_epochs": 3, "logging_steps": 1}
    )
    whole = run(tmp_path, base, rows, training, out="whole", work="whole-work")
    call = json.dumps([training.model_dump(mode="json"), str(rows), str(base), str(tmp_path), 0.3])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, call],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 500
    while not list((tmp_path / "work").glob("*/checkpoint-[3-9]/hubkit-complete")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    resumed = run(tmp_path, base, rows, training)
    assert resumed.resumed_from_step >= 3 and resumed.steps == whole.steps == 18
    assert [e["loss"] for e in resumed.loss_curve] == [e["loss"] for e in whole.loss_curve]
    weights = [
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("out", "whole")
    ]
    assert weights[0] == weights[1]
    assert not list((tmp_path / "work").iterdir())


def test_a_checkpoint_that_was_cut_off_is_not_resumed_from(tmp_path):
    from hubkit.training.trainer import COMPLETE, Run, last_complete

    marks = {5: '{"seconds": 4.5}', 10: '{"seconds": 9.5}', 15: None, 20: "", 25: '{"seconds": 2'}
    for step, mark in marks.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if mark is not None:
            (folder / COMPLETE).write_text(mark)
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert 9.5 <= Run(tmp_path).seconds < 9.5 + 600
    whole = '{"seconds": 14.5}'
    for length in range(len(whole)):
        (tmp_path / "checkpoint-15" / COMPLETE).write_text(whole[:length])
        assert last_complete(tmp_path) == tmp_path / "checkpoint-10", whole[:length]
