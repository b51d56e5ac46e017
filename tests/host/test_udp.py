"""The real UDP port on loopback: the contract, its fallbacks, its refusals."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from calnet.errors import HostError
from calnet.host import udp
from calnet.host.receiving import RECEIVE_SIZE, Receiver
from calnet.host.udp import LinuxUdp, open_udp
from calnet.model import Endpoint
from tests.host.udp_contract import LOST, Listener, check_contract, check_groups, pieces

NOBODY = 9  # discard
IP_RECVTTL = 12


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def ports(request: pytest.FixtureRequest) -> Iterator[tuple[LinuxUdp, LinuxUdp]]:
    one, two = open_udp(offload=request.param), open_udp(offload=request.param)
    yield one, two
    one.close()
    two.close()
    two.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_real_port_keeps_the_contract(ports: tuple[LinuxUdp, LinuxUdp], host: str) -> None:
    if ":" in host and not ports[0].ipv6:
        pytest.skip("this machine has no IPv6")
    asyncio.run(check_contract(*ports, host, Endpoint(host, NOBODY)))


def test_batch_arrives_as_a_batch_where_the_kernel_can() -> None:
    async def run() -> int:
        one, two = open_udp(), open_udp()
        listener = Listener(two)
        with listener.watching():
            one.send(Endpoint("127.0.0.1", two.port), bytes(1312 * 40), 1312)
            await listener.count(40)
        one.close()
        two.close()
        return listener.batches

    assert asyncio.run(run()) <= 40


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("seed", range(6))
def test_datagrams_of_any_size_and_source_arrive_in_order_each_with_its_source(host: str, seed: int) -> None:
    """They wait in the socket, so that one read finds them all: singly sent ones, batches, empty ones, from three ports in turn."""
    random, wanted = Random(seed), list[tuple[bytes, Endpoint]]()

    async def run() -> Listener:
        senders, receiver = [open_udp(offload=False), open_udp(), open_udp(offload=False)], open_udp()
        if ":" in host and not receiver.ipv6:
            pytest.skip("this machine has no IPv6")
        target = Endpoint(host, receiver.port)
        for _ in range(60):
            sender, size, count = random.choice(senders), random.choice([1, 100, 100, 100, 99, 1452, 1452]), random.choice([1, 1, 1, 3, 20])
            data, rest = random.randbytes(size * count), random.choice([0, 0, size // 2])
            sender.send(target, data + bytes(rest), size)
            wanted.extend((piece, Endpoint(host, sender.port)) for piece in [*pieces(data, size), *([bytes(rest)] if rest else [])])
        listener = Listener(receiver)
        with listener.watching():
            await listener.count(len(wanted))
        for one in (*senders, receiver):
            one.close()
        return listener

    listener = asyncio.run(run())
    assert listener.datagrams == wanted
    assert listener.batches < len(wanted)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_batch_and_longer_ones_among_datagrams_that_come_singly_are_whole_and_in_order(host: str) -> None:
    """What is longer than the first datagram, or was joined by the kernel, does not fit where the next one of its size would."""

    async def run() -> tuple[list[tuple[bytes, Endpoint]], list[tuple[bytes, Endpoint]]]:
        singly, batches, receiver = open_udp(offload=False), open_udp(), open_udp()
        if ":" in host and not receiver.ipv6:
            pytest.skip("this machine has no IPv6")
        target, wanted = Endpoint(host, receiver.port), list[tuple[bytes, Endpoint]]()
        for sender, length, size in (
            (singly, 300, 100),
            (batches, 9_050, 1_000),
            (singly, 100, 100),
            (singly, 60_000, 60_000),
            (batches, 40_000, 800),
            (singly, 5, 1),
        ):
            data = bytes(range(250)) * (length // 250 + 1)
            sender.send(target, data[:length], size)
            wanted += [(piece, Endpoint(host, sender.port)) for piece in pieces(data[:length], size)]
        listener = Listener(receiver)
        with listener.watching():
            await listener.count(len(wanted))
        for one in (singly, batches, receiver):
            one.close()
        return listener.datagrams, wanted

    came, wanted = asyncio.run(run())
    assert came == wanted


def test_datagrams_that_come_singly_are_joined_and_a_lone_one_does_not_wait() -> None:
    async def run() -> tuple[int, int]:
        one, two = open_udp(offload=False), open_udp(offload=False)
        one.send(Endpoint("127.0.0.1", two.port), bytes(1452 * 40 + 7), 1452)
        listener = Listener(two)
        with listener.watching():
            await listener.count(41)
            many = listener.batches
            one.send(Endpoint("127.0.0.1", two.port), b"lone", 4)
            await listener.count(42)
        one.close()
        two.close()
        return many, listener.batches

    assert asyncio.run(run()) == (2, 3), "the first, those behind it, the lone one"


@pytest.mark.parametrize("lost", LOST, ids=str)
@pytest.mark.parametrize("short", [False, True])
def test_what_belongs_together_is_given_out_together_whatever_was_lost(lost: set[int], short: bool) -> None:
    one, two = open_udp(offload=False), open_udp()
    asyncio.run(check_groups(one, two, "127.0.0.1", lost, short=short))
    one.close()
    two.close()


def test_closed_socket_is_not_read_from_by_what_it_left_behind() -> None:
    receiving, sending = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiving.bind(("127.0.0.1", 0))
    receiving.setblocking(False)
    receive, buffer = Receiver(receiving, lambda datagram: 9), memoryview(bytearray(RECEIVE_SIZE))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as another:
        for sender in (sending, sending, another):
            sender.sendto(b"a" * 100, receiving.getsockname())
        assert receive(buffer)
        assert receive(buffer), "with it came what is kept"
    number = receiving.detach()
    os.close(number)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    assert number in (one.fileno(), other.fileno()), "it has the number of the closed one"
    mine, theirs = (one, other) if one.fileno() == number else (other, one)
    theirs.send(b"another's")
    assert receive(buffer) is not None, "what was kept"
    mine.setblocking(False)
    assert mine.recv(100) == b"another's"
    for still in (one, other, sending):
        still.close()


def test_empty_datagrams_of_anybody_do_no_harm() -> None:
    receiving, sending = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiving.bind(("127.0.0.1", 0))
    receiving.setblocking(False)
    receive, buffer = Receiver(receiving, lambda datagram: 9), memoryview(bytearray(RECEIVE_SIZE))
    lengths = (1, 1, 0, 1, 0, 0, 1, 1, 1)
    for length in lengths:
        sending.sendto(bytes(length), receiving.getsockname())
    came: list[int] = []
    misses = 0
    while misses < 2:
        batch = receive(buffer)
        misses = misses + 1 if batch is None else 0
        if batch is not None:
            came += [batch.segment] * (batch.length // batch.segment) if batch.segment else [0]
    assert came == list(lengths)
    receiving.close()
    sending.close()


@pytest.mark.parametrize(
    ("host", "level", "ask", "kind"),
    [("127.0.0.1", socket.IPPROTO_IP, IP_RECVTTL, socket.IP_TTL), ("::1", socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, socket.IPV6_HOPLIMIT)],
)
def test_short_datagram_has_the_time_to_live_it_was_given_and_the_next_one_the_usual(host: str, level: int, ask: int, kind: int) -> None:
    sender = open_udp()
    if ":" in host and not sender.ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((host, 0))
        listener.settimeout(10.0)
        listener.setsockopt(level, ask, 1)
        sender.send_short(Endpoint(host, listener.getsockname()[1]), b"short", 2)
        sender.send(Endpoint(host, listener.getsockname()[1]), b"usual", 5)
        received = [listener.recvmsg(64, 64) for _ in range(2)]
    sender.close()
    lives = [[int.from_bytes(value, sys.byteorder) for got, what, value in ancillary if (got, what) == (level, kind)] for _, ancillary, _, _ in received]
    assert lives[0] == [2]
    assert lives[1] > [2]


class FailingSocket:
    """Stands before a real socket and fails the sends it is told to."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.batch_errors: list[int] = []
        self.single_errors: list[int] = []

    def sendmsg(self, *args: object) -> int:
        if self.batch_errors:
            raise OSError(self.batch_errors.pop(0), "made up")
        return self.real.sendmsg(*args)  # type: ignore[arg-type]

    def sendto(self, *args: Any) -> int:
        if self.single_errors:
            raise OSError(self.single_errors.pop(0), "made up")
        return int(self.real.sendto(*args))

    def close(self) -> None:
        self.real.close()


