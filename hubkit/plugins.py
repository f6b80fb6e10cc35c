"""Plug-ins: filters, metrics, rewards, benchmarks and engines of your own, without a fork.

A package declares entry points in one of `GROUPS`: the entry point's name is the name in a recipe,
its object what the group's `Registry` holds. A recipe lists modules or files under ``plugins``;
importing one registers what it holds, as the built-in ones do. What is loaded here is handed to
other processes (workers, a cluster's nodes, jobs) by `snapshot` and `restore`: a file travels as
its text, so no common disk is needed; a module must be installed there."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from hubkit.errors import RecipeError
from hubkit.untrusted import JsonObject

T = TypeVar("T")
GROUPS = (
    "hubkit.filters", "hubkit.metrics", "hubkit.rewards", "hubkit.benchmarks", "hubkit.engines",
)  # fmt: skip


class Registry(MutableMapping[str, T], Generic[T]):
    """Name → object: what is registered in code, and the entry points of `group`.

    An entry point is loaded when its name is first looked up; a registered name wins over it."""

    def __init__(self, group: str) -> None:
        self.group = group
        self._registered: dict[str, T] = {}
        self._installed: dict[str, EntryPoint] | None = None

    def __getitem__(self, name: str) -> T:
        if name not in self._registered:
            self._registered[name] = self._load(name)
        return self._registered[name]

    def __setitem__(self, name: str, value: T) -> None:
        """Register `value`. Raises `RecipeError` when another object has the name."""
        present = self._registered.get(name)
        if present is not None and _origin(present) != _origin(value):
            raise RecipeError(
                f"{self.group}: {name!r} of {_origin(value)} is already registered by "
                f"{_origin(present)}; give it another name"
            )
        self._registered[name] = value

    def __delitem__(self, name: str) -> None:
        del self._registered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._registered, *self._entry_points()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._registered or name in self._entry_points()

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._installed is None:
            self._installed = {point.name: point for point in entry_points(group=self.group)}
        return self._installed

    def _load(self, name: str) -> T:
        point = self._entry_points()[name]
        try:
            value: T = point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            raise RecipeError(
                f"{self.group}: {name!r} of {package} ({point.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}; update that package, or uninstall it"
            ) from error
        return value


@dataclass(frozen=True, slots=True)
class Plugin:
    """A loaded plug-in: its name in recipes (a file's without its folder), `source` the text of a
    file, None for a module, and the sha256 of its code.
    """

    name: str
    source: str | None
    sha256: str


_loaded: dict[str, Plugin] = {}


def load(names: Iterable[str]) -> None:
    """Import each module (``package.module``) or file (``folder/own.py``) once in this process.

    Raises:
        RecipeError: One cannot be found or read, or raises while it is imported.
    """
    for name in names:
        if name_of(name) not in _loaded or name.endswith(".py"):
            _import(_described(name))


def snapshot() -> list[JsonObject]:
    """What is loaded in this process, as JSON, for `restore` in another."""
    return [asdict(plugin) for plugin in _loaded.values()]


def restore(plugins: Iterable[Mapping[str, Any]]) -> None:
    """Load what `snapshot` gave in another process. Raises `RecipeError` as `load` does."""
    for plugin in plugins:
        _import(Plugin(**plugin))


def name_of(name: str) -> str:
    """What a plug-in is called wherever it is loaded: a file without its folder, or a module."""
    return Path(name).name if name.endswith(".py") else name


def digests(names: Iterable[str]) -> list[str]:
    """The sha256 of each plug-in's code: what a result depends on, wherever the code lies."""
    return sorted((_loaded.get(name_of(name)) or _described(name)).sha256 for name in names)


def _described(name: str) -> Plugin:
    if name.endswith(".py"):
        try:
            source = Path(name).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            if present := _loaded.get(name_of(name)):  # restored from another machine's snapshot
                return present
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(
                f"plug-in {name!r} cannot be read: {reason}; check the path under plugins"
            ) from None
        return Plugin(name_of(name), source, hashlib.sha256(source.encode()).hexdigest())
    return Plugin(name, None, _module_sha256(name))


def _module_sha256(name: str) -> str:
    """sha256 over the module's source, or over all of a package's."""
    try:
        module_spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise _not_importable(name, error) from error
    if module_spec is None or module_spec.origin is None:
        raise RecipeError(
            f"plug-in {name!r} is neither an installed module nor a file that ends in .py; "
            f"install it, or give the file's path"
        )
    origin = Path(module_spec.origin)
    folder = origin.parent
    files = sorted(folder.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    content = hashlib.sha256()
    for file in files:
        content.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return content.hexdigest()


def _import(plugin: Plugin) -> None:
    present = _loaded.get(plugin.name)
    if present == plugin:
        return
    if present is not None:
        raise RecipeError(
            f"two plug-ins are named {plugin.name!r}, with different code; rename one, "
            f"or start a new process after a change"
        )
    try:
        if plugin.source is None:
            importlib.import_module(plugin.name)
        else:
            _execute(plugin, plugin.source)
    except RecipeError:
        raise
    except Exception as error:
        raise _not_importable(plugin.name, error) from error
    _loaded[plugin.name] = plugin


def _execute(plugin: Plugin, source: str) -> None:
    name = f"hubkit_plugin_{Path(plugin.name).stem}"
    module = ModuleType(name, f"Plug-in {plugin.name}.")
    module.__file__ = plugin.name
    sys.modules[name] = module
    try:
        exec(compile(source, plugin.name, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise


def _not_importable(name: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"plug-in {name!r} cannot be imported: {type(error).__name__}: {error}; correct its code"
    )


def _origin(value: Any) -> str:
    module = getattr(value, "__module__", type(value).__module__)
    return f"{module}.{getattr(value, '__qualname__', repr(value))}"
