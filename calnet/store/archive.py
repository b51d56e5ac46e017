"""Archives: all that a store holds, records and audit log, in one file that any kind of store can take in again. One of an older schema is brought to the
present one by the steps that an old store is; one of a newer schema is refused.

    "calnet archive 1\\n" | BLAKE2s of the payload (32 bytes) | payload, zlib
    payload: MessagePack map {schema, created, records: [[kind, document], …], audit: [document, …]}

It holds secrets, the server's private key among them: whoever writes one to a file makes that 0600.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from calnet.errors import InvalidError, StateError
from calnet.store.documents import KINDS
from calnet.store.interface import AuditRecord, Record, Store, unique_values
from calnet.store.migrations import CURRENT, Documents, Schema, migrated

MAGIC: Final = b"calnet archive 1\n"
MAX_PAYLOAD: Final = 4 << 30
_DIGEST_SIZE: Final = 32
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_AUDIT_PAGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive holds, sound in itself. `created` is Unix seconds."""

    created: float
    records: tuple[Record, ...]
    audit: tuple[AuditRecord, ...]


def write_archive(store: Store, now: float) -> bytes:
    """The archive of all that the store holds at one moment."""
    commit, records = store.load()
    audit: list[AuditRecord] = []
    while len(audit) < commit.audit:
        page = store.audit(after=audit[-1].seq if audit else 0, before=commit.audit + 1, limit=_AUDIT_PAGE)
        if not page:
            break
        audit += page
    document = {
        "schema": CURRENT.version,
        "created": now,
        "records": [[_NAMES[type(record)], record] for record in records],
        "audit": audit,
    }
    payload = msgspec.msgpack.encode(document)
    return MAGIC + hashlib.blake2s(payload).digest() + zlib.compress(payload, 6)


def read_archive(data: bytes, schema: Schema = CURRENT) -> Archive:
    """The archive behind these bytes, its records those of `schema`. InvalidError where they are none, damaged, or of a newer Calnet. Nothing is taken of one
    that is not whole."""
    if not data.startswith(MAGIC):
        raise InvalidError("that is no archive of Calnet (or a newer one's): make one with `calnet.pyz admin backup FILE`")
    digest, packed = data[len(MAGIC) :][:_DIGEST_SIZE], data[len(MAGIC) + _DIGEST_SIZE :]
    try:
        unpacking = zlib.decompressobj()
        payload = unpacking.decompress(packed, MAX_PAYLOAD)
        if not unpacking.eof or not hmac.compare_digest(hashlib.blake2s(payload).digest(), digest):
            raise InvalidError("that archive is damaged: its checksum does not hold")
        return _archive(msgspec.msgpack.decode(payload), schema)
    except (zlib.error, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise InvalidError(f"that archive is damaged ({error})") from error


def _archive(document: dict[str, Any], schema: Schema) -> Archive:
    found = int(document["schema"])
    if found > schema.version:
        raise InvalidError(f"that archive was written by a newer Calnet (schema {found}, this one knows {schema.version}): use that version")
    try:
        documents = migrated(_documents(document["records"]), found, schema)
    except StateError as error:
        raise InvalidError(f"that archive could not be brought from schema {found} to {schema.version}: {error}") from error
    records = tuple(msgspec.convert(row, KINDS[kind]) for kind, rows in documents.items() for row in rows.values())
    _check_unique(records)
    return Archive(float(document["created"]), records, tuple(msgspec.convert(document["audit"], list[AuditRecord])))


def _documents(rows: list[tuple[str, dict[str, Any]]]) -> Documents:
    documents: Documents = {}
    for kind, row in rows:
        if documents.setdefault(kind, {}).setdefault(str(row["id"]), row) is not row:
            raise InvalidError("that archive is damaged: two of its records have one id")
    return documents


def _check_unique(records: Sequence[Record]) -> None:
    seen: set[tuple[str, bytes]] = set()
    for record in records:
        values = set(unique_values(record))
        if seen & values:
            raise InvalidError("that archive is damaged: two of its records have one name, key or address")
        seen |= values
