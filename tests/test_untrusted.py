"""What strangers wrote is read within bounds, stays inside its repo and runs nothing."""

from __future__ import annotations

import http.server
import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT

from hubkit import Asker
from hubkit import recipe as recipes
from hubkit.adapter_config import checked_lora
from hubkit.bounded_yaml import parse_yaml
from hubkit.environment import require_own
from hubkit.errors import (
    EndpointUnreachableError,
    EngineError,
    HubError,
    HubUnreachableError,
    RecipeError,
    RemoteCodeError,
    SourceError,
)
from hubkit.evaluation.votes import read_votes
from hubkit.hub import Hub, connect, connect_to, proof
from hubkit.hub.adapters import base_of
from hubkit.hub.embedded import running
from hubkit.hub.places import settings
from hubkit.publishing import lint
from hubkit.publishing.merge import metadata
from hubkit.serving.templates import published_template
from hubkit.untrusted import is_inside, parse_json, printable

LAUGHS = "a0: &a0 [x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)
)
MERGES = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)
)
BOMBS = {
    "aliases": LAUGHS,
    "merge keys": MERGES,
    "digits": "seed: " + "9" * 5000,
    "sixtieths": "x: " + ":".join(["59"] * 5000) + ".5",
    "nesting": "x: " + "[" * 100_000,
    "nested keys": "{" * 100_000,
    "nested questions": "? " * 100_000,
    "nested items": "- " * 100_000,
    "nested blocks": "".join(" " * depth + "a:\n" for depth in range(1500)),
    "itself": "a: &a [*a]",
    "itself by merging": "a: &a {<<: *a}",
    "values": "[" + "1," * 250_000 + "]",
    "an empty number": "a: !!int ''",
    "no date": "a: 2020-13-45",
    "no time": "a: !!timestamp x",
    "no truth value": "a: !!bool maybe",
    "a list as key": "? [a]\n: b",
    "half a character": "a: \ud800",
    "an object": "a: !!python/object/apply:os.system ['true']",
}


@pytest.mark.attack
@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_are_refused_at_once(name: str, tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(yaml.YAMLError):
        parse_yaml(BOMBS[name])
    path = tmp_path / "bomb.yaml"
    path.write_bytes(BOMBS[name].encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError, match="is not YAML"):
        recipes.load(str(path))
    card = f"---\n{BOMBS[name]}\n---\n"
    assert "the front matter is not YAML" in lint(card, "corpus")[0] and metadata(card) == {}
    assert time.process_time() - started < 20


def test_yaml_that_people_write_is_read() -> None:
    shared = "base: &b {lr: 1.0e-3, steps: 100}\none: {<<: *b, steps: 5}\ntwo: [*b, *b]\nn: 0x1F"
    assert parse_yaml(shared) == yaml.safe_load(shared)
    scalars = "a: &x 1\nb: *x\nc: &y [2, 3]\nd: *y\ne: 1.5e3\nf: 2020-01-02\ng: 1:30"
    assert parse_yaml(scalars) == yaml.safe_load(scalars)
    assert parse_yaml("") is None and parse_yaml("[" * 100 + "]" * 100)


@pytest.mark.attack
def test_json_that_nests_too_deeply_is_no_json(hubkit_home: Path, tmp_path: Path) -> None:
    deep = "[" * 100_000
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    for text in (deep, deep.encode(), "9" * 5000, "{", ""):
        with pytest.raises(ValueError):
            parse_json(text)
    hub: Hub = connect()
    (tmp_path / "adapter_config.json").write_text(deep)
    (tmp_path / "tokenizer_config.json").write_text(deep)
    (tmp_path / "chat_template.jinja").write_text("x")
    ref = hub.commit("local/deep", tmp_path, "Too deep")
    for read in (base_of, published_template):
        with pytest.raises(SourceError, match="nests too deeply"):
            read(hub, ref)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "", "a/.."])
def test_paths_that_leave_their_folder(path: str) -> None:
    assert not is_inside(path)


