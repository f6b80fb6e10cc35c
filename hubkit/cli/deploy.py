"""``hubkit deploy REPO`` and ``hubkit deploy list|describe|pause|…``:
Inference Endpoints from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.cli.help_layout import Group
from hubkit.cli.job_options import show_cleanup
from hubkit.cli.options import Json, OutputOptions, grouped
from hubkit.errors import RecipeError

if TYPE_CHECKING:
    from hubkit.cloud import EndpointSpec, EndpointStatus
    from hubkit.hub import Hub


class _RepoOrVerb(Group):
    """``hubkit deploy REPO`` is short for ``hubkit deploy create REPO``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = next((arg for arg in args if not arg.startswith("-")), None)
        if named is not None and named not in self.commands:
            args = ["create", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="deploy",
    cls=_RepoOrVerb,
    help=(
        "Serve a model with Hugging Face Inference Endpoints: "
        "hubkit deploy REPO[@REV], and what is deployed."
    ),
    epilog=(
        "Example: hubkit deploy local/parrot-chat --engine vllm --hardware nvidia-l4-x1 --dry-run"
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The endpoint's name, as `hubkit deploy list` shows it."),
]
Repo = Annotated[
    str,
    typer.Argument(
        metavar="REPO[@REV]", help="A model, or an adapter, which is served on its base."
    ),
]
EngineName = Annotated[str, typer.Option("--engine", help="tgi, vllm, sglang or llamacpp.")]
HardwareName = Annotated[
    str, typer.Option("--hardware", help="[VENDOR-[REGION-]]TYPE-SIZE of the price table.")
]
Context = Annotated[
    int | None, typer.Option("--context", min=16, help="Most tokens of a sequence.")
]
Gguf = Annotated[
    str | None,
    typer.Option("--gguf", metavar="FILE", help="The repo's file that llama.cpp serves."),
]
Sleep = Annotated[
    int,
    typer.Option("--sleep-minutes", min=0, help="Scale to zero after this long idle; 0: never."),
]
Adapters = Annotated[
    list[str],
    typer.Option(
        "--adapter", metavar="REPO[@REV]", help="Another adapter of the same base; tgi only."
    ),
]


@dataclass(frozen=True)
class EndpointOptions:
    """What an endpoint serves, with what, on which hardware."""

    repo: Repo
    engine: EngineName = "tgi"
    hardware: HardwareName = "nvidia-l40s-x1"
    adapter: Adapters = field(default_factory=list)
    context: Context = None
    gguf: Gguf = None
    sleep_minutes: Sleep = 15

    def spec(self, hub: Hub) -> EndpointSpec:
        """The endpoint. Raises `RecipeError` for an engine that is not known, or an adapter of
        another base.
        """
        from dataclasses import replace

        from hubkit import cloud

        if self.engine not in cloud.ENGINES:
            raise RecipeError(f"no engine {self.engine!r}; take one of {', '.join(cloud.ENGINES)}")
        options: dict[str, Any] = {"engine": self.engine, "hardware": self.hardware}
        first, *additions = (_named(hub, text) for text in (self.repo, *self.adapter))
        spec = cloud.endpoint_spec(
            hub,
            first[0],
            revision=first[1],
            context=self.context,
            gguf_file=self.gguf,
            sleep_minutes=self.sleep_minutes,
            **options,
        )
        for repo_id, revision in additions:
            addition = cloud.endpoint_spec(hub, repo_id, revision=revision, **options)
            if addition.model != spec.model or not addition.adapters:
                raise RecipeError(
                    f"{repo_id} is not an adapter of {spec.model}; deploy it by itself"
                )
            spec = replace(spec, adapters=(*spec.adapters, *addition.adapters))
        return spec


@app.command(epilog="Example: hubkit deploy create local/parrot-chat --engine vllm --dry-run")
@grouped
def create(
    endpoint: EndpointOptions,
    output: OutputOptions,
    name: Annotated[
        str, typer.Option("--name", help="Its name; by default made of what it serves.")
    ] = "",
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="At most so many at once.")
    ] = 1,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it answers.")] = True,
) -> None:
    """Create an endpoint for a model and wait until it answers. It stays until you pause or delete
    it.
    """
    from dataclasses import replace

    from hubkit import cloud
    from hubkit.hub import connect

    hub = connect()
    spec = replace(endpoint.spec(hub), called=name, max_replica=replicas)
    if output.dry_run:
        _show_plan(hub, spec, output.json)
        return
    cloud.reap(hub)
    status = cloud.make(hub, spec)
    console.say(f"creating {status.name} on {status.hardware}: {_price(spec)}")
    if wait:
        with console.bars(quiet=output.json) as bar_for:
            status = cloud.wait(hub, status.name, progress=bar_for("deploy"))
    _show(status, output.json)
    console.say(
        f"`hubkit deploy pause {status.name}` or `hubkit deploy delete {status.name}` ends its cost"
    )


def _named(hub: Hub, text: str) -> tuple[str, str]:
    name, _, revision = text.partition("@")
    return hub.qualify(name), revision or "main"


def _price(spec: EndpointSpec) -> str:
    from hubkit.cloud import prices

    rate = spec.hardware.usd_per_hour * spec.max_replica
    return f"up to ${rate:,.2f} per hour while it is up (prices of {prices.date()})"


