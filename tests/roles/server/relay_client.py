"""A relay client for tests: proves a node key on a real WebSocket, sends and hears frames."""

from __future__ import annotations

import asyncio
import contextlib
import os
from types import TracebackType

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from calnet.crypto.keys import PrivateKey
from calnet.model import NodeKey
from calnet.wire import relay
from tests.roles.server.client import WAIT_S


class RelayClient:
    """`async with RelayClient(url, server_key, node_key) as client:` has the verdict in `refused` (None: welcome)."""

    def __init__(self, url: str, server_key: bytes, node_key: PrivateKey) -> None:
        self._url = url.replace("http", "ws", 1) + "/relay"
        self.key = NodeKey(node_key.public)
        self._channel = relay.client_channel(node_key, server_key, PrivateKey.generate(os.urandom))
        self.encoder = relay.RelayEncoder()
        self._decoder = relay.RelayDecoder()
        self.refused: relay.Close | None = None

    async def __aenter__(self) -> RelayClient:
        self.socket: ClientConnection = await connect(self._url, compression=None, max_size=1 << 20, proxy=None)
        await self.socket.send(self._channel.opening())
        self._channel.receive_handshake(await self.message())
        await self.socket.send(relay.proof(self._channel))
        self.refused = relay.read_verdict(self._channel, await self.message())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.socket.close()

    async def message(self) -> bytes:
        """The next WebSocket message as it is."""
        async with asyncio.timeout(WAIT_S):
            data = await self.socket.recv()
        assert isinstance(data, bytes)
        return data

    async def send(self, peer: bytes, *datagrams: bytes) -> None:
        """Send datagrams to the peer with this node key."""
        for frame in self.encoder.encode((peer, datagram) for datagram in datagrams):
            await self.socket.send(frame)

    async def frame(self) -> relay.RelayFrame:
        """The next frame that is not about ids."""
        while True:
            found = self._decoder.decode(await self.message())
            if not isinstance(found, relay.Bound):
                return found

    async def datagrams(self, count: int) -> list[tuple[bytes, bytes]]:
        """The next `count` datagrams, each with the key of its sender; whatever else comes meanwhile is an error."""
        got: list[tuple[bytes, bytes]] = []
        while len(got) < count:
            found = await self.frame()
            assert isinstance(found, relay.Data), found
            got.extend((key, bytes(datagram)) for key, datagram in found.datagrams)
        return got

    async def settled(self) -> None:
        """Wait until the server has dealt with everything sent so far: it answers in order."""
        token = os.urandom(relay.TOKEN_SIZE)
        await self.socket.send(relay.ping_frame(token))
        while await self.frame() != relay.Pong(token):
            pass

    async def closed(self) -> relay.Close | None:
        """Wait for the end of the connection; the reason that the server's last frame gave."""
        reason: relay.Close | None = None
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    found = self._decoder.decode(await self.message())
                    reason = found if isinstance(found, relay.Close) else reason
            await self.socket.wait_closed()
        return reason
