"""The readable page of the OpenAPI document: one HTML text without scripts, that loads nothing from anywhere. Pure."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any, Final

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--link:#0b6bcb}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h1{margin-bottom:0}h2{border-bottom:1px solid var(--line);margin-top:2.5rem;text-transform:capitalize}
nav a{margin-right:1rem}a{color:var(--link)}
details{border:1px solid var(--line);border-radius:.4rem;margin:.5rem 0;padding:.4rem .8rem}summary{cursor:pointer}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{background:var(--soft);padding:.6rem;overflow:auto}
.method{display:inline-block;min-width:4.2rem;font-weight:600}table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid var(--line);padding:.25rem .5rem;text-align:left;vertical-align:top}
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def page(document: dict[str, Any]) -> str:
    """The page of this OpenAPI document."""
    schemas = document["components"]["schemas"]
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(method.upper(), path, operation))
    sections = "".join(f'<h2 id="{escape(name)}">{escape(name)}</h2>{"".join(items)}' for name, items in groups.items())
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a> ' for name in (*groups, "types"))
    types = "".join(_schema(name, schema) for name, schema in schemas.items())
    info, base = document["info"], escape(document["servers"][0]["url"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} API</h1><p>Version {escape(info['version'])}. {escape(info['description'])}</p>"
        f'<p>Below <code>{base}</code>; the document for programs: <a href="{base}/openapi.json">openapi.json</a>. '
        "Authenticate with <code>Authorization: Bearer calnet-token-…</code>: <code>calnet admin tokens create NAME</code> makes one.</p>"
        f'<nav>{links}</nav>{sections}<h2 id="types">types</h2>{types}</body></html>'
    )


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        _row(f"<code>{escape(one['name'])}</code>", escape(one["in"]), _type(one["schema"]), escape(one.get("description", "")))
        for one in operation.get("parameters", ())
    )
    table = f"<table><tr><th>parameter</th><th>in</th><th>type</th><th></th></tr>{parameters}</table>" if parameters else ""
    body = operation.get("requestBody")
    taken = "" if body is None else f"<p>Body: {_type(body['content']['application/json']['schema'])}</p>"
    answers = "".join(_row(status, escape(answer["description"]), _content(answer)) for status, answer in operation["responses"].items())
    return (
        f'<details><summary><span class="method">{method}</span> <code>{escape(path)}</code> {escape(operation["summary"])}</summary>'
        f"<p>{escape(operation['description'])}</p>{table}{taken}<table>{answers}</table></details>"
    )


def _content(answer: dict[str, Any]) -> str:
    return " ".join(_type(content["schema"]) for content in answer.get("content", {}).values())


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(
        _row(f"<code>{escape(field)}</code>{'' if field in required else ' (optional)'}", _type(value), escape(value.get("description", "")))
        for field, value in schema.get("properties", {}).items()
    )
    title, text = escape(name), escape(schema.get("description", ""))
    return f'<details id="type-{title}"><summary><code>{title}</code></summary><p>{text}</p><table>{rows}</table></details>'


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#type-{escape(name)}">{escape(name)}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "any value")))
