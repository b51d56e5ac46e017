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

from calnet.model import Netmap, NodeId, Relay
from calnet.roles.server.registry import Registry
from calnet.roles.server.settings import PublicUrl
from calnet.roles.server.standing import Changed
from calnet.roles.server.timing import Timing

HISTORY_PER_NODE: Final = 2
"""Netmaps that were sent last: a node that comes back may not have had the very last. Each holds as many references as the node has peers."""
HISTORY_NODES: Final = 4096
GATHER_SHARE: Final = 2.0
MAX_GATHER_S: Final = 5.0
LEAST_GATHER_S: Final = 0.02
QUIET_S: Final = 1.0
MAX_STRANGERS: Final = 1024
"""Sessions of machines that nobody admitted yet: anybody can make a control key. One more ends the oldest of them."""
MAX_STRANGERS_PER_SOURCE: Final = 256


class LoginUrls(Protocol):
    """What single sign-on offers machines that wait."""

    async def login_url(self, code: str) -> str:
        """Where a person signs in for the machine with this approval code; empty where that can't be done now."""


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
    """See the module. `public_url` is the URL to name in netmaps, None for the one by which each node came; `stun_port` is this server's."""

    def __init__(
        self, registry: Registry, *, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], public_url: PublicUrl | None, stun_port: int, timing: Timing
    ) -> None:
        self.registry = registry
        self.clock = clock
        self.timing = timing
        self._loop = loop
        self._public_url = public_url
        self._stun_port = stun_port
        self._sessions: dict[bytes, Session] = {}
        self._by_node: dict[NodeId, Session] = {}
        self._sent: OrderedDict[NodeId, OrderedDict[int, Netmap]] = OrderedDict()
        self._strangers: dict[Session, None] = {}
        self._dirty: set[NodeId] = set()
        self._gathering: asyncio.TimerHandle | None = None
        self._closing = False
        self._telling_s = 0.0
        self._told_at = -math.inf
        self.elsewhere: Callable[[NodeId, NodeId, tuple[str, ...]], None] | None = None
        """Passes candidates on for a node that is not connected here, where several servers share the store."""
        self.signin: LoginUrls | None = None
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
        elif self._dirty and self._gathering is None:
            self._gathering = self._loop.call_later(self._gather_s(), self._flush)

    def _gather_s(self) -> float:
        """How long to gather: hardly at all after a quiet while; longer while telling everybody takes long, so that others are served in between."""
        quiet = self._loop.time() - self._told_at
        if quiet > QUIET_S:
            return min(self.timing.gather_s, LEAST_GATHER_S)
        return max(self.timing.gather_s, min(GATHER_SHARE * self._telling_s, MAX_GATHER_S) - quiet)

    def _told(self, began: float) -> None:
        """Runs behind the sessions that were woken before it: the time since then is what they took of the loop."""
        self._told_at = self._loop.time()
        self._telling_s = self._told_at - began

    def _flush(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        dirty, self._dirty = self._dirty, set()
        for node in dirty:
            if (session := self._by_node.get(node)) is not None:
                session.netmap_due()
        self._loop.call_soon(self._loop.call_soon, self._told, self._loop.time())

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

    def netmap_of(self, node: NodeId, origin: PublicUrl) -> Netmap:
        """The node's netmap now, with this server's relay and STUN as that node reaches them. NotFoundError for a node that is not active."""
        url = self._public_url or origin
        return self.registry.netmap(node, (Relay(url.relay),), (url.stun(self._stun_port),))

    def remember(self, node: NodeId, netmap: Netmap) -> None:
        """The node was sent this netmap: a later session may name it."""
        sent = self._sent.setdefault(node, OrderedDict())
        self._sent.move_to_end(node)
        sent[netmap.version] = netmap
        while len(sent) > HISTORY_PER_NODE:
            sent.popitem(last=False)
        while len(self._sent) > HISTORY_NODES:
            self._sent.popitem(last=False)

    def recall(self, node: NodeId, version: int) -> Netmap | None:
        """The netmap of this version, if it was sent to this node and is still held."""
        sent = self._sent.get(node)
        return None if sent is None else sent.get(version)

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
