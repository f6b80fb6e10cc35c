"""The result of a study: every arm's loss by turn depth, every paired difference, what made the
arms comparable; as data, table, plot and card."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubkit.data.parquet import disk_errors
from hubkit.errors import StageError
from hubkit.evaluation import utility
from hubkit.hub import Hub, Ref
from hubkit.metrics import plots
from hubkit.pipeline.stage import PROVENANCE, RunContext, Stage, StageDirs
from hubkit.pipeline.studies import students
from hubkit.pipeline.studies.openings import study_of
from hubkit.pipeline.studies.study_card import card
from hubkit.progress import Progress
from hubkit.publishing import results_table
from hubkit.recipe.study import BALANCE, CURVE, FURTHER, OPENINGS, RESULT, STUDENT
from hubkit.statistics import Bootstrap
from hubkit.untrusted import JsonObject, count_in, list_in, number_in, object_in

PICTURE = "utility.png"
_MOST_STEPS = 4 / 3


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The scores of every student and of their base, and what the arms were cut to."""
    scores = {
        role: ref
        for role, ref in context.commits.items()
        if role.startswith(("scores ", "student "))
    }
    opened = _last_openings(context.commits)
    refs = {BALANCE: context.before(BALANCE), opened: context.before(opened), **scores}
    return refs | ({CURVE: context.before(CURVE)} if study_of(context).curve else {})


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """``results.json`` and the plot."""
    study, hub = study_of(context), context.hub
    steps = {
        role.removeprefix("student "): count_in(_report(context, ref, STUDENT), "steps")
        for role, ref in refs.items()
        if role.startswith("student ")
    }
    require_equal_steps(steps)
    by_arm: defaultdict[str, list[utility.TurnLosses]] = defaultdict(list)
    for role, ref in refs.items():
        if role.startswith("scores "):
            by_arm[role.removeprefix("scores ").rpartition(" ")[0]].append(
                students.scores(hub, ref)
            )
    (baseline,) = by_arm.pop("")
    result = utility.summary(
        by_arm,
        statistics=Bootstrap(study.resamples, study.confidence, context.recipe.seed),
        baseline=baseline,
    )
    opened = _last_openings(refs)
    titles = {name: arm.title or name for name, arm in study.arms.items()}
    facts = {
        "recipe": context.recipe.name,
        "profile": context.recipe.profile,
        "titles": titles,
        "seeds": study.seeds,
        "teacher": study.teacher.model_name,
        "student": study.student.base,
        "asker_tokens": {
            name: arm.asker.max_tokens for name, arm in study.arms.items() if arm.asker
        },
        "steps": steps,
        "balance": _report(context, refs[BALANCE], BALANCE),
        "hygiene": _report(context, refs[opened], opened),
        **result,
    }
    if CURVE in refs:
        facts["learning_curve"] = _report(context, refs[CURVE], CURVE)["points"]
    (dirs.out / "results.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    (dirs.out / "data").mkdir()
    (dirs.out / results_table.PATH).write_bytes(_table(result))
    depths = [str(depth) for depth in list_in(result, "depths") if depth != utility.FOLLOW_UPS]
    gains = object_in(result, "less_base")
    plots.losses_by_depth(
        dirs.out / PICTURE,
        {
            titles.get(arm, arm): {int(d): _interval(object_in(gains, arm), d) for d in depths}
            for arm in gains
        },
    )
    return facts


def _last_openings(commits: Mapping[str, Ref]) -> str:
    """The stage among `commits` that chose the openings which the arms have."""
    return FURTHER if FURTHER in commits else OPENINGS


def _table(result: Mapping[str, Any]) -> bytes:
    """Every number of a result, a row each."""
    import pyarrow as pa

    names = [(name, pa.string()) for name in ("arm", "compared_with", "depth")]
    numbers = [(name, pa.float64()) for name in ("value", "low", "high")]
    base = [("base", None, depth, value, None, None) for depth, value in result["base"].items()]
    arms = [
        (arm, None, depth, at["value"], at["low"], at["high"])
        for arm, depths in result["arms"].items()
        for depth, at in depths.items()
    ]
    differences = [
        (entry["arm"], entry["against"], entry["depth"], *(entry[name] for name, _ in numbers))
        for entry in result["differences"]
    ]
    return results_table.as_parquet([*names, *numbers], [*base, *arms, *differences])


def _interval(depths: JsonObject, depth: str) -> tuple[float, float, float]:
    at = object_in(depths, depth)
    value = number_in(at, "value")
    return value, number_in(at, "low", value), number_in(at, "high", value)


def require_equal_steps(steps: Mapping[str, int]) -> None:
    """Raise `StageError` where one student took more than a third more steps than another, and more
    than one."""
    few, many = min(steps, key=lambda name: steps[name]), max(steps, key=lambda name: steps[name])
    if steps[many] > max(steps[few] + 1, steps[few] * _MOST_STEPS):
        raise StageError(
            f"the student of {many} took {steps[many]} steps and that of {few} {steps[few]}: they "
            "differ in more than what asked; look at how many rows each arm has"
        )


def _report(context: RunContext, ref: Ref, stage: str) -> JsonObject:
    record: JsonObject = json.loads(context.hub.read(ref, f"{PROVENANCE}/{stage}.json"))
    return object_in(record, "report")


STAGE = Stage(RESULT, "results", "dataset", inputs, build, card(RESULT))


def write(hub: Hub, ref: Ref, folder: Path) -> list[Path]:
    """Write the result of a study, commit `ref`, into `folder`: data, plot and card."""
    files = [folder / name for name in ("results.json", PICTURE, "README.md")]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.write_bytes(hub.read(ref, file.name))
    return files
