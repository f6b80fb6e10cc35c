"""Who is asking, and what that person may do.

A token is kept only as its sha256. The owner of the machine (`admin`) may write in every namespace;
other users in their own and in their organisations'."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.paths import checked_name
from hubkit.local_hub.storage.settings import Settings

OWNER = "local"
_TOKEN = re.compile(r"hf_[A-Za-z0-9_-]{8,200}")


def now() -> str:
    """The current time as the Hub's JSON writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@dataclass(frozen=True)
class Identity:
    """The bearer of a valid token."""

    user: str
    role: str
    token_name: str
    admin: bool
    orgs: tuple[tuple[str, str], ...]
    scope: frozenset[str] | None = None
    """The private and gated repositories (``type:namespace/name``, in lower case) that the token
    may read, where it is not for all that its user may read."""

    @property
    def may_write(self) -> bool:
        """Whether this token has the write role."""
        return self.role == "write"

    def is_in(self, namespace: str) -> bool:
        """Whether everything of this namespace, private things too, is for this token to see."""
        return self.scope is None and self._belongs_to(namespace)

    def may_read(self, kind: str, namespace: str, name: str) -> bool:
        """Whether this token may read a private or gated repository."""
        key = f"{kind}:{namespace}/{name}".lower()
        return self._belongs_to(namespace) and (self.scope is None or key in self.scope)

    def _belongs_to(self, namespace: str) -> bool:
        names = [self.user, *(org for org, _ in self.orgs)]
        return self.admin or namespace.lower() in (name.lower() for name in names)

    def may_write_in(self, namespace: str) -> bool:
        """Whether this token may change repositories of a namespace."""
        if not self.may_write:
            return False
        if self.admin or namespace.lower() == self.user.lower():
            return True
        return any(org.lower() == namespace.lower() and role != "read" for org, role in self.orgs)


class Accounts:
    """Users, organisations and tokens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def add_user(self, name: str, *, fullname: str | None = None, admin: bool = False) -> None:
        """Make a user, or leave the existing one as it is. Raises `Refusal` 400 for an impossible
        name.
        """
        self._add(checked_name(name, "namespace"), "user", fullname, admin)

    def add_org(
        self, name: str, members: dict[str, str] | None = None, fullname: str | None = None
    ) -> None:
        """Make an organisation (or leave the existing one) and add members (user → read, write or
        admin).

        Raises `Refusal` 400.
        """
        if not set((members or {}).values()) <= {"read", "write", "admin"}:
            raise Refusal(400, "A member's role is read, write or admin.")
        self._add(checked_name(name, "namespace"), "org", fullname, False)
        for user, role in (members or {}).items():
            self._settings.write(
                "INSERT OR REPLACE INTO members VALUES (?, ?, ?)", name, user, role
            )

    def _add(self, name: str, kind: str, fullname: str | None, admin: bool) -> None:
        email = f"{name}@users.noreply.local" if kind == "user" else None
        self._settings.write(
            "INSERT OR IGNORE INTO accounts VALUES (?, ?, ?, ?, ?, ?)",
            name,
            kind,
            fullname or name,
            email,
            admin,
            now(),
        )

    def exists(self, name: str) -> bool:
        """Whether there is a user or an organisation of this name."""
        return self._settings.row("SELECT 1 FROM accounts WHERE name = ?", name) is not None

    def add_token(
        self,
        user: str,
        role: str = "write",
        *,
        name: str = "token",
        token: str | None = None,
        scope: Iterable[str] | None = None,
    ) -> str:
        """Make a token for a user (role: read or write) and return it; it is not kept anywhere in
        the clear.

        Raises `Refusal` 400 where a token is given that does not look like one.
        """
        if token is not None and not _TOKEN.fullmatch(token):
            raise Refusal(400, "A token is hf_ and 8 to 200 letters, digits, '-' or '_'.")
        token = token or "hf_" + secrets.token_urlsafe(24).replace("-", "x").replace("_", "y")
        self._settings.write(
            "INSERT OR REPLACE INTO tokens (digest, user, role, name, created_at, scope)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            *(token_digest(token), user, role, name, now()),
            None if scope is None else " ".join(sorted(scope)).lower(),
        )
        return token

    def knows(self, token: str) -> bool:
        """Return whether a token is valid here."""
        return self.has_digest(token_digest(token))

    def has_digest(self, digest: str) -> bool:
        """Return whether the token of this digest is valid here."""
        row = self._settings.row("SELECT 1 FROM tokens WHERE digest = ?", digest)
        return row is not None

    def revoke(self, name: str) -> None:
        """Forget the tokens of this name; ``%`` stands for anything."""
        self._settings.write("DELETE FROM tokens WHERE name LIKE ?", name)

    def reader(self, user: str) -> Identity | None:
        """A user with the right to read only (a logged-in browser), or None where the user is
        gone.
        """
        row = self._settings.row(
            "SELECT name, admin FROM accounts WHERE name = ? AND kind = 'user'", user
        )
        return self._identity(row["name"], "read", "browser", row["admin"]) if row else None

    def _identity(self, user: str, role: str, token_name: str, admin: int) -> Identity:
        orgs = self._settings.rows(
            "SELECT org, role FROM members WHERE user = ? ORDER BY org", user
        )
        return Identity(
            user, role, token_name, bool(admin), tuple((org["org"], org["role"]) for org in orgs)
        )

    def identify(self, authorization: str | None) -> Identity | None:
        """The bearer of an `Authorization` header; None without one. Raises `Refusal` 401 for an
        unknown token.
        """
        if not authorization:
            return None
        scheme, _, token = authorization.partition(" ")
        row = None
        if scheme.lower() == "bearer" and _TOKEN.fullmatch(token.strip()):
            row = self._settings.row(
                "SELECT t.user, t.role, t.name AS token_name, t.scope, a.admin"
                " FROM tokens t JOIN accounts a ON a.name = t.user WHERE t.digest = ?",
                token_digest(token.strip()),
            )
        if row is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        identity = self._identity(row["user"], row["role"], row["token_name"], row["admin"])
        scope = None if row["scope"] is None else frozenset(row["scope"].split())
        return replace(identity, scope=scope)


def token_digest(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
