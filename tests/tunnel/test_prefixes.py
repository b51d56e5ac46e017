"""Longest prefix match against a slow twin."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.model import Address, Prefix
from calnet.tunnel.prefixes import PrefixTable


def _prefixes(version: int) -> st.SearchStrategy[Prefix]:
    """Prefixes close enough together to nest."""
    bits = 32 if version == 4 else 128
    kind = IPv4Network if version == 4 else IPv6Network
    top = st.sampled_from([10 << (bits - 8), (10 << (bits - 8)) + (1 << (bits - 9)), 0])
    return st.builds(lambda base, low, length: kind((base | low, length), strict=False), top, st.integers(0, 7), st.integers(0, bits))


PREFIX = _prefixes(4) | _prefixes(6)


def _slow(entries: list[tuple[Prefix, int]], address: Address) -> int | None:
    best: tuple[int, int] | None = None
    for prefix, value in entries:
        if prefix.version == address.version and address in prefix and (best is None or prefix.prefixlen > best[0]):
            best = (prefix.prefixlen, value)
    return None if best is None else best[1]


@given(st.lists(PREFIX, max_size=12), st.integers(0, 7), st.data())
def test_lookup_agrees_with_the_twin(prefixes: list[Prefix], low: int, data: st.DataObject) -> None:
    entries = [(prefix, number + 1) for number, prefix in enumerate(prefixes)]
    table = PrefixTable(entries)
    bases = [int(prefix.network_address) + low for prefix in prefixes] or [low]
    base = data.draw(st.sampled_from(bases))
    for address in (ip_address(base % 2**32), ip_address((base % 2**128).to_bytes(16, "big"))):
        assert table.lookup(address.packed) == _slow(entries, address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.1.2.3", "host"), ("10.1.2.4", "lan"), ("10.1.3.1", "site"), ("11.0.0.1", "all"), ("fd00::1", "host6"), ("fd00::2", "lan6"), ("fe80::1", None)],
)
def test_lookup_longest_prefix_wins(address: str, expected: str | None) -> None:
    names = {"10.1.2.0/24": "lan", "10.1.2.3/32": "host", "0.0.0.0/0": "all", "10.1.0.0/16": "site", "fd00::1/128": "host6", "fd00::/64": "lan6"}
    table = PrefixTable((ip_network(text), name) for text, name in names.items())
    assert table.lookup(ip_address(address).packed) == expected


def test_lookup_equal_prefixes_the_first_named_holds() -> None:
    for text in ("10.0.0.0/24", "10.0.0.1/32"):
        assert PrefixTable([(ip_network(text), "first"), (ip_network(text), "second")]).lookup(bytes([10, 0, 0, 1])) == "first"


@pytest.mark.parametrize("size", [0, 1, 3, 5, 15, 17])
def test_lookup_another_length_finds_nothing(size: int) -> None:
    assert PrefixTable([(ip_network("0.0.0.0/0"), 1), (ip_network("::/0"), 2)]).lookup(bytes(size)) is None
