"""Other people's files: recorded answers and verdicts give hand-computed figures, whatever rows are
missing, reordered or repeated; a report comes from verdicts alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mock_endpoint import mock

from hubkit.errors import SourceError
from hubkit.evaluation import Player, Setup, benchmarks, judged
from hubkit.evaluation.aggregate import Compared, Rated
from hubkit.evaluation.items import Benchmark, Question
from hubkit.evaluation.judge_quality import (
    agreement,
    length_slope,
    panel_choice,
    panel_weights,
    self_preference,
)
from hubkit.evaluation.length_control import alpaca_eval_of, alpaca_eval_win_rate
from hubkit.evaluation.verdict_files import VerdictSet, read_verdicts, write_verdicts
from hubkit.evaluation.verdict_report import report, result_tables, write
from hubkit.judging import default_prompts
from hubkit.recipe import Judging, SeatConfig
from hubkit.serving import ServedModel
from hubkit.statistics import Bootstrap


def here(name: str) -> tuple[Path, str]:
    return Path(name), Path(name).name


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# Answers find their question


ALPACA = [{"instruction": f"Do {n}.", "output": f"base {n}", "generator": "davinci", "dataset": "d"}
          for n in range(6)]  # fmt: skip


def alpaca(folder: Path) -> Benchmark:
    path = folder / "alpaca_eval.json"
    path.write_text(json.dumps(ALPACA), "utf-8")
    return benchmarks.load("alpaca", here, questions=str(path))


def outputs(folder: Path, numbers: list[int]) -> Path:
    rows = [{"instruction": f"Do {n}.", "output": f"mine {n}", "generator": "m"} for n in numbers]
    path = folder / "outputs.json"
    path.write_text(json.dumps(rows), "utf-8")
    return path


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [4, 0, 2]])
def test_answers_are_matched_by_instruction_and_never_by_row(
    tmp_path: Path, numbers: list[int]
) -> None:
    of = alpaca(tmp_path)
    answers, _ = benchmarks.recorded_answers(str(outputs(tmp_path, numbers)), here, of.questions)
    number = {q.id: int(q.turns[0][3]) for q in of.questions}
    assert answers == {key: (f"mine {n}",) for key, n in number.items() if n in numbers}


def test_a_short_reordered_file_shows_the_judge_only_its_own_questions(tmp_path: Path) -> None:
    of = alpaca(tmp_path)
    answers, _ = benchmarks.recorded_answers(str(outputs(tmp_path, [5, 1, 3])), here, of.questions)
    with mock() as judge:
        judge.script(rules=[["<assistant_a>\\s*mine", ["[[A]]"]], [".", ["[[B]]"]]])
        result = judged(
            Setup(
                benchmark=of,
                mode="pairwise",
                model=Player("m", "m@1", recorded=answers),
                against=Player("davinci", "d@1", recorded=of.recorded["davinci"]),
                judge=Player("j", "j@1", ServedModel.at(judge.url)),
                prompts=default_prompts(),
                block=Judging(judge=SeatConfig(repo="j", profile="openai")),
            ),
            tmp_path / "log",
        )
        prompts = [line["body"]["messages"][-1]["content"] for line in judge.ledger()]
    assert len(prompts) == 6
    for prompt in prompts:
        (number,) = {n for n in range(6) if f"Do {n}." in prompt}
        assert f"mine {number}" in prompt and f"base {number}" in prompt
    assert result.wins is not None and result.wins.wins == 3
    assert result.wins.missing == {"no_answer": 3}


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"output": "x"}], "neither a question_id nor its instruction"),
        ([{"instruction": "Do 9.", "output": "x"}], "none of the 1 records"),
        ([{"instruction": "Do 1.", "output": "x"}] * 2, "again, after record 1"),
        ([{"question_id": "2", "instruction": "Do 9.", "output": "x"}], "another instruction"),
    ],
)
def test_answers_that_fit_no_question_are_refused(
    tmp_path: Path, rows: list[Any], why: str
) -> None:
    of = alpaca(tmp_path)
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(SourceError, match=why):
        benchmarks.recorded_answers(str(path), here, of.questions)


def test_mt_bench_is_judged_with_references_or_says_that_it_is_not(tmp_path: Path) -> None:
    questions = [
        {"question_id": n, "category": c, "turns": ["a?", "b?"], "reference": ["Straightforward"]}
        for n, c in ((81, "writing"), (111, "math"), (121, "coding"))
    ]
    answers = [
        {"question_id": n, "choices": [{"index": 0, "turns": ["right", "too"]}]} for n in (111, 121)
    ]
    q, r = lines(tmp_path / "q.jsonl", questions), lines(tmp_path / "r.jsonl", answers)
    of = benchmarks.load("mt-bench", here, questions=str(q), references=str(r))
    assert [item.reference for item in of.questions] == [(), ("right", "too"), ("right", "too")]
    bare = benchmarks.load("mt-bench", here, questions=str(q), references="none")
    assert [item.reference for item in bare.questions] == [(), (), ()]
    assert "4 of 6 answers" in bare.notes[0] and "do not compare" in bare.notes[0]
    with pytest.raises(SourceError, match="--references none"):
        benchmarks.load("mt-bench", here, questions=str(q))
    lines(tmp_path / "r.jsonl", answers[:1])
    with pytest.raises(SourceError, match="no reference answer to 1 questions"):
        benchmarks.load("mt-bench", here, questions=str(q), references=str(r))
    easy = lines(tmp_path / "e.jsonl", questions[:1])
    assert benchmarks.load("mt-bench", here, questions=str(easy)).questions[0].reference == ()


# AlpacaEval's length control


def annotations(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """805 annotations and two gamed baselines, drawn from a model in which length matters."""
    r = np.random.default_rng(seed)
    n = 805
    difficulty = r.normal(0, 1.5, n)

    def drawn(skill: float, weight: float, gamed: bool) -> tuple[Any, Any, Any, Any]:
        first = r.integers(200, 3000, n)
        second = np.maximum(
            20, (first * r.lognormal(0.3 if not gamed else 0.1, 0.6, n)).astype(int)
        )
        scaled = (first - second) / (first - second).std(ddof=1)
        logit = skill + 0.6 * difficulty * r.normal(1, 0.2) + weight * np.tanh(scaled)
        chance = 1 / (1 + np.exp(-(logit + r.normal(0, 1.2, n))))
        return first, second, scaled, np.clip(chance, 0, 1)

    gamed = []
    for _ in range(2):
        _, _, scaled, chance = drawn(r.normal(-0.3, 0.3), -1.0, True)
        gamed += [
            {"index": i, "preference": float(chance[i]), "std_delta_len": float(scaled[i]),
             "instruction_difficulty": float(difficulty[i]), "not_gamed_baseline": "False"}
            for i in range(n)
        ]  # fmt: skip
    first, second, _, chance = drawn(r.normal(0, 1), -r.uniform(0, 1.5), False)
    own = [
        {"index": i, "instruction": f"i{i}", "output_1": "x" * int(first[i]),
         "output_2": "y" * int(second[i]), "preference": float(1 + chance[i]),
         "generator_1": "base", "generator_2": "model", "annotator": "judge"}
        for i in range(n)
    ]  # fmt: skip
    return own, gamed


# What alpaca-eval 0.6.6 (with scikit-learn 1.5.2) computes of the same annotations, in percent.
THEIRS = {0: 77.772, 1: 41.560, 2: 49.300, 3: 31.579, 4: 56.452}


@pytest.mark.parametrize("seed", sorted(THEIRS))
def test_length_control_is_alpaca_evals(seed: int) -> None:
    own, gamed = annotations(seed)
    assert 100 * alpaca_eval_win_rate(own, gamed) == pytest.approx(THEIRS[seed], abs=0.1)
    raw = 100 * float(np.mean([row["preference"] - 1 for row in own]))
    assert abs(raw - THEIRS[seed]) > 1, "and is not the raw win rate"


def test_length_control_wants_alpaca_evals_instructions(tmp_path: Path) -> None:
    own, gamed = annotations(1)
    with pytest.raises(SourceError, match="805 instructions"):
        alpaca_eval_win_rate([own[0] | {"index": 900}], gamed)
    path = lines(tmp_path / "annotations.jsonl", own)
    columns = list(gamed[0])
    text = "\n".join([",".join(columns), *(",".join(str(g[c]) for c in columns) for g in gamed)])
    (tmp_path / "df_gamed.csv").write_text(text)
    rates = alpaca_eval_of([path], tmp_path / "df_gamed.csv")
    assert 100 * rates["model"] == pytest.approx(THEIRS[1], abs=0.1)


# Verdicts are read


def test_fastchats_single_judgments_by_hand(tmp_path: Path) -> None:
    rows = [
        {"question_id": 82, "model": "m", "judge": ["gpt-4", "single-v1"], "score": 4, "turn": 1},
        {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "score": 9, "turn": 2},
        {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "score": 2, "turn": 1},
        {"question_id": 83, "model": "m", "judge": ["gpt-4", "single-v1"], "score": -1, "turn": 1},
        {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "score": 8, "turn": 1},
        {"question_id": 81, "model": "n", "judge": ["gpt-4", "single-v1"], "score": 5, "turn": 1},
    ]
    made = report([lines(tmp_path / "gpt-4_single.jsonl", rows)])
    tables = made.tables["gpt-4_single", "gpt-4"]
    score = tables["m"]
    assert score.mean.value == pytest.approx((4 + 9 + 8) / 3), "the repeated one counts once, last"
    assert score.turns[1].value == 6 and score.missing == {"no_verdict": 1}
    assert made.differences["gpt-4_single", "gpt-4"]["n less m"]["difference"] == 5 - 8
    assert made.judges["gpt-4"].missing == {"no_verdict": 1}


def test_fastchats_pairs_by_hand(tmp_path: Path) -> None:
    games = [("model_1", "model_1"), ("model_2", "model_2"), ("model_1", "model_2"),
             ("tie", "tie"), ("error", "model_1")]  # fmt: skip
    rows = [
        {"question_id": n, "model_1": "m", "model_2": "n", "g1_winner": a, "g2_winner": b,
         "judge": ["gpt-4", "pair-v2"], "turn": 1}
        for n, (a, b) in enumerate(games)
    ]  # fmt: skip
    made = report([lines(tmp_path / "gpt-4_pair.jsonl", rows)])
    (wins,) = made.tables["gpt-4_pair", "gpt-4"].values()
    assert (wins.wins, wins.ties, wins.losses, wins.pairs) == (1, 2, 1, 5)
    assert wins.win_rate.value == 0.5 and made.judges["gpt-4"].flip_rate.value == 0.25
    assert "m against n" in result_tables(made)["gpt-4_pair, judged by gpt-4"][0]


def test_alpaca_evals_annotations_by_hand(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"i{n}", "output_1": "aa", "output_2": "b", "generator_1": "base",
         "generator_2": "m", "annotator": "gpt", "preference": p}
        for n, p in enumerate([2, 1, 1.5, 0, 1.9, None])
    ]  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    (one,) = read_verdicts(tmp_path / "annotations.json")
    (wins,) = report([tmp_path / "annotations.json"]).tables["alpaca", "gpt"].values()
    assert (wins.wins, wins.ties, wins.losses) == (2, 2, 1) and wins.missing == {"no_verdict": 1}
    assert (one.model, one.against, one.rows[0].length) == ("m", "base", 1)  # type: ignore[union-attr]


def test_lm_evals_samples_and_inspects_logs_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "acme__model"
    folder.mkdir()
    rows = [
        {"doc_id": n, "doc": {}, "target": "x", "filtered_resps": ["y"], "metrics": ["acc"],
         "acc": float(n % 2)}
        for n in range(5)
    ]  # fmt: skip
    lines(folder / "samples_arc_2026-01-01T00.jsonl", rows)
    (one,) = read_verdicts(folder / "samples_arc_2026-01-01T00.jsonl")
    assert (one.benchmark, one.model) == ("arc", "acme__model")
    (passes,) = report([folder / "samples_arc_2026-01-01T00.jsonl"]).tables["arc", "acc"].values()
    assert passes.rate.value == 2 / 5

    of = Benchmark("own", [Question(str(n), "all", ("hi",)) for n in range(3)], [{"name": "f"}])
    with mock() as judge:
        judge.script(rules=[["answer 0", ["[[2]]"]], ["answer 1", ["[[8]]"]], [".", ["none"]]])
        result = judged(
            Setup(
                benchmark=of,
                mode="single",
                model=Player("m", "m@1", recorded={str(n): [f"answer {n}"] for n in range(3)}),
                against=None,
                judge=Player("j", "j@1", ServedModel.at(judge.url)),
                prompts=default_prompts(),
                block=Judging(judge=SeatConfig(repo="j", profile="openai")),
            ),
            tmp_path / "log",
        )
    (log,) = result.logs.glob("*.eval")
    for path in (log, result.verdicts):
        (found,) = read_verdicts(path)
        (score,) = report([path]).tables[found.benchmark, found.judge].values()
        assert found.model == "m" and score.mean.value == 5
        assert score.missing == {"no_verdict": 1}


def test_files_without_verdicts_are_said(tmp_path: Path) -> None:
    for rows, why in (([{"a": 1}], "neither hubkit's"), ([], "no verdicts"),
                      ([{"judge": "j", "score": "x", "question_id": 1}],
                       "not a judgment")):  # fmt: skip
        with pytest.raises(SourceError, match=why):
            read_verdicts(lines(tmp_path / "x.jsonl", rows))
    with pytest.raises(SourceError, match="cannot be read"):
        read_verdicts(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("form", ["hubkit", "fastchat"])
def test_what_is_written_is_read_again(tmp_path: Path, form: Any) -> None:
    sets = [
        VerdictSet("own", "single", "m", "j",
                   [Rated("1", "c", 1, 7.5), Rated("2", "c", 1, None, "no_verdict")]),
        VerdictSet("own", "pairwise", "m", "j", [Compared("1", "c", 2, "win", "tie")], "n"),
    ]  # fmt: skip
    path = tmp_path / "own.jsonl"
    assert write_verdicts(path, sets, form) == 3
    assert read_verdicts(path) == sets


def test_a_thousand_verdicts_are_reported_in_two_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [Rated(str(n), f"c{n % 8}", 1, float(rng.integers(1, 11)), "", 9) for n in range(500)]
    sets = [VerdictSet("own", "single", name, "j", rows) for name in ("m", "n")]
    path = tmp_path / "v.jsonl"
    write_verdicts(path, sets)
    report([path])  # imports
    started = time.process_time()
    made = report([path])
    assert time.process_time() - started < 2
    files = write(made, tmp_path / "out")
    assert [file.name for file in files] == ["report.json", "report.md", "report.png"]
    assert all(file.stat().st_size for file in files)
    data = json.loads(files[0].read_text())
    assert data["benchmarks"][0]["results"]["m"]["mean"]["n"] == 500
    assert "| judge |" in files[1].read_text()


# Judges are judged


def pairs(judge: str, choices: str, flips: int = 0) -> VerdictSet:
    """One verdict a letter: w, l or t, of m against n; the first `flips` are of both minds."""
    names: dict[str, Any] = {"w": "win", "l": "loss", "t": "tie"}
    rows = [
        Compared(str(n), "c", 1, names[c], names[c] if n >= flips else "tie")
        for n, c in enumerate(choices)
    ]
    return VerdictSet("own", "pairwise", "m", judge, rows, "n")


def test_judges_are_held_against_peoples_votes_and_a_panel_is_weighted(tmp_path: Path) -> None:
    people = "wlwl" * 20
    good = "".join(c if n % 8 else "lw"[c == "l"] for n, c in enumerate(people))
    bad = "w" * 80
    write_verdicts(tmp_path / "good.jsonl", [pairs("good", good, flips=4)])
    write_verdicts(tmp_path / "bad.jsonl", [pairs("bad", bad)])
    write_verdicts(tmp_path / "votes.jsonl", [pairs("people", people)])
    made = report([tmp_path / "good.jsonl", tmp_path / "bad.jsonl"], votes=tmp_path / "votes.jsonl")
    good_one, bad_one = made.judges["good"], made.judges["bad"]
    assert good_one.people is not None and bad_one.people is not None
    assert bad_one.people.rate.value == 0.5 and bad_one.people.kappa == 0
    assert good_one.people.decided.value == pytest.approx(66 / 76, abs=0.02)
    assert good_one.flip_rate is not None and good_one.flip_rate.value == pytest.approx(4 / 80)
    assert good_one.weight == pytest.approx(1.0, abs=0.02) and bad_one.weight < 0.02  # type: ignore[operator]
    assert made.panel is not None and made.panel.rate.value == good_one.people.rate.value
    assert any(row[0] == "panel" for row in result_tables(made)["judges"][1])


def test_a_panel_of_three_beats_each_of_them() -> None:
    rng = np.random.default_rng(1)
    truth = rng.choice(["A", "B"], 600)
    judges = {
        name: {n: (t if rng.random() < rate else "AB"[t == "A"]) for n, t in enumerate(truth)}
        for name, rate in (("x", 0.75), ("y", 0.75), ("z", 0.75))
    }
    people = dict(enumerate(truth))
    each = {name: agreement(c, people, Bootstrap(50)) for name, c in judges.items()}
    weights = panel_weights(each)
    panel = {n: panel_choice({j: c[n] for j, c in judges.items()}, weights) for n in people}
    rate = agreement(panel, people, Bootstrap(50)).rate.value
    assert rate is not None and rate > max(a.rate.value or 0 for a in each.values()) + 0.04
    assert sum(weights.values()) == pytest.approx(1)
    assert panel_weights({}) == {} and panel_choice({"x": "A", "y": "B"}, {"x": 1, "y": 1}) == "tie"


def test_a_judge_that_likes_length_shows_a_slope_and_a_fair_one_does_not() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.lognormal(6, 0.7, 400)
    fair = [(n, 6 + rng.normal(), length) for n, length in enumerate(lengths)]
    biased = [(n, v + 0.8 * np.log2(length), length) for n, v, length in fair]
    slope = length_slope(biased, Bootstrap(500))
    assert slope.low is not None and slope.low < 0.8 < (slope.high or 0) and slope.excludes_zero
    assert not length_slope(fair, Bootstrap(500)).excludes_zero
    assert length_slope(fair[:2], Bootstrap()).value is None


def test_a_judge_that_prefers_itself_stands_out() -> None:
    judges = {
        "a": {"a": 9.0, "b": 6.0, "c": 6.0},
        "b": {"a": 7.0, "b": 7.0, "c": 7.0},
    }
    found = self_preference(judges, {"a": "a", "b": "b"})
    assert found["a"] == pytest.approx(2.0) and found["b"] == pytest.approx(1.0)
    assert self_preference({"a": judges["a"]}, {"a": "a"}) == {}
