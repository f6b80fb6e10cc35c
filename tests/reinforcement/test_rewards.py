"""Rewards as a recipe composes them: what counts, what is masked, and what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hubkit.conversation import Message
from hubkit.errors import EndpointUnreachableError, RecipeError
from hubkit.recipe import RewardTerm
from hubkit.reinforcement import (
    REWARDS,
    Episode,
    Masked,
    Outcome,
    Reward,
    RewardContext,
    Rewards,
    register,
)
from hubkit.serving import ServedModel
from hubkit.serving.callable_server import served_callable

EPISODE = Episode(
    "e1",
    [
        {"role": "user", "content": "How do I bake {bread}?"},
        {"role": "assistant", "content": "Mix flour, water and yeast."},
        {"role": "user", "content": "And rye?"},
        {"role": "assistant", "content": "Less water, more time."},
    ],
    end_reason="answers",
    intent="wants rye bread",
    next_turn="What about rye?",
)


def judging(**more: Any) -> dict[str, Any]:
    seat = {"endpoints": ["http://127.0.0.1:9"], "repo": None, "name": "j", "license": "none",
            "profile": "openai", "model": "agent"}  # fmt: skip
    return {"judge": seat, "attempts": 1, "json_schema": True, "timeout_s": 30.0, **more}


def outcomes(
    terms: list[dict[str, Any]],
    folder: Path,
    *,
    episodes: list[Episode] | None = None,
    judges: dict[int, list[tuple[ServedModel, str]]] | None = None,
    likelihood: Any = None,
) -> list[Outcome]:
    async def score() -> list[Outcome]:
        context = RewardContext(folder, "run", judges or {}, likelihood)
        async with Rewards([RewardTerm(**term) for term in terms], context) as rewards:
            return await rewards.score(episodes or [EPISODE])

    return asyncio.run(score())


@pytest.fixture
def own_rewards() -> Iterator[None]:
    before = set(REWARDS)
    yield
    for name in set(REWARDS) - before:
        del REWARDS[name]


def test_rewards_add_up_by_weight_and_one_mask_masks_the_conversation(
    tmp_path: Path, own_rewards: None
) -> None:
    @register
    def turns(scale: float = 1.0) -> Callable[[Episode], float]:
        return lambda episode: scale * len(episode.answers)

    @register
    def moody() -> Callable[[Episode], Any]:
        said: dict[str, Any] = {"nan": float("nan"), "text": "many", "mask": Masked("unsure")}

        def score(episode: Episode) -> Any:
            if episode.id == "raises":
                raise ZeroDivisionError("in a plug-in")
            return said.get(episode.id, 1.0)

        return score

    episodes = [Episode(i, EPISODE.messages) for i in ("ok", "nan", "text", "mask", "raises")]
    terms = [{"name": "turns", "weight": 0.5, "args": {"scale": 3.0}}, {"name": "moody"}]
    found = outcomes(terms, tmp_path, episodes=episodes)
    assert [o.total for o in found] == [4.0, None, None, None, None]
    assert [o.parts["turns"] for o in found] == [6.0] * 5
    assert [o.masks.get("moody", "") for o in found] == [
        "", "not_finite", "no_number", "unsure", "ZeroDivisionError: in a plug-in",
    ]  # fmt: skip


class Unfit:
    """A reward that does not give one value for each conversation in time, or at all."""

    def __init__(self, how: str) -> None:
        self._how = how

    async def score(self, episodes: Sequence[Episode]) -> Sequence[Any]:
        if self._how == "never":
            await asyncio.Event().wait()
        if self._how == "unreachable":
            raise EndpointUnreachableError("nobody answers at http://127.0.0.1:9")
        return [1.0] * (len(episodes) - 1) if self._how == "too few" else [1.0] * len(episodes)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("never", "timeout"),
        ("too few", "wrong_count"),
        ("unreachable", "EndpointUnreachableError: nobody answers at http://127.0.0.1:9"),
        ("in time", ""),
    ],
)
def test_a_reward_that_does_not_answer_masks_the_batch_and_is_counted(
    tmp_path: Path, own_rewards: None, how: str, reason: str
) -> None:
    @register
    def unfit() -> Reward:
        return Unfit(how)

    terms = [RewardTerm(name="unfit", timeout_s=0.05), RewardTerm(name="format")]
    rewards = Rewards(terms, RewardContext(tmp_path))
    found = asyncio.run(rewards.score([EPISODE, Episode("x", EPISODE.messages)]))
    assert [outcome.total for outcome in found] == [None if reason else 1.0] * 2
    assert [outcome.masks for outcome in found] == [{"unfit": reason} if reason else {}] * 2
    assert [outcome.parts["format"] for outcome in found] == [0.0, 0.0]
    assert dict(rewards.masked) == ({f"unfit: {reason}": 2} if reason else {})


@pytest.mark.parametrize(
    ("term", "reason"),
    [
        ({"name": "lenght"}, "did you mean 'length'"),
        ({"name": "length", "args": {"letters": 3}}, "unexpected keyword argument 'letters'"),
        ({"name": "judges"}, "names no judge"),
        ({"name": "next_turn"}, "needs the recipe's own asker"),
        ({"name": "length", "args": {"words": 0}}, "words of 1 or more"),
    ],
)
def test_a_reward_that_cannot_be_made_is_refused(
    tmp_path: Path, term: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecipeError, match=reason):
        outcomes([term], tmp_path)


def test_guards_look_at_length_and_form(tmp_path: Path) -> None:
    broken = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "one two three four"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "one  two three four"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Fine.\nUser: thanks"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "a"},
    ]
    terms = [{"name": "length", "args": {"words": 2}}, {"name": "format"}]
    good, bad = outcomes(terms, tmp_path, episodes=[EPISODE, Episode("b", broken, cut_off=1)])  # type: ignore[arg-type]
    assert good.parts == {"length": -1.0, "format": 0.0}  # 5 and 4 words where 2 are free
    assert bad.parts == {"length": -0.5, "format": -0.75}  # 4, 4, 3 and 1 words


@pytest.mark.parametrize("mark", ["<｜User｜>", "<@user>", "[user_7]"])
def test_an_answer_with_the_chat_models_own_marks_is_broken(tmp_path: Path, mark: str) -> None:
    messages: list[Message] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": f"Fine. {mark} thanks"},
    ]
    episodes = [Episode("a", messages), Episode("b", messages, turn_marks=(mark,))]
    unknown, known = outcomes([{"name": "format"}], tmp_path, episodes=episodes)
    assert (unknown.total, known.total) == (0.0, -1.0)
    assert episodes[0].to_dict() == {**episodes[1].to_dict(), "id": "a"}


def test_judges_are_averaged_and_one_that_fails_masks(tmp_path: Path) -> None:
    asked: list[str] = []
    never = threading.Event()

    def rates(rating: Any) -> Callable[[list[Message]], str]:
        def agent(messages: list[Message]) -> str:
            asked.append(messages[-1]["content"])
            return json.dumps({"explanation": "so so", "verdict": rating})

        return agent

    def silent(messages: list[Message]) -> str:
        never.wait()
        return ""

    def outside(messages: list[Message]) -> str:
        return "It is wonderful."

    cases: list[tuple[list[Any], list[dict[str, Any]], float | None, str]] = [
        ([rates(8), rates(5)], [judging(), judging()], 0.65, ""),
        ([rates(8), outside], [judging(), judging()], None, "judge_no_verdict"),
        ([rates(40)], [judging()], None, "judge_out_of_range"),
        ([silent], [judging(timeout_s=0.2)], None, "judge_timeout"),
    ]
    for number, (agents, blocks, total, reason) in enumerate(cases):
        with ExitStack() as served:
            models = [served.enter_context(served_callable(agent)) for agent in agents]
            [outcome] = outcomes(
                [{"name": "judges", "judges": blocks}],
                tmp_path / str(number),
                judges={0: [(model, f"judge {i}") for i, model in enumerate(models)]},
            )
            never.set()
        never.clear()
        assert (outcome.total, outcome.masks.get("judges", "")) == (total, reason)
    assert "wants rye bread" in asked[0] and "How do I bake {bread}?" in asked[0]


def test_a_judge_is_asked_nothing_twice(tmp_path: Path) -> None:
    asked: list[int] = []

    def agent(messages: list[Message]) -> str:
        asked.append(1)
        return "[[9]]"

    with served_callable(agent) as model:
        for _ in range(2):
            [outcome] = outcomes(
                [{"name": "judges", "judges": [judging(json_schema=False)]}],
                tmp_path,
                judges={0: [(model, "j")]},
            )
            assert outcome.total == 0.9
    assert len(asked) == 1


def test_next_turn_scores_the_persons_real_turn_after_the_first_answer(tmp_path: Path) -> None:
    seen: list[tuple[list[str], str, str]] = []

    class Fixed:
        async def of_turn(self, history: Any, turn: str, intent: str) -> float:
            seen.append(([m["content"] for m in history], turn, intent))
            return -1.5

        async def of_end(self, history: Any, intent: str) -> float:
            return -0.25

    terms = [{"name": "next_turn"}, {"name": "next_turn", "args": {"of": "end"}, "weight": 2.0}]
    found = outcomes(
        terms, tmp_path, likelihood=Fixed(), episodes=[EPISODE, Episode("x", EPISODE.messages)]
    )
    assert found[0].parts == {"next_turn": -1.5, "next_turn_2": -0.25} and found[0].total == -2.0
    assert found[1].total is None and found[1].masks == {"next_turn": "no_next_turn"}
    assert seen == [
        (["How do I bake {bread}?", "Mix flour, water and yeast."], "What about rye?",
         "wants rye bread")
    ]  # fmt: skip


def test_a_rubric_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "strict.md"
    path.write_text("Grade {conversation}\n")
    assert RewardTerm(name="judges", rubric=str(path)).rubric == "Grade {conversation}\n"
    with pytest.raises(ValueError, match="cannot be read"):
        RewardTerm(name="judges", rubric=str(tmp_path / "gone.md"))
