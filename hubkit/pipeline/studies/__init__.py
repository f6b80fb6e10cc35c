"""Downstream studies: what is asking good for? Arms that differ only in who asks, one student each
and seed, compared on what a teacher answers to real people.

A study is a block of a recipe (`hubkit.recipe.load_study`). Each of its parts is a stage as those
of a run are: keyed by what decides it, committed once, skipped when it is done, resumed after a
kill. The corpus and the asker are the recipe's own stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count

from hubkit.hub import Hub, Ref
from hubkit.pipeline.runner import SettingsLook, WouldImport, refuse_import
from hubkit.pipeline.stage import RunContext, Stage, StageResult, outgoing
from hubkit.pipeline.stages import asker, corpus
from hubkit.pipeline.studies import balance, curve, dialogues, further, openings, result, students
from hubkit.pipeline.studies.openings import study_of
from hubkit.pipeline.studies.result import write
from hubkit.progress import Progress, silent
from hubkit.recipe import Arm, Recipe, Study
from hubkit.recipe.study import ANSWERS, OPENINGS, STUDENT
from hubkit.training import require_settings

__all__ = ["Part", "parts_of", "plan", "run", "write"]

Part = tuple[str, StageResult]
"""What a part of a study is about, and what became of it."""


def run(
    recipe: Recipe, hub: Hub, *, progress_for: Callable[[str], Progress] = lambda _: silent
) -> Iterator[Part]:
    """Run every part of the study of `recipe` that is not done; the last one holds its results.

    Raises `StageError` for arms that cannot be compared, and what the stages raise. What was
    committed before stays, and the next run resumes from there."""
    yield from _parts(recipe, _Walk(_with_repos(recipe), outgoing(hub, recipe), progress_for))


def _refuse_settings(recipe: Recipe) -> None:
    """Raise `RecipeError` for what the trainers of askers and students refuse of `recipe`."""
    require_settings(recipe, ["asker", "study"])


def plan(recipe: Recipe, hub: Hub) -> list[tuple[str, str]]:
    """Every part of the study of `recipe` and whether it is ``done`` or ``to run``; nothing is
    imported, built or committed."""
    _refuse_settings(recipe)
    finished_parts = []
    walk = _Walk(_with_repos(recipe), hub, lambda _: refuse_import, looks_only=True)
    with suppress(WouldImport):
        finished_parts = [about for about, _ in _until_new(_parts(recipe, walk))]
    expected = parts_of(study_of(walk.context))
    at = expected.index("balance")  # further rounds are known once they are needed
    expected[at:at] = [name for name in finished_parts if name not in expected]
    return [(name, "done" if name in finished_parts else "to run") for name in expected]


def parts_of(study: Study) -> list[str]:
    """The parts of a study, in order."""
    asking = {name: arm for name, arm in study.arms.items() if arm.kind != "single"}
    names = ["corpus", "openings", "single turns", "held-out dialogues"]
    for name, arm in asking.items():
        names += [f"asker of {name}"] if arm.kind == "asker" else []
        names.append(f"dialogues of {name}")
    names.append("balance")
    names += [f"asker of {tokens} tokens" for tokens in study.curve]
    names += ["learning curve"] if study.curve else []
    names.append("scores of the untrained base")
    for seed in study.seeds:
        for name in study.arms:
            names += [f"student of {name}, seed {seed}", f"scores of {name}, seed {seed}"]
    return [*names, "result"]


def _until_new(parts: Iterator[Part]) -> Iterator[Part]:
    """The parts that exist, up to the first one that does not."""
    try:
        yield from parts
    except _NotDoneError:
        return


class _NotDoneError(Exception):
    """A plan came to a part that is not done."""


def _parts(recipe: Recipe, walk: _Walk) -> Iterator[Part]:
    yield walk.step(corpus.STAGE, "corpus", recipe=recipe)
    yield walk.step(openings.STAGE, "openings")
    yield walk.step(dialogues.ANSWERS_STAGE, "single turns")
    yield walk.step(dialogues.HELD_OUT_STAGE, "held-out dialogues")
    study = study_of(walk.context)
    arms = dict(study.arms)
    yield from _arms(recipe, walk, arms)
    for number in count(2):
        if not further.are_needed(walk.context):
            break
        further.set_aside(walk.commits, study)
        suffix = f", round {number}"
        part = walk.step(further.STAGE, f"openings{suffix}")
        walk.commits[OPENINGS] = part[1].ref
        yield part
        yield walk.step(dialogues.ANSWERS_STAGE, f"single turns{suffix}")
        yield from _arms(recipe, walk, arms, suffix)
    yield walk.step(balance.STAGE, "balance")
    for tokens in study.curve:
        sized = curve.recipe_of(recipe, tokens)
        part = walk.step(asker.STAGE, f"asker of {tokens} tokens", recipe=sized)
        walk.commits[curve.role(tokens)] = part[1].ref
        yield part
    if study.curve:
        yield walk.step(curve.STAGE, "learning curve")
    walk.commits.pop(STUDENT, None)
    part = walk.step(students.SCORE_STAGE, "scores of the untrained base")
    walk.commits["scores  "] = part[1].ref
    yield part
    for seed in study.seeds:
        for name, arm in arms.items():
            derived = _of_arm(walk.context.recipe, name, arm).model_copy(update={"seed": seed})
            about = f"student of {name}, seed {seed}"
            part = walk.step(students.STUDENT_STAGE, about, recipe=derived)
            walk.commits[f"student {name} {seed}"] = part[1].ref
            yield part
            part = walk.step(students.SCORE_STAGE, f"scores of {name}, seed {seed}", recipe=derived)
            walk.commits[f"scores {name} {seed}"] = part[1].ref
            yield part
    yield walk.step(result.STAGE, "result")


def _arms(recipe: Recipe, walk: _Walk, arms: Mapping[str, Arm], suffix: str = "") -> Iterator[Part]:
    """The dialogues of every arm; its asker, where it has one, is trained in the first round."""
    for name, arm in arms.items():
        if arm.kind == "single":
            walk.commits[balance.role_of(name)] = walk.commits[ANSWERS]
            continue
        derived = _of_arm(walk.context.recipe, name, arm)
        if arm.kind == "asker":
            part = walk.step(
                asker.STAGE, f"asker of {name}", recipe=_asker_recipe(recipe, derived, arm)
            )
            if not suffix:
                yield part
        part = walk.step(dialogues.arm_stage(name), f"dialogues of {name}{suffix}", recipe=derived)
        walk.commits[balance.role_of(name)] = part[1].ref
        yield part


class _Walk:
    """One walk over a study's stages; `commits` are those so far, by stage and by arm."""

    def __init__(
        self,
        recipe: Recipe,
        hub: Hub,
        progress_for: Callable[[str], Progress],
        *,
        looks_only: bool = False,
    ) -> None:
        self.commits: dict[str, Ref] = {}
        self.context = RunContext(recipe, hub, self.commits)
        self._settings = SettingsLook(lambda: _refuse_settings(recipe))
        self._progress_for, self._looks_only = progress_for, looks_only

    def step(self, stage: Stage, about: str, *, recipe: Recipe | None = None) -> Part:
        """Run `stage`, of a derived `recipe` where one is given, unless it is done."""
        context = replace(self.context, recipe=recipe) if recipe else self.context
        progress = self._progress_for(about)
        inputs = stage.inputs(context, self._settings.before(progress))
        existing = stage.find(context, inputs)
        if self._looks_only:
            if existing is None:
                raise _NotDoneError
            self.commits[stage.name] = existing.ref
            return about, existing
        if existing is None:
            self._settings.require(progress)
        outcome = existing or stage.run(context, inputs, progress)
        self.commits[stage.name] = outcome.ref
        progress(1, 1, "done before" if outcome.skipped else f"done in {outcome.seconds:.0f} s")
        return about, outcome


def _with_repos(recipe: Recipe) -> Recipe:
    """`recipe`, its repos those of the study: what a study makes is none of a run's."""
    repos = recipe.repos
    changes = {name: f"{getattr(repos, name)}-utility" for name in ("dialogues", "chat", "results")}
    return recipe.model_copy(update={"repos": repos.model_copy(update=changes)})


def _of_arm(recipe: Recipe, name: str, arm: Arm) -> Recipe:
    """`recipe` with the one arm, and a repo for its students."""
    assert recipe.study is not None
    repos = recipe.repos.model_copy(update={"chat": f"{recipe.repos.chat}-{name}"})
    study = recipe.study.model_copy(update={"arms": {name: arm}})
    return recipe.model_copy(update={"repos": repos, "study": study})


def _asker_recipe(recipe: Recipe, derived: Recipe, arm: Arm) -> Recipe:
    """The recipe by which the asker of `arm` is trained: `recipe` itself, or `recipe` with another
    recipe's asker, which goes to a repo of its own."""
    if arm.recipe is None or arm.asker is None:
        return recipe
    repos = recipe.repos.model_copy(update={"asker": f"{recipe.repos.asker}-of-{arm.recipe}"})
    return derived.model_copy(update={"asker": arm.asker, "repos": repos})
