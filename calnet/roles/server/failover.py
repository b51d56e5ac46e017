"""Which of several routers for one prefix routes it now. Pure.

The one that does goes on while it is there: a router that comes back does not take over (no preemption), so that one that comes and goes moves the prefix
once and not each time. Where it goes, another takes over that has been there the longest: one that comes and goes is the last to be chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from calnet.model import NodeId, Prefix


def choose(routers: Collection[NodeId], online: Mapping[NodeId, float], present: NodeId | None) -> NodeId | None:
    """The router of a prefix: the present one while it is online (`online` says since when), else the one that is for the longest; where none is, nothing
    moves. None without routers."""
    if present in routers and present in online:
        return present
    here = [router for router in routers if router in online]
    if here:
        return min(here, key=lambda router: (online[router], router))
    return present if present in routers else min(routers, default=None)


class Routers:
    """Who may route each prefix, and who does. Changed node by node."""

    def __init__(self) -> None:
        self._may: dict[Prefix, set[NodeId]] = {}
        self._does: dict[Prefix, NodeId] = {}
        self._routes: dict[NodeId, frozenset[Prefix]] = {}
        self._online: dict[NodeId, float] = {}
        """Since when, in Unix seconds."""

    def put(self, node: NodeId, routes: Iterable[Prefix], *, online: bool, since: float = 0.0) -> set[NodeId]:
        """Take in what a node may route now (nothing: it is gone), and since when it is online. The nodes that became or ceased to be the router of
        something."""
        old, new = self._routes.get(node, frozenset()), frozenset(routes)
        was_online = node in self._online
        if online:
            self._online[node] = since
        else:
            self._online.pop(node, None)
        if new:
            self._routes[node] = new
        else:
            self._routes.pop(node, None)
        for route in old - new:
            self._may[route].discard(node)
        for route in new - old:
            self._may.setdefault(route, set()).add(node)
        moved: set[NodeId] = set()
        for route in old | new if was_online != online else old ^ new:
            moved |= self._elect(route)
        return moved

    def routed_by(self, node: NodeId) -> frozenset[Prefix]:
        """The prefixes that it is the router of now."""
        return frozenset(route for route in self._routes.get(node, frozenset()) if self._does.get(route) == node)

    def primaries(self) -> dict[Prefix, NodeId]:
        """The router of each prefix."""
        return dict(self._does)

    def _elect(self, route: Prefix) -> set[NodeId]:
        present = self._does.get(route)
        chosen = choose(self._may[route], self._online, present)
        if not self._may[route]:
            del self._may[route]
        if chosen == present:
            return set()
        if chosen is None:
            del self._does[route]
        else:
            self._does[route] = chosen
        return {node for node in (present, chosen) if node is not None}
