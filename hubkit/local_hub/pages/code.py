"""Files and commits of a repository."""

from __future__ import annotations

from itertools import islice
from typing import Any
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response

from hubkit.local_hub.api import files
from hubkit.local_hub.api.discussions import diff
from hubkit.local_hub.api.http import Call, require_gate
from hubkit.local_hub.api.resolve import find_file, media_type
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.pages.preview import kind_of
from hubkit.local_hub.pages.render import diff_lines, markdown
from hubkit.local_hub.pages.repo import repo_page
from hubkit.local_hub.storage import cards, trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH, GitRepo
from hubkit.local_hub.storage.repos import Repo, commit_of, git
from hubkit.untrusted import JsonObject

MAX_ENTRIES = 1000
MAX_DATED = 200
MAX_TEXT_BYTES = 400_000
COMMITS_PAGE = 50


def _quoted(path: str) -> str:
    return quote(path, safe="/")


def _revisions(repo: GitRepo) -> list[str]:
    names = [
        name.decode("utf-8", "replace")
        for kind in (b"refs/heads", b"refs/tags")
        for name in repo.refs(kind)
    ]
    return list(dict.fromkeys([DEFAULT_BRANCH, *names]))[:500]


def go(call: Call, repo: Repo, tail: list[str]) -> Response:
    """The revision form: to the same page at another revision."""
    to = call.query("to") if call.query("to") in ("tree", "commits") else "tree"
    revision = quote(call.query("rev") or DEFAULT_BRANCH, safe="")
    return RedirectResponse(f"{repo.web_path}/{to}/{revision}", 303)


def tree(call: Call, repo: Repo, tail: list[str]) -> Response:
    """A folder."""
    revision, path = (tail[0] if tail else DEFAULT_BRANCH), "/".join(tail[1:]).strip("/")
    with git(call.hub, repo) as opened:
        commit = commit_of(opened, revision)
        folder = trees.find(opened, opened.commit(commit).tree, path)
        if folder is None or folder.is_file:
            raise Refusal(404, f"There is no folder {path[:200]!r} at {revision[:100]!r}.")
        children = sorted(
            trees.children(opened, folder), key=lambda entry: (entry.is_file, entry.path)
        )
        last = files.last_commits(opened, commit, children[:MAX_DATED])
        rows = [_entry(opened, repo, revision, entry, last) for entry in children[:MAX_ENTRIES]]
        revisions = _revisions(opened)
    parent = (
        f"{repo.web_path}/tree/{quote(revision, safe='')}/{_quoted(path.rpartition('/')[0])}"
        if path
        else None
    )
    values = {
        "revision": revision,
        "revisions": revisions,
        "to": "tree",
        "path": path,
        "entries": rows,
    }
    return repo_page(
        call, repo, "Files", "tree.html", parent=parent, more=len(children) > MAX_ENTRIES, **values
    )


def _entry(
    repo: GitRepo, of: Repo, revision: str, entry: trees.Entry, last: JsonObject
) -> JsonObject:
    info = trees.blob_info(repo, entry.sha) if entry.is_file else None
    verb = "blob" if entry.is_file else "tree"
    return {
        "name": entry.path.rpartition("/")[2],
        "href": f"{of.web_path}/{verb}/{quote(revision, safe='')}/{_quoted(entry.path)}",
        "is_file": entry.is_file,
        "size": info.file_size if info else 0,
        "large": bool(info and info.pointer),
        "commit": files.commit_brief(last[entry.path]) if entry.path in last else None,
    }


