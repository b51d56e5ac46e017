"""Netmaps kept current node by node are those built whole from the records, whatever happens; and whoever is not told has nothing to be told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from calnet.model import ControlKey, DiscoveryKey, Endpoint, Netmap, NodeId, NodeKey, Peer, Prefix, Relay, UserId
from calnet.policy.builtin import BuiltinPolicy
from calnet.policy.compiled import CompiledPolicy
from calnet.policy.document import parse_policy
from calnet.policy.engine import Engine
from calnet.roles.server.netmaps import EngineFactory, Netmaps, Presence, effective_routes, entry_of
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import Delete, NodeRecord, Put, UserRecord, key_of
from calnet.wire import control
from calnet.wire import netmap as wire

PREFIXES: tuple[Prefix, ...] = (ip_network("10.99.0.0/16"),)
RELAYS, STUN = (Relay("wss://relay.example/relay"),), ("relay.example:3478",)
ROUTES = ("10.1.0.0/16", "10.2.0.0/16", "2001:db8:5::/48")
NOW = 1000.0
TEXTS = (
    """{"tagOwners": {"tag:web": ["ann@"]}, "acls": [{"action": "accept", "src": ["ann@"], "dst": ["tag:web:443", "10.1.0.0/16:*"]}]}""",
    """{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}""",
    """{"acls": [], "defaultAction": "reject"}""",
)


def compiled(text: str) -> EngineFactory:
    """The policy of a text."""
    policy = parse_policy(text)
    return lambda overlay, nodes: CompiledPolicy(policy, overlay, nodes)


POLICIES: tuple[EngineFactory, ...] = (BuiltinPolicy, *map(compiled, TEXTS))


class Network:
    """Records, presence and a policy that change at random; the netmaps under test; and what each node holds by the deltas it was sent."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.state = Snapshot()
        self.state.apply([Put(UserRecord(id=UserId(number), name=name, created_at=0.0, role="user")) for number, name in ((1, "ann"), (2, "bob"))])
        self.presence: dict[NodeId, Presence] = {}
        self.netmaps = Netmaps(PREFIXES, 100)
        self.make: EngineFactory = BuiltinPolicy
        self.held: dict[NodeId, Netmap] = {}
        self.late: set[NodeId] = set()
        self.next = 1

    def add(self) -> set[NodeId]:
        number, self.next = NodeId(self.next), self.next + 1
        record = NodeRecord(
            id=number,
            control_key=ControlKey(self.random.randbytes(32)),
            node_key=NodeKey(self.random.randbytes(32)),
            discovery_key=DiscoveryKey(self.random.randbytes(32)),
            hostname=f"node-{number}",
            created_at=0.0,
            name=f"node-{number}",
            user=UserId(self.random.choice((1, 2))),
            addresses=(str(ip_address("10.99.0.0") + number),),
        )
        self.state.apply([Put(record)])
        return {number}

    def remove(self) -> set[NodeId]:
        record = self.any()
        self.state.apply([Delete(key_of(record))])
        self.held.pop(record.id, None)
        self.presence.pop(record.id, None)
        return {record.id}

    def record(self) -> set[NodeId]:
        """Something of a node's record changes."""
        node = self.any()
        tagged = self.random.random() < 0.5
        changes: tuple[Callable[[], NodeRecord], ...] = (
            lambda: replace(node, name=f"renamed-{self.random.randrange(1000)}-{node.id}"),
            lambda: replace(node, disabled=not node.disabled),
            lambda: replace(node, key_expires=self.random.choice((None, NOW - 1, NOW + 1))),
            lambda: replace(node, node_key=NodeKey(self.random.randbytes(32)), previous_node_key=node.node_key),
            lambda: replace(node, tags=("tag:web",), user=None) if tagged else replace(node, tags=(), user=UserId(self.random.choice((1, 2)))),
            lambda: replace(node, advertised_routes=self._some_routes(), approved_routes=self._some_routes()),
        )
        self.state.apply([Put(self.random.choice(changes)())])
        return {node.id}

    def come_and_go(self) -> set[NodeId]:
        node = self.any().id
        here = self.random.random() < 0.6
        endpoints = (Endpoint("192.0.2.1", self.random.randrange(1, 9)),) if here else ()
        self.presence[node] = Presence(online=here, since=float(self.random.randrange(9)), endpoints=endpoints)
        return {node}

    def any(self) -> NodeRecord:
        return self.random.choice(list(self.state.nodes.values()))

    def _some_routes(self) -> tuple[str, ...]:
        return tuple(route for route in ROUTES if self.random.random() < 0.5)

    def step(self) -> None:
        """One change, and its news told to those that netmaps names; some miss it and get it with the next."""
        before = {node: {peer.id for peer in built.peers} for node, built in self.whole().items()}
        if self.random.random() < 0.1:
            self.make = self.random.choice(POLICIES)
            touched, lost = self.netmaps.set_policy(self.make)
        else:
            act = self.random.choice((self.add, self.add, self.record, self.record, self.record, self.come_and_go, self.come_and_go, self.remove))
            touched, lost = self.netmaps.refresh((self.add if len(self.state.nodes) < 3 else act)(), self.state, self.presence, NOW)
        after = self.whole()
        for node, peers in before.items():
            if node in after and not peers <= {peer.id for peer in after[node].peers}:
                assert lost, f"node {node} lost a peer, and it is not urgent"
        self.tell(touched | self.late)

    def tell(self, nodes: set[NodeId]) -> None:
        self.late = set()
        for node in nodes:
            if node not in self.netmaps:
                self.held.pop(node, None)
            elif self.random.random() < 0.2:
                self.late.add(node)
            else:
                self.send(node)

    def send(self, node: NodeId) -> None:
        """What goes to the node, over the wire."""
        new, old = self.netmaps.netmap(node, RELAYS, STUN), self.held.get(node)
        if old is None:
            full = control.decode_from_server(control.encode(wire.wire_netmap(new)))
            assert isinstance(full, control.NetmapFull)
            self.held[node] = wire.model_netmap(full)
        elif old.version != new.version:
            delta = control.decode_from_server(control.encode(wire.difference(old, new)))
            assert isinstance(delta, control.NetmapDelta)
            self.held[node] = wire.apply(old, delta)

    def whole(self) -> dict[NodeId, Netmap]:
        """Every active node's netmap, built from nothing but the records, as plainly as can be."""
        entries = {}
        for record in self.state.nodes.values():
            expired = record.key_expires is not None and record.key_expires <= NOW
            if not record.disabled and not expired:
                routed = self.netmaps.routers.routed_by(record.id)
                entries[record.id] = entry_of(self.state, record, self.presence.get(record.id, Presence()), routed)
        engine: Engine = self.make(PREFIXES, [entry.policy for entry in entries.values()])
        return {
            node: Netmap(
                version=0,
                self=entry.itself,
                prefixes=PREFIXES,
                peers=tuple(entries[other].peer for other in sorted(entries) if engine.sees(node, other)),
                filter=engine.rules(node),
                reject=engine.reject,
                relays=RELAYS,
                stun=STUN,
            )
            for node, entry in entries.items()
        }


