"""Chat models in conversation with askers of a Hub: who meets whom, on which openings, what it
would ask, the conversations, their rewards, and the table's files.

``hubkit eval against`` is argument parsing and printing over this module. Each pair is a rollout
with a journal of its own, so the same call resumes, and asks for nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hubkit.rollout as rollouts
from hubkit.conversation import Conversation
from hubkit.data.parquet import ShardWriter, write_files
from hubkit.environment import Opening, ended_episode, openings_in
from hubkit.errors import EmptyRolloutError, RecipeError, SourceError
from hubkit.hub import Hub, Ref
from hubkit.hub.places import runs
from hubkit.loopback import on_loopback
from hubkit.metrics.cross_table import CrossTable, Scored, cross_table, notes, picture, table
from hubkit.pipeline import askers as asker_specs
from hubkit.pipeline.askers import AskerSpec
from hubkit.pipeline.rewarding import Place, check_rewards, served_rewards
from hubkit.progress import Progress, part, silent
from hubkit.recipe import Against, Rollout, SeatConfig, Turns, content_of, digest
from hubkit.reinforcement import (
    Episode,
    Likelihood,
    Outcome,
    Rewards,
    rewarded_schema,
    shipped_rubric,
)
from hubkit.rollout.report import RolloutReport
from hubkit.rollout.shards import Row
from hubkit.serving import (
    ModelSpec,
    ServedModel,
    inference_endpoints,
    serve,
    with_own_template,
    with_people_template,
)
from hubkit.serving.budget import CAPS
from hubkit.serving.client import ClientTemplate
from hubkit.statistics import Bootstrap
from hubkit.tokenization import most_tokens
from hubkit.untrusted import JsonObject, count_in, number_in

PICTURE, RESULT, CONVERSATIONS = "against.png", "against.json", "against.jsonl"


@dataclass(frozen=True, slots=True)
class ChatSpec:
    """A chat model of the table.

    Attributes:
        name: What results call it.
        identity: Exactly who it is.
        model: What is asked, and where.
    """

    name: str
    identity: str
    model: ModelSpec


@dataclass(frozen=True, slots=True)
class _Pair:
    asker: AskerSpec
    chat: ChatSpec

    def folder(self, work: Path) -> Path:
        """Where its conversations are."""
        facts = [self.asker.name, str(self.asker.ref), self.asker.system, self.chat.identity]
        return work / digest(facts)[:12]


@dataclass(frozen=True)
class CrossTableRun:
    """Askers, chat models and openings that were looked up.

    Attributes:
        source: What the result says that the openings are from.
        judges: The commits of judges that are repos.
        likelihood: Of the first asker, for rewards that need it.
    """

    block: Against
    askers: Sequence[AskerSpec]
    chats: Sequence[ChatSpec]
    openings: Sequence[Opening]
    source: Mapping[str, Any]
    seed: int = 42
    judges: Mapping[Place, Ref] = field(default_factory=dict)
    likelihood: Likelihood | None = None

    def check(self) -> None:
        """Refuse what could not be run, before anything is sent.

        Raises:
            RecipeError: A name stands twice, a reward cannot be made, or a cap in dollars has no
                prices to count by.
        """
        for kind, names in (
            ("asker", [asker.name for asker in self.askers]),
            ("chat model", [chat.name for chat in self.chats]),
        ):
            if len(set(names)) < len(names):
                raise RecipeError(f"{', '.join(names)}: give every {kind} once")
        for asker in self.askers:
            if not asker.speaks_user and not (asker.system or "").strip():
                raise RecipeError(
                    f"{asker.name} does not record the system message that it plays under; say it "
                    "with --system"
                )
        model_names = self._models.keys()
        if unknown := self.block.usd_per_million.keys() - model_names:
            raise RecipeError(
                f"there is no {sorted(unknown)[0]!r} to have a price; there are "
                f"{', '.join(sorted(model_names))}"
            )
        if self.block.budget_usd is not None:
            unpriced = model_names - self.block.usd_per_million.keys()
            paid = [n for n in sorted(unpriced) if not self._is_free(n)]
            if paid or unpriced == model_names:
                name = (paid or sorted(unpriced))[0]
                raise RecipeError(
                    f"a budget of {self.block.budget_usd:g} USD caps nothing, because {name} has "
                    f"no price; say --price {name}=IN,OUT, or --budget-tokens"
                )
        check_rewards(self.block.rewards, self.judges, self.likelihood)
        for term in self.block.rewards:
            if term.args.get("of") == "end" and not self.askers[0].end_mark:
                raise RecipeError(
                    f"rewards: {term.name} of: end, but {self.askers[0].name} was trained without "
                    "an end_mark; reward of: turn"
                )

    @property
    def _models(self) -> dict[str, ModelSpec]:
        """Everybody by name."""
        return {asker.name: asker.model for asker in self.askers} | {
            chat.name: chat.model for chat in self.chats
        }

    def _is_free(self, name: str) -> bool:
        source = self._models[name].source
        urls = source.urls if isinstance(source, ServedModel) else ()
        return all(map(on_loopback, urls))

    @property
    def work(self) -> Path:
        """The folder of exactly this table."""
        facts = [
            content_of(Against, self.block.model_dump(mode="json"), without=("rewards",)),
            [[o.id, o.text, o.intent] for o in self.openings],
            self.seed,
        ]
        return runs() / f"against-{digest(facts)[:12]}"

    def pairs(self) -> list[_Pair]:
        """Every asker with every chat model."""
        return [_Pair(asker, chat) for asker in self.askers for chat in self.chats]

    def plan(self, hub: Hub) -> JsonObject:
        """Say what would be asked, and what it would cost at most, retries apart."""
        self.check()
        block, count = self.block, len(self.openings)
        asker_tokens = block.sampling.max_tokens or block.context
        chat_tokens = block.chat_sampling.max_tokens or block.context
        opening = most_tokens(max(len(o.text) for o in self.openings))
        rows: list[JsonObject] = []
        for pair in self.pairs():
            prompts = {
                seat: sum(
                    min(block.context, opening + turn * (asker_tokens + chat_tokens))
                    for turn in range(first, block.turns)
                )
                for seat, first in (("asker", 1), ("chat", 0))
            }
            replies = {"asker": (block.turns - 1) * asker_tokens, "chat": block.turns * chat_tokens}
            usd = 0.0
            for seat, name in (("asker", pair.asker.name), ("chat", pair.chat.name)):
                price_in, price_out = block.usd_per_million.get(name, (0.0, 0.0))
                usd += count * (prompts[seat] * price_in + replies[seat] * price_out) / 1e6
            rows.append(
                {
                    "asker": pair.asker.name,
                    "chat": pair.chat.name,
                    "conversations": count,
                    "requests": count * (2 * block.turns - 1),
                    "tokens_at_most": count * sum((*prompts.values(), *replies.values())),
                    "usd_at_most": round(usd, 4),
                }
            )
        whole = opening + block.turns * (asker_tokens + chat_tokens)
        judges = self._judges(count * len(rows), whole)
        specs = {name: spec for name, spec in self._specs().items() if spec.needs_serving}
        hosted = inference_endpoints.hosted(specs, block.context)
        return {
            "data": dict(self.source),
            "pairs": rows,
            "judges": judges,
            "judgments": sum(count_in(judge, "judgments") for judge in judges),
            "usd_at_most": round(sum(number_in(row, "usd_at_most") for row in [*rows, *judges]), 4),
            "caps": {
                name: getattr(block, name) for name in ("budget_usd", "budget_tokens", "max_hours")
            },
            "endpoints": inference_endpoints.prices(hub, hosted) if hosted else [],
            "folder": str(self.work),
        }

    def _judges(self, conversations: int, tokens: int) -> list[JsonObject]:
        """What each judge would be asked about `conversations` of at most so many `tokens`."""
        rows: list[JsonObject] = []
        for term in self.block.rewards:
            rubric = most_tokens(len(term.rubric or shipped_rubric()))
            for judge in (judging.judge for judging in term.judges):
                prompt_tokens = conversations * min(judge.context, rubric + tokens)
                reply_tokens = conversations * judge.reply_tokens
                usd = (
                    prompt_tokens * judge.usd_per_million_input
                    + reply_tokens * judge.usd_per_million_output
                ) / 1e6
                rows.append(
                    {
                        "judge": judge.model_name,
                        "judgments": conversations,
                        "tokens_at_most": prompt_tokens + reply_tokens,
                        "usd_at_most": round(usd, 4),
                    }
                )
        return rows

    def run(self, hub: Hub, *, progress: Progress = silent) -> tuple[CrossTable, list[Scored]]:
        """Hold the conversations that are missing, reward all of them, and make the table.

        Raises:
            What `hubkit.rollout.run` raises; the same call resumes after it.
        """
        self.check()
        self.work.mkdir(parents=True, exist_ok=True)
        reports = self._conversations(hub, progress)
        entries = [
            (pair, row)
            for pair in self.pairs()
            if pair.folder(self.work) in reports
            for row in _rows(pair.folder(self.work) / "out", reports[pair.folder(self.work)])
        ]
        scored = self._scored(hub, entries, progress)
        stopped = next((report.stopped for report in reports.values() if report.stopped), "")
        stopped = stopped or (self._cap if len(reports) < len(self.pairs()) else "")
        result = cross_table(
            [asker.name for asker in self.askers],
            [chat.name for chat in self.chats],
            scored,
            bootstrap=Bootstrap(self.block.resamples, seed=self.seed),
            settings=self._settings(reports.values()),
            stopped=stopped,
        )
        return result, scored

    def _settings(self, reports: Any) -> JsonObject:
        block = self.block
        return {
            "data": dict(self.source),
            "openings": len(self.openings),
            "turns": block.turns,
            "seed": self.seed,
            "resamples": block.resamples,
            "askers": {asker.name: str(asker.ref) for asker in self.askers},
            "prompted": [asker.name for asker in self.askers if asker.prompted],
            "chats": {chat.name: chat.identity for chat in self.chats},
            "rewards": [
                {
                    "name": term.name, "weight": term.weight, "args": term.args,
                    "judges": [judging.judge.model_name for judging in term.judges],
                }
                for term in block.rewards
            ],
            "usd": round(sum(report.usd for report in reports), 6),
            "requests": sum(report.requests for report in reports),
        }  # fmt: skip

    def _specs(self) -> dict[str, ModelSpec]:
        """Everybody who is served for conversations, by role and name."""
        askers = {f"asker {asker.name}": asker.model for asker in self.askers}
        return askers | {f"chat {chat.name}": chat.model for chat in self.chats}

    def _conversations(self, hub: Hub, progress: Progress) -> dict[Path, RolloutReport]:
        """Each pair's report, by its folder; pairs after a cap that was reached have none."""
        finished = {
            folder: report
            for pair in self.pairs()
            if (report := _finished(folder := pair.folder(self.work), len(self.openings)))
        }
        missing = [pair for pair in self.pairs() if pair.folder(self.work) not in finished]
        if not missing:
            return finished
        needed = {f"asker {p.asker.name}" for p in missing} | {
            f"chat {p.chat.name}" for p in missing
        }
        everybody = {name: spec for name, spec in self._specs().items() if name in needed}
        for pair in missing:  # at addresses, what a trained seat reads is proven or rendered here
            if pair.asker.speaks_user:
                everybody[f"asker {pair.asker.name}"] = with_people_template(
                    pair.asker.model, hub, pair.asker.ref, end_token=pair.asker.end_mark
                )
            elif not pair.asker.prompted and not pair.asker.model.needs_serving:
                name = f"asker {pair.asker.name}"
                everybody[name] = with_own_template(pair.asker.model, hub, pair.asker.ref)
        with serve(
            hub,
            everybody,
            log_dir=self.work,
            progress=progress,
            slots=self.block.in_flight,
            tokens=self.block.context,
            slots_per_model=True,
        ) as models:
            templates = self._templates(hub, missing)
            for number, pair in enumerate(missing):
                names = f"{pair.chat.name} with {pair.asker.name}"
                of_pair = part(progress, number, len(missing), names, "pairs")
                seats = rollouts.Seats(
                    *(
                        replace(models[role], template=templates.get(role) or models[role].template)
                        for role in (f"asker {pair.asker.name}", f"chat {pair.chat.name}")
                    )
                )
                try:
                    report = self._rollout(pair, seats, list(finished.values()), of_pair)
                except EmptyRolloutError:
                    if self._cap:
                        break
                    raise
                finished[pair.folder(self.work)] = report
                if report.stopped:
                    break
        return finished

    def _templates(self, hub: Hub, pairs: Sequence[_Pair]) -> dict[str, ClientTemplate]:
        """By role and name, for models that keep their own seat and have no chat template: their
        family's.
        """
        specs = {f"asker {pair.asker.name}": pair.asker for pair in pairs}
        for pair in pairs:
            source, name = pair.chat.model.source, f"chat {pair.chat.name}"
            if isinstance(source, Ref) and pair.chat.model.base is None:
                specs[name] = AskerSpec(name, source, pair.chat.model, prompted=True)
        named = [replace(spec, name=role) for role, spec in specs.items()]
        return asker_specs.own_seat_templates(hub, named)

    @property
    def _cap(self) -> str:
        """The first cap that is set; empty without any."""
        return next((name for name in CAPS if getattr(self.block, name) is not None), "")

    def _rollout(
        self,
        pair: _Pair,
        seats: rollouts.Seats,
        earlier_reports: Sequence[RolloutReport],
        progress: Progress,
    ) -> RolloutReport:
        folder = pair.folder(self.work)
        conversations = [
            Conversation(
                f"{number}",
                [{"role": "user", "content": opening.text}],
                opening.id,
                {"intent": opening.intent} if opening.intent else {},
            )
            for number, opening in enumerate(self.openings)
        ]
        return rollouts.run(
            self._rollout_block(pair, earlier_reports),
            conversations,
            folder / "out",
            seats,
            rollouts.JournalSpec(
                folder / "journal",
                self.seed,
                {
                    "asker": pair.asker.ref.to_dict(),
                    "chat": {"repo_id": pair.chat.name, "revision": pair.chat.identity},
                },
            ),
            watch=rollouts.Watch(progress),
        )

    def _rollout_block(self, pair: _Pair, earlier_reports: Sequence[RolloutReport]) -> Rollout:
        """The rollout of a pair, under what the `others` have left of the caps."""
        block = self.block

        def seat(role: str, **keys: Any) -> SeatConfig:
            price_in, price_out = block.usd_per_million.get(role, (None, None))
            prices = {"usd_per_million_input": price_in, "usd_per_million_output": price_out}
            keys |= {key: price for key, price in prices.items() if price is not None}
            return SeatConfig(context=block.context, **keys)

        usd = (
            None
            if block.budget_usd is None
            else block.budget_usd - sum(r.usd for r in earlier_reports)
        )
        tokens = None
        if block.budget_tokens is not None:
            tokens = block.budget_tokens - sum(_tokens(report) for report in earlier_reports)
        hours = None
        if block.max_hours is not None:
            hours = block.max_hours - sum(report.seconds for report in earlier_reports) / 3600
        priced = {pair.asker.name, pair.chat.name} & block.usd_per_million.keys()
        rollout = Rollout(
            dialogues=len(self.openings),
            turns=Turns(value=block.turns),
            end_mark=pair.asker.end_mark,
            asker=seat(
                pair.asker.name,
                repo=pair.asker.ref.repo_id,
                system=pair.asker.system,
                sampling=block.sampling,
            ),
            chat=seat(
                pair.chat.name,
                repo=None,
                name=pair.chat.name,
                license="as its owner says",
                endpoints=["http://127.0.0.1"],  # it is asked where it was found
                sampling=block.chat_sampling,
            ),
            max_opening_chars=block.max_opening_chars,
            in_flight=block.in_flight,
            request_timeout_s=block.request_timeout_s,
            patience_s=block.patience_s,
        )
        caps = {"budget_usd": usd if priced else None, "budget_tokens": tokens, "max_hours": hours}
        return rollout.model_copy(update=caps)  # which may be used up

    def _scored(
        self, hub: Hub, entries: Sequence[tuple[_Pair, Row]], progress: Progress
    ) -> list[Scored]:
        episodes = {
            number: self._episode(pair, row)
            for number, (pair, row) in enumerate(entries)
            if not _failure(row)
        }
        with served_rewards(
            hub,
            self.block.rewards,
            self.judges,
            folder=self.work,
            run=hashlib.sha256(self.work.name.encode()).hexdigest(),
            likelihood=self.likelihood,
            progress=progress,
        ) as rewards:
            outcomes = dict(
                zip(
                    episodes,
                    asyncio.run(self._outcomes(rewards, list(episodes.values()), progress)),
                    strict=True,
                )
            )
        scored = []
        for number, (pair, row) in enumerate(entries):
            outcome = outcomes.get(number)
            masks = outcome.masks if outcome else {}
            reason = ", ".join(f"{label}: {why}" for label, why in masks.items())
            scored.append(
                Scored(
                    pair.asker.name,
                    pair.chat.name,
                    row["index"],
                    outcome.total if outcome else None,
                    outcome.parts if outcome else {},
                    _failure(row) or reason,
                    row["end_reason"],
                    len(_answers(row)),
                    [{"role": m["role"], "content": m["content"]} for m in row["messages"]],
                    self.openings[row["index"]].intent,
                )
            )
        present = {(s.asker, s.chat, s.opening) for s in scored}
        scored += [
            Scored(pair.asker.name, pair.chat.name, number, None, reason="not_held")
            for pair in self.pairs()
            for number in range(len(self.openings))
            if (pair.asker.name, pair.chat.name, number) not in present
        ]
        return scored

    def _episode(self, pair: _Pair, row: Mapping[str, Any]) -> Episode:
        return ended_episode(
            row["id"],
            row["messages"],
            row["end_reason"],
            self.openings[row["index"]],
            asker=pair.asker.name,
            cut_off=sum(row["finish_reasons"][at] == "length" for at in _answers(row)),
        )

    async def _outcomes(
        self, rewards: Rewards, episodes: Sequence[Episode], progress: Progress
    ) -> list[Outcome]:
        """What each is worth; some are scored at a time, as each batch has its limit of time."""
        outcomes: list[Outcome] = []
        async with rewards:
            for start in range(0, len(episodes), self.block.in_flight):
                progress(start, len(episodes), "conversations rewarded")
                batch = episodes[start : start + self.block.in_flight]
                outcomes += await rewards.score(batch)
        progress(len(episodes), len(episodes), "conversations rewarded")
        return outcomes


