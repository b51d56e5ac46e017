"""Control sessions on real WebSockets: registration, the netmap and its deltas, candidates, life cycle."""

from __future__ import annotations

import asyncio

from calnet.model import Netmap, NodeId
from calnet.roles.server.durable import durable
from calnet.roles.server.settings import PublicUrl, ServerSettings
from calnet.roles.server.standing import NodeState
from calnet.roles.server.timing import Timing
from calnet.wire import control
from tests.roles.server.client import Machine
from tests.roles.server.world import World, eventually, in_world, in_world_of


def names(netmap: Netmap) -> set[str]:
    return {peer.name for peer in netmap.peers}


def online(netmap: Netmap) -> set[str]:
    return {peer.name for peer in netmap.peers if peer.online}


@in_world
async def test_session_of_an_unknown_machine_is_welcomed_as_unregistered(world: World) -> None:
    async with world.control(Machine()) as session:
        assert (session.welcome.node, session.welcome.state) == (0, "unregistered")


@in_world
async def test_registration_with_a_key_gives_netmaps_to_both(world: World) -> None:
    key = await world.auth_key()
    async with world.control(Machine("alice")) as alice, world.control(Machine("bob")) as bob:
        await alice.join(key)
        await bob.join(key)
        await alice.until(lambda netmap: online(netmap) == {"bob"})
        assert (await bob.until(lambda netmap: online(netmap) == {"alice"})).self.name == "bob"
        assert bob.netmap is not None
        assert bob.netmap.relays[0].url == world.server.url.replace("http", "ws") + "/relay"
        assert bob.netmap.stun == tuple(f"127.0.0.1:{port}" for port in world.server.stun_ports)


@in_world_of(settings=ServerSettings(url=PublicUrl("https", "calnet.example.org:8443", "/net")))
async def test_netmap_with_a_public_url_names_it_as_relay_and_stun(world: World) -> None:
    async with world.control(Machine()) as session:
        await session.join(await world.auth_key())
        assert session.netmap is not None
        assert session.netmap.relays[0].url == "wss://calnet.example.org:8443/net/relay"
        assert session.netmap.stun == tuple(f"calnet.example.org:{port}" for port in world.server.stun_ports)


@in_world
async def test_machine_that_leaves_is_offline_for_the_others(world: World) -> None:
    key = await world.auth_key()
    async with world.control(Machine("alice")) as alice:
        await alice.join(key)
        async with world.control(Machine("bob")) as bob:
            await bob.join(key)
            await alice.until(lambda netmap: online(netmap) == {"bob"})
        await alice.until(lambda netmap: names(netmap) == {"bob"} and not online(netmap))


@in_world
async def test_reconnecting_node_with_the_current_netmap_hears_unchanged(world: World) -> None:
    machine = Machine("alice")
    async with world.control(machine) as session:
        await session.join(await world.auth_key())
        held = session.netmap
    async with world.control(machine) as again:
        again.netmap = held
        await again.subscribe()
        assert isinstance(again.heard[-1], control.NetmapUnchanged)


@in_world
async def test_reconnecting_node_with_an_older_netmap_gets_a_delta(world: World) -> None:
    key = await world.auth_key()
    alice = Machine("alice")
    async with world.control(alice) as session:
        await session.join(key)
        held = session.netmap
    async with world.control(Machine("bob")) as bob:
        await bob.join(key)
        async with world.control(alice) as again:
            again.netmap = held
            assert names(await again.subscribe()) == {"bob"}
            assert isinstance(again.heard[-1], control.NetmapDelta)


@in_world
async def test_reconnecting_node_with_an_unknown_netmap_gets_the_whole(world: World) -> None:
    machine = Machine("alice")
    async with world.control(machine) as session:
        await session.join(await world.auth_key())
    async with world.control(machine) as again:
        await again.say(control.Subscribe(12_345))
        assert (await again.expect(control.NetmapFull)).self.name == "alice"


@in_world
async def test_peers_learn_what_a_node_can_do_when_it_registers_and_when_its_program_is_replaced(world: World) -> None:
    key, machine = await world.auth_key(), Machine("alice")

    def able(netmap: Netmap) -> list[tuple[str, ...]]:
        return [peer.capabilities for peer in netmap.peers]

    async with world.control(Machine("bob")) as bob:
        await bob.join(key)
        async with world.control(machine) as alice:
            await alice.register(key, capabilities=("chunks",))
            await bob.until(lambda netmap: able(netmap) == [("chunks",)])
        for said, capabilities in (("2.0", ("chunks", "aes-256-gcm")), (None, None), ("2.0", ())):
            async with world.control(machine) as again:
                await again.say(control.Subscribe(0, said, capabilities))
                await again.expect(control.NetmapFull)
                wanted = capabilities or ()  # an older program, which says nothing, takes nothing
                await bob.until(lambda netmap, wanted=wanted: able(netmap) == [wanted])
        assert [row["version"] for row in world.registry.nodes() if row["name"] == "alice"] == ["2.0"]


