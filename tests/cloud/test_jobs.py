"""Stages as Hub Jobs, on the embedded Hub: the same commits, once more when a job is lost, not when
its stage fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_hub.test_local_hub_inference import tiny_model
from support.mock_endpoint import mock
from support.small_run import small_recipe
from support.waiting import until

from hubkit import cloud, pipeline
from hubkit.errors import RecipeError, StageError
from hubkit.hub import Hub, Ref, connect
from hubkit.hub.embedded import ensure_running
from hubkit.pipeline.costs import costs, flavors, parameters, total
from hubkit.pipeline.executors.jobs import check
from hubkit.pipeline.runner import Planned
from hubkit.recipe import Recipe, load


@pytest.fixture(scope="module")
def hub(hubkit_home: Path) -> Hub:
    ensure_running(jobs=True)
    return connect()


def recipe(hub: Hub, folder: Path, name: str, **changes: Any) -> Recipe:
    """A small recipe whose conversations are on the Hub, where jobs can read them."""
    arguments = small_recipe(folder, name, count=30, openings=10, **changes)
    chats = hub.qualify("jobs-chats")  # the same for all: their id stands in each row
    if hub.find_commit(chats, "Conversations", repo_type="dataset") is None:
        hub.commit(chats, _alone(folder), "Conversations", repo_type="dataset")
    source = {"repo_id": chats, "files": ["chats.json"], "license": "other"}
    overrides = [text for text in arguments[2::2] if not text.startswith("corpus.sources")]
    return load("parrot", overrides=[*overrides, f"corpus.sources={json.dumps([source])}"])


def _alone(folder: Path) -> Path:
    (folder / "repo").mkdir(exist_ok=True)
    (folder / "repo" / "chats.json").write_bytes((folder / "chats.json").read_bytes())
    return folder / "repo"


def on_jobs(lines: list[str] | None = None, **options: Any) -> pipeline.OnJobs:
    told = lines if lines is not None else []
    return pipeline.OnJobs(
        flavors={"": "cpu-basic"}, on_line=lambda stage, line: told.append(line), **options
    )


def made(
    recipe: Recipe, hub: Hub, stage: str | None = "corpus", **options: Any
) -> list[pipeline.StageResult]:
    return list(pipeline.run(recipe, hub, only=stage, **options))


def content(hub: Hub, ref: Ref) -> dict[str, str]:
    """Path → sha256 of what a commit holds, without what names its time, its repo or its inputs'
    commits.
    """
    folder = hub.snapshot(ref)
    files = (
        p
        for p in folder.rglob("*")
        if p.is_file() and "provenance" not in p.parts and p.suffix != ".md"
    )
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def jobs(hub: Hub, stage: str, name: str = "parrot") -> list[Any]:
    return list(
        hub.api.list_jobs(
            namespace="local", labels={"hubkit": name, "stage": stage}, token=hub.token
        )
    )


def test_a_stage_as_a_job_makes_what_it_makes_here_and_is_then_skipped(
    hub: Hub, tmp_path: Path
) -> None:
    there = recipe(hub, tmp_path, "jobs-there")
    lines: list[str] = []
    [first] = made(there, hub, execute=on_jobs(lines))
    assert not first.skipped and any('"done"' in line for line in lines)
    key = hub.find_commit(first.ref.repo_id, "[corpus:", repo_type="dataset")
    assert key == first.ref
    here = recipe(hub, tmp_path, "jobs-here")
    [second] = made(here, hub)
    both = content(hub, first.ref), content(hub, second.ref)
    assert both[0] == both[1] and any(path.startswith("data/train") for path in both[0])
    [again] = made(there, hub, execute=on_jobs())
    assert again.skipped and again.ref == first.ref
    [anew] = made(there, hub, execute=on_jobs(), again=["corpus"])
    assert not anew.skipped and anew.ref != first.ref and content(hub, anew.ref) == both[0]
    assert jobs(hub, "corpus")[0].command[-1] == "--anew"
    [again] = made(there, hub, execute=on_jobs())
    assert again.skipped and again.ref == anew.ref
    assert not hub.api.repo_info(first.ref.repo_id, repo_type="dataset").private
    done = jobs(hub, "corpus")[-1]
    assert done.secrets == {"HF_TOKEN": ""} and hub.token not in json.dumps(done.environment)
    assert (
        done.command[:2] == ["uv", "run"]
        and "hubkit.pipeline.executors.job_entrypoint" in done.command
    )


def judged_by(url: str, **seat: Any) -> dict[str, Any]:
    """``corpus.intents`` of a judge at `url`."""
    judge = {"repo": "acme/judge", "endpoints": [url], "profile": "openai", "model": "grader"}
    return {"judging": {"judge": {**judge, **seat}}}


def test_keys_that_a_recipe_names_reach_its_job_and_nothing_else(
    hub: Hub, hubkit_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"JOB_JUDGE_KEY": "sk-theKeyOfTheJudge", "JOB_TENANT": "tenant-OfTheHeader"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    with mock(key=keys["JOB_JUDGE_KEY"]) as judge:
        judge.script(texts=["learn it"])
        named = {"token_env": "JOB_JUDGE_KEY", "headers": {"X-Tenant": "$JOB_TENANT"}}
        keyed = recipe(hub, tmp_path, "jobs-keyed", corpus__intents=judged_by(judge.url, **named))
        [stage] = made(keyed, hub, execute=on_jobs(lines))
    assert stage.report["intents"]["missing"] == {}
    job = jobs(hub, "corpus")[0]
    assert job.secrets == dict.fromkeys(["HF_TOKEN", *keys], "")
    shown = json.dumps([job.environment, job.command, lines])
    kept = [p.read_bytes() for p in hubkit_home.rglob("*") if p.is_file()]
    for value in keys.values():
        assert value not in shown and not any(value.encode() in data for data in kept)


def test_a_key_that_cannot_reach_its_job_is_refused_before_anything_starts(
    hub: Hub, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(variable: str) -> str:
        """What both a dry run and a run say."""
        intents = judged_by("http://127.0.0.1:9", token_env=variable)
        keyless = recipe(hub, tmp_path, "jobs-keyless", corpus__intents=intents)
        corpus = keyless.corpus.model_dump(mode="json")
        given = {k: corpus[k] for k in ("sources", "filters", "openings", "test", "intents")}
        values = [w for k, v in given.items() for w in ("--set", f"corpus.{k}={json.dumps(v)}")]
        command = ("run", "parrot", *values, "--on", "jobs")
        said = [cli(*command, *more) for more in (["--dry-run"], ["--json"])]
        assert [done.returncode != 0 for done in said] == [True, True]
        assert not any("Traceback" in done.stderr for done in said)
        return said[0].stderr + said[1].stderr

    before = len(jobs(hub, "corpus"))
    sentence = "corpus.intents.judging.judge.token_env names JOB_NO_KEY, which is not set"
    assert refused("JOB_NO_KEY").count(sentence) == 2
    monkeypatch.setenv("HF_TOKEN", "hf_ofAnotherHub")
    assert refused("HF_TOKEN").count("names HF_TOKEN, which has a value of its own in a job") == 2
    assert len(jobs(hub, "corpus")) == before


def test_a_plugin_travels_with_its_job(hub: Hub, tmp_path: Path) -> None:
    own = tmp_path / "own_filters_of_a_job.py"
    own.write_text(
        "from hubkit.data.filters import Drop, register\n\n@register\ndef no_chess():\n"
        "    return lambda c: Drop('chess') if 'chess' in c.messages[0]['content'] else None\n"
    )
    filters = [{"name": "no_chess"}]
    there = recipe(hub, tmp_path, "jobs-plugin", plugins=[str(own)], corpus__filters=filters)
    [stage] = made(there, hub, execute=on_jobs())
    assert stage.report["steps"][0]["dropped"]["chess"]["count"] == 3
    [again] = made(there, hub, execute=on_jobs())
    assert again.skipped and str(tmp_path) not in json.dumps(jobs(hub, "corpus")[0].environment)


def test_a_stage_that_fails_says_why_and_is_not_tried_again(hub: Hub, tmp_path: Path) -> None:
    broken = recipe(hub, tmp_path, "jobs-broken", corpus__openings=500)
    before = len(jobs(hub, "corpus"))
    with pytest.raises(
        StageError, match=r"stage 'corpus' failed in job http.*: .*openings"
    ) as failed:
        made(broken, hub, execute=on_jobs())
    assert len(jobs(hub, "corpus")) == before + 1, str(failed.value)


def test_a_job_that_was_lost_is_run_once_more(hub: Hub, tmp_path: Path) -> None:
    lost = recipe(hub, tmp_path, "jobs-lost")
    lines: list[str] = []

    def kill_first(stage: str, line: str) -> None:
        lines.append(line)
        if line.startswith("job ") and sum(one.startswith("job ") for one in lines) == 1:
            while not (found := _workers(hub)):
                pass
            for process in found:
                process.kill()

    before = len(jobs(hub, "corpus"))
    [done] = made(lost, hub, execute=pipeline.OnJobs(flavors={"": "cpu-basic"}, on_line=kill_first))
    assert not done.skipped and any("once more" in line for line in lines)
    stages = [
        str(job.status.stage) for job in jobs(hub, "corpus")[: len(jobs(hub, "corpus")) - before]
    ]
    assert sorted(stages) == ["COMPLETED", "ERROR"]


def _workers(hub: Hub) -> list[psutil.Process]:
    """Processes of stages that run as jobs of `hub`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        with contextlib.suppress(psutil.Error):
            if (
                command[1:3] == ["-m", "hubkit.pipeline.executors.job_entrypoint"]
                and process.is_running()
                and process.environ().get("HUBKIT_HUB") == hub.url
            ):
                found.append(process)
    return found


