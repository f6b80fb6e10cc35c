"""Logging in to the pages: a cookie that lets a browser read what its owner may read.

Nothing can be changed with it but a Space's app: started or paused, by one who logged in with a
write token."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response

from hubkit.local_hub.api.http import Call
from hubkit.local_hub.apps.app_proxy import SESSION_COOKIE_PREFIX
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.pages.render import page
from hubkit.local_hub.storage.accounts import Identity, token_digest

COOKIE_PREFIX = SESSION_COOKIE_PREFIX.decode()
"""Browsers send cookies to every port of a host: each Hub has a cookie of its own, and the proxy
of a Space's app keeps them from the app."""

LIFETIME_S = 12 * 3600


def browser_identity(call: Call) -> Identity | None:
    """Return who is logged in, with the right to read only; None for no valid session."""
    user, _ = _session(call)
    return call.hub.accounts.reader(user) if user else None


def may_write_in(call: Call, namespace: str) -> bool:
    """Whether this browser logged in with a write token for a namespace: what the few buttons of
    the pages ask.
    """
    user, role = _session(call)
    identity = call.hub.accounts.reader(user) if user else None
    return identity is not None and replace(identity, role=role).may_write_in(namespace)


def _cookie_name(call: Call) -> str:
    return f"{COOKIE_PREFIX}{call.request.scope['server'][1]}"


def _session(call: Call) -> tuple[str, str]:
    """(user, role of the token that was shown) of the cookie; two empty strings where there is
    none, it does not hold, is of another port, or its token is gone.
    """
    cookie = call.request.cookies.get(_cookie_name(call)) or ""
    user, role, digest, signature = ([*cookie.split("~"), "", "", "", ""])[:4]
    try:
        call.hub.check_signature(signature, _cookie_name(call), user, role, digest)
    except Refusal:
        return "", ""
    return (user, role) if call.hub.accounts.has_digest(digest) else ("", "")


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
    values = (identity.user, identity.role, token_digest(token))
    name = _cookie_name(call)
    signature = call.hub.sign(name, *values, lifetime_s=LIFETIME_S)
    answer.set_cookie(
        name, "~".join((*values, signature)), max_age=LIFETIME_S, httponly=True, samesite="strict"
    )
    return answer


def logout(call: Call) -> Response:
    """POST /logout."""
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(_cookie_name(call), httponly=True, samesite="strict")
    return answer
