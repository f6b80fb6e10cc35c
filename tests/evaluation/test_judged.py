"""Judged benchmarks: aggregates are exact, what fails is missing, nothing is judged twice, position
fools nobody.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from support.mock_endpoint import Handle, mock
from support.paths import ROOT, SHARED_DATA
from support.waiting import until

from hubkit.errors import EvalError, MisconfiguredEndpointError, RunLockedError, SourceError
from hubkit.evaluation import Player, Setup, benchmarks, judged
from hubkit.evaluation.aggregate import (
    Compared,
    Rated,
    difference,
    scores,
    wins,
)
from hubkit.evaluation.benchmarks import Benchmark, Question
from hubkit.evaluation.report import markdown, sentences, table
from hubkit.judging import default_prompts, read_prompts
from hubkit.recipe import Judging, Sampling, SeatConfig, available, load
from hubkit.serving import ServedModel
from hubkit.statistics import Bootstrap

FASTCHAT = SHARED_DATA / "fastchat"
BLOCK = Judging(
    judge=SeatConfig(
        repo="judge", profile="openai", sampling=Sampling(temperature=0, max_tokens=50)
    )
)


def bench(questions: int = 8, turns: int = 2) -> Benchmark:
    """Questions of four categories, one of which wants references."""
    names = ["writing", "math", "stem", "roleplay"]
    made = [
        Question(
            str(81 + n),
            names[n % 4],
            tuple(f"question {81 + n} turn {t}?" for t in range(1, turns + 1)),
        )
        for n in range(questions)
    ]
    return Benchmark("mt-bench", made, [{"name": "made up", "sha256": "0" * 64}])


def answers(of: Benchmark, who: str = "A") -> dict[str, list[str]]:
    """``A81.1!`` answers turn 1 of question 81."""
    return {q.id: [f"{who}{q.id}.{t}!" for t in range(1, len(q.turns) + 1)] for q in of.questions}


def recorded(of: Benchmark, who: str = "A") -> Player:
    return Player(f"model-{who}", f"{who}@1", recorded=answers(of, who))


def setup(of: Benchmark, server: Handle, against: Player | None = None, **values: Any) -> Setup:
    judge = Player("the judge", "judge@1", ServedModel.at(server.url))
    given = {"mode": "single", "prompts": default_prompts(), "block": BLOCK, **values}
    return Setup(
        of, model=given.pop("model", None) or recorded(of), against=against, judge=judge, **given
    )


def rules(replies: dict[str, Any]) -> list[list[Any]]:
    """Answer mark → replies in order. A later turn's prompt holds the earlier ones too, so later
    marks go first.
    """
    marks = sorted(replies, key=lambda mark: -int(mark.split(".")[1]))
    return [
        [
            re.escape(mark + "!"),
            replies[mark] if isinstance(replies[mark], list) else [replies[mark]],
        ]
        for mark in marks
    ]


def graded(of: Benchmark, who: str = "A") -> dict[str, float]:
    """A grade for each answer, with halves."""
    return {
        f"{who}{q.id}.{t}": 1 + ((int(q.id) * 7 + t * 3) % 18) / 2
        for q in of.questions
        for t in range(1, len(q.turns) + 1)
    }


def test_grades_are_aggregated_as_published(tmp_path: Path) -> None:
    of = bench()
    grades = graded(of)
    with mock(
        latency=0.005, tail=True
    ) as server:  # answers come back in another order than they were asked for
        server.script(
            rules=rules({mark: f"Good. Grade: [[{grade:g}]]" for mark, grade in grades.items()})
        )
        result = judged(setup(of, server), tmp_path)
    found = result.scores["model-A"]
    by_turn = {t: fmean(g for mark, g in grades.items() if mark.endswith(f".{t}")) for t in (1, 2)}
    category = {q.id: q.category for q in of.questions}
    assert (
        found.mean.value == pytest.approx(fmean(grades.values()))
        and found.mean.n == found.judgments == 16
    )
    assert {t: n.value for t, n in found.turns.items()} == pytest.approx(by_turn)
    for name, number in found.categories.items():
        assert number.value == pytest.approx(
            fmean(g for m, g in grades.items() if category[m[1:].split(".")[0]] == name)
        )
    assert found.missing == {} and result.missing == 0
    assert found.mean.low < found.mean.value < found.mean.high
    written = json.loads(result.path.read_text("utf-8"))
    assert (
        written["judge"]["prompts"] == default_prompts().to_dict()
        and written["scores"]["model-A"]["mean"]["n"] == 16
    )


def test_every_planted_failure_is_missing_and_counted(tmp_path: Path) -> None:
    of = bench()
    replies: dict[str, Any] = {mark: f"[[{grade:g}]]" for mark, grade in graded(of).items()}
    planted: dict[str, Any] = {
        "A81.1": "I have no grade for this.",
        "A82.1": "[[11]]",
        "A83.1": "[[3]] or [[4]]",
        "A84.1": "[[7.]]",
        "A85.1": "I'm sorry, I cannot assist with that.",
        "A86.1": "",
        "A87.1": {"wait": 5},
        "A88.1": {"status": 422},
        "A81.2": ["hm", "[[nine]]", "[[9]]"],  # the third attempt can be read
    }
    with mock() as server:
        server.script(rules=rules({**replies, **planted}))
        block = BLOCK.model_copy(update={"timeout_s": 0.4})
        result = judged(setup(of, server, block=block), tmp_path)
    found = result.scores["model-A"]
    assert found.missing == {
        "no_verdict": 1, "out_of_range": 1, "several_verdicts": 1, "malformed": 1, "empty": 1,
        "timeout": 1, "refused": 2,
    }  # fmt: skip
    assert found.judgments == 16 == found.mean.n + sum(found.missing.values())
    assert found.turns[1].value is None and found.turns[1].n == 0, "missing, not 0"
    second = {mark: grade for mark, grade in graded(of).items() if mark.endswith(".2")} | {
        "A81.2": 9
    }
    assert found.turns[2].value == found.mean.value == pytest.approx(fmean(second.values()))
    assert any("8 without a verdict" in sentence for sentence in sentences(result))


def test_pairs_are_judged_in_both_orders_and_a_disagreement_is_a_tie(tmp_path: Path) -> None:
    of = bench(questions=6, turns=1)
    ours, theirs = "<assistant_a>[^<]*A{}.1!", "<assistant_a>[^<]*B{}.1!"
    script = {
        81: ("[[A]]", "[[B]]"),  # ours wins in both orders
        82: ("[[B]]", "[[A]]"),  # theirs does
        83: ("[[C]]", "[[C]]"),
        84: ("[[A]]", "[[A]]"),  # whoever is first
        85: ("[[A]]", "[[C]]"),  # a win and a tie
        86: ("[[A]]", "both are nice"),  # one order never gets a verdict
    }
    with mock() as server:
        server.script(
            rules=[[ours.format(q), [first]] for q, (first, _) in script.items()]
            + [[theirs.format(q), [second]] for q, (_, second) in script.items()]
        )
        result = judged(setup(of, server, recorded(of, "B"), mode="pairwise"), tmp_path)
        assert server.stats()["requests"] == 12 + 2
    found = result.wins
    assert found is not None
    assert (found.wins, found.ties, found.losses, found.pairs, found.missing) == (
        1,
        3,
        1,
        6,
        {"no_verdict": 1},
    )
    assert found.win_rate.value == pytest.approx((1 + 3 * 0.5) / 5) and found.win_rate.n == 5
    assert found.flip_rate.value == pytest.approx(2 / 5)
    assert found.single_order_win_rate.value == pytest.approx((1 + 0 + 0.5 + 1 + 1 + 1) / 6)
    assert found.categories["stem"].value == 0.5 and table(result)[1][0][0] == "all"


def test_a_judge_that_loves_the_first_place_fools_one_order_but_not_both(tmp_path: Path) -> None:
    of = bench(questions=20, turns=2)
    with mock() as server:
        server.script(rules=[[".", ["The first one. [[A]]"]]])
        found = judged(setup(of, server, recorded(of, "B"), mode="pairwise"), tmp_path).wins
    assert found is not None
    assert found.single_order_win_rate.value == 1.0, "one order alone is fooled"
    assert found.win_rate.value == 0.5 and found.ties == 40
    assert found.flip_rate.value == 1.0 and found.first_shown_rate == 1.0, (
        "and the flip rate says so"
    )


def test_two_models_are_compared_in_pairs_of_answers(tmp_path: Path) -> None:
    of = bench(questions=12)
    replies: dict[str, Any] = {mark: f"[[{grade:g}]]" for mark, grade in graded(of, "A").items()}
    replies |= {
        f"B{mark[1:]}": f"[[{min(10, grade + 0.5):g}]]" for mark, grade in graded(of, "A").items()
    }
    replies |= {f"C{mark[1:]}": "[[5]]" for mark in graded(of, "A")}
    replies["B81.1"] = "no grade"
    with mock() as server:
        server.script(rules=rules(replies))
        result = judged(setup(of, server, recorded(of, "B")), tmp_path)
        paired = {m: g for m, g in graded(of).items() if m != "A81.1"}
        found = result.difference
        assert found is not None and found["n"] == 23 and found["unpaired"] == 1
        assert found["difference"] == pytest.approx(
            fmean(g - min(10, g + 0.5) for g in paired.values())
        )
        assert found["outside_noise"] and found["low"] <= found["difference"] <= found["high"] < 0
        before = server.stats()["requests"]
        third = judged(setup(of, server, recorded(of, "C"), model=recorded(of)), tmp_path)
        assert server.stats()["requests"] == before + 24, "the first model's grades are known"
        assert third.scores["model-A"].mean.value == result.scores["model-A"].mean.value


def test_a_served_model_plays_all_turns_and_is_asked_for_none_twice(tmp_path: Path) -> None:
    of = bench(questions=4, turns=3)
    with mock() as server, mock(deterministic=True) as model:
        server.script(rules=[[".", ["[[5]]"]]])
        player = Player("served", "served@1", ServedModel.at(model.url))
        result = judged(setup(of, server, model=player, max_tokens=9), tmp_path)
        assert result.scores["served"].mean.n == 12 and model.stats()["requests"] == 12
        asked = [line["body"] for line in model.ledger()]
        longest = max(asked, key=lambda body: len(body["messages"]))
        assert [m["role"] for m in longest["messages"]] == [
            "user",
            "assistant",
            "user",
            "assistant",
            "user",
        ]
        temperatures = {b["messages"][0]["content"]: b["temperature"] for b in asked}
        assert (
            temperatures["question 82 turn 1?"] == 0.0
            and temperatures["question 81 turn 1?"] == 0.7
        )
        assert {body["max_tokens"] for body in asked} == {9}
        again = judged(setup(of, server, model=player, max_tokens=9), tmp_path)
        assert model.stats()["requests"] == 12 and server.stats()["requests"] == 12
        assert again.scores == result.scores


def test_a_turn_that_the_model_refuses_is_missing_with_all_behind_it(tmp_path: Path) -> None:
    of = bench(questions=3, turns=3)
    with mock() as server, mock(longest=60, deterministic=True) as model:
        server.script(rules=[[".", ["[[5]]"]]])
        found = judged(
            setup(of, server, model=Player("short", "s", ServedModel.at(model.url))), tmp_path
        ).scores["short"]
    assert found.missing == {"no_answer": 3} and found.turns[3].value is None and found.mean.n == 6


def test_a_budget_stops_judging_and_the_next_run_judges_the_rest(tmp_path: Path) -> None:
    of = bench(questions=10)
    with mock() as server:
        server.script(rules=[[".", ["[[5]]"]]])
        poor = judged(
            setup(of, server, block=BLOCK.model_copy(update={"budget_tokens": 3000})), tmp_path
        )
        found = poor.scores["model-A"]
        assert 0 < found.mean.n < 20 and set(found.missing) == {"budget_tokens"}
        assert (
            poor.judging["stopped"] == "budget_tokens"
            and sum(poor.judging["tokens"].values()) <= 3000
        )
        assert any("Stopped by budget_tokens" in sentence for sentence in sentences(poor))
        rich = judged(setup(of, server), tmp_path)
        assert rich.scores["model-A"].mean.n == 20 and server.stats()["requests"] == 20


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from evaluation.test_judged import bench, recorded, setup
from support.mock_endpoint import Handle
from hubkit.evaluation import judged
judged(setup(bench(questions=80), Handle(sys.argv[1], None, None)), Path(sys.argv[2]))
"""


