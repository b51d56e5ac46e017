"""The packet filter of the receiving node: rules decide who may begin a flow, state lets the replies to our own flows in. Pure, and on the hot path.

Asked once for a batch of one flow (`flow_key`), so its cost is that of a dictionary look-up: about a microsecond for a known flow, tens for a new one.

Two tables remember flows by the key of their inbound packets. `ours` are flows we began: their packets come in whatever the rules say. `theirs` are flows
that a rule let in: remembered with the verdict of the present rules, and so that our answers in them don't count as flows of our own, which would keep
them open when the rule is gone. A third holds refusals. Each is bounded and forgets what was longest unused, and none can push out another's.

When rules change, flows that they no longer accept end in both directions: what comes in is refused, and so is what this host still sends in them. A TCP
connection that we open over such a flow is a new one, and ours; without connections (UDP and the like) the flow has to be idle for its time first.

Error contract: nothing here raises for any packet; a malformed one is refused and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from calnet.model import Buffer, FilterRule, Prefix
from calnet.policy.packets import ICMP, ICMPV6, TCP, UDP, WITH_PORTS, Parsed, flow_key, parse, reply_key, tcp_flags
from calnet.wire.ip import TCP_ACK, TCP_RST, TCP_SYN

TCP_IDLE_S: Final = 86_400.0
UDP_IDLE_S: Final = 300.0
"""RFC 4787 REQ-5 recommends 5 minutes or more."""
ICMP_IDLE_S: Final = 60.0
OTHER_IDLE_S: Final = 600.0
FRAGMENT_S: Final = 30.0
"""How long the later fragments of a datagram may follow its first."""
MAX_FLOWS: Final = 65_536
"""Flows remembered in each direction."""
MAX_REFUSALS: Final = 4_096
MAX_FRAGMENTS: Final = 1_024
_REFRESH_PART: Final = 16
"""A flow's deadline is moved once it has lost a sixteenth of its time: most packets only read."""


class Recent:
    """Keys with deadlines: at most `limit`, the longest untouched is forgotten first."""

    __slots__ = ("_deadlines", "_limit")

    def __init__(self, limit: int) -> None:
        self._deadlines: dict[bytes, float] = {}
        self._limit = limit

    def holds(self, key: bytes, now: float) -> bool:
        """Whether `key` is there and not past its deadline."""
        return self._deadlines.get(key, now) > now

    def touch(self, key: bytes, now: float, lifetime: float) -> None:
        """Put `key`, or move its deadline to now + lifetime."""
        deadlines = self._deadlines
        if deadlines.get(key, 0.0) > now + lifetime - lifetime / _REFRESH_PART:
            return
        deadlines.pop(key, None)
        if len(deadlines) >= self._limit:
            del deadlines[next(iter(deadlines))]
        deadlines[key] = now + lifetime

    def clear(self) -> None:
        self._deadlines.clear()


class PrefixSet:
    """Prefixes to look packed addresses up in: one set look-up for each length in use."""

    __slots__ = ("_by_size",)

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self._by_size: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}
        for prefix in prefixes:
            size = 4 if prefix.version == 4 else 16
            shift = size * 8 - prefix.prefixlen
            self._by_size[size].setdefault(shift, set()).add(int(prefix.network_address) >> shift)

    def __contains__(self, packed: bytes) -> bool:
        number = int.from_bytes(packed, "big")
        return any(number >> shift in networks for shift, networks in self._by_size[len(packed)].items())


class CompiledRule:
    """A FilterRule to be asked quickly."""

    __slots__ = ("_destinations", "_ports", "_protocols", "_sources")

    def __init__(self, rule: FilterRule) -> None:
        self._sources = PrefixSet(rule.sources)
        self._destinations = PrefixSet(rule.destinations)
        self._protocols = frozenset(rule.protocols)
        self._ports = tuple((ports.first, ports.last) for ports in rule.ports)

    def accepts(self, source: bytes, destination: bytes, protocol: int, port: int) -> bool:
        """`port` is the destination port, -1 for a protocol without: a rule that names ports never accepts that."""
        if self._protocols and protocol not in self._protocols:
            return False
        if self._ports and not any(first <= port <= last for first, last in self._ports):
            return False
        return source in self._sources and destination in self._destinations


