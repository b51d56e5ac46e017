"""What happens to a machine's network, made for real in the lab: cables, addresses, routes, other places; routers that reboot or forget."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from calnet.errors import HostError
from calnet.roles.demo.lab import Host, Lab, Site
from calnet.roles.demo.namespaces import Namespace, run_command

_FIRST_NUMBER: Final = 20
"""Of the addresses that machines get where they are plugged in later: what `Lab.site` gives ends before."""
_PUBLIC: Final = "192.0.2"
"""Where a router's next public address comes from (RFC 5737), in /30 networks."""
_NETLINK_NETFILTER: Final = 12
_CT_DELETE: Final = 1 << 8 | 2
"""linux/netfilter/nfnetlink_conntrack.h: NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE; without a tuple, of all."""
_REQUEST_ACK: Final = 1 | 4


@dataclass(frozen=True, slots=True)
class Plug:
    """Where one interface is plugged in."""

    site: Site
    ipv4: str
    gateway: str


class Machine:
    """A host of a site that is unplugged, carried about and plugged in again. `plugs` by interface."""

    def __init__(self, host: Host, site: Site) -> None:
        self.host = host
        self.plugs = {"eth0": Plug(site, host.ipv4, _gateway(site))}
        self._numbers = itertools.count(_FIRST_NUMBER)

    def link_down(self, interface: str) -> None:
        self._ip(f"link set {interface} down")

    def link_up(self, interface: str) -> None:
        """As a DHCP client would, the default route too."""
        self._ip(f"link set {interface} up\n{self._default(interface)}")

    def readdress(self, interface: str) -> None:
        """Another address on the same link, in place of the one there."""
        plug = self.plugs[interface]
        self.plugs[interface] = new = Plug(plug.site, self._address(plug.site, next(self._numbers)), plug.gateway)
        self._ip(f"address del {plug.ipv4}/24 dev {interface}\naddress add {new.ipv4}/24 dev {interface}\n{self._default(interface)}")

    def plug_in(self, interface: str, site: Site) -> None:
        """A new interface on this site's network, with an address and no default route."""
        if site.router is None:
            raise HostError("a machine can be plugged in behind a router alone")
        number = next(self._numbers)
        port = f"plug{number}"
        run_command("ip", "link", "add", port, "netns", site.router.name, "type", "veth", "peer", "name", interface, "netns", self.host.namespace.name)
        site.router.ip(f"link set {port} master lan\nlink set {port} up")
        self.plugs[interface] = plug = Plug(site, self._address(site, number), _gateway(site))
        self._ip(f"address add {plug.ipv4}/24 dev {interface}\nlink set {interface} up")

    def unplug(self, interface: str) -> None:
        """The interface is gone, with its address and routes."""
        del self.plugs[interface]
        self._ip(f"link delete {interface}")

    def use(self, interface: str) -> None:
        """The default route leads there from now on."""
        self._ip(self._default(interface))

    def _default(self, interface: str) -> str:
        return f"route replace default via {self.plugs[interface].gateway} dev {interface}"

    @staticmethod
    def _address(site: Site, number: int) -> str:
        return f"{site.host.ipv4.rsplit('.', 1)[0]}.{number}"

    def _ip(self, batch: str) -> None:
        self.host.namespace.ip(batch)


def _gateway(site: Site) -> str:
    return f"{site.host.ipv4.rsplit('.', 1)[0]}.1"


def forget_connections(namespace: Namespace) -> None:
    """The kernel there forgets all connections that it tracked: filters' and NATs' state. (What `conntrack -F` does.)"""
    with namespace.inside(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.send(struct.pack("=IHHIIBBH", 20, _CT_DELETE, _REQUEST_ACK, 1, 0, socket.AF_UNSPEC, 0, 0))
        answer = netlink.recv(4096)
    error: int = struct.unpack_from("=i", answer, 16)[0]
    if error:
        raise HostError(f"the connections of {namespace.name} can't be forgotten: error {-error}")


def rebind(site: Site, port: int, *, outside: int) -> None:
    """The site's NAT forgets its mappings, and from now on maps the inner UDP port `port` to the outer one `outside`."""
    router = _router(site)
    router.nft(
        "table ip rebound\ndelete table ip rebound\n"
        f'table ip rebound {{ chain outgoing {{ type nat hook postrouting priority 99; oifname "wan" udp sport {port} masquerade to :{outside}\n}}\n}}'
    )
    forget_connections(router)


def power_off(site: Site) -> None:
    """The site's router is gone; machines behind it still have their link, as behind a switch."""
    _router(site).ip("link set wan down\nlink set lan down")


class Renumbering:
    """Public addresses for routers that come back with another one. One object for a lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._numbers = itertools.count(0, 4)

    def power_on(self, site: Site) -> None:
        """The site's router is back: it has forgotten everything, and got another public address."""
        router, core, first = _router(site), self._lab.core, next(self._numbers)
        (wan,) = json.loads(run_command("ip", "-n", router.name, "-json", "link", "show", "wan").stdout)
        links = json.loads(run_command("ip", "-n", core.name, "-json", "link").stdout)
        uplink = next(link["ifname"] for link in links if link["ifindex"] == wan["link_index"])
        near, far = f"{_PUBLIC}.{first + 1}", f"{_PUBLIC}.{first + 2}"
        core.ip(f"address flush dev {uplink} scope global\naddress add {near}/30 dev {uplink}")
        router.ip("address flush dev wan scope global")
        forget_connections(router)
        router.ip(f"address add {far}/30 dev wan\nlink set wan up\nlink set lan up\nroute replace default via {near}")
        site.networks = (far,)


def _router(site: Site) -> Namespace:
    if site.router is None:
        raise HostError("an open site has no router")
    return site.router


@contextlib.contextmanager
def table(namespace: Namespace, name: str, chains: str) -> Iterator[None]:
    """An nft table `inet NAME` meanwhile."""
    namespace.nft(f"table inet {name} {{\n{chains}\n}}")
    try:
        yield
    finally:
        namespace.run("nft", "delete", "table", "inet", name)
