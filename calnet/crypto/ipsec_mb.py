"""Intel's Multi-Buffer Crypto library (libIPSec_MB, Debian's libipsec-mb1 and libipsec-mb2): a batch of messages by one call, with the widest vectors that the
processor has. For 44 messages of 1,440 bytes: 27 µs with ChaCha20-Poly1305 and 8 with AES-256-GCM, where calls of their own take 60 and 31.

The library is used by its binary interface, so only in versions whose interface is known:

- from 1.5 to 2.x through its functions for QUIC packets, which do what is wanted: many messages under one key, given by arrays of pointers;
- 1.3 through its ring of jobs. A batch fills the ring from its beginning and is done when the call returns, so the ring is always empty between calls. The
  jobs are kept as they were filled, since the next batch mostly lies where the last one did.

It opens without looking at the tags: it computes them, and they are compared here. A `Library` proves itself against aead.py before it is handed out, with
whole batches, changed messages and batches that begin in the middle; what then differs in any byte is not used. Nothing here may be called from two threads.
"""

from __future__ import annotations

import ctypes
import hmac
import platform
from array import array
from typing import Any, Final, Protocol

from calnet.crypto.aead import KEY_SIZE, NONCE_SIZE, TAG_SIZE, Aead, has_aead
from calnet.crypto.batch import NONCE_START, NONCE_STEP, Places, PortableBatch, portable_batch

NAMES: Final = ("libIPSec_MB.so.2", "libIPSec_MB.so.1")
MAX_BATCH: Final = 128
"""Messages that one call takes (IMB_MAX_BURST_SIZE); longer batches go the portable way."""
_SEALING, _OPENING = 1, 2
"""IMB_CIPHER_DIRECTION."""
_KEY_256: Final = 32
_ALIGNMENT: Final = 64
_EXPANDED_SIZE: Final = 4096
"""Room for an expanded AES key: 1,008 bytes in 1.3, 1,264 in 2.0."""
_EXPAND: Final = 464
"""Where the manager keeps the function that expands an AES-256-GCM key, in 1.3 and in 2.0."""
_EXPANDERS: Final = ("sse", "avx_gen2", "avx_gen4", "avx512", "vaes_avx2", "vaes_avx512")
"""Names of those functions end so."""


class LibraryError(Exception):
    """Why the library can't be used."""


class _Call(Protocol):
    """One AEAD in one direction: `count` messages from `first` on, the last one's text `last` bytes, under the key at an address. Tags are computed behind each
    message when sealing, and to the library's own place when opening."""

    def __call__(self, places: Places, first: int, count: int, last: int, key: int) -> None: ...


class _Addresses:
    """The addresses of a `Places`, each an array of 64-bit numbers, one a message, and one more for the shorter one behind them."""

    __slots__ = ("lengths", "nonces", "tags", "texts")

    def __init__(self, places: Places) -> None:
        count = places.most + 1
        start = _address(places.buffer) + places.start
        self.texts = array("Q", range(start, start + count * places.step, places.step))
        self.tags = array("Q", [text + places.length for text in self.texts])
        first = _address(places.nonces) + NONCE_START
        self.nonces = array("Q", range(first, first + count * NONCE_STEP, NONCE_STEP))
        self.lengths = array("Q", [places.length]) * count


