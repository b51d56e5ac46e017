"""What people see, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.roles.cli import show

BOB: show.Json = {
    "name": "bob",
    "user": "admin",
    "os": "linux",
    "ip": "100.70.0.2",
    "online": True,
    "path": "direct",
    "endpoint": "203.0.113.9:41641",
    "tx_bytes": 1234,
    "rx_bytes": 5678,
    "tags": [],
}


def line_of(**changes: object) -> str:
    return show.status_lines({"state": "running", "peers": [{**BOB, **changes}]})[0]


def test_status_line_of_a_direct_peer() -> None:
    assert line_of() == "100.70.0.2  bob  admin@  linux  active; direct 203.0.113.9:41641, tx 1234 rx 5678"


def test_status_line_of_a_relayed_peer() -> None:
    assert line_of(path="relay") == "100.70.0.2  bob  admin@  linux  active; relay, tx 1234 rx 5678"


def test_status_line_of_a_peer_whose_path_was_left_says_why() -> None:
    line = line_of(path="relay", path_note="UDP is throttled\nhere")
    assert line == "100.70.0.2  bob  admin@  linux  active; relay (UDP is throttled\\nhere), tx 1234 rx 5678"


def test_status_line_of_an_idle_peer() -> None:
    assert line_of(path="none") == "100.70.0.2  bob  admin@  linux  idle"


def test_status_line_of_an_offline_peer() -> None:
    assert line_of(path="none", online=False, last_seen="2026-01-01T00:00:00Z") == "100.70.0.2  bob  admin@  linux  offline, last seen 2026-01-01T00:00:00Z"
    assert line_of(path="none", online=False, last_seen=None) == "100.70.0.2  bob  admin@  linux  offline"


def test_status_line_of_a_tagged_peer_names_its_tags() -> None:
    assert "  tag:a,tag:b  " in line_of(user=None, tags=["tag:a", "tag:b"])


def test_status_columns_are_aligned() -> None:
    lines = show.status_lines({"state": "running", "peers": [BOB, {**BOB, "ip": "100.70.0.113", "name": "caroline"}]})
    assert [line.index("admin@") for line in lines] == [24, 24]


def test_status_that_is_not_running_says_what_to_do() -> None:
    assert "calnet.pyz up" in show.status_lines({"state": "stopped"})[0]
    assert show.status_lines({"state": "strange"}) == ["state: strange"]


@pytest.mark.parametrize(
    ("pong", "line"),
    [
        ({"peer": "bob", "ip": "100.70.0.2", "path": "relay", "endpoint": None, "rtt_ms": 38.4}, "pong from bob (100.70.0.2) via relay in 38ms"),
        (
            {"peer": "bob", "ip": "100.70.0.2", "path": "direct", "endpoint": "203.0.113.9:41641", "rtt_ms": 12.0},
            "pong from bob (100.70.0.2) via 203.0.113.9:41641 in 12ms",
        ),
        ({"peer": "bob", "ip": "100.70.0.2", "path": "direct", "endpoint": "[::1]:9", "rtt_ms": 0.2}, "pong from bob (100.70.0.2) via [::1]:9 in 1ms"),
    ],
)
def test_pong_line(pong: show.Json, line: str) -> None:
    assert show.pong_line(pong) == line


@given(st.text())
def test_clean_text_is_printable_and_the_same_if_it_was(text: str) -> None:
    assert show.clean(text).isprintable()
    assert not text.isprintable() or show.clean(text) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
KEYS = st.sampled_from([*BOB, "last_seen", "state", "peers", "health", "severity", "text"])


@given(st.dictionaries(KEYS, JSON))
def test_anything_a_daemon_says_is_shown_without_an_error_on_one_line_each(document: show.Json) -> None:
    peers = {"state": document.get("state"), "peers": [document, document], "health": [document]}
    for line in [*show.status_lines(peers), *show.health_lines(peers), show.pong_line(document), *show.facts(document), *show.table([document], tuple(BOB))]:
        assert line.isprintable()


def test_table_has_a_heading_and_words_for_nothing_and_truth() -> None:
    rows: list[show.Json] = [{"id": 1, "name": "web", "tags": ["tag:a", "tag:b"], "online": True, "last_seen": None}]
    assert show.table(rows, ("id", "name", "tags", "online", "last_seen")) == ["ID  NAME  TAGS          ONLINE  LAST SEEN", "1   web   tag:a, tag:b  yes     -"]


def test_health_line_has_severity_and_text() -> None:
    assert show.health_lines({"health": [{"code": "clock", "severity": "warning", "text": "off by\n90 s"}]}) == ["warning: off by\\n90 s"]
