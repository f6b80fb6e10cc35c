"""What a card may say: typed facts, and the readers that find them in the stages' report files.

Takes the dicts that stages wrote (``report.json``, ``training_report.json``, ``results.json``);
gives small rows that a template prints. A number that no report holds is None here and "not
recorded" in the card: nothing is filled in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hubkit import recipe as recipes
from hubkit.errors import RecipeError
from hubkit.publishing import lineage
from hubkit.recipe import Recipe, Training
from hubkit.untrusted import JsonObject

Kind = Literal[
    "corpus",
    "asker",
    "dialogues",
    "chat",
    "preference",
    "aligned",
    "reinforced",
    "results",
    "base",
    "source",
    "benchmark",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODELS: frozenset[str] = frozenset({"asker", "chat", "aligned", "reinforced", "base"})
Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Input:
    """One repo that went into another: its role there, and the commit (40 hex) that was read.

    `is_present` is False for a commit that the Hub which shows the card does not have, such as
    weights imported elsewhere."""

    role: str
    repo_id: str
    repo_type: str
    revision: str
    is_present: bool = True

    @property
    def path(self) -> str:
        """The commit's page on whatever Hub shows the card: a path from that Hub's root.

        `is_present` says whether the page exists.
        """
        prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.repo_type]
        return f"/{prefix}{self.repo_id}/tree/{self.revision}"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything that a card is rendered from.

    `reports` maps a stage (``corpus``, ``asker``, ``rollout``, ``curate``, ``chat``, ``import``) to
    its report's dict; `results` is the eval stage's dict; `versions` maps package to version;
    `files` lists the repo's paths, so that the card names only configs and plots that are there
    (empty: all that this kind can have). `samples` are conversations to show, each as (who, text)
    pairs (`hubkit.publishing.samples`)."""

    kind: Kind
    repo_id: str
    recipe: Recipe | None = None
    inputs: Sequence[Input] = ()
    reports: Mapping[str, Report] = field(default_factory=dict)
    results: Report | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()
    samples: Sequence[Sequence[tuple[str, str]]] = ()

    def input(self, *roles: str) -> Input | None:
        """The first input that has one of `roles`, in the order of `roles`."""
        return next((i for role in roles for i in self.inputs if i.role == role), None)

    def report(self, stage: str) -> Report:
        """`stage`'s report, or an empty one."""
        return self.reports.get(stage) or {}


def from_records(
    kind: Kind,
    repo_id: str,
    recipe: Recipe,
    records: Mapping[str, Mapping[str, Any]],
    *,
    results: Report | None = None,
    files: Sequence[str] = (),
) -> CardFacts:
    """`CardFacts` of a repo from the provenance records (``provenance/<stage>.json``) of the stages
    that made it.

    A record holds ``inputs`` (role → repo_id, repo_type, revision), ``report`` and ``packages``;
    what a repo was made from is what its stages read, itself excepted."""
    inputs = [
        Input(roles[0], **ref.to_dict(), is_present=lineage.is_repo(ref))
        for ref, roles in lineage.inputs(records, repo_id).items()
    ]
    versions: dict[str, str] = {}
    for record in records.values():
        versions |= {
            name: version
            for name, version in record.get("packages", {}).items()
            if version != "absent"
        }
    reports = {stage: record.get("report") or {} for stage, record in records.items()}
    return CardFacts(kind, repo_id, recipe, inputs, reports, results, versions, files)


@dataclass(frozen=True, slots=True)
class Against:
    """The trained model compared with another arm: that arm's loss, and the paired difference's
    interval.
    """

    arm: str
    loss: float | None
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Loss in nats per token on held-out conversations: the trained model, and the arms that it was
    held against.

    The arm ``base`` is the base in the same seat; ``prompted`` the base that is only asked to play
    the user."""

    model: float
    against: Sequence[Against]
    confidence: float | None
    conversations: int | None
    tokens: int | None

    @property
    def low(self) -> float | None:
        """Lower end of the interval against the base."""
        return next((a.low for a in self.against if a.arm == "base"), None)

    @property
    def high(self) -> float | None:
        """Upper end of the interval against the base."""
        return next((a.high for a in self.against if a.arm == "base"), None)

    def in_words(self, names: Mapping[str, str]) -> list[str]:
        """The size of each difference as a share of the other arm's loss; `names` by arm."""
        sentences = []
        for arm in self.against:
            if not arm.loss or arm.difference is None:
                continue
            share, name = arm.difference / arm.loss, names.get(arm.arm, arm.arm)
            size = f"{abs(share):.1%}".replace("%", " %")
            if share == 0 or size.startswith("0.0 "):
                size, way = "less than 0.1 %", "different"
            else:
                way = "lower" if share < 0 else "higher"
            proof = (
                ""
                if arm.low is None or arm.high is None
                else ", outside what the choice of conversations explains"
                if arm.low > 0 or arm.high < 0
                else ", within what the choice of conversations explains"
            )
            sentences.append(f"Compared with {name}: the loss is {size} {way}{proof}.")
        return sentences

    @property
    def verdict(self) -> str:
        """What the interval allows one to say."""
        if self.low is None or self.high is None:
            return "no interval was recorded, so no claim is made"
        if self.high < 0:
            return (
                "the interval lies below zero: the trained model predicts these turns better "
                "than its base"
            )
        if self.low > 0:
            return (
                "the interval lies above zero: the trained model predicts these turns worse "
                "than its base"
            )
        return "the interval contains zero: this run does not show a difference from the base"


