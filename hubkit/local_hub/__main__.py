"""`python -m hubkit.local_hub`: serve a folder, or look after it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hubkit.errors import HubkitError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hubkit.local_hub", description="The embedded Hub.")
    parser.add_argument("action", nargs="?", default="serve", choices=["serve", "gc", "verify"])
    parser.add_argument("--root", type=Path, required=True, help="folder that holds everything")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=0, help="0: the port of last time, or any free one")
    parser.add_argument("--idle-timeout-s", type=float, default=0, help="stop after this long without requests (0: never)")
    parser.add_argument("--grace-s", type=float, default=24 * 3600, help="gc: keep what is younger than this")
    parser.add_argument("--json", action="store_true", help="gc, verify: print the result as JSON")
    return parser


def main() -> int:
    """Run; the exit status (3: a server already runs for this folder)."""
    options = _parser().parse_args()
    root = options.root.expanduser().absolute()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        if options.action == "serve":
            from .server import serve

            serve(root, options.host, options.port, options.idle_timeout_s)
            return 0
        from .upkeep import run_action

        return run_action(options.action, root, grace_s=options.grace_s, as_json=options.json)
    except HubkitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
