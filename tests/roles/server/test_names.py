"""Names, tags and what nodes say of themselves."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import InvalidError
from calnet.roles.server.names import check_name, check_tags, free_name, name_from_hostname, printable


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("alice", "alice"),
        ("Alice.example.org", "alice"),
        ("Bob's PC", "bob-s-pc"),
        ("--x--", "x"),
        ("", "node"),
        (".", "node"),
        ("ö", "node"),
        ("7", "node-7"),
        ("a" * 80, "a" * 63),
        ("1" * 63, "node-" + "1" * 58),
        ("a" * 62 + "-b", "a" * 62),
    ],
)
def test_name_from_hostname_is_the_nearest_label(hostname: str, name: str) -> None:
    assert name_from_hostname(hostname) == name


@given(st.text(max_size=100))
def test_name_from_any_hostname_is_a_name(hostname: str) -> None:
    name = name_from_hostname(hostname)
    assert check_name(name) == name


@given(st.text(max_size=100), st.integers(0, 30))
def test_free_name_is_a_free_name(hostname: str, count: int) -> None:
    taken: set[str] = set()
    for _ in range(count):
        name = free_name(name_from_hostname(hostname), taken)
        assert name not in taken
        assert check_name(name) == name
        taken.add(name)


def test_tags_are_sorted_and_each_once() -> None:
    assert check_tags(("tag:b", "tag:a", "tag:b")) == ("tag:a", "tag:b")


@pytest.mark.parametrize("tag", ["", "tag:", "web", "tag:A", "tag:-a", "tag:a-", "tag:a b", "tag:a\n", "tag:" + "a" * 60])
def test_bad_tag_is_invalid(tag: str) -> None:
    with pytest.raises(InvalidError):
        check_tags((tag,))


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]", shown)
    assert len(shown) <= 255
