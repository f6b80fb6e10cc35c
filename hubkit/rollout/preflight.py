"""What a run will ask, take and cost, judged from a small real sample of it.

The sample is the run's own first dialogues, driven in its own journal: nothing of it is lost when
the run continues. What a dialogue of the sample took, per human turn, is compared with the turns
that the plan draws for all of them; later turns carry longer prompts, so prompts are fitted as a
line over the turn's position, not as an average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hubkit.recipe import Rollout
from hubkit.rollout.plan import expected_human_turns
from hubkit.rollout.shards import Row
from hubkit.serving.budget import Spent
from hubkit.statistics import relative_error
from hubkit.tokenization import likely_tokens
from hubkit.untrusted import JsonObject


@dataclass(frozen=True, slots=True)
class Estimate:
    """A run's size in whole: requests and tokens per seat, seconds, US dollars. It is based on
    `sampled` dialogues.

    `seconds` takes the sample's pace per request in flight, with the run's own number in flight.
    `spread` is the relative half width of a 95 % interval of the tokens per dialogue: how far a
    sample of this size may be off."""

    dialogues: int
    sampled: int
    requests: dict[str, int]
    prompt_tokens: dict[str, int]
    completion_tokens: dict[str, int]
    seconds: float
    usd: float
    spread: float

    def to_dict(self) -> JsonObject:
        """As a mapping."""
        return asdict(self)


def extrapolate(
    block: Rollout, shards: Sequence[Path], *, seconds: float, in_flight: int
) -> Estimate:
    """The estimate for all of `block` from the dialogues in `shards`, which took `seconds` at
    `in_flight`.
    """
    import pyarrow.parquet as pq

    sample: list[Row] = [row for path in shards for row in pq.read_table(path).to_pylist()]
    human = expected_human_turns(block)
    requests, prompts, completions = {}, {}, {}
    for seat, role in (("asker", "user"), ("chat", "assistant")):
        turns = [turn for row in sample for turn in _generated_turns(row, role)]
        tries = sum(turn[3] for turn in turns) / max(1, len(turns))
        per_dialogue = _turns_of(block, role, human)
        slope, start = _line([(position, prompt) for position, prompt, _, _ in turns])
        positions = [_position(block, role, turn) for turn in range(math.ceil(per_dialogue))]
        config = block.asker if seat == "asker" else block.chat
        each = [min(max(0.0, start + slope * position), config.context) for position in positions]
        mean_prompt = sum(each) / max(1, len(each))
        requests[seat] = round(block.dialogues * per_dialogue * tries)
        prompts[seat] = round(requests[seat] * mean_prompt)
        completions[seat] = round(
            requests[seat] * sum(turn[2] for turn in turns) / max(1, len(turns))
        )
    spent = Spent(
        {
            "user": [prompts["asker"], completions["asker"]],
            "assistant": [prompts["chat"], completions["chat"]],
        }
    )
    turn_count = sum(
        len(_generated_turns(row, "user")) + len(_generated_turns(row, "assistant"))
        for row in sample
    )
    pace = (
        seconds * min(in_flight, len(sample)) / max(1, turn_count)
    )  # seconds of one request, at the sample's load
    return Estimate(
        dialogues=block.dialogues,
        sampled=len(sample),
        requests=requests,
        prompt_tokens=prompts,
        completion_tokens=completions,
        seconds=round(
            sum(requests.values()) * pace / max(1, min(block.in_flight, block.dialogues)), 1
        ),
        usd=round(spent.usd(block.seats), 4),
        spread=round(relative_error([sum(row["usage"].values()) for row in sample]), 3),
    )


def _generated_turns(row: Row, role: str) -> list[tuple[int, int, int, int]]:
    """(position, prompt tokens, completion tokens, attempts) of the turns that one seat generated
    in a row.
    """
    turns = []
    for position, message in enumerate(row["messages"]):
        if message["role"] == role and row["seeds"][position] is not None:
            prompt, completion = row["prompt_tokens"][position], row["completion_tokens"][position]
            guess = likely_tokens(len(message["content"]))
            so_far = likely_tokens(sum(len(m["content"]) for m in row["messages"][:position]))
            turns.append((position, so_far if prompt is None else prompt,
                          guess if completion is None else completion,
                          row["attempts"][position] or 0))  # fmt: skip
    return turns


def _turns_of(block: Rollout, role: str, human: float) -> float:
    """How many turns of a dialogue one seat generates: the opening is given, not generated."""
    opening_turns = {
        "seeded": {"user": 1, "assistant": 0},
        "seeded_qa": {"user": 1, "assistant": 1},
    }
    return max(0.0, human - opening_turns.get(block.mode, {}).get(role, 0))


def _position(block: Rollout, role: str, turn: int) -> int:
    first = {"user": 0, "assistant": 1}[role] + (
        2 if role == "user" and block.mode.startswith("seeded") else 0
    )
    return first + (2 if role == "assistant" and block.mode == "seeded_qa" else 0) + 2 * turn


def _line(points: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """Slope and start of the least-squares line; flat when there is too little to see a slope."""
    points = list(points)
    if not points:
        return 0.0, 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return slope, mean_y - slope * mean_x
