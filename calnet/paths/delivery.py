"""Whether the relay would carry more than a peer's direct path: counts what arrives, and tries. Pure, one machine a Calnet peer.

Theory of operation. Some networks let UDP pass at a trickle and drop what is more, but leave TCP alone: probes are answered there, and data starves. So each
side counts the bytes that it sends to its peer and gets from it, directly and by relay. A sender of much data puts a mark among it now and then; the peer
answers with its counts as they were when the mark came (a tally), so that what is still on its way is never taken for lost, however long the path's queues.
From one tally to the next is an interval. Who sends little sends no marks, and whoever is only asked keeps two numbers.

    WATCHING   data goes as the path says. Where at least LOSSY of it is lost in an interval, and of all that was sent since another such one LASTS ago, and
               MUCH in all, the relay is asked by a mark (a peer that has no relay says nothing, and nothing happens), and if it answers, tried.
    TRYING     data goes by relay alone, marked each second. Where that carries GAIN times what the path did, the path is left (`LeavePath`); else…
    RETURNING  …data goes both ways until the path has answered a probe, so that nothing is lost where it died meanwhile; then WATCHING, and no trial
               for a while, each time twice as long.

A throttled flow does not lose all the time. TCP with BBR that has recognised a policer (20 % lost at a steady rate) sends at that rate for 48 round trips (5 s
and more where packets are few), loses nothing, and then tries more. So loss counts over all since the trouble began, good intervals included. And it goes on
like that when the relay is tried: a trial whose flow comes to about as much as on the path takes TRIAL_LONGEST.

An application that sends little, or stops, must not be taken for a path that carries little. The path is judged by loss, not by rate: without loss there is
no trial, however slow the flow. In the comparison the path counts by the best interval since the trouble began and the relay by its mean over the whole
trial, so that the gaps of a bursty flow don't help the relay; one that sends at its own pace comes to no more than 1 / (1 - loss) times as much. A relay that
delivered all it was given, and was given little, proves nothing: the trial is repeated without a longer pause. An application that happens to begin in earnest
during a trial can't be told from a path that held it back: that costs one hold, after which the path is tried again with the flow as it is then.

Error contract: nothing raises. What a peer tells is believed as far as it was sent: by lying it moves its own packets to the relay, or keeps them from it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from calnet.model import Endpoint
from calnet.paths import constants as c

# --- protocol ---

MARK_EVERY: Final = 2.0
"""Between marks, where they are answered…"""
MARK_BYTES: Final = 32_768
"""…and no more than one for so much sent directly."""

# --- implementation ---

MARK_RETRY: Final = 0.5
"""A mark without an answer is followed by another so much later, if data still flows."""
MAX_MARKS: Final = 16
"""Remembered; answers to older ones count for nothing."""
LONGEST_INTERVAL: Final = 10.0
"""What took longer is no flow: all begins anew."""
LOSSY: Final = 0.03
LASTS: Final = 6.0
"""After the first such interval, in which the trouble began."""
MUCH: Final = 32_768
"""Bytes, some 25 full packets: at 3 % of as many, a loss of 1 % comes to that once in a million."""
REMEMBERED: Final = 12
"""Intervals among which the trouble may have begun: more than the 48 round trips for which BBR, having recognised a policer, loses nothing."""
FAST: Final = 5_000_000.0
"""Bytes a second: a path that carries as much is not throttled, and would be a burden for the relay."""
FRESH: Final = 2.0
"""So soon the relay's answer has to come, before a trial and at its start."""
TRIAL_LEAST: Final = 3.0
"""After so long it ends where the outcome is clear: CLEAR times what the path carried, or less than one part in POOR, and not all that was given…"""
TRIAL: Final = 6.0
"""…after so long, enough for most TCP flows to grow, where it is GAIN times or less than one part in POOR…"""
TRIAL_LONGEST: Final = 15.0
"""…and else, where the flow goes on as on the path, at last: its sender may not have tried more before (BBR's 48 round trips)."""
TRIAL_MARK_EVERY: Final = 1.0
GAIN: Final = 2.0
CLEAR: Final = 4.0
POOR: Final = 2.0
NOTHING_MISSING: Final = 4_096
"""Bytes: as long as no more have not come (or LOSSY of what the relay was given) it has delivered everything."""
LATE: Final = 0.1
"""An answer that takes so much more than twice as long as the first was behind a queue: what was sent meanwhile should have come, too."""
PAUSE_FIRST: Final = 60.0
PAUSE_LONGEST: Final = 3600.0
"""Between trials that were in vain; doubled each time, and forgotten where as long again passes without one."""
RETURN_WITHIN: Final = 1.0
"""The path's own watch (0.8 s) has spoken by then."""
_NUMBERS: Final = 2**32


