"""Attacks on the node daemon: cut-off peers, greedy routes, swapped keys, local users, state files, logs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import stat
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from calnet.crypto.keys import PrivateKey, encode_key
from calnet.errors import AuthenticationError, InvalidError, NotPermittedError, StateError, UsageError
from calnet.host.local_socket import serve_local
from calnet.host.nft import Ruleset, render
from calnet.host.process import no_core_dumps
from calnet.model import NodeId, NodeKey
from calnet.roles.cli import client
from calnet.roles.node import main as node_main
from calnet.roles.node.log_format import SafeFormatter
from calnet.roles.node.state import StateDirectory
from calnet.wire import control
from tests.roles.node.fakes import URL, World, a_netmap, a_peer, run, until

NOBODY = 65_534


def test_attack_12_guard_drops_each_own_address_by_other_interfaces() -> None:
    text = render(Ruleset("calnet0", (ip_address("100.70.0.1"), ip_address("fd12::1"))))
    for match in ("ip daddr 100.70.0.1", "ip6 daddr fd12::1"):
        assert f'iifname != "calnet0" {match} fib saddr type != local drop' in text


@pytest.mark.parametrize("gone", ["removed", "renewed"])
def test_attack_23_peer_taken_away_is_gone_from_the_data_path_at_once(tmp_path: Path, gone: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        left = () if gone == "removed" else (a_peer(2, node_key=NodeKey(b"n" * 32)),)
        await world.server.change(a_netmap(2, left))
        await until(lambda: world.engine.netmaps[-1][0].peers == left, 1.0)

    run(tmp_path, script)


@pytest.mark.parametrize("standing", ["disabled", "expired", "unregistered"])
def test_attack_23_node_that_is_cut_off_stops_and_stays_so_over_a_restart_without_the_server(tmp_path: Path, standing: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.standing = standing
        await world.server.session.say(control.State(standing))
        await until(lambda: world.engine.closed, 1.0)
        await until(lambda: world.network.configured is None)
        await world.halt()
        world.server.reachable = False
        await world.boot()
        assert len(world.engines) == 1
        assert world.daemon.state_name() in ("needs-login", "starting")

    run(tmp_path, script)


def test_attack_23_stored_netmap_keeps_the_peers_key_expiry(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.netmap = a_netmap(peers=(a_peer(2, key_expires=world.clock.wall + 60),))
        await world.boot()
        await world.up()
        await world.halt()
        world.server.reachable = False
        await world.boot()
        assert world.engine.netmaps[0][0].peers[0].key_expires == world.clock.wall + 60

    run(tmp_path, script)


@pytest.mark.parametrize("route", ["0.0.0.0/0", "::/0", "100.70.0.0/24", "100.70.0.3/32", "100.0.0.0/8", "fd12::3/128", "127.0.0.0/8", "169.254.0.0/16"])
def test_attack_26_route_that_would_take_too_much_is_never_installed(tmp_path: Path, route: str) -> None:
    async def script(world: World) -> None:
        world.server.netmap = a_netmap(peers=(a_peer(2, routes=(ip_network(route), ip_network("10.0.0.0/8"))), a_peer(3)))
        await world.boot()
        await world.up(accept_routes=True)
        assert world.network.configured is not None
        assert world.network.configured.routes == (*a_netmap().prefixes, ip_network("10.0.0.0/8"))
        assert world.engine.netmaps[-1][0].peers[0].routes == (ip_network("10.0.0.0/8"),)
        assert "route-refused" in world.codes()

    run(tmp_path, script)


def test_attack_26_routes_of_peers_are_not_installed_without_accept_routes(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.server.netmap = a_netmap(peers=(a_peer(2, routes=(ip_network("10.0.0.0/8"),)),))
        await world.boot()
        await world.up()
        assert world.network.configured is not None
        assert world.network.configured.routes == a_netmap().prefixes
        assert world.engine.netmaps[-1] == (world.server.netmap, False)

    run(tmp_path, script)


def test_attack_26_unapproved_own_routes_get_no_source_nat(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        netmap = a_netmap()
        world.server.netmap = replace(netmap, self=replace(netmap.self, advertised_routes=(ip_network("192.168.7.0/24"),)))
        await world.boot()
        await world.up(advertise_routes=["192.168.7.0/24"])
        assert world.nft.installed is not None
        assert world.nft.installed.routes == ()

    run(tmp_path, script)


@pytest.mark.parametrize("route", ["10.0.0.1/8", "0.0.0.0/0", "100.70.0.128/25", "fd12::/96", "x"])
def test_attack_26_unfit_prefix_is_not_even_advertised(tmp_path: Path, route: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        with pytest.raises(InvalidError):
            await world.call("set", advertise_routes=[route])
        assert world.daemon.state.prefs.advertise_routes == ()

    run(tmp_path, script)


def test_attack_27_server_with_another_key_hears_nothing_and_changes_nothing(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        genuine = world.server.key.public
        world.server.key = PrivateKey(b"\x66" * 32)
        world.server.netmap = a_netmap(9, ())
        sessions = len(world.server.sessions)
        await world.server.drop()
        await until(lambda: world.daemon.control.key_error is not None)
        assert len(world.server.sessions) == sessions
        assert world.daemon.state.server_key == genuine
        assert world.daemon.state_name() == "running"
        assert [line.severity for line in world.health_lines() if line.code == "server-key-changed"] == ["error"]
        with pytest.raises(AuthenticationError, match="auth-key"):
            await world.call("login", timeout_s=5)
        await world.halt()
        await world.boot()
        await until(lambda: world.daemon.control.key_error is not None)
        assert world.daemon.state.server_key == genuine

    run(tmp_path, script)


def test_attack_27_key_in_the_auth_key_is_pinned_before_anything_is_said(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        auth_key = world.server.auth_key()
        world.server.key = PrivateKey(b"\x66" * 32)
        await world.boot()
        with pytest.raises(AuthenticationError):
            await world.call("up", server=URL, auth_key=auth_key, timeout_s=5)
        assert world.server.heard == []

    run(tmp_path, script)


@pytest.mark.parametrize("swapped", [{"number": 3}, {"number": 7, "name": "node3"}])
def test_attack_27_key_of_a_pinned_peer_can_not_be_swapped(tmp_path: Path, swapped: dict[str, Any]) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.call("set", pin="node3")
        await world.halt()
        await world.boot()
        await world.call("wait", timeout_s=20)
        number = int(swapped["number"])
        await world.server.change(a_netmap(2, (a_peer(2), a_peer(number, name="node3", node_key=NodeKey(b"e" * 32)))))
        await until(lambda: world.engine.netmaps[-1][0].version == 2)
        assert [peer.id for peer in world.engine.netmaps[-1][0].peers] == [2]
        assert "pinned-key-changed" in world.codes()

    run(tmp_path, script)


def test_attack_27_swapped_key_of_another_peer_is_shown_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        with caplog.at_level(logging.WARNING):
            await world.server.change(a_netmap(2, (a_peer(2, node_key=NodeKey(b"e" * 32)), a_peer(3))))
            await until(lambda: "peer-key-changed" in world.codes())
        assert any(record.getMessage().startswith("peer_key_changed peer=node2 ") for record in caplog.records)

    run(tmp_path, script)


CHANGING = ["up", "login", "down", "logout", "set"]
READING = ["status", "version", "get", "netcheck"]


@pytest.mark.parametrize("op", CHANGING)
def test_attack_40_other_local_user_may_change_nothing(tmp_path: Path, op: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        before = world.daemon.state
        with pytest.raises(NotPermittedError, match="root") as raised:
            await world.call(op, uid=NOBODY, server="http://evil.test", auth_key="file:/etc/shadow", operator="nobody")
        assert raised.value.exit_code == 5
        assert world.daemon.state is before
        assert world.daemon.state_name() == "running"

    run(tmp_path, script)


@pytest.mark.parametrize("op", READING)
def test_attack_40_other_local_user_may_read_and_sees_no_secret(tmp_path: Path, op: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        answer = repr(await world.call(op, uid=NOBODY))
        keys = world.daemon.state.keys
        for secret in (keys.control, keys.node, keys.discovery):
            assert encode_key(secret.secret_bytes()) not in answer
        assert world.server.auth_key() not in answer

    run(tmp_path, script)


def test_attack_40_operator_alone_gets_the_right_and_a_unknown_operation_is_refused(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot(operator="nobody")
        with pytest.raises(UsageError):
            await world.call("run", uid=0, command="sh")
        await world.call("set", uid=NOBODY, hostname="theirs")
        assert world.daemon.state.prefs.hostname == "theirs"
        with pytest.raises(NotPermittedError):
            await world.call("set", uid=1, hostname="mine")

    run(tmp_path, script)


def test_attack_40_words_that_name_files_are_never_opened_by_the_daemon(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's own")

    async def script(world: World) -> None:
        await world.boot()
        with pytest.raises(InvalidError) as raised:
            await world.call("up", server=URL, auth_key=f"file:{secret}")
        assert "root's own" not in str(raised.value)

    run(tmp_path, script)


def test_attack_40_credentials_come_from_the_kernel_and_decide(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        path = tmp_path / "socket"
        listening = await serve_local(path, world.operations.handle, mode=0o666)
        try:
            assert await asyncio.to_thread(lambda: client.request(str(path), "version", {}, timeout_s=10)) == {"version": "0.test"}
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
        finally:
            await listening.close()

    run(tmp_path, script)


def test_attack_41_state_is_private_whatever_the_umask_and_symlinks_are_refused(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        old = os.umask(0)
        try:
            await world.boot()
            await world.up()
            await until(lambda: (tmp_path / "state" / "netmap").exists())
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "state").iterdir()} == {0o600}

    run(tmp_path, script)


@pytest.mark.parametrize("name", ["node.json", "netmap", "stamps", "host.json", "lock"])
def test_attack_41_symlink_in_place_of_a_state_file_is_not_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    state = tmp_path / "state"
    state.mkdir(0o700)
    (state / name).symlink_to(victim)

    def open_and_read() -> None:
        directory = StateDirectory(state, os.urandom)
        try:
            directory.load_netmap()
            directory.recorded_host()
        finally:
            directory.close()

    with pytest.raises(StateError, match="symbolic link"):
        open_and_read()
    assert victim.read_bytes() == b"precious"


def test_attack_41_state_that_others_can_read_is_refused(tmp_path: Path) -> None:
    StateDirectory(tmp_path / "state", os.urandom).close()
    (tmp_path / "state" / "node.json").chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        StateDirectory(tmp_path / "state", os.urandom)


def test_attack_42_nothing_secret_is_logged_and_names_can_not_forge_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hostile = "eve\r\ninfo standing state=active\x1b[2J\u202e"

    async def script(world: World) -> None:
        with caplog.at_level(logging.DEBUG):
            await world.boot()
            await world.up()
            await world.server.change(a_netmap(2, (a_peer(2, name=hostile, node_key=NodeKey(b"e" * 32)), a_peer(3))))
            await until(lambda: "peer-key-changed" in world.codes())
            world.daemon.path_changed(NodeId(2), hostile, None)
            await world.call("login")
            await world.call("logout")
            keys = world.daemon.state.keys
        formatter = SafeFormatter(tracebacks=True)
        lines = [formatter.format(record) for record in caplog.records]
        assert lines
        for line in lines:
            assert line.isprintable()
            assert world.server.auth_key() not in line
            assert not any(encode_key(key.secret_bytes()) in line for key in (keys.control, keys.node, keys.discovery))

    run(tmp_path, script)


def test_attack_42_names_of_others_are_escaped_in_health(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.server.change(a_netmap(2, (a_peer(2, name="eve\x1b[2J\n", node_key=NodeKey(b"e" * 32)),)))
        await until(lambda: "peer-key-changed" in world.codes())
        for line in world.health_lines():
            assert line.text.isprintable()

    run(tmp_path, script)


def test_attack_42_no_core_dump_and_no_secret_in_the_process_list() -> None:
    child = os.fork()
    if child == 0:
        no_core_dumps()
        limited = resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        os._exit(0 if limited and Path("/proc/self/auxv").stat().st_uid == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", ["../x", "a" * 16, "calnet%d", "a b", "x/y", "a\n", "-x", "..", "ä"])
def test_attack_43_hostile_interface_name_is_refused_before_anything_is_touched(name: str) -> None:
    with pytest.raises(UsageError, match="--tun"):
        node_main.settings_of(argparse.Namespace(tun=name))


@pytest.mark.parametrize("name", ["../x", "a b", "x/y", "evil\n", "ä", "a" * 64, "x.y", "%d"])
def test_attack_43_hostile_host_name_is_refused(tmp_path: Path, name: str) -> None:
    async def script(world: World) -> None:
        await world.boot()
        with pytest.raises(InvalidError, match="host name"):
            await world.call("set", hostname=name)

    run(tmp_path, script)
