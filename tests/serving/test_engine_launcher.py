"""Servers of other environments, started and ended by the launcher: real processes with scripted
behaviour.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.waiting import until

from hubkit.errors import EngineError, RecipeError
from hubkit.serving.engines import devices
from hubkit.serving.engines.launcher import (
    ENGINES,
    Capacity,
    EngineKind,
    EngineOptions,
    choose,
    launch,
)

SERVER = ROOT / "tests" / "support" / "scripted_server.py"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A base's folder; the launcher reads its sizes only."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 8}))
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "asker"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 24}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def options(runs: Path, mode: str = "serve", **changes: Any) -> EngineOptions:
    return EngineOptions(command=(sys.executable, str(SERVER), str(runs), mode), **changes)


def record(runs: Path, number: int = 1) -> Any:
    return json.loads((runs / f"{number}.json").read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_one_server_answers_for_the_base_and_its_adapters(
    model: Path, adapter: Path, runs: Path, kind: str, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "engine.log"
    with launch(
        kind,
        str(model),
        {"asker": str(adapter)},
        options=options(runs, args=("--seed", "7")),
        log_path=log,
        capacity=Capacity(context=4096),
    ) as engine:
        assert (engine.kind, engine.profile) == (kind, kind)
        assert engine.models["base"].url == engine.models["asker"].url
        with urllib.request.urlopen(engine.models["base"].url + "/health") as answer:
            assert answer.status == 200
        names = {name: (m.model, dict(m.extra_body)) for name, m in engine.models.items()}
    arguments = record(runs)["arguments"]
    assert arguments[-2:] == ["--seed", "7"] and "4096" in arguments
    assert f"asker={adapter}" in arguments and str(model) in arguments
    assert names["base"] == ("base", {})
    assert (
        names["asker"] == {"vllm": ("asker", {}), "sglang": ("base", {"lora_path": "asker"})}[kind]
    )
    if kind == "vllm":
        assert arguments[arguments.index("--max-lora-rank") + 1] == "32", "24 is not a rank of it"
    assert str(SERVER) in log.read_text(), "the log begins with the command"


@pytest.mark.parametrize("mode", ["serve", "workers", "stubborn"])
def test_nothing_is_left_after_the_block(model: Path, runs: Path, mode: str) -> None:
    with (
        pytest.raises(ValueError, match="mine"),
        launch("vllm", str(model), options=options(runs, mode)) as engine,
    ):
        pids = [engine.pid, *record(runs)["pids"]]
        assert all(map(alive, pids))
        raise ValueError("mine")
    until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize("victim", ["parent", "supervisor"])
def test_nothing_is_left_after_kill_9(model: Path, runs: Path, victim: str) -> None:
    code = textwrap.dedent(f"""
        import sys
        from hubkit.serving.engines.launcher import EngineOptions, launch
        options = EngineOptions(
            command=({sys.executable!r}, {str(SERVER)!r}, {str(runs)!r}, "workers"))
        with launch("vllm", {str(model)!r}, options=options) as engine:
            print(engine.pid, flush=True)
            sys.stdin.readline()
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    supervisor = int(parent.stdout.readline())
    server, *workers = record(runs)["pids"]
    assert all(map(alive, [supervisor, server, *workers]))
    try:
        if victim == "parent":
            parent.kill()
        else:
            os.kill(supervisor, signal.SIGKILL)
            until(lambda: not alive(server))
            parent.communicate("\n")  # the block ends
        until(lambda: not any(map(alive, [supervisor, server, *workers])))
    finally:
        parent.kill()
        parent.wait()
        for pid in workers:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_server_that_ends_early_says_why(model: Path, runs: Path) -> None:
    with (
        pytest.raises(EngineError, match="CUDA out of memory"),
        launch("vllm", str(model), options=options(runs, "broken")),
    ):
        pass


def test_a_server_that_never_answers_is_ended_in_time(model: Path, runs: Path) -> None:
    with (
        pytest.raises(EngineError, match="not ready after 3 s"),
        launch("vllm", str(model), options=options(runs, "silent", wait_minutes=0.05)),
    ):
        pass
    until(lambda: not any(map(alive, record(runs)["pids"])))


def test_a_port_that_somebody_takes_meanwhile_is_replaced(model: Path, runs: Path) -> None:
    with launch("vllm", str(model), options=options(runs, "taken")):
        pass
    first, second = (record(runs, n)["arguments"] for n in (1, 2))
    assert first[first.index("--port") + 1] != second[second.index("--port") + 1]


