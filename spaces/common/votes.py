"""Visitors' votes, kept in a dataset on the Hub: what is written of one, who may cast it, and when
votes are sent.

The variable ``VOTES_REPO`` names the dataset, the secret ``VOTES_TOKEN`` may write to it; without
either nothing is kept, and the page says so. A vote holds which of two texts was chosen and how
fast: no text, no name, no address. A visitor is a keyed hash whose key never leaves this
process."""

from __future__ import annotations

import atexit
import hashlib
import hmac
import json
import os
import secrets
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from models import page_of
from page import RateLimit, address

REPO, _TOKEN = os.environ.get("VOTES_REPO", ""), os.environ.get("VOTES_TOKEN", "")
EVERY_S = float(os.environ.get("VOTES_EVERY_S", "300"))
PER_MINUTE = int(os.environ.get("VOTES_PER_MINUTE", "10"))
_REMEMBERED = 100_000  # pairs of visitors and what they voted on
_MOST_WAITING = 10_000  # votes kept while the Hub does not take them
LAYOUT = 1
CONSENT = (
    "By choosing you agree that your choice and how long you took are kept in the dataset "
    "[{repo}]({page}). What you write, your name and your address are not."
)
OFF = (
    "Choices are not kept here. (They would be if the owner of this Space set the variable "
    "`VOTES_REPO` and the secret `VOTES_TOKEN`.)"
)
KEPT = "Kept, thank you."
# Columns are named because not every kind of vote has all of them: without, the files of one kind
# could not be read beside those of another.
CARD = """---
pretty_name: Votes of visitors
configs:
- config_name: default
  data_files: votes/*.jsonl
dataset_info:
  features:
  - {name: layout, dtype: int64}
  - {name: id, dtype: string}
  - {name: kind, dtype: string}
  - {name: pair, dtype: string}
  - {name: left, dtype: string}
  - {name: right, dtype: string}
  - {name: visitor, dtype: string}
  - {name: choice, dtype: string}
  - {name: seconds, dtype: float64}
  - {name: day, dtype: string}
  - {name: turns, dtype: int64}
  - {name: left_words, dtype: int64}
  - {name: right_words, dtype: int64}
---

# Votes of visitors

What visitors of a Space chose, with their consent: of two contestants (`left`, `right`) the
`choice`, and the `seconds` it took. `pair` is a hash of what was shown, `visitor` a keyed hash
whose key changes with every start of the Space and is kept nowhere. No text, no name, no address.
`hubkit eval votes` screens and reports them.
"""
Send = Callable[[str, bytes], None]
"""Puts content at a path of the dataset; raises where it could not."""


class VoteRefusedError(Exception):
    """Why a vote does not count, as one sentence for the person at the page."""


