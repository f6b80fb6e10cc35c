"""A trained model as a folder that can be pushed: weights or adapter, tokenizer, served template,
generation defaults.

Takes a finished trainer; gives files that stock ``PeftModel`` and ``AutoModelForCausalLM`` load,
and that a server renders exactly as trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubkit.chat_templates import SeatTemplates
from hubkit.conversation import Seat
from hubkit.training.loading import load_base
from hubkit.training.report import TrainReport
from hubkit.untrusted import JsonObject, parse_json


def save_trained(
    trainer: Any,
    tokenizer: Any,
    templates: SeatTemplates,
    base: Path,
    out: Path,
    report: TrainReport,
    *,
    merge: bool,
) -> None:
    """Write the model folder, `report` included (its `kind` set to what was saved), in place of
    what was there.

    The folder appears at once: a kill leaves either none or a whole one. Of several processes the
    first one writes; sharded weights are gathered from all."""
    accelerator = trainer.accelerator
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = accelerator.get_state_dict(trainer.model) if sharded else None
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(trainer.model)
        _write(model, state, tokenizer, templates, base, out, report, merge)
    accelerator.wait_for_everyone()


def _write(
    model: Any,
    state: Any,
    tokenizer: Any,
    templates: SeatTemplates,
    base: Path,
    out: Path,
    report: TrainReport,
    merge: bool,
) -> None:
    staging = out.with_name(out.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    report.kind = _save_weights(model, state, base, staging, report, merge)
    tokenizer.chat_template = templates.source(report.seat)
    tokenizer.save_pretrained(staging)
    _write_generation_config(base, tokenizer, templates, report.seat, staging)
    (staging / "README.md").unlink(missing_ok=True)
    report.write(staging)
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)


def _save_weights(
    model: Any, state: Any, base: Path, out: Path, report: TrainReport, merge: bool
) -> str:
    """Returns what was saved: ``adapter``, ``merged`` or ``full`` weights (these in the base's own
    precision).
    """
    import torch

    adapter = hasattr(model, "peft_config")
    if adapter and not merge:
        model.save_pretrained(out, selected_adapters=["default"], state_dict=state)
        _name_base(out / "adapter_config.json", report.base, report.base_revision)
        return "adapter"
    if adapter:
        model = _merged(model, base)
    stored = parse_json((base / "config.json").read_text("utf-8"))
    dtype = getattr(
        torch, str(stored.get("dtype") or stored.get("torch_dtype") or "float32"), torch.float32
    )
    if state is None:
        model.to(dtype).save_pretrained(out)
    else:
        model.save_pretrained(
            out, state_dict={name: tensor.to(dtype) for name, tensor in _untied(model, state)}
        )
    return "merged" if adapter else "full"


def _merged(model: Any, base: Path) -> Any:
    """The adapter's model with its weights added to the base's.

    Into a base that is loaded anew where this one is quantized: weights of four bits hold no sum,
    and a model that was merged in them is not one that a server loads."""
    if not getattr(model.get_base_model(), "quantization_method", None):
        return model.merge_and_unload()
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    weights = {k: v.cpu() for k, v in get_peft_model_state_dict(model).items()}
    whole = get_peft_model(load_base(base, adapter=False), model.peft_config["default"])
    set_peft_model_state_dict(whole, weights)
    return whole.merge_and_unload()


def _untied(model: Any, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`state`, gathered from shards, without what it holds a second time: a head that is the
    embedding.
    """
    import torch

    tied_names = getattr(model, "_tied_weights_keys", None)
    tied_names = (
        tied_names
        if isinstance(tied_names, dict) and model.config.get_text_config().tie_word_embeddings
        else {}
    )
    for name, tensor in state.items():
        twin = state.get(tied_names.get(name, ""))
        if twin is None or not torch.equal(tensor, twin):
            yield name, tensor


def _write_generation_config(
    base: Path, tokenizer: Any, templates: SeatTemplates, seat: Seat, out: Path
) -> None:
    """The base's generation defaults, stopping also at the end of this seat's turns."""
    path = base / "generation_config.json"
    config: JsonObject = (
        parse_json(path.read_text("utf-8")) if path.exists() else {"_from_model_config": True}
    )
    stored_ends = config.get("eos_token_id")
    ids = stored_ends if isinstance(stored_ends, list) else [stored_ends]
    ends = [number for number in ids if isinstance(number, int)]
    for text in templates.stop_texts(seat):
        token = tokenizer.convert_tokens_to_ids(text)
        if isinstance(token, int) and token != tokenizer.unk_token_id and token not in ends:
            ends.insert(0, token)
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    (out / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _name_base(path: Path, base_repo_id: str, base_revision: str | None) -> None:
    """Name the base by its Hub repo, after PEFT has saved: it would ask the Hub for that repo's
    config on saving.
    """
    config = parse_json(path.read_text("utf-8"))
    config.update(base_model_name_or_path=base_repo_id, revision=base_revision)
    if isinstance(config.get("target_modules"), list):
        config[
            "target_modules"
        ].sort()  # PEFT writes a set: the same adapter should be the same file
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
