"""Addresses to prefixes: read as people write them, and the fewest that hold given addresses. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from calnet.model import Address, Prefix

HOLE_COST: Final = 80
"""Prefixes that an address left out of the overlay costs, about: 16 or so of IPv4, 64 of IPv6."""


def parse_prefix(text: str) -> Prefix:
    """An address or prefix without zone; ValueError, whose text says what is wrong and what to write."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone: leave it out")
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no address or prefix, such as 10.0.0.0/8") from None
    raise ValueError(f"{text!r} has bits set behind its length: write {meant}")


@lru_cache(maxsize=32_768)
def host_prefix(address: Address) -> Prefix:
    """The prefix of one address. Kept, as each filter names its node's."""
    return IPv4Network((int(address), 32)) if address.version == 4 else IPv6Network((int(address), 128))


def collapsed(addresses: Iterable[Address]) -> tuple[Prefix, ...]:
    """The fewest prefixes that hold these addresses and no others, IPv4 first.

    `ipaddress.collapse_addresses` takes 130 ms for 4,000 addresses that don't collapse, this 3: filters are made anew whenever a node comes or goes.
    """
    by_version: dict[int, set[int]] = {4: set(), 6: set()}
    for address in addresses:
        by_version[address.version].add(int(address))
    return tuple(_network(version, first, size) for version, numbers in by_version.items() for first, size in _blocks(sorted(numbers)))


def without(prefixes: Iterable[Prefix], addresses: Iterable[Address]) -> tuple[Prefix, ...]:
    """The fewest prefixes that hold what these hold, but for the addresses. The prefixes don't overlap."""
    holes = sorted({(address.version, int(address)) for address in addresses})
    found: list[Prefix] = []
    for prefix in prefixes:
        at, end = int(prefix.network_address), int(prefix.broadcast_address)
        inside = [number for version, number in holes if version == prefix.version and at <= number <= end]
        for number in [*inside, end + 1]:
            found += [_network(prefix.version, first, bits) for first, bits in _aligned(at, number)]
            at = number + 1
    return tuple(found)


def _blocks(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first number, free bits) of the largest aligned blocks of consecutive numbers."""
    at, count = 0, len(numbers)
    while at < count:
        end = at + 1
        while end < count and numbers[end] == numbers[end - 1] + 1:
            end += 1
        yield from _aligned(numbers[at], numbers[end - 1] + 1)
        at = end


def _aligned(first: int, end: int) -> Iterator[tuple[int, int]]:
    """(first number, free bits) of the largest aligned blocks from `first` to before `end`."""
    while first < end:
        bits = (end - first).bit_length() - 1
        if first:
            bits = min(bits, (first & -first).bit_length() - 1)
        yield first, bits
        first += 1 << bits


@lru_cache(maxsize=65_536)
def _network(version: int, first: int, bits: int) -> Prefix:
    return IPv4Network((first, 32 - bits)) if version == 4 else IPv6Network((first, 128 - bits))
