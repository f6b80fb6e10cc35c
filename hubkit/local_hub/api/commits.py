"""Preupload (how should each file travel?) and commit."""

from __future__ import annotations

import base64
import binascii
import fnmatch
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.commit_body import MAX_REGULAR_BYTES, CommitRequest, read_commit
from hubkit.local_hub.api.http import Call, Refusal, field
from hubkit.local_hub.api.lfs import link, require_object
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.git import GitRepo, NewObject, new_commit
from hubkit.local_hub.storage.paths import checked_path
from hubkit.local_hub.storage.repos import Repo, commit_of, git

STALE = "The branch was updated since you opened this page. Please refresh and try again."
MAX_PREUPLOAD_FILES = 1000


def preupload(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/preupload/{rev}: for each file whether it is regular or large, and whether .gitignore
    names it.
    """
    body = call.json()
    listed = field(body, "files", list)
    if len(listed) > MAX_PREUPLOAD_FILES:
        raise Refusal(413, f"Ask for at most {MAX_PREUPLOAD_FILES} files at once.")
    with git(call.hub, repo) as opened:
        tree = opened.commit(commit_of(opened, _branch(rest))).tree
        ignore_text = body.get("gitIgnore")
        if ignore_text is None:
            ignore_text = _text(opened, tree, ".gitignore")
        ignored = _ignore_rules(str(ignore_text))
        large = _large_patterns(_text(opened, tree, ".gitattributes"))
        answers = [_preupload_one(opened, tree, item, large, ignored) for item in listed]
    return JSONResponse({"files": answers})


def _preupload_one(
    repo: GitRepo, tree: bytes, item: Any, large: list[str], ignored: Callable[[str], bool]
) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise Refusal(400, "Each of 'files' must be an object.")
    path, size = checked_path(field(item, "path", str)), field(item, "size", int, 0)
    try:
        sample = base64.b64decode(field(item, "sample", str, ""))
    except (binascii.Error, ValueError):
        raise Refusal(400, f"The sample of {path!r} is not valid base64.") from None
    is_large = size > MAX_REGULAR_BYTES or _matches(path, large) or b"\0" in sample
    answer: dict[str, Any] = {"path": path, "uploadMode": "lfs" if is_large and size else "regular"}
    answer["shouldIgnore"] = ignored(path)
    known = trees.find(repo, tree, path)
    if known and known.is_file:
        info = trees.blob_info(repo, known.sha)
        answer["oid"] = info.pointer.oid if info.pointer else known.sha.decode()
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


def _ignore_rules(text: str) -> Callable[[str], bool]:
    from dulwich.ignore import IgnoreFilter

    rules = IgnoreFilter([line.encode() for line in text.splitlines()[:10_000]])
    if not text.strip():
        return lambda path: False

    def ignored(path: str) -> bool:
        parts = path.split("/")
        folders = ["/".join(parts[:end]) + "/" for end in range(1, len(parts))]
        return any(rules.is_ignored(candidate) for candidate in [*folders, path])

    return ignored


async def commit(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/commit/{rev}[?create_pr=1]: all operations of the body become one commit, or nothing
    happens.
    """
    request = await read_commit(call.request.stream(), call.hub.objects.temporary)
    try:
        return await run_in_threadpool(_commit, call, repo, _branch(rest), request)
    finally:
        request.spool.close()


def _branch(rest: list[str]) -> str:
    return rest[0] if rest else "main"


def _commit(call: Call, repo: Repo, revision: str, request: CommitRequest) -> Response:
    from hubkit.local_hub.api import discussions

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


def branch_ref(repo: GitRepo, revision: str) -> bytes:
    """The reference that a commit to `revision` moves. Raises `Refusal` 404 (unknown) or 400 (a
    tag, a commit id).
    """
    name = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
    if repo.ref(name.encode("utf-8", "replace")) is None:
        commit_of(repo, revision)
        raise Refusal(400, f"{revision[:100]!r} is not a branch; commits go to a branch.")
    if not name.startswith(("refs/heads/", "refs/pr/")):
        raise Refusal(400, f"{revision[:100]!r} is not a branch; commits go to a branch.")
    return name.encode()


def commit_to_branch(
    call: Call, repo: Repo, opened: GitRepo, revision: str, request: CommitRequest
) -> bytes:
    """Put a commit on top of a branch and return its id (the old head where nothing changes).
    Raises `Refusal` 412.
    """
    assert call.who is not None
    ref = branch_ref(opened, revision)
    with call.hub.writing(repo.folder):
        head = opened.ref(ref)
        if head is None:
            raise Refusal(404, f"Invalid rev id: {revision[:200]}", "RevisionNotFound")
        check_parent(opened, request, head)
        sha, objects = build(opened, request, head, call.who.user)
        if sha == head:
            return head
        opened.write(objects)
        if not opened.swap_ref(ref, head, sha):
            raise Refusal(412, STALE)
    return sha


def check_parent(repo: GitRepo, request: CommitRequest, head: bytes) -> None:
    """The client may say on which commit it builds. Raises `Refusal` 412 where that is no longer
    the head.
    """
    if request.parent is None:
        return
    if not head.decode().startswith(request.parent):
        raise Refusal(412, STALE)


def build(
    repo: GitRepo, request: CommitRequest, head: bytes, author: str
) -> tuple[bytes, list[NewObject]]:
    """The commit that applies `request` on top of `head`, and the objects to write for it."""
    base = repo.commit(head).tree
    changes: dict[str, bytes | None] = {}
    for path in request.deleted_folders:
        changes.update(dict.fromkeys(_below(repo, base, path)))
    for path in request.deleted_files:
        entry = trees.find(repo, base, path)
        if entry is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        changes.update(dict.fromkeys([path] if entry.is_file else _below(repo, base, path)))
    changes.update({path: blob.sha for path, blob in request.blobs.items()})
    tree, folders = trees.changed(repo, base, changes)
    if tree == base:
        return head, []
    made = new_commit(tree, [head], request.message, author)
    return made.id, [*request.blobs.values(), *folders, NewObject.of(made)]


def _below(repo: GitRepo, tree: bytes, path: str) -> list[str]:
    entry = trees.find(repo, tree, path)
    if entry is None or entry.is_file:
        raise Refusal(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
    return [child.path for child in trees.walk(repo, entry) if child.is_file]
