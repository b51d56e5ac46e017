"""Traffic through the tunnel, and what became of it: pings at a steady pace, TCP as fast as it goes, a file. Each function here makes a lab task.

The tasks speak only when something happens, and their last event is the result; units are in the names.
"""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import time
from pathlib import Path
from typing import Final

from calnet.errors import HostError, TimedOutError
from calnet.roles.demo.namespaces import Emit, StopSignal, TaskFunction

_ECHO_REQUEST: Final = {socket.AF_INET: 8, socket.AF_INET6: 128}
_BUFFER: Final = 1 << 20
_CONNECT_S: Final = 15.0
_LINGER_S: Final = 2.0
"""How long late ping replies are waited for, and those alone that are not older than this already."""


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _readable(sock: socket.socket, wait: float | None, *stops: StopSignal) -> bool:
    """Whether `sock` can be read within `wait` seconds (None: for ever) and before any of `stops`."""
    watched: list[socket.socket | StopSignal] = [sock, *stops]
    return sock in select.select(watched, [], [], wait)[0]


def ping_stream(address: str, *, interval_s: float = 0.05, size: int = 56) -> TaskFunction:
    """Echo requests every `interval_s` until stopped.

    Events: {"first_reply_s": seconds from the first request to the first reply of any}; at the end {"sent", "received", "lost": [sequence numbers],
    "refused": how many the kernel would not send, "duplicates": replies that came again, "first_reply_s": float or null, "first_reply_after": requests sent
    until then, "rtts_ms": [...], "times_s": when each was sent, from "begun_at" (CLOCK_MONOTONIC)}. `size` is that of the requests' data in bytes.
    """

    def run(stop: StopSignal, emit: Emit) -> None:
        with _echo_socket(address) as sock:
            _Pinger(sock, address, interval_s, size).run(stop, emit)

    return run


def _echo_socket(address: str) -> socket.socket:
    family = family_of(address)
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    return socket.socket(family, socket.SOCK_DGRAM, protocol)


class _Pinger:
    """The state of one stream of pings. Sequence numbers are 16 bits: enough for 54 minutes at 20 a second."""

    def __init__(self, sock: socket.socket, address: str, interval_s: float, size: int) -> None:
        self._socket, self._address, self._interval, self._data = sock, address, interval_s, bytes(size)
        self._kind = _ECHO_REQUEST[family_of(address)]
        self._sent_at: list[float] = []
        self._rtt: dict[int, float] = {}
        self._refused = self._duplicates = 0
        self._first: tuple[float, int] | None = None

    def run(self, stop: StopSignal, emit: Emit) -> None:
        begun = time.monotonic()
        while not stop.wait(0):
            now = time.monotonic()
            due = begun + len(self._sent_at) * self._interval
            if now >= due:
                self._send(now)
                continue
            if self._receive(due - now, stop) and self._first is None:
                self._first = (time.monotonic() - begun, len(self._sent_at))
                emit({"first_reply_s": self._first[0]})
        ended = time.monotonic()
        late = [number for number, at in enumerate(self._sent_at) if at > ended - _LINGER_S]
        while not all(number in self._rtt for number in late) and (wait := ended + _LINGER_S - time.monotonic()) > 0:
            self._receive(wait)
        emit(self._report(begun))

    def _send(self, now: float) -> None:
        sequence = len(self._sent_at)
        self._sent_at.append(now)
        try:
            self._socket.sendto(struct.pack("!BBHHH", self._kind, 0, 0, 0, sequence & 0xFFFF) + self._data, (self._address, 0))
        except OSError:
            self._refused += 1

    def _receive(self, wait: float, *also: StopSignal) -> bool:
        """Take one reply, waiting for at most `wait` seconds; False if none came."""
        if not _readable(self._socket, wait, *also):
            return False
        try:
            packet = self._socket.recv(65_536)
        except OSError:
            return False
        if len(packet) < 8 or packet[0] not in (0, 129):
            return False
        sequence = int.from_bytes(packet[6:8], "big")
        if sequence in self._rtt:
            self._duplicates += 1
        elif sequence < len(self._sent_at):
            self._rtt[sequence] = time.monotonic() - self._sent_at[sequence]
        return True

    def _report(self, begun: float) -> dict[str, object]:
        sent = range(len(self._sent_at))
        return {
            "sent": len(sent),
            "received": len(self._rtt),
            "lost": [n for n in sent if n not in self._rtt],
            "refused": self._refused,
            "duplicates": self._duplicates,
            "first_reply_s": self._first[0] if self._first else None,
            "first_reply_after": self._first[1] if self._first else None,
            "rtts_ms": [round(self._rtt[n] * 1000, 3) for n in sent if n in self._rtt],
            "times_s": [round(at - begun, 3) for at in self._sent_at],
            "begun_at": begun,
        }


