"""Every error that hubkit raises on purpose: one root, each class also a standard-library type.

Takes nothing, gives exception classes. Rules for adding one:

- derive from `HubkitError` *and* from the stdlib type that a caller would expect to catch;
- the message says what failed, with its values, then what to do next;
- callers decide on the class (or on `status`), never on the message text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HubkitError(Exception):
    """Root of all of hubkit's errors. The command line prints it as one sentence and exits with
    `exit_code`.
    """

    exit_code = 1


class RecipeError(HubkitError, ValueError):
    """A recipe cannot be read: unknown key, wrong type, impossible value."""

    exit_code = 2


class SchemaError(HubkitError, ValueError):
    """A conversation does not have the shape that a stage needs. `reason` is a short
    machine-readable word.
    """

    def __init__(self, message: str, *, reason: str = "invalid") -> None:
        super().__init__(message)
        self.reason = reason


class SourceError(HubkitError, ValueError):
    """An input file or dataset cannot be read at all (not even as counted bad rows)."""


class TemplateError(HubkitError, ValueError):
    """A chat template cannot render messages, or is not proven to print what its base prints."""


class HubError(HubkitError, OSError):
    """A Hub answered with an error. `status` is the HTTP status, or None when there was no
    answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class HubUnreachableError(HubError, ConnectionError):
    """The configured Hub does not answer, or the embedded Hub cannot be started."""


class RepoMissingError(HubError, LookupError):
    """The Hub answers, but has no such repo, revision or file for this token."""


class CommitConflictError(HubError):
    """Another client committed first (HTTP 409 or 412) more often than we retried."""


class EndpointError(HubkitError, OSError):
    """A generation endpoint answered with an error.

    Attributes:
        status: The HTTP status (of the body, where a 200 holds an error), or None without an
            answer.
        kind: What the refusal is, one of `hubkit.serving.client.refusals.KINDS`; empty when nothing
            is known beyond the status.
        window: The most tokens of a sequence, where the server names them.
        retry_after_s: What the server asked to wait, where it did.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        kind: str = "",
        window: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.kind = kind
        self.window = window


class EndpointUnreachableError(EndpointError, ConnectionError):
    """A generation endpoint does not answer."""


class MisconfiguredEndpointError(EndpointError, ValueError):
    """An endpoint refuses every request: a wrong key, a model that it does not serve, a template
    that cannot render.
    """


class CreditExhaustedError(MisconfiguredEndpointError):
    """An account has no credit or quota left: every request is refused until that changes."""


class EngineError(HubkitError, RuntimeError):
    """The embedded engine cannot start, or cannot serve this model."""


class TrainingError(HubkitError, RuntimeError):
    """Training cannot start or continue: nothing to learn from, a loss that is not a number."""


class EvalError(HubkitError, RuntimeError):
    """An evaluation cannot start or cannot continue."""


class StageError(HubkitError, RuntimeError):
    """A pipeline stage cannot run: an input is missing, a stage before it has not run."""


class EmptyRolloutError(StageError):
    """A rollout has not one dialogue: no opening could be used, or a cap let nothing through."""


class RunLockedError(HubkitError, BlockingIOError):
    """Another process drives this run right now."""


class LocksMissingError(HubkitError, OSError):
    """A file system has no locks between processes, so nothing there can be held alone."""


class RunInterruptedError(HubkitError, KeyboardInterrupt):
    """Asked to stop (Ctrl-C, SIGTERM), and did: what was acknowledged is on disk, and the same
    command resumes.
    """

    exit_code = 130


class PublishError(HubkitError, ValueError):
    """Something must not be published as it is: a card that misleads, a file with a secret in
    it.
    """


class DiskFullError(HubkitError, OSError):
    """No space left on the device that holds hubkit's files."""


class MissingDependencyError(HubkitError, ImportError):
    """An optional package is needed for what was asked; the message names the pip command."""


class RemoteCodeError(HubkitError, RuntimeError):
    """A model asks to run code out of its own repo, which hubkit never does."""


@contextmanager
def refusing_remote_code(model: str) -> Iterator[None]:
    """Put our own sentence in place of a library's advice to trust the code of `model`'s repo.

    Raises:
        RemoteCodeError: The library refused `model` because ``trust_remote_code`` is False.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error, HubkitError) or "trust_remote_code" not in str(error):
            raise
        raise RemoteCodeError(brings_code(model)) from None


def brings_code(model: str) -> str:
    """The sentence for a model that loads only by code of its own."""
    return (
        f"{model} loads only by running code out of its own repo, which hubkit never does; "
        "take a model whose architecture transformers knows"
    )
