"""Asks for a few answers by batch, in a process of its own that a test can kill: ``batch_client.py
URL PROFILE FOLDER``. Prints each answer's request at the end."""

from __future__ import annotations

import sys
from pathlib import Path

from hubkit.serving.client import BatchEndpoint, ask_all
from hubkit.serving.client.batch_queue import Pace
from hubkit.serving.reply_journal import Journal


def main() -> None:
    url, profile, folder = sys.argv[1:]
    questions = {str(n): [{"role": "user", "content": f"question {n}"}] for n in range(5)}
    with Journal(Path(folder), {}) as replies:
        endpoint = BatchEndpoint(
            [url],
            profile=profile,
            model="m",
            sampling={"temperature": 0.0, "max_tokens": 9},
            folder=Path(folder),
            pace=Pace(gather_s=0.05, first_poll_s=0.02, longest_poll_s=0.02, settle_s=0.3),
        )
        ask_all(
            endpoint,
            {key: messages for key, messages in questions.items() if key not in replies},
            replies,
            refused=lambda error: ("", f"refused_{error.status}"),
            seed=1,
            in_flight=100,
            step=lambda: None,
        )
        print(" ".join(sorted(key for key in questions if replies[key][0])))


if __name__ == "__main__":
    main()
