"""Who acts: people, tokens, nodes and the server itself, what each may do, and on which terms a change is asked for."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from calnet.model import UserId


class Role(enum.StrEnum):
    """What a user may do. A user has its own nodes, keys and tokens; an auditor sees everything and changes nothing; an admin changes everything but owners."""

    USER = "user"
    AUDITOR = "auditor"
    ADMIN = "admin"
    OWNER = "owner"


def lesser(one: Role, other: Role) -> Role:
    """The one that may do less."""
    return min(one, other, key=list(Role).index)


class Access(enum.StrEnum):
    """What an OpenID provider's word gives a user; see UserRecord.access."""

    GRANTED = "granted"
    RESTING = "resting"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who made a change, as the audit log names it."""

    kind: str
    """`local` (who may open admin.sock), `user`, `token`, `node` or `system` (the server by itself)."""
    id: str = ""
    name: str = ""
    source: str = ""
    """The address it came from; empty where there is none."""
    user: UserId | None = None
    """On whose rights a user or token acts: looked up anew when the change is planned."""
    at_most: Role | None = None
    """What the claims of the actor's own access token give: it acts as no more than this."""


SYSTEM: Final = Actor("system", name="calnet")
LOCAL: Final = Actor("local", name="root")

NOUNS: Final = ("users", "nodes", "keys", "policy", "tokens", "sessions", "routes", "settings", "audit", "events", "metrics", "relays")
SCOPES: Final = frozenset(("read", "write", *(f"{noun}:{verb}" for noun in NOUNS for verb in ("read", "write"))))
"""What a token may be limited to: `read` or `write` everything, or `nodes:read` and the like; `write` includes `read`."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, authenticated. `user` is None for the local administrator; `scopes` None means all that the role may."""

    actor: Actor
    role: Role
    user: UserId | None = None
    scopes: frozenset[str] | None = None
    cookie: bool = False
    """Signed in by a cookie, which browsers send by themselves: what changes something must prove that a page of ours asked."""

    def may(self, noun: str, verb: str) -> bool:
        """Whether the token's scopes allow `verb` (`read` or `write`) on `noun`; always without scopes."""
        if self.scopes is None:
            return True
        wide = {"write", f"{noun}:write"}
        return bool(self.scopes & (wide if verb == "write" else wide | {"read", f"{noun}:read"}))


@dataclass(frozen=True, slots=True)
class Once:
    """Carry a create out once, however often it is asked for (the Idempotency-Key of REST). `id` names asker, route and key; `request_hash` what was asked.

    `render` makes status and body of the result, and `seal` what is kept of the body, so that a secret in it can be read with the key alone.
    """

    id: str
    request_hash: bytes
    render: Callable[[Any], tuple[int, bytes]]
    seal: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Replay:
    """The kept answer to a request made before: its status, and the body as it was sealed."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Terms:
    """On whose behalf a change is made, and on which conditions: `expect` is the etag that the thing must still have (StaleError else)."""

    by: Actor = SYSTEM
    expect: str | None = None
    once: Once | None = None


BY_SYSTEM: Final = Terms()
