from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.model import Endpoint
from calnet.paths import constants as c
from calnet.paths.stun_client import MappingBehaviour, StunClient, mapping_behaviour
from calnet.wire import stun

A1, A2, B1, B2 = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.1", 2), Endpoint("192.0.2.2", 1), Endpoint("192.0.2.2", 2)
SIX = Endpoint("2001:db8::1", 1)
SEEN, ELSE = Endpoint("203.0.113.9", 7), Endpoint("203.0.113.9", 8)
SEEN6 = Endpoint("2001:db8::9", 7)


@pytest.mark.parametrize(
    ("results", "behaviour"),
    [
        ({}, MappingBehaviour.UNKNOWN),
        ({A1: SEEN}, MappingBehaviour.UNKNOWN),
        ({A1: SEEN, B1: SEEN}, MappingBehaviour.ENDPOINT_INDEPENDENT),
        ({A1: SEEN, A2: SEEN, B1: SEEN}, MappingBehaviour.ENDPOINT_INDEPENDENT),
        ({A1: SEEN, B1: ELSE}, MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT),
        ({A1: SEEN, A2: ELSE}, MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT),
        ({A1: SEEN, A2: SEEN, B1: ELSE}, MappingBehaviour.ADDRESS_DEPENDENT),
        ({A1: SEEN, A2: SEEN, B1: ELSE, B2: SEEN}, MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_mapping_behaviour_of_what_servers_saw(results: dict[Endpoint, Endpoint], behaviour: MappingBehaviour) -> None:
    assert mapping_behaviour(results) is behaviour


def client(*servers: Endpoint) -> StunClient:
    found = StunClient(random.Random(2).randbytes)
    assert found.set_servers(servers, 0.0)
    return found


def answers(requests: list[tuple[Endpoint, bytes]], seen: Endpoint) -> list[tuple[bytes, Endpoint]]:
    return [(answer, server) for server, request in requests if (answer := stun.answer(request, seen)) is not None]


def test_round_asks_each_server_and_takes_its_answer_once() -> None:
    asking = client(A1, B1)
    requests = asking.start(0.0, again=False)
    assert [server for server, _ in requests] == [A1, B1]
    first, second = answers(requests, SEEN)
    assert asking.receive(*first, 0.1)
    assert not asking.receive(*first, 0.1)
    assert not asking.receive(*second, 0.1)
    assert asking.reflexive() == (SEEN,)
    assert asking.mapping() is MappingBehaviour.ENDPOINT_INDEPENDENT
    assert asking.next_deadline() is None


def test_answer_from_another_address_or_to_another_request_is_ignored() -> None:
    asking = client(A1)
    ((answer, _),) = answers(asking.start(0.0, again=False), SEEN)
    assert not asking.receive(answer, B1, 0.1)
    assert not asking.receive(stun.answer(stun.build_request(bytes(12)), SEEN) or b"", A1, 0.1)
    assert asking.reflexive() == ()
    assert asking.receive(answer, A1, 0.1)


def test_error_answer_gives_no_endpoint() -> None:
    asking = client(A1)
    ((_, request),) = asking.start(0.0, again=False)
    error = b"\x01\x11\x00\x08" + request[4:20] + b"\x00\x09\x00\x04\x00\x00\x04\x14"
    assert not asking.receive(error, A1, 0.1)
    assert asking.reflexive() == ()
    assert asking.next_deadline() is None


def test_server_that_answers_with_an_error_loses_its_result() -> None:
    asking = client(A1, B1)
    for answer, server in answers(asking.start(0.0, again=False), SEEN):
        asking.receive(answer, server, 0.1)
    (_, first), (_, second) = asking.start(30.0, again=False)
    assert not asking.receive(b"\x01\x11\x00\x08" + first[4:20] + b"\x00\x09\x00\x04\x00\x00\x05\x00", A1, 30.1), "the other server saw the same"
    assert asking.reflexive() == (SEEN,)
    assert asking.mapping() is MappingBehaviour.UNKNOWN
    assert asking.receive(b"\x01\x11\x00\x08" + second[4:20] + b"\x00\x09\x00\x04\x00\x00\x05\x00", B1, 30.1)
    assert asking.reflexive() == ()


@pytest.mark.parametrize("gap", [0.1, c.STUN_GAP, c.STUN_GIVE_UP - 0.1])
def test_result_is_never_older_than_two_rounds_however_soon_they_follow(gap: float) -> None:
    asking = client(A1, B1)
    for answer, server in answers(asking.start(0.0, again=False), SEEN):
        asking.receive(answer, server, 0.01)
    for step, expected in ((1, (SEEN, ELSE)), (2, (ELSE,))):
        requests = asking.start(step * gap, again=False)
        asking.receive(*answers(requests, ELSE)[1], step * gap + 0.01)
        asking.on_timer(step * gap + 0.02, active=True)
        assert asking.reflexive() == expected


def test_sets_of_servers_that_come_thick_are_asked_one_in_five_seconds_and_the_last_of_them_for_certain() -> None:
    asking, asked = StunClient(random.Random(2).randbytes), list[tuple[float, Endpoint]]()
    now = 0.0
    for number in range(100):
        now = number / 10
        server = Endpoint("192.0.2.1", 1 + number)
        requests = asking.start(now, again=False) if asking.set_servers([server], now) else asking.on_timer(now, active=False)[0]
        asked += [(now, to) for to, _ in requests]
    assert len(asked) <= 3 * len(c.STUN_RETRANSMITS)
    assert len({to for _, to in asked}) == 2
    due = asking.next_deadline()
    assert due is not None
    assert due <= now + c.STUN_GAP
    assert [to for to, _ in asking.on_timer(due, active=False)[0]] == [server]


def test_silent_server_is_asked_four_times_and_loses_its_result() -> None:
    asking = client(A1)
    ((answer, _),) = answers(asking.start(0.0, again=False), SEEN)
    asking.receive(answer, A1, 0.1)
    requests = asking.start(100.0, again=False)
    times = [100.0]
    changed = False
    while (due := asking.next_deadline()) is not None:
        more, changed = asking.on_timer(due, active=False)
        assert all(datagram == requests[0][1] for _, datagram in more)
        times += [due] * len(more)
    assert times == [100.0 + offset for offset in c.STUN_RETRANSMITS]
    assert changed
    assert asking.reflexive() == ()


def test_rounds_repeat_at_random_between_20_and_26_seconds_while_active() -> None:
    asking = client(A1)
    requests = asking.start(0.0, again=True)
    starts = [0.0]
    while len(starts) < 40:
        for answer, server in answers(requests, SEEN):
            asking.receive(answer, server, starts[-1])
        due = asking.next_deadline()
        assert due is not None
        requests, _ = asking.on_timer(due, active=True)
        starts.append(due)
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(c.STUN_INTERVAL_MIN <= gap <= c.STUN_INTERVAL_MAX for gap in gaps)
    assert len(set(gaps)) > 30
    for answer, server in answers(requests, SEEN):
        asking.receive(answer, server, starts[-1])
    due = asking.next_deadline()
    assert due is not None
    assert asking.on_timer(due, active=False) == ([], False)
    assert asking.reflexive() == (SEEN,)


def test_round_under_way_is_replaced_by_a_new_one() -> None:
    asking = client(A1)
    ((old, _),) = answers(asking.start(0.0, again=False), SEEN)
    ((new, _),) = answers(asking.start(0.1, again=False), SEEN)
    assert not asking.receive(old, A1, 0.2)
    assert asking.receive(new, A1, 0.2)


def test_servers_no_longer_named_are_forgotten_and_four_are_enough() -> None:
    asking = client(A1, B1)
    found = answers(asking.start(0.0, again=True), SEEN)
    asking.receive(*found[0], 0.1)
    assert not asking.set_servers([A1, B1, A1], 1.0)
    assert asking.set_servers([B1, A2, B2, SIX, A1], 1.0 + c.STUN_GAP)
    assert asking.reflexive() == ()
    assert len(asking.start(1.0 + c.STUN_GAP, again=True)) == c.MAX_STUN_SERVERS
    assert not asking.set_servers([], 9.0)
    asking.keep_going(9.0, active=True)
    assert asking.start(9.0, again=True) == []
    assert asking.next_deadline() is None


def test_network_change_forgets_what_was_seen() -> None:
    asking = client(A1)
    ((answer, _),) = answers(asking.start(0.0, again=False), SEEN)
    asking.receive(answer, A1, 0.1)
    asking.forget()
    assert asking.reflexive() == ()


SIX2 = Endpoint("2001:db8::1", 2)


@pytest.mark.parametrize(
    ("seen", "behaviour"),
    [
        ({A1: SEEN, A2: SEEN, SIX: SEEN6}, MappingBehaviour.ENDPOINT_INDEPENDENT),
        ({A1: SEEN, A2: ELSE, SIX: SEEN6, SIX2: SEEN6}, MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT),
        ({A1: SEEN, SIX: SEEN6, SIX2: SEEN6}, MappingBehaviour.UNKNOWN),
        ({SIX: SEEN6, SIX2: SEEN6}, MappingBehaviour.ENDPOINT_INDEPENDENT),
        ({}, MappingBehaviour.UNKNOWN),
    ],
)
def test_mapping_is_ipv4s_where_a_server_answered_over_it(seen: dict[Endpoint, Endpoint], behaviour: MappingBehaviour) -> None:
    asking = client(A1, A2, SIX, SIX2)
    for server, request in asking.start(0.0, again=False):
        answer = stun.answer(request, seen[server]) if server in seen else None
        if answer is not None:
            asking.receive(answer, server, 0.1)
    assert asking.mapping() is behaviour


@given(st.binary(max_size=100))
def test_fuzzed_answers_change_nothing(data: bytes) -> None:
    asking = client(A1)
    ((_, request),) = asking.start(0.0, again=False)
    for datagram in (data, b"\x01\x01" + len(data).to_bytes(2, "big") + request[4:20] + data):
        asking.receive(datagram, A1, 0.1)