def _show_plan(hub: Hub, spec: EndpointSpec, json: bool) -> None:
    from hubkit import cloud
    from hubkit.cloud import prices

    arguments = cloud.payload(spec)
    rate = spec.hardware.usd_per_hour
    if json:
        console.data(
            {"hub": hub.url, "payload": arguments, "usd_per_hour": rate, "prices": prices.date()}
        )
        return
    console.table(
        f"would be sent to {hub.url}", ["", ""], [[key, value] for key, value in arguments.items()]
    )
    console.say(_price(spec))


@app.command("list", epilog="Example: hubkit deploy list --json")
def list_(json: Json = False) -> None:
    """What is deployed, what it costs now, and what it cost so far at most. Ends leftovers of dead
    runs first.
    """
    from hubkit import cloud
    from hubkit.cloud import prices
    from hubkit.hub import connect

    hub = connect()
    reaped = [*cloud.reap(hub), *cloud.reap_jobs(hub)]
    endpoints = cloud.listed(hub)
    now = sum(item.usd_per_hour for item in endpoints)
    if json:
        console.data({
            "endpoints": [item.to_dict() for item in endpoints], "usd_per_hour": now,
            "prices": prices.date(), "reaped": [item.to_dict() for item in reaped],
        })  # fmt: skip
        return
    console.table(
        f"endpoints of {hub.namespace} on {hub.url}",
        ["name", "state", "serves", "hardware", "$/hour now", "$ so far, at most"],
        [
            [
                o.name,
                o.state,
                o.repo_id,
                o.hardware,
                f"{o.usd_per_hour:.2f}",
                f"{o.usd_at_most:.2f}",
            ]
            for o in endpoints
        ],
    )
    show_cleanup(reaped)
    console.say(
        f"${now:,.2f} per hour now (prices of {prices.date()}; the embedded Hub costs nothing)"
    )


@app.command(epilog="Example: hubkit deploy describe parrot-chat-1a2b3c4d")
def describe(name: Name, json: Json = False) -> None:
    """Everything about one endpoint."""
    from hubkit import cloud
    from hubkit.hub import connect

    _show(cloud.describe(connect(), name), json)


def _show(status: EndpointStatus, json: bool) -> None:
    if json:
        console.data(status.to_dict())
    else:
        console.table(
            status.name,
            ["", ""],
            [[key.replace("_", " "), value] for key, value in status.to_dict().items()],
        )


def _change(name: str, action: Any, json: bool) -> None:
    from hubkit import cloud
    from hubkit.hub import connect

    _show(cloud.change(connect(), name, action), json)


@app.command(epilog="Example: hubkit deploy pause parrot-chat-1a2b3c4d")
def pause(name: Name, json: Json = False) -> None:
    """Stop it and its cost; requests are refused until it is resumed."""
    _change(name, "pause", json)


@app.command(epilog="Example: hubkit deploy resume parrot-chat-1a2b3c4d")
def resume(name: Name, json: Json = False) -> None:
    """Bring a paused or sleeping endpoint up."""
    _change(name, "resume", json)


@app.command("scale-to-zero", epilog="Example: hubkit deploy scale-to-zero parrot-chat-1a2b3c4d")
def scale_to_zero(name: Name, json: Json = False) -> None:
    """Stop its replicas and their cost; the next request wakes it."""
    _change(name, "scale_to_zero", json)


@app.command(epilog="Example: hubkit deploy update parrot-chat-1a2b3c4d local/parrot-chat@v2")
def update(
    name: Name,
    repo: Repo,
    hardware: Annotated[
        str, typer.Option("--hardware", help="Move it there; by default it stays.")
    ] = "",
    engine: EngineName = "tgi",
    context: Context = None,
    gguf: Gguf = None,
    sleep_minutes: Sleep = 15,
    json: Json = False,
) -> None:
    """Serve another revision or repo under the same name and address. Its engine must be the one
    that it has.
    """
    from dataclasses import replace

    from hubkit import cloud
    from hubkit.hub import connect

    hub = connect()
    hardware_name = hardware or cloud.describe(hub, name).hardware
    options = EndpointOptions(repo, engine, hardware_name, [], context, gguf, sleep_minutes)
    spec = replace(options.spec(hub), called=name)
    _show(cloud.update(hub, name, spec), json)


@app.command(epilog="Example: hubkit deploy delete parrot-chat-1a2b3c4d")
def delete(name: Name) -> None:
    """Delete it for good."""
    from hubkit import cloud
    from hubkit.hub import connect

    cloud.delete(connect(), name)
    console.say(f"deleted {name}")


@app.command(epilog="Example: hubkit deploy reap --json")
def reap(json: Json = False) -> None:
    """End what runs left behind that were killed: endpoints that they held and could not give
    back.
    """
    from hubkit import cloud
    from hubkit.hub import connect

    hub = connect()
    reaped = [*cloud.reap(hub), *cloud.reap_jobs(hub)]
    if json:
        console.data([item.to_dict() for item in reaped])
        return
    show_cleanup(reaped)
    if not reaped:
        console.say("nothing was left behind")