def test_two_lost_jobs_are_enough(hub: Hub, tmp_path: Path) -> None:
    slow = recipe(hub, tmp_path, "jobs-slow")
    before = len(jobs(hub, "corpus"))
    with pytest.raises(StageError, match=r"2 jobs ended as ERROR .*timeout"):
        made(slow, hub, execute=on_jobs(timeout_s=0.5 + 0.5))
    assert len(jobs(hub, "corpus")) == before + 2


DRIVER = """
    import signal, sys
    from hubkit import cloud
    from hubkit.errors import RunInterruptedError
    from hubkit.hub import connect
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = "import time; print('up', flush=True); time.sleep(60)"
    command = cloud.Command(("python", "-c", code), {"hubkit": "test", "stage": sys.argv[1]},
                            "cpu-basic", 100)
    try:
        cloud.run_job(connect(), command, on_line=lambda line: print(line, flush=True),
                       cancel_on_interrupt=sys.argv[2] == "cancel")
    except RunInterruptedError as stopped:
        print(stopped, flush=True)
"""


def _driver(stage: str, then: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), stage, then]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _until_up(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout is not None
    url = driver.stdout.readline().strip()
    assert driver.stdout.readline().strip() == "up"
    return url


def test_ctrl_c_leaves_the_job_for_the_next_command_or_cancels_it(hub: Hub) -> None:
    first = _driver("leave", "leave")
    url = _until_up(first)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=240)
    assert "still runs and costs" in said
    second = _driver("leave", "cancel")
    assert _until_up(second) == url  # followed, not started again
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=240)
    assert "cancelled job" in said
    [job] = jobs(hub, "leave", "test")
    assert job.status.stage == "CANCELED"


