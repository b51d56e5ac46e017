"""Which addresses are offered to peers, and which subnets this machine is attached to."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from calnet.host.interfaces import MAX_CANDIDATES, Gateway, Interface, NetworkView, WayOut, attached_prefixes, candidate_addresses, has_moved, ways_out


def interface(name: str, *addresses: str, up: bool = True, loopback: bool = False) -> Interface:
    return Interface(1, name, up, tuple(ip_interface(address) for address in addresses), loopback)


def candidates(*interfaces: Interface) -> list[str]:
    return [str(address) for address in candidate_addresses(interfaces, "calnet0", (ip_network("100.70.0.0/24"), ip_network("fd12::/64")))]


def test_candidates_are_global_and_private_unicast_of_interfaces_that_are_up() -> None:
    found = candidates(
        interface("lo", "127.0.0.1/8", "::1/128", loopback=True),
        interface("eth0", "192.0.2.2/24", "2001:db8::2/64", "fe80::1/64", "169.254.3.3/16"),
        interface("wlan0", "10.0.0.5/8", "fd00::5/64"),
        interface("eth1", "192.168.3.3/24", up=False),
        interface("calnet0", "100.70.0.1/32"),
        interface("eth2", "100.70.0.77/24", "fd12::9/64"),
    )
    assert found == ["192.0.2.2", "2001:db8::2", "10.0.0.5", "fd00::5"]


@pytest.mark.parametrize("name", ["docker0", "br-0123456789ab", "virbr0", "lxdbr0", "cni0", "cni-podman0", "flannel.1", "veth0a1b2c3", "tailscale0", "calnet7"])
def test_candidates_leave_out_container_bridges_and_other_overlays(name: str) -> None:
    assert candidates(interface(name, "172.17.0.1/16")) == []


@pytest.mark.parametrize("name", ["br0", "bond0", "veth-a", "enp3s0", "wg0", "ppp0"])
def test_candidates_take_ordinary_interfaces(name: str) -> None:
    assert candidates(interface(name, "172.17.0.1/16")) == ["172.17.0.1"]


def test_candidates_are_bounded_and_without_duplicates() -> None:
    many = interface("eth0", *(f"10.0.{number}.1/24" for number in range(40)), "10.0.0.1/24")
    assert len(candidates(many, many)) == MAX_CANDIDATES


def test_attached_prefixes_are_subnets_of_all_interfaces_but_the_tunnels() -> None:
    found = attached_prefixes(
        [
            interface("lo", "127.0.0.1/8", loopback=True),
            interface("eth0", "192.168.1.7/24", "fe80::1/64", "2001:db8::7/64", "10.0.0.1/32"),
            interface("docker0", "172.17.0.1/16"),
            interface("calnet0", "100.70.0.1/24"),
            interface("eth1", "10.1.0.1/24", up=False),
        ],
        "calnet0",
    )
    assert [str(prefix) for prefix in found] == ["192.168.1.0/24", "2001:db8::/64", "172.17.0.0/16"]


def network(*gateways: Gateway) -> NetworkView:
    wired = interface("eth0", "10.9.0.4/24", "192.168.1.5/24", "192.168.1.6/24", "fe80::5/64", "2001:db8:1::5/64")
    point_to_point = Interface(2, "ppp0", True, (ip_interface("203.0.113.4/32"),))
    return NetworkView((wired, point_to_point, Interface(3, "wlan0", True, (ip_interface("2001:db8:2::7/64"),))), gateways)


def way(gateway: str, source: str) -> WayOut:
    return WayOut(gateway, ip_address(source))


@pytest.mark.parametrize(
    ("gateways", "expected"),
    [
        ((), {}),
        ((Gateway(0, "192.168.1.1", 1), Gateway(600, "", 2)), {4: way("192.168.1.1", "192.168.1.5")}),
        ((Gateway(0, "", 2), Gateway(600, "192.168.1.1", 1)), {4: way("", "203.0.113.4")}),
        ((Gateway(0, "fe80::1", 3), Gateway(600, "192.168.1.1", 1)), {4: way("192.168.1.1", "192.168.1.5"), 6: way("fe80::1", "2001:db8:2::")}),
        ((Gateway(0, "192.168.1.1", 9),), {}),
    ],
)
def test_ways_out_are_the_preferred_gateways_and_the_addresses_next_to_them(gateways: tuple[Gateway, ...], expected: dict[int, WayOut]) -> None:
    assert ways_out(network(*gateways), {}) == expected


def test_address_added_beside_the_one_in_use_changes_no_way_out() -> None:
    gateway = Gateway(0, "192.168.1.1", 1)
    in_use = {4: way("192.168.1.1", "192.168.1.6")}
    assert ways_out(network(gateway), in_use) == in_use
    assert ways_out(network(gateway), {4: way("192.168.1.1", "192.168.1.7")}) == {4: way("192.168.1.1", "192.168.1.5")}
    assert ways_out(network(gateway), {4: way("192.168.1.2", "192.168.1.6")}) == {4: way("192.168.1.1", "192.168.1.5")}


FOUR, FOUR_ELSEWHERE = way("10.0.0.1", "10.0.0.5"), way("10.0.0.1", "10.0.0.6")
SIX, SIX_ELSEWHERE = way("fe80::1", "2001:db8:1::"), way("fe80::1", "2001:db8:2::")


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {4: FOUR}, False),
        ({4: FOUR}, {}, False),
        ({4: FOUR}, {4: FOUR}, False),
        ({4: FOUR}, {4: FOUR_ELSEWHERE}, True),
        ({4: FOUR}, {6: SIX}, True),
        ({4: FOUR, 6: SIX}, {6: SIX}, False),
        ({6: SIX}, {4: FOUR, 6: SIX}, False),
        ({4: FOUR, 6: SIX}, {6: SIX_ELSEWHERE}, True),
        ({4: FOUR, 6: SIX}, {4: FOUR, 6: SIX_ELSEWHERE}, False),
        ({4: FOUR, 6: SIX}, {4: FOUR_ELSEWHERE, 6: SIX}, True),
    ],
)
def test_machine_has_moved_where_its_way_out_is_another(before: dict[int, WayOut], now: dict[int, WayOut], expected: bool) -> None:
    assert has_moved(before, now) == expected
