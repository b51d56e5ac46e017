"""The composition root: flags, what the machine must give, log lines, the service manager."""

from __future__ import annotations

import argparse
import logging
import os
import stat
from pathlib import Path

import pytest

from calnet.errors import HostError, UsageError
from calnet.host import probes
from calnet.roles.node import main as node_main
from calnet.roles.node.escape import shown
from calnet.roles.node.log_format import SafeFormatter
from calnet.roles.node.notices import NOTICE_S, Notices
from calnet.roles.node.opening import super_packet_size
from calnet.roles.node.routes import Finding


def test_settings_without_flags_are_the_contracts_defaults() -> None:
    settings = node_main.settings_of(argparse.Namespace())
    assert (str(settings.state_dir), str(settings.socket), settings.tun) == ("/var/lib/calnet", "/run/calnet/calnet.sock", "calnet0")
    assert (settings.port, settings.mtu, settings.operator, settings.processes) == (0, 1280, "", 1)


WRONG = (("port", ("70000", "-1", "x")), ("mtu", ("100", "100000", "1e3")), ("processes", ("0", "3", "two")))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG for value in values])
def test_settings_with_a_number_out_of_bounds_are_a_usage_error(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{name}"):
        node_main.settings_of(argparse.Namespace(**{name: value}))


def test_machine_without_a_tun_device_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="modprobe tun"):
        node_main.check_machine(tmp_path / "tun")


def test_machine_without_the_capability_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "missing_capability", lambda: "CAP_NET_ADMIN")
    (tmp_path / "tun").touch()
    with pytest.raises(HostError, match="CAP_NET_ADMIN"):
        node_main.check_machine(tmp_path / "tun")


def test_socket_directory_is_open_to_all_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        node_main.make_socket_directory(tmp_path / "run" / "calnet.sock")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
    with pytest.raises(HostError, match="--socket"):
        node_main.make_socket_directory(Path("/proc/nowhere/calnet.sock"))


def test_log_line_is_one_printable_line_and_has_a_traceback_only_in_debug() -> None:
    try:
        raise ValueError("bad\x1b[31m\nthing")
    except ValueError as error:
        record = logging.LogRecord("calnet.x", logging.WARNING, "f", 1, "event key=%s", ("a\r\nb\x1b[2J",), (type(error), error, error.__traceback__))
    plain = SafeFormatter(tracebacks=False).format(record)
    assert plain == r"warning event key=a\r\nb\x1b[2J"
    loud = SafeFormatter(tracebacks=True).format(record)
    assert "ValueError" in loud
    assert all(line.isprintable() for line in loud.split("\n"))


def test_shown_escapes_and_cuts() -> None:
    assert shown("plain text") == "plain text"
    assert shown("a\\b\u202e\x00") == r"a\\b\u202e\x00"
    assert shown("x" * 20, 5) == "xxxxx…"


def test_notices_hold_until_taken_back_and_events_for_a_day() -> None:
    now = [0.0]
    notices = Notices(lambda: now[0])
    notices.set("gso", "refused")
    notices.event("bob", Finding("key", "changed"))
    notices.event("bob", Finding("key", "changed again"))
    assert "gso" in notices
    assert notices.findings() == [Finding("key", "changed again"), Finding("gso", "refused")]
    notices.set("gso", None)
    notices.set("gso", None)
    now[0] = NOTICE_S + 1
    assert notices.findings() == []
    notices.set("x", "y")
    notices.clear()
    assert notices.findings() == []


@pytest.mark.parametrize("mtu", [1280, 1420, 9000])
@pytest.mark.parametrize("spared", [193, 321])
def test_super_packets_of_tcp_just_fit_one_send(mtu: int, spared: int) -> None:
    room = super_packet_size(mtu) - spared
    most = min(64, 65_507 // (mtu + 32))
    for headers in (40, 52, 60, 72):
        packets = room // (mtu - headers)
        assert most - 1 <= packets <= most
    assert room // (mtu - 52) == most
    assert room + 72 <= 65_535
