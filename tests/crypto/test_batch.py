"""Batches: whatever does them, each message is what the AEAD of aead.py makes of it alone, and nothing else is touched."""

from __future__ import annotations

import ctypes
import platform
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.crypto import choice, ipsec_mb
from calnet.crypto.aead import Aead, open_sealed, seal
from calnet.crypto.batch import NONCE_START, NONCE_STEP, NewBatch, Nonces, Places, lower_halves, portable_batch
from calnet.crypto.choice import choose, load_library
from calnet.crypto.ipsec_mb import Library, LibraryError
from tests import shared_vectors
from tests.crypto.batches import WAYS, library, new_batch_by

KEY = bytes(range(32))


@pytest.fixture(params=WAYS, scope="module")
def new_batch(request: pytest.FixtureRequest) -> NewBatch:
    return new_batch_by(request.param)


def _places(start: int, gap: int, length: int, most: int, seed: int = 1, after: int = 0) -> Places:
    draw = random.Random(seed)
    step = length + 16 + gap
    size = start + (most - 1) * step + length + 16 + after
    buffer, nonces = memoryview(bytearray(draw.randbytes(size))), memoryview(bytearray(draw.randbytes(NONCE_STEP * (most + 1))))
    return Places(buffer, nonces, start=start, step=step, length=length, most=most)


shapes = st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from([1, 15, 16, 17, 63, 64, 100, 255, 1024, 1392, 1420]), st.integers(1, 70))


@settings(max_examples=120, deadline=None)
@given(shape=shapes, aead=st.sampled_from(Aead), data=st.data())
def test_batch_is_what_its_messages_are_alone_and_nothing_else_changes(
    new_batch: NewBatch, shape: tuple[int, int, int, int], aead: Aead, data: st.DataObject
) -> None:
    places = _places(*shape, seed=data.draw(st.integers(0, 9)))
    first = data.draw(st.integers(0, places.most - 1))
    count = data.draw(st.integers(1, places.most - first))
    last = data.draw(st.integers(0, places.length))
    before = bytes(places.buffer)
    cipher = new_batch(KEY, aead)
    cipher.seal_all(places, first, count, last)
    expected = bytearray(before)
    for k in range(first, first + count):
        at, length = places.start + k * places.step, last if k == first + count - 1 else places.length
        nonce = bytes(places.nonces[k * NONCE_STEP + NONCE_START : (k + 1) * NONCE_STEP])
        expected[at : at + length + 16] = seal(KEY, nonce, before[at : at + length], aead=aead)
    assert places.buffer == expected
    assert cipher.open_all(places, first, count, last) == []
    for k in range(first, first + count):  # what is left of the tags
        at = places.start + k * places.step + (last if k == first + count - 1 else places.length)
        assert places.buffer[at : at + 16] == expected[at : at + 16]
        expected[at : at + 16] = before[at : at + 16]
        places.buffer[at : at + 16] = before[at : at + 16]
    assert places.buffer == before