def blob(call: Call, repo: Repo, tail: list[str]) -> Response:
    """A file: shown where it is text or an image, else offered."""
    revision, path = (tail[0] if tail else DEFAULT_BRANCH), "/".join(tail[1:])
    require_gate(call, repo)
    repo_file = find_file(call, repo, revision, path)
    with git(call.hub, repo) as opened:
        revisions = _revisions(opened)
    data = repo_file.data if repo_file.data is not None else _beginning(call, repo_file.pointer)
    text = _as_text(data)
    folder = f"{quote(revision, safe='')}/{_quoted(path.rpartition('/')[0])}".rstrip("/")
    base = f"{repo.web_path}/{{}}/{folder}/"
    is_markdown = text is not None and path.lower().endswith(".md")
    return repo_page(
        call,
        repo,
        "Files",
        "blob.html",
        revision=revision,
        revisions=revisions,
        to="tree",
        path=path,
        raw=f"{repo.web_path}/resolve/{quote(revision, safe='')}/{_quoted(path)}",
        size=repo_file.pointer.size if repo_file.pointer else len(data),
        oid=repo_file.pointer.oid if repo_file.pointer else None,
        image=media_type(path).startswith("image/"),
        text=text[:MAX_TEXT_BYTES] if text is not None else None,
        cut=len(data) >= MAX_TEXT_BYTES,
        rows=f"{repo.web_path}/rows?file={quote(path, safe='')}"
        if repo.type == "dataset" and revision == DEFAULT_BRANCH and kind_of(path)
        else None,
        card=markdown(cards.split(text)[1], base.format("blob"), base.format("resolve"))
        if is_markdown and text
        else None,
    )


def _beginning(call: Call, pointer: trees.Pointer | None) -> bytes:
    assert pointer is not None  # a file without data is a large one
    if call.hub.objects.size(pointer.oid) is None:
        return b""  # of a mirror and not downloaded, or damaged
    with call.hub.objects.path(pointer.oid).open("rb") as file:
        return file.read(MAX_TEXT_BYTES)


def _as_text(data: bytes) -> str | None:
    if b"\0" in data[:8000]:
        return None
    text = data[:MAX_TEXT_BYTES].decode("utf-8", "replace")
    return text if text.count("\ufffd") <= max(2, len(text) // 100) else None


def commits(call: Call, repo: Repo, tail: list[str]) -> Response:
    """The history of a revision."""
    revision = tail[0] if tail else DEFAULT_BRANCH
    start = call.query("from") or revision
    with git(call.hub, repo) as opened:
        commit_of(opened, revision)
        history = list(islice(opened.history(commit_of(opened, start)), COMMITS_PAGE + 1))
        tags: dict[bytes, list[str]] = {}
        for name, sha in opened.refs(b"refs/tags").items():
            tags.setdefault(opened.peel(sha) or b"", []).append(name.decode("utf-8", "replace"))
        revisions = _revisions(opened)
    window = history[:COMMITS_PAGE]
    described = [
        {**files.commit_brief(c), "author": _author(c), "tags": tags.get(c.id, [])} for c in window
    ]
    following = None
    if len(history) > COMMITS_PAGE:
        path = f"{repo.web_path}/commits/{quote(revision, safe='')}"
        following = f"{path}?from={history[COMMITS_PAGE].id.decode()}"
    values = {"revision": revision, "revisions": revisions, "to": "commits", "path": ""}
    return repo_page(
        call, repo, "Commits", "commits.html", commits=described, next=following, **values
    )


def _author(commit: Any) -> str:
    return str(commit.author.decode("utf-8", "replace").partition(" <")[0])


def commit(call: Call, repo: Repo, tail: list[str]) -> Response:
    """One commit and what it changes."""
    require_gate(call, repo)
    with git(call.hub, repo) as opened:
        sha = commit_of(opened, tail[0] if tail else DEFAULT_BRANCH)
        commit_object = opened.commit(sha)
        before = opened.commit(commit_object.parents[0]).tree if commit_object.parents else None
        lines, cut = diff_lines(diff(opened, before, commit_object.tree))
    title, _, message = commit_object.message.decode("utf-8", "replace").partition("\n")
    values = {
        "title": title,
        "message": message.strip(),
        "author": _author(commit_object),
        "date": files.date_of(commit_object),
    }
    return repo_page(
        call, repo, "Commits", "commit.html", sha=sha.decode(), lines=lines, cut=cut, **values
    )
