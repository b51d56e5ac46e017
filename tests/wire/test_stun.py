from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import WireError
from calnet.model import Endpoint
from calnet.wire import stun
from tests import shared_vectors

V4 = Endpoint("203.0.113.9", 41_641)
V6 = Endpoint("2001:db8::9", 41_641)
TRANSACTION = bytes(range(12))
HEADER = struct.Struct("!HH16s")


def bare(kind: int = 1, transaction: bytes = stun.MAGIC_COOKIE + TRANSACTION, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(body), transaction) + body


def attribute(number: int, value: bytes) -> bytes:
    return struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4)


def test_rfc5769_responses_give_the_mapped_address() -> None:
    vectors = [vector for vector in shared_vectors.load("stun/rfc5769.json")["vectors"] if "mapped" in vector]
    assert len(vectors) == 2
    for vector in vectors:
        response = stun.parse_response(bytes.fromhex(vector["hex"]))
        assert response.mapped == Endpoint(*vector["mapped"])
        assert response.transaction == bytes.fromhex("b7e7a701bc34d686fa87dfae")


def test_rfc5769_requests_are_answered() -> None:
    vectors = [vector for vector in shared_vectors.load("stun/rfc5769.json")["vectors"] if "mapped" not in vector]
    assert len(vectors) == 2
    for vector in vectors:
        answer = stun.answer(bytes.fromhex(vector["hex"]), V4)
        assert answer is not None
        assert stun.parse_response(answer).mapped == V4


def test_rfc5769_software_and_corrupted_fingerprint() -> None:
    vector = shared_vectors.load("stun/rfc5769.json")["vectors"][1]
    data = bytearray.fromhex(vector["hex"])
    assert stun.parse_message(bytes(data)).first(stun.Attribute.SOFTWARE) == vector["software"].encode()
    data[-1] ^= 1
    with pytest.raises(WireError):
        stun.parse_message(bytes(data))


@pytest.mark.parametrize("source", [V4, V6])
def test_request_and_answer_give_the_source(source: Endpoint) -> None:
    request = stun.build_request(TRANSACTION)
    answer = stun.answer(request, source)
    assert answer is not None
    assert stun.parse_response(answer) == stun.BindingResponse(TRANSACTION, source)
    assert len(answer) <= len(request)


def test_answer_to_mapped_source_names_ipv4() -> None:
    answer = stun.answer(bare(), Endpoint("::ffff:203.0.113.9", 41_641))
    assert answer is not None
    assert stun.parse_response(answer).mapped == V4


def test_answer_old_client_gets_plain_mapped_address() -> None:
    answer = stun.answer(bare(transaction=bytes(16), body=attribute(3, bytes(4))), V4)
    assert answer is not None
    message = stun.parse_message(answer)
    assert (message.type, message.transaction) == (stun.MessageType.SUCCESS, bytes(16))
    assert message.attributes == ((stun.Attribute.MAPPED_ADDRESS, bytes.fromhex("0001a2a9cb007109")),)


def test_answer_sizes_are_bounded() -> None:
    for_bare = stun.answer(bare(), V4)
    for_bare_6 = stun.answer(bare(), V6)
    assert for_bare is not None
    assert for_bare_6 is not None
    assert (len(for_bare), len(for_bare_6)) == (32, 44)


def test_answer_fingerprint_only_where_asked() -> None:
    plain, asked = stun.answer(bare(), V4), stun.answer(stun.build_request(TRANSACTION), V4)
    assert plain is not None
    assert asked is not None
    assert stun.parse_message(plain).first(stun.Attribute.FINGERPRINT) is None
    assert stun.parse_message(asked).first(stun.Attribute.FINGERPRINT) is not None


@pytest.mark.parametrize("number", [0x0002, 0x0026, 0x7FFF])
def test_answer_unknown_attribute_is_error_420(number: int) -> None:
    answer = stun.answer(bare(body=attribute(number, b"") * 2), V4)
    assert answer is not None
    message = stun.parse_message(answer)
    assert stun.parse_response(answer) == stun.BindingResponse(TRANSACTION, None, 420)
    assert message.first(stun.Attribute.UNKNOWN_ATTRIBUTES) == struct.pack("!H", number)


def test_answer_request_to_answer_from_elsewhere_is_error_420() -> None:
    answer = stun.answer(bare(body=attribute(3, b"\0\0\0\6")), V4)
    assert answer is not None
    assert stun.parse_response(answer).error_code == 420


def test_answer_optional_attribute_is_ignored() -> None:
    answer = stun.answer(bare(body=attribute(0x8123, b"x")), V4)
    assert answer is not None
    assert stun.parse_response(answer).mapped == V4


@pytest.mark.parametrize("kind", [0x0011, 0x0101, 0x0111, 0x0003, 0x0000, 0x3FFF])
def test_answer_to_anything_but_a_request_is_none(kind: int) -> None:
    assert stun.answer(bare(kind), V4) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bare()[:-1], id="short"),
        pytest.param(bare() + b"\0\0\0\0", id="trailing"),
        pytest.param(bare(body=b"\0\0"), id="odd length"),
        pytest.param(bare(0x8001), id="top bits"),
        pytest.param(bare(body=b"\x80\x22\x00\x09\0\0\0\0"), id="attribute past the end"),
        pytest.param(bare(body=attribute(0x8028, b"1234")), id="fingerprint"),
        pytest.param(bare(body=attribute(0x8022, bytes(1_300))), id="too long"),
    ],
)
def test_message_malformed_raises_wire_error_and_is_not_answered(data: bytes) -> None:
    with pytest.raises(WireError):
        stun.parse_message(data)
    assert stun.answer(data, V4) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bare(), id="request"),
        pytest.param(bare(0x101), id="no address"),
        pytest.param(bare(0x111), id="no error"),
        pytest.param(bare(0x101, bytes(16), attribute(1, bytes.fromhex("0001a2a9cb007109"))), id="without cookie"),
        pytest.param(bare(0x101, body=attribute(1, b"\0\1\0\1")), id="short address"),
        pytest.param(bare(0x101, body=attribute(1, b"\0\1\0\1" + bytes(16))), id="family and length differ"),
        pytest.param(bare(0x101, body=attribute(1, b"\0\3\0\1" + bytes(4))), id="family"),
        pytest.param(bare(0x101, body=attribute(1, b"\0\1\0\0" + bytes(4))), id="port"),
    ],
)
def test_response_not_a_usable_one_raises_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        stun.parse_response(data)


def test_response_with_plain_mapped_address_is_read() -> None:
    assert stun.parse_response(bare(0x101, body=attribute(1, bytes.fromhex("0001a2a9cb007109")))).mapped == V4


def test_request_with_wrong_transaction_raises_wire_error() -> None:
    with pytest.raises(WireError):
        stun.build_request(b"short")


@given(data=st.binary(max_size=200), kind=st.sampled_from([1, 0x11, 0x101, 0x111]), cookie=st.booleans())
def test_fuzzed_messages_raise_wire_error_alone(data: bytes, kind: int, cookie: bool) -> None:
    body = data[: len(data) // 4 * 4]
    framed = bare(kind, (stun.MAGIC_COOKIE if cookie else bytes(4)) + TRANSACTION, body)
    for message in (data, framed):
        for parse in (stun.parse_message, stun.parse_response):
            with contextlib.suppress(WireError):
                parse(message)
        answer = stun.answer(message, V6)
        assert answer is None or len(answer) <= 2.2 * len(message)


@given(st.integers(0, 55))
def test_truncated_request_is_never_answered(size: int) -> None:
    assert stun.answer(stun.build_request(TRANSACTION)[:size], V4) is None
