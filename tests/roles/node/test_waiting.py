from __future__ import annotations

from calnet.model import NodeId
from calnet.roles.node.waiting import QUEUE_BYTES, QUEUE_PACKETS, WaitingPackets

ONE, TWO = NodeId(1), NodeId(2)


def test_packets_are_taken_once_in_order_and_by_peer() -> None:
    waiting = WaitingPackets()
    for packet in (b"a", b"b"):
        assert waiting.add(ONE, packet) == 0
    assert waiting.add(TWO, b"c") == 0
    assert list(waiting.take(ONE)) == [b"a", b"b"]
    assert list(waiting.take(ONE)) == []
    assert list(waiting.take(TWO)) == [b"c"]


def test_packets_beyond_the_bounds_push_out_the_oldest() -> None:
    waiting = WaitingPackets()
    assert [waiting.add(ONE, bytes((k,))) for k in range(QUEUE_PACKETS + 1)] == [0] * QUEUE_PACKETS + [1]
    assert waiting.take(ONE)[0] == b"\1"
    large = bytes(QUEUE_BYTES // 4)
    assert [waiting.add(ONE, large) for _ in range(5)] == [0, 0, 0, 0, 1]
    assert waiting.add(ONE, bytes(QUEUE_BYTES // 2)) == 2
    assert len(waiting.take(ONE)) == 3


def test_keep_forgets_what_waits_for_others() -> None:
    waiting = WaitingPackets()
    waiting.add(ONE, b"a")
    waiting.add(TWO, b"b")
    waiting.keep({TWO})
    assert list(waiting.take(ONE)) == []
    assert list(waiting.take(TWO)) == [b"b"]
