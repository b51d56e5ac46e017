"""Archives out of a store and into it while no server runs on it: this process opens the store as a server would, and gives it back."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from calnet.errors import NotFoundError
from calnet.roles.server.actors import LOCAL
from calnet.roles.server.registry import Registry
from calnet.store.archive import read_archive
from calnet.store.opening import kind_in, open_store

_ACTIONS: Final = {"/local/restore": "server.restore", "/local/import": "server.import"}


def answer(path: str, body: bytes, *, directory: Path, store: str | None) -> bytes:
    """What `path` below /local of the admin socket answers (rest/local.py). `store` as the server's --store; None is the kind that the directory holds.

    NotFoundError where there is nothing to make an archive of; StateError where a server uses the directory after all.
    """
    kind = store or kind_in(directory)
    if path == "/local/backup" and (kind is None or ("://" not in kind and kind_in(directory) is None)):
        raise NotFoundError(f"no server runs on {directory}, and there is no store in it: --state-dir names another, --store a PostgreSQL database")
    archive = None if path == "/local/backup" else read_archive(body)  # before anything is opened or made
    registry = Registry(open_store(kind or "kv", directory), clock=time.time, random=os.urandom)
    try:
        if archive is None:
            return registry.backup()
        registry.restore(archive, _ACTIONS[path], LOCAL).result()
        return msgspec.json.encode({"restart_needed": False})
    finally:
        registry.close()
