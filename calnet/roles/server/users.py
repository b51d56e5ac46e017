"""Plans about users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calnet.errors import ConflictError
from calnet.model import UserId
from calnet.roles.server.founding import NEXT_USER, next_id
from calnet.roles.server.names import check_name
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import Change, Delete, Put, UserRecord, key_of

OWNER = "owner"
USER = "user"


def plan_create_user(state: Snapshot, name: str, now: float) -> tuple[Sequence[Change], UserRecord]:
    """InvalidError for a bad name, ConflictError for a taken one."""
    name = _free(state, name)
    number, counter = next_id(state, NEXT_USER)
    record = UserRecord(UserId(number), name, USER, now)
    return [Put(record), counter], record


def plan_rename_user(state: Snapshot, user: str, name: str) -> tuple[Sequence[Change], UserRecord]:
    """As plan_create_user; a user's own name is allowed."""
    record = state.user(user)
    if name.lower() == record.name:
        return [], record
    record = replace(record, name=_free(state, name))
    return [Put(record)], record


def plan_delete_user(state: Snapshot, user: str) -> tuple[Sequence[Change], None]:
    """ConflictError while the user owns nodes, or is the last owner. Its pre-auth keys go with it."""
    record = state.user(user)
    count = sum(node.user == record.id for node in state.nodes.values())
    if count:
        raise ConflictError(f"{record.name} has {count} node{'s' if count > 1 else ''}: delete or tag them first")
    if record.role == OWNER and sum(other.role == OWNER for other in state.users.values()) == 1:
        raise ConflictError(f"{record.name} is the last owner, and somebody has to be")
    return [Delete(key_of(record)), *(Delete(key_of(key)) for key in state.keys.values() if key.user == record.id)], None


def _free(state: Snapshot, name: str) -> str:
    name = check_name(name)
    if name in state.user_by_name:
        raise ConflictError(f"there is a user {name} already")
    return name
