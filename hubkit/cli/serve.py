"""``hubkit serve``: a model and its adapters at an address, until Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hubkit.cli import console


def serve(
    repo: Annotated[
        str,
        typer.Argument(
            help="REPO_ID[@REVISION][:FILE.gguf], a folder or a GGUF file: a model, or an adapter."
        ),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", help="A LoRA adapter of it: REPO_ID[@REVISION], or NAME=REPO_ID."
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes any free one.")
    ] = 8080,
    engine: Annotated[
        str | None, typer.Option("--engine", help="auto, llamacpp or transformers.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Weights of llama.cpp: q8_0, f16 or f32.")
    ] = None,
    context: Annotated[int | None, typer.Option("--context", help="Tokens per sequence.")] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", help="Sequences computed and cached at once.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the address as JSON.")] = False,
) -> None:
    """Serve a model with text-generation-inference's API, on this machine only. Ctrl-C stops it."""
    from hubkit.hub import environment
    from hubkit.serving.client import EngineSettings, start_engine

    adapters = dict(_named(text) for text in adapter or [])
    env = environment() if not all(map(os.path.exists, (repo, *adapters.values()))) else {}
    names = "".join(f" with {name}" for name in adapters)
    if env and not Path(repo).exists():
        _say_template(repo)
    console.say(f"starting {repo}{names} (the first time converts its weights)")
    settings = EngineSettings(engine, dtype, context=context, slots=slots)
    with start_engine(repo, adapters, env=env, port=port, settings=settings) as running:
        url = next(iter(running.addresses.values()))
        console.say(f"engine: {running.name} ({running.reason})")
        if json:
            console.data({"url": url, "pid": running.pid, "adapters": list(adapters)})
        else:
            console.line(url)
            console.say(
                f"chat: POST {url}/v1/chat/completions, metrics: {url}/metrics, Ctrl-C stops it"
            )
        console.wait_for_signal()


def _say_template(repo: str) -> None:
    """Import what a run would import, and say before any weights are fetched how the model is
    prompted.

    A template that is not proven is served as the model publishes it: nothing is trained on it
    here."""
    from hubkit.errors import SourceError, TemplateError
    from hubkit.hub import connect
    from hubkit.pipeline import require
    from hubkit.serving.templates import proven_templates

    hub = connect()
    repo_id, _, revision = repo.partition(":")[0].partition("@")
    with console.bars() as bar_for:
        ref = require(hub, repo_id, revision=revision or "main", progress=bar_for("import"))
    try:
        templates = proven_templates(hub, ref)
    except (TemplateError, SourceError) as error:
        console.say(f"note: {error}")
        return
    if templates:
        console.say(f"chat template: {templates.describe('assistant')}")


def _named(text: str) -> tuple[str, str]:
    """NAME=REPO, or REPO, which is then called by its last part."""
    name, equals, repo = text.partition("=")
    return (name, repo) if equals else (text.partition("@")[0].rstrip("/").rpartition("/")[2], text)
