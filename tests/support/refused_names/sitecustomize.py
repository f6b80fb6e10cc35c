"""Records and refuses every name but this machine's, in each Python process that has this folder
on ``PYTHONPATH`` and a file in ``REFUSED_NAMES``. pip alone is let out: to the package index, which
is configured.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

_HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}
_resolve = socket.getaddrinfo


def _refusing(host: Any, *args: Any, **kwargs: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    if name not in _HERE:
        with Path(os.environ["REFUSED_NAMES"]).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        raise socket.gaierror(f"{name} is not asked in a test")
    return _resolve(host, *args, **kwargs)


if "REFUSED_NAMES" in os.environ and sys.orig_argv[1:3] != ["-m", "pip"]:
    socket.getaddrinfo = _refusing
