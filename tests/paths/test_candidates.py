from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from calnet.model import Endpoint
from calnet.paths import constants as c
from calnet.paths.candidates import CandidateTable, own_candidates

OVERLAY = (ip_network("100.70.0.0/24"),)


def public(number: int, port: int = 1) -> Endpoint:
    return Endpoint(f"198.51.{number >> 8}.{number & 255}", port)


def endpoints(table: CandidateTable) -> list[Endpoint]:
    return [known.endpoint for known in table]


def test_told_candidates_are_filtered_and_new_once() -> None:
    table = CandidateTable()
    told = [public(1), Endpoint("127.0.0.1", 1), Endpoint("100.70.0.5", 1), Endpoint("224.0.0.1", 1), public(1)]
    assert table.tell(told, 0.0, OVERLAY)
    assert not table.tell(told, 1.0, OVERLAY)
    assert endpoints(table) == [public(1)]


def test_hundreds_of_candidates_are_capped_at_the_first_32() -> None:
    table = CandidateTable()
    table.tell([public(number) for number in range(1, 400)], 0.0, ())
    assert endpoints(table) == [public(number) for number in range(1, 33)]


def test_later_candidates_replace_the_oldest_but_never_the_one_in_use() -> None:
    table = CandidateTable()
    table.tell([public(number) for number in range(1, 33)], 0.0, ())
    table.tell([public(100)], 1.0, (), keep=public(1))
    assert len(table) == 32
    assert table.get(public(1)) is not None
    assert table.get(public(2)) is None


def test_candidate_that_answered_outlives_one_that_never_did() -> None:
    table = CandidateTable()
    table.tell([public(number) for number in range(1, 33)], 0.0, ())
    first = table.get(public(1))
    assert first is not None
    first.answered_at = 0.5
    table.tell([public(100)], 1.0, ())
    assert table.get(public(1)) is first


def test_one_address_has_four_ports_at_most() -> None:
    table = CandidateTable()
    table.tell([public(1, port) for port in range(1, 30)], 0.0, ())
    assert endpoints(table) == [public(1, port) for port in (26, 27, 28, 29)]


def test_seen_sources_are_capped_at_eight_beside_the_told() -> None:
    table = CandidateTable()
    table.tell([public(number) for number in range(1, 33)], 0.0, ())
    for number in range(100, 150):
        assert table.see(public(number), float(number), ()) is not None
    assert len(table) == 32 + 8
    assert table.see(Endpoint("127.0.0.1", 1), 200.0, ()) is None


def test_seen_sources_that_are_told_afterwards_count_among_the_told() -> None:
    table = CandidateTable()
    keep = public(1)
    table.see(keep, 0.0, ())
    for number in range(1, 200):
        table.see(public(number), float(number), (), keep)
        table.tell([public(number)], float(number), (), keep)
        assert table.get(public(number)) is not None
        assert len(table) == min(number, c.MAX_TOLD)
    assert table.get(keep) is not None


def test_candidate_of_a_crowded_address_costs_no_other_addresses_place() -> None:
    table = CandidateTable()
    table.tell([public(number) for number in range(1, 29)], 0.0, ())
    table.tell([public(100, port) for port in range(1, 5)], 1.0, ())
    assert len(table) == 32
    table.tell([public(100, 5)], 2.0, ())
    assert len(table) == 32
    assert table.get(public(100, 1)) is None


def test_new_candidate_costs_none_that_is_named_with_it() -> None:
    table = CandidateTable()
    table.tell([public(number) for number in range(1, 33)], 0.0, ())
    first = table.get(public(1))
    table.tell([public(100), *(public(number) for number in range(1, 32))], 1.0, ())
    assert table.get(public(1)) is first
    assert table.get(public(32)) is None
    assert len(table) == 32


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 8)), max_size=200))
def test_table_is_bounded_whatever_is_named(script: list[tuple[bool, int, int]]) -> None:
    table = CandidateTable()
    keep = public(3, 3)
    table.see(keep, 0.0, ())
    for now, (told, number, port) in enumerate(script):
        if told:
            table.tell([public(number, port)], float(now), (), keep)
        else:
            table.see(public(number, port), float(now), (), keep)
        assert len(table) <= c.MAX_TOLD + c.MAX_SEEN
        assert table.get(keep) is not None
        assert max(sum(other.host == one.host for other in endpoints(table)) for one in endpoints(table)) <= c.MAX_PER_HOST


def test_overlay_change_forgets_what_lies_inside() -> None:
    table = CandidateTable()
    table.tell([Endpoint("100.70.0.5", 1), public(1)], 0.0, ())
    table.drop_overlay(OVERLAY)
    assert endpoints(table) == [public(1)]


def test_own_candidates_are_usable_ones_best_first() -> None:
    local = [Endpoint("127.0.0.1", 1), public(9), Endpoint("10.0.0.1", 1), Endpoint("100.70.0.1", 1), Endpoint("fd00::1", 1)]
    assert own_candidates(local, [public(1), public(9)], OVERLAY) == (Endpoint("fd00::1", 1), Endpoint("10.0.0.1", 1), public(1), public(9))


def test_own_candidates_many_interfaces_do_not_crowd_out_reflexive_ones() -> None:
    own = own_candidates([Endpoint(f"10.0.0.{number}", 1) for number in range(1, 200)], [public(1)], ())
    assert len(own) == c.MAX_OWN
    assert public(1) in own
