"""A node daemon with everything around it in memory: server (control and relay), data path, machine. Clocks run by hand, except the loop's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, ip_address, ip_network
from pathlib import Path
from random import Random
from typing import Any

from calnet.crypto.keys import PrivateKey
from calnet.errors import CalnetError, HostError, TimedOutError, UnreachableError
from calnet.host.interfaces import Interface, NetworkView
from calnet.host.local_socket import LocalRequest
from calnet.host.memory_network import MemoryNetwork
from calnet.host.nft import MemoryNftables
from calnet.model import ControlKey, Endpoint, Netmap, NodeId, NodeKey, Peer, Relay, SelfNode
from calnet.paths.explain import View
from calnet.paths.stun_client import MappingBehaviour
from calnet.paths.way import Way
from calnet.roles.node.clocks import Clocks
from calnet.roles.node.daemon import NO_STATUS, Daemon, Machine
from calnet.roles.node.engine import NO_WAYS, EngineHost, Figures, Identity, Netcheck, PeerStatus, PingAnswer
from calnet.roles.node.health import HealthLine
from calnet.roles.node.host_setup import HostSetup
from calnet.roles.node.login import Logins
from calnet.roles.node.operations import Operations
from calnet.roles.node.overview import health_of
from calnet.roles.node.state import StateDirectory
from calnet.roles.node.underlay import MessageSocket, Server
from calnet.wire import control, relay
from calnet.wire import netmap as netmaps
from calnet.wire.authkey import AuthKey, format_auth_key
from calnet.wire.channel import Channel
from tests.deltas import difference

WITHIN_S = 10.0
URL = "http://server.test:8080"
RELAY_URL = "ws://server.test:8080/relay"


async def until(condition: Callable[[], object], within: float = WITHIN_S) -> None:
    """Poll for `condition`, generously bounded."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


