"""The data path's ways between two real ends: what is on the wire, and that everything arrives as it was sent."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

import pytest

from bench.exact import WAYS, transfer
from bench.tunnel_lab import OVERLAY, Lab
from calnet.tunnel.capabilities import CHUNKS
from tests.e2e.network import Network, await_direct, send_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

MTU = 1420
TYPES = textwrap.dedent(
    """
    import collections, socket, sys, time
    seen, end = collections.Counter(), time.monotonic() + 60
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as wire:
        wire.bind(("veth0", 0x0800))
        wire.settimeout(0.2)
        print("watching", flush=True)
        while time.monotonic() < end and sum(seen.values()) < 200:
            try:
                packet = wire.recv(65536)
            except TimeoutError:
                continue
            if packet[9] == 17:
                seen[packet[28]] += 1
    print(*sorted(seen), flush=True)
    """
)
OPTIONS = textwrap.dedent(
    """
    import socket, sys
    with socket.socket(socket.AF_INET6) as connection:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes((0, 0, 1, 4, 0, 0, 0, 0)))
        connection.settimeout(60)
        connection.connect((sys.argv[1], 5001))
        connection.sendall(bytes(range(256)) * 40_000)
    """
)
COUNTER = textwrap.dedent(
    """
    import socket, sys
    with socket.create_server((sys.argv[1], 5001), family=socket.AF_INET6) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        received = bytearray()
        while piece := connection.recv(1 << 20):
            received += piece
    print(received == bytes(range(256)) * 40_000, flush=True)
    """
)
SIZES = textwrap.dedent(
    """
    import socket, sys
    host, most = sys.argv[1], int(sys.argv[2])
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(0.5)
        udp.connect((host, 5002))
        wrong = 0
        for size in range(0, most + 1):
            datagram = bytes((size + k) & 255 for k in range(size))
            for _ in range(20):
                udp.send(datagram)
                try:
                    answer = udp.recv(65536)
                except TimeoutError:
                    continue
                wrong += answer != datagram
                break
            else:
                wrong += 1
    print(wrong)
    """
)
ECHO = textwrap.dedent(
    """
    import socket, sys
    with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((sys.argv[1], 5002))
        print("listening", flush=True)
        while True:
            datagram, source = udp.recvfrom(65536)
            udp.sendto(datagram, source)
    """
)


@pytest.fixture(params=WAYS.items(), ids=list(WAYS))
def lab(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, tuple[str, ...]]]:
    """Two ends that take one way; TCP with ECN."""
    with Lab(prefix="fst", mtu=MTU) as made:
        for side in "ab":
            made.start_calnet(side, capabilities=request.param[1])
            made.ends[side].run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_ecn")
        yield made, request.param[1]


def test_streams_arrive_as_sent_both_ways_and_the_wire_shows_the_way(lab: tuple[Lab, tuple[str, ...]]) -> None:
    made, capabilities = lab
    one, two = made.ends["a"], made.ends["b"]
    watching = two.start(sys.executable, "-IS", "-c", TYPES)
    assert watching.stdout is not None
    assert watching.stdout.readline().strip() == "watching"
    assert transfer(one, two, OVERLAY["b"][0], 40)
    types = set(watching.stdout.readline().split())
    watching.communicate()
    assert ("5" in types) is (CHUNKS in capabilities)
    assert ("6" in types) is ("aes-256-gcm" in capabilities)
    assert ("1" in types) is ("aes-256-gcm" not in capabilities)
    assert transfer(two, one, OVERLAY["a"][1], 40)


def test_streams_arrive_as_sent_where_packets_are_lost_and_nothing_is_offloaded(lab: tuple[Lab, tuple[str, ...]]) -> None:
    made, _ = lab
    with made.without_offloads(), made.losing(1):
        assert transfer(made.ends["a"], made.ends["b"], OVERLAY["b"][0], 8)
        assert transfer(made.ends["b"], made.ends["a"], OVERLAY["a"][1], 8)


def test_connection_with_ipv6_destination_options_goes_through(lab: tuple[Lab, tuple[str, ...]]) -> None:
    made, _ = lab
    receiver = made.ends["b"].start(sys.executable, "-IS", "-c", COUNTER, OVERLAY["b"][1])
    assert receiver.stdout is not None
    assert receiver.stdout.readline().strip() == "listening"
    made.ends["a"].run(sys.executable, "-IS", "-c", OPTIONS, OVERLAY["b"][1])
    assert receiver.communicate(timeout=60)[0].split() == ["True"]


@pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])
def test_datagrams_of_every_size_come_back_as_they_were(lab: tuple[Lab, tuple[str, ...]], version: int) -> None:
    made, _ = lab
    echo = made.ends["b"].start(sys.executable, "-IS", "-c", ECHO, OVERLAY["b"][version])
    assert echo.stdout is not None
    assert echo.stdout.readline().strip() == "listening"
    assert made.ends["a"].run(sys.executable, "-IS", "-c", SIZES, OVERLAY["b"][version], str(MTU - (48 if version else 28))).split() == ["0"]
    echo.kill()
    echo.communicate()


def test_nodes_of_one_network_agree_on_the_faster_cipher_and_say_so(net: Network) -> None:
    alice, bob = net.join("alice"), net.join("bob")
    net.acquaint("alice", "bob")
    await_direct(alice, bob)
    assert send_file(alice, bob, bytes(range(256)) * 20_000)
    ciphers = {str((alice.peer("bob") or {}).get("cipher")), str((bob.peer("alice") or {}).get("cipher"))}
    assert ciphers in ({"AES-256-GCM"}, {"ChaCha20-Poly1305"})