def test_kill_9_in_the_middle_of_160_judgments_and_exactly_the_rest_is_judged(
    tmp_path: Path,
) -> None:
    of = bench(questions=80)
    with mock(latency=0.03) as server:
        server.script(rules=rules({mark: f"[[{grade:g}]]" for mark, grade in graded(of).items()}))
        run = subprocess.Popen([sys.executable, "-c", RUN, server.url, str(tmp_path)], cwd=ROOT)
        until(lambda: server.stats()["answered"] >= 60)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        time.sleep(0.2)  # what was out is answered to nobody
        answered = server.stats()["answered"]
        journal = (tmp_path / "journal" / "judgments.jsonl").read_bytes()
        kept = sum(
            line.endswith(b"}\n") and b'"key"' in line for line in journal.splitlines(keepends=True)
        )
        assert 40 <= kept <= answered < 160, "killed in the middle"
        assert answered - kept <= BLOCK.in_flight, "only what was out at the kill is unknown"
        result = judged(setup(of, server), tmp_path)
        assert server.stats()["answered"] == answered + 160 - kept, "exactly the rest"
        assert (result.judging["from_journal"], result.judging["asked"]) == (kept, 160 - kept)
        assert result.scores["model-A"].mean.value == pytest.approx(fmean(graded(of).values()))
        asks = [line["ask"] for line in server.ledger()]
        assert len(asks) - len(set(asks)) == answered - kept
        judged(setup(of, server), tmp_path)
        assert server.stats()["answered"] == len(asks)
    logs = list(result.logs.glob("*.eval"))
    assert len(logs) == 1, "the killed session's log has made way"


