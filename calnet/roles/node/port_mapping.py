"""A port of the router's that leads to ours, by whichever of PCP, NAT-PMP and UPnP it speaks: asked for, renewed, and given back.

Theory of operation. `run` is the one task: it asks the gateway that `use` named last, in that order of protocols, tells the endpoint it got, and asks again at
half of the lease, or after ten minutes if that is sooner: a router that was restarted has forgotten. Where the gateway, our port or our address changed, and at
the end, the port is given back first. Everything is sent past the tunnel, and only to the gateway itself (UPnP's search goes to its multicast group; what
answers has to be the gateway, and several of its answers are tried). What a held UPnP mapping needs may have moved: where the router's service gives none any
more, it is searched for again at once. An endpoint that nobody outside could reach is given back.

Error contract: what a router does ends in a log line at worst.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar
from urllib.parse import urlsplit

from calnet.crypto.keys import RandomBytes
from calnet.errors import WireError
from calnet.model import Endpoint
from calnet.wire import portmap
from calnet.wire.endpoints import is_candidate, is_private
from calnet.wire.portmap import Mapped, Service

log = logging.getLogger(__name__)

Found = TypeVar("Found")

LEASE_S: Final = 7200
LEAST_LEASE_S: Final = 60
"""A shorter one is taken for this long: nobody makes us ask without end."""
PORTS_TRIED: Final = 3
"""Of a UPnP router: ours, then any. PCP and NAT-PMP name a free one themselves."""
FIRST_PORT: Final = 1024
ANSWERS_TRIED: Final = 3
"""Descriptions fetched in one search: a router may describe several devices, and an answer may be forged."""


class RefusedError(WireError):
    """A UPnP router refuses; `fault` is its number for why, 0 where it names none."""

    def __init__(self, message: str, fault: int) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: how often a router is asked at least, whether it gave a port or not (and at once when the network changes); how long each try of a UDP request
    waits (RFC 6886 section 3.1, cut short), each search for a UPnP router, and its every answer."""

    again: float = 600.0
    tries: tuple[float, ...] = (0.25, 0.5, 1.0)
    search: tuple[float, ...] = (1.5, 1.5)
    http: float = 3.0


@dataclass(frozen=True, slots=True)
class Lease:
    """What a router gave: by which protocol, and what gives it back."""

    protocol: str
    endpoint: Endpoint
    lifetime_s: int
    nonce: bytes = b""
    service: Service | None = None