@in_world
async def test_subscribing_says_nothing_new_without_a_write(world: World) -> None:
    async with world.control(Machine("alice")) as session:
        await session.register(await world.auth_key(), version="1.0", capabilities=("chunks",))
        await session.say(control.Subscribe(0, "1.0", ("chunks",)))
        await session.expect(control.NetmapFull)
        assert "nodes.update" not in [row["action"] for row in world.registry.audit()]


@in_world
async def test_machine_that_connects_anew_has_no_more_requests_for_it(world: World) -> None:
    """Else a node that says something else each time would write as often as it can connect."""
    key, machine = await world.auth_key(), Machine("alice")
    async with world.control(machine) as session:
        await session.register(key)
    for number in range(40):
        async with world.control(machine) as session:
            await session.say(control.Subscribe(0, f"{number}.0", ("chunks",) * (number % 2)))
            async with asyncio.timeout(20):
                while not isinstance(await session.hear(), control.NetmapFull | control.Refused):
                    pass
    assert sum(row["action"] == "nodes.update" for row in world.registry.audit(limit=1000)) <= 32


@in_world
async def test_registration_without_a_key_is_pending_and_approved_live(world: World) -> None:
    async with world.control(Machine("alice")) as session:
        answer = await session.register()
        assert isinstance(answer, control.State)
        assert (answer.state, bool(answer.code)) == ("pending", True)
        await session.say(control.Subscribe(0))
        await durable(world.registry.approve_node(answer.code))
        assert (await session.expect(control.State)).state == "active"
        assert (await session.expect(control.NetmapFull)).self.name == "alice"


@in_world
async def test_registration_with_a_wrong_proof_is_refused(world: World) -> None:
    async with world.control(Machine()) as session:
        answer = await session.register(await world.auth_key(), proof=bytes(32))
        assert isinstance(answer, control.Refused)
        assert answer.code == "authentication"
    assert world.registry.nodes() == []


@in_world
async def test_registration_with_a_proof_of_another_session_is_refused(world: World) -> None:
    machine = Machine()
    async with world.control(machine) as first:
        stolen = first.proof()
    async with world.control(machine) as second:
        answer = await second.register(await world.auth_key(), proof=stolen)
        assert isinstance(answer, control.Refused)


@in_world
async def test_renewed_node_key_reaches_the_peer_with_the_previous_one(world: World) -> None:
    key = await world.auth_key()
    machine = Machine("alice")
    async with world.control(machine) as alice, world.control(Machine("bob")) as bob:
        await alice.join(key)
        await bob.join(key)
        before = machine.node.public
        machine.renew()
        assert isinstance(await alice.register(), control.Registered)
        netmap = await bob.until(lambda netmap: bool(netmap.peers) and netmap.peers[0].node_key == machine.node.public)
        assert netmap.peers[0].previous_node_key == before


@in_world
async def test_update_changes_the_name_that_peers_see(world: World) -> None:
    key = await world.auth_key()
    async with world.control(Machine("alice")) as alice, world.control(Machine("bob")) as bob:
        await alice.join(key)
        await bob.join(key)
        assert isinstance(await alice.request(lambda number: control.Update(number, hostname="carol")), control.Done)
        await bob.until(lambda netmap: names(netmap) == {"carol"})


@in_world
async def test_published_endpoints_reach_the_peer(world: World) -> None:
    key = await world.auth_key()
    async with world.control(Machine("alice")) as alice, world.control(Machine("bob")) as bob:
        await alice.join(key)
        await bob.join(key)
        await alice.say(control.Publish(("192.0.2.1:7", "[2001:db8::1]:8")))
        netmap = await bob.until(lambda netmap: bool(netmap.peers) and len(netmap.peers[0].endpoints) == 2)
        assert [str(endpoint) for endpoint in netmap.peers[0].endpoints] == ["192.0.2.1:7", "[2001:db8::1]:8"]


@in_world
async def test_candidates_are_passed_to_a_visible_peer(world: World) -> None:
    key = await world.auth_key()
    async with world.control(Machine("alice")) as alice, world.control(Machine("bob")) as bob:
        sender, receiver = await alice.join(key), await bob.join(key)
        await alice.say(control.Candidates(receiver, ("192.0.2.1:7",)))
        assert await bob.expect(control.Candidates) == control.Candidates(sender, ("192.0.2.1:7",))


@in_world
async def test_candidates_for_a_node_of_another_user_are_refused(world: World) -> None:
    await durable(world.registry.create_user("eve"))
    async with world.control(Machine("alice")) as alice, world.control(Machine("eve")) as eve:
        victim = await alice.join(await world.auth_key())
        await eve.join(await world.auth_key(user="eve"))
        await eve.say(control.Candidates(victim, ("192.0.2.1:7",)))
        assert (await eve.expect(control.Refused)).code == "not-found"


