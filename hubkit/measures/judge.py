"""A judge model says which turns need the conversation before them. One question a turn, one word as the answer.

Takes the address of an OpenAI-style endpoint; gives a `Judge`. What it answers other than yes or no is no verdict: the
turn is counted as one without.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from hubkit.endpoint import Endpoint, ask_all
from hubkit.errors import RunLockedError
from hubkit.progress import Progress, silent
from hubkit.replies import Journal
from hubkit.schema import Message

Judge = Callable[[Sequence[Sequence[Message]]], Sequence[bool | None]]
"""Says of conversations that end in a human turn whether that turn needs its context; None where it cannot tell."""

QUESTION = """\
Below is the end of a conversation between a user and an assistant, as JSON, and after it the user's next message. Can \
somebody who has not read the conversation understand what the message asks for? A message that says "it" or "that \
one", leaves words out, or says "continue" cannot be understood alone. A message that names its subject can, even when \
it stays on the topic.

Conversation:
{history}

Next message:
{turn}

Answer with one word: "yes" if the message needs the conversation to be understood, "no" if it stands alone."""
_CHARS = 6000  # of the conversation, this much of its end is shown
_VERDICT = re.compile(r"\W*(?:<think>.*?</think>\W*)?(yes|no)\b", re.IGNORECASE | re.DOTALL)
_SAMPLING = {"temperature": 0.0, "top_p": 1.0, "stop": [], "frequency_penalty": 0.0, "presence_penalty": 0.0}


def endpoint_judge(
    url: str,
    *,
    model: str = "tgi",
    profile: str = "tgi",
    token: str | None = None,
    in_flight: int = 16,
    max_tokens: int = 8,
    patience_s: float = 60.0,
    journal: Path | None = None,
    progress: Progress = silent,
) -> Judge:
    """A `Judge` behind the OpenAI-style endpoint at `url`, asked greedily, at most `in_flight` at once.

    `profile` is one of `hubkit.endpoint.PROFILES`; a judge that thinks aloud first needs more than 8 `max_tokens`. With
    `journal`, a folder that survives a kill, what this judge was asked in this wording is not asked again. The judge
    raises `MisconfiguredEndpointError` or `EndpointUnreachableError` where nothing can be asked; one refused question
    is a turn without a verdict; `RunLockedError` while another process writes the journal.
    """
    options: dict[str, Any] = {"profile": profile, "model": model, "token": token, "most_in_flight": in_flight}
    sampling = {**_SAMPLING, "max_tokens": max_tokens}
    identity = {"judge": [url, model, profile], "sampling": sampling, "question": QUESTION}

    def judge(conversations: Sequence[Sequence[Message]]) -> list[bool | None]:
        prompts = [_prompt(conversation) for conversation in conversations]
        keys = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts]
        with _kept(journal, identity) as replies:
            asked: dict[str, list[Message]] = {
                key: [{"role": "user", "content": prompt}]
                for key, prompt in zip(keys, prompts, strict=True)
                if key not in replies
            }
            done = 0

            def step() -> None:
                nonlocal done
                done += 1
                progress(done, len(asked), "asking the judge")

            endpoint = Endpoint([url], sampling=sampling, patience_s=patience_s, name="judge", **options)
            ask_all(endpoint, asked, replies, refused=lambda _: ("", "refused"), seed=0, in_flight=in_flight, step=step)
            return [verdict(replies[key][0]) for key in keys]

    return judge


@contextmanager
def _kept(folder: Path | None, identity: dict[str, Any]) -> Iterator[Journal]:
    """The journal of `identity` in `folder`, or one that is gone at the end."""
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        (folder / name).mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(FileLock(folder / name / "lock", timeout=0))
        except Timeout:
            raise RunLockedError(f"another process asks this judge too; wait for it ({folder / name})") from None
        yield stack.enter_context(Journal(folder / name, identity))


def _prompt(conversation: Sequence[Message]) -> str:
    *before, turn = conversation
    history = json.dumps([{"role": m["role"], "content": m["content"]} for m in before], ensure_ascii=False)
    return QUESTION.format(history=history[-_CHARS:], turn=turn["content"][:_CHARS])


def verdict(answer: str) -> bool | None:
    """True for yes, False for no, None for anything else.

    >>> verdict("Yes."), verdict(" no, it stands alone"), verdict("nobody knows")
    (True, False, None)
    """
    found = _VERDICT.match(answer)
    return None if found is None else found[1].lower() == "yes"
