"""This hubkit as a wheel, for jobs and clusters: the code that runs there is the code that runs
here.

No package index is trusted for hubkit itself: the name there may be a stranger's. The wheel is
built from the installed package, byte for byte reproducible, kept in a dataset repo of the Hub in
use, and named by a URL at a commit together with its sha256."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hubkit.errors import MissingDependencyError
from hubkit.extras import DISTRIBUTION
from hubkit.hub import Hub

REPO = "hubkit-wheels"
EXTRAS = "demo"
_PACKAGE = Path(__file__).resolve().parents[1]
_ASSET_FOLDERS = ("cards", "spaces")
_KINDS = frozenset(
    (
        ".py",
        ".typed",
        ".yaml",
        ".json",
        ".jsonl",
        ".jinja",
        ".md",
        ".html",
        ".css",
        ".js",
        ".txt",
        ".png",
        ".svg",
    )
)
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class PublishedWheel:
    """Where a wheel can be downloaded, and its sha256 (hex)."""

    url: str
    sha256: str

    @property
    def requirement(self) -> str:
        """A PEP 508 requirement that names this file and no index: ``name[extras] @
        url#sha256=…``.
        """
        return f"{DISTRIBUTION}[{EXTRAS}] @ {self.url}#sha256={self.sha256}"


def build(folder: Path) -> Path:
    """Write this package's wheel into `folder`.

    Args:
        folder: An existing folder.

    Returns:
        The wheel's path. The same files give the same bytes, on every machine and at every time.

    Raises:
        MissingDependencyError: hubkit runs from files that no installer put there, so that its
        metadata are unknown.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise MissingDependencyError(
            f"{_PACKAGE} is not installed as {DISTRIBUTION}, so its dependencies are unknown and "
            f"no wheel can be built; install it with `pip install --editable {_PACKAGE.parent}`"
        ) from None
    stem = f"{DISTRIBUTION.replace('-', '_')}-{distribution.version}"
    info = f"{stem}.dist-info"
    members = dict(_files())
    members[f"{info}/METADATA"] = _text(distribution, "METADATA")
    members[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: hubkit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    members[f"{info}/entry_points.txt"] = _text(distribution, "entry_points.txt")
    members[f"{info}/RECORD"] = _record(members, f"{info}/RECORD")
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return path


def publish(hub: Hub) -> PublishedWheel:
    """Make this package's wheel available on `hub`, once for each content.

    Args:
        hub: The Hub in use; the wheel goes into its namespace's dataset repo ``hubkit-wheels``.

    Returns:
        The wheel at the commit that holds it.

    Raises:
        HubError: The Hub refuses to look or to store.
        MissingDependencyError: As `build` does.
    """
    repo_id = hub.qualify(REPO)
    with tempfile.TemporaryDirectory() as name:
        wheel = build(Path(name))
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        title = f"hubkit wheel [wheel:{sha256[:12]}]"
        commit = hub.find_commit(repo_id, f"[wheel:{sha256[:12]}]", repo_type="dataset")
        if commit is None:
            commit = hub.commit(repo_id, Path(name), title, repo_type="dataset")
        url = f"{hub.url}/datasets/{repo_id}/resolve/{commit.revision}/{wheel.name}"
    return PublishedWheel(url, sha256)


def _files() -> Iterator[tuple[str, bytes]]:
    """Wheel path → content of the package's own files, and of the card templates and Spaces."""
    inside = [p for p in _PACKAGE.rglob("*") if _belongs(p.relative_to(_PACKAGE))]
    for path in inside:
        yield f"hubkit/{path.relative_to(_PACKAGE).as_posix()}", path.read_bytes()
    if (_PACKAGE / "_assets").is_dir():
        return
    for name in _ASSET_FOLDERS:
        folder = _PACKAGE.parent / name
        for path in folder.rglob("*"):
            if _belongs(path.relative_to(folder)):
                yield (
                    f"hubkit/_assets/{name}/{path.relative_to(folder).as_posix()}",
                    path.read_bytes(),
                )


def _belongs(path: Path) -> bool:
    """Whether a file is part of the package: of a kind that it holds, and in no hidden folder."""
    return path.suffix in _KINDS and not any(
        part.startswith((".", "__pycache__")) for part in path.parts
    )


def _text(distribution: metadata.Distribution, name: str) -> bytes:
    return (distribution.read_text(name) or "").encode()


def _record(members: dict[str, bytes], own_name: str) -> bytes:
    """The wheel's RECORD: each member's name, digest and size (PyPA, "Recording installed
    projects").
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, content in sorted(members.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(content)])
    rows.writerow([own_name, "", ""])
    return text.getvalue().encode()
