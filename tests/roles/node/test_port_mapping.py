"""The port mapper against routers on loopback that speak PCP, NAT-PMP or UPnP, forget, move, lie, and are silent. (A real router: tests/e2e.)"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from calnet.model import Endpoint
from calnet.roles.node.port_mapping import Pace, PortMapper
from calnet.wire import portmap

PORT = 41641
PACE = Pace(again=0.05, tries=(0.3,), search=(0.02,), http=0.2)


class Router(asyncio.DatagramProtocol):
    """At its own loopback address. `pcp` False: an older one, which speaks NAT-PMP alone."""

    def __init__(self, *, pcp: bool) -> None:
        self.pcp, self.public, self.silent = pcp, bytes((203, 0, 113, 9)), False
        self.given: dict[int, int] = {}
        """Internal ports and their external ones."""
        self.asked = self.ended = 0
        self.held: set[str] = set()
        self.given_back: set[str] = set()
        """Protocols that a mapping is held by, and those by which one was given back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.silent:
            return
        if data[0] == 2 and self.pcp:
            lifetime, internal = int.from_bytes(data[4:8], "big"), int.from_bytes(data[40:42], "big")
            self._map("pcp", internal, lifetime)
            answer = bytes((2, 0x81, 0, 0)) + struct.pack("!II", lifetime, 1) + bytes(12) + data[24:40] + struct.pack("!HH", internal, 5000)
            self.transport.sendto(answer + bytes(10) + b"\xff\xff" + self.public, addr)
        elif data[0] == 2:
            self.transport.sendto(b"\0\x81\0\x01" + bytes(4), addr)  # unsupported version (RFC 6886, section 3.5)
        elif data == b"\0\0":
            self.transport.sendto(b"\0\x80\0\0" + bytes(4) + self.public, addr)
        else:
            internal, _, lifetime = struct.unpack("!HHI", data[4:12])
            self._map("nat-pmp", internal, lifetime)
            self.transport.sendto(b"\0\x81\0\0" + bytes(4) + struct.pack("!HHI", internal, 5000, lifetime), addr)

    def _map(self, protocol: str, internal: int, lifetime: int) -> None:
        self.asked += 1
        if lifetime:
            self.given[internal] = 5000
            self.held.add(protocol)
        else:
            self.ended += 1
            self.given.pop(internal, None)
            self.held.discard(protocol)
            self.given_back.add(protocol)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def mapping(host: str, *, pcp: bool) -> AsyncIterator[tuple[Router, PortMapper, list[Endpoint | None]]]:
    """(router, mapper that runs and wants nothing yet, what it told)."""
    told: list[Endpoint | None] = []
    router = Router(pcp=pcp)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: router, (host, portmap.PORT))
    mapper = PortMapper(told.append, random=os.urandom, mark=0, pace=PACE)
    task = asyncio.create_task(mapper.run())
    try:
        yield router, mapper, told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)  # what it sent last is in the router's socket: one turn of the loop reads it
        transport.close()


def test_port_is_given_renewed_and_given_back() -> None:
    async def main() -> None:
        for number, pcp in enumerate((True, False), start=1):
            host = f"127.53.51.{number}"
            async with mapping(host, pcp=pcp) as (router, mapper, told):
                mapper.use(host, PORT)
                await until(lambda told=told: bool(told))  # type: ignore[misc]
                assert mapper.lease is not None
                assert mapper.lease.protocol == ("pcp" if pcp else "nat-pmp")
                await until(lambda router=router: router.asked > 3)  # type: ignore[misc]
                assert router.given == {PORT: 5000}
                assert router.ended == 0
                mapper.use(None, 0)
                await until(lambda router=router: router.ended == 1)  # type: ignore[misc]
                assert told == [Endpoint("203.0.113.9", 5000), None]
                assert router.given == {}

    asyncio.run(main())


def test_end_of_the_task_gives_the_port_back() -> None:
    async def main() -> None:
        async with mapping("127.53.51.3", pcp=True) as (router, mapper, told):
            mapper.use("127.53.51.3", PORT)
            await until(lambda: bool(told))
        assert told == [Endpoint("203.0.113.9", 5000), None]
        assert router.ended == 1

    asyncio.run(main())


def test_router_with_another_address_is_told_and_a_silent_one_has_given_nothing() -> None:
    async def main() -> None:
        async with mapping("127.53.51.4", pcp=True) as (router, mapper, told):
            mapper.use("127.53.51.4", PORT)
            await until(lambda: bool(told))
            router.public = bytes((203, 0, 113, 10))
            await until(lambda: len(told) == 2)
            router.silent = True
            await until(lambda: len(told) == 3)
            assert told == [Endpoint("203.0.113.9", 5000), Endpoint("203.0.113.10", 5000), None]
            router.silent = False
            await until(lambda: len(told) == 4)
            assert told[-1] == Endpoint("203.0.113.10", 5000)

    asyncio.run(main())


