"""The TUN device: packets between the kernel and the data path, with segmentation offload where the kernel has it.

With a virtio header one read or write carries up to 64 KiB of one flow. `open_tun` asks for as much as there is: USO (kernel 6.2), then TSO, then checksums
alone, then plain packets without a virtio header; `TunDevice.offloads` says what was granted.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from calnet.errors import HostError
from calnet.model import Buffer

CLONE_DEVICE: Final = "/dev/net/tun"
NAME_SIZE: Final = 15
"""IFNAMSIZ without its final zero."""

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFF_TUN_EXCL: Final = 0x8000
_OFFLOAD_CSUM: Final = 0x01
_OFFLOAD_TSO4: Final = 0x02
_OFFLOAD_TSO6: Final = 0x04
_OFFLOAD_USO4: Final = 0x20
_OFFLOAD_USO6: Final = 0x40

_INTERFACE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Offloads:
    """What the device carries. Without `vnet_header` packets stand alone; `tcp` and `udp`: super-packets of that protocol, both ways."""

    vnet_header: bool
    tcp: bool = False
    udp: bool = False


class TunDevice(Protocol):
    """A TUN device or its twin. Neither call blocks."""

    name: str
    offloads: Offloads

    def read_into(self, buffer: memoryview) -> int:
        """Read one packet (its virtio header first, where `offloads.vnet_header`); its bytes, 0 if there is none now. HostError: the device is gone."""

    def read_parts(self, parts: Sequence[memoryview]) -> int:
        """The same, into several buffers one after the other."""

    def write(self, parts: Sequence[Buffer]) -> bool:
        """Write one packet made of `parts` (its virtio header first, where `offloads.vnet_header`). False: the kernel refused or dropped this packet."""

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        """Call `ready` from `loop` whenever there is something to read, until `unwatch`."""

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Undo `watch`; harmless without it."""

    def close(self) -> None:
        """Remove the device; harmless when done before."""


def check_interface_name(name: str) -> str:
    """`name`, if Linux and every script can bear it: 1-15 of `A-Za-z0-9_.-`, beginning with a letter or digit. HostError else (nothing was touched)."""
    if len(name) > NAME_SIZE or not _INTERFACE_NAME.fullmatch(name) or ".." in name:
        raise HostError(f"{name!r} is not an interface name: use 1 to 15 letters, digits, '_', '-' or '.'")
    return name


def open_tun(name: str, *, plain: bool = False, device: str = CLONE_DEVICE) -> LinuxTun:
    """Create the interface `name` (down, without addresses) and return it; it vanishes with `close` or the process.

    `plain` asks for no offload. HostError for a bad name, and where this machine refuses: nothing has changed then.
    """
    check_interface_name(name)
    try:
        fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(_explain_open(error, device)) from error
    try:
        vnet = not plain and _attach(fd, name, vnet_header=True)
        if not vnet:
            _attach(fd, name, vnet_header=False)
        return LinuxTun(name, fd, _set_offloads(fd) if vnet else Offloads(vnet_header=False))
    except OSError as error:
        os.close(fd)
        raise HostError(_explain_attach(error, name)) from error


def _explain_open(error: OSError, device: str) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{device} is missing: load the module (modprobe tun), or give this container the device"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{device} can't be opened: run the node as root, or give it CAP_NET_ADMIN and the device"
    return f"{device} can't be opened: {error.strerror}"


def _explain_attach(error: OSError, name: str) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"the interface {name} can't be made: run the node as root, or give it CAP_NET_ADMIN"
    if error.errno == errno.EBUSY:
        return f"an interface {name} exists already: another node runs here, or choose another name with --tun"
    if error.errno == errno.EINVAL:
        return f"the interface {name} can't be made: the name is taken by another kind of interface; choose another with --tun"
    return f"the interface {name} can't be made: {error.strerror}"


def _attach(fd: int, name: str, *, vnet_header: bool) -> bool:
    """Create the interface. False: the kernel knows no virtio headers (asked for without touching anything); OSError else."""
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL | (_IFF_VNET_HDR if vnet_header else 0)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode("ascii"), flags))
    except OSError as error:
        if vnet_header and error.errno == errno.EINVAL:
            return False
        raise
    return True


def _set_offloads(fd: int) -> Offloads:
    tcp = _OFFLOAD_CSUM | _OFFLOAD_TSO4 | _OFFLOAD_TSO6
    for features, granted in (
        (tcp | _OFFLOAD_USO4 | _OFFLOAD_USO6, Offloads(vnet_header=True, tcp=True, udp=True)),
        (tcp, Offloads(vnet_header=True, tcp=True)),
        (0, Offloads(vnet_header=True)),
    ):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, features)
        except OSError:
            continue
        return granted
    return Offloads(vnet_header=True)


class LinuxTun:
    """A TUN interface of this machine."""

    def __init__(self, name: str, fd: int, offloads: Offloads) -> None:
        """Takes over `fd`."""
        self.name = name
        self.offloads = offloads
        self.fd = fd
        self._file: io.FileIO | None = io.FileIO(fd, "r+b")
        self._readinto = self._file.readinto

    def read_into(self, buffer: memoryview) -> int:
        if self._file is None:
            raise HostError(f"the interface {self.name} is gone: it was closed")
        try:
            return self._readinto(buffer) or 0
        except OSError as error:
            raise HostError(f"the interface {self.name} is gone: {error.strerror}") from error

    def read_parts(self, parts: Sequence[memoryview]) -> int:
        if self._file is None:
            raise HostError(f"the interface {self.name} is gone: it was closed")
        try:
            return os.readv(self.fd, parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise HostError(f"the interface {self.name} is gone: {error.strerror}") from error

    def write(self, parts: Sequence[Buffer]) -> bool:
        if self._file is None:
            return False
        try:
            os.writev(self.fd, parts)
        except OSError:
            return False
        return True

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        loop.add_reader(self.fd, ready)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._file is not None:
            loop.remove_reader(self.fd)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
