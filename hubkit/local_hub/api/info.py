"""A repository described: the JSON behind `repo_info`, and the lists of repositories."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.files import date_of
from hubkit.local_hub.api.http import Call, page
from hubkit.local_hub.api.spaces import address, runtime
from hubkit.local_hub.errors import DAMAGED, Refusal
from hubkit.local_hub.storage import cards, trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH, GitRepo, opened
from hubkit.local_hub.storage.repos import Repo, can_read, commit_of, git
from hubkit.untrusted import JsonObject, list_in, parse_json

_ALWAYS = ("id", "_id")
_LISTED = """
    id author sha lastModified private gated disabled tags downloads likes createdAt cardData
    siblings pipeline_tag library_name sdk modelId description
    """.split()  # noqa: SIM905 - one word a word
MAX_LIST_PAGE = 1000

log = logging.getLogger("hubkit.local_hub")


@dataclass(frozen=True)
class Snapshot:
    """What a commit's files say about the repository (computed once for each commit)."""

    sha: str
    modified: str
    card: JsonObject
    paths: list[str]
    config: JsonObject
    used: int


def snapshot(path: Path, repo: GitRepo, commit: bytes) -> Snapshot:
    """Read a commit; remembered."""
    return _snapshot(path, commit, repo.commit(commit).tree)


@lru_cache(maxsize=256)
def _snapshot(path: Path, commit: bytes, tree: bytes) -> Snapshot:
    with opened(path) as repo:
        entries = {entry.path: entry for entry in trees.files(repo, tree)}
        readme, config = entries.get("README.md"), entries.get("config.json")
        card = cards.safe_metadata(_text(repo, readme.sha)) if readme else {}
        used = sum(trees.blob_info(repo, entry.sha).file_size for entry in entries.values())
        parsed = _config(_text(repo, config.sha)) if config else {}
        return Snapshot(
            repo.public_id(commit), date_of(repo.commit(commit)), card, list(entries), parsed, used
        )


def _text(repo: GitRepo, sha: bytes) -> str:
    return repo.blob(sha).decode("utf-8", "replace")


def _config(text: str) -> JsonObject:
    try:
        value = parse_json(text) if len(text) < 2**20 else {}
    except ValueError:
        return {}
    keys = ("architectures", "model_type", "quantization_config")
    return {key: value[key] for key in keys if key in value} if isinstance(value, dict) else {}


def describe(
    call: Call, repo: Repo, revision: str = DEFAULT_BRANCH, *, blobs: bool = False
) -> JsonObject:
    """Everything that is known about a repository at a revision."""
    with git(call.hub, repo) as open_repo:
        commit = commit_of(open_repo, revision)
        snap = snapshot(open_repo.path, open_repo, commit)
        siblings: list[JsonObject] = [{"rfilename": path} for path in snap.paths]
        if blobs:
            siblings = [
                _sibling(open_repo, entry)
                for entry in trees.files(open_repo, open_repo.commit(commit).tree)
            ]
    return {**_facts(call, repo), **_from_snapshot(call, repo, snap), "siblings": siblings}


def describe_damaged(call: Call, repo: Repo) -> JsonObject:
    """Describe a repository whose files cannot be read, by its row alone."""
    empty = Snapshot("", repo.created_at, {}, [], {}, 0)
    facts = {**_facts(call, repo), "disabled": True, "siblings": []}
    if repo.type != "space":
        facts |= _from_snapshot(call, repo, empty)
    return {**facts, "sha": None, "tags": [], "lastModified": repo.created_at, "cardData": {}}


def _facts(call: Call, repo: Repo) -> JsonObject:
    likes = call.hub.settings.row("SELECT count(*) AS n FROM likes WHERE repo = ?", repo.pk)
    return {
        "_id": f"{repo.pk:024x}",
        "id": repo.id,
        "author": repo.namespace,
        "createdAt": repo.created_at,
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "downloads": 0,
        "downloadsAllTime": 0,
        "likes": likes["n"] if likes else 0,
        "trendingScore": 0,
        "resourceGroup": None,
    }


def _from_snapshot(call: Call, repo: Repo, snap: Snapshot) -> JsonObject:
    card = snap.card
    facts: JsonObject = {
        "sha": snap.sha,
        "lastModified": snap.modified,
        "cardData": card,
        "tags": cards.tags_of(repo.type, card, snap.paths),
        "usedStorage": snap.used,
    }
    if repo.type == "model":
        library = card.get("library_name") or (
            "transformers" if snap.config.get("model_type") else None
        )
        facts |= {
            "modelId": repo.id,
            "library_name": library,
            "pipeline_tag": card.get("pipeline_tag"),
        }
        facts |= {"config": snap.config, "model-index": card.get("model-index"), "spaces": []}
        facts |= {
            "widgetData": card.get("widget"),
            "inference": None,
            "baseModels": None,
            "childrenModelCount": 0,
        }
        facts |= {"mask_token": None, "transformersInfo": None, "safetensors": None, "gguf": None}
        facts |= {"inferenceProviderMapping": None, "securityRepoStatus": None, "evalResults": None}
    elif repo.type == "dataset":
        facts |= {
            "description": str(card.get("pretty_name") or ""),
            "citation": None,
            "paperswithcode_id": None,
        }
        facts |= {"mainSize": snap.used}
    elif repo.type == "space":
        facts |= {
            "sdk": card.get("sdk") or repo.sdk,
            "subdomain": repo.id.replace("/", "-").lower(),
        }
        facts |= {"models": card.get("models") or [], "datasets": card.get("datasets") or []}
        facts |= {"host": address(call, repo), "runtime": runtime(call.hub, repo)}
    return facts


