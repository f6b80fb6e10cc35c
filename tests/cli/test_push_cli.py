"""``hubkit publish``, ``lineage`` and the Spaces' folders, as a person meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.spaces import write_sources

from hubkit import recipe as recipes
from hubkit.hub import connect
from hubkit.publishing import spaces

ROOT = Path(__file__).resolve().parents[2]


def test_pushing_elsewhere_without_a_token_is_one_sentence_and_starts_nothing(
    cli_process: Callable[..., object], tmp_path: Path
):
    said = cli_process(
        "publish", "parrot", "--profile", "laptop", "--to", "https://huggingface.co", "--dry-run",
        HUBKIT_HOME=str(tmp_path), HF_HOME=str(tmp_path / "hf"),
    )  # fmt: skip
    assert said.returncode == 1 and said.stdout == ""
    (line,) = said.stderr.strip().splitlines()
    assert "there is no token for https://huggingface.co" in line and "hf auth login" in line
    assert not (tmp_path / "hub").exists()


def test_an_address_that_is_none_is_one_sentence(cli: Callable[..., object], tmp_path: Path):
    said = cli("publish", "parrot", "--to", "huggingface.co", HUBKIT_HOME=str(tmp_path))
    assert (
        said.returncode == 1
        and "it should be a Hub's URL" in said.stderr
        and "Traceback" not in said.stderr
    )


def test_publishing_before_anything_was_made_says_what_to_run(
    cli: Callable[..., object], hubkit_home: Path
):
    said = cli("publish", "realm", "--profile", "laptop", "--dry-run")
    assert said.returncode == 1 and "has not run" in said.stderr and "Traceback" not in said.stderr


def test_the_spaces_of_a_real_hub_are_run_there(cli: Callable[..., object], tmp_path: Path):
    said = cli("spaces", "parrot", HUBKIT_HUB="https://huggingface.co", HUBKIT_HOME=str(tmp_path))
    assert (
        said.returncode == 1
        and "runs its Spaces itself" in said.stderr
        and "Traceback" not in said.stderr
    )
    assert not (tmp_path / "hub").exists()


@pytest.fixture
def made(hubkit_home: Path, tmp_path: Path) -> str:
    """A model that was made from another one, on the embedded Hub."""
    hub = connect()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    base = hub.commit("someone/lineage-base", tmp_path / "base", "base")
    record = {"stage": "asker", "inputs": {"base": base.to_dict()}, "report": {}, "packages": {}}
    (tmp_path / "model" / "provenance").mkdir(parents=True)
    (tmp_path / "model" / "provenance" / "asker.json").write_text(json.dumps(record))
    hub.commit(hub.qualify("lineage-asker"), tmp_path / "model", "asker")
    return base.revision


def test_lineage_is_a_tree_json_and_a_picture(
    cli: Callable[..., object], made: str, tmp_path: Path
):
    said = cli("lineage", "lineage-asker", "--picture", str(tmp_path / "tree.png"))
    assert said.returncode == 0, said.stderr
    root, leaf = said.stdout.splitlines()
    assert root.startswith("model local/lineage-asker @ ")
    assert leaf == f"└─ base: model someone/lineage-base @ {made[:8]}"
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")
    tree = json.loads(cli("lineage", "lineage-asker", "--json").stdout)
    assert tree["made_from"][0]["revision"] == made


def test_lineage_of_nothing_is_one_sentence(cli: Callable[..., object], made: str):
    said = cli("lineage", "no-such-repo")
    assert said.returncode == 1 and "no model, dataset or Space local/no-such-repo" in said.stderr


@pytest.mark.parametrize("name", ["chat", "asker"])
def test_a_composed_space_is_whole_and_holds_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(ROOT / "spaces", tmp_path / "spaces")
    (tmp_path / "spaces" / name / ".env").write_text("TOKEN=of my own")
    (tmp_path / "spaces" / "common" / "notes.txt").write_text("mine")
    monkeypatch.setattr(spaces.assets, "folder", lambda kind: tmp_path / kind)
    folder = write_sources(name, tmp_path / name)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md", "app.py", "models.py", "page.py", "preview.png", "requirements.txt",
        "space.json", "votes.py", *(["blind.py"] if name == "chat" else []),
    }  # fmt: skip
    space = next(s for s in spaces.SPACES if s.folder == name)
    files = spaces.files(space, recipes.load("parrot"), lambda repo: f"me/{repo}")
    assert set(files) == names
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert (
        card["sdk"] == "gradio"
        and card["app_file"] == "app.py"
        and len(card["short_description"]) <= 60
    )
    for code in folder.glob("*.py"):
        assert "hubkit" not in "".join(
            line for line in code.open() if line.startswith(("import ", "from "))
        )


def test_the_former_name_of_push_is_still_taken(cli) -> None:  # type: ignore[no-untyped-def]
    push, publish = (cli(verb, "--help").stdout for verb in ("push", "publish"))
    assert push.replace("hubkit push", "") == publish.replace("hubkit publish", "").replace(
        "hubkit push", ""
    )
    assert "\n  publish" not in cli("--help").stdout
