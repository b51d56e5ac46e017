"""The kinds of sites: what stands between their hosts and the internet as nft rulesets, how each behaves, and which two of them can meet.

Terms are RFC 4787's: mapping behaviour (which external endpoint a socket gets) and filtering behaviour (who may send to it). Linux masquerade keeps the
source port while it can, so its mapping is endpoint-independent, and conntrack filters by address and port. An unsolicited packet that the router itself
takes in leaves a conntrack entry, which takes the port from the host behind: what that host then sends to the same sender leaves from another port. A plain
Linux router does so (LINUX), one that drops such packets on their way in does not (PORT_RESTRICTED).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class NatKind(enum.Enum):
    """What stands between a site and the internet."""

    OPEN = "open"
    FULL_CONE = "full-cone"
    RESTRICTED_CONE = "restricted-cone"
    PORT_RESTRICTED = "port-restricted"
    LINUX = "linux"
    """As a Linux router masquerades with nothing else set up."""
    SYMMETRIC = "symmetric"
    HAIRPIN = "hairpin"
    """A full cone whose hosts reach each other by their external endpoints (RFC 4787 section 6)."""
    CGNAT = "cgnat"
    """A port-restricted router behind a carrier's, with an address from 100.64.0.0/10 (RFC 6598) between them."""
    FIREWALL = "firewall"
    """A public address, and answers alone are let in."""
    BLOCKED_UDP = "blocked-udp"
    HTTP_ONLY = "http-only"
    """TCP to HTTP_PORTS alone gets out."""
    IPV6_ONLY = "ipv6-only"
    """IPv6 behind a firewall, and no IPv4 at all."""


class Behaviour(enum.Enum):
    """A mapping or filtering behaviour (RFC 4787, 4.1 and 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    NO_UDP = "no-udp"


@dataclass(frozen=True, slots=True)
class Traits:
    """How what stands before a host behaves, for one IP version.

    `levels` are the routers on the way out with addresses of nobody's outside (RFC 1918, RFC 6598); `hairpin`: sockets behind it reach each other by their
    external endpoints; `clashes`: an unsolicited packet takes the port from the host behind, towards its sender; `web`, `tcp`: TCP gets out to the last of
    HTTP_PORTS, to others; `ipv4`: there is a way out by IPv4, whichever version the rest is about.
    """

    mapping: Behaviour
    filtering: Behaviour
    levels: int = 1
    hairpin: bool = False
    clashes: bool = False
    web: bool = True
    tcp: bool = True
    ipv4: bool = True


_EI, _AD, _APD = Behaviour.ENDPOINT_INDEPENDENT, Behaviour.ADDRESS_DEPENDENT, Behaviour.ADDRESS_AND_PORT_DEPENDENT
_NO_UDP = Behaviour.NO_UDP

EXPECTED: Final[dict[NatKind, Traits]] = {
    NatKind.OPEN: Traits(_EI, _EI, levels=0),
    NatKind.FULL_CONE: Traits(_EI, _EI),
    NatKind.RESTRICTED_CONE: Traits(_EI, _AD),
    NatKind.PORT_RESTRICTED: Traits(_EI, _APD),
    NatKind.LINUX: Traits(_EI, _APD, clashes=True),
    NatKind.SYMMETRIC: Traits(_APD, _APD),
    NatKind.HAIRPIN: Traits(_EI, _EI, hairpin=True),
    NatKind.CGNAT: Traits(_EI, _APD, levels=2),
    NatKind.FIREWALL: Traits(_EI, _APD, levels=0),
    NatKind.BLOCKED_UDP: Traits(_NO_UDP, _NO_UDP),
    NatKind.HTTP_ONLY: Traits(_NO_UDP, _NO_UDP, tcp=False),
    NatKind.IPV6_ONLY: Traits(_EI, _APD, levels=0, ipv4=False),
}
"""Of the IP version that each kind is about: IPv6 for IPV6_ONLY, else IPv4."""

HTTP_PORTS: Final = (80, 443, 8080)
"""The last one is where Calnet's server listens by default."""

_WAN: Final = "wan"
"""The interface towards the internet in every router."""
_MAPPING_TIMEOUT: Final = "120s"


def expected_ipv6(kind: NatKind) -> Traits:
    """Of a site of this kind that has IPv6: nothing is translated there, and answers alone are let in."""
    if kind in (NatKind.OPEN, NatKind.IPV6_ONLY):
        return EXPECTED[kind]
    known = EXPECTED[kind]
    if known.mapping is _NO_UDP:
        return Traits(_NO_UDP, _NO_UDP, levels=0, tcp=known.tcp)
    return EXPECTED[NatKind.FIREWALL]


