"""The embedded Hub through the stock clients: every answer comes from a live server process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from support.hub_server import ROOT, HubServer, run_client
from support.waiting import until


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_one_server_per_folder_and_the_same_port_again(tmp_path: Path) -> None:
    server = HubServer(tmp_path / "hub").start()
    url = server.url
    command = [sys.executable, "-m", "hubkit.local_hub", "--root", str(server.root)]
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert second.returncode == 3
    assert len(second.stderr.strip().splitlines()) == 1
    assert (server.root / "token").stat().st_mode & 0o777 == 0o600
    assert set(server.info) >= {"url", "pid", "started_at", "version"}
    health = get_session().get(f"{url}/healthz").json()
    assert (health["status"], health["pid"]) == ("ok", server.info["pid"])
    assert health["idle_s"] >= 0
    assert server.stop() == 0
    assert not (server.root / "server.json").exists()
    assert server.start().url == url
    server.stop()


def test_an_idle_server_leaves(tmp_path: Path) -> None:
    server = HubServer(tmp_path / "hub", ("--idle-timeout-s", "1")).start()
    assert server.process.wait(timeout=240) == 0
    assert not (server.root / "server.json").exists()


def test_a_server_is_found_again_whatever_became_of_its_address_file(tmp_path: Path) -> None:
    server = HubServer(tmp_path / "hub").start()
    about, path = server.info, server.root / "server.json"
    for damaged in (b"[]", b"", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        until(lambda: path.exists() and path.read_bytes()[:1] == b"{")
        assert server.info == about
    server.stop()


def test_a_server_whose_folder_was_removed_leaves_the_next_one_alone(tmp_path: Path) -> None:
    first = HubServer(tmp_path / "hub").start()
    shutil.rmtree(first.root)
    second = HubServer(first.root).start()
    assert first.process.wait(timeout=240) == 0
    assert second.info["pid"] == second.process.pid
    second.api().create_repo("local/one")
    second.stop()


def test_a_killed_server_starts_again(tmp_path: Path) -> None:
    server = HubServer(tmp_path / "hub").start()
    server.api().create_repo("local/kept")
    server.stop(signal.SIGKILL)
    (server.root / "tmp" / "in-half").write_bytes(b"half a file")
    (server.root / "repos" / "models--local--ghost--0.git.creating").mkdir()
    server.start()
    assert server.api().repo_exists("local/kept")
    assert list((server.root / "tmp").iterdir()) == []
    assert len(list((server.root / "repos").iterdir())) == 1
    server.stop()


def test_whoami_and_create(api: HfApi, repo: str) -> None:
    assert api.whoami()["name"] == "local"
    assert api.create_repo(repo, exist_ok=True).repo_id == repo
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo)
    assert status_of(error) == 409
    assert api.repo_info(repo.upper()).id == repo


def test_somebody_elses_namespace_belongs_to_the_machines_owner(api: HfApi) -> None:
    made = api.create_repo("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert made.repo_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    api.delete_repo(made.repo_id)


def test_commit_tree_and_history(api: HfApi, repo: str) -> None:
    first = api.create_commit(
        repo,
        operations=[CommitOperationAdd("a/b/c.txt", b"one"), CommitOperationAdd("d.txt", b"two")],
        commit_message="first",
        commit_description="why",
    )
    second = api.create_commit(
        repo,
        operations=[CommitOperationDelete("a/"), CommitOperationAdd("e.txt", b"three")],
        commit_message="second",
        parent_commit=first.oid,
    )
    assert api.list_repo_files(repo) == [".gitattributes", "d.txt", "e.txt"]
    assert api.list_repo_files(repo, revision=first.oid) == [".gitattributes", "a/b/c.txt", "d.txt"]
    history = api.list_repo_commits(repo)
    assert [commit.title for commit in history] == ["second", "first", "initial commit"]
    assert history[1].message == "why"
    last = {entry.path: entry.last_commit.oid for entry in api.list_repo_tree(repo, expand=True)}
    assert (last["d.txt"], last["e.txt"]) == (first.oid, second.oid)


def test_a_stale_parent_is_refused_and_nothing_happens(api: HfApi, repo: str) -> None:
    old = api.repo_info(repo).sha
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=repo)
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"2", path_in_repo="b", repo_id=repo, parent_commit=old)
    assert status_of(error) == 412
    assert "b" not in api.list_repo_files(repo)


def test_tags_branches_and_what_they_mean(api: HfApi, repo: str) -> None:
    commit = api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=repo).oid
    api.create_tag(repo, tag="v1.0", tag_message="first release")
    api.create_branch(repo, branch="side/way", revision=commit)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id=repo, revision="side/way")
    refs = api.list_repo_refs(repo)
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1.0", commit)]
    assert [branch.name for branch in refs.branches] == ["main", "side/way"]
    read = get_session().get
    assert read(hf_hub_url(repo, "a", revision="v1.0", endpoint=api.endpoint)).content == b"1"
    assert read(hf_hub_url(repo, "a", revision="side/way", endpoint=api.endpoint)).content == b"2"
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(repo, tag="v1.0")
    assert status_of(error) == 409
    for meaning in (commit, commit[:7], commit[:10], "refs/heads/main", "refs/tags/v1.0", "HEAD"):
        assert api.repo_info(repo, revision=meaning).sha == commit
    for unknown in ("nowhere", "0" * 40, "0" * 7, "refs/heads/nowhere", "refs/pr/1", "a b"):
        with pytest.raises(RevisionNotFoundError):
            api.repo_info(repo, revision=unknown)
    api.delete_tag(repo, tag="v1.0")
    api.delete_branch(repo, branch="side/way")
    with pytest.raises(HfHubHTTPError) as error:
        api.delete_branch(repo, branch="main")
    assert status_of(error) == 403


def test_downloads_ranges_and_validators(
    server: HubServer, api: HfApi, repo: str, tmp_path: Path
) -> None:
    big = bytes(range(256)) * 8192
    api.upload_file(path_or_fileobj=big, path_in_repo="big.bin", repo_id=repo)
    api.upload_file(path_or_fileobj=b"small text", path_in_repo="small.txt", repo_id=repo)
    for name, content in (("big.bin", big), ("small.txt", b"small text")):
        path = hf_hub_download(repo, name, endpoint=server.url, cache_dir=tmp_path)
        assert Path(path).read_bytes() == content
        url, get = hf_hub_url(repo, name, endpoint=server.url), get_session().get
        whole = get(url)
        assert whole.headers["x-repo-commit"] == api.repo_info(repo).sha
        part = get(url, headers={"Range": "bytes=3-6"})
        assert (part.status_code, part.content) == (206, content[3:7])
        assert part.headers["content-range"] == f"bytes 3-6/{len(content)}"
        assert get(url, headers={"Range": "bytes=-4"}).content == content[-4:]
        assert get(url, headers={"Range": "bytes=5-"}).content == content[5:]
        assert get(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
        for bad in (f"bytes={len(content)}-", "bytes=7-3", "bytes=-", "lines=1-2"):
            assert get(url, headers={"Range": bad}).status_code == 416
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo, "absent.txt", endpoint=server.url, cache_dir=tmp_path)


def test_stock_libraries_with_nothing_set_but_the_address(
    server: HubServer, tmp_path: Path
) -> None:
    """hf_xet is installed and no variable turns it off."""
    code = """
