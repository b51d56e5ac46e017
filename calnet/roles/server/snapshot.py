"""What the store holds, in memory, with what the server looks things up by. Published snapshots are never changed: a batch changes a copy."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, Final

from calnet.errors import NotFoundError
from calnet.model import ControlKey, DiscoveryKey, NodeId, NodeKey, UserId
from calnet.roles.server.standing import UNREGISTERED, NodeState, Standing
from calnet.store.interface import (
    AuthKeyRecord,
    Change,
    IdempotencyRecord,
    Key,
    NodeRecord,
    Put,
    Record,
    RetiredRecord,
    SessionRecord,
    SettingRecord,
    TokenRecord,
    UserRecord,
    key_of,
)


class Snapshot:
    """Records by id, and indexes over them."""

    __slots__ = (
        "answers",
        "by_address",
        "by_code",
        "by_control_key",
        "by_discovery_key",
        "by_identity",
        "by_name",
        "by_node_key",
        "highest_v4",
        "keys",
        "nodes",
        "retired",
        "sessions",
        "settings",
        "tokens",
        "user_by_name",
        "users",
    )

    def __init__(self) -> None:
        self.users: dict[UserId, UserRecord] = {}
        self.nodes: dict[NodeId, NodeRecord] = {}
        self.keys: dict[str, AuthKeyRecord] = {}
        self.retired: dict[str, float] = {}
        self.settings: dict[str, bytes] = {}
        self.tokens: dict[str, TokenRecord] = {}
        self.sessions: dict[str, SessionRecord] = {}
        self.answers: dict[str, IdempotencyRecord] = {}
        self.by_identity: dict[tuple[str, str], UserId] = {}
        self.by_discovery_key: dict[DiscoveryKey, NodeId] = {}
        self.user_by_name: dict[str, UserId] = {}
        self.by_control_key: dict[ControlKey, NodeId] = {}
        self.by_node_key: dict[NodeKey, NodeId] = {}
        self.by_name: dict[str, NodeId] = {}
        self.by_address: dict[str, NodeId] = {}
        self.by_code: dict[str, NodeId] = {}
        self.highest_v4 = 0
        """The highest IPv4 address ever given out, as a number."""

    def copy(self) -> Snapshot:
        """A snapshot to change."""
        other = Snapshot()
        for name in _TABLES:
            setattr(other, name, getattr(self, name).copy())
        other.highest_v4 = self.highest_v4
        return other

    def load(self, records: Iterable[Record]) -> None:
        """Take in records of a store."""
        for record in records:
            self._put(record)

    def apply(self, changes: Iterable[Change]) -> None:
        """Do what a commit did."""
        changes = list(changes)
        for change in changes:
            self._remove(key_of(change.record) if isinstance(change, Put) else change.key)
        for change in changes:
            if isinstance(change, Put):
                self._remove(key_of(change.record))
                self._put(change.record)
            else:
                self._remove(change.key)

    def record(self, key: Key) -> Record | None:
        """The record under this key, if there is one that people can see or name: retired addresses are none."""
        if key.kind is SettingRecord:
            value = self.settings.get(str(key.id))
            return None if value is None else SettingRecord(str(key.id), value)
        found: Record | None = self._table(key).get(key.id)
        return found

    def records(self) -> Iterator[Record]:
        """All users, nodes, keys, tokens, sessions and settings."""
        for table in (self.users, self.nodes, self.keys, self.tokens, self.sessions):
            yield from table.values()
        for name, value in self.settings.items():
            yield SettingRecord(name, value)

    def everything(self) -> Iterator[Record]:
        """All that the store holds."""
        yield from self.records()
        yield from self.answers.values()
        for address, at in self.retired.items():
            yield RetiredRecord(address, at)

    def _table(self, key: Key) -> dict[Any, Any]:
        tables: dict[Any, dict[Any, Any]] = {
            UserRecord: self.users,
            NodeRecord: self.nodes,
            AuthKeyRecord: self.keys,
            TokenRecord: self.tokens,
            SessionRecord: self.sessions,
            IdempotencyRecord: self.answers,
        }
        return tables.get(key.kind, {})

    def node(self, reference: str) -> NodeRecord:
        """The node of this id, name or address; NotFoundError."""
        found = self.nodes.get(NodeId(int(reference))) if _is_number(reference) else self._by_name_or_address(reference)
        if found is None:
            raise NotFoundError(f"no node {reference!r}: `calnet.pyz admin nodes list` shows them")
        return found

    def node_of(self, node: NodeId) -> NodeRecord:
        """The node of this id; NotFoundError once it is deleted."""
        found = self.nodes.get(node)
        if found is None:
            raise NotFoundError(f"node {node} was deleted")
        return found

    def user(self, reference: str) -> UserRecord:
        """The user of this name or id; NotFoundError."""
        user_id = UserId(int(reference)) if _is_number(reference) else self.user_by_name.get(reference.lower())
        found = None if user_id is None else self.users.get(user_id)
        if found is None:
            raise NotFoundError(f"no user {reference!r}: `calnet.pyz admin users list` shows them")
        return found

    def user_name(self, user: UserId | None) -> str:
        """The user's name; empty for none."""
        return "" if user is None else self.users[user].name

    def standing(self, node: NodeId | None, now: float) -> Standing:
        """Where a node stands at `now`."""
        record = None if node is None else self.nodes.get(node)
        return UNREGISTERED if record is None else Standing(state_of(record, now), record.id, record.pending_code, record.key_expires)

    def _by_name_or_address(self, reference: str) -> NodeRecord | None:
        node = self.by_name.get(reference.lower())
        if node is None:
            try:
                node = self.by_address.get(str(ipaddress.ip_address(reference)))
            except ValueError:
                return None
        return None if node is None else self.nodes[node]

    def _put(self, record: Record) -> None:
        match record:
            case UserRecord():
                self.users[record.id] = record
                self.user_by_name[record.name] = record.id
                if record.subject:
                    self.by_identity[record.issuer, record.subject] = record.id
            case NodeRecord():
                self._put_node(record)
            case AuthKeyRecord() | TokenRecord() | SessionRecord() | IdempotencyRecord():
                self._table(key_of(record))[record.id] = record
            case RetiredRecord():
                self.retired[record.id] = record.retired_at
                self._given_out(record.id)
            case SettingRecord():
                self.settings[record.id] = record.value

    def _put_node(self, record: NodeRecord) -> None:
        self.nodes[record.id] = record
        self.by_control_key[record.control_key] = record.id
        self.by_discovery_key[record.discovery_key] = record.id
        for key in node_keys(record):
            self.by_node_key[key] = record.id
        if record.name:
            self.by_name[record.name] = record.id
        if record.pending_code:
            self.by_code[record.pending_code] = record.id
        for address in record.addresses:
            if address not in self.by_address:
                self._given_out(address)
            self.by_address[address] = record.id

    def _given_out(self, address: str) -> None:
        if ":" not in address:
            self.highest_v4 = max(self.highest_v4, int(ipaddress.IPv4Address(address)))

    def _remove(self, key: Key) -> None:
        if key.kind is UserRecord and (user := self.users.pop(UserId(int(key.id)), None)) is not None:
            del self.user_by_name[user.name]
            self.by_identity.pop((user.issuer, user.subject), None)
        elif key.kind is NodeRecord and (node := self.nodes.pop(NodeId(int(key.id)), None)) is not None:
            self._remove_node(node)
        elif key.kind is RetiredRecord:
            self.retired.pop(str(key.id), None)
        elif key.kind is SettingRecord:
            self.settings.pop(str(key.id), None)
        elif key.kind not in (UserRecord, NodeRecord):
            self._table(key).pop(key.id, None)

    def _remove_node(self, node: NodeRecord) -> None:
        del self.by_control_key[node.control_key]
        self.by_discovery_key.pop(node.discovery_key, None)
        for key in node_keys(node):
            self.by_node_key.pop(key, None)
        self.by_name.pop(node.name, None)
        self.by_code.pop(node.pending_code, None)
        for address in node.addresses:
            self.by_address.pop(address, None)


_TABLES: Final = tuple(name for name in Snapshot.__slots__ if name != "highest_v4")


def state_of(record: NodeRecord, now: float) -> NodeState:
    """Where a node stands at `now`: disabled (or its owner shut out) before pending before expired."""
    if record.disabled or record.owner_suspended:
        return NodeState.DISABLED
    if record.pending_code:
        return NodeState.PENDING
    if record.key_expires is not None and record.key_expires <= now:
        return NodeState.EXPIRED
    return NodeState.ACTIVE


def node_keys(record: NodeRecord) -> tuple[NodeKey, ...]:
    """The node keys that are this node's: the present one, and the one before while it is kept."""
    return (record.node_key,) if record.previous_node_key is None else (record.node_key, record.previous_node_key)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16
