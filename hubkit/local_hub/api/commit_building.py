"""From the request for a commit to the commit, on top of a branch."""

from __future__ import annotations

from hubkit.local_hub.api.commit_body import CommitRequest
from hubkit.local_hub.api.http import Call
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.git import GitRepo, NewObject, new_commit
from hubkit.local_hub.storage.repos import Repo, commit_of

STALE = "The branch was updated since you opened this page. Please refresh and try again."


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
    assert call.identity is not None
    ref = branch_ref(opened, revision)
    with call.hub.writing(repo.folder):
        head = opened.ref(ref)
        if head is None:
            raise Refusal(404, f"Invalid rev id: {revision[:200]}", "RevisionNotFound")
        check_parent(opened, request, head)
        sha, objects = build(opened, request, head, call.identity.user)
        opened.write(objects)
        if sha == head:
            return head
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
        return head, [*request.blobs.values()]  # present already, unless they were damaged
    commit = new_commit(tree, [head], request.message, author)
    return commit.id, [*request.blobs.values(), *folders, NewObject.of(commit)]


def _below(repo: GitRepo, tree: bytes, path: str) -> list[str]:
    entry = trees.find(repo, tree, path)
    if entry is None or entry.is_file:
        raise Refusal(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
    return [child.path for child in trees.walk(repo, entry) if child.is_file]
