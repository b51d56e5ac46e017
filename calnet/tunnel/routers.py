"""Which router carries each prefix that several can route: the server's choice, and this node's own while that one does not answer.

Theory of operation. `configure` names the routers of each prefix, the server's choice first. One of them is the prefix's *carrier*: packets for the prefix
go to it. The shell reports such packets (`sent`), and what proves a router alive: a tunnel message of it (`heard`), or its answer to a ping (`answered`).

    follows     the carrier answers, or nothing is sent for the prefix: nothing is done
    suspects    what was sent has been without an answer for 1.5 s: the carrier is pinged every second, after one more second the others too
    moves       the carrier was silent for 6 s during all of which another router answered: that one is the carrier from now on

The last rule is what makes it safe: a node that is offline itself hears nobody and moves nothing, and when it is back, the carrier has the same 6 s as any
other router to be found again. So a move takes about 8.5 s from the first packet without an answer. A carrier that answers pings and yet sends no tunnel
message for 60 s of sending (it would owe a keepalive after 10, a handshake's response after 15) is left as well.

Nothing goes back by itself: the new carrier stays while it lives, whatever becomes of the old one (no preemption), until a netmap names another first
router, or no longer names it. A router that was left is not chosen again for 30 s, doubled each time up to 120 s. So with n routers there are at most n moves
in any 30 s, and none but the netmap's to a router that does not answer.

Error contract: nothing raises. What is said of routers and prefixes that `configure` didn't name is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from calnet.model import NodeId, Prefix
from calnet.tunnel.constants import NEW_HANDSHAKE_TIMEOUT
from calnet.tunnel.peer import LONG_AGO
from calnet.tunnel.prefixes import PrefixTable
from calnet.tunnel.timers import NEVER

SUSPECT_AFTER: Final = 1.5
"""Packets without an answer for so long, and the carrier is pinged. More than a round trip: who is answered is never pinged."""
OTHERS_AFTER: Final = 1.0
"""A ping to the carrier unanswered for so long, and the others are pinged too."""
PROBE_INTERVAL: Final = 1.0
PROBE_INTERVAL_DEAD: Final = 5.0
"""Between pings while no router at all answers…"""
SLOW_AFTER: Final = 20.0
"""…for so long."""
ANSWER_WITHIN: Final = 5.0
"""A ping's answer that took longer proves nothing of now."""
GAP: Final = 3.0
"""A router that says nothing for longer has stopped answering: two lost pings in a row are allowed. Less than DEAD_AFTER, so that a machine that was
stopped for a while asks before it moves."""
DEAD_AFTER: Final = 6.0
"""The carrier is silent for so long while another answers, and is left. More than a round of path finding (5 s) without a relay."""
NO_DATA_AFTER: Final = 4 * NEW_HANDSHAKE_TIMEOUT
"""It answers pings, but no tunnel message came for so long. Far more than the tunnel takes to find out: path finding may have to leave a path first, and on a
network that loses every third datagram both ways some handshakes in a row fail."""
LAPSE: Final = 15.0
"""Nothing was sent for the prefix for so long: it is watched no more. A single packet without an answer is enough to move."""
HOLD_FIRST: Final = 30.0
HOLD_LONGEST: Final = 120.0
"""A router that was left is not chosen for so long; doubled each time."""
FORGIVE_AFTER: Final = 600.0
"""A router that wasn't left for so long begins anew with HOLD_FIRST."""
MAX_ROUTERS: Final = 8
"""Routers of one prefix that are looked at: what a netmap can make us ping."""


@dataclass(frozen=True, slots=True)
class ProbeRouter:
    """Ping the router by whatever path there is, and tell its answer to `answered`."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class RouterMoved:
    """Packets for the prefix go to `new` from now on; `why` is for the log."""

    prefix: Prefix
    old: NodeId
    new: NodeId
    why: str


RouterEffect = ProbeRouter | RouterMoved


class _Life:
    """What is known of a router's life, whatever it routes."""

    __slots__ = ("carried_at", "heard_at", "probed_at", "since")

    def __init__(self) -> None:
        self.heard_at = LONG_AGO
        """Its last tunnel message or answer."""
        self.carried_at = LONG_AGO
        """Its last tunnel message."""
        self.since = LONG_AGO
        """It has answered since then, without a gap."""
        self.probed_at = LONG_AGO

    def answers(self, now: float) -> bool:
        return now - self.heard_at <= GAP

    def heard(self, now: float) -> None:
        if not self.answers(now):
            self.since = now
        self.heard_at = now


