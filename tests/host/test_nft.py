"""The nft table: what it says, and that the kernel takes it, drops and translates as it should."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from calnet.errors import HostError
from calnet.host import nft
from calnet.host.nft import KernelNftables, MemoryNftables, Ruleset, render, render_removal, table_name
from tests.host.namespace import in_namespace

RULES = Ruleset(
    "calnet0",
    (ip_address("100.70.0.1"), ip_address("fd12::1")),
    (ip_network("100.70.0.0/24"), ip_network("fd12::/64")),
    (ip_network("192.168.7.0/24"), ip_network("fd99::/48")),
)


def test_render_guards_own_addresses_and_translates_by_family() -> None:
    text = render(RULES)
    assert 'iifname != "calnet0" ip daddr 100.70.0.1 fib saddr type != local drop' in text
    assert 'iifname != "calnet0" ip6 daddr fd12::1 fib saddr type != local drop' in text
    assert 'oifname != "calnet0" ip saddr 100.70.0.0/24 ip daddr 192.168.7.0/24 masquerade' in text
    assert 'oifname != "calnet0" ip6 saddr fd12::/64 ip6 daddr fd99::/48 masquerade' in text
    assert text.count("masquerade") == 2


def test_render_without_routes_has_no_translation() -> None:
    assert "masquerade" not in render(Ruleset("calnet0", RULES.addresses, RULES.overlay))


@pytest.mark.parametrize("name", ['x"; flush ruleset; "', "a b", "../x", "x" * 16, "", "a\nb", "ä"])
def test_render_of_a_hostile_interface_name_is_refused(name: str) -> None:
    with pytest.raises(HostError, match="not an interface name"):
        render(Ruleset(name, ()))


def test_table_of_another_interface_is_another() -> None:
    assert table_name("calnet0") == "calnet"
    assert table_name("cn-1.x") == "calnet_cn_1_x"
    assert render_removal("calnet0") == "table inet calnet {}\ndelete table inet calnet\n"


def test_install_without_the_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_SYSTEM_PATH", "/nonexistent")
    with pytest.raises(HostError, match="apt install nftables"):
        asyncio.run(KernelNftables().install(RULES))
    assert asyncio.run(KernelNftables().dump()) == ""
    asyncio.run(KernelNftables().remove("calnet0"))


def test_memory_nftables_remembers_what_stands() -> None:
    memory = MemoryNftables()
    asyncio.run(memory.install(RULES))
    assert memory.installed == RULES
    asyncio.run(memory.remove("calnet0"))
    assert memory.installed is None
    memory.refuse = HostError("no")
    with pytest.raises(HostError):
        asyncio.run(memory.install(RULES))


@pytest.mark.e2e
def test_install_replaces_and_remove_leaves_nothing() -> None:
    def work() -> None:
        async def main() -> None:
            table = KernelNftables()
            await table.install(RULES)
            first = await table.dump()
            await table.install(RULES)
            assert await table.dump() == first
            assert "masquerade" in first
            await table.remove("calnet0")
            await table.remove("calnet0")
            assert await table.dump() == ""

        asyncio.run(main())

    in_namespace(work)


@pytest.mark.e2e
def test_install_that_the_kernel_refuses_names_the_reason() -> None:
    def work() -> str:
        import os

        os.setuid(65_534)
        with pytest.raises(HostError) as raised:
            asyncio.run(KernelNftables().install(RULES))
        return str(raised.value)

    assert "nft refused the table calnet" in in_namespace(work)
