"""Read through: repositories of another Hub, under their own names, read-only.

A repository that this Hub does not have is looked up at its upstream and mirrored at one commit:
its small files at once, into git; its large files when they are first read, each streamed once into
the store of large files. What the upstream says is checked before anything of it is kept: paths,
sizes and hashes. Nothing is ever written upstream, and the names of namespaces that exist here are
never asked for there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from hubkit.files import sync_folder
from hubkit.local_hub.errors import DISK_FULL, Refusal, is_disk_full
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.accounts import OWNER, now
from hubkit.local_hub.storage.git import (
    UPSTREAM_COMMIT,
    GitRepo,
    NewObject,
    blob_sha,
    new_commit,
    opened,
)
from hubkit.local_hub.storage.object_owners import link
from hubkit.local_hub.storage.objects import SHA256, make_durable_folder
from hubkit.local_hub.storage.paths import checked_name, checked_path, checked_ref
from hubkit.local_hub.storage.repos import CREATING, PREFIX, Repo, lookup
from hubkit.local_hub.storage.store import Store
from hubkit.loopback import on_loopback
from hubkit.untrusted import JsonObject, objects_in, parse_json, text_in

MIRRORED = ("model", "dataset")
MAX_FILES = 20_000
MAX_SMALL_BYTES = 16 * 2**20
MAX_INFO_BYTES = 64 * 2**20
TIMEOUT_S = 20.0
ABSENT_FOR_S, DOWN_FOR_S = 300.0, 10.0
"""How long an answer "there is none", and no answer at all, are remembered."""

_BLOCK_BYTES = 2**20
_DELIVERY_HOSTS = {"huggingface.co": (".huggingface.co", ".hf.co")}
"""Where an upstream may redirect for the bytes of a file, besides to itself; without the token."""

log = logging.getLogger("hubkit.local_hub")


class UpstreamError(Exception):
    """The upstream cannot be reached, or says what cannot be true."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the upstream lists it."""

    path: str
    size: int
    blob: str
    sha256: str | None

    @classmethod
    def parse(cls, item: Any) -> RemoteFile:
        """Read an entry of a listing. Raises `UpstreamError` for what no repository can hold."""
        try:
            path, size, blob = item["rfilename"], item["size"], item["blobId"]
            large = item.get("lfs")
            sha256 = large["sha256"] if large else None
            if not isinstance(size, int) or size < 0 or len(bytes.fromhex(blob)) != 20:
                raise ValueError(size, blob)
            if sha256 is None:
                if size > MAX_SMALL_BYTES:
                    raise ValueError(size)
            elif not SHA256.fullmatch(sha256) or large.get("size", size) != size:
                raise ValueError(sha256)
            return cls(checked_path(path), size, blob, sha256)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UpstreamError(f"it lists an impossible file: {str(item)[:200]}") from error
        except Refusal as refusal:
            raise UpstreamError(refusal.message) from refusal


class Transfer:
    """A large file on its way from the upstream; readers follow it."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.arrived = 0
        self.finished = False
        self.error = ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows within the upstream, and without a token to the hosts that deliver its files."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the next request. Raises `UpstreamError` for an address elsewhere."""
        parts = urlsplit(urljoin(req.full_url, newurl))
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if (parts.scheme, parts.netloc) == (self._upstream.scheme, self._upstream.netloc):
            return following
        suffixes = _DELIVERY_HOSTS.get(self._upstream.hostname or "", ())
        if parts.scheme != "https" or not (parts.hostname or "").endswith(tuple(suffixes) or "\0"):
            raise UpstreamError(f"it redirects to {parts.scheme}://{parts.netloc}"[:200])
        if following is not None:
            following.remove_header("Authorization")
        return following