class _Hold:
    """A router that was left: not chosen before `until`."""

    __slots__ = ("left_at", "times", "until")

    def __init__(self) -> None:
        self.times = 0
        self.left_at = self.until = LONG_AGO

    def left(self, now: float) -> None:
        self.times = 1 if now - self.left_at > FORGIVE_AFTER else self.times + 1
        self.left_at, self.until = now, now + hold_time(self.times)


class _Watch:
    """One prefix with several routers. What was sent before the carrier's last word counts as answered."""

    __slots__ = ("carrier", "holds", "life", "prefix", "routers", "sent_at", "sent_since_carried", "sent_since_heard")

    def __init__(self, prefix: Prefix, routers: tuple[NodeId, ...], life: _Life) -> None:
        self.prefix, self.routers, self.carrier, self.life = prefix, routers, routers[0], life
        self.holds: dict[NodeId, _Hold] = {}
        self.rest()

    def rest(self) -> None:
        """Nothing waits for an answer."""
        self.sent_at = self.sent_since_heard = self.sent_since_carried = LONG_AGO

    def sent(self, now: float) -> None:
        if self.sent_since_heard <= self.life.heard_at:
            self.sent_since_heard = now
        if self.sent_since_carried <= self.life.carried_at:
            self.sent_since_carried = now
        self.sent_at = now

    def silent_since(self) -> float:
        """When the first packet was sent that the carrier hasn't answered at all; NEVER if it has answered."""
        return self.sent_since_heard if self.sent_since_heard > self.life.heard_at else NEVER

    def empty_since(self) -> float:
        """The same, where only tunnel messages count as an answer."""
        return self.sent_since_carried if self.sent_since_carried > self.life.carried_at else NEVER

    def suspect_at(self) -> float:
        """When pinging begins."""
        return min(self.silent_since() + SUSPECT_AFTER, self.empty_since() + NO_DATA_AFTER - 2 * DEAD_AFTER)

    def held(self, router: NodeId, now: float) -> bool:
        hold = self.holds.get(router)
        return hold is not None and now < hold.until


