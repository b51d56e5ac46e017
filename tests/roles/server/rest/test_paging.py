"""Pages of rows: all of them once in order, whatever comes and goes between; hostile cursors."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import InvalidError
from calnet.roles.server.rest import models, paging
from calnet.roles.server.rest.models import NodesPage, Page, RoutesPage

Row = dict[str, Any]
page_of = partial(paging.page_of, sortable=("id", "name", "user", "node", "route"))
ROWS = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 99), "name": st.sampled_from(["a", "b", "ä", ""]), "user": st.sampled_from([None, "ann", "bob"])}),
    max_size=30,
    unique_by=lambda row: row["id"],
)


def all_of(rows: list[Row], query: Page, *, identity: tuple[str, ...] = ("id",)) -> list[Row]:
    """Page after page."""
    found: list[Row] = []
    for _ in range(100):
        page = page_of(rows, query, identity=identity)
        found += page["items"]
        if page["next"] is None:
            return found
        assert len(page["items"]) == query.limit
        query = type(query)(**{**{name: getattr(query, name) for name in query.__struct_fields__}, "cursor": page["next"]})
    raise AssertionError("the pages never end")


@given(ROWS, st.integers(1, 7), st.sampled_from(["", "id", "-id", "name", "-name", "user", "-user"]))
def test_pages_together_are_all_rows_in_order(rows: list[Row], limit: int, sort: str) -> None:
    field = sort.removeprefix("-") or "id"
    expected = sorted(
        rows, key=lambda row: (row[field] is not None, row[field] or "" if field != "id" else row[field], row["id"]), reverse=sort.startswith("-")
    )
    assert all_of(rows, Page(limit=limit, sort=sort)) == expected


@given(ROWS, st.sampled_from(["ann", "bob", "nobody"]))
def test_filters_are_equalities(rows: list[Row], user: str) -> None:
    assert [row["id"] for row in all_of(rows, NodesPage(user=user))] == sorted(row["id"] for row in rows if row["user"] == user)


def test_tag_is_one_of_the_tags() -> None:
    rows = [{"id": 1, "tags": ["tag:a", "tag:b"]}, {"id": 2, "tags": []}]
    assert [row["id"] for row in page_of(rows, NodesPage(tag="tag:b"))["items"]] == [1]


def test_rows_that_come_and_go_between_two_pages_shift_nothing() -> None:
    rows = [{"id": number} for number in (1, 3, 5, 7)]
    first = page_of(rows, Page(limit=2))
    assert [row["id"] for row in first["items"]] == [1, 3]
    changed = [{"id": number} for number in (0, 2, 4, 5, 6, 7)]  # the cursor's own row is gone
    assert [row["id"] for row in page_of(changed, Page(limit=9, cursor=first["next"]))["items"]] == [4, 5, 6, 7]


def test_several_fields_tell_rows_apart() -> None:
    rows = [{"node": node, "route": route, "approved": True} for node in (1, 2) for route in ("10.0.0.0/8", "fd00::/8")]
    assert all_of(rows, RoutesPage(limit=1), identity=("node", "route")) == rows


@pytest.mark.parametrize("sort", ["nothing", "tags", "-routes", "__class__", "id "])
def test_order_by_what_is_no_plain_field_is_refused(sort: str) -> None:
    with pytest.raises(InvalidError, match="sort"):
        page_of([{"id": 1, "tags": [], "routes": {}}], Page(sort=sort))
    with pytest.raises(InvalidError, match="there is id, name, user"):
        page_of([], Page(sort=sort))


def test_fields_to_sort_by_are_those_that_are_plain() -> None:
    assert models.sortable(models.Route) == ("node", "name", "route", "advertised", "approved", "primary", "online")
    assert {"routes", "tags", "addresses", "health"}.isdisjoint(models.sortable(models.Node))
    assert {"id", "last_seen", "online", "user"} <= set(models.sortable(models.Node))


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


CURSORS = ["x", "!", "e30", encoded([]), encoded([True]), encoded([1, 2, 3]), encoded([True, None, 1]), encoded({"a": 1}), encoded([True, [], 1]), "ä"]


@pytest.mark.parametrize("cursor", CURSORS)
def test_cursor_that_is_none_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidError, match="cursor"):
        page_of([{"id": 1}], Page(cursor=cursor))


@given(
    st.lists(st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.none() | st.lists(st.integers(), max_size=2), max_size=5).map(encoded)
    | st.text(max_size=50),
    st.sampled_from(["id", "-id", "name", "user"]),
)
def test_any_cursor_gives_a_page_or_is_refused(cursor: str, sort: str) -> None:
    rows = [{"id": number, "name": f"n{number}", "user": None if number % 2 else "ann"} for number in range(5)]
    try:
        page = page_of(rows, Page(cursor=cursor, sort=sort))
    except InvalidError:
        return
    assert all(row in rows for row in page["items"])
