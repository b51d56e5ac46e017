"""What a server leaves to the next one: the file, whom the next one awaits, and what nodes are told that come back."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import uvloop

from calnet.model import Endpoint, NodeId
from calnet.roles.server.handover import FILE_NAME, Handover, take_handover, write_handover
from calnet.roles.server.netmaps import Kept, Presence, View, rest_digest
from calnet.roles.server.registry import AWAITED_S
from calnet.roles.server.settings import HostPort, ServerSettings
from calnet.wire import control
from tests.roles.server.client import Machine
from tests.roles.server.registries import Office, done
from tests.roles.server.world import FAST, running

ONE, TWO = NodeId(1), NodeId(2)
HERE = Presence(online=True, awaited=True, since=5.5, endpoints=(Endpoint("192.0.2.1", 7),), health=({"code": "a", "severity": "warning", "text": "b"},))
HANDOVER = Handover(Kept(9, {ONE: (7, b"d" * 16)}), {ONE: HERE}, {ONE: (View(5, 5, 0, b""), View(7, 8, 1 << 300, b"e" * 16)), TWO: ()})


def test_handover_is_read_once_and_is_private(tmp_path: Path) -> None:
    write_handover(tmp_path, HANDOVER)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert take_handover(tmp_path) == HANDOVER
    assert take_handover(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def damaged() -> dict[str, bytes]:
    whole = msgspec.msgpack.encode({"last": 1, "changed": {}, "present": {}, "views": {}})
    return {
        "empty": b"",
        "no zlib": b"hello",
        "cut": zlib.compress(whole)[:-6],
        "no msgpack": zlib.compress(b"\xc1"),
        "of another shape": zlib.compress(msgspec.msgpack.encode({"last": "x"})),
        "negative": zlib.compress(msgspec.msgpack.encode({"last": -1, "changed": {}, "present": {}, "views": {}})),
        "deep": zlib.compress(b"\x91" * 100_000),
        "an endpoint that is none": zlib.compress(msgspec.msgpack.encode({"last": 1, "changed": {}, "present": {1: [None, ["x"], []]}, "views": {}})),
    }


@pytest.mark.parametrize("what", damaged())
def test_damaged_handover_is_none_and_goes(tmp_path: Path, what: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(damaged()[what])
    path.chmod(0o600)
    assert take_handover(tmp_path) is None
    assert not path.exists()


def handed(office: Office, *nodes: NodeId) -> dict[NodeId, View]:
    """Start the office's registry anew, by a handover; what the nodes were told before, as it comes through the file."""
    told = {node: office.registry.news(node, None)[0] for node in nodes}
    views = {node: replace(view, rest=view.rest if isinstance(view.rest, bytes) else rest_digest(view.rest)) for node, view in told.items()}
    handover = office.registry.hand_over({node: (view,) for node, view in views.items()})
    write_handover(office.directory, handover)
    office.reopen()
    taken = take_handover(office.directory)
    assert taken is not None
    office.registry.resume(taken)
    office.last()
    return views


def test_nodes_that_come_back_are_no_news(tmp_path: Path) -> None:
    office = Office(tmp_path / "state")
    one, two = office.join(), office.join()
    for node in (one, two):
        office.registry.connected(node)
        office.registry.publish(node, HERE.endpoints)
    views = handed(office, one, two)
    for node in (one, two):
        office.now += 3
        office.registry.connected(node, b"from elsewhere")
        office.registry.publish(node, HERE.endpoints)
    assert office.last().netmaps == frozenset()
    for node in (one, two):
        view, message = office.registry.news(node, views[node])
        assert (view.version, message) == (views[node].version, None)
    office.registry.close()


def test_nodes_that_do_not_come_back_are_awaited_for_a_while(tmp_path: Path) -> None:
    office = Office(tmp_path / "state")
    one, two, away = office.join(), office.join(), office.join()
    office.registry.connected(one)
    office.registry.connected(two)
    handed(office)
    office.registry.connected(one)
    assert [peer.online for peer in office.netmap(away).peers] == [True, True]
    due = office.registry.next_deadline()
    assert due == office.now + AWAITED_S
    office.now = due
    done(office.registry.housekeeping())
    assert [peer.online for peer in office.netmap(away).peers] == [True, False]
    assert office.netmap(away).peers[1].last_seen_at == office.now
    assert office.registry.next_deadline() != due
    office.registry.close()


def test_what_changed_while_no_server_ran_is_told(tmp_path: Path) -> None:
    office = Office(tmp_path / "state")
    one, two, gone = office.join("one"), office.join("two"), office.join("gone")
    told, _ = office.registry.news(one, None)
    assert not isinstance(told.rest, bytes)
    handover = office.registry.hand_over({one: (replace(told, rest=rest_digest(told.rest)),)})
    done(office.registry.rename_node(str(two), "renamed"))  # as another server on the store would
    done(office.registry.delete_node(str(gone)))
    new = office.join("new")
    office.reopen()
    office.registry.resume(handover)
    _, message = office.registry.news(one, handover.views[one][0])
    assert isinstance(message, control.NetmapDelta)
    heard = control.decode_from_server(control.encode(message))
    assert isinstance(heard, control.NetmapDelta)
    assert ([(peer.id, peer.name) for peer in heard.put], heard.removed) == ([(two, "renamed"), (new, "new")], (gone,))
    assert heard.self is None
    office.registry.close()


def test_node_that_names_its_version_after_a_restart_is_told_that_nothing_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, two = Machine("one"), Machine("two")
        async with running(tmp_path, timing=FAST) as world:
            key = await world.auth_key()
            ports = ServerSettings(listen=HostPort("127.0.0.1", world.server.port), stun_listen=HostPort("127.0.0.1", world.server.stun_port))
            async with world.control(two) as other, world.control(one) as session:
                await other.join(key)
                await session.join(key)
                netmap = await session.until(lambda held: any(peer.online for peer in held.peers))
                held = await other.until(lambda held: any(peer.online for peer in held.peers))
                await world.server.stop()
        async with running(tmp_path, timing=FAST, settings=ports, same_ports=True) as world, world.control(one) as session, world.control(two) as other:
            await session.say(control.Subscribe(netmap.version))
            assert (await session.expect(control.NetmapUnchanged)).version == netmap.version
            await other.say(control.Subscribe(held.version - 1))
            assert isinstance(await other.expect(control.NetmapFull), control.NetmapFull)
            assert not any(isinstance(message, control.NetmapDelta) for message in session.heard)

    uvloop.run(scenario())
