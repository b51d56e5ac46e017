"""What was sent and received, told to tunnel, paths and routers when a turn's packets are through: timers, path finding and counters hear it once, not with
each batch. Pure.

Hot path. Runs of one session and route that follow one another are one sum, and so are batches of one session and source; where another comes, what was before
is told first. Received goes before sent: it came first, and what is sent after it may be its answer. What telling leads to is appended to `effects`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from calnet.model import Source
from calnet.paths.effects import PathEffect, Route
from calnet.paths.paths import Paths
from calnet.tunnel.effects import TunnelEffect
from calnet.tunnel.routers import RouterEffect, Routers
from calnet.tunnel.session import Session
from calnet.tunnel.tunnel import Tunnel

Effects = deque[TunnelEffect | PathEffect | RouterEffect]


class Accounts:
    """See the module's docstring. `now` is the time of the turn, set when it begins, `source` where what is received comes from; `wall` gives Unix seconds in
    server time."""

    def __init__(self, tunnel: Tunnel, paths: Paths, routers: Routers, effects: Effects, wall: Callable[[], float]) -> None:
        self._tunnel, self._paths, self._routers, self._effects, self._wall = tunnel, paths, routers, effects, wall
        self.now = 0.0
        self.source = Source(None, None)
        self.carried = False
        """Packets were sent or received since this was last made False: data, not keepalives."""
        self._sent_by: Session | None = None
        self._sent_route, self._sent_bytes = Route(None, False), 0
        self._got_by: Session | None = None
        self._got_from, self._got_bytes, self._got_data = Source(None, None), 0, False

    def sent(self, session: Session, route: Route, length: int) -> None:
        """So many bytes of datagrams were sealed and sent."""
        self.carried = True
        if session is not self._sent_by or route is not self._sent_route:
            self.tell()
            self._sent_by, self._sent_route = session, route
        self._sent_bytes += length

    def received(self, session: Session, length: int, data: bool) -> None:
        """So many were opened and their counters accepted; `data` is False if all were keepalives."""
        source = self.source
        if session is not self._got_by or source is not self._got_from:
            self.tell_received()
            self._got_by, self._got_from = session, source
        self._got_bytes += length
        if data:
            self._got_data = self.carried = True

    def has_news(self) -> bool:
        """Whether what was received and is not told yet changes under which session or where packets leave: that has to be done before any does."""
        session = self._got_by
        if session is None:
            return False
        peer, endpoint = session.peer, self._got_from.endpoint
        return session is not peer.current or (endpoint is not None and endpoint != peer.endpoint)

    def tell(self) -> None:
        """Tell what was received, then what was sent."""
        self.tell_received()
        self.tell_sent()

    def tell_received(self) -> None:
        """Also to be called before each probe: it may ask how much came before it."""
        session, self._got_by = self._got_by, None
        if session is not None:
            self._effects += self._tunnel.data_received(session, self._got_from, self.now, self._wall(), self._got_bytes, self._got_data)
            self._effects += self._paths.data_received(session.peer.id, self._got_from, self.now, self._got_bytes)
            self._routers.heard(session.peer.id, self.now)
            self._got_bytes, self._got_data = 0, False

    def tell_sent(self) -> None:
        """What was sent alone."""
        session, self._sent_by = self._sent_by, None
        if session is not None:
            self._tunnel.data_sent(session, self.now, self._sent_bytes, True)
            self._effects += self._paths.data_sent(session.peer.id, self.now, self._sent_route, self._sent_bytes)
            self._sent_bytes = 0
