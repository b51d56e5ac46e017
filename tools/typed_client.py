"""Writes calnet/roles/cli/api.py, the typed client of the REST API, from the server's own table of operations: python -m tools.typed_client [--check]."""

from __future__ import annotations

import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from msgspec import NODEFAULT, Struct, UnsetType
from msgspec.structs import fields

from calnet.roles.server.rest import models
from calnet.roles.server.rest.handlers import Handlers, operations
from calnet.roles.server.rest.operations import Operation

PLACE = Path(__file__).resolve().parents[1] / "calnet" / "roles" / "cli" / "api.py"
HEAD = '''"""The REST API, typed: a method for each operation. Written by `./dev client` from the server's table of operations: change that, not this."""

from __future__ import annotations

from calnet.roles.cli.rest import Rest, given, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypedDict
'''


class _Names:
    """Instead of handlers: of each, its name."""

    def __getattr__(self, name: str) -> str:
        return name


def client() -> str:
    """The module's text."""
    table = operations(cast(Handlers, _Names()))
    rows = dict.fromkeys(row for operation in table if operation.answer is not None for row in _structs(_row(operation)))
    typed = "\n".join(_typed_dict(row) for row in rows)
    methods = "".join(_method(operation) for operation in table)
    text = f'{HEAD}\n{typed}\n\nclass Api(Rest):\n    """See the module. Rows are JSON as it came: fields of a newer server are there too."""\n{methods}'
    command = (sys.executable, "-m", "ruff", "format", "--stdin-filename", str(PLACE), "-")
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _row(operation: Operation) -> type[Struct]:
    """What the operation gives: of a listing, its rows."""
    assert operation.answer is not None
    return cast(type[Struct], typing.get_args(_hints(operation.answer)["items"])[0]) if _is_listing(operation) else operation.answer


def _is_listing(operation: Operation) -> bool:
    return operation.answer is not None and {field.name for field in fields(operation.answer)} == {"items", "next"}


def _structs(struct: type[Struct]) -> Iterator[type[Struct]]:
    """The struct behind all that it is made of."""
    for hint in _hints(struct).values():
        yield from _structs_in(hint)
    yield struct


def _structs_in(hint: Any) -> Iterator[type[Struct]]:
    if isinstance(hint, type) and issubclass(hint, Struct):
        yield from _structs(hint)
    for part in typing.get_args(hint):
        yield from _structs_in(part)


def _hints(struct: type[Struct]) -> dict[str, Any]:
    return typing.get_type_hints(struct, vars(models))


def _text(hint: Any) -> str:
    """The annotation's text."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_text(part) for part in parts if part is not UnsetType)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, parts)).replace(chr(39), chr(34))}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_text, parts))}]"
    return "None" if hint is type(None) else str(hint.__name__)


def _typed_dict(struct: type[Struct]) -> str:
    lines = [f"    class {struct.__name__}(TypedDict):"]
    lines += [f"        {name}: {_text(hint)}" for name, hint in _hints(struct).items()]
    return "\n".join(lines) + "\n"


def _method(operation: Operation) -> str:
    name = cast(str, operation.handler)
    parts = operation.path.split("/")
    places = [_argument(part) for part in parts if part.startswith("{")]
    path = "/".join(f"{{quoted({_argument(part)})}}" if part.startswith("{") else part for part in parts)
    quoted = f'f"{path}"' if places else f'"{path}"'
    needed, wished = _arguments(operation)
    gives = "None" if operation.answer is None else f"list[{_row(operation).__name__}]" if _is_listing(operation) else operation.answer.__name__
    words = [*(f"{place}: str" for place in places)]
    named = [*(f"{one}: {hint}" for one, hint in needed), *(f"{one}: {hint} = None" for one, hint in wished)]
    if operation.guarded:
        named.append("etag: str | None = None")
    arguments = ", ".join(["self", *words, *(["*", *named] if named else [])])
    head = f'\n    def {name}({arguments}) -> {gives}:\n        """{operation.summary}."""\n'
    return head + _call(operation, quoted, gives, [one for one, _ in (*needed, *wished)])


def _argument(part: str) -> str:
    """The name of a path's parameter, where it is no name of Python's own."""
    return "id_" if part == "{id}" else part[1:-1]


def _arguments(operation: Operation) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Of body or query: (arguments that are needed, those that may be left out)."""
    struct = operation.body or operation.query
    needed, wished = [], []
    hints = _hints(struct)
    for field in fields(struct):
        if operation.body is None and field.name in ("limit", "cursor", "sort", "before", "after") and _is_listing(operation):
            continue
        text = _text(hints[field.name])
        if field.default is NODEFAULT and field.default_factory is NODEFAULT:
            needed.append((field.name, text))
        else:
            wished.append((field.name, text if text.endswith("| None") else f"{text} | None"))
    if operation.path == "/audit":
        wished.insert(0, ("limit", "int | None"))
    return needed, wished


def _call(operation: Operation, path: str, gives: str, names: list[str]) -> str:
    values = ", ".join(f'"{name}": {name}' for name in names)
    if operation.method == "GET":
        query = "".join(f", {name}={name}" for name in names)
        if operation.path == "/audit":
            return f"        rows: {gives} = self.newest({path}{query})\n        return rows\n"
        return f"        found: {gives} = self.{'list' if _is_listing(operation) else 'get'}({path}{query})\n        return found\n"
    body = f", given({{{values}}})" if operation.body is not None else ""
    etag = ", etag=etag" if operation.guarded else ""
    send = f'self.send("{operation.method}", {path}{body}{etag})'
    return f"        {send}\n" if gives == "None" else f"        found: {gives} = {send}\n        return found\n"


def main() -> int:
    text = client()
    if "--check" in sys.argv[1:]:
        return 0 if PLACE.read_text() == text else 1
    PLACE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
