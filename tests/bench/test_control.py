"""The control plane's bench: what makes it fail, what its table says, and that nodes really come back all at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from bench.control import HEADSCALE, HEADSCALE_NODES, TARGETS, delays, rows
from bench.simulated_nodes import AT_ONCE, Driver, SimulatedNode


def figures(nodes: int, value: float = 10.0) -> dict[str, float]:
    return {"nodes": nodes, "restart_attempts": nodes} | dict.fromkeys([*TARGETS, *HEADSCALE], value)


def test_delays_are_milliseconds_with_the_last_node_last() -> None:
    assert delays(10.0, [10.5, 10.25], 2, "it") == [250.0, 500.0]


def test_delays_with_a_node_that_heard_nothing_are_a_failure() -> None:
    with pytest.raises(RuntimeError, match="1 of 3 nodes heard nothing of PUT /policy within 30 s"):
        delays(10.0, [10.5, 10.25], 3, "PUT /policy")


def test_rows_compare_with_headscale_at_its_number_of_nodes_alone() -> None:
    table = rows([figures(250), figures(HEADSCALE_NODES, 26.0), figures(2000)])
    beside = {row.what: row for row in table if row.target.startswith("headscale")}
    assert len(beside) == len(HEADSCALE)
    registrations = beside[f"control plane, {HEADSCALE_NODES} nodes: registrations"]
    assert (registrations.target, registrations.ratio, registrations.verdict) == ("headscale, 1000: 52", 0.5, "missed")
    assert beside[f"control plane, {HEADSCALE_NODES} nodes: maps s"].verdict == "met"
    assert all(row.what.startswith("control plane, 2000 nodes") for row in table if row not in beside.values())
    assert all(row.ratio is None for row in rows([figures(100)]) if row.target.startswith("headscale"))


class Crowd:
    """Nodes of which none gets in until all have begun."""

    def __init__(self, count: int, refusals: int = 0) -> None:
        self.missing, self.refusals = count, refusals
        self.all_began = asyncio.Event()
        self.nodes: list[SimulatedNode] = [_Member(self, number) for number in range(count)]


class _Member(SimulatedNode):
    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__("http://127.0.0.1:1", bytes(32), number)
        self.crowd, self.tried = crowd, 0

    async def open(self, auth_key: str) -> None:
        self.tried += 1
        if self.tried == 1:
            self.crowd.missing -= 1
        if not self.crowd.missing:
            self.crowd.all_began.set()
        await self.crowd.all_began.wait()
        if self.tried <= self.crowd.refusals:
            raise ConnectionRefusedError
        self.netmap_at = time.monotonic() - 60


def test_reconnect_begins_with_all_nodes_at_once() -> None:
    async def scenario() -> None:
        crowd = Crowd(4 * AT_ONCE)
        async with asyncio.timeout(30):
            assert (await Driver(crowd.nodes, "").reconnect())["attempts"] == 4 * AT_ONCE

    asyncio.run(scenario())


def test_reconnect_that_is_refused_is_tried_again_after_a_pause() -> None:
    async def scenario() -> None:
        crowd = Crowd(8, refusals=1)
        async with asyncio.timeout(30):
            answer = await Driver(crowd.nodes, "").reconnect()
        assert answer["attempts"] == 16
        assert isinstance(answer["connected_s"], float)
        assert answer["connected_s"] >= 0.25

    asyncio.run(scenario())


def test_each_simulated_node_has_a_source_of_its_own() -> None:
    sources = {SimulatedNode("http://127.0.0.1:1", bytes(32), number).options["local_addr"] for number in range(2000)}
    assert len(sources) == 2000
