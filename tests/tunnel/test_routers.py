"""Which router carries a prefix: scripts of time, traffic and routers that live and die; what is pinged and moved comes out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_network
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.model import NodeId, Prefix
from calnet.tunnel.routers import (
    ANSWER_WITHIN,
    DEAD_AFTER,
    FORGIVE_AFTER,
    GAP,
    HOLD_FIRST,
    HOLD_LONGEST,
    LAPSE,
    MAX_ROUTERS,
    NO_DATA_AFTER,
    OTHERS_AFTER,
    PROBE_INTERVAL_DEAD,
    SLOW_AFTER,
    SUSPECT_AFTER,
    ProbeRouter,
    RouterMoved,
    Routers,
    hold_time,
)

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)
LAN, PART, OTHER = ip_network("10.1.0.0/16"), ip_network("10.1.5.0/24"), ip_network("fd10::/64")
INSIDE: Final = {LAN: bytes([10, 1, 2, 3]), PART: bytes([10, 1, 5, 3]), OTHER: ip_network("fd10::7/128").network_address.packed}
TICK: Final = 0.05
RTT: Final = 0.1
BOUND: Final = SUSPECT_AFTER + OTHERS_AFTER + DEAD_AFTER + RTT + 5 * TICK
"""From the first packet without an answer to the move, where another router answers."""


class World:
    """Routers that answer pings (`alive`) and carry packets (`alive` and not `deaf`), and a shell around the machine. `late` is a router's round trip."""

    def __init__(self, routers: Mapping[Prefix, tuple[NodeId, ...]]) -> None:
        self.machine = Routers()
        self.now = 1000.0
        self.alive: set[NodeId] = {router for order in routers.values() for router in order}
        self.deaf: set[NodeId] = set()
        self.late: dict[NodeId, float] = {}
        self.heard: dict[NodeId, list[float]] = {}
        self.carried: dict[NodeId, list[float]] = {}
        self.probes: list[tuple[float, NodeId]] = []
        self.moves: list[tuple[float, RouterMoved]] = []
        self.coming: list[tuple[float, float | None, NodeId]] = []
        self.says(routers)

    def says(self, routers: Mapping[Prefix, tuple[NodeId, ...]]) -> list[RouterMoved]:
        """The netmap."""
        return self.machine.configure(routers)

    def carrier(self, prefix: Prefix = LAN) -> NodeId:
        carrier = self.machine.carrier(prefix)
        assert carrier is not None
        return carrier

    def run(self, seconds: float, sending: Collection[Prefix] = ()) -> None:
        """Time passes, packets leave for these prefixes all the while."""
        for _ in range(round(seconds / TICK)):
            self._arrive()
            for prefix in sending:
                self._send(prefix)
            due = self.machine.next_deadline()
            if due is not None and due <= self.now:
                self._act()
            self.now += TICK

    def send(self, prefix: Prefix = LAN) -> None:
        """One packet."""
        self._send(prefix)

    def _send(self, prefix: Prefix) -> None:
        self.machine.sent(INSIDE[prefix], self.now)
        carrier = self.machine.carrier(prefix)
        if carrier is not None and carrier in self.alive and carrier not in self.deaf:
            self.coming.append((self.now + self.late.get(carrier, RTT), None, carrier))

    def _arrive(self) -> None:
        come = [coming for coming in self.coming if coming[0] <= self.now]
        self.coming = [coming for coming in self.coming if coming[0] > self.now]
        for _, rtt, router in come:
            self.heard.setdefault(router, []).append(self.now)
            if rtt is None:
                self.carried.setdefault(router, []).append(self.now)
                self.machine.heard(router, self.now)
            else:
                self.machine.answered(router, self.now, rtt)

    def _act(self) -> None:
        for effect in self.machine.on_timer(self.now):
            match effect:
                case ProbeRouter():
                    self.probes.append((self.now, effect.peer))
                    if effect.peer in self.alive:
                        rtt = self.late.get(effect.peer, RTT)
                        self.coming.append((self.now + rtt, rtt, effect.peer))
                case RouterMoved():
                    self.moves.append((self.now, effect))
        after = self.machine.next_deadline()
        assert after is None or after > self.now  # a shell that sleeps until then does not spin


def pair() -> World:
    return World({LAN: (ONE, TWO)})


def test_router_that_answers_is_neither_pinged_nor_left() -> None:
    world = pair()
    world.run(120, sending=[LAN])
    assert (world.probes, world.moves) == ([], [])
    assert world.carrier() == ONE


