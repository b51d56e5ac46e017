"""The one UDP port of a node: an IPv4 and an IPv6 socket, batches by UDP_SEGMENT and UDP_GRO where the kernel has them.

A send never raises for what the network does: a datagram that can't be sent is lost, as it could be on the way. What matters to a person (a path
that takes no batches) is told once through `report`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import Callable
from typing import Final, Protocol

from calnet.errors import HostError
from calnet.host.receiving import UDP_GRO, Behind, Receive, Receiver
from calnet.model import Buffer, Endpoint

MAX_BATCH: Final = 65507
"""Bytes a batch may hold: the greatest IPv4 UDP payload."""
SOCKET_BUFFER: Final = 4 << 20

_SO_SNDBUFFORCE: Final = 32
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_DONT: Final = 0
_PMTUDISC_WANT: Final = 1
_PMTUDISC_PROBE: Final = 3
_SO_RCVBUFFORCE: Final = 33
_UDP_SEGMENT: Final = 103
_TIME_TO_LIVE: Final = (socket.IPPROTO_IP, socket.IP_TTL)
_HOP_LIMIT: Final = (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)
_PORT_TRIES: Final = 16

_WOULD_BLOCK: Final = (errno.EAGAIN, errno.ENOBUFS)


class UdpTransport(Protocol):
    """The UDP port or its twin. No call blocks or raises for what the network does."""

    port: int

    def send(self, endpoint: Endpoint, datagrams: Buffer, segment: int) -> bool:
        """Send `datagrams`, cut into datagrams of `segment` bytes (the last may be shorter), at most MAX_SEGMENTS and MAX_BATCH bytes.

        False: the socket is full, nothing was sent.
        """

    def send_whole(self, endpoint: Endpoint, datagram: Buffer) -> None:
        """Send one datagram that is rather lost than fragmented, here or on the way."""

    def send_short(self, endpoint: Endpoint, datagram: Buffer, hops: int) -> None:
        """Send one datagram that ends on its way, at router number `hops`; it is lost where the socket is full."""

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[Receive], None], behind: Behind | None = None) -> None:
        """Call `ready(receive)` from `loop` whenever there is something to read; `receive(buffer)` (RECEIVE_SIZE bytes) gives a batch, or None. `behind` is
        receiving.Receiver's."""

    def when_writable(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, ready: Callable[[], None]) -> None:
        """Call `ready` from `loop` once, as soon as a send to `endpoint` that returned False may be tried again."""

    def forget_failures(self) -> None:
        """Try batches again everywhere: the network has changed."""

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Undo `watch` and `when_writable`; harmless without them."""

    def close(self) -> None:
        """Give the port back; harmless when done before."""


def open_udp(port: int = 0, *, mark: int = 0, offload: bool = True, report: Callable[[str, str], None] = lambda code, text: None) -> LinuxUdp:
    """Open the UDP port `port` (0: the kernel chooses; see `.port`) for IPv4 and, where this machine has it, IPv6.

    `mark` is the fwmark of what is sent (0: none; else CAP_NET_ADMIN), `offload` asks for UDP_SEGMENT and UDP_GRO, `report(code, text)` hears once of each
    thing a person should know. HostError: the port is taken or not permitted, or no socket can be had.
    """
    for attempt in range(_PORT_TRIES):
        four = _bind(socket.AF_INET, port, mark)
        chosen: int = four.getsockname()[1]
        try:
            six = _bind(socket.AF_INET6, chosen, mark)
        except HostError:
            four.close()
            if port or attempt == _PORT_TRIES - 1:
                raise
            continue
        except OSError:
            six = None
        return LinuxUdp(chosen, four, six, offload, report)
    raise HostError("no UDP port is free")


def _bind(family: socket.AddressFamily, port: int, mark: int) -> socket.socket:
    """A bound, non-blocking socket. HostError: the port can't be had; OSError: this machine lacks the family."""
    try:
        new = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if family == socket.AF_INET6 and error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise HostError(f"no UDP socket can be had: {error.strerror}") from error
    try:
        if family == socket.AF_INET6:
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            _set_discovery(new, _PMTUDISC_DONT)
        if mark:
            new.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        _grow(new)
        new.bind(("", port))
    except OSError as error:
        new.close()
        if error.errno == errno.EADDRINUSE:
            raise HostError(f"UDP port {port} is taken: stop the program that has it, or choose another with --port (0 for any)") from error
        if error.errno in (errno.EPERM, errno.EACCES):
            raise HostError(f"UDP port {port} is not permitted: run the node as root, or give it CAP_NET_ADMIN") from error
        if family == socket.AF_INET6:
            raise
        raise HostError(f"UDP port {port} can't be opened: {error.strerror}") from error
    return new


def _set_discovery(one: socket.socket, value: int) -> None:
    """How the kernel treats datagrams longer than a path takes (ip(7), ipv6(7)). By default ours are fragmented on the way where they have to be, as
    WireGuard's are."""
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, value)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, value == _PMTUDISC_PROBE)
    else:
        one.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, value)


def _grow(one: socket.socket) -> None:
    for forced, ordinary in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            one.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        except OSError:
            one.setsockopt(socket.SOL_SOCKET, ordinary, SOCKET_BUFFER)


