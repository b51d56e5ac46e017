"""One Calnet peer's path: relay first, direct once proven, relay again when in doubt. Pure: events and time in, actions out.

Theory of operation. Four states:

    RELAYED   no direct path; data by relay, or nowhere without one. While data flows, attempts to find one.
    DIRECT    `best` answers: data goes there alone. A heartbeat while nothing is sent; a probe whenever an authenticated packet is overdue.
    DOUBTED   `best` has not answered for 0.8 s of sending (or the network changed): data goes there and by relay, and all candidates are tried.
    ASLEEP    nothing has flowed for 45 s, so `best` was no longer asked, and isn't trusted: data wakes it by relay. Without a relay data still
              goes to `best`, which had never failed, and leaves it if no answer comes.

    RELAYED → DIRECT    a candidate answers a probe
    DIRECT  → DOUBTED   nothing authenticated from `best` in time; the peer seems not to hear us, and `best` doesn't answer; the peer tells other candidates
                        than `best`, which it had told; the network changed
    DIRECT  → ASLEEP    trust ran out while idle
    DOUBTED → DIRECT    `best` or another candidate answers
    DIRECT, DOUBTED, ASLEEP → RELAYED   6.5 s without an answer although asked; or `best` carries no data for 20 s, or less than the relay (delivery.py), and
                                        there is another way

An attempt opens this side's NAT before it knocks at the peer's: a plain Linux router that gets a probe from somewhere before it sent there gives what is sent
there afterwards another port, which the peer's NAT does not know. So the first probes of an attempt that the peer does not know of end on their way
(`Probe.opening`), while the peer is told of it; it probes in full, since we are open, and when it tells us its candidates we know that it is. Where we moved
it may tell them before it knows where we are; and nothing goes to `best` while there is a relay.

Only an answer to a probe proves an endpoint: that something comes from there says nothing of what goes there. Data from `best` keeps it proven as long as
the peer is content; one that asks, or sends by relay, may not have heard us for a while, and is asked in turn. Data from elsewhere makes a candidate that is
probed.

A path is left, and held back for a while, where it is no good for data and there is another way. The hold ends when the network changes, and when no other way
is left.

What the user wants is part of the machine. `Way.DIRECT`: there is no relay for data (that the peer hears of attempts by it is no matter of data). `Way.RELAY`:
the machine rests in RELAYED; candidates are remembered, and nothing is probed.

The shell calls the event methods and after each asks `deadline`; `on_timer` may be called early. Actions are for `Paths`, which seals and sends.
Error contract: nothing raises.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from calnet.model import Endpoint, NodeId, Prefix
from calnet.paths import constants as c
from calnet.paths.candidates import Candidate, CandidateTable
from calnet.paths.choice import check_time, doubt_after, hold_time, is_better, probe_offset, smooth
from calnet.paths.effects import PathChanged, Route
from calnet.paths.way import Way
from calnet.wire.endpoints import is_private


class PathState(enum.Enum):
    """See the module."""

    RELAYED = "relayed"
    DIRECT = "direct"
    DOUBTED = "doubted"
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True)
class Probe:
    """Send a ping to `endpoint`. `proven` endpoints are not limited; an `opening` one is to pass our own NAT alone, and to end before the peer's."""

    endpoint: Endpoint
    proven: bool
    opening: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """Tell the peer our candidates, by the control session and by relay."""


PeerAction = Probe | Exchange | PathChanged


