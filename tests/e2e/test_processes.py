"""Nodes whose data path has a process of its own (`calnet node --processes 2`): they do what others do, and outlive that process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from calnet.roles.demo import traffic
from calnet.roles.demo.namespaces import Task
from calnet.roles.demo.product import Node, eventually
from calnet.roles.demo.recovery import await_path
from calnet.roles.node.handshake_log import parse_records
from calnet.roles.node.main import CLOSE_S
from tests.e2e.network import SOON, Network, answers, await_direct, send_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

TWO = ("--processes", "2")
FORBIDDING = '{"tagOwners": {}, "acls": [], "defaultAction": "drop"}'


def _descendants(pid: int) -> list[int]:
    """`pid` and all that it, and they, started."""
    found = [pid]
    for each in found:
        try:
            found += [int(word) for task in Path(f"/proc/{each}/task").iterdir() for word in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def _lives(pid: int) -> bool:
    """A zombie does too."""
    return Path(f"/proc/{pid}").exists()


def _data_paths(node: Node) -> list[int]:
    assert node.process is not None
    return [pid for pid in _descendants(node.process.pid) if "node-data-path" in _words(pid)]


def data_path(node: Node) -> int:
    """The process of the node's data path."""
    (pid,) = eventually(lambda: _data_paths(node), SOON, "the data path has a process")
    return pid


def _has_tun(node: Node) -> bool:
    return node.host.namespace.run("ip", "link", "show", "calnet0", check=False).returncode == 0


def _stamps(node: Node) -> int:
    """How many handshakes the node has noted for good."""
    return len(parse_records((node.directory / "state" / "stamps").read_bytes())[0])


def _codes(node: Node) -> set[object]:
    lines = node.status()["health"]
    assert isinstance(lines, list)
    return {line["code"] for line in lines}


@pytest.fixture(scope="module")
def pair(net: Network) -> tuple[Node, Node]:
    alice, bob = (net.join(name, daemon=TWO) for name in ("alice", "bob"))
    net.acquaint("alice", "bob")
    return alice, bob


def _lost(task: Task) -> list[float]:
    return traffic.numbers(task.result(), "lost")


def _go_on(seconds: float) -> None:
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end, seconds + 5)


def test_data_path_is_a_process_that_holds_the_device_and_the_daemon_does_not(pair: tuple[Node, Node]) -> None:
    for node in pair:
        assert node.process is not None
        pid = data_path(node)
        daemons = [other for other in _descendants(node.process.pid) if other != pid and "--processes" in _words(other)]
        assert daemons
        assert _opens(pid, "/dev/net/tun")
        assert not any(_opens(other, "/dev/net/tun") for other in daemons)


def _opens(pid: int, path: str) -> bool:
    return any(os.readlink(entry) == path for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink())


@pytest.mark.parametrize("path", ["direct", "relay"])
def test_pings_and_files_go_both_ways(pair: tuple[Node, Node], path: str) -> None:
    alice, bob = pair
    for node, other in ((alice, "bob"), (bob, "alice")):
        assert node.cli("set", "--path", f"{other}={'relay' if path == 'relay' else 'auto'}").status == 0
    await_path(alice, bob, path)
    content = os.urandom(20_000_003)
    assert send_file(alice, bob, content)
    assert send_file(bob, alice, content)
    assert alice.path_to("bob") == bob.path_to("alice") == path
    for node, other in ((alice, "bob"), (bob, "alice")):
        assert node.cli("set", "--path", f"{other}=auto").status == 0
    await_direct(alice, bob)


def _shape(value: object) -> object:
    """The names and kinds in a document; of a list that of its first element."""
    if isinstance(value, dict):
        return {name: _shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shape(inner) for inner in value[:1]]
    return type(value).__name__


