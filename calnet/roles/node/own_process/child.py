"""The data path's process: the real engine, and a host for it that speaks to the daemon. See the package.

The first message says what to open; all others are the engine's calls. It ends when the stream does, and by nothing else: a terminal's SIGINT, and the SIGTERM
that a service manager sends to all of a service, are the daemon's to act on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import stat
import time
from argparse import Namespace
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from calnet.crypto.choice import choose, load_library
from calnet.errors import CalnetError, StateError, UsageError, WireError
from calnet.host.libraries import batch_libraries
from calnet.host.process import end_with_parent, no_core_dumps
from calnet.model import Buffer, Endpoint, Netmap, NodeId, Peer, Prefix
from calnet.roles.node import log_format
from calnet.roles.node.clocks import Clocks
from calnet.roles.node.engine import Engine, EngineHost, OpenEngine
from calnet.roles.node.handshake_log import HandshakeLog
from calnet.roles.node.opening import engine_opener
from calnet.roles.node.own_process import messages
from calnet.roles.node.own_process.frames import FrameReader
from calnet.roles.node.own_process.stream import ENDED, Stream

log = logging.getLogger(__name__)


def run(args: Namespace) -> int:
    """Carry packets until the stream ends; 0. UsageError where no daemon started this."""
    end_with_parent()
    no_core_dumps()
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    connection = _inherited(-1 if args.fd is None else int(args.fd))
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(DataPathProcess(connection, _real_opener).serve())
    return 0


def _inherited(descriptor: int) -> socket.socket:
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            return connection
    raise UsageError("only the daemon starts this: `calnet node --processes 2`")


def _real_opener(said: messages.Open, stamps: HandshakeLog) -> OpenEngine:
    clocks = Clocks(time.time, time.monotonic, lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    identity = messages.identity_of(said.secrets)
    log_format.set_up(debug=said.debug)
    opener = engine_opener(
        lambda: identity,
        stamps,
        tun=said.tun,
        mtu=said.mtu,
        clocks=clocks,
        random=os.urandom,
        capabilities=said.capabilities,
        new_batch=choose(time.perf_counter, load_library(batch_libraries())).new_batch,
    )

    def open_engine(port: int, host: EngineHost) -> Engine:
        engine = opener(port, host)
        gc.collect()
        gc.freeze()
        return engine

    return open_engine


class DataPathProcess:
    """`engine.EngineHost` for the engine that it opens when it is told to. Call `serve`."""

    def __init__(self, connection: socket.socket, opener: Callable[[messages.Open, HandshakeLog], OpenEngine]) -> None:
        """`connection` leads to the daemon, and doesn't block."""
        self._connection, self._opener = connection, opener
        self._engine: Engine | None = None
        self._stamps: HandshakeLog | None = None
        self._netmap: Netmap | None = None
        self._put: list[Peer] = []
        """Told already for the next netmap."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the stream ends."""
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stream = Stream(loop, self._connection, FrameReader(), message=self._message, relayed=self._relayed, ended=self._daemon_gone)
        await self._ended.wait()
        if self._engine is not None:
            self._engine.close()
        if self._stamps is not None:
            self._stamps.close()

    def _daemon_gone(self, why: str) -> None:
        if why != ENDED:
            log.error("daemon_lost why=%s", why)
        self._ended.set()

    # --- what the daemon says ---

    def _relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        if self._engine is not None:
            self._engine.relayed(peer, datagrams)

    def _message(self, body: memoryview) -> None:
        said = messages.decode_from_daemon(body)
        if isinstance(said, messages.Open):
            self._open(said)
        elif self._engine is None:
            raise WireError("the first message was not what to open")
        else:
            self._call(self._engine, said)

    def _open(self, said: messages.Open) -> None:
        try:
            self._stamps = HandshakeLog(Path(said.stamps))
            self._engine = self._opener(said, self._stamps)(said.port, self)
        except CalnetError as error:
            self._say(messages.Failed(0, error.code, str(error)))
            return
        self._say(messages.Opened(self._engine.port, self._engine.mtu, self._engine.gso_max_size))

    def _call(self, engine: Engine, said: messages.FromDaemon) -> None:
        match said:
            case messages.Peers():
                self._put += messages.peers_of(said)
            case messages.Apply():
                self._netmap = messages.netmap_of(self._netmap, self._put, said)
                self._put.clear()
                engine.apply(self._netmap, accept_routes=said.accept_routes, guess_ports=said.guess_ports, ways=messages.ways_of(said))
            case messages.SetClock():
                engine.set_clock(said.offset)
            case messages.SetIdentity():
                engine.set_identity(messages.identity_of(said.secrets))
            case messages.RelayConnected():
                engine.relay_connected(said.connected)
            case messages.PeerCandidates():
                engine.candidates(NodeId(said.peer), said.endpoints)
            case messages.NetworkChanged():
                engine.network_changed(said.endpoints, moved=said.moved)
            case messages.StunServers():
                engine.stun_servers(said.endpoints)
            case messages.MappedEndpoints():
                engine.mapped_endpoints(said.endpoints)
            case messages.Open():
                pass
            case _:
                self._answer(said.request, _answer(engine, said, self._stream))

    def _answer(self, number: int, work: Coroutine[None, None, messages.Answer]) -> None:
        async def answer() -> None:
            try:
                self._say(await work)
            except CalnetError as error:
                self._say(messages.Failed(number, error.code, str(error)))

        task = asyncio.create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _say(self, message: messages.Message) -> None:
        self._stream.send(messages.encode(message))

    # --- EngineHost ---

    def send_relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        self._stream.send_relayed(peer, datagrams)

    def send_candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        self._say(messages.SendCandidates(peer, endpoints))

    def publish_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._say(messages.PublishEndpoints(endpoints))

    def persist_timestamp(self, node_key: bytes, timestamp: bytes, sent: bool) -> None:
        if self._stamps is None:
            raise StateError("the handshake timestamps are not open")
        self._stamps.persist(node_key, timestamp, sent)  # a failure is told by the data path
        self.health("stamps", None)

    def path_changed(self, peer: NodeId, description: str, endpoint: Endpoint | None) -> None:
        self._say(messages.PathChanged(peer, description, endpoint))

    def router_moved(self, prefix: Prefix, old: NodeId, new: NodeId, why: str) -> None:
        self._say(messages.RouterMoved(str(prefix), old, new, why))

    def mtu_raised(self, mtu: int) -> None:
        self._say(messages.MtuRaised(mtu, None if self._engine is None else self._engine.gso_max_size))

    def health(self, code: str, text: str | None) -> None:
        self._say(messages.Health(code, text))

    def engine_ended(self, why: str) -> None:
        """The real engine never does."""


Question = messages.ChangePort | messages.Ping | messages.AskWhy | messages.AskNetcheck | messages.AskStatuses | messages.AskFigures


async def _answer(engine: Engine, asked: Question, stream: Stream) -> messages.Answer:
    """What the engine answers. Raises as it does."""
    number = asked.request
    match asked:
        case messages.ChangePort():
            await engine.change_port()
            return messages.PortChanged(number, engine.port)
        case messages.Ping():
            return messages.Pong(number, await engine.ping(NodeId(asked.peer), asked.timeout_s))
        case messages.AskWhy():
            return messages.Views(number, *await engine.why(NodeId(asked.peer), asked.timeout_s))
        case messages.AskNetcheck():
            return messages.Netchecked(number, await engine.netcheck(asked.timeout_s))
        case messages.AskStatuses():
            statuses = await engine.statuses([NodeId(peer) for peer in asked.peers])
            return messages.Statuses(number, messages.standings_of(list(statuses.values())))
        case messages.AskFigures():
            figures = await engine.figures()
            return messages.Counted(number, replace(figures, dropped=figures.dropped + stream.dropped))
        case _:
            assert_never(asked)
