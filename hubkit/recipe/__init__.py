"""A recipe is a YAML file, checked: what to train, roll out, judge and publish, with every number a
paper gave.

Takes a recipe's name or path, profiles and ``key=value`` overrides; gives a frozen `Recipe`. A
profile is YAML of the same shape, laid over the recipe key by key (mappings merge, everything else
replaces); what the recipe's own ``profiles`` says under a profile's name is laid over that profile.
Unknown keys are errors that name the nearest known one. Each stage's digest covers only what that
stage reads, so changing one value runs exactly the stages that depend on it again."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hubkit import plugins
from hubkit.bounded_yaml import parse_yaml
from hubkit.errors import RecipeError
from hubkit.recipe.against import Against
from hubkit.recipe.block import block_of
from hubkit.recipe.data import Corpus, Curate, Filter, Intents, Measure
from hubkit.recipe.dialogue import (
    DEPLOY,
    EMBEDDED,
    ENGINES,
    Baseline,
    Deploy,
    Engine,
    Rollout,
    Sampling,
    SeatConfig,
    Turns,
)
from hubkit.recipe.evals import Evals
from hubkit.recipe.identity import Content, Decides, Display, Execution, content_of, decides, digest
from hubkit.recipe.judgement import Judging, Published, Scorecard
from hubkit.recipe.preference import Preference
from hubkit.recipe.reinforcement import Reinforce, RewardTerm
from hubkit.recipe.source import Columns, Source
from hubkit.recipe.study import Arm, Study
from hubkit.recipe.training import Expected, PeoplePairs, Training
from hubkit.recipe.whole import (
    PREFERENCE_STAGES,
    Names,
    Paper,
    Publish,
    Recipe,
    Repos,
    content_of_stage,
)
from hubkit.untrusted import JsonObject, text_in

__all__ = [
    "DEPLOY",
    "EMBEDDED",
    "ENGINES",
    "PREFERENCE_STAGES",
    "RECIPES",
    "STAGES",
    "Against",
    "Arm",
    "Baseline",
    "Columns",
    "Content",
    "Corpus",
    "Curate",
    "Decides",
    "Deploy",
    "Display",
    "Engine",
    "Evals",
    "Execution",
    "Expected",
    "Filter",
    "Intents",
    "Judging",
    "Measure",
    "Names",
    "Paper",
    "PeoplePairs",
    "Preference",
    "Publish",
    "Published",
    "Recipe",
    "Reinforce",
    "Repos",
    "RewardTerm",
    "Rollout",
    "Sampling",
    "Scorecard",
    "SeatConfig",
    "Source",
    "Study",
    "Training",
    "Turns",
    "available",
    "block_of",
    "content_of",
    "content_of_stage",
    "decides",
    "digest",
    "judging",
    "load",
    "load_study",
    "overridden",
    "summary",
]

RECIPES = resources.files("hubkit") / "recipes"
STAGES = (
    "corpus", "asker", "rollout", "curate", "chat", "prefer", "align", "reinforce", "eval",
    "publish",
)  # fmt: skip


def available() -> dict[str, list[str]]:
    """Names of the recipes and of the profiles that ship: ``{"recipes": [...], "profiles":
    [...]}``.
    """
    names: dict[str, list[str]] = {"recipes": [], "profiles": []}
    for entry in sorted(RECIPES.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            kind = "recipes" if "\nname:" in "\n" + entry.read_text("utf-8") else "profiles"
            names[kind].append(entry.name.removesuffix(".yaml"))
    return names


def summary(name: str) -> str:
    """What a shipped recipe or profile is: the first sentence of its opening comment."""
    lines = (RECIPES / f"{name}.yaml").read_text("utf-8").splitlines()
    comment = " ".join(line[1:].strip() for line in takewhile(lambda x: x.startswith("#"), lines))
    return comment.partition(". ")[0].rstrip(".")


def load(name: str, *, profiles: Iterable[str] = (), overrides: Iterable[str] = ()) -> Recipe:
    """Read recipe `name` (a shipped name or a path), lay `profiles` over it, then
    ``dotted.key=value`` overrides.

    An end mark that the asker is trained on, or the end token of one that speaks as a user, also
    ends dialogues, unless the rollout names another.
    What a preference block makes is named after the dialogues and the chat model, unless the recipe
    names it. Raises `RecipeError` when a file is missing or not YAML, or a key or value is not what
    a recipe may hold."""
    data = _read(name)
    profile_names = list(profiles)
    recipe_profiles = _own_profiles(name, data)
    for profile in profile_names:
        data = _merge(data, _read(profile))
        data = _merge(data, recipe_profiles.get(Path(profile).stem) or {})
    for override in overrides:
        data = _merge(data, _parse_override(override))
    data.pop("over", None)  # a study's profile says what it builds on
    if profile_names:
        data["profile"] = "+".join(Path(p).stem for p in profile_names)
    try:
        recipe = Recipe.model_validate(data)
        recipe.model_dump_json()
    except ValidationError as error:
        raise RecipeError(_explain(name, error)) from None
    except ValueError as error:  # half a character, spelt as an escape
        raise RecipeError(
            f"recipe {name!r} holds a value that no file can: {' '.join(str(error).split())}"
        ) from None
    plugins.load(recipe.plugins)
    asker = recipe.rollout.asker
    end_mark = asker.end_token if asker.speaks else recipe.asker.end_mark
    if end_mark and recipe.rollout.end_mark is None:
        rollout = recipe.rollout.model_copy(update={"end_mark": end_mark})
        recipe = recipe.model_copy(update={"rollout": rollout})
    if recipe.preference:
        recipe = _with_names(recipe)
    return _with_reinforcement(recipe) if recipe.reinforce else recipe


def _with_reinforcement(recipe: Recipe) -> Recipe:
    """`recipe` with what its block about reinforcement takes from the rollout, and with names."""
    assert recipe.reinforce is not None
    block, repos, names = recipe.reinforce, recipe.repos, recipe.names
    changed = {
        "askers": block.askers or {"asker": recipe.rollout.asker},
        "end_mark": block.end_mark or recipe.rollout.end_mark,
    }
    reinforced = names.reinforced or f"{names.chat}, reinforced"
    return recipe.model_copy(
        update={
            "reinforce": block.model_copy(update=changed),
            "repos": repos.model_copy(
                update={"reinforced": repos.reinforced or f"{repos.chat}-reinforced"}
            ),
            "names": names.model_copy(update={"reinforced": reinforced}),
        }
    )


def load_study(
    study: str, name: str, *, profiles: Iterable[str] = (), overrides: Iterable[str] = ()
) -> Recipe:
    """Read recipe `name` as `load` does, with the shipped study laid over it.

    A study has profiles of its own, laid over it last; each builds on the recipe's profile that its
    key ``over`` names. Trained askers of other recipes are those of the same profiles. Raises
    `RecipeError`."""
    layers, last = [], []
    for profile in profiles:
        study_profile = RECIPES / "studies" / f"{study}-{profile}.yaml"
        if not study_profile.is_file():
            layers.append(profile)
            continue
        last.append(f"studies/{study}-{profile}")
        over = text_in(_read(last[-1]), "over")
        layers += [over] if over and over not in layers else []
    layers += [f"studies/{study}", *last]
    recipe = load(name, profiles=layers, overrides=overrides)
    assert recipe.study is not None
    arms = {}
    for key, arm in recipe.study.arms.items():
        if arm.kind == "asker" and arm.asker is None:
            source = (
                load(arm.recipe, profiles=layers, overrides=overrides) if arm.recipe else recipe
            )
            arm = arm.model_copy(update={"asker": source.asker})
        arms[key] = arm
    return recipe.model_copy(update={"study": recipe.study.model_copy(update={"arms": arms})})


def _with_names(recipe: Recipe) -> Recipe:
    repos, names = recipe.repos, recipe.names
    preference, aligned = f"{repos.dialogues}-preference", f"{repos.chat}-aligned"
    repos = repos.model_copy(
        update={"preference": repos.preference or preference, "aligned": repos.aligned or aligned}
    )
    names = names.model_copy(
        update={"aligned": names.aligned or f"{names.chat}, preference-optimised"}
    )
    return recipe.model_copy(update={"repos": repos, "names": names})


def overridden(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """`recipe` with ``dotted.key=value`` laid over it. Raises `RecipeError` as `load` does."""
    data = recipe.model_dump()
    for override in overrides:
        data = _merge(data, _parse_override(override))
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain(recipe.name, error)) from None


def judging(values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Judging:
    """A `Judging` block from plain data, with ``dotted.key=value`` overrides. Raises
    `RecipeError`.
    """
    data = dict(values)
    for override in overrides:
        data = _merge(data, _parse_override(override))
    try:
        return Judging.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain("judging", error, Judging)) from None


def _read(name: str) -> JsonObject:
    path: Any = Path(name)
    if not name.endswith((".yaml", ".yml")):
        path = RECIPES / f"{name}.yaml"
    try:
        data = parse_yaml(path.read_text("utf-8"))
    except FileNotFoundError:
        shipped = available()
        names = shipped["recipes"] + shipped["profiles"]
        hint = difflib.get_close_matches(name, names, n=1)
        raise RecipeError(
            f"no recipe or profile {name!r}; shipped are {', '.join(names)}"
            + (
                f". Did you mean {hint[0]!r}?"
                if hint
                else ". Give one of them, or a path ending in .yaml."
            )
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} must be a mapping of keys to values, not {type(data).__name__}")
    if isinstance(data.get("plugins"), list):
        data["plugins"] = [_relative_to_recipe(path, name) for name in data["plugins"]]
    return data


def _own_profiles(name: str, data: JsonObject) -> dict[str, JsonObject]:
    """Take ``profiles`` out of a recipe: what it changes itself under a profile of that name."""
    profiles = data.pop("profiles", None) or {}
    if not isinstance(profiles, dict) or not all(isinstance(v, dict) for v in profiles.values()):
        raise RecipeError(
            f"recipe {name!r}: profiles must map names of profiles to keys of the recipe, "
            "such as profiles: {laptop: {corpus: {openings: 100}}}"
        )
    return profiles


def _relative_to_recipe(recipe: Any, plugin: Any) -> Any:
    """`plugin`, where it is a file's path, relative to the file of the recipe that names it."""
    if isinstance(recipe, Path) and isinstance(plugin, str) and plugin.endswith(".py"):
        return str(recipe.parent / Path(plugin).expanduser())
    return plugin


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> JsonObject:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = (
            _merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
        )
    return merged


