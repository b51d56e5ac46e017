"""Hard pairs: one side's NAT maps every destination to another port, the other's lets in only what it has sent to. Pure.

No candidate works there: where the hard side's packets to this peer will come from, nobody can say. So both guess, bounded, and by the birthday paradox soon
meet:

    the hard side asks by relay; the easy side grants it, and sends probes to many ports of the hard side's public address: those past its last known one first
    (where the NAT counts up, that is enough), then those around it, then any;
    some seconds later (sooner where the NAT counts up) the hard side, if it was granted, sends one probe from each of many sockets to the easy side's public
    endpoint: each opens another port of its NAT;
    as soon as a probe of one side meets an open port of the other, it is answered: that is the path.

The easy side begins, since a Linux router that refused a packet from somewhere gives what is sent there another port, and what is sent to new places after
that the same other one. So the hard side's port that it knocked from already, which is near the last known one, comes late. 1,200 ports and 256 sockets meet
in 99 of 100 trials; the numbers below keep both sides together under 2,000 packets.

Sockets have numbers from 1; 0 is the port that everything else uses.

Error contract: nothing raises. What a peer asks for is done at most MAX_ASKED times in ASKED_WINDOW_S, whoever asks, MAX_ASKED_BY_ONE times for one peer, and
goes to one address, which gets at most MAX_TRIES_AT_HOST probes in that time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from calnet.crypto.keys import RandomBytes
from calnet.model import Endpoint, NodeId
from calnet.paths.effects import CloseSockets

SOCKETS: Final = 256
PORTS: Final = 1200
PER_S: Final = 100.0
MADE_UP_FOR_S: Final = 0.1
LEAD_S: Final = 7.0
"""The easy side's, before the hard side opens sockets."""
LENGTH_S: Final = 20.0
LINGER_S: Final = 2.0
"""After a path is found, until the sockets that are not in use go."""
COUNTED_LEAD_S: Final = 1.5
"""The same where the hard side's NAT counts up."""
AROUND: Final = 16
"""Ports before and behind the last known one, where a NAT counts, that may be in use already."""
AHEAD: Final = 80
"""Ports behind it that come next."""
CLOSE_TOGETHER: Final = 16
"""Ports this near to each other were counted, not drawn."""
FIRST_PAUSE_S: Final = 60.0
LONGEST_PAUSE_S: Final = 3600.0
MAX_ASKED: Final = 4
MAX_ASKED_BY_ONE: Final = 2
MAX_TRIES_AT_HOST: Final = 2 * PORTS
"""Whoever names the address; those that met soon cost it little."""
ASKED_WINDOW_S: Final = 600.0
_FIRST_PORT: Final = 1024


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the peer, by relay, to probe ports of `host`, those from `first` on before others (0: none in particular)."""

    peer: NodeId
    host: Endpoint
    first: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Tell the peer, by relay, that it is done."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Try:
    """Probe the peer's `endpoint` from a socket."""

    peer: NodeId
    endpoint: Endpoint
    socket: int


SprayAction = Ask | Grant | Try | CloseSockets


@dataclass(slots=True)
class _Hard:
    """This node is the hard side."""

    peer: NodeId
    target: Endpoint | None
    """Where to meet the easy side, once it granted what it was asked."""
    began_at: float
    opened: int = 0
    next_at: float = 0.0


@dataclass(slots=True)
class _Asked:
    """What was granted, and how many probes came of it so far."""

    peer: NodeId
    host: str
    at: float
    tries: int = 0


@dataclass(slots=True)
class _Easy:
    """This node is the easy side."""

    asked: _Asked
    ports: deque[int]
    next_at: float


@dataclass(slots=True)
class _Rest:
    """A peer with whom it did not work."""

    until: float
    pause_s: float = FIRST_PAUSE_S


