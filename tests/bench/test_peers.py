"""The bench of many peers: what is sent, and the figures and rows made of given results."""

from __future__ import annotations

import pytest

from bench.crowd import NODES, OVERLAY_RANGE, UNDERLAY_RANGE, members
from bench.peers import ACTIVE, CONFIGURED, LOADS, Case, Figure, figure_of, rows, table, template
from tests.ip_packets import V4, is_sound


def figures(cost: dict[int, float], program: str = "calnet") -> dict[Case, Figure]:
    """One program's, a packet's cost by the number of active peers."""
    cases = [(1, 1), *((CONFIGURED, active) for active in ACTIVE)]
    return {(program, load, *case): Figure(1000.0, 50_000.0, 2.0, cost[case[1]], 42.0, 0.0) for load in LOADS for case in cases}


def both(ours: dict[int, float]) -> dict[Case, Figure]:
    return figures(ours) | figures(dict.fromkeys(ACTIVE, 10.0), "wireguard-go")


def test_members_have_addresses_and_keys_of_their_own() -> None:
    crowd = members(CONFIGURED)
    assert len({one.underlay for one in crowd}) == len({one.overlay for one in crowd}) == len({one.id for one in crowd}) == CONFIGURED
    assert len({one.key.public for one in crowd[:50]}) == 50
    assert UNDERLAY_RANGE.num_addresses == OVERLAY_RANGE.num_addresses > CONFIGURED + 1


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_template_is_a_sound_packet_of_the_burst(load: object) -> None:
    assert isinstance(load, type(LOADS["bulk"]))
    packet = template("10.78.0.1", load)
    assert is_sound(packet)
    assert len(packet) == 28 + load.size * load.burst
    assert packet[16:20] == bytes(map(int, V4[0].split(".")))


def test_figure_counts_both_ways_through_the_node() -> None:
    figure = figure_of({"came": 500_000, "seconds": 2.0, "lost": 0}, 1000, 3.0, 40.0)
    assert figure == Figure(mbits=4000.0, packets=500_000.0, cpu_gb=3.0, cpu_us=3.0, memory_mb=40.0, lost=0.0)


def test_figure_of_a_node_that_sends_nothing_back_is_a_failure() -> None:
    with pytest.raises(RuntimeError, match="nothing"):
        figure_of({"came": 0, "seconds": 2.0, "lost": 320}, 1000, 3.0, 40.0)


def test_rows_of_a_cost_that_does_not_grow_are_met() -> None:
    made = rows(both(dict.fromkeys(ACTIVE, 5.0)))
    assert {row.verdict for row in made} == {"met", ""}
    assert made[-1].measured == "42 MB"
    assert any(row.measured == "0.50 × (5.0 to 10.0 µs)" for row in made)


def test_rows_of_a_cost_that_grows_with_active_peers_are_missed() -> None:
    made = {row.what: row for row in rows(both({1: 5.0, 10: 10.0, 100: 20.0}))}
    assert made["CPU of a packet, bulk: 1,000 peers, 100 active × 1"].verdict == "missed"
    assert made["CPU of a packet, bulk: 1,000 peers, 100 active × 1"].measured == "4.00 × (wireguard-go: 1.00 ×)"
    assert made["CPU of a packet, singly: 1,000 peers, 100 active × 10"].verdict == "missed"
    assert made["CPU of a packet, singly: 1,000 peers, 10 active × 1"].verdict == ""


def test_table_has_a_column_for_each_case_and_the_lines_of_both_nodes() -> None:
    lines = table(both(dict.fromkeys(ACTIVE, 5.0)), "peers").splitlines()
    assert lines[0] == "| peers | 1 of 1 | 1 of 1,000 | 10 of 1,000 | 100 of 1,000 |"
    assert all(any(line.startswith(f"| {program}, bulk") for line in lines) for program in NODES)
    assert {line.count("|") for line in lines} == {6}
