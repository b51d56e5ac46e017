"""Which inner packets may pass, either way: those of the addresses that peers and we have, in flows that the filter accepts.

Inbound, a packet has to be from the peer's addresses, to ours or to what we route, and accepted by the filter; an ICMP error besides has to quote a packet that
went to that peer. Outbound, its source is ours or in a prefix we route for others (its peer would drop it too; a router whose source NAT is on sends with its
own address), and no flow that rules no longer accept goes on. Where the network rejects rather than drops, what the filter refuses is answered
(policy/reject.py): at once what was on its way out, and what came in when its batch is through; `answers` keeps the answers so long.
"""

from __future__ import annotations

from collections import deque

from calnet.model import Netmap
from calnet.policy.filter import PacketFilter
from calnet.policy.packets import flow_key, quoted_destination
from calnet.policy.reject import new_limiter, rejection
from calnet.roles.node.accounts import Accounts
from calnet.roles.node.flows import KnownFlows
from calnet.tunnel.prefixes import PrefixTable, hosts
from calnet.tunnel.session import Session
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.ip import destination_of, is_usable_source, source_of


class Admission:
    """See the module's docstring. The time is that of `accounts`."""

    def __init__(self, tunnel: Tunnel, flows: KnownFlows, accounts: Accounts) -> None:
        self._tunnel, self._flows, self._accounts = tunnel, flows, accounts
        self._filter = PacketFilter()
        self._local: PrefixTable[bool] = PrefixTable(())
        self._rejects = False
        self._rejections_sent = new_limiter()
        self.answers: deque[bytes] = deque()
        """Packets that tell senders of what came in that it was refused."""

    def apply(self, netmap: Netmap) -> None:
        """Take a new netmap: our own addresses and routes, and the filter's rules."""
        self._local = PrefixTable((prefix, True) for prefix in (*hosts(netmap.self.addresses), *netmap.self.routes))
        self._filter.set_rules(netmap.filter)
        self._rejects = netmap.reject

    def may_come(self, session: Session, packet: memoryview) -> bool:
        """Whether this inner packet may come from this peer, to us or what we route, and passes the filter."""
        flow = flow_key(packet)
        if flow is None:
            return False
        if self._flows.accepts(session, flow):
            return True
        source = source_of(packet)
        if not is_usable_source(source) or not self._tunnel.owns(session.peer, source) or self._local.lookup(destination_of(packet)) is None:
            return False
        concerned = quoted_destination(packet)
        if concerned is not None and not (concerned and self._tunnel.owns(session.peer, concerned)):
            return False  # an error about what we sent to somebody else
        if not self._filter.inbound(packet, self._accounts.now, flow):
            answer = self.rejection(packet)
            if answer is not None:
                self.answers.append(answer)
            return False
        self._flows.accept(session, flow)
        return True

    def is_from_us(self, packet: memoryview) -> bool:
        """Whether the packet's source is ours, or one that we route."""
        return self._local.lookup(source_of(packet)) is not None

    def may_leave(self, packet: memoryview) -> bool:
        """Whether the filter lets this packet out."""
        return self._filter.outbound(packet, self._accounts.now)

    def rejection(self, packet: memoryview) -> bytes | None:
        """What tells the sender of a packet that it was refused; None where it is not to be told."""
        return rejection(packet, self._rejections_sent, self._accounts.now) if self._rejects else None
