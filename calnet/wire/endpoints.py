"""Endpoints as text and as bytes, and which of them may be probed.

Packed endpoint, 19 bytes: family u8 (4 or 6), address 16 bytes (an IPv4 address and 12 zeros, or an IPv6 address), port u16 big-endian. The port is
not 0; an IPv4-mapped IPv6 address is read as the IPv4 address it holds.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from calnet.errors import WireError
from calnet.model import Address, Endpoint, Prefix

PACKED_SIZE: Final = 19
_KEPT: Final = 1024
"""Answers that are kept: nodes ask of the same few endpoints again and again."""
_PACKED: Final = struct.Struct("!B16sH")
_FAMILY_4: Final = 4
_FAMILY_6: Final = 6
_NO_UNICAST: Final = (IPv4Network("0.0.0.0/8"), IPv4Network("240.0.0.0/4"))
"""This network, and the reserved block with the limited broadcast (RFC 6890)."""
_PRIVATE: Final = tuple(ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "fc00::/7"))


def address_of(packed: bytes) -> Address:
    """The address in 4 or 16 bytes; an IPv4-mapped one as IPv4. WireError for another length."""
    if len(packed) == 4:
        return IPv4Address(packed)
    if len(packed) != 16:
        raise WireError("an address is 4 or 16 bytes")
    address = IPv6Address(packed)
    return address.ipv4_mapped or address


def parse_endpoint(text: str) -> Endpoint:
    """`1.2.3.4:5` or `[::1]:5`; WireError for anything else."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise WireError("an IPv6 endpoint is written [address]:port")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65_536:
        raise WireError("an endpoint's port is 1 to 65535")
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise WireError("not an IP address") from error
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise WireError("an endpoint has no zone")
        address = address.ipv4_mapped or address
    return Endpoint(str(address), int(port))


def parse_endpoints(texts: tuple[str, ...]) -> tuple[Endpoint, ...]:
    """Each text parsed; WireError if one is none."""
    return tuple(parse_endpoint(text) for text in texts)


@lru_cache(_KEPT)
def pack_endpoint(endpoint: Endpoint) -> bytes:
    """19 bytes. WireError if `endpoint` holds no IP address, a zone, or a port outside 1 to 65,535."""
    if not 0 < endpoint.port < 65_536 or "%" in endpoint.host:
        raise WireError("an endpoint's port is 1 to 65535, and it has no zone")
    try:
        address = ipaddress.ip_address(endpoint.host)
    except ValueError as error:
        raise WireError("an endpoint holds an IP address") from error
    return _PACKED.pack(_FAMILY_4 if address.version == 4 else _FAMILY_6, address.packed, endpoint.port)


@lru_cache(_KEPT)
def unpack_endpoint(packed: bytes) -> Endpoint:
    """The endpoint in exactly 19 bytes; WireError for anything else."""
    if len(packed) != PACKED_SIZE:
        raise WireError("a packed endpoint is 19 bytes")
    family, host, port = _PACKED.unpack(packed)
    if family not in (_FAMILY_4, _FAMILY_6) or port == 0 or (family == _FAMILY_4 and any(host[4:])):
        raise WireError("not a packed endpoint")
    return Endpoint(str(address_of(host[:4] if family == _FAMILY_4 else host)), port)


@lru_cache(_KEPT)
def source_network(host: str, *, v4_bits: int = 32) -> bytes:
    """What counts as one source where sources are bounded: an IPv4 address (or its first `v4_bits`), an IPv6 /64 (whoever has one address there has all).

    An IPv4-mapped address counts as IPv4. What is no address (a Unix socket, say) is a source of its own.
    """
    try:
        packed = address_of(ipaddress.ip_address(host.partition("%")[0]).packed).packed
    except ValueError:
        return host.encode()
    return packed[: v4_bits // 8] if len(packed) == 4 else packed[:8]


def overlaps(left: Prefix, right: Prefix) -> bool:
    """Whether two prefixes share an address; those of different versions don't."""
    if isinstance(left, IPv4Network):
        return isinstance(right, IPv4Network) and left.overlaps(right)
    return isinstance(right, IPv6Network) and left.overlaps(right)


def is_candidate(endpoint: Endpoint, overlay: Iterable[Prefix] = ()) -> bool:
    """Whether `endpoint` may be probed: a unicast address that is neither this host's own loopback nor link-local nor inside an `overlay` prefix.

    Link-local addresses need a zone that a candidate does not have (IPv6), or reach what is no peer (169.254.0.0/16 holds metadata services).
    """
    if not 0 < endpoint.port < 65_536:
        return False
    try:
        address = ipaddress.ip_address(endpoint.host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address.scope_id is not None):
        return False
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        return False
    return not any(address in prefix for prefix in (*_NO_UNICAST, *overlay))


def is_private(endpoint: Endpoint) -> bool:
    """Whether the address is of a site's or its provider's own (RFC 1918, RFC 6598, RFC 6333's 192.0.0.0/24, unique local IPv6): nobody's outside."""
    return _is_private(endpoint.host)


@lru_cache(_KEPT)
def _is_private(host: str) -> bool:
    address = ipaddress.ip_address(host)
    return any(address in prefix for prefix in _PRIVATE)
