"""Plans about users whom an OpenID provider vouches for: asked again without their browsers, out of reach, and vouched for no more.

Theory of operation. A user's record has what the provider can be asked with (`Watch`). While that lasts, the user's tokens, keys and nodes depend on the
answers. Where the provider refuses, access is lost: at once, and what is revoked stays so. Where it merely can't be asked any more (it gave no refresh token,
or that ended because the user signed out there), its last word holds for a while; then tokens and keys rest until the next sign-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from calnet.errors import NotFoundError
from calnet.model import UserId
from calnet.roles.server.actors import Access
from calnet.roles.server.registration import expired
from calnet.roles.server.snapshot import Snapshot
from calnet.roles.server.tokens import is_usable
from calnet.roles.server.users import Identity, claimed
from calnet.store.interface import Change, Delete, Put, UserRecord, Watch, key_of

SIGN_OUT_S: Final = 900.0
"""A refresh token that still works so long after a sign-out at the provider was not ended by it."""


def plan_ask(state: Snapshot, user: UserId, every_s: float, now: float) -> tuple[Sequence[Change], Watch | None]:
    """It is this server's turn to ask the provider about the user: what to ask with. None where there is nothing, or another server asked less than `every_s`
    ago: a refresh token is good for one use, and two that use it look like a thief."""
    record = state.users.get(user)
    if record is None or record.watch is None or not record.watch.refresh or record.watch.asked_at + every_s > now:
        return [], None
    watch = replace(record.watch, asked_at=now)
    return [Put(replace(record, watch=watch))], watch


def plan_confirm(state: Snapshot, user: UserId, identity: Identity | None, refresh: bytes, now: float) -> tuple[Sequence[Change], UserRecord]:
    """The provider vouches for the user still, with these claims (None: unknown this time) and perhaps a new refresh token. NotFoundError where it is asked no
    more: the user lost access meanwhile, or is gone."""
    record = state.users.get(user)
    if record is None or record.watch is None or not record.watch.refresh:
        raise NotFoundError("that user is watched no more")
    signed_out = record.watch.signed_out_at
    outlived = signed_out is not None and signed_out + SIGN_OUT_S <= now
    watch = replace(record.watch, checked_at=now, refresh=refresh, signed_out_at=None if outlived else signed_out)
    after = replace(record if identity is None else claimed(state, record, identity), watch=watch)
    return [Put(after)], after


def ended_by_sign_out(watch: Watch) -> bool:
    """Whether a refresh token that is of no use any more may have been ended by the user's own sign-out at the provider."""
    return watch.signed_out_at is not None


def plan_signed_out(state: Snapshot, user: UserId, now: float) -> tuple[Sequence[Change], None]:
    """The user is sent on to the provider's sign-out."""
    record = state.users.get(user)
    if record is None or record.watch is None or not record.watch.refresh:
        return [], None
    return [Put(replace(record, watch=replace(record.watch, signed_out_at=now)))], None


def plan_lapse(state: Snapshot, user: UserId, until: float, now: float) -> tuple[Sequence[Change], None]:
    """The provider can't be asked about the user any more, and did not refuse it: its last word holds until `until`, and no node's key longer. A user that is
    not watched as yet is from now on."""
    record = state.users.get(user)
    if record is None or record.access != Access.GRANTED:
        return [], None
    ended = record.watch is not None and record.watch.refresh
    before = record.watch or Watch(now, now)
    nodes = [node for node in state.nodes.values() if ended and node.user == user and node.key_expires is not None and node.key_expires > until]
    after = replace(record, watch=replace(before, refresh=b"", until=until, signed_out_at=None))
    return [Put(after), *(Put(replace(node, key_expires=until)) for node in nodes)], None


def plan_rest(state: Snapshot, user: UserId, now: float) -> tuple[Sequence[Change], None]:
    """The provider's last word holds no longer: sessions end, tokens and keys rest until the next sign-in. Nodes go on until their keys expire."""
    record = state.users.get(user)
    if record is None or record.watch is None or record.watch.until is None or record.watch.until > now:
        return [], None
    return [Put(replace(record, access=Access.RESTING.value, watch=None)), *_sessions_end(state, user)], None


def plan_lose_access(state: Snapshot, user: UserId, now: float) -> tuple[Sequence[Change], None]:
    """The provider vouches for the user no more: its sessions end, its tokens and pre-auth keys are revoked, its nodes have to log in again, and its access
    tokens are refused until it signs in anew, if it can."""
    record = state.users.get(user)
    if record is None:
        return [], None
    tokens = [Put(replace(token, revoked_at=now)) for token in state.tokens.values() if token.user == user and token.revoked_at is None]
    keys = [Put(replace(key, revoked_at=now)) for key in state.keys.values() if key.user == user and key.revoked_at is None]
    nodes = [
        Put(expired(node, now)) for node in state.nodes.values() if node.user == user and node.name and (node.key_expires is None or node.key_expires > now)
    ]
    lost = Put(replace(record, access=Access.LOST.value, watch=None))
    return [lost, *_sessions_end(state, user), *tokens, *keys, *nodes], None


def plan_end_sessions(state: Snapshot, user: UserId) -> tuple[Sequence[Change], None]:
    """All of the user's browsers have to sign in again."""
    return _sessions_end(state, user), None


def depended_on(state: Snapshot, now: float) -> set[UserId]:
    """The users with something that opens anything: sessions, tokens, pre-auth keys, machines."""
    found = {session.user for session in state.sessions.values() if session.expires > now}
    found |= {token.user for token in state.tokens.values() if is_usable(state, token, now)}
    found |= {key.user for key in state.keys.values() if key.user is not None and key.revoked_at is None and key.expires > now}
    return found | {node.user for node in state.nodes.values() if node.user is not None and (node.key_expires is None or node.key_expires > now)}


def _sessions_end(state: Snapshot, user: UserId) -> list[Change]:
    return [Delete(key_of(session)) for session in state.sessions.values() if session.user == user]
