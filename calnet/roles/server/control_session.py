"""One control session: the channel's handshake, then a node's messages answered and the netmap kept current (docs/protocol.md, control).

Theory of operation. `serve_control` runs one accepted WebSocket to its end. The task it runs in reads, and answers one message after the other. What there is
to send waits for the writer, a task that is there while there is something: replies first, then what is new in the netmap if that is due. A timer judges
silence. An idle session is a task and a timer: thousands of them are what a server mostly is. `_stop` ends the reader, from anywhere.

Error contract. Bytes that do not decode as a message get `Refused` with request 0, and the session goes on; so does a request that can't be granted, with
its number. What breaks the channel (a seal that does not hold, too long a message, too many messages) ends it. Nothing is acted on before the first message
that proves the key, nor after `end`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Final

from calnet import __version__
from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import (
    AuthenticationError,
    CalnetError,
    ForbiddenError,
    LoginNeededError,
    NotFoundError,
    ProtocolError,
    TimedOutError,
    UnreachableError,
    WireError,
)
from calnet.limits import RateLimiter
from calnet.model import ControlKey, DiscoveryKey, Endpoint, NodeId, NodeKey
from calnet.roles.server.connection import CLOSE_GOING_AWAY, CLOSE_NORMAL, CLOSE_POLICY, CLOSE_PROTOCOL, CLOSE_TRY_LATER, Connection
from calnet.roles.server.control_hub import ControlHub
from calnet.roles.server.durable import durable
from calnet.roles.server.names import printable
from calnet.roles.server.netmaps import View
from calnet.roles.server.settings import PublicUrl
from calnet.roles.server.standing import NO_LOGIN, Login, NodeState, RegisterRequest
from calnet.wire import control
from calnet.wire.channel import Channel
from calnet.wire.endpoints import parse_endpoints, source_network

log = logging.getLogger(__name__)

MESSAGES_PER_S: Final = 50.0
MESSAGES_BURST: Final = 400.0
PUBLISHES_PER_S: Final = 1.0
PUBLISHES_BURST: Final = 5.0
"""Each one makes a delta for every peer; the last of those that come faster is published when its time comes."""
MAX_QUEUED: Final = 1024
"""Messages waiting for a connection that does not take them: candidates are dropped before, the session ends here."""
MAX_QUEUED_CANDIDATES: Final = 256
_ENDING_STATES: Final = {
    NodeState.UNREGISTERED: ("deleted", "this node was deleted"),
    NodeState.DISABLED: ("disabled", "this node was disabled"),
    NodeState.EXPIRED: ("expired", "this node's key expired: log in again"),
}


async def serve_control(hub: ControlHub, connection: Connection, random: RandomBytes) -> None:
    """Run an accepted connection to its end."""
    try:
        origin = connection.origin()
        channel = await _handshake(hub, connection, random)
    except UnreachableError:
        return
    except CalnetError as error:
        await connection.close(CLOSE_PROTOCOL, str(error))
        return
    await ControlSession(hub, connection, channel, origin).run()


async def _handshake(hub: ControlHub, connection: Connection, random: RandomBytes) -> Channel:
    channel = Channel.server(hub.registry.control_key, PrivateKey.generate(random))
    try:
        async with asyncio.timeout(hub.timing.handshake_s):
            answer = channel.receive_handshake(await connection.receive())
            if answer is not None:
                await connection.send(answer)
    except TimeoutError:
        raise TimedOutError("no handshake came in time") from None
    return channel


class _SessionEndError(CalnetError):
    """The session is over; `close_code` is the WebSocket's."""

    def __init__(self, close_code: int, text: str) -> None:
        super().__init__(text)
        self.close_code = close_code


