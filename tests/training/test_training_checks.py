"""What would stop a training, or let it change nothing, is refused by the dry run and before any
weights are loaded, with what to write instead; the rest works.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_adapter, tiny_base, write_rows

from hubkit.errors import RecipeError, SourceError, TrainingError
from hubkit.recipe import Preference, Training
from hubkit.training import Base, Policy, plan, train, train_dpo
from hubkit.training.checks import check_steps, learning_rates
from hubkit.training.config import bf16_is_faster, fit_to_machine, sft_config

ROWS = [
    [("user", f"How do I bake bread {i}?"), ("assistant", "Mix flour."), ("user", "And rye?")]
    for i in range(8)
]
SFT = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
SFT |= {"max_length": 64, "logging_steps": 1}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.parquet", ROWS)


def block(**changes: Any) -> Training:
    values = {"base": "acme/tiny", "seat": "user", "lora": LORA, "sft": SFT, **changes}
    return Training(**values)


def planned(training: Training, base: Path, data: Path) -> Any:
    return plan(training, [data], Base(base, "acme/tiny"), seed=1)


def run(tmp_path: Path, base: Path, data: Path, training: Training) -> Any:
    return train(
        training,
        [data],
        Base(base, "acme/tiny"),
        tmp_path / "out",
        seed=1,
        work=tmp_path / "work",
    )


def changed_base(base: Path, folder: Path, **changes: Any) -> Path:
    """`base` with other values in its configuration, without weights."""
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"target_modules": ["qkv"]}, r"target_modules names qkv.*linear modules are .*q_proj"),
        ({"target_modules": ["q_proj", "query"]}, r"target_modules names query"),
        ({"target_modules": r".*attention\.q"}, r"matches no module of the base"),
        ({"target_modules": r"*q"}, r"is not a regular expression"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"names lm_head, and .* share their weights"),
        ({"target_modules": ["embed_tokens"]}, r"names model.embed_tokens, and .* leave it out"),
        ({"target_modules": r".*(q_proj|embed_tokens)"}, r"names model.embed_tokens, and .* share"),
        ({**LORA, "modules_to_save": ["wte"]}, r"modules_to_save names wte"),
    ],
)
def test_lora_that_names_what_is_not_there_is_refused(tmp_path, base, data, lora, sentence):
    refusals = planned(block(lora=lora), base, data).refusals
    assert len(refusals) == 1
    with pytest.raises(RecipeError, match=sentence) as refused:
        run(tmp_path, base, data, block(lora=lora))
    assert str(refused.value) == refusals[0]
    assert not (tmp_path / "out").exists()


def test_lora_that_peft_refuses_is_refused_in_its_own_words(tmp_path, data):
    from support.tiny_models import tiny_model_of

    base = tiny_model_of(tmp_path / "mamba", "mamba")
    training = block(lora={"r": 4, "target_modules": "all-linear"})
    [refusal] = planned(training, base, data).refusals
    assert "lora cannot be put on this base" in refusal and "out_proj" in refusal
    with pytest.raises(RecipeError, match="out_proj"):
        run(tmp_path, base, data, training)


def test_a_head_of_its_own_is_no_target_either(tmp_path, data):
    base = tiny_base(tmp_path / "base", tied=False)
    training = block(lora={"r": 4, "target_modules": ["q_proj", "lm_head"]})
    [refusal] = planned(training, base, data).refusals
    assert "lora.target_modules: ['q_proj', 'lm_head'] cannot be used here" in refusal
    with pytest.raises(RecipeError, match="would never be trained"):
        run(tmp_path, base, data, training)
    saved = block(lora={**LORA, "modules_to_save": ["lm_head"]})
    assert planned(saved, base, data).refusals == []
    assert run(tmp_path, base, data, saved).steps == 4


@pytest.mark.parametrize(
    ("sft", "sentence"),
    [
        ({"use_liger_kernel": True}, r"^sft.use_liger_kernel: True .*need a CUDA GPU"),
        ({"optim": "adamw_bnb_8bit"}, r"^sft.optim: adamw_bnb_8bit .*install `bitsandbytes`"),
        ({"report_to": ["dvclive"]}, r"^sft.report_to: \['dvclive'\] .*pip install dvclive"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"^sft.lr_scheduler_type: .*min_lr_rate"),
        ({"eos_token": "<end>"}, r"^sft.eos_token: <end> .*not found in the vocabulary"),
        ({"eval_strategy": "steps"}, r"^sft.eval_strategy: steps .*eval_dataset"),
        ({"accelerator_config": {"own": 1}}, r"AcceleratorConfig.*unexpected keyword.*own"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_keys_that_cannot_work_here_are_refused_with_their_names(
    tmp_path, base, data, sft, sentence
):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    training = block(sft={**SFT, **sft})
    with pytest.raises(RecipeError, match=sentence) as refused:
        run(tmp_path, base, data, training)
    try:
        planning = "; ".join(planned(training, base, data).refusals)
    except RecipeError as error:  # a value that no configuration object takes
        planning = str(error)
    assert planning == str(refused.value)


def test_keys_for_a_gpu_are_not_refused_where_another_machine_is_planned_for(base, data):
    options = {"attn_implementation": "flash_attention_2"}
    sft = {**SFT, "optim": "adamw_bnb_8bit", "use_liger_kernel": True, "model_init_kwargs": options}
    training = block(sft=sft, quantize="4bit", merge_adapter=True)
    made = plan(training, [data], Base(base, "acme/tiny"), seed=1, device="A100", device_gib=80.0)
    assert made.refusals == [] and made.memory_gib["weights"] < made.parameters * 4 / 2**30


def test_making_a_trainer_beforehand_changes_nothing_that_is_drawn(base):
    import random

    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from hubkit.training.checks import meta_model
    from hubkit.training.trial import check_trainer

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def seeded() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seeded()
    expected = drawn()
    seeded()
    tokenizer = AutoTokenizer.from_pretrained(base)
    config, _ = sft_config(block(), Path("unused"), seed=1)
    assert not check_trainer(block(), config, meta_model(base), tokenizer).refusals
    assert drawn() == expected


def test_a_base_that_is_stored_quantized_is_refused(tmp_path, base, data):
    stored = changed_base(base, tmp_path / "q", quantization_config={"quant_method": "gptq"})
    assert "stored quantized (gptq)" in planned(block(), stored, data).refusals[0]
    with pytest.raises(RecipeError, match=r"16-bit weights as base, with quantize: 4bit"):
        run(tmp_path, stored, data, block())


def test_a_model_that_is_no_causal_language_model_is_refused(tmp_path, base, data):
    from transformers import Qwen2_5_VLConfig

    folder = changed_base(base, tmp_path / "vl")
    Qwen2_5_VLConfig(architectures=["Qwen2_5_VLForConditionalGeneration"]).save_pretrained(folder)
    with pytest.raises(SourceError, match=r"holds a Qwen2_5_VL.*name a text model"):
        planned(block(), folder, data)


@pytest.mark.parametrize("name", ["adapter_config.json", "weights.gguf"])
def test_what_is_no_whole_model_is_no_base(tmp_path, base, data, name):
    folder = changed_base(base, tmp_path / "other")
    (folder / "config.json").unlink()
    (folder / name).write_text("{}")
    with pytest.raises(SourceError, match=r"GGUF files and adapters are served, and not trained"):
        planned(block(), folder, data)


def test_of_a_multimodal_base_only_the_text_part_is_trained(tmp_path, base, data):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    folder = changed_base(base, tmp_path / "mm")
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    training = block(lora={"r": 4, "target_modules": "all-linear"})
    assert planned(training, folder, data).refusals == []
    report = run(tmp_path, folder, data, training)
    assert report.steps == 4 and report.final_loss is not None
    below = AutoModelForCausalLM.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(below, str(tmp_path / "out"))
    changed = [n for n, p in adapted.named_parameters() if "lora_B" in n and bool(p.any())]
    assert changed and not any("vision" in name or "projector" in name for name in changed)
    assert torch.equal(below.get_input_embeddings().weight, below.get_output_embeddings().weight)


@pytest.mark.parametrize("warmup", [0.03, 1, 5])
def test_a_training_that_changes_nothing_says_so(tmp_path, base, data, warmup):
    sft = {**SFT, "max_steps": 1, "warmup_steps": warmup}
    [refusal] = planned(block(sft=sft), base, data).refusals
    assert "changes nothing (1 step(s)" in refusal and "sft.warmup_steps: 0" in refusal
    with pytest.raises(RecipeError, match="changes nothing"):
        run(tmp_path, base, data, block(sft=sft))


def test_a_learning_rate_of_zero_is_the_recipes_own_wish_and_is_noted(base, data):
    made = planned(block(sft={**SFT, "learning_rate": 0}), base, data)
    assert not made.refusals and any("changes nothing" in note for note in made.notes)


def test_a_warm_up_that_is_most_of_the_run_is_noted(tmp_path, base, data):
    sft = {**SFT, "warmup_steps": 40}
    made = planned(block(sft=sft), base, data)
    assert not made.refusals and any("never comes near" in note for note in made.notes)
    report = run(tmp_path, base, data, block(sft=sft))
    assert any("never comes near" in note for note in report.notes)


def test_learning_rates_are_those_of_the_trainer(tmp_path, base, data):
    sft = {**SFT, "num_train_epochs": 2, "warmup_steps": 2, "lr_scheduler_type": "cosine"}
    report = run(tmp_path, base, data, block(sft=sft))
    config, _ = sft_config(block(sft=sft), tmp_path, seed=1)
    rates = [entry["learning_rate"] for entry in report.loss_curve if "learning_rate" in entry]
    assert rates == pytest.approx(learning_rates(config, report.steps))
    assert not check_steps(config, report.steps).refusals


def test_the_laptop_profile_has_no_warm_up():
    from hubkit.recipe import load

    for name in ("parrot", "realm"):
        recipe = load(name, profiles=["laptop"])
        assert recipe.asker.sft["warmup_steps"] == recipe.chat.sft["warmup_steps"] == 0


@pytest.mark.parametrize("token", ["pad", "pad and eos"])
def test_a_tokenizer_without_a_padding_token_trains(tmp_path, base, data, token):
    folder = tmp_path / "base"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("pad_token", "eos_token")[: 1 if token == "pad" else 2]:
        config.pop(key)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    report = run(tmp_path, folder, data, block())
    assert report.steps == 4 and report.final_loss is not None


def test_marks_that_were_never_trained_are_named(tmp_path, base, data):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "base"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base),
        AutoTokenizer.from_pretrained(base),
    )
    with torch.no_grad():
        number = tokenizer.convert_tokens_to_ids("<|im_end|>")
        model.get_input_embeddings().weight[number] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    [refusal] = planned(block(), folder, data).refusals
    assert "was never trained on <|im_end|>" in refusal
    with pytest.raises(RecipeError, match=r"never trained on <\|im_end\|>.*template: plain"):
        run(tmp_path, folder, data, block())
    trained = {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}
    report = run(tmp_path, folder, data, block(lora=trained))
    assert any("they are learned here" in note for note in report.notes)


def test_modules_to_save_are_trained_and_loaded_by_stock_peft(tmp_path, base, data):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = {**LORA, "modules_to_save": ["embed_tokens"]}
    report = run(tmp_path, base, data, block(lora=lora))
    assert any("merge_adapter: true" in note for note in report.notes)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")
    )
    stored = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert not torch.equal(model.get_input_embeddings().weight, stored)


def test_an_adapter_on_quantized_weights_is_merged_into_a_base_that_is_loaded_anew(tmp_path, base):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from hubkit.training.save import _merged

    adapter = tiny_adapter(tmp_path / "adapter", base, "acme/tiny")

    def loaded() -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))

    expected = loaded().merge_and_unload()
    quantized = loaded()
    quantized.get_base_model().quantization_method = "bitsandbytes"
    for layer in quantized.get_base_model().model.layers:  # as four bits would leave them
        layer.self_attn.q_proj.base_layer.weight.data.mul_(1.1)
    merged = _merged(quantized, base)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_attention_that_a_recipe_asks_for_is_used(tmp_path, base, data, name):
    from hubkit.training.sft import SFTTask

    sft = {**SFT, "model_init_kwargs": {"attn_implementation": name}}
    task = SFTTask(block(sft=sft), base)
    config, _ = task.configure(tmp_path, seed=1)
    trainer = task.trainer(config, task.rows([data], config, tmp_path, lambda *_: None), None)
    assert trainer.model.config._attn_implementation == name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"attn_implementation": "flash_attention_2"}, "needs a CUDA GPU.*write sdpa"),
        ({"attn_implementation": "flex_attention"}, "needs a CUDA GPU.*write sdpa"),
        ({"attn_implementation": "sdap"}, "sdap is none that this base has .*write sdpa or eager"),
        ({"attn_implementation": "paged|sdpa"}, "is for serving alone.*write sdpa"),
        ({"attn_implementation": "kernels-community/flash"}, "names code in a repo, which hubkit"),
        ({"torch_dtype": "float16"}, "model_init_kwargs.torch_dtype is not for recipes"),
    ],
)
def test_model_options_that_cannot_run_here_are_refused(tmp_path, base, data, options, sentence):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    training = block(sft={**SFT, "model_init_kwargs": options})
    [refusal] = planned(training, base, data).refusals
    with pytest.raises(RecipeError, match=sentence) as refused:
        run(tmp_path, base, data, training)
    assert str(refused.value) == refusal


def test_apples_gpus_are_used(monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    values, notes = fit_to_machine({"fp16": True})
    assert "use_cpu" not in values and not values["fp16"] and "Apple" in notes[0]


def test_bf16_is_on_only_where_the_processor_has_instructions_for_it_and_is_faster_in_it(
    tmp_path, monkeypatch
):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    plain = tmp_path / "cpuinfo"
    plain.write_text("flags : avx2 avx512f avx512_vnni\n")
    monkeypatch.setattr(torch, "mm", lambda *_: pytest.fail("no such product is ever tried"))
    assert not bf16_is_faster(plain) and not bf16_is_faster(tmp_path / "missing")
    for flag in ("amx_bf16", "avx512_bf16"):
        plain.write_text(f"flags : avx2 {flag}\n")
        for faster in (True, False):
            bf16_is_faster.cache_clear()
            monkeypatch.setattr(torch, "mm", timed_products(monkeypatch, faster))
            assert bf16_is_faster(plain) is faster
    monkeypatch.setattr(torch, "mm", lambda *_: pytest.fail("it is measured once"))
    assert not bf16_is_faster(plain)


def timed_products(monkeypatch, faster):
    """A stand-in for ``torch.mm`` on a clock of its own: bfloat16 takes half or twice as long."""
    import torch

    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def product(left, right):
        assert left.dtype == right.dtype
        now[0] += 1.0 if left.dtype == torch.float32 else (0.5 if faster else 2.0)

    return product


def test_a_recipe_decides_whether_bf16_may_be_on(monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for faster in (True, False):
        monkeypatch.setattr("hubkit.training.config.bf16_is_faster", lambda is_it=faster: is_it)
        for wanted in ({}, {"bf16": True}):
            values, notes = fit_to_machine(wanted)
            assert values["bf16"] is faster and values["use_cpu"]
            assert bool(notes) is (faster or bool(wanted)), "what differs from the recipe is said"
        assert fit_to_machine({"bf16": False}) == ({"use_cpu": True, "bf16": False}, [])


def test_a_template_that_cannot_be_proven_is_refused_before_anything_is_loaded(
    tmp_path, base, data
):
    folder = changed_base(base, tmp_path / "base")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    made = planned(block(), folder, data)
    assert made.template is None and "write template: NAME" in made.refusals[0]
    assert planned(block(template="chatml"), folder, data).refusals == []


def test_a_dry_run_shows_the_template_and_one_row_with_its_loss_marked(base, data):
    template = planned(block(system="You ask."), base, data).template
    assert template.description.startswith("the family chatml")
    assert template.stop_texts == ["<|im_end|>"]
    assert template.row.startswith("<|im_start|>system\nYou ask.<|im_end|>\n<|im_start|>user\n«How")
    assert template.row.endswith("<|im_start|>user\n«And rye?<|im_end|>»\n")


def test_rows_are_compared_with_what_the_base_itself_prints(tmp_path, base):
    from support.real_templates import trl_templates

    folder = tmp_path / "base"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(trl_templates()["qwen3"])
    rows = [[*ROWS[0], ("assistant", "<think>a</think>Less water.")], *ROWS[1:]]
    data = write_rows(tmp_path / "rows.parquet", rows)
    training = block(seat="assistant", sft={**SFT, "max_length": 256})
    template = planned(training, folder, data).template
    assert (template.rows_compared, template.rows_differing) == (8, 1)
    assert "derived from the base's chat_template.jinja" in template.description
    report = run(tmp_path, folder, data, training)
    assert report.rows["rows_differing_examples"] == ["c0"]
    assert report.rows["rows_compared"] == 8 and report.rows["examples"] == 9


def test_nobody_but_the_configured_hub_is_asked_when_adapters_are_saved(
    tmp_path, base, data, monkeypatch
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked: list[str] = []
    resolve = socket.getaddrinfo

    def refusing(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("localhost", "127.0.0.1", None):
            asked.append(str(host))
            raise socket.gaierror(f"{host} is not asked in a test")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", refusing)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    steps = {"save_strategy": "steps", "save_steps": 1}
    run(tmp_path, base, data, block(sft={**SFT, **steps}))
    user = [{"role": "user", "content": "Hi"}]
    pairs = [
        {
            "prompt": user,
            "chosen": [{"role": "assistant", "content": f"Yes {i}."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    chat = tiny_adapter(tmp_path / "chat", base, "acme/tiny")
    dpo = {"max_steps": 2, "per_device_train_batch_size": 2, "max_length": 64, **steps}
    train_dpo(
        Preference(chat={"repo": "chat"}, dpo=dpo),
        [tmp_path / "pairs.parquet"],
        Policy(Base(base, "acme/tiny"), chat),
        tmp_path / "aligned",
        seed=1,
        work=tmp_path / "work-dpo",
    )
    assert (tmp_path / "aligned" / "adapter_model.safetensors").exists()
    assert asked == []


def test_what_decides_only_pace_never_trains_again(tmp_path, base, data):
    report = run(tmp_path, base, data, block())
    again = block(
        checkpoint_minutes=1.0,
        sft={**SFT, "save_strategy": "epoch", "logging_steps": 2, "dataloader_num_workers": 1},
    )
    assert run(tmp_path, base, data, again).fingerprint == report.fingerprint
    other = block(sft={**SFT, "learning_rate": 2e-3})
    assert run(tmp_path, base, data, other).fingerprint != report.fingerprint


def test_tool_results_and_flagged_turns_are_rows_like_others(tmp_path, base):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from support.real_templates import trl_templates

    from hubkit.data.parquet import conversation_schema

    folder = tmp_path / "base"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    call = {"type": "function", "function": {"name": "look_up", "arguments": '{"word": "rye"}'}}
    tool_turns = [
        {"role": "user", "content": "What is rye?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "a grain"},
        {"role": "assistant", "content": "It is a grain."},
    ]
    flagged = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "No.", "train": False},
    ]
    schema = conversation_schema(optional_fields=("tool_calls", "train"))
    rows = [
        {"id": f"r{i}", "messages": messages, "source": "test"}
        for i, messages in enumerate([tool_turns, tool_turns, flagged])
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "rows.parquet")
    training = block(seat="assistant", sft={**SFT, "max_length": 512})
    (folder / "chat_template.jinja").write_text(trl_templates()["qwen2_5"])
    report = run(tmp_path, folder, tmp_path / "rows.parquet", training)
    assert report.rows["dropped"]["counts"] == {"flagged_not_to_train": 1}
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(TrainingError, match=r"template_refuses 2"):
        run(tmp_path, folder, tmp_path / "rows.parquet", training)
    finals = block(seat="assistant", tools="only_final", sft=training.sft)
    report = run(tmp_path, folder, tmp_path / "rows.parquet", finals)
    assert report.rows["rows_used"] == 2
