"""Each health line: the fact that brings it, and that its absence leaves it out."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from calnet.host.interfaces import Interface
from calnet.roles.node.health import Facts, health
from calnet.roles.node.routes import Finding

OVERLAY = (ip_network("100.70.0.0/24"),)


def lines(**facts: Any) -> dict[str, str]:
    return {line.code: line.severity for line in health(Facts(tun="calnet0", now=1000.0, overlay=OVERLAY, **facts))}


def interface(name: str, address: str, **more: Any) -> Interface:
    return Interface(1, name, True, (ip_interface(address),), **more)


@pytest.mark.parametrize(
    ("facts", "code", "severity"),
    [
        ({"interfaces": (interface("tailscale0", "100.99.1.1/32"),)}, "tailscale", "warning"),
        ({"interfaces": (interface("eth0", "100.70.0.77/24"),)}, "prefix-conflict", "warning"),
        ({"dropping_chain": "inet filter input"}, "firewall", "warning"),
        ({"strict_rp_filter": ("eth0",), "accepting": (ip_network("10.0.0.0/8"),)}, "rp-filter", "warning"),
        ({"clock_offset": 61.0}, "clock", "warning"),
        ({"clock_offset": -3600.0}, "clock", "warning"),
        ({"advertising": (ip_network("10.0.0.0/8"),), "forwarding_off": ("net.ipv4.ip_forward",)}, "ip-forward", "warning"),
        ({"server_down_s": 11.0, "server_reason": "refused"}, "server-unreachable", "warning"),
        ({"server_down_s": 11.0, "server_key_wrong": "another key"}, "server-key-changed", "error"),
        ({"relay_down_s": 11.0}, "relay-unreachable", "warning"),
        ({"key_expires": 999.0}, "key-expired", "error"),
        ({"key_expires": 4600.0}, "key-expires", "warning"),
        ({"findings": (Finding("gso", "refused"),)}, "gso", "info"),
        ({"findings": (Finding("pinned-key-changed", "x"),)}, "pinned-key-changed", "error"),
    ],
)
def test_health_fact_brings_its_line(facts: dict[str, Any], code: str, severity: str) -> None:
    assert lines(**facts) == {code: severity}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"interfaces": (interface("eth0", "192.168.1.2/24"), interface("calnet0", "100.70.0.1/32"), interface("lo", "127.0.0.1/8", loopback=True))},
        {"strict_rp_filter": ("eth0",)},
        {"clock_offset": 59.0},
        {"forwarding_off": ("net.ipv4.ip_forward",)},
        {"server_down_s": 3.0},
        {"relay_down_s": 3.0},
        {"key_expires": 1000.0 + 30 * 86_400},
    ],
)
def test_health_without_a_fact_is_empty(facts: dict[str, Any]) -> None:
    assert lines(**facts) == {}


def test_health_names_the_sysctl_and_the_graver_line_comes_first() -> None:
    found = health(
        Facts(
            "calnet0",
            1000.0,
            advertising=(ip_network("10.0.0.0/8"),),
            forwarding_off=("net.ipv4.ip_forward",),
            key_expires=1.0,
            findings=(Finding("gso", "x"),),
        )
    )
    assert [line.severity for line in found] == ["error", "warning", "info"]
    assert "sysctl -w net.ipv4.ip_forward=1" in found[1].text


def test_health_of_tailscale_and_an_overlay_elsewhere_is_empty() -> None:
    assert health(Facts("calnet0", 0.0, overlay=(ip_network("10.9.0.0/24"),), interfaces=(interface("tailscale0", "100.99.1.1/32"),))) == []


@pytest.mark.parametrize(("left", "said"), [(6 * 86_400, "6 days"), (7200, "2 hours"), (600, "10 minutes"), (30, "30 seconds")])
def test_health_says_how_long_the_key_lasts(left: float, said: str) -> None:
    assert said in health(Facts("calnet0", 1000.0, key_expires=1000.0 + left))[0].text
