"""What REST serves beside JSON: metrics in Prometheus's format, and the readable documentation."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from calnet.metrics import Metric, rendered, single
from calnet.roles.server.rest.docs_page import CONTENT_SECURITY_POLICY, page

LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
LINE = re.compile(rf"[a-zA-Z_:][a-zA-Z0-9_:]*(\{{{LABEL}(,{LABEL})*\}})? [0-9.e+-]+")


def test_metrics_are_families_with_their_values() -> None:
    text = rendered([single("calnet_users", "gauge", "Users.", 3), Metric("calnet_nodes", "gauge", "Nodes.", {(("state", "active"), ("os", "linux")): 2.5})])
    assert text == (
        "# HELP calnet_users Users.\n# TYPE calnet_users gauge\ncalnet_users 3\n"
        '# HELP calnet_nodes Nodes.\n# TYPE calnet_nodes gauge\ncalnet_nodes{state="active",os="linux"} 2.5\n'
    )


@pytest.mark.parametrize("label", ['quote " and \\ backslash', "two\nlines", "\\n", "ä", "", '"} 9\nevil{x="'])
def test_label_of_any_text_stays_one_label_on_one_line(label: str) -> None:
    lines = rendered([Metric("calnet_x", "counter", "X.", {(("name", label),): 1})]).splitlines()
    assert len(lines) == 3
    assert LINE.fullmatch(lines[2])


class Reader(HTMLParser):
    """The page's tags, and where they lead."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids.add(values.get("id") or "")
        if tag == "a":
            self.links.append(values.get("href") or "")
        assert not any(name.startswith("on") for name in values)


HOSTILE = "</style><script>alert(1)</script>\"'&"


def document(text: str) -> dict[str, object]:
    """An OpenAPI document with this text wherever there is one."""
    schema = {"properties": {text: {"type": "string", "description": text}, "list": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}}}}
    parameter = {"name": text, "in": "query", "schema": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "description": text}
    answer = {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}}
    body = {"content": {"application/json": {"schema": {"type": text}}}}
    operation = {"tags": [text], "summary": text, "description": text, "parameters": [parameter], "requestBody": body, "responses": {"200": answer}}
    return {
        "info": {"title": text, "version": text, "description": text},
        "servers": [{"url": "/api/v1"}],
        "paths": {f"/{text}": {"get": operation}},
        "components": {"schemas": {"Thing": schema | {"description": text}}},
    }


def test_documentation_of_any_text_is_text_and_runs_nothing() -> None:
    reader = Reader()
    html = page(document(HOSTILE))
    reader.feed(html)
    assert "script" not in reader.tags
    assert reader.tags.count("style") == 1
    assert "alert(1)" in html
    assert "<script>" not in html


def test_documentation_links_lead_somewhere_and_its_style_is_the_one_allowed() -> None:
    reader = Reader()
    html = page(document("things"))
    reader.feed(html)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= reader.ids
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