class Votes:
    """The votes of this Space's visitors, sent some at a time.

    `folder` holds what is not sent yet; what an earlier process left there is sent as well."""

    def __init__(
        self,
        repo: str = REPO,
        *,
        send: Send | None = None,
        folder: Path | None = None,
        every_s: float = EVERY_S,
        per_minute: int = PER_MINUTE,
    ) -> None:
        self.repo = repo
        self._send = send or (committer(repo, _TOKEN) if repo and _TOKEN else None)
        self._folder = folder or Path(tempfile.mkdtemp(prefix="votes-"))
        self._every_s, self._limit = every_s, RateLimit(per_minute)
        self._key = secrets.token_bytes(32)
        self._voted: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._waiting = 0
        self._lock, self._sending = threading.Lock(), threading.Lock()
        if self.kept:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._seal()
            threading.Thread(target=self._send_often, daemon=True).start()
            atexit.register(self.flush)

    @property
    def kept(self) -> bool:
        """Whether votes are kept at all."""
        return self._send is not None

    @property
    def notice(self) -> str:
        """What the page says before anybody votes."""
        if not self.kept:
            return OFF
        return CONSENT.format(repo=self.repo, page=page_of(f"datasets/{self.repo}"))

    def visitor(self, request: gr.Request | None) -> str:
        """Who votes: a keyed hash of the address, new with every start of the Space."""
        key = hmac.new(self._key, address(request).encode(), hashlib.sha256)
        return key.hexdigest()[:16]

    def cast(
        self, question: dict[str, Any], choice: str, request: gr.Request | None, **facts: int
    ) -> bool:
        """Keep a vote on what `ballot` made: ``left``, ``right`` or ``tie``.

        Returns:
            Whether it is kept; False where none are.

        Raises:
            VoteRefusedError: This visitor has voted on this pair, or votes too fast."""
        if not self.kept:
            return False
        who = self.visitor(request)
        with self._lock:
            if (who, question["pair"]) in self._voted:
                raise VoteRefusedError("You have voted on this pair already.")
        try:
            self._limit.check(request)
        except gr.Error as error:
            raise VoteRefusedError(f"This choice is not kept. {error.message}") from None
        vote = {
            "layout": LAYOUT,
            "id": uuid.uuid4().hex,
            **{name: question[name] for name in ("kind", "pair", "left", "right")},
            "visitor": who,
            "choice": choice,
            "seconds": round(max(0.0, time.time() - question["shown_at"]), 1),
            "day": time.strftime("%Y-%m-%d", time.gmtime()),
            **facts,
        }
        with self._lock:
            self._voted[who, question["pair"]] = None
            while len(self._voted) > _REMEMBERED:
                self._voted.popitem(last=False)
            if self._waiting >= _MOST_WAITING:
                raise VoteRefusedError("Votes cannot be kept right now; try again later.")
            self._waiting += 1
            with (self._folder / "open.jsonl").open("a", encoding="utf-8") as out:
                out.write(json.dumps(vote) + "\n")
        return True

    def flush(self) -> int:
        """Send what waits, in one commit a sealed file; a file that is not taken waits on.

        Returns:
            How many files were sent."""
        if self._send is None:
            return 0
        count = 0
        with self._sending:
            self._seal()
            for file in sorted(self._folder.glob("sealed-*.jsonl")):
                content = file.read_bytes()
                try:
                    self._send(f"votes/{file.name.removeprefix('sealed-')}", content)
                except Exception as error:
                    print(f"votes wait: {type(error).__name__}", flush=True)  # never its words
                    break
                file.unlink()
                count += 1
                with self._lock:
                    self._waiting = max(0, self._waiting - content.count(b"\n"))
        return count

    def _seal(self) -> None:
        """Give what waits its name in the dataset, so that sending it twice is one file."""
        with self._lock:
            waiting = self._folder / "open.jsonl"
            if waiting.exists():
                waiting.replace(
                    self._folder / f"sealed-{time.time_ns()}-{uuid.uuid4().hex[:8]}.jsonl"
                )

    def _send_often(self) -> None:
        while True:
            time.sleep(self._every_s)
            self.flush()


def ballot(kind: str, pair: str, left: str, right: str) -> dict[str, Any]:
    """What a vote will be about: two contestants, by name, as they are shown now.

    `pair` is what makes it the same question to another visitor; its hash is kept, not itself."""
    return {
        "kind": kind,
        "pair": hashlib.sha256(pair.encode()).hexdigest()[:24],
        "left": left,
        "right": right,
        "shown_at": time.time(),
    }


def committer(repo: str, token: str, endpoint: str | None = None) -> Send:
    """Commits to the dataset `repo`, which is made, private, where it is not there."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api, exists = HfApi(endpoint=endpoint, token=token), threading.Event()

    def send(path: str, content: bytes) -> None:
        files = {path: content}
        if not exists.is_set():
            api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
            if not api.file_exists(repo, "README.md", repo_type="dataset"):
                files["README.md"] = CARD.encode()
        api.create_commit(
            repo,
            [CommitOperationAdd(name, data) for name, data in files.items()],
            commit_message=f"{content.count(10)} votes",
            repo_type="dataset",
        )
        exists.set()

    return send
