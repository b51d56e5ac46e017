"""What flags take and what they refuse."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.errors import UsageError
from calnet.roles.cli import values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("24h", 86_400.0), ("7d", 604_800.0), ("500ms", 0.5), ("5m", 300.0), ("2w", 1_209_600.0), ("1h30m", 5_400.0), ("1.5s", 1.5), ("90", 90.0)],
)
def test_duration_of_a_text_is_its_seconds(text: str, seconds: float) -> None:
    assert values.duration(text) == seconds


REFUSED: list[tuple[Callable[[str], object], list[str]]] = [
    (values.duration, ["", "s", "-1s", "0", "0s", "1x", "1 s", "1e9", "inf", "nan", "٣s", "9" * 400, "1s1", "s1"]),
    (values.hostname, ["a.b", "a/b", "../x", "-a", "a-", "ä", "a b", "a" * 64, "a\n", "a\x1b[31m", "%d", "_a", "а"]),
    (values.interface, ["", "../x", "a/b", "x" * 16, "%d", "calnet%d", "a b", "a\t", ".", "..", ".x", "all", "default", "é0", "a:b", "-x", "a\n", "a\0"]),
    (values.user, ["a b", "a:b", "a\n", "../x", "ä", "x" * 40]),
    (values.word, ["", "a\nb", "\x1b[2J", "a" * 256, "\u202e", "\ud800"]),
    (values.tag, ["", "web", "tag:", "tag:Web", "tag:-a", "tag:a b", "tag:a\n", "tag:" + "a" * 51]),
    (values.host_port, ["", "8080", "a:", "a:x", "a:65536", "[::]", "::1:80", "a b:1", "a/b:1", "a:1\n", ":123456"]),
    (
        values.url,
        [
            "",
            "example.org",
            "ftp://a",
            "http://",
            "http://a:0",
            "http://a:65536",
            "http://u:p@a",
            "http://a?x",
            "http://a#x",
            "http://a b",
            "http://a\n",
            "http://é",
        ],
    ),
    (values.store, ["", "mysql", "KV", "kv "]),
    (values.port, ["", "-1", "65536", "1.5", "x", "٣", "9" * 30, " 1"]),
    (values.mtu, ["1279", "65536", "x"]),
    (values.processes, ["0", "3", "", "two", "1.0"]),
    (values.descriptor, ["-1", "x", "1048577"]),
    (values.count, ["0", "1000001", "-3"]),
    (values.address, ["", "1.2.3", "1.2.3.4/24", "x", "fe80::1%", "1.2.3.4\n"]),
    (values.prefix, ["", "1.2.3.4/8", "1.2.3.0/33", "x", "1.2.3.0/24,", "::1/0"]),
    (values.ipv4_prefix, ["fd00::/64", "10.0.0.1/24"]),
    (values.prefixes, ["10.0.0.0/8,", ",", "10.0.0.1/8", "10.0.0.0/8;11.0.0.0/8"]),
]


@pytest.mark.parametrize(("convert", "text"), [(convert, text) for convert, texts in REFUSED for text in texts])
def test_value_that_is_not_allowed_is_refused(convert: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        convert(text)


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (values.hostname, "Alice-1", "alice-1"),
        (values.hostname, "", ""),
        (values.interface, "calnet0", "calnet0"),
        (values.interface, "x" * 15, "x" * 15),
        (values.interface, "eth0.5", "eth0.5"),
        (values.user, "alice", "alice"),
        (values.user, "1000", "1000"),
        (values.word, "bob", "bob"),
        (values.tag, "tag:web-1", "tag:web-1"),
        (values.host_port, "[::]:8080", "[::]:8080"),
        (values.host_port, ":0", ":0"),
        (values.host_port, "localhost:80", "localhost:80"),
        (values.url, "http://[2001:db8::1]:8080", "http://[2001:db8::1]:8080"),
        (values.url, "https://calnet.example.org/net/", "https://calnet.example.org/net"),
        (values.store, "sqlite", "sqlite"),
        (values.port, "0", 0),
        (values.mtu, "1280", 1280),
        (values.processes, "1", 1),
        (values.processes, "2", 2),
        (values.descriptor, "3", 3),
        (values.count, "3", 3),
        (values.address, "FD00::0001", "fd00::1"),
        (values.prefix, "192.168.1.0/24", "192.168.1.0/24"),
        (values.prefix, "10.1.2.3", "10.1.2.3/32"),
        (values.ipv4_prefix, "100.70.0.0/16", "100.70.0.0/16"),
        (values.prefixes, "10.0.0.0/8, fd01::/64", ["10.0.0.0/8", "fd01::/64"]),
        (values.prefixes, "", []),
    ],
)
def test_value_that_is_allowed_is_taken(convert: Callable[[str], object], text: str, value: object) -> None:
    assert convert(text) == value


@pytest.mark.parametrize("convert", [convert for convert, _ in REFUSED])
@given(text=st.text(max_size=40))
def test_converters_given_random_text_raise_nothing_but_value_error(convert: Callable[[str], object], text: str) -> None:
    with contextlib.suppress(ValueError):
        convert(text)


def test_prefix_with_host_bits_says_what_was_meant() -> None:
    with pytest.raises(ValueError, match=r"did you mean 192\.168\.1\.0/24"):
        values.prefix("192.168.1.7/24")


def test_secret_given_by_value_is_itself() -> None:
    assert values.secret("calnet-abc") == "calnet-abc"


def test_secret_on_stdin_is_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("calnet-abc\nmore\n"))
    assert values.secret("-") == "calnet-abc"


def test_secret_in_a_file_is_its_first_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("calnet-abc\n")
    (tmp_path / "key").chmod(0o600)
    assert values.secret(f"file:{tmp_path}/key") == "calnet-abc"
    assert capsys.readouterr().err == ""


def test_secret_in_a_file_that_others_can_read_is_taken_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("calnet-abc\n")
    (tmp_path / "key").chmod(0o644)
    assert values.secret(f"file:{tmp_path}/key") == "calnet-abc"
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "\n", "a\x00b", "ä", "a b\x1b"])
def test_secret_that_is_no_line_of_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(UsageError):
        values.secret(f"file:{tmp_path}/key")


@pytest.mark.parametrize("name", ["missing", "a\0b", ""])
def test_secret_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        values.secret(f"file:{tmp_path}/{name}")


def test_secret_on_a_closed_stdin_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError):
        values.secret("-")