def test_inspect_shows_the_logs(tmp_path: Path) -> None:
    from inspect_ai.log import list_eval_logs, read_eval_log

    of = bench(questions=3)
    with mock() as server:
        server.script(rules=[[".", ["The judge says so. [[5]]"]]])
        result = judged(setup(of, server), tmp_path)
    (found,) = list_eval_logs(str(result.logs.parent))
    log = read_eval_log(found)
    assert (
        log.status == "success"
        and log.eval.model == "hubkit/model-A"
        and log.eval.task == "mt-bench"
    )
    assert log.samples is not None and {str(s.id) for s in log.samples} == {"81", "82", "83"}
    assert "The judge says so." in str(log.samples[0].scores["rated"].explanation)
    assert [m.role for m in log.samples[0].messages] == ["user", "assistant"] * 2
    metrics = log.results.scores[0].metrics
    assert metrics["mean"].value == 5.0


def test_what_concerns_the_whole_run_stops_it(tmp_path: Path) -> None:
    of = bench(questions=3)
    with mock(key="secret") as server, pytest.raises(MisconfiguredEndpointError, match="judge"):
        judged(setup(of, server), tmp_path)
    with (
        mock() as server,
        mock(key="secret") as model,
        pytest.raises(MisconfiguredEndpointError, match="key"),
    ):
        judged(setup(of, server, model=Player("m", "m", ServedModel.at(model.url))), tmp_path)
    with mock() as server:
        with pytest.raises(EvalError, match="--against"):
            judged(setup(of, server, mode="pairwise"), tmp_path)
        with pytest.raises(EvalError, match="itself"):
            judged(setup(of, server, recorded(of)), tmp_path)
        from filelock import FileLock

        with FileLock(tmp_path / "lock"), pytest.raises(RunLockedError, match="another process"):
            judged(setup(of, server), tmp_path)


