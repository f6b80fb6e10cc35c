"""Secrets and personal data do not go to a Hub that is not local, whichever way they would go."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.paths import ROOT

from hubkit.errors import PublishError
from hubkit.hub import Hub, connect, embedded
from hubkit.hub.branch import Branch

EMAIL = "jane.doe@" + "university.edu"
TOKEN = "gh" + "p_" + "a1B2c3D4e5F6" * 3


@pytest.fixture
def local_hub(hubkit_home: Path) -> Hub:
    return connect()


@pytest.fixture
def remote_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A second Hub, which is not this machine's own as far as the client knows."""
    with monkeypatch.context() as patch:
        patch.setenv("HUBKIT_HOME", str(tmp_path / "remote"))
        (tmp_path / "remote").mkdir()
        there = connect()
        yield Hub(there.url, there.token, "local", embedded=False)
        embedded.stop()


def _write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return folder


def _rows(folder: Path) -> Path:
    path = folder / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    messages = [[{"role": "user", "content": f"write to {EMAIL}"}]]
    pq.write_table(pa.table({"id": ["a"], "messages": messages}), path)
    return folder


FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a row": (_rows, "1 email (column messages.content, rows 0 to 0)"),
    "a text": (lambda f: _write(f, "notes.txt", f"x\n{TOKEN}".encode()), "1 github token (line 2)"),
    "utf-16": (lambda f: _write(f, "notes.txt", TOKEN.encode("utf-16")), "1 github token"),
    "compressed": (lambda f: _write(f, "a.gz", gzip.compress(EMAIL.encode())), "1 email"),
    "a name": (lambda f: _write(f, f"mail/{EMAIL}", b"x"), "1 email (the file's name)"),
    "provenance": (
        lambda f: _write(f, "provenance/corpus.json", f'{{"url": "http://u:{TOKEN}@h"}}'.encode()),
        "1 password in url (line 1)",
    ),
}


@pytest.mark.parametrize("what", sorted(FOLDERS))
def test_a_commit_to_a_remote_hub_is_refused_by_place(
    what: str, remote_hub: Hub, tmp_path: Path
) -> None:
    make, place = FOLDERS[what]
    folder = make(tmp_path / "folder")
    with pytest.raises(PublishError) as caught:
        remote_hub.commit("local/repo", folder, "A commit", repo_type="dataset")
    message = str(caught.value)
    assert place in message and "--allow" in message
    assert EMAIL not in message and TOKEN not in message
    assert not remote_hub.api.repo_exists("local/repo", repo_type="dataset")


def test_the_local_hub_takes_everything(local_hub: Hub, tmp_path: Path) -> None:
    ref = local_hub.commit(
        "local/repo", _rows(tmp_path / "folder"), "A commit", repo_type="dataset"
    )
    assert local_hub.resolve("local/repo", repo_type="dataset") == ref


def test_an_allowed_kind_passes_and_the_commit_says_so(remote_hub: Hub, tmp_path: Path) -> None:
    folder = _rows(tmp_path / "folder")
    allowing = remote_hub.allowing(["email"])
    allowing.commit("local/repo", folder, "A commit", repo_type="dataset")
    newest = remote_hub.api.list_repo_commits("local/repo", repo_type="dataset")[0]
    assert newest.message.strip() == "Allowed by its owner: email 1"
    _write(folder, "notes.txt", TOKEN.encode())
    with pytest.raises(PublishError, match=r"notes\.txt holds 1 github token"):
        allowing.commit("local/repo", folder, "Another", repo_type="dataset")


def test_an_unknown_kind_cannot_be_allowed(remote_hub: Hub) -> None:
    with pytest.raises(PublishError, match="'mail' is no kind"):
        remote_hub.allowing(["mail"])


def test_a_side_branch_is_no_way_round(remote_hub: Hub) -> None:
    branch = Branch(remote_hub, "local/run", "work", repo_type="dataset")
    branch.open()
    with pytest.raises(PublishError, match=r"shards/a\.json holds 1 email \(line 1\)"):
        branch.commit({"shards/a.json": f'"{EMAIL}"'.encode()}, "A shard")


def test_a_pull_request_is_no_way_round(remote_hub: Hub, tmp_path: Path) -> None:
    """What its diff would show leaves by the same place as every other commit."""
    parent = remote_hub.commit("local/repo", _write(tmp_path / "first", "a.txt", b"x"), "First")
    request = remote_hub.api.create_pull_request("local/repo", "Better words")
    place = {"repo_type": "model", "parent": parent.revision, "branch": request.git_reference}
    with pytest.raises(PublishError, match=r"notes\.txt holds 1 github token \(line 1\)"):
        remote_hub.create_commit("local/repo", {"notes.txt": TOKEN.encode()}, "Words", **place)
    with pytest.raises(PublishError, match="a name or message of the commit holds email"):
        remote_hub.create_commit("local/repo", {"notes.txt": b"x"}, f"Of {EMAIL}", **place)
    diff = remote_hub.api.get_discussion_details("local/repo", request.num).diff or ""
    assert TOKEN not in diff and "notes.txt" not in diff
    remote_hub.create_commit("local/repo", {"notes.txt": b"fine"}, "Words", **place)
    assert "+fine" in (remote_hub.api.get_discussion_details("local/repo", request.num).diff or "")


def test_messages_and_tags_are_no_way_round(remote_hub: Hub, tmp_path: Path) -> None:
    folder = _write(tmp_path / "folder", "a.txt", b"x")
    with pytest.raises(PublishError, match="a name or message of the commit holds email"):
        remote_hub.commit("local/repo", folder, f"Mail of {EMAIL}")
    ref = remote_hub.commit("local/repo", folder, "A commit")
    with pytest.raises(PublishError, match="holds github_token"):
        remote_hub.tag(ref, "v1", f"with {TOKEN}")


def test_files_leave_at_one_place_only() -> None:
    uploads = re.compile(
        r"api\.(?:create_commit|upload_file|upload_folder|upload_large_folder|preupload_lfs_files)\("
        r"|CommitOperationAdd\(|\.super_squash|[a-z_]+\.(?:model|dataset|trainer)\.push_to_hub\("
    )
    package = ROOT / "hubkit"
    places = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "local_hub" not in path.parts and uploads.search(path.read_text("utf-8"))
    }
    assert places == {"hub/client.py"}
