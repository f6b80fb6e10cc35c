"""A worker of `hubkit.filters.parallel`: JSON Lines in, JSON Lines out; ends when its input does."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from hubkit.filters import Chain, Context
from hubkit.filters.parallel import pack
from hubkit.schema import Conversation


class _Spec(NamedTuple):
    name: str
    args: dict[str, Any]


def main() -> None:
    """Read the chain, then judge chunks of conversations until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends its workers
    lines = sys.stdin.buffer
    setting = orjson.loads(lines.readline())
    specs = [_Spec(*spec) for spec in setting["specs"]]
    tokenizer = Path(setting["tokenizer"]) if setting["tokenizer"] else None
    chain = Chain(specs, Context(tokenizer, {name: Path(path) for name, path in setting["questions"].items()}))
    for line in lines:
        chain.reset()
        results = []
        for fields in orjson.loads(line):
            conversation = Conversation(*fields)
            results.append([pack(result, conversation) for result in chain(conversation)])
        reply = {"results": results, "steps": [step.to_dict() for step in chain.steps]}
        sys.stdout.buffer.write(orjson.dumps(reply, option=orjson.OPT_NON_STR_KEYS) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
