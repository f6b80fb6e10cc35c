"""Other people's multi-turn tests in the one form: each is read, asked and scored as its authors
do; small files of our own in the same shape."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.mock_endpoint import Handle, mock
from support.paths import ROOT

from hubkit.errors import EvalError, SourceError
from hubkit.evaluation import Player, Setup, benchmarks, judged
from hubkit.evaluation.chat import mode_for, plan
from hubkit.evaluation.checkers import passed
from hubkit.evaluation.items import Benchmark, Check, Criterion, Question
from hubkit.evaluation.report import sentences, table
from hubkit.judging import default_prompts
from hubkit.recipe import Judging, Sampling, SeatConfig
from hubkit.serving import ServedModel

BLOCK = Judging(
    judge=SeatConfig(
        repo="judge", profile="openai", sampling=Sampling(temperature=0, max_tokens=50)
    )
)


def here(name: str) -> tuple[Path, str]:
    return Path(name), Path(name).name


def loaded(
    folder: Path, name: str, rows: list[dict[str, Any]], suffix: str = ".jsonl"
) -> Benchmark:
    path = folder / f"own{suffix}"
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, "utf-8")
    return benchmarks.load(name, here, questions=str(path))


def setup(of: Benchmark, judge: str, model: Player, **values: Any) -> Setup:
    return Setup(
        benchmark=of,
        mode=mode_for(values.pop("mode", None), of),
        model=model,
        against=values.pop("against", None),
        judge=Player("the judge", "judge@1", ServedModel.at(judge)),
        prompts=default_prompts(),
        block=BLOCK,
        **values,
    )


def served(server: Handle, name: str = "model") -> Player:
    return Player(name, f"{name}@1", ServedModel.at(server.url))


MULTICHALLENGE = [
    {
        "QUESTION_ID": f"q{number}",
        "AXIS": axis,
        "CONVERSATION": [
            {"role": "user", "content": f"I am allergic to nuts, number {number}."},
            {"role": "assistant", "content": "I will remember."},
            {"role": "user", "content": f"Suggest a snack, number {number}."},
        ],
        "TARGET_QUESTION": f"Does snack {number} contain nuts?",
        "PASS_CRITERIA": "NO",
    }
    for number, axis in enumerate(["INFERENCE_MEMORY"] * 3 + ["SELF_COHERENCE"])
]


def test_multichallenge_is_answered_after_its_history_and_scored_per_axis(tmp_path: Path) -> None:
    of = loaded(tmp_path, "multichallenge", MULTICHALLENGE)
    with mock() as judge, mock() as model:
        model.script(rules=[["Suggest a snack", ["An apple."]]])
        judge.script(
            rules=[["snack 0 contain", ["[[yes]]"]], ["snack 3 contain", ["[[no]]"]],
                   ["snack [12] contain", ["It does not. [[no]]"]]]
        )  # fmt: skip
        result = judged(setup(of, judge.url, served(model)), tmp_path / "log")
        sent = model.ledger()[0]["body"]["messages"]
        asked = judge.ledger()[0]["body"]["messages"][-1]["content"]
    assert [m["role"] for m in sent] == ["user", "assistant", "user"]
    assert "allergic to nuts" in asked and "An apple." in asked and "contain nuts?" in asked
    score = result.scores["model"]
    assert score.rate.value == 3 / 4 and score.macro == pytest.approx((2 / 3 + 1) / 2)
    assert score.categories["SELF_COHERENCE"].value == 1.0
    assert ["mean over categories", "83.3%"] in table(result)[1]
    assert any("mean over axes" in sentence for sentence in sentences(result))


def test_mt_bench_101_grades_turns_after_recorded_ones_and_counts_the_lowest(
    tmp_path: Path,
) -> None:
    def dialogue(task: str, number: int) -> dict[str, Any]:
        turns = [
            {"user": f"{task}{number} question {t}", "bot": f"gold {task}{number}.{t}"}
            for t in (1, 2, 3)
        ]
        return {"task": task, "id": number, "history": turns}

    of = loaded(tmp_path, "mt-bench-101", [dialogue("GR", 1), dialogue("CM", 2), dialogue("CM", 3)])
    assert [q.id for q in of.questions] == [
        "GR/1/1", "GR/1/2", "GR/1/3", "CM/2/2", "CM/2/3", "CM/3/2", "CM/3/3",
    ]  # fmt: skip
    grades = {
        "GR1 question 1": 9, "GR1 question 2": 4, "GR1 question 3": 7, "CM2 question 2": 8,
        "CM2 question 3": 6, "CM3 question 2": 2, "CM3 question 3": 10,
    }  # fmt: skip
    with mock() as judge, mock() as model:
        model.script(rules=[[".", ["an answer"]]])
        judge.script(
            rules=[[f"<question>\n{text}\n", [f"[[{grade}]]"]] for text, grade in grades.items()]
        )
        result = judged(setup(of, judge.url, served(model)), tmp_path / "log")
        prompts = [line["body"]["messages"][-1]["content"] for line in judge.ledger()]
        last = next(p for p in prompts if "<question>\nGR1 question 3" in p)
    score = result.scores["model"]
    assert score.judgments == 3 and score.mean.value == pytest.approx((4 + 6 + 2) / 3)
    assert score.categories["GR"].value == 4 and score.categories["CM"].value == 4
    assert "gold GR1.2" in last and "gold GR1.3" in last, "history and, for this ability, reference"
    assert not any("gold CM2.3" in p for p in prompts), "no reference for the others"


WILDBENCH = [
    {
        "session_id": f"s{number}",
        "primary_tag": tag,
        "secondary_tags": [],
        "conversation_input": [{"role": "user", "content": f"task {number}"}],
        "checklist": [f"Point {number} is met?", "It is short?"],
    }
    for number, tag in enumerate(["Math", "Editing", "Planning", "Reasoning"])
]


def test_wildbench_shows_the_checklist_and_slight_wins_by_length_are_ties(tmp_path: Path) -> None:
    of = loaded(tmp_path, "wildbench", WILDBENCH)
    ids = [q.id for q in of.questions]
    short = Player("short", "short@1", recorded={i: [f"{i} brief"] for i in ids})
    long = Player("long", "long@1", recorded={i: [f"{i} " + "w" * 600] for i in ids})
    verdicts = {  # of the long answer, shown first and second
        "s0": ("[[A+]]", "[[B+]]"),  # slightly better, by length: a tie
        "s1": ("[[A++]]", "[[B++]]"),
        "s2": ("[[B+]]", "[[A+]]"),
        "s3": ("[[A=B]]", "[[A=B]]"),
    }
    with mock() as judge:
        rules = []
        for item, (first, second) in verdicts.items():
            a = "<conversation_with_assistant_a>[^<]*" + item
            rules += [[a + " www", [first]], [a + " brief", [second]]]
        judge.script(rules=rules)
        result = judged(
            setup(of, judge.url, long, against=short, mode="pairwise"), tmp_path / "log"
        )
        assert "- Point 0 is met?" in judge.ledger()[0]["body"]["messages"][-1]["content"] or any(
            "- Point 0 is met?" in line["body"]["messages"][-1]["content"]
            for line in judge.ledger()
        )
        judge.script(rules=[[".", ["[[7]]"]]])
        graded = judged(setup(of, judge.url, long), tmp_path / "log")
    wins = result.wins
    assert wins is not None and (wins.wins, wins.ties, wins.losses) == (1, 2, 1)
    assert wins.reward is not None and wins.reward.value == pytest.approx((0 + 1 - 0.5 + 0) / 4)
    assert graded.scores["long"].mean.value == 7
    assert set(graded.scores["long"].categories) == {
        "Math & Data Analysis", "Creative Tasks", "Planning & Reasoning",
    }  # fmt: skip


def test_multi_if_is_checked_per_turn_by_the_kept_library(tmp_path: Path) -> None:
    pytest.importorskip("if_verifiable")

    def prompt(text: str) -> str:
        return json.dumps({"role": "user", "content": text})

    rows = [
        {
            "key": "1:en",
            "language": "English",
            "turn_1_prompt": prompt("Say hello without commas."),
            "turn_1_instruction_id_list": json.dumps(["punctuation:no_comma"]),
            "turn_1_kwargs": json.dumps(["{}"]),
            "turn_2_prompt": prompt("Now in all lower case, with the word bread."),
            "turn_2_instruction_id_list": json.dumps(
                ["punctuation:no_comma", "keywords:existence"]
            ),
            "turn_2_kwargs": json.dumps(["{}", json.dumps({"keywords": ["bread"]})]),
            "turn_3_prompt": "",
            "turn_3_instruction_id_list": "[]",
            "turn_3_kwargs": "[]",
        }
    ]
    of = loaded(tmp_path, "multi-if", rows)
    with mock() as model:
        model.script(rules=[["Now in all", ["hello, bread"]], [".", ["Hello there"]]])
        result = judged(setup(of, "http://127.0.0.1:9", served(model)), tmp_path / "log")
    score = result.scores["model"]
    assert (score.turns[1].value, score.turns[2].value) == (1.0, 0.0)
    assert score.parts.value == pytest.approx(2 / 3) and score.rate.n == 2
    assert "no judge was asked" in " ".join(sentences(result)) and result.judging == {}


LOST = [
    {
        "task": "math",
        "task_id": "sharded-math/1",
        "question": "Ann has 3 bags of 4 apples. How many apples?",
        "answer": "3 * 4 = 12\n#### 12",
        "shards": [
            {"shard_id": 1, "shard": "How many apples does Ann have?"},
            {"shard_id": 2, "shard": "She has 3 bags."},
            {"shard_id": 3, "shard": "Each holds 4 apples."},
        ],
    },
    {"task": "code", "task_id": "sharded-code/1", "shards": []},
]


def test_lost_in_conversation_is_revealed_by_a_simulated_user(tmp_path: Path) -> None:
    of = loaded(tmp_path, "lost-in-conversation", LOST, ".json")
    assert [(q.category, len(q.turns)) for q in of.questions] == [
        ("full", 1), ("concat", 1), ("sharded", 3),
    ]  # fmt: skip
    with mock() as model, mock() as user:
        model.script(
            rules=[["worded", ["It may be 7."]], ["3 bags of 4|take all|Take all", ["So 12."]]]
        )
        user.script(rules=[[".", ["worded by the user"]]])
        asker = served(user, "asker")
        made = setup(of, "http://127.0.0.1:9", served(model), user=asker)
        assert made.answers == 5 + 3
        result = judged(made, tmp_path / "log")
        revealed = [line["body"]["messages"] for line in user.ledger()]
        before = user.stats()["requests"], model.stats()["requests"]
        judged(made, tmp_path / "log")
        assert (user.stats()["requests"], model.stats()["requests"]) == before, "nothing twice"
    assert [m[0]["content"].rpartition(": ")[2] for m in revealed] == [
        s["shard"] for s in LOST[0]["shards"]
    ]
    assert [m["role"] for m in revealed[1]] == ["system", "assistant", "user"], "the user's seat"
    shares = {name: n.value for name, n in result.scores["model"].categories.items()}
    assert shares == {"full": 1.0, "concat": 1.0, "sharded": 0.0}


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        ("multichallenge", {"AXIS": "x"}, "no column 'conversation'"),
        ("multichallenge", MULTICHALLENGE[0] | {"PASS_CRITERIA": "maybe"}, "neither YES nor NO"),
        ("wildbench", WILDBENCH[0] | {"conversation_input": []}, "end on a user's turn"),
        ("mt-bench-101", {"task": "CM", "history": ["x"]}, "turns with user and bot"),
        ("multi-if", {"turn_1_prompt": "{"}, "is not JSON"),
        ("lost-in-conversation", LOST[1], "no tasks of the kind math"),
    ],
)
def test_a_file_in_another_shape_is_said(tmp_path: Path, name: str, row: Any, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        loaded(tmp_path, name, [row])


def test_what_a_run_would_refuse_its_plan_refuses(tmp_path: Path) -> None:
    model = Player("m", "m@1", recorded={"1": ["a"]})
    plain = Benchmark("own", [Question("1", "all", ("hi",))], [{"name": "f", "sha256": "0"}])
    for mode, why in (("criteria", "no criteria"), ("checks", "nothing that code can check")):
        with pytest.raises(EvalError, match=why):
            plan(setup(plain, "http://127.0.0.1:9", model, mode=mode), tmp_path)
    odd = [Question("1", "all", ("hi",), checks=((Check("spell"),),))]
    unknown = Benchmark("own", odd, plain.files)
    with pytest.raises(EvalError, match="no checker 'spell'"):
        plan(setup(unknown, "http://127.0.0.1:9", model), tmp_path)
    with pytest.raises(SourceError, match=r"no home on the Hub.*--questions FILE"):
        benchmarks.load("mt-bench-101", here)


def test_a_plan_counts_what_a_run_asks(tmp_path: Path) -> None:
    of = loaded(tmp_path, "multichallenge", MULTICHALLENGE)
    model = Player("m", "m@1", recorded={q.id: ["apple"] for q in of.questions})
    with mock() as judge:
        judge.script(rules=[[".", ["[[no]]"]]])
        made = setup(of, judge.url, model)
        counted = plan(made, tmp_path)
        judged(made, tmp_path / "log")
        assert counted["judgments"] == judge.stats()["requests"] == 4
    assert counted["at_most"]["completion_tokens"] == 4 * 50


def test_own_items_may_have_all_of_it(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": "a",
            "messages": [{"role": "system", "content": "Be brief."}],
            "turns": ["Hi."],
            "criteria": ["Is it brief?", {"text": "Is it rude?", "passes": "no"}],
            "checks": [[{"name": "word_count", "arguments": {"most": 3}}]],
        }
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    of = benchmarks.load(str(tmp_path / "own.jsonl"), here)
    (question,) = of.questions
    assert question.criteria == (Criterion("Is it brief?"), Criterion("Is it rude?", "no"))
    assert mode_for(None, of) == "criteria" and mode_for("checks", of) == "checks"
    assert question.checks[0][0].arguments == {"most": 3}


@pytest.mark.parametrize(
    ("check", "answer", "expected"),
    [
        (Check("contains", {"text": "Rye"}), "some rye", True),
        (Check("matches", {"pattern": r"^\d+$"}), "12 ", False),
        (Check("word_count", {"least": 2, "most": 3}), "one two", True),
        (Check("json"), '```json\n{"a": 1}\n```', True),
        (Check("number", {"value": "1200"}), "So it is $1,200.", True),
        (Check("number", {"value": "12"}), "12 of 13", False),
        (Check("number", {"value": "12"}), "none", False),
        (Check("word_count", {"most": 3}), "", False),
    ],
)
def test_checkers(check: Check, answer: str, expected: bool) -> None:
    assert passed(check, answer, "") is expected


KILLED = """
import sys, json
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_suites import MULTICHALLENGE, loaded, served, setup
from hubkit.evaluation import Player, judged
from hubkit.serving import ServedModel
folder = Path(sys.argv[1])
rows = [MULTICHALLENGE[0] | {"QUESTION_ID": f"q{n}", "TARGET_QUESTION": f"Does {n} pass?"}
        for n in range(40)]
