"""One dialogue under way: what each seat sees, what a turn must be, when it ends. No I/O.

The chat model sees the conversation as it is, the asker sees it from the other seat (`swap_roles`);
both open with their seat's system message where it has one, and neither request ever ends with an
assistant message. What outgrows a seat's window loses its oldest exchanges, never the system
message and never the partner's last turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubkit.conversation import Message, Seat, blank, filled_in, swap_roles
from hubkit.recipe import Rollout, SeatConfig
from hubkit.rollout.plan import Plan

# What a turn must not contain: the marks with which chat templates open turns, and, at the start of
# a line, the label of the dialogue's other speaker. A model that writes them has slipped out of its
# seat.
_MARKS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "[INST]",
    "<|user|>",
    "<|assistant|>",
)
_LABELS = {
    "user": ("Assistant:", "AI:", "### Assistant", "### Response"),
    "assistant": ("User:", "Human:", "### User", "### Human"),
}
_TOKENS_PER_MESSAGE = 6  # headers of a turn, at most, in the usual templates
_ROOM_AFTER_TRIM = 0.75
_CHARS_PER_TOKEN = (
    3.0  # until a server has counted; low, so that the estimate is rather too long than too short
)

Turn = dict[str, Any]
"""A generated turn as the journal keeps it: t (position), seat, content, finish, in, out, cached,
seed, tries, url, at, cut (messages left out of its prompt); closing is true for an asker's last
words, which nobody answers."""


@dataclass(slots=True)
class Dialogue:
    """A dialogue's plan, its generated turns so far, the failed attempts at the turn to come, and
    its end.
    """

    plan: Plan
    turns: list[Turn] = field(default_factory=list)
    tries: list[Turn] = field(default_factory=list)
    end_reason: str = ""
    error: dict[str, Any] | None = None
    ended_at: float = 0.0

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, opening included, unswapped; an asker's closing words are not
        part of it.
        """
        said: list[Message] = list(self.plan.messages)
        said += [
            {"role": turn["seat"], "content": turn["content"]}
            for turn in self.turns
            if not turn.get("closing")
        ]
        return said

    @property
    def human_turns(self) -> int:
        """``user`` messages so far."""
        opening = sum(m["role"] == "user" for m in self.plan.messages)
        return opening + sum(
            1 for turn in self.turns if turn["seat"] == "user" and not turn.get("closing")
        )

    @property
    def seat(self) -> Seat:
        """Whose turn it is."""
        last = (
            self.turns[-1]["seat"]
            if self.turns
            else (self.plan.messages[-1]["role"] if self.plan.messages else "")
        )
        return "assistant" if last == "user" else "user"

    @property
    def position(self) -> int:
        """The position of the turn to come among all of the dialogue's turns, from 0."""
        return len(self.plan.messages) + len(self.turns)

    def add(self, turn: Turn) -> None:
        """A turn has been generated."""
        self.turns.append(turn)
        self.tries.clear()

    def over(self) -> str:
        """Why the dialogue is complete as it stands, or an empty string."""
        if self.turns and self.turns[-1].get("closing"):
            return "end_mark"
        if self.seat == "user" and self.position and self.human_turns >= self.plan.human_turns:
            return "target_turns"
        return ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request sends: `messages`, how many of the dialogue's own were left out, and its
    estimated tokens.
    """

    messages: list[Message]
    cut: int
    tokens: int


def prompt(dialogue: Dialogue, block: Rollout, *, slack: float = 1.0) -> Prompt | None:
    """What the seat to come shall read; None when its window is full (and trimming does not help,
    or is not wanted).

    What was left out once stays out, and a trim makes room for several turns. `slack` below 1 takes
    the window for that much smaller, after a server has refused a prompt as too long."""
    seat = block.asker if dialogue.seat == "user" else block.chat
    said = dialogue.messages
    seen = swap_roles(said) if dialogue.seat == "user" else said
    system = _system(dialogue, seat)
    room = int(seat.context * slack) - seat.sampling.max_tokens
    sizes = _sizes(dialogue)
    cut, total = _as_before(dialogue, sizes, sum(_guess(m["content"]) for m in system))
    if total > room:
        if block.context_full == "end":
            return None
        # More than must be: the next turns then begin with the same messages, and their prefix
        # stays in the cache.
        while total > _ROOM_AFTER_TRIM * room and cut + 2 < len(seen):
            total -= sizes[cut] + sizes[cut + 1]
            cut += 2
        if total > room:
            return None
    return Prompt(system + seen[cut:], cut, total)


def _as_before(dialogue: Dialogue, sizes: list[int], head: int) -> tuple[int, int]:
    """Messages left out of this seat's last prompt, and the tokens of the next one if it leaves out
    the same.

    What the server counted for that last prompt is taken where it said so; the rest is guessed from
    lengths."""
    last = next((turn for turn in reversed(dialogue.turns) if turn["seat"] == dialogue.seat), None)
    if last is None:
        return 0, head + sum(sizes)
    cut = int(last["cut"])
    if last["in"] is None:
        return cut, head + sum(sizes[cut:])
    return cut, int(last["in"]) + sum(sizes[last["t"] :])


def _system(dialogue: Dialogue, seat: SeatConfig) -> list[Message]:
    text = seat.system or ""
    if dialogue.seat == "user":
        for name in ("persona", "intent"):
            text = filled_in(text, name, getattr(dialogue.plan, name))
    return [{"role": "system", "content": text}] if text.strip() else []


def _guess(text: str) -> int:
    return int(len(text) / _CHARS_PER_TOKEN) + _TOKENS_PER_MESSAGE


def _sizes(dialogue: Dialogue) -> list[int]:
    """Tokens of each message, counted by whoever wrote it where a server said so, else guessed from
    its length.
    """
    sizes = [_guess(m["content"]) for m in dialogue.plan.messages]
    for turn in dialogue.turns:
        if not turn.get("closing"):
            counted = turn["out"]
            sizes.append(
                _guess(turn["content"]) if counted is None else counted + _TOKENS_PER_MESSAGE
            )
    return sizes


def revived(row: Mapping[str, Any]) -> Dialogue:
    """The dialogue of a shard's row, to go on with. A human turn that was not answered yet is asked
    for again.
    """
    given = next(
        (n for n, reason in enumerate(row["finish_reasons"]) if reason is not None),
        len(row["messages"]),
    )
    plan = Plan(
        index=row["index"],
        id=row["id"],
        messages=tuple(row["messages"][:given]),
        human_turns=row["target_turns"],
        opening=row["opening"],
        intent=row["intent"] or "",
        persona=row["persona"] or "",
    )
    dialogue = Dialogue(plan)
    for position in range(given, len(row["messages"])):
        said = row["messages"][position]
        dialogue.add(
            {
                "k": "turn", "d": plan.index, "t": position, "seat": said["role"], "content": said["content"],
                "finish": row["finish_reasons"][position], "in": row["prompt_tokens"][position],
                "out": row["completion_tokens"][position], "cached": row["cached_tokens"][position],
                "seed": row["seeds"][position], "tries": row["attempts"][position], "url": None,
                "at": row["created_at"].timestamp(), "cut": row["trimmed"][position],
            }
        )  # fmt: skip
        if row["flaws"][position]:
            dialogue.turns[-1]["flaw"] = row["flaws"][position]
    if row["retries"] and dialogue.turns:
        dialogue.turns[-1]["why"] = list(row["retries"])
    return dialogue


def split_end_mark(text: str, mark: str | None) -> tuple[str, bool]:
    """An asker's turn without its end mark, and whether it had one."""
    if not mark or mark not in text:
        return text.strip(), False
    return text.split(mark, 1)[0].strip(), True


def flaw(dialogue: Dialogue, content: str, finish_reason: str) -> str:
    """What is wrong with a turn: ``empty``, ``role_leak``, ``repeated``, ``cut_off``; or an empty
    string.
    """
    if blank(content):
        return "empty"
    if any(mark in content for mark in _MARKS) or _labelled(content, dialogue.seat):
        return "role_leak"
    if dialogue.seat == "user" and _plain(content) in {
        _plain(m["content"]) for m in dialogue.messages if m["role"] == "user"
    }:
        return "repeated"
    return "cut_off" if finish_reason == "length" else ""


def _labelled(content: str, seat: Seat) -> bool:
    return any(line.startswith(_LABELS[seat]) for line in content.splitlines())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def ended_on_answer(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """`messages` up to the last assistant turn, and the human's unanswered words after it."""
    said = list(messages)
    unanswered = said.pop()["content"] if said and said[-1]["role"] == "user" else ""
    return said, unanswered