def held_out_openings(
    paths: Sequence[Path], block: Against, *, seed: int, intent_column: str | None = None
) -> list[Opening]:
    """Draw the openings, in the order of their ids' hashes, whatever the order of files.

    Raises:
        SourceError: Fewer than two rows can open a conversation.
    """
    openings, skipped = openings_in(paths, intent_column, most_chars=block.max_opening_chars)
    if len(openings) < 2:
        reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.items())
        raise SourceError(
            f"only {len(openings)} of the held-out conversations can open one "
            f"({reasons or 'there are no more'}); give more with --data"
        )
    openings.sort(key=lambda o: hashlib.blake2b(f"{seed}\x1f{o.id}".encode()).digest())
    return openings[: block.openings]


def _answers(row: Mapping[str, Any]) -> list[int]:
    """Positions of the answers."""
    return [at for at, message in enumerate(row["messages"]) if message["role"] == "assistant"]


def _failure(row: Mapping[str, Any]) -> str:
    """Why there is no conversation to reward; empty where there is one."""
    if row["end_reason"] == "error":
        return f"{(row['error'] or {}).get('seat') or 'a seat'}_error"
    if row["end_reason"] in CAPS:
        return str(row["end_reason"])
    return "" if _answers(row) else str(row["end_reason"])


def _rows(out: Path, report: RolloutReport) -> list[Row]:
    import pyarrow.parquet as pq

    return [row for path in report.paths for row in pq.read_table(out / path).to_pylist()]


