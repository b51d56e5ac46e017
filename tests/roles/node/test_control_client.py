"""The control client against servers that misbehave: each costs a connection, none the client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from calnet.errors import TimedOutError, UnreachableError
from calnet.roles.node import control_client, underlay
from calnet.roles.node.underlay import backoff
from calnet.wire import control
from tests.roles.node.fakes import World, a_netmap, a_peer, run, until


@pytest.mark.parametrize(
    "message",
    [
        control.NetmapDelta(since=99, version=100),
        control.Welcome(0.0, "again"),
        control.Bye("shutdown", "the server stops"),
        control.Candidates(2, ("nonsense",)),
        control.NetmapFull(5, control.WireSelf(1, "me", ("not an address",)), ()),
    ],
)
def test_client_told_nonsense_connects_anew_and_goes_on(tmp_path: Path, message: control.Message) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        sessions = len(world.server.sessions)
        await world.server.session.say(message)
        await until(lambda: len(world.server.sessions) > sessions)
        await world.call("wait", timeout_s=20)
        assert len(world.engines) == 1

    run(tmp_path, script)


def test_defect_at_a_netmap_costs_a_session_and_the_next_one_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        apply, world.engine.apply = world.engine.apply, lambda *args, **options: 1 // 0  # type: ignore[method-assign, assignment]
        await world.server.change(a_netmap(2, (a_peer(8),)))
        await until(lambda: "defect" in str(world.daemon.control.error))
        world.engine.apply = apply  # type: ignore[method-assign]
        await until(lambda: len(world.server.sessions) == 2 and world.engine.netmaps[-1][0].version == 2)
        await world.call("wait", timeout_s=20)
        assert "internal" not in world.codes()

    run(tmp_path, script)
    assert "connection_failed error=ZeroDivisionError" in caplog.text


def test_move_begins_a_new_session_without_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(underlay, "backoff", lambda attempt, fraction: 60.0)

    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        first = world.server.session
        world.daemon.control.moved()
        await until(lambda: len(world.server.sessions) == 2 and world.server.session is not first)
        await world.call("wait", timeout_s=20)
        await world.server.change(a_netmap(2, (a_peer(8),)))
        await until(lambda: world.engine.netmaps[-1][0].version == 2)
        assert len(world.server.sessions) == 2

    run(tmp_path, script)


def test_move_while_a_session_is_being_made_makes_another_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(underlay, "backoff", lambda attempt, fraction: 0.01 if attempt == 0 else 60.0)

    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.mute = True
        await world.server.drop()
        await until(lambda: not world.daemon.control.connected)
        await asyncio.sleep(0.1)  # it waits for an answer to what it sent from the place before
        world.server.mute = False
        world.daemon.control.moved()
        await until(lambda: world.daemon.control.connected and len(world.server.sessions) == 2, 5.0)

    run(tmp_path, script)


def swallow(world: World) -> None:
    """What the server says in this session reaches nobody any more, nor that it ends."""
    world.server.session.socket.other.inbox.put_nowait = lambda message: None  # type: ignore[union-attr, method-assign]


def test_move_does_not_wait_for_a_farewell_to_the_session_before(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        theirs = world.server.session.socket.other
        assert theirs is not None
        theirs.close = asyncio.Event().wait  # type: ignore[assignment, method-assign]
        world.daemon.control.moved()
        await until(lambda: world.daemon.control.connected and len(world.server.sessions) == 2)

    run(tmp_path, script)


def test_change_of_network_asks_the_session_that_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "ANSWER_AFTER_CHANGE_S", 0.2)

    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.daemon.control.reconnect_now()
        await asyncio.sleep(0.5)
        assert len(world.server.sessions) == 1
        swallow(world)
        world.daemon.control.reconnect_now()
        await until(lambda: world.daemon.control.connected and len(world.server.sessions) == 2)

    run(tmp_path, script)


def test_client_told_an_unknown_message_ignores_it(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        for part in world.server.session.channel.send(b"\x81\xa1t\xa7Unheard"):
            await world.server.session.socket.send(part)
        await world.server.change(a_netmap(2, (a_peer(8),)))
        await until(lambda: world.engine.netmaps[-1][0].version == 2)
        assert len(world.server.sessions) == 1

    run(tmp_path, script)


@pytest.mark.parametrize("seed", range(6))
def test_client_sent_random_bytes_for_a_handshake_stays_alive(tmp_path: Path, seed: int) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.server.session.socket.send(Random(seed).randbytes(Random(seed).randrange(0, 200)))
        await until(lambda: len(world.server.sessions) == 2)
        await world.call("wait", timeout_s=20)

    run(tmp_path, script)


def test_client_answers_a_ping_with_its_number(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        await world.server.session.say(control.Ping(77))
        await until(lambda: control.Pong(77) in world.server.heard)

    run(tmp_path, script)


def test_client_pings_a_silent_server_and_leaves_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(control, "SILENCE_LIMIT_S", 1.2)

    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.silent_to = (control.Ping,)
        await until(lambda: any(isinstance(message, control.Ping) for message in world.server.heard))
        await until(lambda: len(world.server.sessions) >= 2)
        assert "silent" in str(world.daemon.control.error) or world.daemon.control.error is None

    run(tmp_path, script)


def test_request_without_an_answer_times_out_and_without_a_session_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "REQUEST_TIMEOUT_S", 0.05)

    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.server.silent_to = (control.Update,)
        client = world.daemon.control.client
        assert client is not None
        with pytest.raises(TimedOutError):
            await client.update(hostname="x")
        world.server.reachable = False
        waiting = asyncio.create_task(client.update(hostname="y"))
        await asyncio.sleep(0)
        await world.server.drop()
        with pytest.raises((UnreachableError, TimedOutError)):
            await waiting
        await until(lambda: not client.connected)
        with pytest.raises(UnreachableError):
            await client.update(hostname="z")

    run(tmp_path, script)


def test_client_stopped_while_its_connection_breaks_makes_no_other(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        await world.boot()
        await world.up()
        world.daemon.control.stop()
        await world.server.drop()
        await asyncio.sleep(0)
        await until(lambda: not any("ControlClient" in repr(task) for task in asyncio.all_tasks()))
        assert len(world.server.sessions) == 1

    run(tmp_path, script)


def test_backoff_doubles_to_its_limit_and_is_jittered() -> None:
    assert [backoff(attempt, 0.999999) for attempt in range(15)] == pytest.approx([0.5, 1, *8 * [2], 4, 8, 16, 30, 30], rel=1e-3)
    assert backoff(0, 0.0) == 0.25
    assert all(backoff(attempt, 0.999) <= 30.0 for attempt in (50, 5000))
