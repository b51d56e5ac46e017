"""STUN over real sockets: the address seen, the address answered from, the rate."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from calnet.errors import HostError
from calnet.roles.server.listeners import tcp_listener, udp_socket
from calnet.roles.server.settings import HostPort
from calnet.roles.server.stun_service import ANSWERS_BURST, StunService
from calnet.wire import stun

HAS_IPV6 = socket.has_dualstack_ipv6()


def ask(listen: str, *, source: str, server: str, count: int = 1) -> list[stun.BindingResponse]:
    """The answers to `count` requests from `source` to `server`, of a service that listens on `listen`."""

    async def scenario() -> list[stun.BindingResponse]:
        loop = asyncio.get_running_loop()
        service = StunService(udp_socket(HostPort(listen, 0)), loop)
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.bind((source, 0))
            client.connect((server, service.port))  # a connected socket takes answers from that address alone
            answers: list[stun.BindingResponse] = []
            for _ in range(count):
                client.send(stun.build_request(bytes(12)))
            try:
                async with asyncio.timeout(5.0 if count == 1 else 0.5):
                    while len(answers) < count:
                        answers.append(stun.parse_response(await loop.sock_recv(client, 2000)))
            except TimeoutError:
                pass
            here = client.getsockname()
        service.close()
        assert all(answer.mapped == (source, here[1]) for answer in answers)
        return answers

    return uvloop.run(scenario())


@pytest.mark.parametrize("listen", ["0.0.0.0", pytest.param("::", marks=pytest.mark.skipif(not HAS_IPV6, reason="IPv6 is off"))])
@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.77"])
def test_stun_answer_leaves_from_the_address_that_was_asked(listen: str, server: str) -> None:
    assert len(ask(listen, source="127.0.0.5", server=server)) == 1


@pytest.mark.skipif(not HAS_IPV6, reason="IPv6 is off")
def test_stun_over_ipv6_tells_the_ipv6_address() -> None:
    assert len(ask("::", source="::1", server="::1")) == 1


def test_stun_answers_to_one_network_are_bounded() -> None:
    assert ANSWERS_BURST * 0.9 <= len(ask("0.0.0.0", source="127.0.0.5", server="127.0.0.1", count=400)) < 200


def test_listener_where_ipv6_is_off_takes_ipv4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    real = socket.socket

    def without_ipv6(family: int = -1, *more: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *more)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with tcp_listener(HostPort("::", 0)) as listener:
        assert listener.family == socket.AF_INET


def test_listener_on_a_taken_port_says_how_to_choose_another() -> None:
    with tcp_listener(HostPort("127.0.0.1", 0)) as taken, pytest.raises(HostError, match=r"taken.*--listen"):
        tcp_listener(HostPort("127.0.0.1", taken.getsockname()[1]))
