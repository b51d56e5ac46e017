"""One end of the stream: what is sent arrives in order; datagrams are dropped where the other side doesn't keep up, messages never; the end is told once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from calnet.errors import WireError
from calnet.model import Buffer, NodeId
from calnet.roles.node.own_process.frames import MAX_DATAGRAMS, FrameReader, message_frame
from calnet.roles.node.own_process.stream import QUEUE_BYTES, Stream
from tests.roles.node.fakes import until

PEER = NodeId(9)


class End:
    """A stream and what it heard."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.messages: list[bytes] = []
        self.datagrams: list[bytes] = []
        self.ends: list[str] = []
        self.act: Callable[[bytes], None] = lambda body: None
        self.stream = Stream(
            asyncio.get_running_loop(), connection, FrameReader(), message=self._message, relayed=self._relayed, ended=lambda why: self.ends.append(why)
        )

    def _message(self, body: memoryview) -> None:
        self.messages.append(bytes(body))
        self.act(bytes(body))

    def _relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        assert peer == PEER
        self.datagrams += [bytes(datagram) for datagram in datagrams]


def run(script: Callable[[End, End], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        one, two = (End(connection) for connection in socket.socketpair())
        try:
            await script(one, two)
        finally:
            one.stream.close()
            two.stream.close()

    asyncio.run(main())


def run_raw(script: Callable[[End, socket.socket], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        end = End(ours)
        with theirs:
            theirs.setblocking(False)
            await script(end, theirs)
        end.stream.close()

    asyncio.run(main())


def test_messages_and_datagrams_arrive_both_ways_as_they_were_sent() -> None:
    async def script(one: End, two: End) -> None:
        bodies = [bytes((number,)) * (number * 5000) for number in range(60)]  # 9 MB: many times what the socket takes
        datagrams = [bytes((number & 255,)) * (number % 1400 + 1) for number in range(3000)]
        for body in bodies:
            one.stream.send(body)
            two.stream.send(body[:100])
        two.stream.send_relayed(PEER, [memoryview(datagram) for datagram in datagrams])
        await until(lambda: len(two.messages) == len(bodies) and len(one.datagrams) == len(datagrams))
        assert two.messages == bodies
        assert one.messages == [body[:100] for body in bodies]
        assert one.datagrams == datagrams
        assert one.stream.waiting == two.stream.waiting == 0

    assert MAX_DATAGRAMS < 3000
    run(script)


def test_sender_may_use_its_buffer_again_at_once() -> None:
    async def script(one: End, two: End) -> None:
        buffer = bytearray(1000)
        for number in range(1000):
            buffer[:] = bytes((number & 255,)) * 1000
            one.stream.send_relayed(PEER, [memoryview(buffer)[:500], memoryview(buffer)[500:]])
        await until(lambda: len(two.datagrams) == 2000)
        assert [datagram[0] for datagram in two.datagrams] == [number // 2 & 255 for number in range(2000)]

    run(script)


def test_other_side_that_does_not_read_costs_datagrams_and_bounded_memory_but_no_message() -> None:
    async def script(end: End, other: socket.socket) -> None:
        batch = [bytes(1400)] * 45
        for number in range(400):
            end.stream.send_relayed(PEER, batch)
            if number % 10 == 0:
                end.stream.send(b"%d" % number)
        assert end.stream.waiting <= QUEUE_BYTES + 45 * 1500 + 400 * 20
        assert end.stream.dropped > 100 * 45
        two = End(other)
        await until(lambda: len(two.messages) == 40)
        assert two.messages == [b"%d" % number for number in range(0, 400, 10)]
        assert len(two.datagrams) + end.stream.dropped == 400 * 45
        assert not end.stream.waiting
        two.stream.close()

    run_raw(script)


def test_datagram_that_no_frame_can_name_is_left_out() -> None:
    async def script(one: End, two: End) -> None:
        one.stream.send_relayed(PEER, [b"a", bytes(65_536), bytes(65_535)])
        await until(lambda: len(two.datagrams) == 2)
        assert [len(datagram) for datagram in two.datagrams] == [1, 65_535]

    run(script)


def test_end_is_told_once_and_what_is_sent_then_is_lost_without_a_word() -> None:
    async def script(one: End, two: End) -> None:
        one.stream.send(b"last")
        one.stream.close()
        one.stream.close()
        await until(lambda: two.ends)
        two.stream.send(b"x")
        two.stream.send_relayed(PEER, [b"y"])
        await asyncio.sleep(0)
        assert two.messages == [b"last"]
        assert (len(two.ends), one.ends, two.stream.dropped) == (1, [], 1)

    run(script)


def test_end_is_noticed_while_much_waits_to_be_sent() -> None:
    async def script(end: End, other: socket.socket) -> None:
        for _ in range(100):
            end.stream.send(bytes(100_000))
        assert end.stream.waiting
        other.close()
        await until(lambda: end.ends)

    run_raw(script)


@pytest.mark.parametrize("garbage", [b"\0\0\0\0\1", b"\xff" * 20, message_frame(b"")[:4] + b"\x09", b"\0\0\0\5\2abcd"])
def test_what_is_no_frame_ends_the_stream(garbage: bytes) -> None:
    async def script(end: End, other: socket.socket) -> None:
        other.send(message_frame(b"good") + garbage + message_frame(b"never"))
        await until(lambda: end.ends)
        assert end.messages == [b"good"]
        assert "can't be read" in end.ends[0]

    run_raw(script)


def test_message_that_is_refused_ends_the_stream() -> None:
    async def script(end: End, other: socket.socket) -> None:
        def refuse(body: bytes) -> None:
            raise WireError("no such message")

        end.act = refuse
        other.send(message_frame(b"one") + message_frame(b"two"))
        await until(lambda: end.ends)
        assert end.messages == [b"one"]

    run_raw(script)


def test_stream_that_a_message_closes_hands_on_nothing_more() -> None:
    async def script(end: End, other: socket.socket) -> None:
        end.act = lambda body: end.stream.close()
        other.send(message_frame(b"one") + message_frame(b"two"))
        await until(lambda: end.messages)
        await asyncio.sleep(0.01)
        assert (end.messages, end.ends) == ([b"one"], [])

    run_raw(script)


def test_one_message_a_turn_lets_others_have_theirs() -> None:
    async def script(end: End, other: socket.socket) -> None:
        turns = 0

        def count() -> None:
            nonlocal turns
            turns += 1
            if len(end.messages) < 20:
                asyncio.get_running_loop().call_soon(count)

        other.send(b"".join(message_frame(b"%d" % number) for number in range(20)))
        count()
        await until(lambda: len(end.messages) == 20)
        assert end.messages == [b"%d" % number for number in range(20)]
        assert turns >= 20

    run_raw(script)


def test_more_messages_than_the_buffer_holds_are_all_handed_on_before_the_end_is_told() -> None:
    async def script(end: End, other: socket.socket) -> None:
        other.setblocking(True)
        data = b"".join(message_frame(b"%06d" % number) for number in range(60_000))
        await asyncio.to_thread(other.sendall, data)
        other.close()
        await until(lambda: end.ends)
        assert end.messages == [b"%06d" % number for number in range(60_000)]

    run_raw(script)


def test_what_was_read_before_comes_first() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            reader = FrameReader()
            data = message_frame(b"early") + message_frame(b"late")
            reader.room()[:14] = data[:14]
            reader.filled(14)
            heard: list[bytes] = []
            ours.setblocking(False)
            stream = Stream(
                asyncio.get_running_loop(), ours, reader, message=lambda body: heard.append(bytes(body)), relayed=lambda *_: None, ended=lambda why: None
            )
            theirs.send(data[14:])
            await until(lambda: len(heard) == 2)
            assert heard == [b"early", b"late"]
            stream.close()

    asyncio.run(main())
