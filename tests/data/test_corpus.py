"""The corpus: any file people have, read to its last whole conversation; nothing lost in silence;
splits that hold.
"""

from __future__ import annotations

import datetime
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets import load_dataset

from hubkit.data.corpus import CorpusReport, FileReport, SourceFile, build, read
from hubkit.data.intents import first_sentence, keywords
from hubkit.errors import SourceError, StageError
from hubkit.recipe import Columns, Corpus, Filter, Intents, Source


def sharegpt(number: int, turns: int = 4, name: str | None = None) -> dict[str, Any]:
    """A ShareGPT row in readable English, different for every `number`."""
    said = [
        f"Question {number}.{t}: how does part {t} of machine {number} work?" for t in range(turns)
    ]
    roles = ("human", "gpt")
    return {
        "id": name or f"id{number:04d}_0",
        "conversations": [{"from": roles[t % 2], "value": text} for t, text in enumerate(said)],
    }


def two_parts(number: int) -> list[dict[str, Any]]:
    """A conversation cut into two rows, with the answer at the cut in both."""
    turns = sharegpt(number, turns=7)["conversations"]
    return [
        {"id": f"id{number}_0", "conversations": turns[:4]},
        {"id": f"id{number}_3", "conversations": turns[3:]},
    ]


def corpus(
    path: Path, out: Path, *, filters: list[Filter] | None = None, seed: int = 1, **keys: Any
) -> CorpusReport:
    block = Corpus(
        sources=[Source(path=str(path))],
        filters=filters or [],
        **{"openings": 5, "test": 5, **keys},
    )
    return build(block, [path], out, seed=seed)


def written(path: Path, rows: list[dict[str, Any]], cut: int | None = None) -> Path:
    path.write_bytes(json.dumps(rows, indent=2).encode()[:cut])
    return path


def load(path: Path) -> tuple[list[str], FileReport]:
    report = FileReport(path.name, "", 0)
    return [c.id for c in read(path, report=report)], report


def ids(out: Path, split: str) -> list[str]:
    return [
        i
        for p in sorted((out / "data").glob(f"{split}-*"))
        for i in pq.read_table(p).column("id").to_pylist()
    ]


def test_a_cut_off_array_gives_every_whole_conversation_and_names_the_lost_one(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "x.json", [sharegpt(i) for i in range(50)], cut=-300)
    found, report = load(path)
    assert len(found) == 49
    assert report.rows == 50 and report.cut_off_at == "after row 49"
    assert report.unreadable["cut_off"].examples == ["id0049_0"]
    assert 0 < report.lost_bytes < 1500


@pytest.mark.parametrize("cut", [1, 2, 7, 30, 100, 333, 900])
def test_wherever_the_cut_is_rows_before_it_are_whole(tmp_path: Path, cut: int) -> None:
    rows = [sharegpt(i) for i in range(8)]
    whole = json.dumps(rows).encode()
    path = tmp_path / "x.json"
    path.write_bytes(whole[: len(whole) - cut])
    found, report = load(path)
    assert found == [r["id"] for r in rows][: len(found)]
    assert sum(t.count for t in report.unreadable.values()) == 1
    assert len(found) >= 8 - 1 - cut // 300


def test_layouts_people_have(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": "a"},
    ]
    tree = {"role": "prompter", "text": "q", "replies": [
        {"role": "assistant", "text": "worse", "rank": 1, "replies": []},
        {"role": "assistant", "text": "a", "rank": 0, "replies": []},
    ]}  # fmt: skip
    layouts = {
        "sharegpt": {
            "id": "1",
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        },
        "export": {
            "id": "1",
            "items": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "<p>a</p>", "markdown": "a"},
            ],
        },
        "messages": {"messages": turns},
        "parts": {"messages": parts},
        "wildchat": {"conversation_hash": "h", "language": "English", "conversation": turns},
        "lmsys": {"conversation_id": "c", "model": "vicuna", "conversation": turns},
        "ultrachat": {"id": "1", "data": ["q", "a"]},
        "tree": {"message_tree_id": "t", "prompt": tree},
    }
    for name, row in layouts.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        (conversation,) = read(path)
        assert conversation.messages == turns, name


