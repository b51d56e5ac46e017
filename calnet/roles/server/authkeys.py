"""Pre-auth keys on the server: made, hashed at rest, checked in constant time, used up, revoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from calnet.crypto.hash import blake2s, equal
from calnet.crypto.keys import RandomBytes
from calnet.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from calnet.model import ControlKey
from calnet.roles.server.actors import Access, Actor
from calnet.roles.server.founding import FIRST_USER_ID
from calnet.roles.server.names import check_tags
from calnet.roles.server.powers import check_may_speak_for
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import AuthKeyRecord, Change, Put
from calnet.wire.authkey import ID_SIZE, SECRET_SIZE, AuthKey, format_auth_key, parse_auth_key

MAX_LIFETIME_S: Final = 10 * 366 * 86_400.0
_NO_HASH: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class KeyWish:
    """What a new key shall be. `user` is a name, None for the first user, whatever its name is now; a key with tags makes nodes without an owner."""

    user: str | None = None
    reusable: bool = False
    ephemeral: bool = False
    expires_s: float = 86_400.0
    tags: tuple[str, ...] = ()


def plan_create_key(
    state: Snapshot, wish: KeyWish, server_key: ControlKey, now: float, random: RandomBytes, actor: Actor | None = None
) -> tuple[Sequence[Change], tuple[str, str]]:
    """(changes, (the printable key, its id)). ForbiddenError where the actor may not make nodes of that user."""
    if not 0 < wish.expires_s <= MAX_LIFETIME_S:
        raise InvalidError("a key expires after more than nothing and at most ten years")
    owner = state.user(wish.user or str(FIRST_USER_ID))
    key = AuthKey(random(ID_SIZE), random(SECRET_SIZE), server_key)
    tags = check_tags(wish.tags)
    if not tags:
        check_may_speak_for(state, actor, owner)
    record = AuthKeyRecord(
        id=key.id.hex(),
        secret_hash=blake2s(key.secret),
        user=None if tags else owner.id,
        created_at=now,
        expires=now + wish.expires_s,
        tags=tags,
        reusable=wish.reusable,
        ephemeral=wish.ephemeral,
    )
    if record.id in state.keys:
        raise ConflictError("that key id is taken: try again")
    return [Put(record)], (format_auth_key(key), record.id)


def check_auth_key(state: Snapshot, text: str, server_key: ControlKey) -> AuthKeyRecord:
    """The record of a printed key whose secret is right, used up or not; ForbiddenError, which tells an unknown key from a wrong secret by nothing."""
    try:
        key = parse_auth_key(text)
    except InvalidError as error:
        raise ForbiddenError(str(error)) from error
    if key.server_key != server_key:
        raise ForbiddenError("that pre-auth key is another server's: check --server, or ask an admin of this one for a key")
    record = state.keys.get(key.id.hex())
    right = equal(blake2s(key.secret), _NO_HASH if record is None else record.secret_hash)
    if record is None or not right:
        raise ForbiddenError("that pre-auth key is not valid: ask an admin for another")
    return record


def check_usable(state: Snapshot, record: AuthKeyRecord, now: float) -> None:
    """ForbiddenError where the key admits nobody any more, or not now, and why."""
    if record.revoked_at is not None:
        raise ForbiddenError("that pre-auth key was revoked: ask an admin for another")
    if record.expires <= now:
        raise ForbiddenError("that pre-auth key has expired: ask an admin for another")
    if record.used_at is not None and not record.reusable:
        raise ForbiddenError("that pre-auth key has been used, and was for one machine: ask an admin for another")
    if record.user is None:
        return
    if state.users[record.user].suspended:
        raise ForbiddenError("the user of that pre-auth key is suspended: ask an admin for another")
    if state.users[record.user].access != Access.GRANTED:
        raise ForbiddenError("the user of that pre-auth key has to sign in at this server first: do that, or ask an admin for another")


def is_usable(state: Snapshot, record: AuthKeyRecord, now: float) -> bool:
    """Whether the key admits somebody at `now`."""
    try:
        check_usable(state, record, now)
    except ForbiddenError:
        return False
    return True


def plan_revoke_key(state: Snapshot, key_id: str, now: float) -> tuple[Sequence[Change], None]:
    """A key revoked before stays as it is."""
    record = key_of(state, key_id)
    return ([Put(replace(record, revoked_at=now))] if record.revoked_at is None else []), None


def key_of(state: Snapshot, key_id: str) -> AuthKeyRecord:
    """NotFoundError for an unknown id."""
    record = state.keys.get(key_id.lower())
    if record is None:
        raise NotFoundError(f"no key {key_id!r}: `calnet.pyz admin keys list` shows them")
    return record