def _parse_override(text: str) -> JsonObject:
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"override {text!r} must look like dotted.key=value, for example rollout.dialogues=100"
        )
    try:
        value: Any = parse_yaml(raw)
    except (yaml.YAMLError, ValueError):
        raise RecipeError(f"override {text[:200]!r}: the value {raw[:200]!r} is not YAML") from None
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return dict(value)


def _explain(name: str, error: ValidationError, root: type[BaseModel] = Recipe) -> str:
    lines = []
    for issue in error.errors(include_url=False):
        where = ".".join(str(part) for part in issue["loc"])
        if issue["type"] == "extra_forbidden":
            keys = sorted(_block_at(issue["loc"][:-1], root).model_fields)
            near = difflib.get_close_matches(str(issue["loc"][-1]), keys, n=1)
            lines.append(
                f"{where} is not a key of a recipe"
                + (f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(keys)}")
            )
        elif issue["type"] == "value_error":  # our own words about a whole block
            lines.append(f"{where}{': ' if where else ''}{issue['ctx']['error']}")
        elif issue["type"] == "missing":
            lines.append(f"{where} is missing")
        else:
            lines.append(
                f"{where}: {issue['msg'][:1].lower()}{issue['msg'][1:]} (got {issue['input']!r})"
            )
    return f"recipe {name!r}: " + "; ".join(lines)


def _block_at(loc: tuple[Any, ...], root: type[BaseModel]) -> type[BaseModel]:
    """The block of `root` that a validation location points into; positions and names of entries
    are passed over.
    """
    block = root
    for part in loc:
        if field := block.model_fields.get(
            str(part)
        ):  # else a position in a list, or a name in a mapping of blocks
            block = block_of(field.annotation) or block
    return block