def _sibling(repo: GitRepo, entry: trees.Entry) -> JsonObject:
    info = trees.blob_info(repo, entry.sha)
    answer: JsonObject = {
        "rfilename": entry.path,
        "size": info.file_size,
        "blobId": entry.sha.decode(),
    }
    if info.pointer:
        answer["lfs"] = {
            "sha256": info.pointer.oid,
            "size": info.pointer.size,
            "pointerSize": info.size,
        }
    return answer


def repo_info(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET /api/{type}s/{id}[/revision/{rev}]?blobs&expand."""
    revision = "/".join(tail) or DEFAULT_BRANCH
    answer = describe(call, repo, revision, blobs=call.flag("blobs"))
    if call.flag("securityStatus"):
        answer["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    fields = _expanded(call)
    return JSONResponse({key: answer.get(key) for key in (*_ALWAYS, *fields)} if fields else answer)


def _expanded(call: Call) -> list[str]:
    values = call.request.query_params.getlist("expand") + call.request.query_params.getlist(
        "expand[]"
    )
    return [value for value in values if value.lower() not in ("true", "false", "1", "0")]


def list_repos(call: Call, kind: str) -> Response:
    """GET /api/{type}s?author&search&filter&sort&limit&full&expand."""
    rows = call.hub.settings.rows("SELECT * FROM repos WHERE type = ? ORDER BY pk DESC", kind)
    visible = [
        repo for repo in map(Repo.of, rows) if can_read(call.identity, repo) and _named(call, repo)
    ]
    fields = _expanded(call)
    full = call.flag("full") or call.flag("config") or bool(fields)
    described = [
        answer for repo in visible if (answer := brief(call, repo)) and _filtered(call, answer)
    ]
    _sort(call, described)
    size = call.number("limit", MAX_LIST_PAGE, MAX_LIST_PAGE)
    return page(call, [_select(call, answer, fields, full) for answer in described], size)


def _named(call: Call, repo: Repo) -> bool:
    author, search = call.query("author"), call.query("search")
    if author and author.lower() != repo.namespace.lower():
        return False
    return not search or search.lower() in repo.id.lower()


def brief(call: Call, repo: Repo) -> JsonObject | None:
    """Describe a repository in a list; None for one that was deleted meanwhile."""
    try:
        return describe(call, repo)
    except Refusal:
        return None  # deleted this moment
    except Exception as error:  # one damaged repository must not hide the others
        log.warning("%s cannot be read (%s); %s", repo.id, type(error).__name__, DAMAGED)
        return describe_damaged(call, repo)


def _filtered(call: Call, answer: JsonObject) -> bool:
    params = call.request.query_params
    required = [tag for value in params.getlist("filter") for tag in value.split(",") if tag]
    pipeline = params.get("pipeline_tag")
    if pipeline and answer.get("pipeline_tag") != pipeline:
        return False
    if params.get("gated") in ("true", "false") and bool(answer["gated"]) != (
        params["gated"] == "true"
    ):
        return False
    labels = {
        tag.lower()
        for tag in [
            *map(str, list_in(answer, "tags")),
            str(answer.get("library_name") or ""),
            str(answer.get("sdk") or ""),
        ]
    }
    return all(tag.lower() in labels for tag in required)


def _sort(call: Call, answers: list[JsonObject]) -> None:
    keys = {
        "last_modified": "lastModified",
        "created_at": "createdAt",
        "trending_score": "trendingScore",
    }
    key = keys.get(call.query("sort") or "", call.query("sort") or "trendingScore")
    if key not in (
        "lastModified",
        "createdAt",
        "downloads",
        "likes",
        "trendingScore",
        "likes7d",
        "id",
    ):
        raise Refusal(400, f"Cannot sort by {key[:40]!r}.")
    answers.sort(
        key=lambda answer: str(answer.get(key, "")), reverse=call.query("direction") != "1"
    )


def _select(call: Call, answer: JsonObject, fields: list[str], full: bool) -> JsonObject:
    if fields:
        return {key: answer.get(key) for key in (*_ALWAYS, *fields)}
    keys = (
        [*_LISTED, "_id"]
        if full
        else [key for key in _LISTED if key not in ("siblings", "cardData")]
    )
    selection = {key: answer[key] for key in (*keys, "_id") if key in answer}
    if call.flag("cardData"):
        selection["cardData"] = answer["cardData"]
    if call.flag("config"):
        selection["config"] = answer.get("config")
    return selection
