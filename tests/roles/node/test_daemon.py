"""The daemon's states and what follows from them, with server, data path and machine in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Interface, ip_interface, ip_network
from pathlib import Path

import pytest

from calnet.crypto.keys import PrivateKey
from calnet.errors import (
    AuthenticationError,
    ForbiddenError,
    HostError,
    InvalidError,
    LoginNeededError,
    StateError,
    TimedOutError,
    UnreachableError,
)
from calnet.host.interfaces import Gateway, Interface, NetworkView
from calnet.host.netlink import LinkConfig, numbers_for
from calnet.model import Endpoint, NodeId, NodeKey
from calnet.roles.node import daemon as daemon_module
from calnet.roles.node import relay_link
from calnet.roles.node.engine import PeerStatus
from calnet.roles.node.state import StateDirectory
from calnet.wire import control
from calnet.wire import netmap as netmaps
from tests.roles.node.fakes import URL, FakeServer, World, a_netmap, a_peer, run, until
from tests.status_document import PEER, SELF, SERVER, STATUS


def test_daemon_without_a_login_waits(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        assert world.daemon.state_name() == "needs-login"
        assert world.engines == []
        assert world.server.sessions == []
        with pytest.raises(InvalidError, match="--server"):
            await world.call("up")

    run(tmp_path, script)


def test_up_with_an_auth_key_runs_and_sets_up_the_machine(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        assert await world.up(hostname="alice") == {"state": "running"}
        (registered,) = world.server.registered
        assert (registered.hostname, registered.os, registered.auth_key) == ("alice", "linux", world.server.auth_key())
        assert registered.node_key == world.daemon.state.keys.node.public
        assert world.network.configured is not None
        assert world.network.configured.routes == a_netmap().prefixes
        assert world.nft.installed is not None
        assert world.engine.netmaps[-1] == (a_netmap(), False)
        assert world.engine.endpoints == (Endpoint("192.0.2.7", world.engine.port),)
        await until(lambda: world.engine.relay_states[-1:] == [True])
        assert await world.call("wait", timeout_s=5) == {"state": "running"}
        assert await world.call("ip") == {"ips": ["100.70.0.1", "fd12::1"]}

    run(tmp_path, script)


def test_interface_takes_longer_packets_once_a_path_does(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await until(lambda: world.network.configured is not None and world.network.configured.mtu == 1280)
        world.engine.mtu = 1420
        world.engine.host.mtu_raised(1420)
        await until(lambda: world.network.configured is not None and world.network.configured.mtu == 1420)

    run(tmp_path, script)


def test_halt_undoes_what_was_set_up(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.halt()
        assert world.network.configured is None
        assert world.nft.installed is None
        assert world.engine.closed
        assert not (tmp_path / "state" / "host.json").exists()

    run(tmp_path, script)


def test_halt_in_the_middle_of_setting_up_undoes_that_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(world: World) -> None:
        await world.boot()
        begun, go_on = asyncio.Event(), asyncio.Event()
        configure = world.network.configure

        async def slowly(wanted: LinkConfig) -> tuple[str, ...]:
            begun.set()
            await go_on.wait()
            return await configure(wanted)

        monkeypatch.setattr(world.network, "configure", slowly)
        going_up = asyncio.create_task(world.up())
        await begun.wait()
        halting = asyncio.create_task(world.halt())
        await until(lambda: world.engine.closed)
        go_on.set()
        await halting
        going_up.cancel()
        await asyncio.gather(going_up, return_exceptions=True)
        assert world.network.configured is None
        assert world.network.removed
        assert not (tmp_path / "state" / "host.json").exists()

    run(tmp_path, script)


def test_start_after_a_crash_cleans_what_was_left(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        directory = StateDirectory(tmp_path / "state", world.random.randbytes)
        directory.record_host("old0", numbers_for("old0"))
        directory.close()
        await world.boot()
        assert world.network.removed == [(numbers_for("old0"), "old0")]
        assert not (tmp_path / "state" / "host.json").exists()

    run(tmp_path, script)


def test_restart_comes_up_by_itself_also_without_the_server(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        port, key = world.engine.port, world.daemon.state.keys.node.public
        await world.halt()
        world.server.reachable = False
        await world.boot()
        await until(lambda: world.daemon.state_name() == "running")
        assert world.engine.netmaps[-1][0].peers == a_netmap().peers
        assert (world.engine.port, world.daemon.state.keys.node.public) == (port, key)
        assert await world.call("up") == {"state": "running"}
        with pytest.raises(TimedOutError, match="connection refused"):
            await world.call("wait", timeout_s=0.05)
        world.clock.advance(11.0)
        assert {"server-unreachable", "relay-unreachable"} <= set(world.codes())

    run(tmp_path, script)


def test_restart_after_down_stays_down_until_up(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        assert await world.call("down") == {"state": "stopped"}
        assert world.network.configured is None
        assert world.engine.closed
        await world.halt()
        await world.boot()
        assert world.daemon.state_name() == "stopped"
        assert await world.call("up") == {"state": "running"}
        assert len(world.server.registered) == 1

    run(tmp_path, script)


def test_server_restart_leaves_the_data_path_alone(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await until(lambda: world.engine.relay_states[-1:] == [True])
        world.server.reachable = False
        await world.server.drop()
        await until(lambda: world.daemon.control.client is not None and not world.daemon.control.client.connected)
        await until(lambda: world.engine.relay_states[-1] is False)
        assert world.daemon.state_name() == "running"
        world.server.reachable = True
        await world.call("wait", timeout_s=20)
        await until(lambda: world.engine.relay_states[-1] is True)
        assert len(world.engines) == 1
        assert world.network.configured is not None
        await until(lambda: control.Subscribe(1, "0.test", ("chunks",)) in world.server.session.heard)

    run(tmp_path, script)


def test_delta_is_applied_and_kept_for_the_next_start(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.server.change(a_netmap(2, (a_peer(3), a_peer(4))))
        await until(lambda: world.engine.netmaps[-1][0].version == 2)
        await until(lambda: (world.daemon.directory.load_netmap()[0] or a_netmap()).version == 2)
        assert [peer.id for peer in world.engine.netmaps[-1][0].peers] == [3, 4]

    run(tmp_path, script)


def test_delta_that_does_not_fit_asks_for_the_whole(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.netmap = a_netmap(7, (a_peer(9),))
        await world.server.session.say(control.NetmapDelta(since=5, version=6))
        await until(lambda: world.engine.netmaps[-1][0].version == 7)

    run(tmp_path, script)


def test_up_without_a_key_waits_for_approval(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.after_register = "pending"
        await world.boot()
        going_up = asyncio.create_task(world.call("up", server=URL, timeout_s=5))
        await until(lambda: world.events)
        assert world.events[0]["approve_code"] == "CODE"
        assert world.daemon.state_name() == "needs-approval"
        assert not going_up.done()
        world.server.standing = "active"
        assert world.server.netmap is not None
        await world.server.session.say(control.State("active"))
        await world.server.session.say(netmaps.wire_netmap(world.server.netmap))
        assert await going_up == {"state": "running"}

    run(tmp_path, script)


def test_up_cancelled_while_pending_leaves_the_node_waiting(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.after_register = "pending"
        await world.boot()
        going_up = asyncio.create_task(world.call("up", server=URL))
        await until(lambda: world.events)
        going_up.cancel()
        await asyncio.gather(going_up, return_exceptions=True)
        await world.halt()
        await world.boot()
        await until(lambda: world.daemon.state_name() == "needs-approval")
        with pytest.raises(LoginNeededError, match="not approved"):
            await world.call("wait", timeout_s=0.05)

    run(tmp_path, script)


def test_up_refused_says_why_and_leaves_the_keys(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.refusal = ForbiddenError("the auth key is used up")
        await world.boot()
        with pytest.raises(ForbiddenError, match="used up"):
            await world.up()
        assert not world.daemon.state.registered
        assert world.daemon.state_name() == "needs-login"
        world.server.refusal = None
        assert await world.up() == {"state": "running"}

    run(tmp_path, script)


def test_up_without_a_server_in_reach_names_it(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.reachable = False
        await world.boot()
        with pytest.raises(UnreachableError, match="connection refused"):
            await world.up(timeout_s=0.1)
        world.server.reachable = True
        await until(lambda: world.daemon.control.connected)
        assert world.daemon.state_name() == "needs-login"

    run(tmp_path, script)


@pytest.mark.parametrize("key", ["calnet-", "calnet-abc", "tskey-auth-x", "calnet-" + "a" * 95])
def test_up_with_something_that_is_no_key_never_repeats_it(tmp_path: Path, key: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        with pytest.raises(InvalidError) as raised:
            await world.call("up", server=URL, auth_key=key)
        assert key not in str(raised.value).replace("`calnet-`", "")
        assert not world.daemon.state.prefs.want_up

    run(tmp_path, script)


def test_login_renews_the_keys_and_both_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_link, "CHANGE_KEY_AFTER_S", 0.0)

    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        before = world.daemon.state.keys
        assert await world.call("login") == {"state": "running"}
        after = world.daemon.state.keys
        assert after.control is before.control
        assert after.node.public != before.node.public
        assert after.previous is not None
        assert after.previous.public == before.node.public
        assert world.engine.identities == [before.node.public, after.node.public]
        assert len(world.engines) == 1
        assert [message.node_key for message in world.server.registered] == [before.node.public, after.node.public]
        world.clock.advance(daemon_module.PREVIOUS_KEY_S + 1)
        world.daemon._end_previous_key()
        assert world.daemon.state.keys.previous is None

    run(tmp_path, script)


def test_login_refused_brings_the_old_keys_back(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        before = world.daemon.state.keys.node.public
        world.server.refusal = ForbiddenError("no")
        with pytest.raises(ForbiddenError):
            await world.call("login")
        assert world.daemon.state.keys.node.public == before
        assert not world.daemon.state.unconfirmed
        assert world.daemon.state_name() == "running"

    run(tmp_path, script)


def test_crash_in_mid_renewal_registers_the_same_keys_again(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.silent_to = (control.Register,)
        login = asyncio.create_task(world.call("login"))
        await until(lambda: world.daemon.state.unconfirmed and any(isinstance(m, control.Register) for m in world.server.session.heard[1:]))
        login.cancel()
        await asyncio.gather(login, return_exceptions=True)
        renewed = world.daemon.state.keys.node.public
        await world.halt()
        world.server.silent_to = ()
        await world.boot()
        await until(lambda: not world.daemon.state.unconfirmed)
        assert world.server.registered[-1].node_key == renewed
        assert world.daemon.state.keys.node.public == renewed

    run(tmp_path, script)


def test_logout_ends_the_data_path_and_needs_a_login(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        assert await world.call("logout") == {"state": "needs-login"}
        assert isinstance(world.server.heard[-1], control.Logout)
        assert world.engine.closed
        assert world.daemon.directory.load_netmap() == (None, None)
        await world.halt()
        await world.boot()
        assert world.daemon.state_name() == "needs-login"

    run(tmp_path, script)


def test_logout_without_the_server_holds_here_and_is_told_later(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.reachable = False
        await world.server.drop()
        await until(lambda: world.daemon.control.client is not None and not world.daemon.control.client.connected)
        assert await world.call("logout") == {"state": "needs-login"}
        assert "not reached" in str(world.events[-1])
        world.server.reachable = True
        await until(lambda: any(isinstance(message, control.Logout) for message in world.server.heard))

    run(tmp_path, script)


def test_own_key_expiry_is_honoured_without_the_server(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        expires = world.clock.wall + 1000
        netmap = a_netmap()
        world.server.netmap = replace(netmap, self=replace(netmap.self, key_expires=expires))
        await world.boot()
        await world.up()
        await world.halt()
        world.server.reachable = False
        world.clock.advance(1001)
        await world.boot()
        assert world.daemon.state_name() == "needs-login"
        assert world.engine.closed
        assert len(world.engines) == 1
        assert "key-expired" in world.codes()

    run(tmp_path, script)


def test_server_time_decides_where_the_clock_is_wrong(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.time_ahead = 3600.0
        await world.boot()
        await world.up()
        assert world.daemon.now() == pytest.approx(world.clock.wall + 3600.0)
        assert "clock" in world.codes()

    run(tmp_path, script)


def test_candidates_and_relayed_datagrams_reach_the_data_path(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.server.session.say(control.Candidates(2, ("198.51.100.2:4000",)))
        await until(lambda: world.engine.candidates_in)
        assert world.engine.candidates_in == [(2, (Endpoint("198.51.100.2", 4000),))]
        await until(lambda: world.server.relays)
        await world.server.relays[-1].deliver(bytes((3,)) * 32, b"hello")
        await world.server.relays[-1].deliver(b"?" * 32, b"a stranger's")
        await world.server.relays[-1].deliver(bytes((2,)) * 32, b"again")
        await until(lambda: len(world.engine.relayed_in) == 2)
        assert world.engine.relayed_in == [(3, b"hello"), (2, b"again")]
        world.daemon.send_relayed(NodeId(3), [b"out", memoryview(b"going")])
        await until(lambda: len(world.server.relays[-1].datagrams) == 2)
        assert world.server.relays[-1].datagrams == [(bytes((3,)) * 32, b"out"), (bytes((3,)) * 32, b"going")]
        world.daemon.send_candidates(NodeId(2), (Endpoint("192.0.2.7", 1),))
        await until(lambda: control.Candidates(2, ("192.0.2.7:1",)) in world.server.heard)

    run(tmp_path, script)


def test_network_change_is_told_to_the_data_path_and_published(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.network.change(NetworkView((Interface(3, "wlan0", True, (IPv4Interface("203.0.113.9/24"),)),)))
        expected = Endpoint("203.0.113.9", world.engine.port)
        await until(lambda: world.engine.endpoints == (expected,))
        await until(lambda: control.Publish((str(expected),)) in world.server.heard)

    run(tmp_path, script)


def endpoints(*texts: tuple[str, int]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(*text) for text in texts)


def test_move_takes_another_port_and_keeps_it(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        first = world.engine.port
        wired = Interface(2, "eth0", True, (IPv4Interface("192.0.2.7/24"),))
        world.network.change(NetworkView((wired,), (Gateway(0, "192.0.2.1", 2),)))
        await until(lambda: world.daemon.setup.view.gateways)
        await until(lambda: world.engine.endpoints == endpoints(("192.0.2.7", first)))
        assert not world.engine.moved
        wireless = Interface(3, "wlan0", True, (IPv4Interface("192.0.2.8/24"),))
        world.network.change(NetworkView((wired, wireless), (Gateway(0, "192.0.2.1", 2), Gateway(600, "192.0.2.1", 3))))
        await until(lambda: world.engine.endpoints == endpoints(("192.0.2.7", first), ("192.0.2.8", first)))
        assert not world.engine.moved, "the way out is the same"
        world.network.change(NetworkView((wired,)))
        await until(lambda: world.engine.endpoints == endpoints(("192.0.2.7", first)))
        world.network.change(NetworkView((wireless,), (Gateway(600, "192.0.2.1", 3),)))
        await until(lambda: world.engine.moved)
        assert world.engine.endpoints == (Endpoint("192.0.2.8", first + 1),)
        assert world.daemon.state.prefs.port == world.daemon.udp_port() == first + 1

    run(tmp_path, script)


def test_port_is_kept_where_ipv4_comes_later_than_ipv6_or_goes_for_a_while(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        six, four = ip_interface("2001:db8::7/64"), ip_interface("192.0.2.7/24")
        ways = Gateway(0, "192.0.2.1", 2), Gateway(1024, "fe80::1", 2)
        alone = NetworkView((Interface(2, "eth0", True, (six,)),), ways[1:])
        both = NetworkView((Interface(2, "eth0", True, (four, six)),), ways)
        world.network.present = alone
        await world.boot()
        await world.up()
        first = world.engine.port
        for view, addresses in ((both, ("192.0.2.7", "2001:db8::7")), (alone, ("2001:db8::7",)), (both, ("192.0.2.7", "2001:db8::7"))):
            world.network.change(view)
            await until(lambda: world.engine.endpoints == tuple(Endpoint(address, first) for address in addresses))  # noqa: B023 - awaited here
            assert not world.engine.moved

    run(tmp_path, script)


def test_port_that_the_user_fixed_stays_over_a_move(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot(fixed_port=41_641)
        await world.up()
        for last in (7, 8):
            world.network.change(NetworkView((Interface(2, "eth0", True, (IPv4Interface(f"192.0.2.{last}/24"),)),), (Gateway(0, "192.0.2.1", 2),)))
            await until(lambda: world.engine.endpoints == endpoints((f"192.0.2.{last}", 41_641)) and world.daemon.setup.view.gateways)  # noqa: B023 - awaited here
        await until(lambda: world.engine.moved)

    run(tmp_path, script)


def test_attached_subnet_that_appears_is_taken_out_of_the_tunnel(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.netmap = a_netmap(peers=(a_peer(2, routes=(ip_network("10.0.0.0/8"),)),))
        await world.boot()
        await world.up(accept_routes=True)
        await until(lambda: world.network.configured is not None and ip_network("10.0.0.0/8") in world.network.configured.routes)
        world.network.change(NetworkView((Interface(3, "eth1", True, (IPv4Interface("10.5.0.9/16"),)),)))
        await until(lambda: world.network.configured is not None and world.network.configured.excepted == (ip_network("10.5.0.0/16"),))

    run(tmp_path, script)


def test_last_working_endpoint_is_kept_before_the_published_ones(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.netmap = a_netmap(peers=(a_peer(2, endpoints=(Endpoint("10.1.1.1", 1),)),))
        await world.boot()
        await world.up()
        working = Endpoint("198.51.100.2", 7)
        world.daemon.path_changed(NodeId(2), "direct", working)
        await world.halt()
        world.server.reachable = False
        await world.boot()
        assert world.engine.netmaps[0][0].peers[0].endpoints == (working, Endpoint("10.1.1.1", 1))

    run(tmp_path, script)


def test_prefix_that_moves_to_another_router_is_logged_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def script(world: World) -> None:
        lan = ip_network("10.0.0.0/8")
        world.server.netmap = a_netmap(peers=(a_peer(2, routes=(lan,)), a_peer(3, backup_routes=(lan,))))
        await world.boot()
        await world.up(accept_routes=True)
        assert "router-silent" not in world.codes()
        world.engine.standing[NodeId(3)] = replace(daemon_module.NO_STATUS, carries=(lan,))
        with caplog.at_level("INFO"):
            world.daemon.router_moved(lan, NodeId(2), NodeId(3), "no answer for 9 s")
        assert caplog.messages == ["router_moved prefix=10.0.0.0/8 from=node2 to=node3 why=no answer for 9 s"]
        assert "router-silent" in world.codes()
        peers = (await world.call("status"))["peers"]
        assert [(shown["routes"], shown["backup_routes"], shown["carries"]) for shown in peers] == [([str(lan)], [], []), ([], [str(lan)], [str(lan)])]

    run(tmp_path, script)


def test_key_change_of_a_peer_is_shown_and_a_pinned_one_refused(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.call("set", pin="node3")
        strange = a_netmap(2, (a_peer(2, node_key=NodeKey(b"x" * 32)), a_peer(3, node_key=NodeKey(b"y" * 32))))
        await world.server.change(strange)
        await until(lambda: world.engine.netmaps[-1][0].version == 2)
        assert [peer.id for peer in world.engine.netmaps[-1][0].peers] == [2]
        assert world.codes().count("peer-key-changed") == 2
        assert "pinned-key-changed" in world.codes()
        await world.call("set", unpin="node3")
        assert [peer.id for peer in world.engine.netmaps[-1][0].peers] == [2, 3]

    run(tmp_path, script)


def test_server_with_another_key_is_refused_until_pinned_anew(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        impostor = FakeServer(PrivateKey(b"\x77" * 32))
        world.server.key = impostor.key
        await world.server.drop()
        await until(lambda: world.daemon.control.key_error is not None)
        assert "server-key-changed" in world.codes()
        assert world.daemon.state_name() == "running"
        with pytest.raises(AuthenticationError, match="does not hold the control key"):
            await world.call("login", timeout_s=5)
        world.server.standing = "unregistered"
        assert await world.up(timeout_s=20) == {"state": "running"}
        assert world.daemon.state.server_key == impostor.key.public

    run(tmp_path, script)


def test_moving_to_another_server_forgets_the_old_ones_netmap(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.key = PrivateKey(b"\x78" * 32)
        world.server.standing = "unregistered"
        world.server.netmap = a_netmap(1, (a_peer(9),))
        assert await world.call("up", server="http://server.test:9999", auth_key=world.server.auth_key(), timeout_s=20) == {"state": "running"}
        assert [peer.id for peer in world.engine.netmaps[-1][0].peers] == [9]

    run(tmp_path, script)


def test_host_that_refuses_is_a_health_line_and_tried_again(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.network.refuse = HostError("can't set up the interface: not permitted")
        await world.boot()
        with pytest.raises(TimedOutError, match="not permitted"):
            await world.up(timeout_s=0.3)
        assert world.daemon.state_name() == "starting"
        world.network.refuse = None
        world.network.change(NetworkView(()))
        await until(lambda: world.daemon.state_name() == "running")

    run(tmp_path, script)


def test_missing_nft_is_a_health_line_and_no_failure(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.nft.refuse = HostError("the program nft is not there")
        await world.boot()
        await world.up()
        assert "nft" in world.codes()

    run(tmp_path, script)


def test_data_path_that_can_not_open_fails_up_and_a_start(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.halt()
        world.engine_error = HostError("UDP port 40001 is taken")
        with pytest.raises(HostError, match="taken"):
            await world.boot()

    run(tmp_path, script)


def test_stamp_that_can_not_be_kept_is_refused_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()

        def full(static: bytes, timestamp: bytes, sent: bool) -> None:
            raise StateError("no space left on that disk")

        monkeypatch.setattr(world.daemon.directory.stamps, "persist", full)
        with pytest.raises(StateError):
            world.daemon.persist_timestamp(b"k" * 32, b"t" * 12, False)
        assert "stamps" in world.codes()
        monkeypatch.undo()
        world.daemon.persist_timestamp(b"k" * 32, b"t" * 12, False)
        assert "stamps" not in world.codes()
        assert world.daemon.directory.stamps.accepted == {b"k" * 32: b"t" * 12}

    run(tmp_path, script)


def test_data_path_that_ends_by_itself_is_opened_again_at_once_and_nothing_else_is_disturbed(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await until(lambda: world.engine.relay_states[-1:] == [True])
        first = world.engine
        first.host.engine_ended("was ended by SIGKILL")
        assert first.closed
        status = await world.call("status")
        assert (status["state"], [peer["path"] for peer in status["peers"]]) == ("starting", ["none", "none"])
        (line,) = (line for line in status["health"] if line["code"] == "data-path")
        assert line["severity"] == "error"
        assert line["text"] == "the data path's process was ended by SIGKILL: nothing is carried until a new one runs, which is started now"
        await until(lambda: len(world.engines) == 2 and world.daemon.state_name() == "running")
        assert world.engine.port == first.port
        assert world.engine.netmaps == [(a_netmap(), False)]
        assert world.engine.relay_states == [True], "the relay's connection stands, and the new one hears of it"
        assert world.engine.endpoints == (Endpoint("192.0.2.7", first.port),)
        assert world.network.configured is not None
        assert "data-path" not in world.codes()
        (line,) = (line for line in (await world.call("status"))["health"] if line["code"] == "data-path-restarted")
        assert (line["severity"], line["text"]) == ("warning", "the data path's process was ended by SIGKILL; a new one took its place")
        assert (len(world.server.sessions), len(world.server.relays)) == (1, 1)

    run(tmp_path, script)


def test_data_path_that_does_not_last_is_opened_again_after_pauses_and_down_ends_that(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await until(lambda: world.engine.relay_states[-1:] == [True])
        world.engine.host.engine_ended("was ended by SIGSEGV")
        await until(lambda: len(world.engines) == 2)
        world.engine.host.engine_ended("was ended by SIGSEGV")
        for _ in range(3):
            world.daemon.settle()  # whatever else happens does not cut the pause short
        await asyncio.sleep(0)
        assert len(world.engines) == 2
        assert "data-path" in world.codes()
        world.clock.advance(1.0)
        await until(lambda: len(world.engines) == 3)
        assert len(world.server.relays) == 1, "the relay's connection stands all the while"
        assert world.engine.relay_states == [True]
        world.engine_error = HostError("the device is busy")
        world.engine.host.engine_ended("was ended by SIGSEGV")
        world.clock.advance(60.0)
        await until(lambda: "host" in world.codes())
        assert "data-path" in world.codes()
        await world.call("down")
        assert not {"data-path", "host"} & set(world.codes())
        world.engine_error = None
        await world.call("up")
        assert world.daemon.state_name() == "running"
        assert len(world.engines) == 4

    run(tmp_path, script)


def test_data_path_hears_the_servers_time_when_it_opens_and_as_it_changes(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.time_ahead = 7.0
        await world.boot()
        await world.up()
        assert world.engine.clock_offset == pytest.approx(7.0)
        await world.server.session.say(control.Pong(1, world.clock.wall - 3.0))
        await until(lambda: world.engine.clock_offset == pytest.approx(-3.0))

    run(tmp_path, script)


def test_data_path_that_does_not_answer_leaves_status_and_metrics_standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> None:
        raise TimedOutError("the data path's process does not answer")

    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.engine.standing[NodeId(2)] = PeerStatus("direct", None, None, None, 0, 0)
        for name in ("statuses", "figures", "change_port"):
            monkeypatch.setattr(world.engine, name, silent)
        assert [peer["path"] for peer in (await world.call("status"))["peers"]] == ["none", "none"]
        text = (await world.call("metrics"))["text"]
        assert "calnet_up 1" in text
        assert "calnet_dropped_packets_total" not in text
        world.network.change(NetworkView((Interface(3, "eth1", True, (IPv4Interface("192.0.2.8/24"),)),)))
        await until(lambda: world.engine.endpoints == (Endpoint("192.0.2.8", world.engine.port),))

    run(tmp_path, script)


def test_damaged_netmap_is_set_aside_and_fetched_anew(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.halt()
        (tmp_path / "state" / "netmap").write_bytes(b"broken")
        await world.boot()
        assert (tmp_path / "state" / "netmap.damaged").read_bytes() == b"broken"
        await world.call("wait", timeout_s=20)
        assert "netmap" in world.codes()

    run(tmp_path, script)


def test_machine_that_slept_looks_for_paths_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "TICK_S", 0.01)

    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.engine.endpoints = ()
        world.clock.elapsed += 600
        world.clock.wall += 600
        await until(lambda: world.engine.endpoints)

    run(tmp_path, script)


def test_status_document_has_the_fields_that_scripts_rely_on(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.engine.standing[NodeId(2)] = PeerStatus("relay", None, 0.0121, world.clock.wall - 3.2, 10, 20)
        status = await world.call("status")
        assert status["peers"][0]["path_note"] is None
        world.engine.standing[NodeId(2)] = replace(world.engine.standing[NodeId(2)], left="UDP is throttled here")
        assert (await world.call("status"))["peers"][0]["path_note"] == "UDP is throttled here"
        assert set(status) == STATUS
        assert set(status["server"]) >= SERVER
        assert status["server"]["url"] == URL
        assert set(status["self"]) >= SELF
        bob = status["peers"][0]
        assert set(bob) >= PEER
        assert (bob["path"], bob["endpoint"], bob["rtt_ms"], bob["last_handshake_s"], bob["rx_bytes"], bob["tx_bytes"]) == ("relay", None, 12.1, 3.2, 10, 20)

    run(tmp_path, script)