def test_mt_bench_itself_with_fastchats_prompts_and_references(tmp_path: Path) -> None:
    if not FASTCHAT.exists():
        pytest.skip(f"no MT-Bench questions at {FASTCHAT}")
    where = {"q": "mt_bench__question.jsonl", "r": "mt_bench__reference_answer__gpt-4.jsonl"}
    of = benchmarks.load(
        "mt-bench", lambda n: (FASTCHAT / where[n], where[n]), questions="q", references="r"
    )
    assert (
        len(of.questions) == 80
        and of.most_turns == 2
        and [len(f["sha256"]) for f in of.files] == [64, 64]
    )
    grades = graded(of)
    with mock() as server:
        server.script(rules=rules({mark: f"[[{grade:g}]]" for mark, grade in grades.items()}))
        prompts = read_prompts(FASTCHAT / "judge_prompts.jsonl")
        result = judged(setup(of, server, prompts=prompts), tmp_path)
        asked = [line["body"]["messages"][-1]["content"] for line in server.ledger()]
    assert sum("Reference Answer" in text for text in asked) == 60, (
        "math, reasoning and coding, both turns"
    )
    found = result.scores["model-A"]
    assert found.mean.n == 160 and found.mean.value == pytest.approx(fmean(grades.values()))
    assert (
        len(found.categories) == 8
        and json.loads(result.path.read_text())["judge"]["prompts"]["sha256"] == prompts.sha256
    )


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def here(name: str) -> tuple[Path, str]:
    return Path(name), Path(name).name


