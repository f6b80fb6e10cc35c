"""Discussions and pull requests. A pull request is a discussion with a branch `refs/pr/N`."""

from __future__ import annotations

import io
import json
import secrets
import sqlite3
from html import escape

from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.commit_body import CommitRequest
from hubkit.local_hub.api.commit_building import STALE, build, check_parent
from hubkit.local_hub.api.http import Call, field, require_gate, require_user
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.accounts import Identity, now
from hubkit.local_hub.storage.git import DEFAULT_BRANCH, GitRepo, NewObject, new_commit
from hubkit.local_hub.storage.repos import Repo, commit_of, git
from hubkit.untrusted import JsonObject, text_in

PAGE = 10
MAX_DIFF_BYTES = 2 * 2**20
MAX_TEXT = 65_536


def _author(name: str) -> JsonObject:
    return {"name": name, "fullname": name, "type": "user", "avatarUrl": "", "isHf": False}


def discussion_row(call: Call, repo: Repo, number: str) -> sqlite3.Row:
    """The discussion with that number. Raises `Refusal` where there is none."""
    row = None
    if number.isdecimal() and len(number) < 10:
        row = call.hub.settings.row(
            "SELECT * FROM discussions WHERE repo=? AND num=?", repo.pk, int(number)
        )
    if row is None:
        raise Refusal(404, "Discussion not found")
    return row


def pr_ref(number: int) -> bytes:
    """The branch of a pull request."""
    return b"refs/pr/%d" % number


# opening


def _open(
    call: Call, repo: Repo, title: str, description: str, status: str, target: str | None = None
) -> int:
    """A new discussion, or a pull request for the branch `target`; its number."""
    identity = require_user(call)
    with call.hub.settings.transaction() as connection:
        newest = connection.execute(
            "SELECT max(num) AS n FROM discussions WHERE repo = ?", (repo.pk,)
        ).fetchone()
        number = int(newest["n"] or 0) + 1
        connection.execute(
            "INSERT INTO discussions"
            " (repo, num, title, status, is_pull, author, created_at, target)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                repo.pk,
                number,
                title,
                status,
                target is not None,
                identity.user,
                now(),
                target or "",
            ),
        )
    _add_event(call, repo, number, "comment", _comment(description, identity.user))
    return number


def _comment(text: str, author: str) -> JsonObject:
    latest: JsonObject = {
        "raw": text[:MAX_TEXT],
        "html": escape(text[:MAX_TEXT]),
        "updatedAt": now(),
        "author": _author(author),
    }
    return {"edited": False, "hidden": False, "latest": latest, "numEdits": 0, "reactions": []}


def _add_event(call: Call, repo: Repo, number: int, kind: str, data: JsonObject) -> JsonObject:
    identity = require_user(call)
    event_id, created = secrets.token_hex(12), now()
    call.hub.settings.write(
        "INSERT INTO events (id, repo, num, type, author, created_at, data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        event_id,
        repo.pk,
        number,
        kind,
        identity.user,
        created,
        json.dumps(data),
    )
    return {
        "id": event_id,
        "type": kind,
        "createdAt": created,
        "author": _author(identity.user),
        "data": data,
    }


