"""Which kind of NAT or firewall stands before a host, found out as RFC 5780 does, and beyond: levels, hairpinning, clashes, TCP.

It uses nothing of Calnet's: sockets inside the namespaces of the host and of two public hosts, so that the lab proves itself before it judges the product.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from calnet.errors import HostError
from calnet.model import Endpoint
from calnet.roles.demo.namespaces import Namespace
from calnet.roles.demo.nat import HTTP_PORTS, Behaviour, Traits
from calnet.wire.endpoints import is_private

_ANSWER_S: Final = 0.4
"""How long the prober waits for what may never come."""
_SETTLED_S: Final = 2.5
"""And for the first that passes a site's links: the kernel may take a second to call them ready, and loses what it is given before."""
_MAX_LEVELS: Final = 5
_IP_RECVERR: Final = 11
_OFFENDER: Final = slice(20, 24)
"""The IPv4 address after struct sock_extended_err (linux/errqueue.h): of the router that sent the ICMP message."""

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Vantage:
    """A public host that the prober looks from."""

    namespace: Namespace
    ipv4: str
    ipv6: str

    def address(self, version: int) -> str:
        return self.ipv6 if version == 6 else self.ipv4


@dataclass(frozen=True, slots=True)
class Observed:
    """What the prober saw: the traits, and the external endpoint of the probing socket (None without UDP)."""

    traits: Traits
    external: Address | None


def probe(client: Namespace, first: Vantage, second: Vantage, version: int = 4) -> Observed:
    """Find the traits of what lies before `client`, for one IP version. `second` has a web server, at the last of HTTP_PORTS."""
    web, tcp = _connects(client, (second.address(version), HTTP_PORTS[-1])), _tcp_passes(client, second, version)
    ipv4 = _source_address(client, second.ipv4) is not None
    levels = _levels(client, second) if ipv4 and version == 4 else 0
    with _sockets(client, first, second, version) as (inside, first_one, first_two, second_one):
        external = _mapped(inside, first_one)
        if external is None:
            return Observed(Traits(Behaviour.NO_UDP, Behaviour.NO_UDP, levels, web=web, tcp=tcp, ipv4=ipv4), None)
        mapping = _mapping([external, _mapped(inside, first_two), _mapped(inside, second_one)])
    with _sockets(client, first, second, version) as (inside, first_one, first_two, second_one):
        external = _mapped(inside, first_one)
        if external is None:
            raise HostError("UDP got out, and then not any more")
        filtering = _filtering(_admitted(inside, external, (first_two, second_one), fence=first_one))
        clashes = mapping is Behaviour.ENDPOINT_INDEPENDENT and _mapped(inside, second_one) != external
        hairpin = external[0] != _source_address(client, second.address(version)) and _hairpins(client, external, inside)
    return Observed(Traits(mapping, filtering, levels, hairpin, clashes, web, tcp, ipv4), external)


def _mapping(seen: list[Address | None]) -> Behaviour:
    if seen[0] == seen[1] == seen[2]:
        return Behaviour.ENDPOINT_INDEPENDENT
    return Behaviour.ADDRESS_DEPENDENT if seen[0] == seen[1] else Behaviour.ADDRESS_AND_PORT_DEPENDENT


def _filtering(passed: list[bool]) -> Behaviour:
    other_port, other_address = passed
    if other_address:
        return Behaviour.ENDPOINT_INDEPENDENT
    return Behaviour.ADDRESS_DEPENDENT if other_port else Behaviour.ADDRESS_AND_PORT_DEPENDENT


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET6 if version == 6 else socket.AF_INET


@contextlib.contextmanager
def _sockets(client: Namespace, first: Vantage, second: Vantage, version: int) -> Iterator[list[socket.socket]]:
    """UDP: [client, first host, first host on another port, second host], all bound."""
    with contextlib.ExitStack() as stack:
        made = []
        places = (client, ""), *((host.namespace, host.address(version)) for host in (first, first, second))
        for namespace, address in places:
            with namespace.inside():
                made.append(stack.enter_context(socket.socket(_family(version), socket.SOCK_DGRAM)))
            made[-1].bind((address, 0))
        yield made


def _mapped(inside: socket.socket, outside: socket.socket) -> Address | None:
    """The endpoint from which `outside` sees a datagram of `inside`; None if none arrives."""
    inside.sendto(b"who am I", outside.getsockname()[:2])
    if not select.select([outside], [], [], _ANSWER_S)[0]:
        return None
    host, port = outside.recvfrom(64)[1][:2]
    return host, port


def _admitted(inside: socket.socket, external: Address, strangers: tuple[socket.socket, ...], *, fence: socket.socket) -> list[bool]:
    """Which of `strangers` reach `inside` through `external`. A datagram that is sure to pass is sent last and waited for."""
    for sender in (*strangers, fence):
        sender.sendto(b"hello", external)
    wanted, came = fence.getsockname(), set()
    deadline = time.monotonic() + _ANSWER_S
    while (wait := deadline - time.monotonic()) > 0 and select.select([inside], [], [], wait)[0]:
        source = inside.recvfrom(64)[1]
        came.add(source)
        if source == wanted:
            deadline = min(deadline, time.monotonic() + _ANSWER_S / 4)
    return [stranger.getsockname() in came for stranger in strangers]


def _hairpins(client: Namespace, external: Address, inside: socket.socket) -> bool:
    """Whether another socket of the client reaches `inside` by its external endpoint, and is seen there by its own."""
    with client.inside():
        other = socket.socket(inside.family, socket.SOCK_DGRAM)
    with other:
        other.sendto(b"neighbour", external)
        if not select.select([inside], [], [], _ANSWER_S)[0]:
            return False
        return bool(inside.recvfrom(64)[1][0] == external[0])


def _levels(client: Namespace, target: Vantage) -> int:
    """How many routers on the way out have addresses of nobody's outside: each names itself when a packet's time to live ends there (IPv4)."""
    with client.inside():
        probing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with probing:
        probing.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        for hops in range(1, _MAX_LEVELS + 1):
            probing.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
            router = _router_at_the_end(probing, (target.ipv4, 33434))
            if router is None or not is_private(Endpoint(router, 33434)):
                return hops - 1
    return _MAX_LEVELS


def _router_at_the_end(probing: socket.socket, target: Address) -> str | None:
    """Who says that a datagram to `target` ended with it; None if nobody says so."""
    probing.sendto(b"how far", target)
    if not select.select([probing], [], [], _ANSWER_S)[0]:
        return None
    for level, kind, value in probing.recvmsg(64, 256, socket.MSG_ERRQUEUE)[1]:
        if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR):
            return str(ip_address(value[_OFFENDER]))
    return None


def _tcp_passes(client: Namespace, target: Vantage, version: int) -> bool:
    """Whether a TCP connection to some port that is none of HTTP_PORTS gets out."""
    with target.namespace.inside():
        listener = socket.socket(_family(version), socket.SOCK_STREAM)
    with listener:
        listener.bind((target.address(version), 0))
        listener.listen()
        return _connects(client, listener.getsockname()[:2])


def _connects(client: Namespace, target: Address) -> bool:
    with client.inside():
        connecting = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_STREAM)
    with connecting:
        connecting.setblocking(False)
        if connecting.connect_ex(target) not in (0, errno.EINPROGRESS) or not select.select([], [connecting], [], _SETTLED_S)[1]:
            return False
        return connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def _source_address(client: Namespace, target: str) -> str | None:
    """The client's own address towards `target`; None where it knows no way there."""
    with client.inside():
        asking = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        if asking.connect_ex((target, 33434)) != 0:
            return None
        return str(asking.getsockname()[0])
