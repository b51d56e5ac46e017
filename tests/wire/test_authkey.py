"""Pre-auth keys as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import InvalidError
from calnet.model import ControlKey
from calnet.wire.authkey import AuthKey, format_auth_key, parse_auth_key

KEY = AuthKey(bytes(range(8)), bytes(range(20)), ControlKey(bytes(range(32))))


def test_format_is_the_documented_text() -> None:
    text = format_auth_key(KEY)
    assert text == "calnet-aaaqeayeaudaoaabaibqibiga4eascqlbqgq4dyqcejbgaabaibqibiga4eascqlbqgq4dyqcejbgfavcylrqgi2dmob2hq7"


@given(st.binary(min_size=60, max_size=60))
def test_parse_of_format_is_the_same_key(data: bytes) -> None:
    key = AuthKey(data[:8], data[8:28], ControlKey(data[28:]))
    assert parse_auth_key(format_auth_key(key)) == key
    assert parse_auth_key(f"  {format_auth_key(key).upper()}\n") == key


@pytest.mark.parametrize(
    "text", ["", "calnet-", "calnet", format_auth_key(KEY)[:-1], format_auth_key(KEY) + "a", format_auth_key(KEY)[7:], "calnet-" + "1" * 96]
)
def test_parse_of_anything_else_is_invalid(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_auth_key(text)


@given(st.text())
def test_parse_of_random_text_raises_only_invalid(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_auth_key("calnet-" + text[:95])


def test_repr_hides_the_secret() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)
