"""Who may do what to users and in their name, decided on the state that a change is planned on: who was demoted or shut out a moment ago does nothing more.

The local administrator, nodes and the server itself are not asked here; REST asks before, of the roles that its routes need.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from calnet.errors import ForbiddenError
from calnet.roles.server.actors import Access, Actor, Role, lesser
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import UserRecord

_MANAGERS = (Role.ADMIN, Role.OWNER)


def acting_user(state: Snapshot, actor: Actor | None) -> UserRecord | None:
    """The user that acts, by itself or by a token, as far as it may; None where no user does. ForbiddenError for one that is shut out or gone."""
    if actor is None or actor.kind not in ("user", "token"):
        return None
    user = None if actor.user is None else state.users.get(actor.user)
    if user is None or is_shut_out(user) or (actor.kind == "token" and user.access != Access.GRANTED):
        raise ForbiddenError("that user is suspended, gone, or has to sign in again: ask an admin")
    return user if actor.at_most is None else replace(user, role=lesser(Role(user.role), actor.at_most).value)


def is_shut_out(user: UserRecord) -> bool:
    """Whether the user may do nothing, whatever it shows: an admin shut it out, or the provider vouches for it no more."""
    return user.suspended or user.access == Access.LOST


def is_manager(user: UserRecord | None) -> bool:
    """Whether the acting user is an admin or owner, or stands above users (None)."""
    return user is None or Role(user.role) in _MANAGERS


def may_set_role(doer: UserRecord | None, before: str | None, after: str) -> bool:
    """Whether the acting user may make somebody of role `before` (None: a new user) one of role `after`; also without a change of role, for what else of a
    user is changed. Admins manage everybody but owners, owners everybody; nobody else manages anybody, not even itself."""
    return is_manager(doer) and (doer is None or doer.role == Role.OWNER or Role.OWNER not in (before, after))


def check_may_set_role(state: Snapshot, actor: Actor | None, before: str | None, after: str) -> None:
    """ForbiddenError where the actor may not; see may_set_role."""
    doer = acting_user(state, actor)
    if not may_set_role(doer, before, after):
        raise ForbiddenError("that takes an owner" if is_manager(doer) else "that takes an admin")


def check_may_speak_for(state: Snapshot, actor: Actor | None, user: UserRecord) -> None:
    """ForbiddenError unless the actor is this user, or may manage it: keys and tokens are made in somebody's name."""
    doer = acting_user(state, actor)
    if doer is not None and doer.id != user.id and not may_set_role(doer, user.role, user.role):
        raise ForbiddenError(f"in the name of {user.name} you may do nothing: that takes an {'owner' if is_manager(doer) else 'admin'}")


def check_scopes_covered(state: Snapshot, actor: Actor | None, scopes: Collection[str]) -> None:
    """ForbiddenError where a token would make one that may do more than it may itself."""
    if actor is None or actor.kind != "token":
        return
    own = state.tokens.get(actor.id)
    if own is None or own.revoked_at is not None:
        raise ForbiddenError("that token was revoked")
    if own.scopes and (not scopes or not all(_covered(scope, own.scopes) for scope in scopes)):
        raise ForbiddenError("a token makes no token with more scopes than it has: name some of its own")


def _covered(scope: str, by: Collection[str]) -> bool:
    """`write` covers `read`, and without a noun all nouns."""
    noun, colon, verb = scope.rpartition(":")
    verbs = ("write",) if verb == "write" else ("read", "write")
    return any(verb in by or (colon and f"{noun}:{verb}" in by) for verb in verbs)
