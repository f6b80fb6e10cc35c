"""Stages as Hub Jobs: the same stage, built by another machine, found on the Hub when it is done.

The driver decides what runs (a stage whose commit exists is skipped), submits one job a stage,
follows its log, and then looks for the commit, as every run does. A job that the service lost is
run once more; one whose stage failed is not, and its sentence becomes the driver's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from hubkit import cloud, plugins
from hubkit.cloud import own_wheel
from hubkit.errors import HubError, RecipeError, StageError
from hubkit.hub import Hub, Ref
from hubkit.pipeline.executors.job_entrypoint import ANEW, MARK
from hubkit.pipeline.keys import keys_of
from hubkit.pipeline.stage import RunContext, Stage, StageResult
from hubkit.progress import Progress
from hubkit.recipe import Recipe
from hubkit.settings import HUB, LOCAL_JOB, NAMESPACE, PLUGINS, RECIPE

ATTEMPTS = 2
FLAVORS = {"corpus": "cpu-upgrade", "curate": "cpu-upgrade", "rollout": "cpu-upgrade"}
"""Where a stage runs unless told otherwise; the others take a GPU."""
GPU = "a100-large"


@dataclass(frozen=True, slots=True)
class OnJobs:
    """How stages run as jobs: a flavor per stage, what is installed there, how long one may take.

    Call it in place of `Stage.run`. `requirement` is what pip-like tools install for hubkit; with
    an `image`, hubkit is in there already. `on_line` gets each line of a job's log with the stage's
    name."""

    flavors: Mapping[str, str] = field(default_factory=dict)
    requirement: str | None = None
    image: str | None = None
    timeout_s: float = 24 * 3600.0
    cancel_on_interrupt: bool = False
    on_line: Callable[[str, str], None] = lambda stage, line: None

    def flavor(self, stage: str) -> str:
        """The flavor of a stage's job."""
        return self.flavors.get(stage) or self.flavors.get("") or FLAVORS.get(stage, GPU)

    def __call__(
        self, stage: Stage, context: RunContext, inputs: dict[str, Ref], progress: Progress
    ) -> StageResult:
        """Run `stage` as a job, once more if the place failed it. Raises `StageError` and
        `HubError`.
        """
        _require_elsewhere(context, stage)
        hub = context.hub
        # StageResult here, as a run on this machine would: a job cannot know whether a Hub's repos
        # are private by default.
        hub.make(stage.repo_id(context), repo_type=stage.repo_type)
        command = self.command(stage, context, inputs)
        for attempt in range(ATTEMPTS):
            outcome = cloud.run_job(
                hub,
                command,
                on_line=lambda line: self._tell(stage.name, line, progress),
                cancel_on_interrupt=self.cancel_on_interrupt,
            )
            if not outcome.ok:
                with suppress(HubError):  # the reason why the job ended is what is reported
                    cloud.reap_jobs(hub)
            result = stage.find(replace(context, supersedes=None), inputs)
            if result and result.ref.revision != context.supersedes:
                return replace(result, skipped=False)
            if reason := _failure(outcome):
                raise StageError(f"stage {stage.name!r} failed in job {outcome.url}: {reason}")
            if outcome.stage == "CANCELED":
                raise StageError(
                    f"job {outcome.url} of stage {stage.name!r} was cancelled; "
                    "the same command starts it"
                )
            if attempt + 1 < ATTEMPTS:
                self._tell(
                    stage.name,
                    f"the job was lost ({outcome.message or outcome.stage}); once more",
                    progress,
                )
        last = outcome.tail[-1] if outcome.tail else "it said nothing"
        raise StageError(
            f"stage {stage.name!r}: {ATTEMPTS} jobs ended as {outcome.stage} ({outcome.message}) "
            f"without saying why; the last line of {outcome.url} is: {last}"
        )

    def command(self, stage: Stage, context: RunContext, inputs: dict[str, Ref]) -> cloud.Command:
        """What is submitted for `stage`. The recipe travels in the environment; the token, and the
        keys that the recipe names, as secrets.

        Raises:
            RecipeError: A key is not set, or under a name that means something else in the job.
        """
        hub = context.hub
        labels = {
            "hubkit": context.recipe.name,
            "stage": stage.name,
            "key": stage.key(context, inputs)[:12],
        }
        env = {
            HUB: hub.url,
            NAMESPACE: hub.namespace,
            RECIPE: _portable(context.recipe).model_dump_json(),
        }
        if loaded := plugins.snapshot():
            env[PLUGINS] = json.dumps(loaded)
        if hub.embedded:
            env["HF_HUB_DISABLE_XET"] = env[LOCAL_JOB] = "1"
        named = self.requirement or ("" if self.image else own_wheel.publish(hub).requirement)
        return cloud.Command(
            args=(
                "python",
                "-m",
                "hubkit.pipeline.executors.job_entrypoint",
                stage.name,
                *((ANEW,) if context.supersedes is not None else ()),
            ),
            labels=labels,
            flavor=self.flavor(stage.name),
            timeout_s=self.timeout_s,
            requirements=() if self.image else (named,),
            image=self.image,
            env=env,
            secrets=secrets_of(hub, context.recipe, stage.name),
        )

    def _tell(self, stage: str, line: str, progress: Progress) -> None:
        self.on_line(stage, line)
        if not line.startswith("{"):
            progress(0, None, line)


def secrets_of(hub: Hub, recipe: Recipe, stage: str) -> dict[str, str]:
    """What reaches a job of `stage` and nothing else: the Hub's token, and the keys that the recipe
    names. Raises `RecipeError` for one that is not set, or is called as the token is.
    """
    hub_secret = {"HF_TOKEN": hub.token} if hub.token else {}
    return keys_of(recipe, stage, hub_secret) | hub_secret


def check(hub: Hub, on_jobs: OnJobs) -> None:
    """Raise before anything starts: `RecipeError` for an unknown flavor, `StageError` where no jobs
    can run.
    """
    for name in {*on_jobs.flavors.values(), *FLAVORS.values(), GPU}:
        cloud.flavor(name)
    if hub.token is None:
        raise StageError(
            f"jobs on {hub.url} need a token that may write: log in with `hf auth login`"
        )
    if hub.embedded:
        from hubkit.hub.embedded import running

        if not (running() or {}).get("jobs"):
            raise StageError(
                "jobs are off on the embedded Hub; allow them with `hubkit hub start --jobs`"
            )


def _require_elsewhere(context: RunContext, stage: Stage) -> None:
    """Raise `RecipeError` for inputs that another machine cannot see."""
    if stage.name != "corpus":
        return
    block = context.recipe.corpus
    for source in (*block.sources, *block.questions.values()):
        if source.path and not source.repo_id:
            raise RecipeError(
                f"{source.path} is on this machine, and a job cannot read it; "
                "push it to a dataset repo and name that as repo_id, "
                "or run `hubkit corpus` here first: a stage that is done is skipped"
            )


def _portable(recipe: Recipe) -> Recipe:
    """`recipe`, its plug-ins named without this machine's folders: their code travels along."""
    return recipe.model_copy(update={"plugins": [plugins.name_of(p) for p in recipe.plugins]})


def _failure(outcome: cloud.Outcome) -> str | None:
    """The sentence of a stage that failed by itself; None when the place failed it."""
    for line in reversed(outcome.tail):
        if line.startswith("{"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get(MARK) == "failed":
                return str(entry.get("message"))
    return None
