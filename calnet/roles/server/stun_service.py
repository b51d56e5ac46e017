"""STUN over UDP: binding requests answered (calnet.wire.stun), at a bounded rate by source, from the address they came to."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from calnet.limits import RateLimiter
from calnet.model import Endpoint
from calnet.roles.server.listeners import IP_PKTINFO
from calnet.wire import stun
from calnet.wire.endpoints import source_network

ANSWERS_PER_S: Final = 20.0
ANSWERS_BURST: Final = 100.0
"""For each IPv4 /24 and IPv6 /64: a hundred nodes that ask every 20 s take 5 a second. A forged source can't be flooded beyond this."""
BATCH: Final = 64
_ANCILLARY_SIZE: Final = 128


class StunService:
    """Answers on a socket of `listeners.udp_socket` from construction to `close`."""

    def __init__(self, bound: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = bound
        self._loop = loop
        self._limiter = RateLimiter(ANSWERS_PER_S, ANSWERS_BURST)
        loop.add_reader(bound.fileno(), self._readable)

    @property
    def port(self) -> int:
        """The UDP port."""
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Stop answering and close the socket; a second call does nothing."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        for _ in range(BATCH):
            try:
                data, ancillary, _, address = self._socket.recvmsg(stun.MAX_MESSAGE_SIZE + 1, _ANCILLARY_SIZE)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error to an earlier answer: the socket goes on
                continue
            self._answer(data, ancillary, address)

    def _answer(self, data: bytes, ancillary: list[tuple[int, int, bytes]], address: tuple[str, int]) -> None:
        host = address[0].partition("%")[0].removeprefix("::ffff:")
        if address[1] == 0 or not self._limiter.allow(source_network(host, v4_bits=24), self._loop.time()):
            return
        answer = stun.answer(data, Endpoint(host, address[1]))
        if answer is None:
            return
        try:
            self._socket.sendmsg([answer], [item for item in map(_reply_from, ancillary) if item is not None], 0, address)
        except OSError:
            return  # no route back, or the send buffer is full: the client asks again


def _reply_from(received: tuple[int, int, bytes]) -> tuple[int, int, bytes] | None:
    """The ancillary data that makes the answer leave from the address the request came to (ip(7), RFC 3542 section 6)."""
    level, kind, data = received
    if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
        return level, kind, data[:16] + (data[16:20] if data[:2] == b"\xfe\x80" else bytes(4))
    if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
        return level, kind, bytes(4) + data[4:8] + bytes(4)
    return None
