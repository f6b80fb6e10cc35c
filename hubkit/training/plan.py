"""What a training run would take, before anything is loaded: steps, tokens, memory per device,
hours; and refusals.

Takes the arguments of `train` or `train_dpo`; gives a `TrainPlan`. Sizes come from shapes on
torch's meta device, so a 13B base needs its ``config.json`` only, and its tokenizer to look at
data.
Without data, rows and tokens are what the recipe expects."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from hubkit.chat_templates import SeatTemplates, Segment, for_base, text_of
from hubkit.conversation import Message, Seat
from hubkit.errors import SourceError, TemplateError
from hubkit.recipe import Preference, Reinforce, Training
from hubkit.tokenization import load_tokenizer
from hubkit.training.checks import Findings, check_marks, check_steps, meta_model
from hubkit.training.config import dpo_config, lora_config, model_options, sft_config
from hubkit.training.estimate import GIB, Reference, Size, duration, memory_gib
from hubkit.training.identity import Base
from hubkit.training.launch import Launch
from hubkit.training.loading import over_context, require_pad_token
from hubkit.training.pairs import PairEncoder, sampled
from hubkit.training.rows import RowMaker, RowStats, seat_view, table
from hubkit.training.trial import check_training
from hubkit.untrusted import JsonObject

_SAMPLE = 200
_FOUND = ("rows", "tokens", "loss_tokens", "truncated_share", "dropped_share")
SHAPES = Path(__file__).with_name("shapes.yaml")


@dataclass
class TemplatePlan:
    """How a seat's conversations are printed: `description` says where the template comes from and
    how it was proven, `row` is one row with its loss-bearing parts between « and ». Of
    `rows_compared` sampled rows, `rows_differing` print differently by the base's own template;
    `examples_per_row` texts are trained on for each."""

    description: str
    sha256: str
    stop_texts: list[str]
    notes: list[str]
    row: str | None = None
    rows_compared: int = 0
    rows_differing: int = 0
    examples_per_row: float = 1.0

    @property
    def words(self) -> str:
        """Where the template comes from, and how many rows the base prints the same."""
        if not self.rows_compared:
            return self.description
        equal = self.rows_compared - self.rows_differing
        return f"{self.description}; the base prints {equal} of {self.rows_compared} rows the same"


class RunPlan:
    """What plans of trainings of all kinds say."""

    base: str
    template_seen: bool

    @property
    def unseen_template(self) -> str | None:
        """Why the base's template was not looked at; None where it was."""
        return None if self.template_seen else not_at_hand(self.base)

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


@dataclass
class TrainPlan(RunPlan):
    """One planned run, `kind` naming the block that goes to TRL. Rows are conversations (``sft``)
    or pairs (``dpo``: both sequences of a pair count as tokens, and `truncated_share` of pairs lose
    old exchanges). Tokens are per epoch, estimated from `sampled_rows` or (none sampled) from what
    the recipe expects; None: not known before there is data. `template_seen` is False where the
    base's tokenizer is not at hand, so that its template could not be proven. Memory is GiB per
    device; `hours` is at `utilisation` of `peak_tflops` per device. `refusals` are why it would not
    run."""

    base: str
    kind: Literal["sft", "dpo"]
    seat: str
    rows: int | None
    sampled_rows: int
    tokens: int | None
    loss_tokens: int | None
    truncated_share: float | None
    dropped_share: float | None
    steps: int | None
    epochs: float | None
    batch: int
    launch: str | None
    nodes: int
    processes: int
    device: str
    device_gib: float | None
    parameters: int
    trainable_parameters: int
    memory_gib: dict[str, float]
    flops: float | None
    peak_tflops: float | None
    utilisation: float
    hours: float | None
    config: JsonObject
    template: TemplatePlan | None = None
    template_seen: bool = True
    notes: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Subject:
    """What differs between the two kinds of training: `sequences` of ``max_length`` are on a device
    at a time.
    """

    kind: Literal["sft", "dpo"]
    seat: str
    config: Any
    findings: Findings
    settings: JsonObject
    amounts: dict[str, Any]
    size: Size
    sequences: int
    template: TemplatePlan | None
    template_seen: bool