@pytest.fixture
def failing() -> Iterator[tuple[LinuxUdp, FailingSocket, socket.socket, list[tuple[str, str]]]]:
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    target.bind(("127.0.0.1", 0))
    target.settimeout(5)
    front = FailingSocket(four)
    told: list[tuple[str, str]] = []
    port = LinuxUdp(1, four, None, True, lambda code, text: told.append((code, text)))
    port._four = front  # type: ignore[assignment]
    yield port, front, target, told
    port.close()
    target.close()


def _receive(target: socket.socket, count: int) -> list[bytes]:
    return [target.recv(2000) for _ in range(count)]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO, errno.EMSGSIZE])
def test_path_that_takes_no_batches_gets_single_sends_and_is_told_once(failing, error: int) -> None:  # type: ignore[no-untyped-def]
    port, front, target, told = failing
    endpoint = Endpoint(*target.getsockname())
    front.batch_errors = [error]
    assert port.send(endpoint, b"abcdefg", 3)
    assert port.send(endpoint, b"hijklm", 3)
    assert _receive(target, 5) == [b"abc", b"def", b"g", b"hij", b"klm"]
    assert [code for code, _ in told] == ["udp-no-segmentation"]
    port.forget_failures()
    front.batch_errors = [error]
    assert port.send(endpoint, b"nopq", 2)
    assert len(told) == 2


