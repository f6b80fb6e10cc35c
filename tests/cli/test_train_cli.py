"""``hubkit train`` as a person runs it: what a run would take, over processes, and as a job of a
Slurm cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_base, write_rows

from hubkit.errors import RepoMissingError, StageError
from hubkit.hub import Hub, Ref, connect
from hubkit.pipeline import plan_training, run
from hubkit.recipe import available, load
from hubkit.training import write_shape

TALK = [("user", "How do I bake bread?"), ("assistant", "Mix flour."), ("user", "What about rye?")]
ROWS = [[*TALK, ("assistant", f"Use less water, {n} times.")] for n in range(24)]
SFT = {
    "num_train_epochs": 1,
    "learning_rate": 5e-3,
    "max_length": 96,
    "per_device_train_batch_size": 1,
}


@pytest.fixture(scope="module")
def recipe(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a recipe with a tiny base, and with its corpus on the embedded Hub."""
    folder = tmp_path_factory.mktemp("train-cli")
    hub = connect()
    hub.commit(hub.qualify("tiny-base"), tiny_base(folder / "base"), "A tiny base")
    write_rows(folder / "chats.parquet", ROWS)
    changes: dict[str, Any] = {
        "corpus.sources": [{"path": str(folder / "chats.parquet"), "license": "other"}],
        "corpus.filters": [],
        "corpus.openings": 4,
        "corpus.test": 4,
        "repos.corpus": "train-cli-corpus",
        "repos.asker": "train-cli-asker",
        "asker.base": hub.qualify("tiny-base"),
        "asker.expected": None,
        "asker.lora": {"r": 4, "target_modules": "all-linear"},
        "asker.sft": {**SFT, "gradient_accumulation_steps": 2, "bf16": False, "packing": False},
    }
    return [
        "parrot",
        *[
            part
            for key, value in changes.items()
            for part in ("--set", f"{key}={json.dumps(value)}")
        ],
    ]


@pytest.fixture(scope="module")
def corpus(recipe: list[str]) -> None:
    list(run(load("parrot", overrides=recipe[2::2]), connect(), only="corpus"))


def planned(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "seat", "parameters", "batch", "devices"),
    [
        ("parrot", "asker", 13.0e9, 32, 8),
        ("parrot", "chat", 13.0e9, 32, 8),
        ("realm", "asker", 6.74e9, 128, 4),
        ("realm", "chat", 6.74e9, 128, 4),
        ("userlm", "asker", 7.62e9, 64, 8),
        ("userlm", "chat", 3.09e9, 16, 1),
    ],
)
def test_the_papers_recipes_can_be_planned_on_a_laptop(
    hubkit_home: Path, name: str, seat: str, parameters: float, batch: int, devices: int
) -> None:
    plan = plan_training(load(name), connect(), seat)
    assert plan.parameters == pytest.approx(parameters, rel=0.01) and plan.batch == batch
    launch = "fsdp2" if devices > 1 else None
    assert (plan.processes, plan.launch, plan.device) == (devices, launch, "A100")
    assert plan.steps > 100 and plan.tokens > 1e7 and plan.hours > 0.5
    assert 10 < plan.memory_gib["total"] < 80 and plan.refusals == []
    assert any("table that ships" in note for note in plan.notes)
    assert any(f"{seat}.expected" in note for note in plan.notes)


def test_every_base_that_a_recipe_trains_has_a_shape_that_ships(tmp_path: Path) -> None:
    trained = {
        block.base
        for name in available()["recipes"]
        for recipe in (load(name), load(name, profiles=["laptop"]))
        for block in (recipe.asker, recipe.chat)
    }
    assert [base for base in sorted(trained) if not write_shape(base, tmp_path)] == []


