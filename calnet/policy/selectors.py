"""The words of policy rules: who (selectors), on what (services), and how they are written. Pure.

A selector's text is one of `*`, a user (`alice@`, or a verified e-mail address), `group:…`, `tag:…`, `autogroup:…`, a name of `hosts`, an address or a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from calnet.model import Address, PortRange, Prefix
from calnet.policy.engine import PolicyNode
from calnet.policy.prefixes import parse_prefix
from calnet.wire.endpoints import overlaps

SOURCES: Final = frozenset(("any", "user", "group", "tag", "prefix", "member", "tagged", "role"))
TARGETS: Final = SOURCES | {"self"}
OWNERS: Final = frozenset(("user", "group", "tag", "member", "role"))
"""What may own a tag, or approve its own routes."""

TESTED: Final = frozenset(("user", "group", "tag", "prefix"))
"""What the tests of a policy may name."""
_INSTEAD: Final[Mapping[frozenset[str], str]] = {
    SOURCES: "it is for destinations",
    OWNERS: "write users, groups, tags, autogroup:member or roles such as autogroup:admin",
    TESTED: "a test names users, groups, tags, hosts or addresses",
}
USER_NAME: Final = re.compile(r"[^\s@:*]+@[^\s@:*]*")
"""`alice@`, or an e-mail address."""

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
USUAL: Final = (ICMP, TCP, UDP, ICMPV6)
"""The protocols of a rule that names none, as in Tailscale."""
WITH_PORTS: Final = (TCP, UDP, 33, 132, 136)
_PROTOCOLS: Final[Mapping[str, tuple[int, ...]]] = {
    "icmp": (ICMP, ICMPV6),
    "tcp": (TCP,),
    "udp": (UDP,),
    "igmp": (2,),
    "ipv4": (4,),
    "ip-in-ip": (4,),
    "egp": (8,),
    "igp": (9,),
    "dccp": (33,),
    "gre": (47,),
    "esp": (50,),
    "ah": (51,),
    "ipv6-icmp": (ICMPV6,),
    "sctp": (132,),
}
PROTOCOL_NAMES: Final[Mapping[int, str]] = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
"""For people; a policy may name more."""
AUTOGROUPS: Final[Mapping[str, tuple[str, str]]] = {
    "member": ("member", ""),
    "members": ("member", ""),
    "tagged": ("tagged", ""),
    "self": ("self", ""),
    "owner": ("role", "owner"),
    "admin": ("role", "admin"),
    "auditor": ("role", "auditor"),
    "danger-all": ("any", ""),
}
_NOT_YET: Final[Mapping[str, str]] = {
    "internet": "Calnet does not have exit nodes yet",
    "nonroot": "Calnet does not have SSH rules",
    "shared": "Calnet does not share nodes between networks",
}


class SelectorError(ValueError):
    """A word that is none; the text says why."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a policy defines: groups' members, hosts' prefixes, tags."""

    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hosts: Mapping[str, Prefix] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Selector:
    """Who is meant. `kind` is one of TARGETS; `names` are user names, the tag, or the role; `prefix` is a prefix selector's."""

    kind: str
    text: str
    names: frozenset[str] = frozenset()
    prefix: Prefix | None = None

    def selects(self, node: PolicyNode) -> bool:
        """Whether the node itself is meant (not what it routes for). `self` selects nobody here: it depends on who asks."""
        match self.kind:
            case "any":
                return True
            case "user" | "group":
                return not node.tagged and any(name.lower() in self.names for name in node.user_names)
            case "tag":
                return not self.names.isdisjoint(node.tags)
            case "member":
                return not node.tagged
            case "tagged":
                return node.tagged
            case "role":
                return not node.tagged and (node.role in self.names)
            case "prefix":
                return any(self.holds(address) for address in node.addresses)
        return False

    def means(self, node: PolicyNode, address: Address | None, *, routed: bool) -> bool:
        """Whether an address is meant: one of the node's own (None: not known), or (`routed`) one that the node routes for. `self` is as in `selects`."""
        if routed or self.kind == "prefix":
            return address is not None and self.holds(address)
        return self.selects(node)

    def holds(self, address: Address) -> bool:
        """Whether an address that is no node's (behind a router, say) is meant."""
        return self.kind == "any" or (self.prefix is not None and address.version == self.prefix.version and address in self.prefix)

    def part_of(self, route: Prefix) -> Prefix | None:
        """What of a route is meant: all of it, the part that the selector's prefix is, or None."""
        if self.kind == "any":
            return route
        if self.prefix is None or self.prefix.version != route.version or not overlaps(self.prefix, route):
            return None
        return route if self.prefix.prefixlen <= route.prefixlen else self.prefix


@dataclass(frozen=True, slots=True)
class Service:
    """IP protocols (none: any) and destination ports (none: any, and protocols without ports)."""

    protocols: tuple[int, ...] = ()
    ports: tuple[PortRange, ...] = ()

    def accepts(self, protocol: int, port: int | None) -> bool:
        """`port` is None for a protocol without."""
        if self.protocols and protocol not in self.protocols:
            return False
        return not self.ports or (port is not None and any(ports.first <= port <= ports.last for ports in self.ports))


