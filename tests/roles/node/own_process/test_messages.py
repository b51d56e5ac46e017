"""The messages between daemon and data path: each comes out as it went in; nothing else raises but WireError; secrets hide themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import types
import typing
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.crypto.keys import PrivateKey
from calnet.errors import WireError
from calnet.model import Endpoint, FilterRule, Netmap, NodeId, Peer
from calnet.paths.way import Way
from calnet.roles.node.engine import Identity, PeerStatus
from calnet.roles.node.own_process import messages
from calnet.wire import netmap as netmaps
from calnet.wire.control import NetmapDelta, NetmapFull, WirePeer
from tests.roles.node.fakes import a_netmap, a_peer

OLD = a_netmap(3, (a_peer(2), a_peer(3), a_peer(5)))
NEW = replace(
    a_netmap(4, (a_peer(2), a_peer(3, online=False, routes=(ip_network("10.0.0.0/8"),)), a_peer(4, preshared_key=b"p" * 32))),
    filter=(FilterRule(OLD.prefixes, OLD.prefixes),),
)
FROM_DAEMON, FROM_DATA_PATH = typing.get_args(messages.FromDaemon), typing.get_args(messages.FromDataPath)
IDENTITY = Identity(PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32), PrivateKey(b"\x03" * 32))


def told(old: Netmap | None, new: Netmap) -> list[Any]:
    """How a netmap is told."""
    return list(messages.told_netmap(old, new, accept_routes=True, guess_ports=False, ways={NodeId(2): Way.RELAY}))


def taken(old: Netmap | None, data: Iterable[bytes]) -> Netmap:
    """What becomes of `old` by what was told."""
    put: list[Peer] = []
    for one in data:
        said = messages.decode_from_daemon(one)
        if isinstance(said, messages.Apply):
            return messages.netmap_of(old, put, said)
        assert isinstance(said, messages.Peers)
        put += messages.peers_of(said)
    raise AssertionError("it was never applied")


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any values of a field's type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is NetmapFull:
        return st.sampled_from([netmaps.wire_netmap(OLD), netmaps.wire_netmap(NEW)])
    if kind is NetmapDelta:
        return st.just(typing.cast(Any, told(OLD, NEW)[-1].change))
    if kind is WirePeer:
        return st.sampled_from([netmaps.wire_peer(peer) for peer in NEW.peers])
    if origin is typing.Annotated:
        return st.binary(min_size=32, max_size=32)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_of(arg) for arg in args])
    if origin is tuple:
        return st.lists(values_of(args[0]), max_size=4).map(tuple)
    if origin is not None:  # a mapping
        return st.dictionaries(values_of(args[0]), values_of(args[1]), max_size=4)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields") or (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        hints = {name: hint for name, hint in typing.get_type_hints(kind, include_extras=True).items() if typing.get_origin(hint) is not typing.ClassVar}
        return st.builds(kind, **{name: values_of(hint) for name, hint in hints.items() if not name.startswith("_")})
    simple = {
        int: st.integers(-(1 << 63), (1 << 63) - 1),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        str: st.text(max_size=20),
        type(None): st.none(),
    }
    return simple[kind]


@pytest.mark.parametrize("kind", FROM_DAEMON, ids=lambda kind: kind.__name__)
@given(st.data())
def test_what_the_daemon_says_comes_out_as_it_went_in(kind: Any, data: st.DataObject) -> None:
    message = data.draw(values_of(kind))
    assert messages.decode_from_daemon(messages.encode(message)) == message


@pytest.mark.parametrize("kind", FROM_DATA_PATH, ids=lambda kind: kind.__name__)
@given(st.data())
def test_what_the_data_path_says_comes_out_as_it_went_in(kind: Any, data: st.DataObject) -> None:
    message = data.draw(values_of(kind))
    assert messages.decode_from_data_path(messages.encode(message)) == message


def test_sides_do_not_share_a_message() -> None:
    assert len(FROM_DAEMON) > 10
    assert len(FROM_DATA_PATH) > 10
    assert not {kind.__name__ for kind in FROM_DAEMON} & {kind.__name__ for kind in FROM_DATA_PATH}


OPEN = messages.encode(messages.Open(1, "calnet0", 1280, "/stamps", messages.secrets_of(IDENTITY), ("chunks",)))
PEERS, APPLY = map(messages.encode, told(None, NEW))


@pytest.mark.parametrize("whole", [OPEN, PEERS, APPLY], ids=["Open", "Peers", "Apply"])
def test_cut_message_and_one_with_bytes_behind_are_refused(whole: bytes) -> None:
    messages.decode_from_daemon(whole)
    for end in range(len(whole)):
        with pytest.raises(WireError):
            messages.decode_from_daemon(whole[:end])
    with pytest.raises(WireError):
        messages.decode_from_daemon(whole + b"\0")


@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 255))
def test_garbage_raises_wire_error_alone(garbage: bytes, at: int, byte: int) -> None:
    changed = [bytearray(PEERS), bytearray(APPLY)]
    for one in changed:
        one[at % len(one)] = byte
    for data in (garbage, *map(bytes, changed)):
        for decode in (messages.decode_from_daemon, messages.decode_from_data_path):
            try:
                said = decode(data)
            except WireError:
                continue
            with contextlib.suppress(WireError):
                if isinstance(said, messages.Apply):
                    messages.netmap_of(None, (), said)
                elif isinstance(said, messages.Peers):
                    messages.peers_of(said)


def test_secrets_hide_themselves_and_come_back_as_they_were() -> None:
    said = messages.decode_from_daemon(OPEN)
    assert isinstance(said, messages.Open)
    assert "\\x01" not in repr(said)
    found = messages.identity_of(said.secrets)
    for name in ("node", "discovery", "previous"):
        assert getattr(found, name).secret_bytes() == getattr(IDENTITY, name).secret_bytes()
    assert messages.identity_of(messages.secrets_of(replace(IDENTITY, previous=None))).previous is None


@pytest.mark.parametrize(
    ("old", "new"),
    [(None, OLD), (OLD, NEW), (NEW, OLD), (OLD, replace(OLD, peers=())), (replace(OLD, peers=()), OLD), (OLD, replace(OLD, version=3, peers=OLD.peers[1:]))],
)
def test_netmap_that_is_told_is_the_one_that_arrives(old: Netmap | None, new: Netmap) -> None:
    assert taken(old, map(messages.encode, told(old, new))) == new


def test_netmap_that_changed_a_little_costs_a_little() -> None:
    large = a_netmap(1, [a_peer(number) for number in range(2, 250)])
    changed = replace(large, version=2, peers=(replace(large.peers[0], online=False), *large.peers[1:]))
    peers, apply = told(large, changed)
    assert [peer.id for peer in peers.put] == [2]
    assert apply.whole is None
    assert len(messages.encode(apply)) < 200
    (apply,) = told(large, large)
    assert (apply.whole, apply.change) == (None, None)


def test_large_netmap_is_told_in_portions() -> None:
    large = a_netmap(1, [a_peer(number) for number in range(2, 250)])
    said = told(None, large)
    assert [len(peers.put) for peers in said[:-1]] == [32] * 7 + [24]
    assert taken(None, map(messages.encode, said)) == large


def test_change_without_a_netmap_and_one_of_another_are_refused() -> None:
    for known in (None, NEW):
        with pytest.raises(WireError):
            taken(known, map(messages.encode, told(OLD, NEW)))


def test_status_of_a_peer_comes_out_as_it_went_in() -> None:
    status = PeerStatus("direct", Endpoint("192.0.2.1", 7), 0.01, 1.8e9, 3, 4, (ip_network("10.0.0.0/8"), ip_network("fd00::/64")), 1420, "left", "AES")
    (standing,) = messages.standings_of([status])
    assert messages.status_of(standing) == status
    assert messages.ways_of(messages.Apply(True, True, {7: Way.DIRECT})) == {NodeId(7): Way.DIRECT}
    with pytest.raises(WireError):
        messages.prefix_of("10.0.0.1/8")
