"""Every state × every kind of message that is not genuine: nothing changes, and the genuine message that follows still works."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.crypto.hash import blake2s, mac
from calnet.model import Source
from calnet.tunnel import effects as do
from calnet.tunnel.constants import HANDSHAKE_BURST, LABEL_MAC1, REKEY_AFTER_TIME
from calnet.wire.tunnel import CookieReply, Initiation, Response, build_handshake, initiation_body, parse_handshake, response_body, transport_header
from tests.tunnel.world import Node, World, connected, endpoint, packet, pair

FORGER = Source(endpoint(66))
Setting = tuple[World, Node, Node]


def _fresh() -> Setting:
    return pair()


def _initiating() -> Setting:
    world, alice, bob = pair()
    alice.send(packet(1, 2, b"waiting"))
    return world, alice, bob


def _responded() -> Setting:
    """Node 1 is the responder, its session not confirmed."""
    world, alice, bob = pair()
    bob.send(packet(2, 1, b"waiting"))
    world.hand_over(world.wire.pop(0))
    return world, alice, bob


def _crossing() -> Setting:
    """Both initiated; node 1 has answered and waits for its own answer."""
    world, alice, bob = pair()
    alice.send(packet(1, 2, b"waiting"))
    bob.send(packet(2, 1, b"waiting"))
    world.hand_over(world.wire.pop(1))
    return world, alice, bob


def _rekeying() -> Setting:
    world, alice, bob = connected()
    world.advance(REKEY_AFTER_TIME + 1)
    alice.send(packet(1, 2, b"rekey"))
    return world, alice, bob


def _rekeyed() -> Setting:
    world, alice, bob = _rekeying()
    world.deliver()
    return world, alice, bob


def _given_up() -> Setting:
    world, alice, bob = _initiating()
    world.advance(200.0, lose=True)
    return world, alice, bob


STATES: dict[str, Callable[[], Setting]] = {
    "fresh": _fresh,
    "initiating": _initiating,
    "responded": _responded,
    "crossing": _crossing,
    "connected": connected,
    "rekeying": _rekeying,
    "rekeyed": _rekeyed,
    "given up": _given_up,
}


def _sealed_by_mac1(node: Node, body: bytes) -> bytes:
    """Anybody who knows the node's public key can make a valid mac1."""
    return body + mac(blake2s(LABEL_MAC1, node.key.public), body) + bytes(16)


def _indices(node: Node, other: int) -> list[int]:
    """All receiver indices that mean something to the node now, and one that doesn't."""
    peer = node.peer_with(other)
    pending = [peer.pending.local_index] if peer.pending is not None else []
    return [session.local_index for session in peer.sessions()] + pending + [12345]


def _forgeries(world: World, node: Node) -> dict[str, list[bytes]]:
    indices = _indices(node, 2)
    past = [datagram.data for datagram in [*world.carried, *world.wire]]
    return {
        "initiation with a valid mac1": [_sealed_by_mac1(node, initiation_body(1, bytes(108))), _sealed_by_mac1(node, initiation_body(1, b"\x09" * 108))],
        "initiation with a bad mac1": [build_handshake(Initiation(1, b"\x09" * 108, bytes(16), bytes(16)))],
        "initiation replayed": [data for data in past if data[0] == 1 and data in [sent.data for sent in world.carried]],
        "initiation damaged": [_damage(node, data) for data in past if data[0] == 1],
        "response with a valid mac1": [_sealed_by_mac1(node, response_body(1, index, b"\x09" * 48)) for index in indices],
        "response of small order": [_sealed_by_mac1(node, response_body(1, index, bytes(48))) for index in indices],
        "response with a bad mac1": [build_handshake(Response(1, index, b"\x09" * 48, bytes(16), bytes(16))) for index in indices],
        "cookie reply": [build_handshake(CookieReply(index, bytes(24), bytes(32))) for index in indices],
        "transport": [transport_header(index, counter) + bytes(48) for index in indices for counter in (0, 1, 5000, 2**63)],
        "transport replayed": [data for data in past if data[0] == 4 and data in [sent.data for sent in world.carried]],
        "truncated": [data[:size] for data in past for size in range(0, len(data), 7)],
        "with bytes trailing": [data + b"\0" for data in past],
        "nonsense": [b"", b"\1", bytes(148), b"\xff" * 92, b"\1\0\0\0" * 37],
    }


def _damage(node: Node, data: bytes) -> bytes:
    """One bit of the sealed timestamp, under a valid mac1."""
    message = parse_handshake(data)
    assert isinstance(message, Initiation)
    return _sealed_by_mac1(node, initiation_body(message.sender, message.noise[:-1] + bytes([message.noise[-1] ^ 1])))


