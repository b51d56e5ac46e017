from __future__ import annotations

import random
from dataclasses import replace

from calnet.crypto.box import SharedBox
from calnet.crypto.keys import PrivateKey
from calnet.model import DiscoveryKey, NodeId, NodeKey, Peer
from calnet.paths.sealing import Identity, Sealer
from calnet.wire.discovery import Ping, Pong, seal_message

RANDOM = random.Random(5)
TOKEN = bytes(12)


def identity() -> Identity:
    return Identity(PrivateKey(RANDOM.randbytes(32)), NodeKey(RANDOM.randbytes(32)))


def peer(number: int, keys: Identity, previous: Identity | None = None) -> Peer:
    return Peer(
        id=NodeId(number),
        name=str(number),
        node_key=keys.node_key,
        addresses=(),
        discovery_key=DiscoveryKey(keys.discovery.public),
        previous_node_key=None if previous is None else previous.node_key,
    )


def both() -> tuple[Sealer, Sealer, Identity, Identity]:
    one, other = identity(), identity()
    first, second = Sealer(one, RANDOM.randbytes), Sealer(other, RANDOM.randbytes)
    first.set_peers([peer(2, other)])
    second.set_peers([peer(1, one)])
    return first, second, one, other


def sealed(sealer: Sealer, to: int) -> bytes:
    datagram = sealer.seal(NodeId(to), Ping(sealer.identity.node_key, TOKEN))
    assert datagram is not None
    return datagram


def test_sealed_message_opens_and_its_answer_too() -> None:
    first, second, one, other = both()
    opened = second.open(sealed(first, 2))
    assert opened is not None
    assert (opened.peer, opened.message) == (NodeId(1), Ping(one.node_key, TOKEN))
    answer = second.answer(opened, Pong(opened.own.node_key, TOKEN, None))
    assert answer is not None
    back = first.open(answer)
    assert back is not None
    assert back.message == Pong(other.node_key, TOKEN, None)


def test_message_of_a_stranger_or_to_another_or_malformed_is_nobodys() -> None:
    first, second, one, other = both()
    third = Sealer(identity(), RANDOM.randbytes)
    third.set_peers([peer(1, one), peer(2, other)])
    assert second.open(sealed(third, 2)) is None
    assert third.open(sealed(first, 2)) is None
    assert second.open(b"") is None
    assert second.open(sealed(first, 2)[:-1]) is None
    assert first.seal(NodeId(9), Ping(one.node_key, TOKEN)) is None


def test_node_key_that_is_not_the_discovery_keys_owner_is_refused() -> None:
    _, second, one, other = both()
    box = SharedBox(one.discovery, other.discovery.public)
    assert second.open(seal_message(box, one.discovery.public, bytes(24), Ping(other.node_key, TOKEN))) is None
    assert second.open(seal_message(box, one.discovery.public, bytes(24), Ping(one.node_key, TOKEN))) is not None


def test_renewed_own_keys_still_open_and_answer_what_came_to_the_old() -> None:
    first, second, one, _ = both()
    second_old = second.identity
    second.set_identity(identity())
    opened = second.open(sealed(first, 2))
    assert opened is not None
    assert opened.own == second_old
    answer = second.answer(opened, Pong(opened.own.node_key, TOKEN, None))
    assert answer is not None
    assert first.open(answer) is not None
    second.set_identity(identity())
    assert second.open(sealed(first, 2)) is None
    assert one.node_key == first.identity.node_key


def test_renewed_peer_may_use_its_old_keys_while_the_netmap_names_the_previous() -> None:
    first, second, one, _ = both()
    new = identity()
    second.set_peers([peer(1, new, previous=one)])
    opened = second.open(sealed(first, 2))
    assert opened is not None
    assert opened.theirs == one.discovery.public
    second.set_peers([peer(1, new, previous=one)])
    assert second.open(sealed(first, 2)) is not None
    second.set_peers([peer(1, new)])
    assert second.open(sealed(first, 2)) is None
    first.set_identity(new)
    assert second.open(sealed(first, 2)) is not None


def test_peer_gone_or_without_a_usable_discovery_key_is_nobody() -> None:
    first, second, one, _ = both()
    opened = second.open(sealed(first, 2))
    assert opened is not None
    small = replace(peer(1, one), discovery_key=DiscoveryKey(bytes(32)))
    second.set_peers([small])
    assert second.open(sealed(first, 2)) is None
    assert second.seal(NodeId(1), Ping(one.node_key, TOKEN)) is None
    second.set_peers([replace(small, discovery_key=None)])
    assert second.answer(opened, Pong(opened.own.node_key, TOKEN, None)) is None


def test_key_that_two_peers_claim_belongs_to_the_one_whose_current_key_it_is() -> None:
    first, second, one, _ = both()
    second.set_peers([peer(1, identity(), previous=one), peer(3, one)])
    opened = second.open(sealed(first, 2))
    assert opened is not None
    assert opened.peer == NodeId(3)