def test_containers_are_told_apart_by_content(tmp_path: Path) -> None:
    rows = [sharegpt(i) for i in range(5)]
    lines = "".join(json.dumps(r) + "\n" for r in rows).encode()
    array = json.dumps(rows).encode()
    spread = "\n".join(json.dumps(r, indent=2) for r in rows).encode()
    stored = {
        "a": lines, "b": array, "c": b"\xef\xbb\xbf\n " + array, "d": spread,
        "e": gzip.compress(lines),
        "f": gzip.compress(array[:400]) + gzip.compress(array[400:]),
        "g": zstandard.compress(array),
        "h": lines.rstrip(), "i": zstandard.compress(lines[:500]) + zstandard.compress(lines[500:]),
    }  # fmt: skip
    for name, data in stored.items():
        (tmp_path / name).write_bytes(data)
        found, report = load(tmp_path / name)
        assert (len(found), report.unreadable) == (5, {}), name


def test_parquet_in_and_a_cut_off_parquet(tmp_path: Path) -> None:
    import pyarrow as pa

    rows = [
        {"conversation_hash": f"h{i}", "conversation": [{"role": "user", "content": "q"}]}
        for i in range(3)
    ]
    path = tmp_path / "w.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert load(path)[0] == ["h0", "h1", "h2"]
    path.write_bytes(path.read_bytes()[:-20])
    found, report = load(path)
    assert found == [] and report.unreadable["cut_off"].count == 1


