"""``hubkit env``, through its own command: an asker of a Hub as an environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from cli.test_scorecard_cli import hub, repos, server  # noqa: F401
from openenv.core.generic_client import GenericEnvClient
from support.mock_endpoint import Handle
from support.waiting import OPENENV
from typer import Typer
from typer.testing import CliRunner

from hubkit.cli import env as command
from hubkit.errors import RecipeError, SourceError
from hubkit.hub import Ref


def run(*arguments: str) -> Any:
    app = Typer()
    app.command()(command.env)
    done = CliRunner().invoke(app, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def play(arguments: list[str], **env: str) -> tuple[dict[str, Any], list[Any], str]:
    """Serve, have one conversation, stop it: what it printed, the results, and its last words."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hubkit", "env", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    assert process.stdout is not None
    try:
        lines = list(takewhile(lambda line: line != "}\n", process.stdout))
        assert lines, process.communicate()[1]
        told = json.loads("".join([*lines, "}"]))
        url = told["url"]
        if token := env.get("HUBKIT_ENDPOINT_TOKEN"):
            url = url.replace("//", f"//env:{token}@")
        with GenericEnvClient(base_url=url, **OPENENV).sync() as client:
            results = [client.reset(seed=0), client.step({"message": "Knead it."})]
            results.append(client.step({"message": "Bake it."}))
        process.send_signal(signal.SIGINT)
        last = process.communicate(timeout=240)[1]
        assert process.returncode == 0, last
        return told, results, last
    finally:
        process.kill()
        process.communicate()


def test_an_asker_of_a_hub_is_served_until_ctrl_c(
    repos: dict[str, Ref],  # noqa: F811
    server: Handle,  # noqa: F811
) -> None:
    data = f"tiny-corpus@{repos['corpus'].revision}:test"
    told, results, last = play(
        ["tiny-ask", "--data", data, "--endpoint", server.url, "--turns", "2"],
        HUBKIT_ENDPOINT_TOKEN="s3cret",
    )
    assert told["token"] is True and told["openings"] > 1 and "s3cret" not in json.dumps(told)
    first, second, end = (result.observation for result in results)
    assert first["message"] and second["message"] and end["end_reason"] == "target_turns"
    assert "conversations by their end: target_turns 1" in last and "s3cret" not in last


def test_a_dry_run_starts_nothing(repos: dict[str, Ref]) -> None:  # noqa: F811
    data = f"tiny-corpus@{repos['corpus'].revision}:test"
    plan = json.loads(run("tiny-ask", "--data", data, "--dry-run", "--json").stdout)
    assert plan["asker"] == str(repos["asker"]) and plan["base"] == str(repos["base"])
    assert plan["openings"] > 1 and plan["end_mark"] == "[bye]" and plan["endpoints"] == []
    assert "most user turns" in run("tiny-ask", "--data", data, "--dry-run").stdout


def test_a_plan_names_caps_and_takes_askers_that_write_people_s_turns(
    repos: dict[str, Ref],  # noqa: F811
) -> None:
    data = ["--data", f"tiny-corpus@{repos['corpus'].revision}:test", "--dry-run", "--json"]
    caps = ["--budget-tokens", "900", "--max-hours", "2", "--budget-usd", "1", "--price", "1,2"]
    plan = json.loads(
        run("tiny-base", "--speaks-user", "--end-token", "<end>", *caps, *data).stdout
    )
    assert plan["end_mark"] == "<end>" and plan["base"] is None
    assert plan["caps"] == {"budget_tokens": 900, "budget_usd": 1, "max_hours": 2}
    for arguments, says in (
        (["tiny-ask", "--budget-usd", "1"], "a budget of 1 USD caps nothing"),
        (["tiny-ask", "--price", "1"], "must be IN,OUT in US dollars"),
        (["tiny-ask", "--end-token", "<end>"], "is of an asker with --speaks-user"),
        (["tiny-ask", "--speaks-user"], "leave out --speaks-user"),
    ):
        with pytest.raises(RecipeError, match=says):
            run(*arguments, *data)


def test_mistakes_are_sentences(repos: dict[str, Ref]) -> None:  # noqa: F811
    with pytest.raises(SourceError, match="no split 'openings'; it has test"):
        run("tiny-ask", "--dry-run")
    with pytest.raises(RecipeError, match="say it with --system"):
        run("tiny-base", "--dry-run")


@pytest.mark.slow
def test_our_engine_serves_the_asker(repos: dict[str, Ref], tmp_path: Path) -> None:  # noqa: F811
    data = f"tiny-corpus@{repos['corpus'].revision}:test"
    _, results, _ = play(["tiny-ask", "--data", data, "--max-tokens", "8", "--turns", "2"],
                         HUBKIT_ENDPOINT_TOKEN="s3cret")  # fmt: skip
    assert results[1].observation["message"] and results[-1].done