@settings(max_examples=120, deadline=None)
@given(shape=shapes, aead=st.sampled_from(Aead), data=st.data())
def test_changed_message_is_found_and_costs_no_other(new_batch: NewBatch, shape: tuple[int, int, int, int], aead: Aead, data: st.DataObject) -> None:
    places = _places(*shape)
    last = data.draw(st.integers(0, places.length))
    before = bytes(places.buffer)
    cipher = new_batch(KEY, aead)
    cipher.seal_all(places, 0, places.most, last)
    changed = data.draw(st.sets(st.integers(0, places.most - 1)))
    for k in changed:
        length = last if k == places.most - 1 else places.length
        bit = data.draw(st.integers(0, (length + 16) * 8 - 1))
        places.buffer[places.start + k * places.step + bit // 8] ^= 1 << bit % 8
    assert cipher.open_all(places, 0, places.most, last) == sorted(changed)
    for k in set(range(places.most)) - changed:
        at, length = places.start + k * places.step, last if k == places.most - 1 else places.length
        assert places.buffer[at : at + length] == before[at : at + length]


def test_wrong_key_and_wrong_nonce_open_nothing(new_batch: NewBatch) -> None:
    for aead in Aead:
        places = _places(16, 16, 100, 9)
        new_batch(KEY, aead).seal_all(places, 0, 9, 100)
        kept = bytes(places.buffer)
        assert new_batch(bytes(32), aead).open_all(places, 0, 9, 100) == list(range(9))
        places.buffer[:] = kept
        places.nonces[3 * NONCE_STEP + NONCE_START] ^= 1
        assert new_batch(KEY, aead).open_all(places, 0, 9, 100) == [3]


def test_many_ciphers_take_turns(new_batch: NewBatch) -> None:
    """Under other keys, with other places, both ways: nothing of one batch is left for the next."""
    draw = random.Random(4)
    ciphers = [(aead, key, new_batch(key, aead)) for aead in Aead for key in (draw.randbytes(32) for _ in range(3))]
    kept = [_places(16, 16, length, most, seed) for seed, (length, most) in enumerate([(1392, 45), (80, 64), (1392, 20), (576, 33)])]
    for _ in range(200):
        aead, key, cipher = draw.choice(ciphers)
        places = draw.choice(kept)
        first = draw.randrange(places.most)
        count = draw.randint(1, places.most - first)
        last = draw.randint(1, places.length)
        before = bytes(places.buffer)
        cipher.seal_all(places, first, count, last)
        k = draw.randrange(first, first + count)
        at, length = places.start + k * places.step, last if k == first + count - 1 else places.length
        nonce = bytes(places.nonces[k * NONCE_STEP + NONCE_START : (k + 1) * NONCE_STEP])
        assert open_sealed(key, nonce, bytes(places.buffer[at : at + length + 16]), aead=aead) == before[at : at + length]
        assert cipher.open_all(places, first, count, last) == []


def test_wycheproof_vectors_in_a_batch(new_batch: NewBatch) -> None:
    checked = 0
    for group in shared_vectors.load("wycheproof/chacha20_poly1305_test.json")["testGroups"]:
        for case in group["tests"]:
            key, nonce, extra, message, sealed, tag = (bytes.fromhex(case[field]) for field in ("key", "iv", "aad", "msg", "ct", "tag"))
            if extra or not message or len(nonce) != 12 or len(key) != 32 or case["result"] != "valid":
                continue
            places = _places(0, 0, len(message), 5)
            for k in range(5):
                places.nonces[k * NONCE_STEP + NONCE_START : (k + 1) * NONCE_STEP] = nonce
                places.buffer[k * places.step : k * places.step + len(message)] = message
            new_batch(key, Aead.CHACHA20_POLY1305).seal_all(places, 0, 5, len(message))
            assert places.buffer == (sealed + tag) * 5
            checked += 1
    assert checked == 44


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": -1},
        {"step": 115},
        {"length": -1},
        {"most": 0},
        {"most": 10},
        {"start": 17},
        {"length": 101},
    ],
)
def test_places_outside_their_buffer_can_not_be_made(wrong: dict[str, int]) -> None:
    fits = {"start": 16, "step": 132, "length": 100, "most": 9}
    buffer, nonces = memoryview(bytearray(16 + 8 * 132 + 116)), memoryview(bytearray(9 * NONCE_STEP))
    Places(buffer, nonces, **fits)
    with pytest.raises(ValueError, match="messages"):
        Places(buffer, nonces, **{**fits, **wrong})
    with pytest.raises(ValueError, match="outside"):
        Places(memoryview(bytes(buffer)), nonces, **fits)
    with pytest.raises(ValueError, match="outside"):
        Places(buffer, nonces[:-1], **fits)


@pytest.mark.parametrize(("first", "count", "last"), [(-1, 2, 10), (0, 0, 10), (0, 11, 10), (9, 2, 60), (0, 5, -1), (0, 5, 101), (10, 1, 10)])
def test_messages_that_are_not_there_are_refused(new_batch: NewBatch, first: int, count: int, last: int) -> None:
    places = _places(16, 16, 100, 9, after=16 + 50 + 16)
    cipher = new_batch(KEY, Aead.CHACHA20_POLY1305)
    before = bytes(places.buffer)
    for work in (cipher.seal_all, cipher.open_all):
        with pytest.raises(ValueError, match=r"no such messages|outside"):
            work(places, first, count, last)
    assert places.buffer == before


def test_shorter_message_behind_the_full_ones_is_one_more(new_batch: NewBatch) -> None:
    places = _places(16, 16, 100, 9, after=16 + 50 + 16)
    cipher = new_batch(KEY, Aead.AES_256_GCM)
    before = bytes(places.buffer)
    cipher.seal_all(places, 0, 10, 50)
    assert cipher.open_all(places, 0, 10, 50) == []
    at = 16 + 9 * places.step
    assert places.buffer[at : at + 50] == before[at : at + 50]


