"""What a recipe would take on hosted hardware, before anything is started: hours and US dollars per
stage.

Training: floating-point operations per token (`hubkit.training.plan`) times tokens, at a share of
the device's peak. Rollout: the turns that the recipe draws, their prompts and answers, at shares of
the peak for prefill and decoding. What no stage has measured yet is assumed (``assumptions.yaml``);
prices are the table's, with its date."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any, TypedDict

import yaml

from hubkit.cloud import Flavor, Hardware, flavor, hardware, prices
from hubkit.errors import HubkitError
from hubkit.hub import Hub
from hubkit.pipeline.executors.jobs import OnJobs
from hubkit.pipeline.runner import Planned, plan
from hubkit.pipeline.stage import PROVENANCE
from hubkit.recipe import (
    DEPLOY,
    PREFERENCE_STAGES,
    Against,
    Deploy,
    PeoplePairs,
    Preference,
    Recipe,
    Reinforce,
    RewardTerm,
    SeatConfig,
    Training,
)
from hubkit.rollout.plan import expected_human_turns
from hubkit.tokenization import likely_tokens
from hubkit.training.estimate import PEAK_TFLOPS, flops_per_token
from hubkit.untrusted import JsonObject, parse_json

_NOT_COUNTED = "; what its judge takes is not in it"
LORA_SHARE = 0.01  # of a model's parameters that an adapter trains, about
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)\s*([bBmM])(?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class Cost:
    """One stage: where it would run, how long, what it costs. None: cannot be said, `note` says
    why.
    """

    stage: str
    state: str
    where: str
    hours: float | None
    usd: float | None
    note: str

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)


class Assumptions(TypedDict):
    """What an estimate assumes where nothing was measured yet, as ``assumptions.yaml`` says."""

    conversations: int
    tokens_per_conversation: int
    kept_share: float
    turn_tokens: dict[str, int]
    intent_tokens: dict[str, int]
    minutes_per_100k_rows: float
    start_minutes: float
    job_hours: float
    utilisation: dict[str, float]


@functools.cache
def assumptions() -> Assumptions:
    """What is assumed, as it ships."""
    values: Assumptions = yaml.safe_load(
        (resources.files("hubkit.pipeline") / "assumptions.yaml").read_text("utf-8")
    )
    return values


def costs(
    recipe: Recipe, hub: Hub, on_jobs: OnJobs, *, planned: Iterable[Planned] | None = None
) -> list[Cost]:
    """What each stage would take and cost as a job now; one that is done costs nothing. Nothing is
    started.

    Raises `RecipeError` for flavors and hardware that the price table lacks.
    """
    stages = list(planned) if planned is not None else plan(recipe, hub)
    rows = _rows(recipe, hub, stages)
    return [_cost(recipe, stage, flavor(on_jobs.flavor(stage.stage)), rows) for stage in stages]


def _cost(recipe: Recipe, planned: Planned, job_flavor: Flavor, rows: int) -> Cost:
    stage = planned.stage
    if planned.state == "done":
        return Cost(stage, "done", "", 0.0, 0.0, planned.commit)
    where = f"job {job_flavor.name}"
    if stage in ("corpus", "curate"):
        count = rows if stage == "corpus" else recipe.rollout.dialogues
        hours: float | None = assumptions()["minutes_per_100k_rows"] / 60 * count / 1e5 + _start()
        cost = _priced(planned, where, hours, job_flavor.usd_per_hour, f"{count:,} rows")
        intents = recipe.corpus.intents if stage == "corpus" else None
        if intents is None or intents.judging is None:
            return cost
        intent_count = rows + recipe.corpus.openings + recipe.corpus.test
        return _with_intents(cost, intents.judging.judge, intent_count, job_flavor)
    if stage == "rollout":
        return _rollout(recipe, planned, job_flavor)
    if stage == "eval":
        return _eval(recipe, planned, job_flavor)
    if stage == "reinforce" and recipe.reinforce is not None:
        return _reinforce(recipe, recipe.reinforce, planned, job_flavor)
    if recipe.preference is not None and stage in PREFERENCE_STAGES:
        make = _prefer if stage == "prefer" else _align
        return make(recipe, recipe.preference, planned, job_flavor)
    block = recipe.asker if stage == "asker" else recipe.chat
    return _training(recipe, planned, job_flavor, block, rows)


def _priced(planned: Planned, where: str, hours: float | None, rate: float, note: str) -> Cost:
    return Cost(
        planned.stage, planned.state, where, hours, None if hours is None else hours * rate, note
    )


def _with_intents(cost: Cost, judge: SeatConfig, intent_count: int, job_flavor: Flavor) -> Cost:
    """`cost`, with a judge asked for `asked` intents: at its prices per token, and on hardware that
    is paid by the hour for as long as it answers, the job's meanwhile."""
    assumed = assumptions()["intent_tokens"]
    read, written = assumed["read"], min(judge.reply_tokens, assumed["written"])
    prices_usd = read * judge.usd_per_million_input + written * judge.usd_per_million_output
    usd = intent_count * prices_usd * judge.price_share / 1e6
    size, machine = parameters(judge.model_name), _machine(judge, job_flavor)
    if size is None or machine is None:
        note = f"; {intent_count:,} intents at {usd:,.2f} USD" if usd else _NOT_COUNTED
        return replace(cost, usd=(cost.usd or 0.0) + usd, note=cost.note + note)
    name, peak, rate = machine
    shares = assumptions()["utilisation"]
    hours = (
        2
        * size
        * intent_count
        * (written / shares["decode"] + read / shares["prefill"])
        / peak
        / 3600
    )
    hours += _start() if rate else 0.0
    usd += hours * (job_flavor.usd_per_hour + rate)
    return replace(
        cost,
        where=cost.where + (f" + {name}" if rate else ""),
        hours=(cost.hours or 0.0) + hours,
        usd=(cost.usd or 0.0) + usd,
        note=f"{cost.note}, {intent_count:,} intents",
    )


