"""What is in a repository at a revision: tree and paths-info."""

from __future__ import annotations

import stat
from datetime import UTC, datetime

from dulwich.objects import Commit
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.http import Call, page
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH, GitRepo
from hubkit.local_hub.storage.repos import Repo, commit_of, git
from hubkit.local_hub.storage.trees import Entry
from hubkit.untrusted import JsonObject

PAGE, PAGE_EXPANDED = 1000, 50
MAX_HISTORY = 20_000


def tree(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/tree/{rev}/{path}?recursive&expand."""
    revision, path = (tail[0] if tail else DEFAULT_BRANCH), "/".join(tail[1:]).strip("/")
    expand = call.flag("expand")
    size = call.number("limit", PAGE_EXPANDED if expand else PAGE, PAGE)
    with git(call.hub, repo) as opened:
        commit = commit_of(opened, revision)
        folder = trees.find(opened, opened.commit(commit).tree, path)
        if folder is None or folder.is_file:
            message = f"{path} does not exist on {revision[:200]!r}"
            raise Refusal(
                404, message, "EntryNotFound", headers={"X-Repo-Commit": opened.public_id(commit)}
            )
        entries = (
            list(trees.walk(opened, folder))
            if call.flag("recursive")
            else trees.children(opened, folder)
        )
        return page(call, entries, size, lambda window: describe(opened, commit, window, expand))


def paths_info(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/paths-info/{rev} with `paths` and `expand`, as JSON or as a form; unknown paths are
    left out.
    """
    from urllib.parse import parse_qs

    if "json" in call.request.headers.get("content-type", ""):
        body = call.json()
        paths, expand = body.get("paths", []), bool(body.get("expand"))
    else:
        form = parse_qs(call.body.decode("utf-8", "replace"), max_num_fields=20_000)
        paths, expand = (
            form.get("paths", []),
            form.get("expand", ["false"])[0].lower() in ("1", "true"),
        )
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise Refusal(400, "'paths' must be a list of strings.")
    with git(call.hub, repo) as opened:
        commit = commit_of(opened, tail[0] if tail else DEFAULT_BRANCH)
        root = opened.commit(commit).tree
        entries = [
            trees.find(opened, root, path.strip("/"))
            for path in dict.fromkeys(paths)
            if path.strip("/")
        ]
        return JSONResponse(describe(opened, commit, [entry for entry in entries if entry], expand))


def describe(repo: GitRepo, commit: bytes, entries: list[Entry], expand: bool) -> list[JsonObject]:
    """Entries as the Hub's JSON says them; with `expand` also the commit that last touched each."""
    last = last_commits(repo, commit, entries) if expand else {}
    return [_describe_one(repo, entry, last.get(entry.path), expand) for entry in entries]


def _describe_one(repo: GitRepo, entry: Entry, last: Commit | None, expand: bool) -> JsonObject:
    answer: JsonObject = {
        "type": "file" if entry.is_file else "directory",
        "oid": entry.sha.decode(),
    }
    if entry.is_file:
        info = trees.blob_info(repo, entry.sha)
        answer["size"] = info.file_size
        if info.pointer:
            answer["lfs"] = {
                "oid": info.pointer.oid,
                "size": info.pointer.size,
                "pointerSize": info.size,
            }
    else:
        answer["size"] = 0
    answer["path"] = entry.path
    if expand:
        answer["lastCommit"] = commit_brief(last) if last else None
        if entry.is_file:
            scan = {"virusFound": False, "virusNames": None}
            pickles = {"pickleImports": [], "highestSafetyLevel": "innocuous"}
            answer["securityFileStatus"] = {
                "status": "unscanned",
                "avScan": scan,
                "pickleImportScan": pickles,
            }
    return answer


def commit_brief(commit: Commit) -> dict[str, str]:
    """Return the summary of a commit that listings of files show."""
    return {"id": commit.id.decode(), "title": title_of(commit), "date": date_of(commit)}


def title_of(commit: Commit) -> str:
    """The first line of a commit's message."""
    return str(commit.message.decode("utf-8", "replace").partition("\n")[0])


def date_of(commit: Commit) -> str:
    """When a commit was made, as the Hub's JSON writes it."""
    return datetime.fromtimestamp(commit.commit_time, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def last_commits(repo: GitRepo, head: bytes, entries: list[Entry]) -> dict[str, Commit]:
    """For each entry the newest commit in which it differs from the commit before."""
    open_paths = {entry.path: entry.sha for entry in entries}
    last: dict[str, Commit] = {}
    newer: Commit | None = None
    for number, commit in enumerate(repo.history(head)):
        if newer is not None:
            for path, sha in _changed_since(repo, commit, newer, open_paths):
                last[path] = newer
                del open_paths[path]
                assert sha  # it exists in the newer commit
        if not open_paths or number > MAX_HISTORY:
            return last
        newer = commit
    if newer is not None:
        last.update(dict.fromkeys(open_paths, newer))
    return last


def _changed_since(
    repo: GitRepo, older: Commit, newer: Commit, paths: dict[str, bytes]
) -> list[tuple[str, bytes]]:
    if older.tree == newer.tree:
        return []
    folders: dict[str, Entry | None] = {}
    changed = []
    for path, sha in paths.items():
        parent, _, name = path.rpartition("/")
        if parent not in folders:
            folders[parent] = trees.find(repo, older.tree, parent)
        folder = folders[parent]
        before = None
        if folder is not None and stat.S_ISDIR(folder.mode):
            inside = repo.tree(folder.sha)
            before = inside[name.encode()][1] if name.encode() in inside else None
        if before != sha:
            changed.append((path, sha))
    return changed
