"""The SQL store: the same tables through peewee, on SQLite (write-ahead log, every commit synced). PostgreSQL (postgres.py) shares all but the engine."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import peewee

from calnet import files
from calnet.errors import StateError
from calnet.store.copies import rewrite_with_copy
from calnet.store.documents import Result, Table, Transaction


class Row(peewee.Model):
    """One entry of a table."""

    key = peewee.BlobField(primary_key=True)
    value = peewee.BlobField()


class SqlTransaction:
    """Transaction of `SqlEngine`."""

    def __init__(self, models: dict[Table, type[Row]]) -> None:
        self._models = models

    def get(self, table: Table, key: bytes) -> bytes | None:
        model = self._models[table]
        row = model.select(model.value).where(model.key == key).tuples().first()
        return None if row is None else bytes(row[0])

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        model = self._models[table]
        model.insert(key=key, value=value).on_conflict(conflict_target=[model.key], update={model.value: value}).execute()

    def delete(self, table: Table, key: bytes) -> None:
        model = self._models[table]
        model.delete().where(model.key == key).execute()

    def scan(self, table: Table, first: bytes = b"", *, before: bytes | None = None, newest_first: bool = False) -> Iterator[tuple[bytes, bytes]]:
        model = self._models[table]
        rows = model.select(model.key, model.value).where(model.key >= first)
        if before is not None:
            rows = rows.where(model.key < before)
        for key, value in rows.order_by(model.key.desc() if newest_first else model.key).tuples().iterator():
            yield bytes(key), bytes(value)


class SqlEngine:
    """Engine on SQLite. One connection, used under a lock by any thread; the caller holds the lock that keeps other processes away."""

    shared = False

    def __init__(self, path: Path) -> None:
        """Open or make `path` (its `-wal` and `-shm` take its mode). StateError where it is no sound SQLite database."""
        self._place = path
        self._mutex = threading.Lock()
        os.close(files.open_private(path, os.O_RDWR | os.O_CREAT))
        for beside in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.close(files.open_private(path.with_name(path.name + beside), os.O_RDWR))
        self._database = peewee.SqliteDatabase(
            str(path), thread_safe=False, check_same_thread=False, pragmas={"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1}
        )
        self._models = models_of(self._database)
        try:
            with self._explained("open"):
                self._open()
        except StateError:
            self._database.close()
            raise

    def read(self, action: Callable[[Transaction], Result]) -> Result:
        """See Engine."""
        return self.write(action)

    def write(self, action: Callable[[Transaction], Result]) -> Result:
        """See Engine."""
        with self._mutex, self._explained("write"), self._database.atomic("IMMEDIATE"):
            return action(SqlTransaction(self._models))

    def rewrite(self, action: Callable[[Transaction], None], label: str) -> str:
        """See Engine. No other process writes between the copy and the action: the caller's lock keeps them away."""
        return rewrite_with_copy(self._place, label, self._copy, lambda: self.write(action))

    def _copy(self, path: Path, descriptor: int) -> None:
        with self._mutex, self._explained("copy"):
            self._database.execute_sql("VACUUM INTO ?", (str(path),))  # type: ignore[no-untyped-call]

    def watch(self, committed: Callable[[], None], message: Callable[[bytes], None]) -> None:
        """No other process commits here."""

    def send(self, message: bytes) -> None:
        """No other process is here to hear it."""

    def close(self) -> None:
        """See Engine."""
        with self._mutex, self._explained("close"):
            self._database.close()

    def _open(self) -> None:
        self._database.connect()
        (problem,) = self._database.execute_sql("PRAGMA quick_check(1)").fetchone()  # type: ignore[no-untyped-call]
        if problem != "ok":
            raise StateError(f"{self._place} is damaged ({' '.join(str(problem).split())}): restore it from a backup")
        self._database.create_tables(list(self._models.values()), safe=True)

    @contextlib.contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except peewee.PeeweeException as error:
            text = _story(error)
            if "disk is full" in text:
                raise StateError(f"can't {verb} {self._place}: no space left on that disk; free some and try again. Nothing was lost") from error
            if "malformed" in text or "not a database" in text:
                raise StateError(f"{self._place} is damaged ({text}): restore it from a backup") from error
            raise StateError(f"can't {verb} {self._place}: {text}") from error


def models_of(database: peewee.Database, schema: str | None = None) -> dict[Table, type[Row]]:
    """The model of each table, bound to `database`."""
    return {table: _model(table, database, schema) for table in Table}


def _story(error: BaseException) -> str:
    """The error's text with those of the errors it arose from: SQLite rolls back by itself when the disk is full, and then the second rollback fails."""
    texts = [str(error)]
    while error.__context__ is not None:
        error = error.__context__
        texts.append(str(error))
    return "; ".join(dict.fromkeys(reversed(texts)))


def _model(table: Table, database: peewee.Database, schema: str | None) -> type[Row]:
    meta = type("Meta", (), {"database": database, "table_name": table.value, "schema": schema})
    model: type[Row] = type(f"{table.value.capitalize()}Row", (Row,), {"Meta": meta})
    return model
