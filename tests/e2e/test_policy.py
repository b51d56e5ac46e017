"""Policy on the wire: the built-in one between users and tags, and one that is set while traffic flows."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import policy as bench
from calnet.errors import TimedOutError
from calnet.roles.cli.rest import Rest
from calnet.roles.demo.product import Node, eventually
from tests.e2e.network import SOON, Network, answers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_users_are_apart_and_tagged_nodes_answer_all_but_begin_nothing(net: Network) -> None:
    net.admin("users", "create", "anna")
    net.admin("users", "create", "otto")
    anna = net.join("annas", key=("--user", "anna"))
    other = net.join("annastoo", key=("--user", "anna"))
    otto = net.join("ottos", key=("--user", "otto"))
    printer = net.join("printer", key=("--tag", "tag:printer"))
    net.acquaint("annas", "annastoo")
    for node in (anna, otto):
        eventually(lambda node=node: answers(node, printer.address()), SOON, "everybody reaches the tagged node")  # type: ignore[misc]
    eventually(lambda: answers(anna, other.address()), SOON, "nodes of one user reach each other")
    assert not answers(anna, otto.address())
    assert not answers(otto, anna.address())
    assert not answers(printer, anna.address())
    assert not answers(printer, otto.address())
    assert printer.own()["tags"] == ["tag:printer"]
    assert printer.own()["key_expires"] is None


POLICY = """{
  "tagOwners": {"tag:printer": []},
  "acls": [{"action": "accept", "src": ["anna@"], "dst": ["tag:printer:%s"]}],
  "defaultAction": "%s",
}
"""


def _set(net: Network, port: str, action: str, tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(POLICY % (port, action))
    net.admin("policy", "set", str(tmp_path / "policy"))


def _connected(source: Node, target: Node, port: int, kind: socket.SocketKind, version: int) -> tuple[socket.socket, socket.socket]:
    """A socket at each end of a flow that works: (the source's, the target's)."""
    address = target.address(version)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with target.host.namespace.inside():
        there = socket.socket(family, kind)
        there.bind((address, port))
    with source.host.namespace.inside():
        here = socket.socket(family, kind)
    for end in (here, there):
        end.settimeout(SOON)
    if kind == socket.SOCK_STREAM:
        there.listen()
        here.connect((address, port))
        listener, (there, _) = there, there.accept()
        listener.close()
        there.settimeout(SOON)
    else:
        here.connect((address, port))
        peer = eventually(lambda: _asked(here, there), SOON, "a datagram arrives")
        assert peer is not None
        there.connect(peer)
    return here, there


def _asked(here: socket.socket, there: socket.socket) -> tuple[str, int] | None:
    """Where a datagram came from; None where it was lost."""
    here.send(b"hello")
    there.settimeout(0.5)
    try:
        return there.recvfrom(100)[1]  # type: ignore[no-any-return]
    except TimeoutError:
        return None


def _passes(sender: socket.socket, receiver: socket.socket, within: float) -> bool:
    """Whether what one end sends arrives at the other."""
    receiver.settimeout(within)
    try:
        sender.send(b"still there?")
        return bool(receiver.recv(100))
    except (TimeoutError, ConnectionError):
        return False


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_new_policy_ends_a_forbidden_flow_in_both_directions(net: Network, tmp_path: Path, kind: socket.SocketKind, version: int) -> None:
    anna, printer = net.nodes["annas"], net.nodes["printer"]
    net.admin("policy", "reset")
    eventually(lambda: answers(anna, printer.address()), SOON, "the built-in policy holds")
    here, there = _connected(anna, printer, 6000, kind, version)
    with here, there:
        assert _passes(here, there, SOON)
        assert _passes(there, here, SOON)
        _set(net, "631", "drop", tmp_path)
        started = time.monotonic()
        while _passes(here, there, 0.2):
            assert time.monotonic() < started + SOON
        assert not _passes(there, here, 1.0)
        assert not _passes(here, there, 1.0)
    net.admin("policy", "reset")


def test_policy_lets_its_port_alone_through_and_reject_answers_at_once(net: Network, tmp_path: Path) -> None:
    anna, printer = net.nodes["annas"], net.nodes["printer"]
    _set(net, "631", "reject", tmp_path)
    assert net.server.command("can", "annas", "printer", "tcp/631", "--state-dir", str(net.server.directory)).out.startswith("allowed ")
    with printer.host.namespace.inside():
        listeners = [socket.create_server((printer.address(), port)) for port in (631, 632)]
    try:

        def connect(port: int) -> str:
            with anna.host.namespace.inside():
                client = socket.socket()
            with client:
                client.settimeout(3)
                try:
                    client.connect((printer.address(), port))
                except ConnectionRefusedError:
                    return "refused"
                except TimeoutError:
                    return "nothing"
                return "connected"

        eventually(lambda: connect(632) == "refused", SOON, "what no rule allows is answered by a reset")
        assert connect(631) == "connected"
        assert not answers(net.nodes["ottos"], printer.address())
        assert "printer" not in [peer["name"] for peer in net.nodes["ottos"].status()["peers"]]  # type: ignore[attr-defined]
    finally:
        for listener in listeners:
            listener.close()
        net.admin("policy", "reset")


@pytest.mark.parametrize("forbids", bench.FORBIDS)
def test_forbidden_tcp_connection_ends_as_soon_as_the_policy_is_set(net: Network, record_property: Callable[[str, object], None], forbids: str) -> None:
    """Within a second, `bench/policy.py` says; here within what a busy machine may take, and how long it was is told."""
    anna, printer = net.nodes["annas"], net.nodes["printer"]
    rest = Rest(socket_path=str(net.server.socket))
    rest.send("PUT", "/policy", {"text": bench.ALLOWS})
    with bench.Flow(anna, printer) as flow:
        with pytest.raises(TimedOutError):  # what is allowed goes on, whatever policy says so
            flow.ends_after(lambda: rest.send("PUT", "/policy", {"text": bench.ALLOWS.replace("*:*", "*:1-65535")}), 2 * bench.QUIET_S)
        took = flow.ends_after(lambda: rest.send("PUT", "/policy", {"text": forbids}))
    record_property("ends_s", round(took, 3))
    print(f"ended after {took:.3f} s, {took / bench.TARGET_S:.3f} of the second it may take")
    assert took < SOON
    net.admin("policy", "reset")
