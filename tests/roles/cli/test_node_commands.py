"""The node's commands against a scripted daemon: what they ask, what they print, how they exit."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from calnet.errors import LoginNeededError, TimedOutError
from calnet.host.local_socket import LocalRequest
from calnet.roles.cli import client
from tests.roles.cli.daemon import Cli, scripted

STATUS = {
    "state": "running",
    "server": {"url": "http://a", "connected": True, "last_seen_s": 0.1},
    "self": {"id": 1},
    "peers": [
        {"id": 2, "name": "bob", "user": "admin", "os": "linux", "ip": "100.70.0.2", "online": True, "path": "relay", "tx_bytes": 1, "rx_bytes": 2, "tags": []},
    ],
    "health": [{"code": "clock", "severity": "warning", "text": "the clock is off by 90 s"}],
    "version": "0.1.0",
}
PONG = {"pong": {"peer": "bob", "ip": "100.70.0.2", "path": "relay", "endpoint": None, "rtt_ms": 38.0}}


def test_status_prints_a_line_a_peer_and_health_on_stderr(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"status": STATUS}) as daemon:
        outcome = cli("status", "--socket", str(daemon.socket))
    assert outcome == type(outcome)(0, "100.70.0.2  bob  admin@  linux  active; relay, tx 1 rx 2\n", "warning: the clock is off by 90 s\n")


def test_status_json_is_the_daemons_document(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"status": STATUS}) as daemon:
        assert json.loads(cli("status", "--socket", str(daemon.socket), "--json").out) == STATUS


def test_status_watch_prints_a_document_a_line_until_interrupted(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = iter([None, KeyboardInterrupt()])

    def pause(_: float) -> None:
        if (end := next(pauses)) is not None:
            raise end

    monkeypatch.setattr("time.sleep", pause)
    with scripted(tmp_path, {"status": STATUS}) as daemon:
        outcome = cli("status", "--socket", str(daemon.socket), "--json", "--watch")
    assert [json.loads(line) for line in outcome.out.splitlines()] == [STATUS, STATUS]
    assert outcome.code == 130


def test_status_exits_0_whenever_the_daemon_answers(cli: Cli, tmp_path: Path) -> None:
    for state in ("stopped", "needs-login", "needs-approval", "starting"):
        with scripted(tmp_path, {"status": {**STATUS, "state": state, "peers": []}}) as daemon:
            assert cli("status", "--socket", str(daemon.socket)).code == 0


def test_up_sends_only_what_was_given_and_the_key_read_from_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("calnet-secret\n")
    (tmp_path / "key").chmod(0o600)
    with scripted(tmp_path, {"up": {"state": "running"}}) as daemon:
        assert cli("up", "--socket", str(daemon.socket)).code == 0
        words = ("--server", "http://a:1", "--hostname", "Alice", "--advertise-routes", "10.0.0.0/8,fd01::/64", "--no-accept-routes", "--timeout", "1m")
        assert cli("up", "--socket", str(daemon.socket), "--auth-key", f"file:{tmp_path}/key", *words).code == 0
    assert daemon.asked[0] == ("up", {"timeout_s": 30.0})
    assert daemon.asked[1] == (
        "up",
        {
            "server": "http://a:1",
            "hostname": "alice",
            "advertise_routes": ["10.0.0.0/8", "fd01::/64"],
            "accept_routes": False,
            "auth_key": "calnet-secret",
            "timeout_s": 60.0,
        },
    )


def test_up_shows_the_approval_to_run_and_the_url_to_open(cli: Cli, tmp_path: Path) -> None:
    events = [{"approve_code": "ABCD-1234"}, {"login_url": "https://a/login"}, {"say": "almost"}]
    with scripted(tmp_path, {"up": [*events, {"state": "running"}]}) as daemon:
        outcome = cli("up", "--socket", str(daemon.socket))
    assert (outcome.code, outcome.out) == (0, "")
    assert "calnet.pyz admin nodes approve ABCD-1234" in outcome.err
    assert "https://a/login" in outcome.err
    assert "almost" in outcome.err


def test_up_shows_the_code_to_enter_at_the_login(cli: Cli, tmp_path: Path) -> None:
    events = [{"login_url": "https://a/login", "user_code": "ABC-123"}, {"login_url": "https://b/login?code=X", "user_code": ""}]
    with scripted(tmp_path, {"up": [*events, {"state": "running"}]}) as daemon:
        said = cli("up", "--socket", str(daemon.socket)).err.splitlines()
    assert said[:3] == ["to log in, open: https://a/login", "and enter the code: ABC-123", "to log in, open: https://b/login?code=X"]


def test_up_json_prints_the_state(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"up": [{"say": "x"}, {"state": "running"}]}) as daemon:
        assert json.loads(cli("up", "--socket", str(daemon.socket), "--json").out) == {"state": "running"}


@pytest.mark.parametrize(("state", "code"), [("running", 0), ("needs-login", 4), ("needs-approval", 4), ("starting", 6), ("stopped", 1)])
def test_up_exits_by_the_state_it_ends_in(cli: Cli, tmp_path: Path, state: str, code: int) -> None:
    with scripted(tmp_path, {"login": {"state": state}}) as daemon:
        assert cli("login", "--socket", str(daemon.socket)).code == code


def test_up_interrupted_while_waiting_for_approval_exits_4_and_frees_the_daemon(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = threading.Event()

    async def waits(request: LocalRequest) -> object:
        import asyncio

        await request.emit({"approve_code": "ABCD"})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return None

    real = client.request

    def interrupted(path: str, op: str, args: dict[str, object], *, on_event: client.OnEvent, **more: object) -> object:
        def then(event: dict[str, object]) -> None:
            on_event(event)
            raise KeyboardInterrupt

        return real(path, op, args, on_event=then)

    monkeypatch.setattr(client, "request", interrupted)
    with scripted(tmp_path, {"up": waits}) as daemon:
        outcome = cli("up", "--socket", str(daemon.socket))
        assert cancelled.wait(10)
    assert outcome.code == 4
    assert "waiting for approval" in outcome.err


def test_down_and_logout_say_where_it_stands(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"down": {"state": "stopped"}, "logout": {"state": "needs-login"}}) as daemon:
        down, logout = (cli(word, "--socket", str(daemon.socket)) for word in ("down", "logout"))
    assert (down.code, logout.code, down.out, logout.out) == (0, 0, "", "")
    assert "stopped" in down.err
    assert "not logged in" in logout.err


def test_set_sends_what_was_given_and_refuses_nothing_at_all(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"set": {"hostname": "x"}}) as daemon:
        assert cli("set", "--socket", str(daemon.socket)).code == 2
        assert cli("set", "--socket", str(daemon.socket), "--advertise-routes=", "--accept-routes", "--pin", "bob", "--operator", "").code == 0
        assert json.loads(cli("set", "--socket", str(daemon.socket), "--hostname", "x", "--json").out) == {"hostname": "x"}
    assert daemon.asked[0] == ("set", {"advertise_routes": [], "accept_routes": True, "pin": "bob", "operator": ""})


def test_get_prints_all_or_one(cli: Cli, tmp_path: Path) -> None:
    prefs = {"hostname": "alice", "accept_routes": False, "advertise_routes": [], "operator": None}
    with scripted(tmp_path, {"get": prefs}) as daemon:
        socket = ("--socket", str(daemon.socket))
        assert cli("get", *socket).out == "hostname          alice\naccept routes     no\nadvertise routes  -\noperator          -\n"
        assert cli("get", "hostname", *socket).out == "alice\n"
        assert cli("get", "operator", *socket).out == "\n"
        assert json.loads(cli("get", "accept-routes", "--json", *socket).out) == {"accept_routes": False}
        assert cli("get", "nonsense", *socket).code == 1


def test_ping_prints_each_answer(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"ping": [PONG, PONG, {"sent": 2, "received": 2}]}) as daemon:
        outcome = cli("ping", "bob", "-c", "2", "--socket", str(daemon.socket))
    assert (outcome.code, outcome.out) == (0, "pong from bob (100.70.0.2) via relay in 38ms\n" * 2)
    assert daemon.asked == [("ping", {"peer": "bob", "count": 2, "until_direct": False, "timeout_s": 5.0})]


def test_ping_without_an_answer_exits_6(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"ping": TimedOutError("no answer from bob")}) as daemon:
        outcome = cli("ping", "bob", "--socket", str(daemon.socket), "--json")
    assert outcome.code == 6
    assert json.loads(outcome.out) == {"peer": "bob", "pongs": []}


def test_ping_json_is_one_document_with_every_answer(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"ping": [PONG, PONG, {}]}) as daemon:
        document = json.loads(cli("ping", "bob", "--socket", str(daemon.socket), "--json").out)
    assert document["path"] == "relay"
    assert document["pongs"] == [PONG["pong"]] * 2


def test_ip_prints_the_family_that_was_asked_for(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"ip": {"ips": ["100.70.0.1", "fd00::1"]}}) as daemon:
        socket = ("--socket", str(daemon.socket))
        assert cli("ip", *socket).out == "100.70.0.1\nfd00::1\n"
        assert cli("ip", "-4", *socket).out == "100.70.0.1\n"
        assert cli("ip", "-6", *socket).out == "fd00::1\n"
        assert json.loads(cli("ip", "-6", "--json", *socket).out) == {"ips": ["fd00::1"]}
        assert cli("ip", "-4", "-6", *socket).code == 2


def test_ip_without_one_exits_1_and_before_login_4(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"ip": {"ips": ["100.70.0.1"]}}) as daemon:
        assert cli("ip", "-6", "--socket", str(daemon.socket)).code == 1
    with scripted(tmp_path, {"ip": LoginNeededError("up first")}) as daemon:
        assert cli("ip", "--socket", str(daemon.socket)).code == 4


def test_whois_and_netcheck_print_facts_or_the_document(cli: Cli, tmp_path: Path) -> None:
    check = {"udp": True, "ipv4": None, "mapping": "unknown"}
    with scripted(tmp_path, {"whois": {"name": "bob", "tags": []}, "netcheck": check}) as daemon:
        socket = ("--socket", str(daemon.socket))
        assert cli("whois", "100.70.0.2", *socket).out == "name  bob\ntags  -\n"
        assert cli("netcheck", *socket).out == "udp      yes\nipv4     -\nmapping  unknown\n"
        assert json.loads(cli("netcheck", "--json", *socket).out) == check
        assert cli("whois", "bob", *socket).code == 2


def test_wait_returns_0_once_running_and_6_in_vain(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"wait": {"state": "running"}}) as daemon:
        assert cli("wait", "--socket", str(daemon.socket)).code == 0
        assert cli("wait", "--socket", str(daemon.socket), "--timeout", "2s", "--json").code == 0
    assert daemon.asked == [("wait", {}), ("wait", {"timeout_s": 2.0})]
    with scripted(tmp_path, {"wait": TimedOutError("no")}) as daemon:
        assert cli("wait", "--socket", str(daemon.socket)).code == 6


def test_version_names_the_daemons_too(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"version": {"version": "9.9"}}) as daemon:
        assert "daemon: 9.9" in cli("version", "--socket", str(daemon.socket)).out
        assert json.loads(cli("version", "--socket", str(daemon.socket), "--json").out)["daemon"] == "9.9"
    assert "daemon: not running" in cli("version", "--socket", str(tmp_path / "none")).out


WHY = {
    "peer": "bob",
    "path": "relay",
    "why": "by relay: both NATs give each destination another port",
    "advice": ["forward a UDP port"],
    "here": {
        "path": "relay",
        "udp": True,
        "relay": True,
        "mapping": "address-and-port-dependent",
        "guess_ports": True,
        "map_ports": True,
        "candidates": [
            {"endpoint": "203.0.113.2:5", "outcome": "no answer", "rtt_ms": None},
            {"endpoint": "192.168.2.2:5", "outcome": "answers", "rtt_ms": 1.5},
        ],
    },
    "there": None,
}


def test_why_tells_both_views_and_what_would_help(cli: Cli, tmp_path: Path) -> None:
    with scripted(tmp_path, {"why": WHY}) as daemon:
        outcome = cli("why", "bob", "--socket", str(daemon.socket))
        assert json.loads(cli("why", "bob", "--json", "--socket", str(daemon.socket)).out) == WHY
    assert outcome.out.splitlines() == [
        "bob: by relay: both NATs give each destination another port",
        "  here: NAT mapping address-and-port-dependent, UDP works, relay connected",
        "    203.0.113.2:5  no answer",
        "    192.168.2.2:5  answers    1.5 ms",
        "  there: no answer",
        "  what would help: forward a UDP port",
    ]
    assert daemon.asked[0] == ("why", {"peer": "bob"})
