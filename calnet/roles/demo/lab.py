"""A small internet in network namespaces: a core router, public hosts, and sites behind routers of chosen kinds.

Public addresses come from the documentation ranges (RFC 5737, RFC 3849) and never leave the namespaces. Use it as a context manager: everything is undone in
reverse order on the way out, whatever happened, and the next start sweeps away what a killed one left.

    with Lab() as lab:
        server = lab.public_host("server")
        home = lab.site("home", NatKind.PORT_RESTRICTED)
        home.verify()
        home.host.run("ping", "-c1", server.ipv4)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Final

from calnet.errors import HostError, InvalidError
from calnet.roles.demo import latency, nat, prober
from calnet.roles.demo.namespaces import NAME_PREFIX, Namespace, lab_directory, run_command, sweep
from calnet.roles.demo.nat import NatKind, Traits
from calnet.roles.demo.prober import Observed, Vantage

_LINKS: Final = 62
"""Uplinks that fit in the documentation range, as /30 networks."""
_SECOND_PUBLIC: Final = ("203.0.113.1", "2001:db8:0:ffff::1")
"""The core router's own addresses: the second public host that a NAT prober needs."""

_FAR_APART: Final = """
table inet internet { chain forwarding { type filter hook forward priority -10; policy accept; ip ttl < 8 drop; ip6 hoplimit < 8 drop; }
}
"""
"""The one core router stands for many: a packet with few hops left gets no further."""
_BACKLOG: Final = 1024
_FIRST_CUSTOMER_LAN: Final = 100

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of the lab, with its underlay addresses, at most one of each version."""

    namespace: Namespace
    addresses: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.namespace.name.rsplit("-", 1)[1]

    @property
    def ipv4(self) -> str:
        """HostError where it has none."""
        return _ipv4_of(self.addresses, self.name)

    @property
    def ipv6(self) -> str | None:
        return next((address for address in self.addresses if ":" in address), None)


def _ipv4_of(addresses: Sequence[str], name: str) -> str:
    for address in addresses:
        if ":" not in address:
            return address
    raise HostError(f"{name} has no IPv4 address")


@dataclass
class Site:
    """Hosts behind one router (or, OPEN, one host on a public address)."""

    lab: Lab
    kind: NatKind
    hosts: tuple[Host, ...]
    router: Namespace | None
    networks: tuple[str, ...]
    """What others see of it: its public IPv4 address, and its IPv6 network or address, where it has them."""
    seen: Mapping[int, Traits] = field(default_factory=dict)
    """By IP version what `verify` saw."""

    @property
    def host(self) -> Host:
        return self.hosts[0]

    @property
    def public_ipv4(self) -> str:
        """HostError where it has none."""
        return _ipv4_of(self.networks, self.host.name)

    def verify(self) -> Observed:
        """Prove that what stands before the site is of its kind, for each IP version it has; HostError if it isn't. What was seen of IPv4, if it has that."""
        found: dict[int, Observed] = {}
        for version in sorted(6 if ":" in address else 4 for address in self.host.addresses):
            expected = nat.EXPECTED[self.kind] if version == 4 else nat.expected_ipv6(self.kind)
            found[version] = prober.probe(self.host.namespace, self.lab.prober, self.lab.second_vantage, version)
            if found[version].traits != expected:
                raise HostError(f"the lab's {self.kind.value} site behaves otherwise (IPv{version}): {found[version].traits}")
        self.seen = {version: observed.traits for version, observed in found.items()}
        return found[min(found)]


@dataclass
class Carrier:
    """A carrier's NAT, whose customers' routers have addresses from 100.64.0.0/10."""

    router: Namespace
    public_ipv4: str
    network: IPv4Network
    customers: int = 0