class Phase(enum.Enum):
    """See the module."""

    WATCHING = "watching"
    TRYING = "trying"
    RETURNING = "returning"


@dataclass(frozen=True, slots=True)
class SendMark:
    """Ask the peer for a tally, by the way named, behind all that was sent before."""

    number: int
    relay: bool


@dataclass(frozen=True, slots=True)
class TryRelay:
    """Data goes by relay alone from now on."""


@dataclass(frozen=True, slots=True)
class ReturnToPath:
    """The trial is over, and was no success: ask the path, and send both ways until it answers."""


@dataclass(frozen=True, slots=True)
class LeavePath:
    """The path is to be left; `why` is for the log and for `why`."""

    why: str


DeliveryAction = SendMark | TryRelay | ReturnToPath | LeavePath
_NO_ACTIONS: Final[Sequence[DeliveryAction]] = ()


@dataclass(frozen=True, slots=True)
class _Mark:
    """When it was sent, which way, and what had been sent before."""

    at: float
    relay: bool
    direct: int
    relayed: int


@dataclass(frozen=True, slots=True)
class _Base:
    """Where an interval begins: what had been sent, and what of it had come."""

    at: float
    sent: int
    got: int


@dataclass(frozen=True, slots=True)
class _Interval:
    """When it ended, the bytes sent in it and what of them was lost, and bytes a second that arrived."""

    ended: float
    sent: int
    lost: int
    rate: float

    @property
    def lossy(self) -> bool:
        return self.lost >= LOSSY * self.sent


@dataclass(frozen=True, slots=True)
class _Trouble:
    """The share that the path lost since it began, and what it carried in the best interval, in bytes a second."""

    share: float
    carried: float


@dataclass(slots=True)
class _Trial:
    """`got` is what came by relay of what was sent since `sent_before`.

    Answers take `rtt` where there is no queue. Without a tally it ends at `ends`; `told`: there was one.
    """

    began: float
    trouble: _Trouble
    got_before: int
    sent_before: int
    rtt: float
    ends: float
    got: int = 0
    told: bool = False


