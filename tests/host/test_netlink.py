"""The kernel's side in a real network namespace: what is set up, what is undone, what is noticed; and the twin under the same contract."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network
from typing import TypeVar

import pytest

from calnet.errors import HostError
from calnet.host.interfaces import Gateway, NetworkView
from calnet.host.memory_network import MemoryNetwork
from calnet.host.netlink import MARK, KernelNetwork, LinkConfig, Network, Numbers, numbers_for
from tests.host.namespace import in_namespace, sh

T = TypeVar("T")

NAME = "cn-t0"
TABLE = numbers_for(NAME).table
CONFIG = LinkConfig(
    NAME,
    (ip_address("100.70.0.1"), ip_address("fd12::1")),
    1280,
    (ip_network("100.70.0.0/24"), ip_network("fd12::/64"), ip_network("10.0.0.0/8")),
    (ip_network("10.1.0.0/16"), ip_network("fd12:0:0:0:8::/80")),
    60_000,
)


def with_kernel(script: Callable[[KernelNetwork], Awaitable[T]], *, prepare: str = f"ip tuntap add {NAME} mode tun") -> T:
    """Run `script` against a fresh namespace with a TUN device."""

    async def main() -> T:
        network = KernelNetwork()
        try:
            async with asyncio.timeout(30):
                return await script(network)
        finally:
            network.close()

    def work() -> T:
        sh(prepare)
        return asyncio.run(main())

    return in_namespace(work)


def test_numbers_are_stable_and_differ_between_interfaces() -> None:
    assert numbers_for("calnet0") == Numbers(7070, 5400)
    assert numbers_for("calnet1") == numbers_for("calnet1")
    assert len({numbers_for(f"calnet{number}").table for number in range(8)}) == 8


def test_memory_network_remembers_and_tells_its_watchers() -> None:
    async def script() -> None:
        network: Network = (memory := MemoryNetwork())
        told: list[int] = []
        watch = network.watch(lambda: told.append(1))
        assert await network.configure(CONFIG) == ()
        assert memory.configured == CONFIG
        memory.change(NetworkView((), (Gateway(0, "192.0.2.1", 2),)))
        assert (told, await network.view()) == ([1], NetworkView((), (Gateway(0, "192.0.2.1", 2),)))
        watch.close()
        watch.close()
        memory.change(NetworkView(()))
        assert told == [1]
        await network.remove(numbers_for(NAME), NAME)
        assert memory.configured is None
        memory.refuse = HostError("no")
        with pytest.raises(HostError):
            await network.configure(CONFIG)

    asyncio.run(script())


@pytest.mark.e2e
def test_configure_sets_addresses_mtu_routes_and_rule_and_remove_undoes_all() -> None:
    async def script(network: KernelNetwork) -> tuple[str, ...]:
        before = sh("ip rule; ip -6 rule")
        notes = await network.configure(CONFIG)
        link = sh(f"ip -d link show {NAME}")
        assert "mtu 1280" in link
        assert "gso_max_size 60000" in link
        assert re.search(r"[<,]UP[,>]", link)
        addresses = sh(f"ip addr show {NAME}")
        assert "100.70.0.1/32" in addresses
        assert "fd12::1/128" in addresses
        assert "fe80" not in addresses
        four, six = sh(f"ip route show table {TABLE}"), sh(f"ip -6 route show table {TABLE}")
        assert f"100.70.0.0/24 dev {NAME} proto static src 100.70.0.1" in four
        assert f"10.0.0.0/8 dev {NAME}" in four
        assert "throw 10.1.0.0/16" in four
        assert f"fd12::/64 dev {NAME}" in six
        assert "throw fd12::8:0:0:0/80" in six
        for rules in (sh("ip rule"), sh("ip -6 rule")):
            assert rules.count(f"5400:\tnot from all fwmark {MARK:#x} lookup {TABLE}") == 1
        await network.remove(numbers_for(NAME), NAME)
        assert sh("ip rule; ip -6 rule") == before
        assert sh(f"ip route show table {TABLE} 2>/dev/null || true") == ""
        assert "inet" not in sh(f"ip addr show {NAME}")
        await network.remove(numbers_for(NAME), NAME)
        return notes

    assert with_kernel(script) == ()


@pytest.mark.e2e
def test_ipv6_address_is_in_use_at_once_without_duplicate_address_detection() -> None:
    async def script(network: KernelNetwork) -> str:
        await network.configure(CONFIG)
        return sh(f"ip -6 addr show dev {NAME} scope global")

    shown = with_kernel(script)
    assert "nodad" in shown
    assert "tentative" not in shown


@pytest.mark.e2e
def test_configure_again_changes_only_what_differs() -> None:
    async def script(network: KernelNetwork) -> None:
        await network.configure(CONFIG)
        await network.configure(CONFIG)
        assert sh("ip rule").count("5400:") == 1
        moved = LinkConfig(NAME, (ip_address("100.70.0.9"), ip_address("fd12::9")), 1400, (ip_network("100.70.0.0/23"), ip_network("fd12::/64")))
        await network.configure(moved)
        addresses, four = sh(f"ip addr show {NAME}"), sh(f"ip route show table {TABLE}")
        assert "100.70.0.9/32" in addresses
        assert "100.70.0.1/32" not in addresses
        assert four.split() == f"100.70.0.0/23 dev {NAME} proto static src 100.70.0.9 linkdown".split()
        assert "mtu 1400" in sh(f"ip link show {NAME}")

    with_kernel(script)


@pytest.mark.e2e
def test_what_a_crash_left_is_cleaned_without_the_interface() -> None:
    async def script(network: KernelNetwork) -> None:
        before = sh("ip rule; ip -6 rule")
        await network.configure(CONFIG)
        sh(f"ip tuntap del {NAME} mode tun")
        assert "5400:" in sh("ip rule")
        await network.remove(numbers_for(NAME), NAME)
        assert sh("ip rule; ip -6 rule") == before
        assert "throw" not in sh("ip route show table all; ip -6 route show table all")

    with_kernel(script)


@pytest.mark.e2e
def test_marked_traffic_never_enters_the_tunnel_and_other_traffic_does() -> None:
    async def script(network: KernelNetwork) -> None:
        await network.configure(CONFIG)
        assert f"dev {NAME}" in sh("ip route get 10.9.9.9")
        assert f"dev {NAME}" in sh("ip route get 100.70.0.7")
        assert "dev up0" in sh(f"ip route get 10.9.9.9 mark {MARK}")
        assert "dev up0" in sh("ip route get 10.1.2.3")  # excepted
        assert "dev up0" in sh("ip route get 203.0.113.9")

    underlay = (
        "ip link add up0 type veth peer name up1; ip addr add 10.1.0.2/16 dev up0; ip link set up0 up; ip link set up1 up; ip route add default via 10.1.0.1"
    )
    with_kernel(script, prepare=f"ip tuntap add {NAME} mode tun; {underlay}")


@pytest.mark.e2e
def test_configure_with_ipv6_off_says_so_and_ipv4_works() -> None:
    async def script(network: KernelNetwork) -> tuple[str, ...]:
        notes = await network.configure(CONFIG)
        assert "100.70.0.1/32" in sh(f"ip addr show {NAME}")
        return notes

    off = "; ".join(f"echo 1 > /proc/sys/net/ipv6/conf/{where}/disable_ipv6" for where in ("all", "default"))
    notes = with_kernel(script, prepare=f"{off}; ip tuntap add {NAME} mode tun")
    assert [note.partition(":")[0] for note in notes] == ["ipv6"]


@pytest.mark.e2e
def test_configure_without_the_interface_says_what_to_do() -> None:
    async def script(network: KernelNetwork) -> str:
        with pytest.raises(HostError) as raised:
            await network.configure(CONFIG)
        return str(raised.value)

    assert "there is no interface cn-t0" in with_kernel(script, prepare="true")


@pytest.mark.e2e
def test_configure_without_the_capability_names_it() -> None:
    def work() -> str:
        import os

        import pyroute2.iproute  # noqa: F401  while it can still be read

        sh(f"ip tuntap add {NAME} mode tun")
        os.setuid(65_534)

        async def main() -> str:
            network = KernelNetwork()
            with pytest.raises(HostError) as raised:
                await network.configure(CONFIG)
            network.close()
            return str(raised.value)

        return asyncio.run(main())

    assert "CAP_NET_ADMIN" in in_namespace(work)


@pytest.mark.e2e
def test_view_shows_interfaces_addresses_and_gateways() -> None:
    async def script(network: KernelNetwork) -> NetworkView:
        return await network.view()

    addresses = "ip addr add 192.0.2.7/24 dev up0; ip -6 addr add 2001:db8::7/64 dev up0 nodad"
    prepare = f"ip link add up0 type veth peer name up1; {addresses}; ip link set up0 up; ip link set up1 up; ip route add default via 192.0.2.1"
    view = with_kernel(script, prepare=prepare)
    found = {interface.name: interface for interface in view.interfaces}
    assert found["lo"].loopback
    assert found["up0"].up
    assert {"192.0.2.7/24", "2001:db8::7/64"} <= {str(address) for address in found["up0"].addresses}
    assert "192.0.2.1" in {gateway.address for gateway in view.gateways}


@pytest.mark.e2e
def test_view_shows_each_gateway_of_a_default_route_that_has_several() -> None:
    async def script(network: KernelNetwork) -> NetworkView:
        return await network.view()

    links = "ip link add up0 type veth peer name up1; ip addr add 192.0.2.7/24 dev up0; ip link set up0 up; ip link set up1 up"
    view = with_kernel(script, prepare=f"{links}; ip route add default nexthop via 192.0.2.1 dev up0 nexthop via 192.0.2.2 dev up0")
    index = next(interface.index for interface in view.interfaces if interface.name == "up0")
    assert [gateway for gateway in view.gateways if "." in gateway.address] == [Gateway(0, "192.0.2.1", index), Gateway(0, "192.0.2.2", index)]


@pytest.mark.e2e
def test_watch_tells_of_an_address_once_debounced_and_stops() -> None:
    async def script(network: KernelNetwork) -> int:
        told: list[int] = []
        happened = asyncio.Event()
        watch = network.watch(lambda: (told.append(1), happened.set())[0])
        for number in range(1, 6):
            sh(f"ip addr add 192.0.2.{number}/32 dev lo")
        await asyncio.wait_for(happened.wait(), 10)
        count = len(told)
        watch.close()
        watch.close()
        return count

    assert with_kernel(script) == 1
