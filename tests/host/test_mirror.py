"""The device and the port that lead back to us."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from calnet.host.mirror import Mirror
from calnet.host.receiving import Receiver
from calnet.host.tun import Offloads
from tests.ip_packets import icmp_echo

BOUND_S = 30.0


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror(Offloads(vnet_header=True))
    yield made
    made.close()


def _readable(file: socket.socket, within_s: float = BOUND_S) -> bool:
    return bool(select.select([file], [], [], within_s)[0])


def test_device_has_its_kernel_in_our_hands(mirror: Mirror) -> None:
    packet, buffer = bytes(10) + icmp_echo(), memoryview(bytearray(65546))
    assert mirror.tun.read_into(buffer) == 0
    mirror.give(packet)
    assert buffer[: mirror.tun.read_into(buffer)] == packet
    assert mirror.taken() is None
    assert mirror.tun.write([packet[:10], packet[10:]])
    assert mirror.taken() == packet
    assert mirror.taken() is None


def test_full_device_loses_what_is_given(mirror: Mirror) -> None:
    for _ in range(100_000):
        mirror.give(bytes(2000))
    assert mirror.tun.read_into(memoryview(bytearray(65546))) == 2000


def test_port_sends_to_itself_and_hears_nobody_else(mirror: Mirror) -> None:
    port = mirror.udp._four
    receive, buffer = Receiver(port), memoryview(bytearray(65536))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(3):
            stranger.sendto(b"from a stranger", mirror.endpoint)
        assert mirror.udp.send(mirror.endpoint, b"from us", 7)
        assert _readable(port)
        batch = receive(buffer)
    assert batch is not None
    assert (bytes(buffer[: batch.length]), batch.source) == (b"from us", mirror.endpoint)
    assert receive(buffer) is None


def test_it_is_closed_more_than_once_without_harm(mirror: Mirror) -> None:
    mirror.close()
    mirror.give(b"x")
    assert mirror.taken() is None
    mirror.close()
