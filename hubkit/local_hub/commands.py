"""What `python -m hubkit.local_hub ACTION` does with a folder, besides serving it."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from hubkit.errors import HubError, HubkitError
from hubkit.local_hub.errors import DISK_FULL, is_disk_full
from hubkit.local_hub.server import only_server
from hubkit.local_hub.storage.backup import backup, restore
from hubkit.local_hub.storage.maintenance import adopt, collect, set_aside
from hubkit.local_hub.storage.objects import make_durable_folder
from hubkit.local_hub.storage.settings import damaged
from hubkit.local_hub.storage.store import Store, require_database
from hubkit.local_hub.storage.verification import check
from hubkit.untrusted import JsonObject, list_in


def run(options: argparse.Namespace, root: Path) -> int:
    """Run an action on a folder and print its result.

    Returns:
        The exit status: 1 where problems were found.

    Raises:
        HubError: There is no store, it is damaged, or the action cannot be done.
    """
    try:
        if options.action == "account":
            return _account(root, options)
        result = _result(options, root)
    except sqlite3.DatabaseError as error:
        if is_disk_full(error):
            raise HubError(DISK_FULL) from error
        raise damaged(root / "hub.sqlite", error) from error
    sys.stdout.write(json.dumps(result) + "\n" if options.json else _in_words(result))
    return 1 if result.get("problems") else 0


def _result(options: argparse.Namespace, root: Path) -> JsonObject:
    if options.action == "restore":
        with only_server(root) if root.is_dir() else nullcontext():
            former = restore(_folder(options), root)
        return {"restored": str(root), "former": str(former) if former else None}
    if options.action == "adopt":
        with only_server(root), _opened(root, adopting=True) as store:
            store.settings.accept_lost_log()
            return {"adopted": adopt(store, options.names or None)}
    with _opened(root) as store:
        if options.action == "gc":
            return asdict(collect(store, options.grace_s))
        if options.action == "verify":
            return asdict(check(store))
        if options.action == "set-aside":
            return {"moved": set_aside(store, options.names or None)}
        return {"backup": str(_folder(options)), **asdict(backup(store, _folder(options)))}


def _folder(options: argparse.Namespace) -> Path:
    if len(options.names) != 1:
        raise HubkitError(f"{options.action} needs one folder")
    return Path(options.names[0]).expanduser().absolute()


@contextmanager
def _opened(root: Path, *, adopting: bool = False) -> Iterator[Store]:
    if not (root / "hub.sqlite").exists() and not (adopting and (root / "repos").is_dir()):
        require_database(root)  # says what is missing
        raise HubError(f"There is no embedded Hub in {root}.")
    store = Store(root, adopting=adopting)
    try:
        yield store
    finally:
        store.close()


def _in_words(result: JsonObject) -> str:
    problems = [str(problem) for problem in list_in(result, "problems")]
    values = {key: value for key, value in result.items() if key != "problems"}
    lines = [*problems, *(f"{key}: {value}" for key, value in values.items())]
    return "".join(f"{line}\n" for line in [*lines, f"{len(problems)} problems"])


def _account(root: Path, options: argparse.Namespace) -> int:
    """Make a user, memberships and a token; print the token (the only time it is shown)."""
    if not options.user:
        raise HubkitError("--user is required")
    make_durable_folder(root)
    store = Store(root)
    try:
        store.accounts.add_user(options.user, fullname=options.fullname)
        for membership in options.org:
            name, role, fullname = [*membership.split(":", 2), "", ""][:3]
            store.accounts.add_org(name, {options.user: role or "write"}, fullname or None)
            if options.private_by_default:
                store.settings.set(f"private_by_default:{name.lower()}", "1")
        supplied_token = sys.stdin.readline().strip() if options.token_stdin else None
        token = store.accounts.add_token(options.user, options.role, token=supplied_token)
    finally:
        store.close()
    sys.stdout.write(f"{token}\n")
    return 0