def test_router_that_died_is_left_within_the_bound_for_one_that_answers() -> None:
    world = pair()
    world.run(10, sending=[LAN])
    world.alive.remove(ONE)
    died = world.now
    world.run(BOUND + RTT, sending=[LAN])
    [(at, move)] = world.moves
    assert (move.prefix, move.old, move.new) == (LAN, ONE, TWO)
    assert DEAD_AFTER <= at - died <= BOUND + RTT
    assert "no answer" in move.why
    assert world.carrier() == TWO


def test_one_packet_without_an_answer_is_enough() -> None:
    world = pair()
    world.alive.remove(ONE)
    world.send()
    world.run(BOUND)
    assert world.carrier() == TWO


def test_nothing_is_pinged_or_moved_while_nothing_is_sent() -> None:
    world = pair()
    world.run(30, sending=[LAN])
    world.alive.clear()
    world.run(300)
    assert (world.probes, world.moves) == ([], [])
    assert world.machine.next_deadline() is None


def test_node_that_is_offline_moves_nothing_and_pings_ever_less() -> None:
    world = World({LAN: (ONE, TWO, THREE)})
    world.alive.clear()
    world.run(SUSPECT_AFTER + SLOW_AFTER + 1, sending=[LAN])
    before = len(world.probes)
    world.run(100, sending=[LAN])
    assert world.moves == []
    assert before > 40
    assert len(world.probes) - before <= 3 * (100 / PROBE_INTERVAL_DEAD + 1)


def test_node_that_was_offline_stays_with_its_router_when_all_are_back() -> None:
    world = pair()
    world.alive.clear()
    world.run(60, sending=[LAN])
    world.alive |= {ONE, TWO}
    world.late[ONE] = DEAD_AFTER - 1.5  # found again later than the other
    world.run(60, sending=[LAN])
    assert world.moves == []


def test_router_that_comes_back_does_not_take_over() -> None:
    world = pair()
    world.alive.remove(ONE)
    world.run(BOUND, sending=[LAN])
    world.alive.add(ONE)
    world.run(900, sending=[LAN])
    assert [move.new for _, move in world.moves] == [TWO]


def test_backup_that_does_not_answer_is_no_better() -> None:
    world = World({LAN: (ONE, TWO, THREE)})
    world.alive = {THREE}
    world.run(BOUND, sending=[LAN])
    assert [move.new for _, move in world.moves] == [THREE]


def test_backup_whose_answers_stopped_is_not_moved_to() -> None:
    world = pair()
    world.alive = {TWO}
    world.run(DEAD_AFTER - 1, sending=[LAN])
    assert TWO in world.heard
    world.alive.clear()
    world.run(BOUND, sending=[LAN])
    assert world.moves == []


@pytest.mark.parametrize(("rtt", "moves"), [(ANSWER_WITHIN - 0.1, 1), (ANSWER_WITHIN + 0.1, 0)])
def test_answer_that_took_too_long_proves_nothing(rtt: float, moves: int) -> None:
    world = pair()
    world.alive = {TWO}
    world.late[TWO] = rtt
    world.run(30, sending=[LAN])
    assert len(world.moves) == moves


def test_slow_router_that_answers_is_kept() -> None:
    world = pair()
    world.late[ONE] = 2.5
    world.run(120, sending=[LAN])
    assert world.moves == []


def test_router_that_answers_pings_and_carries_nothing_is_left_after_longer() -> None:
    world = pair()
    world.deaf.add(ONE)
    world.run(NO_DATA_AFTER - 1, sending=[LAN])
    assert world.moves == []
    world.run(3, sending=[LAN])
    [(_, move)] = world.moves
    assert move.new == TWO
    assert "no tunnel message" in move.why


def test_one_way_traffic_with_a_keepalive_now_and_then_stays() -> None:
    world = pair()
    world.deaf.add(ONE)
    for _ in range(20):
        world.run(10, sending=[LAN])
        world.machine.heard(ONE, world.now)
    assert world.moves == []
    assert {router for _, router in world.probes} == {ONE}


def test_machine_that_was_stopped_asks_before_it_moves() -> None:
    world = pair()
    world.run(5, sending=[LAN])
    world.machine.heard(TWO, world.now)
    world.run(TICK, sending=[LAN])
    world.coming.clear()  # what was under way is lost with the time that passes
    world.now += 60
    world.machine.heard(TWO, world.now)
    world.run(30, sending=[LAN])
    assert world.moves == []


def test_router_that_was_left_is_held_and_then_taken_again() -> None:
    world = pair()
    world.alive = {TWO}
    world.run(BOUND, sending=[LAN])
    left = world.moves[0][0]
    world.alive = {ONE}
    world.run(HOLD_FIRST - BOUND, sending=[LAN])
    assert len(world.moves) == 1
    world.run(BOUND + 2, sending=[LAN])
    assert [move.new for _, move in world.moves] == [TWO, ONE]
    assert world.moves[1][0] - left >= HOLD_FIRST


