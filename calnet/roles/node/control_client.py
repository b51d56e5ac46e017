"""The node's side of the control session: connects, keeps connected, keeps the netmap current, carries requests (docs/protocol.md, section 7).

Theory of operation. `run` connects, performs the channel's handshake with the pinned server key, takes `Welcome`, subscribes with the version held, and
reads until the connection dies; then it waits (jittered, 30 s at most) and starts again. What arrives is told to `ControlEvents`; the netmap it tells is
always whole. Requests (`register`, `update`, `logout`) raise UnreachableError without a session, what the server refused as that error, TimedOutError
without an answer.

Error contract. Anything wrong with what the server sends, or here with it, ends the connection, never the client. A server that can't prove the pinned
key is told apart (`ControlEvents.server_key_wrong`): nothing is sent to it, and it is tried again as any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, assert_never

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import AuthenticationError, CalnetError, ProtocolError, RemoteError, TimedOutError, UnreachableError, WireError, by_code
from calnet.model import Endpoint, Netmap, NodeId
from calnet.roles.node.routes import check_netmap
from calnet.roles.node.state import Keys
from calnet.roles.node.together import together
from calnet.roles.node.underlay import CONTROL_PATH, Dial, MessageSocket, Reconnecting, Server
from calnet.wire import control
from calnet.wire import netmap as netmaps
from calnet.wire.channel import Channel
from calnet.wire.endpoints import parse_endpoints

log = logging.getLogger(__name__)

FetchKey = Callable[[Server], Awaitable[bytes]]
"""Asks a server for its control key, unauthenticated."""

MAX_SOCKET_MESSAGE: Final = 65_535
REQUEST_TIMEOUT_S: Final = 15.0
HANDSHAKE_TIMEOUT_S: Final = 15.0
ANSWER_AFTER_CHANGE_S: Final = 3.0
"""Where the network changed, a session that gives no sign of life for so long is taken for dead: its address may be gone, or no longer lead there."""
_END_OF_TIME: Final = 1e11
"""Unix seconds of the year 5138: no clock says more."""


class ControlEvents(Protocol):
    """What the daemon hears. No call may block."""

    def control_connected(self, welcome: control.Welcome) -> None:
        """A session stands; the server says where this machine stands."""

    def control_lost(self, reason: CalnetError) -> None:
        """The session ended, or couldn't be made."""

    def server_key_wrong(self, error: AuthenticationError) -> None:
        """The server at our URL did not prove the pinned key."""

    def standing_changed(self, state: str, code: str, login_url: str = "", user_code: str = "") -> None:
        """Where this machine stands now."""

    def netmap_arrived(self, netmap: Netmap) -> None:
        """The netmap now, whole."""

    def candidates_arrived(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """A peer's candidates: it wants to be probed."""

    def server_time(self, offset: float) -> None:
        """Server time minus this machine's, in seconds (half the round trip uncertain)."""


class ControlClient:
    """See the module's docstring. One instance for one server and control key."""

    def __init__(
        self,
        server: Server,
        server_key: bytes,
        control_key: PrivateKey,
        *,
        dial: Dial,
        events: ControlEvents,
        random: RandomBytes,
        wall: Callable[[], float],
        fetch_key: FetchKey,
        netmap: Netmap | None = None,
        software: str | None = None,
        capabilities: tuple[str, ...] | None = None,
    ) -> None:
        """`software` and `capabilities` are those of `control.Subscribe`."""
        self._software, self._capabilities = software, capabilities
        self._server, self._server_key, self._control_key = server, server_key, control_key
        self._dial, self._events, self._random, self._wall, self._fetch_key = dial, events, random, wall, fetch_key
        self._netmap = netmap
        self._socket: MessageSocket | None = None
        self._channel: Channel | None = None
        self._subscribed = False
        self._requests: dict[int, asyncio.Future[control.Message]] = {}
        self._next_request = 1
        self._outgoing: asyncio.Queue[control.Message] = asyncio.Queue(256)
        self._last_heard = 0.0
        self._last_sent = 0.0
        self._reconnecting = Reconnecting(random)
        self._moved = asyncio.Event()
        self._doubt: asyncio.TimerHandle | None = None
        """Runs while the session that stands is asked whether it does."""
        self.connected = False

    @property
    def session(self) -> object:
        """Another object in each session; None without one."""
        return self._channel

    @property
    def last_heard(self) -> float:
        """Loop time at which the server was last heard; 0.0 for never."""
        return self._last_heard

    async def run(self) -> None:
        """Stay connected until cancelled."""
        await self._reconnecting.run(self._one, self._lost)

    async def _one(self) -> None:
        self._moved.clear()
        try:
            await together(self._session(), self._until_moved())
        finally:
            await self._ended()

    def _lost(self, error: CalnetError) -> None:
        if self._reconnecting.stopped:
            return
        if isinstance(error, AuthenticationError):
            self._events.server_key_wrong(error)
        self._events.control_lost(error)

    def stop(self) -> None:
        """Tell nothing more and connect no more: the caller is done with this server, and cancels `run`."""
        self._reconnecting.stop()

    def reconnect_now(self) -> None:
        """Don't wait for the backoff: the network changed. A session that stands is asked whether it does. (It would be silent for two minutes before it
        counts as dead.)"""
        self._reconnecting.now()
        if self.connected and self._doubt is None:
            self._queue(control.Ping(0))
            self._doubt = asyncio.get_running_loop().call_later(ANSWER_AFTER_CHANGE_S, self.moved)

    def moved(self) -> None:
        """Packets leave from elsewhere, but not those of the session, or of the one that is being made: a new one takes its place now."""
        self._reconnecting.now(after_this=True)
        self._moved.set()

    # --- requests ---

    async def register(self, keys: Keys, message: Callable[[int, bytes], control.Register]) -> control.Registered | control.State:
        """Register with `keys`; `message(request, proof)` builds the request. Refusals raise the error that the server names."""
        channel = self._need_channel()
        proof = control.registration_proof(keys.node, self._server_key, channel.hash, keys.node.public, keys.discovery.public)
        answer = await self._request(lambda number: message(number, proof))
        if not isinstance(answer, control.Registered | control.State):
            raise UnreachableError("the server gave an answer that fits no registration")
        self.subscribe()
        return answer

    async def update(self, *, hostname: str | None = None, routes: tuple[str, ...] | None = None) -> None:
        """Change what the server knows of this node."""
        await self._request(lambda number: control.Update(number, hostname=hostname, routes=routes))

    async def logout(self) -> None:
        """End the registration's use."""
        await self._request(lambda number: control.Logout(number))

    def publish(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Tell the server our candidates; dropped without a session (they are published anew with each)."""
        self._queue(control.Publish(tuple(str(endpoint) for endpoint in endpoints[: control.MAX_ENDPOINTS])))

    def candidates(self, peer: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """Send our candidates to one peer; dropped without a session."""
        self._queue(control.Candidates(peer, tuple(str(endpoint) for endpoint in endpoints[: control.MAX_ENDPOINTS])))

    def health(self, lines: tuple[control.HealthLine, ...]) -> None:
        """Tell the server how this node is; dropped without a session."""
        self._queue(control.Health(lines))

    def subscribe(self) -> None:
        """Ask for the netmap, once a session."""
        if not self._subscribed and self.connected:
            self._subscribed = True
            self._queue(control.Subscribe(self._netmap.version if self._netmap is not None else 0, self._software, self._capabilities))

    def forget_netmap(self) -> None:
        """The next subscription asks for the whole netmap."""
        self._netmap = None

    def _need_channel(self) -> Channel:
        if self._channel is None or not self.connected:
            raise UnreachableError(f"no connection to the server {self._server.url()}")
        return self._channel

    async def _request(self, build: Callable[[int], control.Message]) -> control.Message:
        self._need_channel()
        number, self._next_request = self._next_request, self._next_request + 1
        answer: asyncio.Future[control.Message] = asyncio.get_running_loop().create_future()
        self._requests[number] = answer
        try:
            self._queue(build(number))
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise TimedOutError(f"the server {self._server.url()} did not answer in {REQUEST_TIMEOUT_S:.0f} s") from None
        finally:
            self._requests.pop(number, None)

    def _queue(self, message: control.Message) -> None:
        if self.connected:
            if self._outgoing.full():
                self._outgoing.get_nowait()
            self._outgoing.put_nowait(message)

    # --- one session ---

    async def _session(self) -> None:
        socket = await self._dial(self._server.socket_url(CONTROL_PATH), MAX_SOCKET_MESSAGE)
        self._socket = socket
        channel = Channel.client(self._control_key, self._server_key, PrivateKey.generate(self._random))
        welcome = await self._greet(socket, channel)
        self._channel, self.connected, self._subscribed = channel, True, False
        while not self._outgoing.empty():
            self._outgoing.get_nowait()
        self._heard()
        self._last_sent = self._last_heard
        self._server_time(welcome.server_time)
        self._events.control_connected(welcome)
        if welcome.state != "unregistered":
            self.subscribe()
        await together(self._write(socket, channel), self._read(socket, channel), self._keep_alive())

    async def _greet(self, socket: MessageSocket, channel: Channel) -> control.Welcome:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await socket.send(channel.opening())
                try:
                    channel.receive_handshake(await socket.receive())
                except (AuthenticationError, UnreachableError) as error:
                    await self._explain_refusal(error)
                    raise
                while True:
                    whole = channel.receive(await socket.receive())
                    if whole is not None:
                        break
        except TimeoutError:
            raise UnreachableError(f"the server {self._server.url()} does not answer") from None
        welcome = control.decode_from_server(whole)
        if isinstance(welcome, control.Bye):
            raise UnreachableError(f"the server refuses the session: {welcome.text or welcome.code}")
        if not isinstance(welcome, control.Welcome):
            raise UnreachableError("the server did not begin with a welcome")
        return welcome

    async def _explain_refusal(self, error: CalnetError) -> None:
        """The handshake failed: AuthenticationError where the server has, or says it has, another key than the pinned one. A server that was given
        another key can't read our first message, and only closes; what it says its key is counts for nothing but this text."""
        key = b"" if isinstance(error, AuthenticationError) else await self._fetch_key(self._server)
        if key != self._server_key:
            raise AuthenticationError(
                f"the server {self._server.url()} does not hold the control key this machine knows: it was replaced, or somebody stands between. "
                "If you trust it, `calnet up --auth-key` with a key made there, or `calnet logout` and `calnet up`"
            ) from error

    async def _write(self, socket: MessageSocket, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message = await self._outgoing.get()
            for part in channel.send(control.encode(message)):
                await socket.send(part)
            self._last_sent = loop.time()

    async def _until_moved(self) -> None:
        await self._moved.wait()
        raise UnreachableError("this machine's network changed, and the connection from before leads nowhere")

    async def _keep_alive(self) -> None:
        loop, number = asyncio.get_running_loop(), 0
        while True:
            now = loop.time()
            if now - self._last_heard > control.SILENCE_LIMIT_S:
                raise UnreachableError(f"the server {self._server.url()} has been silent for {control.SILENCE_LIMIT_S:.0f} s")
            if now - self._last_sent >= control.KEEPALIVE_S:
                number += 1
                self._last_sent = now
                self._queue(control.Ping(number))
            await asyncio.sleep(max(0.5, min(self._last_sent + control.KEEPALIVE_S, self._last_heard + control.SILENCE_LIMIT_S) - now))

    async def _read(self, socket: MessageSocket, channel: Channel) -> None:
        while True:
            whole = channel.receive(await socket.receive())
            self._heard()
            if whole is None:
                continue
            try:
                message = control.decode_from_server(whole)
            except WireError as error:
                log.warning("control_message_unknown bytes=%d error=%s", len(whole), error)  # of a newer server: what it changes comes with the next netmap
                continue
            self._handle(message)

    def _heard(self) -> None:
        self._last_heard = asyncio.get_running_loop().time()
        self._trust()

    def _trust(self) -> None:
        """It gave a sign of life, or there is no session."""
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None

    def _handle(self, message: control.ServerMessage) -> None:
        if self._reconnecting.stopped:
            return
        match message:
            case control.Ping():
                self._queue(control.Pong(message.number))
            case control.Pong():
                if message.server_time:
                    self._server_time(message.server_time)
            case control.State():
                self._answer(message.request, message)
                self._events.standing_changed(message.state, message.code, message.login_url, message.user_code)
            case control.Registered() | control.Done():
                self._answer(message.request, message)
            case control.Refused():
                self._refused(message)
            case control.NetmapFull() | control.NetmapDelta() | control.NetmapUnchanged():
                self._take_netmap(message)
            case control.Candidates():
                self._events.candidates_arrived(NodeId(message.peer), parse_endpoints(message.endpoints))
            case control.Bye():
                raise UnreachableError(f"the server ended the session: {message.text or message.code}")
            case control.Welcome():
                raise UnreachableError("the server welcomes twice")
            case _:
                assert_never(message)

    def _take_netmap(self, message: control.NetmapFull | control.NetmapDelta | control.NetmapUnchanged) -> None:
        if isinstance(message, control.NetmapFull):
            netmap = netmaps.model_netmap(message)
        elif self._netmap is None:
            raise UnreachableError("the server sent a change to a netmap it never sent")
        elif isinstance(message, control.NetmapDelta):
            try:
                netmap = netmaps.apply(self._netmap, message)
            except RemoteError:
                self._netmap = None  # the next session asks for the whole
                raise
        else:
            netmap = self._netmap
        check_netmap(netmap)
        self._netmap = netmap
        self._events.netmap_arrived(self._netmap)

    def _server_time(self, time: float) -> None:
        if not 0 < time < _END_OF_TIME:  # a NaN neither
            raise ProtocolError("the server names a time that is none")
        self._events.server_time(time - self._wall())

    def _answer(self, number: int, message: control.Message) -> None:
        waiting = self._requests.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _refused(self, message: control.Refused) -> None:
        waiting = self._requests.get(message.request)
        if waiting is None:
            log.warning("control_refused code=%s text=%r", message.code[:32], message.text[:200])
        elif not waiting.done():
            waiting.set_exception(by_code(message.code, message.text))

    async def _ended(self) -> None:
        self.connected, self._channel = False, None
        self._trust()
        for waiting in self._requests.values():
            if not waiting.done():
                waiting.set_exception(UnreachableError("the connection to the server was lost"))
        socket, self._socket = self._socket, None
        if socket is not None and self._moved.is_set():
            socket.drop()
        elif socket is not None:
            await socket.close()