@pytest.mark.attack
def test_files_of_a_source_stay_inside_it() -> None:
    assert is_inside("data/a.json") and is_inside("..data/x") and is_inside("a b.json")
    override = 'corpus.sources=[{repo_id: a/b, files: ["../../private.json"]}]'
    with pytest.raises(RecipeError, match="lies outside of the source"):
        recipes.load("parrot", overrides=[override])


@pytest.mark.attack
def test_terminal_escapes_are_shown_not_obeyed() -> None:
    assert printable("a\x1b]0;title\x07b\tc\nd\u202e") == "a\\x1b]0;title\\x07b\tc\nd\\u202e"
    command = "from hubkit.cli import console; console.line('\\x1b[31mred'); console.say('\\x9b2J')"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    assert b"\x1b" not in done.stdout and b"\\x1b[31mred" in done.stdout
    assert done.stderr.decode().startswith("\\x9b2J")


@pytest.mark.attack
@pytest.mark.parametrize(
    "url", ["https://jane:pa55word9@hub.acme.io", "https://tok3n9@hub.acme.io"]
)
def test_a_password_in_a_hub_s_address_is_refused_and_not_repeated(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBKIT_HUB", url)
    for reads in (settings, connect, lambda: connect_to(url)):
        with pytest.raises(HubError, match=r"hub\.acme\.io") as caught:
            reads()
        assert "pa55word9" not in str(caught.value) and "tok3n9" not in str(caught.value)


def _model_with_code(folder: Path, marker: Path) -> Path:
    folder.mkdir()
    (folder / "code.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).write_text('ran')\n"
        "from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast\n"
        "class C(PretrainedConfig):\n    model_type = 'own'\n"
        "class M(PreTrainedModel):\n    config_class = C\n"
        "class T(PreTrainedTokenizerFast):\n    pass\n"
    )
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoModel": "code.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    tokenizer = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["code.T", "code.T"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


LOADERS = {
    "tokenizer": "from hubkit.tokenization import load_tokenizer as f; f(path)",
    "weights": "from hubkit.training.loading import load_base as f; f(path, adapter=False)",
    "plan": "from hubkit.training.checks import meta_model as f; f(path)",
    "encoder": "from hubkit.metrics.topics import embed as f; f(['x'], path)",
    "engine": "from hubkit.local_engine.torch_engine import _load as f; f(path, {}, 'cpu')",
}


@pytest.mark.attack
@pytest.mark.parametrize("name", ["tokenizer", "weights", "plan", "engine"])
def test_a_model_that_brings_code_runs_nothing_and_nobody_is_asked(
    name: str, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    folder = _model_with_code(tmp_path / "model", marker)
    script = (
        "import pathlib, sys\nfrom hubkit.errors import RemoteCodeError\n"
        f"path = pathlib.Path({str(folder)!r})\n"
        f"try:\n    {LOADERS[name]}\nexcept RemoteCodeError as error:\n    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="yes\n" * 20,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert not marker.exists(), "its code ran"
    assert "which hubkit never does" in done.stderr and "trust_remote_code" not in done.stderr


@pytest.mark.attack
def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from support.tiny_models import tiny_base

    from hubkit.metrics.topics import embed
    from hubkit.training.loading import load_base

    base = tiny_base(tmp_path / "base")
    weights = base / "model.safetensors"
    torch.save(load_file(weights), base / "pytorch_model.bin")
    weights.unlink()
    for load in (lambda: load_base(base, adapter=False), lambda: embed(["x"], base)):
        with pytest.raises(SourceError, match="safetensors"):
            load()


@pytest.mark.attack
@pytest.mark.parametrize("base", ["/etc", "../base", "./base", "a/b/c", "a/.."])
def test_an_adapter_s_base_is_a_repo(base: str, hubkit_home: Path, tmp_path: Path) -> None:
    hub: Hub = connect()
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": base}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    ref = hub.commit("local/adapter", tmp_path / "adapter", "An adapter")
    with pytest.raises(SourceError, match="is no repo's name"):
        base_of(hub, ref)
    assert issubclass(RemoteCodeError, RuntimeError)


LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another kind, which loads further adapters": (
        {"peft_type": "XLORA", "adapters": {"a": "/home/other/private"}},
        "only LORA is loaded",
    ),
    "no kind": ({"peft_type": None}, "only LORA is loaded"),
    "a pattern that never ends": ({"target_modules": "(q+)+_proj"}, "may take for ever"),
    "many repetitions": ({"target_modules": ".*q.*q.*q.*q.*q.*q"}, "may take for ever"),
    "a pattern of what is left out": ({"exclude_modules": "(a|a)*$"}, "may take for ever"),
    "a pattern of layers": ({"layers_pattern": ["(.*)*"]}, "may take for ever"),
    "a pattern of ranks": ({"rank_pattern": {"(x+)*y": 4}}, "may take for ever"),
    "a rank for which there is no room": ({"r": 10**9}, "its weights one of 4 at most"),
    "a rank of one module": ({"rank_pattern": {"q_proj": 10**9}}, "its weights one of 4 at most"),
    "no rank": ({"r": "many"}, "its weights one of 4 at most"),
    "a module by its name": (
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        "megatron_config is set",
    ),
    "layers without end": ({"layer_replication": [[0, 1]] * 10**5}, "layer_replication is set"),
}


def _adapter(folder: Path, **change: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**LORA, **change}))
    shape = {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}
    header = json.dumps({"base_model.model.x.q_proj.lora_A.weight": shape}).encode()
    data = struct.pack("<Q", len(header)) + header + b"\0" * 32
    (folder / "adapter_model.safetensors").write_bytes(data)
    return folder


