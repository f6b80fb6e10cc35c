"""`kill -9` at any moment: every acknowledged commit, tag, move and delete is there afterwards,
nothing by halves.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.hub_server import HubServer, RawClient, fsck, upkeep


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub").start()
    yield running
    running.stop(signal.SIGKILL)


class Chaos:
    """Clients that write at random and remember what was acknowledged; a server that is killed
    meanwhile.
    """

    def __init__(self, server: HubServer, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.started = threading.Event()
        self.acked: dict[str, list[str]] = {}  # repo → commits
        self.tags: dict[str, dict[str, str]] = {}
        self.gone: set[str] = set()
        self.unsure: set[str] = set()  # a request about it was not answered

    def round(self, number: int) -> None:
        stop = threading.Event()
        self.started.clear()
        threads = [threading.Thread(target=self._client, args=(number, n, stop)) for n in range(4)]
        for thread in threads:
            thread.start()
        self.started.wait(timeout=240)
        time.sleep(self.random.uniform(0.0, 0.6))
        self.server.stop(signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
        self.server.start()

    def _client(self, number: int, who: int, stop: threading.Event) -> None:
        dice = random.Random(number * 100 + who)
        client, repo = RawClient(self.server), f"local/r{number}-{who}"
        client.http.timeout = httpx.Timeout(10)
        try:
            self._write(client, dice, repo, stop)
        except httpx.HTTPError:
            pass
        finally:
            client.http.close()

    def _write(
        self, client: RawClient, dice: random.Random, repo: str, stop: threading.Event
    ) -> None:
        name = repo.partition("/")[2]
        client.post("/api/repos/create", {"name": name}).raise_for_status()
        self.acked[repo], self.tags[repo] = [], {}
        self.started.set()
        for step in range(1000):
            if stop.is_set():
                return
            action = dice.choices(
                ["commit", "large", "many", "shared", "tag", "move", "delete"],
                [6, 3, 1, 3, 2, 1, 0.5],
            )[0]
            if action == "commit":
                self._ack(
                    repo,
                    client.commit(
                        repo, {f"d{dice.randrange(5)}/{step}.txt": b"x" * dice.randrange(2000)}
                    ),
                )
            elif action == "many":
                self._ack(
                    repo, client.commit(repo, {f"m{step}/{n}.txt": b"%d" % n for n in range(30)})
                )
            elif action == "shared":
                self._ack(
                    "local/shared", client.commit("local/shared", {f"{name}-{step}.txt": b"x"})
                )
            elif action == "large":
                data = dice.randbytes(dice.randrange(1, 200_000))
                self._ack(
                    repo,
                    client.commit(
                        repo, {}, oids={f"{step}.bin": (client.upload(repo, data), len(data))}
                    ),
                )
            elif action == "tag" and self.acked[repo]:
                target = dice.choice(self.acked[repo])
                client.post(
                    f"/api/models/{repo}/tag/{target}", {"tag": f"t{step}", "message": "m"}
                ).raise_for_status()
                self.tags[repo][f"t{step}"] = target
            elif action == "move":
                repo = self._move(client, repo, step)
            elif action == "delete":
                self.unsure.add(repo)
                client.http.request(
                    "DELETE", "/api/repos/delete", json={"name": name}
                ).raise_for_status()
                self.gone.add(repo)
                return

    def _ack(self, repo: str, answer: httpx.Response) -> None:
        answer.raise_for_status()
        with self.lock:
            self.acked[repo].append(answer.json()["commitOid"])

    def _move(self, client: RawClient, repo: str, step: int) -> str:
        new = f"{repo.split('_')[0]}_{step}"
        client.post(
            "/api/repos/move", {"fromRepo": repo, "toRepo": new, "type": "model"}
        ).raise_for_status()
        self.acked[new], self.tags[new] = self.acked.pop(repo), self.tags.pop(repo)
        return new

    def check(self) -> None:
        client = RawClient(self.server)
        client.http.follow_redirects = True
        for repo, commits in self.acked.items():
            if repo in self.unsure:
                continue
            history = self._history(client, repo)
            assert set(commits) <= set(history), repo
            refs = client.http.get(f"/api/models/{repo}/refs").raise_for_status().json()
            tags = {tag["name"]: tag["targetCommit"] for tag in refs["tags"]}
            assert self.tags.get(repo, {}).items() <= tags.items(), repo
        for repo in self.gone:
            assert client.http.get(f"/api/models/{repo}").status_code == 404
        assert not list((self.server.root / "tmp").iterdir())

    def _history(self, client: RawClient, repo: str) -> list[str]:
        found, url = [], f"/api/models/{repo}/commits/main?limit=1000"
        while url:
            answer = client.http.get(url).raise_for_status()
            found += [commit["id"] for commit in answer.json()]
            url = answer.links.get("next", {}).get("url", "")
        return found


def _survive(server: HubServer, rounds: int, seed: int, check_every: int) -> None:
    server.api().create_repo("local/shared")
    chaos = Chaos(server, seed)
    chaos.acked["local/shared"] = []
    for number in range(rounds):
        chaos.round(number)
        if number % check_every == check_every - 1:
            chaos.check()
    chaos.check()
    assert sum(len(commits) for commits in chaos.acked.values()) > rounds
    for folder in (server.root / "repos").iterdir():
        fsck(folder)
    code, result = upkeep(server, "verify")
    assert (code, result["problems"]) == (0, [])


def test_killed_at_random_nothing_acknowledged_is_lost(server: HubServer) -> None:
    _survive(server, rounds=4, seed=1, check_every=2)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_two_hundred_times(
    server: HubServer, record_property: Callable[[str, object], None]
) -> None:
    record_property("kills", 200)
    _survive(server, rounds=200, seed=2, check_every=10)
