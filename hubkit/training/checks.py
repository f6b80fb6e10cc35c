"""What would stop a training, or let it change nothing, known before any weights are loaded.

Each check takes a block and the shape of its base and gives sentences: refusals, which say what to
write instead, and notes."""

from __future__ import annotations

import copy
import importlib.util
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubkit.chat_templates import SeatTemplates
from hubkit.errors import RecipeError, SourceError, refusing_remote_code
from hubkit.recipe import Preference, Reinforce, Training
from hubkit.training.config import lora_config, make_scheduler
from hubkit.untrusted import JsonObject, parse_json

_MIN_NORM_SHARE = 0.02


@dataclass
class Findings:
    """Why a training would not run, and what a reader should know."""

    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, findings: Findings) -> None:
        """Take in what another check found."""
        self.refusals += findings.refusals
        self.notes += findings.notes

    def require(self) -> None:
        """Raise `RecipeError` with every refusal, if there is one."""
        if self.refusals:
            raise RecipeError("; ".join(self.refusals))


def check_all(
    block: Training | Preference | Reinforce,
    base: Path,
    *,
    options: Mapping[str, Any],
    templates: SeatTemplates | None = None,
    model: Any = None,
    here: bool = True,
) -> Findings:
    """Every check that needs no data, in one.

    Args:
        block: The recipe's.
        base: The folder of the model to train.
        options: Its ``model_init_kwargs``.
        templates: How the base prints conversations; None: not looked at.
        model: The base on the meta device, where there is one already.
        here: Whether this machine trains: elsewhere its packages and its GPU do not matter."""
    findings = check_base(block, base)
    if findings.refusals:
        return findings
    model = meta_model(base) if model is None else model
    findings.add(check_lora(block, model))
    findings.add(check_attention(options, model, here=here))
    if here:
        findings.add(check_quantize(block))
    if templates is not None:
        findings.add(check_marks(block, base, templates))
    return findings


def meta_model(base: Path) -> Any:
    """The model in `base` on torch's meta device: shapes and names, no weights.

    Raises:
        SourceError: Its configuration is not one of a causal language model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with refusing_remote_code(str(base)):
            config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{base} holds no config.json that transformers reads ({error}); a base is a whole "
            "model in safetensors: GGUF files and adapters are served, and not trained"
        ) from None
    try:
        with torch.device("meta"), refusing_remote_code(str(base)):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError:
        kind = ", ".join(config.architectures or [config.model_type])
        raise SourceError(
            f"{base} holds a {kind}, which transformers does not load as a causal language model; "
            "name a text model, or the text part of this one, as base"
        ) from None


def check_base(block: Training | Preference | Reinforce, base: Path) -> Findings:
    """What the base's configuration says: weights that are quantized as they are stored."""
    findings = Findings()
    stored = _config(base).get("quantization_config")
    if isinstance(stored, Mapping):
        method = stored.get("quant_method", "an unknown way")
        findings.refusals.append(
            f"the base is stored quantized ({method}), and such weights are not trained; name the "
            "repo with its 16-bit weights as base, with quantize: 4bit where memory is short"
        )
    return findings


def check_lora(block: Training | Preference | Reinforce, model: Any) -> Findings:
    """Whether every module that ``lora`` names is one of `model`, and can be trained."""
    findings = Findings()
    lora = block.lora
    if lora is None:
        return findings
    linear = _linear_names(model)
    for key in ("target_modules", "modules_to_save"):
        names = lora.get(key)
        if isinstance(names, str):
            if key == "target_modules" and names != "all-linear":
                findings.refusals += _unmatched_pattern(names, model, linear)
            continue
        missing = [name for name in names or [] if not _ends_with(model, name)]
        if missing:
            findings.refusals.append(
                f"lora.{key} names {', '.join(missing)}, and no module of the base ends so; its "
                f"linear modules are {', '.join(linear)}"
            )
    if not findings.refusals:
        findings.refusals += _unadaptable(block, model)
    if lora.get("modules_to_save"):
        findings.notes.append(
            "lora.modules_to_save stores whole modules in the adapter; servers that take only "
            "low-rank weights need merge_adapter: true"
        )
    return findings


