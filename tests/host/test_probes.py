"""What health asks of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from calnet.host import probes

DROPPING = """table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname "lo" accept%s
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table ip other {
	chain INPUT {
		type filter hook input priority filter; policy accept;
	}
}
"""


def sysctl(root: Path, name: str, value: str) -> None:
    path = root.joinpath(*name.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value + "\n")


def test_read_sysctl_of_one_that_is_missing_is_none(tmp_path: Path) -> None:
    assert probes.read_sysctl("net.ipv4.ip_forward", tmp_path) is None


def test_strict_rp_filter_takes_the_greater_of_all_and_own(tmp_path: Path) -> None:
    sysctl(tmp_path, "net/ipv4/conf/all/rp_filter", "0")
    for name, value in (("eth0", "1"), ("eth1", "0"), ("eth2", "2"), ("eth0.5", "1")):
        sysctl(tmp_path, f"net/ipv4/conf/{name}/rp_filter", value)
    assert probes.strict_rp_filter(["eth0", "eth1", "eth2", "eth0.5"], tmp_path) == ("eth0", "eth0.5")
    sysctl(tmp_path, "net/ipv4/conf/all/rp_filter", "1")
    assert probes.strict_rp_filter(["eth1", "eth2"], tmp_path) == ("eth1",)


def test_forwarding_off_names_the_sysctl_of_each_version(tmp_path: Path) -> None:
    sysctl(tmp_path, "net/ipv4/ip_forward", "1")
    sysctl(tmp_path, "net/ipv6/conf/all/forwarding", "0")
    assert probes.forwarding_off([4, 4, 6], tmp_path) == ("net.ipv6.conf.all.forwarding",)
    assert probes.forwarding_off([4], tmp_path) == ()


@pytest.mark.parametrize(
    ("accepting", "expected"),
    [
        ("", "inet filter input"),
        ('\n\t\tiifname "calnet0" accept', None),
        ('\n\t\tiifname "calnet*" accept', None),
        ('\n\t\tiifname { "eth1", "calnet0" } accept', None),
        ('\n\t\tiifname "eth*" accept', "inet filter input"),
    ],
)
def test_dropping_chain_is_one_whose_table_never_names_the_interface(accepting: str, expected: str | None) -> None:
    assert probes.dropping_chain(DROPPING % accepting, "calnet0") == expected


def test_dropping_chain_of_no_rules_is_none() -> None:
    assert probes.dropping_chain("", "calnet0") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Alice.example.org", "alice"), ("my_box", "my-box"), ("-x-", "x"), ("ÄÖ", "node"), ("", "node"), ("a" * 80, "a" * 63), ("x\n\x1b[31m", "x-31m")],
)
def test_clean_name_is_dns_safe(name: str, expected: str) -> None:
    assert probes.clean_name(name) == expected


def test_missing_capability_is_none_for_one_who_has_it() -> None:
    assert probes.missing_capability() in (None, "CAP_NET_ADMIN")
