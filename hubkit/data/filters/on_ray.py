"""Filters as tasks of a Ray cluster: the same `FilterWorker`, on whichever node has room.

A task that is lost is tried again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import HubkitError, StageError
from hubkit.ray_session import connected

if TYPE_CHECKING:
    from hubkit.data.filters.worker import FilterWorker, WorkerReply, WorkerSettings

_RETRIES = 5  # of one chunk, on workers that die under it
_workers: dict[
    str, FilterWorker
] = {}  # in a process of the cluster: made once, used for all of its chunks


@contextmanager
def worker_pool(settings: WorkerSettings) -> Iterator[list[Callable[[list[Any]], WorkerReply]]]:
    """As many callables as the cluster has processors; each hands its chunk to the cluster and
    waits for the answer.

    Tokenizer and questions travel along, so that nodes need no common disk; hubkit must be
    installed on each."""
    with connected() as ray:
        files = {path: Path(path).read_bytes() for path in _paths(settings) if Path(path).is_file()}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for data in files.values():
            digest.update(hashlib.sha256(data).digest())
        remote = ray.remote(decide).options(num_cpus=1, max_retries=_RETRIES)
        shared = [
            ray.put((settings, files))
        ]  # in a list, so that a task fetches it only when it has to
        under_way: set[Any] = set()

        def ask(chunk: list[Any]) -> WorkerReply:
            task = remote.remote(digest.hexdigest(), shared, chunk)
            under_way.add(task)
            try:
                reply: WorkerReply = ray.get(task)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, HubkitError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise StageError(
                    f"a chunk of {len(chunk)} conversations ended {_RETRIES + 1} workers of the "
                    f"cluster ({type(error).__name__}); is memory short there? See Ray's logs, and "
                    "run again"
                ) from None
            finally:
                under_way.discard(task)
            return reply

        try:
            yield [ask] * max(2, int(ray.cluster_resources().get("CPU", 0)))
        finally:
            for task in list(under_way):
                ray.cancel(task, force=True)


def decide(digest: str, shared: list[Any], chunk: list[Any]) -> WorkerReply:
    """A chunk's results and ledger, in a task of the cluster."""
    if digest not in _workers:
        import ray

        _workers.clear()
        _workers[digest] = _worker_of(*ray.get(shared[0]))
    reply: WorkerReply = _workers[digest](chunk)
    return reply


def _paths(settings: WorkerSettings) -> list[str]:
    tokenizer = settings["tokenizer"]
    if tokenizer and Path(tokenizer).is_dir():
        tokenizer = settings["tokenizer"] = str(Path(tokenizer) / "tokenizer.json")
    return [*filter(None, [tokenizer]), *settings["questions"].values()]


def _worker_of(settings: WorkerSettings, files: dict[str, bytes]) -> FilterWorker:
    """The worker, its files laid down for as long as it reads them."""
    from hubkit.data.filters.worker import FilterWorker

    with tempfile.TemporaryDirectory() as folder:
        written_paths: dict[str, str] = {}
        for number, (path, data) in enumerate(files.items()):
            target = Path(folder, str(number), Path(path).name)
            target.parent.mkdir()
            target.write_bytes(data)
            written_paths[path] = str(target)
        questions = {
            name: written_paths.get(path, path) for name, path in settings["questions"].items()
        }
        tokenizer = written_paths.get(settings["tokenizer"] or "")
        return FilterWorker({**settings, "tokenizer": tokenizer, "questions": questions})
