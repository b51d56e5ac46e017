"""Attacks on what a server holds for others: connections that don't read, machines that nobody knows, storms of deltas, borrowed keys, clocks that jump."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from websockets.exceptions import ConnectionClosed

from calnet.errors import ConflictError, ExhaustedError, ForbiddenError
from calnet.model import NodeId, UserId
from calnet.roles.server import control_hub, registration, tls, web_protocol
from calnet.roles.server.actors import Actor, Terms
from calnet.roles.server.settings import ServerSettings
from calnet.roles.server.standing import NodeState
from calnet.wire import control
from tests.roles.server.client import WAIT_S, ControlClient, Machine
from tests.roles.server.registries import Office, done
from tests.roles.server.test_main import certificate
from tests.roles.server.world import FAST, World, eventually, in_world, running

UPGRADE = (
    b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "state")
    yield opened
    opened.registry.close()


# --- 18, 36: connections that don't read


async def _deaf_connection(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection into which little fits that is not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", world.server.port))
    return await asyncio.open_connection(sock=client, limit=1024)


async def _written(writer: asyncio.StreamWriter, data: bytes, limit: int) -> int:
    """Bytes the server took before it cut the connection, `limit` at most."""
    written = 0
    with contextlib.suppress(OSError):
        while written < limit:
            writer.write(data)
            async with asyncio.timeout(WAIT_S):
                await writer.drain()
            written += len(data)
    return written


@in_world
async def test_attack_18_websocket_pings_whose_answers_are_not_read_fill_no_memory(world: World) -> None:
    """Each ping is answered at once by the WebSocket layer: nobody who doesn't read the answers may go on asking."""
    reader, writer = await _deaf_connection(world)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    flood = (b"\x89\xfd" + bytes(4) + bytes(125)) * 500
    most = 16 << 20
    assert await _written(writer, flood, most) < most
    writer.transport.abort()


@in_world
async def test_attack_36_http_requests_whose_answers_are_not_read_do_not_stay(world: World) -> None:
    limit, web_protocol.UNREAD_TIMEOUT_S = web_protocol.UNREAD_TIMEOUT_S, 0.5  # type: ignore[misc]
    try:
        _, writer = await _deaf_connection(world)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await eventually(lambda: world.server.pending)
        async with asyncio.timeout(3 * WAIT_S):
            while world.server.pending:
                writer.write(b"GET /control/key HTTP/1.1\r\nHost: x\r\n\r\n" * 4)
                await asyncio.sleep(0.0005)
        writer.transport.abort()
    finally:
        web_protocol.UNREAD_TIMEOUT_S = limit  # type: ignore[misc]


@in_world
async def test_attack_36_http_requests_sent_before_their_answers_are_bounded(world: World) -> None:
    """Each that waits costs a hundred times its bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
    ask = b"GET /control/key HTTP/1.1\r\nHost: x\r\n\r\n"
    most = 8 << 20
    assert await _written(writer, ask * 500, most) < most
    writer.transport.abort()
    await eventually(lambda: not world.server.pending)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
    writer.write(ask * 4)
    async with asyncio.timeout(WAIT_S):
        for _ in range(4):
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}")
    writer.close()


# --- 36: machines that nobody knows


@in_world
async def test_attack_36_sessions_of_unknown_machines_are_bounded_and_known_ones_come_in(world: World) -> None:
    """A control key costs nothing to make, so proving one earns no place for ever."""
    (known,) = await world.joined("known")
    strangers: list[ControlClient] = []
    most = control_hub.MAX_STRANGERS_PER_SOURCE
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(most + 20):
            try:
                session = await stack.enter_async_context(world.control(Machine()))
                await session.say(control.Ping(1))
                await session.expect(control.Pong)
                strangers.append(session)
            except ConnectionClosed:
                pass
        assert len(world.server.control) <= most
        assert len(strangers) == most
        async with world.control(known) as session:
            await session.subscribe()
    await eventually(lambda: not len(world.server.control))
    async with world.control(Machine("late")) as session:
        await session.join(await world.auth_key())


@in_world
async def test_attack_36_unknown_machines_of_many_places_do_not_shut_a_newcomer_out(world: World) -> None:
    limit, control_hub.MAX_STRANGERS = control_hub.MAX_STRANGERS, 4  # type: ignore[misc]
    try:
        async with contextlib.AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(world.control(Machine())) for _ in range(6)]
            for session in sessions:
                await session.say(control.Ping(1))
                await session.expect(control.Pong)
            await eventually(lambda: len(world.server.control) <= 4)
            async with world.control(Machine("newcomer")) as session:
                await session.join(await world.auth_key())
            await sessions[0].closed()
    finally:
        control_hub.MAX_STRANGERS = limit  # type: ignore[misc]


# --- 18: storms


@in_world
async def test_attack_18_node_that_subscribes_again_and_again_is_refused_more_netmaps(world: World) -> None:
    async with world.control(Machine("greedy")) as session:
        await session.join(await world.auth_key())
        for _ in range(100):
            await session.say(control.Subscribe(0))
        await session.say(control.Ping(7))
        while not (isinstance(message := await session.hear(), control.Pong) and message.number == 7):
            pass
        assert sum(isinstance(message, control.Refused) for message in session.heard) >= 50


@in_world
async def test_attack_18_node_that_publishes_without_end_causes_few_deltas_and_its_last_word_counts(world: World) -> None:
    key = await world.auth_key()
    async with world.control(Machine("witness")) as witness, world.control(Machine("chatty")) as chatty:
        await witness.join(key)
        await chatty.join(key)
        for number in range(300):
            await chatty.say(control.Publish((f"192.0.2.1:{1000 + number}",)))
            await asyncio.sleep(0.005)
        await witness.until(lambda netmap: any(str(endpoint) == "192.0.2.1:1299" for peer in netmap.peers for endpoint in peer.endpoints))
        assert sum(isinstance(message, control.NetmapDelta) for message in witness.heard) < 25


# --- 13, 24: keys of others


def test_attack_24_discovery_key_that_another_node_holds_is_refused(office: Office) -> None:
    """It is in every netmap, and peers tell senders of probes by it: taken over, it would cut its owner's direct paths."""
    victim, thief = office.machine("victim"), office.machine("thief")
    office.join_as(victim)
    thief.discovery_key = victim.discovery_key
    with pytest.raises(ConflictError):
        office.register(thief, office.auth_key())
    with pytest.raises(ConflictError):
        office.register(thief)
    thief.renew()
    office.join_as(thief)
    thief.discovery_key = victim.discovery_key
    with pytest.raises(ConflictError):
        office.register(thief)


