"""HuJSON: JSON (RFC 8259) with comments and trailing commas, as Tailscale's policy files are written; every value with its place in the text. Pure.

No kept library tells the places, and a policy that is refused has to say where. Bounded in length, depth and number of values. Error contract: HujsonError,
with line and column, and nothing else.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from calnet.errors import InvalidError

MAX_SIZE: Final = 512 * 1024
"""Characters of a text."""
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 50_000

_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_WORD: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?|true|false|null")


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column, from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Located:
    """A value and where it begins. `value` is None, a bool, number or string, a tuple of Located, or (for an object) a dict of key → Member."""

    value: object
    place: Place


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an object: where its key stands, and its value."""

    place: Place
    located: Located


class HujsonError(InvalidError):
    """The text is no HuJSON; `place` is where."""

    def __init__(self, text: str, place: Place) -> None:
        super().__init__(f"line {place.line}, column {place.column}: {text}")
        self.problem = text
        self.place = place


def plain(located: Located) -> object:
    """The value as `json.dumps` takes it, without the places."""
    value = located.value
    if isinstance(value, dict):
        return {key: plain(member.located) for key, member in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def parse_hujson(text: str) -> Located:
    """The one value of the text, with whatever space and comments around it."""
    return _Reader(text).document()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._values = 0
        self._line, self._line_at, self._counted = 1, 0, 0
        if len(text) > MAX_SIZE:
            raise HujsonError(f"a policy has at most {MAX_SIZE} characters", Place(1, 1))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self._at = error.start
            raise self._error("half of a surrogate pair is no character") from error

    def document(self) -> Located:
        self._skip()
        found = self._value(0)
        self._skip()
        if self._at < len(self._text):
            raise self._error("something stands behind the end of the policy")
        return found

    def _value(self, depth: int) -> Located:
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            raise self._error("too deep" if depth > MAX_DEPTH else "too many values")
        place, first = self._place(), self._text[self._at : self._at + 1]
        if first == "{":
            return Located(self._object(depth), place)
        if first == "[":
            return Located(self._list(depth), place)
        if first == '"':
            return Located(self._string(), place)
        word = _WORD.match(self._text, self._at)
        if word is None:
            raise self._error("a value is missing here" if first in ("", "}", "]", ",", ":") else f"{self._text[self._at : self._at + 12]!r} is no value")
        self._at = word.end()
        return Located(json.loads(word[0]), place)

    def _object(self, depth: int) -> dict[str, Member]:
        members: dict[str, Member] = {}
        self._at += 1
        while not self._closes("}"):
            place = self._place()
            if self._text[self._at : self._at + 1] != '"':
                raise self._error("a key in quotes, or } belongs here")
            key = self._string()
            if key in members:
                raise HujsonError(f"{key!r} stands twice, first in line {members[key].place.line}", place)
            self._skip()
            if self._text[self._at : self._at + 1] != ":":
                raise self._error(f"a colon belongs behind {key!r}")
            self._at += 1
            self._skip()
            members[key] = Member(place, self._value(depth + 1))
            self._comma("}")
        return members

    def _list(self, depth: int) -> tuple[Located, ...]:
        items: list[Located] = []
        self._at += 1
        while not self._closes("]"):
            items.append(self._value(depth + 1))
            self._comma("]")
        return tuple(items)

    def _closes(self, bracket: str) -> bool:
        self._skip()
        if self._text[self._at : self._at + 1] == bracket:
            self._at += 1
            return True
        if self._at >= len(self._text):
            raise self._error(f"{bracket} is missing at the end")
        return False

    def _comma(self, bracket: str) -> None:
        self._skip()
        following = self._text[self._at : self._at + 1]
        if following == ",":
            self._at += 1
        elif following != bracket:
            raise self._error(f"a comma or {bracket} belongs here" if following else f"{bracket} is missing at the end")

    def _string(self) -> str:
        found = _STRING.match(self._text, self._at)
        if found is None:
            raise self._error("a text that does not end on its line, or holds a character that has to be escaped")
        value: str = json.loads(found[0])
        if not value.isprintable():
            raise self._error("a text with a control character, or one that can't be seen")
        self._at = found.end()
        return value

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = self._at if found is None else found.end()
        if self._text.startswith("/*", self._at):
            raise self._error("a comment that does not end")

    def _place(self) -> Place:
        breaks = self._text.count("\n", self._counted, self._at)
        if breaks:
            self._line += breaks
            self._line_at = self._text.rindex("\n", self._counted, self._at) + 1
        self._counted = self._at
        return Place(self._line, self._at - self._line_at + 1)

    def _error(self, text: str) -> HujsonError:
        return HujsonError(text, self._place())
