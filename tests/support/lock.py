"""A lock without torch and what only torch brings: ``python tests/support/lock.py COMPILED >
demo.lock`` (``make lock``).

Which build of torch fits (CUDA, CPU, which index) is decided where it is installed, so no hash of
one build is kept.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

OF_TORCH = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEAD = (
    "# Written by `make lock`: what `make demo` installs with `pip install "
    "--no-deps --require-hashes`.\n"
    "# torch comes before it, without a hash: see the Makefile."
)


def main() -> None:
    """Print the entries of the compiled lock that are not torch's."""
    print(HEAD)
    for entry in re.split(r"(?m)^(?=[a-z])", Path(sys.argv[1]).read_text("utf-8")):
        if entry.strip() and not OF_TORCH.match(entry):
            print(entry.rstrip())


if __name__ == "__main__":
    main()
