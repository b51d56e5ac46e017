"""A registry to test: on a real store in a temporary directory, with a clock that tests set and a seeded source of randomness."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from ipaddress import IPv4Network
from pathlib import Path
from random import Random
from typing import TypeVar

from calnet.crypto.keys import PrivateKey
from calnet.model import ControlKey, DiscoveryKey, Netmap, NodeId, NodeKey, Relay
from calnet.roles.server.registry import Registry
from calnet.roles.server.standing import Changed, RegisterRequest, Standing
from calnet.store.interface import Store
from calnet.store.opening import open_store
from calnet.wire import control
from calnet.wire import netmap as wire

Result = TypeVar("Result")
START = 1_800_000_000.0


def done(future: Future[Result]) -> Result:
    """The result, or the refusal."""
    return future.result(timeout=30)


class Machine:
    """What a node has: its keys and its hostname."""

    def __init__(self, random: Random, hostname: str) -> None:
        self.random = random
        self.hostname = hostname
        self.control_key = ControlKey(PrivateKey(random.randbytes(32)).public)
        self.renew()

    def renew(self) -> None:
        """New node and discovery keys."""
        self.node_key = NodeKey(PrivateKey(self.random.randbytes(32)).public)
        self.discovery_key = DiscoveryKey(PrivateKey(self.random.randbytes(32)).public)

    def request(self, auth_key: str = "", routes: tuple[str, ...] = ()) -> RegisterRequest:
        return RegisterRequest(self.control_key, self.node_key, self.discovery_key, self.hostname, "linux", "1.0", routes, auth_key)


class Office:
    """A registry, its clock, what it told, and the machines that knock at it."""

    def __init__(self, directory: Path, *, prefix: str | None = None, wrap: Callable[[Store], Store] = lambda store: store, seed: int = 1) -> None:
        self.directory = directory
        self.now = START
        self.random = Random(seed)
        self.wrap = wrap
        self.told: list[Changed] = []
        self.open(prefix)

    def open(self, prefix: str | None = None) -> None:
        network = None if prefix is None else IPv4Network(prefix)
        store = self.wrap(open_store("kv", self.directory))
        self.registry = Registry(store, clock=lambda: self.now, random=self.random.randbytes, prefix=network)
        self.registry.subscribe(self.told.append)

    def reopen(self, prefix: str | None = None) -> None:
        self.registry.close()
        self.open(prefix)

    def machine(self, hostname: str = "host") -> Machine:
        return Machine(self.random, hostname)

    def auth_key(self, **wishes: object) -> str:
        key: str = done(self.registry.create_key(**wishes))["key"]  # type: ignore[arg-type]
        return key

    def register(self, machine: Machine, auth_key: str = "", routes: tuple[str, ...] = ()) -> Standing:
        return done(self.registry.register(machine.request(auth_key, routes)))

    def join(self, hostname: str = "host", routes: tuple[str, ...] = (), **wishes: object) -> NodeId:
        """A new machine with a key of its own: its node."""
        return self.join_as(self.machine(hostname), routes, **wishes)

    def join_as(self, machine: Machine, routes: tuple[str, ...] = (), **wishes: object) -> NodeId:
        node = self.register(machine, self.auth_key(**wishes), routes).node
        assert node is not None
        return node

    def last(self) -> Changed:
        """What was told since the last look, in one."""
        told, self.told[:] = list(self.told), []
        netmaps = frozenset(node for changed in told for node in changed.netmaps)
        standings = frozenset(node for changed in told for node in changed.standings)
        return Changed(netmaps, standings, any(changed.urgent for changed in told))

    def peers(self, node: NodeId) -> list[int]:
        return [peer.id for peer in self.netmap(node).peers]

    def netmap(self, node: NodeId, relays: tuple[Relay, ...] = (), stun: tuple[str, ...] = ()) -> Netmap:
        """As `netmap_of`."""
        return netmap_of(self.registry, node, relays, stun)


def netmap_of(registry: Registry, node: NodeId, relays: tuple[Relay, ...] = (), stun: tuple[str, ...] = ()) -> Netmap:
    """What a node is told that holds nothing, as it arrives there; NotFoundError for one that is not active."""
    _, message = registry.news(node, None, relays, stun)
    assert message is not None
    full = control.decode_from_server(control.encode(message))
    assert isinstance(full, control.NetmapFull)
    return wire.model_netmap(full)
