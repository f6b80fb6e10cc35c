"""The process's command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from hubkit.errors import EngineError

BASE = "base"
DEFAULT_CONTEXT = 2048
DEFAULT_SLOTS = 16


@dataclass(frozen=True, slots=True)
class Listen:
    """One address; `serves`: the adapter (or BASE) for requests that name none."""

    host: str
    port: int
    serves: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What to serve, where, and how large."""

    model: str
    adapters: dict[str, str]
    listen: list[Listen]
    state_file: Path | None
    cache_dir: Path
    engine: str
    dtype: str
    threads: int
    context: int
    slots: int
    max_concurrent: int
    exit_with_parent: bool


def parse(arguments: list[str]) -> Settings:
    """Settings from the command line; exits with status 2 and usage on a mistake."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        adapters = dict(_adapter(text) for text in args.adapter)
        listen = [_listen(text) for text in args.listen or ["127.0.0.1:0"]]
    except ValueError as error:
        parser.error(str(error))
    if BASE in adapters:
        parser.error(f"an adapter cannot be called {BASE!r}")
    return Settings(
        model=args.model,
        adapters=adapters,
        listen=listen,
        state_file=args.state_file,
        cache_dir=args.cache_dir or default_cache_dir(),
        engine=args.engine,
        dtype=args.dtype,
        threads=args.threads or len(os.sched_getaffinity(0)),
        context=args.context,
        slots=args.slots,
        max_concurrent=args.max_concurrent,
        exit_with_parent=args.exit_with_parent,
    )


def bearer_token() -> str | None:
    """The token that clients must send, from $HUBKIT_ENDPOINT_TOKEN: never on the command line,
    where all can read.
    """
    return os.environ.get("HUBKIT_ENDPOINT_TOKEN") or None


def check_addresses(listen: list[Listen], adapters: dict[str, str]) -> None:
    """Raise `EngineError` when an address serves an adapter that is not loaded."""
    for address in listen:
        if address.serves != BASE and address.serves not in adapters:
            raise EngineError(
                f"--listen {address.host}:{address.port}={address.serves} names an adapter that "
                f"no --adapter loads; there are: {', '.join([BASE, *adapters])}"
            )


def default_cache_dir() -> Path:
    """Where converted models are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hubkit" / "gguf"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hubkit.local_engine", description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="REPO_ID[@REVISION][:FILE.gguf], a folder or a GGUF file",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=REPO",
        help="a LoRA adapter of the model; repeatable",
    )
    add(
        "--listen",
        action="append",
        metavar="HOST:PORT[=NAME]",
        help="an address, and what it serves; repeatable",
    )
    add("--state-file", type=Path, help="written when ready: pid, addresses, model, revision")
    add("--cache-dir", type=Path, help="where converted models are kept")
    add("--engine", choices=["auto", "llamacpp", "transformers"], default="auto")
    add(
        "--dtype",
        choices=["q8_0", "f16", "f32"],
        default="q8_0",
        help="weights of the llama.cpp engine",
    )
    add(
        "--threads",
        type=_positive,
        help="compute threads (default: the processors this process may use)",
    )
    add("--context", type=_positive, default=DEFAULT_CONTEXT, help="tokens per sequence")
    add(
        "--slots",
        type=_positive,
        default=DEFAULT_SLOTS,
        help="sequences kept in the cache and computed together",
    )
    add("--max-concurrent", type=_positive, default=128, help="requests in flight before 429")
    add("--exit-with-parent", action="store_true", help="exit when standard input reaches its end")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _adapter(text: str) -> tuple[str, str]:
    name, equals, spec = text.partition("=")
    if not (name and equals and spec):
        raise ValueError(f"--adapter {text!r} is not NAME=REPO_ID[@REVISION] or NAME=FOLDER")
    return name, spec


def _listen(text: str) -> Listen:
    address, _, serves = text.partition("=")
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and int(port) < 65536):
        raise ValueError(f"--listen {text!r} is not HOST:PORT or HOST:PORT=NAME")
    return Listen(host, int(port), serves or BASE)
