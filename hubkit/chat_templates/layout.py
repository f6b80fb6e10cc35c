"""What stands around the turns of a conversation: the printed form that a base was trained on.

A `Layout` is data. It prints a conversation for either seat as pieces of text, each known to be
either a mark of the layout or a message's content, and to carry loss or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hubkit.conversation import Message, Seat
from hubkit.errors import TemplateError

SystemPlace = Literal["own", "first_user", "last_user"]
OTHER_SEAT: dict[Seat, Seat] = {"user": "assistant", "assistant": "user"}
PREAMBLE_END = "\n\n"
"""Between a system text that is part of no turn and the first turn."""


class Segment(NamedTuple):
    """A piece of printed text: a mark of the layout or a message's words; with loss or without."""

    text: str
    is_mark: bool
    has_loss: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The printed form of a conversation. A turn is header + text + end + gap.

    Attributes:
        prefix: Opens a text without a system message; may hold the base's default system text.
        user: Stands before a human's text.
        user_end: Closes it; the asker learns to write it.
        user_gap: Stands between a human's turn and the next.
        assistant: Stands before a model's text.
        assistant_end: Closes it.
        assistant_gap: Stands between a model's turn and the next.
        prompt: What the base is prompted with for an answer, in place of `assistant`.
        answer: Stands before the last answer of a text, in place of `assistant`.
        answer_end: Closes the last answer, in place of `assistant_end`.
        system_place: A turn of its own, or inside the first or last human turn, before its text.
        system_prefix: Opens a text with a system message, in place of `prefix`.
        system: Around the system text.
        tail: Printed after a last answer and after a last human turn, when no turn is to follow.
        open_user: Nothing closes a last human turn; `user_end` begins the next turn.
        open_answer: Nothing closes a last answer; `assistant_end` begins the next turn.
        takes_system: The base prints system messages; where not, `system` is hubkit's own way.
        thinking: Around the thinking of the last answer, in place of `answer`; None: not printed.
        past_thinking: The same of earlier answers, in place of `assistant`.
        name: The family, or where the layout was derived from."""

    prefix: str
    user: str
    user_end: str
    assistant: str
    assistant_end: str
    user_gap: str = ""
    assistant_gap: str = ""
    prompt: str | None = None
    answer: str | None = None
    answer_end: str | None = None
    system_place: SystemPlace = "own"
    system_prefix: str | None = None
    system: tuple[str, str] = ("", "\n\n")
    tail: tuple[str, str] = ("", "")
    open_user: bool = False
    open_answer: bool = False
    takes_system: bool = True
    thinking: tuple[str, str] | None = None
    past_thinking: tuple[str, str] | None = None
    name: str = ""

    @property
    def last_header(self) -> str:
        """What stands before the last answer."""
        return self.assistant if self.answer is None else self.answer

    @property
    def last_end(self) -> str:
        """What closes the last answer."""
        return self.assistant_end if self.answer_end is None else self.answer_end

    def header(self, speaker: Seat) -> str:
        """What stands before a turn of `speaker` that another turn follows."""
        return self.user if speaker == "user" else self.assistant

    def end(self, seat: Seat) -> str:
        """What `seat` writes to end its turn."""
        return self.user_end if seat == "user" else self.last_end

    def seat_prompt(self, seat: Seat) -> str:
        """What opens a turn that `seat` is to write, without trailing spaces.

        A space before the first word belongs to that word's token in most vocabularies, so it is
        written by the seat, in training and when it is served."""
        if seat == "user":
            return self.user.rstrip(" ")
        closed = [self.last_header, *(self.thinking or ())[:1]]
        if self.prompt is not None and any(header.startswith(self.prompt) for header in closed):
            return self.prompt.rstrip(" ")
        return self.last_header.rstrip(" ")

    def extends(self, seat: Seat, *, system: bool = False) -> bool:
        """Whether a text with one more turn begins with the text before it, for `seat`.

        Where it does not, what a model reads before its second answer is not what it reads of
        the first answer's text: each answer is then a training example of its own."""
        if seat == "user":
            return True
        return (
            self.last_header == self.assistant
            and self.last_end == self.assistant_end
            and self.seat_prompt("assistant") == self.assistant.rstrip(" ")
            and self.thinking == self.past_thinking
            and not (system and self.system_place == "last_user")
        )

    def segments(
        self,
        messages: Sequence[Message],
        seat: Seat,
        *,
        add_generation_prompt: bool = False,
        loss_from: int = 0,
    ) -> list[Segment]:
        """Print `messages`, seen from `seat` (its own turns have the role ``assistant``).

        Args:
            messages: At most one system message, at the start, then turns in any order.
            seat: Who reads and writes.
            add_generation_prompt: Whether the seat's next turn is opened at the end.
            loss_from: Own turns before this index carry no loss.

        Raises:
            TemplateError: A message is none of these."""
        return _Printer(self, seat, add_generation_prompt, loss_from).print(messages)