class PacketFilter:
    """See the module. `now` is monotonic seconds. Packets are whole IP packets (or super-packets), bytes behind the IP length are ignored."""

    def __init__(self, rules: Iterable[FilterRule] = (), *, max_flows: int = MAX_FLOWS) -> None:
        self._ours = Recent(max_flows)
        self._theirs = Recent(max_flows)
        self._refused = Recent(MAX_REFUSALS)
        self._fragments = Recent(MAX_FRAGMENTS)
        self._accepted_flows: set[bytes] = set()
        """Flows that the present rules let in."""
        self._max_flows = max_flows
        self._rules: tuple[CompiledRule, ...] = ()
        self.set_rules(rules)

    def set_rules(self, rules: Iterable[FilterRule]) -> None:
        """Decide by these rules from now on, flows under way included; what we began goes on."""
        self._rules = tuple(CompiledRule(rule) for rule in rules)
        self._accepted_flows.clear()
        self._refused.clear()
        self._fragments.clear()

    def inbound(self, packet: Buffer, now: float, key: bytes | None = None) -> bool:
        """Whether this packet, from a peer to this node or what it routes for, may pass. `key` is its `flow_key`, where the caller has it already."""
        key = key or flow_key(packet)
        if key is None:
            return False
        if self._ours.holds(key, now):
            self._ours.touch(key, now, _lifetime(key[-1]))
            return True
        if key in self._accepted_flows:
            self._theirs.touch(key, now, _lifetime(key[-1]))
            return True
        if self._refused.holds(key, now):
            return False
        parsed = parse(packet)
        return parsed is not None and self._decide(parsed, now)

    def outbound(self, packet: Buffer, now: float) -> bool:
        """Whether a packet that this node sends may leave; its flow is remembered, so that its replies pass.

        False (drop it, or answer it to the host by `reject.rejection`) is the verdict for a flow that the other side began and the present rules no longer
        accept, and for nothing else. To be asked anew after `set_rules`: a caller that skips this for packets of one flow forgets that flow then. A TCP
        reset may always leave, and begins no flow: what answers a refused packet may go this way.
        """
        reply = reply_key(packet)
        if not reply:
            return True
        if self._ours.holds(reply, now):
            self._ours.touch(reply, now, _lifetime(reply[-1]))
            return True
        flags = tcp_flags(packet) if reply[-1] == TCP else 0
        if flags is None or flags & TCP_RST:
            return True
        if flags & (TCP_SYN | TCP_ACK) == TCP_SYN or not self._theirs.holds(reply, now):
            self._ours.touch(reply, now, _lifetime(reply[-1]))
            return True
        return self._answer_may_leave(reply, now)

    def _answer_may_leave(self, reply: bytes, now: float) -> bool:
        """The verdict for what this host sends in a flow that the other side began; remembers it."""
        if reply in self._accepted_flows:
            self._theirs.touch(reply, now, _lifetime(reply[-1]))
            return True
        if self._refused.holds(reply, now):
            return False
        accepted = self._accepted_flow(reply)
        self._remember(reply, accepted, now)
        return accepted

    def _decide(self, parsed: Parsed, now: float) -> bool:
        """The verdict for a packet of no remembered flow; remembers it."""
        if not parsed.first:
            return self._fragments.holds(parsed.fragment, now)
        flow = parsed.flow
        accepted = self._ours.holds(flow, now) or self._related(parsed.quoted, now) or self._accepted_by_rule(parsed)
        if accepted and parsed.fragment:
            self._fragments.touch(parsed.fragment, now, FRAGMENT_S)
        if parsed.key == flow:
            self._remember(flow, accepted, now)
        elif accepted and not self._ours.holds(flow, now) and not parsed.quoted:
            self._theirs.touch(flow, now, _lifetime(parsed.protocol))
        return accepted

    def _remember(self, flow: bytes, accepted: bool, now: float) -> None:
        if not accepted:
            self._refused.touch(flow, now, OTHER_IDLE_S)
            return
        if len(self._accepted_flows) >= self._max_flows:
            self._accepted_flows.clear()
        self._accepted_flows.add(flow)
        self._theirs.touch(flow, now, _lifetime(flow[-1]))

    def _related(self, quoted: bytes, now: float) -> bool:
        """Whether the packet that an ICMP error quotes belongs to a flow that may go on."""
        return bool(quoted) and (self._ours.holds(quoted, now) or (self._theirs.holds(quoted, now) and self._accepted_flow(quoted)))

    def _accepted_flow(self, flow: bytes) -> bool:
        half = (len(flow) - 5) // 2
        protocol = flow[-1]
        port = int.from_bytes(flow[-3:-1], "big") if protocol in WITH_PORTS else -1
        return self._accepted(flow[:half], flow[half : 2 * half], protocol, port)

    def _accepted_by_rule(self, parsed: Parsed) -> bool:
        half = len(parsed.addresses) // 2
        return self._accepted(parsed.addresses[:half], parsed.addresses[half:], parsed.protocol, parsed.port)

    def _accepted(self, source: bytes, destination: bytes, protocol: int, port: int) -> bool:
        return any(rule.accepts(source, destination, protocol, port) for rule in self._rules)


def _lifetime(protocol: int) -> float:
    if protocol == TCP:
        return TCP_IDLE_S
    if protocol in (ICMP, ICMPV6):
        return ICMP_IDLE_S
    return UDP_IDLE_S if protocol == UDP else OTHER_IDLE_S
