"""Pages of rows: filtered, sorted and cut, with a cursor that stays right when rows come and go between two pages. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from calnet.errors import InvalidError
from calnet.roles.server.rest.models import Page

Row = dict[str, Any]
_PAGE_FIELDS = ("limit", "cursor", "sort")


def page_of(rows: Iterable[Row], query: Page, *, sortable: Collection[str], identity: tuple[str, ...] = ("id",)) -> dict[str, Any]:
    """{"items", "next"}: the rows that match the query's filters, in its order, after its cursor. `sortable` are the fields that rows can be sorted by,
    `identity` those that tell them apart.

    InvalidError for a cursor that is none, and for a field that can't be sorted by.
    """
    wanted = {name: value for name, value in msgspec.to_builtins(query).items() if name not in _PAGE_FIELDS}
    found = [row for row in rows if all(_matches(row, name, value) for name, value in wanted.items())]
    descending, name = query.sort.startswith("-"), query.sort.removeprefix("-") if query.sort else identity[0]
    if name not in sortable:
        raise InvalidError(f"sort: there is no order by {name!r}: there is {', '.join(sortable)}, each with - before it for descending")
    keyed = sorted(((_key(row, name, identity), row) for row in found), key=lambda pair: pair[0], reverse=descending)
    if query.cursor:
        at = _parse(query.cursor)
        keyed = [pair for pair in keyed if (_comparable(pair[0], at) and (pair[0] < at if descending else pair[0] > at))]
    items = keyed[: query.limit]
    more = len(keyed) > len(items)
    return {"items": [row for _, row in items], "next": _cursor(items[-1][0]) if more and items else None}


def _matches(row: Row, name: str, value: Any) -> bool:
    if name == "tag":
        return value in row["tags"]
    return bool(row.get(name) == value)


def _key(row: Row, name: str, identity: tuple[str, ...]) -> list[Any]:
    value = row[name]
    return [value is not None, "" if value is None else value, *(row[field] for field in identity)]


def _comparable(left: list[Any], right: list[Any]) -> bool:
    """A cursor of another order compares with nothing: its page is empty."""
    return [isinstance(item, str) for item in left[2:]] == [isinstance(item, str) for item in right[2:]] and (
        left[0] != right[0] or isinstance(left[1], str) == isinstance(right[1], str)
    )


def _cursor(key: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def _parse(text: str) -> list[Any]:
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise InvalidError("cursor: give the `next` of the page before, unchanged") from error
    if not isinstance(found, list) or len(found) < 3 or not isinstance(found[0], bool) or not all(isinstance(item, str | int | float) for item in found[1:]):
        raise InvalidError("cursor: give the `next` of the page before, unchanged")
    return found
