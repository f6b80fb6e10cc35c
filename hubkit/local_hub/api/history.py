"""Rewriting the past: squash a branch, remove large files from every commit, copy a repository."""

from __future__ import annotations

from dulwich.objects import Commit, Tree
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.files import date_of
from hubkit.local_hub.api.http import Call, field, page, require_gate, require_writer
from hubkit.local_hub.api.spaces import set_up
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH, GitRepo, NewObject, new_commit
from hubkit.local_hub.storage.object_owners import link
from hubkit.local_hub.storage.paths import checked_name, checked_ref
from hubkit.local_hub.storage.repos import PREFIX, Repo, commit_of, git, lookup, make
from hubkit.untrusted import JsonObject


def super_squash(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/super-squash/{branch} {message}: one commit without a past, of the same files."""
    assert call.identity is not None  # the route needs a token
    name = tail[0] if tail else DEFAULT_BRANCH
    message = (
        field(call.json(), "message", str, "")
        or f"Super-squash branch {name!r} using huggingface_hub"
    )
    ref = name.encode() if name.startswith("refs/") else checked_ref("heads", name)
    with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
        head = opened.ref(ref)
        if head is None or not ref.startswith((b"refs/heads/", b"refs/pr/", b"refs/convert/")):
            raise Refusal(404, f"Invalid rev id: {name[:200]}", "RevisionNotFound")
        commit = new_commit(opened.commit(head).tree, [], message, call.identity.user)
        opened.write([NewObject.of(commit)])
        opened.swap_ref(ref, head, commit.id)
    return JSONResponse({})


# large files of all commits


def list_large_files(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/lfs-files: every large file that some commit holds, newest use first."""
    call.require_write(repo)
    records: dict[str, JsonObject] = {}
    with git(call.hub, repo) as opened:
        for ref, sha in sorted(
            opened.refs(b"refs/heads").items(), key=lambda item: item[0] != DEFAULT_BRANCH.encode()
        ):
            for commit in opened.history(sha):
                for entry in trees.files(opened, commit.tree):
                    _note(opened, records, ref.decode(), commit, entry)
    return page(call, list(records.values()), 1000)


def _note(
    repo: GitRepo, records: dict[str, JsonObject], ref: str, commit: Commit, entry: trees.Entry
) -> None:
    pointer = trees.blob_info(repo, entry.sha).pointer
    if pointer is None:
        return
    record = records.setdefault(
        pointer.oid, {"oid": pointer.oid, "fileOid": pointer.oid, "size": pointer.size}
    )
    record.setdefault("filename", entry.path)
    record.setdefault("ref", f"refs/heads/{ref}")
    record["pushedAt"] = date_of(commit)


def delete_large_files(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/lfs-files/batch {deletions: {sha, rewriteHistory}}: remove large files for good."""
    if tail != ["batch"]:
        raise Refusal(404, "Not offered for large files.")
    deletions = field(call.json(), "deletions", dict)
    oids = {str(oid) for oid in field(deletions, "sha", list)}
    with call.hub.writing(repo.folder), git(call.hub, repo) as opened:
        if deletions.get("rewriteHistory", True):
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
            replacement: bytes | None = entry.sha
            if not entry.is_file:
                replacement = self._tree(entry.sha)
            else:
                pointer = trees.blob_info(self._repo, entry.sha).pointer
                replacement = None if pointer and pointer.oid in self._oids else entry.sha
            if replacement:
                new[entry.path.encode()] = (entry.mode, replacement)
        if not len(new):
            return None
        if new.id != sha:
            self._repo.write([NewObject.of(new)])
        return bytes(new.id)


# a copy under another name


def duplicate(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/duplicate {repository, visibility, …}: the files of the main branch as a new
    repository.
    """
    body = call.json()
    require_gate(call, repo)
    namespace, _, name = field(body, "repository", str).partition("/")
    identity = require_writer(call, checked_name(namespace, "namespace"))
    existing, was_moved = lookup(call.hub, repo.type, namespace, checked_name(name), identity)
    url = f"{call.base_url}/{PREFIX[repo.type]}{namespace}/{name}"
    if existing and not was_moved:
        raise Refusal(
            409,
            f"A {repo.type} repository called {namespace}/{name} already exists",
            extra={"url": url},
        )
    if repo.upstream:
        _require_downloaded(call, repo)
    private = (body.get("visibility") or ("private" if repo.private else "public")) == "private"
    copy = make(call.hub, repo.type, namespace, name, identity, private=private, sdk=repo.sdk)
    with (
        git(call.hub, repo) as source,
        git(call.hub, copy) as target,
        call.hub.writing(copy.folder),
    ):
        head, old = source.resolve(DEFAULT_BRANCH), target.resolve(DEFAULT_BRANCH)
        assert head and old  # every repository has a main branch
        tree = source.commit(head).tree
        commit = new_commit(tree, [], f"Duplicate from {repo.id}", identity.user)
        target.write([*_all_objects(source, tree), NewObject.of(commit)])
        infos = [trees.blob_info(source, entry.sha) for entry in trees.files(source, tree)]
        link(call.hub, copy, [info.pointer.oid for info in infos if info.pointer])
        target.swap_ref(b"refs/heads/main", old, commit.id)
    if repo.type == "space":
        set_up(call.hub, copy, body)
    return JSONResponse({"url": url, "filesCopyPending": False})


def _require_downloaded(call: Call, repo: Repo) -> None:
    """Raises `Refusal` 409 where large files of a mirror are not here yet."""
    with git(call.hub, repo) as opened:
        tree = opened.commit(commit_of(opened, DEFAULT_BRANCH)).tree
        for entry in trees.files(opened, tree):
            pointer = trees.blob_info(opened, entry.sha).pointer
            if pointer and call.hub.objects.size(pointer.oid) is None:
                message = (
                    f"{entry.path} of {repo.id} is not downloaded yet: download the repository"
                )
                raise Refusal(409, f"{message} from this Hub first, then duplicate it.")


def _all_objects(repo: GitRepo, tree: bytes) -> list[NewObject]:
    entries = list(trees.walk(repo, trees.Entry("", 0o40000, tree)))
    objects = [NewObject.of(repo.tree(tree))]
    return objects + [NewObject.of(repo.store[entry.sha]) for entry in entries]
