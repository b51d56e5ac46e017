"""The STUN client: our reflexive endpoints, and how the NAT maps (RFC 4787 section 4.1, found out as RFC 5780 section 4.3 does).

Theory of operation. `start` begins a round: a request to each server, retransmitted until it is answered or given up. `again` says whether rounds repeat, every
20 to 26 s. A server that answers with an error, or does not answer in a round, loses its result; a round that comes before the last one's answers are given up
drops what is older than that one. So what is reported is never older than two rounds. A new set of servers, which is the server's word, is asked at once or,
where one was asked just so, STUN_GAP later.

Error contract: `receive` takes any bytes and ignores what does not answer a request of ours from the server it went to.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from calnet.crypto.keys import RandomBytes
from calnet.errors import WireError
from calnet.model import Endpoint
from calnet.paths import constants as c
from calnet.wire.stun import TRANSACTION_SIZE, build_request, parse_response


class MappingBehaviour(enum.Enum):
    """Mapping behaviour (RFC 4787 section 4.1); the values are what `netcheck` prints."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    UNKNOWN = "unknown"


def mapping_behaviour(results: Mapping[Endpoint, Endpoint]) -> MappingBehaviour:
    """How the NAT maps, from {server: our endpoint as it saw us} of one address family. Unknown with fewer than two servers.

    Where only servers of different addresses were asked and they differ, the stricter word is used: no peer can tell the two apart from outside.
    """
    pairs = list(itertools.combinations(results.items(), 2))
    if not pairs:
        return MappingBehaviour.UNKNOWN
    if len(set(results.values())) == 1:
        return MappingBehaviour.ENDPOINT_INDEPENDENT
    by_port = [seen == other_seen for (server, seen), (other, other_seen) in pairs if server.host == other.host]
    if by_port and all(by_port):
        return MappingBehaviour.ADDRESS_DEPENDENT
    return MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT


class _Result(NamedTuple):
    """What a server answered, and when."""

    seen: Endpoint
    at: float


@dataclass(slots=True)
class _Query:
    server: Endpoint
    transaction: bytes
    started: float
    step: int = 0

    def due(self) -> float:
        return self.started + (c.STUN_RETRANSMITS[self.step] if self.step < len(c.STUN_RETRANSMITS) else c.STUN_GIVE_UP)


class StunClient:
    """Asks each server; holds what they answered. Requests to send are returned as (server, datagram)."""

    def __init__(self, random: RandomBytes) -> None:
        self._random = random
        self._servers: tuple[Endpoint, ...] = ()
        self._queries: dict[bytes, _Query] = {}
        self._results: dict[Endpoint, _Result] = {}
        self._next_round: float | None = None
        self._new_set_at: float | None = None
        """When the present set of servers is asked first, if it was not yet."""
        self._next_set_at = c.LONG_AGO
        self.last_round_at = c.LONG_AGO

    def set_servers(self, servers: Iterable[Endpoint], now: float) -> bool:
        """At most 4; results of others are forgotten. Whether to `start` a round now: where the set is new, unless the last new one was asked so lately that
        `on_timer` does it later."""
        chosen = tuple(dict.fromkeys(servers))[: c.MAX_STUN_SERVERS]
        if chosen == self._servers:
            return False
        self._servers = chosen
        self._queries = {key: query for key, query in self._queries.items() if query.server in chosen}
        self._results = {server: result for server, result in self._results.items() if server in chosen}
        self._new_set_at = max(now, self._next_set_at) if chosen else None
        return self._new_set_at is not None and self._new_set_at <= now

    def forget(self) -> None:
        """The network changed: what the servers saw no longer holds."""
        self._results.clear()
        self._queries.clear()

    def start(self, now: float, *, again: bool) -> list[tuple[Endpoint, bytes]]:
        """Begin a round now, in place of one under way; `again`: rounds repeat. Results older than the round before go: `reflexive` may change."""
        self._queries.clear()
        self._results = {server: result for server, result in self._results.items() if result.at >= self.last_round_at}
        self.last_round_at = now
        if self._new_set_at is not None:
            self._new_set_at, self._next_set_at = None, now + c.STUN_GAP
        self.keep_going(now, again)
        for server in self._servers:
            transaction = self._random(TRANSACTION_SIZE)
            self._queries[transaction] = _Query(server, transaction, now)
        return self._requests(now)

    def keep_going(self, now: float, active: bool) -> None:
        """Whether a further round comes, 20 to 26 s from `now`."""
        if not active or not self._servers:
            self._next_round = None
        elif self._next_round is None or self._next_round <= now:
            share = int.from_bytes(self._random(2), "big") / 65_536
            self._next_round = now + c.STUN_INTERVAL_MIN + share * (c.STUN_INTERVAL_MAX - c.STUN_INTERVAL_MIN)

    def receive(self, datagram: bytes, source: Endpoint, now: float) -> bool:
        """Take an answer; whether our reflexive endpoints changed by it."""
        try:
            response = parse_response(datagram)
        except WireError:
            return False
        query = self._queries.get(response.transaction)
        if query is None or query.server != source:
            return False
        del self._queries[response.transaction]
        before = self.reflexive()
        if response.mapped is None:
            self._results.pop(source, None)
        else:
            self._results[source] = _Result(response.mapped, now)
        return self.reflexive() != before

    def next_deadline(self) -> float | None:
        """When `on_timer` wants to be called."""
        earliest = self._next_round
        for when in (self._new_set_at, *(query.due() for query in self._queries.values())):
            if when is not None and (earliest is None or when < earliest):
                earliest = when
        return earliest

    def on_timer(self, now: float, *, active: bool) -> tuple[list[tuple[Endpoint, bytes]], bool]:
        """Requests due now (retransmissions, or a new round), and whether our reflexive endpoints changed because a server is silent."""
        before = self.reflexive()
        for query in [query for query in self._queries.values() if query.step >= len(c.STUN_RETRANSMITS) and query.due() <= now]:
            del self._queries[query.transaction]
            self._results.pop(query.server, None)
        due = self._new_set_at is not None and self._new_set_at <= now
        if self._next_round is not None and self._next_round <= now:
            self._next_round = None
            due = due or active
        requests = self.start(now, again=active) if due else self._requests(now)
        return requests, self.reflexive() != before

    def reflexive(self) -> tuple[Endpoint, ...]:
        """Our endpoints as servers see them, each once."""
        return tuple(dict.fromkeys(self._results[server].seen for server in self._servers if server in self._results))

    def mapping(self) -> MappingBehaviour:
        """The NAT's behaviour towards IPv4, where ports are translated, if any server answered over that; else towards IPv6."""
        families: list[dict[Endpoint, Endpoint]] = [{}, {}]
        for server, result in self._results.items():
            families[":" in result.seen.host][server] = result.seen
        return mapping_behaviour(families[0] or families[1])

    def _requests(self, now: float) -> list[tuple[Endpoint, bytes]]:
        due = [query for query in self._queries.values() if query.due() <= now and query.step < len(c.STUN_RETRANSMITS)]
        for query in due:
            while query.step < len(c.STUN_RETRANSMITS) and query.due() <= now:
                query.step += 1
        return [(query.server, build_request(query.transaction)) for query in due]