@dataclass
class Lab:
    """The internet and all that hangs on it."""

    directory: Path = field(default_factory=lab_directory)
    _namespaces: list[Namespace] = field(default_factory=list)
    _links: int = 0
    _customers: int = 0
    _prober: Vantage | None = None
    _web: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Lab:
        sweep()
        try:
            self.core = self.namespace("internet")
            self.core.sysctl("net/ipv4/ip_forward", "1")
            self.core.sysctl("net/ipv6/conf/all/forwarding", "1")
            self.core.ip(f"address add {_SECOND_PUBLIC[0]}/32 dev lo\naddress add {_SECOND_PUBLIC[1]}/128 dev lo nodad")
            self.core.nft(_FAR_APART)
            self._web = [self._listen(address, nat.HTTP_PORTS[-1]) for address in _SECOND_PUBLIC]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Undo everything, newest first; a second Ctrl-C doesn't interrupt it."""
        with _undisturbed():
            while self._web:
                self._web.pop().close()
            while self._namespaces:
                self._namespaces.pop().close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def namespace(self, name: str) -> Namespace:
        """A new, empty namespace that belongs to the lab. `name`: lower-case letters and digits."""
        if not name.isalnum():
            raise InvalidError(f"not a name for a namespace: {name!r}")
        namespace = Namespace(f"{NAME_PREFIX}{os.getpid()}-{self.directory.name.rsplit('-', 1)[1]}-{name}", self.directory)
        self._namespaces.append(namespace)
        namespace.create()
        return namespace

    def _listen(self, address: str, port: int) -> socket.socket:
        """What a web server needs to be found by the NAT prober: connections are made, and nobody takes them."""
        with self.core.inside():
            listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
        return listener

    @property
    def prober(self) -> Vantage:
        """A public host for the NAT prober: the first that was made, or one made for it."""
        if self._prober is None:
            self.public_host("prober")
            return self.prober
        return self._prober

    @property
    def second_vantage(self) -> Vantage:
        """The other public host that the NAT prober needs."""
        return Vantage(self.core, *_SECOND_PUBLIC)

    def public_host(self, name: str, *, ipv6: bool = True) -> Host:
        """A host with a public address."""
        namespace = self.namespace(name)
        addresses = self._uplink(namespace, ipv4=True, ipv6=ipv6)
        if self._prober is None and ipv6:
            self._prober = Vantage(namespace, *addresses)
        return Host(namespace, addresses)

    def site(self, name: str, kind: NatKind, *, ipv6: bool = False, hosts: Sequence[str] = (), lan: int | None = None, carrier: Carrier | None = None) -> Site:
        """A site of one or more hosts (by default one, of the site's name) on 192.168.LAN.0/24; with `ipv6` also on 2001:db8:UPLINK::/48.

        LAN is by default the number of the site's uplink, from 101 on for customers of carriers. An OPEN site has one host, with public addresses; a FIREWALL
        site one on 203.0.113.0/24; an IPV6_ONLY site has no IPv4. A CGNAT site is a customer of `carrier`, by default one of its own, and has no IPv6.
        """
        names = tuple(hosts) or (name,)
        if len(names) > 1 and kind in (NatKind.OPEN, NatKind.FIREWALL):
            raise InvalidError(f"a site of the kind {kind.value} has one host")
        if kind is NatKind.OPEN:
            host = self.public_host(names[0], ipv6=ipv6)
            return Site(self, kind, (host,), None, host.addresses)
        router = self.namespace(f"{name}router")
        if kind is NatKind.CGNAT:
            if ipv6:
                raise InvalidError("a site of the kind cgnat has no IPv6 here")
            carrier = carrier or self.carrier(f"{name}carrier")
            outside: tuple[str, ...] = (carrier.public_ipv4,)
            self._connect_customer(carrier, router)
        else:
            outside = self._uplink(router, ipv4=kind is not NatKind.IPV6_ONLY, ipv6=ipv6 or kind is NatKind.IPV6_ONLY)
        if lan is None:
            lan = _FIRST_CUSTOMER_LAN + self._customers if kind is NatKind.CGNAT else self._links
        networks = self._inner_networks(kind, lan, outside)
        self._make_router(router, kind, outside[0], networks)
        made = tuple(self._inside_host(router, one, networks, number) for number, one in enumerate(names, start=2))
        if kind is NatKind.FIREWALL:
            outside = made[0].addresses
        return Site(self, kind, made, router, tuple(f"2001:db8:{self._links:x}::/48" if ":" in address else address for address in outside))

    def carrier(self, name: str, kind: NatKind = NatKind.PORT_RESTRICTED) -> Carrier:
        """A carrier whose NAT is of this kind, for the `site`s that are its customers."""
        router = self.namespace(name)
        (public,) = self._uplink(router, ipv4=True, ipv6=False)
        made = Carrier(router, public, IPv4Network(f"100.64.{self._links}.0/24"))
        self._make_router(router, kind, public, [made.network])
        return made

    def _connect_customer(self, carrier: Carrier, router: Namespace) -> None:
        carrier.customers += 1
        self._customers += 1
        number = carrier.customers + 1
        self._plug(carrier.router, number, router, "wan", [carrier.network])

    def _uplink(self, namespace: Namespace, *, ipv4: bool, ipv6: bool) -> tuple[str, ...]:
        """Connect `namespace` to the core by its interface `wan`; returns its public addresses, IPv4 first."""
        self._links += 1
        link = self._links
        if link > _LINKS:
            raise HostError(f"the lab has room for {_LINKS} uplinks")
        run_command("ip", "link", "add", f"link{link}", "netns", self.core.name, "type", "veth", "peer", "name", "wan", "netns", namespace.name)
        networks: list[Network] = [IPv4Network(f"198.51.100.{4 * link}/30")] if ipv4 else []
        networks += [IPv6Network(f"2001:db8:0:{link:x}::/64")] if ipv6 else []
        self.core.ip("\n".join([f"link set link{link} up", *(_address(network, 1, f"link{link}") for network in networks)]))
        return self._configure(namespace, "wan", networks, 2)

    def _inner_networks(self, kind: NatKind, lan: int, outside: Sequence[str]) -> list[Network]:
        """The networks behind the router of the last uplink; the core knows the way to public ones."""
        link = self._links
        networks: list[Network] = []
        for address in outside:
            if ":" in address:
                networks.append(IPv6Network(f"2001:db8:{link:x}::/64"))
                self.core.ip(f"route add 2001:db8:{link:x}::/48 via {address}")
            elif kind is NatKind.FIREWALL:
                networks.append(IPv4Network(f"203.0.113.{4 * link}/30"))
                self.core.ip(f"route add {networks[-1]} via {address}")
            else:
                networks.append(IPv4Network(f"192.168.{lan}.0/24"))
        return networks

    def _make_router(self, router: Namespace, kind: NatKind, public: str, networks: Sequence[Network]) -> None:
        router.sysctl("net/ipv4/ip_forward", "1")
        router.sysctl("net/ipv6/conf/all/forwarding", "1")
        router.sysctl("net/bridge/bridge-nf-call-iptables", "0", optional=True)  # else br_netfilter bridges what comes back to the port it came from: nowhere
        router.ip("\n".join(["link add lan type bridge", "link set lan up", *(_address(network, 1, "lan") for network in networks)]))
        router.nft(nat.ruleset(kind, public))

    def _inside_host(self, router: Namespace, name: str, networks: Sequence[Network], number: int) -> Host:
        namespace = self.namespace(name)
        return Host(namespace, self._plug(router, number, namespace, "eth0", networks))

    def _plug(self, router: Namespace, number: int, namespace: Namespace, interface: str, networks: Sequence[Network]) -> tuple[str, ...]:
        """Connect `namespace` to the LAN of `router`, as number `number` of its networks; returns its addresses."""
        run_command("ip", "link", "add", f"port{number}", "netns", router.name, "type", "veth", "peer", "name", interface, "netns", namespace.name)
        router.ip(f"link set port{number} master lan\nlink set port{number} up")
        return self._configure(namespace, interface, networks, number)

    def _configure(self, namespace: Namespace, interface: str, networks: Sequence[Network], number: int) -> tuple[str, ...]:
        lines = [f"link set {interface} up"]
        for network in networks:
            lines += [_address(network, number, interface), f"route add default via {network[1]}"]
        namespace.ip("\n".join(lines))
        return tuple(str(network[number]) for network in networks)

    def attach_lan(self, gateway: Host, name: str, lan: int) -> Host:
        """A further host `name` on a network of its own, 192.168.LAN.0/24, behind `gateway` (its interface there: `lanLAN`). It knows no other route."""
        namespace = self.namespace(name)
        run_command("ip", "link", "add", f"lan{lan}", "netns", gateway.namespace.name, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        gateway.namespace.ip(f"address add 192.168.{lan}.1/24 dev lan{lan}\nlink set lan{lan} up")
        namespace.ip(f"address add 192.168.{lan}.2/24 dev eth0\nlink set eth0 up")
        return Host(namespace, (f"192.168.{lan}.2",))

    def delay(self, seconds: float) -> None:
        """Whatever crosses the internet takes `seconds` longer from now on, each way."""
        latency.delay_forwarded(self.core, seconds)

    def lose(self, share: float) -> None:
        """The internet loses this share (0 to 1) of all packets from now on, drawn at random."""
        self.core.nft(
            "table inet lossy { }\ndelete table inet lossy\ntable inet lossy { chain forwarding { type filter hook forward priority -5; "
            f"oifname != {latency.INTERFACE} numgen random mod 1000 < {round(share * 1000)} drop;\n}}\n}}"
        )

    def cut_udp(self, one: Site, other: Site) -> None:
        """The internet loses every UDP packet between two sites from now on; their other traffic passes."""
        rules = [
            f"{'ip6' if ':' in a else 'ip'} saddr {a} {'ip6' if ':' in b else 'ip'} daddr {b} meta l4proto udp drop"
            for first, second in ((one, other), (other, one))
            for a in first.networks
            for b in second.networks
            if (":" in a) == (":" in b)
        ]
        self.heal_udp()
        self.core.nft("table inet cut { chain forwarding { type filter hook forward priority 0; policy accept;\n" + "\n".join(rules) + "\n}\n}")

    def heal_udp(self) -> None:
        """Undo `cut_udp`."""
        self.core.run("nft", "delete", "table", "inet", "cut", check=False)


def _address(network: Network, number: int, interface: str) -> str:
    """The `ip` command that gives an interface the address of this number in a network."""
    return f"address add {network[number]}/{network.prefixlen} dev {interface}{' nodad' if network.version == 6 else ''}"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the end (in the main thread; elsewhere they don't arrive)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    before = {number: signal.signal(number, lambda got, _frame: pending.append(got)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