class ControlSession:
    """See the module. Made once the handshake is done; `run` returns when the connection is closed."""

    def __init__(self, hub: ControlHub, connection: Connection, channel: Channel, origin: PublicUrl) -> None:
        self.control_key: bytes = channel.remote_static
        self.node: NodeId | None = None
        self.source = source_network(connection.host)
        self._hub = hub
        self._registry = hub.registry
        self._connection = connection
        self._channel = channel
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._queue: deque[control.Message] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._reading = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None
        self._netmap_due = False
        self._claimed: int | None = None
        self._held: View | None = None
        self._told: tuple[NodeState, str] = (NodeState.UNREGISTERED, "")
        self._answering = False
        self._recheck = False
        self._ending: str | None = None
        self._admitted = False
        self._heard_at = self._loop.time()
        self._messages = RateLimiter(MESSAGES_PER_S, MESSAGES_BURST)
        self._publishes = RateLimiter(PUBLISHES_PER_S, PUBLISHES_BURST)
        self._unpublished: tuple[Endpoint, ...] | None = None
        self._pings = 0

    async def run(self) -> None:
        """Serve until either side ends it."""
        try:
            async with self._reading:
                self._welcome()
                self._keep()
                await self._read()
        except TimeoutError as error:
            if not self._reading.expired():
                self._error = error
        except Exception as error:  # noqa: BLE001  # told and logged below, whatever it is
            self._error = self._error or error
        finally:
            self._ending = self._ending or "gone"
            self._hub.leave(self)
            self._connection.authenticated()
            if self._timer is not None:
                self._timer.cancel()
            if self._writer is not None:
                self._writer.cancel()
                await asyncio.gather(self._writer, return_exceptions=True)
            await self._connection.close(*self._why())

    def _why(self) -> tuple[int, str]:
        match self._error:
            case None:
                return CLOSE_GOING_AWAY, self._ending or ""
            case _SessionEndError() as error:
                return error.close_code, str(error)
            case CalnetError() as error:
                return (CLOSE_NORMAL if isinstance(error, UnreachableError) else CLOSE_PROTOCOL), str(error)
        log.error("control_session_failed node=%s", self.node, exc_info=self._error)
        return CLOSE_POLICY, "an internal error"

    def _stop(self, error: Exception | None = None) -> None:
        """End the session: the reader reads no more. Again, nothing happens."""
        self._error = self._error or error
        if self._reading.when() is None:
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self._reading.reschedule(self._loop.time())

    # --- what the hub asks

    def end(self, code: str, text: str) -> None:
        """Say `Bye` and close; nothing that arrives is acted on any more."""
        if self._ending is None:
            self._ending = text
            self._queue.append(control.Bye(code, text))
            self._wake()
            self._loop.call_later(self._hub.timing.drain_s, self._stop)

    def netmap_due(self) -> None:
        """Send what changed in the netmap as soon as the connection takes it."""
        self._netmap_due = True
        self._wake()

    def standing_changed(self) -> None:
        """Look up where this machine stands, tell it, and end where it may not stay. A request under way is answered first."""
        if self._answering:
            self._recheck = True
            return
        standing = self._registry.standing(ControlKey(self.control_key))
        before = self._told[0]
        self._tell(standing.state, standing.code)
        if standing.state in _ENDING_STATES and before != standing.state:
            self.end(*_ENDING_STATES[standing.state])
        elif standing.state is NodeState.ACTIVE:
            self._hub.admitted(self)
            self.netmap_due()

    def deliver_candidates(self, sender: NodeId, endpoints: tuple[str, ...]) -> None:
        """Pass on a peer's candidates; dropped where the node does not read."""
        if len(self._queue) < MAX_QUEUED_CANDIDATES:
            self._say(control.Candidates(sender, endpoints))

    def _tell(self, state: NodeState, code: str, request: int = 0, login: Login = NO_LOGIN) -> None:
        if request or self._told != (state, code):
            self._told = (state, code)
            self._say(control.State(state.value, code, request, *login))

    def _say(self, message: control.Message) -> None:
        if self._ending is None:
            self._queue.append(message)
            self._wake()

    def _welcome(self) -> None:
        standing = self._registry.standing(ControlKey(self.control_key))
        self.node = standing.node
        self._told = (standing.state, standing.code)
        self._say(control.Welcome(self._hub.clock(), __version__, standing.node or 0, standing.state.value, standing.code))

    # --- reader, writer, timer

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = self._loop.create_task(self._write())

    async def _write(self) -> None:
        """Send all there is. Nothing awaits between the last look and the end, so that nothing is left behind."""
        try:
            while self._queue or self._netmap_due:
                if self._queue:
                    await self._send(self._queue.popleft())
                elif self._ending is not None:
                    break
                else:
                    self._netmap_due = False
                    await self._send_netmap()
            if self._ending is not None:
                self._stop(_SessionEndError(CLOSE_GOING_AWAY, self._ending))
        except Exception as error:  # noqa: BLE001  # `run` tells and logs it
            self._stop(error)
        finally:
            self._writer = None

    async def _send(self, message: control.Message) -> None:
        for part in self._channel.send(control.encode(message)):
            await self._connection.send(part)

    async def _send_netmap(self) -> None:
        if self._claimed is None or self.node is None:
            return
        held = self._held or self._hub.recall(self.node, self._claimed)
        try:
            view, message = self._hub.news(self.node, held, self._origin)
        except NotFoundError:
            return
        first, self._held = self._held is None, view
        if message is not None:
            await self._send(message)
        elif first:
            await self._send(control.NetmapUnchanged(view.version))

    def _keep(self) -> None:
        timing = self._hub.timing
        silence = self._loop.time() - self._heard_at
        if silence >= (timing.silence_s if self._admitted else timing.confirm_s):
            self._stop(_SessionEndError(CLOSE_POLICY, f"nothing was heard for {silence:.0f} s"))
        elif len(self._queue) > MAX_QUEUED:
            self._stop(_SessionEndError(CLOSE_POLICY, f"{MAX_QUEUED} messages wait for this connection, which does not take them"))
        else:
            if silence >= timing.keepalive_s and self._admitted:
                self._pings += 1
                self._say(control.Ping(self._pings))
            self._timer = self._loop.call_later(timing.keepalive_s / 2, self._keep)

    async def _read(self) -> None:
        while True:
            whole = self._channel.receive(await self._connection.receive())
            self._heard_at = self._loop.time()
            if not self._messages.allow(b"", self._heard_at):
                raise ProtocolError("too many messages")
            if not self._admitted:
                self._admit()
            if whole is not None and self._ending is None:
                await self._take(whole)

    def _admit(self) -> None:
        self._admitted = True
        self._connection.authenticated()
        self.node = self._registry.standing(ControlKey(self.control_key)).node
        if not self._registry.is_node(ControlKey(self.control_key)) and not self._hub.receive_stranger(self):
            raise _SessionEndError(CLOSE_TRY_LATER, "too many machines wait to be admitted; connect again later")
        if not self._hub.admit(self):
            raise _SessionEndError(CLOSE_GOING_AWAY, "the server stops")
        self._catch_up()

    def _catch_up(self) -> None:
        """What happened between welcome and admission reached no session: look again."""
        standing = self._registry.standing(ControlKey(self.control_key))
        self._tell(standing.state, standing.code)

    # --- a node's messages

    async def _take(self, whole: bytes) -> None:
        try:
            message = control.decode_from_node(whole)
        except WireError as error:
            self._refuse(0, error)
            return
        request = message.request if isinstance(message, control.Register | control.Update | control.Logout) else 0
        self._answering = True
        try:
            await self._answer(message)
        except CalnetError as error:
            self._refuse(request, error)
        finally:
            self._answering = False
        if self._recheck:
            self._recheck = False
            self.standing_changed()

    def _refuse(self, request: int, error: CalnetError) -> None:
        self._say(control.Refused(request, error.code, str(error)))

    async def _answer(self, message: control.NodeMessage) -> None:
        match message:
            case control.Register():
                await self._register(message)
            case control.Subscribe():
                self._count_request()
                self._claimed, self._held = message.version, None
                self.netmap_due()
                self._note_software(message)
            case control.Update():
                self._count_request()
                await durable(
                    self._registry.update(
                        self._registered(),
                        hostname=message.hostname,
                        routes=message.routes,
                        os=message.os,
                        version=message.version,
                        source=self._connection.host,
                    )
                )
                self._say(control.Done(message.request))
            case control.Logout():
                await durable(self._registry.logout(self._registered(), self._connection.host))
                self._say(control.Done(message.request))
            case control.Publish():
                self._publish(self._active(), parse_endpoints(message.endpoints))
            case control.Candidates():
                self._pass_candidates(message)
            case control.Health():
                self._take_health(message)
            case control.Ping():
                self._say(control.Pong(message.number, self._hub.clock()))
            case control.Pong():
                pass

    def _note_software(self, message: control.Subscribe) -> None:
        """A node whose program was replaced has other capabilities than those it registered with; one that says nothing of them has none."""
        if self.node is not None:
            self._registry.note_software(self.node, message.software, message.capabilities or (), self._connection.host)

    def _count_request(self) -> None:
        if not self._hub.requests.allow(self.control_key, self._loop.time()):
            raise ForbiddenError("too many requests of one machine: wait a moment")

    def _publish(self, node: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        waiting, self._unpublished = self._unpublished is not None, endpoints
        if not waiting:
            self._publish_when_due(node)

    def _publish_when_due(self, node: NodeId) -> None:
        endpoints = self._unpublished
        if endpoints is None or self._ending is not None:
            return
        if self._publishes.allow(b"", self._loop.time()):
            self._unpublished = None
            self._registry.publish(node, endpoints)
        else:
            self._loop.call_later(1 / PUBLISHES_PER_S, self._publish_when_due, node)

    def _take_health(self, message: control.Health) -> None:
        self._count_request()
        lines = ({"code": printable(line.code), "severity": printable(line.severity), "text": printable(line.text, 400)} for line in message.lines)
        self._registry.set_health(self._registered(), tuple(lines))

    def _registered(self) -> NodeId:
        if self.node is None:
            raise LoginNeededError("this machine is not registered here: log in with `calnet up`")
        return self.node

    def _active(self) -> NodeId:
        node = self._registered()
        if self._registry.standing_of(node).state is not NodeState.ACTIVE:
            raise LoginNeededError("this node is not active: log in with `calnet login`, or ask an admin")
        return node

    async def _register(self, message: control.Register) -> None:
        self._count_request()
        expected = control.registration_proof(self._registry.control_key, message.node_key, self._channel.hash, message.node_key, message.discovery_key)
        if not control.proof_holds(message.proof, expected):
            raise AuthenticationError("the proof of the node key does not hold")
        standing = await durable(
            self._registry.register(
                RegisterRequest(
                    control_key=ControlKey(self.control_key),
                    node_key=NodeKey(message.node_key),
                    discovery_key=DiscoveryKey(message.discovery_key),
                    hostname=message.hostname,
                    os=message.os,
                    version=message.version,
                    capabilities=message.capabilities,
                    routes=message.routes,
                    auth_key=message.auth_key,
                ),
                self._connection.host,
            )
        )
        if standing.node is not None:
            self._hub.bind(self, standing.node)
        if standing.state is NodeState.ACTIVE and standing.node is not None:
            self._told = (standing.state, standing.code)
            self._hub.admitted(self)
            self._say(control.Registered(message.request, standing.node, standing.key_expires))
            self.netmap_due()
        else:
            login = NO_LOGIN
            if standing.state is NodeState.PENDING and self._hub.signin is not None:
                login = await self._hub.signin.login(standing.code)
            self._tell(standing.state, standing.code, message.request, login)

    def _pass_candidates(self, message: control.Candidates) -> None:
        endpoints = parse_endpoints(message.endpoints)
        texts = tuple(str(endpoint) for endpoint in endpoints)
        if not self._hub.pass_candidates(self._active(), NodeId(message.peer), texts):
            raise NotFoundError(f"node {message.peer} is none of this node's peers")
