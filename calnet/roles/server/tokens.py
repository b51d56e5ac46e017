"""API tokens and browser sessions on the server: made, hashed at rest, checked in constant time, ended. Plans, and the checks on a snapshot.

A token's text is `calnet-token-` and base32 of its id (8 bytes) and secret (20 bytes), in lower case without padding.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from calnet.crypto.hash import blake2s, equal
from calnet.crypto.keys import RandomBytes
from calnet.errors import ForbiddenError, InvalidError, NotFoundError, UnauthorizedError
from calnet.model import UserId
from calnet.roles.server.actors import SCOPES, Access, Actor, Principal, Role
from calnet.roles.server.names import printable
from calnet.roles.server.powers import check_may_speak_for, check_scopes_covered, is_shut_out
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import Change, Delete, Key, Put, SessionRecord, TokenRecord, UserRecord, key_of

PREFIX: Final = "calnet-token-"
MAX_LIFETIME_S: Final = 10 * 366 * 86_400.0
MAX_TOKENS: Final = 256
"""Of one user, so that nobody fills the store."""
MAX_SESSIONS: Final = 64
"""Of one user: the oldest ends when one more begins."""
KEPT_S: Final = 30 * 86_400.0
"""How long a token that is of no use any more is still listed."""
SHOWN_ID: Final = 32
"""Digits of a session's id that are shown: it is no secret, the cookie's secret is its preimage."""
_ID_SIZE, _SECRET_SIZE = 8, 20
_TEXT_SIZE: Final = len(PREFIX) + 45
_NO_HASH: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class TokenWish:
    """What a new token shall be. Without scopes it may do all that its user may."""

    user: str
    name: str
    scopes: tuple[str, ...] = ()
    expires_s: float = 90 * 86_400.0


def plan_create_token(
    state: Snapshot, wish: TokenWish, now: float, random: RandomBytes, actor: Actor | None = None
) -> tuple[Sequence[Change], tuple[str, TokenRecord]]:
    """(changes, (the token's text, its record)). InvalidError for a name, scope or lifetime that can't be; ForbiddenError where the actor would get more than
    it has."""
    if not 0 < wish.expires_s <= MAX_LIFETIME_S:
        raise InvalidError("a token expires after more than nothing and at most ten years")
    unknown = sorted(set(wish.scopes) - SCOPES)
    if unknown:
        raise InvalidError(f"{unknown[0]!r} is no scope: use read, write, or NOUN:read and NOUN:write, such as nodes:read")
    name = printable(wish.name, 100)
    if not name:
        raise InvalidError("a token needs a name, to be told from others")
    user = state.user(wish.user)
    check_may_speak_for(state, actor, user)
    check_scopes_covered(state, actor, wish.scopes)
    if sum(token.user == user.id for token in state.tokens.values()) >= MAX_TOKENS:
        raise InvalidError(f"{user.name} has {MAX_TOKENS} tokens: revoke some, they are forgotten after a while")
    token_id, secret = random(_ID_SIZE), random(_SECRET_SIZE)
    scopes = tuple(sorted(set(wish.scopes)))
    record = TokenRecord(token_id.hex(), blake2s(secret), user.id, name, scopes, now, now + wish.expires_s)
    return [Put(record)], (PREFIX + base64.b32encode(token_id + secret).decode().rstrip("=").lower(), record)


def plan_revoke_token(state: Snapshot, token_id: str, now: float) -> tuple[Sequence[Change], None]:
    """A token revoked before stays as it is."""
    record = token_of(state, token_id)
    return ([Put(replace(record, revoked_at=now))] if record.revoked_at is None else []), None


def token_of(state: Snapshot, token_id: str) -> TokenRecord:
    """NotFoundError for an unknown id."""
    record = state.tokens.get(token_id.lower())
    if record is None:
        raise NotFoundError(f"no token {token_id!r}: `calnet.pyz admin tokens list` shows them")
    return record


def is_usable(state: Snapshot, record: TokenRecord, now: float) -> bool:
    """Whether the token opens anything at `now`."""
    user = state.users.get(record.user)
    return record.revoked_at is None and record.expires > now and user is not None and not user.suspended and user.access == Access.GRANTED


def principal_of_token(state: Snapshot, text: str, source: str, now: float) -> Principal:
    """Who the token's text speaks for; UnauthorizedError, which tells nothing of what is wrong with it."""
    raw = _parse(text)
    record = state.tokens.get(raw[:_ID_SIZE].hex())
    right = equal(blake2s(raw[_ID_SIZE:]), _NO_HASH if record is None else record.secret_hash)
    if record is None or not right or not is_usable(state, record, now):
        raise UnauthorizedError("that token is not valid, or no longer: ask an admin for another")
    user = state.users[record.user]
    actor = Actor("token", record.id, f"{user.name}/{record.name}", source, user.id)
    return Principal(actor, Role(user.role), user.id, frozenset(record.scopes) if record.scopes else None)


def _parse(text: str) -> bytes:
    """Id and secret; zeros, which no token has, for a text that is none."""
    if len(text) != _TEXT_SIZE or not text.startswith(PREFIX):
        return bytes(_ID_SIZE + _SECRET_SIZE)
    try:
        return base64.b32decode(text[len(PREFIX) :].upper() + "===")
    except (binascii.Error, ValueError):
        return bytes(_ID_SIZE + _SECRET_SIZE)


# --- browser sessions


def session_id(secret: str) -> str:
    """The id under which a cookie's secret is kept."""
    return blake2s(b"calnet session", secret.encode(errors="replace")).hex()


def plan_create_session(state: Snapshot, user: UserId, expires_s: float, now: float, random: RandomBytes) -> tuple[Sequence[Change], tuple[str, SessionRecord]]:
    """(changes, (the cookie's secret, the session)). ForbiddenError for a user that is gone or shut out."""
    record = state.users.get(user)
    if record is None or is_shut_out(record):
        raise ForbiddenError("that user is suspended, gone, or has to sign in again: ask an admin")
    secret = base64.urlsafe_b64encode(random(32)).decode().rstrip("=")
    session = SessionRecord(session_id(secret), user, now, now + expires_s)
    own = sorted((other for other in state.sessions.values() if other.user == user), key=lambda other: other.created_at)
    return [Put(session), *(Delete(key_of(other)) for other in own[: max(0, len(own) + 1 - MAX_SESSIONS)])], (secret, session)


def plan_end_session(state: Snapshot, session: str) -> tuple[Sequence[Change], None]:
    """Nothing happens where it ended before."""
    return ([Delete(Key(SessionRecord, session))] if session in state.sessions else []), None


def session_named(state: Snapshot, text: str) -> str:
    """The id of the session whose id begins so (with 32 hex digits at least); NotFoundError."""
    found = [session for session in state.sessions if len(text) >= SHOWN_ID and session.startswith(text.lower())]
    if len(found) != 1:
        raise NotFoundError(f"no session {text!r}: `calnet.pyz admin sessions list` shows them")
    return found[0]


def user_of_session(state: Snapshot, secret: str, now: float) -> tuple[SessionRecord, UserRecord] | None:
    """The session and user behind a cookie; None for one that is not valid, or no longer."""
    record = state.sessions.get(session_id(secret))
    if record is None or record.expires <= now:
        return None
    user = state.users.get(record.user)
    return None if user is None or is_shut_out(user) else (record, user)


def stale_things(state: Snapshot, now: float) -> list[Change]:
    """Deletions of sessions that are over and of tokens that have been of no use for long."""
    over = [Delete(Key(SessionRecord, session.id)) for session in state.sessions.values() if session.expires <= now]
    dead = [token.id for token in state.tokens.values() if min(token.expires, token.revoked_at or token.expires) + KEPT_S <= now]
    return [*over, *(Delete(Key(TokenRecord, token)) for token in dead)]
