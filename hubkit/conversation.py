"""What a conversation is, and the seat swap.

A *message* is a dict with ``role`` and ``content``, in the shape that TRL and transformers read. A
conversation is an id, its messages and where it came from. Every package passes this shape on.

The seat swap is the first idea of the toolkit. A conversation has two seats. The chat model sits in
the ``assistant`` seat of `messages`; the asker sits in the same seat of `swap_roles(messages)`: the
human's turns become ``assistant`` (what it writes), the chat model's become ``user`` (what it
reads). In training and on the wire alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict, cast

from hubkit.errors import SchemaError

Role = Literal["system", "user", "assistant", "tool"]
Seat = Literal["user", "assistant"]
FieldPolicy = Literal["keep", "drop", "only_final"]
"""What a recipe does with tool traffic or thinking; `select_fields` says what each word means."""


class ToolFunction(TypedDict):
    """The function that a tool call names; `arguments` is JSON text, as on OpenAI's wire."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One call of a tool in an assistant's turn."""

    type: str
    function: ToolFunction
    id: NotRequired[str]


class Message(TypedDict):
    """One turn: who speaks and what they say. A field without a value is absent, never None.

    `thinking` is a model's reasoning, apart from `content`. `tool_calls` belong to an assistant's
    turn, whose `content` may then be blank; a turn of role ``tool`` holds one result, with the
    `tool_call_id` and the tool's `name` where the source has them. `train` is False where the
    source says that no loss may fall on the turn."""

    role: Role
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    train: NotRequired[bool]


MESSAGE_FIELDS = tuple(Message.__annotations__)
OPTIONAL_FIELDS = MESSAGE_FIELDS[2:]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation between a human (``user``) and a chat model (``assistant``), as recorded:
    never swapped.

    `id` is unique within its dataset; `source` names where it came from; `meta` holds what a reader
    adds, such as ``tools``, the JSON text of the tools' descriptions."""

    id: str
    messages: list[Message]
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def human_turns(self) -> int:
        """Number of ``user`` messages."""
        return sum(m["role"] == "user" for m in self.messages)


class ConversationRow(TypedDict):
    """A row of a dataset of conversations; what other columns it has, `get` gives."""

    id: str
    messages: list[Message]
    source: str


_OTHER_SEAT: dict[str, Role] = {"user": "assistant", "assistant": "user", "system": "system"}
_ROLES = frozenset((*_OTHER_SEAT, "tool"))


