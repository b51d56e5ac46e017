"""Handshake timestamps that outlive a crash: the greatest accepted from, and sent to, each static key (docs/protocol.md, section 3).

An append-only file, as one stamp is written with each handshake and must be durable before its response leaves: one write and one fdatasync.

    header   16 bytes  b"calnet stamps 1\\n"
    record   52 bytes  static key 32 | sent u8 (1: sent, 0: accepted) | timestamp 12 | zero 3 | CRC-32 of the 48 before it, big-endian

Only the last record can be unfinished after a crash, as each is durable before the next: an unfinished one at the end is cut off (it was never
acknowledged). A bad record elsewhere is damage: StateError, and the file stays as it is.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from calnet.crypto.keys import KEY_SIZE
from calnet.errors import StateError
from calnet.files import open_private, read_private, write_private

HEADER: Final = b"calnet stamps 1\n"
RECORD_SIZE: Final = 52
STAMP_SIZE: Final = 12
COMPACT_OVER: Final = 512
"""Records beyond those still needed that make the file worth writing anew (26 KiB)."""


def build_record(static: bytes, timestamp: bytes, sent: bool) -> bytes:
    """One record's 52 bytes."""
    body = static + bytes((sent,)) + timestamp + bytes(3)
    return body + zlib.crc32(body).to_bytes(4, "big")


def _is_whole(record: bytes) -> bool:
    return len(record) == RECORD_SIZE and zlib.crc32(record[:-4]) == int.from_bytes(record[-4:], "big") and record[KEY_SIZE] < 2


def parse_records(data: bytes) -> tuple[list[bytes], bool]:
    """(the whole records, whether an unfinished one follows them). StateError without a path for anything else."""
    if not data.startswith(HEADER):
        if HEADER.startswith(data):
            return [], bool(data)
        raise StateError("it does not begin as such a file does")
    records = [data[start : start + RECORD_SIZE] for start in range(len(HEADER), len(data), RECORD_SIZE)]
    unfinished = bool(records) and not _is_whole(records[-1])
    if unfinished:
        records.pop()
    for number, record in enumerate(records):
        if not _is_whole(record):
            raise StateError(f"record {number} does not check")
    return records, unfinished


class HandshakeLog:
    """The stamps of one daemon. `accepted` and `sent` map static keys to the greatest stamp, for the tunnel to load."""

    def __init__(self, path: Path) -> None:
        """Load `path`, made where missing. StateError where it is damaged, can't be read, or the disk is full."""
        self._path = path
        self.accepted: dict[bytes, bytes] = {}
        self.sent: dict[bytes, bytes] = {}
        data = read_private(path) or b""
        try:
            records, unfinished = parse_records(data)
        except StateError as error:
            raise StateError(
                f"{path} is damaged ({error}): restore it from a backup, or move it away; without it, peers' old handshakes could be replayed once"
            ) from None
        for record in records:
            self._note(record)
        if unfinished or not data or len(records) > self._needed() + COMPACT_OVER:
            self._compact()
        self._descriptor = open_private(path, os.O_WRONLY | os.O_APPEND)
        self._size = os.fstat(self._descriptor).st_size

    def persist(self, static: bytes, timestamp: bytes, sent: bool) -> None:
        """Durable on return. StateError (a full disk, say): then nothing may be sent that rests on it, and the file is as before."""
        record = build_record(static, timestamp, sent)
        try:
            if os.write(self._descriptor, record) != RECORD_SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._cut_back()
            raise StateError(f"can't write {self._path}: {error.strerror}; no new handshake is possible until this is solved") from error
        self._size += RECORD_SIZE
        self._note(record)
        if self._size > len(HEADER) + RECORD_SIZE * (self._needed() + COMPACT_OVER):
            self._rewrite()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _note(self, record: bytes) -> None:
        known = self.sent if record[KEY_SIZE] else self.accepted
        static, timestamp = record[:KEY_SIZE], record[KEY_SIZE + 1 : KEY_SIZE + 1 + STAMP_SIZE]
        # a sent stamp may go back (a clock set right again); an accepted one never does
        if record[KEY_SIZE] or timestamp > known.get(static, b""):
            known[static] = timestamp

    def _needed(self) -> int:
        return len(self.accepted) + len(self.sent)

    def _live(self) -> Iterator[bytes]:
        groups: tuple[tuple[bool, Mapping[bytes, bytes]], ...] = ((False, self.accepted), (True, self.sent))
        for sent, known in groups:
            for static, timestamp in known.items():
                yield build_record(static, timestamp, sent)

    def _compact(self) -> None:
        write_private(self._path, HEADER + b"".join(self._live()))

    def _rewrite(self) -> None:
        """Compact while open. A full disk only puts it off: what counts is in the file already."""
        try:
            self._compact()
            fresh = open_private(self._path, os.O_WRONLY | os.O_APPEND)
        except StateError:
            return
        os.close(self._descriptor)
        self._descriptor = fresh
        self._size = os.fstat(fresh).st_size

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._size = os.fstat(self._descriptor).st_size
