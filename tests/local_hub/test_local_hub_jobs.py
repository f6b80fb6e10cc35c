"""Jobs of the embedded Hub, as the stock client runs them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub.errors import HfHubHTTPError
from support.hub_server import HubServer
from support.waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    server = HubServer(tmp_path_factory.mktemp("hub"), options=("--jobs",)).start()
    yield server
    server.stop()


def run(api: Any, *command: str, **options: Any) -> Any:
    return api.run_job(image="python:3.12", command=list(command), namespace="local", **options)


def over(api: Any, job: Any) -> Any:
    return api.wait_for_job(job.id, timeout=240, poll_interval=0.1, namespace="local")


def logs(api: Any, job: Any, **options: Any) -> list[str]:
    return list(api.fetch_job_logs(job_id=job.id, namespace="local", **options))


def below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_a_job_runs_in_a_home_of_its_own_and_its_log_is_streamed(
    api: Any, server: HubServer
) -> None:
    code = (
        "import os, time\nfor i in range(3): print('line', i); time.sleep(0.3)\n"
        "print(os.getcwd(), os.environ['HOME'])"
    )
    job = run(api, "python", "-c", code, labels={"stage": "corpus"}, env={"COLOUR": "blue"})
    assert job.status.stage in ("SCHEDULING", "RUNNING") and job.labels["stage"] == "corpus"
    lines = logs(api, job, follow=True)
    assert lines[:3] == ["line 0", "line 1", "line 2"]
    where, home = lines[3].split()
    assert where == home and where.startswith(str(server.root / "jobs" / job.id))
    done = over(api, job)
    assert (
        done.status.stage == "COMPLETED"
        and done.durations.running_secs >= 0
        and done.flavor == "cpu-basic"
    )
    assert logs(api, job, tail=None)[0] == "line 0" and not Path(where).exists()
    assert [j.id for j in api.list_jobs(namespace="local", labels={"stage": "corpus"})] == [job.id]
    assert not list(api.list_jobs(namespace="local", labels={"stage": "none"}))


def test_secrets_are_in_the_environment_and_nowhere_else(api: Any, server: HubServer) -> None:
    secret = "hf_thisIsASecretValue"
    code = (
        "import os, sys, time; print(len(os.environ['HF_TOKEN']), os.environ['PLAIN']); "
        "time.sleep(1.5)"
    )
    job = run(api, "python", "-c", code, secrets={"HF_TOKEN": secret}, env={"PLAIN": "seen"})
    until(lambda: len(below(server.process.pid)) >= 2)
    seen = [" ".join(p.cmdline()) for p in below(server.process.pid)]
    assert seen and not any(secret in line for line in seen)
    done = over(api, job)
    assert logs(api, job) == [f"{len(secret)} seen"] and done.secrets == {"HF_TOKEN": ""}
    kept = [p for p in server.root.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert not kept, kept


def test_exit_codes_timeouts_and_memory_end_in_an_error_that_says_so(
    api: Any, server: HubServer
) -> None:
    failed = over(api, run(api, "python", "-c", "raise SystemExit(3)"))
    assert (failed.status.stage, failed.status.message) == ("ERROR", "Job failed with exit code: 3")
    late = over(api, run(api, "python", "-c", "import time; time.sleep(60)", timeout=1))
    assert (late.status.stage, late.status.message) == ("ERROR", "Job timeout")
    assert over(api, run(api, "no-such-command")).status.stage == "ERROR"


def test_a_failed_job_is_tried_as_often_as_asked(api: Any) -> None:
    job = run(api, "python", "-c", "print('again'); raise SystemExit(1)", attempts=3)
    assert (
        over(api, job).status.stage == "ERROR"
        and logs(api, job) == ["again"] * 3
        and job.retry == 2
    )


def test_uv_run_finds_this_environment(api: Any) -> None:
    job = api.run_uv_job(
        "python", script_args=["-c", "import hubkit; print(hubkit.__name__)"],
        dependencies=["hubkit==0.1.0"], python="3.12", namespace="local",
    )  # fmt: skip
    assert over(api, job).status.stage == "COMPLETED" and logs(api, job) == ["hubkit"]


def test_a_canceled_job_leaves_nothing_behind(api: Any, server: HubServer) -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
        "start_new_session=True)\n"
        "print('up', flush=True); time.sleep(600)"
    )
    job = run(api, "python", "-c", code)
    assert next(iter(logs_until(api, job, "up"))) == "up"
    processes = below(server.process.pid)
    assert len(processes) >= 3, processes
    api.cancel_job(job_id=job.id, namespace="local")
    assert over(api, job).status.stage == "CANCELED"
    assert not psutil.wait_procs(processes, timeout=240)[1]


def logs_until(api: Any, job: Any, word: str) -> list[str]:
    for line in api.fetch_job_logs(job_id=job.id, namespace="local", follow=True):
        if word in line:
            return [line]
    return []


def test_a_job_dies_with_its_hub_which_then_says_so(tmp_path: Path) -> None:
    server = HubServer(tmp_path / "hub", options=("--jobs",)).start()
    api = server.api()
    code = "import subprocess, sys; print('up', flush=True)\n"
    code += (
        "subprocess.run([sys.executable, '-c', 'import time; "
        "time.sleep(600)'], start_new_session=True)"
    )
    job = run(api, "python", "-c", code)
    assert logs_until(api, job, "up")
    processes = below(server.process.pid)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert not psutil.wait_procs(processes, timeout=240)[1]
    server.start()
    found = server.api().inspect_job(job_id=job.id, namespace="local")
    assert (found.status.stage, found.status.message) == (
        "ERROR",
        "The Hub stopped while the job was under way",
    )
    server.stop()


def test_jobs_are_off_unless_enabled_and_only_for_writers(
    api: Any, server: HubServer, tmp_path: Path
) -> None:
    off = HubServer(tmp_path / "hub").start()
    with pytest.raises(HfHubHTTPError, match="hubkit hub start --jobs") as refused:
        run(off.api(), "python", "-c", "print()")
    assert refused.value.response.status_code == 403
    off.stop()
    from hubkit.local_hub.storage.store import Store as Folder

    folder = Folder(server.root)
    reader = folder.accounts.add_token("local", "read")
    folder.settings.close()
    with pytest.raises(HfHubHTTPError, match="read role"):
        run(server.api(reader), "python", "-c", "print()")
    with pytest.raises(HfHubHTTPError):
        server.api(False).run_job(image="x", command=["true"], namespace="local")


def test_what_a_job_cannot_have_is_refused(api: Any) -> None:
    with pytest.raises(HfHubHTTPError, match="no 'ssh'"):
        run(api, "true", ssh=True)
    with pytest.raises(HfHubHTTPError, match="expose"):
        run(api, "true", expose=[8000])
