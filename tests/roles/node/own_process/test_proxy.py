"""Proxy and data path's side over a real socket pair in one process, with an engine that remembers: each call arrives there, each word back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from calnet.crypto.keys import PrivateKey
from calnet.errors import CalnetError, HostError, NotFoundError, StateError, TimedOutError, UnreachableError
from calnet.model import Buffer, Endpoint, NodeId, Prefix
from calnet.paths.explain import View
from calnet.paths.way import Way
from calnet.roles.node.engine import EngineHost, Figures, Identity, Netcheck, OpenEngine, PeerStatus, PingAnswer
from calnet.roles.node.handshake_log import HandshakeLog, build_record, parse_records
from calnet.roles.node.own_process import messages, proxy
from calnet.roles.node.own_process.child import DataPathProcess
from calnet.roles.node.own_process.frames import FrameReader, message_frame
from calnet.roles.node.own_process.proxy import ProxyEngine, how_it_ended
from calnet.roles.node.own_process.start import _opened as opened
from tests.roles.node.fakes import FakeEngine, a_netmap, a_peer, until

BOB, CAROL = NodeId(2), NodeId(3)
THERE = (Endpoint("198.51.100.2", 7), Endpoint("2001:db8::2", 8))
IDENTITY = Identity(PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32))
RENEWED = Identity(PrivateKey(b"\x04" * 32), PrivateKey(b"\x05" * 32), PrivateKey(b"\x01" * 32))


class Host:
    """Remembers what it was told, by the names of the calls."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.relayed: list[tuple[NodeId, bytes]] = []

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        self.relayed += [(peer, bytes(datagram)) for datagram in datagrams]

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        self.told.append(("candidates", peer, endpoints))

    def publish_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.told.append(("publish", endpoints))

    def persist_timestamp(self, node_key: bytes, timestamp: bytes, sent: bool) -> None:
        raise AssertionError("the data path keeps them")

    def path_changed(self, peer: NodeId, description: str, endpoint: Endpoint | None) -> None:
        self.told.append(("path", peer, description, endpoint))

    def router_moved(self, prefix: Prefix, old: NodeId, new: NodeId, why: str) -> None:
        self.told.append(("router", prefix, old, new, why))

    def mtu_raised(self, mtu: int) -> None:
        self.told.append(("mtu", mtu))

    def health(self, code: str, text: str | None) -> None:
        self.told.append(("health", code, text))

    def engine_ended(self, why: str) -> None:
        self.told.append(("ended", why))


class Child:
    """In a process's place."""

    def __init__(self, code: int = -9) -> None:
        self.code, self.waited, self.killed = code, 0, False

    def wait(self, timeout: float | None = None) -> int:
        self.waited += 1
        return self.code

    def kill(self) -> None:
        self.killed = True


class Engine(FakeEngine):
    """As the real one raises."""

    def __init__(self, port: int, host: EngineHost, identity: Identity) -> None:
        super().__init__(port, host, identity)
        self.guess = True
        self.hold: asyncio.Event | None = None

    def apply(self, netmap: Any, *, accept_routes: bool, guess_ports: bool = True, ways: Mapping[NodeId, Way] | None = None) -> None:
        self.guess = guess_ports
        super().apply(netmap, accept_routes=accept_routes, ways=ways or {})

    async def ping(self, peer: NodeId, timeout_s: float) -> PingAnswer:
        if self.hold is not None:
            await self.hold.wait()
        if peer not in (BOB, CAROL):
            raise NotFoundError(f"no peer {peer}")
        return await super().ping(peer, timeout_s)

    async def netcheck(self, timeout_s: float) -> Netcheck:
        return Netcheck(THERE[0], None, "endpoint-independent", True)


class Pair:
    """Both sides. `engine` is the one behind the data path's."""

    def __init__(self, tmp_path: Path, error: HostError | None = None) -> None:
        self.host, self.child, self.stamps = Host(), Child(), tmp_path / "stamps"
        self.engines: list[Engine] = []
        self.said: list[messages.Open] = []
        self.error = error

    def _opener(self, said: messages.Open, stamps: HandshakeLog) -> OpenEngine:
        self.said.append(said)

        def open_engine(port: int, host: EngineHost) -> Engine:
            host.health("gso", "refused")
            if self.error is not None:
                raise self.error
            self.engines.append(Engine(port, host, messages.identity_of(said.secrets)))
            return self.engines[-1]

        return open_engine

    async def open(self, port: int = 0) -> ProxyEngine:
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.process = DataPathProcess(self.theirs, self._opener)
        self.serving = asyncio.create_task(self.process.serve())
        asked = messages.Open(port, "calnet0", 1280, str(self.stamps), messages.secrets_of(IDENTITY), ("chunks",))
        reader = FrameReader()
        try:
            found = await asyncio.to_thread(opened, ours, reader, asked, self.host)
        except CalnetError:
            ours.close()
            await self.serving
            raise
        ours.setblocking(False)
        self.proxy = ProxyEngine(self.child, ours, reader, self.host, found)
        return self.proxy

    @property
    def engine(self) -> Engine:
        return self.engines[-1]


