"""A judge that is asked one prompt about many things: conversations, and the turns in them.

Takes a recipe's `Judging` block, where it answers, and a prompt; gives what was said for each thing
that it has an answer to. What it has no answer to is counted, with a reason."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path

from hubkit.conversation import Message
from hubkit.errors import EndpointError, EvalError, RunLockedError
from hubkit.judging.judge import Judge, judging, requests_at_once
from hubkit.judging.prompts import Prompts
from hubkit.judging.verdicts import Parse, yes_or_no
from hubkit.locks import FileLock, Timeout
from hubkit.progress import Notice, Progress
from hubkit.recipe import Judging
from hubkit.serving import ServedModel
from hubkit.serving.client import MOST_REQUESTS
from hubkit.serving.reply_journal import Journal
from hubkit.untrusted import JsonObject, count_in, object_in

_SHOWN_MESSAGES, _SHOWN_CHARS = (
    2,
    1500,
)  # of a turn's conversation, and of each message, what a judge is shown


class PromptedJudge:
    """The judge of `block`, which is `model`, asked the prompt `name` about one thing after
    another; `who` it is, and `run` whose money it is.

    Its replies are in a journal below `folder`, one for each `who` and set of prompts, that
    outlives it: a run with larger caps, or another one over the same conversations, asks for
    nothing twice. `stats` is what a report says of all that was asked."""

    def __init__(
        self,
        block: Judging,
        model: ServedModel,
        prompts: Prompts,
        name: str,
        *,
        identity: str,
        run: str,
        folder: Path,
    ) -> None:
        self._block, self._model, self._prompts, self._name, self._who = (
            block,
            model,
            prompts,
            name,
            identity,
        )
        self._identity: dict[str, str] = {"identity": identity, "run": run}
        scope = json.dumps([identity, prompts.sha256])
        self._folder = folder / hashlib.sha256(scope.encode()).hexdigest()[:12]
        self._missing: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._unusable: Counter[str] = Counter()
        self.stats: JsonObject = {}

    def ask(
        self, about: Iterable[tuple[str, dict[str, str]]], read: Parse, progress: Progress
    ) -> dict[str, str]:
        """Key → what the judge says, for each of `about` (key, the prompt's values) that it has a
        usable answer to.

        `progress` is told how many there are where `about` has a length. Raises `EndpointError`
        when the judge cannot be asked at all, `RunLockedError` when another process is asking it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        total = len(about) if isinstance(about, Sized) else None
        try:
            with (
                FileLock(self._folder / "lock", timeout=0),
                Journal(self._folder, {"layout": 1}) as journal,
            ):
                return asyncio.run(self._ask_all(iter(about), total, read, journal, progress))
        except Timeout:
            raise RunLockedError(
                f"another process is asking the same judge in {self._folder}; wait for it"
            ) from None

    async def _ask_all(
        self,
        about: Iterator[tuple[str, dict[str, str]]],
        total: int | None,
        read: Parse,
        journal: Journal,
        progress: Progress,
    ) -> dict[str, str]:
        answers: dict[str, str] = {}
        completed = 0

        async def work(judge: Judge) -> None:
            nonlocal completed
            for key, values in about:
                verdict = await judge.answer(read, self._prompts.fill(self._name, values))
                if verdict.missing:
                    self._missing[verdict.reason] += 1
                else:
                    answers[key] = verdict.answer
                completed += 1
                progress(completed, total, "questions to the judge answered")

        def on_batch(sentence: str) -> None:
            progress(completed, total, Notice(sentence))

        async with judging(
            self._block, self._model, journal, **self._identity, on_batch=on_batch
        ) as judge:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(requests_at_once(self._block), total or MOST_REQUESTS)):
                        group.create_task(work(judge))
            except* (EndpointError, EvalError) as failed:
                raise failed.exceptions[0] from None
            self._add_stats(judge.to_dict())
        return answers

    def _add_stats(self, counts: JsonObject) -> None:
        """Add what one call of `ask` took to what is told of all of them; tokens and money add up
        by themselves.
        """
        self._counts.update({name: count_in(counts, name) for name in ("asked", "from_journal")})
        unusable = object_in(counts, "unusable_attempts")
        self._unusable.update({why: count_in(unusable, why) for why in unusable})
        self.stats = {
            **counts,
            **self._counts,
            "unusable_attempts": dict(self._unusable),
            "missing": dict(self._missing),
            "judge": self._who,
            "prompts": {**self._prompts.to_dict(), "name": self._name},
        }


def context_judge(
    judge: PromptedJudge, progress: Progress
) -> Callable[[Sequence[Sequence[Message]]], list[bool | None]]:
    """Make `judge`, asked ``context-v1``, a judge of `hubkit.metrics.stats`: of conversations that
    end in a human turn, whether that turn needs its context; None where it does not say."""
    meanings = {"yes": True, "no": False}

    def verdicts(conversations: Sequence[Sequence[Message]]) -> list[bool | None]:
        about = [
            (str(number), turn_values(before, turn["content"]))
            for number, (*before, turn) in enumerate(conversations)
        ]
        answers = judge.ask(about, yes_or_no, progress)
        return [meanings.get(answers.get(key, "")) for key, _ in about]

    return verdicts


def clipped(messages: Sequence[Message], chars: int) -> str:
    """What was said, a paragraph a turn, in at most `chars` each."""
    return "\n\n".join(
        m["content"] if len(m["content"]) <= chars else f"{m['content'][:chars]} […]"
        for m in messages
    )


def turn_values(history: Sequence[Message], turn: str) -> dict[str, str]:
    """The values of the prompt ``context-v1`` for a human `turn` that follows `history`: the end of
    it, long messages clipped."""
    return {
        "conversation": clipped(history[-_SHOWN_MESSAGES:], _SHOWN_CHARS),
        "question": turn[:_SHOWN_CHARS],
    }
