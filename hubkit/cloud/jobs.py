"""One command as a Hub Job: submitted or found again, followed to its end, tried once more when the
place failed it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubkit.errors import HubError, RunInterruptedError
from hubkit.hub import Hub
from hubkit.hub.network import sent_once
from hubkit.settings import INSIDE_JOB

LOG_TAIL = 200
OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Command:
    """What a job runs: `args` after ``uv run`` with `requirements`, or, with an `image`, as they
    are in that image.

    `labels` tell this command's jobs from others: one that is still under way is followed instead
    of started again. `secrets` reach the job's environment and nothing else; `timeout_s` is when
    the service ends it."""

    args: Sequence[str]
    labels: Mapping[str, str]
    flavor: str
    timeout_s: float
    requirements: Sequence[str] = ()
    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: its stage and message as the service says them, and the end of its log."""

    job_id: str
    url: str
    stage: str
    message: str
    seconds: float
    tail: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether its command ended with status 0."""
        return self.stage == "COMPLETED"


def run_job(
    hub: Hub, command: Command, *, on_line: OnLine, cancel_on_interrupt: bool = False
) -> Outcome:
    """Run `command` as a job and follow its log until it is over. Raises `HubError` when the
    service refuses.

    Ctrl-C leaves the job running, unless it is to be cancelled; either way `RunInterruptedError`
    says which job it was."""
    job = _under_way(hub, command.labels) or _submit(hub, command)
    on_line(f"job {job.url}")
    tail: list[str] = []
    try:
        with hub.translated(f"following job {job.id}"):
            for line in hub.api.fetch_job_logs(
                job_id=job.id, namespace=hub.namespace, follow=True, token=hub.token
            ):
                tail = [*tail[1 - LOG_TAIL :], line]
                on_line(line)
            ended = hub.api.wait_for_job(job.id, namespace=hub.namespace, token=hub.token)
    except KeyboardInterrupt:
        if cancel_on_interrupt:
            cancel(hub, job.id)
            raise RunInterruptedError(
                f"stopped, and cancelled job {job.url}; the same command starts it again"
            ) from None
        raise RunInterruptedError(
            f"stopped, but job {job.url} still runs and costs; the same command follows it again, "
            f"and `hf jobs cancel {job.id}` ends it"
        ) from None
    except HubError as error:
        raise type(error)(
            f"{error}; job {job.url} may still run and cost: the same command follows it again, "
            f"and `hf jobs cancel {job.id}` ends it",
            status=error.status,
        ) from None
    seconds = float((ended.durations.running_secs if ended.durations else None) or 0)
    return Outcome(
        job.id, job.url, str(ended.status.stage), ended.status.message or "", seconds, tuple(tail)
    )


def cancel(hub: Hub, job_id: str) -> None:
    """End a job. Raises `HubError`."""
    with hub.translated(f"cancelling job {job_id}"):
        hub.api.cancel_job(job_id=job_id, namespace=hub.namespace, token=hub.token)


def inside() -> str | None:
    """The id of the job that this process runs in; None outside of one that `run_job` started:
    other schedulers have a ``JOB_ID`` too.
    """
    return (os.environ.get("JOB_ID") or None) if INSIDE_JOB in os.environ else None


def is_over(hub: Hub, job_id: str) -> bool:
    """Whether a job has ended; False for one that cannot be found. Raises `HubError`."""
    try:
        with hub.translated(f"looking up job {job_id}"):
            status = hub.api.inspect_job(job_id=job_id, namespace=hub.namespace, token=hub.token)
    except HubError as error:
        if error.status == 404:
            return False
        raise
    return status.status.stage in OVER


def _under_way(hub: Hub, labels: Mapping[str, str]) -> Any | None:
    with hub.translated("listing jobs"):
        listing = hub.api.list_jobs(
            namespace=hub.namespace,
            status=["SCHEDULING", "RUNNING"],
            labels=dict(labels),
            token=hub.token,
        )
        return next(iter(listing), None)


def _submit(hub: Hub, command: Command) -> Any:
    common: dict[str, Any] = {
        "env": {**command.env, INSIDE_JOB: "1"},
        "secrets": dict(command.secrets),
        "flavor": command.flavor,
        "timeout": command.timeout_s,
        "labels": dict(command.labels),
        "namespace": hub.namespace,
        "token": hub.token,
    }

    described = {**command.env, **command.labels, "command": " ".join(command.args)}
    hub.check(
        f"the job was not started on {hub.url}",
        {f"the job's {name}": text.encode() for name, text in described.items()},
    )

    def send() -> Any:
        if command.image:
            return hub.api.run_job(image=command.image, command=list(command.args), **common)
        first, *arguments = command.args
        return hub.api.run_uv_job(
            first, script_args=arguments, dependencies=list(command.requirements), **common
        )

    with hub.translated("starting a job"):
        return sent_once(send, lambda: _under_way(hub, command.labels))