HOLDER = """
import time
from hubkit import cloud
from hubkit.hub import connect
hub = connect()
wanted = cloud.endpoint_spec(hub, "local/held-by-a-job", hardware="intel-spr-x1", context=64)
with cloud.held(hub, cloud.LeaseRequest(wanted)):
    time.sleep(600)
"""


@pytest.mark.slow
def test_what_a_cancelled_job_held_is_found_and_ended(hub: Hub, cli: Any, tmp_path: Path) -> None:
    hub.commit("local/held-by-a-job", tiny_model(tmp_path), "A model")
    there = {"HUBKIT_HUB": hub.url, "HUBKIT_NAMESPACE": hub.namespace}
    command = cloud.Command(
        ("python", "-c", HOLDER), {"hubkit": "test", "stage": "hold"}, "cpu-basic", 300, env=there,
        secrets={"HF_TOKEN": hub.token or ""},
    )  # fmt: skip
    lines: list[str] = []
    driver = threading.Thread(
        target=cloud.run_job, args=(hub, command), kwargs={"on_line": lines.append}
    )
    driver.start()
    until(lambda: any(one.state == "running" for one in cloud.listed(hub)))
    [job], [endpoint] = jobs(hub, "hold", "test"), cloud.listed(hub)
    assert f"hubkit-job-{job.id}" in endpoint.tags
    assert cloud.reap_jobs(hub) == [] and cloud.listed(hub)  # its job runs
    cloud.jobs.cancel(hub, job.id)
    driver.join(240)
    assert [one.name for one in cloud.listed(hub)] == [endpoint.name]
    done = cli("deploy", "reap", "--json")
    assert json.loads(done.stdout) == [{"endpoint": endpoint.name, "outcome": "deleted"}], (
        done.stderr
    )
    assert not cloud.listed(hub)


