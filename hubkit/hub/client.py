"""A `Hub`: read repos at a revision, and end a stage in one commit."""

from __future__ import annotations

import errno
import functools
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import (
    CommitConflictError,
    DiskFullError,
    HubError,
    HubkitError,
    HubUnreachableError,
    RepoMissingError,
)
from hubkit.hub import embedded, gate, proof
from hubkit.hub.in_use import Hold, hold
from hubkit.hub.network import adapt_clients, exempt_loopback, sent_once
from hubkit.hub.places import cache, hub_address, local_root, make_private, settings
from hubkit.loopback import host_of, is_loopback
from hubkit.settings import LOCAL_JOB, value

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

COMMIT_ATTEMPTS = 100
_REDIRECTING = threading.RLock()
BACKOFF_CAP_S = 2.0
GREETING_S = 20.0  # for a request that any Hub answers at once


@dataclass(frozen=True, slots=True)
class Ref:
    """A repo at a commit: what stages read and make.

    An input that is a file of the user's own has type ``file``, its name as id and its sha256 as
    revision."""

    repo_id: str
    repo_type: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision[:8]}"

    def to_dict(self) -> dict[str, str]:
        """``{repo_id, repo_type, revision}``."""
        return asdict(self)


def connect() -> Hub:
    """The configured Hub, started first when it is the embedded one, which does not stop as idle
    while the `Hub` that is returned exists. Raises `HubError`.
    """
    exempt_loopback()
    configured = settings()
    if configured.url is None:
        with suppress(OSError):  # starting it says what is wrong
            make_private(local_root())
        in_use = hold(local_root())
        url = embedded.ensure_running()
        token = embedded.token()
        if token:
            proof.require(token, local_root())
        return Hub(url, token, embedded.default_namespace(), embedded=True, in_use=in_use)
    from huggingface_hub import get_token

    local = bool(value(LOCAL_JOB)) and is_loopback(host_of(configured.url))
    token = get_token()
    _guard(token)
    return Hub(configured.url, token, configured.namespace, embedded=False, local=local)


def connect_to(url: str) -> Hub:
    """The Hub at `url`, to write to. Raises `HubError` when it is no URL, or when there is no token
    for it.
    """
    url = hub_address(url, "the Hub to push to")
    from huggingface_hub import get_token

    token = get_token()
    _guard(token)
    if token is None:
        raise HubError(
            f"there is no token for {url}: log in with `hf auth login` or set HF_TOKEN, to one "
            f"that may write",
            status=401,
        )
    return Hub(url, token, settings().namespace, embedded=False)


def _guard(token: str | None) -> None:
    """Where a person's token is that of the embedded Hub (``hubkit hub env`` names its file), let
    no other Hub be sent it.
    """
    if token and token == embedded.token():
        proof.require(token, local_root())


