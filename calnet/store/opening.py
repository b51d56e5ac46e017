"""Opening a store: in a state directory, private and locked against a second server; or a PostgreSQL database, which servers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from calnet import files
from calnet.errors import CalnetError, ConfigError
from calnet.store.documents import DocumentStore, Engine
from calnet.store.migrations import CURRENT, Schema

FILE_NAMES: Final[Mapping[str, str]] = {"kv": "store.mdb", "sqlite": "store.sqlite"}


def open_store(kind: str, directory: Path, *, schema: Schema = CURRENT) -> DocumentStore:
    """The store in `directory` (made 0700 where missing), `kind` being `kv` or `sqlite`, or the one that a `postgresql://…` URL names.

    StateError where another server uses the directory, or the store is damaged, newer or out of reach; ConfigError for an unknown kind, or where the
    directory holds a store of another kind alone (which would look like an empty server).
    """
    if not is_kind(kind):
        raise ConfigError(f"no store of kind {kind!r}: --store is one of {', '.join(FILE_NAMES)}, or postgresql://USER@HOST/DATABASE")
    files.private_directory(directory)
    lock = files.PrivateLock(directory / "store.lock", f"another server uses this directory ({directory}): stop it, or choose another --state-dir")
    try:
        engine, place = _postgres(kind) if "://" in kind else _embedded(kind, directory)
        try:
            return DocumentStore(engine, place=place, schema=schema, release=lock.close)
        except CalnetError:
            engine.close()
            raise
    except CalnetError:
        lock.close()
        raise


def kind_in(directory: Path) -> str | None:
    """The kind of the store in `directory`; None where there is none."""
    return next((kind for kind, name in FILE_NAMES.items() if (directory / name).exists()), None)


def is_kind(kind: str) -> bool:
    """Whether `--store` may be this."""
    return kind in FILE_NAMES or kind.startswith(("postgresql://", "postgres://"))


def _embedded(kind: str, directory: Path) -> tuple[Engine, str]:
    _check_kind(kind, directory)
    path = directory / FILE_NAMES[kind]
    return _engine(kind)(path), str(path)


def _postgres(url: str) -> tuple[Engine, str]:
    try:
        from calnet.store.postgres import PostgresEngine, check_url
    except ImportError as error:  # psycopg finds no libpq
        reason = str(error).rpartition("implementation: ")[2].strip()  # psycopg tells of each way that it tried: the last is libpq
        raise ConfigError(f"PostgreSQL's client library can't be loaded ({reason}): apt install libpq5, or choose another --store") from error
    check_url(url)
    engine = PostgresEngine(url)
    return engine, engine.place


def _check_kind(kind: str, directory: Path) -> None:
    if (directory / FILE_NAMES[kind]).exists():
        return
    if (other := kind_in(directory)) is not None:
        raise ConfigError(f"{directory} holds a store of kind {other}, not {kind}: start with --store {other}")


def _engine(kind: str) -> Callable[[Path], Engine]:
    """The engine's class; its library is loaded for the kind in use alone."""
    if kind == "kv":
        from calnet.store.kv import KvEngine

        return KvEngine
    from calnet.store.sql import SqlEngine

    return SqlEngine