of = loaded(folder, "multichallenge", rows)
model = Player("model", "model@1", ServedModel.at(sys.argv[3]))
print(judged(setup(of, sys.argv[2], model), folder / "log").scores["model"].rate.n)
"""


def test_kill_9_while_criteria_are_judged_and_exactly_the_rest_is(tmp_path: Path) -> None:
    with mock(latency=0.05) as judge, mock() as model:
        judge.script(rules=[[".", ["[[no]]"]]])
        model.script(rules=[[".", ["An apple."]]])
        command = [
            sys.executable, "-c", KILLED, str(tmp_path), judge.url, model.url,
            str(Path(__file__).parent),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        first = subprocess.Popen(command, env=environment)
        while judge.stats()["answered"] < 10 and first.poll() is None:
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        answered = judge.stats()["answered"]
        assert 10 <= answered < 40
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "40"
        assert judge.stats()["answered"] <= 40 + 8, "at most what was out when it died"
        assert model.stats()["answered"] <= 40 + 8


PERFECT = {
    "2001": ["Banana, lemon, pineapple", "Cherry, strawberry, apple", "DONE"],
    "2002": ['{"name": "Ada", "age": 3}', '{"name": "Ada", "age": 3, "city": "Bonn"}', '[{}, {}]'],
    "2003": ["- bread\n- cheese\n- water\n- rug", "1. a\n2. b\n3. c\n4. d", "Water."],
    "2004": ["How it rains!", "Does it snow?", "How it rains, and does it snow?"],
    "2005": ["word " * 40, "Sleep repairs body and mind.", "People sleep to recover."],
    "2006": ["Waves, salt and a long horizon.", "Dunes and heat without end.", "Tree after tree."],
    "2007": ["Hello, Oluwaseun!", "Have a good trip to Porto.", "Oluwaseun, on the way to Porto."],
    "2008": ["OK.", "Rome", "It was marmalade."],
    "2009": ["12 + 30 = 42", "21", "21 * 2 + 1 = 43"],
    "2010": ["12", "13", "13"],
    "2011": ["6", "You get back 4", "2"],
    "2012": ["14", "21", "21 - 14 = 7"],
}  # fmt: skip


def test_the_checks_that_ship_can_be_met_and_missed(tmp_path: Path) -> None:
    of = benchmarks.load("offline-checks", here)
    assert {q.id for q in of.questions} == set(PERFECT) and mode_for(None, of) == "checks"
    wrong = {key: ["", answers[1], "I would rather not say."] for key, answers in PERFECT.items()}
    shares = {}
    for name, answers in (("perfect", PERFECT), ("wrong", wrong)):
        player = Player(name, f"{name}@1", recorded=answers)
        shares[name] = judged(setup(of, "", player), tmp_path / name).scores[name].rate.value
    assert shares == {"perfect": 1.0, "wrong": pytest.approx(1 / 3)}