class Routers:
    """See the module's docstring. After each call the shell performs the effects in order and sleeps until `next_deadline()`, then calls `on_timer`."""

    def __init__(self) -> None:
        self._watches: dict[Prefix, _Watch] = {}
        self._table: PrefixTable[Prefix] = PrefixTable(())
        self._lives: dict[NodeId, _Life] = {}
        self._awake: dict[Prefix, _Watch] = {}
        """Prefixes that something was sent for lately."""
        self._deadline = NEVER
        """Not later than anything that is due."""

    # --- What the netmap says ---

    def configure(self, routers: Mapping[Prefix, tuple[NodeId, ...]]) -> list[RouterMoved]:
        """The routers of all prefixes, the server's choice first: they replace the last ones. Where the server chose another, or this node's own choice
        is no router any more, the server is followed; returns the carriers that change by this."""
        several = {prefix: order[:MAX_ROUTERS] for prefix, order in routers.items() if len(order) > 1}
        names = {router for order in several.values() for router in order}
        self._lives = {router: self._lives.get(router) or _Life() for router in names}
        # a longer prefix with one router hides what lies within from a shorter one with several
        self._table = PrefixTable((prefix, prefix) for prefix in routers) if several else PrefixTable(())
        before, self._watches = self._watches, {}
        moves: list[RouterMoved] = []
        for prefix, order in several.items():
            watch = self._watches[prefix] = before.get(prefix) or _Watch(prefix, order, self._lives[order[0]])
            moves += self._follow(watch, order)
        self._awake = {prefix: self._watches[prefix] for prefix in self._awake if prefix in self._watches}
        return moves

    def _follow(self, watch: _Watch, order: tuple[NodeId, ...]) -> list[RouterMoved]:
        stays = order[0] == watch.routers[0] and watch.carrier in order
        watch.routers = order
        watch.holds = {router: hold for router, hold in watch.holds.items() if router in order}
        old = watch.carrier
        if stays or old == order[0]:
            watch.life = self._lives[old]
            return []
        self._carry(watch, order[0])
        return [RouterMoved(watch.prefix, old, order[0], "the server moved it")]

    def carrier(self, prefix: Prefix) -> NodeId | None:
        """Who carries the prefix; None for one that has not several routers."""
        watch = self._watches.get(prefix)
        return None if watch is None else watch.carrier

    # --- What happens ---

    def sent(self, destination: bytes, now: float) -> None:
        """A packet to this address (packed) was sent, or waits to be. Need not be called for each packet of a flow."""
        if not self._watches:
            return
        prefix = self._table.lookup(destination)
        watch = None if prefix is None else self._watches.get(prefix)
        if watch is None:
            return
        watch.sent(now)
        self._awake.setdefault(watch.prefix, watch)
        self._deadline = min(self._deadline, now + SUSPECT_AFTER)

    def heard(self, peer: NodeId, now: float) -> None:
        """An authenticated tunnel message of this peer came."""
        life = self._lives.get(peer)
        if life is not None:
            life.carried_at = now
            life.heard(now)

    def answered(self, peer: NodeId, now: float, rtt_s: float) -> None:
        """The peer answered a ping after `rtt_s` seconds."""
        life = self._lives.get(peer)
        if life is not None and rtt_s <= ANSWER_WITHIN:
            life.heard(now)

    # --- Time ---

    def next_deadline(self) -> float | None:
        """When to call `on_timer`, None for never. It may turn out too early; then nothing happens but a new deadline."""
        return None if self._deadline == NEVER else self._deadline

    def on_timer(self, now: float) -> list[RouterEffect]:
        """Does what is due."""
        effects: list[RouterEffect] = []
        for prefix, watch in list(self._awake.items()):
            if now - watch.sent_at >= LAPSE:
                watch.rest()
                del self._awake[prefix]
                continue
            effects += self._move(watch, now) or self._probe(watch, now)
        self._deadline = min((when for watch in self._awake.values() for when in self._due(watch, now)), default=NEVER)
        return effects

    def _move(self, watch: _Watch, now: float) -> list[RouterMoved]:
        found = self._successor(watch, now)
        if found is None:
            return []
        old, (new, why) = watch.carrier, found
        watch.holds.setdefault(old, _Hold()).left(now)
        self._carry(watch, new)
        return [RouterMoved(watch.prefix, old, new, why)]

    def _carry(self, watch: _Watch, router: NodeId) -> None:
        watch.carrier, watch.life = router, self._lives[router]
        watch.rest()
        self._awake.pop(watch.prefix, None)

    def _successor(self, watch: _Watch, now: float) -> tuple[NodeId, str] | None:
        """The first router, in the server's order, that has answered for as long as the carrier has to be silent; and why."""
        silent, empty = watch.silent_since(), watch.empty_since()
        for router in watch.routers:
            life = self._lives[router]
            if router == watch.carrier or watch.held(router, now) or not life.answers(now):
                continue
            if now - max(silent, life.since) >= DEAD_AFTER:
                return router, f"no answer for {now - silent:.0f} s"
            if now - empty >= NO_DATA_AFTER and now - life.since >= DEAD_AFTER:
                return router, f"it answers pings, but sent no tunnel message for {now - empty:.0f} s"
        return None

    def _probe(self, watch: _Watch, now: float) -> list[ProbeRouter]:
        probes: list[ProbeRouter] = []
        for router, due in self._probes(watch, now):
            if due <= now:
                self._lives[router].probed_at = now
                probes.append(ProbeRouter(router))
        return probes

    def _probes(self, watch: _Watch, now: float) -> Iterator[tuple[NodeId, float]]:
        """Whom to ping while the prefix is suspected, and when."""
        begin = watch.suspect_at()
        if begin == NEVER:
            return
        dead = now - begin >= SLOW_AFTER and not any(self._lives[router].answers(now) for router in watch.routers)
        interval = PROBE_INTERVAL_DEAD if dead else PROBE_INTERVAL
        for router in watch.routers:
            first = begin if router == watch.carrier else begin + OTHERS_AFTER
            yield router, max(first, self._lives[router].probed_at + interval)

    def _due(self, watch: _Watch, now: float) -> Iterator[float]:
        yield watch.sent_at + LAPSE
        for router, due in self._probes(watch, now):
            yield due
            judged = max(watch.silent_since(), self._lives[router].since) + DEAD_AFTER
            if judged > now:
                yield judged


def hold_time(times: int) -> float:
    """How long a router is not chosen after it was left for the `times`-th time (from 1)."""
    return min(HOLD_FIRST * 2.0 ** min(times - 1, 10), HOLD_LONGEST)