class MemorySocket:
    """One end of a connection of messages."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.other: MemorySocket | None = None
        self.closed = False

    async def send(self, message: bytes) -> None:
        if self.closed or self.other is None or self.other.closed:
            raise UnreachableError("the connection was closed")
        self.other.inbox.put_nowait(bytes(message))
        await asyncio.sleep(0)

    async def receive(self) -> bytes:
        message = None if self.closed else await self.inbox.get()
        if message is None:
            self.closed = True
            raise UnreachableError("the connection was closed")
        return message

    async def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        self.closed = True
        self.inbox.put_nowait(None)
        if self.other is not None:
            self.other.inbox.put_nowait(None)


def socket_pair() -> tuple[MemorySocket, MemorySocket]:
    left, right = MemorySocket(), MemorySocket()
    left.other, right.other = right, left
    return left, right


@dataclass
class Session:
    """One control session as the server sees it."""

    socket: MemorySocket
    channel: Channel
    heard: list[control.NodeMessage] = field(default_factory=list)

    async def say(self, message: control.Message) -> None:
        for part in self.channel.send(control.encode(message)):
            await self.socket.send(part)


class FakeServer:
    """Answers as a server does, from what a test sets: `standing`, `netmap`, `refusal` of registrations, `reachable`."""

    def __init__(self, key: PrivateKey | None = None) -> None:
        self.key = key or PrivateKey(b"\x11" * 32)
        self.reachable = True
        self.mute = False
        """Connections are taken, and nothing is ever said on them."""
        self.standing = "unregistered"
        self.after_register = "active"
        self.refusal: CalnetError | None = None
        self.netmap: Netmap | None = a_netmap()
        self.time_ahead = 0.0
        self.wall: Callable[[], float] = lambda: 0.0
        self.silent_to: tuple[type, ...] = ()
        """Messages that get no answer."""
        self.sessions: list[Session] = []
        self.relays: list[RelaySession] = []
        self.relay_refusal: relay.Reason | None = None
        self.heard: list[control.NodeMessage] = []
        self.registered: list[control.Register] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def auth_key(self) -> str:
        return format_auth_key(AuthKey(b"i" * 8, b"s" * 20, ControlKey(self.key.public)))

    async def dial(self, url: str, max_size: int) -> MessageSocket:
        if not self.reachable:
            raise UnreachableError("server.test port 8080: connection refused")
        ours, theirs = socket_pair()
        if self.mute:
            return theirs
        work = self._relay(ours) if url == RELAY_URL else self._control(ours)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return theirs

    async def fetch_key(self, server: Server) -> bytes:
        if not self.reachable:
            raise UnreachableError("server.test port 8080: connection refused")
        return self.key.public

    @property
    def session(self) -> Session:
        return self.sessions[-1]

    async def drop(self) -> None:
        """All connections end."""
        for socket in [*(session.socket for session in self.sessions), *(session.socket for session in self.relays)]:
            await socket.close()

    async def _control(self, socket: MemorySocket) -> None:
        channel = Channel.server(self.key, PrivateKey(b"\x22" * 32))
        with suppress(CalnetError):
            answer = channel.receive_handshake(await socket.receive())
            await socket.send(answer or b"")
            session = Session(socket, channel)
            self.sessions.append(session)
            await session.say(control.Welcome(self.wall() + self.time_ahead, "test", 1, self.standing, "CODE" if self.standing == "pending" else ""))
            while True:
                whole = channel.receive(await socket.receive())
                if whole is not None:
                    message = control.decode_from_node(whole)
                    session.heard.append(message)
                    self.heard.append(message)
                    if not isinstance(message, self.silent_to):
                        await self._answer(session, message)
        await socket.close()

    async def _answer(self, session: Session, message: control.NodeMessage) -> None:
        match message:
            case control.Register():
                proof = control.registration_proof(self.key, message.node_key, session.channel.hash, message.node_key, message.discovery_key)
                assert control.proof_holds(message.proof, proof)
                if self.refusal is not None:
                    await session.say(control.Refused(message.request, self.refusal.code, str(self.refusal)))
                    return
                self.registered.append(message)
                self.standing = self.after_register
                if self.standing == "pending":
                    await session.say(control.State("pending", "CODE", message.request))
                else:
                    await session.say(control.Registered(message.request, 1))
            case control.Subscribe() if self.standing == "active" and self.netmap is not None:
                if message.version == self.netmap.version:
                    await session.say(control.NetmapUnchanged(message.version))
                else:
                    await session.say(netmaps.wire_netmap(self.netmap))
            case control.Update() | control.Logout():
                await session.say(control.Done(message.request))
            case control.Ping():
                await session.say(control.Pong(message.number, self.wall() + self.time_ahead))
            case _:
                pass

    async def change(self, netmap: Netmap) -> None:
        """Send the difference as a delta."""
        assert self.netmap is not None
        delta = difference(self.netmap, netmap)
        self.netmap = netmap
        await self.session.say(delta)

    async def _relay(self, socket: MemorySocket) -> None:
        channel = relay.server_channel(self.key, PrivateKey(b"\x33" * 32))
        with suppress(CalnetError):
            await socket.send(channel.receive_handshake(await socket.receive()) or b"")
            key = relay.check_proof(channel, await socket.receive())
            if self.relay_refusal is not None:
                await socket.send(relay.verdict(channel, self.relay_refusal))
                await socket.close()
                return
            session, others = RelaySession(socket, key), [other for other in self.relays if not other.socket.closed]
            self.relays.append(session)
            await socket.send(relay.verdict(channel, relay.Reason.WELCOME))
            for other in others:
                await other.socket.send(relay.close_frame(relay.Reason.REPLACED))
            decoder = relay.RelayDecoder()
            while True:
                match decoder.decode(await socket.receive()):
                    case relay.Data(datagrams):
                        session.datagrams += [(bytes(to), bytes(datagram)) for to, datagram in datagrams]
                    case relay.Ping(token):
                        await socket.send(relay.pong_frame(token))
                    case _:
                        pass
        await socket.close()


@dataclass
class RelaySession:
    """One relay connection as the server sees it."""

    socket: MemorySocket
    key: bytes
    datagrams: list[tuple[bytes, bytes]] = field(default_factory=list)
    encoder: relay.RelayEncoder = field(default_factory=relay.RelayEncoder)

    async def deliver(self, sender: bytes, datagram: bytes) -> None:
        for frame in self.encoder.encode([(sender, datagram)]):
            await self.socket.send(frame)


class FakeEngine:
    """Remembers what it was told."""

    def __init__(self, port: int, host: EngineHost, identity: Identity) -> None:
        self.port, self.host = port or 40_001, host
        self.mtu = 1280
        self.gso_max_size: int | None = None
        self.identities = [identity.node.public]
        self.clock_offset = 0.0
        self.netmaps: list[tuple[Netmap, bool]] = []
        self.relay_states: list[bool] = []
        self.relayed_in: list[tuple[NodeId, bytes]] = []
        self.candidates_in: list[tuple[NodeId, tuple[Endpoint, ...]]] = []
        self.endpoints: tuple[Endpoint, ...] = ()
        self.stun: tuple[Endpoint, ...] = ()
        self.standing: dict[NodeId, PeerStatus] = {}
        self.answers: list[PingAnswer] = []
        self.views: tuple[View, View | None] = (View("none", False, False, True, MappingBehaviour.UNKNOWN), None)
        self.closed = self.moved = False

    def apply(self, netmap: Netmap, *, accept_routes: bool, guess_ports: bool = True, ways: Mapping[NodeId, Way] = NO_WAYS) -> None:
        self.ways = dict(ways)
        self.netmaps.append((netmap, accept_routes))

    def set_clock(self, offset: float) -> None:
        self.clock_offset = offset

    def set_identity(self, identity: Identity) -> None:
        self.identities.append(identity.node.public)

    def relayed(self, peer: NodeId, datagrams: Iterable[bytes | bytearray | memoryview]) -> None:
        self.relayed_in += [(peer, bytes(datagram)) for datagram in datagrams]

    def relay_connected(self, connected: bool) -> None:
        self.relay_states.append(connected)

    def candidates(self, peer: NodeId, endpoints: Iterable[Endpoint]) -> None:
        self.candidates_in.append((peer, tuple(endpoints)))

    async def change_port(self) -> None:
        self.port += 1

    def network_changed(self, endpoints: Iterable[Endpoint], *, moved: bool = False) -> None:
        self.endpoints, self.moved = tuple(endpoints), moved
        self.host.publish_endpoints(self.endpoints)

    def mapped_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        self.mapped = tuple(endpoints)

    def stun_servers(self, servers: Iterable[Endpoint]) -> None:
        self.stun = tuple(servers)

    async def ping(self, peer: NodeId, timeout_s: float) -> PingAnswer:
        if not self.answers:
            raise TimedOutError("no answer")
        return self.answers.pop(0)

    async def why(self, peer: NodeId, timeout_s: float) -> tuple[View, View | None]:
        return self.views

    async def statuses(self, peers: Sequence[NodeId]) -> Mapping[NodeId, PeerStatus]:
        return {peer: self.standing.get(peer, NO_STATUS) for peer in peers}

    async def figures(self) -> Figures:
        return Figures(3, {"direct": 2})

    async def netcheck(self, timeout_s: float) -> Netcheck:
        return Netcheck()

    def close(self) -> None:
        self.closed = True


@dataclass
class HandClock:
    """A wall clock and two monotonic ones, moved by hand."""

    wall: float = 1_800_000_000.0
    awake: float = 100.0
    elapsed: float = 100.0

    def clocks(self) -> Clocks:
        return Clocks(lambda: self.wall, lambda: self.awake, lambda: self.elapsed)

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.awake += seconds
        self.elapsed += seconds


class World:
    """A daemon and its surroundings. `boot` starts it (again), `halt` ends it as SIGTERM does, `crash` leaves everything as it stands."""

    def __init__(self, path: Path, server: FakeServer | None = None) -> None:
        self.path = path
        self.server = server or FakeServer()
        self.clock = HandClock()
        self.server.wall = lambda: self.clock.wall
        self.network = MemoryNetwork(NetworkView((Interface(2, "eth0", True, (IPv4Interface("192.0.2.7/24"),)),)))
        self.nft = MemoryNftables()
        self.random = Random(7)
        self.engines: list[FakeEngine] = []
        self.engine_error: HostError | None = None
        self.events: list[dict[str, object]] = []
        self.daemon: Daemon
        self.operations: Operations

    async def boot(self, *, fixed_port: int = 0, operator: str = "") -> Daemon:
        directory = StateDirectory(self.path / "state", self.random.randbytes)
        setup = HostSetup(directory, self.network, self.nft, None, "calnet0")
        self.daemon = Daemon(
            directory,
            setup,
            lambda port, host: self._open(port, host, directory),
            self.server.dial,
            self.server.fetch_key,
            machine=Machine("machine", "linux", "0.test", ("chunks",)),
            clocks=self.clock.clocks(),
            random=self.random.randbytes,
            fixed_port=fixed_port,
        )
        self.operations = Operations(self.daemon, Logins(self.daemon), operator)
        await self.daemon.start()
        return self.daemon

    def _open(self, port: int, host: EngineHost, directory: StateDirectory) -> FakeEngine:
        if self.engine_error is not None:
            raise self.engine_error
        engine = FakeEngine(port, host, directory.state.keys.identity())
        self.engines.append(engine)
        return engine

    async def halt(self) -> None:
        await self.daemon.close()

    async def call(self, op: str, /, uid: int = 0, **args: object) -> Any:
        """One local request."""
        return await self.operations.handle(LocalRequest(op, args, uid, uid, 1, self._emit))

    async def _emit(self, event: dict[str, object]) -> None:
        self.events.append(event)

    async def up(self, **args: Any) -> Any:
        return await self.call("up", server=URL, auth_key=self.server.auth_key(), **args)

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def health_lines(self) -> list[HealthLine]:
        """The lines of `status`."""
        return health_of(self.daemon, self.engine.standing if self.engines else {})

    def codes(self) -> list[str]:
        """The codes of `status`'s health lines."""
        return [line.code for line in self.health_lines()]


def run(path: Path, script: Callable[[World], Coroutine[Any, Any, None]], server: FakeServer | None = None) -> None:
    """Run `script` in a fresh world and end its daemon, if it still runs."""

    async def main() -> None:
        world = World(path, server)
        try:
            async with asyncio.timeout(60):
                await script(world)
        finally:
            if hasattr(world, "daemon"):
                await world.halt()
            await world.server.drop()

    asyncio.run(main())


def a_peer(number: int, **changes: Any) -> Peer:
    made = Peer(NodeId(number), f"node{number}", NodeKey(bytes((number,)) * 32), (ip_address(f"100.70.0.{number}"),), online=True)
    return replace(made, **changes)


def a_netmap(version: int = 1, peers: Sequence[Peer] | None = None, **changes: Any) -> Netmap:
    made = Netmap(
        version,
        SelfNode(NodeId(1), "me", (ip_address("100.70.0.1"), ip_address("fd12::1")), "admin"),
        (ip_network("100.70.0.0/24"), ip_network("fd12::/64")),
        tuple(peers) if peers is not None else (a_peer(2), a_peer(3)),
        relays=(Relay(RELAY_URL),),
    )
    return replace(made, **changes)
