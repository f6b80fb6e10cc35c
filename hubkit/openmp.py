"""How threads of torch and of llama.cpp wait for each other."""

from __future__ import annotations

import os
from typing import Final

SPIN_COUNT: Final = "GOMP_SPINCOUNT"
"""The variable of GNU's OpenMP: how often a waiting thread looks before it sleeps."""
_SPINS: Final = "400"


def spin_briefly() -> None:
    """Let waiting threads spin for a short while, then sleep, unless the environment says how long.
    Call before torch or llama.cpp is loaded: OpenMP reads its variable then.

    By default they spin on, which is fastest on an idle machine and a fraction of that as soon as
    another process wants a core. Threads that sleep at once are slower on the idle one."""
    os.environ.setdefault(SPIN_COUNT, _SPINS)
