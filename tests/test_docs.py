"""README and docs say what is so: its figures stand in the file that commands wrote, and its
commands do what they say.

Every `hubkit` command is parsed down to where it would begin to work. Those that need no model, no
key and no network run, block by block in a shell, on a small home: a tiny base, and repos as `make
demo` leaves them."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from support import command
from support.paths import ROOT

from hubkit import cli, recipe

sys.path.insert(0, str(ROOT / "tests" / "bench"))
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if not path.is_symlink()
}
TEXT = "\n".join(PAGES.values())
# What is run in every test run; all other pages run with the slow tests.
FIRST_READ = ("README.md", "docs/quickstart.md", "docs/notebooks/test_an_agent.ipynb")


def _marks(page: str) -> tuple[pytest.MarkDecorator, ...]:
    return () if page in FIRST_READ else (pytest.mark.slow,)


BLOCKS = [
    pytest.param(block, id=f"{page}: {block.splitlines()[0][:50]}", marks=_marks(page))
    for page, text in PAGES.items()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
]
OWN_RECIPE = re.search(r"```yaml\n(name: .*?)```", PAGES["docs/recipes.md"], re.DOTALL)
# What is only parsed here, and where it runs.
ELSEWHERE = {
    r"\. \.venv/bin/activate": "the shell of these tests has it already",
    r"make ": "targets are looked up below; what they start is started by the tests named here",
    r"hf auth login": "asks a person for a key",
    r"hf download local/": "what a whole loop left: tests/publishing/test_asker_table.py",
    r"HUBKIT_HUB=https": (
        "huggingface.co is not reached from tests; "
        "a second embedded Hub stands in (test_publish.py)"
    ),
    r"hubkit run (?!.*--dry-run)": "whole loops: tests/e2e/test_loop.py, and below",
    r"hubkit rollout ": "needs servers in the seats: test_rollout_cli.py, test_rollout_ray.py",
    r"hubkit eval chat .*multichallenge": "its questions are on huggingface.co: test_suites.py",
    r"hubkit eval report ": "needs files of verdicts: test_verdict_files.py",
    r"hubkit eval against ": "needs a second model and an engine: test_against_cli.py",
    r"hubkit eval votes ": "needs visitors' votes: tests/evaluation/test_votes.py",
    r"hubkit train asker (?!.*--dry-run)": "minutes of training: tests/e2e/test_loop.py",
    r"hubkit askers ": "needs a scorecard: tests/publishing/test_asker_table.py",
    r"hubkit eval asker ": "needs a second asker and an engine: test_scorecard_cli.py",
    r"hubkit eval chat (?!.*--dry-run)": "needs an engine: test_eval_cli.py",
    r"hubkit study (?!.*--dry-run)": "needs models and time: tests/pipeline/test_studies.py",
    r"pip install ": "installed already",
    r"hubkit env ": "runs until it is stopped: tests/environment",
    r"hubkit serve ": "runs until it is stopped: test_local_engine_serve.py",
    r"hubkit spaces ": "runs until it is stopped: tests/browser",
}


def _lines(block: str) -> list[str]:
    """The commands of a block: a backslash at a line's end continues it."""
    return re.sub(r"\\\n\s*", "", block).splitlines()


def commands() -> list[str]:
    """Every `hubkit` command of the shell blocks in README and docs, without comments, pipes and
    variables before it.
    """
    lines = [
        line.split("  #")[0].strip() for block in BLOCKS for line in _lines(str(block.values[0]))
    ]
    lines = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in lines]
    return sorted({line for line in lines if line.startswith("hubkit ")})


@pytest.fixture(scope="module")
def command_line() -> Any:
    cli.register_all()
    return typer.main.get_command(cli.app)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    talk = (
        "Tell me about {w} {n}.",
        "There is much to say about {w}.",
        "And what of {w} in year {n}?",
        "It was good.",
    )
    with (folder / "my-chats.jsonl").open("w") as out:
        for n in range(160):
            word = ("bread", "chess", "rain", "Rome", "bees", "maps", "tea", "salt")[n % 8]
            turns = [
                {"role": ("user", "assistant")[i % 2], "content": text.format(w=word, n=n)}
                for i, text in enumerate(talk)
            ]
            out.write(json.dumps({"messages": turns}) + "\n")
    _own_layouts(folder)
    (folder / "questions.jsonl").write_text(
        json.dumps({"question_id": 1, "category": "x", "turns": ["How far?"]})
    )
    assert OWN_RECIPE
    (folder / "curious.yaml").write_text(OWN_RECIPE[1])
    return folder