@pytest.mark.parametrize("seed", range(30))
def test_netmaps_of_random_changes_told_by_deltas_are_those_built_whole(seed: int) -> None:
    network = Network(seed)
    for _ in range(60):
        network.step()
        for node, built in network.whole().items():
            if node not in network.late:
                assert network.held[node] == replace(built, version=network.held[node].version), f"node {node}"
        assert network.held.keys() - network.late <= network.whole().keys()


@pytest.mark.parametrize("seed", range(10))
def test_routers_of_random_changes_are_one_for_each_prefix_and_online_where_any_is(seed: int) -> None:
    network = Network(seed)
    for _ in range(60):
        network.step()
        peers: dict[NodeId, Peer] = {peer.id: peer for built in network.whole().values() for peer in built.peers}
        primaries = network.netmaps.routers.primaries()
        for route in map(ip_network, ROUTES):
            may = [node for node in network.whole() if route in effective_routes(network.state.nodes[node])]
            assert (route in primaries) == bool(may)
            assert not may or primaries[route] in may
            assert sum(route in peer.routes for peer in peers.values()) <= 1
            if any(network.presence.get(node, Presence()).online for node in may):
                assert network.presence[primaries[route]].online


def test_netmap_of_nothing_new_keeps_its_version() -> None:
    network = Network(1)
    first = network.add()
    network.netmaps.refresh(first | network.add(), network.state, {}, NOW)
    before = network.netmaps.netmap(NodeId(1), RELAYS, STUN)
    touched, lost = network.netmaps.refresh(first, network.state, {}, NOW)
    assert (touched, lost) == (set(), False)
    assert network.netmaps.netmap(NodeId(1), RELAYS, STUN) == before


def test_netmap_of_a_node_that_was_away_has_a_version_above_those_before() -> None:
    network = Network(1)
    network.netmaps.refresh(network.add() | network.add(), network.state, {}, NOW)
    before = network.netmaps.netmap(NodeId(1), RELAYS, STUN).version
    record = network.state.nodes[NodeId(1)]
    for disabled in (True, False):
        network.state.apply([Put(replace(record, disabled=disabled))])
        network.netmaps.refresh({NodeId(1)}, network.state, {}, NOW)
    assert network.netmaps.netmap(NodeId(1), RELAYS, STUN).version > before