def test_third_router_is_taken_while_the_first_is_held() -> None:
    world = World({LAN: (ONE, TWO, THREE)})
    world.alive = {TWO}
    world.run(BOUND, sending=[LAN])
    world.alive = {ONE, THREE}
    world.run(BOUND + RTT, sending=[LAN])
    assert [move.new for _, move in world.moves] == [TWO, THREE]


def test_routers_that_flap_in_turn_move_the_prefix_ever_less() -> None:
    world = pair()
    for turn in range(120):
        world.alive = {TWO} if turn % 2 == 0 else {ONE}
        world.run(10, sending=[LAN])
    times = [at for at, _ in world.moves]
    assert len([at for at in times if at < times[0] + 300]) <= 8
    assert all(later - at >= HOLD_LONGEST for at, later in zip(times[8:], times[10:], strict=False))


@pytest.mark.parametrize(("times", "seconds"), [(1, HOLD_FIRST), (2, 2 * HOLD_FIRST), (3, HOLD_LONGEST), (4, HOLD_LONGEST), (10_000, HOLD_LONGEST)])
def test_hold_time(times: int, seconds: float) -> None:
    assert hold_time(times) == seconds


def test_router_that_was_left_long_ago_is_held_as_at_first() -> None:
    world = pair()
    for _ in range(2):
        world.alive = {TWO}
        world.run(BOUND, sending=[LAN])
        assert world.carrier() == TWO
        world.says({LAN: (TWO, ONE)})
        world.says({LAN: (ONE, TWO)})
        world.alive = {ONE, TWO}
        world.run(FORGIVE_AFTER, sending=[LAN])
    world.alive = {TWO}
    world.run(BOUND, sending=[LAN])
    world.alive = {ONE}
    left = world.now
    world.run(HOLD_FIRST + BOUND, sending=[LAN])
    assert world.carrier() == ONE
    assert world.now - left < 2 * HOLD_FIRST


def test_netmap_that_names_another_first_router_is_followed() -> None:
    world = World({LAN: (ONE, TWO, THREE)})
    world.alive = {TWO, THREE}
    world.run(BOUND, sending=[LAN])
    assert world.carrier() == TWO
    assert [(move.old, move.new) for move in world.says({LAN: (THREE, ONE, TWO)})] == [(TWO, THREE)]
    assert world.carrier() == THREE


def test_netmap_that_confirms_our_choice_moves_nothing() -> None:
    world = pair()
    world.alive = {TWO}
    world.run(BOUND, sending=[LAN])
    assert world.says({LAN: (TWO, ONE)}) == []
    assert world.carrier() == TWO
    assert world.says({LAN: (ONE, TWO)}) == [RouterMoved(LAN, TWO, ONE, "the server moved it")]


def test_netmap_that_says_the_same_or_more_leaves_our_choice() -> None:
    world = pair()
    world.alive = {TWO}
    world.run(BOUND, sending=[LAN])
    assert world.says({LAN: (ONE, TWO)}) == []
    assert world.says({LAN: (ONE, THREE, TWO), OTHER: (THREE,)}) == []
    assert world.carrier() == TWO


def test_netmap_that_says_the_same_again_and_again_does_not_delay_the_move() -> None:
    world = pair()
    world.alive = {TWO}
    for _ in range(round(BOUND)):
        world.run(1, sending=[LAN])
        world.says({LAN: (ONE, TWO)})
    assert world.carrier() == TWO


def test_netmap_without_our_choice_is_followed() -> None:
    world = World({LAN: (ONE, TWO, THREE)})
    world.alive = {TWO}
    world.run(BOUND, sending=[LAN])
    assert [move.new for move in world.says({LAN: (ONE, THREE)})] == [ONE]
    assert world.carrier() == ONE


def test_prefix_with_one_router_or_none_is_not_watched() -> None:
    world = World({LAN: (ONE,)})
    world.alive.clear()
    world.run(60, sending=[LAN])
    assert world.probes == []
    assert world.machine.carrier(LAN) is None
    world = pair()
    world.alive.clear()
    world.run(5, sending=[LAN])
    world.says({})
    seen = len(world.probes)
    world.run(60, sending=[LAN])
    assert len(world.probes) == seen
    assert world.machine.next_deadline() is None


def test_packet_for_a_longer_prefix_with_one_router_says_nothing_of_the_shorter() -> None:
    world = World({LAN: (ONE, TWO), PART: (THREE,)})
    world.alive = {TWO}
    world.run(60, sending=[PART])
    assert (world.probes, world.moves) == ([], [])


