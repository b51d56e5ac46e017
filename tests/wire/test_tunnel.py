"""Tunnel datagrams: layouts, parsers under bad input, and telling kinds of datagrams apart."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import WireError
from calnet.wire import tunnel as wire
from calnet.wire.tunnel import CookieReply, DatagramKind, Initiation, Response
from tests import shared_vectors

U32 = st.integers(0, 2**32 - 1)
MAC = st.binary(min_size=16, max_size=16)


def _sized(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


MESSAGES = st.one_of(
    st.builds(Initiation, U32, _sized(108), MAC, MAC),
    st.builds(Response, U32, U32, _sized(48), MAC, MAC),
    st.builds(CookieReply, U32, _sized(24), _sized(32)),
)
EXAMPLES: list[wire.HandshakeMessage] = [
    Initiation(0x01020304, bytes(range(108)), b"m" * 16, b"n" * 16),
    Response(0x01020304, 0xA0B0C0D0, bytes(range(48)), b"m" * 16, b"n" * 16),
    CookieReply(0x01020304, bytes(range(24)), bytes(range(32))),
]


@given(MESSAGES)
def test_parse_of_build_is_the_message(message: wire.HandshakeMessage) -> None:
    datagram = wire.build_handshake(message)
    assert wire.parse_handshake(datagram) == message
    assert wire.parse_handshake(memoryview(datagram)) == message
    assert wire.classify(datagram) is DatagramKind.TUNNEL_HANDSHAKE


def test_build_lays_fields_out_as_documented() -> None:
    initiation, response, cookie = (wire.build_handshake(message) for message in EXAMPLES)
    assert initiation == b"\1\0\0\0" + b"\4\3\2\1" + bytes(range(108)) + b"m" * 16 + b"n" * 16
    assert response == b"\2\0\0\0" + b"\4\3\2\1" + b"\xd0\xc0\xb0\xa0" + bytes(range(48)) + b"m" * 16 + b"n" * 16
    assert cookie == b"\3\0\0\0" + b"\4\3\2\1" + bytes(range(24)) + bytes(range(32))
    assert [len(datagram) for datagram in (initiation, response, cookie)] == [148, 92, 64]


def test_bodies_are_the_messages_without_macs() -> None:
    assert wire.initiation_body(0x01020304, bytes(range(108))) == wire.build_handshake(EXAMPLES[0])[:-32]
    assert wire.response_body(0x01020304, 0xA0B0C0D0, bytes(range(48))) == wire.build_handshake(EXAMPLES[1])[:-32]


@pytest.mark.parametrize("message", EXAMPLES)
def test_parse_truncated_or_with_trailing_bytes_raises(message: wire.HandshakeMessage) -> None:
    datagram = wire.build_handshake(message)
    for bad in [*(datagram[:size] for size in range(len(datagram))), datagram + b"\0", datagram * 2]:
        with pytest.raises(WireError):
            wire.parse_handshake(bad)


@pytest.mark.parametrize("message", EXAMPLES)
@pytest.mark.parametrize("at", range(4))
def test_parse_another_type_or_reserved_bytes_raises(message: wire.HandshakeMessage, at: int) -> None:
    datagram = bytearray(wire.build_handshake(message))
    datagram[at] ^= 0x80
    with pytest.raises(WireError):
        wire.parse_handshake(datagram)


@given(st.binary(max_size=200) | st.sampled_from([64, 92, 148]).flatmap(_sized))
def test_parsers_of_random_bytes_raise_wire_error_or_rebuild(datagram: bytes) -> None:
    with contextlib.suppress(WireError):
        assert wire.build_handshake(wire.parse_handshake(datagram)) == datagram
    try:
        header = wire.parse_transport_header(datagram)
    except WireError:
        return
    assert wire.transport_header(*header) == datagram[:16]


@given(U32, st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=64))
def test_transport_header_round_trips(receiver: int, counter: int, sealed: bytes) -> None:
    datagram = wire.transport_header(receiver, counter) + sealed
    assert wire.parse_transport_header(datagram) == (receiver, counter)
    assert wire.classify(memoryview(datagram)) is DatagramKind.TUNNEL_DATA


def test_transport_header_truncated_or_of_another_type_raises() -> None:
    datagram = wire.transport_header(1, 2) + bytes(16)
    for size in range(32):
        with pytest.raises(WireError):
            wire.parse_transport_header(datagram[:size])
    with pytest.raises(WireError):
        wire.parse_transport_header(b"\5" + datagram[1:])


STUN_ANSWER = bytes.fromhex("01010000" + "2112a442") + bytes(12)


@pytest.mark.parametrize(
    ("datagram", "kind"),
    [
        (b"", DatagramKind.UNKNOWN),
        (b"\4", DatagramKind.UNKNOWN),
        (b"\4\0\0\0" + bytes(27), DatagramKind.UNKNOWN),
        (b"\4\0\0\0" + bytes(28), DatagramKind.TUNNEL_DATA),
        (b"\4\0\0\1" + bytes(28), DatagramKind.UNKNOWN),
        (b"\1\0\0\0" + bytes(144), DatagramKind.TUNNEL_HANDSHAKE),
        (b"\1\0\0\0" + bytes(145), DatagramKind.UNKNOWN),
        (b"\1\1\0\0" + bytes(144), DatagramKind.UNKNOWN),
        (b"\2\0\0\0" + bytes(88), DatagramKind.TUNNEL_HANDSHAKE),
        (b"\3\0\0\0" + bytes(60), DatagramKind.TUNNEL_HANDSHAKE),
        (b"\5\0\0\0" + bytes(60), DatagramKind.UNKNOWN),
        (STUN_ANSWER, DatagramKind.STUN),
        (STUN_ANSWER[:-1], DatagramKind.UNKNOWN),
        (b"\x41" + STUN_ANSWER[1:], DatagramKind.UNKNOWN),
        (wire.DISCOVERY_MAGIC + bytes(60), DatagramKind.DISCOVERY),
        (b"\xff" * 100, DatagramKind.UNKNOWN),
    ],
)
def test_classify_tells_kinds_apart(datagram: bytes, kind: DatagramKind) -> None:
    assert wire.classify(datagram) is kind
    assert wire.classify(memoryview(datagram)) is kind


@given(st.binary(max_size=200))
def test_classify_never_raises_and_what_it_calls_data_parses(datagram: bytes) -> None:
    if wire.classify(datagram) is DatagramKind.TUNNEL_DATA:
        wire.parse_transport_header(datagram)


def test_recorded_transcript_parses_and_rebuilds() -> None:
    transcript = shared_vectors.load("wireguard/wireguard-go-transcript.json")
    for name in ("initiation", "response"):
        datagram = bytes.fromhex(transcript[name])
        assert wire.build_handshake(wire.parse_handshake(datagram)) == datagram
        assert wire.classify(datagram) is DatagramKind.TUNNEL_HANDSHAKE
    assert wire.classify(bytes.fromhex(transcript["transport_in"])) is DatagramKind.TUNNEL_DATA