@in_world
async def test_logout_is_answered_and_then_ends_the_session(world: World) -> None:
    machine = Machine("alice")
    async with world.control(machine) as session:
        await session.join(await world.auth_key())
        assert isinstance(await session.request(control.Logout), control.Done)
        assert (await session.expect(control.State)).state == "expired"
        await session.closed()
    async with world.control(machine) as again:
        assert again.welcome.state == "expired"


@in_world
async def test_disabled_node_is_told_and_comes_back_when_enabled(world: World) -> None:
    machine = Machine("alice")
    async with world.control(machine) as session:
        await session.join(await world.auth_key())
        await durable(world.registry.disable_node("alice"))
        assert (await session.expect(control.State)).state == "disabled"
        assert (await session.expect(control.Bye)).code == "disabled"
        await session.closed()
    async with world.control(machine) as again:
        await again.say(control.Subscribe(0))
        assert again.welcome.state == "disabled"
        await eventually(lambda: len(world.server.control) == 1)
        await durable(world.registry.enable_node("alice"))
        assert (await again.expect(control.State)).state == "active"
        await again.expect(control.NetmapFull)


@in_world
async def test_newer_session_of_a_machine_replaces_the_older(world: World) -> None:
    machine = Machine("alice")
    async with world.control(machine) as older, world.control(machine) as newer:
        node = await older.join(await world.auth_key())
        await newer.say(control.Subscribe(0))
        assert (await older.expect(control.Bye)).code == "replaced"
        await older.closed()
        await newer.expect(control.NetmapFull)
        assert world.registry.node(str(node))["online"]


@in_world
async def test_unknown_message_is_answered_by_an_error_and_the_session_goes_on(world: World) -> None:
    async with world.control(Machine()) as session:
        for data in (b"", b"\xc1", b"\x81\xa1t\xa7Unheard", b"\x80", b"\x91" * 5000, b"\x81\xa1t\xa4Ping"):
            await session.say_bytes(data)
            assert (await session.expect(control.Refused)).request == 0
        await session.say_bytes(b"\x83\xa1t\xa4Ping\xa6number\x07\xa6future\x01")
        assert (await session.expect(control.Pong)).number == 7


@in_world
async def test_requests_of_an_unregistered_machine_are_refused(world: World) -> None:
    async with world.control(Machine()) as session:
        assert (await session.request(lambda number: control.Update(number, hostname="x"))).code == "login-needed"
        await session.say(control.Publish(()))
        assert (await session.expect(control.Refused)).code == "login-needed"


@in_world_of(timing=Timing(keepalive_s=0.1, silence_s=0.5))
async def test_silent_session_is_pinged_and_then_closed(world: World) -> None:
    async with world.control(Machine()) as session:
        await session.say(control.Ping(1))
        await session.expect(control.Ping)
        await session.closed()
    await eventually(lambda: len(world.server.control) == 0)


@in_world_of(timing=Timing(keepalive_s=0.1, silence_s=0.5))
async def test_session_that_answers_pings_stays(world: World) -> None:
    async with world.control(Machine()) as session:
        await session.say(control.Ping(1))
        for _ in range(12):
            await session.say(control.Pong((await session.expect(control.Ping)).number))
        assert len(world.server.control) == 1


@in_world_of(timing=Timing(confirm_s=0.2, keepalive_s=0.1))
async def test_session_whose_key_is_never_confirmed_is_closed(world: World) -> None:
    async with world.control(Machine()) as session:
        await session.closed()


@in_world
async def test_message_of_many_parts_is_taken_whole(world: World) -> None:
    async with world.control(Machine()) as session:
        await session.say_bytes(b"\x83\xa1t\xa4Ping\xa6number\x07\xa6future\xc6" + (200_000).to_bytes(4, "big") + bytes(200_000))
        assert (await session.expect(control.Pong)).number == 7


@in_world
async def test_restarted_server_knows_the_netmap_version_again(world: World) -> None:
    machine = Machine("alice")
    async with world.control(machine) as session:
        node = await session.join(await world.auth_key())
        assert session.netmap is not None
        assert world.registry.standing_of(NodeId(node)).state is NodeState.ACTIVE
        world.server.control.close()
        assert (await session.expect(control.Bye)).code == "shutdown"
        await session.closed()


@in_world
async def test_many_machines_joining_at_once_all_see_each_other(world: World) -> None:
    key = await world.auth_key()
    sessions = [world.control(Machine(f"n{number}")) for number in range(12)]
    await asyncio.gather(*(session.__aenter__() for session in sessions))
    ids = await asyncio.gather(*(session.join(key) for session in sessions))
    assert len(set(ids)) == 12
    await asyncio.gather(*(session.until(lambda netmap: len(online(netmap)) == 11) for session in sessions))
    await asyncio.gather(*(session.socket.close() for session in sessions))
