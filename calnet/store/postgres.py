"""The store on PostgreSQL, through peewee and psycopg 3: several servers may share it.

Commits are made one after the other under an advisory lock, so that versions and audit numbers have no holes; each tells the other servers by NOTIFY. A
second connection, on a thread of its own, listens. A connection that was lost is made again at the next call; a commit whose answer was lost with it is
reported as failed, and whether it holds is seen by the version at the next catch-up.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import peewee
import psycopg

from calnet.errors import ConfigError, StateError
from calnet.store.copies import free_name
from calnet.store.documents import Result, Table, Transaction
from calnet.store.sql import SqlTransaction, models_of

log = logging.getLogger(__name__)

SCHEMA: Final = "calnet"
"""The database's schema that our tables are in."""
CHANNEL: Final = "calnet"
MAX_MESSAGE: Final = 4096
_LOCK: Final = 0x63616C6E6574
_CONNECT_S: Final = 5
_RETRY_S: Final = 1.0
_OPTIONS: Final[dict[str, Any]] = {
    "connect_timeout": _CONNECT_S,
    "application_name": "calnet",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": "-c synchronous_commit=on -c lock_timeout=20s -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s",
}


class PostgresEngine:
    """Engine on a PostgreSQL database. One connection, used under a lock by any thread, and one that listens once `watch` was called."""

    shared = True

    def __init__(self, url: str) -> None:
        """Connect to `postgresql://…` and make what is missing. ConfigError for a URL that is none; StateError says why the database can't be used."""
        self._url = url
        self.place = shown(url)
        self._own = os.urandom(8).hex()
        self._mutex = threading.Lock()
        self._database = peewee.PostgresqlDatabase(url, prefer_psycopg3=True, thread_safe=False, **_OPTIONS)
        self._models = models_of(self._database, SCHEMA)
        self._listener: _Listener | None = None
        try:
            with self._mutex, self._explained("open"), self._transaction():
                self._database.execute_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")  # type: ignore[no-untyped-call]
                self._database.create_tables(list(self._models.values()), safe=True)
        except StateError:
            self._database.close()
            raise

    def read(self, action: Callable[[Transaction], Result]) -> Result:
        """See Engine."""
        with self._mutex, self._explained("read"), self._transaction(read_only=True):
            return action(SqlTransaction(self._models))

    def write(self, action: Callable[[Transaction], Result]) -> Result:
        """See Engine."""
        with self._mutex, self._explained("write"), self._transaction():
            result = action(SqlTransaction(self._models))
            self._notify("c")
            return result

    def rewrite(self, action: Callable[[Transaction], None], label: str) -> str:
        """See Engine. The copy is a schema of the database, which may be on another machine, made in the action's own transaction: both hold, or neither."""
        with self._mutex, self._explained("migrate"), self._transaction():
            kept = self._copy(label)
            action(SqlTransaction(self._models))
            self._notify("c")
            return f"the schema {kept} of {self.place}"

    def watch(self, committed: Callable[[], None], message: Callable[[bytes], None]) -> None:
        """See Store."""
        self._listener = _Listener(self._url, self._own, committed, message)

    def send(self, message: bytes) -> None:
        """See Store."""
        if len(message) > MAX_MESSAGE:
            raise ValueError("a message to the other servers is at most 4 KiB")
        with self._mutex, self._explained("write"), self._connected():
            self._notify("m", base64.b64encode(message).decode())

    def close(self) -> None:
        """See Engine."""
        if self._listener is not None:
            self._listener.close()
        with self._mutex, self._explained("close"):
            self._database.close()

    def _copy(self, label: str) -> str:
        """Copy our schema to one of its own, keys and all, so that it can be renamed back; its name."""
        kept = free_name(f"{SCHEMA}_{label.replace('-', '_')}", self._has_schema)
        self._database.execute_sql(f"CREATE SCHEMA {kept}")  # type: ignore[no-untyped-call]
        for table in Table:
            self._database.execute_sql(f"CREATE TABLE {kept}.{table.value} (LIKE {SCHEMA}.{table.value} INCLUDING ALL)")  # type: ignore[no-untyped-call]
            self._database.execute_sql(f"INSERT INTO {kept}.{table.value} SELECT * FROM {SCHEMA}.{table.value}")  # type: ignore[no-untyped-call]
        return kept

    def _has_schema(self, name: str) -> bool:
        (found,) = self._database.execute_sql("SELECT to_regnamespace(%s) IS NOT NULL", (name,)).fetchone()  # type: ignore[no-untyped-call]
        return bool(found)

    def _notify(self, kind: str, text: str = "") -> None:
        self._database.execute_sql("SELECT pg_notify(%s, %s)", (CHANNEL, f"{kind}{self._own}{text}"))  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """A connection that answers; after an error of the connection, none."""
        if not self._database.is_connection_usable():
            self._database.close()
            self._database.connect()
        else:
            try:
                self._database.execute_sql("SELECT 1")  # type: ignore[no-untyped-call]
            except (peewee.OperationalError, peewee.InterfaceError):  # it was lost while nothing was asked
                self._database.close()
                self._database.connect()
        try:
            yield
        except (peewee.OperationalError, peewee.InterfaceError):
            with contextlib.suppress(peewee.PeeweeException, psycopg.Error):
                self._database.close()
            raise

    @contextlib.contextmanager
    def _transaction(self, *, read_only: bool = False) -> Iterator[None]:
        with self._connected(), self._database.atomic("REPEATABLE READ" if read_only else "READ COMMITTED"):
            if not read_only:
                self._database.execute_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))  # type: ignore[no-untyped-call]
            yield

    @contextlib.contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (peewee.PeeweeException, psycopg.Error) as error:
            raise StateError(f"can't {verb} {self.place}: {_reason(error)}") from error