def test_commands_answer_as_those_of_other_nodes_do(net: Network, pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    carol = net.join("carol")
    net.acquaint("alice", "bob", "carol")
    for node in (alice, carol):
        await_direct(node, bob)
    shapes = []
    for node in (alice, carol):
        assert _data_paths(node) == ([] if node is carol else [data_path(alice)])
        status = node.cli("status", "--json").json()
        peers = status["peers"]
        assert isinstance(peers, list)
        found = next(peer for peer in peers if peer["name"] == "bob")
        assert found["path"] == "direct"
        assert found["tx_bytes"] > 0
        assert found["last_handshake_s"] is not None
        status["peers"], status["health"] = [found], []
        why, netcheck = node.cli("why", "bob", "--json").json(), node.cli("netcheck", "--json").json()
        assert why["path"] == "direct"
        assert netcheck["udp"] is True
        metrics = node.cli("metrics").out
        assert "calnet_up 1" in metrics
        names = sorted(line.split("{")[0].split(" ")[0] for line in metrics.splitlines() if not line.startswith("#"))
        assert node.cli("ping", "bob", "--until-direct").status == 0
        shapes.append((_shape(status), _shape(why), _shape(netcheck), sorted(set(names))))
    assert shapes[0] == shapes[1]


def test_killed_data_path_is_replaced_at_once_and_health_tells(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    assert alice.process is not None
    assert answers(alice, bob.address())
    old, stamps, port = data_path(alice), _stamps(alice), alice.own()["udp_port"]
    os.kill(old, signal.SIGKILL)
    eventually(lambda: _data_paths(alice) not in ([], [old]), SOON, "another data path runs")
    eventually(lambda: answers(alice, bob.address()), SOON, "alice reaches bob again")
    assert not _lives(old)
    assert alice.state() == "running"
    assert alice.own()["udp_port"] == port
    assert "data-path-restarted" in _codes(alice)
    assert "data-path" not in _codes(alice)
    shown = alice.cli("status")
    assert "was ended by SIGKILL; a new one took its place" in shown.out + shown.err
    assert _stamps(alice) > stamps, "the new handshake is noted beside the old ones"
    await_direct(alice, bob)
    assert send_file(alice, bob, os.urandom(1_000_003))
    log = alice.process.output()
    assert "error data_path_ended why=was ended by SIGKILL" in log
    assert "Traceback" not in log


def test_data_path_that_is_killed_again_and_again_comes_back_each_time(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    for _ in range(3):
        old = data_path(alice)
        os.kill(old, signal.SIGKILL)
        eventually(lambda old=old: _data_paths(alice) not in ([], [old]), SOON, "another data path runs")  # type: ignore[misc]
    eventually(lambda: answers(alice, bob.address()), 2 * SOON, "alice reaches bob again")
    eventually(lambda: answers(bob, alice.address()), SOON, "bob reaches alice again")


def test_policy_that_changes_takes_effect_on_both_ends(net: Network, pair: tuple[Node, Node], tmp_path: Path) -> None:
    alice, bob = pair
    assert answers(alice, bob.address())
    (tmp_path / "policy").write_text(FORBIDDING)
    net.admin("policy", "set", str(tmp_path / "policy"))
    for one, other in ((alice, bob), (bob, alice)):
        eventually(lambda one=one, other=other: not answers(one, str(other.own()["ip"])), SOON, "policy keeps them apart")  # type: ignore[misc]
    net.admin("policy", "reset")
    for one, other in ((alice, bob), (bob, alice)):
        eventually(lambda one=one, other=other: answers(one, str(other.own()["ip"])), SOON, "policy lets them")  # type: ignore[misc]


def test_key_renewal_by_a_new_login_loses_no_packet(net: Network, pair: tuple[Node, Node], stream: Task) -> None:
    alice, _ = pair
    before, pid = alice.own()["public_key"], data_path(alice)
    answer = alice.cli("login", "--server", net.server.url, "--auth-key", "-", stdin=net.server.create_key() + "\n")
    assert answer.status == 0, answer.err
    eventually(lambda: alice.own().get("public_key") != before, SOON, "alice has a new key")
    _go_on(2.0)
    assert data_path(alice) == pid
    assert _lost(stream) == []


def test_interface_that_is_removed_is_made_again(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    old = data_path(alice)
    alice.host.namespace.ip("link delete calnet0")
    eventually(lambda: _data_paths(alice) not in ([], [old]), SOON, "another data path runs")
    eventually(lambda: answers(alice, bob.address()), SOON, "alice reaches bob again")
    assert not _lives(old)


def test_down_ends_the_process_and_up_starts_another(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    old = data_path(alice)
    assert alice.cli("down").status == 0
    assert not _lives(old)
    assert _data_paths(alice) == []
    assert not _has_tun(alice)
    assert alice.cli("up").status == 0
    assert data_path(alice) != old
    eventually(lambda: answers(alice, bob.address()), SOON, "alice reaches bob again")


@pytest.mark.parametrize("standing_still", [False, True])
def test_daemon_that_stops_takes_its_data_path_along(pair: tuple[Node, Node], *, standing_still: bool) -> None:
    alice, bob = pair
    pid = data_path(alice)
    if standing_still:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert alice.stop() == 0
    assert time.monotonic() - began < CLOSE_S + 1
    assert not _lives(pid)
    assert not _has_tun(alice)
    alice.start(*TWO)
    eventually(lambda: answers(alice, bob.address()), 2 * SOON, "alice reaches bob again")


def test_daemon_that_is_killed_takes_its_data_path_along(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    pid = data_path(alice)
    stamps = _stamps(alice)
    alice.kill()
    eventually(lambda: not _lives(pid), SOON, "the data path's process is gone")
    assert not _has_tun(alice)
    alice.start(*TWO)
    eventually(lambda: answers(alice, bob.address()), 2 * SOON, "alice reaches bob again")
    assert _stamps(alice) > stamps


def test_node_goes_back_to_one_process_with_the_same_state(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    address = alice.address()
    assert alice.stop() == 0
    alice.start()
    eventually(lambda: answers(alice, bob.address()), 2 * SOON, "alice reaches bob again")
    assert alice.address() == address
    assert _data_paths(alice) == []
    assert _has_tun(alice)


def test_setting_comes_from_environment_and_file_too_and_another_number_is_refused(net: Network, pair: tuple[Node, Node], tmp_path: Path) -> None:
    alice, bob = pair
    (tmp_path / "node.toml").write_text("processes = 2\n")
    for words, environment in (((), {"CALNET_PROCESSES": "2"}), (("--config", str(tmp_path / "node.toml")), None)):
        assert alice.stop() == 0
        alice.start(*words, environment=environment)
        assert data_path(alice)
    eventually(lambda: answers(alice, bob.address()), 2 * SOON, "alice reaches bob again")
    for wrong in ("0", "3", "x"):
        refused = alice.command("node", "--processes", wrong)
        assert refused.status == 2
        assert "--processes" in refused.err
        assert "from 1 to 2" in refused.err
    assert alice.command("node-data-path").status == 2
    assert "node-data-path" not in alice.command("--help").out