def test_refused_earlier_datagram_does_not_lose_this_one(failing) -> None:  # type: ignore[no-untyped-def]
    port, front, target, _ = failing
    endpoint = Endpoint(*target.getsockname())
    front.batch_errors, front.single_errors = [errno.ECONNREFUSED], [errno.ECONNREFUSED]
    assert port.send(endpoint, b"abcd", 2)
    front.single_errors = [errno.ECONNREFUSED]
    assert port.send(endpoint, b"ef", 2)
    assert _receive(target, 3) == [b"ab", b"cd", b"ef"]


@pytest.mark.parametrize("error", [errno.ENETUNREACH, errno.EPERM, errno.EHOSTUNREACH])
def test_unreachable_network_is_a_lost_datagram(failing, error: int) -> None:  # type: ignore[no-untyped-def]
    port, front, target, told = failing
    endpoint = Endpoint(*target.getsockname())
    front.batch_errors, front.single_errors = [error], [error]
    assert port.send(endpoint, b"abcd", 2)
    assert port.send(endpoint, b"ef", 2)
    assert port.send(endpoint, b"gh", 2)
    assert _receive(target, 1) == [b"gh"]
    assert told == []


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOBUFS])
def test_full_socket_is_told_unless_some_were_sent(failing, error: int) -> None:  # type: ignore[no-untyped-def]
    port, front, target, _ = failing
    endpoint = Endpoint(*target.getsockname())
    front.batch_errors, front.single_errors = [error], [error]
    assert not port.send(endpoint, b"abcd", 2)
    assert not port.send(endpoint, b"ef", 2)
    port._single.add(endpoint)
    front.single_errors = [error]
    assert not port.send(endpoint, b"abcd", 2)


def test_ipv6_target_without_an_ipv6_socket_is_lost_quietly(failing) -> None:  # type: ignore[no-untyped-def]
    port, *_ = failing
    assert not port.ipv6
    assert port.send(Endpoint("::1", 9), b"x", 1)


def test_machine_without_ipv6_has_the_ipv4_port_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def no_ipv6(family: int, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", no_ipv6)
    port = open_udp()
    assert not port.ipv6
    assert port.port > 0
    port.close()


def test_taken_port_is_a_host_error_that_says_what_to_do() -> None:
    one = open_udp()
    with pytest.raises(HostError, match=rf"{one.port} is taken.*--port"):
        open_udp(one.port)
    one.close()
    again = open_udp(one.port)
    assert again.port == one.port
    again.close()


def test_port_taken_for_ipv6_alone_is_refused_and_another_is_chosen_for_0(monkeypatch: pytest.MonkeyPatch) -> None:
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        six.bind(("::", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with pytest.raises(HostError, match="is taken"):
        open_udp(six.getsockname()[1])
    calls = []
    real = udp._bind

    def first_six_taken(family: socket.AddressFamily, port: int, mark: int) -> socket.socket:
        calls.append(family)
        if calls.count(socket.AF_INET6) == 1 and family == socket.AF_INET6:
            raise HostError("UDP port is taken")
        return real(family, port, mark)

    monkeypatch.setattr(udp, "_bind", first_six_taken)
    chosen = open_udp()
    assert chosen.ipv6
    chosen.close()
    six.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a firewall mark needs root")
def test_mark_and_buffers_are_set() -> None:
    port = open_udp(mark=0x77)
    for one in port._sockets():
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x77
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= udp.SOCKET_BUFFER
    port.close()


def test_mark_without_the_capability_is_a_host_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, level: int, name: int, value: int) -> None:  # type: ignore[override]
            if name == socket.SO_MARK:
                raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(HostError, match="CAP_NET_ADMIN"):
        open_udp(mark=1)


@pytest.mark.parametrize("allowed", [0, 1])
def test_machine_without_a_free_file_is_a_host_error_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    made: list[socket.socket] = []

    class Scarce(socket.socket):
        def __init__(self, *args: Any) -> None:
            if len(made) == allowed:
                raise OSError(errno.EMFILE, "Too many open files")
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(socket, "socket", Scarce)
    with pytest.raises(HostError, match="Too many open files"):
        open_udp(40_500)
    assert [one.fileno() for one in made] == [-1] * allowed


def test_kernel_without_segmentation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "_UDP_SEGMENT", 250)
    monkeypatch.setattr(udp, "UDP_GRO", 251)
    one, two = open_udp(), open_udp()
    assert not one._segments
    asyncio.run(check_contract(one, two, "127.0.0.1", Endpoint("127.0.0.1", NOBODY)))
    one.close()
    two.close()
