"""One keypair: counters, sealing and opening, and that it can't be doubled."""

from __future__ import annotations

import copy
import pickle

import pytest

from calnet.errors import AuthenticationError, CalnetError, ProtocolError, WireError
from calnet.model import NodeId
from calnet.tunnel.constants import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME
from calnet.tunnel.peer import TunnelPeer, TunnelPeerConfig
from calnet.tunnel.session import Session, SessionExhausted


def _ends() -> tuple[Session, Session]:
    peer = TunnelPeer(TunnelPeerConfig(NodeId(1), bytes(32)))
    keys = (b"a" * 32, b"b" * 32)
    one = Session(peer, local_index=1, remote_index=2, initiator=True, remote_static=bytes(32), keys=keys, now=5.0)
    two = Session(peer, local_index=2, remote_index=1, initiator=False, remote_static=bytes(32), keys=keys[::-1], now=5.0)
    return one, two


def test_seal_then_open_gives_the_packet_once() -> None:
    one, two = _ends()
    datagram = one.seal(b"packet")
    assert datagram[:16] == b"\4\0\0\0" + b"\2\0\0\0" + bytes(8)
    assert two.open(datagram) == b"packet"
    with pytest.raises(ProtocolError):
        two.open(datagram)


def test_keepalive_is_32_bytes() -> None:
    one, two = _ends()
    assert len(one.seal(b"")) == 32
    assert two.open(one.seal(b"")) == b""


def test_open_damaged_anyhow_raises_and_the_genuine_one_still_opens() -> None:
    one, two = _ends()
    datagram = one.seal(b"packet")
    for at in range(len(datagram)):
        if at in range(4, 8):  # the receiver index chooses the session and is not covered by the tag
            continue
        with pytest.raises((AuthenticationError, WireError)):
            two.open(datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1 :])
        with pytest.raises((AuthenticationError, WireError)):
            two.open(datagram[:at])
    with pytest.raises(AuthenticationError):
        two.open(datagram + b"\0")
    assert two.replay.greatest == -1
    assert two.open(datagram) == b"packet"


def test_take_counters_never_gives_one_twice() -> None:
    one, _ = _ends()
    taken = [range(first, first + count) for count in (1, 44, 1, 7) for first in [one.take_counters(count)]]
    flat = [counter for run in taken for counter in run]
    assert flat == list(range(53))
    assert one.send_counter == 53


def test_take_counters_stops_at_the_limit_and_takes_nothing() -> None:
    one, _ = _ends()
    one.send_counter = REJECT_AFTER_MESSAGES - 2
    with pytest.raises(SessionExhausted):
        one.take_counters(3)
    assert one.take_counters(2) == REJECT_AFTER_MESSAGES - 2
    with pytest.raises(CalnetError):
        one.take_counters(1)


def test_session_expires_180_seconds_after_it_was_derived() -> None:
    one, _ = _ends()
    assert one.expires_at == 5.0 + REJECT_AFTER_TIME == 185.0


@pytest.mark.parametrize("double", [copy.copy, copy.deepcopy, pickle.dumps])
def test_session_is_neither_copied_nor_pickled(double: object) -> None:
    assert callable(double)
    with pytest.raises(TypeError):
        double(_ends()[0])
