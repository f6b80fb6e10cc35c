"""The block about a downstream study: what asks in each arm, who teaches, who learns, how the
students are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hubkit.recipe.block import Block
from hubkit.recipe.data import Filter
from hubkit.recipe.dialogue import Sampling, SeatConfig
from hubkit.recipe.identity import Content, Display, Execution, ReadBy
from hubkit.recipe.training import Training

OPENINGS, ANSWERS, HELD_OUT = "study-openings", "study-answers", "study-held-out"
ARM, BALANCE, STUDENT = "study-arm", "study-balance", "study-student"
CURVE, SCORE, RESULT = "study-curve", "study-score", "study-result"
FURTHER = "study-further"
STUDY_STAGES = (OPENINGS, ANSWERS, HELD_OUT, ARM, FURTHER, CURVE, BALANCE, STUDENT, SCORE, RESULT)
"""The stages that read a recipe's ``study`` block."""


class Arm(Block):
    """What asks after the first exchange, which all arms share.

    ``single``: nothing; the teacher answers each opening as often as the other arms have turns.
    ``people``: what the person who wrote the opening really said next. ``prompted``: the asker's
    base, told to play the user. ``asker``: a trained asker."""

    kind: Content[Literal["single", "people", "prompted", "asker"]]
    """What asks."""
    title: Display[str] = ""
    """What tables and plots call it; its key where none is given."""
    system: Content[str | None] = None
    """Tells the base of a ``prompted`` arm to play the user."""
    endpoints: Execution[list[str]] = Field(default_factory=lambda: ["embedded"])
    """Addresses of the base of a ``prompted`` arm; a trained asker answers where the rollout's
    does."""
    recipe: Content[str | None] = None
    """The recipe whose asker block a trained asker is made by, under the same profiles and on this
    recipe's corpus; null: this recipe."""
    asker: Content[Training | None] = None
    """That block, as it was when the study was loaded."""
    sampling: Content[Sampling | None] = None
    """How its turns are sampled; null: as the rollout's asker."""

    @model_validator(mode="after")
    def _told(self) -> Arm:
        if (self.kind == "prompted") != bool((self.system or "").strip()):
            raise ValueError("a prompted arm, and no other, needs a system message")
        return self


class Study(Block):
    """Students trained on the same number of a teacher's tokens, by what had asked for them."""

    arms: Content[
        Annotated[dict[str, Arm], ReadBy(ARM), ReadBy(STUDENT), ReadBy(SCORE), Field(min_length=1)]
    ]
    """The arms by name."""
    teacher: Content[Annotated[SeatConfig, ReadBy(ANSWERS), ReadBy(HELD_OUT), ReadBy(ARM)]]
    """Who answers, in every arm and in the evaluation."""
    dialogues: Content[Annotated[int, ReadBy(OPENINGS), Field(ge=2)]]
    """How many openings, the same in all arms."""
    at_least: Content[Annotated[int | None, ReadBy(FURTHER), Field(ge=2)]] = None
    """Of how many openings every arm is to have a dialogue: where `filters` left fewer, further
    ones are taken; null: what is left of `dialogues`."""
    turns: Content[
        Annotated[
            int,
            ReadBy(OPENINGS),
            ReadBy(FURTHER),
            ReadBy(ANSWERS),
            ReadBy(HELD_OUT),
            ReadBy(ARM),
            Field(ge=2),
        ]
    ]
    """Answers to each opening in every arm, and turns of a held-out conversation at most."""
    conversations: Content[Annotated[int, ReadBy(OPENINGS), Field(ge=2)]]
    """Held-out conversations of people, whose follow-ups the teacher answers."""
    max_turn_chars: Content[Annotated[int, ReadBy(OPENINGS), ReadBy(FURTHER), Field(ge=1)]] = 1000
    """Conversations with a longer human turn among those that are used are passed over."""
    near_duplicates: Content[
        Annotated[float, ReadBy(OPENINGS), ReadBy(FURTHER), ReadBy(BALANCE), Field(gt=0)]
    ] = 0.5
    """Share of a held-out human side's runs of five words that a training conversation may not
    reach."""
    filters: Content[Annotated[list[Filter], ReadBy(ANSWERS), ReadBy(HELD_OUT), ReadBy(ARM)]] = (
        Field(default_factory=list)
    )
    """What dialogues pass in every arm, and those of the evaluation."""
    min_openings: Content[Annotated[float, ReadBy(FURTHER), ReadBy(BALANCE), Field(gt=0, le=1)]] = (
        0.5
    )
    """The least share of the openings that all arms must have kept."""
    min_tokens: Content[Annotated[float, ReadBy(BALANCE), Field(gt=0, le=1)]] = 0.5
    """The least loss-bearing tokens of an arm, as a share of the largest arm's; every arm is cut to
    what the smallest has."""
    student: Content[Annotated[Training, ReadBy(BALANCE), ReadBy(STUDENT), ReadBy(SCORE)]]
    """How students are trained; the arms decide on what."""
    seeds: Content[Annotated[list[int], ReadBy(RESULT), Field(min_length=1)]] = Field(
        default_factory=lambda: [1, 2, 3]
    )
    """One student an arm and seed."""
    curve: Content[Annotated[list[int], ReadBy(CURVE)]] = Field(default_factory=list)
    """Numbers of tokens that the recipe's asker is also trained on, for its learning curve."""
    curve_conversations: Content[Annotated[int, ReadBy(CURVE), Field(ge=2)]] = 100
    """Held-out conversations that each of these is scored on."""
    max_tokens: Content[Annotated[int, ReadBy(CURVE), ReadBy(SCORE), Field(ge=16)]] = 1024
    """Longest held-out conversation that is scored, in tokens."""
    resamples: Content[Annotated[int, ReadBy(RESULT), Field(ge=10)]] = 5000
    """Bootstrap resamples for the intervals."""
    confidence: Content[Annotated[float, ReadBy(RESULT), Field(gt=0, lt=1)]] = 0.95
    """Share of them that an interval covers."""
    in_flight: Execution[Annotated[int, Field(ge=1)]] = 12
    """Most dialogues at once."""

    @model_validator(mode="after")
    def _teaches(self) -> Study:
        if self.student.seat != "assistant":
            raise ValueError("student.seat must be assistant: students learn the teacher's answers")
        return self