def _training(
    recipe: Recipe, planned: Planned, job_flavor: Flavor, block: Training, rows: int
) -> Cost:
    size, where = parameters(block.base), f"job {job_flavor.name}"
    peak = _peak(job_flavor.device)
    if size is None or peak is None:
        return _priced(planned, where, None, 0.0, _unknown(block.base, size, job_flavor))
    count, tokens = _epoch(recipe, planned.stage, block, rows)
    tokens *= _epochs(block)
    hours = _flops_a_token(block, size) * tokens / _trained_an_hour(job_flavor, peak) + _start()
    need = _need_gib(block, size)
    note = f"{count:,} rows, {tokens / 1e6:,.0f}M tokens, {size / 1e9:.1f}B parameters"
    if need > job_flavor.memory_gib * job_flavor.devices:
        available_gib = job_flavor.memory_gib * job_flavor.devices
        note += (
            f"; does not fit: about {need:,.0f} GiB for weights and optimizer, "
            f"{available_gib:,.0f} there"
        )
    if block.preference is not None:
        hours += _people_preference(recipe, block.preference, job_flavor, size, peak)
        note += f"; then {block.preference.contexts:,} pairs with people's next turns"
    return _priced(planned, where, hours, job_flavor.usd_per_hour, note)


def _people_preference(
    recipe: Recipe, block: PeoplePairs, job_flavor: Flavor, size: float, peak: float
) -> float:
    """Hours of sampling the asker's own turns, optimising over the pairs, and the scorecards of the
    asker before and after."""
    turn = float(min(block.sampling.max_tokens or recipe.rollout.asker.context,
                     assumptions()["turn_tokens"]["asker"]))  # fmt: skip
    read = likely_tokens(block.context_chars)
    requests, new_tokens = float(block.contexts), block.contexts * block.samples * turn
    if card := recipe.eval.scorecard:
        requests += 2 * (card.contexts + card.openings)
        new_tokens += 2 * (card.contexts + card.openings) * turn
    shares = assumptions()["utilisation"]
    answer_s = (
        2 * size * (new_tokens / shares["decode"] + requests * read / shares["prefill"]) / peak
    )
    trains_adapter = recipe.asker.gives_adapter
    optimise_s = _dpo_s(
        block.dpo, block.contexts, read + turn, size, job_flavor, peak, adapter=trains_adapter
    )
    return float(answer_s + optimise_s) / 3600


