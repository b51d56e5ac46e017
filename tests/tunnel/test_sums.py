"""Sums of payloads: each way gives what adding the words one by one gives."""

from __future__ import annotations

import ctypes
import gc
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.tunnel import sums
from calnet.tunnel.sums import little_sum, payload_sums, sums_of
from calnet.wire.ip import ones_sum

WITH_LIBRARY = sums._proven_function() is not None


@pytest.fixture(params=["library", "portable"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, where this machine has both."""
    library = sums._Library()
    if request.param == "portable":
        monkeypatch.setattr(sums, "LIBRARY", "libnowhere.so.1")
        assert library.function is None
    elif not WITH_LIBRARY:
        pytest.skip(f"there is no {sums.LIBRARY} here")
    monkeypatch.setattr(sums, "_library", library)


@given(st.binary(max_size=5000), st.integers(1, 2000))
def test_payload_sums_are_congruent_to_the_sum_of_each_piece(payload: bytes, step: int) -> None:
    step = max(step, len(payload) // 50)
    sums = payload_sums(memoryview(payload), step)
    assert sums == [_pair_by_pair(payload[at : at + step]) for at in range(0, len(payload), step)]


def _pair_by_pair(piece: bytes) -> int:
    """RFC 1071 to the letter, but for the order of bytes: little-endian words, an odd last byte padded, one by one."""
    padded = piece + b"\0" * (len(piece) % 2)
    return sum(padded[at + 1] << 8 | padded[at] for at in range(0, len(padded), 2)) % 65535


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\xff\0", b"\0\xff", b"\xff\xff\0\0", b"\xff\xfe", b"\x80\0", b"\0\x01", b"random"])
def test_every_sum_of_any_length_is_that_of_its_words(fill: bytes) -> None:
    source = Random(7).randbytes(2000) if fill == b"random" else (fill * 2000)[:2000]
    for length in range(2001):
        piece = memoryview(source)[:length]
        expected = _pair_by_pair(source[:length])
        assert little_sum(piece) == expected == ones_sum(piece) * 256 % 65535


@given(st.integers(1, 700), st.integers(1, 5), st.sampled_from([0, 2, 6]), st.randoms())
def test_sums_of_even_pieces_are_congruent_and_follow_their_bytes(half: int, count: int, shift: int, random: Random) -> None:
    step = 2 * half
    buffer = memoryview(bytearray(shift + count * step))
    pieces = [buffer[at : at + step] for at in range(shift, len(buffer), step)]
    sum_all = sums_of(pieces)
    for fill in (random.randbytes(len(buffer)), b"\xff" * len(buffer), bytes(len(buffer))):
        buffer[:] = fill
        expected = [_pair_by_pair(bytes(piece)) for piece in pieces]
        assert [one % 65535 for one in sum_all(count)] == expected
        assert [one % 65535 for one in sum_all(1)] == expected[:1]


@pytest.mark.parametrize("step", [1024, 1026])
def test_sums_keep_what_they_are_of(step: int) -> None:
    def made() -> sums.SumAll:
        buffer = memoryview(bytearray(b"\1" * (8 << 20)))  # so large that its memory goes back to the system with it
        return sums_of([buffer[at : at + step] for at in range(0, 100 * step, step)])

    sum_all = made()
    gc.collect()
    assert [one % 65535 for one in sum_all(100)] == [0x0101 * step // 2 % 65535] * 100


def test_no_pieces_have_no_sums() -> None:
    assert sums_of([])(0) == []


@pytest.mark.parametrize("answer", [0, 1, 65534])
def test_library_that_computes_otherwise_is_not_used(answer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p, ctypes.c_long)(lambda *_: answer)

    def load(_name: str) -> dict[str, Any]:
        return {sums._FUNCTION: made}

    monkeypatch.setattr(ctypes, "PyDLL", load)
    assert sums._proven_function() is None


def test_library_without_the_function_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "LIBRARY", "libc.so.6")
    assert sums._proven_function() is None
