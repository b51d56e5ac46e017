"""The device and the port that lead back to us."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator

import pytest

from calnet.errors import HostError
from calnet.host.mirror import Mirror
from calnet.host.receiving import Receiver
from calnet.host.tun import Offloads
from tests.ip_packets import icmp_echo

BOUND_S = 30.0


@pytest.fixture
def mirrors() -> Iterator[tuple[Mirror, Mirror]]:
    one, other = (Mirror(Offloads(vnet_header=True)) for _ in range(2))
    one.connect(other)
    other.connect(one)
    yield one, other
    one.close()
    other.close()


def _readable(file: socket.socket, within_s: float = BOUND_S) -> bool:
    return bool(select.select([file], [], [], within_s)[0])


def test_device_has_its_kernel_in_our_hands(mirrors: tuple[Mirror, Mirror]) -> None:
    mirror, packet, buffer = mirrors[0], bytes(10) + icmp_echo(), memoryview(bytearray(65546))
    assert mirror.tun.read_into(buffer) == 0
    mirror.give(packet)
    assert buffer[: mirror.tun.read_into(buffer)] == packet
    assert mirror.taken() is None
    assert mirror.tun.write([packet[:10], packet[10:]])
    assert mirror.taken() == packet
    assert mirror.taken() is None


def test_full_device_loses_what_is_given(mirrors: tuple[Mirror, Mirror]) -> None:
    for _ in range(100_000):
        mirrors[0].give(bytes(2000))
    assert mirrors[0].tun.read_into(memoryview(bytearray(65546))) == 2000


def test_ports_hear_each_other_and_nobody_else() -> None:
    one, other = (Mirror(Offloads(vnet_header=True)) for _ in range(2))
    receive, buffer = Receiver(one._port), memoryview(bytearray(65536))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(3):
            stranger.sendto(b"before they were connected", one.endpoint)
        assert _readable(one._port)
        one.connect(other)
        other.connect(one)
        for _ in range(3):
            stranger.sendto(b"from a stranger", one.endpoint)
        assert other.udp.send(one.endpoint, b"from the other", 14)
        assert _readable(one._port)
        batch = receive(buffer)
    assert batch is not None
    assert (bytes(buffer[: batch.length]), batch.source) == (b"from the other", other.endpoint)
    assert receive(buffer) is None
    one.close()
    other.close()


def test_it_is_closed_more_than_once_without_harm(mirrors: tuple[Mirror, Mirror]) -> None:
    for _ in range(2):
        mirrors[0].close()
        mirrors[0].give(b"x")
        assert mirrors[0].taken() is None


@pytest.mark.parametrize("allowed", range(3))
def test_without_sockets_it_is_a_host_error_and_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "no loopback")

    if allowed == 0:
        monkeypatch.setattr(socket, "socketpair", refuse)
    elif allowed == 1:
        monkeypatch.setattr(socket.socket, "bind", refuse)
    before = len(os.listdir("/proc/self/fd"))
    if allowed < 2:
        with pytest.raises(HostError, match="no loopback"):
            Mirror(Offloads(vnet_header=True))
    else:
        one, other = (Mirror(Offloads(vnet_header=True)) for _ in range(2))
        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(HostError, match="no loopback"):
            one.connect(other)
        one.close()
        other.close()
    assert len(os.listdir("/proc/self/fd")) == before