def test_prefixes_of_one_router_move_together_and_share_its_pings() -> None:
    world = World({LAN: (ONE, TWO), OTHER: (ONE, TWO)})
    world.alive = {TWO}
    world.run(BOUND, sending=[LAN, OTHER])
    assert {move.prefix for _, move in world.moves} == {LAN, OTHER}
    of_one = [at for at, router in world.probes if router == ONE]
    assert all(later - at > 0.9 for at, later in pairwise(of_one))


def test_only_the_prefix_that_something_is_sent_for_moves() -> None:
    world = World({LAN: (ONE, TWO), OTHER: (ONE, TWO)})
    world.alive = {TWO}
    world.run(BOUND, sending=[LAN])
    assert (world.carrier(LAN), world.carrier(OTHER)) == (TWO, ONE)


def test_netmap_with_very_many_routers_makes_us_ping_few() -> None:
    world = World({LAN: tuple(NodeId(number) for number in range(1, 500))})
    world.alive.clear()
    world.run(30, sending=[LAN])
    assert len({router for _, router in world.probes}) == MAX_ROUTERS


def test_word_of_a_node_that_is_no_router_is_ignored() -> None:
    world = pair()
    world.alive.clear()
    for _ in range(60):
        world.run(0.5, sending=[LAN])
        world.machine.heard(THREE, world.now)
        world.machine.answered(THREE, world.now, 0.1)
        world.machine.sent(bytes([10, 9, 9, 9]), world.now)
        world.machine.sent(b"", world.now)
    assert world.moves == []


_ROUTERS = (ONE, TWO, THREE)
_ORDERS = st.permutations(_ROUTERS).flatmap(lambda order: st.sampled_from([tuple(order), tuple(order[:2])]))
_PHASES = st.lists(
    st.tuples(
        st.sampled_from([1.0, 4.0, 9.0, 20.0, 70.0]),
        st.sets(st.sampled_from(_ROUTERS)),
        st.sets(st.sampled_from(_ROUTERS), max_size=1),
        st.sets(st.sampled_from([LAN, OTHER])),
        st.none() | st.none() | _ORDERS,
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=120)
@given(_PHASES)
def test_whatever_happens_only_a_living_router_is_chosen_and_never_often(
    phases: list[tuple[float, set[NodeId], set[NodeId], set[Prefix], tuple[NodeId, ...] | None]],
) -> None:
    world = World({LAN: _ROUTERS, OTHER: (TWO, THREE)})
    told: list[float] = []
    last_sent = float("-inf")
    for seconds, alive, deaf, sending, order in phases:
        world.alive, world.deaf = set(alive), set(deaf)
        if order is not None:
            told.append(world.now)
            world.says({LAN: order, OTHER: (TWO, THREE)})
            assert world.carrier(LAN) in order
        probes, moves, begun = len(world.probes), len(world.moves), world.now
        world.run(seconds, sending=sending)
        if not sending:
            quiet = [at for at, _ in (*world.probes[probes:], *world.moves[moves:]) if at >= last_sent + LAPSE]
            assert not quiet
            assert all(at >= begun for at, _ in world.probes[probes:])
        else:
            last_sent = world.now
    for at, move in world.moves:
        assert any(at - GAP <= heard <= at for heard in world.heard[move.new])
        silent = not any(at - DEAD_AFTER < heard < at for heard in world.heard.get(move.old, []))
        empty = not any(at - NO_DATA_AFTER < heard < at for heard in world.carried.get(move.old, []))
        assert silent or empty
    for prefix, routers in ((LAN, 3), (OTHER, 2)):
        times = [at for at, move in world.moves if move.prefix == prefix]
        for at in times:
            own = len([time for time in times if at <= time < at + HOLD_FIRST])
            assert own <= routers + (len([time for time in told if at <= time < at + HOLD_FIRST]) if prefix == LAN else 0)


@settings(max_examples=60)
@given(_PHASES, st.sampled_from(_ROUTERS))
def test_whatever_happened_the_one_router_that_lives_carries_in_the_end(
    phases: list[tuple[float, set[NodeId], set[NodeId], set[Prefix], tuple[NodeId, ...] | None]], survivor: NodeId
) -> None:
    world = World({LAN: _ROUTERS, OTHER: (TWO, THREE)})
    for seconds, alive, deaf, sending, _ in phases:
        world.alive, world.deaf = set(alive), set(deaf)
        world.run(seconds, sending=sending)
    world.alive, world.deaf = {survivor}, set()
    world.run(HOLD_LONGEST + PROBE_INTERVAL_DEAD + BOUND, sending=[LAN])
    assert world.carrier(LAN) == survivor
