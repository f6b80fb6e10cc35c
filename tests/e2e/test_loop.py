"""The whole loop, small but real: real weights, real conversations, the real clients, killed with
SIGKILL on the way.

One loop is run for all tests of this file. It is killed in its rollout and started again, so what
the tests look at was made by runs that went on where a dead one stopped. Among the slow tests is
one more loop, killed in every stage."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.loading import datasets_of, splits_of
from support.paths import ROOT, TESTS

from hubkit.hub import connect

TINY = [
    "corpus.limit=1500",
    "corpus.openings=60",
    "corpus.test=60",
    "asker.max_tokens=800",
    "chat.max_tokens=600",
    "rollout.dialogues=4",
    "rollout.turns.value=3",
    "rollout.asker.sampling.max_tokens=24",
    "rollout.chat.sampling.max_tokens=32",
    "rollout.baseline.dialogues=2",
    "curate.measure={sample: 40, topics: false}",
    "curate.filters=[{name: empty_turn}, {name: exact_duplicates}]",
    "eval.conversations=4",
    "eval.max_tokens=128",
    "eval.scorecard.contexts=4",
    "eval.scorecard.openings=2",
    "eval.scorecard.sampling.max_tokens=12",
]
pytestmark = pytest.mark.timeout(900)  # the first test waits for the whole loop
STAGES = ["corpus", "asker", "rollout", "curate", "chat", "eval"]
RUN = [sys.executable, "-m", "hubkit", "run", "parrot", "--profile", "laptop", "--json"]
SETTINGS = [part for value in TINY for part in ("--set", value)]


def _run(*more: str, timeout_s: float = 900, **env: str) -> dict[str, Any]:
    command = [*RUN, *SETTINGS, *more]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **env},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _kill_in(stage: str, home: Path, log: Path) -> bool:
    """Start the loop and kill it (not its children) a moment after `stage` began. False when it was
    too quick.
    """
    with log.open("ab") as out:
        driver = subprocess.Popen(
            [*RUN, *SETTINGS], stdout=out, stderr=out, env={**os.environ, "HUBKIT_HOME": str(home)}
        )
    deadline = time.monotonic() + 600
    while driver.poll() is None and time.monotonic() < deadline:
        if list((home / "runs").glob(f"parrot-{stage}-*/out.part")):
            time.sleep(random.uniform(0.0, 2.0))
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            return True
        time.sleep(0.02)
    assert driver.wait() == 0, log.read_text("utf-8", "replace")[-3000:]
    return False


@pytest.fixture(scope="module")
def refused(hubkit_home: Path) -> Path:
    """The file of all names that were looked up in vain, one a line."""
    return hubkit_home / "refused-names"


@pytest.fixture(scope="module")
def loop(hubkit_home: Path, refused: Path) -> dict[str, Any]:
    """What ``hubkit run … --json`` printed, after a run that was killed in its rollout; no process
    of it could look up a name of another machine."""
    before = set((hubkit_home / "runs").glob("parrot-*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFUSED_NAMES", str(refused))
        patch.setenv("PYTHONPATH", f"{TESTS / 'support' / 'refused_names'}{os.pathsep}{ROOT}")
        assert _kill_in("rollout", hubkit_home, hubkit_home / "driver.log")
        made = _run()
        lookup = "import socket; socket.getaddrinfo('huggingface.co', 443)"
        subprocess.run([sys.executable, "-c", lookup], check=False, stderr=subprocess.DEVNULL)
    return {**made, "left": set((hubkit_home / "runs").glob("parrot-*")) - before}


@pytest.fixture(scope="module")
def stages(loop: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in loop["stages"]}


@pytest.fixture(scope="module")
def hub(loop: dict[str, Any]):
    return connect()


@pytest.fixture(scope="module")
def stock(loop: dict[str, Any]) -> dict[str, str]:
    """The environment that ``hubkit hub env`` prints, for stock libraries in a fresh process."""
    printed = subprocess.run(
        [sys.executable, "-m", "hubkit", "hub", "env"], capture_output=True, text=True, check=True
    )
    pairs = (
        line.removeprefix("export ").split("=", 1)
        for line in printed.stdout.splitlines()
        if "=" in line
    )
    return {name: value.strip("'\"") for name, value in pairs}


def _python(code: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_stage_the_loop_still_ends(
    hubkit_home: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    home = tmp_path / "home"
    if (hubkit_home / "cache" / "wheels").is_dir():
        shutil.copytree(hubkit_home / "cache" / "wheels", home / "cache" / "wheels")
    env = {"HUBKIT_HOME": str(home), "HF_HOME": str(home / "hf")}
    try:
        killed = [stage for stage in STAGES if _kill_in(stage, home, tmp_path / "driver.log")]
        record_property("kills", len(killed))
        assert {"corpus", "asker", "rollout", "chat", "eval"} <= set(killed), (
            f"killed only in {killed}"
        )
        made, again = _run(**env), _run(**env)
        assert [stage["stage"] for stage in made["stages"]][: len(STAGES)] == STAGES
        assert all(stage["skipped"] for stage in again["stages"] if stage["stage"] != "publish")
        assert not list((home / "runs").glob("parrot-*"))
    finally:
        subprocess.run(
            [sys.executable, "-m", "hubkit", "hub", "stop"], env={**os.environ, **env}, check=True
        )


def test_every_stage_made_one_commit_in_spite_of_the_kill(stages: dict[str, Any], hub: Any) -> None:
    for name in STAGES:
        stage = stages[name]
        titles = [
            c.title
            for c in hub.api.list_repo_commits(stage["repo_id"], repo_type=stage["repo_type"])
        ]
        assert len([t for t in titles if f"[{name}:" in t]) == 1, titles


def test_lineage_is_whole(stages: dict[str, Any], hub: Any) -> None:
    assert stages["rollout"]["inputs"]["asker"]["revision"] == stages["asker"]["revision"]
    assert stages["curate"]["inputs"]["rollout"]["revision"] == stages["rollout"]["revision"]
    assert stages["chat"]["inputs"]["dialogues"]["revision"] == stages["curate"]["revision"]
    for name in STAGES:
        for ref in stages[name]["inputs"].values():
            info = hub.api.repo_info(
                ref["repo_id"], repo_type=ref["repo_type"], revision=ref["revision"]
            )
            assert info.sha == ref["revision"]


def test_the_corpus_loses_no_row_without_a_word(stages: dict[str, Any]) -> None:
    report = stages["corpus"]["report"]
    made = report["kept"] + report["dropped"] + report["unreadable"] + report["joined"]
    assert made == report["rows_read"] + report["added"] == 1500


def test_the_asker_s_card_shows_how_like_people_it_plays(stages: dict[str, Any], hub: Any) -> None:
    card = stages["eval"]["report"]["scorecard"]
    assert [row["name"] for row in card["rows"]] == ["people", "asker", "base as user"]
    for row in card["rows"][1:]:
        assert row["counts"]["failed"] == 0 and row["values"]["words_per_turn"]["n"] >= 2
        assert row["values"]["perplexity"]["value"] > 1
    assert card["rows"][1]["values"]["perplexity"] != card["rows"][2]["values"]["perplexity"]
    head = hub.resolve(stages["asker"]["repo_id"])
    assert "Scorecard: how like people it plays" in hub.read(head, "README.md").decode()
    assert hub.read(head, "scorecard.png")[:4] == b"\x89PNG" and hub.read(
        head, ".eval_results/scorecard.yaml"
    )
    assert hub.api.repo_exists(hub.qualify("mt-bench-8"), repo_type="dataset")


def test_nothing_is_left_behind(loop: dict[str, Any], hubkit_home: Path) -> None:
    assert not loop["left"]
    engines = subprocess.run(
        ["pgrep", "-f", "hubkit.local_engine.*" + str(hubkit_home)], capture_output=True, text=True
    )
    assert engines.stdout == "", "an engine outlived its driver"


def test_no_name_of_another_machine_was_looked_up(loop: dict[str, Any], refused: Path) -> None:
    assert refused.read_text("utf-8").splitlines() == ["huggingface.co"], "the test's own alone"


def test_a_second_run_finds_everything_done(loop: dict[str, Any]) -> None:
    again = _run()
    assert all(stage["skipped"] for stage in again["stages"] if stage["stage"] != "publish")
    first = {s["stage"]: s["revision"] for s in loop["stages"]}
    assert {s["stage"]: s["revision"] for s in again["stages"]} == first


def test_a_changed_value_runs_exactly_the_stages_behind_it(loop: dict[str, Any]) -> None:
    planned = subprocess.run(
        [*RUN, *SETTINGS, "--dry-run", "--set", "rollout.dialogues=5"],
        capture_output=True,
        text=True,
        check=True,
    )
    states = {p["stage"]: p["state"] for p in json.loads(planned.stdout)}
    assert [s for s in STAGES if states[s] == "done"] == ["corpus", "asker"]


@pytest.mark.slow
def test_another_number_of_resamples_runs_the_measuring_alone(loop: dict[str, Any]) -> None:
    changed = _run("--set", "eval.resamples=500")
    assert [
        s["stage"] for s in changed["stages"] if not s["skipped"] and s["stage"] != "publish"
    ] == ["eval"]


def test_load_dataset_by_bare_name(loop: dict[str, Any], stages: dict[str, Any]) -> None:
    from hubkit import load_dataset

    whole = load_dataset("parrot-40k")
    assert whole["train"].num_rows == stages["curate"]["report"]["kept"]
    version = load_dataset("parrot-40k", split="train", revision="v1")
    assert version[0]["messages"][0]["role"] == "user"
    streamed = next(iter(load_dataset("parrot-40k", split="train", streaming=True)))
    assert streamed["messages"] == version[0]["messages"]


def test_every_dataset_is_read_by_stock_datasets(
    loop: dict[str, Any], stages: dict[str, Any], tmp_path: Path
) -> None:
    folders = datasets_of(connect(), ["parrot-40k", "parrot-results"])
    dialogues = splits_of(folders["parrot-40k"], tmp_path)
    dropped = {"dropped"} if stages["curate"]["report"]["dropped"] else set()
    assert {name for name, _ in dialogues} == {"default", "raw", "baseline"} | dropped
    assert dialogues["raw", "train"].num_rows == 4
    assert splits_of(folders["parrot-results"], tmp_path)["default", "test"].num_rows > 5


def test_load_dataset_starts_the_hub_itself(loop: dict[str, Any], hubkit_home: Path) -> None:
    from hubkit.hub import embedded

    embedded.stop()
    assert embedded.running() is None
    code = (
        "from hubkit import load_dataset; print(load_dataset('parrot-40k', split='train').num_rows)"
    )
    assert int(_python(code, {})) >= 1


def test_stock_libraries_load_everything(
    loop: dict[str, Any], stages: dict[str, Any], stock: dict[str, str]
) -> None:
    code = (
        "from datasets import load_dataset; d = load_dataset('local/parrot-40k', "
        "split='train'); print(d.num_rows)\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from peft import PeftModel\n"
        "for repo in ('local/parrot-ask', 'local/parrot-chat'):\n"
        "    tokenizer = AutoTokenizer.from_pretrained(repo)\n"
        "    model = AutoModelForCausalLM.from_pretrained(repo)\n"
        "    base = AutoModelForCausalLM.from_pretrained('HuggingFaceTB/SmolLM2-135M-Instruct')\n"
        "    adapted = PeftModel.from_pretrained(base, repo)\n"
        "    print(tokenizer.chat_template is not None, type(adapted).__name__)\n"
    )
    lines = _python(code, stock).splitlines()
    assert int(lines[0]) == stages["curate"]["report"]["kept"]
    assert lines[1:] == ["True PeftModelForCausalLM"] * 2


def test_the_two_clients_get_an_answer_from_both_seats(
    loop: dict[str, Any], stages: dict[str, Any]
) -> None:
    from huggingface_hub import InferenceClient
    from text_generation import Client
    from text_generation.types import Message

    from hubkit.hub import environment
    from hubkit.serving import client

    adapters = {
        name: f"local/parrot-{'ask' if name == 'asker' else 'chat'}" for name in ("asker", "chat")
    }
    question = "What should I cook tonight?"
    with client.start_engine(
        "HuggingFaceTB/SmolLM2-135M-Instruct", adapters, listen=["asker", "chat"], env=environment()
    ) as engine:
        for name in ("asker", "chat"):
            url = engine.addresses[name]
            old = Client(url, timeout=240).chat(
                [Message(role="user", content=question)], max_tokens=12
            )
            assert old.choices[0].message.content.strip()
            new = InferenceClient(base_url=url).chat_completion(
                [{"role": "user", "content": question}], max_tokens=12, model="tgi"
            )
            assert new.choices[0].message.content.strip()


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["run", "parot"], {}, "Did you mean 'parrot'"),
        (["run", "parrot", "--set", "rollout.dialogue=1"], {}, "did you mean 'dialogues'"),
        (
            ["run", "parrot", "--profile", "laptop", "--set", "asker.base=nobody/nothing"],
            {},
            "nobody/nothing",
        ),
        (
            ["run", "parrot", "--profile", "laptop"],
            {"HUBKIT_HUB": "http://127.0.0.1:9"},
            "does not answer",
        ),
        (["run", "parrot", "--profile", "laptop"], {"HUBKIT_HUB": "nowhere"}, "HUBKIT_HUB"),
        (
            ["rollout", "parrot", "--profile", "laptop", "--set", "asker.sft.max_length=77"],
            {},
            "has not run",
        ),
    ],
)
def test_mistakes_are_one_clear_sentence(
    loop: dict[str, Any], cli: Any, arguments: Any, env: Any, says: str
) -> None:
    done = (
        cli(
            *arguments,
            *(SETTINGS if "--profile" in arguments else []),
            HF_TOKEN="",
            HUBKIT_NAMESPACE="someone",
            **env,
        )
        if env
        else cli(*arguments, *(SETTINGS if "--profile" in arguments else []))
    )
    assert done.returncode in (1, 2)
    said = [line for line in done.stderr.splitlines() if line.startswith("hubkit: ")]
    assert len(said) == 1 and says in said[0] and "Traceback" not in done.stderr
