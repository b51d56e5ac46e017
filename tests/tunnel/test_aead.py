"""Which AEAD a session is under: chosen by the initiator, named by the handshake, never changed by anybody on the way."""

from __future__ import annotations

import pytest

from calnet.crypto import aead
from calnet.crypto.aead import Aead
from calnet.crypto.choice import choose
from calnet.errors import AuthenticationError
from calnet.model import Source
from calnet.tunnel import effects as do
from calnet.tunnel import handshake
from calnet.tunnel.constants import REKEY_AFTER_TIME
from calnet.tunnel.session import SessionExhausted
from calnet.wire.tunnel import Initiation, MessageType, parse_handshake
from tests.tunnel.world import Node, config_of, connected, packet, pair, seeded

AES, CHACHA = Aead.AES_256_GCM, Aead.CHACHA20_POLY1305


def _in_use(node: Node, other: int) -> Aead:
    session = node.peer_with(other).current
    assert session is not None
    return session.aead


def test_peers_that_both_have_aes_use_it_both_ways_and_again_after_a_rekey() -> None:
    world, alice, bob = connected(aead=AES)
    bob.send(packet(2, 1, b"answer"))
    world.deliver()
    assert alice.texts() == [b"answer"]
    assert {one.data[0] for one in world.carried if len(one.data) in (148, 92)} == {MessageType.INITIATION_AES, MessageType.RESPONSE_AES}
    assert _in_use(alice, 2) is _in_use(bob, 1) is AES
    before = alice.peer_with(2).current
    world.advance(REKEY_AFTER_TIME + 1)
    alice.send(packet(1, 2, b"second"))
    world.deliver()
    assert bob.texts() == [b"first", b"second"]
    assert alice.peer_with(2).current is not before
    assert _in_use(alice, 2) is AES


def test_one_side_that_means_the_other_aead_is_answered_in_its_own() -> None:
    """The netmap reaches the two at different times."""
    world, alice, bob = pair()
    alice.change(2, aead=AES)
    alice.send(packet(1, 2, b"hello"))
    world.deliver()
    assert bob.texts() == [b"hello"]
    assert _in_use(alice, 2) is _in_use(bob, 1) is AES
    bob.send(packet(2, 1, b"answer"))
    world.deliver()
    assert alice.texts() == [b"answer"]


@pytest.mark.parametrize("mine", [AES, CHACHA])
def test_type_changed_on_the_way_brings_no_session_and_harms_none(mine: Aead) -> None:
    """Nobody can talk two nodes into the other AEAD: its name is in the hash."""
    swap = {1: 6, 6: 1, 2: 7, 7: 2}
    world, alice, bob = pair(aead=mine)
    alice.send(packet(1, 2, b"hello"))
    (initiation,) = world.wire
    changed = bytes((swap[initiation.data[0]],)) + initiation.data[1:]
    assert bob.take(changed, initiation.source) == []
    world.hand_over(world.wire.pop(0))
    response = world.wire.pop(0)
    forged = bytes((swap[response.data[0]],)) + response.data[1:]
    assert alice.take(forged, response.source) in ([], [do.ResponseRejected(alice.peer_with(2).id)])
    assert alice.peer_with(2).current is None
    world.hand_over(response)
    world.deliver()
    assert bob.texts() == [b"hello"]
    assert _in_use(bob, 1) is mine


def test_changed_type_with_its_mac_made_anew_does_not_authenticate_either() -> None:
    """mac1 is keyed by a public key alone: whoever knows it gets as far as Noise."""
    world, alice, bob = pair(aead=AES)
    alice.send(packet(1, 2, b"hello"))
    (initiation,) = world.wire
    body = bytes((MessageType.INITIATION,)) + initiation.data[1:116]
    datagram = alice.peer_with(2).cookies(bob.key.public).finish(body, world.now)
    assert bob.take(datagram, Source(alice.endpoint)) == []
    world.deliver()
    assert bob.texts() == [b"hello"]


def test_machine_without_aes_answers_nothing_and_takes_chacha_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    world, alice, bob = pair(aead=AES)
    alice.send(packet(1, 2, b"hello"))
    message = parse_handshake(world.wire.pop(0).data)
    assert isinstance(message, Initiation)
    monkeypatch.setattr(aead, "_new_aes", None)
    with pytest.raises(AuthenticationError, match="AES-256-GCM"):
        handshake.read_initiation(bob.key, message, seeded("x"))
    assert not choose(lambda: 0.0, None).aes


def test_session_under_aes_ends_before_its_blocks_are_too_many() -> None:
    world, alice, bob = connected(aead=AES)
    session = alice.peer_with(2).current
    assert session is not None
    session.send_counter = 2**31 + 1
    world.advance(10)
    _, effects = alice.tunnel.session_to_send(alice.peer_with(2), world.now, world.wall)
    assert any(isinstance(effect, do.SendHandshake) for effect in effects)
    session.send_counter = 2**32
    with pytest.raises(SessionExhausted):
        session.take_counters(1)
    assert config_of(bob).aead is CHACHA
