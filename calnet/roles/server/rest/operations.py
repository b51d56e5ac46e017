"""The table of REST's operations: each one's path, who may call it, what it takes and gives. Routing, validation, authorisation and the OpenAPI document
are all made of it, so that none can say something else than the others."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from calnet.roles.server.actors import Principal, Role, Terms
from calnet.roles.server.rest.models import NoQuery
from calnet.store.interface import UserRecord


class Access(enum.Enum):
    """Who may call an operation at all."""

    ANYBODY = "every principal"
    OWN = "every principal; one with the role user for its own things alone"
    AUDITOR = "auditors, admins and owners"
    ADMIN = "admins and owners"


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated, authorised and validated request."""

    principal: Principal
    path: dict[str, str]
    query: Any
    body: Any
    terms: Terms
    owner: UserRecord | None
    """The user to whose things the call is limited; None where it is not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a value to be JSON, or nothing (204)."""

    value: Any = None
    etag: str | None = None


Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path. `noun` and `verb` (read or write) are the scope that a token needs (without a noun: none); `create` takes an Idempotency-Key,
    `guarded` If-Match."""

    method: str
    path: str
    summary: str
    noun: str
    access: Access
    handler: Handler
    answer: type[Struct] | None = None
    body: type[Struct] | None = None
    query: type[Struct] = NoQuery
    status: int = 200
    create: bool = False
    guarded: bool = False
    reads: bool = field(default=False)
    """A POST that changes nothing."""

    @property
    def verb(self) -> str:
        """The scope's second half."""
        return "read" if self.method == "GET" or self.reads else "write"

    @property
    def scope(self) -> str:
        """What a token needs; empty for nothing."""
        return f"{self.noun}:{self.verb}" if self.noun else ""

    def admits(self, role: Role) -> bool:
        """Whether a principal of this role may call it. Auditors change nothing, not even what is theirs."""
        if self.verb == "write" and role is Role.AUDITOR:
            return False
        if self.access is Access.ADMIN:
            return role in (Role.ADMIN, Role.OWNER)
        return self.access is not Access.AUDITOR or role is not Role.USER