def plan(
    block: Training | Preference,
    data: Sequence[Path],
    base: Base,
    *,
    seed: int,
    chat: Training | None = None,
    launch: Launch | None = None,
    device: str | None = None,
    device_gib: float | None = None,
) -> TrainPlan:
    """Plan the run that `train` (or, with a `Preference` block, `train_dpo`) would be, on devices
    named `device`.

    `chat` is the block by which the chat model is trained that preferences start from. Without
    `data`, ``block.expected`` says how much there will be. `device` is a part of a GPU's name (by
    default this machine's); `device_gib` its memory, against which the need is held. Raises
    `RecipeError` and `SourceError` as `train` does; `refusals` say what else would stop it.
    """
    elsewhere = device is not None and device not in local_device()[0]
    if isinstance(block, Training):
        subject = _supervised(block, data, base.folder, seed, here=not elsewhere)
    else:
        subject = _pairwise(block, chat, data, base.folder, seed, here=not elsewhere)
    config, amounts = subject.config, subject.amounts
    name, memory = (
        (device, device_gib) if device else (local_device()[0], device_gib or local_device()[1])
    )
    processes = launch.per_node() * launch.nodes if launch else 1
    sharded = processes if launch and launch.shards else 1
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    flops = subject.size.flops_per_token(recompute=config.gradient_checkpointing)
    planned = TrainPlan(
        base=base.repo_id,
        kind=subject.kind,
        seat=subject.seat,
        batch=batch,
        launch=launch.strategy if launch else None,
        nodes=launch.nodes if launch else 1,
        processes=processes,
        device=name,
        device_gib=memory,
        parameters=subject.size.total,
        trainable_parameters=subject.size.trained,
        memory_gib=memory_gib(subject.size, config, subject.sequences, sharded, gpu=name != "cpu"),
        config=subject.settings,
        template=subject.template,
        template_seen=subject.template_seen,
        notes=[] if elsewhere else subject.findings.notes,
        **duration(config, amounts, batch, flops, name, processes),
        **amounts,
    )
    steps = check_steps(config, planned.steps)
    planned.notes += steps.notes
    planned.refusals = [
        *subject.findings.refusals,
        *_refusals(subject, planned, block.max_drop_share, memory),
        *steps.refusals,
    ]
    return planned


def _supervised(
    block: Training, data: Sequence[Path], base: Path, seed: int, *, here: bool
) -> _Subject:
    config, notes = sft_config(block, Path("unused"), seed=seed)
    model = meta_model(base)
    tokenizer = load_tokenizer(base) if has_tokenizer(base) else None
    if tokenizer is not None:
        require_pad_token(tokenizer)
    findings = check_training(
        block,
        base,
        config,
        options=model_options(block),
        tokenizer=tokenizer,
        model=model,
        here=here,
    )
    findings.notes[:0] = notes
    size = _size(model, block, four_bits=bool(block.quantize))
    template = template_plan(block, base, block.seat, findings, adapted_by=block)
    if data and template is not None:
        amounts = _sample(block, data, base, config.max_length, seed, template)
    else:
        amounts = _expected(block, config.max_length)
    sequences = config.per_device_train_batch_size
    return _Subject(
        "sft", block.seat, config, findings, dict(block.sft), amounts, size, sequences, template,
        has_tokenizer(base),
    )  # fmt: skip


def _pairwise(
    block: Preference,
    chat: Training | None,
    data: Sequence[Path],
    base: Path,
    seed: int,
    *,
    here: bool,
) -> _Subject:
    """Both answers of a pair go through the model together. An adapter is held against a frozen
    copy of itself, a new one on a whole model against that model without it, and a whole model
    against a second one."""
    config, notes = dpo_config(block, Path("unused"), seed=seed)
    goes_on = chat is not None and chat.gives_adapter
    trained: Training | Preference = chat if goes_on and chat else block
    model = meta_model(base)
    findings = check_training(
        trained, base, config, options=model_options(block), model=model, here=here
    )
    findings.notes[:0] = notes
    reference: Reference = "adapter" if goes_on else "base" if trained.lora else "model"
    held_reference = None if config.precompute_ref_log_probs else reference
    size = _size(model, trained, reference=held_reference)
    seat: Seat = chat.seat if chat else "assistant"
    template = template_plan(chat, base, seat, findings, adapted_by=trained)
    if data and template is not None:
        amounts = _sample_pairs(block, chat, data, base, config, seed)
    else:
        amounts = _expected_pairs(block, config.max_length)
    sequences = 2 * config.per_device_train_batch_size
    settings = dict(block.dpo)
    return _Subject(
        "dpo", seat, config, findings, settings, amounts, size, sequences, template,
        has_tokenizer(base),
    )  # fmt: skip