class PeerPath:
    """See the module. `route` is what to do with data now."""

    def __init__(self, peer: NodeId, *, relay: bool, overlay: tuple[Prefix, ...], way: Way = Way.AUTO) -> None:
        """`relay`: it is connected."""
        self.peer = peer
        self.state = PathState.RELAYED
        self.best: Candidate | None = None
        self.candidates = CandidateTable()
        self.way = way
        self._connected = relay
        self.route = Route(None, self._relay)
        self._overlay = overlay
        self.left = ""
        """Why the last path was left although it answers, as long as that says why there is none."""
        self.awake = False
        """Data flowed in the last 45 s, as of the last event."""
        self._data_at = c.LONG_AGO
        self._sent_at = c.LONG_AGO
        self._heard_at = c.LONG_AGO
        """Last answer or data from `best`."""
        self._waiting_since: float | None = None
        """First data sent to `best` since it was heard."""
        self._unanswered_since: float | None = None
        """First data sent directly since any data came from the peer."""
        self._relayed_since = self._relayed_at = c.LONG_AGO
        """First and last data that came by relay, without a gap, since any came directly."""
        self._checking_since: float | None = None
        """`best` is asked, as the peer seems not to hear us, and has not answered."""
        self._attempt_at: float | None = None
        self._step = 0
        self._opening_until = c.LONG_AGO
        self._unfound_until = c.LONG_AGO
        """We moved, and so long the peer may not know where to: the relay's connection, which tells it, ended with the move."""
        self._next_attempt = c.LONG_AGO
        self._exchanged_at = c.LONG_AGO

    # --- what others ask ---

    @property
    def heard_at(self) -> float:
        """When `best` was last heard."""
        return self._heard_at

    @property
    def in_use(self) -> bool:
        """Whether data goes to `best`."""
        return self.state is PathState.DIRECT or self.state is PathState.DOUBTED

    def active(self, now: float) -> bool:
        """Whether data flowed lately."""
        return now < self._data_at + c.IDLE_AFTER

    def is_stuck(self, now: float) -> bool:
        """Whether an attempt has gone on for a while, with data flowing, and nothing answered. What answers and is held back is no riddle."""
        flows = now < self._data_at + c.FLOWS_WITHIN and not any(known.held(now) for known in self.candidates)
        return flows and self.state is PathState.RELAYED and self._attempt_at is not None and now >= self._attempt_at + c.STUCK_AFTER

    def deadline(self, now: float) -> float | None:
        """When `on_timer` has something to do if nothing else happens."""
        times = [self._data_at + c.IDLE_AFTER] if self.awake else []
        if self._attempt_at is not None:
            times.append(self._attempt_at + probe_offset(self._step))
        elif self.active(now):
            times.append(max(self._next_attempt, now))
        if self.in_use:
            times.append(self._heard_at + c.TRUST)
            probe_at = self._probe_best_at(now)
            if probe_at is not None:
                times.append(probe_at)
            if self._waiting_since is not None and self.state is PathState.DIRECT:
                times.append(self._waiting_since + self._doubt_after())
            if self._checking_since is not None:
                times.append(self._checking_since + self._check_time())
            if self._unanswered_since is not None:
                times.append(max(self._unanswered_since + c.NO_DATA_AFTER, now + 1.0))
        elif self.state is PathState.ASLEEP and self._waiting_since is not None:
            times.append(self._waiting_since + c.TRUST)
        return min(times, default=None)

    # --- events ---

    def wake(self, now: float) -> list[PeerAction]:
        """Somebody wants a path: find one, as for data. After an idle time that does not wait for anything."""
        if self.way is Way.RELAY:
            return []
        first = not self.active(now)
        self._data_at, self.awake = now, True
        if self.state is not PathState.DIRECT and self._attempt_at is None and (first or now >= self._next_attempt):
            return self._begin_attempt(now)
        return []

    def data_sent(self, now: float) -> list[PeerAction]:
        """Data, or a handshake, was sent by the present route."""
        self._sent_at = now
        if self.state is not PathState.RELAYED and self._waiting_since is None:
            self._waiting_since = now
        if self.route.endpoint is not None and self._unanswered_since is None:
            self._unanswered_since = now
        return self.wake(now)

    def data_relayed(self, now: float) -> list[PeerAction]:
        """Data was sent by relay to try it out, though there is a path: nothing is due from there."""
        if self.state is PathState.DIRECT:
            self._waiting_since = None
        return self.wake(now)

    def ask(self, now: float) -> list[PeerAction]:
        """Data is about to go to `best` again: probe it."""
        return [] if self.best is None else self._probe(self.best, now)

    def data_received(self, endpoint: Endpoint | None, now: float) -> list[PeerAction]:
        """An authenticated packet came from `endpoint`, or by relay (None)."""
        self._unanswered_since = None
        if self.state is PathState.DIRECT and self.best is not None and endpoint == self.best.endpoint:
            self._data_at, self.awake = now, True
            self._relayed_at = c.LONG_AGO
            return self._heard(now)
        found = self._relayed(now) if endpoint is None else self._seen(endpoint, now)
        return found + self.wake(now)

    def ping_received(self, endpoint: Endpoint, now: float) -> list[PeerAction]:
        """The peer probes us from `endpoint` (the answer is the caller's): where we have no path, that is where to look for one."""
        if self.state is PathState.DIRECT and self.best is not None and self.best.endpoint == endpoint:
            return self._check(now)
        return self._seen(endpoint, now)

    def pong_received(self, endpoint: Endpoint, rtt_s: float, now: float) -> list[PeerAction]:
        """The answer to our probe to `endpoint`."""
        found = self.candidates.get(endpoint)
        if found is None or self.way is Way.RELAY:
            return []
        found.answered_at, found.rtt_s = now, smooth(found.rtt_s, rtt_s)
        best = self.best
        if found is best:
            self._checking_since = None
            return self._heard(now)
        if found.held(now):
            return []
        if self.state is PathState.DIRECT and best is not None and not is_better((endpoint, found.rtt_s), (best.endpoint, best.rtt_s or 0.0)):
            return []
        self.best, self._heard_at, self._waiting_since, self._unanswered_since, self._checking_since = found, now, None, None, None
        return self._enter(PathState.DIRECT, f"{endpoint} answers in {found.rtt_s * 1000:.0f} ms")

    def guessed(self, endpoint: Endpoint, now: float) -> None:
        """One of many endpoints that were tried (spray.py) is about to answer: it is a candidate like others from now on."""
        self.candidates.see(endpoint, now, self._overlay, None if self.best is None else self.best.endpoint)

    def told(self, endpoints: tuple[Endpoint, ...], now: float, *, wake: bool) -> list[PeerAction]:
        """The peer's candidates. `wake`: it asks to be probed now; else (a netmap) only new ones matter, and only while data flows."""
        best = self.best
        new = self.candidates.tell(endpoints, now, self._overlay, None if best is None else best.endpoint)
        if self.state is PathState.DIRECT:
            if not new or not self.active(now):
                return []
            if wake and best is not None and best.told and best.endpoint not in endpoints:
                return self._enter(PathState.DOUBTED, "the peer says it is elsewhere") + self._begin_attempt(now, told=True)
            return self._probe_all(now)
        if wake and self.way is not Way.RELAY:
            return self._begin_attempt(now, told=True)
        return self._begin_attempt(now) if new and self.active(now) else []

    def relay_connected(self, connected: bool, now: float) -> list[PeerAction]:
        """The relay can be used, by a new connection (what was told by the old one may be lost); or no more."""
        self._connected = connected
        if not connected:
            self._release(slow_alone=True)
        actions = self._enter(self.state, "relay connected" if connected else "relay lost")
        if self.active(now) and self.state is not PathState.DIRECT:
            return actions + self._begin_attempt(now, always_exchange=connected)
        return actions + (self._exchange(now) if connected and self.active(now) else [])

    def set_way(self, way: Way, now: float) -> list[PeerAction]:
        """What the user wants of the path."""
        if way is self.way:
            return []
        self.way, why = way, "as the user set it"
        if way is Way.RELAY:
            self.best = self._waiting_since = self._unanswered_since = self._attempt_at = None
            self._data_at, self.awake = c.LONG_AGO, False
            return self._enter(PathState.RELAYED, why)
        if way is Way.DIRECT:
            self._release(slow_alone=True)
        actions = self._enter(self.state, why)
        return actions + self._begin_attempt(now) if self.active(now) and self.state is not PathState.DIRECT else actions

    def network_changed(self, now: float, *, moved: bool = False) -> list[PeerAction]:
        """Addresses changed, or the machine slept: what was proven may not hold. `moved`: our packets come from another endpoint, so nothing is proven."""
        self._release()
        for known in self.candidates:
            known.held_times = 0
            if moved:
                known.answered_at = c.LONG_AGO
        actions: list[PeerAction] = []
        if moved and self._connected:
            self._unfound_until = now + c.OPENING
            if self.in_use and self._relay and self.active(now):
                self.best = self._waiting_since = self._unanswered_since = None
                actions += self._enter(PathState.RELAYED, "the network changed")
        if self.state is PathState.DIRECT:
            if not self.active(now):
                return self._enter(PathState.ASLEEP, "the network changed")
            self._heard_at = max(self._heard_at, now - c.TRUST + c.PROBE_OFFSETS[-1])
            actions += self._enter(PathState.DOUBTED, "the network changed")
        if self.active(now):
            actions += self._begin_attempt(now, always_exchange=True)
        return actions

    def own_candidates_changed(self, now: float) -> list[PeerAction]:
        """The peer should know our new candidates, if data flows."""
        if not self.active(now):
            return []
        if self.state is PathState.DIRECT:
            return self._exchange(now)
        return self._begin_attempt(now, always_exchange=True)

    def leave(self, why: str, now: float, *, slow: bool = False) -> list[PeerAction]:
        """`best` is no good for data, though it answers: hold it back, where there is another way. `slow`: it carries some."""
        if self.best is None or not self.in_use or not self._has_another_way(now):
            return []
        self.best.held_times += 1
        self.best.held_until = now + hold_time(self.best.held_times)
        self.best.slow, self.left = slow, why
        return self._lost(why, now)

    def _release(self, *, slow_alone: bool = False) -> None:
        """End holds. Paths that carry less than the relay are good as soon as there is none, whatever else there is."""
        for known in self.candidates:
            if known.slow or not slow_alone:
                known.held_until, known.slow = c.LONG_AGO, False

    def set_overlay(self, overlay: tuple[Prefix, ...]) -> None:
        """Addresses inside are nobody's candidates."""
        self._overlay = overlay
        self.candidates.drop_overlay(overlay)

    def on_timer(self, now: float) -> list[PeerAction]:
        """Do what is due."""
        self.awake = self.active(now)
        actions = self._judge(now)
        if self.in_use:
            due = self._probe_best_at(now)
            if due is not None and due <= now and self.best is not None:
                actions += self._probe(self.best, now)
        return actions + self._go_on(now)

    # --- judging the path in use ---

    def _judge(self, now: float) -> list[PeerAction]:
        if self.in_use and now >= self._heard_at + c.TRUST:
            if self.active(now):
                return self._lost("no answer", now)
            self._waiting_since = None
            return self._enter(PathState.ASLEEP, "idle")
        if self.state is PathState.ASLEEP and self._waiting_since is not None and now >= self._waiting_since + c.TRUST:
            return self._lost("no answer", now)
        if self._carries_nothing(now):
            return self.leave("it answers probes but carries no data", now)
        if self.state is PathState.DIRECT and self._waiting_since is not None and now >= self._waiting_since + self._doubt_after():
            return self._enter(PathState.DOUBTED, "no answer while sending") + self._begin_attempt(now)
        if self._checking_since is not None and now >= self._checking_since + self._check_time():
            return self._enter(PathState.DOUBTED, "the peer does not hear us there") + self._begin_attempt(now)
        return []

    def _relayed(self, now: float) -> list[PeerAction]:
        """Data came by relay. A peer that goes on so while we send directly has left the path, for a reason that probes don't show."""
        if self.state is not PathState.DIRECT:
            return []
        if now > self._relayed_at + c.AVOIDED_GAP:
            self._relayed_since = now
        self._relayed_at = now
        avoided = self._sent_at > now - c.AVOIDED_GAP and now >= self._relayed_since + c.AVOIDED_AFTER
        if avoided and self._has_another_way(now):
            return self.leave("the peer sends by relay alone", now)
        return self._check(now)

    def _check(self, now: float) -> list[PeerAction]:
        """The peer asks `best`'s end, or sends by relay: what goes to `best` may not arrive, whatever comes from there. Ask, unless it answered just now."""
        best = self.best
        if self.state is not PathState.DIRECT or best is None or self._checking_since is not None or not self.active(now):
            return []
        if now < best.answered_at + c.ANSWER_DUE or now < best.probed_at + c.PROBE_GAP:
            return []
        self._checking_since = now
        return self._probe(best, now)

    def _check_time(self) -> float:
        return check_time(None if self.best is None else self.best.rtt_s)

    def _carries_nothing(self, now: float) -> bool:
        """Whether `best` swallows data, and there is another way to try."""
        since = self._unanswered_since
        if since is None or not self.in_use or now < since + c.NO_DATA_AFTER or self._sent_at - since < c.NO_DATA_SENDING:
            return False
        return self._has_another_way(now)

    @property
    def _relay(self) -> bool:
        """Whether data may go by relay."""
        return self._connected and self.way is not Way.DIRECT

    def _has_another_way(self, now: float) -> bool:
        return self._relay or any(known is not self.best and known.proven(now) and not known.held(now) for known in self.candidates)

    def _lost(self, why: str, now: float) -> list[PeerAction]:
        """Leave `best`: for another candidate that is proven, else for the relay."""
        left, self.best, self._waiting_since, self._unanswered_since = self.best, None, None, None
        others = [known for known in self.candidates.ordered() if known is not left and known.proven(now) and not known.held(now)]
        if others:
            self.best, self._heard_at, self._checking_since = others[0], others[0].answered_at, None
            return self._enter(PathState.DIRECT, why)
        return self._enter(PathState.RELAYED, why) + self._begin_attempt(now)

    def _heard(self, now: float) -> list[PeerAction]:
        self._heard_at, self._waiting_since = now, None
        if self.state is PathState.DIRECT:
            return []
        return self._enter(PathState.DIRECT, "it answers again")

    def _doubt_after(self) -> float:
        return doubt_after(None if self.best is None else self.best.rtt_s)

    def _probe_best_at(self, now: float) -> float | None:
        """When `best` is asked next if it says nothing."""
        if self.best is None:
            return None
        if self._checking_since is not None:
            return self.best.probed_at + c.PROBE_GAP
        if self._waiting_since is not None:
            return max(self._waiting_since + c.ANSWER_DUE, self.best.probed_at + c.ANSWER_RETRY)
        if self.state is PathState.DOUBTED:
            return self.best.probed_at + c.ANSWER_DUE
        if not self.active(now):
            return None
        return max(self._heard_at + c.HEARTBEAT, self.best.probed_at + c.HEARTBEAT_RETRY)

    def _enter(self, state: PathState, why: str) -> list[PeerAction]:
        """Change state and route together."""
        self.state = state
        if state is PathState.DIRECT:
            self.left = ""
        else:
            self._checking_since, self._relayed_at = None, c.LONG_AGO
        endpoint = None if self.best is None or state is PathState.RELAYED else self.best.endpoint
        old = self.route
        match state:
            case PathState.RELAYED:
                self.route = Route(None, self._relay)
                if not self._relay:  # the worst path is better than none
                    self._release()
            case PathState.DIRECT:
                self.route = Route(endpoint, False)
            case PathState.DOUBTED:
                self.route = Route(endpoint, self._relay)
            case PathState.ASLEEP:
                self.route = Route(None, True) if self._relay else Route(endpoint, False)
        return [] if self.route == old else [PathChanged(self.peer, old, self.route, why)]

    # --- attempts ---

    def _begin_attempt(self, now: float, *, always_exchange: bool = False, told: bool = False) -> list[PeerAction]:
        """Probe all candidates now and some times more, and let the peer do the same. `told`: it has begun."""
        self._attempt_at, self._step = now, 0
        if not any(known.held(now) for known in self.candidates):
            self.left = ""
        self._opening_until = now + c.OPENING if self._connected and not told else self._unfound_until
        self._next_attempt = now + c.ATTEMPT_INTERVAL
        actions = self._exchange(now) if always_exchange or now - self._exchanged_at >= c.EXCHANGE_GAP else []
        return actions + self._go_on(now)

    def _exchange(self, now: float) -> list[PeerAction]:
        self._exchanged_at = now
        return [Exchange()]

    def _go_on(self, now: float) -> list[PeerAction]:
        """The attempt's probe round if one is due; a new attempt if that is due."""
        if self._attempt_at is None:
            return self._look_again(now) if self.active(now) and now >= self._next_attempt else []
        if now < self._attempt_at + probe_offset(self._step):
            return []
        while now >= self._attempt_at + probe_offset(self._step):
            self._step += 1
        actions = self._probe_all(now)
        if self._attempt_ends(now):
            self._attempt_at = None
        return actions

    def _attempt_ends(self, now: float) -> bool:
        """Whether no further round follows: after the first five where there is a path or no data, after 27 s where there is a relay, by which the
        next one is told to the peer."""
        if self._step < len(c.PROBE_OFFSETS):
            return False
        return self.state is PathState.DIRECT or not self.active(now) or (self._connected and probe_offset(self._step) > c.ATTEMPT_LENGTH)

    def _look_again(self, now: float) -> list[PeerAction]:
        if self.state is not PathState.DIRECT:
            return self._begin_attempt(now)
        self._next_attempt = now + c.ATTEMPT_INTERVAL
        return self._probe_all(now)

    def _probe_all(self, now: float) -> list[PeerAction]:
        return [action for known in self.candidates.ordered() if not known.held(now) for action in self._open_or_probe(known, now)]

    def _open_or_probe(self, known: Candidate, now: float) -> list[PeerAction]:
        """While the peer may not have sent here yet, only open our own side. IPv6 too, though no port is lost there: the better one shall not come last."""
        endpoint = known.endpoint
        if now >= self._opening_until or known.proven(now) or is_private(endpoint):
            return self._probe(known, now)
        if now < known.opened_at + c.PROBE_GAP:
            return []
        known.opened_at = now
        return [Probe(endpoint, False, opening=True)]

    def _probe(self, known: Candidate, now: float) -> list[PeerAction]:
        if now < known.probed_at + c.PROBE_GAP:
            return []
        known.probed_at = now
        return [Probe(known.endpoint, known.proven(now))]

    def _seen(self, endpoint: Endpoint, now: float) -> list[PeerAction]:
        """Something authentic came from `endpoint`: a candidate, probed at once unless it is known well enough."""
        known = self.candidates.see(endpoint, now, self._overlay, None if self.best is None else self.best.endpoint)
        if known is None or known.held(now) or self.way is Way.RELAY or (self.state is PathState.DIRECT and now - known.probed_at < c.HEARTBEAT):
            return []
        return self._probe(known, now)