class _Listener:
    """The thread that hears of the others' commits and messages. After each new connection `committed` is called, as some may have been missed."""

    def __init__(self, url: str, own: str, committed: Callable[[], None], message: Callable[[bytes], None]) -> None:
        self._url, self._own, self._committed, self._message = url, own, committed, message
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="calnet-store-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, **_OPTIONS) as connection:
                    self._listen(connection)
            except psycopg.Error as error:
                log.warning("store_listener_lost error=%s", _reason(error))
                self._stop.wait(_RETRY_S)

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(f"LISTEN {CHANNEL}")
        self._committed()
        while not self._stop.is_set():
            for notice in connection.notifies(timeout=0.25):
                self._heard(notice.payload)

    def _heard(self, payload: str) -> None:
        kind, sender, text = payload[:1], payload[1:17], payload[17:]
        if sender == self._own:
            return
        if kind == "c":
            self._committed()
        elif kind == "m":
            with contextlib.suppress(ValueError):  # whoever may write to the database may send anything
                self._message(base64.b64decode(text, validate=True))


def check_url(url: str) -> None:
    """ConfigError where `url` is no PostgreSQL URL."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("postgresql", "postgres") and len(parts.path) > 1 and (parts.port is None or parts.port > 0)
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        right = False
    if not right:
        raise ConfigError(f"--store {shown(url)}: write postgresql://USER@HOST/DATABASE, with ?passfile=FILE for the password (a PostgreSQL passfile)")


def reach(url: str) -> str:
    """The server's version, once this user was let into the database; StateError says why not. Changes nothing."""
    try:
        with psycopg.connect(url, **_OPTIONS) as connection:
            return str(connection.info.parameter_status("server_version"))
    except psycopg.Error as error:
        raise StateError(f"can't open {shown(url)}: {_reason(error)}") from error


def shown(url: str) -> str:
    """The URL without its password and parameters, for people."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "postgresql://…"
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{unquote(user.partition(':')[0])}{at}{host}{parts.path}"


def _reason(error: BaseException) -> str:
    """One line of what the server or driver says, with what to do where that is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    advice = (
        ("password authentication failed", "check the user and its password (?passfile=FILE in the URL, or PGPASSFILE)"),
        ("no password supplied", "give one by ?passfile=FILE in the URL, or PGPASSFILE"),
        ("does not exist", "create it (createdb, createuser), or name another in --store"),
        ("permission denied", "grant this user the right to create in that database"),
        ("Connection refused", "is PostgreSQL running there, and listening?"),
    )
    return next((f"{text}; {what}" for known, what in advice if known in text), text)