def first(report: Mapping[str, Any] | None, *paths: str) -> Any:
    """The first of the dotted `paths` that leads to something in `report`, else None."""
    for path in paths:
        value: Any = report
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def drops(report: Report) -> list[tuple[str, int]]:
    """(reason, rows) of everything a stage left out, most frequent first.

    Summed over the steps of a chain and the unreadable rows of files, or as the stage's own counts
    say."""
    counts: Counter[str] = Counter()
    for part in (
        *_mappings(report, "steps"),
        *_mappings(report, "files"),
        report,
        first(report, "rows") or {},
    ):
        for key in ("dropped", "unreadable", "reasons"):
            _count(first(part, f"{key}.counts", key), counts)
    return sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))


def _mappings(report: Report, key: str) -> list[Mapping[str, Any]]:
    items = report.get(key)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _count(reasons: Any, counts: Counter[str]) -> None:
    for reason, tally in reasons.items() if isinstance(reasons, Mapping) else ():
        rows = tally.get("count") if isinstance(tally, Mapping) else tally
        if isinstance(rows, int) and rows:
            counts[str(reason)] += rows


def funnel(report: Report) -> list[tuple[str, int]]:
    """(step, rows left after it), in the order in which a stage took its steps."""
    rows = [(step.get("name"), step.get("rows_out")) for step in _mappings(report, "steps")]
    return [(str(name), count) for name, count in rows if isinstance(count, int)]


def lost(report: Report) -> list[str]:
    """What reading lost of a file's bytes, one sentence a file."""
    sentences = []
    for file in _mappings(report, "files"):
        cut_off = str(file.get("cut_off_at") or "")
        at = "" if cut_off.startswith("after") else "at "
        where = f", cut off {at}{cut_off}" if cut_off else ""
        if where or file.get("lost_bytes"):
            sentences.append(
                f"{file.get('file')}: {file.get('lost_bytes', 0):,} bytes hold no whole row{where}"
            )
    return sentences


def held_out(results: Report | None, stage: str) -> HeldOut | None:
    """The held-out comparison of ``asker`` or ``chat`` in a results file, or None when it was not
    measured.
    """
    part = first(results, stage) or {}
    arms, trained = first(part, "arms") or {}, first(part, "trained") or "trained"
    loss = first(arms, f"{trained}.loss")
    if not isinstance(loss, int | float):
        return None
    compared = first(part, "against") or {}
    against = [
        Against(
            arm,
            first(arms, f"{arm}.loss"),
            interval.get("difference"),
            interval.get("low"),
            interval.get("high"),
        )
        for arm, interval in compared.items()
    ]
    tokens = first(arms, f"{trained}.tokens")
    return HeldOut(
        model=float(loss),
        against=sorted(against, key=lambda a: a.arm),
        confidence=next((c["confidence"] for c in compared.values() if "confidence" in c), None),
        conversations=len(tokens) if isinstance(tokens, list) else None,
        tokens=sum(tokens) if isinstance(tokens, list) else None,
    )


def endings(reports: Mapping[str, Report], results: Report | None) -> list[str]:
    """Whether the asker ended dialogues, and how likely it is to where people did: one sentence of
    the rollout's report, one of the results; none where nothing was recorded."""
    sentences = []
    ends = first(reports.get("rollout"), "end_reasons") or {}
    dialogues = sum(ends.values())
    if dialogues:
        ended = ends.get("end_mark", 0)
        sentences.append(
            f"The asker ended {ended} of {dialogues} dialogues itself"
            + (", so its end was not seen." if not ended else ".")
        )
    ending = first(results, "ending") or {}
    if "missing" in ending:
        sentences.append(f"How likely it is to end was not measured: {ending['missing']}.")
    elif ending:
        at, on = (_probability(ending[key]) for key in ("at_ends", "before_ends"))
        never = at == on == _HARDLY_EVER
        after = "It has not learned to end conversations: after" if never else "After"
        sentences.append(
            f"{after} an answer it ends with a probability of {at} where people ended and {on} "
            f"where they went on (mean over {ending['chances']} answers in "
            f"{ending['conversations']} held-out conversations; people ended at "
            f"{ending['real_rate']:.0%} of them)."
        )
    return sentences


