"""The engine in the daemon's process that stands for the one in the data path's. See the package."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar, assert_never

from calnet.errors import StateMisuseError, TimedOutError, by_code
from calnet.model import Buffer, Endpoint, Netmap, NodeId
from calnet.paths.explain import View
from calnet.paths.way import Way
from calnet.roles.node.answers import Answers
from calnet.roles.node.engine import NO_WAYS, EngineHost, Figures, Identity, Netcheck, PeerStatus, PingAnswer
from calnet.roles.node.own_process import messages
from calnet.roles.node.own_process.frames import FrameReader
from calnet.roles.node.own_process.stream import Stream

PATIENCE_S: Final = 3.0
"""For an answer that takes the data path no time…"""
END_S: Final = 1.0
"""A child that has not ended so long after its stream did is killed."""

Kind = TypeVar("Kind", bound=messages.Message)


class Process(Protocol):
    """What is needed of `subprocess.Popen`."""

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


def reaped(process: Process, patience_s: float = END_S) -> int:
    """The return code of a child that is ending; killed where it takes longer."""
    try:
        return process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(END_S)
    return -signal.SIGKILL  # the kernel has it in its hands, and ends it when it can


def how_it_ended(code: int) -> str:
    """A return code in words, as `EngineHost.engine_ended` takes them."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class ProxyEngine:
    """`engine.Engine`, from the moment at which the child has opened its own."""

    def __init__(
        self,
        process: Process,
        connection: socket.socket,
        reader: FrameReader,
        host: EngineHost,
        opened: messages.Opened,
    ) -> None:
        """Takes over process and connection. `reader` has read all up to `opened`, and perhaps more."""
        loop = asyncio.get_running_loop()
        self._process, self._host = process, host
        self._netmap: Netmap | None = None
        self._numbers = itertools.count(1)
        self._answers = Answers[messages.Answer](loop)
        self._silent = self._closed = False
        self.port, self.mtu, self.gso_max_size = opened.port, opened.mtu, opened.gso_max_size
        self._stream = Stream(loop, connection, reader, message=self._message, relayed=host.send_relayed, ended=self._stream_ended)

    # --- what it is told ---

    def apply(self, netmap: Netmap, *, accept_routes: bool, guess_ports: bool = True, ways: Mapping[NodeId, Way] = NO_WAYS) -> None:
        for message in messages.told_netmap(self._netmap, netmap, accept_routes=accept_routes, guess_ports=guess_ports, ways=ways):
            self._tell(message)
        self._netmap = netmap

    def set_clock(self, offset: float) -> None:
        self._tell(messages.SetClock(offset))

    def set_identity(self, identity: Identity) -> None:
        self._tell(messages.SetIdentity(messages.secrets_of(identity)))

    def relay_connected(self, connected: bool) -> None:
        self._tell(messages.RelayConnected(connected))

    def candidates(self, peer: NodeId, endpoints: Iterable[Endpoint]) -> None:
        self._tell(messages.PeerCandidates(peer, tuple(endpoints)))

    def network_changed(self, endpoints: Iterable[Endpoint], *, moved: bool = False) -> None:
        self._tell(messages.NetworkChanged(tuple(endpoints), moved))

    def stun_servers(self, servers: Iterable[Endpoint]) -> None:
        self._tell(messages.StunServers(tuple(servers)))

    def mapped_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        self._tell(messages.MappedEndpoints(tuple(endpoints)))

    def relayed(self, peer: NodeId, datagrams: Sequence[Buffer]) -> None:
        self._stream.send_relayed(peer, datagrams)

    def _tell(self, message: messages.Message) -> None:
        self._stream.send(messages.encode(message))

    # --- what it is asked ---

    async def change_port(self) -> None:
        self.port = (await self._ask(messages.PortChanged, lambda number: messages.ChangePort(number))).port

    async def ping(self, peer: NodeId, timeout_s: float) -> PingAnswer:
        return (await self._ask(messages.Pong, lambda number: messages.Ping(number, peer, timeout_s), timeout_s)).answer

    async def why(self, peer: NodeId, timeout_s: float) -> tuple[View, View | None]:
        views = await self._ask(messages.Views, lambda number: messages.AskWhy(number, peer, timeout_s), timeout_s)
        return views.here, views.there

    async def netcheck(self, timeout_s: float) -> Netcheck:
        return (await self._ask(messages.Netchecked, lambda number: messages.AskNetcheck(number, timeout_s), timeout_s)).found

    async def statuses(self, peers: Sequence[NodeId]) -> Mapping[NodeId, PeerStatus]:
        answer = await self._ask(messages.Statuses, lambda number: messages.AskStatuses(number, tuple(peers)))
        return {peer: messages.status_of(standing) for peer, standing in zip(peers, answer.standings, strict=True)}

    async def figures(self) -> Figures:
        figures = (await self._ask(messages.Counted, lambda number: messages.AskFigures(number))).figures
        return Figures(figures.dropped + self._stream.dropped, figures.path_changes)

    async def _ask(self, kind: type[Kind], question: Callable[[int], messages.Message], timeout_s: float = 0.0) -> Kind:
        """The answer. TimedOutError where the data path gives none `PATIENCE_S` after it should have."""
        number = next(self._numbers)
        self._answers.expect(number)
        self._tell(question(number))
        if self._closed:
            self._answers.end()
        try:
            answer = await self._answers.within(number, timeout_s + PATIENCE_S)
        except TimeoutError:
            self._told_silent(silent=True)
            raise TimedOutError("the data path's process does not answer") from None
        self._told_silent(silent=False)
        if isinstance(answer, messages.Failed):
            raise by_code(answer.code, answer.text)
        if not isinstance(answer, kind):
            raise StateMisuseError(f"{type(answer).__name__} is no answer to what was asked")
        return answer

    def _told_silent(self, *, silent: bool) -> None:
        if silent != self._silent and not self._closed:
            self._silent = silent
            self._host.health("data-path-silent", "the data path's process does not answer: restart the daemon if that lasts" if silent else None)

    # --- what the child says ---

    def _message(self, body: memoryview) -> None:
        said = messages.decode_from_data_path(body)
        host = self._host
        match said:
            case messages.SendCandidates():
                host.send_candidates(NodeId(said.peer), said.endpoints)
            case messages.PublishEndpoints():
                host.publish_endpoints(said.endpoints)
            case messages.PathChanged():
                host.path_changed(NodeId(said.peer), said.description, said.endpoint)
            case messages.RouterMoved():
                host.router_moved(messages.prefix_of(said.prefix), NodeId(said.old), NodeId(said.new), said.why)
            case messages.MtuRaised():
                self.mtu, self.gso_max_size = said.mtu, said.gso_max_size
                host.mtu_raised(said.mtu)
            case messages.Health():
                host.health(said.code, said.text)
            case messages.Opened():
                pass
            case (
                messages.PortChanged()
                | messages.Pong()
                | messages.Views()
                | messages.Netchecked()
                | messages.Statuses()
                | messages.Counted()
                | messages.Failed()
            ):
                self._answers.came(said.request, said)
            case _:
                assert_never(said)

    def _stream_ended(self, why: str) -> None:
        """The child is ending, or talks nonsense: it is of no use in either case."""
        self._closed = True
        code = reaped(self._process)
        self._answers.end()
        self._host.engine_ended(why if why.startswith("sent") else how_it_ended(code))

    def close(self) -> None:
        """The child ends with its stream, and gives TUN and port back: both are free on return."""
        self._closed = True
        self._stream.close()
        self._answers.end()
        reaped(self._process)
