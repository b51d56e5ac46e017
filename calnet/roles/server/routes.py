"""Routes that nodes advertise: what is a prefix at all, and what an admin may approve. Nothing that overlaps the overlay is ever approved."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from calnet.errors import InvalidError
from calnet.model import Prefix
from calnet.wire.control import MAX_ROUTES
from calnet.wire.endpoints import overlaps

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


def parse_route(text: str) -> Prefix:
    """The prefix; InvalidError for anything else, and for one with bits set behind its length."""
    try:
        route = ipaddress.ip_network(text)
        if "%" in text:
            raise ValueError("a zone has no meaning elsewhere")
        return route
    except ValueError as error:
        raise InvalidError(f"{text!r} is no route: write a prefix such as 192.168.1.0/24, without bits behind its length") from error


def canonical_routes(texts: Iterable[str]) -> tuple[str, ...]:
    """The routes in order, each once, in their canonical text; InvalidError for one that is none, or too many."""
    routes = sorted({parse_route(text) for text in texts}, key=lambda route: (route.version, route))
    if len(routes) > MAX_ROUTES:
        raise InvalidError(f"at most {MAX_ROUTES} routes a node")
    return tuple(str(route) for route in routes)


def is_approvable(route: Prefix, overlay: Iterable[Prefix]) -> bool:
    """Whether an admin could approve it."""
    try:
        check_approvable(route, overlay)
    except InvalidError:
        return False
    return True


def check_approvable(route: Prefix, overlay: Iterable[Prefix]) -> None:
    """InvalidError for a route that no admin can approve."""
    if route.prefixlen == 0:
        raise InvalidError(f"{route} can't be approved: exit nodes are not supported yet")
    if any(overlaps(route, prefix) for prefix in overlay):
        raise InvalidError(f"{route} can't be approved: it overlaps the overlay's own addresses")
    if route.is_multicast or route.is_loopback or route.is_link_local or route.is_unspecified or overlaps(route, _MAPPED):
        raise InvalidError(f"{route} can't be approved: it holds no addresses that can be routed")
