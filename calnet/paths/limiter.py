"""What others can make us do: probes and handshakes to places that never answered, candidates taken in, questions answered. Token buckets, bounded in number.

What anybody can cause by replaying one recorded message never draws on the same bucket as what takes a fresh one: a ping and a question come by UDP and can be
replayed from anywhere, so probes to where they came from, and answers by UDP, are counted for themselves; so are the control session and the relay.
"""

from __future__ import annotations

from calnet.limits import RateLimiter
from calnet.model import NodeId
from calnet.paths import constants as c
from calnet.wire.endpoints import source_network


class DiscoveryLimiter:
    """Bounds what discovery does for others. Each method counts what it allows. A host is an IPv4 address or an IPv6 /64 (endpoints.source_network)."""

    __slots__ = ("_candidates", "_probes", "_questions")

    def __init__(self) -> None:
        self._probes = {told: _Probes() for told in (True, False)}
        self._candidates = {relayed: RateLimiter(c.TOLD_PER_S, c.TOLD_BURST, c.MAX_BUCKETS) for relayed in (True, False)}
        self._questions = {relayed: RateLimiter(c.QUESTIONS_PER_S, c.QUESTIONS_BURST, c.MAX_BUCKETS) for relayed in (True, False)}

    def may_probe(self, peer: NodeId, host: str, now: float, *, told: bool) -> bool:
        """Whether one more probe may go to an unproven endpoint on `host`. `told`: the peer named it, rather than that something came from there."""
        probes = self._probes[told]
        return probes.peers.allow(peer, now) and probes.hosts.allow(source_network(host), now)

    def may_shake_hands(self, host: str, now: float) -> bool:
        """Whether one more handshake may go to an unproven endpoint on `host`: it counts as a probe to where a peer was told to be."""
        return self._probes[True].hosts.allow(source_network(host), now)

    def takes_candidates(self, peer: NodeId, now: float, *, relayed: bool) -> bool:
        """Whether one more list of the peer's candidates is taken in, by relay or by the control session."""
        return self._candidates[relayed].allow(peer, now)

    def answers_question(self, peer: NodeId, now: float, *, relayed: bool) -> bool:
        """Whether one more of the peer's questions is answered, by relay or by UDP."""
        return self._questions[relayed].allow(peer, now)


class _Probes:
    """Those for one reason: bounded for the peer, and for the host, whichever peer it is about."""

    __slots__ = ("hosts", "peers")

    def __init__(self) -> None:
        self.peers = RateLimiter(c.PEER_PROBES_PER_S, c.PEER_PROBES_BURST, c.MAX_BUCKETS)
        self.hosts = RateLimiter(c.HOST_PROBES_PER_S, c.HOST_PROBES_BURST, c.MAX_BUCKETS)
