"""Plug-ins: a filter of one's own works in one process, in many, over Ray and in a job, and what is
wrong with one is a sentence.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.paths import ROOT

from hubkit import plugins
from hubkit.data.curation import curate
from hubkit.data.filters import FILTERS
from hubkit.data.filters.parallel import SMALL_BYTES, workers_for
from hubkit.errors import RecipeError
from hubkit.recipe import Curate, Filter, load

# The example of CONTRIBUTING.md.
SHOUTING = re.search(
    r"```python\n(.*?no_shouting.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S
)[1]  # type: ignore[index]
CHAIN = [Filter(name="no_shouting", args={"share": 0.4}), Filter(name="exact_duplicates")]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A file of plug-ins; what it registered is removed again."""
    path = tmp_path / "own_filters.py"
    path.write_text(SHOUTING)
    yield path
    plugins._loaded.pop(path.name, None)
    if "no_shouting" in FILTERS:
        del FILTERS["no_shouting"]


def raw(folder: Path, count: int = 300) -> list[Path]:
    rows = [
        {
            "id": f"d{i}",
            "messages": [
                {"role": "user", "content": f"HELLO THERE {i}" if i % 3 == 0 else f"hello {i}"},
                {"role": "assistant", "content": f"Good day, {i}."},
            ],
        }
        for i in range(count)
    ]
    path = folder / "raw.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return [path]


def content(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    del report["seconds"]
    files = {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}
    return {"report": report, **files}


def recipe_with(folder: Path, *named: str) -> Path:
    """A recipe of one's own that names plug-ins relative to itself."""
    shipped = (ROOT / "hubkit/recipes/parrot.yaml").read_text("utf-8")
    path = folder / "mine.yaml"
    path.write_text(f"plugins: {json.dumps(named)}\n{shipped}", "utf-8")
    return path


def test_a_filter_of_ones_own_decides_alike_in_one_process_and_in_many(
    own: Path, tmp_path: Path
) -> None:
    recipe = load(str(recipe_with(tmp_path, own.name)))
    assert recipe.plugins == [str(own)]
    files = raw(tmp_path)
    report = curate(Curate(filters=CHAIN), files, tmp_path / "one", workers=0)
    assert report.kept == 200 and report.steps[0].dropped["shouting"].count == 100
    curate(Curate(filters=CHAIN), files, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert workers_for(SMALL_BYTES) > 0  # from which size on it is many without being asked


@pytest.mark.slow
def test_over_ray_too(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    plugins.load([str(own)])
    files = raw(tmp_path)
    curate(Curate(filters=CHAIN), files, tmp_path / "one", workers=0)
    curate(Curate(filters=CHAIN, on="ray"), files, tmp_path / "ray")
    assert content(tmp_path / "one") == content(tmp_path / "ray")


def test_an_installed_package_needs_no_recipe_key(tmp_path: Path) -> None:
    (tmp_path / "acme_filters.py").write_text(SHOUTING.replace("@register\n", ""))
    info = tmp_path / "acme_filters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-filters\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hubkit.filters]\nno_shouting = acme_filters:no_shouting\nbroken = acme_filters:gone\n"
    )
    raw(tmp_path)
    code = f"""
import sys
from pathlib import Path
from hubkit.data.curation import curate
from hubkit.data.filters import FILTERS, Chain
from hubkit.recipe import Curate, Filter
chain = [Filter(name="no_shouting")]
assert "acme_filters" not in sys.modules and "no_shouting" in FILTERS
folder = Path({str(tmp_path)!r})
for workers in (0, 2):
    report = curate(Curate(filters=chain), [folder / "raw.parquet"], folder / str(workers),
                    workers=workers)
    print(report.kept)
try:
    Chain([Filter(name="broken")])
except ValueError as error:
    print(error)
"""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    first, second, broken = done.stdout.splitlines()
    assert first == second == "200"
    assert "'broken' of acme-filters (acme_filters:gone) cannot be loaded" in broken


def test_another_process_gets_a_file_as_its_text(own: Path, tmp_path: Path) -> None:
    plugins.load([str(own)])
    loaded = [plugin for plugin in plugins.snapshot() if plugin["name"] == own.name]
    own.unlink()
    code = (
        "import json, sys; from hubkit import plugins; plugins.restore(json.load(sys.stdin)); "
        "from hubkit.data.filters import FILTERS; print('no_shouting' in FILTERS, "
        f"plugins.digests([{str(own)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(loaded), capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", f"['{loaded[0]['sha256']}']"], done.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r"plug-in '.*own_filters.py' cannot be read: No such file"),
        (
            "import acme_gone",
            "cannot be imported: ModuleNotFoundError: No module named 'acme_gone'",
        ),
        ("def (", "cannot be imported: SyntaxError"),
        ("1/0", "cannot be imported: ZeroDivisionError"),
        (
            SHOUTING.replace("no_shouting", "min_turns"),
            "'min_turns' of hubkit_plugin_own_filters.min_turns is already registered by "
            "hubkit.data.filters.turns.min_turns",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said(
    own: Path, tmp_path: Path, source: str | None, message: str
) -> None:
    own.unlink() if source is None else own.write_text(source)
    with pytest.raises(RecipeError, match=message):
        load(str(recipe_with(tmp_path, own.name)))
    assert own.name not in plugins._loaded


def test_a_module_that_is_not_installed_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'acme\.filters' cannot be imported"):
        load("parrot", overrides=["plugins=[acme.filters]"])
    with pytest.raises(RecipeError, match="neither an installed module nor a file"):
        load("parrot", overrides=["plugins=[acme_filters]"])


def test_code_that_changed_is_no_silent_mixture(own: Path) -> None:
    plugins.load([str(own)])
    first = plugins.digests([str(own)])
    plugins.load([str(own)])
    own.write_text(SHOUTING + "\n")
    with pytest.raises(RecipeError, match=r"two plug-ins are named 'own_filters\.py'"):
        plugins.load([str(own)])
    assert plugins.digests([str(own)]) == first  # what this process runs
