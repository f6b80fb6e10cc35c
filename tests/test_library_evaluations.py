"""Evaluations from Python: what `hubkit eval` and `hubkit stats` print, without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubkit.api.evaluations import (
    ChatModels,
    ChatTest,
    JudgeChoice,
    StatsOptions,
    chat_evaluation,
    dataset_changes,
    dialogue_stats,
    verdict_report,
    vote_report,
    write_verdict_report,
)
from hubkit.errors import SourceError
from hubkit.evaluation import questions
from hubkit.hub import connect

CHECKED = "offline-checks"
NO_TOPICS = StatsOptions(topics=False, size=5)


def parquet(path: Path, texts: list[str]) -> str:
    """Dialogues of one question and one answer."""
    rows: list[dict[str, Any]] = [
        {
            "id": f"d{number}",
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "Yes."},
            ],
        }
        for number, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_recorded_answers_are_checked_by_code(tmp_path: Path) -> None:
    answers = tmp_path / "old-model.jsonl"
    rows = [
        {"question_id": row["question_id"], "choices": [{"turns": ["No."] * len(row["turns"])}]}
        for row in questions.checked()
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = chat_evaluation(
        ChatModels(str(answers)),
        ChatTest(CHECKED, limit=2),
        JudgeChoice("http://127.0.0.1:9"),
        folder=tmp_path / "log",
    )
    assert evaluation.setup.mode == "checks"
    assert evaluation.plan()["answers"] == 0, "they are recorded"


def test_datasets_and_their_versions_are_measured(tmp_path: Path) -> None:
    old = parquet(tmp_path / "old.parquet", ["How do I bake bread?", "Is rye better?"])
    new = parquet(tmp_path / "new.parquet", ["How do I bake bread?", "Is spelt better?"])
    measured = dialogue_stats([old, new], options=NO_TOPICS)
    assert [dataset.dialogues for dataset in measured.report.datasets] == [2, 2]
    assert measured.revisions == {old: None, new: None}
    changes = dataset_changes(old, new)
    assert (changes.rows.same, changes.rows.changed) == (1, 1)
    with pytest.raises(SourceError, match="neither here nor a dataset's name"):
        dialogue_stats(["a//b"], options=NO_TOPICS)


def test_files_without_votes_are_refused(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    votes.write_text("no vote\n")
    with pytest.raises(SourceError, match="there is no vote to report"):
        vote_report([str(votes)])


def test_verdicts_of_files_and_of_datasets_are_reported(tmp_path: Path, hubkit_home: Path) -> None:
    rows = [
        {"question_id": 81 + number, "model": "m", "judge": ["gpt-4", "single-v1"], "turn": 1,
         "user_prompt": "p", "judgment": f"[[{score}]]", "score": score, "tstamp": 1.0}
        for number, score in enumerate([7, 9, 4])
    ]  # fmt: skip
    single = tmp_path / "gpt-4_single.jsonl"
    single.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = tmp_path / "own"
    own.mkdir()
    made = verdict_report([str(single)], exports={"hubkit": own / "verdicts-1.jsonl"})
    paths = write_verdict_report(made, tmp_path / "report")
    assert {path.name for path in paths} == {"report.json", "report.md", "report.png"}
    (score,) = made.tables["gpt-4_single", "gpt-4"].values()
    assert score.mean.value == pytest.approx(20 / 3)
    stored = connect().commit("local/verdicts", own, "Verdicts", repo_type="dataset")
    assert verdict_report([f"verdicts@{stored.revision}"]).tables == made.tables
    with pytest.raises(SourceError, match="neither here nor a dataset's name"):
        verdict_report([str(tmp_path / "missing.jsonl")])