# --- 23: what a disabled machine may do


def test_attack_23_disabled_node_can_not_have_itself_forgotten_or_renamed(office: Office) -> None:
    machine = office.machine("evil")
    key = office.auth_key(ephemeral=True, reusable=True)
    node = office.register(machine, key).node
    assert node is not None
    done(office.registry.disable_node("evil"))
    with pytest.raises(ForbiddenError):
        done(office.registry.update(node, hostname="good"))
    done(office.registry.logout(node))
    assert office.registry.node(str(node))["disabled"]
    with pytest.raises(ForbiddenError):
        office.register(machine, key)


def test_attack_23_disabled_node_is_not_deleted_by_its_owner_and_so_does_not_come_back_as_new(office: Office) -> None:
    owner = done(office.registry.create_user("owner-of-it"))["id"]
    terms = Terms(Actor("token", "x", "ci", user=UserId(owner)))
    machine = office.machine("evil")
    node = office.register(machine, office.auth_key(user="owner-of-it")).node
    done(office.registry.disable_node("evil"))
    with pytest.raises(ForbiddenError, match="disabled"):
        done(office.registry.delete_node("evil", terms=terms))
    with pytest.raises(ForbiddenError):
        office.register(machine, office.auth_key(user="owner-of-it"))
    assert office.registry.node(str(node))["disabled"]
    done(office.registry.enable_node("evil"))
    done(office.registry.delete_node("evil", terms=terms))


def test_attack_23_disabled_node_is_not_forgotten_for_being_away(office: Office) -> None:
    machine = office.machine("evil")
    node = office.register(machine, office.auth_key(ephemeral=True)).node
    done(office.registry.disable_node("evil"))
    waiting = office.register(office.machine("stranger")).node
    done(office.registry.disable_node(str(waiting)))
    office.now += 30 * 86_400
    done(office.registry.housekeeping())
    assert all(office.registry.node(str(one))["disabled"] for one in (node, waiting))
    with pytest.raises(ForbiddenError):
        office.register(machine, office.auth_key())


@pytest.mark.parametrize("how", ["route revoked", "given to another user", "key expired and renewed"])
def test_attack_23_access_taken_from_a_node_that_stays_is_told_at_once(office: Office, how: str) -> None:
    done(office.registry.create_user("eve"))
    machine = office.machine("router")
    peer, router = office.join("peer"), office.join_as(machine, ("10.9.0.0/16",))
    if how == "route revoked":
        done(office.registry.approve_routes("router", ("10.9.0.0/16",)))
    office.last()
    if how == "route revoked":
        done(office.registry.revoke_routes("router", ("10.9.0.0/16",)))
    elif how == "given to another user":
        done(office.registry.approve_node("router", "eve"))
    else:
        machine.renew()
        office.register(machine)
        office.last()
        done(office.registry.disable_node("router"))
        done(office.registry.enable_node("router"))
    told = office.last()
    assert told.urgent
    assert {peer, router} <= told.netmaps


# --- a clock that jumps


