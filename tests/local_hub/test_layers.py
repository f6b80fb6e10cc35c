"""The parts of the embedded Hub depend on each other in one direction."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "hubkit" / "local_hub"
PREFIX = "hubkit.local_hub."
LAYERS = (
    "errors",
    "storage",
    "apps",
    "hub",
    "api",
    "pages",
    "app",
    "server",
    "commands",
    "__main__",
)
"""Each may import those before it, wherever in its code the import is."""

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """The modules of the package that a file imports when it runs, also inside functions."""
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    modules = {_name(file) for file in FILES}
    names = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PREFIX[:-1]):
            base = (node.module or "")[len(PREFIX) :]
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                names.add(inner if inner in modules else base)
        elif isinstance(node, ast.Import):
            names |= {a.name[len(PREFIX) :] for a in node.names if a.name.startswith(PREFIX)}
    return names - {_name(path)}


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_layer_imports_only_the_layers_below(path: Path) -> None:
    layer = _name(path).partition(".")[0]
    if layer not in LAYERS:
        return
    for module in _imports(path):
        below = module.partition(".")[0]
        if below in LAYERS:
            assert LAYERS.index(below) <= LAYERS.index(layer), f"{_name(path)} imports {module}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {_name(path): _imports(path) for path in FILES}
    TopologicalSorter(graph).prepare()
