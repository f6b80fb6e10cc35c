"""One model that is asked something for the length of a block: an address, the embedded engine, or an endpoint.

Takes a `SeatConfig` and what sits there; gives addresses, and how they are spoken to. And the judge in such a seat.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hubkit.endpoint import key_in
from hubkit.errors import EndpointError, RunLockedError
from hubkit.hub import Hub, Ref
from hubkit.hub.places import runs
from hubkit.judge import Judge, Parse, Prompts, judging, question_prompts
from hubkit.pipeline.imports import require
from hubkit.pipeline.serving import Model, Reached, serving
from hubkit.pipeline.stage import Context, Work
from hubkit.progress import Progress
from hubkit.recipe import DEPLOY, EMBEDDED, Deploy, Judging, SeatConfig
from hubkit.replies import Journal
from hubkit.schema import Message

JUDGE = "judge"


@contextmanager
def answering(
    hub: Hub, config: SeatConfig, ref: Ref | None, base: Ref | None, work: Work, *, slots: int
) -> Iterator[tuple[Reached, SeatConfig]]:
    """Where `ref` (an adapter of `base`, or whole) answers, and `config` with what is spoken there; without a `ref`,
    who is at the addresses of `config`.

    An embedded engine runs, and an endpoint that is deployed is held, for the length of the block.
    """
    if ref is None or not {DEPLOY, EMBEDDED} & set(config.endpoints):
        yield Reached(tuple(config.endpoints), config.profile, config.model, key_in(config.token_env)), config
        return
    terms = (config.deploy or Deploy()) if DEPLOY in config.endpoints else None
    models = {ref.repo_id: Model(ref, base, terms)}
    with serving(hub, models, work.scratch, work.progress, slots=slots, tokens=config.context) as found:
        reached = found[ref.repo_id]
        yield reached, config.model_copy(update={"profile": reached.profile, "model": reached.served_as})


def judge_input(context: Context, block: Judging | None, progress: Progress) -> dict[str, Ref]:
    """The judge's commit, as an input of its stage; none where it answers at an address of its own."""
    if block is None or not {DEPLOY, EMBEDDED} & set(block.judge.endpoints):
        return {}
    return {JUDGE: require(context.hub, context.hub.qualify(block.judge.repo), progress=progress)}


class Questioner:
    """A judge that is asked the prompt `name` about one thing after another; `who` it is, and `run` whose money it is.

    Its replies are in a journal that outlives the stage: a run with larger caps, or another recipe over the same
    conversations, asks for nothing twice. `told` is what a report says of all that was asked.
    """

    def __init__(self, block: Judging, at: Reached, prompts: Prompts, name: str, *, who: str, run: str) -> None:
        self._block, self._at, self._who, self._run = block, at, who, run
        self._prompts, self._name = prompts, name
        self._missing: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._unusable: Counter[str] = Counter()
        self.told: dict[str, Any] = {}

    def ask(self, about: Iterable[tuple[str, dict[str, str]]], read: Parse, progress: Progress) -> dict[str, str]:
        """Key → what the judge says, for each of `about` (key, the prompt's values) that it has a usable answer to.

        Raises `EndpointError` when it cannot be asked at all, `RunLockedError` when another process is asking it.
        """
        from filelock import FileLock, Timeout

        asked = json.dumps([self._who, self._prompts.sha256])
        folder = runs() / f"asked-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "lock", timeout=0), Journal(folder, {"layout": 1}) as journal:
                return self._ask(iter(about), read, journal, progress)
        except Timeout:
            raise RunLockedError(f"another process is asking the same judge in {folder}; wait for it") from None

    def _ask(
        self, about: Iterator[tuple[str, dict[str, str]]], read: Parse, journal: Journal, progress: Progress
    ) -> dict[str, str]:
        try:
            return asyncio.run(self._asked(about, read, journal, progress))
        except* EndpointError as failed:
            raise failed.exceptions[0] from None

    async def _asked(
        self, about: Iterator[tuple[str, dict[str, str]]], read: Parse, journal: Journal, progress: Progress
    ) -> dict[str, str]:
        said: dict[str, str] = {}
        at = self._at
        options: dict[str, Any] = {"identity": self._who, "run": self._run, "token": at.token, "template": at.template}

        async def work(judge: Judge) -> None:
            for key, values in about:
                verdict = await judge.answer(read, self._prompts.fill(self._name, values))
                if verdict.missing:
                    self._missing[verdict.reason] += 1
                else:
                    said[key] = verdict.said
                progress(len(said) + self._missing.total(), None, "what the judge says")

        async with judging(self._block, at.urls, journal, **options) as judge:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._block.in_flight):
                    group.create_task(work(judge))
            self._tell(judge.to_dict())
        return said

    def _tell(self, told: dict[str, Any]) -> None:
        """Add what one call of `ask` took to what is told of all of them; tokens and money add up by themselves."""
        self._counts.update({name: told[name] for name in ("asked", "from_journal")})
        self._unusable.update(told["unusable_attempts"])
        self.told = {
            **told,
            **self._counts,
            "unusable_attempts": dict(self._unusable),
            "missing": dict(self._missing),
            "judge": self._who,
            "prompts": {**self._prompts.to_dict(), "name": self._name},
        }


@contextmanager
def questioner(
    context: Context, stage: str, block: Judging, inputs: dict[str, Ref], work: Work, name: str
) -> Iterator[Questioner]:
    """The judge of `block`, ready to be asked the prompt `name`; caps hold over all sessions of `stage` on `inputs`."""
    read = {role: ref.to_dict() for role, ref in sorted(inputs.items())}
    run = hashlib.sha256(json.dumps([context.recipe.name, stage, read], sort_keys=True).encode()).hexdigest()
    ref = inputs.get(JUDGE)
    who = f"{ref.repo_id}@{ref.revision}" if ref else " ".join([*sorted(block.judge.endpoints), block.judge.model])
    with answering(context.hub, block.judge, ref, None, work, slots=block.in_flight) as (at, spoken):
        yield Questioner(block.model_copy(update={"judge": spoken}), at, question_prompts(), name, who=who, run=run)


def clipped(messages: Sequence[Message], chars: int) -> str:
    """What was said, a paragraph a turn, in at most `chars` each."""
    return "\n\n".join(m["content"] if len(m["content"]) <= chars else f"{m['content'][:chars]} […]" for m in messages)
