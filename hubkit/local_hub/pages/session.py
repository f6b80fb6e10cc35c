"""Logging in to the pages: a cookie that lets a browser read what its owner may read, and nothing more."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response

from ..accounts import Identity
from ..state import Hub
from ..wire import Call, Refusal
from .render import page

COOKIE = "hub_session"
LIFETIME_S = 12 * 3600


def identity(hub: Hub, cookie: str | None) -> Identity | None:
    """Who a cookie belongs to, with the right to read only; None for no cookie or one that no longer holds."""
    if not cookie:
        return None
    user, _, signature = cookie.partition("~")
    try:
        hub.check_signature(signature, "session", user)
    except Refusal:
        return None
    return hub.accounts.reader(user)


def login(call: Call) -> Response:
    """GET and POST /login."""
    if call.method != "POST":
        return page(call, "login.html", problem=None)
    token = parse_qs(call.body.decode("utf-8", "replace"), max_num_fields=10).get("token", [""])[0].strip()
    try:
        who = call.hub.accounts.identify(f"Bearer {token}")
    except Refusal:
        return page(call, "login.html", 401, problem="This Hub does not know that token.")
    assert who is not None  # a header was given
    answer = RedirectResponse("/", 303)
    value = f"{who.user}~{call.hub.sign('session', who.user, lifetime_s=LIFETIME_S)}"
    answer.set_cookie(COOKIE, value, max_age=LIFETIME_S, httponly=True, samesite="strict")
    return answer


def logout(call: Call) -> Response:
    """POST /logout."""
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