def check_steps(config: Any, steps: int | None) -> Findings:
    """Whether the learning rates of all steps together are anything.

    Args:
        config: TRL's.
        steps: How many there will be; None: not known."""
    findings = Findings()
    if steps is None:
        return findings
    rates = learning_rates(config, steps)
    key = "dpo" if type(config).__name__ == "DPOConfig" else "sft"
    warmup = config.get_warmup_steps(steps)
    facts = (
        f"{steps} step(s), {key}.learning_rate {config.learning_rate:g}, {warmup} of them warm-up"
    )
    if not config.learning_rate:
        findings.notes.append(f"this training changes nothing: {key}.learning_rate is 0")
    elif not sum(rates):
        findings.refusals.append(
            f"this training changes nothing ({facts}: every step is at rate 0); "
            f"set {key}.warmup_steps: 0, a higher rate, or more data"
        )
    elif warmup and max(rates) < 0.5 * config.learning_rate:
        findings.notes.append(
            f"this training never comes near its learning rate ({facts}; the highest is "
            f"{max(rates):.2g}); set {key}.warmup_steps: 0"
        )
    return findings


def learning_rates(config: Any, steps: int) -> list[float]:
    """The learning rate of each of `steps` steps, at most the first 1,000 of them."""
    try:
        scheduler = make_scheduler(config, config.get_warmup_steps(steps), steps)
    except (TypeError, ValueError):
        return [config.learning_rate]  # one that needs evaluations
    rates, optimizer = [], scheduler.optimizer
    for _ in range(min(steps, 1000)):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def check_marks(
    block: Training | Preference | Reinforce, base: Path, templates: SeatTemplates
) -> Findings:
    """Whether the control tokens that the template prints were ever trained.

    A base that was never shown its chat tokens has rows for them that are zero, and a model that is
    asked to predict one by such a row learns nothing or gets no number at all. Only the rows are
    read."""
    findings = Findings()
    tokens = printed_tokens(templates)
    rows = _embedding_norms(base, {token: number for token, number in _token_ids(base, tokens)})
    if not rows:
        return findings
    norms, typical = rows
    untrained = sorted(t for t, norm in norms.items() if norm < _MIN_NORM_SHARE * typical)
    lora = block.lora
    trains_them = lora is None or bool(
        {"embed_tokens", "lm_head"} & set(lora.get("modules_to_save") or [])
        or lora.get("trainable_token_indices")
    )
    if untrained and not trains_them:
        findings.refusals.append(
            f"the base was never trained on {', '.join(untrained)}, which its template prints "
            "(their embeddings are zero), and LoRA does not change that; name its instruct "
            "variant, write template: plain, or lora.modules_to_save: [embed_tokens, lm_head]"
        )
    elif untrained:
        findings.notes.append(
            f"the base was never trained on {', '.join(untrained)}, which its template prints; "
            "they are learned here"
        )
    return findings


def printed_tokens(templates: SeatTemplates) -> list[str]:
    """The added tokens that a conversation's marks are made of."""
    source = "".join(
        templates.layout.header(seat) + templates.layout.end(seat) for seat in ("user", "assistant")
    )
    return sorted(token for token in templates.tokens if token in source)


def check_quantize(block: Training | Preference | Reinforce) -> Findings:
    """Whether four bits can be trained on here."""
    import torch

    findings = Findings()
    if not isinstance(block, Training) or block.quantize is None:
        return findings
    if not torch.cuda.is_available():
        findings.refusals.append(
            "quantize: 4bit needs a CUDA GPU, and this machine has none; remove it to train in "
            "float32"
        )
    elif importlib.util.find_spec("bitsandbytes") is None:
        findings.refusals.append("quantize: 4bit needs bitsandbytes: pip install bitsandbytes")
    return findings


def check_attention(options: Mapping[str, Any], model: Any, *, here: bool = True) -> Findings:
    """Whether the attention that ``model_init_kwargs`` asks for is one that `model` has, and can
    run here."""
    findings = Findings()
    allowed = {"attn_implementation"}
    if extra := sorted(options.keys() - allowed):
        findings.refusals.append(
            f"model_init_kwargs.{extra[0]} is not for recipes: hubkit loads the model itself; only "
            "attn_implementation is passed on"
        )
    name = options.get("attn_implementation")
    if name is not None and (reason := _not_attending(str(name), model, here=here)):
        findings.refusals.append(f"attn_implementation: {name} {reason}; write sdpa or eager")
    return findings


