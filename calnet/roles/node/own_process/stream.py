"""One end of the stream between daemon and data path, on an event loop.

What is sent leaves at once as long as the socket takes it; what it doesn't take waits. Messages always wait; relayed datagrams only while less than
QUEUE_BYTES do, and are dropped beyond that: the other side doesn't keep up, and its peers' transports will send less.

What is received is handed on as it comes, but one message in a turn of the loop: what else is ready, packets above all, passes between two of them.

Error contract. A stream that ends, or whose other side sends what is no frame, is told once by `ended`; nothing more is received from it, and what is sent is
lost without a word. `close` tells nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from calnet.errors import WireError
from calnet.model import Buffer, NodeId
from calnet.roles.node.own_process.frames import MAX_DATAGRAMS, MESSAGE, FrameReader, message_frame, parse_relayed, relayed_head

QUEUE_BYTES: Final = 1 << 21
"""Of datagrams that wait: some milliseconds of what a relay brings."""
READS: Final = 4
"""Reads in a row before others have their turn."""
MAX_DATAGRAM: Final = 65_535
ENDED: Final = "ended"
"""Why a stream is over that the other side closed."""


class Stream:
    """See the module's docstring."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        reader: FrameReader,
        *,
        message: Callable[[memoryview], None],
        relayed: Callable[[NodeId, Sequence[Buffer]], None],
        ended: Callable[[str], None],
    ) -> None:
        """Takes over the socket, which is connected and doesn't block. What `reader` has read from it already is handed on first.

        `message` takes a message's bytes, `relayed` datagrams: valid during the call, and they may raise WireError, which ends the stream.
        """
        self._loop, self._socket, self._reader = loop, connection, reader
        self._message, self._relayed, self._ended = message, relayed, ended
        self._waiting: deque[memoryview] = deque()
        self._open = True
        self._more = False
        """What was read is not handed on yet: its turn comes."""
        self.waiting = 0
        """Bytes that the socket did not take yet."""
        self.dropped = 0
        """Datagrams."""
        loop.add_reader(connection.fileno(), self._readable)
        loop.call_soon(self._deliver)

    def send(self, body: bytes) -> None:
        """Send a message: never dropped while the stream stands."""
        if self._open:
            self._send((message_frame(body),))

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        """Send datagrams, copied before this returns, or drop them."""
        for at in range(0, len(datagrams), MAX_DATAGRAMS):
            part = [datagram for datagram in datagrams[at : at + MAX_DATAGRAMS] if len(datagram) <= MAX_DATAGRAM]
            if not self._open or self.waiting > QUEUE_BYTES:
                self.dropped += len(part)
            elif part:
                self._send((relayed_head(peer, part), *part))

    def close(self) -> None:
        """Send what the socket takes at once, and end; a second call does nothing."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            if self._waiting:
                self._loop.remove_writer(self._socket.fileno())
            self._waiting.clear()
            self._socket.close()

    def _send(self, parts: Sequence[Buffer]) -> None:
        if self._waiting:
            self._wait(b"".join(parts))
            return
        try:
            sent = self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reading side finds the end
        if sent < sum(len(part) for part in parts):
            self._wait(memoryview(b"".join(parts))[sent:])
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def _wait(self, rest: Buffer) -> None:
        self._waiting.append(memoryview(rest))
        self.waiting += len(rest)

    def _writable(self) -> None:
        try:
            while self._waiting:
                sent = self._socket.send(self._waiting[0])
                self.waiting -= sent
                if sent < len(self._waiting[0]):
                    self._waiting[0] = self._waiting[0][sent:]
                else:
                    self._waiting.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._waiting.clear()
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        if self._more:
            return
        try:
            for _ in range(READS):
                room = self._reader.room()
                count = self._socket.recv_into(room)
                if not count:
                    self._end(ENDED)
                    return
                self._reader.filled(count)
                self._deliver()
                if not self._open or self._more or count < len(room):
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"ended ({error.strerror})")

    def _deliver(self) -> None:
        """Hand on what was read, up to the first message."""
        self._more = False
        try:
            for kind, body in self._reader.frames():
                if not self._open:
                    return
                if kind == MESSAGE:
                    self._message(body)
                    self._more = True
                    self._loop.call_soon(self._deliver)
                    return
                self._relayed(*parse_relayed(body))
        except WireError as error:
            self._end(f"sent what can't be read ({error})")

    def _end(self, why: str) -> None:
        """`why` goes on after the name of the other side."""
        if self._open:
            self.close()
            self._ended(why)
