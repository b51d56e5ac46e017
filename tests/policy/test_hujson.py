"""HuJSON: what it reads, where things stand, and every error with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.policy import hujson
from calnet.policy.hujson import HujsonError, Located, Member, Place, parse_hujson, plain

SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(categories=["L", "N", "P", "S"]))
JSON = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
SPACE = st.sampled_from(["", " ", "\n", "\t\r\n", '// a comment, with } and "\n', "/* one */", "/* of\nseveral * / lines **/", "/**/ /*/*/", "//\n"])


@given(JSON, st.booleans())
def test_json_is_read_as_json_is(value: object, indented: bool) -> None:
    assert plain(parse_hujson(json.dumps(value, indent=2 if indented else None))) == value
    assert plain(parse_hujson(json.dumps(value, ensure_ascii=False))) == value


@given(JSON, st.data())
def test_space_comments_and_trailing_commas_change_nothing(value: object, data: st.DataObject) -> None:
    def spaced() -> str:
        return data.draw(SPACE)

    def written(one: object) -> str:
        last = data.draw(st.sampled_from(["", ","]))
        if isinstance(one, dict):
            pairs = [f"{spaced()}{json.dumps(key)}{spaced()}:{spaced()}{written(item)}{spaced()}" for key, item in one.items()]
        elif isinstance(one, list):
            pairs = [f"{spaced()}{written(item)}{spaced()}" for item in one]
        else:
            return json.dumps(one)
        inside = ",".join(pairs) + (last + spaced() if pairs else spaced())
        return f"{{{inside}}}" if isinstance(one, dict) else f"[{inside}]"

    assert plain(parse_hujson(spaced() + written(value) + spaced())) == value


def test_every_value_and_key_has_its_place() -> None:
    found = parse_hujson('// first\n{ "a": [1,\n\n  "two" /* a\nb */, {}],\n\t"é": null}')
    assert found == Located(
        {
            "a": Member(Place(2, 3), Located((Located(1, Place(2, 9)), Located("two", Place(4, 3)), Located({}, Place(5, 7))), Place(2, 8))),
            "é": Member(Place(6, 2), Located(None, Place(6, 7))),
        },
        Place(2, 1),
    )


@pytest.mark.parametrize(
    ("text", "line", "column", "problem"),
    [
        ("", 1, 1, "a value is missing here"),
        ("// only\n", 2, 1, "a value is missing here"),
        ("{} {}", 1, 4, "something stands behind the end of the policy"),
        ("{}\n]", 2, 1, "something stands behind the end of the policy"),
        ("{", 1, 2, "} is missing at the end"),
        ("[1,\n", 2, 1, "] is missing at the end"),
        ("[1", 1, 3, "] is missing at the end"),
        ('{"a": 1', 1, 8, "} is missing at the end"),
        ("[1 2]", 1, 4, "a comma or ] belongs here"),
        ('{"a": 1 "b": 2}', 1, 9, "a comma or } belongs here"),
        ("[,]", 1, 2, "a value is missing here"),
        ("[1,,]", 1, 4, "a value is missing here"),
        ("{,}", 1, 2, "a key in quotes, or } belongs here"),
        ("{a: 1}", 1, 2, "a key in quotes, or } belongs here"),
        ('{"a" 1}', 1, 6, "a colon belongs behind 'a'"),
        ('{"a"}', 1, 5, "a colon belongs behind 'a'"),
        ('{"a":}', 1, 6, "a value is missing here"),
        ('{"a": 1,\n "b": 2,\n "a": 3}', 3, 2, "'a' stands twice, first in line 1"),
        ('["abc', 1, 2, "a text that does not end on its line, or holds a character that has to be escaped"),
        ('["a\nb"]', 1, 2, "a text that does not end on its line, or holds a character that has to be escaped"),
        ('["\\x"]', 1, 2, "a text that does not end on its line, or holds a character that has to be escaped"),
        ('["a\\u000a"]', 1, 2, "a text with a control character, or one that can't be seen"),
        ('["\\ud800"]', 1, 2, "a text with a control character, or one that can't be seen"),
        ("['a']", 1, 2, "\"'a']\" is no value"),
        ("[True]", 1, 2, "'True]' is no value"),
        ("[01]", 1, 3, "a comma or ] belongs here"),
        ("[+1]", 1, 2, "'+1]' is no value"),
        ("[NaN]", 1, 2, "'NaN]' is no value"),
        ("[1e9999]", 1, 7, "a comma or ] belongs here"),
        ("/* no end", 1, 1, "a comment that does not end"),
        ("[1] /*/", 1, 5, "a comment that does not end"),
        ("[\n/ 1]", 2, 1, "'/ 1]' is no value"),
        ("[1, \ud800]", 1, 5, "half of a surrogate pair is no character"),
        ("\ufeff{}", 1, 1, "'\\ufeff{}' is no value"),
        ("[" * 18, 1, 18, "too deep"),
    ],
)
def test_error_is_told_with_its_place(text: str, line: int, column: int, problem: str) -> None:
    with pytest.raises(HujsonError) as raised:
        parse_hujson(text)
    assert (raised.value.place, raised.value.problem) == (Place(line, column), problem)
    assert str(raised.value) == f"line {line}, column {column}: {problem}"


def test_size_depth_and_number_of_values_are_bounded() -> None:
    assert parse_hujson("[" * (hujson.MAX_DEPTH + 1) + "]" * (hujson.MAX_DEPTH + 1))
    assert parse_hujson("[" + "1," * (hujson.MAX_VALUES - 1) + "]")
    with pytest.raises(HujsonError, match="too many values"):
        parse_hujson("[" + "1," * hujson.MAX_VALUES + "]")
    with pytest.raises(HujsonError, match="too deep"):
        parse_hujson("[" * 100_000)
    assert parse_hujson("{}" + " " * (hujson.MAX_SIZE - 2))
    with pytest.raises(HujsonError, match="at most 524288 characters"):
        parse_hujson("{}" + " " * (hujson.MAX_SIZE - 1))


def test_one_long_line_or_many_short_ones_cost_no_more_than_their_length() -> None:
    count = hujson.MAX_VALUES - 1
    assert parse_hujson("[" + '"abcdef",' * count + "]")  # minutes, if each place were counted from the line's beginning
    assert parse_hujson("[" + "1,\n" * count + "]").place == Place(1, 1)
    with pytest.raises(HujsonError, match=f"line {count + 1}, "):
        parse_hujson("[" + "1,\n" * count)
    with pytest.raises(HujsonError):
        parse_hujson("/*" * (hujson.MAX_SIZE // 2))


@given(st.text() | st.text(st.sampled_from("{}[]\",:/*\\ \n1ae-.'u")))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_hujson(text)
    except HujsonError as error:
        assert error.place.line >= 1  # noqa: PT017  what must hold for the refusals among many draws
        assert error.place.column >= 1  # noqa: PT017
