"""Whatever is stored, damaged; whatever works on the store, killed at each of its steps: afterwards
nothing is lost, or `verify` names what is.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.forked import hub_command, in_fork, run_hub_command
from support.whole_hub import (
    KINDS,
    NAMED,
    as_seen,
    differences,
    files_by_kind,
    flip,
    make_whole_hub,
    rewrite,
    served,
    wrong_bytes,
)

import hubkit.local_hub.app  # imported once, not by each fork
import hubkit.local_hub.commands  # noqa: F401

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every kind; tests work on copies."""
    root = tmp_path_factory.mktemp("whole") / "hub"
    make_whole_hub(root)
    return root


@pytest.fixture(scope="module")
def before(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What its owner sees while nothing is damaged."""
    seen = as_seen(copied(whole, tmp_path_factory.mktemp("before")))
    assert seen.status == 0, seen.said
    assert all(status == 200 for status, _ in seen.result.values()), seen.result
    return dict(seen.result)


def copied(whole: Path, folder: Path) -> Path:
    root = folder / "hub"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    return root


def test_every_file_of_a_hub_is_of_a_kind_that_is_damaged_here(whole: Path) -> None:
    assert set(files_by_kind(whole)) == set(KINDS)


def outcome(
    whole: Path, path: Path, data: bytes, before: dict[str, Any], folder: Path
) -> tuple[bool, dict[str, Any]]:
    """Replace a file of a copy by `data`: whether `verify` names damage, and what is seen otherwise
    than before. Neither may end in a traceback, and no file may have other bytes.
    """
    relative = path.relative_to(whole)
    root = copied(whole, folder)
    rewrite(root / relative, data)
    status, result, said = run_hub_command(root, "verify")
    problems = result.get("problems", [said])
    assert status in (0, 1), said
    assert status == 0 or all("hubkit hub" in problem for problem in problems), problems
    root = copied(whole, folder)
    rewrite(root / relative, data)
    seen = as_seen(root)
    assert not seen.crashed, seen.said
    if seen.status:
        assert "hubkit hub" in seen.said
        return status == 1, {"the start": seen.said}
    different = differences(before, seen.result)
    assert wrong_bytes(different) == []
    return status == 1, different


def damage(
    kind: str, whole: Path, before: dict[str, Any], folder: Path, *, flips: int
) -> dict[str, int]:
    """Damage files of a kind in several ways; how often that was named, and how often harmless."""
    dice = random.Random(kind)
    paths = files_by_kind(whole)[kind]
    counts = {"named": 0, "harmless": 0}
    for number in range(flips + (2 if flips > 1 else 0)):
        path = dice.choice(paths)
        good = path.read_bytes()
        at = dice.randrange(len(good) * 8) if good else 0
        bad = flip(good, at) if number < flips and good else good[: len(good) // 2]
        bad = b"" if number == flips + 1 else bad
        named, different = outcome(whole, path, bad, before, folder)
        about = f"{path.relative_to(whole)}, bit {at} of {len(good) * 8}, {len(bad)} bytes left"
        assert named or not different, f"{about}: lost in silence: {different}"
        assert named or kind not in NAMED or bad == good, f"{about}: not named"
        counts["named" if named else "harmless"] += 1
    return counts


@pytest.mark.attack
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_in_any_kind_of_file_is_harmless_or_named(
    kind: str, whole: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    damage(kind, whole, before, tmp_path, flips=1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_any_kind_with_flipped_bits_cut_off_and_emptied(
    kind: str, whole: Path, before: dict[str, Any], tmp_path: Path, record_property: Record
) -> None:
    counts = damage(kind, whole, before, tmp_path, flips=30)
    for name, count in counts.items():
        record_property(f"damage {name}", count)
    record_property("damaged", kind)


# kills


STEPS: dict[str, tuple[str, ...]] = {
    "verify": (),
    "gc": ("--grace-s", "0"),
    "adopt": (),
    "set-aside": (),
    "backup": ("saved",),
    "restore": ("saved",),
}
"""What works on a folder → its further arguments; ``saved`` is a backup."""


class Killed:
    """An action on copies of a folder, killed before its n-th change to a file.

    Args:
        whole: The folder.
        before: What is seen of it.
        folder: Where the copies go.
    """

    def __init__(self, action: str, whole: Path, before: dict[str, Any], folder: Path) -> None:
        self.action, self.whole, self.before, self.folder = action, whole, before, folder
        self.root, self.saved = folder / "hub", folder / "saved"
        if action == "restore":
            self._make_backup()
        self._begin()
        assert self._run_whole() == 0
        seen = as_seen(self.root)
        assert seen.status == 0, seen.said
        self.done: dict[str, Any] = seen.result
        if action == "adopt":  # what it makes has a date
            self._begin()
            assert self._run_whole() == 0
            again = as_seen(self.root).result
            self.done = {door: seen for door, seen in self.done.items() if again.get(door) == seen}

    def _make_backup(self) -> None:
        copied(self.whole, self.folder)
        assert run_hub_command(self.root, "backup", str(self.saved))[0] == 0
        body = {"title": "Since the backup"}
        url = "/api/models/local/one/discussions"
        later = served(self.root, lambda client: client.post(url, json=body).status_code)
        assert later.result == 200, later.said
        self.whole = self.folder / "later"
        self.root.rename(self.whole)
        seen = as_seen(copied(self.whole, self.folder))
        self.before = seen.result

    def _begin(self) -> None:
        for path in self.folder.glob("hub*"):
            shutil.rmtree(path)
        if self.action == "backup":
            shutil.rmtree(self.saved, ignore_errors=True)
        copied(self.whole, self.folder)
        if self.action in ("adopt", "set-aside"):
            known = next(self.root.glob("repos/models--local--aside--*"))
            shutil.copytree(known, known.with_name("models--local--lost--aaaaaaaaaa.git"))

    @property
    def _options(self) -> tuple[str, ...]:
        return tuple(str(self.saved) if o == "saved" else o for o in STEPS[self.action])

    def _run_whole(self) -> int:
        return run_hub_command(self.root, self.action, *self._options)[0]

    def at(self, number: int) -> bool:
        """Kill before the `number`-th change and look; False where there are fewer."""
        self._begin()
        work = hub_command(self.root, self.action, *self._options)
        ended = in_fork(work, killed_at=(self.folder, number))
        assert not ended.crashed, ended.said
        if ended.status != -signal.SIGKILL:
            assert ended.status == 0, ended.said
            return False
        self._check(f"{self.action}, killed before change {number}")
        return True

    def _check(self, about: str) -> None:
        if self.action == "backup" and self.saved.exists():
            assert run_hub_command(self.saved, "verify")[0] == 0, f"{about}: looks whole, is not"
        status, result, said = run_hub_command(self.root, "verify")
        if self.action in ("adopt", "set-aside"):
            assert all("hubkit hub adopt" in problem for problem in result["problems"]), about
        elif not (self.action == "restore" and "run `hubkit hub restore`" in said):
            assert status == 0, f"{about}: {said}"
        seen = as_seen(self.root)
        assert not seen.crashed, f"{about}: {seen.said}"
        if seen.status == 0:
            unchanged = {d: v for d, v in self.before.items() if self.done.get(d) == v}
            assert differences(unchanged, seen.result) == {}, about
            if self.action == "restore":
                states = [differences(s, seen.result) for s in (self.before, self.done)]
                assert {} in states, f"{about}: neither the former Hub nor the saved one"
        else:
            assert self.action == "restore", f"{about}: {seen.said}"
            assert "hubkit hub restore" in seen.said, about
        if not (self.action == "backup" and self.saved.exists()):
            assert self._run_whole() == 0, f"{about}: cannot be done afterwards"
        again = as_seen(self.root)
        assert differences(self.done, again.result) == {}, f"{about}: not the same afterwards"


@pytest.mark.attack
@pytest.mark.parametrize("action", STEPS)
def test_what_works_on_the_store_may_be_killed(
    action: str, whole: Path, before: dict[str, Any], tmp_path: Path
) -> None:
    killed = Killed(action, whole, before, tmp_path)
    assert killed.at(2)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("action", STEPS)
def test_what_works_on_the_store_is_killed_at_its_steps(
    action: str, whole: Path, before: dict[str, Any], tmp_path: Path, record_property: Record
) -> None:
    killed = Killed(action, whole, before, tmp_path)
    stride = 6 if action in ("backup", "restore") else 1  # many of their steps copy one more file
    number = 1
    while killed.at(number):
        number += stride
    record_property("kills", number // stride)
    assert number > 2


# a full disk


FREE = (0, 4096, 16_384, 65_536, 262_144, 2**20, 2**21)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(disk: Path, free: int) -> None:
    """Leave `free` bytes."""
    rest = shutil.disk_usage(disk).free - free
    handle = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(handle, 0, max(rest, 1))
    finally:
        os.close(handle)


def write(client: Any) -> dict[str, list[Any]]:
    """Everything that takes space; which doors have to be open from now on, and the statuses."""
    kept, statuses = [], []

    def note(answer: Any, *doors: str) -> bool:
        statuses.append(answer.status_code)
        if answer.status_code < 300:
            kept.extend(doors)
        return bool(answer.status_code < 300)

    for number in range(4):
        data = random.Random(number).randbytes(200_000)
        lines = [{"key": "header", "value": {"summary": "more"}}]
        lines += [{"key": "file", "value": {"path": f"n{number}.txt", "content": "n" * 9000}}]
        body = "\n".join(map(json.dumps, lines))
        url = "/api/models/local/one/commit/main"
        note(client.post(url, content=body), f"/local/one/resolve/main/n{number}.txt")
        oid = hashlib.sha256(data).hexdigest()
        batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(data)}]}
        answer = client.post("/local/one.git/info/lfs/objects/batch", json=batch)
        if note(answer):
            href = answer.json()["objects"][0]["actions"]["upload"]["href"]
            note(client.put(href, content=data))
        name = f"new{number}"
        note(client.post("/api/repos/create", json={"name": name}), f"/api/models/local/{name}")
        tag = {"tag": f"t{number}", "message": "m"}
        url = "/api/models/local/one/tag/main"
        note(client.post(url, json=tag), f"/local/one/resolve/t{number}/u.txt")
        body = {"title": f"title {number}", "description": "d" * 3000}
        note(client.post("/api/models/local/moved/discussions", json=body))
    gone = client.request("DELETE", "/api/repos/delete", json={"name": "aside"})
    return {"kept": kept, "statuses": sorted(set(statuses)), "deleted": [gone.status_code]}


@pytest.mark.slow
@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("crashed", [False, True])
def test_a_disk_that_is_full_or_becomes_full_loses_nothing(
    free: int, crashed: bool, whole: Path, before: dict[str, Any], small_disk: Path
) -> None:
    root = copied(whole, small_disk)
    if not crashed:  # the settings database has taken in its log
        assert served(root, lambda client: None).status == 0
    assert run_hub_command(root, "backup", str(small_disk / "saved"))[0] == 0
    fill(small_disk, free)
    seen = as_seen(root)
    assert not seen.crashed, seen.said
    if seen.status:
        assert crashed, seen.said
        assert "No space left" in seen.said
    else:
        assert differences(before, seen.result) == {}
    written = served(root, write)
    assert not written.crashed, written.said
    if written.status == 0:
        assert set(written.result["statuses"]) <= {200, 201, 507}, written.result
        assert written.result["deleted"] == [200]
    for action in ("verify", "gc", "backup", "restore"):
        options = {"gc": ("--grace-s", "0"), "backup": (str(small_disk / "second"),)}
        options["restore"] = (str(small_disk / "saved"),)
        work = hub_command(root, action, *options.get(action, ()))
        ended = in_fork(work)
        assert not ended.crashed, f"{action}: {ended.said}"
        assert ended.status == 0 or "No space left" in ended.said, f"{action}: {ended.said}"
        if action == "restore" and ended.status == 0:
            return  # it is the saved Hub now
    (small_disk / "filler").unlink()
    assert run_hub_command(root, "verify")[0] == 0
    gone = {door for door in before if "aside" in door or door in ("/api/models", COUNTED)}
    kept = {door: seen for door, seen in before.items() if door not in gone}
    after = as_seen(root)
    lost = {d: v for d, v in differences(kept, after.result).items() if "/resolve/" in d}
    assert lost == {}
    if written.status == 0:
        doors = as_seen(root, written.result["kept"]).result
        assert all(status == 200 for status, _ in doors.values()), doors


COUNTED = "/api/models/local/one/discussions"
