"""The same chain on several cores: filters that judge each conversation by itself run in worker processes.

The chain's front, up to the first filter that compares rows, goes to the workers in chunks; the rest runs here, on the
rows in their old order. Results and ledger are the same, to the byte, as without workers. Workers are plain
subprocesses that speak JSON Lines, so that it does not matter how the calling program was started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hubkit.errors import StageError
from hubkit.filters.chain import REMEMBERING, Chain, Context, Dropped, Spec, Step
from hubkit.schema import Conversation

CHUNK = 128  # conversations sent at once
SMALL_BYTES = 16 << 20  # below this, starting workers takes longer than they save
Results = list[Conversation | Dropped]


def run(
    specs: Iterable[Spec],
    context: Context,
    conversations: Iterable[Conversation],
    *,
    workers: int,
) -> tuple[list[Step], Iterator[tuple[Conversation, Results]]]:
    """The chain's steps (filled while the second is consumed), and each conversation with what became of it, in order.

    `workers` below 2 runs everything here. Raises `RecipeError` for a wrong filter at once, and `StageError` while
    running when a worker dies.
    """
    specs = list(specs)
    cut = next((at for at, spec in enumerate(specs) if spec.name in REMEMBERING), len(specs))
    front, rest = Chain(specs[:cut], context), Chain(specs[cut:], context)
    steps = [*front.steps, *rest.steps]
    if workers < 2 or not cut:
        return steps, ((c, _onwards(front(c), rest)) for c in conversations)
    found = _spread(front, specs[:cut], context, conversations, workers)
    return steps, ((c, _onwards(results, rest)) for c, results in found)


def workers_for(size: int) -> int:
    """How many workers are worth starting for `size` bytes of input."""
    return 0 if size < SMALL_BYTES else min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2, 16)


def _onwards(results: Results, rest: Chain) -> Results:
    if not rest.steps:
        return results
    rows = [result for result in results if not isinstance(result, Dropped)]
    gone: Results = [result for result in results if isinstance(result, Dropped)]
    return [*gone, *rest.walk(rows)] if rows else gone


def _spread(
    front: Chain, specs: list[Spec], context: Context, conversations: Iterable[Conversation], workers: int
) -> Iterator[tuple[Conversation, Results]]:
    """Chunks out to the workers and back, at most two a worker under way, in order."""
    order = iter(conversations)
    idle: SimpleQueue[_Worker] = SimpleQueue()
    crew: list[_Worker] = []
    under_way: deque[tuple[list[Conversation], Future[dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for _ in range(workers):
                crew.append(_Worker(specs, context))
                idle.put(crew[-1])
            while True:
                while len(under_way) < 2 * workers and (chunk := list(islice(order, CHUNK))):
                    under_way.append((chunk, threads.submit(_ask, idle, chunk)))
                if not under_way:
                    return
                chunk, future = under_way.popleft()
                reply = future.result()
                for step, counted in zip(front.steps, reply["steps"], strict=True):
                    step.merge(counted)
                for conversation, packed in zip(chunk, reply["results"], strict=True):
                    yield conversation, [unpack(item, conversation) for item in packed]
        finally:
            for worker in crew:
                worker.stop()


def _ask(idle: SimpleQueue[_Worker], chunk: list[Conversation]) -> dict[str, Any]:
    worker = idle.get()
    try:
        return worker.ask([[c.id, c.messages, c.source, c.meta] for c in chunk])
    finally:
        idle.put(worker)


def pack(result: Conversation | Dropped, original: Conversation) -> list[Any]:
    """A result as JSON; a conversation that no filter touched is not sent back."""
    if isinstance(result, Dropped):
        return ["dropped", result.conversation.id, result.step, result.reason]
    if result is original:
        return ["same"]
    return ["new", result.id, result.messages, result.source, result.meta]


def unpack(packed: list[Any], original: Conversation) -> Conversation | Dropped:
    """The result that `pack` packed. A dropped conversation comes back as it went in."""
    if packed[0] == "same":
        return original
    if packed[0] == "dropped":
        return Dropped(original, packed[2], packed[3])
    return Conversation(*packed[1:])


class _Worker:
    """One subprocess that runs the front of the chain on chunks, one at a time."""

    def __init__(self, specs: list[Spec], context: Context) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hubkit.filters.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._send({
            "specs": [[spec.name, dict(spec.args)] for spec in specs],
            "tokenizer": str(context.tokenizer.resolve()) if context.tokenizer else None,
            "questions": {name: str(path.resolve()) for name, path in context.questions.items()},
        })  # fmt: skip

    def ask(self, chunk: list[Any]) -> dict[str, Any]:
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
                f"a filter process ended early (exit status {self._process.wait()}); is memory short? "
                f"Run again, or with one worker"
            )
        reply: dict[str, Any] = orjson.loads(line)
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