def _own_layouts(folder: Path) -> None:
    """The dialogues of ``my-chats.jsonl`` in layouts that a command has to name."""
    dialogues = [json.loads(line) for line in (folder / "my-chats.jsonl").read_text().splitlines()]
    names = {"user": "customer", "assistant": "agent"}
    chats: list[list[str]] = [["id", "messages"]]
    tickets: list[list[Any]] = [["ticket", "sent", "speaker", "message"]]
    with (folder / "threads.jsonl").open("w") as threads:
        for number, dialogue in enumerate(dialogues):
            messages = dialogue["messages"]
            posts = [{"author": names[m["role"]], "body": m["content"]} for m in messages]
            threads.write(json.dumps({"thread": {"posts": posts, "title": "A talk"}}) + "\n")
            chats.append([str(number), json.dumps(messages)])
            tickets += [[number, n, names[m["role"]], m["content"]] for n, m in enumerate(messages)]
    for name, rows in (("chats.csv", chats), ("tickets.csv", tickets)):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def shell(
    here: Path, hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The environment of a person who ran `make demo` here, but small."""
    from hubkit.hub import connect, embedded

    home = tmp_path_factory.mktemp("home")
    for cache in (hubkit_home / "cache", home / "cache"):
        cache.mkdir(exist_ok=True)
    (hubkit_home / "cache" / "wheels").mkdir(exist_ok=True)
    (home / "cache" / "wheels").symlink_to(
        hubkit_home / "cache" / "wheels"
    )  # nothing is downloaded twice
    bin_ = here / "bin"
    bin_.mkdir()
    (bin_ / "hubkit").write_text(f'#!/bin/sh\nexec {sys.executable} -m hubkit "$@"\n')
    (bin_ / "hubkit").chmod(0o755)
    patch = pytest.MonkeyPatch()
    patch.setenv("HUBKIT_HOME", str(home))
    patch.setenv("HF_HOME", str(home / "hf"))
    as_if_made(connect(), here)
    path = f"{bin_}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield {**os.environ, "PATH": path, "OPENAI_API_KEY": "not-a-key"}
    embedded.stop()
    patch.undo()


def as_if_made(hub: Any, folder: Path) -> None:
    """Repos as the demo leaves them: base, corpus, asker, two versions of the dialogues, chat
    model.
    """
    from support.tiny_models import tiny_base, write_rows

    from hubkit.chat_templates import for_base
    from hubkit.hub import Ref

    weights = tiny_base(folder / "base")
    config = weights / "config.json"  # rotary positions: a longer context needs no other weights
    config.write_text(
        config.read_text().replace(
            '"max_position_embeddings": 512', '"max_position_embeddings": 4096'
        )
    )
    template = for_base(weights).source("assistant")
    (weights / "chat_template.jinja").write_text(template, "utf-8")
    base = hub.commit("HuggingFaceTB/SmolLM2-135M-Instruct", weights, "a tiny base")

    def add(
        repo: str, repo_type: str, stage: str, inputs: dict[str, Ref], splits: dict[str, int]
    ) -> Ref:
        out = folder / stage
        (out / "provenance").mkdir(parents=True, exist_ok=True)
        record = {
            "stage": stage,
            "inputs": {role: ref.to_dict() for role, ref in inputs.items()},
            "report": {},
        }
        (out / "provenance" / f"{stage}.json").write_text(json.dumps(record))
        (out / "data").mkdir(exist_ok=True)
        for split, count in splits.items():
            rows = [[("user", f"Why {n}?"), ("assistant", f"{n}."), ("user", "And?"),
                     ("assistant", "Yes.")]
                    for n in range(count)]  # fmt: skip
            write_rows(out / "data" / f"{split}-00000-of-00001.parquet", rows)
        if repo_type == "model":
            (out / "config.json").write_text((folder / "base" / "config.json").read_text())
        return hub.commit(hub.qualify(repo), out, stage, repo_type=repo_type)

    corpus = add("parrot-sharegpt", "dataset", "corpus", {}, {"train": 8, "test": 8})
    asker = add("parrot-ask", "model", "asker", {"base": base, "corpus": corpus}, {})
    for version, count in (("v1", 8), ("v2", 6)):
        made = add("parrot-40k", "dataset", "curate", {"asker": asker}, {"train": count})
        hub.api.create_tag(made.repo_id, tag=version, revision=made.revision, repo_type="dataset")
    add("parrot-chat", "model", "chat", {"base": base, "dialogues": made}, {})


def test_figures_are_those_of_the_results() -> None:
    import readme
    from figures import GATHERED, gather

    gathered = gather()
    assert json.loads(GATHERED.read_text("utf-8")) == gathered, "run `python tests/bench/readme.py`"
    for page, text in PAGES.items():
        assert readme.filled(text, gathered) == text, f"{page}: run `python tests/bench/readme.py`"
    assert readme.PAGE.read_text("utf-8") == readme.page(gathered), (
        "run `python tests/bench/readme.py`"
    )


@pytest.mark.slow
def test_the_plan_at_full_scale_is_what_the_commands_say() -> None:
    import plans
    from figures import RESULTS

    assert json.loads((RESULTS / "plans.json").read_text("utf-8")) == plans.main(), (
        "run `make plans`"
    )


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_that_the_command_line_takes(
    line: str, command_line: Any, here: Path
) -> None:
    """Each with all its options, down to where it would begin to work; recipes, profiles and values
    are read too.
    """
    node, words = command_line, shlex.split(line)[1:]
    context = node.context_class(node, info_name="hubkit")
    while hasattr(node, "resolve_command"):
        context = node.make_context(node.name, list(words), parent=context)
        _, node, words = node.resolve_command(context, [*context._protected_args, *context.args])
    values = node.make_context(node.name, list(words), parent=context).params
    name = str(values.get("recipe"))
    if name in recipe.available()["recipes"] or name.endswith(".yaml"):
        path = str(here / name) if name.endswith(".yaml") else name
        load = partial(recipe.load_study, "utility") if node.name == "utility" else recipe.load
        load(path, profiles=values.get("profile", ()), overrides=values.get("overrides", ()))


@pytest.mark.parametrize("block", BLOCKS)
def test_commands_run(block: str, shell: dict[str, str], here: Path) -> None:
    lines = [line for line in _lines(block) if line.strip()]
    run = [line for line in lines if not any(re.match(start, line) for start in ELSEWHERE)]
    run = [
        line for line in run if "from transformers" not in line
    ]  # weights: tests/e2e/test_loop.py loads them
    if not any(line.split()[0] in ("hubkit", "hf", "python") for line in run):
        pytest.skip("everything in it runs elsewhere: see ELSEWHERE")
    for done in _done(run, shell, here):
        assert done.returncode == 0, f"{done.args}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        assert (
            "cannot run" not in done.stdout + done.stderr
            or "--profile cloud" in block
            or "--launch" in block
        )


def _done(
    lines: list[str], shell: dict[str, str], here: Path
) -> Iterator[subprocess.CompletedProcess[str]]:
    """Run the lines of a block in `here`: in a shell where they need one, else in this process."""
    plain = [line.split("  #")[0] for line in lines]
    if all(re.fullmatch(r"hubkit [^|&;<>$`*?]+", line) for line in plain):
        for line in plain:
            with contextlib.chdir(here):
                words = shlex.split(line)[1:]
                yield command.run(*words, OPENAI_API_KEY=shell["OPENAI_API_KEY"])
        return
    yield subprocess.run(
        ["bash", "-e"],
        input="\n".join(lines),
        env=shell,
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )


def code_cells(path: Path) -> str:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


PYTHON = {
    **{
        page: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        for page, text in PAGES.items()
    },
    **{
        path.relative_to(ROOT).as_posix(): code_cells(path)
        for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    },
}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=_marks(page)) for page, code in PYTHON.items() if code]
)
def test_python_runs_as_printed(page: str, shell: dict[str, str], here: Path) -> None:
    """All blocks of a page, or cells of a notebook, one after another in one process."""
    env = {**shell, "HUBKIT_HOME": shell["HUBKIT_HOME"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PYTHON[page]],
        env=env,
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_third_recipe_runs_as_it_stands(here: Path, hubkit_home: Path) -> None:
    """With real weights, from nothing, by the command that stands below it."""
    (line,) = [line for line in commands() if line.startswith("hubkit run curious.yaml --profile")]
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(line), "--json"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert stages["curate"]["report"]["kept"] > 0 and stages["eval"]["repo_id"].endswith(
        "curious-results"
    )


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", TEXT, re.MULTILINE)):
        assert re.search(rf"^(?:[a-z -]*\b)?{target}\b[a-z -]*:", makefile, re.MULTILINE), (
            f"no target {target}"
        )


def test_commands_exist(command_line: Any) -> None:
    """Also those that prose names."""
    named = set(re.findall(r"(?:`|\$\(|face\.co )hubkit ([a-z]+)", TEXT))
    assert named - set(command_line.commands) == set()


def test_readme_is_short_enough_to_read() -> None:
    assert PAGES["README.md"].count("\n") <= 120


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_every_page_is_in_the_navigation(page: str) -> None:
    assert page.removeprefix("docs/") in (ROOT / "mkdocs.yml").read_text("utf-8")
