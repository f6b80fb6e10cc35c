"""``hubkit doctor``: is this machine ready, and for what? Each line is a check, its finding, and
what to do.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from typing import Annotated

import typer

from hubkit import extras
from hubkit.cli import console
from hubkit.errors import HubkitError

NEEDS_GIB = 4
_NAMED_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "huggingface_hub",
    "xllamacpp",
)
_EXTRAS = ("local", "train", "eval", "env", "spaces", "ray")
_PROGRAMS = ("make", "git")


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine: packages, programs, disk, memory, accelerator, and the configured Hub.

    Exit code 1 if a check fails.
    """
    findings = [
        _python(),
        _packages(),
        _programs(),
        _home(),
        _disk(),
        _memory(),
        _device(),
        _engine(),
        _unfinished(),
        _hub(),
    ]
    if json:
        console.data([{"check": name, "ok": ok, "found": result} for name, ok, result in findings])
    else:
        console.table(
            "hubkit doctor",
            ["check", "", "found"],
            [[n, "ok" if ok else "!!", f] for n, ok, f in findings],
        )
    if not all(ok for _, ok, _ in findings):
        raise typer.Exit(1)


Finding = tuple[str, bool, str]


def _python() -> Finding:
    return "python", sys.version_info >= (3, 11), sys.version.split()[0]


def _packages() -> Finding:
    """What is installed; an extra that is not only limits what this machine can do."""
    installed = []
    for name in _NAMED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed.append(f"{name} {metadata.version(name)}")
    lacking = [
        extra
        for extra in _EXTRAS
        if any(util.find_spec(module) is None for module in extras.modules().get(extra, {}))
    ]
    note = f"; more with {extras.command(','.join(lacking))}" if lacking else ""
    return "packages", True, ", ".join(installed) + note


def _programs() -> Finding:
    """Programs that a checkout is installed and tested with; an installed hubkit needs none."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    note = f"not found: {', '.join(missing)}" if missing else "make and git"
    return "programs", True, f"{note}; only a checkout of hubkit needs them"


def _home() -> Finding:
    """Whether hubkit's folder, or the one that it would be made in, is ours to write."""
    from hubkit.hub import home

    folder = _nearest(home())
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return "home", True, f"{home()} can be written"
    return "home", False, f"{folder} is no folder that you may write to; set HUBKIT_HOME elsewhere"


def _nearest(path: Path) -> Path:
    """`place`, or its nearest folder that exists."""
    while not path.exists():
        path = path.parent
    return path


def _disk() -> Finding:
    from hubkit.hub import home

    folder = _nearest(home())
    free = shutil.disk_usage(folder).free / 2**30
    note = (
        ""
        if free >= NEEDS_GIB
        else f"; at least {NEEDS_GIB} GiB are needed, set HUBKIT_HOME elsewhere"
    )
    return "disk", free >= NEEDS_GIB, f"{free:.0f} GiB free for {home()}{note}"


def _memory() -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    note = "" if gib >= NEEDS_GIB else f"; the laptop profile needs {NEEDS_GIB} GiB"
    return "memory", gib >= NEEDS_GIB, f"{gib:.0f} GiB, {os.cpu_count()} cores{note}"


def _device() -> Finding:
    try:
        import torch
    except ImportError:
        return "device", True, f"not known without torch; training needs {extras.command('train')}"
    if torch.cuda.is_available():
        return "device", True, torch.cuda.get_device_name(0)
    return "device", True, "CPU only: use --profile laptop"


def _engine() -> Finding:
    """Which engine ``auto`` starts here, and what the embedded one converts models with."""
    from hubkit.hub.places import cache
    from hubkit.serving.engines.choice import converter_state
    from hubkit.serving.engines.launcher import ENGINES, choose

    kind, reason = choose("auto")
    installed = [name for name in ENGINES if ENGINES[name].find()]
    return (
        "engine",
        True,
        f"auto is {kind}: {reason}; servers found: {', '.join(installed) or 'none'}; "
        f"{converter_state(cache('engine'))}",
    )


def _unfinished() -> Finding:
    from hubkit.hub.places import runs

    sizes = {
        folder.name: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        for folder in (sorted(runs().iterdir()) if runs().is_dir() else ())
        if folder.is_dir()
    }
    if not sizes:
        return "unfinished", True, "no stage or rollout is unfinished"
    named = ", ".join(f"{name} ({size / 2**20:.0f} MiB)" for name, size in sizes.items())
    return (
        "unfinished",
        True,
        f"{named} in {runs()}; the same command resumes each, or remove what you no longer need",
    )


def _hub() -> Finding:
    from hubkit.hub import connect

    try:
        hub = connect()
        kind = "embedded" if hub.embedded else "remote"
        return "hub", True, f"{hub.url} ({kind}), our repos under {hub.namespace}/"
    except HubkitError as error:
        return "hub", False, str(error)
