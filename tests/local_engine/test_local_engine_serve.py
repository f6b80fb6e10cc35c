"""`hubkit serve`, as a person types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

from support.engine_server import lora, smollm2
from support.paths import ROOT


def test_serve_prints_an_address_that_answers_and_ends_on_ctrl_c() -> None:
    command = [
        sys.executable,
        "-m",
        "hubkit",
        "serve",
        str(smollm2()),
        "--adapter",
        f"asker={lora('asker')}",
    ]
    command += ["--port", "0", "--slots", "1", "--context", "256", "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    serving = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env
    )
    assert serving.stdout is not None
    lines = []
    while not lines or lines[-1] != "}\n":
        lines.append(serving.stdout.readline())
        assert lines[-1], serving.communicate()
    told = json.loads("".join(lines))
    body = {"model": "asker", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    request = urllib.request.Request(
        told["url"] + "/v1/chat/completions", data=json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=240) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] <= 2
    serving.send_signal(signal.SIGINT)
    assert serving.wait(240) == 0
    try:
        os.kill(told["pid"], 0)
    except ProcessLookupError:
        return
    raise AssertionError("the engine outlived hubkit serve")
