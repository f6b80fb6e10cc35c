"""Logging in to the pages: a cookie that lets a browser read what its owner may read.

Nothing can be changed with it but a Space's app: started or paused, by one who logged in with a
write token."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response

from hubkit.local_hub.api.http import Call
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.hub import Hub
from hubkit.local_hub.pages.render import page
from hubkit.local_hub.storage.accounts import Identity

COOKIE = "hub_session"
LIFETIME_S = 12 * 3600


def identity(hub: Hub, cookie: str | None) -> Identity | None:
    """Who a cookie belongs to, with the right to read only; None for no cookie or one that no
    longer holds.
    """
    user, _ = _signed(hub, cookie)
    return hub.accounts.reader(user) if user else None


def may_write_in(call: Call, namespace: str) -> bool:
    """Whether this browser logged in with a write token for a namespace: what the few buttons of
    the pages ask.
    """
    user, role = _signed(call.hub, call.request.cookies.get(COOKIE))
    identity = call.hub.accounts.reader(user) if user else None
    return identity is not None and replace(identity, role=role).may_write_in(namespace)


def _signed(hub: Hub, cookie: str | None) -> tuple[str, str]:
    """(user, role of the token that was shown) of a cookie; two empty strings for none, or one that
    does not hold.
    """
    user, _, tail = (cookie or "").partition("~")
    role, _, signature = tail.partition("~")
    try:
        hub.check_signature(signature, "session", user, role)
    except Refusal:
        return "", ""
    return user, role


def login(call: Call) -> Response:
    """GET and POST /login."""
    if call.method != "POST":
        return page(call, "login.html", problem=None)
    token = (
        parse_qs(call.body.decode("utf-8", "replace"), max_num_fields=10)
        .get("token", [""])[0]
        .strip()
    )
    try:
        identity = call.hub.accounts.identify(f"Bearer {token}")
    except Refusal:
        return page(call, "login.html", 401, problem="This Hub does not know that token.")
    assert identity is not None  # a header was given
    answer = RedirectResponse("/", 303)
    signature = call.hub.sign("session", identity.user, identity.role, lifetime_s=LIFETIME_S)
    value = f"{identity.user}~{identity.role}~{signature}"
    answer.set_cookie(COOKIE, value, max_age=LIFETIME_S, httponly=True, samesite="strict")
    return answer


def logout(call: Call) -> Response:
    """POST /logout."""
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
