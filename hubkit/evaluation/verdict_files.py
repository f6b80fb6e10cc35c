"""Verdicts as files: hubkit's own, and those of FastChat, AlpacaEval, inspect-ai and lm-eval, read
and written.

A `VerdictSet` is what one judge said of one model (or of a pair) on one benchmark. All numbers of a
report come from such sets alone, whoever wrote them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hubkit.errors import SourceError
from hubkit.evaluation.aggregate import (
    Checked,
    Compared,
    Outcome,
    Rated,
    difference,
    passes,
    scores,
    wins,
)
from hubkit.evaluation.items import MODES, Mode
from hubkit.evaluation.records import Record, explicit_id, parse
from hubkit.statistics import Bootstrap
from hubkit.untrusted import count_in, list_in, text_in

Row = Rated | Compared | Checked
Format = Literal["hubkit", "fastchat", "alpaca_eval", "lm_eval"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""What verdicts can be written as."""
_KIND = "hubkit/verdict"


@dataclass(frozen=True)
class VerdictSet:
    """Verdicts of `judge` on `model`, in mode ``pairwise`` against `against`, in file order."""

    benchmark: str
    mode: Mode
    model: str
    judge: str
    rows: list[Row]
    against: str = ""

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.model} against {self.against}" if self.against else self.model


def row_of(mode: Mode, record: Mapping[str, Any]) -> Row:
    """The row that `asdict` made `record` from; what it has besides is left out."""
    kinds: dict[Mode, Any] = {
        "single": Rated,
        "pairwise": Compared,
        "criteria": Checked,
        "checks": Checked,
    }
    kind = kinds[mode]
    names = kind.__dataclass_fields__
    row: Row = kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
            if name in names
        }
    )
    return row


def summarised(sets: Sequence[VerdictSet], bootstrap: Bootstrap) -> dict[str, Any]:
    """Aggregate sets of one mode: ``scores`` by model, their ``difference`` where there are two,
    or ``wins``."""
    first = sets[0]
    if first.mode == "pairwise":
        return {"wins": wins([r for r in first.rows if isinstance(r, Compared)], bootstrap)}
    tables = {entry.model: table_of(entry, bootstrap) for entry in sets}
    if len(sets) != 2:
        return {"scores": tables}
    graded: list[Any] = [entry.rows for entry in sets]
    paired, unpaired = difference(graded[0], graded[1], bootstrap)
    return {"scores": tables, "difference": {**paired.to_dict(), "unpaired": unpaired}}


def table_of(verdicts: VerdictSet, bootstrap: Bootstrap) -> Any:
    """Aggregate one set: `Scores`, `Passes` or `Wins`, as its mode is."""
    rows: list[Any] = verdicts.rows
    if verdicts.mode == "pairwise":
        return wins(rows, bootstrap)
    return scores(rows, bootstrap) if verdicts.mode == "single" else passes(rows, bootstrap)


# Reading


