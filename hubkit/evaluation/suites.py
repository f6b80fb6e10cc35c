"""Other people's multi-turn tests, read into the one form of `hubkit.evaluation.items`.

Each function takes the records of a test's own file, as its authors publish it, and gives items.
Nothing of theirs is in this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from hubkit.conversation import Message, Role
from hubkit.errors import SourceError
from hubkit.evaluation.items import Check, Criterion, Question
from hubkit.evaluation.records import Record, explicit_id, texts
from hubkit.untrusted import parse_json

Read = Callable[[Sequence[Record], str], list[Question]]

# MT-Bench-101: abilities whose first turn only sets the scene (its `skip_first_tasks`), and those
# that are judged with a reference (`need_ref_tasks`).
_FIRST_TURN_NOT_JUDGED = frozenset({"FR", "CR", "AR", "SA", "SC", "CM"})
_WITH_REFERENCE = frozenset({"MR", "GR"})
# WildBench v2 groups its 12 task tags into 5 categories (its `task_group_new`).
_WILDBENCH_GROUPS = {
    "Information seeking": "Information/Advice seeking",
    "Advice seeking": "Information/Advice seeking",
    "Coding & Debugging": "Coding & Debugging",
    "Reasoning": "Planning & Reasoning",
    "Planning": "Planning & Reasoning",
    "Math": "Math & Data Analysis",
    "Data Analysis": "Math & Data Analysis",
}


def multichallenge(records: Sequence[Record], name: str) -> list[Question]:
    """MultiChallenge (arXiv 2501.17399): a conversation that ends on a user's turn, one yes-or-no
    question about the answer, an axis."""
    questions = []
    for number, record in enumerate(records, start=1):
        where = f"{name}, record {number}"
        row = {key.lower(): value for key, value in record.items()}
        history, last = _split(_field(row, "conversation", where), where)
        criterion = str(row.get("pass_criteria", "YES")).strip().casefold()
        if criterion not in ("yes", "no"):
            raise SourceError(f"{where}: pass_criteria is {criterion!r}, neither YES nor NO")
        passes: Literal["yes", "no"] = "yes" if criterion == "yes" else "no"
        questions.append(
            Question(
                id=str(row.get("question_id", number)),
                category=str(_field(row, "axis", where)),
                turns=(last,),
                messages=history,
                criteria=(Criterion(str(_field(row, "target_question", where)), passes),),
            )
        )
    return questions


def mt_bench_101(records: Sequence[Record], name: str) -> list[Question]:
    """MT-Bench-101 (arXiv 2402.14762): each turn of a dialogue is answered after the recorded turns
    before it and graded; a dialogue counts as its lowest grade."""
    questions = []
    for number, record in enumerate(records, start=1):
        where = f"{name}, record {number}"
        task, turns = str(_field(record, "task", where)), _field(record, "history", where)
        if not isinstance(turns, list) or not all(
            isinstance(t, dict) and isinstance(t.get("user"), str) for t in turns
        ):
            raise SourceError(f"{where}: history must be a list of turns with user and bot")
        dialogue, history = f"{task}/{record.get('id', number)}", list[Message]()
        for index, turn in enumerate(turns):
            if index or task not in _FIRST_TURN_NOT_JUDGED:
                reference = (str(turn.get("bot", "")),) if task in _WITH_REFERENCE else ()
                questions.append(
                    Question(
                        id=f"{dialogue}/{index + 1}",
                        category=task,
                        turns=(turn["user"],),
                        reference=reference,
                        messages=tuple(history),
                        group=dialogue,
                    )
                )
            history += [
                {"role": "user", "content": turn["user"]},
                {"role": "assistant", "content": str(turn.get("bot", ""))},
            ]
    return questions


def wildbench(records: Sequence[Record], name: str) -> list[Question]:
    """WildBench v2 (arXiv 2406.04770): real conversations with a checklist each; the category is
    the group of the primary tag."""
    questions = []
    for number, record in enumerate(records, start=1):
        where = f"{name}, record {number}"
        history, last = _split(_field(record, "conversation_input", where), where)
        tag = str(record.get("primary_tag", "Others"))
        questions.append(
            Question(
                id=explicit_id(record) or str(number),
                category=_WILDBENCH_GROUPS.get(tag, "Creative Tasks"),
                turns=(last,),
                messages=history,
                checklist=texts(record.get("checklist") or [], where, "checklist"),
            )
        )
    return questions


def multi_if(records: Sequence[Record], name: str) -> list[Question]:
    """Multi-IF (arXiv 2410.15553): up to three turns whose instructions are checked by code; the
    category is the language."""
    questions = []
    for number, record in enumerate(records, start=1):
        where = f"{name}, record {number}"
        turns: list[str] = []
        checks: list[tuple[Check, ...]] = []
        for turn in (1, 2, 3):
            prompt = _json(record.get(f"turn_{turn}_prompt"), where)
            if not prompt:
                break
            ids = _json(record.get(f"turn_{turn}_instruction_id_list"), where) or []
            arguments = _json(record.get(f"turn_{turn}_kwargs"), where) or [{}] * len(ids)
            if not isinstance(prompt, dict) or len(ids) != len(arguments):
                raise SourceError(
                    f"{where}: turn_{turn}_prompt must be a message, with as many kwargs as "
                    "instruction ids"
                )
            turns.append(str(prompt["content"]))
            checks.append(
                tuple(
                    Check(f"ifeval:{instruction}", _json(keywords, where) or {})
                    for instruction, keywords in zip(ids, arguments, strict=True)
                )
            )
        questions.append(
            Question(
                id=str(record.get("key", number)),
                category=str(record.get("language") or "all"),
                turns=tuple(turns),
                checks=tuple(checks),
            )
        )
    return questions


def lost_in_conversation(records: Sequence[Record], name: str) -> list[Question]:
    """Lost in Conversation (arXiv 2505.06120), its math tasks: one instruction three times, whole
    (``full``), as a list of its parts (``concat``), and revealed part by part (``sharded``)."""
    questions: list[Question] = []
    for number, record in enumerate(records, start=1):
        if record.get("task") != "math":
            continue  # the others are scored by running code, databases and other judges
        where = f"{name}, record {number}"
        shards = [
            str(s["shard"]) if isinstance(s, dict) else str(s)
            for s in _field(record, "shards", where)
        ]
        whole = str(_field(record, "question", where))
        numeric = str(_field(record, "answer", where)).rpartition("####")[2].strip()
        check = Check("number", {"value": numeric})
        task = str(record.get("task_id", number))
        listed = "\n".join(f"- {shard}" for shard in shards)
        conditions = {
            "full": (whole,),
            "concat": (f"Take all of these into account and answer:\n{listed}",),
            "sharded": tuple(shards),
        }
        questions += [
            Question(
                id=f"{task}/{condition}",
                category=condition,
                turns=turns,
                checks=(*((),) * (len(turns) - 1), (check,)),
                revealed=condition == "sharded",
            )
            for condition, turns in conditions.items()
        ]
    if not questions:
        raise SourceError(
            f"{name} holds no tasks of the kind math; the others are scored by running code, which "
            "hubkit does not do"
        )
    return questions


def _field(record: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in record:
        raise SourceError(f"{where} has no column {column!r}, only {', '.join(map(str, record))}")
    return record[column]


def _json(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value) if value.strip() else None
    except ValueError as error:
        raise SourceError(f"{where}: {value[:60]!r} is not JSON ({error})") from None


_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}


def _split(conversation: Any, where: str) -> tuple[tuple[Message, ...], str]:
    """A conversation's messages before its last, and the last one's text,
    which must be a user's."""
    conversation = _json(conversation, where)
    if not isinstance(conversation, list) or not all(isinstance(m, dict) for m in conversation):
        raise SourceError(f"{where}: the conversation must be a list of messages")
    messages: list[Message] = []
    for message in conversation:
        role, content = _ROLES.get(str(message.get("role"))), message.get("content")
        if role is None or not isinstance(content, str):
            raise SourceError(f"{where}: a message needs a role and content")
        messages.append({"role": role, "content": content})
    if not messages or messages[-1]["role"] != "user":
        raise SourceError(f"{where}: the conversation must end on a user's turn")
    return tuple(messages[:-1]), messages[-1]["content"]
