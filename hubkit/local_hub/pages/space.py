"""The app of a Space at its page: in a frame while it runs, else what it is doing, and its owner's
buttons.
"""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from hubkit.local_hub.api.http import Call
from hubkit.local_hub.api.spaces import address
from hubkit.local_hub.apps import logs
from hubkit.local_hub.apps.space_manager import COMING, UP
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.pages import session
from hubkit.local_hub.storage.repos import Repo
from hubkit.untrusted import JsonObject

LOG_LINES = 20


def app_details(call: Call, repo: Repo) -> JsonObject:
    """What a Space's page says about its app; for other repositories, that there is none."""
    if repo.type != "space":
        return {"app": None}
    stage, message, _ = call.hub.spaces.state(repo)
    url = address(call, repo) if stage in (*UP, *COMING, "SLEEPING") else None
    owner = session.may_write_in(call, repo.namespace)
    app = {
        "stage": stage,
        "message": message,
        "url": url,
        "off": not call.hub.spaces.enabled,
        "can_start": owner and call.hub.spaces.enabled and stage not in (*UP, *COMING),
        "can_pause": owner and stage in (*UP, *COMING, "SLEEPING"),
        "log": _log(call, repo) if owner else [],
    }
    return {"app": app, "frame": url}


def _log(call: Call, repo: Repo) -> list[str]:
    tails = (
        logs.last_lines(call.hub.spaces.log(repo, kind), LOG_LINES) for kind in ("build", "run")
    )
    return [line for lines in tails for line in lines]


def start(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/start: the owner's button."""
    _require_owner(call, repo)
    call.hub.spaces.start(repo)
    return RedirectResponse(repo.web_path, 303)


def pause(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/pause: the owner's button."""
    _require_owner(call, repo)
    call.hub.spaces.suspend(repo, "PAUSED")
    return RedirectResponse(repo.web_path, 303)


def _require_owner(call: Call, repo: Repo) -> None:
    if not session.may_write_in(call, repo.namespace):
        raise Refusal(
            403, f"Only who logged in with a write token for {repo.namespace} may do this."
        )