def create(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/discussions {title, description, pullRequest}."""
    body = call.json()
    title, text = field(body, "title", str).strip(), field(body, "description", str, "")
    if not title:
        raise Refusal(400, "A discussion needs a title.")
    pull = bool(body.get("pullRequest"))
    if not pull:
        number = _open(call, repo, title, text, "open")
    else:
        with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
            head = commit_of(opened, DEFAULT_BRANCH)
            number = _open(call, repo, title, text, "draft", f"refs/heads/{DEFAULT_BRANCH}")
            opened.swap_ref(pr_ref(number), None, head)
    url = f"{call.base_url}{repo.web_path}/discussions/{number}"
    return JSONResponse({"num": number, "pullRequest": pull, "url": url})


def open_with_commit(
    call: Call, repo: Repo, opened: GitRepo, revision: str, request: CommitRequest
) -> tuple[bytes, int]:
    """A commit that opens a pull request instead of moving its branch: (commit id, number)."""
    identity = require_user(call)
    target = f"refs/heads/{revision.removeprefix('refs/heads/')}"
    with call.hub.writing(repo.folder):
        head = opened.ref(target.encode("utf-8", "replace"))
        if head is None:
            raise Refusal(404, f"Invalid rev id: {revision[:200]}", "RevisionNotFound")
        check_parent(opened, request, head)
        sha, objects = build(opened, request, head, identity.user)
        opened.write(objects)
        number = _open(call, repo, request.summary, request.description, "open", target)
        opened.swap_ref(pr_ref(number), None, sha)
    _add_event(call, repo, number, "commit", {"subject": request.summary, "oid": sha.decode()})
    return sha, number


def require_pull_author(call: Call, repo: Repo, revision: str) -> None:
    """A commit to `refs/pr/N` is for its author, and for those who may write here. Raises `Refusal`
    403.
    """
    row = discussion_row(call, repo, revision.removeprefix("refs/pr/"))
    if row["author"] != require_user(call).user:
        call.require_write(repo)
    if row["status"] not in ("open", "draft"):
        raise Refusal(403, "This pull request is closed.")


def record_commit(call: Call, repo: Repo, revision: str, summary: str, sha: bytes) -> None:
    """Show a commit in the pull request that it belongs to."""
    number = int(revision.removeprefix("refs/pr/"))
    _add_event(call, repo, number, "commit", {"subject": summary, "oid": sha.decode()})


# reading


def list_discussions(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/discussions?p&type&status&author."""
    rows = call.hub.settings.rows(
        "SELECT * FROM discussions WHERE repo = ? ORDER BY num DESC", repo.pk
    )
    kind, status, author = call.query("type"), call.query("status"), call.query("author")
    if kind in ("pull_request", "discussion"):
        rows = [row for row in rows if bool(row["is_pull"]) == (kind == "pull_request")]
    if status in ("open", "closed"):
        rows = [row for row in rows if (row["status"] in ("open", "draft")) == (status == "open")]
    if author:
        rows = [row for row in rows if row["author"].lower() == author.lower()]
    text = call.query("p") or "0"
    start = int(text) * PAGE if text.isdecimal() and len(text) < 9 else 0
    briefs = [_brief(call, repo, row) for row in rows[start : start + PAGE]]
    return JSONResponse({"discussions": briefs, "count": len(rows), "start": start})


def _brief(call: Call, repo: Repo, row: sqlite3.Row) -> JsonObject:
    return {
        "num": row["num"],
        "title": row["title"],
        "status": row["status"],
        "author": _author(row["author"]),
        "createdAt": row["created_at"],
        "isPullRequest": bool(row["is_pull"]),
        "repo": {"name": repo.id, "type": repo.type},
        "repoOwner": {"name": repo.namespace, "type": "user", "isParticipating": False},
        "pinned": False,
    }


def details(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/discussions/{n}?diff=1."""
    row = discussion_row(call, repo, tail[0])
    events = call.hub.settings.rows(
        "SELECT * FROM events WHERE repo=? AND num=? ORDER BY pk", repo.pk, row["num"]
    )
    answer = {**_brief(call, repo, row), "events": [_event(event) for event in events]}
    if row["is_pull"]:
        if call.flag("diff"):
            require_gate(call, repo)
        with git(call.hub, repo) as opened:
            answer |= _pull_details(opened, row, with_diff=call.flag("diff"))
    return JSONResponse(answer)


def _event(row: sqlite3.Row) -> JsonObject:
    answer = {
        "id": row["id"],
        "type": row["type"],
        "createdAt": row["created_at"],
        "author": _author(row["author"]),
    }
    return {**answer, "data": json.loads(row["data"])}


def _pull_details(repo: GitRepo, row: sqlite3.Row, *, with_diff: bool) -> JsonObject:
    changes: JsonObject = {"base": row["target"]}
    if row["merged"]:
        changes["mergeCommitId"] = row["merged"]
    head, target = repo.ref(pr_ref(row["num"])), repo.ref(row["target"].encode())
    answer: JsonObject = {"changes": changes, "filesWithConflicts": []}
    if head and target:
        base = merge_base(repo, target, head)
        if row["status"] in ("open", "draft"):
            answer["filesWithConflicts"] = _merge(repo, base, target, head)[1]
        if with_diff:
            answer["diff"] = diff(
                repo, repo.commit(base).tree if base else None, repo.commit(head).tree
            )
    return answer


def merge_base(repo: GitRepo, target: bytes, head: bytes) -> bytes | None:
    """The newest commit that both have in their past, or None."""
    past = {bytes(commit.id) for commit in repo.history(target)}
    return next((bytes(commit.id) for commit in repo.history(head) if commit.id in past), None)


def diff(repo: GitRepo, old: bytes | None, new: bytes) -> str:
    """What changed between two trees, as `git diff` prints it, at most `MAX_DIFF_BYTES` of it."""
    from dulwich.patch import write_tree_diff

    out = io.BytesIO()
    write_tree_diff(out, repo.store, old, new)
    return out.getvalue()[:MAX_DIFF_BYTES].decode("utf-8", "replace")


# changing


def change(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/discussions/{n}/WHAT: comment, status, title, merge, or comment/{id}/edit|hide."""
    identity, row = require_user(call), discussion_row(call, repo, tail[0])
    actions = {
        "comment": add_comment,
        "status": set_status,
        "title": set_title,
        "merge": merge,
    }
    if len(tail) == 4 and tail[1] == "comment" and tail[3] in ("edit", "hide"):
        return _change_comment(call, repo, row, tail[2], tail[3])
    action = actions.get(tail[1]) if len(tail) == 2 else None
    if action is None:
        raise Refusal(404, "Not offered for discussions.")
    if action is not add_comment:
        _require_say(call, repo, identity, row)
    return action(call, repo, row)


def _require_say(call: Call, repo: Repo, identity: Identity, row: sqlite3.Row) -> None:
    if identity.user != row["author"]:
        call.require_write(repo)


def add_comment(call: Call, repo: Repo, row: sqlite3.Row) -> Response:
    """POST …/comment {comment}."""
    text = field(call.json(), "comment", str)
    if not text.strip():
        raise Refusal(400, "A comment needs a text.")
    event = _add_event(call, repo, row["num"], "comment", _comment(text, require_user(call).user))
    return JSONResponse({"newMessage": event})


def _change_comment(call: Call, repo: Repo, row: sqlite3.Row, comment: str, verb: str) -> Response:
    identity = require_user(call)
    sql = "SELECT * FROM events WHERE repo=? AND num=? AND id=? AND type='comment'"
    event = call.hub.settings.row(sql, repo.pk, row["num"], comment)
    if event is None:
        raise Refusal(404, "Comment not found")
    if event["author"] != identity.user:
        call.require_write(repo)
    data = json.loads(event["data"])
    if verb == "hide":
        data = {
            **data,
            "hidden": True,
            "hiddenBy": identity.user,
            "latest": {**data["latest"], "raw": "", "html": ""},
        }
    else:
        data = {
            **_comment(field(call.json(), "content", str), identity.user),
            "edited": True,
            "numEdits": data["numEdits"] + 1,
        }
    call.hub.settings.write(
        "UPDATE events SET data = ? WHERE pk = ?", json.dumps(data), event["pk"]
    )
    return JSONResponse({"updatedComment": {**_event(event), "data": data}})


def set_title(call: Call, repo: Repo, row: sqlite3.Row) -> Response:
    """POST …/title {title}."""
    title = field(call.json(), "title", str).strip()
    if not title:
        raise Refusal(400, "A discussion needs a title.")
    sql = "UPDATE discussions SET title = ? WHERE repo = ? AND num = ?"
    call.hub.settings.write(sql, title, repo.pk, row["num"])
    event = _add_event(call, repo, row["num"], "title-change", {"from": row["title"], "to": title})
    return JSONResponse({"newTitle": event})


def set_status(call: Call, repo: Repo, row: sqlite3.Row) -> Response:
    """POST …/status {status, comment}."""
    body = call.json()
    status = field(body, "status", str)
    if status not in ("open", "closed"):
        raise Refusal(400, "'status' must be open or closed.")
    if row["status"] == "merged":
        raise Refusal(403, "This pull request is merged.")
    event = _set_status(call, repo, row, status, body)
    return JSONResponse({"newStatus": event})


def _set_status(
    call: Call, repo: Repo, row: sqlite3.Row, status: str, body: JsonObject
) -> JsonObject:
    if text_in(body, "comment").strip():
        _add_event(
            call,
            repo,
            row["num"],
            "comment",
            _comment(text_in(body, "comment"), require_user(call).user),
        )
    sql = "UPDATE discussions SET status = ? WHERE repo = ? AND num = ?"
    call.hub.settings.write(sql, status, repo.pk, row["num"])
    return _add_event(call, repo, row["num"], "status-change", {"status": status})


def merge(call: Call, repo: Repo, row: sqlite3.Row) -> Response:
    """POST …/merge: one commit on the target branch with everything that the pull request
    changes.
    """
    call.require_write(repo)
    identity = require_user(call)
    if not row["is_pull"] or row["status"] not in ("open", "draft"):
        raise Refusal(403, "Only an open pull request can be merged.")
    target_ref = row["target"].encode()
    with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
        target, head = opened.ref(target_ref), opened.ref(pr_ref(row["num"]))
        if target is None or head is None:
            raise Refusal(404, "The branch of this pull request is gone.", "RevisionNotFound")
        changes, conflicts = _merge(opened, merge_base(opened, target, head), target, head)
        if conflicts:
            raise Refusal(409, f"Merge conflict in: {', '.join(conflicts[:10])}")
        tree, fresh = trees.changed(opened, opened.commit(target).tree, changes)
        commit = new_commit(tree, [target], f"{row['title']} (#{row['num']})", identity.user)
        opened.write([*fresh, NewObject.of(commit)])
        if not opened.swap_ref(target_ref, target, commit.id):
            raise Refusal(412, STALE)
    sql = "UPDATE discussions SET merged = ? WHERE repo = ? AND num = ?"
    call.hub.settings.write(sql, commit.id.decode(), repo.pk, row["num"])
    _set_status(call, repo, row, "merged", call.json())
    return JSONResponse({"mergeCommitId": commit.id.decode()})


def _merge(
    repo: GitRepo, base: bytes | None, target: bytes, head: bytes
) -> tuple[dict[str, bytes | None], list[str]]:
    """Files that `head` changed since `base`, and those of them that `target` changed in another
    way.
    """
    before, target_files, head_files = (_files(repo, commit) for commit in (base, target, head))
    changes: dict[str, bytes | None] = {}
    conflicts = []
    for path in sorted({*before, *head_files}):
        if head_files.get(path) != before.get(path) and target_files.get(path) != head_files.get(
            path
        ):
            changes[path] = head_files.get(path)
            if target_files.get(path) != before.get(path):
                conflicts.append(path)
    return changes, conflicts


def _files(repo: GitRepo, commit: bytes | None) -> dict[str, bytes]:
    return (
        {entry.path: entry.sha for entry in trees.files(repo, repo.commit(commit).tree)}
        if commit
        else {}
    )