import json, datasets, torch, transformers
from peft import LoraConfig, PeftModel, get_peft_model
from huggingface_hub import HfApi
rows = [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(300)]
data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows),
                            test=datasets.Dataset.from_list(rows[:7]))
data.push_to_hub("local/talks", private=True)
HfApi().create_tag("local/talks", tag="v1.0", repo_type="dataset")
data["train"] = data["train"].select(range(100))
data.push_to_hub("local/talks")
new = datasets.load_dataset("local/talks", split="train")
old = datasets.load_dataset("local/talks", split="train[:200]", revision="v1.0")
stream = next(iter(datasets.load_dataset("local/talks", split="test", streaming=True)))
config = transformers.LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
model = transformers.LlamaForCausalLM(config)
model.push_to_hub("local/tiny")
again = transformers.AutoModelForCausalLM.from_pretrained("local/tiny")
same = all(torch.equal(a, b)
           for a, b in zip(model.state_dict().values(), again.state_dict().values()))
adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
adapted.push_to_hub("local/tiny-lora")
PeftModel.from_pretrained(again, "local/tiny-lora")
print(json.dumps([len(new), len(old), stream["messages"][0]["content"], same]))
"""
    printed = run_client(server, code, tmp_path)
    assert json.loads(printed.strip().splitlines()[-1]) == [100, 200, "question 0", True]
    maps = list((server.root / "xet").rglob("*.map"))
    assert maps, "the clients did not use Xet"
    assert not list((server.root / "xet").rglob("*.xorb")), "uploads are kept only once"


def test_what_xet_sent_before_can_be_referred_to_later(
    server: HubServer, api: HfApi, repo: str, tmp_path: Path
) -> None:
    code = f"""
import os
from huggingface_hub import HfApi
data = os.urandom(2_000_000)
open("one.bin", "wb").write(data)
open("two.bin", "wb").write(b"in front" + data + b"behind")
for name in ("one.bin", "two.bin"):
    HfApi().upload_file(path_or_fileobj=name, path_in_repo=name, repo_id={repo!r})