def test_another_gateway_takes_over_from_the_first() -> None:
    async def main() -> None:
        async with mapping("127.53.51.5", pcp=True) as (one, mapper, told), mapping("127.53.51.6", pcp=False) as (other, _, _):
            other.public = bytes((203, 0, 113, 11))
            mapper.use("127.53.51.5", PORT)
            await until(lambda: bool(told))
            mapper.use("127.53.51.6", PORT)
            await until(lambda: told[-1] == Endpoint("203.0.113.11", 5000))
            assert told == [Endpoint("203.0.113.9", 5000), None, Endpoint("203.0.113.11", 5000)]
            assert (one.given, other.given) == ({}, {PORT: 5000})

    asyncio.run(main())


@pytest.mark.parametrize("public", ["100.64.0.9", "192.168.1.9", "0.0.0.0", "127.0.0.1", "169.254.3.4", "192.0.0.2", "224.0.0.1", "255.255.255.255"])
def test_endpoint_that_nobody_outside_reaches_is_given_back(public: str) -> None:
    async def main() -> None:
        async with mapping("127.53.51.7", pcp=True) as (router, mapper, told):
            router.public = socket.inet_aton(public)
            mapper.use("127.53.51.7", PORT)
            await until(lambda: router.given_back == {"pcp", "nat-pmp"} and not router.held)
            assert told == []

    asyncio.run(main())


SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"


class UpnpRouter:
    """At its own loopback address: what hears searches and answers them, and an HTTP server that describes itself and takes orders."""

    def __init__(self, host: str) -> None:
        self.host, self.orders = host, list[str]()
        self.searches = 0
        self.answers: list[tuple[str, str]] = []
        """(from this address, this URL) each search is answered; empty: by the router, with its own."""

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._serve, self.host, 0)
        self.url = f"http://{self.host}:{self.server.sockets[0].getsockname()[1]}"
        heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        heard.bind(portmap.SSDP)
        heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(portmap.SSDP.host) + socket.inet_aton("127.0.0.1"))
        self.heard = heard
        asyncio.get_running_loop().add_reader(heard, self._searched)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.heard)
        self.heard.close()
        self.server.close()

    async def restart(self) -> None:
        """It comes back with its service at another port."""
        server, heard = self.server, self.heard
        await self.open()
        asyncio.get_running_loop().remove_reader(heard)
        heard.close()
        server.close()

    def _searched(self) -> None:
        _, searcher = self.heard.recvfrom(2048)
        self.searches += 1
        for source, url in self.answers or [(self.host, f"{self.url}/root.xml")]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answering:
                answering.bind((source, 0))
                answering.sendto(f"HTTP/1.1 200 OK\r\nLocation: {url}\r\n\r\n".encode(), searcher)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET /root.xml"):
            body = f"<root><service><serviceType>{SERVICE}</serviceType><controlURL>/control</controlURL></service></root>"
        else:
            self.orders.append(head.partition("#")[2].partition('"')[0])
            body = "<a><NewExternalIPAddress>203.0.113.9</NewExternalIPAddress></a>"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def upnp(host: str, again: float) -> AsyncIterator[tuple[UpnpRouter, PortMapper, list[Endpoint | None]]]:
    """As `mapping`."""
    told: list[Endpoint | None] = []
    router = UpnpRouter(host)
    await router.open()
    mapper = PortMapper(told.append, random=os.urandom, mark=0, pace=Pace(again=again, tries=(0.02,), search=(0.3,), http=5.0))
    task = asyncio.create_task(mapper.run())
    try:
        yield router, mapper, told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        router.close()


def test_upnp_router_that_was_restarted_is_searched_for_at_once() -> None:
    async def main() -> None:
        async with upnp("127.53.51.8", 0.1) as (router, mapper, told):
            mapper.use("127.53.51.8", PORT)
            await until(lambda: router.orders.count("AddPortMapping") > 2)
            assert router.searches == 1  # what is held is renewed where it was given
            await router.restart()
            held = mapper.lease
            await until(lambda: router.searches > 1 and mapper.lease != held)
            assert mapper.lease is not None
            assert mapper.lease.service == portmap.Service(f"{router.url}/control", SERVICE)
            assert told == [Endpoint("203.0.113.9", PORT)]  # never without

    asyncio.run(main())


def test_search_is_answered_by_nobody_but_the_gateway() -> None:
    async def main() -> None:
        async with upnp("127.53.51.9", 0.05) as (router, mapper, told):
            router.answers = [("127.53.51.66", f"{router.url}/root.xml")]
            mapper.use("127.53.51.9", PORT)
            await until(lambda: router.searches > 1)
            assert told == []
            assert router.orders == []
            router.answers = []
            await until(lambda: told == [Endpoint("203.0.113.9", PORT)])

    asyncio.run(main())


def test_answers_that_lead_nowhere_deny_no_mapping() -> None:
    async def main() -> None:
        async with upnp("127.53.51.10", 600.0) as (router, mapper, told):
            own = router.host, f"{router.url}/root.xml"
            dead = [("127.53.51.66", "http://127.53.51.10:1/"), (router.host, "http://127.53.51.10:1/"), (router.host, f"{router.url}/other")]
            router.answers = [*dead, dead[1], own]
            mapper.use("127.53.51.10", PORT)
            await until(lambda: told == [Endpoint("203.0.113.9", PORT)])

    asyncio.run(main())
