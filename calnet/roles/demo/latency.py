"""A delay line in userspace: what the kernel routes into its interface comes out of it again some time later, in order. (Not every kernel has netem.)"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import time
from collections import deque
from typing import Final

from calnet.roles.demo.namespaces import Emit, Namespace, StopSignal, Task

INTERFACE: Final = "late"
_TABLE: Final = 100
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_QUEUE: Final = 20_000
"""Packets under way at most; a router's queue has an end too."""
_PACKET: Final = 65_536


def delay_forwarded(router: Namespace, seconds: float) -> Task:
    """Whatever `router` forwards takes `seconds` longer from now on; what it sends or receives itself does not. It ends with the task."""
    task = router.task("delay line", lambda stop, emit: _run(stop, emit, seconds))
    task.next_event(10.0)
    router.ip(f"link set {INTERFACE} up")
    for family in ("-4", "-6"):
        for command in (
            f"route add default dev {INTERFACE} table {_TABLE}",
            f"rule add pref {_TABLE} iif {INTERFACE} lookup main",
            f"rule add pref {_TABLE + 1} not iif lo lookup {_TABLE}",
        ):
            router.run("ip", family, *command.split())
    return task


def _run(stop: StopSignal, emit: Emit, seconds: float) -> None:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN_NO_PI))
    emit({"up": True})
    line: deque[tuple[float, bytes]] = deque()
    while True:
        wait = max(0.0, line[0][0] - time.monotonic()) if line else None
        readable = select.select([tun, stop.fileno()], [], [], wait)[0]
        if stop.fileno() in readable:
            return
        now = time.monotonic()
        if tun in readable:
            _take(tun, line, now + seconds)
        while line and line[0][0] <= now:
            _put(tun, line.popleft()[1])


def _take(tun: int, line: deque[tuple[float, bytes]], due: float) -> None:
    while True:
        try:
            packet = os.read(tun, _PACKET)
        except BlockingIOError:
            return
        if len(line) < _QUEUE:
            line.append((due, packet))


def _put(tun: int, packet: bytes) -> None:
    try:
        os.write(tun, packet)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EIO, errno.ENOBUFS):  # one packet's trouble
            raise