def test_question_files_in_every_layout(tmp_path: Path) -> None:
    plain = [
        {"question_id": 1, "category": "math", "turns": ["a", "b"], "reference": ["x", "y"]},
        {"question_id": 2, "turns": ["c"]},
    ]
    found = benchmarks.load(str(write(tmp_path / "q.jsonl", plain)), here)
    assert found.name == "q" and found.questions == [
        Question("1", "math", ("a", "b"), ("x", "y")),
        Question("2", "all", ("c",)),
    ]
    prompts = [{"question_id": 1, "category": "math", "prompt": ["a", "b"], "reference": []}]
    assert benchmarks.load(str(write(tmp_path / "p.jsonl", prompts)), here).questions[0].turns == (
        "a",
        "b",
    )
    (tmp_path / "alpaca.json").write_text(
        json.dumps(
            [{"instruction": "do", "output": "done", "generator": "davinci", "dataset": "d"}]
        )
    )
    alpaca = benchmarks.load("alpaca", here, questions=str(tmp_path / "alpaca.json"))
    assert alpaca.questions == [Question("1", "d", ("do",))] and alpaca.recorded == {
        "davinci": {"1": ("done",)}
    }
    model = [{"question_id": 1, "model_id": "m", "choices": [{"index": 0, "turns": ["x", "y"]}]}]
    assert benchmarks.recorded_answers(str(write(tmp_path / "a.jsonl", model)), here)[0] == {
        "1": ("x", "y")
    }
    part = benchmarks.load(str(tmp_path / "q.jsonl"), here).part(questions=2, turns=1)
    assert [q.turns for q in part.questions] == [("a",), ("c",)]


def test_follow_ups_are_joined_to_their_questions(tmp_path: Path) -> None:
    from hubkit.evaluation.benchmarks import _followed

    questions = [Question("1", "math", ("a", "b")), Question("2", "math", ("c", "d"))]
    ups = [{"text": f"u{n}", "needs_context": True, "phenomenon": "ellipsis"} for n in range(6)]
    both, first = _followed(
        questions,
        [
            {"question_id": 1, "category": "math", "follow_ups": ups},
            {"question_id": 2, "after_turn": 1, "follow_ups": ups},
        ],
        "f",
    )
    assert both.turns == ("a", "b", "u0", "u1", "u2", "u3", "u4", "u5")
    assert first.turns == ("c", "u0", "u1", "u2", "u3", "u4", "u5")
    for bad in ({"question_id": 9, "follow_ups": ups}, {"question_id": 1, "follow_ups": ["x"]},
                {"question_id": 1, "follow_ups": ups, "after_turn": 3}):  # fmt: skip
        with pytest.raises(SourceError, match="f, record 1"):
            _followed(questions, [bad], "f")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"question_id": 1}', '{"question_id": 1, "turns": "  "}',
     '{"question_id": 1, "turns": [1]}',
     '{"question_id": 1, "turns": []}',
     '{"question_id": 1, "turns": ["a"]}\n{"question_id": 1, "turns": ["b"]}'],
)  # fmt: skip
def test_what_are_no_questions_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(SourceError, match=r"bad\.jsonl"):
        benchmarks.load(str(tmp_path / "bad.jsonl"), here)


