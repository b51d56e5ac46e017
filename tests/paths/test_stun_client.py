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
    assert found.set_servers(servers)
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
    assert not asking.set_servers([A1, B1, A1])
    assert asking.set_servers([B1, A2, B2, SIX, A1])
    assert asking.reflexive() == ()
    assert len(asking.start(1.0, again=True)) == c.MAX_STUN_SERVERS
    assert asking.set_servers([])
    asking.keep_going(2.0, active=True)
    assert asking.start(2.0, again=True) == []
    assert asking.next_deadline() is None


def test_network_change_forgets_what_was_seen() -> None:
    asking = client(A1)
    ((answer, _),) = answers(asking.start(0.0, again=False), SEEN)
    asking.receive(answer, A1, 0.1)
    asking.forget()
    assert asking.reflexive() == ()


def test_mapping_is_of_the_family_with_more_answers() -> None:
    asking = client(A1, B1, SIX)
    requests = asking.start(0.0, again=False)
    for (answer, server), seen in zip(answers(requests, SEEN), (SEEN, SEEN, SEEN6), strict=True):
        fitting = stun.answer(next(request for at, request in requests if at == server), seen)
        assert answer
        assert fitting is not None
        asking.receive(fitting, server, 0.1)
    assert asking.reflexive() == (SEEN, SEEN6)
    assert asking.mapping() is MappingBehaviour.ENDPOINT_INDEPENDENT


@given(st.binary(max_size=100))
def test_fuzzed_answers_change_nothing(data: bytes) -> None:
    asking = client(A1)
    ((_, request),) = asking.start(0.0, again=False)
    for datagram in (data, b"\x01\x01" + len(data).to_bytes(2, "big") + request[4:20] + data):
        asking.receive(datagram, A1, 0.1)