def test_what_jobs_cannot_do_is_said_before_anything_starts(hub: Hub, tmp_path: Path) -> None:
    arguments = small_recipe(tmp_path, "jobs-path", count=30, openings=10)
    local = load("parrot", overrides=arguments[2::2])
    with pytest.raises(RecipeError, match="is on this machine"):
        made(local, hub, execute=on_jobs())
    with pytest.raises(RecipeError, match="did you mean 'a100-large'"):
        check(hub, pipeline.OnJobs(flavors={"asker": "a100-larg"}))


def test_the_recipe_that_a_job_reads_is_the_drivers(hub: Hub) -> None:
    for name in ("parrot", "realm"):
        ours = load(name, profiles=["cloud"])
        theirs = Recipe.model_validate_json(ours.model_dump_json())
        assert theirs == ours and theirs.digest("rollout") == ours.digest("rollout")


# What it would cost

PLANNED = [
    Planned(stage, "x", "to run")
    for stage in ("corpus", "asker", "rollout", "curate", "chat", "eval")
]


@pytest.mark.parametrize("name", ["parrot", "realm"])
def test_a_dry_run_on_cloud_hardware_has_hours_and_a_price_for_every_stage(
    cli: Any, name: str, hub: Hub
) -> None:
    done = cli("run", name, "--profile", "cloud", "--on", "jobs", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    stages = [stage["stage"] for stage in said["stages"]]
    assert set(stages) >= {planned.stage for planned in PLANNED} and len(set(stages)) == len(stages)
    assert (
        all(stage["hours"] > 0 and stage["usd"] > 0 for stage in said["stages"])
        and said["complete"]
    )
    assert said["prices"] == "2026-11-22" and said["usd"] == pytest.approx(
        sum(s["usd"] for s in said["stages"])
    )
    shown = cli("run", name, "--profile", "cloud", "--on", "jobs", "--dry-run")
    assert "prices of 2026-11-22" in shown.stderr and "USD" in shown.stdout
    assert not jobs(hub, "asker", name)


def test_costs_follow_from_the_recipe() -> None:
    big = load("parrot", profiles=["cloud"])
    where = pipeline.OnJobs(flavors=flavors(big))
    by_stage = {cost.stage: cost for cost in costs(big, None, where, planned=PLANNED)}  # type: ignore[arg-type]
    tokens = 70000 * 2425 * 3  # as the recipe expects them
    seconds = (
        8 * 13e9 * tokens / (989e12 * 4 * 0.35)
    )  # two forward passes, one backward: as TRL trains by default
    assert (
        by_stage["asker"].where == "job h200x4"
    )  # two of them would cost the same, and take longer than half a day
    assert by_stage["asker"].hours == pytest.approx(seconds / 3600 + 5 / 60)
    assert by_stage["asker"].usd == pytest.approx(20.0 * (seconds / 3600 + 5 / 60))
    decoded = (
        40000 * 8.5 * 300 / (0.08 * 2 * 312e12 / (2 * 13e9))
    )  # by the slower seat, on two replicas
    assert by_stage["rollout"].hours == pytest.approx(decoded / 3600, rel=0.4)
    assert "2 x aws-nvidia-a100-x1" in by_stage["rollout"].where
    half = load("parrot", profiles=["cloud"], overrides=["rollout.dialogues=20000"])
    less = {cost.stage: cost for cost in costs(half, None, where, planned=PLANNED)}  # type: ignore[arg-type]
    assert (
        less["rollout"].usd < 0.6 * by_stage["rollout"].usd and less["asker"] == by_stage["asker"]
    )
    done = [Planned("corpus", "x", "done", "x@12345678"), *PLANNED[1:]]
    [first, *_] = found = costs(half, _Nothing(), where, planned=done)  # type: ignore[arg-type]
    assert first.usd == 0 and total(found)[1] == pytest.approx(sum(cost.usd or 0 for cost in found))


A100 = 312e12  # operations a second at 16 bit; decoding has 8 % of it, reading and training 35 %


def priced(stage: str, *values: str, name: str = "parrot") -> Any:
    """What `stage` would take on one A100, of models of a billion parameters."""
    sizes = ("asker.base=a/one-1B", "chat.base=a/one-1B", "preference=null")
    loaded = load(name, overrides=[*sizes, *values])
    where = pipeline.OnJobs(flavors={"": "a100-large"})
    (cost,) = costs(loaded, None, where, planned=[Planned(stage, "x", "to run")])  # type: ignore[arg-type]
    return cost


def test_an_askers_preference_training_is_sampling_two_scorecards_and_dpo_by_hand() -> None:
    block = {
        "contexts": 1000, "samples": 4, "context_chars": 4000, "sampling": {"max_tokens": 50},
        "dpo": {"num_train_epochs": 1, "gradient_checkpointing": False},
    }  # fmt: skip
    card = 'eval.scorecard={"contexts": 100, "openings": 50}'
    without = priced("asker", card)
    cost = priced("asker", card, f"asker.preference={json.dumps(block)}")
    written = 1000 * 4 * 50 + 2 * 150 * 50
    read = (1000 + 2 * 150) * 1000
    answering = 2e9 * (written / 0.08 + read / 0.35) / A100
    trained = 2 * 1000 * (1000 + 50)
    optimising = (6e9 + 2e9) * trained / (A100 * 0.35)  # the reference reads as much
    assert cost.hours - without.hours == pytest.approx((answering + optimising) / 3600)
    assert cost.usd == pytest.approx(2.5 * cost.hours) and "1,000 pairs" in cost.note


def test_intents_are_paid_by_token_or_with_the_hardware_that_words_them_by_hand() -> None:
    sized = (
        "corpus.openings=1000", "corpus.test=500",
        'asker.expected={"conversations": 8500, "tokens": 900}',
    )  # fmt: skip
    without = priced("corpus", *sized)
    judge = {"endpoints": ["http://1.2.3.4"], "repo": "a/judge", "sampling": {"max_tokens": 20},
             "usd_per_million_input": 2.0, "usd_per_million_output": 8.0}  # fmt: skip

    def judged(**changes: Any) -> Any:
        block = {"judging": {"judge": {**judge, **changes}}}
        return priced("corpus", *sized, f"corpus.intents={json.dumps(block)}")

    by_token = judged()
    assert by_token.usd - without.usd == pytest.approx(10_000 * (500 * 2.0 + 20 * 8.0) / 1e6)
    assert by_token.hours == without.hours and "10,000 intents at 11.60 USD" in by_token.note
    hosted = judged(
        repo="a/judge-8B", endpoints=["deploy"], sampling={"max_tokens": 128},
        usd_per_million_input=0.0, usd_per_million_output=0.0,
        deploy={"engine": "vllm", "hardware": "aws-nvidia-a100-x1"},
    )  # fmt: skip
    seconds = 2 * 8e9 * 10_000 * (30 / 0.08 + 500 / 0.35) / A100
    hours = seconds / 3600 + 5 / 60
    assert hosted.hours - without.hours == pytest.approx(hours)
    assert hosted.usd - without.usd == pytest.approx(hours * (2.5 + 2.5))
    assert "endpoint aws-nvidia-a100-x1" in hosted.where and "10,000 intents" in hosted.note


def test_judgments_of_the_cross_simulator_table_by_hand() -> None:
    judge = {"endpoints": ["http://1.2.3.4"], "repo": "a/judge", "sampling": {"max_tokens": 60},
             "usd_per_million_input": 3.0, "usd_per_million_output": 10.0}  # fmt: skip
    block = {
        "openings": 20, "turns": 3, "chats": ["base", "chat"], "context": 4096,
        "rewards": [{"name": "judges", "judges": [{"judge": judge}] * 2}],
        "sampling": {"max_tokens": 40}, "chat_sampling": {"max_tokens": 200},
    }  # fmt: skip
    without = priced("eval", "eval.scorecard=null")
    cost = priced("eval", "eval.scorecard=null", f"eval.against={json.dumps(block)}")
    conversations = 20 * 2 * 2  # the asker and its base, with two chat models
    usd = conversations * 2 * (3 * (40 + 200) * 3.0 + 60 * 10.0) / 1e6
    assert (
        f"80 conversations for the cross-simulator table, its judgments at {usd:.2f}" in cost.note
    )
    written = conversations * (2 * 40 + 3 * 200)
    seconds = 2e9 * (written / 0.08 + conversations * 3 * 240 / 0.35) / A100
    assert cost.hours - without.hours == pytest.approx(seconds / 3600)
    assert cost.usd - without.usd == pytest.approx(usd + 2.5 * seconds / 3600)


def test_a_reinforcement_as_a_job_by_hand() -> None:
    block = {
        "askers": {"own": {"repo": "asker"},
                   "there": {"repo": "a/person-8B", "endpoints": ["deploy"],
                             "deploy": {"hardware": "aws-nvidia-a100-x1"}}},
        "expected": {"conversations": 5000, "tokens": 1200},
    }  # fmt: skip
    cost = priced("reinforce", f"reinforce={json.dumps(block)}", "chat.lora=null")
    trained = (6 + 2) * 1e9 / 0.35  # forward twice, backward to inputs and to weights
    seconds = 5000 * 1200 * (trained + 2e9 / 0.08) / A100
    hours = seconds / 3600 + 2 * 5 / 60
    assert cost.hours == pytest.approx(hours)
    assert cost.usd == pytest.approx(hours * (2.5 + 2.5))
    assert cost.note == "5,000 conversations, 6.0M tokens"


class _Nothing:
    def find_commit(self, *_: Any, **__: Any) -> None:
        return None


def test_what_cannot_be_priced_is_said() -> None:
    unnamed = load(
        "parrot",
        overrides=["asker.base=local/mystery", "rollout.chat.endpoints=['http://1.2.3.4']"],
    )
    found = {c.stage: c for c in costs(unnamed, None, pipeline.OnJobs(), planned=PLANNED)}  # type: ignore[arg-type]
    assert found["asker"].usd is None and "no size" in found["asker"].note
    assert found["rollout"].usd is None and not total(found.values())[2]
    assert found["chat"].note.endswith("80 there")  # it does not fit, and says so
    judge = "{judge: {endpoints: ['http://1.2.3.4'], repo: a/judge}}"
    judged = load("parrot", overrides=[f"corpus.intents={{judging: {judge}}}"])
    notes = {c.stage: c.note for c in costs(judged, None, pipeline.OnJobs(), planned=PLANNED)}  # type: ignore[arg-type]
    assert "judge" in notes["corpus"] and "judge" not in notes["curate"]
    sizes = {
        "a/Llama-2-13b-hf": 13e9,
        "b/SmolLM2-135M-Instruct": 135e6,
        "c/Qwen2.5-0.5B": 0.5e9,
        "d/gpt2": None,
    }
    assert {repo: parameters(repo) for repo in sizes} == sizes


# The whole loop


@pytest.fixture
def tiny_loop(hub: Hub, tmp_path: Path) -> Iterator[list[Recipe]]:
    base = hub.qualify("loop-tiny")
    hub.commit(base, tiny_model(tmp_path / "base"), "A model")
    sft = {
        "num_train_epochs": 1,
        "max_length": 256,
        "per_device_train_batch_size": 4,
        "bf16": False,
        "packing": False,
    }
    train = {
        "base": base,
        "lora": {"r": 4, "target_modules": "all-linear"},
        "sft": sft,
        "max_conversations": 8,
    }
    sampling = {
        "temperature": 1.0,
        "max_tokens": 12,
    }  # seeded; one at a time, so that every number is the same
    seats = {
        seat: {"repo": repo, "context": 512, "sampling": sampling}
        for seat, repo in (("asker", "asker"), ("chat", base))
    }
    changes: dict[str, Any] = {
        "asker": {**train, "seat": "user"}, "chat": {**train, "seat": "assistant"},
        "rollout.asker": seats["asker"], "rollout.chat": seats["chat"], "rollout.dialogues": 8,
        "rollout.in_flight": 1, "rollout.retry_on": [], "rollout.retries_per_turn": 0,
        "curate.filters": [{"name": "empty_turn"}], "preference": None,
        "eval": {"conversations": 2, "max_tokens": 400, "resamples": 50, "prompted_base": False,
                 "scorecard": None},
    }  # fmt: skip
    made = []
    for name in ("loop-jobs", "loop-here"):
        small = recipe(hub, tmp_path, name)
        repos = {
            key: f"{name}-{key}" for key in ("corpus", "asker", "dialogues", "chat", "results")
        }
        overrides = [
            f"{key}={json.dumps(value)}" for key, value in {**changes, "repos": repos}.items()
        ]
        sources = json.dumps([source.model_dump() for source in small.corpus.sources])
        overrides += [
            f"corpus.sources={sources}",
            "corpus.filters=[]",
            "corpus.openings=10",
            "corpus.test=4",
        ]
        made.append(load("parrot", overrides=[*overrides, "rollout.turns={kind: fixed, value: 2}"]))
    yield made


@pytest.mark.slow
def test_the_loop_as_jobs_gives_the_same_content_as_here(hub: Hub, tiny_loop: list[Recipe]) -> None:
    there = {one.stage: one for one in made(tiny_loop[0], hub, None, execute=on_jobs())}
    here = {one.stage: one for one in made(tiny_loop[1], hub, None)}
    assert list(there) == list(here) == ["corpus", "asker", "rollout", "curate", "chat", "eval"]
    for stage in ("corpus", "asker", "chat"):
        ours, theirs = content(hub, here[stage].ref), content(hub, there[stage].ref)
        weights = [path for path in ours if path.endswith((".safetensors", ".parquet", ".jinja"))]
        assert weights and {path: ours[path] for path in weights} == {
            path: theirs[path] for path in weights
        }
    assert _said(hub, here["curate"].ref) == _said(hub, there["curate"].ref)
    losses = [
        {seat: one["eval"].report[seat]["arms"] for seat in ("asker", "chat")}
        for one in (here, there)
    ]
    assert losses[0] == losses[1]
    again = made(tiny_loop[0], hub, None, execute=on_jobs())
    assert all(one.skipped for one in again)


def _said(hub: Hub, ref: Ref) -> list[Any]:
    """Every dialogue of a commit, as it was said."""
    import pyarrow.parquet as pq

    folder = hub.snapshot(ref)
    return sorted(
        json.dumps(row["messages"])
        for path in (folder / "data").glob("train-*.parquet")
        for row in pq.read_table(path).to_pylist()
    )


def test_a_job_that_trains_uses_all_the_gpus_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from hubkit.pipeline.executors.job_entrypoint import spread

    paper, small = load("parrot"), load("parrot", profiles=["laptop"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (spread(paper, "asker").strategy, spread(paper, "asker").processes) == ("fsdp2", 4)
    assert spread(small, "chat").strategy == "fsdp2" and spread(paper, "rollout") is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert spread(paper, "asker") is None
