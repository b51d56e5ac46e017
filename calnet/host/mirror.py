"""A TUN device and a UDP port for packets that never leave this process: what a data path needs to rehearse (roles/node/rehearsal.py).

The device is one end of a pair of sockets. The port is an ephemeral one on the loopback; once connected to its partner's, it hears nobody else.
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
        with contextlib.ExitStack() as opened:
            try:
                device, self.kernel = (opened.enter_context(one) for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
                self._port = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
                self._port.bind(("127.0.0.1", 0))
            except OSError as error:
                raise HostError(f"no sockets to rehearse with: {error.strerror}") from error
            opened.pop_all()
        self.endpoint = Endpoint(*self._port.getsockname())
        self.tun = LinuxTun("mirror", device.detach(), offloads)
        self.udp = LinuxUdp(self.endpoint.port, self._port, None, True, lambda code, text: None)

    def connect(self, partner: Mirror) -> None:
        """Hear `partner` alone from now on; what others sent before is thrown away. HostError where there is no way to it."""
        try:
            self._port.connect(partner.endpoint)
        except OSError as error:
            raise HostError(f"no loopback to rehearse on: {error.strerror}") from error
        with contextlib.suppress(OSError):
            while True:
                self._port.recv(1)

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
