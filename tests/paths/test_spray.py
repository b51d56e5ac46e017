"""Guessing ports: what either side does and when, what ends it, and its bounds."""

from __future__ import annotations

import random

import pytest

from calnet.model import Endpoint, NodeId
from calnet.paths.effects import CloseSockets
from calnet.paths.spray import (
    AHEAD,
    AROUND,
    ASKED_WINDOW_S,
    COUNTED_LEAD_S,
    FIRST_PAUSE_S,
    LEAD_S,
    LENGTH_S,
    LINGER_S,
    LONGEST_PAUSE_S,
    MADE_UP_FOR_S,
    MAX_ASKED,
    MAX_ASKED_BY_ONE,
    MAX_TRIES_AT_HOST,
    PER_S,
    PORTS,
    SOCKETS,
    Ask,
    Grant,
    Spray,
    SprayAction,
    Try,
)

PEER, OTHER = NodeId(2), NodeId(3)
OWN = (Endpoint("203.0.113.1", 4000), Endpoint("203.0.113.1", 31_000))
COUNTED = (Endpoint("203.0.113.1", 4000), Endpoint("203.0.113.1", 4001))
THEIRS = Endpoint("203.0.113.2", 5000)
NOW = 100.0


def spray(seed: int = 1) -> Spray:
    return Spray(random.Random(seed).randbytes)


def play(machine: Spray, now: float, seconds: float) -> list[tuple[float, SprayAction]]:
    """All that it does in that time, called exactly when it asks."""
    done: list[tuple[float, SprayAction]] = []
    end = now + seconds
    while (due := machine.next_deadline()) is not None and due <= end:
        now = max(now, due)
        done += [(now, action) for action in machine.on_timer(now)]
        again = machine.next_deadline()
        assert again is None or again > now, "it asks to be called again at once"
    return done


def test_hard_side_asks_waits_and_tries_from_each_socket_once() -> None:
    machine = spray()
    assert machine.begin(PEER, OWN, NOW) == [Ask(PEER, OWN[0], 0)]
    machine.granted(OTHER, Endpoint("198.51.100.9", 1))
    machine.granted(PEER, THEIRS)
    machine.granted(PEER, Endpoint("198.51.100.9", 2))  # once
    done = play(machine, NOW, LENGTH_S + 1)
    tries = [(at, action) for at, action in done if isinstance(action, Try)]
    assert [action for _, action in tries] == [Try(PEER, THEIRS, number) for number in range(1, SOCKETS + 1)]
    assert tries[0][0] == NOW + LEAD_S
    assert tries[-1][0] <= NOW + LEAD_S + SOCKETS / PER_S + 0.01
    assert done[-1] == (NOW + LENGTH_S, CloseSockets())
    assert machine.next_deadline() is None


def test_hard_side_that_is_not_granted_its_wish_sends_nothing() -> None:
    machine = spray()
    machine.begin(PEER, OWN, NOW)
    assert play(machine, NOW, 60.0) == [(NOW + LEAD_S, CloseSockets())]
    machine.granted(PEER, THEIRS)
    assert machine.next_deadline() is None


def test_hard_side_says_where_its_nat_counts() -> None:
    assert spray().begin(PEER, COUNTED, NOW) == [Ask(PEER, COUNTED[0], 4001)]
    assert spray().begin(PEER, COUNTED[:1], NOW) == [Ask(PEER, COUNTED[0], 0)]
    elsewhere = (COUNTED[0], Endpoint("203.0.113.9", 4001))
    assert spray().begin(PEER, elsewhere, NOW) == [Ask(PEER, COUNTED[0], 0)]


def test_nothing_begins_without_endpoints_or_twice() -> None:
    machine = spray()
    assert machine.begin(PEER, (), NOW) == []
    assert machine.begin(PEER, OWN, NOW)
    assert machine.begin(PEER, OWN, NOW + 1) == []
    assert machine.begin(OTHER, OWN, NOW + 1) == []


def test_pauses_grow_where_it_does_not_work() -> None:
    machine, now = spray(), NOW
    pauses: list[float] = []
    while len(pauses) < 9:
        assert machine.begin(PEER, OWN, now)
        machine.granted(PEER, THEIRS)
        play(machine, now, LENGTH_S)
        began = now = now + LENGTH_S
        while not machine.begin(PEER, OWN, now):
            now += 1.0
        pauses.append(now - began)
        machine._hard = None
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE_S


def test_easy_side_probes_ports_each_once_at_its_pace() -> None:
    machine = spray()
    done = [(NOW, action) for action in machine.asked(PEER, "203.0.113.1", 0, NOW)] + play(machine, NOW, 60.0)
    tries = [action for _, action in done if isinstance(action, Try)]
    ports = [action.endpoint.port for action in tries]
    assert done[0] == (NOW, Grant(PEER))
    assert len(ports) == len(set(ports)) == PORTS
    assert min(ports) >= 1024
    assert {action.endpoint.host for action in tries} == {"203.0.113.1"}
    assert {action.socket for action in tries} == {0}
    assert done[-1][0] == pytest.approx(NOW + (PORTS - 1) / PER_S)
    for at, _ in done:
        assert sum(at <= other < at + 1.0 for other, _ in done) <= PER_S + 1


