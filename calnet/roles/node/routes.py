"""Pure choices about the netmap: what a node trusts of it, which prefixes it leads into the tunnel, what it may advertise.

The server is not believed everything: a prefix inside the overlay would capture another node's address, a default route needs the user's own choice of
an exit node (not there yet), a pinned peer's key may not change (attacks 26 and 27), and an overlay may not be half the Internet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Final

from calnet.errors import InvalidError, ProtocolError
from calnet.model import Address, Netmap, NodeId, Peer, PeerKind, Prefix
from calnet.roles.node.state import Pin
from calnet.wire.control import MAX_ROUTES
from calnet.wire.endpoints import overlaps

_NEVER: Final = tuple(ip_network(text) for text in ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"))


_SHORTEST: Final = {4: 8, 6: 48}
"""Prefix lengths below which an overlay takes more than anybody's network."""
_SHARED: Final = ip_network("100.64.0.0/10")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something left out or noticed, for health and log."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """`routes` lead into the tunnel except for `excepted`, subnets within them that this machine is attached to."""

    routes: tuple[Prefix, ...]
    excepted: tuple[Prefix, ...]
    findings: tuple[Finding, ...]


def check_netmap(netmap: Netmap) -> None:
    """ProtocolError for a netmap that no node may act on: it would lead this machine's other traffic into the tunnel, or makes no sense."""
    if not netmap.prefixes or not netmap.self.addresses:
        raise ProtocolError("the server's netmap names no overlay, or no address of this node")
    for prefix in netmap.prefixes:
        if prefix.prefixlen < _SHORTEST[prefix.version] or any(overlaps(prefix, never) for never in _NEVER):
            raise ProtocolError(f"the server's netmap calls {prefix} the overlay, which would take other traffic of this machine")
    if not all(_inside(address, netmap.prefixes) for address in netmap.self.addresses):
        raise ProtocolError("the server's netmap gives this node an address outside the overlay")
    times = [netmap.self.key_expires, *(time for peer in netmap.peers for time in (peer.key_expires, peer.last_seen_at))]
    if not all(time is None or math.isfinite(time) for time in times):
        raise ProtocolError("the server's netmap holds a time that is none")


def _inside(address: Address, overlay: Iterable[Prefix]) -> bool:
    return any(address.version == prefix.version and address in prefix for prefix in overlay)


def trusted(netmap: Netmap, pins: Iterable[Pin]) -> tuple[Netmap, tuple[Finding, ...]]:
    """`netmap` as this node acts on it: without peers that break a pin or that no honest netmap holds, and without routes that no peer may have."""
    findings: list[Finding] = []
    known = tuple(pins)
    pinned = [ip_address(text) for pin in known for text in pin.addresses]
    taken: set[object] = {netmap.self.id, *netmap.self.addresses}
    peers: list[Peer] = []
    for peer in netmap.peers:
        why = _odd(peer, netmap.prefixes, taken)
        if why is not None:
            findings.append(Finding("peer-refused", f"{peer.name} is left out: {why}"))
            continue
        broken = next((pin for pin in known if _concerns(pin, peer) and pin.node_key != peer.node_key), None)
        if broken is not None:
            text = f"the key of pinned peer {peer.name} changed: it is refused. If that was meant, `calnet set --unpin {broken.name}` and pin it again"
            findings.append(Finding("pinned-key-changed", text))
            continue
        taken |= {peer.id, *peer.addresses, bytes(peer.node_key)}
        peers.append(_with_fit_routes(peer, netmap.prefixes, pinned, findings))
    return replace(netmap, peers=tuple(peers)), tuple(findings)


def _odd(peer: Peer, overlay: tuple[Prefix, ...], taken: set[object]) -> str | None:
    """Why no honest server names such a peer, or None."""
    if peer.kind is not PeerKind.CALNET:
        return "it is said to be a stock WireGuard peer: its endpoint, which nothing proves, would be the server's word alone"
    if not peer.addresses or not all(_inside(address, overlay) for address in peer.addresses):
        return "it has no address, or one outside the overlay"
    if taken & {peer.id, *peer.addresses, bytes(peer.node_key)}:
        return "its id, key or an address is another node's"
    return None


def _concerns(pin: Pin, peer: Peer) -> bool:
    return pin.id == peer.id or pin.name == peer.name or any(str(address) in pin.addresses for address in peer.addresses)


def _with_fit_routes(peer: Peer, overlay: tuple[Prefix, ...], pinned: list[Address], findings: list[Finding]) -> Peer:
    refused: set[Prefix] = set()
    for route in (*peer.routes, *peer.backup_routes):
        why = unfit(route, overlay)
        if why is None and any(address in route for address in pinned):
            why = "it holds a pinned peer's address"
        if why is not None:
            refused.add(route)
            findings.append(Finding("route-refused", f"the route {route} of {peer.name} is not used: {why}"))
    if not refused:
        return peer
    fit, backup = (tuple(route for route in routes if route not in refused) for routes in (peer.routes, peer.backup_routes))
    return replace(peer, routes=fit, backup_routes=backup)


