"""The server's settings: what each flag may say, and what a wrong one is told."""

from __future__ import annotations

from argparse import Namespace
from ipaddress import IPv4Network, ip_network
from pathlib import Path

import pytest

from calnet.errors import UsageError
from calnet.roles.server.settings import HostPort, is_authority, parse_listen, parse_url, settings_of


def test_settings_without_flags_are_the_documented_defaults() -> None:
    settings = settings_of(Namespace())
    assert str(settings.state_dir) == "/var/lib/calnet-server"
    assert (str(settings.listen), str(settings.stun_listen)) == ("[::]:8080", "[::]:3478")
    assert (settings.store, settings.prefix, settings.url, settings.tls) == ("kv", None, None, False)


def test_settings_with_every_flag_are_parsed() -> None:
    settings = settings_of(
        Namespace(
            state_dir="/tmp/x",
            listen="127.0.0.1:0",
            stun_listen=":1",
            store="sqlite",
            prefix="100.70.0.0/20",
            url="https://calnet.example.org/",
            tls_cert="c.pem",
            tls_key="k.pem",
            trusted_proxy="10.0.0.0/8, ::1",
        )
    )
    assert settings.prefix == IPv4Network("100.70.0.0/20")
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert (settings.tls_cert, settings.tls) == (Path("c.pem"), True)
    assert settings.url is not None
    assert (str(settings.url), settings.url.relay, settings.url.stun(3478)) == (
        "https://calnet.example.org",
        "wss://calnet.example.org/relay",
        "calnet.example.org:3478",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[::]:8080", HostPort("::", 8080)),
        (":8080", HostPort("::", 8080)),
        ("*:8080", HostPort("::", 8080)),
        ("0.0.0.0:1", HostPort("0.0.0.0", 1)),
        ("localhost:65535", HostPort("localhost", 65535)),
        ("[fe80::1]:9", HostPort("fe80::1", 9)),
    ],
)
def test_listen_address_parses(text: str, expected: HostPort) -> None:
    assert parse_listen("--listen", text) == expected


@pytest.mark.parametrize("text", ["", "8080", "::1:8080", "[::1]", "host:", "host:x", "host:65536", "host:-1", "host:¼"])
def test_listen_address_that_is_wrong_names_the_flag(text: str) -> None:
    with pytest.raises(UsageError, match="--stun-listen"):
        parse_listen("--stun-listen", text)


@pytest.mark.parametrize(
    "text",
    ["", "calnet.example.org", "ftp://x", "http://", "http://a b", "http://x:99999", "http://x:0", "http://u@x", "http://x/?q", "http://x#f", "http://[::1"],
)
def test_url_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        parse_url(text)


def test_url_of_an_ipv6_host_keeps_its_brackets() -> None:
    url = parse_url("http://[2001:db8::1]:8080/base/")
    assert (url.relay, url.stun(3478)) == ("ws://[2001:db8::1]:8080/base/relay", "[2001:db8::1]:3478")


@pytest.mark.parametrize("text", ["example.org", "example.org:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "a"])
def test_authority_of_a_host_header_is_accepted(text: str) -> None:
    assert is_authority(text)


@pytest.mark.parametrize("text", ["", "a b", "x:0", "x:70000", "[::g]", "[::1]x", "x/y", "u@x", "x\r\n", "-", "a" * 300, "::1"])
def test_authority_that_is_no_host_is_refused(text: str) -> None:
    assert not is_authority(text)


@pytest.mark.parametrize(
    "wrong", [{"prefix": "100.70.0.1/24"}, {"prefix": "x"}, {"tls_cert": "c.pem"}, {"tls_key": "k.pem"}, {"trusted_proxy": ["10.0.0.0/8", "x"]}]
)
def test_settings_that_do_not_hold_are_a_usage_error(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        settings_of(Namespace(**wrong))
