"""The rest of the contract through the stock client: pull requests, Spaces, collections, gates,
lists, history.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any, get_args

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi, SpaceHardware
from huggingface_hub.errors import BadRequestError, GatedRepoError, HfHubHTTPError
from huggingface_hub.hf_api import (
    ExpandDatasetProperty_T,
    ExpandModelProperty_T,
    ExpandSpaceProperty_T,
)
from huggingface_hub.utils import get_session
from support.hub_server import ROOT, HubServer


@pytest.fixture(scope="module")
def guest(server: HubServer) -> HfApi:
    """Another user."""
    command = [
        sys.executable,
        "-m",
        "hubkit.local_hub",
        "account",
        "--root",
        str(server.root),
        "--user",
        "guest",
    ]
    command += ["--org", "team:write:The Team"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=240
    )
    return server.api(token=done.stdout.strip())


def read(api: HfApi, repo: str, path: str, revision: str = "main") -> bytes:
    return bytes(get_session().get(f"{api.endpoint}/{repo}/resolve/{revision}/{path}").content)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return int(error.value.response.status_code)


def test_a_pull_request_of_somebody_else(api: HfApi, guest: HfApi, repo: str) -> None:
    files = [CommitOperationAdd("a.txt", b"theirs"), CommitOperationAdd("w.bin", b"\0" * 5000)]
    made = guest.create_commit(repo, operations=files, commit_message="An idea", create_pr=True)
    assert made.pr_num == 1
    assert "a.txt" not in api.list_repo_files(repo)
    assert read(api, repo, "a.txt", "refs%2Fpr%2F1") == b"theirs"
    details = api.get_discussion_details(repo, 1)
    assert (details.author, details.status, details.conflicting_files) == ("guest", "open", [])
    assert "+theirs" in details.diff
    guest.upload_file(
        path_or_fileobj=b"more", path_in_repo="b.txt", repo_id=repo, revision="refs/pr/1"
    )
    with pytest.raises(HfHubHTTPError) as error:
        guest.merge_pull_request(repo, 1)
    assert status_of(error) == 403
    api.comment_discussion(repo, 1, "fine")
    api.merge_pull_request(repo, 1)
    assert read(api, repo, "b.txt") == b"more"
    assert api.get_discussion_details(repo, 1).merge_commit_oid == api.repo_info(repo).sha
    assert api.list_repo_commits(repo)[0].title == "An idea (#1)"
    with pytest.raises(HfHubHTTPError) as error:
        guest.upload_file(
            path_or_fileobj=b"late", path_in_repo="c.txt", repo_id=repo, revision="refs/pr/1"
        )
    assert status_of(error) == 403


def test_pull_requests_that_conflict_are_not_merged(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo, create_pr=True)
    api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id=repo)
    assert api.get_discussion_details(repo, 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError) as error:
        api.merge_pull_request(repo, 1)
    assert status_of(error) == 409
    assert read(api, repo, "a.txt") == b"3"


def test_discussions(api: HfApi, repo: str) -> None:
    opened = api.create_discussion(repo, title="Why?", description="Because.")
    comment = api.comment_discussion(repo, opened.num, "first")
    api.edit_discussion_comment(repo, opened.num, comment.id, new_content="second")
    api.hide_discussion_comment(repo, opened.num, comment.id)
    api.rename_discussion(repo, opened.num, new_title="Why not?")
    api.change_discussion_status(repo, opened.num, new_status="closed", comment="done")
    details = api.get_discussion_details(repo, opened.num)
    assert (details.title, details.status) == ("Why not?", "closed")
    kinds = [event.type for event in details.events]
    assert kinds == ["comment", "comment", "title-change", "comment", "status-change"]
    assert details.events[1].hidden
    assert [d.num for d in api.get_repo_discussions(repo, discussion_status="closed")] == [
        opened.num
    ]
    assert list(api.get_repo_discussions(repo, discussion_type="pull_request")) == []


def test_a_space(api: HfApi, server: HubServer) -> None:
    secrets = [{"key": "TOKEN_VALUE", "value": "do-not-show"}]
    made = api.create_repo(
        "local/demo", repo_type="space", space_sdk="gradio", space_secrets=secrets
    )
    api.add_space_variable(made.repo_id, "MODEL", "local/m", description="which model")
    assert api.get_space_variables(made.repo_id)["MODEL"].value == "local/m"
    listed = (
        get_session()
        .get(f"{server.url}/api/spaces/local/demo/secrets", headers=api._build_hf_headers())
        .text
    )
    assert "TOKEN_VALUE" in listed
    assert "do-not-show" not in listed
    api.delete_space_variable(made.repo_id, "MODEL")
    assert api.get_space_variables(made.repo_id) == {}
    runtime = api.request_space_hardware(made.repo_id, SpaceHardware.T4_MEDIUM, sleep_time=60)
    assert (runtime.requested_hardware, runtime.sleep_time) == ("t4-medium", 60)
    assert api.pause_space(made.repo_id).stage == "PAUSED"
    with pytest.raises(HfHubHTTPError, match="hubkit hub start --spaces"):
        api.restart_space(made.repo_id)
    assert api.space_info(made.repo_id).sdk == "gradio"
    with pytest.raises(BadRequestError):
        body = {"name": "no-sdk", "type": "space"}
        from huggingface_hub.utils import hf_raise_for_status

        headers = api._build_hf_headers()
        hf_raise_for_status(
            get_session().post(f"{server.url}/api/repos/create", json=body, headers=headers)
        )
    api.delete_repo(made.repo_id, repo_type="space")


def test_a_collection(api: HfApi, guest: HfApi, repo: str) -> None:
    made = api.create_collection("A study", description="all of it", private=True)
    assert api.create_collection("A study", exists_ok=True).slug == made.slug
    api.add_collection_item(made.slug, repo, "model", note="the model")
    again = api.add_collection_item(made.slug, repo, "model", exists_ok=True)
    assert [(item.item_id, item.note) for item in again.items] == [(repo, "the model")]
    with pytest.raises(HfHubHTTPError) as error:
        guest.get_collection(made.slug)
    assert status_of(error) == 404
    api.update_collection_metadata(made.slug, title="Another study", private=False, theme="pink")
    assert guest.get_collection(made.slug).title == "Another study"
    assert [found.title for found in guest.list_collections(owner="local")] == ["Another study"]
    api.delete_collection_item(made.slug, again.items[0].item_object_id)
    api.delete_collection(made.slug)
    assert list(api.list_collections(owner="local")) == []


def test_a_gated_repo(api: HfApi, guest: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id=repo)
    api.update_repo_settings(repo, gated="manual")
    assert guest.repo_info(repo).gated == "manual"
    with pytest.raises(GatedRepoError):
        guest.auth_check(repo)
    with pytest.raises(GatedRepoError):
        guest.hf_hub_download(repo, "a")
    answer = get_session().post(
        f"{api.endpoint}/{repo}/ask-access", headers=guest._build_hf_headers()
    )
    assert answer.json() == {"status": "pending"}
    assert [request.username for request in api.list_pending_access_requests(repo)] == ["guest"]
    api.accept_access_request(repo, "guest")
    guest.auth_check(repo)
    api.reject_access_request(repo, "guest", rejection_reason="no")
    with pytest.raises(GatedRepoError):
        guest.auth_check(repo)


def test_an_organisation(api: HfApi, guest: HfApi) -> None:
    orgs = {org["name"]: (org["fullname"], org["roleInOrg"]) for org in guest.whoami()["orgs"]}
    assert orgs == {"team": ("The Team", "write")}
    guest.create_repo("team/ours", private=True)
    assert guest.repo_exists("team/ours")
    assert [member.username for member in api.list_organization_members("team")] == ["guest"]
    assert api.get_organization_overview("team").num_models == 1
    api.delete_repo("team/ours")


def test_lists_are_cut_into_pages(api: HfApi, server: HubServer) -> None:
    names = [f"local/page-{n}" for n in range(5)]
    for name in names:
        api.create_repo(name, repo_type="dataset")
    time.sleep(1.1)  # commits are dated by the second
    card = b"---\ntags: [needle]\nlicense: mit\n---\n"
    api.upload_file(
        path_or_fileobj=card, path_in_repo="README.md", repo_id=names[2], repo_type="dataset"
    )
    found, url = [], f"{server.url}/api/datasets?search=page-&limit=2&sort=createdAt"
    pages = 0
    while url:
        answer = get_session().get(url)
        found += [item["id"] for item in answer.json()]
        url, pages = answer.links.get("next", {}).get("url", ""), pages + 1
    assert (sorted(found), pages) == (names, 3)
    assert [item.id for item in api.list_datasets(filter="needle")] == [names[2]]
    assert [
        item.id for item in api.list_datasets(filter=["license:mit", "needle"], author="local")
    ] == [names[2]]
    assert list(api.list_datasets(author="nobody")) == []
    assert next(iter(api.list_datasets(sort="last_modified", limit=1))).id == names[2]
    for name in names:
        api.delete_repo(name, repo_type="dataset")


@pytest.mark.parametrize(
    ("kind", "properties"),
    [
        ("model", ExpandModelProperty_T),
        ("dataset", ExpandDatasetProperty_T),
        ("space", ExpandSpaceProperty_T),
    ],
)
def test_every_property_can_be_asked_for(api: HfApi, kind: str, properties: Any) -> None:
    made = api.create_repo(
        f"local/expand-{kind}", repo_type=kind, space_sdk="static" if kind == "space" else None
    )
    whole = api.repo_info(made.repo_id, repo_type=kind, expand=list(get_args(properties)))
    assert whole.sha
    assert whole.siblings
    assert whole.created_at
    only = api.repo_info(made.repo_id, repo_type=kind, expand=["sha"])
    assert (only.sha, only.siblings) == (whole.sha, None)
    api.delete_repo(made.repo_id, repo_type=kind)


def test_squash_copy_duplicate_and_removal_of_large_files(api: HfApi, repo: str) -> None:
    for content in (b"\0one" * 500, b"\0two" * 500):
        api.upload_file(path_or_fileobj=content, path_in_repo="d/w.bin", repo_id=repo)
    copies = [
        CommitOperationCopy("d/w.bin", "copy.bin"),
        CommitOperationCopy(".gitattributes", "e/attributes"),
    ]
    api.create_commit(repo, operations=copies, commit_message="copies")
    assert read(api, repo, "copy.bin") == b"\0two" * 500
    twin = api.duplicate_repo(repo, to_id=f"{repo}-twin")
    assert read(api, twin.repo_id, "d/w.bin") == b"\0two" * 500
    old = [file for file in api.list_lfs_files(repo) if file.size == 2000]
    assert len(old) == 2
    api.permanently_delete_lfs_files(repo, old)
    assert api.list_repo_files(repo) == [".gitattributes", "e/attributes"]
    assert len(api.list_repo_commits(repo)) == 4
    api.super_squash_history(repo)
    assert len(api.list_repo_commits(repo)) == 1
    assert read(api, twin.repo_id, "copy.bin") == b"\0two" * 500
    api.delete_repo(twin.repo_id)


def test_likes(api: HfApi, guest: HfApi, repo: str) -> None:
    headers = guest._build_hf_headers()
    assert (
        get_session().post(f"{api.endpoint}/api/models/{repo}/like", headers=headers).status_code
        == 200
    )
    assert api.repo_info(repo).likes == 1
    assert [user.username for user in api.list_repo_likers(repo)] == ["guest"]
    assert guest.list_liked_repos().models == [repo]
    guest.unlike(repo)
    assert api.repo_info(repo).likes == 0