def _dpo_s(
    dpo: Mapping[str, Any],
    pairs: int,
    tokens: float,
    size: float,
    job_flavor: Flavor,
    peak: float,
    *,
    adapter: bool,
) -> float:
    """Seconds of direct preference optimisation: it reads each pair twice, chosen and rejected, and
    the reference model does too."""
    limit = float(dpo.get("max_length") or tokens)
    total = 2 * pairs * min(tokens, limit) * float(dpo.get("num_train_epochs", 3))
    trained = LORA_SHARE * size if adapter else size
    each_token = flops_per_token(
        int(size), int(trained), recompute=bool(dpo.get("gradient_checkpointing", True))
    )
    share = assumptions()["utilisation"]["train"]
    return float((each_token + 2 * size) * total / (peak * job_flavor.devices * share))


def _epoch(recipe: Recipe, stage: str, block: Training, rows: int) -> tuple[int, float]:
    """(rows, tokens) of one epoch: an asker's as its recipe expects them, a chat model's as the
    rollout will draw.
    """
    limit = int(block.sft.get("max_length") or assumptions()["tokens_per_conversation"])
    if stage == "asker":
        count, each = (
            rows,
            float(block.expected.tokens)
            if block.expected
            else float(assumptions()["tokens_per_conversation"]),
        )
    else:
        count = int(recipe.rollout.dialogues * assumptions()["kept_share"])
        each = _dialogue_tokens(recipe)
    count = min(count, block.max_conversations or count)
    tokens = count * min(limit, each)
    return count, float(min(tokens, block.max_tokens or tokens))


def _epochs(block: Training) -> float:
    return float(block.sft.get("num_train_epochs", 3))


def _flops_a_token(block: Training, size: float) -> float:
    """By default TRL computes activations a second time rather than keep them."""
    trained = size if block.lora is None else LORA_SHARE * size
    return flops_per_token(
        int(size), int(trained), recompute=bool(block.sft.get("gradient_checkpointing", True))
    )


def _trained_an_hour(job_flavor: Flavor, peak: float) -> float:
    """Operations in an hour of training there."""
    return float(3600 * peak * job_flavor.devices * assumptions()["utilisation"]["train"])


def _prefer(recipe: Recipe, block: Preference, planned: Planned, job_flavor: Flavor) -> Cost:
    """One answer a pair, each to a history of half a dialogue."""
    pairs, answer_tokens, read = _pairs(recipe, block)
    repo = recipe.chat.base if block.chat.repo == "chat" else block.chat.model_name
    size, machine = parameters(repo), _machine(block.chat, job_flavor)
    if size is None or machine is None:
        why = f"no size in {repo}" if size is None else "not on hardware of the table"
        return _priced(planned, f"job {job_flavor.name}", None, 0.0, f"{pairs:,} pairs; {why}")
    name, peak, rate = machine
    shares = assumptions()["utilisation"]
    hours = (
        2
        * size
        * pairs
        * (answer_tokens / shares["decode"] + read / shares["prefill"])
        / peak
        / 3600
    )
    where = f"job {job_flavor.name}" + (f" + {name}" if rate else "")
    return _priced(
        planned,
        where,
        hours + 2 * _start(),
        job_flavor.usd_per_hour + rate,
        f"{pairs:,} pairs" + (_NOT_COUNTED if block.judging else ""),
    )


def _align(recipe: Recipe, block: Preference, planned: Planned, job_flavor: Flavor) -> Cost:
    """Direct preference optimisation over the pairs."""
    pairs, answer_tokens, read = _pairs(recipe, block)
    size, peak, where = (
        parameters(recipe.chat.base),
        _peak(job_flavor.device),
        f"job {job_flavor.name}",
    )
    if size is None or peak is None:
        return _priced(planned, where, None, 0.0, _unknown(recipe.chat.base, size, job_flavor))
    limit = float(block.dpo.get("max_length") or answer_tokens + read)
    tokens = (
        2 * pairs * min(answer_tokens + read, limit) * float(block.dpo.get("num_train_epochs", 3))
    )
    adapter = recipe.chat.lora is not None or block.lora is not None
    seconds = _dpo_s(
        block.dpo, pairs, answer_tokens + read, size, job_flavor, peak, adapter=adapter
    )
    hours = seconds / 3600 + _start()
    return _priced(
        planned,
        where,
        hours,
        job_flavor.usd_per_hour,
        f"{pairs:,} pairs, {tokens / 1e6:,.0f}M tokens",
    )


