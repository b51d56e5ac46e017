"""What is known of this machine's network interfaces, and the pure choices made from it: candidate addresses, attached subnets, names.

`Interface` values come from netlink.py (or its twin); nothing here asks the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
    """Whence packets leave for the internet: the preferred gateway (empty: none is needed), and the address that they bear. IPv6's change by themselves: the
    interface's network stands for them."""

    gateway: str
    source: Address


def ways_out(view: NetworkView, before: Mapping[int, WayOut]) -> dict[int, WayOut]:
    """The way by each IP version that has one. An address in use `before` stays in use as long as it is there, whatever comes beside it."""
    found: dict[int, WayOut] = {}
    for version in (4, 6):
        way = next((way for gateway in view.gateways if (way := _way_by(gateway, version, view, before.get(version))) is not None), None)
        if way is not None:
            found[version] = way
    return found


def _way_by(gateway: Gateway, version: int, view: NetworkView, before: WayOut | None) -> WayOut | None:
    addresses = next((interface.addresses for interface in view.interfaces if interface.index == gateway.interface), ())
    usable = [address for address in addresses if address.version == version and not address.is_link_local]
    if not usable or (gateway.address and (":" in gateway.address) != (version == 6)):
        return None
    sources = {address: address.ip if version == 4 else address.network.network_address for address in usable}
    if before is not None and before.gateway == gateway.address and before.source in sources.values():
        return before
    near = next((address for address in usable if gateway.address and ip_address(gateway.address) in address.network), usable[0])
    return WayOut(gateway.address, sources[near])


def has_moved(before: Mapping[int, WayOut], now: Mapping[int, WayOut]) -> bool:
    """Whether packets leave from elsewhere. IPv4, whose ports are translated, decides where it was and is there, else IPv6; that one of them comes or goes
    beside the other moves nothing."""
    both = next((version for version in (4, 6) if version in before and version in now), None)
    return bool(before and now) if both is None else before[both] != now[both]


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