def _state(node: Node) -> object:
    """All that a forged packet must not change."""
    peers = [
        (
            [(s, s.send_counter, s.replay.greatest, s.replay._seen) for s in peer.sessions()],
            (peer.current, peer.next, peer.previous, peer.pending),
            [getattr(peer.timers, name) for name in peer.timers.__slots__],
            (peer.tx_bytes, peer.rx_bytes, peer.last_handshake_at, peer.endpoint, peer.handshake_sent_at, peer.initiation_received_at),
        )
        for peer in node.tunnel.peers
    ]
    return peers, node.tunnel.next_deadline(), dict(node.accepted), dict(node.sent), len(node.received)


HARMLESS = (do.ResponseRejected,)
"""Effects that tell of a bad message without acting on it."""


@pytest.mark.parametrize("kind", _forgeries(*_fresh()[:2]))
@pytest.mark.parametrize("state", STATES)
def test_forged_message_in_any_state_changes_nothing_and_genuine_ones_still_work(state: str, kind: str) -> None:
    world, alice, bob = STATES[state]()
    before = _state(alice)
    on_wire = list(world.wire)
    for forged in _forgeries(world, alice)[kind]:
        for source in (FORGER, Source(bob.endpoint), Source(None, bob.peer_with(1).id)):
            effects = alice.take(forged, source)
            assert all(isinstance(effect, HARMLESS) for effect in effects)
            assert _state(alice) == before
    assert world.wire == on_wire
    _both_ways(world, alice, bob)


def _both_ways(world: World, alice: Node, bob: Node) -> None:
    world.deliver()
    world.advance(6.0)
    alice.send(packet(1, 2, b"genuine"))
    world.deliver()
    bob.send(packet(2, 1, b"genuine"))
    world.deliver()
    assert alice.texts()[-1] == bob.texts()[-1] == b"genuine"
    assert alice.dropped_inner == bob.dropped_inner == 0


@pytest.mark.parametrize("state", STATES)
def test_genuine_handshake_in_any_state_replaces_what_stood(state: str) -> None:
    world, alice, _ = STATES[state]()
    world.deliver(lose=True)
    bob = world.restart(2)
    world.advance(6.0, lose=True)
    bob.send(packet(2, 1, b"restarted"))
    world.deliver()
    assert alice.texts()[-1] == b"restarted"
    _both_ways(world, alice, bob)


@given(st.sampled_from(sorted(STATES)), st.lists(st.binary(max_size=160), max_size=8), st.integers(0, 5), st.data())
@settings(max_examples=80, deadline=None)
def test_random_bytes_in_any_state_change_nothing(state: str, blobs: list[bytes], kind: int, data: st.DataObject) -> None:
    world, alice, bob = STATES[state]()
    before = _state(alice)
    sizes = {1: 148, 2: 92, 3: 64, 4: 64}
    for blob in blobs:
        index = data.draw(st.sampled_from(_indices(alice, 2)))
        datagram = (bytes([kind, 0, 0, 0]) + index.to_bytes(4, "little") * 2 + blob).ljust(sizes.get(kind, 0), b"x")[: sizes.get(kind, 160)]
        assert alice.take(datagram, FORGER) == []
    assert _state(alice) == before
    _both_ways(world, alice, bob)


def _flood(world: World, node: Node) -> None:
    """Enough to bring a node under load, from a source that doesn't answer."""
    for _ in range(int(HANDSHAKE_BURST) + 1):
        node.take(_sealed_by_mac1(node, initiation_body(1, b"\x09" * 108)), FORGER)
    world.deliver()


def test_initiation_under_load_gets_a_cookie_and_is_answered_at_the_next_try() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2, b"through"))
    _flood(world, bob)
    assert bob.texts() == []
    assert [type(effect) for effect in bob.effects[-1:]] == [do.SendCookie]
    for _ in range(8):
        world.now += 1.0
        _flood(world, bob)
        world.advance(0.0)
    assert bob.texts() == [b"through"]
    assert alice.initiations() == 2


def test_response_under_load_gets_a_cookie_that_the_responder_keeps_for_its_next_one() -> None:
    world, alice, bob = pair()
    alice.send(packet(1, 2, b"through"))
    world.hand_over(world.wire.pop(0))
    _flood(world, alice)
    assert alice.peer_with(2).current is None
    world.advance(6.0)
    assert bob.texts() == [b"through"]
    responses = [datagram.data for datagram in world.carried if datagram.data[0] == 2]
    assert [response[-16:] == bytes(16) for response in responses] == [True, False]
