"""The relay on real WebSockets: who is admitted, what is forwarded to whom, and what ends a connection."""

from __future__ import annotations

from calnet.model import NodeKey
from calnet.roles.server.durable import durable
from calnet.roles.server.timing import Timing
from calnet.wire import relay
from calnet.wire.relay import Reason
from tests.roles.server.client import Machine
from tests.roles.server.world import World, eventually, in_world, in_world_of


@in_world
async def test_datagrams_between_two_nodes_arrive_with_the_senders_key(world: World) -> None:
    alice, bob = await world.joined("alice", "bob")
    async with world.relay(alice.node) as one, world.relay(bob.node) as two:
        await one.send(two.key, b"first", b"second" * 200)
        assert await two.datagrams(2) == [(one.key, b"first"), (one.key, b"second" * 200)]
        await two.send(one.key, b"back")
        assert await one.datagrams(1) == [(two.key, b"back")]


@in_world
async def test_datagrams_that_wait_are_sent_as_one_message(world: World) -> None:
    alice, bob, carol = await world.joined("alice", "bob", "carol")
    async with world.relay(alice.node) as one, world.relay(carol.node) as three, world.relay(bob.node) as two:
        await one.send(two.key, *(b"%d" % number for number in range(40)))
        await three.send(two.key, b"x")
        got = await two.datagrams(41)
        assert [data for key, data in got if key == one.key] == [b"%d" % number for number in range(40)]


@in_world
async def test_datagram_for_a_peer_that_is_not_connected_is_answered_by_gone_once(world: World) -> None:
    alice, bob = await world.joined("alice", "bob")
    async with world.relay(alice.node) as one:
        await one.send(bob.node.public, b"a", b"b")
        assert await one.frame() == relay.Gone((NodeKey(bob.node.public),))
        await one.settled()
        async with world.relay(bob.node) as two:
            await one.send(two.key, b"c")
            assert await two.datagrams(1) == [(one.key, b"c")]


@in_world
async def test_previous_key_of_a_renewed_node_is_admitted_and_reaches_the_node(world: World) -> None:
    alice, bob = await world.joined("alice", "bob")
    before = bob.node
    bob.renew()
    async with world.control(bob) as session:
        await session.register()
    async with world.relay(alice.node) as one, world.relay(bob.node) as two:
        await one.send(before.public, b"to the old key")
        assert await two.datagrams(1) == [(one.key, b"to the old key")]
        async with world.relay(before) as older:
            assert older.refused is None
            assert (await two.closed() or relay.Close(Reason.OTHER, "")).reason is Reason.REPLACED


@in_world
async def test_ping_is_answered_by_its_token(world: World) -> None:
    (alice,) = await world.joined("alice")
    async with world.relay(alice.node) as one:
        await one.socket.send(relay.ping_frame(b"12345678"))
        assert await one.frame() == relay.Pong(b"12345678")


@in_world
async def test_frame_of_an_unknown_kind_is_ignored(world: World) -> None:
    (alice,) = await world.joined("alice")
    async with world.relay(alice.node) as one:
        await one.socket.send(b"\xee future")
        await one.settled()


@in_world
async def test_client_that_says_close_is_closed(world: World) -> None:
    (alice,) = await world.joined("alice")
    async with world.relay(alice.node) as one:
        await one.socket.send(relay.close_frame(Reason.OTHER, "enough"))
        assert await one.closed() is not None
    await eventually(lambda: len(world.server.relay) == 0)


@in_world_of(timing=Timing(relay_keepalive_s=0.05, relay_silence_s=0.4))
async def test_silent_client_is_pinged_and_then_closed(world: World) -> None:
    (alice,) = await world.joined("alice")
    async with world.relay(alice.node) as one:
        assert isinstance(await one.frame(), relay.Ping)
        assert (await one.closed() or relay.Close(Reason.OTHER, "")).reason is Reason.SILENT


@in_world
async def test_stopping_server_says_so(world: World) -> None:
    (alice,) = await world.joined("alice")
    async with world.relay(alice.node) as one:
        world.server.relay.close()
        assert (await one.closed() or relay.Close(Reason.OTHER, "")).reason is Reason.SHUTTING_DOWN
        async with world.relay(alice.node) as two:
            assert two.refused is not None
            assert two.refused.reason is Reason.SHUTTING_DOWN


@in_world
async def test_connection_that_ends_is_forgotten(world: World) -> None:
    alice, bob = await world.joined("alice", "bob")
    async with world.relay(alice.node) as one:
        async with world.relay(bob.node):
            await eventually(lambda: len(world.server.relay) == 2)
        await eventually(lambda: len(world.server.relay) == 1)
        await one.send(bob.node.public, b"a")
        assert isinstance(await one.frame(), relay.Gone)


@in_world
async def test_node_that_registers_while_a_peer_waits_can_be_reached(world: World) -> None:
    (alice,) = await world.joined("alice")
    late = Machine("late")
    async with world.relay(alice.node) as one:
        await one.send(late.node.public, b"too early")
        assert isinstance(await one.frame(), relay.Gone)
        async with world.control(late) as session:
            await session.join(await world.auth_key())
            async with world.relay(late.node) as two:
                await one.send(two.key, b"now")
                assert await two.datagrams(1) == [(one.key, b"now")]


@in_world
async def test_deleted_node_loses_its_relay_connection_at_once(world: World) -> None:
    alice, bob = await world.joined("alice", "bob")
    async with world.relay(alice.node) as one, world.relay(bob.node):
        await durable(world.registry.delete_node("alice"))
        assert await one.closed() is not None
        assert len(world.server.relay) == 1
