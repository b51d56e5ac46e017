"""The embedded key-value store: LMDB in one file, opened once in this process, every commit synced (no WRITEMAP, no NOSYNC), one writer at a time.

The file is checked whole before LMDB maps it: LMDB trusts its pages, and a damaged or cut-off file could end the process instead of raising.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import lmdb
from lmdb import verify

from calnet import files
from calnet.errors import StateError
from calnet.store.copies import rewrite_with_copy
from calnet.store.documents import Result, Table, Transaction

FIRST_MAP_SIZE: Final = 16 * 1024 * 1024
"""Bytes of address space at first; doubled whenever it is full."""
FULL_BELOW: Final = 1024 * 1024
"""Bytes of free space below which a write cut short is laid to the full disk."""


class KvTransaction:
    """Transaction of `KvEngine`."""

    def __init__(self, transaction: lmdb.Transaction, tables: dict[Table, lmdb._Database]) -> None:
        self._transaction = transaction
        self._tables = tables

    def get(self, table: Table, key: bytes) -> bytes | None:
        value = self._transaction.get(key, db=self._tables[table])
        return None if value is None else bytes(value)

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value, db=self._tables[table])

    def delete(self, table: Table, key: bytes) -> None:
        self._transaction.delete(key, db=self._tables[table])

    def scan(self, table: Table, first: bytes = b"", *, before: bytes | None = None, newest_first: bool = False) -> Iterator[tuple[bytes, bytes]]:
        with self._transaction.cursor(db=self._tables[table]) as cursor:
            if newest_first:
                beyond = before is not None and cursor.set_range(before)
                if not (cursor.prev() if beyond else cursor.last()):
                    return
                for key, value in cursor.iterprev():
                    if bytes(key) < first:
                        return
                    yield bytes(key), bytes(value)
            elif cursor.set_range(first) if first else cursor.first():
                for key, value in cursor:
                    if before is not None and bytes(key) >= before:
                        return
                    yield bytes(key), bytes(value)


class KvEngine:
    """Engine on LMDB. The caller holds the lock that keeps other processes away."""

    shared = False

    def __init__(self, path: Path, *, map_size: int = FIRST_MAP_SIZE) -> None:
        """Open or make `path` (and `path`-lock beside it). StateError where it is no sound LMDB file."""
        self._path = path
        self._mutex = threading.Lock()
        for private in (path, path.with_name(path.name + "-lock")):
            os.close(files.open_private(private, os.O_RDWR | os.O_CREAT))
        size = path.stat().st_size
        if size:
            _check_sound(path)
        with self._explained("open"):
            self._environment = lmdb.open(
                str(path), subdir=False, map_size=max(map_size, 2 * size), max_dbs=len(Table), mode=files.FILE_MODE, metasync=True, sync=True, writemap=False
            )
        try:
            with self._explained("open"):
                self._tables = {table: self._environment.open_db(table.value.encode()) for table in Table}
        except StateError:
            self._environment.close()
            raise

    def read(self, action: Callable[[Transaction], Result]) -> Result:
        """See Engine."""
        with self._explained("read"), self._environment.begin() as transaction:
            return action(KvTransaction(transaction, self._tables))

    def write(self, action: Callable[[Transaction], Result]) -> Result:
        """See Engine."""
        with self._mutex, self._explained("write"):
            while True:
                try:
                    with self._environment.begin(write=True) as transaction:
                        return action(KvTransaction(transaction, self._tables))
                except lmdb.MapFullError:
                    self._environment.set_mapsize(self._environment.info()["map_size"] * 2)

    def rewrite(self, action: Callable[[Transaction], None], label: str) -> str:
        """See Engine. No other process writes between the copy and the action: the caller's lock keeps them away."""
        return rewrite_with_copy(self._path, label, self._copy, lambda: self.write(action))

    def _copy(self, path: Path, descriptor: int) -> None:
        with self._explained("copy"):
            self._environment.copyfd(descriptor)

    def watch(self, committed: Callable[[], None], message: Callable[[bytes], None]) -> None:
        """No other process commits here."""

    def send(self, message: bytes) -> None:
        """No other process is here to hear it."""

    def close(self) -> None:
        """See Engine."""
        with self._mutex:
            self._environment.close()

    @contextlib.contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            code = error.errno if isinstance(error, OSError) else error.code
            if code in (errno.ENOSPC, errno.EDQUOT) or (code == errno.EIO and self._disk_is_full()):
                raise StateError(f"can't {verb} {self._path}: no space left on that disk; free some and try again. Nothing was lost") from error
            raise StateError(f"can't {verb} {self._path}: {error}") from error

    def _disk_is_full(self) -> bool:
        """LMDB calls a write that was cut short an input/output error: see whether there was room for it."""
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize < FULL_BELOW


def _check_sound(path: Path) -> None:
    try:
        problems = verify.verify(str(path), subdir=False)  # type: ignore[no-untyped-call]
    except verify.VerifyError as error:
        problems = [str(error)]
    except OSError as error:
        raise StateError(f"can't read {path}: {error.strerror}") from error
    if problems:
        raise StateError(f"{path} is damaged ({problems[0]}): restore it from a backup")