class Meeting(enum.Enum):
    """How two sites get a direct path."""

    PUNCHING = "punching"
    """Both send to what servers saw of the other."""
    GUESSING = "guessing"
    """One side's port is not to be known, and found by trying many."""
    NONE = "none"


def meeting(one: Mapping[int, Traits], other: Mapping[int, Traits]) -> Meeting:
    """How two sites can meet, each given as its traits by IP version (4, 6): the easiest way over a version that both have."""
    ways = {_meeting(one[version], other[version]) for version in one.keys() & other.keys()}
    return next((way for way in (Meeting.PUNCHING, Meeting.GUESSING) if way in ways), Meeting.NONE)


def _meeting(one: Traits, other: Traits) -> Meeting:
    mappings = (one.mapping, other.mapping)
    if _NO_UDP in mappings:
        return Meeting.NONE
    if _reaches(one, other) or _reaches(other, one):
        return Meeting.PUNCHING
    return Meeting.GUESSING if _EI in mappings else Meeting.NONE


def _reaches(one: Traits, other: Traits) -> bool:
    """Whether what `one` sends to the endpoint that servers saw of `other` gets there, once that has sent to the endpoint that they saw of `one`."""
    return other.mapping is _EI and (one.mapping is _EI or other.filtering is not _APD)


def ruleset(kind: NatKind, public: str | None) -> str:
    """The nft script of a router of this kind with this public IPv4 address (not for OPEN, which has no router)."""
    if kind is NatKind.CGNAT:
        kind = NatKind.PORT_RESTRICTED
    ipv4 = "" if kind is NatKind.IPV6_ONLY else _firewall("ip", kind) if kind is NatKind.FIREWALL else _nat(kind, public)
    return ipv4 + _firewall("ip6", kind)


def _nat(kind: NatKind, public: str | None) -> str:
    mapped, contacted = "update @mapped { udp sport : ip saddr }", "update @contacted { ip daddr . udp sport }"
    known, allowed = "dnat to udp dport map @mapped", "ip saddr . udp dport @contacted"
    tracking = {
        NatKind.FULL_CONE: f'oifname "{_WAN}" {mapped}',
        NatKind.HAIRPIN: f'oifname "{_WAN}" {mapped}',
        NatKind.RESTRICTED_CONE: f'oifname "{_WAN}" {mapped} {contacted}',
    }.get(kind, _outward(kind))
    admission = {
        NatKind.FULL_CONE: f'iifname "{_WAN}" {known}',
        NatKind.HAIRPIN: f"ip daddr {public} {known}",
        NatKind.RESTRICTED_CONE: f'iifname "{_WAN}" {allowed} {known}',
    }.get(kind, "")
    hairpin = f'iifname != "{_WAN}" oifname != "{_WAN}" ct status dnat snat to {public}' if kind is NatKind.HAIRPIN else ""
    masquerade = "masquerade fully-random" if kind is NatKind.SYMMETRIC else "masquerade"
    closed = "" if kind is NatKind.LINUX else f'iifname "{_WAN}" ct state new,invalid drop'
    return f"""
table ip nat {{
    map mapped {{ type inet_service : ipv4_addr; flags dynamic,timeout; timeout {_MAPPING_TIMEOUT}; }}
    set contacted {{ type ipv4_addr . inet_service; flags dynamic,timeout; timeout {_MAPPING_TIMEOUT}; }}
    chain track {{ type filter hook forward priority 0; {tracking}
    }}
    chain incoming {{ type nat hook prerouting priority -100; {admission}
    }}
    chain outgoing {{ type nat hook postrouting priority 100; oifname "{_WAN}" {masquerade}
        {hairpin}
    }}
    chain router {{ type filter hook input priority 0; {closed}
    }}
}}
"""


def _firewall(family: str, kind: NatKind) -> str:
    """Answers alone are let in. `family` is nft's: ip or ip6."""
    return f"""
table {family} firewall {{
    chain forwarding {{ type filter hook forward priority 0; policy accept;
        {_outward(kind)}
        iifname "{_WAN}" ct state established,related accept
        iifname "{_WAN}" drop
    }}
}}
"""


def _outward(kind: NatKind) -> str:
    """What does not get out."""
    match kind:
        case NatKind.BLOCKED_UDP:
            return "meta l4proto udp drop"
        case NatKind.HTTP_ONLY:
            return f'oifname "{_WAN}" tcp dport != {{ {", ".join(map(str, HTTP_PORTS))} }} drop; oifname "{_WAN}" meta l4proto != tcp drop'
        case _:
            return ""
