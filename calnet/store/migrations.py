"""The schema: the shape of the documents by its number, and the steps that bring older documents to it, those of a store and those of an archive alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from calnet.errors import StateError

Documents = dict[str, dict[str, dict[str, Any]]]
"""kind → id as text → field → value, as MessagePack has it."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The shape of the documents: its number, and for each older number the function that brings documents of it to the next."""

    version: int
    migrations: Mapping[int, Callable[[Documents], Documents]] = field(default_factory=dict)


def _with_identities(documents: Documents) -> Documents:
    """Schema 1 knew no sign-in: its users were made by hand, and so were their roles. The new fields' defaults say just that."""
    for user in documents.get("user", {}).values():
        user["role_by_hand"] = True
    return documents


CURRENT: Final = Schema(2, {1: _with_identities})


def migrated(documents: Documents, found: int, schema: Schema) -> Documents:
    """Documents of the schema `found`, as those of `schema`, which is not older. StateError where there is no step, or one fails."""
    for number in range(found, schema.version):
        try:
            documents = schema.migrations[number](documents)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the step from schema {number} failed ({type(error).__name__}: {error})") from error
    return documents
