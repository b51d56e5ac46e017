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
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from calnet.errors import HostError, InvalidError
from calnet.roles.demo import nat
from calnet.roles.demo.namespaces import NAME_PREFIX, Namespace, lab_directory, run_command, sweep
from calnet.roles.demo.nat import NatKind

_LINKS: Final = 62
"""Uplinks that fit in the documentation range, as /30 networks."""
_SECOND_PUBLIC: Final = "203.0.113.1"
"""The core router's own address: the second public host that a NAT prober needs."""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of the lab, with its underlay addresses."""

    namespace: Namespace
    ipv4: str
    ipv6: str | None = None

    @property
    def name(self) -> str:
        return self.namespace.name.rsplit("-", 1)[1]


@dataclass
class Site:
    """Hosts behind one router (or, OPEN, one host on a public address)."""

    lab: Lab
    kind: NatKind
    hosts: tuple[Host, ...]
    router: Namespace | None
    public_ipv4: str
    networks: tuple[str, ...] = ()
    """Underlay networks of the site: public IPv4 address, and the IPv6 network where there is one."""

    @property
    def host(self) -> Host:
        return self.hosts[0]

    def verify(self) -> nat.Observed:
        """Prove that the router is of its kind; HostError if it isn't."""
        observed = nat.probe(self.host.namespace, self.lab.prober, (self.lab.core, _SECOND_PUBLIC))
        if (observed.mapping, observed.filtering) != nat.EXPECTED[self.kind]:
            raise HostError(f"the lab's {self.kind.value} router behaves otherwise: mapping {observed.mapping.value}, filtering {observed.filtering.value}")
        return observed


@dataclass
class Lab:
    """The internet and all that hangs on it."""

    directory: Path = field(default_factory=lab_directory)
    _namespaces: list[Namespace] = field(default_factory=list)
    _links: int = 0
    _prober: tuple[Namespace, str] | None = None

    def __enter__(self) -> Lab:
        sweep()
        try:
            self.core = self.namespace("internet")
            self.core.sysctl("net/ipv4/ip_forward", "1")
            self.core.sysctl("net/ipv6/conf/all/forwarding", "1")
            self.core.ip(f"address add {_SECOND_PUBLIC}/32 dev lo")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Undo everything, newest first; a second Ctrl-C doesn't interrupt it."""
        with _undisturbed():
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

    @property
    def prober(self) -> tuple[Namespace, str]:
        """A public host for the NAT prober: the first that was made, or one made for it."""
        if self._prober is None:
            host = self.public_host("prober")
            self._prober = (host.namespace, host.ipv4)
        return self._prober

    def public_host(self, name: str, *, ipv6: bool = True) -> Host:
        """A host with a public address."""
        namespace = self.namespace(name)
        ipv4, ipv6_address = self._uplink(namespace, ipv6)
        if self._prober is None:
            self._prober = (namespace, ipv4)
        return Host(namespace, ipv4, ipv6_address)

    def site(self, name: str, kind: NatKind, *, ipv6: bool = False, hosts: Sequence[str] = (), lan: int | None = None) -> Site:
        """A site of one or more hosts (by default one, of the site's name) on 192.168.LAN.0/24; with `ipv6` also on 2001:db8:UPLINK::/48.

        LAN is by default the number of the site's uplink. An OPEN site has one host, with public addresses.
        """
        names = tuple(hosts) or (name,)
        if kind is NatKind.OPEN:
            host = self.public_host(names[0], ipv6=ipv6)
            return Site(self, kind, (host,), None, host.ipv4, tuple(a for a in (host.ipv4, host.ipv6) if a))
        router = self.namespace(f"{name}router")
        public, _ = self._uplink(router, ipv6)
        lan = self._links if lan is None else lan
        network6 = f"2001:db8:{self._links:x}" if ipv6 else None
        self._router(router, kind, lan, network6)
        if network6:
            self.core.ip(f"route add {network6}::/48 via 2001:db8:0:{self._links:x}::2")
        made = tuple(self._inside_host(router, one, lan, network6, number) for number, one in enumerate(names, start=2))
        return Site(self, kind, made, router, public, (public, f"{network6}::/48") if network6 else (public,))

    def _uplink(self, namespace: Namespace, ipv6: bool) -> tuple[str, str | None]:
        """Connect `namespace` to the core by its interface `wan`; returns its public addresses."""
        self._links += 1
        link = self._links
        if link > _LINKS:
            raise HostError(f"the lab has room for {_LINKS} uplinks")
        run_command("ip", "link", "add", f"link{link}", "netns", self.core.name, "type", "veth", "peer", "name", "wan", "netns", namespace.name)
        near, far = f"198.51.100.{4 * link + 1}", f"198.51.100.{4 * link + 2}"
        self.core.ip(f"address add {near}/30 dev link{link}\nlink set link{link} up")
        namespace.ip(f"address add {far}/30 dev wan\nlink set wan up\nroute add default via {near}")
        if not ipv6:
            return far, None
        near6, far6 = f"2001:db8:0:{link:x}::1", f"2001:db8:0:{link:x}::2"
        self.core.ip(f"address add {near6}/64 dev link{link} nodad")
        namespace.ip(f"address add {far6}/64 dev wan nodad\nroute add default via {near6}")
        return far, far6

    def _router(self, router: Namespace, kind: NatKind, lan: int, network6: str | None) -> None:
        router.sysctl("net/ipv4/ip_forward", "1")
        router.sysctl("net/ipv6/conf/all/forwarding", "1")
        router.ip(f"link add lan type bridge\naddress add 192.168.{lan}.1/24 dev lan\nlink set lan up")
        if network6:
            router.ip(f"address add {network6}::1/64 dev lan nodad")
        router.nft(nat.ruleset(kind))

    def _inside_host(self, router: Namespace, name: str, lan: int, network6: str | None, number: int) -> Host:
        namespace = self.namespace(name)
        run_command("ip", "link", "add", f"port{number}", "netns", router.name, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        router.ip(f"link set port{number} master lan\nlink set port{number} up")
        ipv4 = f"192.168.{lan}.{number}"
        namespace.ip(f"address add {ipv4}/24 dev eth0\nlink set eth0 up\nroute add default via 192.168.{lan}.1")
        if not network6:
            return Host(namespace, ipv4)
        ipv6 = f"{network6}::{number:x}"
        namespace.ip(f"address add {ipv6}/64 dev eth0 nodad\nroute add default via {network6}::1")
        return Host(namespace, ipv4, ipv6)

    def attach_lan(self, gateway: Host, name: str, lan: int) -> Host:
        """A further host `name` on a network of its own, 192.168.LAN.0/24, behind `gateway` (its interface there: `lanLAN`). It knows no other route."""
        namespace = self.namespace(name)
        run_command("ip", "link", "add", f"lan{lan}", "netns", gateway.namespace.name, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        gateway.namespace.ip(f"address add 192.168.{lan}.1/24 dev lan{lan}\nlink set lan{lan} up")
        namespace.ip(f"address add 192.168.{lan}.2/24 dev eth0\nlink set eth0 up")
        return Host(namespace, f"192.168.{lan}.2")

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