_HARDLY_EVER = "less than 0.1%"


def _probability(value: float | None) -> str:
    if value is None:
        return "an unknown size"
    return f"{value:.1%}" if value >= 0.001 else _HARDLY_EVER


def mean_turns(report: Report) -> float | None:
    """Mean human turns per conversation out of a report's histogram (turns → rows)."""
    turns = {int(n): rows for n, rows in (first(report, "human_turns") or {}).items()}
    rows = sum(turns.values())
    return sum(n * count for n, count in turns.items()) / rows if rows else None


def settings(recipe: Recipe, stage: Literal["asker", "chat"]) -> list[tuple[str, Any, Any, bool]]:
    """(setting, value in this run, in the recipe without its profile, is it our own choice) per
    training knob.

    The third is None where the full-size recipe does not set it.
    """
    run: Training = getattr(recipe, stage)
    full = _flat(getattr(_unshrunk(recipe), stage))
    return [
        (name, value, full.get(name), _is_own_choice(recipe, f"{stage}.{name}"))
        for name, value in _flat(run).items()
    ]


def optimisation(recipe: Recipe) -> list[tuple[str, Any, Any, bool]]:
    """`settings` of the preference optimisation."""
    run, full = (_flat_preference(r) for r in (recipe, _unshrunk(recipe)))
    return [
        (name, value, full.get(name), _is_own_choice(recipe, f"preference.{name}"))
        for name, value in run.items()
    ]


def settings_of(recipe: Recipe, kind: str) -> list[tuple[str, Any, Any, bool]]:
    """`settings` of what a model of that kind was last trained by."""
    if kind == "aligned":
        return optimisation(recipe)
    if kind == "reinforced":
        run, full = (_flat_reinforcement(r) for r in (recipe, _unshrunk(recipe)))
        return [
            (name, value, full.get(name), _is_own_choice(recipe, f"reinforce.{name}"))
            for name, value in run.items()
        ]
    return settings(recipe, "asker" if kind == "asker" else "chat")


def _flat_reinforcement(recipe: Recipe) -> JsonObject:
    block = recipe.reinforce
    if block is None:
        return {}
    flat: JsonObject = {
        "askers": ", ".join(f"{name} ({seat.model_name})" for name, seat in block.askers.items()),
        "rewards": ", ".join(f"{term.weight:g} x {term.name}" for term in block.rewards),
        "answers": block.answers,
        "openings": block.openings,
        **{f"grpo.{k}": v for k, v in block.grpo.items()},
        **{f"lora.{k}": v for k, v in (block.lora or {}).items()},
    }
    return {k: v for k, v in flat.items() if v is not None}


