"""All control sessions of this server: who is connected, who is told what changed, and when.

One event loop owns it. The registry calls `changed` on whichever thread committed; everything else happens on the loop. Changes of netmaps are gathered for
up to 250 ms, what takes access away is told at once; each session then computes its own delta when it can send it, so that a slow reader
costs one netmap and not a queue of them.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from calnet.limits import RateLimiter
from calnet.model import NodeId, Relay
from calnet.roles.server.handover import Handover
from calnet.roles.server.netmaps import View
from calnet.roles.server.registry import Registry
from calnet.roles.server.settings import PublicUrl
from calnet.roles.server.standing import Changed, Login
from calnet.roles.server.timing import Timing
from calnet.wire.control import NetmapDelta, NetmapFull

HISTORY_PER_NODE: Final = 2
"""Netmaps that a node may come back with: it may not have had the very last."""
HISTORY_NODES: Final = 65_536
AT_ONCE: Final = 64
"""Sessions that are woken before others of the event loop have their turn."""
GATHER_SHARE: Final = 4.0
"""Telling takes a fifth of the time where changes never end."""
MAX_GATHER_S: Final = 5.0
LEAST_GATHER_S: Final = 0.02
QUIET_S: Final = 1.0
REQUESTS_PER_S: Final = 1.0
"""Requests of one machine that cost a commit."""
REQUESTS_BURST: Final = 30.0
MAX_URLS: Final = 64
MAX_STRANGERS: Final = 1024
"""Sessions of machines that nobody admitted yet: anybody can make a control key. One more ends the oldest of them."""
MAX_STRANGERS_PER_SOURCE: Final = 256


class Logins(Protocol):
    """What single sign-on offers machines that wait."""

    async def login(self, code: str) -> Login:
        """Where a person signs in for the machine with this approval code."""


class Session(Protocol):
    """What the hub needs of a control session."""

    control_key: bytes
    node: NodeId | None
    source: bytes
    """Where it comes from (endpoints.source_network)."""

    def end(self, code: str, text: str) -> None:
        """Say `Bye` and close; nothing that arrives is acted on any more."""

    def netmap_due(self) -> None:
        """Send what changed in the netmap as soon as the connection takes it."""

    def standing_changed(self) -> None:
        """Look up where this machine stands, tell it, and end where it may not stay."""

    def deliver_candidates(self, sender: NodeId, endpoints: tuple[str, ...]) -> None:
        """Pass on a peer's candidates."""


