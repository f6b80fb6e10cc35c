"""``hubkit eval against``, through its own command: chat models and askers at their endpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation.test_scorecard import write
from support.mock_endpoint import Handle, mock
from support.tiny_models import tiny_base
from support.waiting import until
from typer import Typer
from typer.testing import CliRunner

from hubkit.cli import eval_against
from hubkit.errors import RecipeError, SourceError
from hubkit.hub import Ref, connect
from hubkit.recipe import Training
from hubkit.reinforcement import REWARDS, Episode


@pytest.fixture(scope="module")
def repos(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ref]:
    """A base, conversations, and an asker that answers elsewhere: its record, without weights."""
    hub, folder = connect(), tmp_path_factory.mktemp("repos")
    (folder / "base").mkdir()
    base = hub.commit(hub.qualify("tiny-base"), tiny_base(folder / "base"), "base")
    (folder / "corpus" / "data").mkdir(parents=True)
    write(folder / "corpus" / "data" / "test-00000-of-00001.parquet")
    corpus = hub.commit(
        hub.qualify("tiny-corpus"), folder / "corpus", "corpus", repo_type="dataset"
    )
    block = Training(
        base=base.repo_id, seat="user", system="You are a person.", end_mark="[bye]", lora={"r": 4}
    )
    record = {"stage": "asker", "block": block.model_dump(), "report": {},
              "inputs": {"base": base.to_dict(), "corpus": corpus.to_dict()}}  # fmt: skip
    (folder / "asker" / "provenance").mkdir(parents=True)
    (folder / "asker" / "provenance" / "asker.json").write_text(json.dumps(record))
    return {"base": base, "asker": hub.commit(hub.qualify("tiny-ask"), folder / "asker", "asker")}


@pytest.fixture(scope="module")
def server() -> Iterator[Handle]:
    with mock(deterministic=True) as handle:
        yield handle


@pytest.fixture(scope="module")
def other() -> Iterator[Handle]:
    with mock(deterministic=True, seed=7) as handle:
        yield handle


@pytest.fixture
def brevity() -> Iterator[None]:
    """A reward that tells models apart: the mean length of answers, cut off nothing."""

    def brevity() -> Any:
        def score(episode: Episode) -> float:
            return -sum(map(len, episode.answers)) / len(episode.answers)

        return score

    REWARDS["brevity"] = brevity
    yield
    del REWARDS["brevity"]


def run(*arguments: str) -> Any:
    app = Typer()
    app.command()(eval_against.against)
    done = CliRunner().invoke(app, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def words(server: Handle, other: Handle) -> list[str]:
    return [
        "tiny-ask", "--chat", f"{server.url}#first", "--chat", f"{other.url}#second",
        "--endpoint", f"tiny-ask={server.url}", "--endpoint", f"base={other.url}",
        "--turns", "2",
    ]  # fmt: skip


def test_every_chat_model_meets_every_asker(
    repos: dict[str, Ref],
    server: Handle,
    other: Handle,
    brevity: None,
    tmp_path: Path,
) -> None:
    arguments = [*words(server, other), "-n", "5", "-r", "brevity", "-r", "format=2"]
    out = tmp_path / "out"
    done = run(*arguments, "--out", str(out), "--json")
    result = json.loads(done.stdout)
    assert result["chats"] == ["first", "second"]
    assert result["askers"] == ["tiny-ask", "base as user"]
    assert result["settings"]["prompted"] == ["base as user"], "prompted role-play is the baseline"
    assert [cell["n"] for cell in result["cells"]] == [5, 5, 5, 5] and not result["stopped"]
    for cell in result["cells"]:
        parts = cell["parts"]
        assert cell["mean"] == pytest.approx(parts["brevity"] + 2 * parts["format"])
        assert cell["low"] <= cell["mean"] <= cell["high"] and cell["failures"] == {}
        assert cell["ends"] == {"target_turns": 5} and cell["mean_answers"] == 2
    differences = {(d["asker"], d["chat"], d["than"]): d for d in result["differences"]}
    assert set(differences) == {
        (asker, "second", "first") for asker in ("tiny-ask", "base as user", "all askers")
    }
    means = {(c["asker"], c["chat"]): c["mean"] for c in result["cells"]}
    pair = differences["tiny-ask", "second", "first"]
    told = means["tiny-ask", "second"] - means["tiny-ask", "first"]
    assert pair["difference"] == pytest.approx(told) and pair["n"] == 5
    assert differences["all askers", "second", "first"]["n"] == 10
    assert (out / "against.png").read_bytes()[:4] == b"\x89PNG"
    assert "| first |" in (out / "against.md").read_text()
    lines = [json.loads(line) for line in (out / "against.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and json.loads((out / "against.json").read_text()) == result

    before = server.stats()["requests"] + other.stats()["requests"]
    assert json.loads(run(*arguments, "--json").stdout)["cells"] == result["cells"]
    assert server.stats()["requests"] + other.stats()["requests"] == before, "nothing asked twice"


def test_a_dry_run_prices_and_refuses_what_the_run_would(
    repos: dict[str, Ref],
    server: Handle,
    other: Handle,
) -> None:
    before = server.stats()["requests"]
    arguments = [*words(server, other), "-n", "4", "-r", "format", "--dry-run"]
    priced = ["--price", "first=1,2", "--price", "tiny-ask=0.5,1", "--budget-usd", "3"]
    plan = json.loads(run(*arguments, *priced, "--json").stdout)
    assert [row["requests"] for row in plan["pairs"]] == [12, 12, 12, 12]
    assert plan["usd_at_most"] > 0 and plan["caps"]["budget_usd"] == 3
    prices = {(row["asker"], row["chat"]): row["usd_at_most"] for row in plan["pairs"]}
    assert prices["tiny-ask", "first"] > prices["base as user", "first"] > 0
    assert prices["base as user", "second"] == 0, "who has no price costs none"
    assert plan["usd_at_most"] == pytest.approx(sum(prices.values()))
    assert "requests" in run(*arguments).stdout
    judged = ["-r", "judges", "--judge", server.url, "-s", "judge.usd_per_million_input=10"]
    with_judge = json.loads(run(*arguments, *judged, *priced, "--json").stdout)
    [judge] = with_judge["judges"]
    assert judge["judgments"] == with_judge["judgments"] == 16 and judge["usd_at_most"] > 0
    total = plan["usd_at_most"] + judge["usd_at_most"]
    assert with_judge["usd_at_most"] == pytest.approx(total), "the judge's price is in the sum"
    assert "What judges would be asked" in run(*arguments, *judged).stdout
    for more, says in (
        (["-r", "formt"], "did you mean 'format'"),
        (["-r", "format=x"], "must be NAME=WEIGHT"),
        (["--chat", f"{server.url}#first"], "give every chat model once"),
        (["--price", "nobody=1,2"], "there is no 'nobody' to have a price"),
        (["--price", "first=1"], "must be NAME=IN,OUT"),
        (["--budget-usd", "1"], "caps nothing, because"),
        (["-r", "judges", "--judge", server.url, "-s", "judge.token_env=NOT_SET"], "NOT_SET"),
    ):
        with pytest.raises(RecipeError, match=says):
            run(*arguments, *more)
    with pytest.raises(SourceError, match="is a file"):
        run(*arguments, "--chat", __file__)
    assert server.stats()["requests"] == before


def test_failures_are_counted_and_never_score_0(
    repos: dict[str, Ref],
    server: Handle,
    brevity: None,
) -> None:
    with mock(deterministic=True) as broken:
        broken.script(status=400, message="content policy", after=3)
        result = json.loads(
            run("tiny-ask", "--no-base", "--chat", f"{server.url}#good",
                "--chat", f"{broken.url}#bad", "--endpoint", f"tiny-ask={server.url}",
                "-n", "6", "--turns", "2", "-r", "brevity", "--seed", "3", "--in-flight", "1",
                "--json").stdout
        )  # fmt: skip
    good, bad = result["cells"]
    assert good["n"] == 6 and 0 < bad["n"] < 6
    assert bad["n"] + sum(bad["failures"].values()) == 6 and "chat_error" in bad["failures"]
    assert result["differences"][0]["n"] == bad["n"], "pairs that both have"


def test_a_cap_ends_it_and_a_larger_one_resumes(
    repos: dict[str, Ref],
    server: Handle,
    other: Handle,
    brevity: None,
) -> None:
    arguments = [*words(server, other), "-n", "5", "-r", "brevity", "--seed", "4", "--json"]
    before = len(server.ledger()) + len(other.ledger())
    small = json.loads(run(*arguments, "--budget-tokens", "400", "--max-tokens", "50").stdout)
    assert small["stopped"] == "budget_tokens"
    held = sum(cell["n"] for cell in small["cells"])
    missing = sum(sum(cell["failures"].values()) for cell in small["cells"])
    assert 0 < held < 20 and held + missing == 20
    whole = json.loads(run(*arguments, "--max-tokens", "50").stdout)
    assert [cell["n"] for cell in whole["cells"]] == [5] * 4 and not whole["stopped"]
    assert len(server.ledger()) + len(other.ledger()) == before + 20 * 3, "none answered twice"


@pytest.mark.slow
def test_a_kill_loses_nothing_and_asks_for_nothing_twice(
    repos: dict[str, Ref],
) -> None:
    with mock(latency=0.05) as slow:
        command = [
            sys.executable, "-m", "hubkit", "eval", "against", "tiny-ask", "--chat",
            f"{slow.url}#first", "--chat", f"{slow.url}#second",
            "--endpoint", f"tiny-ask={slow.url}", "--endpoint", f"base={slow.url}",
            "-n", "8", "--turns", "3", "-r", "format", "--seed", "9", "--in-flight", "2", "--json",
        ]  # fmt: skip
        for answers in (12, 60):
            process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL)
            until(lambda enough=answers: len(slow.ledger()) >= enough, timeout_s=120)
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert [cell["n"] for cell in result["cells"]] == [8] * 4
        requests = 4 * 8 * 5
        in_flight_at_kills = 2 * 2
        assert requests <= len(slow.ledger()) <= requests + in_flight_at_kills