class LinuxUdp:
    """The two sockets. `ipv6` says whether there is an IPv6 one."""

    def __init__(self, port: int, four: socket.socket, six: socket.socket | None, offload: bool, report: Callable[[str, str], None]) -> None:
        self.port = port
        self.ipv6 = six is not None
        self._four = four
        self._six = six
        self._report = report
        self._segments = offload and _has_segmentation(four)
        self._single: set[Endpoint] = set()
        self._writers: set[socket.socket] = set()
        if offload:
            for one in self._sockets():
                _ask_for_gro(one)

    def _sockets(self) -> list[socket.socket]:
        return [one for one in (self._four, self._six) if one is not None]

    def send(self, endpoint: Endpoint, datagrams: Buffer, segment: int) -> bool:
        one = self._six if ":" in endpoint.host else self._four
        if one is None:
            return True
        if len(datagrams) <= segment:
            try:  # as `_send_one`, without its frame: somebody may wait for a lone packet
                one.sendto(datagrams, endpoint)
            except OSError as error:
                return _after_failed_one(error, one, datagrams, endpoint)
            return True
        if not self._segments or endpoint in self._single:
            return _send_singly(one, datagrams, segment, endpoint)
        try:
            one.sendmsg((datagrams,), ((socket.IPPROTO_UDP, _UDP_SEGMENT, segment.to_bytes(2, "little")),), 0, endpoint)
        except OSError as error:
            return self._after_failed_batch(error, one, datagrams, segment, endpoint)
        return True

    def send_whole(self, endpoint: Endpoint, datagram: Buffer) -> None:
        one = self._six if ":" in endpoint.host else self._four
        if one is None:
            return
        try:
            _set_discovery(one, _PMTUDISC_PROBE)
            _send_one(one, datagram, endpoint)
        except OSError:
            return
        finally:
            with contextlib.suppress(OSError):
                _set_discovery(one, _PMTUDISC_WANT if one.family == socket.AF_INET6 else _PMTUDISC_DONT)

    def send_short(self, endpoint: Endpoint, datagram: Buffer, hops: int) -> None:
        six = ":" in endpoint.host
        one, (level, kind) = (self._six, _HOP_LIMIT) if six else (self._four, _TIME_TO_LIVE)
        if one is not None:
            with contextlib.suppress(OSError):
                one.sendmsg((datagram,), ((level, kind, hops.to_bytes(4, sys.byteorder)),), 0, endpoint)

    def _after_failed_batch(self, error: OSError, one: socket.socket, datagrams: Buffer, segment: int, endpoint: Endpoint) -> bool:
        """ECONNREFUSED and the like tell of an earlier datagram, and sending again goes through; EINVAL and EIO mean that this path takes no batches."""
        if error.errno in _WOULD_BLOCK:
            return False
        if error.errno in (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP):
            self._single.add(endpoint)
            self._report("udp-no-segmentation", f"the path to {endpoint} takes no UDP batches ({error.strerror}): datagrams go one by one, more slowly")
        elif error.errno != errno.ECONNREFUSED:
            return True
        return _send_singly(one, datagrams, segment, endpoint)

    def forget_failures(self) -> None:
        self._single.clear()

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[Receive], None], behind: Behind | None = None) -> None:
        for one in self._sockets():
            loop.add_reader(one, ready, Receiver(one, behind))

    def when_writable(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, ready: Callable[[], None]) -> None:
        one = self._six if ":" in endpoint.host and self._six is not None else self._four

        def once() -> None:
            loop.remove_writer(one)
            self._writers.discard(one)
            ready()

        self._writers.add(one)
        loop.add_writer(one, once)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        for one in self._sockets():
            if one.fileno() >= 0:
                loop.remove_reader(one)
        for one in self._writers:
            loop.remove_writer(one)
        self._writers.clear()

    def close(self) -> None:
        for one in self._sockets():
            one.close()


def _has_segmentation(one: socket.socket) -> bool:
    try:
        one.getsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT)
    except OSError:
        return False
    return True


def _ask_for_gro(one: socket.socket) -> None:
    try:
        one.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    except OSError:
        return


def _send_one(one: socket.socket, datagram: Buffer, endpoint: Endpoint) -> bool:
    """False: the socket is full."""
    try:
        one.sendto(datagram, endpoint)
    except OSError as error:
        return _after_failed_one(error, one, datagram, endpoint)
    return True


def _after_failed_one(error: OSError, one: socket.socket, datagram: Buffer, endpoint: Endpoint) -> bool:
    """A pending error of an earlier datagram (ECONNREFUSED) is reported instead of sending: so a second try. False: the socket is full."""
    if error.errno == errno.ECONNREFUSED:
        try:
            one.sendto(datagram, endpoint)
        except OSError as again:
            return again.errno not in _WOULD_BLOCK
    return error.errno not in _WOULD_BLOCK


def _send_singly(one: socket.socket, datagrams: Buffer, segment: int, endpoint: Endpoint) -> bool:
    """Datagram after datagram; once some are out, the rest is lost where the socket is full (a whole batch again would double them)."""
    view = memoryview(datagrams)
    for start in range(0, len(view), segment):
        if not _send_one(one, view[start : start + segment], endpoint):
            return start > 0
    return True
