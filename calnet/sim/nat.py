"""A NAT's or firewall's state machine, by the terms of RFC 4787: mapping, filtering, port assignment, timeouts, hairpinning, and a Linux router's quirk.

`outbound` and `inbound` take the time; nothing here knows of networks. The same machine without translation is a stateful firewall.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field
from typing import Final

from calnet.model import Endpoint

FIRST_PORT: Final = 1024
PORTS: Final = 65_536 - FIRST_PORT


class Dependence(enum.Enum):
    """What of the other side mapping or filtering depends on (RFC 4787 sections 4.1 and 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"

    def of(self, endpoint: Endpoint) -> object:
        """The part of the other side's endpoint that counts."""
        match self:
            case Dependence.ENDPOINT_INDEPENDENT:
                return None
            case Dependence.ADDRESS_DEPENDENT:
                return endpoint.host
            case Dependence.ADDRESS_AND_PORT_DEPENDENT:
                return endpoint


class Assignment(enum.Enum):
    """How a new mapping gets its port: the inner one where it is free (RFC 4787 section 4.2.1), before this the one of the inner endpoint's latest mapping (as
    Linux does: one mapping that had to be another is followed by all that come after it), the next one, or any."""

    PRESERVING = "preserving"
    LATEST = "latest"
    SEQUENTIAL = "sequential"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """See the terms. `translates` False is a firewall. As Linux's connection tracking does: `clash_s` is for how long a refused packet from outside keeps its
    port from being used towards its sender; where `answered_s` is not 0, a mapping that was answered lives so long, and what comes in refreshes it."""

    mapping: Dependence = Dependence.ENDPOINT_INDEPENDENT
    filtering: Dependence = Dependence.ADDRESS_AND_PORT_DEPENDENT
    assignment: Assignment = Assignment.PRESERVING
    timeout_s: float = 120.0
    hairpin: bool = False
    translates: bool = True
    clash_s: float = 0.0
    answered_s: float = 0.0


_EI, _AD, _APD = Dependence.ENDPOINT_INDEPENDENT, Dependence.ADDRESS_DEPENDENT, Dependence.ADDRESS_AND_PORT_DEPENDENT
KINDS: Final[dict[str, Behaviour]] = {
    "full-cone": Behaviour(_EI, _EI, hairpin=True),
    "restricted": Behaviour(_EI, _AD),
    "port-restricted": Behaviour(_EI, _APD),
    "linux": Behaviour(_APD, _APD, Assignment.LATEST, timeout_s=30.0, clash_s=30.0, answered_s=120.0),
    "symmetric": Behaviour(_APD, _APD, Assignment.RANDOM),
    "symmetric-sequential": Behaviour(_APD, _APD, Assignment.SEQUENTIAL),
    "firewall": Behaviour(_EI, _APD, translates=False),
}
"""By the names that a topology file uses."""


@dataclass(slots=True)
class _Mapping:
    inner: Endpoint
    outer: Endpoint
    towards: object
    """What of the other side it depends on."""
    expires_at: float
    talked_to: dict[object, float] = field(default_factory=dict)
    """What of other sides may answer, and until when."""
    answered: bool = False


class Nat:
    """One box's table for one address family. `host` is its outer address (unused where it does not translate)."""

    def __init__(self, behaviour: Behaviour, host: str, random_: random.Random) -> None:
        self.behaviour = behaviour
        self.host = host
        self._random = random_
        self._by_inner: dict[tuple[Endpoint, object], _Mapping] = {}
        self._by_outer: dict[tuple[Endpoint, object], _Mapping] = {}
        self._refused: dict[tuple[Endpoint, Endpoint], float] = {}
        self._next_port = FIRST_PORT + random_.randrange(PORTS)
        self._latest: dict[Endpoint, _Mapping] = {}

    def __len__(self) -> int:
        return len(self._by_inner)

    def reboot(self) -> None:
        """Forget everything; later mappings get other ports where these are not preserved."""
        self._by_inner.clear()
        self._by_outer.clear()
        self._refused.clear()
        self._latest.clear()
        self._next_port = FIRST_PORT + self._random.randrange(PORTS)

    def outbound(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint:
        """The source that the outside sees of a datagram from `inner` to `to`."""
        key = inner, self.behaviour.mapping.of(to)
        mapping = self._by_inner.get(key)
        if mapping is not None and mapping.expires_at <= now:
            self._drop(mapping)
            mapping = None
        if mapping is None:
            mapping = _Mapping(inner, self._assigned(inner, to, now), key[1], 0.0)
            self._by_inner[key] = self._by_outer[mapping.outer, key[1]] = self._latest[inner] = mapping
        self._refresh(mapping, to, now)
        return mapping.outer

    def _refresh(self, mapping: _Mapping, other: Endpoint, now: float) -> None:
        lasts = self.behaviour.answered_s if mapping.answered and self.behaviour.answered_s else self.behaviour.timeout_s
        mapping.expires_at = now + lasts
        mapping.talked_to[self.behaviour.filtering.of(other)] = mapping.expires_at

    def inbound(self, outer: Endpoint, source: Endpoint, now: float) -> Endpoint | None:
        """Whom a datagram from `source` to `outer` reaches; None where it is refused."""
        mapping = self._by_outer.get((outer, self.behaviour.mapping.of(source)))
        if mapping is not None and mapping.expires_at > now and mapping.talked_to.get(self.behaviour.filtering.of(source), now) > now:
            if self.behaviour.answered_s:
                mapping.answered = True
                self._refresh(mapping, source, now)
            return mapping.inner
        if self.behaviour.clash_s:
            self._refused[outer, source] = now + self.behaviour.clash_s
        return None

    def _assigned(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint:
        if not self.behaviour.translates:
            return inner
        match self.behaviour.assignment:
            case Assignment.PRESERVING:
                port = inner.port
            case Assignment.LATEST:
                latest = self._latest.get(inner)
                port = inner.port if latest is None or latest.expires_at <= now else latest.outer.port
                if not self._is_free(Endpoint(self.host, port), to, now):
                    port = inner.port
            case Assignment.SEQUENTIAL:
                port = self._next_port
            case Assignment.RANDOM:
                port = FIRST_PORT + self._random.randrange(PORTS)
        while not self._is_free(Endpoint(self.host, port), to, now):
            sequential = self.behaviour.assignment is Assignment.SEQUENTIAL
            port = FIRST_PORT + ((port + 1 - FIRST_PORT) % PORTS if sequential else self._random.randrange(PORTS))
        self._next_port = FIRST_PORT + (port + 1 - FIRST_PORT) % PORTS
        return Endpoint(self.host, port)

    def _is_free(self, outer: Endpoint, to: Endpoint, now: float) -> bool:
        known = self._by_outer.get((outer, self.behaviour.mapping.of(to)))
        if known is not None and known.expires_at <= now:
            self._drop(known)
            known = None
        return known is None and self._refused.get((outer, to), now) <= now

    def _drop(self, mapping: _Mapping) -> None:
        del self._by_inner[mapping.inner, mapping.towards]
        del self._by_outer[mapping.outer, mapping.towards]