class Upstream:
    """The Hub that this one reads through from; `url` is None where there is none."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url: str | None = None
        self.own_namespaces: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._absent: dict[str, float] = {}
        self._down: tuple[float, str] = (0.0, "")
        self._transfers: dict[str, Transfer] = {}
        self._closed = threading.Event()
        self.folder = store.root / "upstream"

    def open(self, url: str | None, own_namespaces: Iterable[str] = ()) -> None:
        """Read through to `url` from now on, and never ask there for what is in a namespace of
        ours.
        """
        self.url = url.rstrip("/") if url else None
        self.own_namespaces = frozenset(name.lower() for name in own_namespaces)

    def close(self) -> None:
        """Stop the transfers; what arrived is resumed by the next server."""
        self._closed.set()

    # mirrors

    def ensure(self, kind: str, namespace: str, name: str, revision: str) -> Repo | None:
        """Return the mirror of a repository that has a revision, made now if need be.

        Args:
            kind: Type of the repository.
            namespace: Its namespace.
            name: Its name.
            revision: Branch, tag or commit id.

        Returns:
            The mirror, or None where the upstream has no such repository.

        Raises:
            Refusal: The upstream cannot be reached, is not believed, or does not let us in.
        """
        if self.url is None or kind not in MIRRORED or self._is_own(namespace):
            return None
        key = f"{kind}:{namespace}/{name}".lower()
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            repo, _ = lookup(self._store, kind, namespace, name, None)
            if repo is not None and (not repo.upstream or self._has(repo, revision)):
                return repo
            return self._mirror(repo, kind, namespace, name, revision)

    def _is_own(self, namespace: str) -> bool:
        return namespace.lower() in self.own_namespaces or self._store.accounts.exists(namespace)

    def _has(self, repo: Repo, revision: str) -> bool:
        with opened(self._store.repo_path(repo.folder)) as git:
            return git.resolve(revision) is not None

    def _mirror(
        self, repo: Repo | None, kind: str, namespace: str, name: str, revision: str
    ) -> Repo | None:
        repo_id = f"{checked_name(namespace, 'namespace')}/{checked_name(name)}"
        key = f"{kind}:{repo_id}@{revision}".lower()
        if time.monotonic() < self._absent.get(key, 0.0):
            return repo
        if self._store.settings.read_only or self._store.disk.is_short():
            raise Refusal(507, DISK_FULL)
        try:
            if repo is None:
                info = self._info(kind, repo_id, "main")
                if info is not None:
                    repo = self._create(kind, namespace, name, info)
            if repo is not None and not self._has(repo, revision):
                info = self._info(kind, repo_id, revision)
                if info is not None:
                    self._add_revision(repo, revision, info)
        except UpstreamError as error:
            raise Refusal(
                404,
                f"{kind} {repo_id} is not on this Hub, and its upstream {self.url} is of no help: "
                f"{error}",
                "RepoNotFound",
            ) from error
        if repo is None or not self._has(repo, revision):
            if len(self._absent) > MAX_FILES:
                self._absent.clear()
            self._absent[key] = time.monotonic() + ABSENT_FOR_S
        return repo

    def _create(self, kind: str, namespace: str, name: str, info: JsonObject) -> Repo:
        store = self._store
        folder = f"{kind}s--{namespace}--{name}--{secrets.token_hex(5)}.git"
        path = store.repo_path(folder + CREATING)
        origin = {"upstream": {"url": self.url, "sha": info["sha"]}}
        with store.using_objects():
            try:
                GitRepo.create(path)
                with opened(path) as git:
                    oids = self._commit(git, kind, f"{namespace}/{name}", info, b"refs/heads/main")
                with store.settings.transaction() as connection:
                    connection.execute(
                        "INSERT INTO repos (type, namespace, name, folder, private, gated,"
                        " created_at, created_by, extra) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            *(kind, namespace, name, folder, bool(info.get("private"))),
                            *("manual" if info.get("gated") else "", now(), OWNER),
                            json.dumps(origin),
                        ),
                    )
                path.rename(store.repo_path(folder))
                sync_folder(path.parent)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
            repo, _ = lookup(store, kind, namespace, name, None)
            assert repo is not None  # just inserted
            link(store, repo, oids)
        log.info("mirrored %s %s at %s from %s", kind, repo.id, info["sha"], self.url)
        return repo

    def _add_revision(self, repo: Repo, revision: str, info: JsonObject) -> None:
        ref = None if revision == info["sha"] else checked_ref("tags", revision)
        path = self._store.repo_path(repo.folder)
        with self._store.writing(repo.folder), opened(path) as git:
            link(self._store, repo, self._commit(git, repo.type, repo.id, info, ref))

    def _commit(
        self, git: GitRepo, kind: str, repo_id: str, info: JsonObject, ref: bytes | None
    ) -> list[str]:
        """Make the commit of a mirror, and its references; the large files that it names."""
        files = [RemoteFile.parse(item) for item in objects_in(info, "siblings")]
        if len(files) > MAX_FILES or len({file.path for file in files}) != len(files):
            raise UpstreamError(f"it lists {len(files)} files, or one twice")
        small = [file for file in files if file.sha256 is None]
        large = [file for file in files if file.sha256 is not None]
        blobs = {file.path: self._pointer(file) for file in large}
        with ThreadPoolExecutor(8, thread_name_prefix="upstream") as pool:
            contents = pool.map(
                lambda f: self._content(kind, repo_id, text_in(info, "sha"), f), small
            )
            blobs |= {file.path: blob for file, blob in zip(small, contents, strict=True)}
        try:
            changes = {path: blob.sha for path, blob in blobs.items()}
            tree, folders = trees.changed(git, None, changes)
        except Refusal as refusal:
            raise UpstreamError(refusal.message) from refusal
        message = f"Mirror of {self.url}/{PREFIX[kind]}{repo_id}\n\n{UPSTREAM_COMMIT}{info['sha']}"
        commit = new_commit(tree, [], message, OWNER)
        git.write([*blobs.values(), *folders, NewObject.of(commit)])
        git.swap_ref(b"refs/upstream/" + text_in(info, "sha").encode(), None, commit.id)
        if ref is not None:
            git.swap_ref(ref, None, commit.id)
        return [file.sha256 for file in large if file.sha256]

    @staticmethod
    def _pointer(file: RemoteFile) -> NewObject:
        assert file.sha256 is not None
        return NewObject.blob(trees.Pointer(file.sha256, file.size).text())

    def _content(self, kind: str, repo_id: str, sha: str, file: RemoteFile) -> NewObject:
        try:
            with self._get(_file_path(kind, repo_id, sha, file.path)) as answer:
                data = answer.read(file.size + 1)
        except urllib.error.HTTPError as error:
            raise self._not_given(error, kind, repo_id) from error
        if len(data) != file.size or blob_sha(data).decode() != file.blob:
            raise UpstreamError(f"the bytes of {file.path} do not have the size and id it names")
        return NewObject.blob(data)

    def _not_given(self, error: urllib.error.HTTPError, kind: str, repo_id: str) -> Exception:
        """What an error status of the upstream means here."""
        if error.code not in (401, 403):
            return UpstreamError(f"it answers {error.code} {error.reason}"[:300])
        return Refusal(
            403,
            f"{kind} {repo_id} of {self.url} is gated: accept its terms at "
            f"{self.url}/{PREFIX[kind]}{repo_id} and log in there with `hf auth login`",
            "GatedRepo",
        )

    def _info(self, kind: str, repo_id: str, revision: str) -> JsonObject | None:
        """What the upstream says about a repository at a revision; None where there is none."""
        path = f"/api/{kind}s/{repo_id}/revision/{quote(revision, safe='')}"
        try:
            with self._get(f"{path}?{urlencode({'blobs': 'true'})}") as answer:
                info = parse_json(answer.read(MAX_INFO_BYTES))
        except urllib.error.HTTPError as error:
            gated = error.headers.get("X-Error-Code") == "GatedRepo"
            if error.code == 404 or (error.code == 401 and not gated):
                return None
            raise self._not_given(error, kind, repo_id) from error
        except ValueError as error:
            raise UpstreamError("its answer is no JSON") from error
        sha = info.get("sha") if isinstance(info, dict) else None
        siblings = info.get("siblings") if isinstance(info, dict) else None
        valid = isinstance(sha, str) and len(sha) == 40 and set(sha) <= set("0123456789abcdef")
        if not valid or not isinstance(siblings, list):
            raise UpstreamError("its answer names no commit or no files")
        return dict(info)

    # large files

    def transfer(self, repo: Repo, sha: str, path: str, pointer: trees.Pointer) -> Transfer:
        """Return the transfer of a large file of a mirror, begun if need be.

        Raises:
            Refusal: The upstream cannot be reached.
        """
        if self.url is None:
            raise Refusal(404, f"{path} was not downloaded, and this Hub has no upstream now.")
        with self._lock:
            transfer = self._transfers.get(pointer.oid)
            if transfer is None and self._store.objects.size(pointer.oid) is not None:
                transfer = Transfer(self._store.objects.path(pointer.oid), pointer.size)
                transfer.finished = True  # a moment ago
            elif transfer is None or transfer.error:
                make_durable_folder(self.folder)
                transfer = Transfer(self.folder / f"{pointer.oid}.partial", pointer.size)
                self._transfers[pointer.oid] = transfer
                threading.Thread(
                    target=self._run_transfer,
                    args=(transfer, repo, sha, path, pointer),
                    daemon=True,
                ).start()
        return transfer

    def _run_transfer(
        self, transfer: Transfer, repo: Repo, sha: str, path: str, pointer: trees.Pointer
    ) -> None:
        try:
            self._download(transfer, _file_path(repo.type, repo.id, sha, path), pointer)
            with self._store.using_objects():
                self._store.objects.take(transfer.path, pointer.oid)
                link(self._store, repo, [pointer.oid])
            transfer.finished = True
        except (UpstreamError, urllib.error.HTTPError) as error:
            transfer.error = f"{path} cannot be had from {self.url}: {error}"
        except OSError as error:
            transfer.error = DISK_FULL if is_disk_full(error) else f"{path}: {error}"
        except Refusal as refusal:
            transfer.error = refusal.message
        except Exception as error:
            log.exception("downloading %s of %s failed", path, repo.id)
            transfer.error = f"{path}: {type(error).__name__}"
        finally:
            if transfer.error:
                log.warning("%s: %s", repo.id, transfer.error)
            with self._lock:
                if transfer.finished:
                    self._transfers.pop(pointer.oid, None)

    def _download(self, transfer: Transfer, path: str, pointer: trees.Pointer) -> None:
        """Fetch, or resume, one file; it enters the store only with the size and hash promised."""
        digest = hashlib.sha256()
        with transfer.path.open("a+b", buffering=0) as file:
            file.seek(0)
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                transfer.arrived += len(block)
            if transfer.arrived < pointer.size:
                self._receive(transfer, path, file, digest)
            if transfer.arrived != pointer.size or digest.hexdigest() != pointer.oid:
                transfer.path.unlink()
                raise UpstreamError(f"its bytes are not those of sha256 {pointer.oid}; removed")
            os.fsync(file.fileno())

    def _receive(self, transfer: Transfer, path: str, file: Any, digest: Any) -> None:
        headers = {"Range": f"bytes={transfer.arrived}-"} if transfer.arrived else {}
        with self._get(path, headers) as answer:
            if transfer.arrived and answer.status != 206:
                transfer.path.unlink()
                raise UpstreamError("it cannot resume; try again to begin afresh")
            while block := answer.read1(_BLOCK_BYTES):
                if self._closed.is_set():
                    raise UpstreamError("this Hub is stopping")
                if transfer.arrived + len(block) > transfer.size:
                    transfer.path.unlink()
                    raise UpstreamError(f"it sends more than the {transfer.size} bytes promised")
                file.write(block)
                digest.update(block)
                transfer.arrived += len(block)
        if transfer.arrived < transfer.size:
            raise UpstreamError(f"it broke off after {transfer.arrived} of {transfer.size} bytes")

    # the wire

    @contextmanager
    def _get(self, path: str, headers: dict[str, str] | None = None) -> Iterator[HTTPResponse]:
        """GET a path of the upstream. Raises `UpstreamError`, `urllib.error.HTTPError`."""
        assert self.url is not None
        since, reason = self._down
        if reason and time.monotonic() - since < DOWN_FOR_S:
            raise UpstreamError(reason)
        request = urllib.request.Request(self.url + path, headers=headers or {})
        request.add_header("Accept-Encoding", "identity")
        request.add_header("User-Agent", "hubkit")
        if token := self._token():
            request.add_header("Authorization", f"Bearer {token}")
        proxies = urllib.request.ProxyHandler({} if on_loopback(self.url) else None)
        opener = urllib.request.build_opener(_Redirects(self.url), proxies)
        try:
            with closing(opener.open(request, timeout=TIMEOUT_S)) as answer:
                self._down = (0.0, "")
                yield answer
        except urllib.error.HTTPError:
            raise
        except (HTTPException, urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = f"it cannot be reached ({getattr(error, 'reason', None) or error})"
            if not isinstance(error, HTTPException):
                self._down = (time.monotonic(), reason)
            raise UpstreamError(reason) from error

    def _token(self) -> str | None:
        """The user's token for this upstream: it is sent to no other, and ours is never sent."""
        if path := os.environ.get("HUBKIT_UPSTREAM_TOKEN_PATH"):
            try:
                return Path(path).read_text("ascii").strip() or None
            except (OSError, ValueError):
                return None
        if self.url != "https://huggingface.co":
            return None
        from huggingface_hub import get_token

        token = get_token()
        return None if token is None or self._store.accounts.knows(token) else token


def _file_path(kind: str, repo_id: str, sha: str, path: str) -> str:
    return f"/{PREFIX[kind]}{repo_id}/resolve/{sha}/{quote(path)}"
