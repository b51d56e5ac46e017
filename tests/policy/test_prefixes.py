"""Prefixes as people write them, and the fewest that hold given addresses."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.policy.prefixes import collapsed, parse_prefix, without

V4 = st.one_of(st.integers(0, 40), st.integers(2**32 - 40, 2**32 - 1), st.integers(0, 2**32 - 1)).map(ipaddress.IPv4Address)
V6 = st.one_of(st.integers(0, 40), st.integers(2**128 - 40, 2**128 - 1), st.integers(0, 2**128 - 1)).map(ipaddress.IPv6Address)


@given(st.lists(V4), st.lists(V6))
def test_collapsed_is_what_the_standard_library_says(v4: list[ipaddress.IPv4Address], v6: list[ipaddress.IPv6Address]) -> None:
    slow = (
        *ipaddress.collapse_addresses(ipaddress.IPv4Network(address) for address in v4),
        *ipaddress.collapse_addresses(ipaddress.IPv6Network(address) for address in v6),
    )
    assert collapsed([*v4, *v6]) == slow
    assert collapsed([*v6, *v4, *v4]) == slow


@given(
    st.lists(st.integers(0, 15).map(lambda number: ipaddress.IPv4Address(0x64460000 + number))),
    st.lists(st.integers(0, 2**64).map(lambda number: ipaddress.IPv6Address((0xFD << 120) + number))),
)
def test_prefixes_without_addresses_are_all_else(v4: list[ipaddress.IPv4Address], v6: list[ipaddress.IPv6Address]) -> None:
    small, large = ipaddress.IPv4Network("100.70.0.0/29"), ipaddress.IPv6Network("fd00::/64")
    found = without((small, large), [*v4, *v6])
    kept = [prefix for prefix in found if isinstance(prefix, ipaddress.IPv4Network)]
    assert kept == list(ipaddress.collapse_addresses(ipaddress.IPv4Network(address) for address in small if address not in v4))
    rest = [large]
    for hole in {ipaddress.IPv6Network(address) for address in v6 if address in large}:
        rest = [piece for prefix in rest for piece in (prefix.address_exclude(hole) if hole.subnet_of(prefix) else [prefix])]
    assert [prefix for prefix in found if isinstance(prefix, ipaddress.IPv6Network)] == sorted(rest)


def test_collapsed_of_whole_blocks_is_those_blocks() -> None:
    block = ipaddress.IPv4Network("0.0.0.0/24")
    assert collapsed(block) == (block,)
    assert collapsed(list(block)[1:]) == tuple(ipaddress.IPv4Network((1 << bit, 32 - bit)) for bit in range(8))


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.1", "fd00::/64", "fd00::1", "0.0.0.0/0", "::/0", "10.0.0.0/255.0.0.0"])
def test_prefix_that_is_one_is_read(text: str) -> None:
    assert parse_prefix(text) == ipaddress.ip_network(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.1/8", "has bits set behind its length: write 10.0.0.0/8"),
        ("fd00::1/64", "write fd00::/64"),
        ("10.0.0.0/33", "is no address or prefix"),
        ("10.0.0.0/" + "9" * 5000, "is no address or prefix"),
        ("1" * 5000, "is no address or prefix"),
        ("fe80::1%eth0", "has a zone"),
        ("", "is no address or prefix"),
        ("010.0.0.1", "is no address or prefix"),
        ("[fd00::1]", "is no address or prefix"),
    ],
)
def test_prefix_that_is_none_is_told_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_prefix(text)