class PortMapper:
    """See the module. `tell` hears of the endpoint, None when it is gone; `mark` is the fwmark of what is sent."""

    def __init__(self, tell: Callable[[Endpoint | None], None], *, random: RandomBytes, mark: int, pace: Pace | None = None) -> None:
        self._tell, self._random, self._mark = tell, random, mark
        self._pace = pace or Pace()
        self.lease: Lease | None = None
        self._wanted: tuple[str, int] | None = None
        self._moved = asyncio.Event()

    def use(self, gateway: str | None, port: int, *, afresh: bool = False) -> None:
        """Have UDP port `port` mapped at this gateway from now on; None: nowhere. `afresh`: this machine's address may be another one."""
        wanted = None if gateway is None else (gateway, port)
        if wanted != self._wanted or afresh:
            self._wanted = wanted
            self._moved.set()

    async def run(self) -> None:
        """Serve what `use` asks for, until cancelled."""
        try:
            while True:
                self._moved.clear()
                wanted = self._wanted
                lease = None if wanted is None else await self._ask(*wanted)
                if lease is None and self.lease is not None and wanted is not None:
                    lease = await self._ask(*wanted)  # some packets may have been lost
                if not self._moved.is_set():
                    self._settle(lease)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if wanted is None else self._until_next()):
                            await self._moved.wait()
                if wanted is not None and self._moved.is_set():
                    await self._end(lease or self.lease, *wanted)
        finally:
            if self._wanted is not None:
                await self._end(self.lease, *self._wanted)

    def _until_next(self) -> float:
        return self._pace.again if self.lease is None else min(self._pace.again, max(self.lease.lifetime_s, LEAST_LEASE_S) / 2)

    def _settle(self, lease: Lease | None) -> None:
        """This is what we hold now."""
        before, self.lease = self.lease, lease
        if (before and before.endpoint) == (lease and lease.endpoint):
            return
        if lease is not None:
            log.info("port_mapped protocol=%s endpoint=%s", lease.protocol, lease.endpoint)
        elif before is not None:
            log.info("port_mapping_lost protocol=%s endpoint=%s", before.protocol, before.endpoint)
        self._tell(None if lease is None else lease.endpoint)

    async def _end(self, lease: Lease | None, gateway: str, port: int) -> None:
        """Give a lease back, if the router can still be reached."""
        self._settle(None)
        if lease is not None:
            with contextlib.suppress(OSError, WireError, TimeoutError, http.client.HTTPException):
                async with asyncio.timeout(1.0):
                    await self._give_back(lease, gateway, port)

    async def _ask(self, gateway: str, port: int) -> Lease | None:
        """A lease by the protocol that gave the present one, or else by the first that gives one."""
        held = self.lease
        protocols = (("pcp", self._pcp), ("nat-pmp", self._pmp), ("upnp", self._upnp))
        for name, ask in sorted(protocols, key=lambda protocol: held is not None and protocol[0] != held.protocol):
            try:
                lease = await ask(gateway, port, held if held is not None and held.protocol == name else None)
            except (OSError, WireError, TimeoutError, http.client.HTTPException) as error:
                log.debug("port_mapping_refused protocol=%s error=%s", name, error)
                continue
            if is_private(lease.endpoint) or not is_candidate(lease.endpoint):
                log.info("port_mapping_useless protocol=%s endpoint=%s", name, lease.endpoint)  # another NAT stands before it, or it has no address now
                with contextlib.suppress(OSError, WireError, http.client.HTTPException):
                    await self._give_back(lease, gateway, port)
                continue
            return lease
        return None

    # --- the three

    async def _pcp(self, gateway: str, port: int, held: Lease | None) -> Lease:
        nonce = self._random(portmap.NONCE_SIZE) if held is None else held.nonce
        with self._socket(gateway) as opened:
            request = portmap.pcp_request(opened.getsockname()[0], port, port if held is None else held.endpoint.port, LEASE_S, nonce)
            found = await self._exchange(opened, request, lambda data: portmap.parse_pcp(data, nonce, port))
        if found.endpoint is None:
            raise WireError("no endpoint")
        return Lease("pcp", found.endpoint, found.lifetime_s, nonce)

    async def _pmp(self, gateway: str, port: int, held: Lease | None) -> Lease:
        with self._socket(gateway) as opened:
            address = await self._exchange(opened, portmap.pmp_address_request(), portmap.parse_pmp_address)
            wanted = port if held is None else held.endpoint.port
            found: Mapped = await self._exchange(opened, portmap.pmp_map_request(port, wanted, LEASE_S), lambda data: portmap.parse_pmp_map(data, port))
        return Lease("nat-pmp", Endpoint(address, found.port), found.lifetime_s)

    async def _upnp(self, gateway: str, port: int, held: Lease | None) -> Lease:
        external = port if held is None else held.endpoint.port
        if held is not None and held.service is not None:
            try:
                return await self._order_mapping(held.service, gateway, port, external)
            except (OSError, WireError, http.client.HTTPException) as error:
                log.debug("port_mapping_service_gone error=%s", error)  # a router that was restarted often takes orders at another port
        return await self._order_mapping(await self._find_service(gateway), gateway, port, external)

    async def _order_mapping(self, service: Service, gateway: str, port: int, external: int) -> Lease:
        with self._socket(gateway) as opened:
            client = opened.getsockname()[0]
        address = portmap.parse_address(await self._order(service, *portmap.soap(service, "GetExternalIPAddress", {})))
        lease_s = LEASE_S
        for left in reversed(range(PORTS_TRIED)):
            try:
                await self._order(service, *portmap.add_mapping(service, client, port, external, lease_s))
                break
            except RefusedError as refusal:
                if left == 0 or refusal.fault not in (portmap.PORT_TAKEN, portmap.PERMANENT_ONLY):
                    raise
                if refusal.fault == portmap.PERMANENT_ONLY:
                    lease_s = 0
                else:
                    external = FIRST_PORT + int.from_bytes(self._random(2), "big") % (65_536 - FIRST_PORT)
        return Lease("upnp", Endpoint(address, external), lease_s or LEASE_S, service=service)

    async def _find_service(self, gateway: str) -> Service:
        """Of the first few descriptions that the gateway's answers lead to, the first of any use; else why the last was of none."""
        tried: list[str] = []
        with self._socket(gateway, connect=False) as opened:
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(self._own_address(gateway)))
            while True:
                parse = partial(_another_url, gateway=gateway, tried=tuple(tried))
                url = await self._exchange(opened, portmap.ssdp_search(), parse, to=portmap.SSDP, source=gateway, waits=self._pace.search)
                tried.append(url)
                try:
                    return portmap.parse_description(await self._http("GET", url, {}, b""), url, gateway)
                except (OSError, WireError, http.client.HTTPException) as error:
                    log.debug("port_mapping_description_useless url=%s error=%s", url, error)
                    if len(tried) == ANSWERS_TRIED:
                        raise

    async def _order(self, service: Service, headers: dict[str, str], body: bytes) -> bytes:
        return await self._http("POST", service.control_url, headers, body)

    async def _give_back(self, lease: Lease, gateway: str, port: int) -> None:
        if lease.service is not None:
            await self._order(lease.service, *portmap.delete_mapping(lease.service, lease.endpoint.port))
            return
        with self._socket(gateway) as opened:
            over = lease.protocol == "pcp"
            request = portmap.pcp_request(opened.getsockname()[0], port, 0, 0, lease.nonce) if over else portmap.pmp_map_request(port, 0, 0)
            opened.send(request)

    # --- sockets

    def _socket(self, gateway: str, *, connect: bool = True) -> socket.socket:
        """A UDP socket past the tunnel; connected, it hears the gateway alone, else whoever sends to it."""
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if self._mark:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            if connect:
                opened.connect((gateway, portmap.PORT))
        except BaseException:
            opened.close()
            raise
        return opened

    def _own_address(self, gateway: str) -> str:
        with self._socket(gateway) as opened:
            return str(opened.getsockname()[0])

    async def _exchange(
        self,
        opened: socket.socket,
        request: bytes,
        parse: Callable[[bytes], Found],
        *,
        to: Endpoint | None = None,
        source: str | None = None,
        waits: tuple[float, ...] | None = None,
    ) -> Found:
        """Send (`to`: from a socket that isn't connected) until an answer parses, of the host `source` if that is named; the last refusal, or TimeoutError."""
        refusal: Exception = TimeoutError("no answer")
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(opened.fileno(), arrived.set)
        try:
            for wait in waits or self._pace.tries:
                opened.sendto(request, to) if to is not None else opened.send(request)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        while True:
                            await arrived.wait()
                            arrived.clear()
                            try:
                                data, sender = opened.recvfrom(4096)
                                if source in (None, sender[0]):
                                    return parse(data)
                            except WireError as error:
                                refusal = error
                            except BlockingIOError:
                                continue
        finally:
            loop.remove_reader(opened.fileno())
        raise refusal

    async def _http(self, method: str, url: str, headers: dict[str, str], body: bytes) -> bytes:
        """One request to the router, past the tunnel, bounded in time and size."""
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80)
        async with asyncio.timeout(self._pace.http):
            opened = await self._connected(parts.hostname or "", parts.port or 80)
            try:
                opened.settimeout(self._pace.http)
                connection.sock = opened
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                return await asyncio.to_thread(_exchange_http, connection, method, target, headers, body)
            finally:
                with contextlib.suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)  # a router that drips bytes does not keep the thread
                opened.close()

    async def _connected(self, host: str, port: int) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if self._mark:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            await asyncio.get_running_loop().sock_connect(opened, (host, port))
        except BaseException:
            opened.close()
            raise
        return opened


def _another_url(data: bytes, *, gateway: str, tried: tuple[str, ...]) -> str:
    """The description's URL in an answer to a search, if it was not tried yet."""
    url = portmap.parse_ssdp(data, gateway)
    if url in tried:
        raise WireError("no answer but those that led nowhere")
    return url


def _exchange_http(connection: http.client.HTTPConnection, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
    """In a thread. OSError, HTTPException; RefusedError for another status than 200."""
    connection.request(method, target, body or None, headers)
    answer = connection.getresponse()
    data = answer.read(portmap.MAX_DOCUMENT + 1)
    if answer.status != 200:
        raise RefusedError(f"the router answered {answer.status}", portmap.parse_fault(data))
    return data
