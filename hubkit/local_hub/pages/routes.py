"""Which page an address means."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from starlette.responses import Response

from hubkit.local_hub.api.http import Call
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.pages import code, lists, repo, session, space
from hubkit.local_hub.pages.render import page, stylesheet
from hubkit.local_hub.storage.repos import PLURALS, Repo, can_read, lookup, missing

RepoPage = Callable[[Call, Repo, list[str]], Response]

REPO_PAGES: dict[str, RepoPage] = {
    "": repo.card,
    "tree": code.tree,
    "blob": code.blob,
    "commits": code.commits,
    "commit": code.commit,
    "go": code.go,
    "rows": repo.rows,
    "viewer": repo.rows,
    "discussions": repo.discussions,
}
SPACE_BUTTONS: dict[str, RepoPage] = {"start": space.start, "pause": space.pause}
TOP_PAGES: dict[tuple[str, str], Callable[[Call], Response]] = {
    ("GET", ""): lists.home,
    ("GET", "login"): session.login,
    ("POST", "login"): session.login,
    ("POST", "logout"): session.logout,
    ("GET", "collections"): lists.collections,
}


def route(call: Call) -> Response:
    """The page at this address. Raises `Refusal` 404 where there is none."""
    method = "GET" if call.method == "HEAD" else call.method
    parts = call.segments
    if parts == ["static", "hub.css"]:
        return stylesheet()
    top = TOP_PAGES.get((method, "/".join(parts)))
    if top is not None:
        return top(call)
    if method == "POST" and parts[0] == "spaces" and len(parts) == 4:
        return _repo_page(call, parts, SPACE_BUTTONS)
    if method != "GET":
        raise Refusal(404, "Not found: this Hub has nothing at this address.")
    if parts[0] == "collections" and len(parts) == 3:
        return lists.collection(call)
    if len(parts) == 1:
        return (
            lists.of_kind(call, parts[0])
            if parts[0] in PLURALS
            else lists.of_namespace(call, parts[0])
        )
    return _repo_page(call, parts)


def _repo_page(call: Call, parts: list[str], pages: dict[str, RepoPage] = REPO_PAGES) -> Response:
    kind = "model"
    if parts[0] in PLURALS:
        kind, parts = PLURALS[parts[0]], parts[1:]
    handler = pages.get(parts[2] if len(parts) > 2 else "")
    if len(parts) < 2 or handler is None:
        raise Refusal(404, "Not found: this Hub has nothing at this address.")
    identity = call.identity or session.browser_identity(call)
    target, _ = lookup(call.hub, kind, parts[0], parts[1], identity)
    if target is None or not can_read(identity, target):
        raise missing(identity)
    return handler(call, target, parts[3:])


def answer_error(call: Call, refusal: Refusal) -> Response:
    """A refusal as a page, for a browser."""
    status = 404 if refusal.code == "RepoNotFound" else refusal.http_status
    message = (
        "There is no such repository, or it is private."
        if status == 404 and refusal.code
        else refusal.message
    )
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    return page(call, "error.html", status, shown_status=status, message=f"{phrase}: {message}")
