"""Attacks on the server: its STUN port, its WebSockets, its relay, its sessions. The numbers are those of the list of attacks Calnet must survive."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hmac
import os
import random
import socket
import struct
import zlib
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

import calnet.roles.server
from calnet.crypto.keys import PrivateKey
from calnet.roles.server import web_protocol
from calnet.roles.server.durable import durable
from calnet.roles.server.timing import Timing
from calnet.wire import control, relay, stun
from calnet.wire.channel import Channel
from calnet.wire.relay import Reason
from tests.roles.server.client import WAIT_S, Machine
from tests.roles.server.relay_client import RelayClient
from tests.roles.server.world import World, eventually, in_world, in_world_of

SLOW_GATHERING = Timing(gather_s=60.0)
"""Only what is sent at once arrives."""


async def still_serves(world: World) -> None:
    """A newcomer is served as if nothing had happened."""
    async with world.control(Machine("newcomer")) as session:
        await session.join(await world.auth_key())


async def ended(client: ClientConnection) -> None:
    """Read until the server has closed the connection."""
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.recv()


def stun_socket(world: World) -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.setblocking(False)
    client.connect(("127.0.0.1", world.server.stun_port))
    return client


async def answers(client: socket.socket, wait_s: float) -> int:
    """How many datagrams come before `wait_s` pass without one."""
    count = 0
    try:
        while True:
            async with asyncio.timeout(wait_s):
                await asyncio.get_running_loop().sock_recv(client, 2000)
            count += 1
    except TimeoutError:
        return count


# --- 14: STUN


@in_world
async def test_attack_14_stun_flood_from_one_source_gets_a_bounded_number_of_answers(world: World) -> None:
    with stun_socket(world) as client:
        for _ in range(1000):
            client.send(stun.build_request(os.urandom(12)))
        assert 1 <= await answers(client, 0.3) < 250


@in_world
async def test_attack_14_stun_responses_and_indications_are_never_answered(world: World) -> None:
    with stun_socket(world) as client:
        for kind in (0x0011, 0x0101, 0x0111, 0x0002):
            client.send(struct.pack("!HH4s12s", kind, 0, stun.MAGIC_COOKIE, os.urandom(12)))
        client.send(stun.build_request(bytes(12)))
        assert await answers(client, 0.3) == 1


# --- 15: fuzzed frames


@in_world
async def test_attack_15_fuzzed_stun_leaves_the_server_answering(world: World) -> None:
    draw = random.Random(15)
    with stun_socket(world) as client:
        for size in (0, 1, 19, 20, 21, 56, 1280, 1281, 9000):
            client.send(draw.randbytes(size))
        whole = bytearray(stun.build_request(bytes(12)))
        for at in range(len(whole)):
            broken = bytearray(whole)
            broken[at] ^= draw.randrange(1, 256)
            client.send(broken)
        await answers(client, 0.3)
        found = 0
        async with asyncio.timeout(30):
            while not found:  # the bucket of this source fills again meanwhile
                client.send(whole)
                found = await answers(client, 0.3)
        assert found == 1


@in_world
async def test_attack_15_fuzzed_websocket_messages_end_one_connection_and_no_other(world: World) -> None:
    draw = random.Random(16)
    url = world.url.replace("http", "ws")
    for path in ("/control/ws", "/relay"):
        for message in (b"", b"\x01", b"\x02" + bytes(96), bytes([1]) + draw.randbytes(95), draw.randbytes(96), draw.randbytes(65_536), "text"):
            async with connect(url + path, compression=None, proxy=None) as client:
                await client.send(message)
                await ended(client)
    await still_serves(world)


@in_world
async def test_attack_15_fuzzed_bytes_instead_of_websocket_frames_end_the_connection(world: World) -> None:
    draw = random.Random(17)
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
        writer.write(
            b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(draw.randbytes(400))
        writer.write_eof()
        await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()
    await still_serves(world)


@in_world
async def test_attack_15_fuzzed_relay_frames_close_that_client_alone(world: World) -> None:
    draw = random.Random(18)
    alice, bob = await world.joined("alice", "bob")
    async with world.relay(bob.node) as bystander:
        for frame in (b"", b"\x01", b"\x01" + draw.randbytes(30), b"\x02" + bytes(33), b"\x02\xff\xff" + bytes(32), b"\x03", b"\x05", b"\x06" + bytes(31)):
            async with world.relay(alice.node) as client:
                await client.socket.send(frame)
                closed = await client.closed()
                assert closed is not None
                assert closed.reason is Reason.MALFORMED
        await bystander.settled()


# --- 16: who may use the relay


async def refused(world: World, node_key: PrivateKey) -> bool:
    async with world.relay(node_key) as client:
        return client.refused is not None and client.refused.reason is not Reason.WELCOME


@in_world
async def test_attack_16_relay_refuses_keys_that_are_unregistered_expired_disabled_or_deleted(world: World) -> None:
    expired, disabled, deleted, good = await world.joined("expired", "disabled", "deleted", "good")
    await durable(world.registry.expire_node("expired"))
    await durable(world.registry.disable_node("disabled"))
    await durable(world.registry.delete_node("deleted"))
    assert await refused(world, PrivateKey.generate(os.urandom))
    assert await refused(world, expired.node)
    assert await refused(world, disabled.node)
    assert await refused(world, deleted.node)
    assert not await refused(world, good.node)


@in_world
async def test_attack_16_relay_refuses_a_pending_node(world: World) -> None:
    machine = Machine("pending")
    async with world.control(machine) as session:
        await session.register()
        assert await refused(world, machine.node)


@in_world
async def test_attack_16_relay_client_that_cannot_prove_its_key_changes_nothing(world: World) -> None:
    """A recorded first message is replayed: without the key no proof follows, and the genuine connection stays."""
    (alice,) = await world.joined("alice")
    url = world.url.replace("http", "ws") + "/relay"
    async with world.relay(alice.node) as genuine:
        recorded = relay.client_channel(alice.node, world.key, PrivateKey.generate(os.urandom)).opening()
        async with connect(url, compression=None, proxy=None) as thief:
            await thief.send(recorded)
            await thief.recv()
            await thief.send(os.urandom(17))
            await ended(thief)
        await genuine.settled()


@in_world_of(timing=Timing(handshake_s=0.2))
async def test_attack_16_relay_client_that_never_proves_its_key_is_closed(world: World) -> None:
    async with connect(world.url.replace("http", "ws") + "/relay", compression=None, proxy=None) as client:
        await ended(client)


# --- 17: nobody sends as another


@in_world
async def test_attack_17_relay_frames_carry_the_key_that_the_sender_proved(world: World) -> None:
    """Whatever ids a client binds, the receiver sees the key of the connection; and a third node sees nothing."""
    alice, bob, carol = await world.joined("alice", "bob", "carol")
    async with world.relay(alice.node) as one, world.relay(bob.node) as two, world.relay(carol.node) as three:
        await one.socket.send(b"\x02" + struct.pack("!H32s", 0, two.key) + struct.pack("!H32s", 1, three.key))
        await one.socket.send(b"\x01" + struct.pack("!HH", 0, 4) + b"mine")
        assert await two.datagrams(1) == [(one.key, b"mine")]
        await three.settled()


@in_world
async def test_attack_17_relay_passes_nothing_between_nodes_that_do_not_see_each_other(world: World) -> None:
    await durable(world.registry.create_user("eve"))
    (alice,) = await world.joined("alice")
    (eve,) = await world.joined("eve", user="eve")
    async with world.relay(eve.node) as attacker, world.relay(alice.node) as victim:
        await attacker.send(victim.key, b"hello")
        assert await attacker.frame() == relay.Gone((victim.key,))
        await victim.settled()


# --- 18: floods


@in_world
async def test_attack_18_relay_with_a_flooding_client_and_a_deaf_one_serves_the_others(world: World) -> None:
    flooder, deaf, alice, bob = await world.joined("flooder", "deaf", "alice", "bob")
    async with world.relay(flooder.node) as source, world.relay(deaf.node) as sink, world.relay(alice.node) as one, world.relay(bob.node) as two:
        sink.socket.transport.pause_reading()
        flood = asyncio.create_task(_flood(source, sink.key))
        for number in range(50):
            await one.send(two.key, b"%d" % number)
            assert await two.datagrams(1) == [(one.key, b"%d" % number)]
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        assert world.server.relay.queued <= 1 << 20
        sink.socket.transport.abort()


async def _flood(source: RelayClient, sink: bytes) -> None:
    datagrams = [bytes(1400)] * 40
    while True:
        await source.send(sink, *datagrams)
        await asyncio.sleep(0)


@in_world
async def test_attack_18_relay_frame_beyond_64_kib_ends_the_connection(world: World) -> None:
    (alice,) = await world.joined("alice")
    async with world.relay(alice.node) as one:
        await one.socket.send(bytes(65_537))
        await one.closed()
        assert one.socket.close_code == 1009


# --- 19: two connections of one key


@in_world
async def test_attack_19_relay_second_connection_of_a_key_wins_and_the_first_is_told(world: World) -> None:
    alice, bob = await world.joined("alice", "bob")
    async with world.relay(alice.node) as older, world.relay(bob.node) as sender, world.relay(alice.node) as newer:
        closed = await older.closed()
        assert closed is not None
        assert closed.reason is Reason.REPLACED
        await sender.send(newer.key, b"to the newer")
        assert await newer.datagrams(1) == [(sender.key, b"to the newer")]


# --- 20: constant time


def test_attack_20_server_compares_no_secret_with_an_operator() -> None:
    """Proofs, MACs and the hashes of secrets go through `equal`, which is hmac.compare_digest."""
    folder = Path(calnet.roles.server.__file__).parent
    found = [
        f"{path.name}:{node.lineno}"
        for path in [*folder.glob("*.py"), Path(control.__file__)]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq) and _names_a_secret(node)
    ]
    assert found == []


def _names_a_secret(node: ast.Compare) -> bool:
    names = [getattr(part, "attr", getattr(part, "id", "")) for part in (node.left, *node.comparators)]
    return any(word in name for name in names for word in ("proof", "secret", "mac_"))


def test_attack_20_equality_of_secrets_is_the_constant_time_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []

    def recorded(left: bytes, right: bytes) -> bool:
        calls.append(left)
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    assert control.proof_holds(b"a" * 32, b"a" * 32)
    assert calls == [b"a" * 32]


# --- 23: taking access away


@in_world_of(timing=SLOW_GATHERING)
async def test_attack_23_disabled_expired_or_deleted_node_loses_everything_at_once(world: World) -> None:
    """Deltas are gathered for a minute here: only what is told at once arrives."""
    key = await world.auth_key()
    for verb in ("disable", "expire", "delete"):
        machine = Machine(verb)
        async with world.control(Machine("witness")) as witness, world.control(machine) as session:
            node = await session.join(key)
            await witness.join(key)
            assert witness.netmap is not None
            assert node in {peer.id for peer in witness.netmap.peers}
            async with world.relay(machine.node) as relayed:
                await durable(getattr(world.registry, f"{verb}_node")(verb))
                await witness.until(lambda netmap, gone=node: all(peer.id != gone for peer in netmap.peers))
                assert await relayed.closed() is not None
                await session.expect(control.Bye)
                await session.closed()


@in_world
async def test_attack_23_expiry_survives_a_reconnect(world: World) -> None:
    (machine,) = await world.joined("alice")
    await durable(world.registry.expire_node("alice"))
    async with world.control(machine) as session:
        assert session.welcome.state == "expired"
        await session.say(control.Subscribe(0))
        await session.say(control.Ping(1))
        await session.expect(control.Pong)
        assert session.netmap is None


# --- 27: the server's key


@in_world
async def test_attack_27_client_that_pinned_another_key_gets_no_session(world: World) -> None:
    other = PrivateKey.generate(os.urandom)
    channel = Channel.client(PrivateKey.generate(os.urandom), other.public, PrivateKey.generate(os.urandom))
    async with connect(world.url.replace("http", "ws") + "/control/ws", compression=None, proxy=None) as client:
        await client.send(channel.opening())
        await ended(client)


@in_world
async def test_attack_27_node_key_of_another_machine_cannot_be_taken_over(world: World) -> None:
    (victim,) = await world.joined("victim")
    thief = Machine("thief")
    thief.node = victim.node
    async with world.control(thief) as session:
        answer = await session.register(await world.auth_key())
        assert isinstance(answer, control.Refused)
    assert world.registry.node("victim")["node_key"]


@in_world
async def test_attack_27_replayed_handshake_neither_hears_nor_replaces_the_genuine_session(world: World) -> None:
    machine = Machine("alice")
    channel = Channel.client(machine.control, world.key, PrivateKey.generate(os.urandom))
    recorded = channel.opening()
    async with world.control(machine) as genuine:
        await genuine.join(await world.auth_key())
        async with connect(world.url.replace("http", "ws") + "/control/ws", compression=None, proxy=None) as thief:
            await thief.send(recorded)
            await thief.recv()
            await thief.send(os.urandom(40))
            await ended(thief)
        await genuine.say(control.Ping(1))
        await genuine.expect(control.Pong)


# --- 36: too much


@in_world
async def test_attack_36_frame_of_17_mib_is_refused_by_its_header(world: World) -> None:
    async with connect(world.url.replace("http", "ws") + "/control/ws", compression=None, proxy=None) as client:
        with contextlib.suppress(ConnectionClosed):
            await client.send(bytes(17 << 20))
        await ended(client)
    await still_serves(world)


@in_world
async def test_attack_36_deflate_is_not_offered_and_a_compressed_frame_ends_the_connection(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
    writer.write(
        b"GET /control/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"101" in head.split(b"\r\n")[0]
    assert b"deflate" not in head.lower()
    bomb = zlib.compress(bytes(10 << 20), 9)[2:-4]
    writer.write(b"\xc2" + struct.pack("!BH4s", 0x80 | 126, len(bomb), bytes(4)) + bomb)
    rest = await asyncio.wait_for(reader.read(), WAIT_S)
    assert rest[:1] == b"\x88"
    writer.close()
    await still_serves(world)


@in_world
async def test_attack_36_two_hundred_slow_heads_are_cut_while_others_are_served(world: World) -> None:
    limit, web_protocol.HEAD_TIMEOUT_S = web_protocol.HEAD_TIMEOUT_S, 1.0  # type: ignore[misc]
    try:
        slow = [await asyncio.open_connection("127.0.0.1", world.server.port) for _ in range(200)]
    finally:
        web_protocol.HEAD_TIMEOUT_S = limit  # type: ignore[misc]
    for _, writer in slow:
        writer.write(b"GET / HTTP/1.1\r\nX-")
    await still_serves(world)
    heads = [await asyncio.wait_for(reader.read(), WAIT_S) for reader, _ in slow]
    assert all(head.startswith(b"HTTP/1.1 408") for head in heads)
    for _, writer in slow:
        writer.close()
    await eventually(lambda: not world.server.pending)


@in_world
async def test_attack_36_connections_of_one_source_that_never_authenticate_are_bounded(world: World) -> None:
    sockets = [await asyncio.open_connection("127.0.0.1", world.server.port) for _ in range(300)]
    await eventually(lambda: world.server.pending >= 256)
    assert world.server.pending <= 256
    for _, writer in sockets:
        writer.transport.abort()
    await eventually(lambda: world.server.pending == 0)
    await still_serves(world)


@in_world
async def test_attack_36_head_that_is_too_long_gets_a_4xx(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
    writer.write(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 100_000)
    head = await asyncio.wait_for(reader.read(), WAIT_S)
    assert head.startswith(b"HTTP/1.1 4")
    writer.close()


@in_world
async def test_attack_36_deep_or_endless_messages_in_a_session_are_refused(world: World) -> None:
    async with world.control(Machine()) as session:
        await session.say_bytes(b"\x91" * 60_000)
        assert (await session.expect(control.Refused)).request == 0
        with contextlib.suppress(ConnectionClosed):
            await session.say_bytes(bytes(3 << 20))
        await ended(session.socket)
    await still_serves(world)


@in_world
async def test_attack_36_session_that_floods_is_ended(world: World) -> None:
    async with world.control(Machine()) as session:
        with contextlib.suppress(ConnectionClosed):
            for number in range(2000):
                await session.say(control.Ping(number))
        await ended(session.socket)
    await still_serves(world)