def reinforcement(report: Report) -> JsonObject | None:
    """What a card says of the rewards of a run: before, after, and over the steps."""
    outcome = first(report, "reinforcement")
    if not isinstance(outcome, Mapping):
        return None
    curve = list(outcome.get("curve") or [])
    points = curve[:: max(1, len(curve) // 10)]
    return {
        "before": outcome.get("before"),
        "after": outcome.get("after"),
        "difference": outcome.get("difference"),
        "conversations": outcome.get("conversations"),
        "masked": list((outcome.get("masked") or {}).items()),
        "ends": list((outcome.get("ends") or {}).items()),
        "stopped": outcome.get("stopped") or "",
        "curve": points,
    }


def _flat_preference(recipe: Recipe) -> JsonObject:
    block = recipe.preference
    if block is None:
        return {}
    flat = {"pairs": block.pairs, **{f"dpo.{k}": v for k, v in block.dpo.items()}}
    flat |= {f"lora.{k}": v for k, v in (block.lora or {}).items()}
    return {k: v for k, v in flat.items() if v is not None}


def _flat(run: Training) -> JsonObject:
    flat: JsonObject = {
        "base": run.base,
        "max_conversations": run.max_conversations,
        "max_tokens": run.max_tokens,
    }
    flat |= {f"sft.{k}": v for k, v in run.sft.items()}
    flat |= {f"lora.{k}": v for k, v in (run.lora or {}).items()}
    return {k: v for k, v in flat.items() if v is not None}


def _is_own_choice(recipe: Recipe, key: str) -> bool:
    return any(key == choice or key.startswith(choice + ".") for choice in recipe.ours)


def _unshrunk(recipe: Recipe) -> Recipe:
    """The shipped recipe of that name without any profile; `recipe` itself where it is the user's
    own.
    """
    try:
        return recipes.load(recipe.name) if recipe.profile else recipe
    except RecipeError:
        return recipe


def sources(recipe: Recipe) -> tuple[list[str], list[str]]:
    """The repos that the recipe's corpus is read from, and those of the recipe without its
    profile; local files are "local files"."""
    read_here, at_full_size = (
        list(dict.fromkeys(source.repo_id or "local files" for source in each.corpus.sources))
        for each in (recipe, _unshrunk(recipe))
    )
    return read_here, at_full_size


def is_shrunk(recipe: Recipe) -> bool:
    """Whether a profile or a value makes the recipe smaller than it ships: fewer dialogues, or a
    cap on what training reads.
    """
    full = _unshrunk(recipe)
    if recipe.rollout.dialogues < full.rollout.dialogues:
        return True
    pairs = ((recipe.asker, full.asker), (recipe.chat, full.chat))
    return any(
        (value := getattr(run, cap)) is not None
        and ((shipped_value := getattr(shipped, cap)) is None or value < shipped_value)
        for run, shipped in pairs
        for cap in ("max_conversations", "max_tokens")
    )  # fmt: skip


_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?[MB])(?![\w])", re.IGNORECASE)


def smoke_test(facts: CardFacts) -> str | None:
    """For what was made smaller than its recipe: the first sentence of its card, with its size."""
    recipe = facts.recipe
    if recipe is None or facts.kind == "corpus" or not is_shrunk(recipe):
        return None
    names = recipe.names
    training = recipe.asker if facts.kind == "asker" else recipe.chat
    size = _SIZE_IN_NAME.search(training.base.rpartition("/")[2])
    model = f"a {size[1].upper()} model" if size else "a small model"
    conversations = first(facts.report(facts.kind), "rows.rows_used", "conversations")
    pairs = first(facts.report("align"), "rows.pairs_used")
    kept_count = first(facts.report("curate"), "kept")
    rolled = first(facts.report("rollout"), "dialogues")

    def number(value: Any, noun: str) -> str:
        return f"{value:,} {noun}" if isinstance(value, int) else f"few {noun}"

    trained = f"{model} trained on"
    what, whole = {
        "asker": (f"{trained} {number(conversations, 'conversations')}", names.asker),
        "chat": (f"{trained} {number(conversations, 'dialogues')}", names.chat),
        "aligned": (f"{trained} {number(pairs, 'pairs')}", names.aligned),
        "reinforced": (f"{model}, reinforced for a few steps", names.reinforced or names.chat),
        "dialogues": (
            f"{number(kept_count if kept_count is not None else rolled, 'dialogues')} by {model}",
            names.dialogues,
        ),
        "preference": (
            f"{number(first(facts.report('prefer'), 'pairs'), 'pairs of answers')} by {model}",
            f"the pairs of {names.system}",
        ),
        "results": (f"measurements of {model}", f"the results of {names.system}"),
    }[facts.kind]
    return f"Smoke test: {what}; not {whole}." if recipe.paper else f"Smoke test: {what}."


def changes(report: Report) -> list[tuple[str, int, str]]:
    """(what, how often, an example) of what reading changed or left out, summed over files, and of
    what each step changed in the rows that it kept."""
    return [*_read_changes(report), *_step_changes(report)]


def _step_changes(report: Report) -> list[tuple[str, int, str]]:
    """Without examples: a card does not point at the rows whose source holds a secret."""
    return [
        (
            f"rows changed by {step.get('name')}: {str(what).replace('_', ' ')}",
            tally["count"],
            "",
        )
        for step in _mappings(report, "steps")
        for what, tally in (step.get("changed") or {}).items()
        if isinstance(tally, Mapping) and isinstance(tally.get("count"), int)
    ]


def _read_changes(report: Report) -> list[tuple[str, int, str]]:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for file in _mappings(report, "files"):
        for note, tally in (file.get("notes") or {}).items():
            label = f"conversations changed by reading: {str(note).replace('_', ' ')}"
            if isinstance(tally, Mapping) and isinstance(tally.get("count"), int):
                counts[label] += tally["count"]
                examples.setdefault(label, str(next(iter(tally.get("examples") or ()), "")))
        for key, what in (("unread_columns", "rows"), ("unread_fields", "turns")):
            for name, number in (file.get(key) or {}).items():
                if isinstance(number, int):
                    label = f"{what} with a {'column' if what == 'rows' else 'key'} not read"
                    counts[f"{label}: {name}"] += number
    return [(label, number, examples.get(label, "")) for label, number in counts.most_common()]


def size_category(rows: int | None) -> str | None:
    """The Hub's size category for a number of rows."""
    if rows is None:
        return None
    bounds = (
        (10**3, "n<1K"),
        (10**4, "1K<n<10K"),
        (10**5, "10K<n<100K"),
        (10**6, "100K<n<1M"),
        (10**7, "1M<n<10M"),
    )
    return next((name for bound, name in bounds if rows < bound), "10M<n<100M")
