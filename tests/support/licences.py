"""What hubkit stands on, and under which licences: ``python tests/licences.py > LICENCES.md``
(``make licences``).

Read from the installed packages' own metadata: the licence expression, else the licence's
classifier, else the short licence field. Direct dependencies come first, with what they bring along
below."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from hubkit.extras import DISTRIBUTION


def main() -> None:
    """Print the page."""
    installed = {
        canonical(name) for names in metadata.packages_distributions().values() for name in names
    }
    direct = {
        canonical(Requirement(line).name)
        for line in metadata.requires(DISTRIBUTION) or ()
        if not re.search(r"extra == ['\"](dev|all|demo)['\"]", line)
    } & installed
    below = {name for name in closure(direct) if name not in direct}
    print(
        "# Licences of what hubkit installs\n\n"
        "Printed by `make licences` from the packages' own metadata."
    )
    for title, names in (("Direct dependencies", direct), ("What they bring along", below)):
        print(f"\n## {title}\n\n| package | version | licence |\n| --- | --- | --- |")
        for name in sorted(names):
            found = metadata.distribution(name)
            print(f"| {found.metadata['Name']} | {found.version} | {licence(found.metadata)} |")


def closure(names: set[str]) -> set[str]:
    """`names` and all that they need here."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += needs(name)
    return seen


def needs(name: str) -> Iterator[str]:
    """What an installed package needs and is installed."""
    for line in metadata.requires(name) or ():
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue
        yield canonical(wanted.name)


def licence(about: metadata.PackageMetadata) -> str:
    """A package's licence in a few words."""
    if stated := about.get("License-Expression"):
        return stated
    classifiers = [
        line.split("::")[-1].strip()
        for line in about.get_all("Classifier") or ()
        if "License ::" in line
    ]
    short = (about.get("License") or "").strip()
    return " / ".join(classifiers) or (
        short if short and "\n" not in short and len(short) < 60 else "see its files"
    )


def canonical(name: str) -> str:
    """A package's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
