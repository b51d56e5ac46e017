"""The server's own values in its store: their names, counters, and what the first start puts there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import ConfigError, InvalidError, StateError
from calnet.model import UserId
from calnet.roles.server.allocation import check_prefix, grown_prefix, ula_prefix
from calnet.roles.server.routes import parse_route
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import Change, Put, Record, SettingRecord, UserRecord
from calnet.wire.endpoints import overlaps

DEFAULT_PREFIX: Final = IPv4Network("100.70.0.0/24")
CONTROL_KEY: Final = "control-key"
PREFIX_V4: Final = "prefix-v4"
PREFIX_V6: Final = "prefix-v6"
NEXT_NODE: Final = "next-node"
NEXT_USER: Final = "next-user"
POLICY: Final = "policy"
"""The policy file's text, once one was set."""
SETTINGS: Final = "settings"
"""What admins may change while the server runs, as JSON (configuration.py)."""
FIRST_USER: Final = "admin"
"""The name it has at first; admins may rename it."""
FIRST_USER_ID: Final = UserId(1)


def next_id(state: Snapshot, counter: str) -> tuple[int, Put]:
    """(the next id, the change that counts it). Ids are never used twice."""
    number = int(state.settings[counter])
    return number, Put(SettingRecord(counter, str(number + 1).encode()))


def with_later_ids(records: Iterable[Record], state: Snapshot) -> list[Record]:
    """Records of an earlier time with the counters of now, where these are ahead: what has had an id meanwhile keeps it for itself."""
    return [_with_later_id(record, state) for record in records]


def _with_later_id(record: Record, state: Snapshot) -> Record:
    if not isinstance(record, SettingRecord) or record.id not in (NEXT_NODE, NEXT_USER):
        return record
    return SettingRecord(record.id, str(max(int(record.value), int(state.settings[record.id]))).encode())


def plan_found(state: Snapshot, prefix: IPv4Network | None, now: float, random: RandomBytes) -> tuple[Sequence[Change], None]:
    """What is missing at the first start, else what a larger `prefix` changes. ConfigError for a prefix that can't be used."""
    if CONTROL_KEY in state.settings:
        return _plan_growth(state, prefix), None
    prefix = prefix or DEFAULT_PREFIX
    check_prefix(prefix)
    values = {
        CONTROL_KEY: PrivateKey.generate(random).secret_bytes(),
        PREFIX_V4: str(prefix).encode(),
        PREFIX_V6: str(ula_prefix(random(5))).encode(),
        NEXT_NODE: b"1",
        NEXT_USER: b"2",
    }
    return [*(Put(SettingRecord(name, value)) for name, value in values.items()), Put(UserRecord(FIRST_USER_ID, FIRST_USER, "owner", now))], None


def _plan_growth(state: Snapshot, wanted: IPv4Network | None) -> list[Change]:
    stored, _ = prefixes_of(state)
    grown = grown_prefix(stored, wanted)
    if grown == stored:
        return []
    for node in state.nodes.values():
        for route in node.approved_routes:
            if overlaps(parse_route(route), grown):
                raise ConfigError(f"--prefix {grown} overlaps the route {route} approved for {node.name}: revoke it first, or choose another prefix")
    return [Put(SettingRecord(PREFIX_V4, str(grown).encode()))]


def prefixes_of(state: Snapshot) -> tuple[IPv4Network, IPv6Network]:
    """The overlay's prefixes; StateError where the store has none that parse."""
    try:
        v4, v6 = (ip_network(state.settings[name].decode()) for name in (PREFIX_V4, PREFIX_V6))
    except (KeyError, ValueError) as error:
        raise StateError("the store is damaged (the overlay's prefixes do not parse): restore it from a backup") from error
    if not isinstance(v4, IPv4Network) or not isinstance(v6, IPv6Network):
        raise StateError("the store is damaged (the overlay's prefixes do not parse): restore it from a backup")
    return v4, v6


def control_key_of(state: Snapshot) -> PrivateKey:
    """The server's control key; StateError where the store's is damaged."""
    try:
        return PrivateKey(state.settings[CONTROL_KEY])
    except (KeyError, InvalidError) as error:
        raise StateError("the store is damaged (the server's control key does not parse): restore it from a backup") from error