def _reinforce(recipe: Recipe, block: Reinforce, planned: Planned, job_flavor: Flavor) -> Cost:
    """Generation and training on the job's device, and every asker's and judge's hardware for as
    long."""
    size, peak = parameters(recipe.chat.base), _peak(job_flavor.device)
    where = f"job {job_flavor.name}"
    if size is None or peak is None:
        return _priced(planned, where, None, 0.0, _unknown(recipe.chat.base, size, job_flavor))
    count = block.expected.conversations if block.expected else block.openings
    each = block.expected.tokens if block.expected else _dialogue_tokens(recipe)
    shares = assumptions()["utilisation"]
    trained = LORA_SHARE * size if recipe.chat.lora or block.lora else size
    flops = flops_per_token(int(size), int(trained), recompute=True) / shares["train"]
    hours = count * each * (flops + 2 * size / shares["decode"]) / peak / 3600
    judges = [judge.judge for term in block.rewards for judge in term.judges]
    rate, unpriced = job_flavor.usd_per_hour, 0
    for seat in [*block.askers.values(), *judges]:
        machine = _machine(seat, job_flavor)
        rate += machine[2] if machine else 0.0
        unpriced += machine is None
    note = f"{count:,} conversations, {count * each / 1e6:,.1f}M tokens"
    note += f"; {unpriced} seats at addresses are not in it" if unpriced else ""
    return _priced(planned, where, hours + 2 * _start(), rate, note)


def _pairs(recipe: Recipe, block: Preference) -> tuple[int, float, float]:
    """(pairs, tokens of an answer, tokens of the history before it)."""
    human_turns = expected_human_turns(recipe.rollout)
    possible = (
        recipe.rollout.dialogues * assumptions()["kept_share"] * human_turns * len(block.strategies)
    )
    return (
        int(min(possible, block.pairs or possible)),
        _turn_tokens("chat", block.chat),
        _dialogue_tokens(recipe) / 2,
    )


def _eval(recipe: Recipe, planned: Planned, job_flavor: Flavor) -> Cost:
    """A forward pass over the held-out conversations for each seat's arms, the scorecard's turns,
    and the conversations of the cross-simulator table; of judges, the price of their tokens."""
    peak = _peak(job_flavor.device)
    sizes = [parameters(block.base) for block in (recipe.asker, recipe.chat)]
    if peak is None or None in sizes:
        return _priced(
            planned,
            f"job {job_flavor.name}",
            None,
            0.0,
            _unknown(recipe.asker.base, sizes[0], job_flavor),
        )
    tokens = 3 * recipe.eval.conversations * recipe.eval.max_tokens
    shares = assumptions()["utilisation"]
    asker, chat = (size or 0.0 for size in sizes)
    seconds = 2 * (asker + chat) * tokens / (peak * shares["prefill"])
    note, judges_usd = f"{2 * tokens / 1e6:,.1f}M tokens", 0.0
    if card := recipe.eval.scorecard:
        turns = 2 * (card.contexts + card.openings)  # the asker's, and its base's
        turn = min(card.sampling.max_tokens or 1e9, assumptions()["turn_tokens"]["asker"])
        read = float(likely_tokens(card.context_chars))
        seconds += 2 * asker * turns * (turn / shares["decode"] + read / shares["prefill"]) / peak
        note += f", {turns:,} turns for the scorecard"
    if table := recipe.eval.against:
        conversations, new_tokens, read = _table(recipe, table)
        seconds += 2 * max(asker, chat) * new_tokens / shares["decode"] / peak
        seconds += 2 * max(asker, chat) * read / shares["prefill"] / peak
        judges_usd = _judges_usd(table.rewards, conversations, read / conversations)
        note += f", {conversations:,} conversations for the cross-simulator table"
        if any(term.judges for term in table.rewards):
            note += f", its judgments at {judges_usd:,.2f} USD for their tokens"
    cost = _priced(
        planned, f"job {job_flavor.name}", seconds / 3600 + _start(), job_flavor.usd_per_hour, note
    )
    return replace(cost, usd=(cost.usd or 0.0) + judges_usd)


