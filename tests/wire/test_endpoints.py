from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import WireError
from calnet.model import Endpoint
from calnet.wire.endpoints import PACKED_SIZE, address_of, is_candidate, is_private, overlaps, pack_endpoint, parse_endpoint, source_network, unpack_endpoint

OVERLAY = (ip_network("100.70.0.0/24"), ip_network("fd12:3456:789a:1::/64"))


@given(address=st.ip_addresses(), port=st.integers(1, 65_535))
def test_endpoint_packed_and_unpacked_is_itself(address: object, port: int) -> None:
    canonical = getattr(address, "ipv4_mapped", None) or address
    packed = pack_endpoint(Endpoint(str(address), port))
    assert len(packed) == PACKED_SIZE
    assert unpack_endpoint(packed) == Endpoint(str(canonical), port)


@given(st.binary(max_size=40))
def test_unpack_random_bytes_gives_an_endpoint_or_wire_error(data: bytes) -> None:
    try:
        endpoint = unpack_endpoint(data)
    except WireError:
        return
    assert unpack_endpoint(pack_endpoint(endpoint)) == endpoint


def test_unpack_mapped_address_is_ipv4() -> None:
    assert unpack_endpoint(b"\x06" + bytes(10) + b"\xff\xff\xc0\x00\x02\x01\x00\x07") == Endpoint("192.0.2.1", 7)


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes(19), id="zeros"),
        pytest.param(b"\x04" + b"\x01" * 4 + bytes(12) + b"\0\0", id="no port"),
        pytest.param(b"\x04" + b"\x01" * 5 + bytes(11) + b"\0\1", id="IPv4 with a tail"),
        pytest.param(b"\x05" + b"\x01" * 16 + b"\0\1", id="family"),
        pytest.param(b"\x06" + b"\x01" * 16 + b"\0\1\0", id="trailing byte"),
    ],
)
def test_unpack_malformed_raises_wire_error(packed: bytes) -> None:
    with pytest.raises(WireError):
        unpack_endpoint(packed)


@pytest.mark.parametrize("endpoint", [Endpoint("host.example", 1), Endpoint("192.0.2.1", 0), Endpoint("192.0.2.1", 65_536), Endpoint("fe80::1%eth0", 1)])
def test_pack_what_is_no_endpoint_raises_wire_error(endpoint: Endpoint) -> None:
    with pytest.raises(WireError):
        pack_endpoint(endpoint)


def test_address_of_wrong_length_raises_wire_error() -> None:
    with pytest.raises(WireError):
        address_of(b"12345")


@pytest.mark.parametrize("host", ["192.0.2.1", "10.1.2.3", "192.168.1.1", "100.64.0.1", "8.8.8.8", "2001:db8::1", "fd00::1"])
def test_candidate_unicast_address_is_one(host: str) -> None:
    assert is_candidate(Endpoint(host, 41_641), OVERLAY)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "240.0.0.1",
        "169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:192.0.2.1",
        "100.70.0.9",
        "fd12:3456:789a:1::9",
        "host.example",
        "",
    ],
)
def test_candidate_address_that_may_not_be_probed_is_none(host: str) -> None:
    assert not is_candidate(Endpoint(host, 41_641), OVERLAY)


@pytest.mark.parametrize("port", [-1, 0, 65_536])
def test_candidate_port_out_of_range_is_none(port: int) -> None:
    assert not is_candidate(Endpoint("192.0.2.1", port))


def test_private_addresses_are_those_of_a_site() -> None:
    assert all(is_private(Endpoint(host, 1)) for host in ("10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "192.0.0.2", "fd00::1"))
    assert not any(is_private(Endpoint(host, 1)) for host in ("8.8.8.8", "203.0.113.9", "172.32.0.1", "192.0.1.1", "2001:db8::1"))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:1", Endpoint("192.0.2.1", 1)),
        ("[2001:DB8:0::1]:65535", Endpoint("2001:db8::1", 65_535)),
        ("[::ffff:192.0.2.1]:9", Endpoint("192.0.2.1", 9)),
    ],
)
def test_endpoint_text_is_parsed_canonically(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "1.2.3.4",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:x",
        "1.2.3.4:²",
        "1.2.3.4:" + "1" * 5_000,
        "::1:5",
        "[fe80::1%eth0]:5",
        "host:5",
        "01.2.3.4:5",
    ],
)
def test_endpoint_text_that_is_none_raises_wire_error(text: str) -> None:
    with pytest.raises(WireError):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("host", "bits", "expected"),
    [
        ("192.0.2.7", 32, b"\xc0\x00\x02\x07"),
        ("192.0.2.7", 24, b"\xc0\x00\x02"),
        ("::ffff:192.0.2.7", 24, b"\xc0\x00\x02"),
        ("2001:db8::1", 24, b"\x20\x01\x0d\xb8\0\0\0\0"),
        ("fe80::1%eth0", 32, b"\xfe\x80\0\0\0\0\0\0"),
        ("", 32, b""),
        ("testclient", 32, b"testclient"),
    ],
)
def test_source_network_of_an_address_is_its_own_or_a_64(host: str, bits: int, expected: bytes) -> None:
    assert source_network(host, v4_bits=bits) == expected


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.0.0.0/9", "10.128.0.0/9", False),
        ("fd00::/8", "fd00:1::/64", True),
        ("::/0", "0.0.0.0/0", False),
    ],
)
def test_overlaps_prefixes_of_one_version_that_share_an_address(left: str, right: str, shared: bool) -> None:
    assert overlaps(ip_network(left), ip_network(right)) is shared
    assert overlaps(ip_network(right), ip_network(left)) is shared