def read_verdicts(path: Path) -> list[VerdictSet]:
    """Read the verdicts in a file, whoever wrote it.

    JSON lines of hubkit, FastChat's ``model_judgment`` (single and pairwise), AlpacaEval's
    ``annotations.json``, inspect-ai's logs (``.eval`` and ``.json``) and lm-eval's samples are told
    apart by their content. Of records that repeat a verdict the last one counts, as FastChat's
    appended files have it.

    Raises:
        SourceError: The file cannot be read, or is none of these."""
    if path.suffix == ".eval" or (path.suffix == ".json" and _is_inspect(path)):
        return _inspect(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    records, file = parse(raw, path.name)
    if not records:
        raise SourceError(f"{path.name} holds no verdicts; is it the right file?")
    first = records[0]
    if first.get("kind") == _KIND:
        return _hubkit(records, file["name"])
    if "preference" in first and "output_1" in first:
        return _alpaca_eval(records, file["name"])
    if "judge" in first and ("score" in first or "g1_winner" in first):
        return _fastchat(records, file["name"])
    if "doc_id" in first and "doc" in first:
        return _lm_eval(records, path)
    raise SourceError(
        f"{path.name} holds no verdicts that are known: neither hubkit's, FastChat's judgments, "
        f"AlpacaEval's annotations nor lm-eval's samples; its columns are {', '.join(first)}"
    )


def _hubkit(records: Sequence[Record], name: str) -> list[VerdictSet]:
    groups: dict[tuple[str, ...], dict[tuple[str, int], Row]] = {}
    for number, record in enumerate(records, start=1):
        try:
            keys = ("benchmark", "mode", "model", "judge", "against")
            key = tuple(str(record[column]) for column in keys)
            if key[1] not in MODES:
                raise ValueError(f"mode {key[1]}")
            row = row_of(key[1], record)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{name}, record {number} is not a verdict ({error})") from None
        groups.setdefault(key, {})[row.question, row.turn] = row
    return [
        VerdictSet(key[0], key[1], key[2], key[3], list(rows.values()), key[4])  # type: ignore[arg-type]
        for key, rows in groups.items()
    ]


def _fastchat(records: Sequence[Record], name: str) -> list[VerdictSet]:
    """``{question_id, model, judge: [name, prompt], score, turn}``, -1 where no score was found; or
    ``{question_id, model_1, model_2, g1_winner, g2_winner, judge, turn}``."""
    groups: dict[tuple[str, ...], dict[tuple[str, int], Row]] = {}
    for number, record in enumerate(records, start=1):
        where = f"{name}, record {number}"
        try:
            question, turn = str(record["question_id"]), count_in(record, "turn", 1)
            judge = record["judge"]
            judge = str(judge[0] if isinstance(judge, list) else judge)
            if "score" in record:
                grade = float(str(record["score"]))
                missing = grade == -1
                row: Row = Rated(
                    question=question,
                    category=str(record.get("category", "all")),
                    turn=turn,
                    rating=None if missing else grade,
                    reason="no_verdict" if missing else "",
                )
                key = ("single", str(record["model"]), judge, "")
            else:
                row = _fastchat_pair(record, question, turn)
                key = ("pairwise", str(record["model_1"]), judge, str(record["model_2"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise SourceError(f"{where} is not a judgment of FastChat's ({error!r})") from None
        groups.setdefault(key, {})[question, turn] = row
    return [
        VerdictSet(Path(name).stem, key[0], key[1], key[2], list(rows.values()), key[3])  # type: ignore[arg-type]
        for key, rows in groups.items()
    ]


def _fastchat_pair(record: Record, question: str, turn: int) -> Compared:
    outcomes: dict[str, Outcome] = {"model_1": "win", "model_2": "loss", "tie": "tie"}
    first, second = (outcomes.get(str(record[f"g{game}_winner"])) for game in (1, 2))
    return Compared(
        question=question,
        category=str(record.get("category", "all")),
        turn=turn,
        first=first,
        second=second,
        reasons=() if first and second else ("no_verdict",),
    )


def _alpaca_eval(records: Sequence[Record], name: str) -> list[VerdictSet]:
    """``{instruction, output_1, output_2, generator_1, generator_2, preference, annotator}``: 1 is
    the baseline's output_1, 2 the model's output_2, 1.5 or 0 a draw; asked in one order only."""
    groups: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
    for number, record in enumerate(records, start=1):
        where = f"{name}, record {number}"
        try:
            question = explicit_id(record) or str(record["instruction"])
            preference = record["preference"]
            missing = preference is None or preference != preference
            chance = 0.5 if missing else (float(str(preference)) or 1.5) - 1
            outcome: Outcome | None = None
            if not missing:
                outcome = "tie" if chance == 0.5 else "win" if chance > 0.5 else "loss"
            key = tuple(
                str(record.get(column, default))
                for column, default in (
                    ("generator_2", "model"),
                    ("annotator", ""),
                    ("generator_1", "baseline"),
                )
            )
            row = Compared(
                question=question,
                category=str(record.get("dataset") or "all"),
                turn=1,
                first=outcome,
                second=outcome,
                reasons=("no_verdict",) if missing else (),
                length=len(text_in(record, "output_2")),
                against_length=len(text_in(record, "output_1")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{where} is not an annotation of AlpacaEval's ({error!r})") from None
        groups[key][question] = row
    return [
        VerdictSet("alpaca", "pairwise", key[0], key[1], list(rows.values()), key[2])
        for key, rows in groups.items()
    ]


def _lm_eval(records: Sequence[Record], path: Path) -> list[VerdictSet]:
    """lm-eval's ``samples_TASK_TIME.jsonl``: the first of its ``metrics`` is 1 for right, 0 for
    wrong."""
    metric = next(map(str, list_in(records[0], "metrics")), "")
    if metric is None:
        metrics = [k for k, v in records[0].items() if k in ("acc", "exact_match", "acc_norm")]
        metric = metrics[0] if metrics else None
    if metric is None:
        raise SourceError(f"{path.name} names no metric; is it a samples file of lm-eval's?")
    task = path.stem.removeprefix("samples_").rpartition("_")[0] or path.stem
    rows: dict[str, Row] = {}
    for record in records:
        value = record.get(metric)
        known_value = isinstance(value, int | float)
        rows[str(record["doc_id"])] = Checked(
            question=str(record["doc_id"]),
            category=task,
            turn=1,
            passed=(bool(value),) if known_value else (),
            reason="" if known_value else "no_verdict",
        )
    model = path.parent.name or "model"
    return [VerdictSet(task, "checks", model, metric, list(rows.values()))]


def _is_inspect(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    return b'"eval"' in head and b'"status"' in head


def _inspect(path: Path) -> list[VerdictSet]:
    """An inspect-ai log: hubkit's own rows where its scores carry them, else each sample's first
    score, 1 or ``C`` for right and 0 or ``I`` for wrong."""
    from inspect_ai.log import read_eval_log

    try:
        log = read_eval_log(str(path))
    except Exception as error:  # the library raises what its readers raise
        raise SourceError(f"{path.name} does not read as an inspect-ai log: {error}") from None
    task = log.eval.task.rpartition("/")[2]
    model = str(log.eval.model).removeprefix("hubkit/")
    rows: list[Row] = []
    mode: Mode = "checks"
    for sample in log.samples or []:
        for score in list((sample.scores or {}).values())[:1]:
            row_data = (score.metadata or {}).get("rows")
            if row_data:
                mode = _mode_of(row_data[0])
                rows += [row_of(mode, row) for row in row_data]
            else:
                value = {"C": 1.0, "I": 0.0, "P": 0.5}.get(str(score.value), score.value)
                is_number = isinstance(value, int | float) and value == value
                rows.append(
                    Checked(
                        question=str(sample.id),
                        category=str((sample.metadata or {}).get("category", "all")),
                        turn=1,
                        passed=(bool(value),) if is_number else (),
                        reason="" if is_number else "no_verdict",
                    )
                )
    if not rows:
        raise SourceError(f"{path.name} holds no scored samples (status {log.status})")
    against = "the other model" if mode == "pairwise" else ""
    return [VerdictSet(task, mode, model, "", rows, against)]


def _mode_of(row: Mapping[str, Any]) -> Mode:
    return "single" if "rating" in row else "pairwise" if "first" in row else "criteria"


# Writing


def write_verdicts(
    path: Path, sets: Iterable[VerdictSet], form: Format = "hubkit", *, answers: Any = None
) -> int:
    """Write verdicts to `path` in the form of `form`, and return how many.

    Raises:
        SourceError: The form has no place for this scoring kind."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        records = [record for verdicts in sets for record in _as(verdicts, form)]
        if form == "alpaca_eval":
            file.write(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
            return len(records)
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _as(verdicts: VerdictSet, form: Format) -> list[Record]:
    if form == "hubkit":
        head = {
            "kind": _KIND,
            "benchmark": verdicts.benchmark,
            "mode": verdicts.mode,
            "model": verdicts.model,
            "judge": verdicts.judge,
            "against": verdicts.against,
        }
        return [head | asdict(row) for row in verdicts.rows]
    writers = {
        "fastchat": _as_fastchat,
        "alpaca_eval": _as_alpaca_eval,
        "lm_eval": _as_lm_eval,
    }
    return [writers[form](verdicts, row) for row in verdicts.rows]


def _as_fastchat(verdicts: VerdictSet, row: Row) -> Record:
    head = {"question_id": _number(row.question), "turn": row.turn, "category": row.category}
    if isinstance(row, Rated):
        grade = -1 if row.rating is None else row.rating
        return head | {
            "model": verdicts.model,
            "judge": [verdicts.judge, "single-v1"],
            "score": grade,
        }
    if isinstance(row, Compared):
        names = {"win": "model_1", "loss": "model_2", "tie": "tie", None: "error"}
        return head | {
            "model_1": verdicts.model,
            "model_2": verdicts.against,
            "judge": [verdicts.judge, "pair-v2"],
            "g1_winner": names[row.first],
            "g2_winner": names[row.second],
        }
    raise SourceError("FastChat's judgments have no place for criteria; export as hubkit")


def _as_alpaca_eval(verdicts: VerdictSet, row: Row) -> Record:
    if not isinstance(row, Compared):
        raise SourceError("AlpacaEval's annotations are of pairs alone; export as hubkit")
    points = {"win": 2.0, "tie": 1.5, "loss": 1.0}
    return {
        "instruction": row.question,
        "dataset": row.category,
        "generator_1": verdicts.against,
        "generator_2": verdicts.model,
        "output_1": "",
        "output_2": "",
        "annotator": verdicts.judge,
        "preference": points[row.outcome] if row.outcome else None,
    }


def _as_lm_eval(verdicts: VerdictSet, row: Row) -> Record:
    if not isinstance(row, Checked):
        raise SourceError("lm-eval's samples are right or wrong; export as hubkit or fastchat")
    return {
        "doc_id": row.question,
        "doc": {"id": row.question, "category": row.category},
        "metrics": ["acc"],
        "acc": row.all_passed,
    }


def _number(text: str) -> int | str:
    return int(text) if text.isdigit() else text
