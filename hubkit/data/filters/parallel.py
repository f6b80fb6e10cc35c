"""The same chain on several cores, or over a cluster: filters that judge each conversation by
itself run elsewhere.

The chain's front, up to the first filter that compares rows, goes out in chunks; the rest runs
here, on the rows in their old order. Of each row that is kept, what the comparing filters right
behind compare is worked out there too. Results and ledger are the same, to the byte, as in one
process. Workers are plain subprocesses that speak JSON Lines, so that it does not matter how the
calling program was started, or tasks of a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice, takewhile
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hubkit.conversation import Conversation
from hubkit.data.filters.chain import Chain, Context, Dropped, Spec, Step, is_stateful
from hubkit.errors import StageError

if TYPE_CHECKING:
    from hubkit.data.filters.worker import WorkerReply, WorkerSettings

CHUNK = 128  # conversations sent at once
SMALL_BYTES = 16 << 20  # below this, starting workers takes longer than they save
Results = list[Conversation | Dropped]
Ask: TypeAlias = "Callable[[list[Any]], WorkerReply]"
"""One worker: a chunk of conversations' fields in, results and ledger out."""


def run(
    specs: Iterable[Spec],
    context: Context,
    conversations: Iterable[Conversation],
    *,
    workers: int,
    on: Literal["here", "ray"] = "here",
) -> tuple[list[Step], Iterator[tuple[Conversation, Results]]]:
    """The chain's steps (filled while the second is consumed), and each conversation with what
    became of it, in order.

    `workers` below 2 runs everything here, unless it is to run `on` a Ray cluster, which has its
    own number. Held in memory: two chunks a worker, and what comparing filters remember. Raises
    `RecipeError` for a wrong filter at once, and while running `StageError` when a worker dies,
    `MissingDependencyError` without Ray."""
    specs = list(specs)
    cut = next((at for at, spec in enumerate(specs) if is_stateful(spec)), len(specs))
    front, remainder = Chain(specs[:cut], context), Chain(specs[cut:], context)
    steps = [*front.steps, *remainder.steps]
    if on == "here" and workers < 2:
        return steps, ((c, _onwards(front(c), remainder)) for c in conversations)
    from hubkit.data.filters import on_ray
    from hubkit.data.filters.worker import worker_settings

    settings = worker_settings(specs[:cut], list(takewhile(is_stateful, specs[cut:])), context)
    worker_pool = on_ray.worker_pool(settings) if on == "ray" else _processes(settings, workers)
    spread = _spread(front, worker_pool, conversations)
    return steps, ((c, _onwards(results, remainder, keys)) for c, results, keys in spread)


def workers_for(size: int) -> int:
    """How many workers are worth starting for `size` bytes of input."""
    return (
        0
        if size < SMALL_BYTES
        else min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2, 16)
    )


def _onwards(results: Results, remainder: Chain, keys: list[list[bytes]] | None = None) -> Results:
    """`remainder` over what the front kept; `keys` of each result, empty for what it dropped."""
    if not remainder.steps:
        return results
    rows = [result for result in results if not isinstance(result, Dropped)]
    dropped: Results = [result for result in results if isinstance(result, Dropped)]
    row_keys = [
        key
        for key, result in zip(keys or [], results, strict=False)
        if not isinstance(result, Dropped)
    ]
    return [*dropped, *remainder.walk(rows, row_keys)] if rows else dropped


def _spread(
    front: Chain,
    worker_pool: AbstractContextManager[list[Ask]],
    conversations: Iterable[Conversation],
) -> Iterator[tuple[Conversation, Results, list[list[bytes]]]]:
    """Chunks out to the workers and back, at most two a worker under way, in order."""
    from hubkit.data.filters.worker import unpack

    order = iter(conversations)
    idle: SimpleQueue[Ask] = SimpleQueue()
    under_way: deque[tuple[list[Conversation], Future[WorkerReply]]] = deque()
    with worker_pool as asks:
        for ask in asks:
            idle.put(ask)
        threads = ThreadPoolExecutor(len(asks))
        try:
            while True:
                while len(under_way) < 2 * len(asks) and (chunk := list(islice(order, CHUNK))):
                    under_way.append((chunk, threads.submit(_ask, idle, chunk)))
                if not under_way:
                    return
                chunk, future = under_way.popleft()
                reply = future.result()
                for step, counted in zip(front.steps, reply["steps"], strict=True):
                    step.merge(counted)
                for conversation, packed in zip(chunk, reply["results"], strict=True):
                    unpacked = [unpack(item, conversation) for item in packed]
                    yield (
                        conversation,
                        [result for result, _ in unpacked],
                        [keys for _, keys in unpacked],
                    )
        finally:
            threads.shutdown(
                wait=False, cancel_futures=True
            )  # leaving the worker_pool ends what is under way


def _ask(idle: SimpleQueue[Ask], chunk: list[Conversation]) -> WorkerReply:
    ask = idle.get()
    try:
        return ask([[c.id, c.messages, c.source, c.meta] for c in chunk])
    finally:
        idle.put(ask)


@contextmanager
def _processes(settings: WorkerSettings, count: int) -> Iterator[list[Ask]]:
    """Subprocesses of this one, which end with the context."""
    worker_pool: list[_Worker] = []
    try:
        for _ in range(count):
            worker_pool.append(_Worker(settings))
        yield [worker.ask for worker in worker_pool]
    finally:
        for worker in worker_pool:
            worker.stop()


class _Worker:
    """One subprocess that runs the front of the chain on chunks, one at a time."""

    def __init__(self, settings: WorkerSettings) -> None:
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hubkit.data.filters.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._send(settings)

    def ask(self, chunk: list[Any]) -> WorkerReply:
        """Results and ledger of one chunk. Raises `StageError` when the worker has died."""
        import orjson

        try:
            self._send(chunk)
            assert self._process.stdout
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise StageError(
                f"a filter process ended early (exit status {self._process.wait()}); is memory "
                "short? Run again, or with one worker"
            )
        reply: WorkerReply = orjson.loads(line)
        return reply

    def _send(self, value: Any) -> None:
        import orjson

        assert self._process.stdin
        self._process.stdin.write(orjson.dumps(value) + b"\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """End the subprocess, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):  # what was left in the buffer has nowhere to go
                    pipe.close()