@pytest.mark.parametrize("packed", [gzip.compress, zstandard.compress])
def test_a_cut_off_packed_file_keeps_what_came_before(tmp_path: Path, packed: Any) -> None:
    import random

    noise = random.Random(0)
    rows = [sharegpt(i) | {"pad": noise.randbytes(3000).hex()} for i in range(200)]
    data = packed("".join(json.dumps(r) + "\n" for r in rows).encode())
    path = tmp_path / "x.gz"
    path.write_bytes(data[: len(data) // 2])
    found, report = load(path)
    assert 20 < len(found) < 180 and found == [r["id"] for r in rows][: len(found)]
    assert sum(t.count for t in report.unreadable.values()) == 1


def test_two_rows_with_the_same_defect_give_one_line_with_count_two(tmp_path: Path) -> None:
    rows: list[Any] = [sharegpt(i) for i in range(1002)]
    rows[1] = {"id": "bad1", "conversations": [{"from": "human"}]}
    rows[1001] = {"id": "bad2", "conversations": [{"from": "human", "value": None}]}
    rows[500] = {"id": "odd", "conversations": [{"from": "alien", "value": "x"}]}
    rows[501] = ["no", "object"]
    found, report = load(written(tmp_path / "x.json", rows))
    assert len(found) == 998
    told = {reason: tally.to_dict() for reason, tally in report.unreadable.items()}
    assert told["turn_without_text"] == {"count": 2, "examples": ["bad1", "bad2"]}
    assert told["unknown_role"]["examples"] == ["odd"]
    assert told["not_an_object"] == {"count": 1, "examples": ["x.json:row 502"]}


def test_parts_of_one_conversation_are_joined_where_they_fit(tmp_path: Path) -> None:
    whole = sharegpt(1, turns=10, name="abc_0")
    turns = whole["conversations"]
    rows = [
        {"id": "abc_0", "conversations": turns[:4]},
        {"id": "abc_3", "conversations": turns[3:7]},  # overlaps by the answer at the cut
        {"id": "abc_7", "conversations": turns[7:]},  # meets it
        {"id": "abc_30", "conversations": turns[:2]},  # a gap before it
        *(sharegpt(i) for i in range(2, 30)),
    ]
    report = corpus(written(tmp_path / "x.json", rows), tmp_path / "out", join_parts=True)
    assert report.joined == 2 and report.rows_read == 32 and report.kept + report.dropped == 30
    assert report.human_turns["5"] == 1


def test_parts_that_disagree_stay_apart(tmp_path: Path) -> None:
    turns = sharegpt(1, turns=8)["conversations"]
    other = [{**turns[3], "value": "another answer"}, *turns[4:]]
    rows = [{"id": "abc_0", "conversations": turns[:4]}, {"id": "abc_3", "conversations": other}]
    rows += [sharegpt(i) for i in range(2, 30)]
    report = corpus(written(tmp_path / "x.json", rows), tmp_path / "out", join_parts=True)
    assert report.joined == 0 and report.rows_read == report.kept + report.dropped == 30


def test_rows_in_are_kept_dropped_or_unreadable_and_the_report_says_so(tmp_path: Path) -> None:
    rows = [sharegpt(i) for i in range(40)] + [
        sharegpt(5, name="again_0"),
        sharegpt(90, turns=1),
        {"id": "no"},
    ]
    filters = [Filter(name="min_turns", args={"human_turns": 2}), Filter(name="exact_duplicates")]
    report = corpus(written(tmp_path / "x.json", rows, cut=-1), tmp_path / "out", filters=filters)
    assert (report.rows_read, report.kept, report.dropped, report.unreadable) == (44, 40, 2, 2)
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["steps"][1]["dropped"] == {
        "exact_duplicate": {"count": 1, "examples": ["again_0"]}
    }
    assert stored["splits"] == {"train": 30, "openings": 5, "test": 5}


def test_stock_datasets_reads_the_shards(tmp_path: Path) -> None:
    corpus(written(tmp_path / "x.json", [sharegpt(i) for i in range(30)]), tmp_path / "out")
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {
        "train": 20,
        "openings": 5,
        "test": 5,
    }
    assert loaded["train"].column_names == ["id", "messages", "source"]
    assert loaded["train"][0]["messages"][0]["role"] == "user"


def test_a_conversation_never_straddles_splits(tmp_path: Path) -> None:
    prompt = "Act as a very particular kind of assistant and answer everything in rhyme, please."
    rows = [row for i in range(60) for row in two_parts(i)]
    for i in range(0, 120, 30):
        rows[i]["conversations"][0]["value"] = prompt
    corpus(written(tmp_path / "x.json", rows), tmp_path / "out", openings=10, test=10)
    where: dict[str, set[str]] = {}
    for split in ("train", "openings", "test"):
        for name in ids(tmp_path / "out", split):
            where.setdefault(name.split("_")[0], set()).add(split)
    assert len(where) > 50 and all(len(splits) == 1 for splits in where.values())
    pasted = {split for i in range(0, 120, 30) for split in where[f"id{i // 2}"]}
    assert len(pasted) == 1, "conversations with the same long opening go together"


def test_openings_are_real_starts(tmp_path: Path) -> None:
    rows = [row for i in range(30) for row in two_parts(i)]
    corpus(written(tmp_path / "x.json", rows), tmp_path / "out")
    assert all(name.endswith("_0") for name in ids(tmp_path / "out", "openings"))


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_numbered_ids_of_strangers_prove_nothing(tmp_path: Path, join: bool, step: int) -> None:
    rows = [sharegpt(i, turns=2, name=f"identity_{i * step}") for i in range(300)]
    report = corpus(written(tmp_path / "x.json", rows), tmp_path / "out", join_parts=join)
    assert (report.kept, report.joined, report.splits["openings"]) == (300, 0, 5)
    assert report.human_turns == {"1": 300}


def test_one_group_of_nearly_all_rows_is_named(tmp_path: Path) -> None:
    rows = [sharegpt(i, name="same") for i in range(40)] + [sharegpt(99)]
    with pytest.raises(StageError, match=r"40 rows share the id or prefix 'same'"):
        corpus(written(tmp_path / "x.json", rows), tmp_path / "out")
    for row in rows:
        row["id"], row["conversations"][0]["value"] = f"id{id(row)}", "A prompt that travels. " * 9
    with pytest.raises(StageError, match=r"41 rows begin with the same words"):
        corpus(written(tmp_path / "x.json", rows), tmp_path / "out")


def test_one_person_of_nearly_all_rows_is_named(tmp_path: Path) -> None:
    rows = [{**sharegpt(i), "who": "ann" if i else "bob"} for i in range(41)]
    path = written(tmp_path / "x.json", rows)
    source = {"path": str(path), "columns": {"person": "who"}}
    block = Corpus.model_validate({"sources": [source], "openings": 5, "test": 3})
    with pytest.raises(StageError, match=r"40 rows are one person's, so they go to one split"):
        build(block, [path], tmp_path / "out", seed=1)


def test_splits_depend_on_seed_and_content_not_on_order(tmp_path: Path) -> None:
    rows = [sharegpt(i) for i in range(60)]
    corpus(written(tmp_path / "x.json", rows), tmp_path / "a")
    corpus(written(tmp_path / "y.json", rows[::-1]), tmp_path / "b")
    corpus(tmp_path / "x.json", tmp_path / "c", seed=2)
    test = set(ids(tmp_path / "a", "test"))
    assert set(ids(tmp_path / "b", "test")) == test != set(ids(tmp_path / "c", "test"))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", [sharegpt(i) for i in range(30)])
    for out in ("a", "b"):
        corpus(path, tmp_path / out)
    for shard in (tmp_path / "a" / "data").iterdir():
        assert shard.read_bytes() == (tmp_path / "b" / "data" / shard.name).read_bytes()


def test_doubled_ids_are_made_unique_and_counted(tmp_path: Path) -> None:
    rows = [sharegpt(i) for i in range(30)] + [sharegpt(99, name="id0003_0")]
    report = corpus(written(tmp_path / "x.json", rows), tmp_path / "out")
    everything = [
        name for split in ("train", "openings", "test") for name in ids(tmp_path / "out", split)
    ]
    assert report.renamed == 1 and len(set(everything)) == 31 and "id0003_0-2" in everything


def test_half_a_surrogate_pair_does_not_stop_the_dataset(tmp_path: Path) -> None:
    rows = [sharegpt(i) for i in range(20)]
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps(rows).replace("Question 7.0", "Question \\\\ud83d 7.0".replace("\\\\", "\\"))
    )
    report = corpus(path, tmp_path / "out")
    assert report.rows_read == report.kept + report.unreadable


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.json does not exist"):
        corpus(tmp_path / "gone.json", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no"):
        corpus(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(StageError, match=r"8 conversations are left .* lower corpus\.openings"):
        corpus(written(tmp_path / "x.json", [sharegpt(i) for i in range(8)]), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.part*"))
    (tmp_path / "nothing.json").write_bytes(b"")
    with pytest.raises(SourceError, match="holds no rows"):
        corpus(tmp_path / "nothing.json", tmp_path / "out")


def test_limit_stops_reading_and_still_balances(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"a{i // 3}_{i % 3 * 2}",
            "conversations": sharegpt(i // 3, 7)["conversations"][i % 3 * 2 : i % 3 * 2 + 3],
        }
        for i in range(90)
    ]
    report = corpus(written(tmp_path / "x.json", rows), tmp_path / "out", limit=40, join_parts=True)
    assert report.rows_read == 40 and report.kept == 14


def test_a_parquet_row_that_is_no_text_costs_that_row_and_a_broken_page_its_group(
    tmp_path: Path,
) -> None:
    texts = [f"hello {i}".encode() for i in range(1000)]
    roles = pa.array(["user"] * 1000)

    def table(texts: list[bytes]) -> pa.Table:
        turns = pa.StructArray.from_arrays(
            [roles, pa.array(texts, pa.binary()).view(pa.string())], ["role", "content"]
        )
        lists = pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), turns)
        return pa.table({"id": [f"c{i}" for i in range(1000)], "messages": lists})

    def look(path: Path) -> tuple[int, dict[str, int], int]:
        report = FileReport(path.name, "", 0)
        found = sum(1 for _ in read(path, report=report))
        assert report.rows == found + sum(tally.count for tally in report.unreadable.values())
        return (
            found,
            {reason: tally.count for reason, tally in report.unreadable.items()},
            report.lost_bytes,
        )

    bad = tmp_path / "bad.parquet"
    pq.write_table(table([*texts[:5], b"\xff\xfe", *texts[6:]]), bad, row_group_size=250)
    assert look(bad)[:2] == (999, {"broken_row": 1})

    pq.write_table(table(texts), bad, row_group_size=250, compression="zstd")
    at = pq.ParquetFile(bad).metadata.row_group(1).column(2).data_page_offset
    data = bytearray(bad.read_bytes())
    data[at + 30 : at + 60] = bytes(byte ^ 0xFF for byte in data[at + 30 : at + 60])
    bad.write_bytes(data)
    found, why, lost = look(bad)
    assert (found, why) == (750, {"broken_parquet": 1}) and lost > 0


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8"])
def test_files_that_windows_writes(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(
        f"\ufeff{json.dumps([sharegpt(i) for i in range(40)], indent=1)}".encode(encoding)
    )
    assert corpus(path, tmp_path / "out").rows_read == 40


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"PK\x03\x04", "zip_archive"),
        (b"BZh9", "bzip2_file"),
        (b"\xfd7zXZ", "xz_file"),
        (b"ARROW1", "broken_arrow"),
        (b"SQLite format 3\0", "sqlite_database"),
    ],
)
def test_a_container_that_is_not_read_is_named(tmp_path: Path, head: bytes, reason: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(head + b"\n" * 100)
    report = FileReport(path.name, "", 0)
    assert list(read(path, report=report)) == [] and list(report.unreadable) == [reason]
    assert report.rows == 1 and report.lost_bytes == path.stat().st_size


def test_too_few_rows_for_the_splits_can_still_be_looked_at(tmp_path: Path) -> None:
    block = Corpus.model_validate(
        {"sources": [{"path": "x"}], "openings": 4, "test": 4, "filters": []}
    )
    path = written(tmp_path / "x.json", [sharegpt(i) for i in range(3)])
    report = build(block, [path], tmp_path / "out", seed=1, few=True)
    assert report.splits == {"train": 3, "openings": 0, "test": 0}


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_packed_file_cut_at_the_end_of_a_line_still_says_so(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "x"
    packed = pack((json.dumps(sharegpt(0)) + "\n").encode())
    path.write_bytes(packed + pack(b"\n" * 100_000)[:-1])
    found, report = load(path)
    assert len(found) == 1 and report.unreadable["cut_off"].count == 1


def test_workers_change_nothing_but_the_time(tmp_path: Path) -> None:
    rows = [sharegpt(i, turns=2 + i % 5) for i in range(700)] + [sharegpt(3), {"id": "bad"}]
    rows[9]["conversations"][0]["value"] = (
        "write to jane.doe@university.edu, and mind the ünicode \U0001f600"
    )
    path = written(tmp_path / "x.json", rows)
    names = [
        "clean_text",
        "alternate_roles",
        "english",
        "personal_data",
        "exact_duplicates",
        "near_duplicates",
        "min_turns",
    ]
    block = Corpus(
        sources=[Source(path="chats.jsonl")],
        filters=[Filter(name=n) for n in names],
        openings=20,
        test=20,
    )
    reports = []
    for workers in (0, 3):
        report = build(block, [path], tmp_path / str(workers), seed=1, workers=workers).to_dict()
        del report["seconds"]
        reports.append(report)
    assert reports[0] == reports[1] and reports[0]["steps"][-2]["dropped"]
    for shard in (tmp_path / "0" / "data").iterdir():
        assert shard.read_bytes() == (tmp_path / "3" / "data" / shard.name).read_bytes()


def test_a_worker_that_dies_is_an_error_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubkit.data.filters import parallel

    started = parallel._Worker.__init__

    def start_and_kill(self: Any, *args: Any) -> None:
        started(self, *args)
        self._process.kill()

    monkeypatch.setattr(parallel._Worker, "__init__", start_and_kill)
    block = Corpus(
        sources=[Source(path="chats.jsonl")],
        filters=[Filter(name="clean_text")],
        openings=1,
        test=1,
    )
    with pytest.raises(StageError, match=r"exit status -9"):
        build(
            block,
            [written(tmp_path / "x.json", [sharegpt(i) for i in range(9)])],
            tmp_path / "o",
            seed=1,
            workers=2,
        )


@pytest.mark.parametrize("when", ["before it said anything", "in a line", "before it read"])
def test_a_worker_whose_parent_is_gone_ends_without_a_word(when: str) -> None:
    settings = {"front": [["clean_text", {}]], "comparing": [], "tokenizer": None,
                "questions": {}, "plugins": [], "turn_marks": []}  # fmt: skip
    chunk = [["a", [{"role": "user", "content": "Why?"}], "x", {}]]
    said = "\n".join([json.dumps(settings), json.dumps(chunk), ""]).encode()
    given = {"before it said anything": b"", "in a line": said[:-9], "before it read": said}[when]
    process = subprocess.Popen(
        [sys.executable, "-m", "hubkit.data.filters.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(given)
    process.stdin.close()
    assert (process.wait(timeout=240), process.stderr.read()) == (0, b"")


def test_segments_of_one_conversation_count_as_one(tmp_path: Path) -> None:
    rows = [
        sharegpt(i) | {"id": name}
        for i, name in enumerate(["a", "a#2", "a#3", *(f"b{n}" for n in range(20))])
    ]
    report = corpus(written(tmp_path / "x.json", rows), tmp_path / "out", filters=[])
    assert report.steps[-1].rows_out == 23 and report.steps[-1].conversations_out == 21


@pytest.mark.parametrize("workers", [0, 2])
def test_the_bar_counts_what_is_cleaned_not_what_is_read(tmp_path: Path, workers: int) -> None:
    told: list[tuple[float, float | None, str]] = []
    file = written(tmp_path / "many.json", [sharegpt(number, 40) for number in range(2000)])
    chain = [Filter(name="exact_duplicates")]
    block = Corpus(sources=[Source(path=str(file))], filters=chain, openings=5, test=5)
    report = build(
        block,
        [file],
        tmp_path / "out",
        seed=7,
        workers=workers,
        progress=lambda done, total=None, note="": told.append((done, total, note)),
    )
    counted = [call for call in told if call[1] is not None]
    assert [done for done, _, _ in counted] == sorted(done for done, _, _ in counted)
    assert counted[-1][0] == counted[-1][1] and counted[-1][2] == "kB cleaned · 2,000 rows"
    assert all("cleaned" in note for done, _, note in counted if done)
    assert told[-1][1] is None and report.kept == 2000, "what comes then has no count"


def wildchat(path: Path, people: int, chats: int) -> Path:
    """A parquet file in the shape of WildChat: `chats` conversations of each of `people`."""
    when = datetime.datetime(2023, 4, 9, tzinfo=datetime.UTC)
    plain: dict[str, Any] = {"language": "English", "toxic": False, "redacted": False}
    rows = []
    for number in range(people * chats):
        place = {"country": "Norway", "state": None, "hashed_ip": f"{number % people:064x}"}
        turns = [
            {"role": role, "content": f"{word} {number}", **plain, **place, "header": None,
             "timestamp": when if role == "assistant" else None, "turn_identifier": number}
            for role, word in (("user", "What is"), ("assistant", "A number,"), ("user", "Thank"))
        ]  # fmt: skip
        flags = {"categories": {"hate": False}, "category_scores": {"hate": 0.1}, "flagged": False}
        rows.append(
            {"conversation_hash": f"{number:032x}", "model": "gpt-4", "timestamp": when,
             "conversation": turns, "turn": 1, "openai_moderation": [flags],
             "detoxify_moderation": [{"toxicity": 0.1}], **plain, **place}
        )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("person", ["hashed_ip", None])
def test_wildchat_is_read_and_one_person_s_conversations_stay_together(
    tmp_path: Path, person: str | None
) -> None:
    path = wildchat(tmp_path / "train-00000.parquet", people=40, chats=5)
    source = Source(path=str(path), columns=Columns(person=person))
    block = Corpus(
        sources=[source], openings=30, test=30, intents=Intents(heuristic="first_sentence")
    )
    report = build(block, [SourceFile(path, source)], tmp_path / "out", seed=1)
    assert (report.rows_read, report.kept, report.people) == (200, 200, 40 if person else 0)
    split_of_person: dict[int, set[str]] = {}
    names: dict[int, set[str | None]] = {}
    for split in ("train", "openings", "test"):
        table = pq.read_table(tmp_path / "out" / "data" / f"{split}-00000-of-00001.parquet")
        assert "hashed_ip" not in str(table.schema)
        for row in table.to_pylist():
            assert [m["role"] for m in row["messages"]] == ["user", "assistant", "user"]
            assert row["intent"] == row["messages"][0]["content"]
            split_of_person.setdefault(int(row["id"], 16) % 40, set()).add(split)
            names.setdefault(int(row["id"], 16) % 40, set()).add(row.get("user"))
    assert all(len(name) == 1 for name in names.values()), "a name each"
    assert len(set[str | None]().union(*names.values())) == (40 if person else 1)
    assert all(name is None or name.isalpha() for (name,) in names.values()), "no number of a card"
    assert all(len(splits) == 1 for splits in split_of_person.values()) == bool(person)


@pytest.mark.parametrize(
    ("opening", "intent"),
    [
        ("Hi there! How do I\nbake rye? No oven here.", "How do I bake rye?"),
        ("ok", "ok"),
        (" ".join(["word"] * 30), " ".join(["word"] * 24) + " …"),
        ("你好。请告诉我怎么烤面包。", "你好。 请告诉我怎么烤面包。"),
        ("x" * 300, "x" * 200 + " …"),
    ],
)
def test_an_intent_by_heuristic_is_how_the_conversation_opens(opening: str, intent: str) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "Be brief. Answer in one line."},
        {"role": "user", "content": opening},
    ]
    assert first_sentence(turns) == intent and first_sentence(turns[:1]) == ""


@pytest.mark.parametrize(
    ("turns", "intent"),
    [
        (["How do I bake rye bread?", "Which flour makes the bread rise?"],
         "bake, bread, flour, makes, rise"),
        (["zebra " * 9 + "alpha bravo charlie delta alpha echoes foxtrot golfing hotels",
          "delta"],
         "alpha, charlie, delta, echoes, foxtrot, golfing, hotels, zebra"),
        (["Please don't tell me that, would you?", "ok"], ""),
        (["你好"], "你好"),
        (["Größe der Öfen; ÖFEN!"], "grösse, öfen"),
    ],
)  # fmt: skip
def test_an_intent_by_keywords_is_a_list_from_all_turns(turns: list[str], intent: str) -> None:
    messages: list[Any] = [{"role": "system", "content": "Baking soda."}]
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "Yeast!"}]
    assert keywords(messages) == intent


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ({"who": "kunde", "was": "Hello"}, "nothing says who speaks; their keys: was, who (3)"),
        ({"role": "user", "was": "Hello"}, "no text is found; their keys: role, was (3)"),
    ],
)
def test_turns_of_unknown_keys_are_an_error_that_names_the_keys(
    tmp_path: Path, turn: dict[str, str], says: str
) -> None:
    path = written(tmp_path / "x.json", [{"messages": [turn, turn]}] * 3)
    block = Corpus.model_validate({"sources": [{"path": str(path)}]})
    with pytest.raises(SourceError) as caught:
        build(block, [path], tmp_path / "out", seed=1)
    assert f"all 3 rows have turns in which {says}" in str(caught.value)
    assert "--column " in str(caught.value)
    report = load(written(tmp_path / "y.json", [{"messages": [turn, turn]}]))[1]
    assert report.unknown_keys == {f"in a turn: {', '.join(sorted(turn))}": 1}
