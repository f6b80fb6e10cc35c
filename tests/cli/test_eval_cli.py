"""``hubkit eval`` as a person runs it: a recipe's stage, or a chat model before a judge."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.mock_endpoint import mock
from support.paths import SHARED_DATA
from support.waiting import until


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A question file of two conversations with three turns, and a file of recorded answers to
    it.
    """
    questions, answers = tmp_path / "mine.jsonl", tmp_path / "old-model.jsonl"
    turns = ["How far?", "And back?", "Sure?"]
    rows = [
        {"question_id": n, "category": "travel", "turns": turns} for n in (1, 2)
    ]  # the same twice, but for its id
    said = [
        {"question_id": n, "choices": [{"turns": [f"{n} far", f"{n} back", f"{n} sure"]}]}
        for n in (1, 2)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers.write_text("".join(json.dumps(row) + "\n" for row in said))
    return questions, answers


def test_a_recipes_stage_and_a_model_share_one_word(cli, hubkit_home) -> None:
    plans = [
        cli("eval", *args, "--dry-run", "--json")
        for args in (
            ["parrot", "-p", "laptop"],
            ["-p", "laptop", "parrot"],
            ["recipe", "parrot", "-p", "laptop"],
        )
    ]
    assert {done.returncode for done in plans} == {0}, [done.stderr for done in plans]
    assert [stage["stage"] for stage in json.loads(plans[0].stdout)][-1] == "eval"
    assert len({done.stdout for done in plans}) == 1
    wrong = cli("eval", "parot")
    assert wrong.returncode == 2 and "Did you mean 'parrot'" in wrong.stderr
    for command in ([], ["chat"], ["recipe"]):
        assert cli("eval", *command, "--help").returncode == 0


def test_models_are_judged_and_everything_is_written(cli, tmp_path, files) -> None:
    questions, answers = files
    folder = tmp_path / "logs of mine"
    with mock(key="secret-key-of-judge") as judge, mock() as model:
        judge.script(rules=[["1 far", ["[[4]]"]], ["2 far", ["[[6]]"]], [".", ["[[8]]"]]])
        args = [
            "eval",
            "chat",
            f"{model.url}#small-chat",
            "--against",
            str(answers),
            "--benchmark",
            str(questions),
        ]
        args += [
            "--judge",
            f"{judge.url}#big-judge",
            "--set",
            "judge.token_env=JUDGE_KEY",
            "--log-dir",
            str(folder),
        ]
        unset = cli(*args)
        assert (
            unset.returncode == 2
            and "judge.token_env names JUDGE_KEY, which is not set" in unset.stderr
        )
        done = cli(*args, JUDGE_KEY="secret-key-of-judge")
        assert done.returncode == 0, done.stderr
        assert "small-chat less old-model, paired: +3.00 [+2.00, +4.00]" in done.stdout
        assert "hubkit's own wording (sha256 " in done.stdout and "weak judge" not in done.stdout
        found = json.loads(cli(*args, "--json", JUDGE_KEY="secret-key-of-judge").stdout)
        assert judge.stats()["answered"] == 12 and model.stats()["answered"] == 6, "nothing twice"
        assert (
            found["scores"]["old-model"]["mean"]["value"] == 5
            and found["judging"]["from_journal"] == 12
        )
        assert {line["body"]["model"] for line in judge.ledger()} == {"big-judge"}
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"secret-key-of-judge" not in written
    (report,) = folder.glob("results-*.md")
    assert "| mean |" in report.read_text("utf-8")


def test_published_tables_stand_beside_results_of_the_same_benchmark(cli, tmp_path, files) -> None:
    questions, answers = files
    with mock() as judge:
        judge.script(rules=[[".", ["[[5]]"]]])
        args = [
            "--questions",
            str(questions),
            "--judge",
            f"{judge.url}#j",
            "--log-dir",
            str(tmp_path / "log"),
        ]
        done = cli("eval", "chat", str(answers), "--benchmark", "mt-bench", *args)
    assert done.returncode == 0, done.stderr
    assert "As published, not measured here: Main results" in done.stdout and "6.85" in done.stdout
    assert (
        1 <= done.stdout.count("without seeds or intervals") < done.stdout.count("As published")
    ), "once a source"
    assert "95% bootstrap intervals over 2 questions" in done.stdout


def test_a_dry_run_asks_nothing_and_a_cap_wants_prices(cli, tmp_path, files) -> None:
    questions, answers = files
    with mock() as judge:
        args = ["eval", "chat", str(answers), "-b", str(questions), "--judge", f"{judge.url}#j"]
        args += ["--log-dir", str(tmp_path / "log"), "--mode", "single"]
        prices = [
            "--set",
            "judge.usd_per_million_input=1000",
            "--set",
            "judge.usd_per_million_output=1000",
        ]
        plan = json.loads(cli(*args, *prices, "--dry-run", "--json").stdout)
        assert plan["judgments"] == 6 and plan["answers"] == 0 and plan["at_most"]["usd"] > 1
        assert "judgments" in cli(*args, "--dry-run").stdout
        assert judge.stats()["requests"] == 0 and not (tmp_path / "log").exists()
        capped = cli(*args, "--budget-usd", "1")
        assert capped.returncode == 2 and "judge.usd_per_million_input" in capped.stderr
        judge.script(rules=[[".", ["[[5]]"]]])
        poor = json.loads(cli(*args, *prices, "--budget-usd", "1.5", "--json").stdout)
        assert poor["judging"]["stopped"] == "budget_usd" and poor["judging"]["usd"] <= 1.5
        assert poor["scores"]["old-model"]["missing"]["budget_usd"] > 0


def test_ctrl_c_keeps_every_verdict_and_says_so(cli, tmp_path) -> None:
    questions, answers = tmp_path / "many.jsonl", tmp_path / "old.jsonl"
    rows = [{"question_id": n, "turns": [f"question {n}"]} for n in range(60)]
    said = [{"question_id": n, "choices": [{"turns": [f"answer {n}"]}]} for n in range(60)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers.write_text("".join(json.dumps(row) + "\n" for row in said))
    with mock() as judge:
        judge.script(rules=[[".", [*["[[5]]"] * 24, {"wait": 30}]]])  # it cannot end before
        args = [
            "eval",
            "chat",
            str(answers),
            "-b",
            str(questions),
            "--judge",
            f"{judge.url}#j",
            "--json",
            "--log-dir",
            str(tmp_path / "log"),
        ]
        command = [sys.executable, "-m", "hubkit", *args]
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        until(lambda: judge.stats()["answered"] >= 16 or run.poll() is not None)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=240)[1]
        assert (
            run.returncode == 130 and "the same command resumes" in said and "Traceback" not in said
        )
        before = judge.stats()["answered"]
        assert 16 <= before <= 24
        judge.script(rules=[[".", ["[[5]]"]]])
        done = cli(*args)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["scores"]["old"]["mean"]["n"] == 60
        assert judge.stats()["answered"] <= 60 - before + 8, "at most what was out is asked again"


def test_pairs_and_alpacas_own_baseline(cli, tmp_path, files) -> None:
    alpaca = tmp_path / "alpaca.json"
    rows = [
        {"instruction": f"Do {n}", "output": "short", "generator": "davinci", "dataset": "d"}
        for n in range(4)
    ]
    alpaca.write_text(json.dumps(rows))
    mine = tmp_path / "mine.json"
    mine.write_text(
        json.dumps([{"instruction": row["instruction"], "output": "a longer one"} for row in rows])
    )
    with mock() as judge:
        judge.script(rules=[["<assistant_a>[^<]*longer", ["[[A]]"]], [".", ["[[B]]"]]])
        done = cli(
            "eval", "chat", str(mine), "-b", "alpaca", "--questions", str(alpaca),
            "--judge", f"{judge.url}#j", "--log-dir", str(tmp_path / "log"),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        "wins of mine against davinci" in done.stdout and "4 wins, 0 ties, 0 losses" in done.stdout
    )
    assert "at equal length (not AlpacaEval's)" in done.stdout


def test_questions_and_prompts_come_from_the_hub(cli, hubkit_home, tmp_path, files) -> None:
    from hubkit.hub import connect

    questions, answers = files
    folder = tmp_path / "repo"
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "q.jsonl").write_bytes(questions.read_bytes())
    names = ("single-v1", "single-v1-multi-turn")
    prompts = [{"name": name, "prompt_template": "Grade this: {conversation}"} for name in names]
    (folder / "judge_prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    ref = connect().commit("local/bench-questions", folder, "Questions", repo_type="dataset")
    with mock() as judge:
        judge.script(rules=[["^Grade this", ["[[6]]"]]])
        args = [
            "eval",
            "chat",
            str(answers),
            "--judge",
            f"{judge.url}#j",
            "--log-dir",
            str(tmp_path / "log"),
        ]
        args += ["-b", "local/bench-questions@main:raw/q.jsonl", "--json"]
        done = cli(*args, "--judge-prompts", "datasets/local/bench-questions:judge_prompts.jsonl")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        name = f"local/bench-questions@{ref.revision[:12]}"
        assert (
            found["benchmark"]["files"][0]["name"] == f"{name}:raw/q.jsonl"
            and found["benchmark"]["name"] == "q"
        )
        assert found["judge"]["prompts"]["source"] == f"{name}:judge_prompts.jsonl"
        assert found["scores"]["old-model"]["mean"]["value"] == 6
        for bad, why in (
            (":raw/none.jsonl", "has no file"),
            (":../../x.jsonl", "points out of its repo"),
        ):
            wrong = cli(*args[:-2], f"local/bench-questions{bad}", "--json")
            assert wrong.returncode == 1 and why in wrong.stderr and "Traceback" not in wrong.stderr


def test_the_papers_benchmarks_come_from_hub_datasets(cli, hubkit_home, tmp_path, files) -> None:
    """Where their questions live on the Hub, in whatever layout; where it has none, the error says
    what to do.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hubkit.hub import connect

    fastchat = SHARED_DATA / "fastchat"
    if not fastchat.is_dir():
        pytest.skip(f"no {fastchat}")

    def plan(*args: str) -> dict:
        done = cli(
            "eval",
            "chat",
            "http://127.0.0.1:9#model",
            "--judge",
            "http://127.0.0.1:9#j",
            *args,
            "--dry-run",
            "--json",
        )
        return json.loads(done.stdout) if done.returncode == 0 else {"stderr": done.stderr}

    absent = plan("-b", "mt-bench")["stderr"]
    assert (
        "HuggingFaceH4/mt_bench_prompts" in absent
        and "--questions FILE" in absent
        and "Traceback" not in absent
    )
    (tmp_path / "mt" / "raw").mkdir(parents=True)
    (tmp_path / "mt" / "raw" / "question.jsonl").write_bytes(
        (fastchat / "mt_bench__question.jsonl").read_bytes()
    )
    hub = connect()
    ref = hub.commit(
        "HuggingFaceH4/mt_bench_prompts", tmp_path / "mt", "MT-Bench", repo_type="dataset"
    )
    refused = plan("-b", "mt-bench")["stderr"]
    assert "is judged with reference answers" in refused and "--references none" in refused
    references = str(fastchat / "mt_bench__reference_answer__gpt-4.jsonl")
    for name, turns in (("mt-bench", 160), ("mt-bench-8", 640)):
        assert plan("-b", name, "--references", "none")["judgments"] == turns
        found = plan("-b", name, "--references", references)["benchmark"]
        assert (found["questions"], found["turns"]) == (80, turns)
        assert found["files"][0]["name"] == f"{ref.repo_id}@{ref.revision[:12]}:raw/question.jsonl"

    rows = [json.loads(line) for line in (fastchat / "vicuna_bench__question.jsonl").open()]
    table = {
        "instruction": [row["turns"][0] for row in rows],
        "topic": [row["category"] for row in rows],
    }
    (tmp_path / "vicuna" / "data").mkdir(parents=True)
    pq.write_table(pa.table(table), tmp_path / "vicuna" / "data" / "test-00000-of-00001.parquet")
    hub.commit("acme/vicuna-eval", tmp_path / "vicuna", "Vicuna-Bench", repo_type="dataset")
    args = [
        "-b",
        "vicuna",
        "--questions",
        "acme/vicuna-eval@main",
        "--column",
        "category=topic",
        "-a",
        "acme.jsonl",
    ]
    (tmp_path / "acme.jsonl").write_bytes(files[1].read_bytes())
    args[-1] = str(tmp_path / "acme.jsonl")
    found = plan(*args)
    assert (found["mode"], found["benchmark"]["questions"], found["judgments"]) == (
        "pairwise",
        80,
        160,
    )
    assert plan(*args, "--column", "turns=instruction")["benchmark"] == found["benchmark"]
    said = plan(*args, "--column", "turns=text")["stderr"]
    assert "has no column 'text', only instruction, topic" in said and "Traceback" not in said
    assert "must be OURS=THEIRS" in plan(*args, "--column", "text=turns")["stderr"]
    rows = [{"dataset": kind, "instruction": f"Do {n}", "output": "Done.", "generator": "davinci"}
            for n, kind in enumerate(["koala", "vicuna", "oasst", "vicuna"])]  # fmt: skip
    (tmp_path / "alpaca").mkdir()
    (tmp_path / "alpaca" / "alpaca_eval.json").write_text(json.dumps(rows))
    hub.commit("tatsu-lab/alpaca_eval", tmp_path / "alpaca", "AlpacaEval", repo_type="dataset")
    found = [plan("-b", name) for name in ("alpaca", "vicuna")]
    assert [one["benchmark"]["questions"] for one in found] == [4, 2] and found[1]["against"][
        "name"
    ] == "davinci"
    assert "name one, as" in plan(*args[:2], "--questions", _two_files(hub, tmp_path))["stderr"]


def _two_files(hub, folder: Path) -> str:
    (folder / "two").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / "two" / name).write_text('{"turns": ["How far?"]}\n')
    return hub.commit("acme/two-files", folder / "two", "Two", repo_type="dataset").repo_id


@pytest.mark.parametrize(
    ("args", "why"),
    [(["no such model!"], "no model"), (["local/absent"], "no model 'local/absent'"),
     (["x.jsonl"], "no file 'x.jsonl'"), (["a/b", "--mode", "both"], "none of single"),
     (["a/b", "-b", "absent.jsonl"], "no file"),
     (["a/b", "--set", "attempts=0"], "attempts")],
)  # fmt: skip
def test_a_mistake_is_one_sentence(cli, hubkit_home, files, args: list[str], why: str) -> None:
    questions, _ = files
    done = cli("eval", "chat", *args, *([] if "-b" in args else ["-b", str(questions)]))
    assert done.returncode in (1, 2) and why in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_base_and_judge_on_the_embedded_engine(cli, hubkit_home, tmp_path, files) -> None:
    questions, _ = files
    args = [
        "eval",
        "chat",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "-b",
        str(questions),
        "--turns",
        "2",
    ]
    done = cli(*args, "--max-tokens", "24", "--log-dir", str(tmp_path / "log"))
    assert done.returncode == 0, done.stderr
    assert "A weak judge: HuggingFaceTB/SmolLM2-135M-Instruct" in done.stdout
    assert "inspect view" in done.stderr