class Hub:
    """A Hub at `url`. `namespace` is whose repos we make; it is asked of the token's owner when not
    configured. What goes to a `local` one does not leave this machine: it is not checked.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        namespace: str | None,
        *,
        embedded: bool,
        allowed: Iterable[str] = (),
        in_use: Hold | None = None,
        masks: Iterable[str] = (),
        local: bool = False,
    ) -> None:
        self.url = url
        self.allowed = gate.allowed_kinds(allowed)
        self.masks = frozenset(masks)
        self.token = token
        self.embedded = embedded
        self.local = embedded or local
        self.cache_dir: Path | None = cache("hub") if embedded else None
        self._namespace = namespace
        self._in_use = in_use

    def allowing(self, kinds: Iterable[str]) -> Hub:
        """This Hub, with `kinds` of secrets and personal data allowed in what goes to it.

        Raises:
            PublishError: A kind is unknown.
        """
        allowed = self.allowed | gate.allowed_kinds(kinds)
        if allowed == self.allowed:
            return self
        return self._like(allowed=allowed, masks=self.masks)

    def masking(self, kinds: Iterable[str]) -> Hub:
        """This Hub, with `kinds` masked in the rows that go to it where it is not local."""
        masks = self.masks.union(kinds)
        return self if masks == self.masks else self._like(allowed=self.allowed, masks=masks)

    def _like(self, *, allowed: frozenset[str], masks: frozenset[str]) -> Hub:
        return Hub(
            self.url,
            self.token,
            self._namespace,
            embedded=self.embedded,
            allowed=allowed,
            masks=masks,
            in_use=self._in_use,
            local=self.local,
        )

    @contextmanager
    def masked(
        self, files: Mapping[str, gate.Content]
    ) -> Iterator[tuple[dict[str, gate.Content], str]]:
        """`files` as they may go to this Hub, and what was masked in their rows; to a local one
        they go as they are.
        """
        kinds = frozenset() if self.local else self.masks - self.allowed
        with gate.masked(files, kinds) as ready:
            yield ready

    @functools.cached_property
    def api(self) -> HfApi:
        """`huggingface_hub`'s client for this Hub."""
        from huggingface_hub import HfApi

        adapt_clients()
        return HfApi(endpoint=self.url, token=self.token or False, library_name="hubkit")

    @contextmanager
    def inference(self) -> Iterator[HfApi]:
        """`api` for its calls about Inference Endpoints, which go to this Hub as long as the block
        lasts.

        `huggingface_hub` takes their address from a constant of its own, whatever endpoint it was
        made with; this is the one place that redirects it. Keep the block to single calls: others
        wait for it."""
        from huggingface_hub import constants

        with _REDIRECTING:
            default = constants.INFERENCE_ENDPOINTS_ENDPOINT
            if self.url != constants._HF_DEFAULT_ENDPOINT:
                constants.INFERENCE_ENDPOINTS_ENDPOINT = f"{self.url}/v2"
            try:
                yield self.api
            finally:
                constants.INFERENCE_ENDPOINTS_ENDPOINT = default

    @property
    def namespace(self) -> str:
        """The user or organisation whose repos we make. Raises `HubError` when there is neither
        setting nor token.
        """
        if self._namespace is None:
            if self.token is None:
                self._greet()  # where nothing answers, a login does not help
                raise HubError(
                    f"no namespace for {self.url}: log in with `hf auth login`, or set "
                    f"HUBKIT_NAMESPACE",
                    status=401,
                )
            with self.translated("asking whose token this is"):
                self._namespace = str(self.api.whoami()["name"])
        return self._namespace

    def _greet(self) -> None:
        """Ask once for something that any Hub gives to anybody. Raises `HubError`."""
        from huggingface_hub import get_session, hf_raise_for_status

        # Not through the client's own listing: it tries a dead address for 23 s before it says so.
        with self.translated("reaching the Hub"):
            answer = get_session().get(
                f"{self.url}/api/models", params={"limit": 1}, timeout=GREETING_S
            )
            hf_raise_for_status(answer)
            answer.json()

    def qualify(self, name: str) -> str:
        """``namespace/name``; a name that has a namespace stays as it is."""
        return name if "/" in name else f"{self.namespace}/{name}"

    def page(self, ref: Ref) -> str:
        """The web address of `ref`."""
        prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[ref.repo_type]
        return f"{self.url}/{prefix}{ref.repo_id}"

    def resolve(self, repo_id: str, *, repo_type: str = "model", revision: str = "main") -> Ref:
        """The commit that `revision` of a repo is now. Raises `RepoMissingError`."""
        from huggingface_hub.errors import RevisionNotFoundError

        with self.translated(f"looking up {repo_type} {repo_id}@{revision}"):
            try:
                info = self.api.repo_info(repo_id, repo_type=repo_type, revision=revision)
            except RevisionNotFoundError:
                tags = ", ".join(self.tags(repo_id, repo_type=repo_type)) or "none"
                raise RepoMissingError(
                    f"{repo_type} {repo_id} of {self.url} has no revision {revision!r}; its "
                    f"tags: {tags}",
                    status=404,
                ) from None
        return Ref(repo_id, repo_type, str(info.sha))

    def holds(self, repo_id: str, *, repo_type: str = "model") -> bool:
        """Whether the Hub has this repo itself: the embedded one asks no upstream for it."""
        with self.translated(f"looking for {repo_type} {repo_id}"):
            models = repo_type == "model"
            listed: Iterable[Any] = (
                self.api.list_models(search=repo_id)
                if models
                else self.api.list_datasets(search=repo_id)
            )
            return any(info.id.lower() == repo_id.lower() for info in listed)

    def files(self, repo_id: str, *, repo_type: str = "model", revision: str = "main") -> list[str]:
        """The paths of all files at `revision` of a repo. Raises `RepoMissingError`."""
        with self.translated(f"listing the files of {repo_type} {repo_id}"):
            return list(self.api.list_repo_files(repo_id, revision=revision, repo_type=repo_type))

    def snapshot(self, ref: Ref, *, allow_patterns: Sequence[str] | None = None) -> Path:
        """A local folder with the files of `ref` (those that match, when patterns are given),
        downloaded once.
        """
        from huggingface_hub import snapshot_download

        adapt_clients()
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

    def make(
        self,
        repo_id: str,
        *,
        repo_type: str = "model",
        private: bool | None = None,
        sdk: str | None = None,
    ) -> None:
        """Make a repo where there is none: private on a real Hub unless `private` is False. Raises
        `HubError`.
        """
        from huggingface_hub.errors import HfUriError

        self.check(f"{repo_type} {repo_id} was not made on {self.url}", {}, [repo_id])
        hidden = not self.embedded if private is None else private
        # Where a token may not create what exists already, the client is content, but then fails
        # to read an address that is not huggingface.co's. Whether the token may write is for the
        # commit to say.
        with self.translated(f"creating {repo_type} {repo_id}"), suppress(HfUriError):
            self.api.create_repo(
                repo_id, repo_type=repo_type, private=hidden, exist_ok=True, space_sdk=sdk
            )

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
        """Make one commit of all files in `folder`; files on the Hub that match a `replace` pattern
        and are not in `folder` are deleted by it. The repo is created when missing: private on a
        real Hub unless `private` is False.

        When another commit comes in between, this one is made again on top of it, never over
        it. Raises `CommitConflictError` when that happens too often, `HubError` otherwise."""
        below = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        with self.masked(below) as (files, _):
            self.check(
                f"{repo_type} {repo_id} was not committed to {self.url}", files, [repo_id, message]
            )
        self.make(repo_id, repo_type=repo_type, private=private)
        for attempt in range(COMMIT_ATTEMPTS):
            with self.translated(f"committing to {repo_type} {repo_id}", conflicts=True) as outcome:
                return self._commit_once(repo_id, repo_type, folder, message, replace)
            if outcome.conflict:
                time.sleep(random.uniform(0.1, 1.0) * min(0.05 * 2**attempt, BACKOFF_CAP_S))
        raise CommitConflictError(
            f"{repo_type} {repo_id}: {COMMIT_ATTEMPTS} commits lost against others'; try again "
            f"when they are done",
            status=412,
        )

    def _commit_once(
        self, repo_id: str, repo_type: str, folder: Path, message: str, replace: Sequence[str]
    ) -> Ref:
        head = self.api.repo_info(repo_id, repo_type=repo_type)
        files: dict[str, gate.Content] = {
            p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()
        }
        present = [s.rfilename for s in getattr(head, "siblings", None) or []]
        stale = [path for path in present if any(fnmatch(path, pattern) for pattern in replace)]
        return self.create_commit(
            repo_id,
            files,
            message,
            repo_type=repo_type,
            parent=str(head.sha),
            delete=[path for path in stale if path not in files],
        )

    def create_commit(
        self,
        repo_id: str,
        files: Mapping[str, gate.Content],
        message: str,
        *,
        repo_type: str,
        parent: str,
        delete: Sequence[str] = (),
        branch: str | None = None,
    ) -> Ref:
        """Make one commit on top of `parent`: the one place where files leave for a Hub.

        To a Hub that is not this machine's own, nothing goes that holds a secret or personal data,
        unless its kind is in `allowed`; rows are masked first, of the kinds in `masks`. The
        commit's description says what passed and what was masked. The
        client's own errors come out as they are: call it inside `translated`.

        Args:
            files: Path in the repo → content.
            delete: Paths that the commit removes.
            branch: Where to commit; ``main`` without it.

        Raises:
            PublishError: A file, a name or the message must not leave.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with self.masked(files) as (ready, masked):
            passed = self.check(
                f"{repo_type} {repo_id} was not committed to {self.url}",
                ready,
                [repo_id, message, branch or ""],
            )
            noted = [f"Allowed by its owner: {passed}"] if passed else []
            noted += [f"Masked on the way: {masked}"] if masked else []

            def send() -> Ref:
                with ExitStack() as open_files:
                    # An open file goes up as one plain request; a path would go by Xet, whose
                    # client retries a full disk for minutes. Its de-duplication is worth that on a
                    # real Hub, not on this machine.
                    content: dict[str, Any] = dict(ready)
                    for path, source in ready.items():
                        if isinstance(source, Path) and self.embedded:
                            content[path] = open_files.enter_context(source.open("rb"))
                    commit = self.api.create_commit(
                        repo_id,
                        [
                            *(CommitOperationAdd(path, source) for path, source in content.items()),
                            *(CommitOperationDelete(path) for path in delete),
                        ],
                        commit_message=message,
                        commit_description="\n".join(noted) or None,
                        repo_type=repo_type,
                        revision=branch,
                        parent_commit=parent,
                    )
                return Ref(repo_id, repo_type, str(commit.oid))

            def landed() -> Ref | None:
                """The commit, where only its answer was lost. On a branch, another driver's has the
                same title: there the second one is refused for its parent, and its caller looks.
                """
                if branch is not None:
                    return None
                newest, *older = self.api.list_repo_commits(repo_id, repo_type=repo_type)[:2]
                is_ours = [commit.commit_id for commit in older] == [parent]
                if not is_ours or newest.title != message.splitlines()[0]:
                    return None
                return Ref(repo_id, repo_type, str(newest.commit_id))

            return sent_once(send, landed)

    def check(
        self, doing: str, files: Mapping[str, gate.Content], texts: Iterable[str] = ()
    ) -> str:
        """What `gate.check` says of something that is to go to this Hub; all passes to a local one.

        Raises:
            PublishError: It must not leave.
        """
        return "" if self.local else gate.check(doing, files, texts, allowed=self.allowed)

    def find_commit(self, repo_id: str, mark: str, *, repo_type: str = "model") -> Ref | None:
        """The newest commit on ``main`` whose title contains `mark`, or None (also when the repo
        does not exist).
        """
        return next(iter(self.commits(repo_id, mark, repo_type=repo_type)), None)

    def commits(self, repo_id: str, mark: str, *, repo_type: str = "model") -> list[Ref]:
        """The commits on ``main`` whose title contains `mark`, newest first; none when the repo
        does not exist.
        """
        try:
            with self.translated(f"reading the history of {repo_type} {repo_id}"):
                history = self.api.list_repo_commits(repo_id, repo_type=repo_type)
        except RepoMissingError:
            return []
        return [
            Ref(repo_id, repo_type, str(commit.commit_id))
            for commit in history
            if mark in commit.title
        ]

    def read(self, ref: Ref, path: str) -> bytes:
        """The bytes of one file. Raises `RepoMissingError` when it is not there."""
        from huggingface_hub import hf_hub_download

        adapt_clients()
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
        self.check(f"{ref} was not tagged on {self.url}", {}, [name, message])

        def send() -> bool:
            self.api.create_tag(
                ref.repo_id,
                tag=name,
                tag_message=message,
                revision=ref.revision,
                repo_type=ref.repo_type,
            )
            return True

        def landed() -> bool | None:
            return self.tags(ref.repo_id, repo_type=ref.repo_type).get(name) == ref.revision or None

        with self.translated(f"tagging {ref} as {name}"):
            sent_once(send, landed)

    @contextmanager
    def translated(self, doing: str, *, conflicts: bool = False) -> Iterator[_Outcome]:
        """Turn the clients' errors into ours; with `conflicts`, swallow a 409 or 412 and say so in
        the outcome.
        """
        outcome = _Outcome()
        try:
            yield outcome
        except Exception as error:
            # The HTTP client's errors share no narrower class; all other ones are raised again.
            cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
            translated = self._translate(doing, cause)
            if translated is None:
                raise
            if conflicts and getattr(translated, "status", None) in (409, 412):
                outcome.conflict = True
                return
            raise translated from error

    def _translate(self, doing: str, error: BaseException) -> HubkitError | None:
        import httpx2
        from huggingface_hub import errors as hf

        if isinstance(error, HubkitError):
            return None
        if isinstance(
            error, hf.RepositoryNotFoundError | hf.RevisionNotFoundError | hf.EntryNotFoundError
        ):
            return RepoMissingError(
                f"{doing}: {self.url} has no such repo, revision or file{self._where_to_look()}",
                status=404,
            )
        if isinstance(error, hf.HfHubHTTPError):
            return self._http_error(doing, error)
        if isinstance(error, httpx2.TransportError | ConnectionError):
            hint = (
                "run the same command again"
                if self.embedded
                else "check the network, or set HUBKIT_HUB=local"
            )
            name = type(error).__name__
            return HubUnreachableError(f"{doing}: {self.url} does not answer ({name}); {hint}")
        if isinstance(error, hf.HFValidationError):
            return HubError(f"{doing}: {error}", status=400)
        if isinstance(error, json.JSONDecodeError):
            return HubError(
                f"{doing}: {self.url} answers, but not as a Hub does; check HUBKIT_HUB", status=200
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            folder = self.cache_dir or "the Hugging Face cache"
            return DiskFullError(
                f"{doing}: no space left on the disk of {folder}; free some, then the same "
                f"command again"
            )
        return None

    def _where_to_look(self) -> str:
        """What to do about a repo that is not there."""
        if self.embedded:
            return "; its page lists what it holds, and `hubkit run RECIPE` makes a recipe's repos"
        if self.token:
            return "; check the name, and that this token may read it"
        return " (or it is private: there is no token; log in with `hf auth login`)"

    def _http_error(self, doing: str, error: HfHubHTTPError) -> HubkitError:
        status = error.response.status_code
        reason = error.server_message or str(error).splitlines()[0]
        if status == 507:
            return DiskFullError(
                f"{doing}: the disk of {self.url} is full; free some space, then the same "
                f"command again"
            )
        if status in (401, 403):
            mend = "Log in with a token that may write there: `hf auth login`."
            if self.embedded:
                mend = (
                    f"It is the one in {embedded.token_path()}; `hubkit hub stop`, and "
                    f"remove it: a new one is made."
                )
            return HubError(
                f"{doing}: {self.url} refuses this token ({status}: {reason}). {mend}",
                status=status,
            )
        return HubError(f"{doing}: {self.url} answered {status}: {reason}", status=status)


class _Outcome:
    conflict = False


@functools.cache
def _silent_bar() -> type:
    """A tqdm class that draws nothing: rooms say how far they are through a `Progress`, not on the
    terminal.
    """
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