@dataclass(slots=True)
class Spray:
    """See the module. At most one peer at a time, and one side of it."""

    random: RandomBytes
    _hard: _Hard | None = None
    _easy: _Easy | None = None
    _close_at: float | None = None
    _rests: dict[NodeId, _Rest] = field(default_factory=dict)
    _asked: deque[_Asked] = field(default_factory=deque)

    def begin(self, peer: NodeId, own: tuple[Endpoint, ...], now: float) -> list[SprayAction]:
        """This node is the hard side, data flows and nothing answered: begin unless it is no use now. `own` is where servers saw us."""
        rest = self._rests.get(peer)
        if self._hard is not None or self._easy is not None or not own or (rest is not None and now < rest.until):
            return []
        first = _counted(own)
        self._hard = _Hard(peer, None, now, next_at=now + (COUNTED_LEAD_S if first else LEAD_S))
        return [Ask(peer, own[0], first)]

    def granted(self, peer: NodeId, endpoint: Endpoint) -> None:
        """The peer does what it was asked, and is to be met there."""
        if self._hard is not None and self._hard.peer == peer and self._hard.target is None:
            self._hard.target = endpoint

    def asked(self, peer: NodeId, host: str, first: int, now: float) -> list[SprayAction]:
        """The peer is the hard side, and asks us to probe ports of this address of its."""
        while self._asked and self._asked[0].at <= now - ASKED_WINDOW_S:
            self._asked.popleft()
        if self._hard is not None or self._easy is not None or not self._may_grant(peer, host):
            return []
        asked = _Asked(peer, host, now)
        self._asked.append(asked)
        drawn = self.random(2 * 2 * PORTS)
        any_ = (int.from_bytes(drawn[at : at + 2], "big") for at in range(0, len(drawn), 2))
        near = [*range(first + AROUND, first + AHEAD), *range(first + AROUND - 1, first - AROUND, -1)] if first else []
        ports = dict.fromkeys(port for port in (*near, *any_) if _FIRST_PORT <= port < 65_536)
        self._easy = _Easy(asked, deque(list(ports)[:PORTS]), now)
        return [Grant(peer), *self.on_timer(now)]

    def _may_grant(self, peer: NodeId, host: str) -> bool:
        """Whether one wish more keeps within the bounds for all, for the peer, and for the address."""
        tries = sum(asked.tries for asked in self._asked if asked.host == host)
        by_peer = sum(asked.peer == peer for asked in self._asked)
        return len(self._asked) < MAX_ASKED and by_peer < MAX_ASKED_BY_ONE and tries + PORTS <= MAX_TRIES_AT_HOST

    def heard(self, peer: NodeId) -> None:
        """A ping of the peer came directly: from where, is known now, and no port needs to be guessed."""
        if self._easy is not None and self._easy.asked.peer == peer:
            self._easy = None

    def found(self, peer: NodeId, now: float) -> None:
        """There is a path to the peer: enough."""
        self.heard(peer)
        if self._hard is not None and self._hard.peer == peer:
            self._hard = None
            self._close_at = now + LINGER_S
        self._rests.pop(peer, None)

    def forget(self, peers: Iterable[NodeId]) -> list[SprayAction]:
        """These peers are gone."""
        gone = set(peers)
        for peer in gone:
            self._rests.pop(peer, None)
        if self._easy is not None and self._easy.asked.peer in gone:
            self._easy = None
        if self._hard is not None and self._hard.peer in gone:
            self._hard = None
            return [CloseSockets()]
        return []

    def network_changed(self) -> list[SprayAction]:
        """Another NAT, perhaps: all begins anew."""
        self._hard = self._easy = self._close_at = None
        self._rests.clear()
        return [CloseSockets(all_=True)]

    def next_deadline(self) -> float | None:
        """When `on_timer` has something to do."""
        times = [self._easy.next_at] if self._easy is not None else []
        if self._hard is not None:
            times.append(self._hard.next_at if self._hard.opened < SOCKETS else self._hard.began_at + LENGTH_S)
        if self._close_at is not None:
            times.append(self._close_at)
        return min(times, default=None)

    def on_timer(self, now: float) -> list[SprayAction]:
        """Do what is due."""
        actions: list[SprayAction] = []
        if self._close_at is not None and now >= self._close_at:
            self._close_at = None
            if self._hard is None:
                actions.append(CloseSockets())
        return actions + self._go_on_easy(now) + self._go_on_hard(now)

    def _go_on_easy(self, now: float) -> list[SprayAction]:
        easy, actions = self._easy, list[SprayAction]()
        while easy is not None and easy.ports and now >= easy.next_at:
            easy.asked.tries += 1
            actions.append(Try(easy.asked.peer, Endpoint(easy.asked.host, easy.ports.popleft()), 0))
            easy.next_at = _next(easy.next_at, now)
        if easy is not None and not easy.ports:
            self._easy = None
        return actions

    def _go_on_hard(self, now: float) -> list[SprayAction]:
        hard, actions = self._hard, list[SprayAction]()
        if hard is None:
            return actions
        while hard.target is not None and hard.opened < SOCKETS and now >= hard.next_at:
            hard.opened += 1
            hard.next_at = _next(hard.next_at, now)
            actions.append(Try(hard.peer, hard.target, hard.opened))
        if now >= hard.began_at + LENGTH_S or (hard.target is None and now >= hard.next_at):
            self._hard = None
            self._rest(hard.peer, now)
            actions.append(CloseSockets())
        return actions

    def _rest(self, peer: NodeId, now: float) -> None:
        known = self._rests.get(peer)
        pause = FIRST_PAUSE_S if known is None else min(2 * known.pause_s, LONGEST_PAUSE_S)
        self._rests[peer] = _Rest(now + pause, pause)


def _next(due: float, now: float) -> float:
    """When the next try is due: what a machine that stood still missed is not made up for at once."""
    return max(due, now - MADE_UP_FOR_S) + 1 / PER_S


def _counted(own: tuple[Endpoint, ...]) -> int:
    """The last port, where the NAT gave out ports one after the other; 0 where it seems to draw them."""
    ports = sorted(endpoint.port for endpoint in own if endpoint.host == own[0].host)
    return ports[-1] if len(ports) > 1 and ports[-1] - ports[0] <= CLOSE_TOGETHER else 0