def _addresses(places: Places) -> _Addresses:
    kept = places.kept
    if not isinstance(kept, _Addresses):
        kept = places.kept = _Addresses(places)
    return kept


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Library:
    """The library, loaded. LibraryError where it isn't there, can't run here, or is of a version whose interface isn't known."""

    def __init__(self, name: str) -> None:
        if platform.machine() != "x86_64":
            raise LibraryError(f"no use on {platform.machine()}")
        try:
            self._library = ctypes.CDLL(name)
            version = int(self._library.imb_get_version())
            allocate, init = self._library.alloc_mb_mgr, self._library.init_mb_mgr_auto
        except (OSError, AttributeError) as error:
            raise LibraryError(f"{name}: {error}") from None
        self.version = f"{version >> 16}.{version >> 8 & 0xFF}.{version & 0xFF}"
        self._quic = 0x10500 <= version < 0x30000
        if not self._quic and version >> 8 != 0x103:
            raise LibraryError(f"{name}: version {self.version} is not known")
        allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_uint64,)
        init.restype, init.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p)
        self._allocate, self._init = allocate, init
        self._tags = memoryview(bytearray(TAG_SIZE * MAX_BATCH))
        manager = self._manager()
        self._expand = self._expander(manager)
        self._calls: dict[tuple[Aead, int], _Call] = {}
        for aead in Aead:
            for direction in (_SEALING, _OPENING):
                if self._quic:
                    self._calls[aead, direction] = _QuicCall(self._library, manager, aead, direction, self._tags)
                else:
                    self._calls[aead, direction] = _Ring(self._manager(), aead, direction, self._tags)
        self._prove()

    def new_batch(self, key: bytes, aead: Aead) -> LibraryBatch:
        """The AEAD under a 32-byte key."""
        if len(key) != KEY_SIZE:
            raise ValueError("the key is not 32 bytes")
        held = ctypes.create_string_buffer(key, KEY_SIZE) if aead is Aead.CHACHA20_POLY1305 else self._expanded(key)
        portable = portable_batch(key, aead)
        return LibraryBatch(self._calls[aead, _SEALING], self._calls[aead, _OPENING], held, self._tags, portable)

    def _manager(self) -> int:
        manager = self._allocate(0)
        if not manager:
            raise LibraryError("out of memory")
        self._init(manager, None)
        return int(manager)

    def _expander(self, manager: int) -> Any:
        """The manager's function for AES keys; it has to be one of those that the library exports, or this isn't where it is kept."""
        at = ctypes.c_uint64.from_address(manager + _EXPAND).value
        exported = [getattr(self._library, f"aes_gcm_pre_256_{name}", None) for name in _EXPANDERS]
        if at not in [ctypes.cast(function, ctypes.c_void_p).value for function in exported if function is not None]:
            raise LibraryError("the manager is not as it is known")
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(at)

    def _expanded(self, key: bytes) -> _Aligned:
        held = _Aligned(_EXPANDED_SIZE)
        given = ctypes.create_string_buffer(key, KEY_SIZE)
        self._expand(ctypes.addressof(given), held.address)
        return held

    def _prove(self) -> None:
        """See the module's docstring."""
        for aead in Aead:
            if not has_aead(aead):
                continue
            key = bytes(range(KEY_SIZE))
            ours, theirs = self.new_batch(key, aead), portable_batch(key, aead)
            for length, last, first, count in ((1, 1, 0, 1), (80, 33, 3, 17), (1404, 1404, 0, 45), (1404, 700, 5, 64)):
                texts = [_proving_places(length, first + count) for _ in range(2)]
                ours.seal_all(texts[0], first, count, last)
                theirs.seal_all(texts[1], first, count, last)
                whole = texts[0].buffer == texts[1].buffer and ours.open_all(texts[0], first, count, last) == []
                theirs.open_all(texts[1], first, count, last)
                same = texts[0].buffer == texts[1].buffer
                ours.seal_all(texts[0], first, count, last)
                changed = sorted({0, count // 2, count - 1})
                for k in changed:
                    texts[0].buffer[texts[0].start + (first + k) * texts[0].step] ^= 1
                if not whole or not same or ours.open_all(texts[0], first, count, last) != changed:
                    raise LibraryError(f"version {self.version} computes {aead.value} otherwise")


def _proving_places(length: int, most: int) -> Places:
    step = length + TAG_SIZE + 5
    buffer = memoryview(bytearray(bytes(range(251)) * (1 + (7 + most * step) // 251)))
    nonces = memoryview(bytearray(bytes(range(251)) * (1 + NONCE_STEP * most // 251)))
    return Places(buffer, nonces, start=7, step=step, length=length, most=most)


class _Aligned:
    """Zeroed memory at a multiple of 64."""

    __slots__ = ("_memory", "address")

    def __init__(self, size: int) -> None:
        self._memory = ctypes.create_string_buffer(size + _ALIGNMENT)
        self.address = -(-ctypes.addressof(self._memory) // _ALIGNMENT) * _ALIGNMENT


class LibraryBatch:
    """`BatchCipher` by the library. What it does not do, messages without text, goes the other way."""

    __slots__ = ("_held", "_key", "_open", "_portable", "_seal", "_tags")

    def __init__(self, seal: _Call, open_: _Call, held: Any, tags: memoryview, portable: PortableBatch) -> None:
        self._seal, self._open, self._tags, self._portable = seal, open_, tags, portable
        self._held = held
        self._key: int = held.address if isinstance(held, _Aligned) else ctypes.addressof(held)

    def seal_all(self, places: Places, first: int, count: int, last: int) -> None:
        places.check(first, count, last)
        if count > MAX_BATCH or not last:
            self._portable.seal_all(places, first, count, last)
        else:
            self._seal(places, first, count, last, self._key)

    def open_all(self, places: Places, first: int, count: int, last: int) -> list[int]:
        places.check(first, count, last)
        if count > MAX_BATCH or not last:
            return self._portable.open_all(places, first, count, last)
        came = places.tags_of(first, count, last)
        self._open(places, first, count, last, self._key)
        computed = bytes(self._tags[: count * TAG_SIZE])
        if hmac.compare_digest(came, computed):
            return []
        return [k for k in range(count) if not hmac.compare_digest(came[k * TAG_SIZE : (k + 1) * TAG_SIZE], computed[k * TAG_SIZE : (k + 1) * TAG_SIZE])]


class _QuicCall:
    """`imb_quic_chacha20_poly1305`, `imb_quic_aes_gcm`: many messages given by arrays of pointers."""

    def __init__(self, library: Any, manager: int, aead: Aead, direction: int, tags: memoryview) -> None:
        pointer, number, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
        begin: tuple[Any, ...] = (pointer, pointer, size)
        rest: tuple[Any, ...] = (pointer, pointer, pointer, pointer, pointer, number, pointer)
        self._before: tuple[int, ...] = ()
        self._after: tuple[int, ...] = ()
        if aead is Aead.CHACHA20_POLY1305:
            name, types = "imb_quic_chacha20_poly1305", (*begin, *rest, number)
        else:
            name, types = "imb_quic_aes_gcm", (*begin, size, *rest, number, number)
            self._before, self._after = (_KEY_256,), (TAG_SIZE,)
        try:
            self._function = library[name]
        except AttributeError as error:
            raise LibraryError(str(error)) from None
        self._function.restype, self._function.argtypes = None, types
        self._manager, self._direction = manager, direction
        self._computed = None
        if direction == _OPENING:
            first = _address(tags)
            self._computed = array("Q", range(first, first + TAG_SIZE * MAX_BATCH, TAG_SIZE))
        self._nothing = array("Q", [_address(tags)]) * MAX_BATCH
        """Where the associated data would be."""

    def __call__(self, places: Places, first: int, count: int, last: int, key: int) -> None:
        at, end = _addresses(places), first + count - 1
        texts = at.texts.buffer_info()[0] + 8 * first
        at.lengths[end] = last
        if self._computed is None:
            at.tags[end] = at.texts[end] + last
            tags = at.tags.buffer_info()[0] + 8 * first
        else:
            tags = self._computed.buffer_info()[0]
        lengths, nonces, nothing = at.lengths.buffer_info()[0] + 8 * first, at.nonces.buffer_info()[0] + 8 * first, self._nothing.buffer_info()[0]
        self._function(self._manager, key, *self._before, self._direction, texts, texts, lengths, nonces, nothing, 0, tags, *self._after, count)
        at.lengths[end] = places.length
        at.tags[end] = at.texts[end] + places.length


class _Ring:
    """The ring of jobs of version 1.3 (`IMB_JOB`, 200 bytes each), for one AEAD in one direction. Positions below are in 8 or 4 bytes."""

    JOBS: Final = 1024
    """Where the ring begins in the manager; before it the numbers of the earliest job (-1: none) and, in bytes, the next."""
    EARLIEST: Final = 1016
    SUBMIT: Final = 968
    """Where the manager keeps its function that takes a burst of jobs without looking whether they make sense."""
    SIZE: Final = 200
    STEP: Final = SIZE // 8
    SEAL_KEY, OPEN_KEY, KEY_LENGTH, SOURCE, TARGET, START, LENGTH = range(7)
    HASH_START, HASH_LENGTH, NONCE, NONCE_LENGTH, TAG, TAG_LENGTH, EXTRA, EXTRA_LENGTH = range(7, 15)
    MODE, DIRECTION, HASH, ORDER = 33, 34, 35, 36
    """In 4 bytes."""
    ALGORITHMS: Final = {Aead.CHACHA20_POLY1305: (19, 29), Aead.AES_256_GCM: (5, 9)}
    """IMB_CIPHER_MODE and IMB_HASH_ALG."""

    def __init__(self, manager: int, aead: Aead, direction: int, tags: memoryview) -> None:
        self._manager = manager
        self._ring = memoryview((ctypes.c_char * (self.SIZE * MAX_BATCH)).from_address(manager + self.JOBS)).cast("B").cast("Q")
        words = self._ring.cast("B").cast("I")
        mode, hash_ = self.ALGORITHMS[aead]
        order = 1 if (direction == _SEALING) else 2
        for place, value in ((self.MODE, mode), (self.DIRECTION, direction), (self.HASH, hash_), (self.ORDER, order)):
            words[place :: self.SIZE // 4] = memoryview(array("I", [value]) * MAX_BATCH)
        for place, value in ((self.KEY_LENGTH, KEY_SIZE), (self.NONCE_LENGTH, NONCE_SIZE), (self.TAG_LENGTH, TAG_SIZE)):
            self._fill(place, array("Q", [value]) * MAX_BATCH)
        for place in (self.START, self.HASH_START, self.EXTRA, self.EXTRA_LENGTH):
            self._fill(place, array("Q", [0]) * MAX_BATCH)
        self._opening = direction == _OPENING
        if self._opening:
            first = _address(tags)
            self._fill(self.TAG, array("Q", range(first, first + TAG_SIZE * MAX_BATCH, TAG_SIZE)))
        submit = ctypes.c_uint64.from_address(manager + self.SUBMIT).value
        self._submit = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)(submit)
        self._state = memoryview((ctypes.c_char * 8).from_address(manager + self.EARLIEST)).cast("B").cast("i")
        self._pointers = array("Q", range(manager + self.JOBS, manager + self.JOBS + self.SIZE * MAX_BATCH, self.SIZE))
        """The call writes into it which jobs are done: all, in their order."""
        self._key = self._first = self._filled = 0
        self._places: Places | None = None

    def _fill(self, place: int, values: array[int], count: int = MAX_BATCH, first: int = 0) -> None:
        self._ring[place : count * self.STEP : self.STEP] = memoryview(values)[first : first + count]

    def __call__(self, places: Places, first: int, count: int, last: int, key: int) -> None:
        if places is not self._places or first != self._first or count > self._filled:
            self._places, self._first, self._filled = places, first, count
            at = _addresses(places)
            for place, values in (
                (self.SOURCE, at.texts),
                (self.TARGET, at.texts),
                (self.LENGTH, at.lengths),
                (self.HASH_LENGTH, at.lengths),
                (self.NONCE, at.nonces),
            ):
                self._fill(place, values, count, first)
            if not self._opening:
                self._fill(self.TAG, at.tags, count, first)
        if key != self._key:
            self._key = key
            keys = array("Q", [key]) * MAX_BATCH
            self._fill(self.SEAL_KEY, keys)
            self._fill(self.OPEN_KEY, keys)
        ring, end = self._ring, (count - 1) * self.STEP
        if last != places.length:
            ring[end + self.LENGTH] = ring[end + self.HASH_LENGTH] = last
            if not self._opening:
                ring[end + self.TAG] = ring[end + self.SOURCE] + last
        state = self._state
        state[0], state[1] = -1, 0
        done = self._submit(self._manager, count, self._pointers.buffer_info()[0])
        if last != places.length:
            ring[end + self.LENGTH] = ring[end + self.HASH_LENGTH] = places.length
            if not self._opening:
                ring[end + self.TAG] = ring[end + self.SOURCE] + places.length
        if done != count:
            raise LibraryError(f"{count - done} of {count} messages were not done")