class _Printer:
    def __init__(self, layout: Layout, seat: Seat, generation: bool, loss_from: int) -> None:
        self.layout, self.seat, self.generation = layout, seat, generation
        self.loss_from = loss_from
        self.segments: list[Segment] = []
        self.closed_by_seat = False

    def mark(self, text: str, *, loss: bool = False) -> None:
        if text:
            self.segments.append(Segment(text, True, loss))

    def words(self, text: str, *, loss: bool = False) -> None:
        if text:
            self.segments.append(Segment(text, False, loss))

    def print(self, messages: Sequence[Message]) -> list[Segment]:
        has_system = bool(messages) and messages[0]["role"] == "system"
        turns = list(messages[1:] if has_system else messages)
        folded = self.head(messages[0]["content"].strip() if has_system else None)
        speakers = [self.speaker(message) for message in turns]
        fold_index = -1
        if folded is not None and "user" in speakers:
            fold_index = speakers.index("user")
            if self.layout.system_place == "last_user":
                fold_index = len(speakers) - 1 - speakers[::-1].index("user")
        for index, (speaker, message) in enumerate(zip(speakers, turns, strict=True)):
            last = index == len(turns) - 1
            system = folded if index == fold_index else None
            loss = (
                message["role"] == "assistant"
                and message.get("train", True)
                and index + has_system >= self.loss_from
            )
            if speaker == "user":
                self.user_turn(message["content"].strip(), system, last=last, loss=loss)
            else:
                self.assistant_turn(message, last=last, loss=loss)
        if self.generation:
            self.mark(self.layout.seat_prompt(self.seat))
        elif turns and not self.closed_by_seat:
            self.mark(self.layout.tail[speakers[-1] == "user"])
        return self.segments

    def speaker(self, message: Message) -> Seat:
        if message["role"] not in ("user", "assistant"):
            raise TemplateError(
                f"a message of role {message['role']!r} at this place cannot be printed: roles are "
                "user and assistant, with at most one system message at the start"
            )
        is_own = message["role"] == "assistant"
        return self.seat if is_own else OTHER_SEAT[self.seat]

    def head(self, system: str | None) -> str | None:
        """Print what opens the text; returns the system text where it goes into a human turn."""
        layout = self.layout
        if not system:
            self.mark(layout.prefix)
            return None
        prefix = layout.prefix if layout.system_prefix is None else layout.system_prefix
        self.mark(prefix)
        if layout.system_place == "own":
            self.mark(layout.system[0])
            self.words(system)
            self.mark(layout.system[1])
            return None
        if self.seat == "user":  # never in the asker's own mouth
            self.words(system)
            self.mark(PREAMBLE_END)
            return None
        return system

    def user_turn(self, text: str, system: str | None, *, last: bool, loss: bool) -> None:
        layout = self.layout
        prompt = layout.seat_prompt("user")
        self.mark(prompt)
        self.mark(layout.user[len(prompt) :], loss=loss)
        if system is not None:
            self.mark(layout.system[0])
            self.words(system)
            self.mark(layout.system[1])
        self.words(text, loss=loss)
        self.close(
            layout.user_end,
            layout.user_gap,
            layout.open_user,
            last=last,
            is_own=self.seat == "user",
            loss=loss,
        )

    def assistant_turn(self, message: Message, *, last: bool, loss: bool) -> None:
        layout = self.layout
        final = last and not self.generation
        header = layout.last_header if final else layout.assistant
        around = layout.thinking if final else layout.past_thinking
        thinking = (message.get("thinking") or "").strip()
        opening = around[0] if thinking and around else header
        prompt = layout.seat_prompt("assistant")
        if not opening.startswith(prompt):
            prompt = opening.rstrip(" ")
        self.mark(prompt)
        self.mark(opening[len(prompt) :], loss=loss)
        if thinking and around:
            self.words(thinking, loss=loss)
            self.mark(around[1], loss=loss)
        self.words(message["content"].strip(), loss=loss)
        end = layout.last_end if final else layout.assistant_end
        self.close(
            end,
            layout.assistant_gap,
            layout.open_answer,
            last=last,
            is_own=self.seat == "assistant",
            loss=loss,
        )

    def close(
        self, end: str, gap: str, is_open: bool, *, last: bool, is_own: bool, loss: bool
    ) -> None:
        """Close a turn. A last turn that the base leaves open is closed only where the seat wrote
        it: that is how it learns to end."""
        left_open = is_open and last and not self.generation
        self.closed_by_seat = left_open and is_own
        if not left_open or is_own:
            self.mark(end, loss=loss)
        if not left_open:
            self.mark(gap)


def text_of(segments: Sequence[Segment]) -> str:
    """The printed text."""
    return "".join(segment.text for segment in segments)
