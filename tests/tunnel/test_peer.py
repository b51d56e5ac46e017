"""Rotation of keypairs."""

from __future__ import annotations

from calnet.model import NodeId
from calnet.tunnel.peer import TunnelPeer, TunnelPeerConfig
from calnet.tunnel.session import Session


def _peer() -> TunnelPeer:
    return TunnelPeer(TunnelPeerConfig(NodeId(1), bytes(32)))


def _session(peer: TunnelPeer, number: int) -> Session:
    return Session(peer, local_index=number, remote_index=0, initiator=True, remote_static=bytes(32), keys=(bytes(32), bytes(32)), now=0.0)


def test_initiated_sessions_send_at_once_and_the_last_but_one_still_receives() -> None:
    peer = _peer()
    one, two, three = (_session(peer, number) for number in range(3))
    assert peer.add_initiated(one) == []
    assert peer.add_initiated(two) == []
    assert (peer.current, peer.previous) == (two, one)
    assert peer.add_initiated(three) == [one]
    assert peer.sessions() == [three, two]


def test_responded_session_waits_and_takes_the_place_of_one_that_waited() -> None:
    peer = _peer()
    one, two, three = (_session(peer, number) for number in range(3))
    peer.add_initiated(one)
    assert peer.add_responded(two) == []
    assert (peer.current, peer.next) == (one, two)
    assert peer.add_responded(three) == [two]
    assert (peer.current, peer.next, peer.previous) == (one, three, None)
    assert peer.confirm_next() == []
    assert (peer.current, peer.next, peer.previous) == (three, None, one)


def test_initiated_session_beside_one_that_waits_keeps_that_one_for_receiving() -> None:
    peer = _peer()
    one, two, three = (_session(peer, number) for number in range(3))
    peer.add_initiated(one)
    peer.add_responded(two)
    assert peer.add_initiated(three) == [one]
    assert (peer.current, peer.next, peer.previous) == (three, None, two)


def test_remove_takes_one_from_wherever_it_stands() -> None:
    peer = _peer()
    one, two, three = (_session(peer, number) for number in range(3))
    peer.current, peer.next, peer.previous = one, two, three
    for session in (three, two, one):
        assert session in peer.sessions()
        peer.remove(session)
        assert session not in peer.sessions()


def test_forget_keys_takes_everything() -> None:
    peer = _peer()
    one = _session(peer, 1)
    peer.add_initiated(one)
    memory = peer.cookies(bytes(32))
    assert peer.cookies(bytes(32)) is memory
    assert peer.forget_keys() == [one]
    assert peer.sessions() == []
    assert peer.cookies(bytes(32)) is not memory


def test_config_names_its_keys_and_its_expiry() -> None:
    assert TunnelPeerConfig(NodeId(1), b"n").keys == (b"n",)
    config = TunnelPeerConfig(NodeId(1), b"n", previous_node_key=b"p", key_expires=100.0)
    assert config.keys == (b"n", b"p")
    assert config.expired(100.0)
    assert not config.expired(99.0)
    assert not TunnelPeerConfig(NodeId(1), b"n").expired(1e12)
