"""Which address the next node gets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from calnet.errors import ExhaustedError
from calnet.roles.server.allocation import free_v4

PREFIX = IPv4Network("10.9.0.0/29")


def _number(address: str) -> int:
    return int(IPv4Address(address))


@pytest.mark.parametrize(
    ("taken", "retired", "highest", "expected"),
    [
        ((), {}, "0.0.0.0", "10.9.0.1"),
        (("10.9.0.1",), {}, "10.9.0.1", "10.9.0.2"),
        (("10.9.0.3",), {}, "10.9.0.3", "10.9.0.4"),
        (("10.9.0.6",), {}, "10.9.0.6", "10.9.0.1"),
        (("10.9.0.6",), {"10.9.0.1": 1.0}, "10.9.0.6", "10.9.0.2"),
        (("10.20.0.9",), {}, "10.20.0.9", "10.9.0.1"),
        (("10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4"), {"10.9.0.6": 1.0, "10.9.0.5": 2.0}, "10.9.0.6", "10.9.0.6"),
    ],
)
def test_next_address_is_never_given_out_before_and_the_longest_retired_at_last(
    taken: tuple[str, ...], retired: dict[str, float], highest: str, expected: str
) -> None:
    assert free_v4(PREFIX, taken, retired, _number(highest)) == expected


def test_full_prefix_is_exhausted_whatever_lies_outside() -> None:
    taken = {str(address) for address in PREFIX.hosts()}
    with pytest.raises(ExhaustedError):
        free_v4(PREFIX, taken, {"10.9.0.0": 1.0, "10.9.0.7": 1.0, "10.9.1.1": 0.0}, _number("10.9.0.6"))
