"""Plans about users: made by hand or by signing in, their roles, shut out and let in again.

Who may give which role is decided on the state the change is planned on (powers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from calnet.errors import ConflictError, ForbiddenError, InvalidError
from calnet.model import UserId
from calnet.roles.server.actors import Access, Actor, Role
from calnet.roles.server.founding import NEXT_USER, next_id
from calnet.roles.server.names import check_name, free_name, name_from_hostname, printable
from calnet.roles.server.powers import check_may_set_role
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import AuthKeyRecord, Change, Delete, Put, SessionRecord, TokenRecord, UserRecord, Watch, key_of

OWNER = Role.OWNER.value
USER = Role.USER.value


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signed in, as an OpenID provider vouches for it. (issuer, subject) says who it is; nothing else does."""

    issuer: str
    subject: str
    email: str = ""
    """Verified; empty otherwise."""
    display_name: str = ""
    preferred_name: str = ""
    groups: tuple[str, ...] = ()
    role: Role = Role.USER
    """As claims map to one."""


@dataclass(frozen=True, slots=True)
class UserWish:
    """What of a user shall change; None leaves a value."""

    name: str | None = None
    role: str | None = None
    suspended: bool | None = None


def parse_role(text: str) -> Role:
    """InvalidError for a word that is no role."""
    try:
        return Role(text)
    except ValueError as error:
        raise InvalidError(f"{text!r} is no role: it is one of {', '.join(Role)}") from error


def plan_create_user(state: Snapshot, name: str, now: float, role: str = USER, actor: Actor | None = None) -> tuple[Sequence[Change], UserRecord]:
    """InvalidError for a bad name or role, ConflictError for a taken name, ForbiddenError for a role the actor may not give."""
    check_may_set_role(state, actor, None, parse_role(role))
    name = _free(state, name)
    number, counter = next_id(state, NEXT_USER)
    record = UserRecord(UserId(number), name, parse_role(role).value, now)
    return [Put(record), counter], record


def plan_update_user(state: Snapshot, user: str, wish: UserWish, actor: Actor | None = None) -> tuple[Sequence[Change], UserRecord]:
    """Rename, give another role, shut out or let in. ConflictError where no owner would be left; ForbiddenError for what the actor may not change."""
    before = state.user(user)
    record = before
    if wish.name is not None and wish.name.lower() != before.name:
        record = replace(record, name=_free(state, wish.name))
    if wish.role is not None and wish.role != before.role:
        record = replace(record, role=parse_role(wish.role).value, role_by_hand=True)
    if wish.suspended is not None:
        record = replace(record, suspended=wish.suspended)
    if record == before:
        return [], record
    check_may_set_role(state, actor, before.role, record.role)
    if before.role == OWNER and not before.suspended and (record.role != OWNER or record.suspended):
        _check_not_last_owner(state, before)
    return [Put(record), *_following(state, before, record)], record


def plan_delete_user(state: Snapshot, user: str, actor: Actor | None = None) -> tuple[Sequence[Change], None]:
    """ConflictError while the user owns nodes, or is the last owner. Its pre-auth keys, tokens and sessions go with it."""
    record = state.user(user)
    check_may_set_role(state, actor, record.role, record.role)
    count = sum(node.user == record.id for node in state.nodes.values())
    if count:
        raise ConflictError(f"{record.name} has {count} node{'s' if count > 1 else ''}: delete or tag them first")
    if record.role == OWNER:
        _check_not_last_owner(state, record)
    belongings: list[AuthKeyRecord | TokenRecord | SessionRecord] = [*state.keys.values(), *state.tokens.values(), *state.sessions.values()]
    return [Delete(key_of(record)), *(Delete(key_of(thing)) for thing in belongings if thing.user == record.id)], None


