"""The stages in order: each reads repos at a commit and ends in one commit; what is done for its
inputs is skipped.

Takes a `Recipe` and a `Hub`; gives a `StageResult` per stage. The key of a stage is a digest over
what it reads of the recipe and the commits of its inputs. The key is in the title of the stage's
commit, so that lineage, resume and "is this done?" are one look at a repo's history, on any Hub,
from any machine."""

from hubkit.pipeline.executors.jobs import OnJobs
from hubkit.pipeline.inputs import require
from hubkit.pipeline.runner import plan, publish, run
from hubkit.pipeline.seat_plan import plan_seats
from hubkit.pipeline.stage import RunContext, Stage, StageResult
from hubkit.pipeline.stage_table import STAGES, stages_of
from hubkit.pipeline.training_plan import plan_training, plan_trainings

__all__ = [
    "STAGES",
    "OnJobs",
    "RunContext",
    "Stage",
    "StageResult",
    "plan",
    "plan_seats",
    "plan_training",
    "plan_trainings",
    "publish",
    "require",
    "run",
    "stages_of",
]
