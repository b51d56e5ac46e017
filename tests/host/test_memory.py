"""The twins: the same contracts as the real ones, and the misfortune they can make."""

from __future__ import annotations

import asyncio
import random

import pytest

from calnet.errors import HostError
from calnet.host import memory
from calnet.host.memory import MemoryTun, MemoryUnderlay, Weather
from calnet.host.tun import Offloads
from calnet.model import Endpoint
from tests.host.tun_contract import TunLab, check_contract
from tests.host.udp_contract import LOST, Listener, check_groups
from tests.host.udp_contract import check_contract as check_udp_contract
from tests.ip_packets import V4, tcp


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_memory_port_keeps_the_contract(host: str) -> None:
    network = MemoryUnderlay(random.Random(1).random)
    one, two = network.open((host,)), network.open((host,))
    asyncio.run(check_udp_contract(one, two, host, Endpoint(host, 9)))


@pytest.mark.parametrize("lost", LOST, ids=str)
@pytest.mark.parametrize("short", [False, True])
def test_memory_port_gives_out_together_what_belongs_together(lost: set[int], short: bool) -> None:
    network = MemoryUnderlay(random.Random(1).random)
    one, two = network.open(("192.0.2.1",)), network.open(("192.0.2.1",))
    asyncio.run(check_groups(one, two, "192.0.2.1", lost, short=short))


def test_memory_port_taken_is_a_host_error_until_closed() -> None:
    network = MemoryUnderlay(random.Random(1).random)
    one = network.open(("192.0.2.1",), 500)
    with pytest.raises(HostError, match="500 is taken"):
        network.open(("192.0.2.1",), 500)
    one.close()
    network.open(("192.0.2.1",), 500)


async def _exchange(weather: Weather, count: int, target: str = "192.0.2.2") -> list[int]:
    network = MemoryUnderlay(random.Random(4).random, weather)
    one, two = network.open(("192.0.2.1", "2001:db8::1")), network.open(("192.0.2.2",))
    listener = Listener(two)
    with listener.watching():
        for k in range(count):
            one.send(Endpoint(target, two.port), k.to_bytes(4, "big"), 4)
        await asyncio.sleep(0)
        await listener.until(lambda: not [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()][1:])  # type: ignore[attr-defined]
    assert network.carried == count
    return [int.from_bytes(datagram, "big") for datagram, _ in listener.datagrams]


def test_weather_loses_doubles_and_reorders_repeatably() -> None:
    assert asyncio.run(_exchange(Weather(), 200)) == list(range(200))
    lost = asyncio.run(_exchange(Weather(loss=0.3), 500))
    assert 250 < len(lost) < 450
    assert lost == sorted(lost) == asyncio.run(_exchange(Weather(loss=0.3), 500))
    assert len(asyncio.run(_exchange(Weather(duplicate=0.5), 200))) > 250
    mixed = asyncio.run(_exchange(Weather(reorder=0.3, reorder_s=0.001), 200))
    assert sorted(mixed) == list(range(200)) != mixed
    assert asyncio.run(_exchange(Weather(latency_s=0.001), 20)) == list(range(20))
    assert asyncio.run(_exchange(Weather(), 5, "2001:db8::99")) == []


def test_blocked_direction_carries_nothing_and_a_full_port_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "QUEUE_LIMIT", 3)
    network = MemoryUnderlay(random.Random(1).random)
    one, two = network.open(("192.0.2.1",)), network.open(("192.0.2.2",))
    network.blocked = lambda source, target: source.host == "192.0.2.2"
    two.send(Endpoint("192.0.2.1", one.port), b"x", 1)
    for _ in range(9):
        one.send(Endpoint("192.0.2.2", two.port), b"x", 1)
    one.send(Endpoint("192.0.2.2", two.port), bytes(70_000), 1400)

    async def run() -> tuple[int, int]:
        mine, theirs = Listener(one), Listener(two)
        with mine.watching(), theirs.watching():
            await theirs.count(3)
        return len(mine.datagrams), len(theirs.datagrams)

    assert asyncio.run(run()) == (0, 3)


class MemoryLab(TunLab):
    """The twin's kernel side."""

    def __init__(self, device: MemoryTun) -> None:
        self.device = device

    async def sends(self, packet: bytes) -> None:
        self.device.inject(packet)

    async def got(self) -> bytes:
        return self.device.delivered.popleft()[10 if self.device.offloads.vnet_header else 0 :]


@pytest.mark.parametrize("offloads", [Offloads(vnet_header=True, tcp=True, udp=True), Offloads(vnet_header=False)])
def test_memory_tun_keeps_the_contract(offloads: Offloads) -> None:
    device = MemoryTun(offloads=offloads)
    asyncio.run(check_contract(device, MemoryLab(device), V4))


def test_memory_tun_gives_super_packets_with_their_header() -> None:
    device = MemoryTun()
    device.inject(tcp(b"x" * 100), b"\1" * 10)
    buffer = memoryview(bytearray(70_000))
    length = device.read_into(buffer)
    assert bytes(buffer[:length]) == b"\1" * 10 + tcp(b"x" * 100)
