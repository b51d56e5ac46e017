"""Opening the store of a state directory: private, locked against a second server, of the kind asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from calnet import files
from calnet.errors import CalnetError, ConfigError
from calnet.store.documents import CURRENT, DocumentStore, Engine, Schema
from calnet.store.interface import Store

FILE_NAMES: Final[Mapping[str, str]] = {"kv": "store.mdb", "sqlite": "store.sqlite"}


def open_store(kind: str, directory: Path, *, schema: Schema = CURRENT) -> Store:
    """The store in `directory` (made 0700 where missing), `kind` being `kv` or `sqlite`.

    StateError where another server uses the directory, or the store is damaged or newer; ConfigError for an unknown kind, or where the directory holds a
    store of the other kind alone (which would look like an empty server).
    """
    if kind not in FILE_NAMES:
        raise ConfigError(f"no store of kind {kind!r} in this version: --store is one of {', '.join(FILE_NAMES)}")
    files.private_directory(directory)
    lock = files.PrivateLock(directory / "store.lock", f"another server uses this directory ({directory}): stop it, or choose another --state-dir")
    path = directory / FILE_NAMES[kind]
    try:
        _check_kind(kind, directory)
        engine = _engine(kind)(path)
        try:
            return DocumentStore(engine, place=str(path), copy_path=path.with_name(path.name + ".before-migration"), schema=schema, release=lock.close)
        except CalnetError:
            engine.close()
            raise
    except CalnetError:
        lock.close()
        raise


def _check_kind(kind: str, directory: Path) -> None:
    if (directory / FILE_NAMES[kind]).exists():
        return
    for other, name in FILE_NAMES.items():
        if (directory / name).exists():
            raise ConfigError(f"{directory} holds a store of kind {other}, not {kind}: start with --store {other}")


def _engine(kind: str) -> Callable[[Path], Engine]:
    """The engine's class; its library is loaded for the kind in use alone."""
    if kind == "kv":
        from calnet.store.kv import KvEngine

        return KvEngine
    from calnet.store.sql import SqlEngine

    return SqlEngine