def test_intervals_draw_questions_and_differences_are_paired() -> None:
    rows = [Rated(str(q), "c", t, 5 + (q % 3) + 0.1 * t) for q in range(30) for t in (1, 2)]
    wide = scores(rows[:20], Bootstrap()).mean
    narrow = scores(rows, Bootstrap()).mean
    assert wide.high - wide.low > narrow.high - narrow.low > 0
    copies = [Rated(r.question, "c", 10 * n + r.turn, r.rating) for r in rows for n in range(5)]
    same = scores(copies, Bootstrap()).mean
    assert same.high - same.low == pytest.approx(narrow.high - narrow.low, rel=0.15), (
        "more turns are not more questions"
    )
    shifted = [Rated(r.question, "c", r.turn, r.rating + 0.3) for r in rows]
    found, unpaired = difference(shifted, rows, Bootstrap())
    assert found.low == pytest.approx(0.3) == found.high and found.outside_noise and not unpaired


def test_length_control_takes_out_what_length_bought() -> None:
    from sklearn.linear_model import LogisticRegression

    def row(n: int) -> Compared:
        longer = n % 10 < 8
        won = "win" if (longer and n % 10 != 0) or (not longer and n % 20 == 9) else "loss"
        return Compared(
            str(n), "c", 1, won, won, (), 900 + 7 * (n % 11) if longer else 300, 500 + 3 * (n % 7)
        )

    rows = [row(n) for n in range(200)]
    found = wins(rows, Bootstrap())
    assert found.win_rate.value == pytest.approx(0.75)
    controlled = found.equal_length_win_rate
    assert controlled.value < 0.6 and controlled.low < controlled.value < controlled.high
    import numpy as np

    gaps = np.array([r.length - r.against_length for r in rows], dtype=float)
    model = LogisticRegression(C=1.0, tol=1e-8).fit(
        np.tanh(gaps / gaps.std())[:, None], [r.first == "win" for r in rows]
    )
    assert controlled.value == pytest.approx(1 / (1 + np.exp(-model.intercept_[0])), abs=1e-3)
    equal = [
        Compared(str(n), "c", 1, "win" if n < 6 else "loss", "win" if n < 6 else "loss", (), 5, 5)
        for n in range(8)
    ]
    assert wins(equal, Bootstrap()).equal_length_win_rate.value == pytest.approx(0.75)


def test_the_report_escapes_names_and_shows_what_was_published(tmp_path: Path) -> None:
    of = bench(questions=4)
    published = [entry for name in available()["recipes"] for entry in load(name).eval.published]
    assert {
        len(entry.columns)
        for entry in published
        for row in entry.rows.values()
        if len(row) != len(entry.columns)
    } == set()
    with mock() as server:
        server.script(rules=[[".", ["[[5]]"]]])
        evil = Player("<script>|[x](y)", "e", recorded=answers(of))
        weak = setup(of, server, model=evil)
        text = markdown(judged(weak, tmp_path), published)
    assert "<script>" not in text and "&lt;script&gt;\\|\\[x\\]" in text
    assert "6.85" in text and "third-party notes" in text and "Not measured here" in text
    assert "A weak judge" not in text
    assert default_prompts().sha256[:12] in text


def test_published_tables_do_not_make_the_eval_stage_run_again() -> None:
    recipe = load("parrot")
    without = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"published": []})})
    assert recipe.eval.published and recipe.digest("eval") == without.digest("eval")