def _tokens(report: RolloutReport) -> int:
    return sum(sum(counts.values()) for counts in report.tokens.values())


def _finished(folder: Path, openings: int) -> RolloutReport | None:
    """The report of a pair all of whose conversations are held."""
    try:
        report = RolloutReport(**json.loads((folder / "out" / "report.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    whole = report.dialogues == openings and not report.stopped and not report.unfinished
    return report if whole else None


def write(folder: Path, result: CrossTable, scored: Sequence[Scored]) -> list[Path]:
    """Write a table in every form: data, heat map, card section, one line a conversation."""
    from dataclasses import asdict

    lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in scored]
    contents = {
        RESULT: (json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n").encode(),
        PICTURE: picture(result),
        "against.md": section(result).encode(),
        CONVERSATIONS: ("\n".join(lines) + "\n").encode(),
    }
    return write_files(folder, contents)


def write_conversations(scored: Sequence[Scored], folder: Path) -> None:
    """Write conversations that were held, with their rewards, as the parquet files of the split
    ``against``."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("asker", "chat", "intent", "end_reason")]
    fields = [("opening", pa.int32()), *texts]
    with ShardWriter(folder, "against", rewarded_schema(fields)) as shards:
        for entry in scored:
            if entry.messages:
                shards.write(
                    {
                        "id": f"{entry.asker}/{entry.chat}/{entry.opening}",
                        "messages": entry.messages,
                        "opening": entry.opening,
                        **{name: getattr(entry, name) for name, _ in texts},
                        "reward": entry.reward,
                        "rewards": [{"name": k, "value": v} for k, v in entry.parts.items()],
                        "masked": entry.reason,
                    }
                )


def section(result: CrossTable) -> str:
    """The section of a card, as Markdown."""
    heads, rows = table(result)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    body = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
    remarks = "\n".join(f"- {sentence}" for sentence in notes(result))
    return f"{body}\n\n{remarks}\n"
