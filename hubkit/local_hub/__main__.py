"""`python -m hubkit.local_hub`: serve a folder, or look after it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hubkit.errors import HubkitError
from hubkit.local_hub.errors import DISK_FULL, is_disk_full

_ACTIONS = ("gc", "verify", "backup", "restore", "adopt", "set-aside", "account")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hubkit.local_hub", description="The embedded Hub."
    )
    parser.add_argument("action", nargs="?", default="serve", choices=["serve", *_ACTIONS])
    parser.add_argument(
        "names", nargs="*", help="backup, restore: a folder; adopt, set-aside: repository folders"
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
        "--stall-timeout-s",
        type=float,
        default=120.0,
        help="close connections on which a client neither sends nor reads for this long",
    )
    parser.add_argument(
        "--upstream", help="read repositories that are not here through from the Hub at this URL"
    )
    parser.add_argument(
        "--own-namespace",
        action="append",
        default=[],
        help="never ask the upstream for what is in this namespace",
    )
    parser.add_argument(
        "--relay",
        action="append",
        default=[],
        help="answer under this host, or host:port, of a reverse proxy too; it needs a token there",
    )
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
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
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


def main() -> int:
    """Run; the exit status (3: a server already runs for this folder)."""
    options = _parser().parse_intermixed_args()
    root = options.root.expanduser().absolute()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        if options.action == "serve":
            from hubkit.local_hub.server import Limits, Services, serve

            limits = Limits(
                options.idle_timeout_s,
                options.stall_timeout_s,
                options.multipart_above_mib * 2**20,
                options.part_mib * 2**20,
            )
            services = Services(
                options.jobs,
                options.spaces,
                options.upstream,
                options.own_namespace,
                options.relay,
            )
            serve(root, options.host, options.port, limits, services)
            return 0
        from hubkit.local_hub import commands

        return commands.run(options, root)
    except HubkitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        if not is_disk_full(error):
            raise
        sys.stderr.write(f"{DISK_FULL}\n")
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
