"""The life of server and nodes: restarts, going down and up, leaving and coming back, being approved, cut off, renewed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from calnet.errors import UnreachableError
from calnet.roles.demo import traffic
from calnet.roles.demo.namespaces import Task
from calnet.roles.demo.product import Node, eventually
from tests.e2e.network import PROGRAM, SOON, Network, answers, await_direct

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def pair(net: Network) -> tuple[Node, Node]:
    alice, bob = net.join("alice"), net.join("bob")
    net.acquaint("alice", "bob")
    await_direct(alice, bob)
    return alice, bob


def _connected(node: Node) -> bool:
    server = node.status().get("server")
    return isinstance(server, dict) and server.get("connected") is True


def _lost(task: Task) -> list[float]:
    return traffic.numbers(task.result(), "lost")


def _go_on(seconds: float) -> None:
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end, seconds + 5)


def _nodes_listed(net: Network) -> dict[str, dict[str, object]]:
    listed = json.loads(net.admin("nodes", "list", "--json").out)
    return {node["name"]: node for node in listed}


def test_server_restart_leaves_live_tunnels_undisturbed(net: Network, pair: tuple[Node, Node], stream: Task) -> None:
    assert net.server.stop() == 0
    eventually(lambda: not _connected(pair[0]), SOON, "alice notices that the server is away")
    net.server.start()
    for node in pair:
        eventually(lambda node=node: _connected(node), 2 * SOON, "the nodes come back to the server")  # type: ignore[misc]
    _go_on(1.0)
    assert _lost(stream) == []


def test_node_restarted_without_its_server_comes_up_from_its_last_netmap(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    address = bob.address()
    assert net.server.stop() == 0
    try:
        assert alice.stop() == 0
        alice.start()
        eventually(lambda: alice.state() == "running", SOON, "alice is running from her last netmap")
        eventually(lambda: answers(alice, address), 2 * SOON, "alice reaches bob without the server")
        assert not _connected(alice)
    finally:
        net.server.start()
    eventually(lambda: _connected(alice), 2 * SOON, "alice comes back to the server")
    eventually(lambda: _connected(bob), 2 * SOON, "bob comes back to the server")


def test_node_with_its_link_away_for_a_while_comes_back(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    alice.host.namespace.ip("link set eth0 down")
    alice.host.namespace.ip("link set eth0 up")
    router = (alice.host.ipv4.rsplit(".", 1)[0]) + ".1"
    alice.host.namespace.ip(f"route replace default via {router}")
    eventually(lambda: answers(alice, bob.address()), 2 * SOON, "alice reaches bob again")


def test_down_takes_the_address_away_and_up_brings_the_same_back(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    address = alice.address()
    assert alice.cli("down").status == 0
    assert alice.state() == "stopped"
    assert address not in alice.host.namespace.run("ip", "address").stdout
    assert not answers(alice, bob.address())
    assert alice.cli("up").status == 0
    assert alice.state() == "running"
    assert alice.address() == address
    eventually(lambda: answers(alice, bob.address()), SOON, "alice reaches bob again")


def test_node_that_is_down_stays_down_over_a_restart(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    assert alice.cli("down").status == 0
    assert alice.stop() == 0
    alice.start()
    assert alice.state() == "stopped"
    assert alice.cli("up").status == 0
    eventually(lambda: answers(alice, bob.address()), SOON, "alice reaches bob again")


def test_killed_node_comes_back_by_itself_after_a_restart(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    address = alice.address()
    alice.kill()
    alice.start()
    eventually(lambda: alice.state() == "running", SOON, "alice is running")
    assert alice.address() == address
    eventually(lambda: answers(alice, bob.address()), SOON, "alice reaches bob again")
    eventually(lambda: answers(bob, address), SOON, "bob reaches alice again")


def test_key_renewal_by_a_new_login_loses_no_packet(net: Network, pair: tuple[Node, Node], stream: Task) -> None:
    alice, bob = pair
    before = alice.own()
    answer = alice.cli("login", "--server", net.server.url, "--auth-key", "-", stdin=net.server.create_key() + "\n")
    assert answer.status == 0, answer.err
    eventually(lambda: alice.own().get("public_key") != before["public_key"], SOON, "alice has a new key")
    _go_on(2.0)
    assert alice.own()["ips"] == before["ips"]
    assert alice.own()["name"] == before["name"]
    assert answers(bob, alice.address())
    assert _lost(stream) == []


def test_logout_needs_a_login_and_a_login_brings_it_back(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    assert alice.cli("logout").status == 0
    assert alice.state() == "needs-login"
    assert "100.70.0." not in alice.host.namespace.run("ip", "address").stdout
    eventually(lambda: (bob.peer("alice") or {"online": False})["online"] is False, SOON, "bob sees that alice is gone")
    assert alice.up(net.server, "--hostname", "alice", key=net.server.create_key()).status == 0
    eventually(lambda: answers(alice, bob.address()), 2 * SOON, "alice reaches bob again")


def test_pending_node_is_approved_by_its_code(net: Network, pair: tuple[Node, Node]) -> None:
    carol = net.node("carol")
    waiting, said = _up_without_key(net, carol)
    code = _approval_code(said)
    assert carol.state() == "needs-approval"
    net.admin("nodes", "approve", code)
    assert waiting.wait(SOON) == 0
    eventually(lambda: carol.state() == "running", SOON, "carol is running")
    eventually(lambda: answers(carol, pair[1].address()), SOON, "carol reaches bob")


def test_interrupted_wait_for_approval_exits_4(net: Network) -> None:
    dave = net.node("dave")
    waiting, said = _up_without_key(net, dave)
    assert _approval_code(said)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(SOON) == 4
    assert dave.state() == "needs-approval"


def _up_without_key(net: Network, node: Node) -> tuple[subprocess.Popen[bytes], Path]:
    said = node.host.namespace.directory / f"{node.host.name}-up.log"
    command = [*PROGRAM, "up", "--socket", str(node.socket), "--server", net.server.url, "--hostname", node.host.name]
    with said.open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT), said


def _approval_code(said: Path) -> str:
    found = eventually(lambda: re.search(r"admin nodes approve (\S+)", said.read_text()), SOON, "up names the command to run")
    assert found is not None
    return found[1].rstrip(".,;:)'\"`")


@pytest.mark.parametrize("verb", ["disable", "expire", "delete"])
def test_node_cut_off_by_an_admin_loses_its_traffic_at_once(net: Network, pair: tuple[Node, Node], verb: str) -> None:
    bob = pair[1]
    name = f"victim{verb}"
    victim = net.join(name)
    net.acquaint("bob", name)
    await_direct(bob, victim)
    address = victim.address()
    net.admin("nodes", verb, name)
    cut_at = time.monotonic()
    eventually(lambda: not answers(bob, address), 10, "bob no longer reaches the victim")
    assert not answers(victim, bob.address())
    assert time.monotonic() - cut_at < 10
    eventually(lambda: victim.state() != "running" or not _connected(victim), SOON, "the victim knows")
    if verb == "disable":
        net.admin("nodes", "enable", name)
        eventually(lambda: answers(bob, address), 3 * SOON, "bob reaches the enabled node again")
    elif verb == "expire":
        eventually(lambda: victim.state() == "needs-login", SOON, "the victim needs a login")
        assert victim.up(net.server, key=net.server.create_key()).status == 0
        eventually(lambda: answers(bob, victim.address()), SOON, "bob reaches the victim after its new login")
        assert victim.address() == address
    else:
        assert name not in _nodes_listed(net)


def test_ephemeral_node_is_forgotten_when_it_leaves(net: Network, pair: tuple[Node, Node]) -> None:
    bob = pair[1]
    guest = net.join("guest", key=("--ephemeral",))
    net.acquaint("bob", "guest")
    assert "guest" in _nodes_listed(net)
    assert guest.cli("logout").status == 0
    eventually(lambda: "guest" not in _nodes_listed(net), SOON, "the server forgets the guest", every=0.3)
    eventually(lambda: bob.peer("guest") is None, SOON, "bob forgets the guest")


def test_server_with_another_key_is_refused_and_the_tunnel_goes_on(net: Network, pair: tuple[Node, Node], stream: Task) -> None:
    alice = pair[0]
    genuine = net.server.directory
    assert net.server.stop() == 0
    net.server.directory = genuine.with_name("impostor")
    net.server.directory.mkdir(mode=0o700)
    net.server.start()
    try:
        eventually(lambda: "server-key" in str(alice.status()["health"]), 2 * SOON, "alice says that the server has another key", every=0.2)
        assert not _connected(alice)
        assert alice.state() == "running"
    finally:
        assert net.server.stop() == 0
        net.server.directory = genuine
        net.server.start()
    for node in pair:
        eventually(lambda node=node: _connected(node), 3 * SOON, "the nodes come back to the genuine server")  # type: ignore[misc]
    assert _lost(stream) == []


def test_stopped_daemon_can_not_be_reached(net: Network) -> None:
    erin = net.node("erin")
    assert erin.stop() == 0
    with pytest.raises(UnreachableError):
        erin.status()
    assert erin.cli("status").status == 3
    refused = erin.cli("up", "--server", net.server.url)
    assert refused.status == 3
    assert "install node" in refused.err
