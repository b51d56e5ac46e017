"""The node's side of the relay: one WebSocket, datagrams out from a bounded queue, batches in (wire/relay.py).

Theory of operation. `send` copies datagrams into the queue and returns; the writer packs what waits into frames of at most 64 KiB as fast as the socket takes
them. Where it takes less than comes, the oldest go: fresh packets are worth more than late ones. `run` connects anew for ever, with jittered backoff.

Error contract. Whatever the relay sends, and whatever goes wrong here with it, ends the connection at worst, never the client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final, Protocol, assert_never

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import ProtocolError, UnreachableError
from calnet.model import Buffer
from calnet.roles.node.together import together
from calnet.roles.node.underlay import Dial, MessageSocket, Reconnecting
from calnet.wire import relay

log = logging.getLogger(__name__)

QUEUE_BYTES: Final = 1 << 20
"""What waits for the socket at most: some 80 ms at 100 Mbit/s."""
FRAME_TARGET: Final = 60_000
"""Datagram bytes gathered for one round of frames."""
OPENING_TIMEOUT_S: Final = 15.0
MEASURE_TIMEOUT_S: Final = 3.0
ASK_AFTER_S: Final = 0.8
"""Data went and nothing came for so long: the relay is asked whether it is there…"""
ANSWER_S: Final = 1.2
"""…and taken for dead after so long. TCP itself would try for minutes."""
ANSWER_AFTER_CHANGE_S: Final = 0.6
"""The same where the network changed: the connection's own address may be gone, or no longer lead there."""


class RelayEvents(Protocol):
    """What the daemon hears. No call may block."""

    def relay_connected(self, connected: bool, reason: str) -> None:
        """The relay can be used; or not, and why."""

    def relay_stalled(self) -> None:
        """The connection stands, and gives no sign of life where one is due: another one should be tried beside it."""

    def relayed(self, sender: bytes, datagrams: list[memoryview]) -> None:
        """Datagrams of the peer with this node key, in order. The views are valid during the call."""