def test_the_papers_preference_optimisation_can_be_planned_on_a_laptop(
    hubkit_home: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    made = plan_training(load("parrot"), connect(), "align")
    assert (made.kind, made.rows, made.batch, made.processes) == ("dpo", 30_000, 32, 8)
    assert made.steps == 938 and made.hours > 1 and made.refusals == []
    assert made.memory_gib["reference"] == pytest.approx(13.0e9 * 4 / 8 / 2**30, rel=0.02), (
        "a second model"
    )
    shown = cli("align", "parrot", "--dry-run", "--launch", "ddp", "--processes", "8",
                "--device-gib", "80", "--device", "A100")  # fmt: skip
    assert (
        shown.returncode == 1
        and "dpo.beta" in shown.stdout
        and "shard it (--launch fsdp2)" in shown.stderr
    )
    job = tmp_path / "job.sh"
    assert (
        cli(
            "align", "parrot", "--launch", "fsdp2", "--processes", "8", "--slurm", str(job)
        ).returncode
        == 0
    )
    assert " align parrot --launch fsdp2 --processes 8 --nodes 1 &" in job.read_text("utf-8")
    with pytest.raises(StageError, match="has no 'preference' block"):
        plan_training(load("realm"), connect(), "align")


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home, and a Hub in it, that no other test has put anything into."""
    from hubkit.hub import embedded

    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path / "home"))
    yield
    embedded.stop()


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize("name", ["parrot", "realm"])
def test_the_laptops_recipes_can_be_planned_before_anything_is_there(name: str) -> None:
    for seat in ("asker", "chat"):
        plan = plan_training(load(name, profiles=["laptop"]), connect(), seat)
        assert plan.processes == 1 and 0 < plan.hours < 1 and plan.steps > 1 and plan.refusals == []
        assert any("the first run imports it" in note for note in plan.notes)
        assert "SmolLM2-135M-Instruct was not looked at" in str(plan.unseen_template)
    unknown = load(name, profiles=["laptop"], overrides=["asker.expected=null"])
    plan = plan_training(unknown, connect(), "asker")
    assert plan.steps is None and plan.hours is None and plan.memory_gib["total"] > 0


def test_a_plan_says_what_will_not_run_and_exits_with_1(
    hubkit_home: Path, cli: Callable[..., Any]
) -> None:
    done = cli("train", "asker", "parrot", "--dry-run", "--set", "asker.sft.max_length=8192",
               "--device", "A100", "--device-gib", "80")  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "would not run: sft.max_length 8192 is more than the 4096 positions" in done.stderr
    assert (
        "GiB per device are needed and 80 are there" in done.stderr and "Llama-2-13b" in done.stdout
    )
    with pytest.raises(RepoMissingError, match="shape of base nobody/unheard-of is not known"):
        plan_training(
            load("parrot", overrides=["asker.base=nobody/unheard-of"]), connect(), "asker"
        )


def test_data_that_is_there_is_sampled(
    recipe: list[str], corpus: None, cli: Callable[..., Any]
) -> None:
    plan = planned(cli("train", "asker", *recipe, "--dry-run", "--json"))
    assert (
        plan["rows"] == plan["sampled_rows"] == 16
        and plan["steps"] == 8
        and plan["loss_tokens"] < plan["tokens"]
    )
    assert plan["device"] == "cpu" and plan["refusals"] == []


def test_a_gated_base_without_a_token_is_refused(
    recipe: list[str], corpus: None, tmp_path: Path
) -> None:
    hub = connect()
    stranger = Hub(hub.url, None, "local", embedded=False)
    unheard, known = hub.qualify("gated-base"), "HuggingFaceTB/SmolLM2-135M-Instruct"
    for repo in (unheard, known):
        hub.commit(repo, tiny_base(tmp_path / repo), "A tiny base")
        hub.api.update_repo_settings(repo, gated="auto")
    try:
        with pytest.raises(RepoMissingError, match="gated-base is gated and there is no token"):
            plan_training(
                load("parrot", overrides=[*recipe[2::2], f"asker.base={unheard}"]),
                stranger,
                "asker",
            )
        # A base whose shape ships is planned all the same, and the refusal stands in the plan.
        plan = plan_training(load("parrot", overrides=[f"asker.base={known}"]), stranger, "asker")
        assert plan.refusals[0].startswith(
            f"base {known} is gated and there is no token: accept its terms at {hub.url}"
        )
        assert plan.parameters == 134_515_008
    finally:
        hub.api.delete_repo(known)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--launch", "fsdp3"], "none of ddp, fsdp2, deepspeed"),
        (["--processes", "2"], "name a strategy too"),
        (["--slurm", "job.sh"], "--slurm needs --launch"),
        (["--slurm", "job.sh", "--launch", "ddp"], "number of GPUs on each node"),
        (
            ["--launch", "ddp", "--processes", "1", "--nodes", "2"],
            "--nodes 2 runs in a Slurm allocation",
        ),
    ],
)
def test_what_cannot_be_launched_is_one_sentence(
    recipe: list[str], corpus: None, cli: Callable[..., Any], arguments: list[str], says: str
) -> None:
    done = cli("train", "asker", *recipe, *arguments)
    said = " ".join(line.strip("│ ") for line in done.stderr.splitlines())
    assert done.returncode in (1, 2) and says in said and "Traceback" not in done.stderr


def test_a_slurm_job_is_a_script_that_shellcheck_passes(
    hubkit_home: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    job = tmp_path / "job.sh"
    odd = 'asker.system=It\'s "$HOME" & `more`'
    asked = [
        "--launch",
        "fsdp2",
        "--processes",
        "8",
        "--nodes",
        "4",
        "--slurm",
        str(job),
        "--set",
        odd,
    ]
    done = cli(
        "train",
        "asker",
        "parrot",
        *asked,
        HUBKIT_HUB="https://hub.example",
        HF_TOKEN="hf_" + "x" * 34,
    )
    assert done.returncode == 0 and "sbatch" in done.stderr, done.stderr
    text = job.read_text("utf-8")
    assert (
        "#SBATCH --nodes=4\n" in text
        and "#SBATCH --gpus-per-node=8\n" in text
        and "hf_" not in text
    )
    assert (
        "export HUBKIT_HUB=https://hub.example\n" in text
        and f"export HUBKIT_HOME={hubkit_home}\n" in text
    )
    assert " train asker parrot " in text and "--launch fsdp2 --processes 8 --nodes 4 &" in text
    shellcheck = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run([shellcheck, job], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    # The command line survives the shell as it was given.
    line = next(line for line in text.splitlines() if line.endswith(" &"))
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line[:-2]}"], capture_output=True, text=True, check=True
    )
    assert odd in shown.stdout.splitlines()


def fake_cluster(folder: Path, nodes: int) -> dict[str, str]:
    """Environment of an allocation whose nodes are all this machine; ``scontrol`` writes down what
    it is asked.
    """
    folder.mkdir()
    (folder / "srun").write_text(
        "#!/bin/bash\n"
        'while [[ "$1" == --* ]]; do shift; done\n'
        f"exec 3<&0\nfor node in $(seq 0 {nodes - 1}); "
        'do SLURM_NODEID=$node "$@" <&3 & pids+=($!); done\n'
        'status=0; for pid in "${pids[@]}"; do wait "$pid" || status=$?; done; exit $status\n'
    )
    (folder / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {folder}/asked\n')
    for name in ("srun", "scontrol"):
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_ID": "7",
    }


def losses(stage: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in stage["report"]["loss_curve"]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_and_two_nodes_commit_what_one_process_does(
    recipe: list[str], corpus: None, cli: Callable[..., Any], tmp_path: Path
) -> None:
    made = {}
    halved = "asker.sft.gradient_accumulation_steps=1"
    for name, more, env in (
        ("one", [], {}),
        ("two", ["--set", halved, "--launch", "ddp", "--processes", "2"], {}),
        ("nodes", ["--set", halved, "--launch", "ddp", "--processes", "1", "--nodes", "2"],
         fake_cluster(tmp_path / "cluster", 2)),
    ):  # fmt: skip
        options = [
            "--set",
            f"repos.asker=train-cli-{name}",
            "--set",
            f"repos.corpus=train-cli-{name}-corpus",
        ]
        assert cli("corpus", *recipe, *options).returncode == 0
        done = cli(
            "train",
            "asker",
            *recipe,
            *options,
            "--set",
            "asker.sft.logging_steps=1",
            *more,
            "--json",
            **env,
        )
        assert done.returncode == 0, done.stderr
        [made[name]] = json.loads(done.stdout)["stages"]
    one, two, nodes = (made[name] for name in ("one", "two", "nodes"))
    assert [stage["report"]["processes"] for stage in (one, two, nodes)] == [1, 2, 2]
    assert losses(one) == pytest.approx(losses(two), rel=1e-3) and losses(two) == pytest.approx(
        losses(nodes), rel=1e-6
    )
    hub = connect()
    files = [
        sorted(hub.api.list_repo_files(stage["repo_id"], revision=stage["revision"]))
        for stage in made.values()
    ]
    assert files[0] == files[1] == files[2] and "adapter_model.safetensors" in files[0]
    from safetensors.torch import load

    weights = [
        load(
            hub.read(Ref(stage["repo_id"], "model", stage["revision"]), "adapter_model.safetensors")
        )
        for stage in made.values()
    ]
    for name, tensor in weights[0].items():
        assert tensor.allclose(weights[1][name], atol=1e-4) and tensor.allclose(
            weights[2][name], atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_runs_out_of_time_goes_back_into_the_queue_and_on_from_there(
    recipe: list[str], corpus: None, hubkit_home: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    job = tmp_path / "job.sh"
    longer = ["--set", "asker.sft.num_train_epochs=150"]
    spread = ["--launch", "ddp", "--processes", "2"]
    assert cli("train", "asker", *recipe, *longer, *spread, "--slurm", str(job)).returncode == 0
    env = {**os.environ, **fake_cluster(tmp_path / "cluster", 1)}
    running = subprocess.Popen(["bash", str(job)], env=env, stderr=subprocess.PIPE, text=True)
    progress = lambda: list((hubkit_home / "runs").glob("parrot-asker-*/scratch/launch.progress"))  # noqa: E731
    deadline = time.monotonic() + 300
    while not any('"loss' in path.read_text() for path in progress()):
        assert running.poll() is None and time.monotonic() < deadline, running.stderr.read()
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)  # as Slurm does, to the batch shell alone
    assert running.wait(timeout=240) == 130, running.stderr.read()
    assert (tmp_path / "cluster" / "asked").read_text() == "requeue 7\n"
    assert list(
        (hubkit_home / "runs").glob("parrot-asker-*/scratch/*/checkpoint-*/hubkit-complete")
    )
    done = cli("train", "asker", *recipe, *longer, *spread, "--json")
    [stage] = json.loads(done.stdout)["stages"]
    assert stage["report"]["resumed_from_step"] > 0 and stage["report"]["steps"] == 600
