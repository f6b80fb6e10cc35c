"""The part of a chain that any process can run: its front, and what the filters after it compare
of each row.

`hubkit.data.filters.parallel` starts this module as a subprocess that speaks JSON Lines and ends
when its input does, or, over a cluster, calls `FilterWorker` in Ray's tasks."""

from __future__ import annotations

import os
import signal
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import orjson

from hubkit import plugins
from hubkit.conversation import Conversation
from hubkit.data.filters import Chain, Context, Dropped, Spec
from hubkit.untrusted import JsonObject


class _Spec(NamedTuple):
    name: str
    args: dict[str, Any]


class WorkerSettings(TypedDict):
    """What a `FilterWorker` is made of."""

    front: list[tuple[str, dict[str, Any]]]
    comparing: list[tuple[str, dict[str, Any]]]
    tokenizer: str | None
    questions: dict[str, str]
    turn_marks: list[str]
    plugins: list[JsonObject]


class WorkerReply(TypedDict):
    """What became of a chunk: packed results of each conversation, and the steps' counts."""

    results: list[list[list[Any]]]
    steps: list[JsonObject]


def worker_settings(front: list[Spec], comparing: list[Spec], context: Context) -> WorkerSettings:
    """What a `FilterWorker` is made of, as JSON.

    `front` runs in the worker; `comparing` are the stateful filters that come next, whose keys are
    computed there.
    """
    return {
        "front": [(spec.name, dict(spec.args)) for spec in front],
        "comparing": [(spec.name, dict(spec.args)) for spec in comparing],
        "tokenizer": str(context.tokenizer.resolve()) if context.tokenizer else None,
        "questions": {name: str(path.resolve()) for name, path in context.questions.items()},
        "turn_marks": list(context.turn_marks),
        "plugins": plugins.snapshot(),
    }


class FilterWorker:
    """Runs chunks of conversations through the front of a chain; what it gives for one does not
    depend on others.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        plugins.restore(settings["plugins"])
        tokenizer = Path(settings["tokenizer"]) if settings["tokenizer"] else None
        questions = {name: Path(path) for name, path in settings["questions"].items()}
        context = Context(tokenizer, questions, tuple(settings["turn_marks"]))
        self._front = Chain((_Spec(*spec) for spec in settings["front"]), context)
        self._comparing = Chain((_Spec(*spec) for spec in settings["comparing"]), context)

    def __call__(self, chunk: list[list[Any]]) -> WorkerReply:
        """For each conversation (its fields) its results, packed; and the front's ledger of this
        chunk.
        """
        self._front.reset()
        results = []
        for fields in chunk:
            conversation = Conversation(*fields)
            results.append(
                [self._packed(result, conversation) for result in self._front(conversation)]
            )
        return {"results": results, "steps": [step.to_dict() for step in self._front.steps]}

    def _packed(self, result: Conversation | Dropped, original: Conversation) -> list[Any]:
        """A result as JSON; a conversation that no filter touched is not sent back."""
        if isinstance(result, Dropped):
            return ["dropped", result.step, result.reason]
        keys = [b64encode(key).decode() for key in self._comparing.keys(result)]
        if result is original:
            return ["same", keys]
        return ["new", keys, result.id, result.messages, result.source, result.meta]


def unpack(packed: list[Any], original: Conversation) -> tuple[Conversation | Dropped, list[bytes]]:
    """A result of `FilterWorker`, and the keys of what was kept.

    A dropped conversation comes back as it went in.
    """
    if packed[0] == "dropped":
        return Dropped(original, packed[1], packed[2]), []
    keys = [b64decode(key) for key in packed[1]]
    return (original if packed[0] == "same" else Conversation(*packed[2:])), keys


def main() -> None:
    """Read the worker's settings, then chunks of conversations until the input ends. A parent that
    is gone left half a line, or reads no results.
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's to handle; it ends its workers
    lines = sys.stdin.buffer
    settings = lines.readline()
    if not settings.endswith(b"\n"):
        return
    worker = FilterWorker(orjson.loads(settings))
    for line in lines:
        if not line.endswith(b"\n"):
            return
        results = orjson.dumps(worker(orjson.loads(line)), option=orjson.OPT_NON_STR_KEYS)
        try:
            sys.stdout.buffer.write(results + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # What is still in the buffer has nowhere to go when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


if __name__ == "__main__":
    main()