def _not_attending(name: str, model: Any, *, here: bool) -> str | None:
    """Why `model` cannot be trained with the attention `name`, on this machine where `here`."""
    import torch
    from transformers import AutoModelForCausalLM

    if "/" in name:
        return "names code in a repo, which hubkit never runs"
    if "|" in name:
        return "is for serving alone"
    if here and name.startswith(("flash", "flex")) and not torch.cuda.is_available():
        return "needs a CUDA GPU, and this machine has none"
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(
                copy.deepcopy(model.config), attn_implementation=name, trust_remote_code=False
            )
    except ImportError as error:
        return f"needs a package: {error}" if here else None
    except ValueError as error:
        return f"is none that this base has ({str(error).split('. ')[0]})"
    return None


def _unadaptable(block: Training | Preference | Reinforce, model: Any) -> list[str]:
    """Why the block's adapter cannot be put on `model`: in PEFT's own words, or because it would
    change one of two modules that share their weights."""
    from peft import get_peft_model

    try:
        adapted = get_peft_model(copy.deepcopy(model), lora_config(block, model))
    except (ValueError, TypeError, NotImplementedError) as error:
        return [f"lora cannot be put on this base: {error}"]
    if not model.config.get_text_config().tie_word_embeddings:
        return []
    ends = {id(model.get_input_embeddings()): "input", id(model.get_output_embeddings()): "output"}
    names = [name for name, module in model.named_modules() if id(module) in ends]
    shared = [name for name in names if name in adapted.base_model.targeted_module_names]
    if not shared:
        return []
    return [
        f"lora.target_modules names {', '.join(shared)}, and the embedding and the head share "
        "their weights here, so a merged model would be another one than what was trained; leave "
        "it out, or train both with lora.modules_to_save: [embed_tokens, lm_head] and "
        "lora.ensure_weight_tying: true"
    ]


def _linear_names(model: Any) -> list[str]:
    from torch.nn import Linear

    names = (name for name, module in model.named_modules() if isinstance(module, Linear))
    return sorted({name.rpartition(".")[2] for name in names})


def _ends_with(model: Any, suffix: str) -> bool:
    return any(name == suffix or name.endswith("." + suffix) for name, _ in model.named_modules())


def _unmatched_pattern(pattern: str, model: Any, linear: Iterable[str]) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        return [f"lora.target_modules {pattern!r} is not a regular expression: {error}"]
    if any(expression.fullmatch(name) for name, _ in model.named_modules()):
        return []
    return [
        f"lora.target_modules {pattern!r} matches no module of the base; its linear modules are "
        f"{', '.join(linear)}"
    ]


def _config(base: Path) -> JsonObject:
    try:
        config = parse_json((base / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # loading it says what is wrong with it
    return config if isinstance(config, dict) else {}


def _token_ids(base: Path, tokens: Iterable[str]) -> list[tuple[str, int]]:
    try:
        data = parse_json((base / "tokenizer.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    ids = {entry["content"]: entry["id"] for entry in data.get("added_tokens") or []}
    return [(token, ids[token]) for token in tokens if token in ids]


def _embedding_norms(base: Path, ids: Mapping[str, int]) -> tuple[dict[str, float], float] | None:
    """Norms of the input embedding's rows of `ids`, and the typical norm of a row; None where the
    weights are not at hand."""
    if not ids:
        return None
    from safetensors import SafetensorError, safe_open

    for path in sorted(base.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as weights:
                keys = weights.keys()
                names = [name for name in keys if name.endswith("embed_tokens.weight")]
                if not names:
                    continue
                rows = weights.get_slice(names[0])
                size = rows.get_shape()[0]
                sample = rows[0 : min(size, 512)].float().norm(dim=1)
                norms = {
                    token: float(rows[number : number + 1].float().norm())
                    for token, number in ids.items()
                    if number < size
                }
                return norms, float(sample.median())
        except (OSError, SafetensorError, struct.error):
            return None
    return None
