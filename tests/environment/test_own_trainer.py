"""The page about trainers of one's own: its script, as printed, trains a tiny model against an
asker.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from environment.test_environment import environment
from support.paths import ROOT
from support.tiny_models import tiny_base

from hubkit import chat_templates

PAGE = (ROOT / "docs" / "environment.md").read_text("utf-8")
CLIENT, SCRIPT = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)


class Person:
    """An asker whose every turn is another one."""

    def __init__(self) -> None:
        self.views: list[list[Any]] = []

    def __call__(self, view: list[Any]) -> str:
        self.views.append(view)
        return f"What about number {len(self.views)}?"


def test_the_client_of_the_page_talks_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with environment(Person(), turns=2) as (url, _):  # type: ignore[arg-type]
        exec(CLIENT.replace("http://127.0.0.1:8090", url), {})
    assert "user: Why is it blue?" in (printed := capsys.readouterr().out)
    assert printed.endswith("target_turns None\n")


@pytest.mark.slow
def test_the_trainer_of_the_page_takes_two_steps(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "model")
    source = chat_templates.for_base(model).source("assistant")
    (model / "chat_template.jinja").write_text(source, "utf-8")
    (tmp_path / "train.py").write_text(SCRIPT)
    person = Person()
    with environment(person, turns=2) as (url, shared):  # type: ignore[arg-type]
        done = subprocess.run(
            [sys.executable, str(tmp_path / "train.py"), str(model), url, str(tmp_path / "out")],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    log = ast.literal_eval(re.sub(r"\bnan\b", "None", done.stdout.strip().splitlines()[-1]))
    steps = [entry for entry in log if "reward" in entry]
    assert len(steps) == 2 and all(entry["reward"] > 0 for entry in steps)
    assert sum(shared.counts.values()) == 4, "two steps of a group of two"
    assert len(person.views) >= 1


def test_the_mask_of_the_page_covers_the_models_tokens_alone(tmp_path: Path) -> None:
    """Its tokens joined are the conversation as the template renders it, and the mask is the
    answers.
    """
    from transformers import AutoTokenizer

    model = tiny_base(tmp_path / "model")
    source = chat_templates.for_base(model).source("assistant")
    (model / "chat_template.jinja").write_text(source, "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(model)
    names: dict[str, Any] = {}
    tree = ast.parse(SCRIPT)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    exec(compile(tree, "page", "exec"), names)
    turns = [("user", "Why?"), ("assistant", "So."), ("user", "And?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for end in ("<|im_end|>", ""):
        answer = tokenizer(f"So.{end}", add_special_tokens=False)["input_ids"]
        rest = names["between"](tokenizer, messages, answer)
        assert prompt + tokenizer.decode(answer) + tokenizer.decode(rest) == whole
