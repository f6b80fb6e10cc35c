"""What is pushed, used by a stranger: stock libraries only, an empty cache, and the cards' own
snippets as written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import space_process, tiny_models

from hubkit import recipe as recipes
from hubkit.hub import Hub, Ref, connect, environment
from hubkit.publishing import publish
from hubkit.recipe import Recipe

pytestmark = pytest.mark.slow
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    loaded = recipes.load("parrot", profiles=["laptop"])
    repos = {
        key: f"{value}-pushed" for key, value in loaded.repos.model_dump(exclude_none=True).items()
    }
    short = loaded.rollout.asker.model_copy(
        update={"sampling": loaded.rollout.asker.sampling.model_copy(update={"max_tokens": 8})}
    )
    return loaded.model_copy(
        update={
            "repos": loaded.repos.model_copy(update=repos),
            "asker": loaded.asker.model_copy(update={"base": "tiny/base"}),
            "chat": loaded.chat.model_copy(update={"base": "tiny/base"}),
            "rollout": loaded.rollout.model_copy(update={"asker": short}),
        }
    )


def tiny_base(folder: Path) -> None:
    """A Llama of a few thousand random weights with a tokenizer and a template."""
    tiny_models.tiny_base(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def adapter(base: Path, folder: Path, base_id: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear")
    )
    model.peft_config["default"].base_model_name_or_path = base_id
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    messages = [
        {"role": role, "content": text}
        for role, text in (
            ("user", "hi"),
            ("assistant", "hello"),
            ("user", "and then?"),
            ("assistant", "nothing"),
        )
    ]
    pq.write_table(
        pa.table({"id": [path.name, "b"], "messages": [messages] * 2, "source": ["t", "t"]}), path
    )


@pytest.fixture(scope="module")
def pushed(hubkit_home: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Everything that the stages would have made, published."""
    hub = connect()
    made: dict[str, Ref] = {}
    root = tmp_path_factory.mktemp("made")
    (root / "base").mkdir()
    tiny_base(root / "base")
    base = hub.commit("tiny/base", root / "base", "a tiny base")

    def stage(
        name: str, repo: str, repo_type: str, inputs: dict[str, Ref], files: tuple[str, ...] = ()
    ) -> None:
        out = root / name
        (out / "provenance").mkdir(parents=True)
        record: dict[str, Any] = {
            "stage": name,
            "report": {"kept": 2},
            "packages": {},
        }  # two rows in each parquet file
        record["inputs"] = {role: ref.to_dict() for role, ref in inputs.items()}
        (out / "provenance" / f"{name}.json").write_text(json.dumps(record))
        for file in files:
            parquet(out / "data" / f"{file}-00000-of-00001.parquet")
        if repo_type == "model":
            adapter(root / "base", out, "tiny/base")
        if name == "eval":
            (out / "results.json").write_text('{"asker": {}}')
        made[name] = hub.commit(
            hub.qualify(getattr(recipe.repos, repo)), out, name, repo_type=repo_type
        )

    stage("corpus", "corpus", "dataset", {}, ("train", "openings", "test"))
    stage("asker", "asker", "model", {"base": base, "corpus": made["corpus"]})
    stage(
        "rollout",
        "dialogues",
        "dataset",
        {"openings": made["corpus"], "asker": made["asker"], "chat": base},
        ("raw",),
    )
    stage("curate", "dialogues", "dataset", {"rollout": made["rollout"]}, ("train", "dropped"))
    stage("chat", "chat", "model", {"base": base, "dialogues": made["curate"]})
    stage(
        "eval",
        "results",
        "dataset",
        {"corpus": made["corpus"], "asker": made["asker"], "chat": made["chat"]},
    )
    publish(hub, recipe, made)
    return hub


@pytest.fixture
def stranger(pushed: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has set what ``hubkit hub env`` prints, and has never loaded
    a thing.
    """
    ours = ("HF_", "HUBKIT_", "TRANSFORMERS_", "PYTHONPATH")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    caches = {
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_DATASETS_CACHE": str(tmp_path / "d"),
    }
    return {**clean, **environment(), **caches}


@pytest.mark.parametrize(
    ("kind", "repo_type"),
    [
        ("corpus", "dataset"),
        ("asker", "model"),
        ("dialogues", "dataset"),
        ("chat", "model"),
        ("results", "dataset"),
    ],
)
def test_a_card_s_snippet_runs_as_written(
    pushed: Hub, recipe: Recipe, stranger: dict[str, str], kind: str, repo_type: str, tmp_path: Path
) -> None:
    head = pushed.resolve(pushed.qualify(getattr(recipe.repos, kind)), repo_type=repo_type)
    card = pushed.read(head, "README.md").decode()
    for snippet in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        ran = subprocess.run(
            [sys.executable, "-c", snippet], capture_output=True, text=True, env=stranger,
            cwd=tmp_path, timeout=240, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert ran.stdout.strip() or kind in ("asker", "chat"), (
            "random weights may say nothing, data may not"
        )


@pytest.mark.parametrize("which", ["chat", "asker"])
def test_a_pushed_space_runs_from_its_repo_with_the_models_inside(
    pushed: Hub, recipe: Recipe, stranger: dict[str, str], which: str, tmp_path: Path
) -> None:
    import shutil

    from gradio_client import Client

    space = pushed.resolve(pushed.qualify(getattr(recipe.repos, which)), repo_type="space")
    shutil.copytree(pushed.snapshot(space), tmp_path / "space")
    with contextlib.ExitStack() as stack:
        url = space_process.start(stack, tmp_path / "space", stranger)
        client = Client(url, verbose=False)
        if which == "chat":
            answer = client.predict("hello", "", 1.0, 8, api_name="/complete")
        else:
            spoken = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
            answer = client.predict(spoken, 1.0, api_name="/next_turn")
        assert isinstance(answer, str), (tmp_path / "space" / "log.txt").read_text()[-2000:]


def test_ctrl_c_leaves_no_process_of_the_spaces(pushed: Hub, recipe: Recipe) -> None:
    """Last in this file: the Hub starts again, elsewhere, as one that runs Spaces."""
    from hubkit.hub import embedded

    embedded.ensure_running(spaces=True)
    state = embedded.running()
    assert state is not None
    hub = psutil.Process(state["pid"])
    ours = {
        f"repos.{key}": value for key, value in recipe.repos.model_dump(exclude_none=True).items()
    }
    chosen = {**ours, "asker.base": "tiny/base", "chat.base": "tiny/base"}
    told = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "hubkit", "spaces", "parrot", "--profile", "laptop", *told]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        said = (
            list(iter(lambda: run.stdout.readline(), "Ctrl-C stops them\n"))
            if run.poll() is None
            else []
        )
        apps, engines = (
            hub.children(recursive=True),
            psutil.Process(run.pid).children(recursive=True),
        )
        pages = re.findall(r"^(?:chat|asker)  (http://\S+)", "".join(said), re.MULTILINE)
        assert len(pages) == 2 and len(apps) >= 2 and engines, said
        run.send_signal(signal.SIGINT)
        assert run.wait(240) == 0, "what was to be stopped has not failed"
        assert "resumes" not in run.stdout.read()
    _, alive = psutil.wait_procs([*apps, *engines], timeout=240)
    assert not alive, alive
    assert hub.is_running(), "the Hub goes on by itself"
