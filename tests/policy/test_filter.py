"""The packet filter, case by case and against a slow obvious one."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.model import FilterRule, PortRange, Prefix
from calnet.policy import filter as filtering
from calnet.policy.filter import PacketFilter
from tests.policy.craft import GRE, ICMP, ICMPV6, TCP, UDP, icmp, ip, tcp, udp

ME, PEER, OTHER = "100.70.0.1", "100.70.0.2", "100.70.0.3"
ME6, PEER6 = "fd00::1", "fd00::2"
SIDES = [(ME, PEER), (ME6, PEER6)]


def rule(source: str, destination: str, protocols: tuple[int, ...] = (), ports: tuple[PortRange, ...] = ()) -> FilterRule:
    return FilterRule((ipaddress.ip_network(source),), (ipaddress.ip_network(destination),), protocols, ports)


ALL_TO_ME = [rule(PEER, ME), rule(PEER6, ME6)]


@pytest.mark.parametrize(("me", "peer"), SIDES)
def test_without_a_rule_nothing_comes_in_but_replies(me: str, peer: str) -> None:
    echo, answer = (8, 0) if me == ME else (128, 129)
    packets = PacketFilter()
    for inward, outward in [
        (tcp(peer, me, 80, 1000), tcp(me, peer, 1000, 80)),
        (udp(peer, me, 53, 1000), udp(me, peer, 1000, 53)),
        (icmp(peer, me, answer, 7), icmp(me, peer, echo, 7)),
        (ip(peer, me, GRE, b""), ip(me, peer, GRE, b"")),
    ]:
        assert not packets.inbound(inward, 0.0)
        packets.outbound(outward, 1.0)
        assert packets.inbound(inward, 2.0)
    assert not packets.inbound(tcp(peer, me, 81, 1000), 3.0)
    assert not packets.inbound(tcp(peer, me, 80, 1001), 3.0)
    assert not packets.inbound(icmp(peer, me, echo, 7), 3.0)
    assert not packets.inbound(icmp(peer, me, answer, 8), 3.0)


@pytest.mark.parametrize(("me", "peer"), SIDES)
def test_rule_lets_its_sources_in(me: str, peer: str) -> None:
    packets = PacketFilter(ALL_TO_ME)
    for packet in (tcp(peer, me, 1, 2), udp(peer, me, 1, 2), ip(peer, me, GRE, b""), icmp(peer, me, 8 if me == ME else 128)):
        assert packets.inbound(packet, 0.0)
        assert packets.inbound(packet, 1.0)
    assert not packets.inbound(tcp(OTHER, ME, 1, 2), 0.0)
    assert not packets.inbound(tcp(PEER, OTHER, 1, 2), 0.0)


def test_rule_with_protocol_and_ports_means_just_those() -> None:
    packets = PacketFilter([rule("100.70.0.0/24", ME, (TCP, ICMP), (PortRange(80, 90), PortRange(443, 443)))])
    for port in (80, 85, 90, 443):
        assert packets.inbound(tcp(PEER, ME, 5, port), 0.0)
    for port in (79, 91, 442, 444, 0):
        assert not packets.inbound(tcp(PEER, ME, 5, port), 0.0)
    assert not packets.inbound(udp(PEER, ME, 5, 80), 0.0)
    assert not packets.inbound(icmp(PEER, ME, 8), 0.0)
    assert PacketFilter([rule(PEER, ME, (ICMP,))]).inbound(icmp(PEER, ME, 8), 0.0)


def test_malformed_packet_is_refused_and_changes_nothing() -> None:
    packets = PacketFilter(ALL_TO_ME)
    for bad in (b"", b"\x45", tcp(PEER, ME, 1, 2)[:-1], ip(PEER, ME, TCP, bytes(8))):
        assert not packets.inbound(bad, 0.0)
        assert packets.outbound(bad, 0.0)  # whether it may leave at all is the data path's question


def test_own_flow_ends_when_it_was_idle_too_long() -> None:
    packets = PacketFilter()
    packets.outbound(udp(ME, PEER, 1, 2), 0.0)
    assert packets.inbound(udp(PEER, ME, 2, 1), filtering.UDP_IDLE_S - 1)
    assert packets.inbound(udp(PEER, ME, 2, 1), 2 * filtering.UDP_IDLE_S - 2)
    assert not packets.inbound(udp(PEER, ME, 2, 1), 4 * filtering.UDP_IDLE_S)
    packets.outbound(tcp(ME, PEER, 1, 2), 0.0)
    assert packets.inbound(tcp(PEER, ME, 2, 1), filtering.TCP_IDLE_S - 1)
    packets.outbound(icmp(ME, PEER, 8, 1), 0.0)
    assert not packets.inbound(icmp(PEER, ME, 0, 1), filtering.ICMP_IDLE_S + 1)


def test_rule_taken_away_ends_flows_it_let_in_but_not_our_own() -> None:
    packets = PacketFilter(ALL_TO_ME)
    assert packets.inbound(tcp(PEER, ME, 5000, 22), 0.0)
    packets.outbound(tcp(ME, PEER, 22, 5000), 0.1)
    packets.outbound(tcp(ME, PEER, 6000, 443), 0.1)
    packets.set_rules([])
    assert not packets.inbound(tcp(PEER, ME, 5000, 22), 0.2)
    assert not packets.outbound(tcp(ME, PEER, 22, 5000), 0.3)
    assert not packets.outbound(tcp(ME, PEER, 22, 5000), 0.3)
    assert not packets.inbound(tcp(PEER, ME, 5000, 22), 0.4)
    assert packets.inbound(tcp(PEER, ME, 443, 6000), 0.5)
    assert packets.outbound(tcp(ME, PEER, 6000, 443), 0.5)
    packets.set_rules(ALL_TO_ME)
    assert packets.outbound(tcp(ME, PEER, 22, 5000), 0.6)
    assert packets.outbound(tcp(ME, PEER, 22, 5000), 0.7)
    assert packets.inbound(tcp(PEER, ME, 5000, 22), 0.8)


@pytest.mark.parametrize(("me", "peer"), SIDES)
def test_what_this_host_still_sends_in_a_forbidden_flow_is_refused(me: str, peer: str) -> None:
    packets = PacketFilter([rule(peer, me)])
    flows = [
        (tcp(peer, me, 5000, 22), tcp(me, peer, 22, 5000)),
        (udp(peer, me, 5000, 53), udp(me, peer, 53, 5000)),
        (ip(peer, me, GRE, b""), ip(me, peer, GRE, b"")),
    ]
    for inward, outward in flows:
        assert packets.inbound(inward, 0.0)
        assert packets.outbound(outward, 0.1)
    packets.set_rules([rule(peer, me, (TCP,), (PortRange(80, 80),))])
    for _, outward in flows:
        assert not packets.outbound(outward, 0.2)
    assert packets.outbound(udp(me, peer, 54, 5000), 0.3)
    assert packets.outbound(icmp(me, peer, 3 if me == ME else 1, 0, flows[0][0]), 0.3)


@pytest.mark.parametrize(("me", "peer"), SIDES)
def test_connection_that_we_open_over_a_forbidden_flow_is_ours(me: str, peer: str) -> None:
    packets = PacketFilter([rule(peer, me)])
    assert packets.inbound(tcp(peer, me, 5000, 22), 0.0)
    packets.set_rules([])
    for flags in (0x10, 0x12, 0x18, 0x11, 0x01, 0x00):
        assert not packets.outbound(tcp(me, peer, 22, 5000, flags=flags), 0.1)
    assert packets.outbound(tcp(me, peer, 22, 5000, flags=0x02), 0.2)
    assert packets.inbound(tcp(peer, me, 5000, 22), 0.3)
    assert packets.outbound(tcp(me, peer, 22, 5000), 0.4)


@pytest.mark.parametrize(("me", "peer"), SIDES)
@pytest.mark.parametrize("flags", [0x04, 0x14])
def test_reset_may_leave_and_begins_no_flow(me: str, peer: str, flags: int) -> None:
    packets = PacketFilter()
    assert not packets.inbound(tcp(peer, me, 5000, 22), 0.0)
    assert packets.outbound(tcp(me, peer, 22, 5000, flags=flags), 0.1)
    assert not packets.inbound(tcp(peer, me, 5000, 22), 0.2)


def test_forbidden_flow_without_connection_may_be_begun_anew_once_it_was_idle() -> None:
    packets = PacketFilter(ALL_TO_ME)
    assert packets.inbound(udp(PEER, ME, 5000, 53), 0.0)
    packets.set_rules([])
    for seconds in range(0, int(filtering.UDP_IDLE_S), 20):
        assert not packets.outbound(udp(ME, PEER, 53, 5000), float(seconds))
    assert packets.outbound(udp(ME, PEER, 53, 5000), filtering.UDP_IDLE_S + 1)
    assert packets.inbound(udp(PEER, ME, 5000, 53), filtering.UDP_IDLE_S + 2)


def test_rule_given_lets_in_what_was_refused() -> None:
    packets = PacketFilter()
    assert not packets.inbound(tcp(PEER, ME, 1, 2), 0.0)
    packets.set_rules(ALL_TO_ME)
    assert packets.inbound(tcp(PEER, ME, 1, 2), 0.1)


@pytest.mark.parametrize(("me", "peer"), SIDES)
@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_icmp_error_about_a_known_flow_comes_in_and_no_other(me: str, peer: str, kind: int) -> None:
    number = kind if me == ME6 else {1: 3, 2: 3, 3: 11, 4: 12}[kind]
    router = "192.0.2.1" if me == ME else "2001:db8::1"
    packets = PacketFilter()
    sent = [udp(me, peer, 1000, 53), tcp(me, peer, 1000, 80), icmp(me, peer, 8 if me == ME else 128, 7)]
    for packet in sent:
        error = icmp(router, me, number, 0, packet[:68])
        assert not packets.inbound(error, 0.0)
        packets.outbound(packet, 0.0)
        assert packets.inbound(error, 1.0)
        assert packets.inbound(icmp(router, me, number, 0, packet[: 28 if me == ME else 48]), 1.0)
        assert not packets.inbound(icmp(router, me, number, 0, packet[: 27 if me == ME else 47]), 1.0)
    assert not packets.inbound(icmp(router, me, number, 0, udp(me, peer, 1000, 54)), 1.0)
    assert not packets.inbound(icmp(router, peer, number, 0, sent[0]), 1.0)
    assert not packets.inbound(icmp(router, me, number, 0, b""), 1.0)
    assert not packets.inbound(icmp(router, me, number, 0, ip(me, peer, UDP, bytes(8), offset=8)), 1.0)


def test_icmp_error_about_a_flow_let_in_ends_with_its_rule() -> None:
    packets = PacketFilter([rule(PEER, ME, (TCP,), (PortRange(22, 22),)), rule(PEER, ME, (GRE,))])
    for inward, outward in ((tcp(PEER, ME, 5000, 22), tcp(ME, PEER, 22, 5000)), (ip(PEER, ME, GRE, bytes(8)), ip(ME, PEER, GRE, bytes(8)))):
        assert packets.inbound(inward, 0.0)
        packets.outbound(outward, 0.0)
        assert packets.inbound(icmp(OTHER, ME, 3, 0, outward), 0.0)
    packets.set_rules([])
    assert not packets.inbound(icmp(OTHER, ME, 3, 0, tcp(ME, PEER, 22, 5000)), 0.0)


@pytest.mark.parametrize(("me", "peer"), SIDES)
def test_fragments_follow_their_first(me: str, peer: str) -> None:
    packets = PacketFilter([rule(peer, me, (UDP,), (PortRange(53, 53),))])

    def rest(number: int) -> bytes:
        return ip(peer, me, UDP, b"rest", offset=1480, number=number)

    assert not packets.inbound(rest(1), 0.0)
    assert packets.inbound(udp(peer, me, 9, 53, more=True, number=1), 0.0)
    assert packets.inbound(rest(1), 0.1)
    assert not packets.inbound(rest(2), 0.1)
    assert not packets.inbound(udp(peer, me, 9, 54, more=True, number=3), 0.1)
    assert not packets.inbound(rest(3), 0.1)
    assert not packets.inbound(rest(1), filtering.FRAGMENT_S + 1)
    packets.outbound(udp(me, peer, 77, 78), 0.0)
    assert packets.inbound(udp(peer, me, 78, 77, more=True, number=4), 0.1)
    assert packets.inbound(rest(4), 0.2)
    packets.set_rules([])
    assert not packets.inbound(rest(4), 0.3)


def test_fragmented_replies_of_a_flow_let_in_do_not_make_it_ours() -> None:
    packets = PacketFilter(ALL_TO_ME)
    assert packets.inbound(udp(PEER, ME, 9, 53, more=True), 0.0)
    packets.outbound(udp(ME, PEER, 53, 9, more=True), 0.1)
    packets.outbound(ip(ME, PEER, UDP, b"rest", offset=1480), 0.1)
    packets.set_rules([])
    assert not packets.inbound(udp(PEER, ME, 9, 53), 0.2)


def test_tables_are_bounded_and_forget_the_longest_unused() -> None:
    packets = PacketFilter(ALL_TO_ME, max_flows=100)
    for port in range(100):
        packets.outbound(udp(ME, PEER, port, 1), float(port))
    packets.outbound(udp(ME, PEER, 0, 1), 120.0)
    packets.outbound(udp(ME, PEER, 200, 1), 121.0)
    packets.set_rules([])
    assert packets.inbound(udp(PEER, ME, 1, 0), 122.0)
    assert not packets.inbound(udp(PEER, ME, 1, 1), 122.0)
    assert packets.inbound(udp(PEER, ME, 1, 2), 122.0)


def test_flood_of_refused_or_accepted_packets_pushes_out_no_flow_of_ours() -> None:
    packets = PacketFilter(ALL_TO_ME, max_flows=100)
    packets.outbound(udp(ME, OTHER, 1, 1), 0.0)
    for port in range(6000):
        packets.inbound(udp(PEER, ME, port, 9), 1.0)
        packets.inbound(udp(OTHER, ME, port, 9), 1.0)
    assert packets.inbound(udp(OTHER, ME, 1, 1), 2.0)


# --- the slow twin ---

HOSTS = [ME, PEER, OTHER]
PORTS = [1, 2, 80]
PROTOCOL_OF = {"tcp": TCP, "udp": UDP, "gre": GRE, "echo": ICMP, "answer": ICMP}


class Slow:
    """Remembers every packet's meaning for ever (so it is compared within the shortest lifetime only)."""

    def __init__(self, rules: list[FilterRule]) -> None:
        self.rules = rules
        self.ours: set[tuple[object, ...]] = set()
        self.theirs: set[tuple[object, ...]] = set()

    def by_rule(self, source: str, destination: str, protocol: int, port: int | None) -> bool:
        def inside(address: str, prefixes: tuple[Prefix, ...]) -> bool:
            return any(ipaddress.ip_address(address) in prefix for prefix in prefixes)

        for candidate in self.rules:
            ports_match = not candidate.ports or (port is not None and any(ports.first <= port <= ports.last for ports in candidate.ports))
            protocol_matches = not candidate.protocols or protocol in candidate.protocols
            if ports_match and protocol_matches and inside(source, candidate.sources) and inside(destination, candidate.destinations):
                return True
        return False

    def inbound(self, kind: str, source: str, destination: str, a: int, b: int) -> bool:
        flow = (kind, source, destination, a, b)
        if flow in self.ours:
            return True
        protocol, port = PROTOCOL_OF[kind], b if kind in ("tcp", "udp") else None
        if self.by_rule(source, destination, protocol, port):
            self.theirs.add(flow)
            return True
        return False

    def outbound(self, kind: str, source: str, destination: str, a: int, b: int) -> bool:
        if kind == "answer":
            return True
        reply: tuple[Any, ...] = ("answer" if kind == "echo" else kind, destination, source, *((a, b) if kind == "echo" else (b, a)))
        if reply not in self.theirs or reply in self.ours:
            self.ours.add(reply)
            return True
        protocol, port = PROTOCOL_OF[reply[0]], reply[4] if reply[0] in ("tcp", "udp") else None
        return self.by_rule(destination, source, protocol, port)