def test_attack_23_clock_that_was_a_year_ahead_for_a_while_shuts_nobody_out_for_ever(office: Office) -> None:
    one, two = office.join("one"), office.join("two")
    start = office.now
    office.now = start + 366 * 86_400
    done(office.registry.housekeeping())
    assert office.registry.standing_of(one).state is NodeState.EXPIRED
    office.now = start + 60
    done(office.registry.housekeeping())
    assert office.registry.standing_of(one).state is NodeState.ACTIVE
    assert office.peers(one) == [two]
    assert office.peers(two) == [one]
    assert {one, two} <= office.last().standings


# --- 36: machines that wait for approval


def _wait(office: Office, source: bytes) -> NodeId:
    """A machine from `source` that asked without a key and stays connected."""
    node = office.register(office.machine()).node
    assert node is not None
    office.registry.connected(node, source)
    return node


def test_attack_36_machines_of_one_place_that_wait_and_stay_do_not_keep_others_from_asking(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "MAX_PENDING", 8)
    early = _wait(office, b"\xc0\x00\x02\x01")
    flood = [_wait(office, bytes.fromhex("20010db80001") + bytes((0, number))) for number in range(7)]
    late = [_wait(office, bytes((198, 51, 100, number))) for number in range(4)]
    standing = office.registry.standing_of
    assert [standing(node).state for node in (early, *late)] == [NodeState.PENDING] * 5
    assert [standing(node).state for node in flood] == [NodeState.UNREGISTERED] * 4 + [NodeState.PENDING] * 3


def test_attack_36_nodes_that_were_admitted_once_are_never_given_up_for_machines_that_wait(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "MAX_PENDING", 2)
    for name in ("one", "two"):
        machine = office.machine(name)
        office.join_as(machine)
        done(office.registry.expire_node(name))
        office.register(machine)
    with pytest.raises(ExhaustedError):
        office.register(office.machine())
    assert len(office.registry.nodes()) == 2


# --- 36: TLS, and a full gate


@in_world
async def test_attack_36_connections_that_only_wait_give_way_to_one_that_comes(world: World) -> None:
    """HTTP connections and WebSockets of one place that prove nothing take no other's place, and are told where they can be."""
    gate = world.server._gate
    gate._limit = 6
    (machine,) = await world.joined("machine")
    idle = [await asyncio.open_connection("127.0.0.1", world.server.port) for _ in range(3)]
    upgraded = [await asyncio.open_connection("127.0.0.1", world.server.port) for _ in range(3)]
    for reader, writer in upgraded:
        writer.write(UPGRADE)
        assert b"101" in await reader.readuntil(b"\r\n\r\n")
    async with world.control(machine) as session:
        await session.subscribe()
        more = [await asyncio.open_connection("127.0.0.1", world.server.port) for _ in range(6)]
        async with asyncio.timeout(WAIT_S):
            for reader, _ in idle:
                assert await reader.read() == b""
            for reader, _ in upgraded:
                assert b"too many connections" in await reader.read()
        await session.say(control.Ping(5))
        await session.expect(control.Pong)
    for _, writer in (*idle, *upgraded, *more):
        writer.transport.abort()
    await eventually(lambda: not world.server.pending)


def _with_tls(tmp_path: Path, scenario: Callable[[World, ssl.SSLContext], Awaitable[None]]) -> None:
    cert, key = certificate(tmp_path, "server")

    async def run() -> None:
        async with running(tmp_path, timing=FAST, settings=ServerSettings(state_dir=tmp_path, tls_cert=cert, tls_key=key)) as world:
            await scenario(world, ssl.create_default_context(cafile=str(cert)))

    for runner in (uvloop.run, asyncio.run):
        runner(run())


def test_attack_36_tls_handshakes_count_at_the_gate_and_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_TIMEOUT_S", 0.5)

    async def scenario(world: World, context: ssl.SSLContext) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", world.server.port) for _ in range(5)]
        broken = await asyncio.open_connection("127.0.0.1", world.server.port)
        await eventually(lambda: world.server.pending == 6)
        broken[1].write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            for reader, writer in (*silent, broken):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()
        await eventually(lambda: not world.server.pending)
        world.server._gate._per_source = 2
        few = [await asyncio.open_connection("127.0.0.1", world.server.port) for _ in range(4)]
        await eventually(lambda: world.server.pending == 2)
        for _, writer in few:
            writer.transport.abort()
        await eventually(lambda: not world.server.pending)

    _with_tls(tmp_path, scenario)


def test_attack_36_tls_clients_are_served_whatever_comes_with_their_handshake(tmp_path: Path) -> None:
    staying: list[socket.socket] = []

    async def ask(world: World, context: ssl.SSLContext) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port, ssl=context)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"ok\n")
        writer.close()

    async def scenario(world: World, context: ssl.SSLContext) -> None:
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*(ask(world, context) for _ in range(40)))
        await eventually(lambda: not world.server.pending)
        staying.append(socket.create_connection(("127.0.0.1", world.server.port)))
        await eventually(lambda: world.server.pending)

    _with_tls(tmp_path, scenario)
    for connection in staying:  # while the server stopped
        connection.close()