def plan_sign_in(
    state: Snapshot, identity: Identity, now: float, *, refresh: bytes = b"", until: float | None = None, anew: bool = True
) -> tuple[Sequence[Change], UserRecord]:
    """The user of this identity, made at its first sign-in: claims are taken over, and the role unless it was set by hand, and the user has access again.
    ForbiddenError for one shut out by hand, and without `anew` (a token signs in, and no person) for one that lost access.

    `refresh` is what the provider can be asked with from now on, sealed; where there is nothing, its word holds until `until`.
    A user made by hand is nobody's identity: that it has the name or address that somebody claims gives nothing (an admin may delete it first).
    """
    known = state.by_identity.get((identity.issuer, identity.subject))
    if known is None:
        number, counter = next_id(state, NEXT_USER)
        name = free_name(_name_of(identity), state.user_by_name)
        record = UserRecord(UserId(number), name, identity.role.value, now, issuer=identity.issuer, subject=identity.subject, role_by_hand=False)
        record = replace(with_claims(record, identity), last_login_at=now, watch=_watched(None, refresh, until, now))
        return [Put(record), counter], record
    record = state.users[known]
    if record.suspended:
        raise ForbiddenError(f"the user {record.name} is suspended: ask an admin")
    if not anew and record.access == Access.LOST:
        raise ForbiddenError(f"the user {record.name} lost access: sign in again")
    after = claimed(state, record, identity)
    after = replace(after, last_login_at=now, access=Access.GRANTED.value, watch=_watched(record.watch, refresh, until, now))
    return [Put(after)], after


def claimed(state: Snapshot, record: UserRecord, identity: Identity) -> UserRecord:
    """The known user as its claims say it now; the last owner stays one, as somebody has to be."""
    after = with_claims(record, identity)
    demoted = record.role == OWNER and after.role != OWNER
    return replace(after, role=OWNER) if demoted and _is_last_owner(state, record) else after


def with_claims(record: UserRecord, identity: Identity) -> UserRecord:
    """The record with what the claims say; the role unless it was set by hand."""
    return replace(
        record,
        email=printable(identity.email),
        display_name=printable(identity.display_name),
        groups=tuple(sorted({printable(group) for group in identity.groups})),
        role=record.role if record.role_by_hand else identity.role.value,
    )


def _watched(before: Watch | None, refresh: bytes, until: float | None, now: float) -> Watch | None:
    """How the provider is asked after a sign-in: with the newest refresh token; without one, with an earlier one as long as that lasts."""
    if refresh:
        return Watch(now, now, refresh)
    if before is None:
        return None if until is None else Watch(now, now, until=until)
    if before.refresh:
        return replace(before, checked_at=now)
    later = max((at for at in (before.until, until) if at is not None), default=None)
    return replace(before, checked_at=now, until=later)


def _name_of(identity: Identity) -> str:
    wished = identity.preferred_name or identity.email.partition("@")[0] or identity.display_name or "user"
    name = name_from_hostname(wished.partition("@")[0].replace(".", "-"))
    return "user" if name == "node" and wished != "node" else name


def _following(state: Snapshot, before: UserRecord, after: UserRecord) -> list[Change]:
    """What a user's being shut out or let in does to its nodes and sessions."""
    if before.suspended == after.suspended:
        return []
    nodes = [replace(node, owner_suspended=after.suspended) for node in state.nodes.values() if node.user == after.id]
    sessions = [session for session in state.sessions.values() if session.user == after.id] if after.suspended else []
    return [*(Put(node) for node in nodes), *(Delete(key_of(session)) for session in sessions)]


def _check_not_last_owner(state: Snapshot, record: UserRecord) -> None:
    if _is_last_owner(state, record):
        raise ConflictError(f"{record.name} is the last owner, and somebody has to be")


def _is_last_owner(state: Snapshot, record: UserRecord) -> bool:
    return not any(other.role == OWNER and not other.suspended and other.id != record.id for other in state.users.values())


def _free(state: Snapshot, name: str) -> str:
    name = check_name(name)
    if name in state.user_by_name:
        raise ConflictError(f"there is a user {name} already")
    return name