def _table(recipe: Recipe, block: Against) -> tuple[int, float, float]:
    """(conversations, tokens written, tokens read once) of the cross-simulator table."""
    trained_models = {"base", "chat"}
    trained_models |= {"aligned"} if recipe.preference else set()
    trained_models |= {"reinforced"} if recipe.reinforce else set()
    askers = 1 + block.prompted + len(block.askers)
    conversations = block.openings * askers * len(trained_models & set(block.chats))
    turns = assumptions()["turn_tokens"]
    asker = min(block.sampling.max_tokens or block.context, turns["asker"])
    chat = min(block.chat_sampling.max_tokens or block.context, turns["chat"])
    new_tokens = conversations * ((block.turns - 1) * asker + block.turns * chat)
    read = conversations * min(block.context, block.turns * (asker + chat))
    return conversations, float(new_tokens), float(read)


def _judges_usd(terms: Sequence[RewardTerm], conversations: int, tokens: float) -> float:
    """What judges take for each conversation of so many tokens, at their prices per token."""
    usd = 0.0
    for judge in (judging.judge for term in terms for judging in term.judges):
        reply = min(judge.reply_tokens, assumptions()["turn_tokens"]["asker"])
        usd += tokens * judge.usd_per_million_input + reply * judge.usd_per_million_output
    return conversations * usd / 1e6


def _rollout(recipe: Recipe, planned: Planned, job_flavor: Flavor) -> Cost:
    """The slower seat decides how long it takes; every seat's hardware is paid for that long."""
    block = recipe.rollout
    turns = expected_human_turns(block)
    rate, hours, places, missing = job_flavor.usd_per_hour, 0.0, [f"job {job_flavor.name}"], []
    for seat, config in _seats(recipe).items():
        repo = recipe.asker.base if config.repo == "asker" else config.model_name
        size = parameters(repo)
        machine = _machine(config, job_flavor)
        if machine is None or size is None:
            missing.append(
                f"{seat}: "
                f"{'no size in ' + repo if size is None else 'not on hardware of the table'}"
            )
            continue
        name, peak, seat_rate = machine
        generated = block.dialogues * turns * _turn_tokens(seat, config)
        read = block.dialogues * _dialogue_tokens(recipe)  # each prefix is cached
        shares = assumptions()["utilisation"]
        hours = max(
            hours,
            2 * size * (generated / shares["decode"] + read / shares["prefill"]) / peak / 3600,
        )
        rate += seat_rate
        places += [name] if seat_rate else []
    where, note = " + ".join(places), f"{block.dialogues:,} dialogues of {turns:.1f} human turns"
    if missing:
        return _priced(planned, where, None, 0.0, "; ".join([note, *missing]))
    return _priced(planned, where, hours + 2 * _start(), rate, note)


def _machine(config: SeatConfig, job_flavor: Flavor) -> tuple[str, float, float] | None:
    """(name, operations per second, USD per hour besides the job's) of what serves a seat; None
    where it is not known.
    """
    if DEPLOY in config.endpoints:
        terms = config.deploy or Deploy()
        on = hardware(terms.hardware)
        peak = _peak(_device(on))
        rate = on.usd_per_hour * terms.replicas
        name = f"endpoint {on}" if terms.replicas == 1 else f"endpoint {terms.replicas} x {on}"
        return (name, peak * on.accelerators * terms.replicas, rate) if peak else None
    if config.endpoints == ["embedded"] or config.engine_kind:
        peak = _peak(job_flavor.device)
        return (f"job {job_flavor.name}", peak * job_flavor.devices, 0.0) if peak else None
    return None


def _device(on: Hardware) -> str:
    return on.instance_type.removeprefix("nvidia-").upper()


def _peak(device: str) -> float | None:
    """Operations per second of a device, by the name that the price table gives it."""
    peak = PEAK_TFLOPS.get(device) or PEAK_TFLOPS.get(device.removesuffix("S").removesuffix("G"))
    return peak * 1e12 if peak else None


