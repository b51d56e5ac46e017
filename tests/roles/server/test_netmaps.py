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
from calnet.roles.server.netmaps import EngineFactory, Netmaps, Presence, View, effective_routes, entry_of, rest_digest
from calnet.roles.server.snapshot import Snapshot
from calnet.store.interface import Delete, NodeRecord, Put, UserRecord, key_of
from calnet.wire import control
from calnet.wire import netmap as wire

PREFIXES: tuple[Prefix, ...] = (ip_network("10.99.0.0/16"),)
RELAYS, STUN = (Relay("wss://relay.example/relay"),), ("relay.example:3478",)
OTHER_RELAYS = (Relay("wss://other.example/relay"),)
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
        self.views: dict[NodeId, View] = {}
        self.late: set[NodeId] = set()
        self.relays = RELAYS
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
        draw = self.random.random()
        if draw < 0.05:
            self.relays = self.random.choice((RELAYS, OTHER_RELAYS))
            touched, lost = set(before), False
        elif draw < 0.1 and self.held:
            self.restart()
            touched, lost = set(self.state.nodes), True
        elif draw < 0.2:
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
        old = self.held.get(node)
        view, message = self.netmaps.news(node, self.views.get(node) if old is not None else None, self.relays, STUN)
        self.views[node] = view
        if message is None:
            assert old is not None
            assert old.version == view.version
            return
        arrived = control.decode_from_server(control.encode(message))
        assert isinstance(arrived, control.NetmapFull | control.NetmapDelta)
        assert old is None or (isinstance(arrived, control.NetmapDelta) and arrived.version > old.version)
        self.held[node] = wire.model_netmap(arrived) if isinstance(arrived, control.NetmapFull) else wire.apply(old or self.held[node], arrived)
        assert self.held[node].version == view.version

    def restart(self) -> None:
        """Another process takes over; the records may have changed while none was there."""
        kept = self.netmaps.keep()
        self.views = {node: view if isinstance(view.rest, bytes) else replace(view, rest=rest_digest(view.rest)) for node, view in self.views.items()}
        for _ in range(self.random.randrange(3)):
            if len(self.state.nodes) > 3:
                self.random.choice((self.record, self.come_and_go, self.remove))()
        self.netmaps = Netmaps(PREFIXES, 50)
        self.netmaps.refresh(self.state.nodes, self.state, self.presence, NOW)
        self.netmaps.set_policy(self.make)
        self.netmaps.resume(kept)

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
                relays=self.relays,
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
    before, _ = network.netmaps.news(NodeId(1), None, RELAYS, STUN)
    touched, lost = network.netmaps.refresh(first, network.state, {}, NOW)
    assert (touched, lost) == (set(), False)
    after, message = network.netmaps.news(NodeId(1), before, RELAYS, STUN)
    assert (after.version, message) == (before.version, None)


def test_netmap_of_a_node_that_was_away_has_a_version_above_those_before() -> None:
    network = Network(1)
    network.netmaps.refresh(network.add() | network.add(), network.state, {}, NOW)
    before, _ = network.netmaps.news(NodeId(1), None, RELAYS, STUN)
    record = network.state.nodes[NodeId(1)]
    for disabled in (True, False):
        network.state.apply([Put(replace(record, disabled=disabled))])
        network.netmaps.refresh({NodeId(1)}, network.state, {}, NOW)
    after, _ = network.netmaps.news(NodeId(1), before, RELAYS, STUN)
    assert after.version >= before.version
    fresh, _ = network.netmaps.news(NodeId(1), None, RELAYS, STUN)
    assert fresh.version > before.version


def test_process_that_follows_tells_nothing_anew_where_nothing_changed() -> None:
    network = Network(1)
    for _ in range(5):
        network.netmaps.refresh(network.add(), network.state, {}, NOW)
    views = {node: network.netmaps.news(node, None, RELAYS, STUN)[0] for node in network.state.nodes}
    kept = network.netmaps.keep()
    follower = Netmaps(PREFIXES, 50)
    follower.refresh(network.state.nodes, network.state, {}, NOW)
    follower.resume(kept)
    for node, view in views.items():
        assert isinstance(view.rest, Netmap)
        assert follower.news(node, replace(view, rest=rest_digest(view.rest)), RELAYS, STUN)[1] is None
    name = replace(network.state.nodes[NodeId(2)], name="renamed")
    network.state.apply([Put(name)])
    follower.refresh({NodeId(2)}, network.state, {}, NOW)
    _, message = follower.news(NodeId(1), views[NodeId(1)], RELAYS, STUN)
    assert isinstance(message, control.NetmapDelta)
    assert [peer.name for peer in wire.apply(replace(network.whole()[NodeId(1)], version=views[NodeId(1)].version), decoded(message)).peers][:1] == ["renamed"]


def decoded(message: control.NetmapDelta) -> control.NetmapDelta:
    """As it arrives."""
    arrived = control.decode_from_server(control.encode(message))
    assert isinstance(arrived, control.NetmapDelta)
    return arrived