def test_key_of_another_length_is_refused(new_batch: NewBatch) -> None:
    for aead in Aead:
        with pytest.raises(ValueError, match=r"32 bytes"):
            new_batch(bytes(31), aead)


def test_library_that_is_not_there_or_no_library_is_named_as_the_reason(tmp_path: object) -> None:
    with pytest.raises(LibraryError, match=r"libNone\.so"):
        Library("libNone.so")
    with pytest.raises(LibraryError, match="imb_get_version"):
        Library("libc.so.6")
    assert load_library(["libNone.so", "libc.so.6"]) is None


def test_library_is_for_one_kind_of_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(LibraryError, match="aarch64"):
        Library("libIPSec_MB.so.1")


def test_library_that_computes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of a version that keeps its jobs in another way would."""
    if library() is None:
        pytest.skip("libIPSec_MB is not here")
    monkeypatch.setattr(ipsec_mb, "portable_batch", lambda key, aead: portable_batch(bytes(32), aead))
    refusals = []
    for name in ipsec_mb.NAMES:
        with pytest.raises(LibraryError) as refused:
            Library(name)
        refusals.append(str(refused.value))
    assert any("computes" in refusal for refusal in refusals)


class Charged:
    """A clock that only `Slow` moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("chacha", "aes", "expected", "by_library"),
    [(1.0, 0.5, True, True), (1.0, 0.95, False, True), (1.0, 2.0, False, True), (3.0, 0.5, True, False)],
)
def test_measured_choice_takes_what_is_clearly_faster(monkeypatch: pytest.MonkeyPatch, chacha: float, aes: float, expected: bool, by_library: bool) -> None:
    clock = Charged()

    def costing(times: dict[Aead, float]) -> NewBatch:
        class Slow:
            def __init__(self, aead: Aead) -> None:
                self.aead = aead

            def seal_all(self, places: Places, first: int, count: int, last: int) -> None:
                clock.now += times[self.aead]

            def open_all(self, places: Places, first: int, count: int, last: int) -> list[int]:
                raise AssertionError

        return lambda key, aead: Slow(aead)

    class Loaded:
        version = "9.9"
        new_batch = staticmethod(costing({Aead.CHACHA20_POLY1305: chacha, Aead.AES_256_GCM: aes}))

    monkeypatch.setattr(choice, "portable_batch", costing({Aead.CHACHA20_POLY1305: 2.0, Aead.AES_256_GCM: 2.0}))
    chosen = choose(clock, Loaded())  # type: ignore[arg-type]
    assert chosen.aes is expected
    assert chosen.by[Aead.CHACHA20_POLY1305] == ("ipsec-mb 9.9" if by_library else "cryptography")
    assert chosen.by[Aead.AES_256_GCM] == ("ipsec-mb 9.9" if aes <= 1.8 else "cryptography")


def test_without_the_library_the_other_way_is_taken() -> None:
    chosen = choose(lambda: 0.0, None)
    assert set(chosen.by.values()) == {"cryptography"}
    assert isinstance(chosen.new_batch(KEY, Aead.AES_256_GCM), type(portable_batch(KEY, Aead.AES_256_GCM)))


class QuicLibrary:
    """The two functions of libIPSec_MB 2 that are called, done by aead.py: what they are given has to be as the library's header says."""

    def __init__(self, aead: Aead) -> None:
        self.aead = aead
        self.calls = 0

    def __getitem__(self, name: str) -> object:
        pointer, number = ctypes.c_void_p, ctypes.c_uint64
        if self.aead is Aead.CHACHA20_POLY1305:
            assert name == "imb_quic_chacha20_poly1305"
            return ctypes.CFUNCTYPE(None, pointer, pointer, ctypes.c_int, *[pointer] * 5, number, pointer, number)(self._chacha)
        assert name == "imb_quic_aes_gcm"
        return ctypes.CFUNCTYPE(None, pointer, pointer, ctypes.c_int, ctypes.c_int, *[pointer] * 5, number, pointer, number, number)(self._aes)

    def _chacha(self, manager: int, key: int, direction: int, *rest: int) -> None:
        self._work(manager, key, direction, *rest)

    def _aes(self, manager: int, key: int, key_size: int, direction: int, *rest: int) -> None:
        *before, tag_size, count = rest
        assert (key_size, tag_size) == (32, 16)
        self._work(manager, key, direction, *before, count)

    def _work(self, manager: int, key: int, direction: int, *rest: int) -> None:
        outs, texts, lengths, nonces, _, extra, tags, count = rest
        assert (manager, extra) == (77, 0)
        self.calls += 1
        secret = ctypes.string_at(key, 32)
        for k in range(count):
            out, text, length, nonce, tag = (ctypes.c_uint64.from_address(array + 8 * k).value for array in (outs, texts, lengths, nonces, tags))
            data, number = ctypes.string_at(text, length), ctypes.string_at(nonce, 12)
            made = seal(secret, number, data, aead=self.aead)
            if direction == 2:
                # the text of a stream cipher comes out of sealing once more; the tag is over the ciphertext
                made = made[:-16] + seal(secret, number, made[:-16], aead=self.aead)[-16:]
            ctypes.memmove(out, made, length)
            ctypes.memmove(tag, made[length:], 16)