def parameters(repo_id: str) -> float | None:
    """How many parameters a model has, by the size in its name (``Llama-2-13b``); None where none
    stands there.
    """
    sizes = _SIZE.findall(repo_id.rpartition("/")[2].replace("-", " ").replace("_", " "))
    return float(sizes[-1][0]) * (1e9 if sizes[-1][1] in "bB" else 1e6) if sizes else None


def _seats(recipe: Recipe) -> dict[str, SeatConfig]:
    return {"asker": recipe.rollout.asker, "chat": recipe.rollout.chat}


def _turn_tokens(seat: str, config: SeatConfig) -> float:
    return float(min(config.reply_tokens, assumptions()["turn_tokens"][seat]))


def _dialogue_tokens(recipe: Recipe) -> float:
    return expected_human_turns(recipe.rollout) * sum(
        _turn_tokens(*seat) for seat in _seats(recipe).items()
    )


def _start() -> float:
    return float(assumptions()["start_minutes"] / 60)


def _unknown(base: str, size: float | None, job_flavor: Flavor) -> str:
    return (
        f"no size in the name {base}"
        if size is None
        else f"no peak is known of {job_flavor.device or 'a CPU'}"
    )


def _rows(recipe: Recipe, hub: Hub | None, stages: list[Planned]) -> int:
    """Conversations to train on: as the corpus stage counted them, else as the recipe expects, else
    as assumed.
    """
    assumed = (
        recipe.asker.expected.conversations
        if recipe.asker.expected
        else int(assumptions()["conversations"])
    )
    assumed = min(assumed, recipe.corpus.limit or assumed)
    corpus = next(
        (stage for stage in stages if stage.stage == "corpus" and stage.state == "done"), None
    )
    if corpus is None or hub is None:
        return assumed
    try:
        ref = hub.find_commit(corpus.repo_id, "[corpus:", repo_type="dataset")
        if ref is None or not corpus.commit.endswith(ref.revision[:8]):
            return assumed
        record = parse_json(hub.read(ref, f"{PROVENANCE}/corpus.json"))
        return int(record["report"]["splits"]["train"])
    except (HubkitError, ValueError, KeyError, TypeError):
        return assumed


def flavors(recipe: Recipe) -> dict[str, str]:
    """The flavor for each stage that trains on which it costs least, of those that hold it.

    Where several cost the same, the smallest that is done in `assumptions`' ``job_hours``; where
    none is, the fastest."""
    chosen = {}
    rows = _rows(recipe, None, [])
    for stage, block in (("asker", recipe.asker), ("chat", recipe.chat), ("align", recipe.chat)):
        size = parameters(block.base)
        if size is None:
            continue
        need = 1.25 * _need_gib(block, size)
        work = _flops_a_token(block, size) * _epoch(recipe, stage, block, rows)[1] * _epochs(block)
        offers = []
        for job_flavor in (flavor(name) for name in prices.table()["jobs"]["flavors"]):
            peak = _peak(job_flavor.device)
            if peak and job_flavor.memory_gib * job_flavor.devices >= need:
                hours = work / _trained_an_hour(job_flavor, peak)
                offers.append((hours * job_flavor.usd_per_hour, hours, job_flavor))
        least = min((usd for usd, _, _ in offers), default=0.0)
        cheapest = sorted(
            (offer for offer in offers if offer[0] <= 1.01 * least), key=lambda offer: -offer[1]
        )
        if cheapest:
            in_time = (offer for offer in cheapest if offer[1] <= assumptions()["job_hours"])
            chosen[stage] = next(in_time, cheapest[-1])[2].name
    return chosen


def _need_gib(block: Training, size: float) -> float:
    """Weights at 2 bytes; those that are trained at 16 (float32 weights, gradients, Adam's two
    moments).
    """
    trained = size if block.lora is None else LORA_SHARE * size
    return (16 * trained + 2 * (size - trained)) / 2**30


def total(costs: Iterable[Cost]) -> tuple[float, float, bool]:
    """(hours, US dollars, whether every stage could be priced)."""
    rows = list(costs)
    whole = all(cost.usd is not None for cost in rows)
    return sum(cost.hours or 0 for cost in rows), sum(cost.usd or 0 for cost in rows), whole


def priced_on() -> str:
    """What stands below an estimate."""
    return f"prices of {prices.date()}; hours stand on assumptions that ship in assumptions.yaml"
