"""A TUN device and a UDP port that lead back to this process: what a data path needs to send to itself (roles/node/rehearsal.py).

The device is one end of a pair of sockets. The port is on the loopback and connected to itself, so that the kernel drops what anybody else sends to it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from calnet.errors import HostError
from calnet.host.tun import LinuxTun, Offloads
from calnet.host.udp import LinuxUdp
from calnet.model import Endpoint

_LARGEST: Final = 2048


class Mirror:
    """`endpoint` is the port of `udp`, `kernel` the other end of `tun`. HostError where the machine gives no such sockets."""

    def __init__(self, offloads: Offloads) -> None:
        try:
            device, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            port.bind(("127.0.0.1", 0))
            port.connect(port.getsockname())
        except OSError as error:
            raise HostError(f"no sockets to rehearse with: {error.strerror}") from error
        self.endpoint = Endpoint(*port.getsockname())
        self.tun = LinuxTun("mirror", device.detach(), offloads)
        self.udp = LinuxUdp(self.endpoint.port, port, None, True, lambda code, text: None)

    def give(self, packet: bytes) -> None:
        """What the kernel would have the device read, with its virtio header where the device has them; lost where it is full."""
        with contextlib.suppress(OSError):
            self.kernel.send(packet)

    def taken(self) -> bytes | None:
        """A packet that was written to the device; None: there is none."""
        try:
            return self.kernel.recv(_LARGEST)
        except OSError:
            return None

    def close(self) -> None:
        """Give the sockets back; harmless when done before."""
        self.tun.close()
        self.udp.close()
        self.kernel.close()
