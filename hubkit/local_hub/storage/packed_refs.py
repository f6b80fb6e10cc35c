"""git's ``packed-refs``: many references in one file, without a checksum. Only git itself writes it
here (`git pack-refs`); a start takes it apart into one file a reference, as this Hub keeps them.

A changed name in it shows where a second place has it: an annotated tag holds its own name. The
names of branches and plain tags stand nowhere else, so `problems` names these as long as the file
is there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dulwich.objects import Tag
from dulwich.refs import check_ref_format

from hubkit.files import sync_folder, write_whole
from hubkit.local_hub.storage.git import GitRepo, opened
from hubkit.local_hub.storage.objects import make_durable_folder

NAME = "packed-refs"
_HEADER = re.compile(rb"# pack-refs with:( peeled| fully-peeled| sorted)+ ?")
_LINE = re.compile(rb"([0-9a-f]{40}) (refs/\S+)")
_PEELED = re.compile(rb"\^([0-9a-f]{40})")
_TAGS = b"refs/tags/"
_TAKEN_APART = "the next start of the Hub takes the file apart; look whether all names are right"
log = logging.getLogger("hubkit.local_hub")


@dataclass(slots=True)
class _Packed:
    """One reference of the file.

    Attributes:
        name: As in ``refs/heads/main``.
        sha: What it names.
        peeled: What the tag at `sha` names, as the file says it.
    """

    name: bytes
    sha: bytes
    peeled: bytes | None = None


def problems(repo: GitRepo, restore: str) -> Iterator[str]:
    """What is wrong with a repository's packed references, or cannot be known of them.

    Args:
        repo: The repository.
        restore: What to do about damage.
    """
    packed, wrong = _read(repo)
    yield from (f"{NAME} {sentence}; {restore}" for sentence in wrong)
    unproven = [ref.name for ref in packed if not (repo.path / ref.name.decode()).exists()]
    unproven = [name for name in unproven if not _is_proven(repo, name, packed)]
    if unproven and not wrong:
        names = ", ".join(name.decode() for name in unproven[:5])
        further = f" and {len(unproven) - 5} more" if len(unproven) > 5 else ""
        yield f"{NAME}: git keeps no checksum of the names in it ({names}{further}); {_TAKEN_APART}"


def take_apart(folder: Path) -> None:
    """Give each reference of a repository a file of its own, where all that can be known of them is
    right; else, and where there is no space, the file stays as it is.
    """
    if not (folder / NAME).exists():
        return
    try:
        with opened(folder) as repo:
            packed, wrong = _read(repo)
        if wrong:
            return
        for ref in packed:
            path = folder / ref.name.decode()
            if not path.exists():
                make_durable_folder(path.parent)
                write_whole(path, ref.sha + b"\n", durable=True)
        (folder / NAME).unlink()
        sync_folder(folder)
    except Exception as error:  # whatever is wrong with the repository: `verify` says it
        log.warning("%s of %s stays: %s", NAME, folder.name, error)
        return
    names = ", ".join(ref.name.decode() for ref in packed)
    log.info("took %s of %s apart: %s", NAME, folder.name, names or "it held nothing")


def _read(repo: GitRepo) -> tuple[list[_Packed], list[str]]:
    """The references, and a sentence for each thing that is wrong with them."""
    try:
        lines = (repo.path / NAME).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    packed: list[_Packed] = []
    wrong: list[str] = []
    if lines[-1] and len(lines) > 1:
        wrong.append("breaks off")
    if lines == [b""]:
        wrong.append("is empty")
    for number, line in enumerate(filter(None, lines), 1):
        if number == 1 and _HEADER.fullmatch(line):
            continue
        if match := _PEELED.fullmatch(line):
            if packed and packed[-1].peeled is None:
                packed[-1].peeled = match[1]
                continue
        elif (match := _LINE.fullmatch(line)) and _is_name(match[2]):
            packed.append(_Packed(match[2], match[1]))
            continue
        wrong.append(f"has no reference in line {number}")
    names = [ref.name for ref in packed]
    if len(set(names)) < len(names):
        wrong.append("has a reference twice")
    wrong += [sentence for ref in packed if (sentence := _wrong_with(repo, ref))]
    return packed, wrong


def _is_name(name: bytes) -> bool:
    return name.isascii() and name.decode().isprintable() and bool(check_ref_format(name))


def _wrong_with(repo: GitRepo, ref: _Packed) -> str:
    """What an object says against a line; empty where nothing does."""
    try:
        item = repo.store[ref.sha]
    except Exception:  # the walk from all references says it
        return ""
    if not isinstance(item, Tag):
        return f"says that {ref.name.decode()} is a tag" if ref.peeled else ""
    if ref.name.startswith(_TAGS) and ref.name != _TAGS + item.name:
        return f"calls the tag {item.name.decode('utf-8', 'replace')} {ref.name.decode()}"
    if not ref.name.startswith(_TAGS):
        return f"calls the tag {item.name.decode('utf-8', 'replace')} {ref.name.decode()}"
    if ref.peeled and repo.peel(ref.sha) != ref.peeled:
        return f"says that {ref.name.decode()} names another commit than it does"
    return ""


def _is_proven(repo: GitRepo, name: bytes, packed: list[_Packed]) -> bool:
    if name == b"refs/heads/main":  # every repository here has one
        return True
    sha = next(ref.sha for ref in packed if ref.name == name)
    try:
        return isinstance(repo.store[sha], Tag)
    except Exception:  # the walk from all references says it
        return True
