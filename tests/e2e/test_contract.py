"""What scripts rely on: exit codes, lines and documents of the CLI, on real processes."""

from __future__ import annotations

import json
import re

import pytest

from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, Server, eventually
from tests.e2e.network import PROGRAM, SOON, Network, await_direct, network
from tests.status_document import PEER, SELF, SERVER, STATUS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NOBODY = 65534
NOWHERE = "http://203.0.113.1:9"
"""Nobody listens there."""


@pytest.fixture(scope="module")
def pair(net: Network) -> tuple[Node, Node]:
    alice, bob = net.join("alice"), net.join("bob")
    net.acquaint("alice", "bob")
    return alice, bob


def test_first_ping_by_relay_then_until_direct_prints_the_contracts_lines(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    address = re.escape(bob.address())
    answer = alice.cli("ping", "bob", "--until-direct", "-c", "100", "--timeout", "20s")
    assert answer.status == 0, answer
    line = re.compile(rf"pong from bob \({address}\) via (relay|[\d.]+:\d+|\[[0-9a-f:]+\]:\d+) in \d+(\.\d+)?ms")
    assert all(line.fullmatch(each) for each in answer.out.splitlines()), answer.out
    assert "via relay" not in answer.out.splitlines()[-1]
    by_address = alice.cli("ping", bob.address(), "-c", "2", "--json")
    assert by_address.status == 0
    assert json.loads(by_address.out)


def test_status_document_has_the_contracts_keys(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    await_direct(alice, bob)
    answer = alice.cli("status", "--json")
    document = answer.json()
    assert answer.status == 0
    assert set(document) >= STATUS
    server, own, peers = document["server"], document["self"], document["peers"]
    assert isinstance(server, dict)
    assert isinstance(own, dict)
    assert isinstance(peers, list)
    assert set(server) >= SERVER
    assert set(own) >= SELF
    assert all(set(peer) >= PEER for peer in peers)
    assert document["state"] == "running"
    assert own["ip"] == own["ips"][0] == alice.address()
    peer = next(peer for peer in peers if peer["name"] == "bob")
    assert peer["path"] == "direct"
    assert peer["online"] is True
    assert peer["ips"] == [bob.address(), bob.address(6)]


def test_status_line_of_a_direct_peer(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    await_direct(alice, bob)
    answer = alice.cli("status")
    assert answer.status == 0
    lines = [line for line in answer.out.splitlines() if line.startswith(bob.address() + " ")]
    assert len(lines) == 1
    assert re.fullmatch(rf"{re.escape(bob.address())}\s+bob\s+admin@\s+linux\s+active; direct \S+:\d+, tx \d+ rx \d+", lines[0])


def test_ip_prints_one_address_a_line(pair: tuple[Node, Node]) -> None:
    alice = pair[0]
    assert alice.cli("ip").out.split() == [alice.address(), alice.address(6)]
    assert alice.cli("ip", "-4").out.split() == [alice.address()]
    assert alice.cli("ip", "-6").out.split() == [alice.address(6)]


def test_whois_names_the_node_and_an_unknown_address_fails(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    known = alice.cli("whois", bob.address())
    assert known.status == 0
    assert "bob" in known.out
    assert alice.cli("whois", "100.70.0.250").status == 1


def test_wait_returns_once_running(pair: tuple[Node, Node]) -> None:
    assert pair[0].cli("wait", "--timeout", "10s").status == 0


def test_other_users_may_look_and_not_touch(pair: tuple[Node, Node]) -> None:
    alice = pair[0]
    alice.directory.chmod(0o755)
    alice.host.namespace.directory.chmod(0o755)
    try:
        assert alice.cli("status", "--json", user=NOBODY).status == 0
        assert alice.cli("ip", user=NOBODY).status == 0
        for words in (["down"], ["logout"], ["set", "--hostname", "mallory"], ["up"]):
            refused = alice.cli(words[0], *words[1:], user=NOBODY)
            assert refused.status == 5, (words, refused)
            assert len(refused.err.strip().splitlines()) == 1
        assert alice.state() == "running"
    finally:
        alice.directory.chmod(0o700)
        alice.host.namespace.directory.chmod(0o700)


def test_ping_of_an_unknown_or_silent_peer_fails_with_its_own_status(net: Network, pair: tuple[Node, Node]) -> None:
    alice = pair[0]
    assert alice.cli("ping", "nosuchnode", "-c", "1").status == 1
    gone = net.join("gone")
    net.acquaint("alice", "gone")
    gone.stop()
    assert alice.cli("ping", "gone", "-c", "1", "--timeout", "1s").status == 6


def test_wait_without_a_login_times_out_with_6_or_says_4(net: Network) -> None:
    answer = net.node("newcomer").cli("wait", "--timeout", "1s")
    assert answer.status in (4, 6)


def test_unreachable_server_exits_3_and_a_wrong_key_is_refused(net: Network) -> None:
    stray = net.node("stray", NatKind.OPEN)
    away = stray.cli("up", "--server", NOWHERE, "--auth-key", "-", "--timeout", "5s", stdin=net.server.create_key() + "\n")
    assert away.status == 3, away
    assert "Traceback" not in away.err
    junk = stray.cli("up", "--server", net.server.url, "--auth-key", "-", stdin="calnet-notakey\n")
    assert junk.status in (1, 2), junk
    used = net.server.create_key()
    net.admin("keys", "list")
    assert stray.up(net.server, key=used).status == 0
    other = net.node("second")
    again = other.up(net.server, "--timeout", "10s", key=used)
    assert again.status == 5, again
    assert "Traceback" not in again.err


def test_key_of_another_server_is_refused(net: Network) -> None:
    with network() as elsewhere:
        foreign = elsewhere.server.create_key()
    lost = net.node("lost")
    answer = lost.up(net.server, "--timeout", "10s", key=foreign)
    assert answer.status != 0
    assert "Traceback" not in answer.err
    assert lost.state() == "needs-login"


def test_second_daemon_on_one_socket_says_so(pair: tuple[Node, Node]) -> None:
    alice = pair[0]
    second = alice.command("node", "--state-dir", str(alice.directory / "other"), "--socket", str(alice.socket), "--tun", "calnet1", timeout=30)
    assert second.status == 1
    assert "Traceback" not in second.err
    assert alice.cli("status").status == 0


def test_second_server_on_one_port_says_so(net: Network) -> None:
    second = net.server.command("server", "--state-dir", str(net.server.directory / "other"), timeout=30)
    assert second.status == 1
    assert "8080" in second.err
    assert "Traceback" not in second.err


def test_missing_tun_device_is_named(net: Network) -> None:
    host = net.lab.public_host("notun")
    node = Node(host, ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh", *PROGRAM))
    directory = node.directory
    answer = node.command("node", "--state-dir", str(directory / "state"), "--socket", str(node.socket), timeout=30)
    assert answer.status == 1
    assert "/dev/net/tun" in answer.err
    assert "Traceback" not in answer.err


def test_server_terminates_cleanly_and_starts_again_with_what_it_had(net: Network, pair: tuple[Node, Node]) -> None:
    before = json.loads(net.admin("nodes", "list", "--json").out)
    assert net.server.stop() == 0
    net.server.start()
    after = json.loads(net.admin("nodes", "list", "--json").out)
    assert {node["name"] for node in before} == {node["name"] for node in after}
    for node in pair:
        eventually(lambda node=node: node.cli("wait", "--timeout", "20s").status == 0, 2 * SOON, "nodes are back")  # type: ignore[misc]


def test_server_with_sqlite_serves_nodes_too() -> None:
    with network() as net:
        net.server.stop()
        sqlite = Server(net.lab.public_host("sqlite"), PROGRAM)
        sqlite.start("--store", "sqlite")
        node = net.node("client")
        assert node.up(sqlite, key=sqlite.create_key()).status == 0
        sqlite.kill()
        sqlite.start("--store", "sqlite")
        eventually(lambda: node.cli("wait", "--timeout", "20s").status == 0, 2 * SOON, "the node is back")
