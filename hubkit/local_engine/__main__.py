"""`python -m hubkit.local_engine`: one process that serves one base model and its adapters."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading

from hubkit.errors import HubkitError
from hubkit.files import write_whole
from hubkit.local_engine.settings import parse

_PATIENCE_S = 5.0


def main() -> int:
    """Serve; the exit status is 0 after a signal and 1 when the server cannot start."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    for chatty in ("httpx", "httpx2", "gguf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    settings = parse(sys.argv[1:])
    if settings.exit_with_parent:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    from hubkit.local_engine.serve import run

    try:
        run(settings)
    except HubkitError as error:
        print(error, file=sys.stderr)
        if settings.state_file:
            write_whole(settings.state_file, json.dumps({"error": str(error)}))
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    return 0


def _exit_with_parent() -> None:
    """The parent holds the other end of standard input: its end, however violent, is our signal."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_PATIENCE_S)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
