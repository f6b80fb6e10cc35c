"""The command line itself: its map, its examples, and what a person hears who got something
wrong.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest


def test_the_map_names_every_command_once_and_cuts_no_sentence_off(cli) -> None:  # type: ignore[no-untyped-def]
    from hubkit import cli as root
    from hubkit.cli.help_layout import MAP

    shown = cli("--help", COLUMNS="80").stdout
    root.register_all()
    mapped = [name for names in MAP.values() for name in names]
    known = {c.name for c in root.app.registered_commands if not c.hidden} | {
        group.typer_instance.info.name for group in root.app.registered_groups
    }
    assert sorted(mapped) == sorted(known) and "..." not in shown.partition("A whole recipe:")[2]
    places = [shown.index(f"\n  {name} ") for name in mapped]
    assert places == sorted(places)


def test_every_command_has_an_example_that_the_command_line_takes() -> None:
    from hubkit import cli as root
    from hubkit.cli.reference import commands

    root.register_all()
    known = dict(commands(root.app))
    for path, command in known.items():
        found = re.search(r"(hubkit [^>)]+)", command.epilog or "")
        assert found, f"{path} has no example"
        words = shlex.split(found[1])
        named = max((name for name in known if words[: len(name.split())] == name.split()), key=len)
        known[named].make_context(
            named, words[len(named.split()) :]
        )  # exits where it does not take them


@pytest.mark.parametrize("home", ["/dev/null/x", "/proc/x"])
def test_a_home_that_cannot_be_written_is_said_by_doctor_and_by_run(cli, home: str) -> None:  # type: ignore[no-untyped-def]
    found = cli("doctor", "--json", HUBKIT_HOME=home)
    bad = {
        finding["check"]: finding["found"]
        for finding in json.loads(found.stdout)
        if not finding["ok"]
    }
    assert found.returncode == 1 and "HUBKIT_HOME" in bad["hub"]
    assert "home" in bad or os.access(
        "/proc", os.W_OK
    )  # who may do anything is not told that they may not
    run = cli("run", "parrot", "--profile", "laptop", "--dry-run", HUBKIT_HOME=home)
    assert run.returncode == 1 and "HUBKIT_HOME" in run.stderr and len(run.stderr.splitlines()) == 1


def test_a_path_that_cannot_be_written_is_one_sentence(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    chats = tmp_path / "x.jsonl"
    turns = [
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "It scatters."},
    ]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    look = ("clean", str(chats), "-o", str(tmp_path / "o"), "--set", "corpus.filters=[]")
    done = cli(*look, "--report", str(tmp_path / "no" / "where.json"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / "no" / "where.json") in done.stderr.splitlines()[-1]
    assert "1 rows are too few" in done.stderr and "train" in cli(*look).stdout


def test_a_model_that_is_not_there_is_one_sentence(cli, hubkit_home: Path) -> None:  # type: ignore[no-untyped-def]
    done = cli("serve", "nobody/nothing", "--port", "0")
    [said] = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "no model 'nobody/nothing'" in said


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal_that_knows_few_characters_gets_whole_data(
    cli, tmp_path: Path, encoding: str
) -> None:  # type: ignore[no-untyped-def]
    chats = tmp_path / "x.jsonl"
    texts = [
        "Tell me how people bake bread.",
        "They mix flour and water.",
        "And what then?",
        "They wait.",
    ]
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    rows = [{"id": "é─😀", "messages": [{"role": "user"}]}, {"id": "whole", "messages": turns}]
    chats.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    for more in ((), ("--json",)):
        done = cli(
            "clean",
            str(chats),
            "-o",
            str(tmp_path / "o"),
            *more,
            PYTHONIOENCODING=encoding,
        )
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"][0]["unreadable"]["turn_without_text"]["examples"] == [
        "é─😀"
    ]


def test_a_log_file_keeps_what_was_shown_and_why_and_no_token(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    log = tmp_path / "hubkit.log"
    bad = cli("run", "parot", "--dry-run", "--log-file", str(log))
    assert bad.returncode == 2 and "Traceback" not in bad.stderr
    kept = log.read_text()
    assert bad.stderr.strip().removeprefix("hubkit: ") in kept and "Traceback" in kept
    assert "hubkit run parot --dry-run" in kept and log.stat().st_mode & 0o077 == 0
    refused = cli("recipes", "--log-file", str(tmp_path / "no" / "such" / "folder"))
    assert refused.returncode == 1 and "cannot be written" in refused.stderr


def test_verbose_may_stand_anywhere_and_shows_the_trace(cli) -> None:  # type: ignore[no-untyped-def]
    for arguments in (["--verbose", "run", "parot"], ["run", "parot", "--verbose"]):
        assert "Traceback" in cli(*arguments).stderr


def test_logs_hide_tokens_and_signed_addresses(tmp_path: Path) -> None:
    import logging

    from hubkit.cli import logs

    log, root = tmp_path / "log", logging.getLogger()
    handlers = list(root.handlers)
    try:
        logs.configure(verbose=False, file=log)
        logging.getLogger("hubkit").warning(
            "GET https://me:pw@host/x?X-Signature=abc&y=1 with hf_abcdefghijkl, Bearer abc.def-1"
        )
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
    text = log.read_text()
    assert "GET https://…@host/x?…" in text
    assert not any(word in text for word in ("pw", "abc.def", "hf_abcd", "X-Signature"))


def test_recipes_and_the_hubs_status_fit_a_terminal(cli, hubkit_home: Path) -> None:  # type: ignore[no-untyped-def]
    recipes = cli("recipes", COLUMNS="80").stdout
    assert all(name in recipes for name in ("parrot", "realm", "laptop", "cloud"))
    cli("hub", "start")
    status = cli("hub", "status", COLUMNS="80").stdout
    assert " MB" in status and "True" not in status and "repositories" in status