"""
    run_client(server, code, tmp_path)
    for name in ("one.bin", "two.bin"):
        path = hf_hub_download(
            repo, name, endpoint=server.url, cache_dir=tmp_path / "c", token=server.token
        )
        assert Path(path).read_bytes() == (tmp_path / name).read_bytes()


def test_private_repos_do_not_exist_for_others(server: HubServer, api: HfApi) -> None:
    hidden = api.create_repo("local/hidden", private=True).repo_id
    api.upload_file(path_or_fileobj=b"secret", path_in_repo="a", repo_id=hidden)
    with pytest.raises(RepositoryNotFoundError):
        server.api(token=False).repo_info(hidden)
    assert hidden not in [model.id for model in server.api(token=False).list_models()]
    assert hidden in [model.id for model in api.list_models(search="hidd")]
    with pytest.raises(HfHubHTTPError) as error:
        server.api(token=False).upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id=hidden)
    assert status_of(error) == 401
    api.update_repo_settings(hidden, visibility="public")
    assert server.api(token=False).repo_info(hidden).id == hidden
    api.delete_repo(hidden)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(hidden)


def test_large_files_of_private_repos_without_xet(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    code = """
from huggingface_hub import HfApi, hf_hub_download
HfApi().create_repo("local/quiet", private=True)
HfApi().upload_file(path_or_fileobj=b"w" * 9999, path_in_repo="w.bin", repo_id="local/quiet")
print(open(hf_hub_download("local/quiet", "w.bin"), "rb").read() == b"w" * 9999)
"""
    assert run_client(server, code, tmp_path, HF_HUB_DISABLE_XET="1").strip() == "True"
    assert not list((tmp_path / "hf").rglob("shard-cache"))


def test_a_renamed_repo_is_found_under_its_old_name(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    api.create_repo("local/api")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="local/api", repo_id="local/api")
    api.move_repo("local/api", "local/renamed")
    assert api.repo_info("local/api").id == "local/renamed"
    path = hf_hub_download("local/api", "local/api", endpoint=server.url, cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"x"
    api.upload_file(path_or_fileobj=b"y", path_in_repo="y", repo_id="local/api")
    assert api.file_exists("local/renamed", "y")


def test_git_reads_the_folder(server: HubServer, api: HfApi, repo: str, tmp_path: Path) -> None:
    api.upload_file(
        path_or_fileobj=b"one", path_in_repo="a/b.txt", repo_id=repo, commit_message="add b"
    )
    api.create_tag(repo, tag="v1", tag_message="annotated")
    files = [CommitOperationAdd(f"many/{i}.txt", b"%d" % i) for i in range(60)]
    api.create_commit(repo, operations=files, commit_message="many")
    folder = next((server.root / "repos").glob(f"models--{repo.replace('/', '--')}--*"))

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, timeout=240
        )
        return done.stdout + done.stderr

    git("clone", "-q", str(folder), str(tmp_path / "clone"))
    assert (tmp_path / "clone" / "many" / "59.txt").read_text() == "59"
    assert "add b" in git("-C", str(folder), "log", "--oneline")
    assert git("-C", str(folder), "fsck", "--full", "--strict") == ""


def test_a_client_that_remembers_more_than_the_hub(
    server: HubServer, api: HfApi, repo: str, tmp_path: Path
) -> None:
    """A restored or cleaned folder lacks what clients believe they sent; their next upload but one
    succeeds.
    """
    import shutil

    code = f"""
from huggingface_hub import HfApi
HfApi().upload_file(path_or_fileobj="data.bin", path_in_repo=NAME, repo_id={repo!r})
"""
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 4000)
    run_client(server, f"NAME = 'one.bin'{code}", tmp_path)
    for folder in (server.root / "xet").iterdir():
        shutil.rmtree(folder)
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 4000 + b"more")
    with pytest.raises(AssertionError, match="400 Bad Request"):
        run_client(server, f"NAME = 'two.bin'{code}", tmp_path)
    run_client(server, f"NAME = 'two.bin'{code}", tmp_path)
    assert api.get_paths_info(repo, ["two.bin"])[0].size == 1_024_004


def test_the_command_line(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    env = {"HUBKIT_HOME": str(tmp_path / "home")}
    assert cli("hub", "status", **env).returncode == 1
    url = cli("hub", "start", **env).stdout.strip()
    try:
        assert cli("hub", "start", **env).stdout.strip() == url, "the same server"
        status = json.loads(cli("hub", "status", "--json", **env).stdout)
        assert (status["url"], status["repositories"]) == (
            url,
            {"models": 0, "datasets": 0, "spaces": 0},
        )
        printed = cli("hub", "env", **env).stdout
        token = (tmp_path / "home" / "hub" / "token").read_text()
        assert f"export HF_ENDPOINT={url}\n" in printed
        assert token not in printed
        code = (
            "from huggingface_hub import whoami, create_repo; "
            "create_repo('made'); print(whoami()['name'])"
        )
        command = ["bash", "-c", f'eval "$1"; exec {sys.executable} -c "{code}"', "sh", printed]
        assert (
            subprocess.run(command, capture_output=True, text=True, timeout=240).stdout == "local\n"
        )
        assert json.loads(cli("hub", "verify", "--json", **env).stdout)["repositories"] == 1
        assert json.loads(cli("hub", "gc", "--json", **env).stdout)["kept"] == 0
        again = json.loads(cli("hub", "start", "--spaces", "--json", **env).stdout)
        assert again["spaces"] and not again["jobs"] and again["url"] == url, (
            "started again, at its address"
        )
    finally:
        assert "stopped" in cli("hub", "stop", **env).stderr
    assert "not running" in cli("hub", "stop", **env).stderr
    missing = cli("hub", "verify", HUBKIT_HOME=str(tmp_path / "nothing"))
    assert missing.returncode == 1
    assert "There is no embedded Hub" in missing.stderr
