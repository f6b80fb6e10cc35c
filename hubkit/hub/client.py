"""A `Hub`: read repos at a revision, and end a stage in one commit."""

from __future__ import annotations

import errno
import functools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import CommitConflictError, DiskFullError, HubError, HubUnreachableError, RepoMissingError
from hubkit.hub import embedded
from hubkit.hub.places import cache, settings

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Ref:
    """A repo at a commit: what stages read and make."""

    repo_id: str
    repo_type: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision[:8]}"

    def to_dict(self) -> dict[str, str]:
        """``{repo_id, repo_type, revision}``."""
        return asdict(self)


def connect() -> Hub:
    """The configured Hub, started first when it is the embedded one. Raises `HubError`."""
    configured = settings()
    if configured.url is None:
        url = embedded.ensure_running()
        return Hub(url, embedded.token(), embedded.default_namespace(), embedded=True)
    from huggingface_hub import get_token

    return Hub(configured.url, get_token(), configured.namespace, embedded=False)


class Hub:
    """A Hub at `url`. `namespace` is whose repos we make; it is asked of the token's owner when not configured."""

    def __init__(self, url: str, token: str | None, namespace: str | None, *, embedded: bool) -> None:
        self.url = url
        self.token = token
        self.embedded = embedded
        self.cache_dir: Path | None = cache("hub") if embedded else None
        self._namespace = namespace

    @functools.cached_property
    def api(self) -> HfApi:
        """`huggingface_hub`'s client for this Hub."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.url, token=self.token or False, library_name="hubkit")

    @property
    def namespace(self) -> str:
        """The user or organisation whose repos we make. Raises `HubError` when there is neither setting nor token."""
        if self._namespace is None:
            if self.token is None:
                raise HubError(
                    f"no namespace for {self.url}: log in with `hf auth login`, or set HUBKIT_NAMESPACE", status=401
                )
            with self.translated("asking whose token this is"):
                self._namespace = str(self.api.whoami()["name"])
        return self._namespace

    def qualify(self, name: str) -> str:
        """``namespace/name``; a name that has a namespace stays as it is."""
        return name if "/" in name else f"{self.namespace}/{name}"

    def page(self, ref: Ref) -> str:
        """The web address of `ref`."""
        prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[ref.repo_type]
        return f"{self.url}/{prefix}{ref.repo_id}"

    def resolve(self, repo_id: str, *, repo_type: str = "model", revision: str = "main") -> Ref:
        """The commit that `revision` of a repo is now. Raises `RepoMissingError`."""
        with self.translated(f"looking up {repo_type} {repo_id}@{revision}"):
            info = self.api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        return Ref(repo_id, repo_type, str(info.sha))

    def snapshot(self, ref: Ref, *, allow_patterns: Sequence[str] | None = None) -> Path:
        """A local folder with the files of `ref` (those that match, when patterns are given), downloaded once."""
        from huggingface_hub import snapshot_download

        with self.translated(f"downloading {ref}"):
            folder = snapshot_download(
                ref.repo_id,
                repo_type=ref.repo_type,
                revision=ref.revision,
                allow_patterns=list(allow_patterns) if allow_patterns is not None else None,
                endpoint=self.url,
                token=self.token or False,
                cache_dir=self.cache_dir,
                tqdm_class=_silent_bar(),
            )
        return Path(folder)

    def commit(
        self,
        repo_id: str,
        folder: Path,
        message: str,
        *,
        repo_type: str = "model",
        replace: Sequence[str] = (),
        private: bool | None = None,
    ) -> Ref:
        """Make one commit of all files in `folder`; files on the Hub that match a `replace` pattern and are not in
        `folder` are deleted by it. The repo is created when missing: private on a real Hub unless `private` is False.

        When somebody else commits in between, the commit is made again on top of theirs, never over it. Raises
        `CommitConflictError` when that happens too often, `HubError` otherwise.
        """
        if private is None:
            private = not self.embedded
        with self.translated(f"creating {repo_type} {repo_id}"):
            self.api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        for attempt in range(COMMIT_ATTEMPTS):
            with self.translated(f"committing to {repo_type} {repo_id}", conflicts=True) as outcome:
                return self._commit_once(repo_id, repo_type, folder, message, replace)
            if outcome.conflict:
                time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
        raise CommitConflictError(
            f"{repo_type} {repo_id}: {COMMIT_ATTEMPTS} commits lost against others'; try again when they are done",
            status=412,
        )

    def _commit_once(self, repo_id: str, repo_type: str, folder: Path, message: str, replace: Sequence[str]) -> Ref:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        head = self.api.repo_info(repo_id, repo_type=repo_type)
        ours = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        theirs = [s.rfilename for s in getattr(head, "siblings", None) or []]
        stale = [path for path in theirs if any(fnmatch(path, pattern) for pattern in replace)]
        operations: list[Any] = [CommitOperationAdd(path, source) for path, source in ours.items()]
        operations += [CommitOperationDelete(path) for path in stale if path not in ours]
        made = self.api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            repo_type=repo_type,
            parent_commit=head.sha,
        )
        return Ref(repo_id, repo_type, str(made.oid))

    def find_commit(self, repo_id: str, mark: str, *, repo_type: str = "model") -> Ref | None:
        """The newest commit on ``main`` whose title contains `mark`, or None (also when the repo does not exist)."""
        try:
            with self.translated(f"reading the history of {repo_type} {repo_id}"):
                for commit in self.api.list_repo_commits(repo_id, repo_type=repo_type):
                    if mark in commit.title:
                        return Ref(repo_id, repo_type, str(commit.commit_id))
        except RepoMissingError:
            pass
        return None

    def read(self, ref: Ref, path: str) -> bytes:
        """The bytes of one file. Raises `RepoMissingError` when it is not there."""
        from huggingface_hub import hf_hub_download

        with self.translated(f"reading {path} of {ref}"):
            return Path(
                hf_hub_download(
                    ref.repo_id,
                    path,
                    repo_type=ref.repo_type,
                    revision=ref.revision,
                    endpoint=self.url,
                    token=self.token or False,
                    cache_dir=self.cache_dir,
                )
            ).read_bytes()

    def tags(self, repo_id: str, *, repo_type: str = "model") -> dict[str, str]:
        """Tag name → commit sha."""
        with self.translated(f"listing tags of {repo_type} {repo_id}"):
            refs = self.api.list_repo_refs(repo_id, repo_type=repo_type)
        return {tag.name: str(tag.target_commit) for tag in refs.tags}

    def tag(self, ref: Ref, name: str, message: str) -> None:
        """Tag the commit of `ref`. Raises `HubError` when the tag exists on another commit."""
        with self.translated(f"tagging {ref} as {name}"):
            self.api.create_tag(
                ref.repo_id, tag=name, tag_message=message, revision=ref.revision, repo_type=ref.repo_type
            )

    @contextmanager
    def translated(self, doing: str, *, conflicts: bool = False) -> Iterator[_Outcome]:
        """Turn the clients' errors into ours; with `conflicts`, swallow a 409 or 412 and say so in the outcome."""
        import httpx2
        from huggingface_hub import errors as hf

        outcome = _Outcome()
        try:
            yield outcome
        except (hf.RepositoryNotFoundError, hf.RevisionNotFoundError, hf.EntryNotFoundError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 404)
            login = "" if self.token else " (or it is private: there is no token; log in with `hf auth login`)"
            raise RepoMissingError(
                f"{doing}: {self.url} has no such repo, revision or file{login}", status=status
            ) from error
        except hf.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            if conflicts and status in (409, 412):
                outcome.conflict = True
                return
            raise self._http_error(doing, status, error) from error
        except (httpx2.TransportError, ConnectionError) as error:
            raise HubUnreachableError(
                f"{doing}: {self.url} does not answer ({type(error).__name__}). "
                "Check the network, or set HUBKIT_HUB=local for the embedded Hub."
            ) from error
        except hf.HFValidationError as error:
            raise HubError(f"{doing}: {error}", status=400) from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DiskFullError(
                f"{doing}: no space left on the disk of {self.cache_dir or 'the cache'}; free some"
            ) from error

    def _http_error(self, doing: str, status: int | None, error: Exception) -> HubError | DiskFullError:
        said = getattr(error, "server_message", None) or str(error).splitlines()[0]
        if status == 507:
            return DiskFullError(
                f"{doing}: the disk of {self.url} is full; free some space and run the same command again"
            )
        if status in (401, 403):
            return HubError(
                f"{doing}: {self.url} refuses this token ({status}: {said}). "
                "Log in with a token that may write there: `hf auth login`.",
                status=status,
            )
        return HubError(f"{doing}: {self.url} answered {status}: {said}", status=status)


class _Outcome:
    conflict = False


@functools.cache
def _silent_bar() -> type:
    """A tqdm class that draws nothing: rooms say how far they are through a `Progress`, not on the terminal."""
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