def sink(address: str, *, save: Path | None = None) -> TaskFunction:
    """Take one TCP connection to `address` and read it to its end.

    Events: {"port": where it listens}, then {"bytes", "seconds" (first byte to last), "sha256" (with `save`, the file that gets the bytes)}.
    """

    def run(stop: StopSignal, emit: Emit) -> None:
        with socket.socket(family_of(address), socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, 0))
            listener.listen(1)
            emit({"port": listener.getsockname()[1]})
            if not _readable(listener, None, stop):
                raise TimedOutError("nobody connected")
            connection = listener.accept()[0]
        with connection:
            emit(_drain(connection) if save is None else _save(connection, save))

    return run


def _drain(connection: socket.socket) -> dict[str, object]:
    buffer = bytearray(_BUFFER)
    total, begun, last = 0, 0.0, 0.0
    while count := connection.recv_into(buffer):
        last = time.monotonic()
        begun = begun or last
        total += count
    return {"bytes": total, "seconds": last - begun}


def _save(connection: socket.socket, path: Path) -> dict[str, object]:
    digest, total, begun = hashlib.sha256(), 0, time.monotonic()
    with path.open("wb") as file:
        while chunk := connection.recv(_BUFFER):
            total += len(chunk)
            digest.update(chunk)
            file.write(chunk)
    return {"bytes": total, "seconds": time.monotonic() - begun, "sha256": digest.hexdigest()}


def source(address: str, port: int, *, seconds: float) -> TaskFunction:
    """Send zeros by TCP as fast as they go, for `seconds`. Event: {"bytes", "seconds"}."""

    def run(stop: StopSignal, emit: Emit) -> None:
        block = bytes(_BUFFER)
        total, begun = 0, time.monotonic()
        with socket.create_connection((address, port), timeout=_CONNECT_S) as connection:
            begun = time.monotonic()
            while time.monotonic() - begun < seconds and not stop.wait(0):
                total += connection.send(block)
        emit({"bytes": total, "seconds": time.monotonic() - begun})

    return run


def send_file(address: str, port: int, path: Path) -> TaskFunction:
    """Send a file by TCP. Event: {"bytes", "sha256"}."""

    def run(_stop: StopSignal, emit: Emit) -> None:
        digest, total = hashlib.sha256(), 0
        with socket.create_connection((address, port), timeout=_CONNECT_S) as connection, path.open("rb") as file:
            while chunk := file.read(_BUFFER):
                digest.update(chunk)
                connection.sendall(chunk)
                total += len(chunk)
        emit({"bytes": total, "sha256": digest.hexdigest()})

    return run


def numbers(result: dict[str, object], key: str) -> list[float]:
    """A list of numbers out of a task's result."""
    value = result[key]
    if not isinstance(value, list):
        raise HostError(f"the result has no list {key!r}")
    return value


def arrivals(result: dict[str, object]) -> list[float]:
    """When the replies of a stream of pings came (CLOCK_MONOTONIC), in order of time."""
    begun, lost = number(result, "begun_at"), set(numbers(result, "lost"))
    answered = [at for sequence, at in enumerate(numbers(result, "times_s")) if sequence not in lost]
    return sorted(begun + at + rtt / 1000 for at, rtt in zip(answered, numbers(result, "rtts_ms"), strict=True))


def number(result: dict[str, object], key: str) -> float:
    """One number out of a task's result."""
    value = result[key]
    if not isinstance(value, int | float):
        raise HostError(f"the result has no number {key!r}")
    return value
