"""Preupload (how should each file travel?) and commit."""

from __future__ import annotations

import base64
import binascii
import fnmatch
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api import discussions
from hubkit.local_hub.api.commit_body import MAX_REGULAR_BYTES, CommitRequest, read_commit
from hubkit.local_hub.api.commit_building import commit_to_branch
from hubkit.local_hub.api.http import Call, field
from hubkit.local_hub.api.ignore_rules import ignore_rules
from hubkit.local_hub.api.lfs import require_object
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.git import GitRepo, NewObject
from hubkit.local_hub.storage.object_owners import link
from hubkit.local_hub.storage.paths import checked_path
from hubkit.local_hub.storage.repos import Repo, commit_of, git
from hubkit.untrusted import JsonObject

MAX_PREUPLOAD_FILES = 1000


def preupload(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/preupload/{rev}: for each file whether it is regular or large, and whether .gitignore
    names it.
    """
    body = call.json()
    listed = field(body, "files", list)
    if len(listed) > MAX_PREUPLOAD_FILES:
        raise Refusal(413, f"Ask for at most {MAX_PREUPLOAD_FILES} files at once.")
    with git(call.hub, repo) as opened:
        tree = opened.commit(commit_of(opened, _branch(tail))).tree
        ignore_text = body.get("gitIgnore")
        if ignore_text is None:
            ignore_text = _text(opened, tree, ".gitignore")
        ignored = ignore_rules(str(ignore_text))
        large = _large_patterns(_text(opened, tree, ".gitattributes"))
        answers = [_preupload_one(opened, tree, item, large, ignored) for item in listed]
    return JSONResponse({"files": answers})


def _preupload_one(
    repo: GitRepo, tree: bytes, item: Any, large: list[str], ignored: Callable[[str], bool]
) -> JsonObject:
    if not isinstance(item, dict):
        raise Refusal(400, "Each of 'files' must be an object.")
    path, size = checked_path(field(item, "path", str)), field(item, "size", int, 0)
    try:
        sample = base64.b64decode(field(item, "sample", str, ""))
    except (binascii.Error, ValueError):
        raise Refusal(400, f"The sample of {path!r} is not valid base64.") from None
    is_large = size > MAX_REGULAR_BYTES or _matches(path, large) or b"\0" in sample
    answer: JsonObject = {"path": path, "uploadMode": "lfs" if is_large and size else "regular"}
    answer["shouldIgnore"] = ignored(path)
    existing = trees.find(repo, tree, path)
    if existing and existing.is_file and repo.is_intact(existing.sha):
        info = trees.blob_info(repo, existing.sha)
        answer["oid"] = info.pointer.oid if info.pointer else existing.sha.decode()
    return answer


def _text(repo: GitRepo, tree: bytes, path: str) -> str:
    entry = trees.find(repo, tree, path)
    return repo.blob(entry.sha).decode("utf-8", "replace") if entry and entry.is_file else ""


def _large_patterns(attributes: str) -> list[str]:
    lines = [
        line.split() for line in attributes.splitlines()[:2000] if line and not line.startswith("#")
    ]
    return [words[0] for words in lines if "filter=lfs" in words[1:]]


def _matches(path: str, patterns: list[str]) -> bool:
    name = path.rpartition("/")[2]
    for pattern in patterns:
        if "/" not in pattern:
            if fnmatch.fnmatchcase(name, pattern):
                return True
        elif fnmatch.fnmatchcase(path, pattern.replace("**/", "*")):
            return True
    return False


async def commit(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/commit/{rev}[?create_pr=1]: all operations of the body become one commit, or nothing
    happens.
    """
    request = await read_commit(call.request.stream(), call.hub.objects.temporary)
    try:
        return await run_in_threadpool(_commit, call, repo, _branch(tail), request)
    finally:
        request.spool.close()


def _branch(tail: list[str]) -> str:
    return tail[0] if tail else "main"


def _commit(call: Call, repo: Repo, revision: str, request: CommitRequest) -> Response:
    if revision.startswith("refs/pr/"):
        discussions.require_pull_author(call, repo, revision)
    elif not call.flag("create_pr"):
        call.require_write(repo)
    with call.hub.using_objects(), git(call.hub, repo) as opened:
        _settle_pointers(call, repo, request)
        if call.flag("create_pr"):
            sha, number = discussions.open_with_commit(call, repo, opened, revision, request)
            url = f"{call.base_url}{repo.web_path}/discussions/{number}"
        else:
            sha, url = commit_to_branch(call, repo, opened, revision, request), None
            if revision.startswith("refs/pr/"):
                discussions.record_commit(call, repo, revision, request.summary, sha)
    answer = {
        "success": True,
        "commitOid": sha.decode(),
        "commitUrl": f"{call.base_url}{repo.web_path}/commit/{sha.decode()}",
        "hookOutput": "",
        "pullRequestUrl": url,
    }
    return JSONResponse(answer)


def _settle_pointers(call: Call, repo: Repo, request: CommitRequest) -> None:
    """Every large file must be here, of the promised size, and this caller's to use."""
    for path, pointer in request.pointers.items():
        size = require_object(call, repo, pointer.oid, path)
        if pointer.size not in (-1, size):
            raise Refusal(422, f"{path}: {pointer.oid} has {size} bytes, not {pointer.size}.")
        request.blobs[path] = NewObject.blob(trees.Pointer(pointer.oid, size).text())
    link(call.hub, repo, [pointer.oid for pointer in request.pointers.values()])
