"""``hubkit push`` (to the configured Hub or another one), ``hubkit lineage`` and ``hubkit
spaces``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console
from hubkit.cli.options import (
    Json,
    OutputOptions,
    Overrides,
    Profiles,
    RecipeName,
    RecipeOptions,
    grouped,
)

if TYPE_CHECKING:
    from hubkit.hub import Hub, Ref
    from hubkit.publishing import Change

To = Annotated[
    str,
    typer.Option(
        "--to", metavar="URL", help="Copy it all to this Hub, e.g. https://huggingface.co."
    ),
]
Public = Annotated[
    bool,
    typer.Option("--public", help="New repos on a real Hub are public; they are private without."),
]
Allow = Annotated[
    list[str],
    typer.Option(
        "--allow",
        metavar="KIND",
        help="Let this kind of secret or personal data pass, e.g. email, or personal_data for all.",
    ),
]


@dataclass(frozen=True)
class TargetOptions:
    """Where a push goes, and what may be in it."""

    to: To = ""
    public: Public = False
    allow: Allow = field(default_factory=list)


_NAMED = 8  # files that are named, of many
RepoType = Annotated[
    str, typer.Option("--type", help="model, dataset or space; asked of the Hub when not given.")
]


def register(app: typer.Typer) -> None:
    """Add ``push`` (and ``publish``, its former name), ``lineage`` and ``spaces`` to `app`."""
    epilog = "Example: hubkit push parrot --profile laptop --dry-run"
    app.command("push", epilog=epilog)(grouped(push))
    app.command("publish", epilog=epilog, hidden=True)(grouped(push))
    app.command("lineage", epilog="Example: hubkit lineage parrot-chat")(lineage)
    app.command("spaces", epilog="Example: hubkit spaces parrot --profile laptop")(spaces)


def push(
    recipe: RecipeOptions,
    target: TargetOptions,
    output: OutputOptions,
) -> None:
    """Make all cards final, push the Spaces, tie the repos into a collection; with --to, copy it
    all to another Hub.
    """
    from hubkit import pipeline
    from hubkit.hub import connect, connect_to

    loaded, dry_run = recipe.load(), output.dry_run
    destination = connect_to(target.to) if target.to else None
    hub = connect()
    with console.bars(quiet=output.json) as bar_for:
        changes = pipeline.publish(
            loaded,
            hub,
            target=destination,
            public=target.public,
            allow=target.allow,
            dry_run=dry_run,
            progress=bar_for("push"),
        )
    url = (destination or hub).url
    rows = [change.to_dict() for change in changes]
    if not output.print({"hub": url, "dry_run": dry_run, "changes": rows}):
        _show(changes, url, dry_run=dry_run)


def _show(all_changes: list[Change], url: str, *, dry_run: bool) -> None:
    changes = [change for change in all_changes if change.action != "leave"]
    for sentence in _left_out(all_changes):
        console.say(sentence)
    if not changes:
        console.say(f"nothing to change on {url}")
        return
    rows = [
        [c.action, c.repo_type, c.repo_id, c.path, "" if c.size_bytes is None else c.size_bytes]
        for c in changes
    ]
    title = f"what would change on {url}" if dry_run else f"what was changed on {url}"
    console.table(title, ["action", "type", "repo", "file", "bytes"], rows)


def _left_out(changes: list[Change]) -> Iterator[str]:
    """One sentence for each repo with files that were not taken along."""
    names: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        if change.action == "leave":
            names.setdefault((change.repo_type, change.repo_id), []).append(change.path)
    for (repo_type, repo_id), paths in names.items():
        ellipsis = ", …" if len(paths) > _NAMED else ""
        files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
        yield (
            f"left out of {repo_type} {repo_id}: {files} that no push takes along "
            f"({', '.join(paths[:_NAMED])}{ellipsis})"
        )


def lineage(
    repo: Annotated[
        str, typer.Argument(metavar="REPO[@REVISION]", help="A repo of the configured Hub.")
    ],
    repo_type: RepoType = "",
    picture: Annotated[
        str, typer.Option("--picture", metavar="FILE", help="Also draw it into this PNG file.")
    ] = "",
    json: Json = False,
) -> None:
    """Show what a repo was made from, commit by commit, as a tree."""
    from pathlib import Path

    from hubkit.hub import connect
    from hubkit.publishing import lineage as tree

    if repo_type not in ("", "model", "dataset", "space"):
        raise typer.BadParameter(
            f"{repo_type!r} is none of model, dataset and space", param_hint="--type"
        )
    hub = connect()
    name, _, revision = repo.partition("@")
    root = tree.trace(
        _resolve(hub, hub.qualify(name), repo_type, revision or "main"),
        functools.partial(tree.records, hub),
    )
    if picture:
        Path(picture).write_bytes(tree.picture(root))
    if json:
        console.data(root.to_dict())
    else:
        console.line(tree.text(root))


def _resolve(hub: Hub, repo_id: str, repo_type: str, revision: str) -> Ref:
    from hubkit.errors import RepoMissingError

    for kind in (repo_type,) if repo_type else ("model", "dataset", "space"):
        try:
            return hub.resolve(repo_id, repo_type=kind, revision=revision)
        except RepoMissingError:
            continue
    raise RepoMissingError(
        f"{hub.url} has no {repo_type or 'model, dataset or Space'} {repo_id} at {revision}",
        status=404,
    )


def spaces(
    recipe: RecipeName,
    profile: Profiles = [],  # noqa: B006
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Run both pushed Spaces on this machine, by the embedded Hub and against the embedded engine,
    until Ctrl-C.
    """
    from hubkit.hub import connect, embedded
    from hubkit.publishing import serving_snippets
    from hubkit.recipe import load

    loaded = load(recipe, profiles=profile, overrides=overrides)
    _require_embedded()
    embedded.ensure_running(spaces=True)
    hub = connect()
    with (
        console.bars() as bar_for,
        serving_snippets.running(hub, loaded, progress=bar_for("spaces")) as pages,
    ):
        for name, page in pages.items():
            console.line(f"{name}  {page.app_url}  (its page: {page.url})")
        console.say("Ctrl-C stops them")
        console.wait_for_signal()


def _require_embedded() -> None:
    from hubkit.errors import HubError
    from hubkit.hub.places import settings

    if (url := settings().url) is not None:
        raise HubError(
            f"{url} runs its Spaces itself; for the embedded Hub's, set HUBKIT_HUB=local"
        )
