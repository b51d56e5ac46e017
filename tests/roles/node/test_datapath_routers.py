"""Several routers for one prefix: the data path goes on by one that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from calnet.host.memory import Weather
from calnet.model import NodeId, Peer, PeerKind
from calnet.paths.effects import Route
from tests.ip_packets import udp
from tests.roles.node.datapath_world import WALL, Node, Scripted, World, give, play

LAN = ip_network("192.168.5.0/24")
TO_LAN = ("10.77.0.1", "192.168.5.9")


class Routed:
    """Node 1, and nodes 2 and 3 that may both route LAN: 2 is the server's choice. Node 1 sends a packet there every 0.2 s, and what arrives is answered."""

    def __init__(self, world: World, *, relay: bool = True, paths: Callable[[], Scripted] | None = None) -> None:
        self.world, self.relay = world, relay
        self.client, self.first, self.second = world.node(1, paths=paths), world.node(2), world.node(3)
        self.arrived: dict[NodeId, list[int]] = {self.first.id: [], self.second.id: []}
        self.sent = 0
        for node in (self.client, self.first, self.second):
            node.path.relay_connected(relay)
            node.path.local_endpoints([node.endpoint])
        for router in (self.first, self.second):
            router.knows(self._peer(self.client), routes=(str(LAN),))
        self.netmap(self.first, self.second)

    def _peer(self, node: Node, **routes: object) -> Peer:
        return node.as_peer(kind=PeerKind.CALNET, discovery_key=node.discovery.public, **routes)

    def netmap(self, router: Node, backup: Node, *, key_expires: float | None = None, accept_routes: bool = True) -> None:
        peers = [self._peer(router, routes=(LAN,), key_expires=key_expires), self._peer(backup, backup_routes=(LAN,))]
        self.client.knows(*sorted(peers, key=lambda peer: peer.id), accept_routes=accept_routes)

    def dies(self, *nodes: Node) -> None:
        """From now on nothing comes from these nodes or gets there; none: all are there again."""
        hosts = {node.endpoint.host for node in nodes}
        self.world.network.blocked = lambda source, target: source.host in hosts or target.host in hosts
        self.world.relay_cut = {node.id for node in nodes}

    def carries(self, node: Node) -> bool:
        return self.client.path.peer_status(node.id).carries == (LAN,)

    async def passes(self, seconds: float, *, sending: bool = True, answering: bool = True) -> None:
        for _ in range(round(seconds / 0.2)):
            if sending:
                self.sent += 1
                give(self.client, udp(self.sent.to_bytes(2, "big"), TO_LAN, ident=self.sent))
            await self.world.passes(0.2)
            for router in (self.first, self.second):
                for packet in router.packets():
                    self.arrived[router.id].append(int.from_bytes(packet[28:30], "big"))
                    if answering:
                        give(router, udp(b"answer", TO_LAN[::-1], ports=(2000, 1000)))


@pytest.mark.parametrize("relay", [True, False])
def test_router_that_dies_is_replaced_by_the_one_that_lives_and_does_not_come_back_by_itself(relay: bool) -> None:
    async def scene(world: World) -> None:
        net = Routed(world, relay=relay)
        await net.passes(10)
        assert net.arrived[net.second.id] == []
        assert (net.carries(net.first), net.carries(net.second)) == (True, False)
        net.dies(net.first)
        await net.passes(12)
        assert net.client.moves == [(str(LAN), net.first.id, net.second.id)]
        assert (net.carries(net.first), net.carries(net.second)) == (False, True)
        assert net.arrived[net.second.id][-1] == net.sent - (net.arrived[net.second.id][-1] != net.sent)
        net.client.packets()
        await net.passes(2)
        assert net.client.packets()[0][12:20] == bytes([192, 168, 5, 9, 10, 77, 0, 1])
        net.dies()
        before = len(net.arrived[net.first.id])
        await net.passes(60)
        assert len(net.arrived[net.first.id]) == before
        assert len(net.client.moves) == 1
        net.netmap(net.second, net.first)
        assert len(net.client.moves) == 1  # the server says what this node does already
        net.netmap(net.first, net.second)
        await net.passes(2)
        assert len(net.arrived[net.first.id]) > before
        assert net.client.moves[1:] == [(str(LAN), net.second.id, net.first.id)]

    play(scene, Weather(latency_s=0.01))


def test_packets_that_wait_for_a_dead_router_reach_the_other() -> None:
    async def scene(world: World) -> None:
        net = Routed(world)
        net.dies(net.first)
        await net.passes(1)
        await net.passes(10, sending=False)
        assert net.arrived[net.second.id] == [1, 2, 3, 4, 5]

    play(scene, Weather(latency_s=0.01))


def test_node_cut_off_from_all_routers_moves_nothing_and_goes_on_when_it_is_back() -> None:
    async def scene(world: World) -> None:
        net = Routed(world)
        await net.passes(5)
        net.dies(net.client)
        await net.passes(60)
        net.dies()
        await net.passes(30)
        assert net.client.moves == []
        assert net.arrived[net.first.id][-1] >= net.sent - 1

    play(scene, Weather(latency_s=0.01))


@pytest.mark.parametrize(("relay", "loss"), [(True, 0.3), (False, 0.2)], ids=["relay", "direct"])
@pytest.mark.parametrize("answering", [True, False])
def test_lossy_network_moves_no_prefix(relay: bool, loss: float, answering: bool) -> None:
    """Without a relay, half of all round trips lost (0.3) would look like a dead router now and then, and is one for who is served by it."""

    async def scene(world: World) -> None:
        net = Routed(world, relay=relay)
        await net.passes(600, answering=answering)
        assert net.client.moves == []

    play(scene, Weather(loss=loss, latency_s=0.1))


def test_router_that_dies_is_not_noticed_where_routes_are_not_accepted_or_nothing_is_sent() -> None:
    async def scene(world: World) -> None:
        net = Routed(world)
        await net.passes(2)
        net.dies(net.first)
        await net.passes(60, sending=False)
        net.netmap(net.first, net.second, accept_routes=False)
        await net.passes(30)
        assert net.client.moves == []
        assert not net.carries(net.first)
        assert not net.carries(net.second)

    play(scene, Weather(latency_s=0.01))


def test_handshakes_response_alone_shows_that_the_router_lives() -> None:
    async def scene(world: World) -> None:
        pinged: list[NodeId] = []

        class Direct(Scripted):
            def route(self, peer: NodeId) -> Route:
                return Route(world.nodes[peer].endpoint, False)

            def ping(self, peer: NodeId, now: float) -> tuple[int, list[object]]:
                pinged.append(peer)
                return 5, []

        net = Routed(world, paths=Direct)
        give(net.client, udp(b"one way", TO_LAN))
        await world.passes(10)
        assert len(net.first.packets()) == 1
        assert pinged == []
        net.dies(net.first)
        give(net.client, udp(b"one way", TO_LAN))
        await world.passes(5)
        assert net.first.id in pinged

    play(scene, Weather(latency_s=0.01))


def test_router_whose_key_ran_out_is_replaced_without_the_server() -> None:
    async def scene(world: World) -> None:
        net = Routed(world)
        net.netmap(net.first, net.second, key_expires=WALL + asyncio.get_running_loop().time() + 5)
        await net.passes(80)
        assert net.client.moves == [(str(LAN), net.first.id, net.second.id)]
        assert net.arrived[net.second.id][-1] >= net.sent - 1

    play(scene, Weather(latency_s=0.01))
