"""The command line: the one room that prints and exits. Data goes to stdout, everything else to
stderr.

Commands are thin: they read options, call a lower room, and show what it gives. Heavy packages are
imported inside commands, so that ``hubkit --help`` answers at once."""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import os
import sys
from io import TextIOWrapper
from itertools import islice
from pathlib import Path

import typer

from hubkit import __version__
from hubkit.cli import console, logs
from hubkit.cli.help_layout import Group, Mapped, Worded
from hubkit.errors import HubkitError
from hubkit.openmp import spin_briefly
from hubkit.settings import LOG_FILE

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

app = typer.Typer(
    name="hubkit",
    cls=Mapped,
    help=(
        "Train an asker, roll out dialogues, train and judge a chat model, "
        "all through the Hugging Face Hub."
    ),
    epilog="Start with: hubkit run parrot --profile laptop",
    no_args_is_help=True,
    add_completion=True,  # bash, zsh, fish, PowerShell: hubkit --install-completion
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"hubkit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    verbose: bool = typer.Option(
        False, "--verbose", help="Say more on stderr: requests, libraries' logs, traces of errors."
    ),
    log_file: Path | None = typer.Option(  # noqa: B008 - typer reads it
        None,
        "--log-file",
        metavar="FILE",
        envvar=LOG_FILE,
        help="Append all of that to a file, whatever is shown; it holds no tokens.",
    ),
) -> None:
    """Train an asker, roll out dialogues, train and judge a chat model, all through the Hugging
    Face Hub.
    """
    logs.configure(verbose=verbose, file=log_file)


@functools.cache
def register_all() -> None:
    """Hang every command into `app`, once."""
    from hubkit.cli import (
        askers,
        clean,
        deploy,
        doctor,
        env,
        eval,
        hub,
        push,
        reference,
        reinforce,
        rollout,
        run,
        serve,
        stats,
        study,
        train,
    )

    run.register(app)
    app.command("rollout", epilog="Example: hubkit rollout parrot --profile laptop --estimate 4")(
        rollout.rollout
    )
    app.command("train", epilog="Example: hubkit train asker parrot --dry-run")(train.train)
    app.command("align", epilog="Example: hubkit align parrot --dry-run")(train.align)
    app.command(
        "reinforce",
        epilog="Example: hubkit reinforce parrot --profile laptop --profile reinforce-laptop "
        "--dry-run",
    )(reinforce.reinforce)
    eval.register(app)
    app.add_typer(study.app)
    app.command("askers", epilog=askers.EXAMPLE)(askers.askers)
    push.register(app)
    app.command("serve", epilog="Example: hubkit serve local/parrot-chat --port 8080")(serve.serve)
    app.command("env", epilog=env.EXAMPLE)(env.env)
    app.command("clean", epilog="Example: hubkit clean chats.jsonl --out cleaned --profile laptop")(
        clean.clean
    )
    app.command("stats", epilog="Example: hubkit stats parrot-40k --baseline parrot-sharegpt:test")(
        stats.stats
    )
    app.command("diff", epilog="Example: hubkit diff parrot-40k@v1 parrot-40k@v2")(stats.diff)
    app.add_typer(hub.app)
    app.add_typer(deploy.app)
    app.command("doctor", epilog="Example: hubkit doctor --json")(doctor.doctor)
    app.command("reference", epilog="Example: hubkit reference > REFERENCE.md")(reference.reference)
    _lay_out_help(app)


def _lay_out_help(commands: typer.Typer) -> None:
    """Values are named by words, and examples stay as they are written: a break after a hyphen
    would not be a command."""
    for command in commands.registered_commands:
        command.cls = Worded
        if command.epilog:
            command.epilog = f"\b\n{command.epilog}"
    for group in commands.registered_groups:
        below = group.typer_instance
        if below is not None:
            if not isinstance(below.info.cls, type):
                below.info.cls = Group
            if isinstance(below.info.epilog, str):
                below.info.epilog = f"\b\n{below.info.epilog}"
            _lay_out_help(below)


def main() -> None:
    """Entry point: one clear sentence for what goes wrong, never a stack trace for a user's
    mistake.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    spin_briefly()
    # Going through a million objects once more would take seconds, and the memory is given back
    # all the same.
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal knows every character
    register_all()
    try:
        app(_root_options_first(sys.argv[1:]))
    except HubkitError as error:
        logs.trace()
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        from hubkit import extras  # reads the installed packages' metadata: only when it is needed

        logs.trace()
        sentence = extras.advice(error)
        if sentence is None:
            raise
        _fail(sentence, 1)
    except SystemExit as leaving:  # typer makes a silent exit of Ctrl-C; the reason follows it
        reason = getattr(leaving.__context__, "__cause__", None)
        if isinstance(reason, KeyboardInterrupt):
            _fail(
                str(reason)
                or "stopped; nothing finished is lost, and the same command resumes from here",
                130,
            )
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or "the disk that holds hubkit's files"
            _fail(f"no space left on {where}; free some and run the same command again", 1)
        logs.trace()
        if not error.filename or not error.strerror:
            raise
        _fail(
            f"{error.filename}: {error.strerror.lower()}; name another path, "
            "or make this one yours to use",
            1,
        )
    except Exception:  # a fault in hubkit: the trace is for whoever fixes it
        logs.trace()
        raise


def _root_options_first(arguments: list[str]) -> list[str]:
    """`arguments` with ``--verbose`` and ``--log-file`` in front, wherever they were given."""
    first: list[str] = []
    remainder = iter(arguments)
    remaining: list[str] = []
    for argument in remainder:
        if argument == "--":
            return [*first, *remaining, argument, *remainder]
        if argument == "--verbose" or argument.startswith("--log-file="):
            first.append(argument)
        elif argument == "--log-file":
            first += [argument, *islice(remainder, 1)]
        else:
            remaining.append(argument)
    return [*first, *remaining]


def _fail(sentence: str, code: int) -> None:
    logs.seen(f"error: {sentence}")
    console.show(f"hubkit: {sentence}")
    sys.exit(code)
