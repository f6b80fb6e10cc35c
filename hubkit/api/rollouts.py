"""Rollout: an asker questions a chat model, or a function of yours."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hubkit.rollout as rollouts
from hubkit.api.asker import DEFAULT_SYSTEM, Asker
from hubkit.api.conversations import Conversations
from hubkit.api.dialogues import Dialogues
from hubkit.api.history import file_ref, library_folder
from hubkit.errors import SourceError
from hubkit.hub import Ref, connect
from hubkit.pipeline import require
from hubkit.pipeline.inputs import adapter_base
from hubkit.progress import Progress, silent
from hubkit.recipe import Rollout, Sampling, SeatConfig, Turns
from hubkit.serving import ModelSpec, ServedModel, serve
from hubkit.serving.callable_server import Agent, served_callable
from hubkit.serving.client import key_in


@dataclass(frozen=True)
class Address:
    """A server that answers chat completions.

    Args:
        url: Its URL.
        model: The model's name there.
        dialect: What it speaks: ``openai``, ``vllm``, ``tgi``, ``llamacpp``, ...
        token_env: The environment variable that holds the key.

    Example:
        >>> from hubkit import Address
        >>> Address("http://localhost:8000/v1", model="Qwen/Qwen3-8B", dialect="vllm").model
        'Qwen/Qwen3-8B'
    """

    url: str
    model: str | None = None
    dialect: str = "openai"
    token_env: str | None = None


def rollout(
    asker: Asker,
    *,
    chat: str | Path | Address | Agent,
    openings: Conversations,
    n: int | None = None,
    turns: int = 4,
    model: str | None = None,
    seed: int = 42,
    progress: Progress = silent,
    **settings: Any,
) -> Dialogues:
    """Let `asker` question `chat`, one dialogue an opening.

    The same call finds finished dialogues and resumes open ones, except with a function as `chat`.

    Args:
        asker: Who asks.
        chat: Who answers: a URL of chat completions, an `Address` where the server has a key or a
            dialect of its own, a model repo or folder that the local engine serves, or a function
            from messages to text (async too).
        openings: Conversations whose first turns open the dialogues.
        n: At most so many dialogues; by default one an opening.
        turns: Human turns of each, the opening included.
        model: The model's name at a URL.
        seed: Draws everything that chance decides.
        progress: Told how far it is.
        settings: Further keys of a recipe's rollout block: `in_flight`, `budget_tokens`,
            `retries_per_turn`, ...; `asker_sampling` and `chat_sampling` are mappings, and
            `chat_system` the chat model's system message.

    Raises:
        RecipeError: A setting is not known, or the variable is not set.
        EndpointError: The chat model cannot be asked.

    Example:
        >>> from hubkit import rollout
        >>> def agent(messages):
        ...     return f"You said: {messages[-1]['content']}"
        >>> dialogues = rollout(asker, chat=agent, openings=openings, n=1, turns=2)
        >>> [message["role"] for message in next(iter(dialogues)).messages]
        ['user', 'assistant', 'user', 'assistant']
    """
    chat = _addressed(chat, model)
    identity = _identity(chat)
    asker_seat = SeatConfig(
        repo="asker",
        system=asker.system or DEFAULT_SYSTEM,
        sampling=Sampling.model_validate(settings.pop("asker_sampling", {"max_tokens": 256})),
    )
    chat_seat = SeatConfig(
        repo=identity["repo_id"],
        model=(chat.model if isinstance(chat, Address) else None) or "tgi",
        system=settings.pop("chat_system", None),
        sampling=Sampling.model_validate(settings.pop("chat_sampling", {})),
    )
    settings.setdefault("in_flight", 1 if callable(chat) else 8)
    block = Rollout(
        dialogues=n or len(openings),
        turns=Turns(value=turns),
        asker=asker_seat,
        chat=chat_seat,
        end_mark=asker.end_mark,
        **settings,
    )
    data = openings.ref or file_ref("openings", openings.parquet())
    inputs = {"openings": data, "asker": asker.ref, "chat": Ref(**identity)}
    provenance = {role: ref.to_dict() for role, ref in inputs.items()}
    work = library_folder("rollout", rollouts.run_digest(block, seed, provenance))
    started = time.monotonic()
    with _answering(chat, work, block) as answering:
        report = rollouts.run(
            block,
            openings,
            work / str(block.dialogues),
            rollouts.Seats(asker.serve(), answering),
            rollouts.JournalSpec(work / "journal", seed, provenance),
            watch=rollouts.Watch(progress),
        )
    files = tuple(work / str(block.dialogues) / path for path in report.paths)
    history = asker.history.with_blocks(rollout=block)
    history = history.after("rollout", inputs, report.to_dict(), time.monotonic() - started)
    return Dialogues(files, report.to_dict(), history)


def _addressed(
    chat: str | Path | Address | Agent, model: str | None
) -> str | Path | Address | Agent:
    """`chat`, with a plain URL as an `Address`."""
    if isinstance(chat, str) and chat.startswith(("http://", "https://")):
        return Address(chat, model)
    return chat


def _identity(chat: str | Path | Address | Agent) -> dict[str, str]:
    """Who answers, as provenance names it."""
    if callable(chat):
        name = f"{getattr(chat, '__module__', '')}.{getattr(chat, '__qualname__', repr(chat))}"
        # What a function does cannot be known by its name: each rollout is one of its own.
        return {"repo_id": name, "repo_type": "file", "revision": uuid.uuid4().hex}
    if isinstance(chat, Address):
        return {"repo_id": chat.model or chat.url, "repo_type": "file", "revision": chat.url}
    text = str(chat)
    spec = _local(text)
    ref = spec.source if isinstance(spec.source, Ref) else file_ref(text, _weights(Path(text)))
    return ref.to_dict()


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _local(name: str) -> ModelSpec:
    if Path(name).expanduser().is_dir():
        return ModelSpec(Path(name).expanduser().resolve())
    if Path(name).exists():
        raise SourceError(f"{name} is a file; give a URL, a model repo, a folder or a function")
    hub = connect()
    ref = require(hub, name)
    return ModelSpec(ref, adapter_base(hub, ref))


@contextmanager
def _answering(
    chat: str | Path | Address | Agent, work: Path, block: Rollout
) -> Iterator[ServedModel]:
    if callable(chat):
        with served_callable(chat) as served_agent:
            yield served_agent
        return
    if isinstance(chat, Address):
        url = chat.url.rstrip("/").removesuffix("/v1")
        yield ServedModel((url,), chat.dialect, chat.model or "tgi", key_in(chat.token_env))
        return
    with serve(
        connect(),
        {"chat": _local(str(chat))},
        log_dir=work,
        progress=silent,
        slots=block.in_flight,
        tokens=block.chat.context,
    ) as models:
        yield models["chat"]
