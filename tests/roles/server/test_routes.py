"""Routes: what is one, and what may be approved."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import InvalidError
from calnet.roles.server.routes import canonical_routes, check_approvable, parse_route
from calnet.wire.control import MAX_ROUTES

OVERLAY = (ipaddress.ip_network("100.70.0.0/24"), ipaddress.ip_network("fd00:1::/64"))


def test_routes_are_sorted_each_once_in_canonical_text() -> None:
    assert canonical_routes(("FD00:2:0::/48", "192.168.1.0/24", "10.0.0.1", "fd00:2::/48")) == ("10.0.0.1/32", "192.168.1.0/24", "fd00:2::/48")


@pytest.mark.parametrize("text", ["", "x", "10.0.0.1/8", "10.0.0.0/33", "fd00::1/48", "10.0.0.0/8 ", "fe80::%eth0/64", "10.0.0.0/-1", "1"])
def test_no_prefix_is_invalid(text: str) -> None:
    with pytest.raises(InvalidError, match="is no route"):
        parse_route(text)


@given(st.text())
def test_random_text_raises_invalid_alone(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert str(parse_route(text))


def test_too_many_routes_are_invalid() -> None:
    with pytest.raises(InvalidError, match="at most"):
        canonical_routes(f"10.0.{number}.0/24" for number in range(MAX_ROUTES + 1))


@pytest.mark.parametrize("route", ["192.168.0.0/16", "10.0.0.0/8", "fd00:2::/48", "2001:db8::/32", "100.70.1.0/24", "203.0.113.7/32"])
def test_ordinary_route_may_be_approved(route: str) -> None:
    check_approvable(parse_route(route), OVERLAY)


@pytest.mark.parametrize(
    ("route", "why"),
    [
        ("0.0.0.0/0", "exit nodes"),
        ("::/0", "exit nodes"),
        ("100.70.0.0/24", "overlaps the overlay"),
        ("100.70.0.5/32", "overlaps the overlay"),
        ("100.64.0.0/10", "overlaps the overlay"),
        ("0.0.0.0/1", "overlaps the overlay"),
        ("fd00:1::7/128", "overlaps the overlay"),
        ("fc00::/7", "overlaps the overlay"),
        ("224.0.0.0/4", "no addresses that can be routed"),
        ("127.0.0.0/8", "no addresses that can be routed"),
        ("169.254.0.0/16", "no addresses that can be routed"),
        ("fe80::/10", "no addresses that can be routed"),
        ("ff00::/8", "no addresses that can be routed"),
        ("::1/128", "no addresses that can be routed"),
        ("::ffff:10.0.0.0/104", "no addresses that can be routed"),
    ],
)
def test_dangerous_route_is_never_approved(route: str, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        check_approvable(parse_route(route), OVERLAY)