@pytest.mark.attack
@pytest.mark.parametrize("what", HOSTILE)
def test_an_adapter_s_settings_are_checked_before_they_are_acted_on(
    what: str, tmp_path: Path
) -> None:
    change, reason = HOSTILE[what]
    with pytest.raises(ValueError, match=reason):
        checked_lora(_adapter(tmp_path / "adapter", **change))
    assert checked_lora(_adapter(tmp_path / "adapter"))["r"] == 4
    kept = {"target_modules": r"model\.layers\.(\d+)\.(self_attn|mlp)\.(q|v)_proj"}
    assert checked_lora(_adapter(tmp_path / "adapter", **kept))


@pytest.mark.attack
def test_a_hostile_adapter_is_loaded_by_nobody(tmp_path: Path) -> None:
    from support.tiny_models import tiny_base

    from hubkit.local_engine.torch_engine import _load
    from hubkit.training.likelihood import load_model

    base = tiny_base(tmp_path / "base")
    adapter = _adapter(tmp_path / "adapter", target_modules="(q+)+_proj")
    with pytest.raises(SourceError, match="may take for ever"):
        load_model(base, adapter)
    with pytest.raises(EngineError, match="may take for ever"):
        _load(base, {"adapter": adapter}, "cpu")


@pytest.mark.attack
def test_an_asker_in_a_folder_names_no_other_folder_as_its_base(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    adapter = _adapter(tmp_path / "adapter", base_model_name_or_path=str(private))
    with pytest.raises(SourceError, match="names no repo as its base"):
        Asker.from_pretrained(adapter)


@pytest.mark.attack
@pytest.mark.parametrize(
    "row",
    [
        '{"left_words": 1e999}',
        '{"seconds": "x"}',
        '{"a": ' + "[" * 100_000,
        "9" * 5000,
        "[1]",
        "null",
    ],
)
def test_a_vote_of_a_stranger_is_counted_as_none(row: str, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text(row + "\n")
    assert read_votes([tmp_path / "votes.jsonl"]) == ([], 1)


@pytest.mark.attack
def test_an_impostor_s_nested_answer_is_no_stack_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the port of an environment, or of the embedded Hub, something else may answer."""
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "9000")
            self.end_headers()
            self.wfile.write(b"[" * 9000)

        def log_message(self, *_: object) -> None:
            """Not a word."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(EndpointUnreachableError, match="must not be sent a token"):
            require_own(url)
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / "server.json").write_text(json.dumps({"url": url, "pid": 1}))
        assert running() is None
        proof.require("another-token", tmp_path / "hub")
        with pytest.raises(HubUnreachableError, match="another program answers there"):
            Hub(url, "another-token", "local", embedded=True).api.whoami()
        server.shutdown()
