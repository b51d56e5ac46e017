"""What a server that stops leaves to the one that starts after it in the same state directory: who was here, and what each node was told.

Nodes come back naming the version of the netmap they hold. A server that knows what that was says what changed since, which mostly is nothing, instead of
sending everybody everything; and as it expects the nodes back, their going and coming is no news for the others. The file is read once and removed: after a
crash there is none, and netmaps are sent whole. What it says is compared with what the store holds, so that it may be of any age.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from calnet.errors import StateError, WireError
from calnet.files import read_private, write_private
from calnet.model import Netmap, NodeId
from calnet.roles.server.netmaps import Kept, Presence, View, rest_digest
from calnet.wire.endpoints import parse_endpoints

log = logging.getLogger(__name__)

FILE_NAME: Final = "handover"
MAX_SIZE: Final = 256 << 20

Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _Present(msgspec.Struct, frozen=True, array_like=True):
    since: float | None
    endpoints: tuple[str, ...]
    health: tuple[dict[str, str], ...]


class _View(msgspec.Struct, frozen=True, array_like=True):
    version: Id
    checked: Id
    seen: bytes
    rest: bytes


class _Document(msgspec.Struct, frozen=True):
    last: Id
    changed: dict[Id, tuple[Id, bytes]]
    present: dict[Id, _Present]
    views: dict[Id, tuple[_View, ...]]


@dataclass(frozen=True, slots=True)
class Handover:
    """See the module."""

    kept: Kept
    present: dict[NodeId, Presence]
    """The nodes that were here."""
    views: Mapping[NodeId, tuple[View, ...]]
    """What each node was told last, the newest at the end; `rest` as a digest."""


def write_handover(directory: Path, handover: Handover) -> None:
    """Leave it in the state directory; StateError where the disk refuses."""
    document = _Document(
        handover.kept.last,
        {int(node): change for node, change in handover.kept.changed.items()},
        {node: _Present(here.since, tuple(map(str, here.endpoints)), here.health) for node, here in handover.present.items()},
        {node: tuple(map(_written, views)) for node, views in handover.views.items()},
    )
    write_private(directory / FILE_NAME, zlib.compress(msgspec.msgpack.encode(document), 1))


def take_handover(directory: Path) -> Handover | None:
    """What the last server left, once; None where there is nothing of use."""
    path = directory / FILE_NAME
    try:
        packed = read_private(path)
        if packed is None:
            return None
        path.unlink()
        unpacking = zlib.decompressobj()
        document = msgspec.msgpack.decode(unpacking.decompress(packed, MAX_SIZE), type=_Document)
        present = {NodeId(node): _presence(here) for node, here in document.present.items()}
    except (OSError, StateError, zlib.error, msgspec.DecodeError, RecursionError, WireError) as error:
        log.warning("handover_not_used reason=%s", error)
        return None
    kept = Kept(document.last, {NodeId(node): change for node, change in document.changed.items()})
    return Handover(kept, present, {NodeId(node): tuple(map(_read, views)) for node, views in document.views.items()})


def _presence(here: _Present) -> Presence:
    return Presence(online=True, awaited=True, since=here.since, endpoints=parse_endpoints(here.endpoints), health=here.health)


def _written(view: View) -> _View:
    rest = rest_digest(view.rest) if isinstance(view.rest, Netmap) else view.rest
    return _View(view.version, view.checked, view.seen.to_bytes((view.seen.bit_length() + 7) // 8, "little"), rest)


def _read(view: _View) -> View:
    return View(view.version, view.checked, int.from_bytes(view.seen, "little"), view.rest)