def write_shape(repo_id: str, folder: Path) -> bool:
    """Write the ``config.json`` that ships for `repo_id` into `folder`; False where none does."""
    shape = yaml.safe_load(SHAPES.read_text("utf-8")).get(repo_id)
    if shape is None:
        return False
    (folder / "config.json").write_text(json.dumps(shape), "utf-8")
    return True


def _expected(block: Training, max_length: int | None) -> dict[str, Any]:
    """What `_sample` gives, out of the recipe."""
    amounts: dict[str, Any] = {**dict.fromkeys(_FOUND), "sampled_rows": 0}
    if (expected := block.expected) is None:
        return amounts
    each = min(expected.tokens, max_length or expected.tokens)
    rows = min(expected.conversations, block.max_conversations or expected.conversations)
    if block.max_tokens is not None:
        rows = min(rows, math.ceil(block.max_tokens / each))
    return {**amounts, "rows": rows, "tokens": rows * each}


def _expected_pairs(block: Preference, max_length: int | None) -> dict[str, Any]:
    """What `_sample_pairs` gives, out of the recipe."""
    amounts: dict[str, Any] = {**dict.fromkeys(_FOUND), "sampled_rows": 0}
    expected = block.expected
    rows = min((n for n in (block.pairs, expected and expected.conversations) if n), default=None)
    if rows is None or expected is None:
        return {**amounts, "rows": rows}
    return {
        **amounts,
        "rows": rows,
        "tokens": rows * min(expected.tokens, 2 * (max_length or expected.tokens)),
    }


def _sample(
    block: Training,
    data: Sequence[Path],
    base: Path,
    max_length: int | None,
    seed: int,
    template: TemplatePlan,
) -> JsonObject:
    """Rows and tokens of one epoch, estimated from up to 200 rows in the order that training would
    take them in.
    """
    rows = table(data, ["id", "messages", "tools", block.intent_column])
    order = list(range(rows.num_rows))
    random.Random(seed).shuffle(order)
    maker = RowMaker(
        block,
        load_tokenizer(base),
        _templates(block, base),
        max_length=max_length,
    )
    stats = RowStats()
    for index in order[:_SAMPLE]:
        row = rows.slice(index, 1).to_pylist()[0]
        encoded = maker(row)
        row_id = str(row.get("id", index))
        if isinstance(encoded, str):
            stats.dropped.add(encoded, row_id)
        else:
            stats.add(encoded, row_id, max_length)
            if stats.rows_used == 1:
                view = maker.view(row)
                texts = maker.templates.examples(view, block.seat) if isinstance(view, list) else []
                template.row = marked(texts[-1]) if texts else template.row
    template.rows_compared, template.rows_differing = stats.rows_compared, stats.rows_differing
    if stats.rows_used:
        template.examples_per_row = stats.examples / stats.rows_used
    used, tokens, dropped = stats.rows_used, stats.tokens, stats.dropped
    looked = used + dropped.total
    if not used:
        raise SourceError(f"none of the first {looked} rows can be trained on: {dropped.counts}")
    expected = int(rows.num_rows * used / looked)
    if block.max_conversations is not None:
        expected = min(expected, block.max_conversations)
    if block.max_tokens is not None:
        expected = min(expected, math.ceil(block.max_tokens * used / tokens))
    return {
        "rows": round(expected * stats.examples / used),
        "sampled_rows": looked,
        "tokens": int(tokens / used * expected),
        "loss_tokens": int(stats.loss_tokens / used * expected),
        "truncated_share": stats.truncated / stats.examples,
        "dropped_share": dropped.total / looked,
    }


def _sample_pairs(
    block: Preference,
    chat: Training | None,
    data: Sequence[Path],
    base: Path,
    config: Any,
    seed: int,
) -> JsonObject:
    """The same of pairs."""
    encoder = PairEncoder(_templates(chat, base), load_tokenizer(base))
    system = chat.system if chat else None
    total, stats = sampled(data, _SAMPLE, encoder, config.max_length, system=system, seed=seed)
    if not stats.pairs_used:
        raise SourceError(f"none of {stats.pairs_read} pairs can be trained on: {stats.dropped}")
    rows = int(total * stats.pairs_used / stats.pairs_read)
    return {
        "rows": rows,
        "sampled_rows": stats.pairs_read,
        "tokens": int(stats.tokens / stats.pairs_used * rows),
        "loss_tokens": int(stats.answer_tokens / stats.pairs_used * rows),
        "truncated_share": stats.trimmed / stats.pairs_used,
        "dropped_share": 1 - stats.pairs_used / stats.pairs_read,
    }


