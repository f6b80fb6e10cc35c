"""``hubkit clean``, ``stats`` and ``diff`` as a person types them, on files here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.mock_endpoint import mock
from support.paths import SHARED_DATA


def chats(path: Path, number: int, *, cut: int = 0) -> Path:
    rows = [
        {
            "id": f"c{i}",
            "conversations": [
                {
                    "from": ("human", "gpt")[t % 2],
                    "value": f"How does part {t} of the number {i} machine work, please?",
                }
                for t in range(6)
            ],
        }
        for i in range(number)
    ]
    text = json.dumps(rows)
    path.write_text(text[: len(text) - cut])
    return path


def test_clean_stats_and_diff_on_files(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    small = [
        "--set",
        "corpus.openings=5",
        "--set",
        "corpus.test=10",
        "--set",
        "corpus.filters=[{name: exact_duplicates}]",
    ]
    done = cli(
        "clean", str(chats(tmp_path / "a.json", 60, cut=40)), "--out", str(tmp_path / "v1"), *small
    )
    assert done.returncode == 0, done.stderr
    assert "cut_off" in done.stdout and "c59" in done.stdout and "exact_duplicates" in done.stdout
    done = cli(
        "clean", str(chats(tmp_path / "b.json", 65)), "-o", str(tmp_path / "v2"), "--json", *small
    )
    assert json.loads(done.stdout)["splits"] == {"train": 50, "openings": 5, "test": 10}

    done = cli(
        "stats",
        f"{tmp_path}/v2",
        "--baseline",
        f"{tmp_path}/v2:test",
        "--no-topics",
        "--json",
        "-o",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads(done.stdout)
    assert (
        stored["datasets"][0]["values"]["human_turns"]["value"] == 3
        and (tmp_path / "stats.json").exists()
    )

    done = cli("diff", f"{tmp_path}/v1", f"{tmp_path}/v2", "--json")
    found = json.loads(done.stdout)
    assert found["before"] == 44 and found["after"] == 50 and found["changed"] == 0
    assert found["after"] - found["added"] == found["before"] - found["dropped"] == found["same"]


def test_clean_looks_for_the_questions_that_it_is_given(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked = "How does part 0 of the number 7 machine work, please?"
    (tmp_path / "mine.jsonl").write_text(json.dumps({"turns": [asked]}) + "\n")
    chain = "corpus.filters=[{name: decontaminate}]"
    small = ["--set", "corpus.openings=5", "--set", "corpus.test=10", "--set", chain, "--json"]
    given = ("clean", str(chats(tmp_path / "a.json", 60)), "-o", str(tmp_path / "o"), *small)
    done = cli(*given, "--questions", f"mine={tmp_path}/mine.jsonl")
    step = json.loads(done.stdout)["steps"][0]
    assert step["dropped"] == {"contains_mine": {"count": 1, "examples": ["c7"]}}
    done = cli(*given)
    assert "not looked for: the questions of mt_bench" in done.stderr
    assert json.loads(done.stdout)["steps"][0]["changed"]["no_questions_to_look_for"]["count"] == 60
    done = cli(*given, "--questions", "mine")
    assert done.returncode == 1 and "NAME=FILE" in done.stderr


def test_clean_says_how_a_recipe_is_named_that_stands_among_the_sources(
    cli, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    given = str(chats(tmp_path / "a.json", 3)), "-o", str(tmp_path / "o")
    for name, option in (("realm", "--recipe realm"), ("laptop", "--profile laptop")):
        done = cli("clean", name, *given)
        assert (
            done.returncode == 1
            and f"name it with {option}" in done.stderr
            and not (tmp_path / "o").exists()
        )
    gone = cli("clean", "relm", *given)
    assert gone.returncode == 1 and "relm does not exist; check the path" in gone.stderr


def test_stats_asks_a_judge(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    small = ["--set", "corpus.openings=5", "--set", "corpus.test=10", "--set", "corpus.filters=[]"]
    assert (
        cli(
            "clean", str(chats(tmp_path / "a.json", 40)), "-o", str(tmp_path / "v"), *small
        ).returncode
        == 0
    )
    given = ("stats", f"{tmp_path}/v:test", "--no-topics", "--judge")
    with mock() as judge:
        number = r"<message>\s*How does part {} "
        judge.script(
            rules=[
                [number.format(2), ["It is whole. [[no]]"]],
                [number.format(4), ["Which? [[yes]]"]],
            ]
        )
        named = ("--judge-model", "some-judge", "--judge-token-env", "JUDGE_KEY")
        done = cli(*given, judge.url, *named, "--json", JUDGE_KEY="very-secret")
        (measured,) = json.loads(done.stdout)["datasets"]
        assert measured["values"]["context_judged_per_dialogue"]["value"] == 1.0, done.stderr
        assert measured["judged"] == {"turns": 20, "without_verdict": 0}
        assert (
            json.loads(done.stdout)["judge"] == "some-judge"
            and "very-secret" not in done.stdout + done.stderr
        )
        body = judge.ledger()[0]["body"]
        assert (
            body["model"] == "some-judge" and body["temperature"] == 0 and body["max_tokens"] > 100
        )
        before, _, turn = body["messages"][-1]["content"].partition("<message>")
        assert ("part 2" in turn and "part 1" in before) or (
            "part 4" in turn and "part 3" in before
        )
        assert cli(*given, judge.url, *named, JUDGE_KEY="k").returncode == 0
        assert len(judge.ledger()) == 20, "what was answered is not asked again"
        judge.script(rules=[[number.format(2), ["Who can say?"]], [".", ["Which? [[yes]]"]]])
        done = cli(*given, judge.url, "--judge-model", "half-a-judge")
        assert "10 of them without a verdict" in done.stderr and "(judged)" not in done.stdout
        judge.script(texts=["Who can say?"])
        stopped = cli(*given, judge.url)
        assert stopped.returncode == 1 and "'Who can say?'" in stopped.stderr
        assert "10 verdicts in a row cannot be read" in stopped.stderr
        unset = cli(*given, judge.url, "--judge-token-env", "NOT_SET_ANYWHERE")
        assert (
            unset.returncode == 2
            and "--judge-token-env names NOT_SET_ANYWHERE, which is not set" in unset.stderr
        )
        judge.script(status=401)
        refused = cli(*given, judge.url, "--judge-model", "another")
        assert (
            refused.returncode != 0
            and "judge" in refused.stderr
            and "Traceback" not in refused.stderr
        )


@pytest.mark.slow
def test_a_judge_that_is_not_there_is_waited_for_and_then_named(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    small = ["--set", "corpus.openings=5", "--set", "corpus.test=10", "--set", "corpus.filters=[]"]
    assert (
        cli(
            "clean", str(chats(tmp_path / "a.json", 40)), "-o", str(tmp_path / "v"), *small
        ).returncode
        == 0
    )
    gone = cli("stats", f"{tmp_path}/v:test", "--no-topics", "--judge", "http://127.0.0.1:9")
    assert gone.returncode in (1, 3) and "judge" in gone.stderr and "Traceback" not in gone.stderr


@pytest.mark.slow
def test_a_judge_is_asked_for_exactly_the_rest_after_kill_9(
    cli, tmp_path: Path, hubkit_home: Path
) -> None:  # type: ignore[no-untyped-def]
    small = ["--set", "corpus.openings=5", "--set", "corpus.test=40", "--set", "corpus.filters=[]"]
    assert (
        cli(
            "clean", str(chats(tmp_path / "a.json", 60)), "-o", str(tmp_path / "v"), *small
        ).returncode
        == 0
    )
    with mock(latency=0.3) as judge:
        judge.script(texts=["[[yes]]"])
        judged = hubkit_home / "asked"
        others = set(judged.glob("*/replies.jsonl"))  # of the other tests, which share this home
        command = ["stats", f"{tmp_path}/v:test", "--no-topics", "--judge", judge.url, "--json"]
        run = subprocess.Popen(
            [sys.executable, "-m", "hubkit", *command], stdout=subprocess.DEVNULL
        )
        while judge.stats()["answered"] < 32 and run.poll() is None:
            time.sleep(0.02)
        run.kill()
        run.wait()
        time.sleep(0.5)  # what was out is answered meanwhile, to nobody
        (journal,) = set(judged.glob("*/replies.jsonl")) - others
        kept = sum(line.endswith("}\n") and '"key"' in line for line in journal.open())
        before = judge.stats()["answered"]
        done = cli(*command)
        (measured,) = json.loads(done.stdout)["datasets"]
        assert measured["judged"] == {"turns": 80, "without_verdict": 0}
        assert 16 <= kept < 80 and judge.stats()["answered"] == before + 80 - kept


def test_clean_on_the_benchmarks_themselves(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = SHARED_DATA / "fastchat"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    files = [f"{name}={folder}/{name}__question.jsonl" for name in ("mt_bench", "vicuna_bench")]
    rows = [
        json.loads(line)["turns"]
        for file in files
        for line in Path(file.split("=")[1]).read_text().splitlines()
    ]
    talk = [{"data": [turns[0], "A made-up answer."]} for turns in rows]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    chats(tmp_path / "people.json", 40)
    named = [part for file in files for part in ("--questions", file)]
    small = [
        "--set",
        "corpus.openings=5",
        "--set",
        "corpus.test=10",
        "--set",
        "corpus.filters=[{name: decontaminate}]",
    ]
    sources = [str(tmp_path / name) for name in ("asked.jsonl", "people.json")]
    done = cli("clean", *sources, "-o", str(tmp_path / "o"), *small, *named, "--json")
    report = json.loads(done.stdout)
    assert len(rows) == 160 and report["dropped"] == 160 and report["kept"] == 40, done.stderr


def test_mistakes_are_one_sentence(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").mkdir()
    shard = tmp_path / "x.parquet"
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    pq.write_table(pa.Table.from_pylist([{"id": "a", "messages": turns}] * 3), shard)
    for args, says in (
        (("clean", str(tmp_path / "gone.json"), "-o", str(tmp_path / "o")), "does not exist"),
        (("stats", str(tmp_path / "empty"), "--no-topics"), "has no split 'train'"),
        (
            ("stats", str(shard), "--no-topics", "--tokenizer", str(tmp_path)),
            "cannot be read as a tokenizer",
        ),
    ):
        done = cli(*args)
        assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


def test_stats_and_diff_of_versions_on_the_hub(cli, hubkit_home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from hubkit.hub import connect

    hub = connect()
    small = ["--set", "corpus.openings=5", "--set", "corpus.test=10", "--set", "corpus.filters=[]"]
    for version, number in (("v1", 40), ("v2", 45)):
        folder = tmp_path / version
        assert (
            cli(
                "clean", str(chats(tmp_path / "x.json", number)), "-o", str(folder), *small
            ).returncode
            == 0
        )
        ref = hub.commit(hub.qualify("versions"), folder, f"Version {version}", repo_type="dataset")
        hub.tag(ref, version, f"Version {version}")
    done = cli("diff", "versions@v1", "versions@v2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["before"], found["after"]) == (25, 30) and all(
        len(sha) == 40 for sha in found["revisions"].values()
    )
    done = cli("stats", "versions@v2", "-b", "versions:test", "--no-topics", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["datasets"][0]["dialogues"] == 30
    done = cli("stats", "nobody-made-this", "--no-topics")
    assert done.returncode == 1 and "Traceback" not in done.stderr
