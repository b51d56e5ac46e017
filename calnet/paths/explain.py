"""Why a path is what it is: what each end knows, and what follows from both. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from calnet.model import Endpoint
from calnet.paths.candidates import Candidate
from calnet.paths.stun_client import MappingBehaviour
from calnet.paths.way import Way


class Outcome(enum.IntEnum):
    """What became of one candidate; the numbers are the wire's."""

    IN_USE = 0
    ANSWERS = 1
    ANSWERED = 2
    NO_ANSWER = 3
    NOT_TRIED = 4
    NO_DATA = 5
    SLOW = 6

    @property
    def words(self) -> str:
        """For people."""
        return _WORDS[self]


_WORDS = {
    Outcome.IN_USE: "in use",
    Outcome.ANSWERS: "answers",
    Outcome.ANSWERED: "answered before",
    Outcome.NO_ANSWER: "no answer",
    Outcome.NOT_TRIED: "not tried",
    Outcome.NO_DATA: "answers probes, but carried no data",
    Outcome.SLOW: "answers probes, but carries less than the relay",
}


@dataclass(frozen=True, slots=True)
class Tried:
    """One of the other's candidates. `rtt_s` None where it never answered."""

    endpoint: Endpoint
    outcome: Outcome
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """One end's. `path` is `direct`, `relay` or `none`; `udp`: some STUN server answers; `relay`: it is connected; `mapping` is its own NAT's; `way`: what its
    user set for this peer."""

    path: str
    udp: bool
    relay: bool
    may_guess: bool
    mapping: MappingBehaviour
    tried: tuple[Tried, ...] = ()
    way: Way = Way.AUTO
    left: str = ""
    """Why a path that answers probes is not used (of this node's own view alone)."""

    @property
    def is_hard(self) -> bool:
        """Whether its NAT gives each destination another port."""
        return self.mapping in (MappingBehaviour.ADDRESS_DEPENDENT, MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`text` says why, `advice` what would help."""

    text: str
    advice: tuple[str, ...] = ()


def outcome_of(known: Candidate, now: float, *, in_use: bool) -> Outcome:
    """What is known of a candidate."""
    if in_use:
        return Outcome.IN_USE
    if known.held(now):
        return Outcome.SLOW if known.slow else Outcome.NO_DATA
    if known.proven(now):
        return Outcome.ANSWERS
    if known.answered_at > 0.0:
        return Outcome.ANSWERED
    return Outcome.NO_ANSWER if known.probed_at > 0.0 else Outcome.NOT_TRIED


def judge(here: View, there: View | None, *, online: bool) -> Verdict:
    """Why the path between both ends is what it is. `there` None: the peer did not say; `online`: the server sees it."""
    if here.path == "direct":
        return _direct(here, there)
    if not online:
        return Verdict("the peer is offline", ("start Calnet there: `calnet up`",))
    if here.path == "none" and here.way is Way.DIRECT:
        return Verdict("there is no way: no direct path is known, and the relay is not to be used, as was set here", ("`calnet set --path PEER=auto`",))
    if here.path == "none" and not here.relay:
        return Verdict("there is no way: no direct path is known and the relay is not connected", ("`calnet status` says what is wrong with the relay",))
    if here.path == "none":
        return Verdict("idle: nothing was said in the last 45 seconds, and a path is found as soon as something is", ("`calnet ping PEER --until-direct`",))
    return _relayed(here, there)


def _direct(here: View, there: View | None) -> Verdict:
    used = next((tried for tried in here.tried if tried.outcome is Outcome.IN_USE), None)
    rtt = "" if used is None or used.rtt_s is None else f" in {used.rtt_s * 1000:.1f} ms"
    back = ""
    if there is not None and there.path == "relay" and any(tried.outcome is Outcome.SLOW for tried in there.tried):
        back = "; what the peer sends comes by relay, since that carries more from there"
    return Verdict(f"direct: {'the peer' if used is None else used.endpoint} answers{rtt}{back}")


def _relayed(here: View, there: View | None) -> Verdict:
    ends = ((here, "here"), (there, "at the peer's"))
    for end, where in ends:
        if end is not None and end.way is Way.RELAY:
            return Verdict(f"by relay: that is what was set {where}", (f"`calnet set --path PEER=auto` {where} looks for a direct path again",))
    if here.left:
        insist = ("it is tried again after a while, a minute at first, or as soon as the network changes", "`calnet set --path PEER=direct` insists on it")
        return Verdict(f"by relay: {here.left}", insist)
    for end, _ in ends:
        bad = next((tried for tried in end.tried if tried.outcome is Outcome.NO_DATA), None) if end is not None else None
        if bad is not None:
            return Verdict(
                f"by relay: {bad.endpoint} answers probes, but carried no data; it is tried again later",
                ("look for what filters or throttles UDP between the two",),
            )
    for end, where in ends:
        if end is not None and not end.udp:
            return Verdict(f"by relay: no UDP gets through {where}", (f"let UDP out {where}: to the server's port 3478, and to any port for direct paths",))
    if here.is_hard and there is not None and there.is_hard:
        routers = (
            "switch on port mapping (UPnP, NAT-PMP or PCP) in one of the two routers",
            "or forward a UDP port there by hand (to what `calnet status --json` calls udp_port), or use IPv6 on both sides",
        )
        return Verdict("by relay: both NATs give each destination another port, so neither side can tell the other where it is", routers)
    hard = here if here.is_hard else there if there is not None and there.is_hard else None
    if hard is not None:
        where = "here" if hard is here else "at the peer's"
        if not here.may_guess or (there is not None and not there.may_guess):
            return Verdict(
                f"by relay: the NAT {where} gives each destination another port", ("let ports be guessed: `calnet set --guess-ports` on both sides",)
            )
        return Verdict(
            f"by relay so far: the NAT {where} gives each destination another port; ports are guessed while traffic flows", ("wait some 20 seconds",)
        )
    if there is None:
        return Verdict("by relay: no candidate of the peer answered, and the peer said nothing of its side", ("see `calnet why` there",))
    if not here.tried:
        return Verdict("by relay: the peer named no candidate", ("see `calnet netcheck` there",))
    advice = ("let answers to outgoing UDP in on both sides, or forward a UDP port to one of them",)
    return Verdict("by relay: UDP gets out on both sides, but neither answers the other", advice)