def compact(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages as they come out of parquet, without the fields that hold None.

    A parquet column gives every message every field that some message of the file has; templates
    and comparisons take an absent field and a None for different things."""
    return [_compact(message) for message in messages]


def _compact(message: Mapping[str, Any]) -> Message:
    if len(message) == 2 and None not in message.values():  # nearly all
        return cast("Message", message)
    values = {key: value for key, value in message.items() if value is not None}
    if calls := values.get("tool_calls"):
        values["tool_calls"] = [{k: v for k, v in call.items() if v is not None} for call in calls]
    elif calls is not None:
        del values["tool_calls"]
    return cast("Message", values)


def select_fields(
    messages: Iterable[Message], *, tools: FieldPolicy = "keep", thinking: FieldPolicy = "keep"
) -> list[Message]:
    """Keep, drop or reduce tool traffic and thinking.

    Args:
        messages: A conversation as recorded.
        tools: ``keep`` leaves calls and results in. ``drop`` takes both out and joins what the
            assistant says around them into one turn. ``only_final`` leaves, of each answer that
            called tools, only the text after the last result.
        thinking: ``keep`` leaves it in, ``drop`` takes it out, ``only_final`` leaves only that of
            turns after the last human turn.

    Returns:
        New messages. An answer of which no text remains is a blank turn, which `fault` reports."""
    selected = compact(messages)
    if tools != "keep":
        selected = _without_tools(selected, join=tools == "drop")
    if thinking != "keep" and any("thinking" in m for m in selected):
        last = max((i for i, m in enumerate(selected) if m["role"] == "user"), default=-1)
        start = len(selected) if thinking == "drop" else last
        selected = [_without(m, "thinking") if i < start else m for i, m in enumerate(selected)]
    return selected


def _without(message: Message, *names: str) -> Message:
    return cast("Message", {key: value for key, value in message.items() if key not in names})


def _without_tools(messages: list[Message], *, join: bool) -> list[Message]:
    if not any(m["role"] == "tool" or "tool_calls" in m for m in messages):
        return messages
    selected: list[Message] = []
    answer: list[Message] = []  # the assistant's turns of an answer that is still calling tools
    for message in messages:
        if message["role"] == "tool":
            continue
        if answer and message["role"] != "assistant":
            selected.append(_joined(answer, join=join))
            answer = []
        if answer or message.get("tool_calls"):
            answer.append(message)
            if message.get("tool_calls"):
                continue
            selected.append(_joined(answer, join=join))
            answer = []
        else:
            selected.append(message)
    return [*selected, _joined(answer, join=join)] if answer else selected


def _joined(answer: list[Message], *, join: bool) -> Message:
    turns = answer if join else answer[-1:]
    message = _without(turns[-1], "tool_calls", "thinking", "train")
    texts = [m["content"] for m in turns if not blank(m["content"])]
    if not join and "tool_calls" in turns[-1]:
        texts = []  # it ends in a call: there is no final answer
    message["content"] = "\n\n".join(texts)
    if thoughts := [m["thinking"] for m in turns if "thinking" in m]:
        message["thinking"] = "\n\n".join(thoughts)
    if flags := [m["train"] for m in turns if "train" in m]:
        message["train"] = all(flags)
    return message


def swap_roles(messages: Iterable[Message]) -> list[Message]:
    """Swap the seats: ``user`` ↔ ``assistant``; ``system`` stays.

    A seat hears only the other's final words: of the assistant's turns, thinking, tool calls and
    results are left out (`select_fields` with ``only_final``). Without these it is its own inverse.

    Raises:
        SchemaError: A message has an unknown role."""
    swapped: list[Message] = []
    for message in select_fields(messages, tools="only_final"):
        role = _OTHER_SEAT.get(message["role"])
        if role is None:
            raise SchemaError(
                f"role {message['role']!r} is not one of system, user, assistant, tool; "
                "map it before swapping seats",
                reason="unknown_role",
            )
        view: Message = {**message, "role": role}
        swapped.append(_without(view, "thinking") if role == "user" else view)
    return swapped


def filled_in(system: str, name: str, value: str) -> str:
    """Put `value` in place of ``{name}`` in `system`, or after it as a paragraph of its own where
    it has no such place.

    The one way in which an asker is told its intent or persona, in training and in a rollout.

    >>> filled_in("You want: {intent}.", "intent", "bake bread")
    'You want: bake bread.'
    >>> filled_in("Ask.", "intent", "Bake bread.")
    'Ask.\\n\\nBake bread.'
    """
    placeholder = "{" + name + "}"
    if placeholder in system:
        return system.replace(placeholder, value)
    return f"{system}\n\n{value}".strip() if value else system


# White space, and characters without a width: zero-width ones, a byte order mark, a soft hyphen.
_INVISIBLE = (
    "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u200c\u200d\u2060\ufeff\xad"
)


def blank(text: str) -> bool:
    """Whether `text` shows nothing. Some exports hold a zero-width space for an answer that
    failed.
    """
    return not text.strip(_INVISIBLE)


def fault(messages: Sequence[Message], *, first: Seat | None = "user") -> str | None:
    """Find the first reason why `messages` is not a well-formed conversation.

    Well-formed: at least one turn; text content that is not blank; at most one ``system`` message,
    at the start; then strictly alternating ``user`` / ``assistant``. An assistant's turn with
    ``tool_calls`` may be blank; ``tool`` results and a further assistant's turn follow it, or
    nothing.

    Args:
        messages: The conversation.
        first: The seat that starts; None where either may, as in segments of longer conversations.

    Returns:
        None, or the word that readers, trainers and cards count by: ``empty_conversation``,
        ``bad_message``, ``unknown_role``, ``empty_turn``, ``system_not_first``, ``wrong_start``,
        ``roles_not_alternating``, ``tool_result_without_call``, ``tool_call_without_result``,
        ``ends_in_tool_result``."""
    expected: str | None = first
    started = calling = has_result = False
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return "bad_message"
        role = message.get("role")
        if role not in _ROLES:
            return "unknown_role"
        if role == "tool":
            if not calling:
                return "tool_result_without_call"
            has_result = True
            continue
        calls = role == "assistant" and bool(message.get("tool_calls"))
        if not calls and blank(message["content"]):
            return "empty_turn"
        if role == "system":
            if index:
                return "system_not_first"
            continue
        if calling and not has_result:
            return "tool_call_without_result"
        if calling:
            expected = "assistant"
        if expected is not None and role != expected:
            return "roles_not_alternating" if started else "wrong_start"
        expected, started = _OTHER_SEAT[role], True
        calling, has_result = calls, False
    if calling and has_result:
        return "ends_in_tool_result"
    return None if started else "empty_conversation"
