"""Branches, tags, the list of commits, and squashing a branch."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

from dulwich.objects import Commit, Tag
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.commit_building import STALE
from hubkit.local_hub.api.files import date_of, title_of
from hubkit.local_hub.api.http import Call, field, next_page
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH, GitRepo, NewObject, new_commit
from hubkit.local_hub.storage.paths import checked_ref
from hubkit.local_hub.storage.repos import Repo, commit_of, git
from hubkit.untrusted import JsonObject, text_in

COMMITS_PAGE = 50
_COMMIT_ID = re.compile(r"[0-9a-f]{40}")


def refs(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/refs?include_prs."""
    with git(call.hub, repo) as opened:

        def listed(prefix: str) -> list[dict[str, str]]:
            ids = opened.refs(prefix.encode())
            pairs = [
                (name.decode("utf-8", "replace"), opened.peel(sha)) for name, sha in ids.items()
            ]
            return [
                {"name": n, "ref": f"{prefix}/{n}", "targetCommit": opened.public_id(sha)}
                for n, sha in pairs
                if sha
            ]

        answer: JsonObject = {"branches": listed("refs/heads"), "tags": listed("refs/tags")}
        answer["converts"] = [
            {**ref, "name": f"refs/convert/{ref['name']}"} for ref in listed("refs/convert")
        ]
        if call.flag("include_prs"):
            answer["pullRequests"] = [{**ref, "name": ref["ref"]} for ref in listed("refs/pr")]
    return JSONResponse(answer)


def commits(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/commits/{rev}: newest first; the cursor is the first commit of the next page."""
    size = call.number("limit", COMMITS_PAGE, 1000)
    with git(call.hub, repo) as opened:
        head = commit_of(opened, tail[0] if tail else DEFAULT_BRANCH)
        if cursor := call.query("cursor"):
            head = commit_of(opened, cursor) if _COMMIT_ID.fullmatch(cursor) else head
        history = list(islice(opened.history(head), size + 1))
        formatted = "formatted" in call.request.query_params.getlist("expand[]")
        formatted = formatted or "formatted" in call.request.query_params.getlist("expand")
        headers = {}
        if len(history) > size:
            headers["Link"] = next_page(call, history[size].id.decode())
        described = [_described(opened, commit, formatted) for commit in history[:size]]
        return JSONResponse(described, headers=headers)


def _described(repo: GitRepo, commit: Commit, formatted: bool) -> JsonObject:
    from html import escape

    message = commit.message.decode("utf-8", "replace").partition("\n\n")[2]
    author = commit.author.decode("utf-8", "replace").partition(" <")[0]
    answer: JsonObject = {
        "id": repo.public_id(commit.id),
        "title": title_of(commit),
        "message": message,
    }
    answer |= {"authors": [{"user": author, "avatar": ""}], "date": date_of(commit)}
    if formatted:
        answer["formatted"] = {
            "title": escape(text_in(answer, "title")),
            "message": escape(message),
        }
    return answer


def create_branch(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/branch/{branch} {startingPoint, emptyBranch, overwrite}."""
    body = call.json()
    ref = checked_ref("heads", "/".join(tail))
    with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
        current = opened.ref(ref)
        if current and not body.get("overwrite"):
            raise Refusal(409, f"Reference {ref.decode()} already exists")
        start = commit_of(opened, field(body, "startingPoint", str, DEFAULT_BRANCH))
        if body.get("emptyBranch"):
            start = _empty(call, opened)
        _swap(opened, ref, current, start)
    return JSONResponse({})


def _empty(call: Call, opened: Any) -> bytes:
    assert call.identity is not None
    tree, fresh = trees.changed(opened, None, {})
    commit = new_commit(tree, [], "initial commit", call.identity.user)
    opened.write([*fresh, NewObject.of(commit)])
    return bytes(commit.id)


def _swap(opened: Any, ref: bytes, old: bytes | None, new: bytes | None) -> None:
    try:
        swapped = opened.swap_ref(ref, old, new)
    except (NotADirectoryError, IsADirectoryError, FileExistsError):
        raise Refusal(
            409, f"Reference {ref.decode()} conflicts with a reference of the same prefix"
        ) from None
    if not swapped:
        raise Refusal(409, f"Reference {ref.decode()} already exists" if old is None else STALE)


def delete_branch(call: Call, repo: Repo, tail: list[str]) -> Response:
    """DELETE …/branch/{branch}."""
    ref = checked_ref("heads", "/".join(tail))
    if ref == b"refs/heads/" + DEFAULT_BRANCH.encode():
        raise Refusal(403, f"Cannot delete {ref.decode()}")
    _delete(call, repo, ref)
    return JSONResponse({})


def _delete(call: Call, repo: Repo, ref: bytes) -> None:
    with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
        current = opened.ref(ref)
        if current is None:
            raise Refusal(404, f"Invalid rev id: {ref.decode()}", "RevisionNotFound")
        _swap(opened, ref, current, None)


def create_tag(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/tag/{rev} {tag, message}: annotated where there is a message."""
    body = call.json()
    name, message = field(body, "tag", str), field(body, "message", str, "")
    with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
        target = commit_of(opened, "/".join(tail) or DEFAULT_BRANCH)
        ref = checked_ref("tags", name)
        if opened.ref(ref):
            raise Refusal(409, f"Reference {ref.decode()} already exists")
        if message:
            tag = _annotated(call, name, message, opened.commit(target))
            opened.write([NewObject.of(tag)])
            target = tag.id
        _swap(opened, ref, None, target)
    return JSONResponse({})


def _annotated(call: Call, name: str, message: str, commit: Commit) -> Tag:
    import time

    assert call.identity is not None
    tag = Tag()
    tag.name = name.encode()
    tag.message = message.encode() + b"\n"
    tag.object = (Commit, commit.id)
    tag.tagger = f"{call.identity.user} <{call.identity.user}@users.noreply.local>".encode()
    tag.tag_time, tag.tag_timezone = int(time.time()), 0
    return tag


def delete_tag(call: Call, repo: Repo, tail: list[str]) -> Response:
    """DELETE …/tag/{tag}."""
    _delete(call, repo, checked_ref("tags", "/".join(tail)))
    return JSONResponse({})
