"""A split without rows has no file, and no card names it, whoever writes it: stock `datasets` loads
none of a config one of whose splits is empty."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support.loading import splits_of
from support.paths import ROOT

from hubkit import preference
from hubkit.data import corpus, curation
from hubkit.errors import StageError
from hubkit.pipeline import against
from hubkit.pipeline.stage import parquet
from hubkit.pipeline.studies import openings
from hubkit.preference import people_pairs
from hubkit.publishing.card_data import CardFacts, Kind
from hubkit.publishing.metadata import configs, configs_by_name
from hubkit.recipe import Corpus, Curate
from hubkit.reinforcement.run import write_conversations


def few_conversations(folder: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    source = folder.with_name("chats.json")
    source.write_text(json.dumps([{"id": "a", "conversations": turns}]))
    block = Corpus.model_validate({"sources": [{"path": "x"}], "openings": 9, "filters": []})
    corpus.build(block, [source], folder, seed=1, few=True)


def curated(folder: Path, least: int) -> None:
    few_conversations(folder.with_name("raw"))
    raw = sorted((folder.with_name("raw") / "data").glob("*.parquet"))
    name = "min_turns"
    block = Curate.model_validate({"filters": [{"name": name, "args": {"human_turns": least}}]})
    curation.curate(block, raw, folder)


WRITERS: dict[str, tuple[Kind, Callable[[Path], None], set[str]]] = {
    "corpus": ("corpus", few_conversations, {"train"}),
    "all dropped": ("dialogues", lambda folder: curated(folder, 5), {"dropped"}),
    "none dropped": ("dialogues", lambda folder: curated(folder, 1), {"train"}),
    "against": ("results", lambda f: against.write_conversations([], f / "data"), set()),
    "reinforced": ("results", lambda f: write_conversations([], f / "data"), set()),
    "openings": ("study", lambda f: openings.write_rows(f, "openings", [], "user"), set()),
    "balance": ("study", lambda f: openings.write_rows(f, "few", [], "opening"), set()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_split_without_rows_has_no_file_and_no_config(tmp_path: Path, name: str) -> None:
    kind, write, named = WRITERS[name]
    folder = tmp_path / "out"
    write(folder)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.parquet"))
    assert all(pq.read_metadata(folder / path).num_rows for path in files)
    assert {re.split(r"[/-]", path)[1] for path in files} == named
    entries: list[Any] = []
    if files:
        facts = CardFacts(kind, "me/made", files=files)
        entries = configs_by_name(files) if kind == "study" else configs(facts)
        card = f"---\n{yaml.safe_dump({'configs': entries})}---\n\n# Made\n"
        (folder / "README.md").write_text(card)
        assert splits_of(folder, tmp_path / "cache")
    assert bool(entries) == bool(named)


def test_what_reads_a_split_without_rows_says_so(tmp_path: Path) -> None:
    class Hub:
        def snapshot(self, ref: object, allow_patterns: list[str]) -> Path:
            return tmp_path

    hub: Any = Hub()
    with pytest.raises(StageError, match="local/chats has no rows in the split 'test'"):
        parquet(hub, "local/chats", "test")  # type: ignore[arg-type]
    assert parquet(hub, "local/chats", "test", may_be_empty=True) == []  # type: ignore[arg-type]
    for pairs in (preference.PreferenceReport(), people_pairs.PeoplePairsReport()):
        with pytest.raises(StageError, match=r"no pair is left of all answers \(cut_off 3\)"):
            preference.require_pairs(pairs.pairs, {"cut_off": 3}, "preference")


PARQUET = {
    "data/parquet.py": "the writer that leaves no empty file",
    "publishing/results_table.py": "a result has numbers",
    "rollout/shards.py": "written when dialogues have ended",
    "sensitive_data/tables.py": "a file again, as it was",
}


def test_only_these_write_parquet() -> None:
    package = ROOT / "hubkit"
    writes = re.compile(r"ParquetWriter\(|pq\.write_table\(")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if writes.search(path.read_text("utf-8"))
    }
    assert found <= PARQUET.keys(), "rows of a dataset go through ShardWriter"
