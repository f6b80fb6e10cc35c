"""One dialogue under way: what each seat sees, what a turn must be, when it ends. No I/O.

The chat model sees the conversation as it is, the asker sees it from the other seat (`swap_roles`);
both open with their seat's system message where it has one, and neither request ever ends with an
assistant message. What outgrows a seat's window loses its oldest exchanges, never the system
message and never the partner's last turn."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubkit.conversation import Message, Seat, blank, filled_in, swap_roles
from hubkit.recipe import Rollout, SeatConfig
from hubkit.rollout.plan import Plan
from hubkit.rollout.turns import Turn
from hubkit.serving.client import Reply
from hubkit.tokenization import TOKENS_PER_MESSAGE, prompt_estimate
from hubkit.untrusted import JsonObject

# What a turn must not contain: the marks with which chat templates open turns (these wherever it
# is not known which template is printed, and those of the templates that are), and, at the start of
# a line, the label of the dialogue's other speaker. A model that writes them has left its seat.
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
_SHARE_AFTER_TRIM = 0.75


@dataclass(slots=True)
class Dialogue:
    """A dialogue's plan, its generated turns so far, the failed attempts at the turn to come, and
    its end.
    """

    plan: Plan
    turns: list[Turn] = field(default_factory=list)
    failed_attempts: list[Turn] = field(default_factory=list)
    excused_attempts: int = 0  # of these, the ones that failed by the server's doing
    excuses: int = 0  # how often some were excused
    end_reason: str = ""
    error: JsonObject | None = None
    ended_at: float = 0.0

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, opening included, unswapped; an asker's closing words are not
        part of it.
        """
        messages: list[Message] = list(self.plan.messages)
        messages += [
            {"role": turn.seat, "content": turn.content} for turn in self.turns if not turn.closing
        ]
        return messages

    @property
    def human_turns(self) -> int:
        """``user`` messages so far."""
        opening = sum(m["role"] == "user" for m in self.plan.messages)
        return opening + sum(turn.seat == "user" and not turn.closing for turn in self.turns)

    @property
    def seat(self) -> Seat:
        """Whose turn it is."""
        if self.turns:
            last: str = self.turns[-1].seat
        else:
            last = self.plan.messages[-1]["role"] if self.plan.messages else ""
        return "assistant" if last == "user" else "user"

    @property
    def position(self) -> int:
        """The position of the turn to come among all of the dialogue's turns, from 0."""
        return len(self.plan.messages) + len(self.turns)

    @property
    def counted_attempts(self) -> int:
        """Failed attempts at the turn to come that count against the dialogue."""
        return len(self.failed_attempts) - self.excused_attempts

    @property
    def share(self) -> float:
        """How much of what the plan wants generated is there, up to 1."""
        wanted_turns = 2 * self.plan.human_turns - len(self.plan.messages)
        return min(len(self.turns) / wanted_turns, 1.0) if wanted_turns > 0 else 1.0

    def add(self, turn: Turn) -> None:
        """A turn has been generated."""
        self.turns.append(turn)
        self.failed_attempts.clear()
        self.excused_attempts = self.excuses = 0

    def completion(self) -> str:
        """Why the dialogue is complete as it stands, or an empty string."""
        if self.turns and self.turns[-1].closing:
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
    trimmed: int
    tokens: int


def prompt(
    dialogue: Dialogue, block: Rollout, *, window: int | None = None, more_exchanges: int = 0
) -> Prompt | None:
    """What the next seat reads; None when its window is full and trimming does not help, or is not
    configured.

    What was left out once stays out, and a trim makes room for several turns.

    Args:
        dialogue: The dialogue.
        block: The recipe's block.
        window: Tokens of a sequence as the server states them, where it does.
        more_exchanges: Exchanges to leave out beyond those of the estimate, after a server has
            refused a prompt as too long.
    """
    seat = block.asker if dialogue.seat == "user" else block.chat
    messages = dialogue.messages
    view = swap_roles(messages) if dialogue.seat == "user" else messages
    system = _system(dialogue, seat)
    room, hard_room = _room(seat, window)
    sizes = _sizes(dialogue)
    trimmed, total = _as_before(dialogue, sizes, prompt_estimate(m["content"] for m in system))
    if block.context_full == "end":
        return None if total > room or more_exchanges else Prompt(system + view, trimmed, total)
    target = total if total <= room else int(_SHARE_AFTER_TRIM * room)
    exchanges_left = more_exchanges
    # More than must be: the next turns then begin with the same messages, and their prefix stays in
    # the cache.
    while (total > target or exchanges_left) and trimmed + 2 < len(view):
        total -= sizes[trimmed] + sizes[trimmed + 1]
        trimmed += 2
        exchanges_left = max(0, exchanges_left - 1)
    if exchanges_left or total > hard_room:
        return None
    return Prompt(system + view[trimmed:], trimmed, total)


