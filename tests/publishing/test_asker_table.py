"""The table of askers: each figure has its evidence; only what was measured alike is compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.loading import splits_of
from typer import Typer
from typer.testing import CliRunner

from hubkit.cli import askers
from hubkit.errors import SourceError
from hubkit.hub import connect
from hubkit.publishing import asker_table

SETTINGS: dict[str, Any] = {
    "contexts": 40, "contexts_sha256": "c" * 64, "other_contexts": 40, "ends": 12, "openings": 4,
    "context_chars": 500, "sampling": {"temperature": 0.7, "top_p": 1.0, "max_tokens": 40},
    "seed": 3, "resamples": 50, "embedder": None, "hubkit": "0.1.0",
    "data": {"repo_id": "me/corpus", "revision": "d" * 40, "split": "test"},
}  # fmt: skip


def row(name: str, words: float, model: str | None = None) -> dict[str, Any]:
    values = {"words_per_turn": {"value": words, "n": 40, "low": words - 1, "high": words + 1}}
    ref = {"repo_id": model, "repo_type": "model", "revision": "a" * 40} if model else None
    return {"name": name, "model": ref, "values": values, "missing": {}, "counts": {}}


def write(path: Path, *rows: dict[str, Any], **settings: Any) -> Path:
    kinds = {"base as user": "prompted base"}
    card = {"settings": {**SETTINGS, "kinds": kinds, **settings}, "rows": list(rows)}
    path.write_text(json.dumps(card))
    return path


PEOPLE = row("people", 9.0)


def run(*arguments: str) -> Any:
    app = Typer()
    app.command()(askers.askers)
    return CliRunner().invoke(app, list(arguments))


def test_the_scorecard_in_a_run_s_results_is_evidence(tmp_path: Path) -> None:
    settings = {**SETTINGS}
    rows = [PEOPLE, row("asker", 8.0, "me/ask"), row("base as user", 30.0, "me/base")]
    results = {"asker": {}, "scorecard": {"settings": settings, "rows": rows}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    done = run(str(tmp_path / "table"), "--add", str(tmp_path / "results.json"), "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)["rows"]
    assert [(r["asker"], r["kind"]) for r in figures] == [
        ("people", "people"), ("me/ask@aaaaaaaa", "asker"),
        ("me/base@aaaaaaaa (prompted)", "prompted base"),
    ]  # fmt: skip
    evidence = json.loads((tmp_path / "table" / figures[0]["evidence"]).read_text())
    assert evidence == results["scorecard"]


def test_scorecards_of_one_protocol_share_a_table_with_people_once(
    hubkit_home: Path, tmp_path: Path
) -> None:
    first = write(tmp_path / "1.json", PEOPLE, row("ask", 8.0, "me/ask"),
                  row("base as user", 30.0, "me/base"))  # fmt: skip
    second = write(tmp_path / "2.json", PEOPLE, row("other", 12.0, "you/other"))
    table = tmp_path / "table"
    done = run(str(table), "--add", str(first), "--add", str(second), "--push", "table", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [(r["asker"], r["kind"], r["value"]) for r in result["rows"]] == [
        ("people", "people", 9.0),
        ("me/ask@aaaaaaaa", "asker", 8.0),
        ("me/base@aaaaaaaa (prompted)", "prompted base", 30.0),
        ("you/other@aaaaaaaa", "asker", 12.0),
    ]
    for figure in result["rows"]:
        evidence = json.loads((table / figure["evidence"]).read_text())
        assert figure["value"] in {
            value["value"] for r in evidence["rows"] for value in r["values"].values()
        }
    hub = connect()
    pushed = hub.snapshot(hub.resolve(hub.qualify("table"), repo_type="dataset"))
    lines = [json.loads(line) for line in (pushed / "askers.jsonl").read_text().splitlines()]
    assert lines == result["rows"] and (pushed / lines[0]["evidence"]).exists()
    assert splits_of(pushed, tmp_path / "cache")["default", "train"].num_rows == len(lines)
    page = (pushed / "README.md").read_text()
    assert "you/other@aaaaaaaa" in page and page.count("## me/corpus") == 1
    before = sorted(path.name for path in table.rglob("*"))
    assert run(str(table), "--add", str(first)).exit_code == 0, "the same evidence again"
    assert sorted(path.name for path in table.rglob("*")) == before


def test_another_seed_is_another_table(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "1.json", PEOPLE, row("ask", 8.0, "me/ask")),
        write(tmp_path / "2.json", row("people", 7.0), row("ask", 9.0, "me/ask"), seed=4),
    ]
    asker_table.add(tmp_path / "t", files)
    assert {p.card.settings["seed"] for p in asker_table.build(tmp_path / "t")} == {3, 4}


def test_the_same_contexts_of_a_later_commit_are_the_same_table(tmp_path: Path) -> None:
    later = {"data": {**SETTINGS["data"], "revision": "e" * 40}}
    files = [
        write(tmp_path / "1.json", PEOPLE, row("ask", 8.0, "me/ask")),
        write(tmp_path / "2.json", PEOPLE, row("new", 9.0, "me/new"), **later),
        write(tmp_path / "3.json", PEOPLE, row("new", 7.0, "me/new"), contexts_sha256="d" * 64),
    ]
    asker_table.add(tmp_path / "t", files)
    tables = [{row.name for row in p.card.rows} for p in asker_table.build(tmp_path / "t")]
    assert sorted(len(names) for names in tables) == [2, 3], tables
    pictures = {path.name for path in (tmp_path / "t").glob("*.png")}
    for path in (tmp_path / "t" / "evidence").iterdir():
        if "d" * 64 in path.read_text():
            path.unlink()
    asker_table.build(tmp_path / "t")
    left = {path.name for path in (tmp_path / "t").glob("*.png")}
    assert len(pictures) == 2 and len(left) == 1 and left < pictures


def test_a_row_needs_its_evidence_as_it_was_written(tmp_path: Path) -> None:
    table = tmp_path / "t"
    with pytest.raises(SourceError, match="holds no evidence"):
        asker_table.build(table)
    (evidence,) = asker_table.add(
        table, [write(tmp_path / "1.json", PEOPLE, row("ask", 8.0, "me/ask"))]
    )
    asker_table.build(table)
    forged = json.dumps({"asker": "mine", "measure": "words_per_turn", "value": 9.0})
    with (table / "askers.jsonl").open("a") as out:
        out.write(forged + "\n")
    asker_table.build(table)
    assert "mine" not in (table / "askers.jsonl").read_text(), "rows come from evidence alone"
    evidence.write_text(evidence.read_text().replace("8.0", "9.0"))
    with pytest.raises(SourceError, match="was changed after it was added"):
        asker_table.build(table)


@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        ([PEOPLE, row("ask", 9.0, "me/ask")], {}, "has other figures than in"),
        ([row("people", 7.0), row("new", 1.0, "me/new")], {}, "has other figures than in"),
        ([PEOPLE, row("nobody", 1.0)], {}, "has no commit"),
        ([row("ask", 9.0, "me/ask")], {}, "what people are like"),
    ],
)
def test_what_contradicts_or_cannot_be_repeated_is_refused(
    tmp_path: Path, rows: list[Any], settings: dict[str, Any], says: str
) -> None:
    asker_table.add(tmp_path / "t", [write(tmp_path / "1.json", PEOPLE, row("ask", 8.0, "me/ask"))])
    with pytest.raises(SourceError, match=says):
        asker_table.add(tmp_path / "t", [write(tmp_path / "2.json", *rows, **settings)])
    (tmp_path / "3.json").write_text("[]")
    with pytest.raises(SourceError, match="is no scorecard"):
        asker_table.add(tmp_path / "t", [tmp_path / "3.json"])
    old = json.loads((tmp_path / "1.json").read_text())
    del old["settings"]["contexts_sha256"]
    (tmp_path / "4.json").write_text(json.dumps(old))
    with pytest.raises(SourceError, match="written by an older version"):
        asker_table.add(tmp_path / "t", [tmp_path / "4.json"])


def test_the_table_that_ships_is_what_its_evidence_says(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "docs" / "askers"
    shutil.copytree(shipped / "evidence", tmp_path / "evidence")
    protocols = asker_table.build(tmp_path)
    for name in ("askers.jsonl", "README.md"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text(), (
            "run `hubkit askers docs/askers`"
        )
    for protocol in protocols:
        kinds = {entry["kind"] for entry in asker_table.rows(protocol)}
        assert kinds == {"people", "asker", "prompted base"}
    assert len(protocols) > 1
