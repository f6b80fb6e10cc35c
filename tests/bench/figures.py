"""The one shape of a results file: what was measured, by which command, on which machine, with
which spread.

    {"about": "…", "command": "…", "machine": {"cpu": …, "cores": …, "packages": {…}, "date": …},
    FIGURE: …}

A figure is a number, a mapping of figures, ``{"median": m, "least": l, "most": h, "runs": n}``, or
a difference with its interval (``{"difference": d, "low": l, "high": h, "confidence": c}``); units
stand in the names. `gather` puts all files of ``results/`` and the contract's own into one. Lists
and texts in a file are detail that no table shows."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(os.environ.get("BENCH_RESULTS", ROOT / "tests" / "bench" / "results"))
GATHERED = ROOT / "tests" / "bench" / "bench.json"
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "huggingface_hub",
    "xllamacpp",
    "aiohttp",
)
ABOUT = ("about", "command", "machine")


def machine(*packages: str) -> dict[str, Any]:
    """Where this runs: processor, cores, memory, Python, versions of `PACKAGES` and of `packages`,
    load, date.
    """
    lines = (
        Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in (*PACKAGES, *packages)},
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
    }


def spread(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Median, least and most of repeated measurements, and how many there were."""
    found = list(values)
    middle, least, most = (round(of(found), digits) for of in (statistics.median, min, max))
    return {"median": middle, "least": least, "most": most, "runs": len(found)}


def write(
    name: str,
    about: str,
    command: str,
    figures: Mapping[str, Any],
    *packages: str,
    add: bool = True,
) -> None:
    """Enter `figures` into ``results/NAME.json``; with `add`, beside those that other tests of the
    bench entered.
    """
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text("utf-8")) if add and path.exists() else {}
    made = {**known, "about": about, "command": command, "machine": machine(*packages), **figures}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({**{key: made[key] for key in ABOUT}, **made}, indent=1, ensure_ascii=False)
        + "\n"
    )


def gather() -> dict[str, Any]:
    """Everything that was measured: name → the content of its results file."""
    files = {path.stem: path for path in sorted(RESULTS.glob("*.json"))}
    return {name: json.loads(path.read_text("utf-8")) for name, path in files.items()}


def leaves(figures: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """(what, value as text) for every figure in the shape above, however deep."""
    for key, value in figures.items():
        what = f"{within} {key}".strip()
        if isinstance(value, Mapping) and not {"median", "difference"} & value.keys():
            yield from leaves(value, what)
        elif not key.startswith("load") and not isinstance(value, bool | str | list | None):
            yield what, _text(value)


def tables(figures: Mapping[str, Any], name: str = "") -> list[str]:
    """Markdown: siblings that hold the same figures as one table, what stands alone as a line."""
    alike: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    alone: dict[str, str] = {}
    made: list[str] = []
    for key, value in figures.items():
        if key in ABOUT:
            continue
        if isinstance(value, Mapping) and not {"median", "difference"} & value.keys():
            inside = dict(leaves(value))
            alike.setdefault(tuple(inside), {})[key] = inside
        else:
            alone |= dict(leaves({key: value}))
    for columns, group in alike.items():
        if len(group) > 1 and columns:
            made.append(_table(name, columns, group))
        for key, inside in group.items() if len(group) == 1 else ():
            within = f"{name}, {key}".strip(", ")
            made += [_line(within, inside)] if len(inside) <= 6 else tables(figures[key], within)
    return ([_line(name, alone)] if alone else []) + made


def _line(name: str, inside: Mapping[str, str]) -> str:
    return (f"{name}: " if name else "") + "; ".join(
        f"{what} {text}" for what, text in inside.items()
    )


def _table(name: str, columns: tuple[str, ...], group: Mapping[str, Mapping[str, str]]) -> str:
    """Few siblings with many figures stand side by side, many siblings one below the other."""
    lines = [[name, *columns], *([key, *inside.values()] for key, inside in group.items())]
    if len(columns) > len(group):
        lines = [list(line) for line in zip(*lines, strict=True)]
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "| --- |" + " ---: |" * (len(lines[0]) - 1), *rest])


def _text(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _short(value)
    if "difference" in value:
        return (
            f"{value['difference']:+.3f} ({value['confidence']:.0%}: "
            f"{value['low']:+.3f} to {value['high']:+.3f})"
        )
    spread = f" ({_short(value['least'])} to {_short(value['most'])}, {value['runs']} runs)"
    return _short(value["median"]) + (spread if value["runs"] > 1 else "")


def _short(value: float) -> str:
    if isinstance(value, int) or value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