def test_a_server_gets_files_and_no_token(
    model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # governs no address of loopback
    with launch("vllm", str(model), options=options(runs), env={"HUGGING_FACE_HUB_TOKEN": "hf_x"}):
        pass
    report = record(runs)
    assert "hf_" not in json.dumps([report["environment"], report["arguments"]])
    assert report["environment"]["HF_HUB_OFFLINE"] == "1"


def fake_driver(folder: Path, memories_mib: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with these devices: its driver's program answers for them."""
    rows = "\n".join(f"GPU-{i}, {memory}" for i, memory in enumerate(memories_mib))
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{rows}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_devices_are_spread_by_their_number(
    model: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver(tmp_path, [80_000] * 4, monkeypatch)
    with launch("vllm", str(model), options=options(runs, gpus=2)) as engine:
        assert "tensor parallel 1, data parallel 2" in engine.reason
    report = record(runs)
    assert report["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    arguments = report["arguments"]
    assert arguments[arguments.index("--data-parallel-size") + 1] == "2"
    with (
        pytest.raises(EngineError, match=r"gpus is 5, but 4 devices"),
        launch("vllm", str(model), options=options(runs, gpus=5)),
    ):
        pass


@pytest.mark.parametrize(
    ("count", "weights_gb", "memory_gb", "heads", "expected"),
    [
        (1, 14, 80, 32, (1, 1)),
        (8, 14, 80, 32, (1, 8)),
        (8, 140, 80, 64, (4, 2)),
        (8, 800, 80, 64, (8, 1)),
        (4, 14, 0, 32, (4, 1)),
        (6, 140, 80, 32, (2, 3)),
        (3, 14, 16, 32, (1, 3)),
        (0, 14, 0, 32, (1, 1)),
    ],
)
def test_as_few_devices_as_hold_the_weights_share_a_copy(
    count: int, weights_gb: int, memory_gb: int, heads: int, expected: tuple[int, int]
) -> None:
    spread = devices.parallelism(count, weights_gb * 10**9, memory_gb * 10**9, heads)
    assert (spread.tensor, spread.data) == expected


def test_auto_prefers_vllm_on_a_machine_with_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose("auto") == ("embedded", "no CUDA device here")
    fake_driver(tmp_path, [80_000], monkeypatch)
    kind, reason = choose("auto")
    assert kind == "embedded" and "pip install vllm" in reason
    (tmp_path / "bin" / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "vllm").chmod(0o755)
    kind, reason = choose("auto")
    assert kind == "vllm" and "1 CUDA device" in reason


def test_what_is_not_there_is_refused_with_the_way_out() -> None:
    with pytest.raises(EngineError, match=r"llama-server is not there.*engine\.command"):
        choose("llamacpp")
    with pytest.raises(EngineError, match=r"/none/vllm is not there"):
        choose("vllm", EngineOptions(command=("/none/vllm",)))
    with pytest.raises(RecipeError, match="no engine 'tgi2'"):
        choose("tgi2")


def test_a_plug_in_brings_an_engine(model: Path, runs: Path) -> None:
    ENGINES["own"] = EngineKind(
        profile="openai",
        program=("own-server",),
        arguments=lambda task: ["--port", str(task.port), "--weights", str(task.model)],
        install="pip install own-server",
    )
    try:
        with launch("own", str(model), options=options(runs)) as engine:
            assert (engine.profile, list(engine.models)) == ("openai", ["base"])
        with (
            pytest.raises(EngineError, match="serves no adapters"),
            launch("own", str(model), {"a": "x"}, options=options(runs)),
        ):
            pass
    finally:
        del ENGINES["own"]


def test_llama_cpp_gets_converted_files(runs: Path, tmp_path: Path) -> None:
    from support.tiny_architectures import tiny_model, with_adapter

    base = tmp_path / "llama"
    with_adapter(tiny_model("Llama", base), tmp_path / "lora")
    with launch(
        "llamacpp",
        str(base),
        {"asker": str(tmp_path / "lora")},
        options=options(runs),
        cache_dir=tmp_path / "cache",
        capacity=Capacity(128, 2),
    ) as engine:
        asker, chat = engine.models["asker"], engine.models["base"]
    arguments = record(runs)["arguments"]
    files = [arguments[arguments.index(flag) + 1] for flag in ("--model", "--lora")]
    assert all(Path(file).read_bytes()[:4] == b"GGUF" for file in files)
    assert arguments[arguments.index("--ctx-size") + 1] == "256"
    assert [m.extra_body["lora"] for m in (asker, chat)] == [
        [{"id": 0, "scale": 1.0}],
        [{"id": 0, "scale": 0.0}],
    ]
