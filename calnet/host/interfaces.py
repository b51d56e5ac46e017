"""What is known of this machine's network interfaces, and the pure choices made from it: candidate addresses, attached subnets, names.

`Interface` values come from netlink.py (or its twin); nothing here asks the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import Final, NamedTuple

from calnet.model import Address, Prefix

MAX_CANDIDATES: Final = 16
"""Local addresses offered to peers at most: of a host with hundreds, the first ones."""

_CONTAINER_BRIDGE: Final = re.compile(
    r"docker\d*|br-[0-9a-f]{12}|virbr\d+(-nic)?|lxcbr\d+|lxdbr\d+|incusbr\d+|podman\d+|cni[-\d].*|flannel.*|cali[0-9a-f].*|vnet\d+|veth[0-9a-f]{7,8}"
)
_OTHER_OVERLAY: Final = re.compile(r"(tailscale\d+|calnet\d+|zt[a-z0-9]{8,}|nebula\d+|wt\d+)")


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface: `addresses` with their prefix lengths, without tentative, deprecated or failed ones."""

    index: int
    name: str
    up: bool
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    loopback: bool = False


class Gateway(NamedTuple):
    """Next hop of a default route; `address` is empty where the route leads to its interface alone. They sort as the kernel prefers them."""

    metric: int
    address: str
    interface: int


@dataclass(frozen=True, slots=True)
class NetworkView:
    """The underlay at one moment. Two equal views need no new look at paths."""

    interfaces: tuple[Interface, ...]
    gateways: tuple[Gateway, ...] = ()


class WayOut(NamedTuple):
    """Whence packets leave for the internet: the preferred gateway (empty: none is needed), and the address that they bear."""

    gateway: str
    source: Address


def way_out(view: NetworkView) -> WayOut | None:
    """The way by IPv4, where there is one, else by IPv6, whose sources change by themselves: the interface's network stands for them."""
    for version in (4, 6):
        for gateway in view.gateways:
            addresses = next((interface.addresses for interface in view.interfaces if interface.index == gateway.interface), ())
            usable = [address for address in addresses if address.version == version and not address.is_link_local]
            if not usable or (gateway.address and (":" in gateway.address) != (version == 6)):
                continue
            near = next((address for address in usable if gateway.address and ip_address(gateway.address) in address.network), usable[0])
            return WayOut(gateway.address, near.ip if version == 4 else near.network.network_address)
    return None


def underlay(interfaces: Iterable[Interface], tun: str) -> list[Interface]:
    """Interfaces that lead to other machines: up, neither loopback nor `tun` nor another overlay's nor a container bridge."""
    return [
        interface
        for interface in interfaces
        if interface.up
        and not interface.loopback
        and interface.name != tun
        and not _CONTAINER_BRIDGE.fullmatch(interface.name)
        and not _OTHER_OVERLAY.fullmatch(interface.name)
    ]


def candidate_addresses(interfaces: Iterable[Interface], tun: str, overlay: Iterable[Prefix]) -> tuple[Address, ...]:
    """Unicast addresses at which a peer could reach this machine: global and private ones of underlay interfaces outside the overlay's prefixes.

    IPv4 link-local (169.254/16) is kept out like IPv6's: it works on one link only and names no interface.
    """
    inside = tuple(overlay)
    found: list[Address] = []
    for interface in underlay(interfaces, tun):
        for assigned in interface.addresses:
            address = assigned.ip
            unusable = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved
            if not unusable and address not in found and not any(address in prefix for prefix in inside):
                found.append(address)
    return tuple(found[:MAX_CANDIDATES])


def attached_prefixes(interfaces: Iterable[Interface], tun: str) -> tuple[Prefix, ...]:
    """Subnets this machine is directly attached to by any interface but `tun` (container bridges too), host routes and link-local ones left out."""
    found: dict[Prefix, None] = {}
    for interface in interfaces:
        if interface.name == tun or not interface.up or interface.loopback:
            continue
        for assigned in interface.addresses:
            network = assigned.network
            if network.prefixlen < network.max_prefixlen and not network.is_link_local:
                found[network] = None
    return tuple(found)
