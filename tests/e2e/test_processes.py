"""Two nodes whose data path has a process of its own (`calnet node --processes 2`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from calnet.roles.demo.product import Node, eventually
from tests.e2e.network import SOON, Network, answers, await_direct, send_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def children(pid: int) -> list[int]:
    """The processes that `pid` started."""
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()]


def data_path(node: Node) -> int:
    """The process of its data path."""
    assert node.process is not None
    daemon = node.process.pid
    found = eventually(lambda: [pid for pid in descendants(daemon) if "node-data-path" in command_line(pid)], SOON, "the data path has a process")
    (pid,) = found
    return pid


def descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        try:
            found += children(each)
        except OSError:
            continue
    return found


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


@pytest.fixture(scope="module")
def pair(net: Network) -> tuple[Node, Node]:
    alice, bob = (net.join(name, daemon=("--processes", "2")) for name in ("alice", "bob"))
    net.acquaint("alice", "bob")
    return alice, bob


def test_pings_and_files_go_both_ways_directly(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    assert data_path(alice) != data_path(bob)
    eventually(lambda: answers(alice, bob.address()), SOON, "alice reaches bob")
    await_direct(alice, bob)
    content = os.urandom(20_000_003)
    assert send_file(alice, bob, content)
    assert send_file(bob, alice, content)