def unfit(route: Prefix, overlay: Iterable[Prefix]) -> str | None:
    """Why nobody's routes may hold this prefix, or None if they may."""
    if route.prefixlen == 0:
        return "a default route is an exit node's, which Calnet doesn't offer yet"
    if any(overlaps(route, never) for never in _NEVER):
        return "loopback, link-local and multicast addresses are never routed"
    if any(overlaps(route, prefix) for prefix in overlay):
        return "it overlaps the overlay's own prefix"
    return None


def plan_routes(netmap: Netmap, attached: Iterable[Prefix], *, accept_routes: bool) -> RoutePlan:
    """The overlay's prefixes, and with `accept_routes` the peers' routes, never over a directly attached subnet."""
    subnets = tuple(attached)
    routes, findings = _overlay_routes(netmap, subnets)
    excepted: dict[Prefix, None] = {subnet: None for subnet in subnets if any(_covers(route, subnet) for route in routes)}
    own = set(netmap.self.routes)
    for peer in netmap.peers if accept_routes else ():
        for route in peer.routes:
            if route in routes or route in own or route in netmap.prefixes:
                continue
            over = next((subnet for subnet in subnets if _covers(subnet, route)), None)
            if over is not None:
                findings.append(Finding("route-attached", f"the route {route} of {peer.name} is not used: this machine is attached to {over} itself"))
                continue
            routes.append(route)
            excepted.update((subnet, None) for subnet in subnets if _covers(route, subnet))
    return RoutePlan(tuple(routes), tuple(excepted), tuple(findings))


def _overlay_routes(netmap: Netmap, subnets: tuple[Prefix, ...]) -> tuple[list[Prefix], list[Finding]]:
    """The overlay's prefixes that may be routed, and what of them is not: the server chose them, but not the network this machine stands in.

    A provider's shared address space (RFC 6598) around an overlay is no such network: most overlays lie in it, and no neighbours of ours do.
    """
    routes: list[Prefix] = []
    findings: list[Finding] = []
    for prefix in dict.fromkeys(netmap.prefixes):
        over = next((subnet for subnet in subnets if _covers(subnet, prefix) and (subnet == prefix or not _covers(_SHARED, subnet))), None)
        if over is None:
            routes.append(prefix)
        for subnet in (over,) if over is not None else (subnet for subnet in subnets if _covers(prefix, subnet)):
            text = f"the overlay {prefix} meets {subnet}, which this machine is attached to itself: peers with addresses in both are not reached"
            findings.append(Finding("overlay-attached", f"{text}; give the server another --prefix"))
    return routes, findings


def _covers(outer: Prefix, inner: Prefix) -> bool:
    return outer.version == inner.version and outer.prefixlen <= inner.prefixlen and inner.network_address in outer


def routers_of(peers: Iterable[Peer]) -> dict[Prefix, tuple[NodeId, ...]]:
    """Who may route each prefix that somebody routes now: the server's choice first, then the others in the netmap's order."""
    known = [peer for peer in peers if peer.kind is PeerKind.CALNET]
    routers: dict[Prefix, dict[NodeId, None]] = {}
    for peer in known:
        for route in peer.routes:
            routers.setdefault(route, {})[peer.id] = None
    for peer in known:
        for route in peer.backup_routes:
            if route in routers:
                routers[route][peer.id] = None
    return {route: tuple(order) for route, order in routers.items()}


def rerouted(peers: Iterable[Peer], carries: Callable[[NodeId], tuple[Prefix, ...]]) -> list[Finding]:
    """The prefixes that a router carries for this node in the place of the server's choice."""
    table = tuple(peers)
    chosen = {route: peer.name for peer in reversed(table) for route in peer.routes}
    moved = ((route, peer) for peer in table for route in carries(peer.id) if route not in peer.routes and route in chosen)
    return [Finding("router-silent", f"{route} is reached through {peer.name}: its router {chosen[route]} did not answer") for route, peer in moved]


def check_advertised(texts: Iterable[str], overlay: Iterable[Prefix] = ()) -> tuple[str, ...]:
    """Prefixes the user wants to advertise, in canonical text. InvalidError names the first that can't be one, and what was meant."""
    checked: dict[str, None] = {}
    for text in texts:
        try:
            prefix = ip_network(text)
        except ValueError:
            raise InvalidError(_explain(text)) from None
        why = unfit(prefix, overlay)
        if why is not None:
            raise InvalidError(f"{text} can't be advertised: {why}")
        checked[str(prefix)] = None
    if len(checked) > MAX_ROUTES:
        raise InvalidError(f"at most {MAX_ROUTES} prefixes can be advertised")
    return tuple(checked)


def _explain(text: str) -> str:
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        return f"{text!r} is not a prefix such as 192.168.7.0/24"
    return f"{text} has bits set behind its length; did you mean {meant}?"


def key_changes(old: Netmap | None, new: Netmap) -> tuple[tuple[Peer, bytes, bool], ...]:
    """Peers whose node key differs from the one known before: (peer, old key, whether the server says it is a renewal of that very key)."""
    if old is None:
        return ()
    before = {peer.id: peer.node_key for peer in old.peers}
    return tuple(
        (peer, before[peer.id], peer.previous_node_key == before[peer.id]) for peer in new.peers if peer.id in before and before[peer.id] != peer.node_key
    )