def _room(seat: SeatConfig, window: int | None) -> tuple[int, int]:
    """Tokens for a prompt: as the server's window allows, and as the recipe's does.

    A server whose window is not larger than the longest answer cuts answers short; then half of it
    is the prompt's."""
    reply_tokens = seat.sampling.max_tokens or seat.context // 4
    room = hard_room = seat.context - reply_tokens
    if window is not None and window < seat.context:
        room = min(room, window - (reply_tokens if reply_tokens < window else window // 2))
    return room, hard_room


def _as_before(dialogue: Dialogue, sizes: list[int], head: int) -> tuple[int, int]:
    """Messages left out of this seat's last prompt, and the tokens of the next one if it leaves out
    the same.

    What the server counted for that last prompt is used where it gave a count; the rest is
    estimated from lengths."""
    last = next((turn for turn in reversed(dialogue.turns) if turn.seat == dialogue.seat), None)
    if last is None:
        return 0, head + sum(sizes)
    if last.prompt_tokens is None:
        return last.trimmed, head + sum(sizes[last.trimmed :])
    return last.trimmed, last.prompt_tokens + sum(sizes[last.position :])


def _system(dialogue: Dialogue, seat: SeatConfig) -> list[Message]:
    text = seat.system or ""
    if dialogue.seat == "user":
        for name in ("persona", "intent"):
            text = filled_in(text, name, getattr(dialogue.plan, name))
    return [{"role": "system", "content": text}] if text.strip() else []


def _sizes(dialogue: Dialogue) -> list[int]:
    """Tokens of each message: as the server counted them, else estimated from its length. Thinking
    is counted by servers, and is not sent back.
    """
    sizes = [prompt_estimate([m["content"]]) for m in dialogue.plan.messages]
    for turn in dialogue.turns:
        if not turn.closing:
            count = turn.completion_tokens
            uncounted = count is None or turn.thinking_chars
            sizes.append(
                prompt_estimate([turn.content]) if uncounted else (count or 0) + TOKENS_PER_MESSAGE
            )
    return sizes


def revived(row: Mapping[str, Any]) -> Dialogue:
    """The dialogue of a shard's row, to resume it. A human turn that was not answered yet is asked
    for again.
    """
    opening = next(
        (n for n, reason in enumerate(row["finish_reasons"]) if reason is not None),
        len(row["messages"]),
    )
    plan = Plan(
        index=row["index"],
        id=row["id"],
        messages=tuple(row["messages"][:opening]),
        human_turns=row["target_turns"],
        opening=row["opening"],
        intent=row["intent"] or "",
        persona=row["persona"] or "",
    )
    dialogue = Dialogue(plan)
    count = len(row["messages"])
    thinking = row.get("thinking") or [None] * count
    models = row.get("models") or [None] * count
    for position in range(opening, count):
        message = row["messages"][position]
        dialogue.add(
            Turn(
                dialogue=plan.index,
                position=position,
                seat=message["role"],
                content=message["content"],
                finish_reason=row["finish_reasons"][position],
                prompt_tokens=row["prompt_tokens"][position],
                completion_tokens=row["completion_tokens"][position],
                cached_tokens=row["cached_tokens"][position],
                seed=row["seeds"][position],
                attempts=row["attempts"][position],
                address=None,
                created_at=row["created_at"].timestamp(),
                trimmed=row["trimmed"][position],
                flaw=row["flaws"][position] or "",
                thinking=thinking[position] or "",
                thinking_chars=len(thinking[position] or ""),
                model=models[position] or "",
            )
        )
    if row["retries"] and dialogue.turns:
        dialogue.turns[-1].earlier_failures = list(row["retries"])
    return dialogue


def split_end_mark(text: str, mark: str | None) -> tuple[str, bool]:
    """An asker's turn without its end mark, and whether it had one."""
    if not mark or mark not in text:
        return text.strip(), False
    return text.split(mark, 1)[0].strip(), True


def turn_of(dialogue: Dialogue, block: Rollout, request: Prompt, reply: Reply, seed: int) -> Turn:
    """An answer of the seat whose turn it is, as a turn that was not judged yet."""
    seat = dialogue.seat
    content, closing = reply.content.strip(), False
    if seat == "user":
        content, closing = split_end_mark(reply.content, block.end_mark)
    return Turn(
        dialogue.plan.index, dialogue.position, seat, content, reply.finish_reason,
        reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens, seed,
        len(dialogue.failed_attempts) + 1, reply.address, round(time.time(), 3), request.trimmed,
        closing=closing,
        thinking="" if block.seats[seat].thinking == "drop" else reply.thinking,
        thinking_chars=len(reply.thinking), model=reply.model,
    )  # fmt: skip


def judge(
    dialogue: Dialogue,
    block: Rollout,
    turn: Turn,
    reply: Reply,
    *,
    marks: Collection[str] = (),
) -> tuple[str, str, bool]:
    """Judge an answer; `marks` are the control tokens that open turns in the seats' templates.

    Returns:
        What is wrong with it (empty: nothing); the end reason of a dialogue whose last attempt it
        is (empty where it is kept all the same); and whether it is to be asked for again.
    """
    problem, end_reason = _problem(dialogue, block, turn, reply, marks)
    retry = end_reason != "" or problem in block.retry_on
    return problem, end_reason, retry and dialogue.counted_attempts < block.retries_per_turn


def _problem(
    dialogue: Dialogue, block: Rollout, turn: Turn, reply: Reply, marks: Collection[str]
) -> tuple[str, str]:
    if turn.closing:
        return "", ""
    if reply.failed:
        return "failed", "failed_turn"
    if reply.refused:
        return "refused", "refusal" if block.refusals == "failure" else ""
    problem = flaw(dialogue, turn.content, reply.finish_reason, marks)
    if problem == "empty":
        return problem, "empty_turn"
    if problem == "repeated" and problem in block.retry_on:
        return problem, "repetition"
    return problem, ""


def flaw(dialogue: Dialogue, content: str, finish_reason: str, marks: Collection[str] = ()) -> str:
    """What is wrong with a turn: ``empty``, ``role_leak``, ``repeated``, ``cut_off``; or an empty
    string.
    """
    if blank(content):
        return "empty"
    if any(mark in content for mark in (*_MARKS, *marks)) or _labelled(content, dialogue.seat):
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
    ending = list(messages)
    unanswered = ending.pop()["content"] if ending and ending[-1]["role"] == "user" else ""
    return ending, unanswered
