"""What the code promises of itself: layers (held by import-linter), no paper's name in code, and a
command line that answers at once.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "hubkit"
ALONE = ("local_hub", "local_engine")
PAPER_NAMES = re.compile(r"parrot|usergpt|realchat|realm|socratic|platolm", re.IGNORECASE)
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "gradio",
    "xllamacpp",
    "matplotlib",
    "pyarrow",
)


def _package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path, *, typed: bool = True) -> list[tuple[str, bool]]:
    """(module, whether the import runs when the module is imported) for every import in a file;
    without those for types alone unless `typed`."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for n in ast.walk(f)
    }
    guarded = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.unparse(f.test)
        for n in ast.walk(f)
    }
    found = []
    for node in ast.walk(tree):
        at_top = id(node) not in inside and id(node) not in guarded
        if id(node) in guarded and not typed:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, at_top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.module, at_top))
            if node.module == "hubkit":
                found += [(f"hubkit.{alias.name}", at_top) for alias in node.names]
    return found


def _files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "_assets" not in p.parts)


@pytest.mark.parametrize("path", _files(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_papers_name_in_code(path: Path) -> None:
    if path.parent.name == "cli" or path == PACKAGE / "__init__.py":
        return  # help texts and examples name the recipes that ship
    found = PAPER_NAMES.search(path.read_text("utf-8"))
    assert found is None, (
        f"{path} names {found and found.group()}; names of papers belong in recipes and cards"
    )


@pytest.mark.parametrize("path", _files(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    if _package_of(path) in ALONE:
        return  # processes of their own
    heavy = [m for m, at_top in _imports(path) if at_top and m.split(".")[0] in HEAVY]
    assert not heavy, (
        f"{path} imports {heavy} at its top; import it inside the function that needs it"
    )


def test_only_the_command_line_prints_or_exits() -> None:
    for path in _files():
        if _package_of(path) in (
            "cli",
            "__main__",
            *ALONE,
        ) or '__name__ == "__main__"' in path.read_text("utf-8"):
            continue  # the command line, and files that are processes of their own
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit", "input"), (
                    f"{path}:{node.lineno} calls {node.func.id}"
                )
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.exit":
                raise AssertionError(f"{path}:{node.lineno} exits")


PLANTED = {
    "hubkit/recipe/planted.py": ("from hubkit.pipeline import run", "A layer imports only lower"),
    "hubkit/local_hub/planted.py": ("from ..local_engine import app", "processes of their own"),
    "hubkit/metrics/planted.py": ("from . import sampling, planted_too", "No package has a cycle"),
}


def test_imports_follow_the_layers_and_what_does_not_is_found(tmp_path: Path) -> None:
    """Also relative imports, and those inside functions; a copy is where violations are planted."""
    shutil.copytree(PACKAGE, tmp_path / "hubkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    kept = _lint_imports(tmp_path)
    assert kept.returncode == 0, kept.stdout
    (tmp_path / "hubkit/metrics/planted_too.py").write_text(
        "def late() -> None:\n    from . import planted\n"
    )
    for path, (source, _) in PLANTED.items():
        (tmp_path / path).write_text(f"{source}\n")
    found = _lint_imports(tmp_path)
    assert found.returncode == 1
    broken = [line for line in found.stdout.splitlines() if "BROKEN" in line]
    for path, (_, contract) in PLANTED.items():
        assert len([line for line in broken if contract in line]) == 1, path
    assert len(broken) == len(PLANTED), broken


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


FOLDER_OF = re.compile(
    r"Path\((__file__|hubkit\.__file__)\)\.resolve\(\)(?:\.parents\[(\d)\]|((?:\.parent)+))"
)


def test_children_find_the_package_and_not_what_is_in_it() -> None:
    """Modules of the package have names of the standard library: its folder is on no path."""
    for path in _files():
        text = path.read_text("utf-8")
        for name, index, steps in FOLDER_OF.findall(text) if "PYTHONPATH" in text else ():
            start = path if name == "__file__" else PACKAGE / "__init__.py"
            levels = int(index) if index else steps.count(".parent") - 1
            assert start.parents[levels] == ROOT, f"{path} puts {start.parents[levels]} on a path"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv=['hubkit','--help']; from hubkit.cli import main\ntry: main()\n"
        "except SystemExit: pass\n"
    )
    code += f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.strip().endswith("HEAVY []")


def test_long_files_and_functions_are_named() -> None:
    """Not a limit: a warning that says where to look."""
    for path in _files():
        lines = path.read_text("utf-8").count("\n")
        if lines > 400:
            warnings.warn(f"{path} has {lines} lines: does it hold two ideas?", stacklevel=1)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    place = f"{path}:{node.lineno} {node.name}"
                    warnings.warn(f"{place} has {lines} lines: name its parts?", stacklevel=1)


MOST_PARAMETERS = 8


def test_no_function_has_more_than_eight_parameters() -> None:
    """What belongs together stands in a dataclass; `self` and `cls` do not count."""
    long = []
    for folder in ("hubkit", "spaces", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    count = len(_parameters(node))
                    if count > MOST_PARAMETERS:
                        long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {count}")
    assert long == []


MOST_UNTYPED = 126  # occurrences of dict[str, Any]: what a library's own keywords and files hold
PARSING = ("hubkit/cli/eval_*.py", "hubkit/cli/stats.py", "hubkit/cli/env.py")


def test_plain_data_has_types() -> None:
    """What is JSON says so (`hubkit.untrusted.Json`); open mappings of anything are the exception,
    under whatever name."""
    pattern = re.compile(r"\bdict\[str, Any\]")
    counts = {path: len(pattern.findall(path.read_text("utf-8"))) for path in _files()}
    most = sorted(counts.items(), key=lambda item: -item[1])[:10]
    assert sum(counts.values()) <= MOST_UNTYPED, most
    aliases = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _files()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.match(r"\w+(: TypeAlias)? = \"?dict\[str, Any\]", line)
    ]
    assert aliases == []


def test_evaluations_on_the_command_line_are_arguments_and_printing() -> None:
    """Models and datasets are looked up, served and asked by `hubkit.api.evaluations` alone."""
    asking = ("hubkit.serving", "hubkit.judging", "hubkit.rollout", "hubkit.reinforcement")
    for pattern in PARSING:
        for path in ROOT.glob(pattern):
            found = [
                module for module, _ in _imports(path, typed=False) if module.startswith(asking)
            ]
            assert not found, f"{path} imports {found}; put it into hubkit/api/evaluations.py"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    found = node.args
    names = [arg.arg for arg in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def test_whatever_is_public_says_what_it_is() -> None:
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    silent = []
    for path in _files():
        tree = ast.parse(path.read_text("utf-8"))
        silent += [] if ast.get_docstring(tree) else [str(path)]
        classes = [
            node
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ]
        methods = [node for found in classes for node in found.body if isinstance(node, functions)]
        named = [
            node for node in [*tree.body, *methods] if isinstance(node, functions | ast.ClassDef)
        ]
        silent += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            for node in named
            if not node.name.startswith("_")
            and not ast.get_docstring(node)
            and ast.unparse(node.body) != "..."
        ]
    assert silent == []


def test_every_dependency_has_its_licence_listed() -> None:
    listed = set(
        re.findall(
            r"(?m)^\| ([\w.-]+) \|",
            (ROOT / "LICENCES.md").read_text("utf-8").lower().replace("_", "-"),
        )
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [
        line
        for name in ("local", "train", "eval", "spaces")
        for line in project["optional-dependencies"][name]
    ]
    wanted = [line for line in [*project["dependencies"], *extras] if project["name"] not in line]
    names = {re.split(r"[<>=;\[ ]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= listed, f"run `make licences`: {names - listed}"


def test_every_variable_of_the_environment_has_its_place() -> None:
    """`hubkit.settings` names them all; the embedded Hub and engine, which import nothing, repeat
    those that they read."""
    from hubkit import settings

    known = {value for name, value in vars(settings).items() if name.isupper()}
    read = {
        name
        for path in _files()
        for name in re.findall(r"[\"']?(HUBKIT_[A-Z_]*[A-Z])\b", path.read_text("utf-8"))
    }
    assert read <= known, f"add these to hubkit/settings.py: {read - known}"
    literal = [
        f"{path}: {found}"
        for path in _files()
        if _package_of(path) not in (*ALONE, "settings")
        for found in re.findall(r"environ[^\n]*\"(HUBKIT_\w+)", path.read_text("utf-8"))
    ]
    assert literal == []
