"""The real TUN device in a namespace of its own: the contract, offloads, refusals."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from calnet.errors import HostError
from calnet.host import tun
from calnet.host.tun import LinuxTun, Offloads, check_interface_name, open_tun
from tests.host.tun_contract import TunLab, check_contract
from tests.ip_packets import V4

BAD_NAMES = ["", "../x", "a/b", ".", "..", "x" * 16, "%d", "cal%d", "a b", " a", "a\n", "a\0", "ä", "-x", ".x", "a..b", "a:b", "a\t"]


@pytest.mark.parametrize("name", ["calnet0", "a", "x" * 15, "tun-1", "wg_0", "eth0.5"])
def test_good_interface_name_is_returned(name: str) -> None:
    assert check_interface_name(name) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_attack_43_bad_interface_name_is_refused_before_anything_is_touched(name: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="interface name"):
        open_tun(name, device=str(tmp_path / "not-even-looked-at"))


def test_missing_device_is_a_host_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="modprobe tun"):
        open_tun("caltest0", device=str(tmp_path / "tun"))


@pytest.mark.parametrize(
    ("error", "text"),
    [(errno.EACCES, "CAP_NET_ADMIN"), (errno.EPERM, "root"), (errno.ENODEV, "modprobe"), (errno.EMFILE, "can't be opened")],
)
def test_device_that_cannot_be_opened_is_a_host_error(monkeypatch: pytest.MonkeyPatch, error: int, text: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=text):
        open_tun("caltest0")


class Ioctl:
    """A kernel's answers: for each TUNSETIFF, then each TUNSETOFFLOAD, an errno or 0."""

    def __init__(self, attach: list[int], offload: list[int]) -> None:
        self.attach, self.offload = attach, offload
        self.features: list[int] = []

    def __call__(self, fd: int, request: int, argument: object) -> int:
        answers = self.attach if request == tun._TUNSETIFF else self.offload
        if request != tun._TUNSETIFF:
            assert isinstance(argument, int)
            self.features.append(argument)
        error = answers.pop(0)
        if error:
            raise OSError(error, os.strerror(error))
        return 0


@pytest.mark.parametrize(
    ("attach", "offload", "granted"),
    [
        ([0], [0], Offloads(vnet_header=True, tcp=True, udp=True)),
        ([0], [errno.EINVAL, 0], Offloads(vnet_header=True, tcp=True)),
        ([0], [errno.EINVAL, errno.EINVAL, 0], Offloads(vnet_header=True)),
        ([0], [errno.EINVAL] * 3, Offloads(vnet_header=True)),
        ([errno.EINVAL, 0], [], Offloads(vnet_header=False)),
    ],
)
def test_offloads_fall_back_to_what_the_kernel_has(monkeypatch: pytest.MonkeyPatch, attach: list[int], offload: list[int], granted: Offloads) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Ioctl(attach, offload))
    device = open_tun("caltest0", device="/dev/null")
    assert device.offloads == granted
    device.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [(errno.EPERM, "CAP_NET_ADMIN"), (errno.EBUSY, "exists already"), (errno.ENOMEM, "can't be made")],
)
def test_interface_that_cannot_be_made_is_a_host_error_and_closes_the_device(monkeypatch: pytest.MonkeyPatch, error: int, text: str) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Ioctl([error], []))
    closed: list[int] = []
    real = os.close
    monkeypatch.setattr(os, "close", lambda fd: (closed.append(fd), real(fd)))
    with pytest.raises(HostError, match=text):
        open_tun("caltest0", device="/dev/null")
    assert len(closed) == 1


def test_interface_refused_with_and_without_header_is_a_host_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Ioctl([errno.EINVAL, errno.EINVAL], []))
    with pytest.raises(HostError, match="another kind of interface"):
        open_tun("caltest0", device="/dev/null")


class RealLab(TunLab):
    """UDP sockets of this machine."""

    def __init__(self, ends: tuple[str, str]) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((ends[0], 2000))
        self.socket.setblocking(False)
        self.ends = ends

    async def sends(self, packet: bytes) -> None:
        self.socket.sendto(packet[28:], (self.ends[1], 2000))

    async def got(self) -> bytes:
        async with asyncio.timeout(10):
            payload, address = await asyncio.get_running_loop().sock_recvfrom(self.socket, 2000)
        from tests.ip_packets import udp

        return udp(payload, (address[0], self.ends[0]), ports=(address[1], 2000))


@pytest.fixture(params=[False, True], ids=["offload", "plain"])
def device(request: pytest.FixtureRequest) -> Iterator[LinuxTun]:
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("needs root and /dev/net/tun")
    name = f"calt{os.getpid()}"
    made = open_tun(name, plain=request.param)
    subprocess.run(["ip", "address", "add", V4[0], "peer", V4[1], "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "mtu", "1280", "up"], check=True)
    yield made
    made.close()


@pytest.mark.e2e
def test_real_tun_keeps_the_contract(device: LinuxTun) -> None:
    lab = RealLab(V4)
    try:
        asyncio.run(check_contract(device, lab, V4))
    finally:
        lab.socket.close()
    assert not Path(f"/sys/class/net/{device.name}").exists()


@pytest.mark.e2e
def test_name_of_a_real_interface_is_refused(device: LinuxTun) -> None:
    with pytest.raises(HostError, match="exists already"):
        open_tun(device.name)
    with pytest.raises(HostError, match=r"exists already|another kind"):
        open_tun("lo")


@pytest.mark.e2e
def test_interface_that_vanishes_is_a_host_error(device: LinuxTun) -> None:
    subprocess.run(["ip", "link", "delete", device.name], check=True)
    with pytest.raises(HostError, match="gone"):
        device.read_into(memoryview(bytearray(2000)))
    assert not device.write([b"x" * 60])