def run(tmp_path: Path, script: Callable[[Pair, ProxyEngine], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        pair = Pair(tmp_path)
        engine = await pair.open(41_000)
        try:
            async with asyncio.timeout(60):
                await script(pair, engine)
        finally:
            engine.close()
            await pair.serving
            assert pair.engine.closed

    asyncio.run(main())


def test_open_tells_all_and_brings_back_port_mtu_and_health(tmp_path: Path) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        assert (engine.port, engine.mtu, engine.gso_max_size) == (41_000, 1280, None)
        assert pair.engine.identities == [IDENTITY.node.public]
        (said,) = pair.said
        assert (said.tun, said.mtu, said.capabilities, said.debug) == ("calnet0", 1280, ("chunks",), False)
        assert pair.host.told == [("health", "gso", "refused")]

    run(tmp_path, script)


def test_what_can_not_be_opened_is_raised_as_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        pair = Pair(tmp_path, HostError("UDP port 41000 is taken"))
        with pytest.raises(HostError, match=r"^UDP port 41000 is taken$"):
            await pair.open(41_000)

    asyncio.run(main())


def test_damaged_stamps_are_raised_as_a_state_error(tmp_path: Path) -> None:
    async def main() -> None:
        pair = Pair(tmp_path)
        pair.stamps.write_bytes(b"nonsense and more of it")
        pair.stamps.chmod(0o600)
        with pytest.raises(StateError, match="damaged"):
            await pair.open()

    asyncio.run(main())


def test_all_that_the_engine_is_told_arrives_in_order(tmp_path: Path) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        first = a_netmap(1)
        second = a_netmap(2, (a_peer(2, online=False), a_peer(4)))
        engine.set_clock(-2.5)
        engine.apply(first, accept_routes=False)
        engine.apply(second, accept_routes=True, guess_ports=False, ways={BOB: Way.RELAY})
        engine.apply(second, accept_routes=False)
        engine.set_identity(RENEWED)
        engine.relay_connected(True)
        engine.relay_connected(False)
        engine.candidates(BOB, iter(THERE))
        engine.mapped_endpoints(THERE[:1])
        engine.stun_servers(THERE)
        engine.network_changed(iter(THERE), moved=True)
        await engine.figures()
        found = pair.engine
        assert found.clock_offset == -2.5
        assert found.netmaps == [(first, False), (second, True), (second, False)]
        assert (found.guess, found.ways) == (True, {})
        assert found.identities == [IDENTITY.node.public, RENEWED.node.public]
        assert found.relay_states == [True, False]
        assert found.candidates_in == [(BOB, THERE)]
        assert (found.mapped, found.stun, found.endpoints, found.moved) == (THERE[:1], THERE, THERE, True)

    run(tmp_path, script)


def test_all_that_the_host_is_told_arrives_in_order(tmp_path: Path) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        pair.host.told.clear()
        host = pair.engine.host
        host.send_candidates(BOB, THERE)
        host.publish_endpoints(THERE)
        host.path_changed(BOB, "direct", THERE[0])
        host.path_changed(BOB, "relay", None)
        host.router_moved(ip_network("10.0.0.0/8"), BOB, CAROL, "silent")
        pair.engine.mtu, pair.engine.gso_max_size = 1420, 60_000
        host.mtu_raised(1420)
        host.health("gso", "refused")
        host.health("gso", None)
        await engine.figures()
        assert pair.host.told == [
            ("candidates", BOB, THERE),
            ("publish", THERE),
            ("path", BOB, "direct", THERE[0]),
            ("path", BOB, "relay", None),
            ("router", ip_network("10.0.0.0/8"), BOB, CAROL, "silent"),
            ("mtu", 1420),
            ("health", "gso", "refused"),
            ("health", "gso", None),
        ]
        assert (engine.mtu, engine.gso_max_size) == (1420, 60_000)

    run(tmp_path, script)


def test_all_that_is_asked_is_answered(tmp_path: Path) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        status = PeerStatus("direct", THERE[0], 0.01, 1.8e9, 3, 4, (ip_network("10.0.0.0/8"),), 1420, "left", "AES-256-GCM")
        pair.engine.standing[BOB] = status
        pair.engine.answers = [PingAnswer("direct", THERE[0], 0.02)]
        found = await engine.statuses([CAROL, BOB])
        assert found[BOB] == status
        assert found[CAROL].path == "none"
        assert await engine.ping(BOB, 1.0) == PingAnswer("direct", THERE[0], 0.02)
        with pytest.raises(TimedOutError, match=r"^no answer$"):
            await engine.ping(BOB, 1.0)
        with pytest.raises(NotFoundError, match=r"^no peer 9$"):
            await engine.ping(NodeId(9), 1.0)
        views: tuple[View, View | None] = pair.engine.views
        assert await engine.why(BOB, 1.0) == views
        assert await engine.netcheck(1.0) == Netcheck(THERE[0], None, "endpoint-independent", True)
        assert await engine.figures() == Figures(3, {"direct": 2})
        await engine.change_port()
        assert engine.port == pair.engine.port == 41_001

    run(tmp_path, script)


def test_one_who_waits_long_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        pair.engine.hold = asyncio.Event()
        pair.engine.answers = [PingAnswer("relay", None, 0.02)]
        slow = asyncio.create_task(engine.ping(BOB, 30.0))
        await until(lambda: len(pair.process._tasks) == 1)
        await engine.figures()
        assert not slow.done()
        pair.engine.hold.set()
        assert (await slow).via == "relay"

    run(tmp_path, script)


def test_relayed_datagrams_pass_both_ways(tmp_path: Path) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        batch = [memoryview(bytes((number,)) * 1400) for number in range(40)]
        engine.relayed(BOB, batch)
        pair.engine.host.send_relayed(CAROL, batch[:7])
        await until(lambda: len(pair.engine.relayed_in) == 40 and len(pair.host.relayed) == 7)
        assert pair.engine.relayed_in == [(BOB, bytes(datagram)) for datagram in batch]
        assert pair.host.relayed == [(CAROL, bytes(datagram)) for datagram in batch[:7]]

    run(tmp_path, script)


def test_stamps_are_durable_before_persist_returns_and_a_failure_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(static: bytes, timestamp: bytes, sent: bool) -> None:
        raise StateError("no space left on that disk")

    async def script(pair: Pair, engine: ProxyEngine) -> None:
        host = pair.engine.host
        host.persist_timestamp(b"k" * 32, b"t" * 12, False)
        assert parse_records(pair.stamps.read_bytes()) == ([build_record(b"k" * 32, b"t" * 12, False)], False)
        monkeypatch.setattr(pair.process._stamps, "persist", full)
        with pytest.raises(StateError):
            host.persist_timestamp(b"k" * 32, b"u" * 12, False)
        await engine.figures()
        told = [told for told in pair.host.told if told[:2] == ("health", "stamps")]
        assert told == [("health", "stamps", None)]

    run(tmp_path, script)


def test_data_path_that_ends_is_told_and_whoever_waits_hears_of_it(tmp_path: Path) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        pair.engine.hold = asyncio.Event()
        waiting = asyncio.create_task(engine.ping(BOB, 30.0))
        await until(lambda: len(pair.process._tasks) == 1)
        pair.process._stream.close()
        with pytest.raises(UnreachableError):
            await waiting
        assert pair.host.told[-1] == ("ended", "was ended by SIGKILL")
        assert pair.child.waited == 1
        with pytest.raises(UnreachableError):
            await engine.statuses([BOB])
        engine.apply(a_netmap(1), accept_routes=True)
        pair.process._daemon_gone("in this test")
        pair.engine.hold.set()

    run(tmp_path, script)


def test_data_path_that_says_what_is_no_message_is_ended(tmp_path: Path) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        pair.theirs.send(message_frame(b"\x81\xa1t\xa4Nope"))
        await until(lambda: pair.host.told[-1][0] == "ended")
        assert "can't be read" in str(pair.host.told[-1][1])

    run(tmp_path, script)


def test_data_path_that_does_not_answer_is_told_and_its_answer_takes_that_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(pair: Pair, engine: ProxyEngine) -> None:
        monkeypatch.setattr(proxy, "PATIENCE_S", 0.01)
        pair.engine.hold = asyncio.Event()
        pair.engine.answers = [PingAnswer("relay", None, 0.02)]
        with pytest.raises(TimedOutError, match="does not answer"):
            await engine.ping(BOB, 0.01)
        assert pair.host.told[-1][:2] == ("health", "data-path-silent")
        monkeypatch.undo()
        pair.engine.hold.set()
        await engine.figures()
        assert pair.host.told[-1] == ("health", "data-path-silent", None)

    run(tmp_path, script)


@pytest.mark.parametrize(
    ("code", "words"), [(0, "ended with exit code 0"), (1, "ended with exit code 1"), (-9, "was ended by SIGKILL"), (-63, "was ended by signal 63")]
)
def test_return_code_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words