class ControlHub:
    """See the module. `public_url` is the URL to name in netmaps, None for the one by which each node came; `stun_ports` are this server's;
    `handover` is of the process before this one."""

    def __init__(
        self,
        registry: Registry,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        public_url: PublicUrl | None,
        stun_ports: tuple[int, ...],
        timing: Timing,
        handover: Handover | None = None,
    ) -> None:
        self.registry = registry
        self.requests = RateLimiter(REQUESTS_PER_S, REQUESTS_BURST)
        """By control key: a machine that connects anew has no more."""
        self.clock = clock
        self.timing = timing
        self._loop = loop
        self._public_url = public_url
        self._stun_ports = stun_ports
        self._sessions: dict[bytes, Session] = {}
        self._by_node: dict[NodeId, Session] = {}
        self._told: OrderedDict[NodeId, tuple[View, ...]] = OrderedDict({} if handover is None else handover.views)
        self._reached: dict[PublicUrl, tuple[tuple[Relay, ...], tuple[str, ...]]] = {}
        self._telling: OrderedDict[NodeId, None] = OrderedDict()
        """Who is to be woken, each once: a session that is woken tells all there is by then."""
        self._strangers: dict[Session, None] = {}
        self._dirty: set[NodeId] = set()
        self._gathering: asyncio.TimerHandle | None = None
        self._closing = False
        self._telling_s = 0.0
        self._told_at = -math.inf
        self.elsewhere: Callable[[NodeId, NodeId, tuple[str, ...]], None] | None = None
        """Passes candidates on for a node that is not connected here, where several servers share the store."""
        self.signin: Logins | None = None
        """Single sign-on, where it is configured."""

    def __len__(self) -> int:
        return len(self._sessions)

    # --- what the registry says

    def changed(self, change: Changed) -> None:
        """A durable batch, or presence, changed this."""
        for node in change.standings:
            if (session := self._by_node.get(node)) is not None:
                session.standing_changed()
        self._dirty |= change.netmaps & self._by_node.keys()
        if change.urgent:
            self._flush()
        else:
            self._gather()

    def _gather(self) -> None:
        """Tell of what is not urgent in a while. What comes while others are being told waits until they were: else a server with more to tell than it can
        would be asked for ever more."""
        if self._dirty and self._gathering is None and not self._telling:
            self._gathering = self._loop.call_later(self._gather_s(), self._flush)

    def _gather_s(self) -> float:
        """How long to gather: hardly at all after a quiet while; longer while telling everybody takes long, so that others are served in between."""
        quiet = self._loop.time() - self._told_at
        if quiet > QUIET_S:
            return min(self.timing.gather_s, LEAST_GATHER_S)
        return max(self.timing.gather_s, min(GATHER_SHARE * self._telling_s, MAX_GATHER_S) - quiet)

    def _flush(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        dirty, self._dirty = self._dirty, set()
        idle = not self._telling
        self._telling.update(dict.fromkeys(dirty))
        if idle and dirty:
            self._tell_some(self._loop.time())

    def _tell_some(self, began: float) -> None:
        """Wake the next sessions. The loop's time until all were woken is what telling takes."""
        for _ in range(min(AT_ONCE, len(self._telling))):
            if (session := self._by_node.get(self._telling.popitem(last=False)[0])) is not None:
                session.netmap_due()
        if self._telling:
            self._loop.call_soon(self._tell_some, began)
        else:
            self._told_at = self._loop.time()
            self._telling_s = self._told_at - began
            self._gather()

    # --- what the sessions say

    def admit(self, session: Session) -> bool:
        """The session proved its control key: it replaces an older one of the same key. False while the server stops."""
        if self._closing:
            return False
        older = self._sessions.get(session.control_key)
        self._sessions[session.control_key] = session
        if session.node is not None:
            self.bind(session, session.node)
        if older is not None:
            older.end("replaced", "a newer session of this machine took its place")
        return True

    def receive_stranger(self, session: Session) -> bool:
        """The session's machine waits to be admitted; where too many do, the oldest goes. False where too many come from its place."""
        if sum(other.source == session.source for other in self._strangers) >= MAX_STRANGERS_PER_SOURCE:
            return False
        if len(self._strangers) >= MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.end("replaced", "too many machines wait to be admitted; connect again")
        self._strangers[session] = None
        return True

    def admitted(self, session: Session) -> None:
        """The session's machine is a node of the network now, or the session is over."""
        self._strangers.pop(session, None)

    def bind(self, session: Session, node: NodeId) -> None:
        """The session's machine is this node now."""
        if self._sessions.get(session.control_key) is not session:
            return
        session.node = node
        known = self._by_node.get(node)
        self._by_node[node] = session
        if known is None:
            self.registry.connected(node, session.source)

    def leave(self, session: Session) -> None:
        """The session ended; nothing happens where a newer one has its place."""
        self.admitted(session)
        if self._sessions.get(session.control_key) is session:
            del self._sessions[session.control_key]
        if session.node is not None and self._by_node.get(session.node) is session:
            del self._by_node[session.node]
            self.registry.disconnected(session.node)

    def pass_candidates(self, sender: NodeId, receiver: NodeId, endpoints: tuple[str, ...]) -> bool:
        """Give the sender's candidates to a peer. False where the two don't see each other; a peer without a session gets nothing."""
        if not self.registry.sees(sender, receiver):
            return False
        if (session := self._by_node.get(receiver)) is not None:
            session.deliver_candidates(sender, endpoints)
        elif self.elsewhere is not None:
            self.elsewhere(sender, receiver, endpoints)
        return True

    def deliver_candidates(self, sender: NodeId, receiver: NodeId, endpoints: tuple[str, ...]) -> None:
        """Another server passes a node's candidates on to one that is connected here."""
        if self.registry.sees(sender, receiver) and (session := self._by_node.get(receiver)) is not None:
            session.deliver_candidates(sender, endpoints)

    # --- netmaps

    def news(self, node: NodeId, held: View | None, origin: PublicUrl) -> tuple[View, NetmapFull | NetmapDelta | None]:
        """As Registry.news, with this server's relay and STUN as that node reaches them."""
        view, message = self.registry.news(node, held, *self._reached_by(self._public_url or origin))
        if message is not None:
            self._told[node] = (*self._told.get(node, ()), view)[-HISTORY_PER_NODE:]
            self._told.move_to_end(node)
            if len(self._told) > HISTORY_NODES:
                self._told.popitem(last=False)
        return view, message

    def recall(self, node: NodeId, version: int) -> View | None:
        """What a node holds that names this version, if it was told so here and that is still known."""
        return next((view for view in self._told.get(node, ()) if view.version == version), None)

    def forget(self, node: NodeId) -> None:
        """The node is told by another server now."""
        self._told.pop(node, None)

    def hand_over(self) -> Handover:
        """For the next process of this server."""
        return self.registry.hand_over(dict(self._told))

    def _reached_by(self, url: PublicUrl) -> tuple[tuple[Relay, ...], tuple[str, ...]]:
        """Relays and STUN servers, one value for all who come by the same URL."""
        found = self._reached.get(url)
        if found is None:
            if len(self._reached) >= MAX_URLS:
                self._reached.clear()
            found = self._reached[url] = (Relay(url.relay),), tuple(map(url.stun, self._stun_ports))
        return found

    def set_public_url(self, url: PublicUrl | None) -> None:
        """Name another URL in netmaps from now on, and tell every node."""
        if url != self._public_url:
            self._public_url = url
            self._dirty.update(self._by_node)
            self._flush()

    def close(self) -> None:
        """End every session, because the server stops; none is admitted any more."""
        self._closing = True
        for session in list(self._sessions.values()):
            session.end("shutdown", "the server stops; connect again shortly")
