"""A side branch of a repo, where work in progress is kept until a commit on ``main`` supersedes it.

Each commit names the one before it, so that of two writers who do not know of each other one is
refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hubkit.errors import CommitConflictError, RepoMissingError
from hubkit.hub.client import Hub, Ref


class Branch:
    """Branch `name` of a repo. `head` is its newest commit that this object knows of, None before
    `open`.
    """

    def __init__(self, hub: Hub, repo_id: str, name: str, *, repo_type: str = "model") -> None:
        self._hub, self.repo_id, self.repo_type, self.name = hub, repo_id, repo_type, name
        self.head: Ref | None = None

    def exists(self) -> bool:
        """Whether the branch is on the Hub. Raises `HubError` when the Hub cannot say."""
        try:
            self._hub.resolve(self.repo_id, repo_type=self.repo_type, revision=self.name)
        except RepoMissingError:
            return False
        return True

    def open(self) -> Ref:
        """Find the branch, or make it (and the repo, private on a real Hub) from ``main``. Raises
        `HubError`.
        """
        hub = self._hub
        try:
            self.head = hub.resolve(self.repo_id, repo_type=self.repo_type, revision=self.name)
        except RepoMissingError:
            hub.check(
                f"branch {self.name} of {self.repo_id} was not made on {hub.url}", {}, [self.name]
            )
            hub.make(self.repo_id, repo_type=self.repo_type)
            with hub.translated(f"creating branch {self.name} of {self.repo_type} {self.repo_id}"):
                hub.api.create_branch(
                    self.repo_id, branch=self.name, repo_type=self.repo_type, exist_ok=True
                )
            self.head = hub.resolve(self.repo_id, repo_type=self.repo_type, revision=self.name)
        return self.head

    def commit(self, files: Mapping[str, bytes | Path], message: str) -> Ref:
        """Commit `files` (by path in the repo) on top of `head`.

        Raises `CommitConflictError` when the branch has moved on since (`open` finds where to),
        `RepoMissingError` when it is gone, `HubError` otherwise."""
        assert self.head is not None
        doing = f"committing to branch {self.name} of {self.repo_type} {self.repo_id}"
        with self._hub.translated(doing, conflicts=True) as outcome:
            self.head = self._hub.create_commit(
                self.repo_id,
                files,
                message,
                repo_type=self.repo_type,
                parent=self.head.revision,
                branch=self.name,
            )
        if outcome.conflict:
            raise CommitConflictError(f"{doing}: another process committed there", status=412)
        return self.head

    def read(self, path: str) -> bytes | None:
        """A file as `head` has it, or None."""
        assert self.head is not None
        try:
            return self._hub.read(self.head, path)
        except RepoMissingError:
            return None

    def files(self, patterns: Sequence[str]) -> list[Path]:
        """The files of `head` that match, downloaded, in order of their paths."""
        assert self.head is not None
        folder = self._hub.snapshot(self.head, allow_patterns=patterns)
        return sorted(path for pattern in patterns for path in folder.glob(pattern))

    def delete(self) -> None:
        """Remove the branch; one that is not there is removed already. Raises `HubError`."""
        with (
            suppress(RepoMissingError),
            self._hub.translated(f"deleting branch {self.name} of {self.repo_id}"),
        ):
            self._hub.api.delete_branch(self.repo_id, branch=self.name, repo_type=self.repo_type)
