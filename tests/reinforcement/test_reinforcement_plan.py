"""What reinforcing is planned to take: conversations, tokens on each side, prices, worked out by
hand, and why it would not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_base

from hubkit.errors import RecipeError
from hubkit.hub import connect
from hubkit.pipeline.reinforcement_plan import ReinforcementPlan, plan_reinforcement
from hubkit.recipe import load


@pytest.fixture(scope="module")
def base(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tiny_base(tmp_path_factory.mktemp("base"))
    return connect().commit("plans/reinforced", folder, "A base").repo_id


def judge(price_in: float, price_out: float, most: int) -> dict[str, Any]:
    seat = {"repo": "a/judge", "endpoints": ["http://1.2.3.4"], "sampling": {"max_tokens": most},
            "usd_per_million_input": price_in, "usd_per_million_output": price_out}  # fmt: skip
    return {"judge": seat}


def planned(base: str, *values: str, **options: Any) -> ReinforcementPlan:
    bases = (f"asker.base={base}", f"chat.base={base}")
    profiles = ["laptop", "reinforce-laptop"]
    loaded = load("parrot", profiles=profiles, overrides=[*bases, *values])
    return plan_reinforcement(loaded, connect(), **options)


def test_tokens_and_prices_by_hand(base: str) -> None:
    rewards = [{"name": "judges", "judges": [judge(3.0, 4.0, 64), judge(1.0, 0.0, 4000)]}]
    asker = {"repo": "asker", "usd_per_million_input": 1.0, "usd_per_million_output": 2.0,
             "sampling": {"max_tokens": 40}}  # fmt: skip
    plan = planned(
        base,
        f"reinforce.rewards={json.dumps(rewards)}",
        f"reinforce.askers={json.dumps({'own': asker})}",
        "reinforce.answers=3",
        "reinforce.context=1024",
        "chat.lora=null",
        device="A100",
    )
    assert (plan.steps, plan.conversations_per_step) == (4, 8)
    held = 4 * 8 + 2 * 10  # ten held-out openings, before and after
    answer, turn = 48, 40
    assert plan.conversations == held == 52
    read = (answer + turn) + 2 * (answer + turn)  # two turns of the asker, each after all before
    whole = 3 * (answer + turn)
    assert plan.tokens == {
        "policy": held * 3 * answer,
        "trained": 4 * 8 * whole,
        "asker": (held * read, held * 2 * turn),
        "judges": (held * whole * 2, held * (64 + 150)),
    }
    usd = held * (read * 1.0 + 2 * turn * 2.0 + whole * (3.0 + 1.0) + 64 * 4.0) / 1e6
    assert plan.usd == pytest.approx(usd) and plan.usd_per_step == pytest.approx(usd / 52 * 8)
    assert plan.hours is not None and not plan.refusals
    parameters = _parameters(base)
    generation = 2 * parameters * held * 3 * answer / (312e12 * 0.08) / 3600
    assert plan.hours["generation"] == pytest.approx(generation)
    assert plan.hours["total"] == sum(plan.hours[part] for part in ("generation", "training"))


def test_a_conversation_is_no_longer_than_its_context_and_a_free_seat_costs_nothing(
    base: str,
) -> None:
    plan = planned(base, "reinforce.context=64")
    assert plan.tokens["trained"] == 4 * 8 * 64
    assert plan.tokens["judges"] == (0, 0) and plan.usd == plan.usd_per_step == 0


def test_hardware_of_askers_and_judges_is_paid_by_the_hour(base: str) -> None:
    seat = {"repo": "a/judge", "endpoints": ["deploy"], "sampling": {"max_tokens": 64},
            "deploy": {"hardware": "aws-nvidia-a100-x1", "replicas": 2}}  # fmt: skip
    rewards = json.dumps([{"name": "judges", "judges": [{"judge": seat}]}])
    plan = planned(base, f"reinforce.rewards={rewards}", device="A100")
    assert plan.hours is not None
    assert plan.usd == pytest.approx(plan.hours["total"] * 2 * 2.5)
    assert plan.usd_per_step == pytest.approx(plan.usd / 52 * 8)
    assert any("5.00 USD an hour, is in the price" in note for note in plan.notes)
    unknown = planned(base, f"reinforce.rewards={rewards}", device="a device of nobody")
    assert unknown.hours is None and unknown.usd == 0
    assert any("5.00 USD an hour, is not in the price" in note for note in unknown.notes)


def test_the_asker_is_counted_by_its_own_size_where_a_reward_may_ask_it(base: str) -> None:
    larger = "asker.base=Qwen/Qwen2.5-7B-Instruct"  # its shape ships
    memory = planned(base, larger, "asker.lora=null", device="A100").memory_gib
    assert memory["asker"] == pytest.approx(2 * 7_615_616_512 / 2**30, abs=0.001)
    rewards = json.dumps([{"name": "length", "args": {"words": 50}}, {"name": "format"}])
    without = planned(base, f"reinforce.rewards={rewards}", device="A100")
    assert "asker" not in without.memory_gib and not without.refusals
    unknown = planned(base, "asker.base=no/shape-of-it", device="A100")
    assert "asker" not in unknown.memory_gib
    assert any("the asker's own memory is not in the plan" in note for note in unknown.notes)


def test_a_plan_for_another_machine_says_nothing_of_this_one_and_counts_vllm(
    hubkit_home: Path,
) -> None:
    plan = plan_reinforcement(load("userlm", profiles=["reinforce-cloud"]), connect())
    assert (plan.device, plan.refusals) == ("H100", [])
    assert not any("this processor" in note or "this machine" in note for note in plan.notes)
    parts = {name: gib for name, gib in plan.memory_gib.items() if name != "total"}
    assert parts["vllm"] == pytest.approx(0.3 * 80)  # TRL's share of the device
    assert plan.memory_gib["total"] == pytest.approx(sum(parts.values()))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("reinforce.budget_usd=5", "budget"),
        ("reinforce.openings=1", "a batch takes 2 openings, and there are 1"),
        ('reinforce.rewards=[{"name": "nothing_like_it"}]', "nothing_like_it"),
    ],
)
def test_what_the_run_would_refuse_the_plan_refuses(base: str, value: str, sentence: str) -> None:
    refusals = planned(base, value).refusals
    assert any(sentence in refusal for refusal in refusals), refusals


def test_the_chat_models_template_is_proven_or_refused(base: str, tmp_path: Path) -> None:
    template = planned(base).template
    assert template is not None and "«Mix flour and water.<|im_end|>»" in str(template.row)
    folder = tiny_base(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages | reverse | list }}", "utf-8")
    repo = connect().commit("plans/unproven", folder, "A base").repo_id
    plan = planned(base, f"chat.base={repo}")
    assert plan.template is None and any("chat template" in reason for reason in plan.refusals)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [("no_such_key=1", "no_such_key"), ("per_device_train_batch_size=3", "divisible by num_gen")],
)
def test_a_key_or_batch_that_trl_refuses_is_refused(base: str, value: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        planned(base, f"reinforce.grpo.{value}")


def _parameters(base: str) -> int:
    from transformers import AutoModelForCausalLM

    hub = connect()
    model = AutoModelForCausalLM.from_pretrained(hub.snapshot(hub.resolve(base)))
    return sum(p.numel() for p in model.parameters())
