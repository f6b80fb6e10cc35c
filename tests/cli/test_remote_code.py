"""A model that brings its architecture as code is refused by every command in one sentence:
nothing of it runs, and nobody is asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_base, write_rows

from hubkit import cli
from hubkit.errors import RemoteCodeError
from hubkit.hub import Hub, connect
from hubkit.training.checks import meta_model

ROWS = [
    [("user", "How do I bake bread?"), ("assistant", "Mix flour."), ("user", f"And rye {n}?"),
     ("assistant", "Less water.")]
    for n in range(24)
]  # fmt: skip
CODE = """import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import PretrainedConfig, PreTrainedModel
class C(PretrainedConfig):
    model_type = "own"
class M(PreTrainedModel):
    config_class = C
"""
ASKER = ["--set", "asker.base=acme/code"]
CHAT = ["--set", "chat.base=acme/code"]
SEAT = ["--set", "rollout.chat.repo=acme/code", "--set", "asker.base=acme/plain"]
COMMANDS: dict[str, list[str]] = {
    "train, dry": ["train", "asker", "parrot", *ASKER, "--dry-run"],
    "align, dry": ["align", "parrot", "--profile", "capo-laptop", *CHAT, "--dry-run"],
    "reinforce, dry": ["reinforce", "parrot", "--profile", "reinforce-laptop", *CHAT, "--dry-run"],
    "rollout, dry": ["rollout", "parrot", *SEAT, "--dry-run"],
    "run, dry": ["run", "parrot", *ASKER, "--dry-run"],
    "serve": ["serve", "acme/code", "--port", "0"],
    "eval chat": ["eval", "chat", "acme/code", "-b", "{questions}"],
    "eval asker": ["eval", "asker", "acme/code", "--data", "{rows}", "--embedder", "none"],
}


@pytest.fixture(scope="module")
def files(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model ``acme/code`` on the Hub, one without code, and what commands read beside it."""
    folder = tmp_path_factory.mktemp("code")
    hub: Hub = connect()
    base = tiny_base(folder / "base")
    hub.commit("acme/plain", base, "A model without code")
    marker = folder / "marker"
    config = json.loads((base / "config.json").read_text())
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    own = {"model_type": "own", "architectures": ["Own"], "auto_map": names}
    (base / "config.json").write_text(json.dumps({**config, **own}))
    (base / "code.py").write_text(CODE.format(marker=str(marker)))
    hub.commit("acme/code", base, "A model with code")
    questions = folder / "questions.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "category": "x", "turns": ["Why?"]}) + "\n")
    rows = write_rows(folder / "rows.parquet", ROWS)
    return {"marker": marker, "questions": questions, "rows": rows, "base": base}


@pytest.mark.parametrize("name", COMMANDS)
def test_code_of_a_base_is_refused_in_one_sentence(
    name: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    class NotAsked:
        def __getattr__(self, attribute: str) -> Any:
            pytest.fail("nobody is asked on the standard input")

    source = [{"path": str(files["rows"]), "license": "other"}]
    arguments = [part.format(**files) if "{" in part else part for part in COMMANDS[name]]
    if arguments[0] == "train":
        changes = {"corpus.sources": source, "corpus.filters": [], "corpus.openings": 4,
                   "corpus.test": 4, "repos.corpus": "code-corpus"}  # fmt: skip
        for key, value in changes.items():
            arguments += ["--set", f"{key}={json.dumps(value)}"]
    monkeypatch.setattr(sys, "argv", ["hubkit", *arguments])
    monkeypatch.setattr(sys, "stdin", NotAsked())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = "".join(capfd.readouterr())
    assert ended.value.code == 1, said
    assert "loads only by running code out of its own repo, which hubkit never does" in " ".join(
        said.split()
    ), said
    assert "Traceback" not in said and "trust_remote_code" not in said
    assert not files["marker"].exists(), "its code ran"


def test_code_that_is_not_needed_is_left_alone(files: dict[str, Path], tmp_path: Path) -> None:
    """A repo may bring code for an architecture that transformers knows too."""
    config = json.loads((files["base"] / "config.json").read_text())
    (tmp_path / "code.py").write_text((files["base"] / "code.py").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    assert type(meta_model(tmp_path)).__name__ == "LlamaForCausalLM"
    with pytest.raises(RemoteCodeError):
        meta_model(files["base"])
    assert not files["marker"].exists()