class Delivery:
    """See the module. `got_direct` and `got_relayed` are what a tally says."""

    __slots__ = (
        "_base",
        "_endpoint",
        "_intervals",
        "_mark_at",
        "_mark_bytes",
        "_marks",
        "_newest",
        "_number",
        "_pause",
        "_rest_until",
        "_returned_at",
        "_told",
        "_trial",
        "got_direct",
        "got_relayed",
        "phase",
        "sent_direct",
        "sent_relayed",
    )

    def __init__(self) -> None:
        self.phase = Phase.WATCHING
        self.got_direct = self.got_relayed = self.sent_direct = self.sent_relayed = 0
        self._number = 0
        self._told = (0, 0)
        """The last tally."""
        self._pause = 0.0
        self._rest_until = c.LONG_AGO
        self._endpoint: Endpoint | None = None
        self._begin()

    def _begin(self) -> None:
        self.phase = Phase.WATCHING
        self._marks: dict[int, _Mark] = {}
        self._newest = self._returned_at = self._mark_at = c.LONG_AGO
        self._trial: _Trial | None = None
        self._forget_flow()

    def _forget_flow(self) -> None:
        self._base: _Base | None = None
        self._intervals: deque[_Interval] = deque(maxlen=REMEMBERED)
        self._mark_bytes = self.sent_direct + MARK_BYTES

    # --- events

    def use(self, endpoint: Endpoint | None, now: float) -> None:
        """The path in use, None where there is none, or no choice: without a relay, or where the user made it. A trial under way has failed."""
        if endpoint == self._endpoint:
            return
        if self._trial is not None:
            self._rest(now)
        self._endpoint = endpoint
        self._begin()

    def forget(self) -> None:
        """The network changed: what was found does not hold."""
        self._pause, self._rest_until = 0.0, c.LONG_AGO
        self._begin()

    def got(self, length: int, *, direct: bool) -> None:
        """Transport datagrams of the peer, so many bytes, were opened."""
        if direct:
            self.got_direct += length
        else:
            self.got_relayed += length

    def sent(self, direct: int, relayed: int, now: float) -> Sequence[DeliveryAction]:
        """So many bytes of transport datagrams were sent, either way or both. Once a turn."""
        self.sent_direct += direct
        self.sent_relayed += relayed
        if now < self._mark_at or self._endpoint is None:
            return _NO_ACTIONS
        if self.phase is Phase.TRYING:
            return [self._mark(now, relay=True)]
        if self.sent_direct < self._mark_bytes or self.phase is not Phase.WATCHING:
            return _NO_ACTIONS
        return [self._mark(now, relay=False)]

    def tally(self, number: int, direct: int, relayed: int, now: float, *, by_relay: bool) -> Sequence[DeliveryAction]:
        """The peer's answer to a mark, by the way that it came."""
        mark = self._marks.pop(number, None)
        if mark is None or mark.relay != by_relay or mark.at < self._newest:
            return _NO_ACTIONS
        self._newest = mark.at
        before, self._told = self._told, (direct, relayed)
        if direct < before[0] or relayed < before[1]:  # the peer began anew
            self._forget_flow()
            return self._end(now) if self._trial is not None else _NO_ACTIONS
        if self._trial is not None:
            return self._tried(self._trial, mark, relayed, now)
        return self._relay_answered(relayed, mark, now) if by_relay else self._interval(mark, direct, now)

    def heard(self, at: float) -> None:
        """When the path was last heard: one that answers after a trial is used alone again."""
        if self.phase is Phase.RETURNING and at > self._returned_at:
            self.phase = Phase.WATCHING

    def deadline(self) -> float | None:
        """When `on_timer` has something to do."""
        if self._trial is not None:
            return min(self._trial.ends, self._mark_at)
        return self._returned_at + RETURN_WITHIN if self.phase is Phase.RETURNING else None

    def on_timer(self, now: float) -> Sequence[DeliveryAction]:
        """Do what is due; calling early is harmless."""
        trial = self._trial
        if trial is not None:
            if now >= trial.ends:
                return self._judge(trial, self.sent_relayed, now)
            return [self._mark(now, relay=True)] if now >= self._mark_at else _NO_ACTIONS
        if self.phase is Phase.RETURNING and now >= self._returned_at + RETURN_WITHIN:
            self.phase = Phase.WATCHING
        return _NO_ACTIONS

    # --- marks and intervals

    def _mark(self, now: float, *, relay: bool) -> SendMark:
        self._number = (self._number + 1) % _NUMBERS
        if len(self._marks) >= MAX_MARKS:
            del self._marks[next(iter(self._marks))]
        self._marks[self._number] = _Mark(now, relay, self.sent_direct, self.sent_relayed)
        self._mark_at = now + (TRIAL_MARK_EVERY if self.phase is Phase.TRYING else MARK_RETRY)
        return SendMark(self._number, relay)

    def _interval(self, mark: _Mark, got: int, now: float) -> Sequence[DeliveryAction]:
        """What became of what was sent since the last tally."""
        base = self._base
        if base is not None and (mark.at - base.at < MARK_EVERY or mark.direct - base.sent < MARK_BYTES):
            return _NO_ACTIONS  # a second mark was sent before the first one's answer came
        self._base = _Base(mark.at, mark.direct, got)
        self._mark_at, self._mark_bytes = mark.at + MARK_EVERY, mark.direct + MARK_BYTES
        if base is None or mark.at - base.at > LONGEST_INTERVAL:
            self._intervals.clear()
            return _NO_ACTIONS
        sent = mark.direct - base.sent
        arrived = min(got - base.got, sent)
        self._intervals.append(_Interval(mark.at, sent, sent - arrived, arrived / (mark.at - base.at)))
        return [self._mark_relay(now)] if self._trouble(now) is not None else _NO_ACTIONS

    def _mark_relay(self, now: float) -> SendMark:
        """Asks the relay, and leaves the next mark among the data when it was due."""
        due = self._mark_at
        mark = self._mark(now, relay=True)
        self._mark_at = due
        return mark

    def _trouble(self, now: float) -> _Trouble | None:
        """What the relay should be tried for: there is loss now, and much of all since a lossy interval LASTS ago was lost."""
        if not self._intervals or not self._intervals[-1].lossy or now < self._rest_until:
            return None
        found: _Trouble | None = None
        sent, lost, carried = 0, 0, 0.0
        for interval in reversed(self._intervals):
            lasted = self._intervals[-1].ended - interval.ended >= LASTS
            if lasted and interval.lossy and lost >= max(MUCH, LOSSY * sent):
                found = _Trouble(lost / sent, carried)
            sent, lost, carried = sent + interval.sent, lost + interval.lost, max(carried, interval.rate)
            if carried > FAST:
                break
        return found

    # --- trials

    def _relay_answered(self, got: int, mark: _Mark, now: float) -> Sequence[DeliveryAction]:
        trouble = self._trouble(now)  # what there was when the relay was asked may have ended since
        if trouble is None or now > mark.at + FRESH or self.phase is not Phase.WATCHING:
            return _NO_ACTIONS
        self._trial = _Trial(now, trouble, got, self.sent_relayed, now - mark.at, now + FRESH)
        self.phase = Phase.TRYING
        return [TryRelay(), self._mark(now, relay=True)]

    def _tried(self, trial: _Trial, mark: _Mark, got: int, now: float) -> Sequence[DeliveryAction]:
        if not mark.relay:
            return _NO_ACTIONS
        trial.told, trial.ends = True, max(now + FRESH, trial.began + TRIAL)
        trial.got = min(got - trial.got_before, mark.relayed - trial.sent_before)
        late = now - mark.at > 2 * trial.rtt + LATE
        return self._judge(trial, self.sent_relayed if late else mark.relayed, now)

    def _judge(self, trial: _Trial, due: int, now: float) -> Sequence[DeliveryAction]:
        """`due`: all that was sent by relay until then should have come by now."""
        took = now - trial.began
        if took < min(TRIAL_LEAST, trial.ends - trial.began):
            return _NO_ACTIONS
        rate = trial.got / took
        if trial.got >= MUCH and rate >= (CLEAR if took < TRIAL else GAIN) * trial.trouble.carried:
            self._trial, self._pause = None, 0.0
            self.phase = Phase.WATCHING
            self._forget_flow()
            return [LeavePath(describe(trial.trouble.carried, trial.trouble.share, rate))]
        given = due - trial.sent_before
        little, missing = rate < trial.trouble.carried / POOR, given - trial.got > max(NOTHING_MISSING, LOSSY * given)
        clear = little and (missing or took >= TRIAL)
        if not clear and now < trial.ends and took < TRIAL_LONGEST:
            return _NO_ACTIONS
        return self._end(now, quiet=trial.told and little and not missing)

    def _end(self, now: float, *, quiet: bool = False) -> Sequence[DeliveryAction]:
        """In vain; `quiet`: nor did it say anything."""
        if quiet:
            self._rest_until = now + PAUSE_FIRST
        else:
            self._rest(now)
        self._trial = None
        self.phase, self._returned_at = Phase.RETURNING, now
        self._forget_flow()
        return [ReturnToPath()]

    def _rest(self, now: float) -> None:
        fresh = self._pause == 0.0 or now >= self._rest_until + self._pause
        self._pause = PAUSE_FIRST if fresh else min(2 * self._pause, PAUSE_LONGEST)
        self._rest_until = now + self._pause


def describe(direct: float, share: float, relayed: float) -> str:
    """Why a path was left, from bytes a second either way and the share that is lost directly: `UDP is throttled here: 0.3 Mbit/s directly with 12% lost…`."""
    return f"UDP is throttled here: {_megabits(direct)} Mbit/s directly with {share:.0%} lost, {_megabits(relayed)} by relay"


def _megabits(rate: float) -> str:
    megabits = rate * 8 / 1e6
    return f"{megabits:.2f}" if megabits < 0.095 else f"{megabits:.1f}"
