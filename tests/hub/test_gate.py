"""Secrets and personal data do not go to a Hub that is not local, whichever way they would go."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.paths import ROOT

from hubkit.data.filters import masked_kinds
from hubkit.errors import PublishError
from hubkit.hub import Hub, connect, embedded, gate
from hubkit.hub.branch import Branch
from hubkit.pipeline.stage import outgoing
from hubkit.recipe import Filter, load
from hubkit.sensitive_data import KINDS

EMAIL = "jane.doe@" + "university.edu"
TOKEN = "gh" + "p_" + "a1B2c3D4e5F6" * 3


@pytest.fixture
def local_hub(hubkit_home: Path) -> Hub:
    return connect()


@pytest.fixture
def remote_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A second Hub, which is not this machine's own as far as the client knows."""
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path / "remote"))
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


def _generated(folder: Path) -> Path:
    """Rows as a rollout writes them: texts at every depth, numbers, finish reasons."""
    call = {"name": "send", "arguments": json.dumps({"to": EMAIL}).replace("@", "\\u0040")}
    messages = [
        {"role": "user", "content": f"I am {EMAIL}.", "tool_calls": None},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
    ]
    rows = [
        {"id": f"d{n}", "messages": messages if n == 7 else [], "seed": n, "stop": ["given"]}
        for n in range(9)
    ]
    function = pa.struct([("name", pa.string()), ("arguments", pa.string())])
    calls = pa.list_(pa.struct([("type", pa.string()), ("function", function)]))
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", calls)])
    schema = pa.schema(
        [
            ("id", pa.dictionary(pa.int32(), pa.string())),
            ("messages", pa.list_(message)),
            ("seed", pa.int64()),
            ("stop", pa.large_list(pa.string())),
        ]
    )
    path = folder / "data" / "raw-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema.with_metadata({"k": "v"})), path)
    (folder / "turns.jsonl").write_text(f'{{"a": 1.50}}\n{{"turn": "x\\n{EMAIL}"}}\n', "utf-8")
    return folder


def test_rows_are_masked_on_their_way_and_the_commit_says_so(
    remote_hub: Hub, tmp_path: Path
) -> None:
    folder = _generated(tmp_path / "folder")
    there = remote_hub.masking(["email"])
    ref = there.commit("local/repo", folder, "Raw rows", repo_type="dataset")
    newest = there.api.list_repo_commits("local/repo", repo_type="dataset")[0]
    assert newest.message.strip() == "Masked on the way: email 3"
    name = "data/raw-00000-of-00001.parquet"
    left, came = (pq.read_table(f / name) for f in (folder, there.snapshot(ref)))
    assert came.schema.equals(left.schema, check_metadata=True)
    before, after = left.to_pylist(), came.to_pylist()
    first, second = after[7].pop("messages")
    assert first["content"] == "I am [EMAIL]."
    assert second["tool_calls"][0]["function"]["arguments"] == '{"to": "[EMAIL]"}'
    del before[7]["messages"]
    assert after == before
    assert there.read(ref, "turns.jsonl") == b'{"a": 1.50}\n{"turn": "x\\n[EMAIL]"}\n'
    assert EMAIL in (folder / "turns.jsonl").read_text("utf-8")  # here they stay as they are


def test_shards_of_a_run_are_masked_and_a_second_commit_changes_nothing(
    remote_hub: Hub, tmp_path: Path
) -> None:
    shard = next((_generated(tmp_path / "folder") / "data").iterdir())
    branch = Branch(remote_hub.masking(["email"]), "local/run", "work", repo_type="dataset")
    branch.open()
    branch.commit({"shards/raw-0.parquet": shard, "lease.json": b"{}"}, "A shard")
    (first,) = branch.files(["shards/*.parquet"])
    content = first.read_bytes()
    assert EMAIL.encode() not in content
    branch.commit({"shards/raw-0.parquet": shard}, "The same")
    assert branch.files(["shards/*.parquet"])[0].read_bytes() == content


CANNOT: dict[str, tuple[pa.Array, str]] = {
    "number": (pa.array([4539148803436467]), "1 credit card (column card, rows 0 to 0)"),
    "binary": (pa.array([EMAIL.encode()]), "1 email (column card, rows 0 to 0, line 1)"),
    "base64": (
        pa.array([base64.b64encode(f"I am {EMAIL} and so on".encode()).decode()]),
        "1 email (column card, rows 0 to 0, encoded, line 1)",
    ),
}


@pytest.mark.parametrize("what", sorted(CANNOT))
def test_what_cannot_be_masked_is_refused_by_place(
    what: str, remote_hub: Hub, tmp_path: Path
) -> None:
    column, place = CANNOT[what]
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.table({"card": column}), folder / "data" / "train-0.parquet")
    with pytest.raises(PublishError) as caught:
        remote_hub.masking(KINDS).commit("local/repo", folder, "Rows", repo_type="dataset")
    assert place in str(caught.value) and EMAIL not in str(caught.value)


def test_what_a_recipe_masks_is_masked_and_what_it_drops_is_not() -> None:
    filters = [
        Filter(name="secrets"),
        Filter(name="personal_data", args={"kinds": ["email", "iban"]}),
        Filter(name="personal_data", args={"action": "drop", "kinds": ["credit_card"]}),
        Filter(name="min_turns"),
    ]
    assert masked_kinds(filters) == {*gate.GROUPS["secrets"], "email", "iban"}


def test_stages_and_pushes_of_a_recipe_mask_what_its_filters_of_dialogues_mask(
    remote_hub: Hub,
) -> None:
    recipe = load("parrot", profiles=["laptop"])
    assert outgoing(remote_hub, recipe).masks == masked_kinds(recipe.curate.filters) == KINDS
