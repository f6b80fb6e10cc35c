"""Preference pairs for an asker out of existing data: what a person said next, against what
the asker says in the same place.

Takes conversations, the asker's addresses and a recipe's `PeoplePairs` block; gives a preference
dataset in the asker's own view (``prompt``, ``chosen``, ``rejected``). No judge is asked. Two ways
to win without being more like people are guarded against, and reported. *Length*: several turns are
sampled, the one nearest in length to the person's is taken, and a pair that still differs too much
is dropped. *Typos*: a person's turn with many words that no one else writes is dropped, since the
asker would learn to misspell."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from hubkit.conversation import ConversationRow, Message, blank, compact, fault
from hubkit.data.parquet import ShardWriter, read_batches
from hubkit.errors import TrainingError
from hubkit.progress import Progress, silent
from hubkit.recipe import PeoplePairs
from hubkit.serving import ServedModel
from hubkit.serving.client import ClientLimits, ask_all
from hubkit.serving.reply_journal import Journal, JournalSpec
from hubkit.untrusted import JsonObject, text_in

_WORD = re.compile(r"[^\W\d_]{3,}")
View = Callable[[Sequence[Message], str | None], list[Message]]
_FEWEST_WRITERS = 2  # conversations that must use a word for it to be no typo


@dataclass
class PeoplePairsReport:
    """What became of the contexts. ``contexts == pairs + sum(dropped.values())``.

    `length_ratio` is the median of the chosen turn's characters over the rejected one's, as drawn
    first and as `matched`; `unknown_words` the share of words that only one conversation holds, of
    both sides of the pairs.
    """

    contexts: int = 0
    pairs: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    length_ratio: dict[str, float] = field(default_factory=dict)
    unknown_words: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """Plain data for the report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AskerSeat:
    """An asker where it answers, and how it reads a conversation.

    Args:
        model: Where it answers.
        view: A conversation and its intent as the asker reads them.
        intent_column: Where what a conversation's person wants is.
        end_mark: What it says when a conversation is over: no turn that is compared here.
    """

    model: ServedModel
    view: View
    intent_column: str | None = None
    end_mark: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A point at which a person went on: what the asker reads there, and what the person said."""

    key: str
    prompt: list[Message]
    real: str


def build(
    block: PeoplePairs,
    conversations: Sequence[Path],
    out: Path,
    asker: AskerSeat,
    journal: JournalSpec,
    *,
    progress: Progress = silent,
) -> PeoplePairsReport:
    """Make up to ``block.contexts`` pairs and write them to ``out``/data and ``out``/report.json.

    Args:
        block: How many, and how the asker's turns are sampled.
        conversations: Parquet files of people's conversations; those that the asker was trained on.
        out: A folder.
        asker: Who is sampled.
        journal: Where its turns are kept; its seed draws places and turns.
        progress: Told how many turns were sampled.

    Raises:
        TrainingError: No pair is left.
        EndpointError: The asker cannot be asked at all.
    """
    rows = list(_rows(conversations))
    writers: Counter[str] = Counter()
    for row in rows:
        writers.update({w for m in row["messages"] for w in _words(m["content"])})
    places = _places(block, rows, asker, journal.seed)
    jobs = {f"{p.key}/{n}": p.prompt for p in places for n in range(block.samples)}
    report = PeoplePairsReport(contexts=len(places))
    sampling = {"sampling": block.sampling.model_dump()}
    identity = {"seed": journal.seed, **sampling, "provenance": journal.provenance}
    with Journal(journal.folder, identity) as replies:
        waiting = {key: prompt for key, prompt in jobs.items() if key not in replies}
        completed = len(jobs) - len(waiting)

        def step() -> None:
            nonlocal completed
            completed += 1
            progress(completed, len(jobs), "turns of the asker, for pairs with people's")

        if waiting:
            ask_all(
                asker.model.endpoint(
                    sampling=block.sampling,
                    limits=ClientLimits(block.in_flight, block.request_timeout_s),
                    name="asker",
                ),
                waiting,
                replies,
                refused=lambda error: ("", f"refused_{error.status}"),
                seed=journal.seed,
                in_flight=block.in_flight,
                step=step,
            )
        samples = {p.key: [replies[f"{p.key}/{n}"] for n in range(block.samples)] for p in places}
    _write(block, places, samples, writers, asker.end_mark, out, report)
    (out / "report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", "utf-8")
    if not report.pairs:
        raise TrainingError(
            f"none of {report.contexts} contexts gives a pair ({report.dropped or 'none'}); raise "
            "asker.preference.contexts, samples or max_length_ratio, or leave the block out"
        )
    return report


def _rows(conversations: Sequence[Path]) -> Iterator[ConversationRow]:
    for path in conversations:
        for batch in read_batches(path):
            for row in batch.to_pylist():
                messages = compact(row["messages"] or [])
                if fault(messages, first=None) is None:
                    row["messages"] = messages
                    yield row


def _places(
    block: PeoplePairs,
    rows: list[ConversationRow],
    asker: AskerSeat,
    seed: int,
) -> list[Place]:
    """One place a conversation, drawn among the human turns that follow an answer."""
    rows = sorted(rows, key=lambda row: str(row["id"]))
    random.Random(f"{seed}/people").shuffle(rows)
    places: list[Place] = []
    for row in rows:
        if len(places) == block.contexts:
            break
        turns = [m for m in row["messages"] if m["role"] != "system"]
        ends = [
            at
            for at, turn in enumerate(turns)
            if at > 1 and turn["role"] == "user"
            and sum(len(m["content"]) for m in turns[:at]) <= block.context_chars
        ]  # fmt: skip
        intent = text_in(row, asker.intent_column or "") or None
        if not ends or (asker.intent_column and not intent):
            continue
        at = random.Random(f"{seed}/{row['id']}").choice(ends)
        places.append(
            Place(str(row["id"]), asker.view(turns[:at], intent), turns[at]["content"].strip())
        )
    return places


def _write(
    block: PeoplePairs,
    places: Sequence[Place],
    samples: dict[str, list[tuple[str, str]]],
    writers: Counter[str],
    end_mark: str | None,
    out: Path,
    report: PeoplePairsReport,
) -> None:
    dropped: Counter[str] = Counter()
    first_ratios, matched = [], []
    unknown: dict[str, list[float]] = {"chosen": [], "rejected": []}
    with ShardWriter(out / "data", "train", _schema()) as shards:
        for position in places:
            usable = [
                text.strip()
                for text, finish in samples[position.key]
                if finish == "stop" and not blank(text) and not (end_mark and end_mark in text)
            ]
            if not usable:
                dropped["no_usable_sample"] += 1
                continue
            nearest = min(usable, key=lambda text: abs(len(text) - len(position.real)))
            first_ratios.append(len(position.real) / len(usable[0]))
            ratio = len(position.real) / len(nearest)
            shares = (_unknown(position.real, writers), _unknown(nearest, writers, own_uses=0))
            if max(ratio, 1 / ratio) > block.max_length_ratio:
                dropped["lengths_differ"] += 1
            elif shares[0] > block.max_unknown_words:
                dropped["unknown_words"] += 1
            elif nearest.split() == position.real.split():
                dropped["same_as_chosen"] += 1
            else:
                matched.append(ratio)
                unknown["chosen"].append(shares[0])
                unknown["rejected"].append(shares[1])
                shards.write(
                    {
                        "id": position.key,
                        "prompt": position.prompt,
                        "chosen": [{"role": "assistant", "content": position.real}],
                        "rejected": [{"role": "assistant", "content": nearest}],
                    }
                )
    report.pairs, report.dropped = len(matched), dict(dropped)
    if matched:
        report.length_ratio = {
            "drawn": round(median(first_ratios), 3), "matched": round(median(matched), 3)
        }  # fmt: skip
        report.unknown_words = {
            side: round(sum(shares) / len(shares), 4) for side, shares in unknown.items()
        }


def _schema() -> Any:
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    names = ("prompt", "chosen", "rejected")
    return pa.schema([("id", pa.string()), *((name, messages) for name in names)])


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _unknown(text: str, writers: Counter[str], *, own_uses: int = 1) -> float:
    """The share of words that fewer than two other conversations hold; `own_uses` is 1 where `text`
    is itself part of one.
    """
    words = _words(text)
    rare = sum(writers[word] < _FEWEST_WRITERS - 1 + own_uses for word in words)
    return rare / len(words) if words else 0.0
