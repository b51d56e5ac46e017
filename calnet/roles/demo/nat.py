"""The kinds of routers between a site and the internet, as nft rulesets, and a prober that shows which kind a router really is.

Terms are RFC 4787's: mapping behaviour (which external endpoint a socket gets) and filtering behaviour (who may send to it). Linux masquerade keeps the
source port while it can, so its mapping is endpoint-independent, and conntrack filters by address and port. An unsolicited packet must be
dropped on its way in: answered by the router itself it would leave a conntrack entry that takes the port from the host behind.
"""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from calnet.roles.demo.namespaces import Namespace


class NatKind(enum.Enum):
    """What stands between a site and the internet."""

    OPEN = "open"
    FULL_CONE = "full-cone"
    RESTRICTED_CONE = "restricted-cone"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"
    BLOCKED_UDP = "blocked-udp"


class Behaviour(enum.Enum):
    """A mapping or filtering behaviour (RFC 4787, 4.1 and 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    NO_UDP = "no-udp"


EXPECTED: Final[dict[NatKind, tuple[Behaviour, Behaviour]]] = {
    NatKind.OPEN: (Behaviour.ENDPOINT_INDEPENDENT, Behaviour.ENDPOINT_INDEPENDENT),
    NatKind.FULL_CONE: (Behaviour.ENDPOINT_INDEPENDENT, Behaviour.ENDPOINT_INDEPENDENT),
    NatKind.RESTRICTED_CONE: (Behaviour.ENDPOINT_INDEPENDENT, Behaviour.ADDRESS_DEPENDENT),
    NatKind.PORT_RESTRICTED: (Behaviour.ENDPOINT_INDEPENDENT, Behaviour.ADDRESS_AND_PORT_DEPENDENT),
    NatKind.SYMMETRIC: (Behaviour.ADDRESS_AND_PORT_DEPENDENT, Behaviour.ADDRESS_AND_PORT_DEPENDENT),
    NatKind.BLOCKED_UDP: (Behaviour.NO_UDP, Behaviour.NO_UDP),
}
"""(mapping, filtering) of each kind."""

_WAN: Final = "wan"
"""The interface towards the internet in every router."""
_MAPPING_TIMEOUT: Final = "120s"
_ANSWER_S: Final = 0.4
"""How long the prober waits for what may never come."""


def ruleset(kind: NatKind) -> str:
    """The nft script of a router of this kind (not for OPEN, which has no router)."""
    tracking = {
        NatKind.FULL_CONE: f'oifname "{_WAN}" update @mapped {{ udp sport : ip saddr }}',
        NatKind.RESTRICTED_CONE: f'oifname "{_WAN}" update @mapped {{ udp sport : ip saddr }} update @contacted {{ ip daddr . udp sport }}',
        NatKind.BLOCKED_UDP: "meta l4proto udp drop",
    }.get(kind, "")
    admission = {
        NatKind.FULL_CONE: f'iifname "{_WAN}" dnat to udp dport map @mapped',
        NatKind.RESTRICTED_CONE: f'iifname "{_WAN}" ip saddr . udp dport @contacted dnat to udp dport map @mapped',
    }.get(kind, "")
    masquerade = "masquerade fully-random" if kind is NatKind.SYMMETRIC else "masquerade"
    return f"""
table ip nat {{
    map mapped {{ type inet_service : ipv4_addr; flags dynamic,timeout; timeout {_MAPPING_TIMEOUT}; }}
    set contacted {{ type ipv4_addr . inet_service; flags dynamic,timeout; timeout {_MAPPING_TIMEOUT}; }}
    chain track {{ type filter hook forward priority 0; {tracking}
    }}
    chain incoming {{ type nat hook prerouting priority -100; {admission}
    }}
    chain outgoing {{ type nat hook postrouting priority 100; oifname "{_WAN}" {masquerade}
    }}
    chain router {{ type filter hook input priority 0; iifname "{_WAN}" ct state new,invalid drop
    }}
}}
table ip6 firewall {{
    chain forwarding {{ type filter hook forward priority 0; policy accept;
        {"meta l4proto udp drop" if kind is NatKind.BLOCKED_UDP else ""}
        iifname "{_WAN}" ct state established,related accept
        iifname "{_WAN}" drop
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the prober saw: the behaviours, and the external endpoint of the probing socket (None without UDP)."""

    mapping: Behaviour
    filtering: Behaviour
    external: tuple[str, int] | None


def probe(client: Namespace, first: tuple[Namespace, str], second: tuple[Namespace, str]) -> Observed:
    """Find the behaviours of what lies before `client` with two public hosts, each given as its namespace and IPv4 address (as RFC 5780 does)."""
    with _sockets(client, first, second) as (inside, first_one, first_two, second_one):
        seen = [_mapped(inside, outside) for outside in (first_one, first_two, second_one)]
        if seen[0] is None:
            return Observed(Behaviour.NO_UDP, Behaviour.NO_UDP, None)
    with _sockets(client, first, second) as (inside, first_one, first_two, second_one):
        external = _mapped(inside, first_one)
        if external is None:
            return Observed(Behaviour.NO_UDP, Behaviour.NO_UDP, None)
        passed = _admitted(inside, external, (first_two, second_one), fence=first_one)
    return Observed(_mapping(seen), _filtering(passed), external)


def _mapping(seen: list[tuple[str, int] | None]) -> Behaviour:
    if seen[0] == seen[1] == seen[2]:
        return Behaviour.ENDPOINT_INDEPENDENT
    return Behaviour.ADDRESS_DEPENDENT if seen[0] == seen[1] else Behaviour.ADDRESS_AND_PORT_DEPENDENT


def _filtering(passed: list[bool]) -> Behaviour:
    other_port, other_address = passed
    if other_address:
        return Behaviour.ENDPOINT_INDEPENDENT
    return Behaviour.ADDRESS_DEPENDENT if other_port else Behaviour.ADDRESS_AND_PORT_DEPENDENT


@contextlib.contextmanager
def _sockets(client: Namespace, first: tuple[Namespace, str], second: tuple[Namespace, str]) -> Iterator[list[socket.socket]]:
    """[client, first host, first host on another port, second host], all bound."""
    with contextlib.ExitStack() as stack:
        made = []
        for namespace, address in ((client, "0.0.0.0"), first, first, second):
            with namespace.inside():
                made.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            made[-1].bind((address, 0))
        yield made


def _mapped(inside: socket.socket, outside: socket.socket) -> tuple[str, int] | None:
    """The endpoint from which `outside` sees a datagram of `inside`; None if none arrives."""
    inside.sendto(b"who am I", outside.getsockname())
    if not select.select([outside], [], [], _ANSWER_S)[0]:
        return None
    host, port = outside.recvfrom(64)[1]
    return host, port


def _admitted(inside: socket.socket, external: tuple[str, int], strangers: tuple[socket.socket, ...], *, fence: socket.socket) -> list[bool]:
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
