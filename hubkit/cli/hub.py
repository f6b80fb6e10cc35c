"""``hubkit hub …``: the embedded Hub from the command line."""

from __future__ import annotations

import json as jsonlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hubkit.cli import console
from hubkit.errors import HubError
from hubkit.untrusted import JsonObject, list_in, number_in, text_in

app = typer.Typer(
    name="hub",
    help="The embedded Hub: a Hub on this machine that every Hugging Face client can use.",
    epilog='Example: eval "$(hubkit hub env)"',
    no_args_is_help=True,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command(epilog="Example: hubkit hub start --jobs")
def start(
    jobs: Annotated[
        bool,
        typer.Option(
            "--jobs", help="Allow Jobs: whoever has a write token may run commands as you."
        ),
    ] = False,
    spaces: Annotated[
        bool,
        typer.Option("--spaces", help="Run the apps of pushed Spaces on this machine, as you."),
    ] = False,
    json: Json = False,
) -> None:
    """Start the embedded Hub (if it does not run yet) and print its address."""
    from hubkit.hub import embedded

    url = embedded.ensure_running(jobs=jobs, spaces=spaces)
    if json:
        console.data(embedded.running())
        return
    console.line(url)
    console.say(f'{embedded.stops_when()} For other programs: eval "$(hubkit hub env)"')


@app.command(epilog="Example: hubkit hub stop")
def stop() -> None:
    """Stop the embedded Hub; requests in flight finish first."""
    from hubkit.hub import embedded

    console.say("stopped" if embedded.stop() else "it was not running")


@app.command(epilog="Example: hubkit hub status --json")
def status(json: Json = False) -> None:
    """Say whether the embedded Hub runs, where, and what it holds. Exit code 1 when it does not
    run.
    """
    from hubkit.hub import embedded, local_root

    state = embedded.running()
    report = {"running": state is not None, "folder": str(local_root()), **(state or {})}
    if state:
        report |= {"repositories": _counts(text_in(state, "url")), "bytes": _bytes_used()}
    if json:
        console.data(report)
    else:
        rows = [[label, _in_words(key, report[key])] for key, label in _STATUS if key in report]
        console.table("embedded Hub", ["", ""], rows)
    if state is None:
        raise typer.Exit(1)


def _counts(url: str) -> dict[str, int]:
    """How many models, datasets and Spaces the owner of this machine has."""
    from huggingface_hub import HfApi

    from hubkit.hub import embedded

    api = HfApi(endpoint=url, token=embedded.token() or False)
    return {
        "models": len(list(api.list_models())),
        "datasets": len(list(api.list_datasets())),
        "spaces": len(list(api.list_spaces())),
    }


def _bytes_used() -> int:
    from hubkit.hub import local_root

    return sum(path.stat().st_blocks * 512 for path in local_root().rglob("*") if path.is_file())


_STATUS = (
    ("running", "runs"),
    ("url", "address"),
    ("folder", "folder"),
    ("repositories", "repositories"),
    ("bytes", "on disk"),
    ("started_at", "since"),
    ("pid", "process"),
    ("jobs", "runs jobs"),
    ("spaces", "runs Spaces"),
    ("upstream", "reads through to"),
)


def _in_words(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{count:,} {name.removesuffix('s') if count == 1 else name}"
            for name, count in value.items()
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "bytes":
        return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"
    return str(value) if value not in (None, "") else "nothing"


@app.command(epilog='Example: eval "$(hubkit hub env)"')
def env(json: Json = False) -> None:
    """Print what other programs need in their environment to use the configured Hub: eval "$(hubkit
    hub env)".
    """
    from hubkit.hub import environment

    values = environment()
    if json:
        console.data(values)
        return
    for name, value in values.items():
        console.line(f"export {name}={shlex.quote(value)}")


@app.command(epilog="Example: hubkit hub gc --grace-h 1")
def gc(
    grace_h: Annotated[
        float, typer.Option("--grace-h", help="Keep what is younger than this many hours.")
    ] = 24.0,
    json: Json = False,
) -> None:
    """Remove large files and git objects that no revision of any repository needs any more.

    Removes nothing while `verify` finds problems (exit code 1)."""
    result = _run_on_folder("gc", "--grace-s", str(grace_h * 3600))
    removed = f"{result['large_files']} large files and {result['git_objects']} git objects"
    summary = f"removed {removed}: {number_in(result, 'bytes') / 2**20:.1f} MiB"
    if result["problems"]:
        summary = "removed nothing, because of these problems"
    _report(result, summary, json=json)


@app.command(epilog="Example: hubkit hub verify")
def verify(json: Json = False) -> None:
    """Check every git object and large file against its hash, and the settings database.

    Prints what is wrong and what to do. Exit code 1 when something is wrong."""
    result = _run_on_folder("verify")
    _report(result, f"checked {_checked(result)}", json=json)


@app.command(epilog="Example: hubkit hub backup /mnt/disk/hub-2026-11-28")
def backup(
    folder: Annotated[Path, typer.Argument(help="The folder to make.")], json: Json = False
) -> None:
    """Copy the embedded Hub to a new folder, also while it runs, and verify the copy."""
    result = _run_on_folder("backup", str(folder.expanduser().absolute()))
    _report(result, f"copied to {result['backup']}: {_checked(result)}", json=json)


@app.command(epilog="Example: hubkit hub restore /mnt/disk/hub-2026-11-28")
def restore(folder: Annotated[Path, typer.Argument(help="A backup.")], json: Json = False) -> None:
    """Put a copy of a backup in the place of the embedded Hub, which must not run.

    The present one is moved aside, never deleted."""
    result = _run_on_folder("restore", str(folder.expanduser().absolute()))
    former = f"; the former one is now {result['former']}" if result["former"] else ""
    _report(result, f"restored {result['restored']}{former}", json=json)


Folders = Annotated[
    list[str] | None, typer.Argument(help="Folders that `verify` names; default: all of them.")
]


@app.command(epilog="Example: hubkit hub adopt")
def adopt(folders: Folders = None, json: Json = False) -> None:
    """Take repositories in that the settings database lost; they become private.

    The Hub must not run."""
    result = _run_on_folder("adopt", *(folders or []))
    _report(
        result, f"adopted {', '.join(map(str, list_in(result, 'adopted'))) or 'nothing'}", json=json
    )


@app.command("set-aside", epilog="Example: hubkit hub set-aside")
def set_aside(folders: Folders = None, json: Json = False) -> None:
    """Move repositories that the settings database does not know out of the way."""
    result = _run_on_folder("set-aside", *(folders or []))
    _report(
        result, f"moved to {', '.join(map(str, list_in(result, 'moved'))) or 'nothing'}", json=json
    )


def _checked(result: JsonObject) -> str:
    repositories = f"{result['repositories']} repositories, {result['git_objects']} git objects"
    problems = len(list_in(result, "problems"))
    return f"{repositories}, {result['large_files']} large files: {problems} problems"


def _report(result: JsonObject, summary: str, *, json: bool) -> None:
    """Print a result; ends with exit code 1 where there are problems."""
    problems = list_in(result, "problems")
    if json:
        console.data(result)
    else:
        for problem in problems:
            console.line(str(problem))
        console.say(summary) if problems else console.line(summary)
    if problems:
        raise typer.Exit(1)


def _run_on_folder(action: str, *arguments: str) -> JsonObject:
    """Let the embedded Hub's own program work on its folder. Raises `HubError`."""
    from hubkit.hub import local_root

    command = [sys.executable, "-m", "hubkit.local_hub", action]
    command += ["--root", str(local_root()), "--json", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        result: JsonObject = jsonlib.loads(process.stdout)
    except ValueError:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise HubError(f"hub {action} failed: {last}") from None
    return result
