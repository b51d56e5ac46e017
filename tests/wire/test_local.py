"""The local API's lines."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet import errors
from calnet.wire import local

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
OBJECTS = st.dictionaries(st.text(), JSON)


@given(st.text(min_size=1), OBJECTS)
def test_request_decoded_after_encoding_is_the_same(op: str, args: dict[str, object]) -> None:
    line = local.encode_request(op, args)
    assert line.count(b"\n") == 1
    assert local.decode_request(line[:-1]) == (op, args)


@given(JSON)
def test_result_decoded_after_encoding_is_the_same(result: object) -> None:
    assert local.decode_answer(local.encode_result(result)[:-1]) == ("result", result)


@given(OBJECTS)
def test_event_decoded_after_encoding_is_the_same(event: dict[str, object]) -> None:
    assert local.decode_answer(local.encode_event(event)[:-1]) == ("event", event)


@pytest.mark.parametrize("kind", [errors.NotPermittedError, errors.LoginNeededError, errors.NotFoundError, errors.CalnetError])
def test_error_decoded_after_encoding_is_of_its_kind(kind: type[errors.CalnetError]) -> None:
    tag, error = local.decode_answer(local.encode_error(kind("why\nand what to do"))[:-1])
    assert (tag, type(error), str(error)) == ("error", kind, "why\nand what to do")


def test_error_of_an_unknown_code_becomes_the_root() -> None:
    _, error = local.decode_answer(b'{"error": {"code": "from-the-future", "text": "t"}}')
    assert type(error) is errors.CalnetError


def test_request_without_args_has_none() -> None:
    assert local.decode_request(b'{"op": "status"}') == ("status", {})


BAD_LINES = [b"", b"{", b"[]", b"null", b'"op"', b"{}", b"\xff", b'{"op": NaN}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000]


@pytest.mark.parametrize("line", [*BAD_LINES, b'{"op": 1}', b'{"op": ""}', b'{"op": "x", "args": []}', b'{"op": "x", "args": null}'])
def test_request_malformed_raises_wire_error(line: bytes) -> None:
    with pytest.raises(errors.WireError):
        local.decode_request(line)


@pytest.mark.parametrize("line", [*BAD_LINES, b'{"event": 1}', b'{"error": 1}', b'{"error": {"code": "x"}}', b'{"error": {"code": 1, "text": "x"}}'])
def test_answer_malformed_raises_wire_error(line: bytes) -> None:
    with pytest.raises(errors.WireError):
        local.decode_answer(line)


@given(st.binary(max_size=200))
def test_decoders_given_random_bytes_raise_nothing_but_wire_error(line: bytes) -> None:
    for decode in (local.decode_request, local.decode_answer):
        with contextlib.suppress(errors.WireError):
            decode(line)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, "\ud800"])
def test_encode_value_json_cannot_carry_raises_wire_error(value: object) -> None:
    with pytest.raises(errors.WireError):
        local.encode_result(value)


def test_encode_line_over_the_limit_raises_wire_error() -> None:
    overhead = len(local.encode_result(""))
    assert len(local.encode_result("x" * (local.MAX_LINE - overhead))) == local.MAX_LINE
    with pytest.raises(errors.WireError):
        local.encode_result("x" * (local.MAX_LINE - overhead + 1))


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line)), st.integers(1, 7))
def test_line_buffer_fed_in_pieces_gives_the_lines(lines: list[bytes], size: int) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    buffer = local.LineBuffer()
    got = [line for start in range(0, len(stream), size) for line in buffer.feed(stream[start : start + size])]
    assert got == lines
    assert buffer.pending() == 4


def test_line_buffer_line_as_long_as_allowed_is_given() -> None:
    assert local.LineBuffer().feed(b"x" * (local.MAX_LINE - 1) + b"\n") == [b"x" * (local.MAX_LINE - 1)]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_line_buffer_line_too_long_raises_wire_error(end: bytes) -> None:
    with pytest.raises(errors.WireError):
        local.LineBuffer().feed(b"x" * local.MAX_LINE + end)


def test_request_line_is_plain_json() -> None:
    assert json.loads(local.encode_request("ping", {"peer": "bob"})) == {"op": "ping", "args": {"peer": "bob"}}