_SAMPLE_ROW: list[Message] = [
    {"role": "user", "content": "How do I bake bread?"},
    {"role": "assistant", "content": "Mix flour and water."},
    {"role": "user", "content": "And rye?"},
    {"role": "assistant", "content": "Use less water."},
]


def template_plan(
    block: Training | None,
    base: Path,
    seat: Seat,
    findings: Findings,
    *,
    adapted_by: Training | Preference | Reinforce | None = None,
) -> TemplatePlan | None:
    """How `seat` prints on `base`; None, with a refusal in `findings` where that is a fault, when
    it cannot be known. Where `adapted_by` says how the base is trained, whether the template's
    marks can be learned is looked at too."""
    if not has_tokenizer(base):
        return None
    try:
        templates = _templates(block, base)
        sha256 = templates.digest(seat)
    except TemplateError as error:
        findings.refusals.append(str(error))
        return None
    if adapted_by is not None:
        findings.add(check_marks(adapted_by, base, templates))
    system = block.system if block else None
    row = sample_row(templates, system, seat)
    stops = templates.stop_texts(seat)
    return TemplatePlan(templates.describe(seat), sha256, stops, list(templates.notes), row)


def not_at_hand(base: str) -> str:
    """Say that the template of `base` could not be looked at."""
    return (
        f"that of {base} was not looked at, nor whether its marks can be trained: its tokenizer is "
        "not at hand. It is proven, or refused, before anything is trained"
    )


def has_tokenizer(base: Path) -> bool:
    """Whether the folder `base` holds a tokenizer."""
    return any((base / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))


def sample_row(templates: SeatTemplates, system: str | None, seat: Seat = "assistant") -> str:
    """A short conversation as `seat` prints it, its loss-bearing parts between « and »."""
    return marked(templates.examples(seat_view(_SAMPLE_ROW, seat, system), seat)[-1])


def marked(segments: Sequence[Segment]) -> str:
    """Printed text with its loss-bearing parts between « and »."""
    parts = []
    for has_loss, group in itertools.groupby(segments, key=lambda segment: segment.has_loss):
        text = text_of(list(group))
        parts.append(f"«{text}»" if has_loss else text)
    return "".join(parts)


def _templates(block: Training | None, base: Path) -> SeatTemplates:
    """How the base prints conversations, as `block` says."""
    if block is None:
        return for_base(base)
    return for_base(base, template=block.template, thinking=block.thinking or "off")


def size_of(
    base: Path, block: Training | Preference | Reinforce, *, reference: Reference | None = None
) -> Size:
    """How large the model in `base` is under the block's adapter, if it has one."""
    return _size(meta_model(base), block, reference=reference)


def _size(
    model: Any,
    block: Training | Preference | Reinforce,
    *,
    four_bits: bool = False,
    reference: Reference | None = None,
) -> Size:
    """How large `model`, on the meta device, is under the block's adapter, if it has one."""
    text = model.config.get_text_config()
    config = lora_config(block, model)
    if config is not None:
        from peft import get_peft_model

        with suppress(
            ValueError, TypeError, NotImplementedError, re.error
        ):  # no module matches: a refusal says so
            model = get_peft_model(model, config)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Size(total, trained, text, config is not None, four_bits, reference)


def _refusals(
    subject: _Subject, planned: TrainPlan, max_drop_share: float, memory: float | None
) -> list[str]:
    context = getattr(subject.size.config, "max_position_embeddings", None)
    longest, need = subject.config.max_length, planned.memory_gib["total"]
    refusals = []
    if context and longest and longest > context:
        refusals.append(over_context(f"{planned.kind}.max_length", longest, context, planned.base))
    if (planned.dropped_share or 0) > max_drop_share:
        refusals.append(
            f"{planned.dropped_share:.0%} of rows would be dropped, more than {max_drop_share:.0%}"
        )
    if memory and need > memory:
        refusals.append(
            f"about {need:.0f} GiB per device are needed and {memory:.0f} are there; shard it "
            f"(--launch fsdp2), use lora, gradient_checkpointing, or a smaller "
            f"{planned.kind}.max_length"
        )
    return refusals


def local_device() -> tuple[str, float | None]:
    """This machine's device: its name and memory in GiB."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", None
    facts = torch.cuda.get_device_properties(0)
    return facts.name, facts.total_memory / GIB