def build(kind: str, source: str, destination: str, a: int, b: int) -> bytes:
    if kind == "tcp":
        return tcp(source, destination, a, b)
    if kind == "udp":
        return udp(source, destination, a, b)
    if kind == "gre":
        return ip(source, destination, GRE, b"")
    return icmp(source, destination, 8 if kind == "echo" else 0, a)


RULES = st.lists(
    st.builds(
        rule,
        st.sampled_from([*HOSTS, "100.70.0.0/24", "100.70.0.2/31"]),
        st.sampled_from([ME, "100.70.0.0/24", "0.0.0.0/0"]),
        st.sampled_from([(), (TCP,), (UDP, ICMP), (GRE,)]),
        st.sampled_from([(), (PortRange(2, 100),), (PortRange(1, 1), PortRange(80, 80))]),
    ),
    max_size=3,
)
MEANINGS = st.tuples(
    st.sampled_from(["tcp", "udp", "gre", "echo", "answer"]), st.sampled_from(HOSTS), st.sampled_from(HOSTS), st.sampled_from(PORTS), st.sampled_from(PORTS)
)
EVENTS = st.lists(st.one_of(st.tuples(st.just("in"), MEANINGS), st.tuples(st.just("out"), MEANINGS), st.tuples(st.just("rules"), RULES)), max_size=40)