class RelayClient:
    """See the module's docstring. One instance for one relay, server key and node key."""

    def __init__(
        self, url: str, server_key: bytes, node_key: PrivateKey, *, dial: Dial, events: RelayEvents, random: RandomBytes, clock: Callable[[], float]
    ) -> None:
        """`clock` measures round trips: the loop's own may stand still within one turn."""
        self._url, self._server_key, self._node_key = url, server_key, node_key
        self._dial, self._events, self._random, self._clock = dial, events, random, clock
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._waiting_bytes = 0
        self._control: deque[bytes] = deque()
        self._something = asyncio.Event()
        self._reconnecting = Reconnecting(random)
        self._pings: dict[bytes, tuple[float, asyncio.Future[float]]] = {}
        self._last_heard = self._last_sent = 0.0
        self._doubt: asyncio.TimerHandle | None = None
        """Runs from the first data that went without anything coming since."""
        self.connected = False
        self.dropped = 0
        """Datagrams that were too many for the connection."""

    async def run(self) -> None:
        """Stay connected until cancelled, or `end_with_connection` was called and it ended."""
        await self._reconnecting.run(self._connection, lambda error: self._events.relay_connected(False, str(error)))

    def reconnect_now(self) -> None:
        """Don't wait for the backoff: the network changed. A connection that stands is asked whether it does."""
        self._reconnecting.now()
        if self.connected:
            self._trust()
            self._ask(min(ANSWER_S, ANSWER_AFTER_CHANGE_S))

    def end_with_connection(self) -> None:
        """Make no further connection: `run` returns when this one ends."""
        self._reconnecting.stop()

    def send(self, peer: bytes, datagrams: Sequence[Buffer]) -> None:
        """Queue datagrams for the peer with this node key; copied. Without a connection they are lost."""
        if not self.connected:
            self.dropped += len(datagrams)
            return
        for datagram in datagrams:
            if 0 < len(datagram) <= relay.MAX_DATAGRAM_SIZE:
                self._waiting.append((peer, bytes(datagram)))
                self._waiting_bytes += len(datagram)
        while self._waiting_bytes > QUEUE_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft()[1])
            self.dropped += 1
        self._something.set()

    async def measure(self) -> float | None:
        """The round trip to the relay in seconds, or None without an answer."""
        if not self.connected:
            return None
        token = self._random(relay.TOKEN_SIZE)
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._pings[token] = (self._clock(), answer)
        self._control.append(relay.ping_frame(token))
        self._something.set()
        try:
            async with asyncio.timeout(MEASURE_TIMEOUT_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._pings.pop(token, None)

    # --- one connection ---

    async def _connection(self) -> None:
        socket = await self._dial(self._url, relay.MAX_FRAME_SIZE)
        try:
            await self._open(socket)
            now = asyncio.get_running_loop().time()
            self._last_heard = self._last_sent = now
            self._waiting.clear()
            self._control.clear()
            self._waiting_bytes = 0
            self.connected = True
            self._events.relay_connected(True, "")
            await together(self._write(socket), self._read(socket), self._keep_alive())
        finally:
            self.connected = False
            self._trust()
            await socket.close()

    async def _open(self, socket: MessageSocket) -> None:
        channel = relay.client_channel(self._node_key, self._server_key, PrivateKey.generate(self._random))
        try:
            async with asyncio.timeout(OPENING_TIMEOUT_S):
                await socket.send(channel.opening())
                channel.receive_handshake(await socket.receive())
                await socket.send(relay.proof(channel))
                refusal = relay.read_verdict(channel, await socket.receive())
        except TimeoutError:
            raise UnreachableError(f"the relay {self._url} does not answer") from None
        if refusal is not None:
            raise ProtocolError(f"the relay refuses this node: {_why(refusal)}")

    async def _write(self, socket: MessageSocket) -> None:
        encoder, loop = relay.RelayEncoder(), asyncio.get_running_loop()
        while True:
            await self._something.wait()
            while self._control:
                await socket.send(self._control.popleft())
            gathered = 0
            while self._waiting and gathered < FRAME_TARGET:
                peer, datagram = self._waiting.popleft()
                encoder.add(peer, datagram)
                gathered += len(datagram)
            self._waiting_bytes -= gathered
            if not self._waiting and not self._control:
                self._something.clear()
            frames = encoder.take()
            if frames and self._doubt is None:
                self._doubt = loop.call_later(ASK_AFTER_S, self._ask)
            for frame in frames:
                await socket.send(frame)
            self._last_sent = loop.time()

    async def _read(self, socket: MessageSocket) -> None:
        decoder, loop = relay.RelayDecoder(), asyncio.get_running_loop()
        while True:
            frame = decoder.decode(await socket.receive())
            self._last_heard = loop.time()
            self._trust()
            match frame:
                case relay.Data():
                    for sender, run in groupby(frame.datagrams, key=itemgetter(0)):
                        self._events.relayed(sender, [datagram for _, datagram in run])
                case relay.Ping():
                    self._control.append(relay.pong_frame(frame.token))
                    self._something.set()
                case relay.Pong():
                    self._pong(frame.token, self._clock())
                case relay.Close():
                    raise UnreachableError(f"the relay ended the connection: {_why(frame)}")
                case relay.Bound() | relay.Gone() | relay.Unknown():
                    pass
                case _:
                    assert_never(frame)

    def _trust(self) -> None:
        """It gave a sign of life (or there is no connection)."""
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None

    def _ask(self, within_s: float | None = None) -> None:
        """Any sign of life answers, `within_s` (default ANSWER_S)."""
        self._control.append(relay.ping_frame(self._random(relay.TOKEN_SIZE)))
        self._something.set()
        self._doubt = asyncio.get_running_loop().call_later(ANSWER_S if within_s is None else within_s, self._events.relay_stalled)

    def _pong(self, token: bytes, now: float) -> None:
        sent = self._pings.get(token)
        if sent is not None and not sent[1].done():
            sent[1].set_result(now - sent[0])

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            if now - self._last_heard > relay.SILENCE_LIMIT_S:
                raise UnreachableError(f"the relay {self._url} has been silent for {relay.SILENCE_LIMIT_S:.0f} s")
            # every KEEPALIVE_S even while sending: a relay that takes and never gives is dead too
            if now - max(self._last_heard, 0.0) >= relay.KEEPALIVE_S or now - self._last_sent >= relay.KEEPALIVE_S:
                self._last_sent = now
                self._control.append(relay.ping_frame(self._random(relay.TOKEN_SIZE)))
                self._something.set()
            await asyncio.sleep(relay.KEEPALIVE_S / 5)


def _why(close: relay.Close) -> str:
    return close.text or close.reason.name.lower().replace("_", " ")
