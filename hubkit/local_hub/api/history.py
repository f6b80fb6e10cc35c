"""Rewriting the past: squash a branch, remove large files from every commit, copy a repository."""

from __future__ import annotations

from typing import Any

from dulwich.objects import Commit, Tree
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.files import date_of
from hubkit.local_hub.api.http import Call, Refusal, field, page
from hubkit.local_hub.api.lfs import link
from hubkit.local_hub.api.spaces import set_up
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.accounts import require_writer
from hubkit.local_hub.storage.git import DEFAULT_BRANCH, GitRepo, NewObject, new_commit
from hubkit.local_hub.storage.paths import checked_name, checked_ref
from hubkit.local_hub.storage.repos import PREFIX, Repo, git, lookup, make


def super_squash(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/super-squash/{branch} {message}: one commit without a past, of the same files."""
    assert call.who is not None  # the route needs a token
    name = rest[0] if rest else DEFAULT_BRANCH
    message = (
        field(call.json(), "message", str, "")
        or f"Super-squash branch {name!r} using huggingface_hub"
    )
    ref = name.encode() if name.startswith("refs/") else checked_ref("heads", name)
    with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
        head = opened.ref(ref)
        if head is None or not ref.startswith((b"refs/heads/", b"refs/pr/", b"refs/convert/")):
            raise Refusal(404, f"Invalid rev id: {name[:200]}", "RevisionNotFound")
        commit = new_commit(opened.commit(head).tree, [], message, call.who.user)
        opened.write([NewObject.of(commit)])
        opened.swap_ref(ref, head, commit.id)
    return JSONResponse({})


# large files of all commits


def list_large_files(call: Call, repo: Repo, rest: list[str]) -> Response:
    """GET …/lfs-files: every large file that some commit holds, newest use first."""
    call.require_write(repo)
    found: dict[str, dict[str, Any]] = {}
    with git(call.hub, repo) as opened:
        for ref, sha in sorted(
            opened.refs(b"refs/heads").items(), key=lambda item: item[0] != DEFAULT_BRANCH.encode()
        ):
            for commit in opened.history(sha):
                for entry in trees.files(opened, commit.tree):
                    _note(opened, found, ref.decode(), commit, entry)
    return page(call, list(found.values()), 1000)


def _note(
    repo: GitRepo, found: dict[str, dict[str, Any]], ref: str, commit: Commit, entry: trees.Entry
) -> None:
    pointer = trees.blob_info(repo, entry.sha).pointer
    if pointer is None:
        return
    known = found.setdefault(
        pointer.oid, {"oid": pointer.oid, "fileOid": pointer.oid, "size": pointer.size}
    )
    known.setdefault("filename", entry.path)
    known.setdefault("ref", f"refs/heads/{ref}")
    known["pushedAt"] = date_of(commit)


def delete_large_files(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/lfs-files/batch {deletions: {sha, rewriteHistory}}: remove large files for good."""
    if rest != ["batch"]:
        raise Refusal(404, "Not offered for large files.")
    wanted = field(call.json(), "deletions", dict)
    oids = {str(oid) for oid in field(wanted, "sha", list)}
    with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
        if wanted.get("rewriteHistory", True):
            _Rewrite(opened, oids).all_refs()
    for oid in oids:
        call.hub.settings.write("DELETE FROM held WHERE repo = ? AND oid = ?", repo.pk, oid)
    return JSONResponse({})


class _Rewrite:
    """The same commits without some large files."""

    def __init__(self, repo: GitRepo, oids: set[str]) -> None:
        self._repo = repo
        self._oids = oids
        self._commits: dict[bytes, bytes] = {}
        self._trees: dict[bytes, bytes | None] = {}

    def all_refs(self) -> None:
        """Move every branch, tag and pull request to its rewritten commit."""
        for name, sha in self._repo.refs(b"refs").items():
            target = self._repo.peel(sha)
            new = self._chain(target) if target else None
            if new and new != target:
                self._repo.swap_ref(b"refs/" + name, sha, new)

    def _chain(self, head: bytes) -> bytes:
        todo = [commit for commit in self._repo.history(head) if commit.id not in self._commits]
        for commit in reversed(todo):
            self._commits[commit.id] = self._commit(commit)
        return self._commits[head]

    def _commit(self, commit: Commit) -> bytes:
        tree = self._tree(commit.tree) or self._empty()
        parents = [self._commits.get(parent, parent) for parent in commit.parents]
        if tree == commit.tree and parents == commit.parents:
            return bytes(commit.id)
        new = commit.copy()
        new.tree, new.parents = tree, parents
        self._repo.write([NewObject.of(new)])
        return bytes(new.id)

    def _empty(self) -> bytes:
        empty = Tree()
        self._repo.write([NewObject.of(empty)])
        return bytes(empty.id)

    def _tree(self, sha: bytes) -> bytes | None:
        if sha not in self._trees:
            self._trees[sha] = self._new_tree(sha)
        return self._trees[sha]

    def _new_tree(self, sha: bytes) -> bytes | None:
        new = Tree()
        for entry in trees.children(self._repo, trees.Entry("", 0o40000, sha)):
            kept: bytes | None = entry.sha
            if not entry.is_file:
                kept = self._tree(entry.sha)
            else:
                pointer = trees.blob_info(self._repo, entry.sha).pointer
                kept = None if pointer and pointer.oid in self._oids else entry.sha
            if kept:
                new[entry.path.encode()] = (entry.mode, kept)
        if not len(new):
            return None
        if new.id != sha:
            self._repo.write([NewObject.of(new)])
        return bytes(new.id)


# a copy under another name


def duplicate(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/duplicate {repository, visibility, …}: the files of the main branch as a new
    repository.
    """
    body = call.json()
    namespace, _, name = field(body, "repository", str).partition("/")
    who = require_writer(call, checked_name(namespace, "namespace"))
    known, moved = lookup(call.hub, repo.type, namespace, checked_name(name), who)
    url = f"{call.base_url}/{PREFIX[repo.type]}{namespace}/{name}"
    if known and not moved:
        raise Refusal(
            409,
            f"A {repo.type} repository called {namespace}/{name} already exists",
            extra={"url": url},
        )
    private = (body.get("visibility") or ("private" if repo.private else "public")) == "private"
    made = make(call.hub, repo.type, namespace, name, who, private=private, sdk=repo.sdk)
    with (
        git(call.hub, repo) as source,
        git(call.hub, made) as target,
        call.hub.writing(made.folder),
    ):
        head, old = source.resolve(DEFAULT_BRANCH), target.resolve(DEFAULT_BRANCH)
        assert head and old  # every repository has a main branch
        tree = source.commit(head).tree
        commit = new_commit(tree, [], f"Duplicate from {repo.id}", who.user)
        target.write([*_all_objects(source, tree), NewObject.of(commit)])
        infos = [trees.blob_info(source, entry.sha) for entry in trees.files(source, tree)]
        link(call.hub, made, [info.pointer.oid for info in infos if info.pointer])
        target.swap_ref(b"refs/heads/main", old, commit.id)
    if repo.type == "space":
        set_up(call.hub, made, body)
    return JSONResponse({"url": url, "filesCopyPending": False})


def _all_objects(repo: GitRepo, tree: bytes) -> list[NewObject]:
    entries = list(trees.walk(repo, trees.Entry("", 0o40000, tree)))
    objects = [NewObject.of(repo.tree(tree))]
    return objects + [NewObject.of(repo.store[entry.sha]) for entry in entries]