@settings(max_examples=300)
@given(RULES, EVENTS)
def test_filter_agrees_with_its_slow_twin(rules: list[FilterRule], events: list[tuple[str, Any]]) -> None:
    fast, slow = PacketFilter(rules), Slow(rules)
    for number, (what, value) in enumerate(events):
        now = number / 10
        if what == "rules":
            fast.set_rules(value)
            slow.rules = value
            continue
        kind, source, destination, a, b = value
        if kind in ("echo", "answer"):
            b = 0
        if kind == "gre":
            a = b = 0
        packet = build(kind, source, destination, a, b)
        if what == "out":
            assert fast.outbound(packet, now) == slow.outbound(kind, source, destination, a, b)
        else:
            assert fast.inbound(packet, now) == slow.inbound(kind, source, destination, a, b)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), max_size=10))
def test_random_bytes_never_raise(packets: list[tuple[bool, bytes]]) -> None:
    subject = PacketFilter([FilterRule((ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")), (ipaddress.ip_network("::/0"),))])
    for outward, packet in packets:
        if outward:
            subject.outbound(packet, 0.0)
        else:
            subject.inbound(packet, 0.0)


def test_icmpv6_and_icmp_do_not_mix() -> None:
    packets = PacketFilter([rule(PEER6, ME6, (ICMPV6,))])
    assert packets.inbound(icmp(PEER6, ME6, 128), 0.0)
    assert not packets.inbound(icmp(PEER, ME, 8), 0.0)