@dataclass(frozen=True, slots=True)
class Target:
    """A destination, and what of it may be reached."""

    selector: Selector
    services: tuple[Service, ...]


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """A test of the policy's own: from `source`, each of `accept` (name, port) can be reached and none of `deny`. `protocol` None is TCP."""

    line: int
    source: str
    protocol: int | None
    accept: tuple[tuple[str, int], ...]
    deny: tuple[tuple[str, int], ...]


def parse_selector(text: str, names: Names, kinds: frozenset[str]) -> Selector:
    """The selector, of one of `kinds`; SelectorError."""
    selector = _selector(text, names)
    if selector.kind not in kinds:
        raise SelectorError(f"{text!r} can't stand here: {_INSTEAD[kinds]}")
    return selector


def _selector(text: str, names: Names) -> Selector:
    if text == "*":
        return Selector("any", text)
    if text.startswith("group:"):
        if text not in names.groups:
            raise SelectorError(f"there is no {text} in groups")
        return Selector("group", text, frozenset(names.groups[text]))
    if text.startswith("tag:"):
        if text not in names.tags:
            raise SelectorError(f"there is no {text} in tagOwners")
        return Selector("tag", text, frozenset((text,)))
    if text.startswith("autogroup:"):
        return _autogroup(text)
    if "@" in text:
        if not USER_NAME.fullmatch(text):
            raise SelectorError(f"{text!r} is no user: write alice@, or an e-mail address")
        return Selector("user", text, frozenset((text.lower(),)))
    if text in names.hosts:
        return Selector("prefix", text, prefix=names.hosts[text])
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return Selector("prefix", text, prefix=parse_prefix(bare))
    except ValueError as error:
        if any(mark in bare for mark in ":/%"):
            raise SelectorError(str(error)) from error
        raise SelectorError(f"{text!r} is no host, address, prefix, user, group or tag of this policy") from error


def _autogroup(text: str) -> Selector:
    name = text.removeprefix("autogroup:")
    if name in _NOT_YET:
        raise SelectorError(f"{text} is not supported: {_NOT_YET[name]}")
    if name not in AUTOGROUPS:
        raise SelectorError(f"there is no {text}; there are {', '.join(sorted(f'autogroup:{known}' for known in AUTOGROUPS))}")
    kind, role = AUTOGROUPS[name]
    return Selector(kind, text, frozenset((role,)) if role else frozenset())


def split_target(text: str) -> tuple[str, str]:
    """`NAME:PORTS` → (name, ports); SelectorError where the ports are missing."""
    name, colon, ports = text.rpartition(":")
    if not colon or not name or name in ("tag", "group", "autogroup"):
        raise SelectorError(f"{text!r} needs ports: write {text}:443, or {text}:* for all")
    return name, ports


def parse_ports(text: str) -> tuple[PortRange, ...]:
    """`*`, `443`, `80,443`, `8000-8999`; empty for all."""
    if text == "*":
        return ()
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        numbers = (first, last if dash else first)
        if not all(_is_number(number, 65_535) for number in numbers) or int(numbers[0]) > int(numbers[1]):
            raise SelectorError(f"{part!r} is no port or range of ports (0 to 65535)")
        found.append(PortRange(int(numbers[0]), int(numbers[1])))
    return tuple(found)


def _is_number(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(most)) and int(text) <= most


def parse_protocols(text: str) -> tuple[int, ...]:
    """A protocol's name, or its number; empty for `*`."""
    if text == "*":
        return ()
    if _is_number(text, 255):
        return (int(text),)
    if text.lower() not in _PROTOCOLS:
        raise SelectorError(f"{text!r} is no protocol: write tcp, udp, icmp, … or a number up to 255")
    return _PROTOCOLS[text.lower()]


def services_of(protocols: tuple[int, ...], ports: tuple[PortRange, ...]) -> tuple[Service, ...]:
    """What a rule's protocols and ports let through. Where it names no protocol: TCP and UDP on the ports, and ICMP, without which no connection works well."""
    if not protocols:
        return (Service(USUAL),) if not ports else (Service((TCP, UDP), ports), Service((ICMP, ICMPV6)))
    if ports and not set(protocols) & set(WITH_PORTS):
        raise SelectorError("a protocol without ports needs * for its ports")
    return (Service(protocols, ports),)


def parse_capability(text: str) -> tuple[Service, ...]:
    """A grant's `ip`: `*` or `*:*` (everything), `443`, `tcp:443`, `udp:*`, `icmp:*`."""
    if text in ("*", "*:*"):
        return (Service(),)
    name, colon, ports = text.rpartition(":")
    if not colon and not text[:1].isdigit():
        raise SelectorError(f"{text!r} needs ports: write {text}:443, or {text}:* for all")
    return services_of(parse_protocols(name) if colon else (), parse_ports(ports))
