"""What a machine seals and opens batches with: measured when a node starts, since processors differ more than any table of them would say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from calnet.crypto.aead import KEY_SIZE, TAG_SIZE, Aead, has_aead
from calnet.crypto.batch import NONCE_STEP, BatchCipher, NewBatch, Places, portable_batch
from calnet.crypto.ipsec_mb import NAMES, Library, LibraryError

_TRIED_SIZE: Final = 1392
_TRIED_AT_ONCE: Final = 16
_TRIES: Final = 12
_CLEARLY: Final = 0.9


@dataclass(frozen=True, slots=True)
class Choice:
    """`aes`: AES-256-GCM takes at most nine tenths of ChaCha20-Poly1305's time here. `by` says, for each AEAD, what does its batches, for people."""

    new_batch: NewBatch
    aes: bool
    by: dict[Aead, str]


def load_library(names: Iterable[str] = NAMES) -> Library | None:
    """The library for batches: the first of `names` (or paths) that can be used, None where there is none."""
    for name in names:
        try:
            return Library(name)
        except LibraryError:
            continue
    return None


def choose(clock: Callable[[], float], library: Library | None) -> Choice:
    """The best for each AEAD: some 2 ms of work, the best of many tries each, taken in turns. `clock` gives seconds."""
    makers: dict[str, NewBatch] = {"cryptography": portable_batch}
    if library is not None:
        makers[f"ipsec-mb {library.version}"] = library.new_batch
    tried = {(aead, by): make(bytes(KEY_SIZE), aead) for aead in Aead if has_aead(aead) for by, make in makers.items()}
    best = _measure(clock, tried)
    chosen = {}
    for aead in {aead for aead, _ in tried}:
        fastest = min(makers, key=lambda by: best[aead, by])
        chosen[aead] = fastest if best[aead, fastest] <= _CLEARLY * best[aead, "cryptography"] else "cryptography"
    times = {aead: best[aead, by] for aead, by in chosen.items()}
    aes = Aead.AES_256_GCM in times and times[Aead.AES_256_GCM] <= _CLEARLY * times[Aead.CHACHA20_POLY1305]
    return Choice(lambda key, aead: makers[chosen[aead]](key, aead), aes, chosen)


def _measure(clock: Callable[[], float], tried: dict[tuple[Aead, str], BatchCipher]) -> dict[tuple[Aead, str], float]:
    step = _TRIED_SIZE + TAG_SIZE
    buffer, nonces = memoryview(bytearray(_TRIED_AT_ONCE * step)), memoryview(bytearray(_TRIED_AT_ONCE * NONCE_STEP))
    places = Places(buffer, nonces, start=0, step=step, length=_TRIED_SIZE, most=_TRIED_AT_ONCE)
    best = dict.fromkeys(tried, float("inf"))
    for _ in range(_TRIES):
        for which, cipher in tried.items():
            start = clock()
            cipher.seal_all(places, 0, _TRIED_AT_ONCE, _TRIED_SIZE)
            best[which] = min(best[which], clock() - start)
    return best
