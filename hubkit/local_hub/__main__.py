"""`python -m hubkit.local_hub`: serve a folder, or look after it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hubkit.errors import HubkitError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hubkit.local_hub", description="The embedded Hub."
    )
    parser.add_argument(
        "action", nargs="?", default="serve", choices=["serve", "gc", "verify", "account"]
    )
    parser.add_argument("--root", type=Path, required=True, help="folder that holds everything")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="0: the port of last time, or any free one"
    )
    parser.add_argument(
        "--idle-timeout-s",
        type=float,
        default=0,
        help="stop after this long without requests (0: never)",
    )
    parser.add_argument(
        "--multipart-above-mib", type=int, default=5120, help="larger files are uploaded in parts"
    )
    parser.add_argument("--part-mib", type=int, default=512, help="size of such a part")
    parser.add_argument(
        "--jobs",
        action="store_true",
        help="holders of a write token may run commands on this machine",
    )
    parser.add_argument(
        "--spaces", action="store_true", help="they may run the apps of Spaces on this machine"
    )
    parser.add_argument(
        "--grace-s", type=float, default=24 * 3600, help="gc: keep what is younger than this"
    )
    parser.add_argument("--json", action="store_true", help="gc, verify: print the result as JSON")
    parser.add_argument("--user", help="account: make this user if need be, and a token")
    parser.add_argument("--fullname", help="account: the user's full name")
    parser.add_argument(
        "--role", choices=["read", "write"], default="write", help="account: the token's role"
    )
    parser.add_argument("--org", action="append", default=[], help="account: NAME:ROLE[:FULL NAME]")
    parser.add_argument(
        "--private-by-default", action="store_true", help="account: of the organisations given"
    )
    parser.add_argument(
        "--token-stdin", action="store_true", help="account: take the token from standard input"
    )
    return parser


def _account(root: Path, options: argparse.Namespace) -> int:
    """Make a user, memberships and a token; print the token (the only time it is shown)."""
    from hubkit.local_hub.hub import Hub
    from hubkit.local_hub.storage.objects import make_durable_folder

    if not options.user:
        raise HubkitError("--user is required")
    make_durable_folder(root)
    hub = Hub(root)
    try:
        hub.accounts.add_user(options.user, fullname=options.fullname)
        for membership in options.org:
            name, role, fullname = [*membership.split(":", 2), "", ""][:3]
            hub.accounts.add_org(name, {options.user: role or "write"}, fullname or None)
            if options.private_by_default:
                hub.settings.set(f"private_by_default:{name.lower()}", "1")
        supplied_token = sys.stdin.readline().strip() if options.token_stdin else None
        token = hub.accounts.add_token(options.user, options.role, token=supplied_token)
    finally:
        hub.close()
    sys.stdout.write(f"{token}\n")
    return 0


def main() -> int:
    """Run; the exit status (3: a server already runs for this folder)."""
    options = _parser().parse_args()
    root = options.root.expanduser().absolute()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        if options.action == "serve":
            from hubkit.local_hub.server import serve

            parts = (options.multipart_above_mib * 2**20, options.part_mib * 2**20)
            allowed = {"jobs": options.jobs, "spaces": options.spaces}
            serve(root, options.host, options.port, options.idle_timeout_s, parts, **allowed)
            return 0
        if options.action == "account":
            return _account(root, options)
        from hubkit.local_hub.storage.maintenance import run_action

        return run_action(options.action, root, grace_s=options.grace_s, as_json=options.json)
    except HubkitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