@pytest.mark.parametrize("aead", Aead)
def test_functions_for_quic_packets_are_called_as_they_want_it(aead: Aead) -> None:
    fake, tags, draw = QuicLibrary(aead), memoryview(bytearray(16 * ipsec_mb.MAX_BATCH)), random.Random(8)
    seal_call, open_call = (ipsec_mb._QuicCall(fake, 77, aead, direction, tags) for direction in (1, 2))
    cipher = ipsec_mb.LibraryBatch(seal_call, open_call, ctypes.create_string_buffer(KEY, 32), tags, portable_batch(KEY, aead))
    theirs = portable_batch(KEY, aead)
    for length, most in ((1420, 45), (80, 64), (17, 3)):
        for _ in range(20):
            first = draw.randrange(most)
            count, last = draw.randint(1, most - first), draw.randint(1, length)
            ours, other = (_places(7, 21, length, most) for _ in range(2))
            cipher.seal_all(ours, first, count, last)
            theirs.seal_all(other, first, count, last)
            assert ours.buffer == other.buffer
            assert cipher.open_all(ours, first, count, last) == theirs.open_all(other, first, count, last) == []
            assert ours.buffer == other.buffer
    assert fake.calls == 120


def test_library_without_the_functions_or_of_an_unknown_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Some:
        def __init__(self, version: int) -> None:
            self.imb_get_version = lambda: version
            self.alloc_mb_mgr = self.init_mb_mgr_auto = lambda *_: 0

    for version, why in ((0x10400, "1.4.0 is not known"), (0x30000, "3.0.0 is not known"), (0x20000, "out of memory")):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, version=version: Some(version))
        with pytest.raises(LibraryError, match=why):
            Library("some")
    with pytest.raises(LibraryError, match="imb_quic"):
        ipsec_mb._QuicCall(ctypes.PyDLL(None), 77, Aead.AES_256_GCM, 1, memoryview(bytearray(2048)))


@given(st.one_of(st.integers(0, 1 << 63), st.integers((1 << 32) - 130, 1 << 32), st.integers((7 << 32) - 130, 7 << 32)), st.integers(1, 128))
def test_halves_of_counters_are_those_of_each(first: int, count: int) -> None:
    counters = range(first, first + count)
    assert lower_halves(first, count).tobytes() == b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in counters)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 5, (1 << 32) - 3, 3 << 32, (9 << 32) - 1]), st.integers(1, 6), st.booleans()), max_size=6))
def test_nonces_hold_what_was_said_last(steps: list[tuple[int, int, int, bool]]) -> None:
    nonces = Nonces(16)
    for at, first, count, singly in steps:
        if singly:
            counters, begins, at = [first + 7 * k for k in range(count)], [5 + k for k in range(count)], 0
            if first % 3 == 0:
                nonces.set(counters, begins)
            elif first % 3 == 1:
                heads = b"".join(struct.pack("<IIQ8x", begin, 99, counter) for begin, counter in zip(begins, counters, strict=True))
                nonces.copy(memoryview(heads).cast("I"), 6, count)
            else:
                begins = [0] * count
                nonces.set(counters)
        else:
            counters, begins = list(range(first, first + count)), [0x01020304] * count
            nonces.count_on(at, 0x01020304, first, lower_halves(first, count))
        for k, (counter, begin) in enumerate(zip(counters, begins, strict=True), at):
            start = NONCE_STEP * k + NONCE_START
            assert nonces.buffer[start : start + 12] == begin.to_bytes(4, "little") + counter.to_bytes(8, "little")