@pytest.mark.parametrize("first", [1024, 1030, 4001, 65_535])
def test_easy_side_begins_past_the_port_that_was_named_and_goes_back_to_it(first: int) -> None:
    machine = spray()
    done = machine.asked(PEER, "203.0.113.1", first, NOW) + [action for _, action in play(machine, NOW, 1.2)]
    ports = [action.endpoint.port for action in done if isinstance(action, Try)]
    assert all(1024 <= port < 65_536 for port in ports)
    near = [port for port in (*range(first + AROUND, first + AHEAD), *range(first + AROUND - 1, first - AROUND, -1)) if 1024 <= port < 65_536]
    assert ports[: len(near)] == near


def test_hard_side_whose_nat_counts_opens_its_sockets_sooner() -> None:
    for own, lead_s in ((OWN, LEAD_S), (COUNTED, COUNTED_LEAD_S)):
        machine = spray()
        machine.begin(PEER, own, NOW)
        machine.granted(PEER, THEIRS)
        assert play(machine, NOW, 10.0)[0][0] == pytest.approx(NOW + lead_s)


def test_easy_side_ends_as_soon_as_the_hard_side_is_heard() -> None:
    machine = spray()
    machine.asked(PEER, "203.0.113.1", 0, NOW)
    machine.heard(NodeId(PEER + 1))
    assert play(machine, NOW, 1.0)
    machine.heard(PEER)
    assert play(machine, NOW + 1.0, 30.0) == []
    assert machine.next_deadline() is None


def test_machine_that_stood_still_makes_up_for_little() -> None:
    machine = spray()
    machine.asked(PEER, "203.0.113.1", 0, NOW)
    assert len([action for action in machine.on_timer(NOW + 60.0) if isinstance(action, Try)]) <= (MADE_UP_FOR_S + 0.02) * PER_S


def test_one_side_at_a_time() -> None:
    machine = spray()
    machine.begin(PEER, OWN, NOW)
    assert machine.asked(PEER, "203.0.113.1", 0, NOW) == []
    machine = spray()
    machine.asked(PEER, "203.0.113.1", 0, NOW)
    assert machine.begin(PEER, OWN, NOW) == []


def test_peers_can_not_make_it_probe_without_end() -> None:
    machine, sent = spray(), 0
    for asked in range(40):
        now = NOW + asked * 14.0
        sent += len(machine.asked(NodeId(asked), "198.51.100.9", 0, now)) + len(play(machine, now, 13.5))
    assert sent <= MAX_ASKED * (PORTS + 1)
    assert machine.asked(PEER, "198.51.100.9", 0, NOW + ASKED_WINDOW_S + 1)


def test_one_peer_is_granted_less_than_all_together() -> None:
    machine, granted = spray(), 0
    for asked in range(8):
        granted += bool(machine.asked(PEER, f"198.51.100.{asked}", 0, NOW + asked * 14.0))
        play(machine, NOW + asked * 14.0, 13.5)
    assert granted == MAX_ASKED_BY_ONE < MAX_ASKED
    assert machine.asked(OTHER, "203.0.113.1", 0, NOW + 120.0)


def test_one_address_gets_a_bounded_number_of_probes_whoever_names_it() -> None:
    machine, sent = spray(), 0
    for asked in range(4):
        now = NOW + asked * 14.0
        done = machine.asked(NodeId(asked), "198.51.100.9", 0, now) + [action for _, action in play(machine, now, 13.5)]
        sent += sum(isinstance(action, Try) for action in done)
    assert sent == MAX_TRIES_AT_HOST
    assert machine.asked(PEER, "203.0.113.1", 0, NOW + 60.0)


def test_peers_that_meet_soon_leave_more_of_their_common_address_to_others() -> None:
    machine = spray()
    for asked in range(MAX_ASKED):
        peer, now = NodeId(10 + asked), NOW + asked * 14.0
        assert machine.asked(peer, "198.51.100.9", 4000, now)
        play(machine, now, 1.0)
        machine.found(peer, now + 1.0)


def test_path_that_is_found_ends_it_and_keeps_the_socket_in_use() -> None:
    machine = spray()
    machine.begin(PEER, OWN, NOW)
    machine.granted(PEER, THEIRS)
    play(machine, NOW, LEAD_S + 1)
    machine.found(PEER, NOW + LEAD_S + 1)
    assert play(machine, NOW + LEAD_S + 1, 30.0) == [(NOW + LEAD_S + 1 + LINGER_S, CloseSockets())]
    easy = spray()
    easy.asked(PEER, "203.0.113.1", 0, NOW)
    easy.found(OTHER, NOW + 1)
    assert easy.next_deadline() is not None
    easy.found(PEER, NOW + 1)
    assert easy.next_deadline() is None


def test_peer_that_is_gone_and_a_new_network_end_it() -> None:
    machine = spray()
    machine.begin(PEER, OWN, NOW)
    assert machine.forget([OTHER]) == []
    assert machine.forget([PEER]) == [CloseSockets()]
    assert machine.next_deadline() is None
    machine.begin(PEER, OWN, NOW)
    machine.asked(OTHER, "203.0.113.1", 0, NOW)
    assert machine.network_changed() == [CloseSockets(all_=True)]
    assert machine.next_deadline() is None
    assert machine.begin(PEER, OWN, NOW + 1)  # the pause was for the old network
