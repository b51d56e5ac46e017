"""Overlay addresses. IPv4: the next that was never given out, and only when there is none, the one retired longest. IPv6: the node's id in the /64."""

from __future__ import annotations

from collections.abc import Container, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain

from calnet.errors import ConfigError, ExhaustedError
from calnet.model import NodeId

LONGEST_PREFIX = 30
"""A longer IPv4 prefix has no room for two nodes beside its network and broadcast address."""


def free_v4(prefix: IPv4Network, taken: Container[str], retired: Mapping[str, float], highest: int = 0) -> str:
    """The IPv4 address for the next node: the first never given out above `highest`, else the first of all (so that nobody goes through those taken each
    time), else the longest retired. Network and broadcast address are left out. ExhaustedError where all are taken."""
    first, end = int(prefix.network_address) + 1, int(prefix.broadcast_address)
    start = max(first, highest + 1)
    for number in chain(range(start, end), range(first, min(start, end))):
        address = str(IPv4Address(number))
        if address not in taken and address not in retired:
            return address
    for address in sorted(retired, key=lambda address: (retired[address], address)):
        found = IPv4Address(address)
        if address not in taken and found in prefix and found not in (prefix.network_address, prefix.broadcast_address):
            return address
    raise ExhaustedError(f"no address is left in {prefix}: delete nodes, or restart the server with a larger --prefix around it")


def v6_of(prefix: IPv6Network, node: NodeId) -> str:
    """The IPv6 address of a node: ids are never used twice, so neither are these."""
    return str(IPv6Address(int(prefix.network_address) + node))


def ula_prefix(random: bytes) -> IPv6Network:
    """A ULA /64 (RFC 4193 section 3.1) from 5 random bytes: fd, global id, subnet 0."""
    return IPv6Network((b"\xfd" + random + bytes(10), 64))


def grown_prefix(stored: IPv4Network, wanted: IPv4Network | None) -> IPv4Network:
    """The IPv4 prefix to use from now on; ConfigError unless `wanted` is None, the stored one, or one around it."""
    if wanted is None:
        return stored
    check_prefix(wanted)
    if not stored.subnet_of(wanted):
        raise ConfigError(f"--prefix {wanted} does not hold the prefix in use, {stored}: addresses would be lost. Leave it out, or give a larger one around it")
    return wanted


def check_prefix(prefix: IPv4Network) -> None:
    """ConfigError where no overlay can live in `prefix`."""
    if prefix.prefixlen > LONGEST_PREFIX or prefix.prefixlen < 8 or prefix.is_multicast or prefix.is_loopback or prefix.is_link_local or prefix.is_reserved:
        raise ConfigError(f"--prefix {prefix} can't be the overlay: give a private IPv4 prefix between /8 and /{LONGEST_PREFIX}")
