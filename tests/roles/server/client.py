"""A node's side of the server's protocols, as small as can be: what a test says and hears on real WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
from types import TracebackType
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from calnet.crypto.keys import PrivateKey
from calnet.model import Netmap, NodeId
from calnet.wire import control
from calnet.wire import netmap as netmaps
from calnet.wire.channel import Channel

WAIT_S = 10.0
"""A generous bound: what has not come by then does not come."""
M = TypeVar("M", bound=control.Message)


class Machine:
    """A machine's three keys, and what it calls itself."""

    def __init__(self, hostname: str = "machine") -> None:
        self.hostname = hostname
        self.control = PrivateKey.generate(os.urandom)
        self.node = PrivateKey.generate(os.urandom)
        self.discovery = PrivateKey.generate(os.urandom)

    def renew(self) -> None:
        """New node and discovery keys, as at a renewal."""
        self.node, self.discovery = PrivateKey.generate(os.urandom), PrivateKey.generate(os.urandom)


class ControlClient:
    """One control session. `async with ControlClient(url, server_key, machine) as session:` has done the handshake and taken the welcome."""

    def __init__(self, url: str, server_key: bytes, machine: Machine) -> None:
        self.machine = machine
        self._url = url.replace("http", "ws", 1) + "/control/ws"
        self._server_key = server_key
        self.channel = Channel.client(machine.control, server_key, PrivateKey.generate(os.urandom))
        self.heard: list[control.Message] = []
        self.netmap: Netmap | None = None
        self.headers: dict[str, str] = {}
        self._requests = 0

    async def __aenter__(self) -> ControlClient:
        self.socket: ClientConnection = await connect(self._url, compression=None, max_size=1 << 20, proxy=None, additional_headers=self.headers)
        await self.socket.send(self.channel.opening())
        self.channel.receive_handshake(await self._message())
        self.welcome = await self.expect(control.Welcome)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.socket.close()

    async def _message(self) -> bytes:
        data = await self.socket.recv()
        assert isinstance(data, bytes)
        return data

    async def say(self, message: control.Message) -> None:
        """Send one message."""
        await self.say_bytes(control.encode(message))

    async def say_bytes(self, data: bytes) -> None:
        """Send any bytes as one message."""
        for part in self.channel.send(data):
            await self.socket.send(part)

    async def hear(self) -> control.Message:
        """The next message, whatever it is; netmaps are applied, pings answered."""
        whole = None
        while whole is None:
            whole = self.channel.receive(await self._message())
        message = control.decode_from_server(whole)
        self.heard.append(message)
        if isinstance(message, control.NetmapFull):
            self.netmap = netmaps.model_netmap(message)
        elif isinstance(message, control.NetmapDelta):
            assert self.netmap is not None
            self.netmap = netmaps.apply(self.netmap, message)
        return message

    async def expect(self, kind: type[M]) -> M:
        """The next message of this kind; others are passed over (they stand in `heard`)."""
        async with asyncio.timeout(WAIT_S):
            while True:
                message = await self.hear()
                if isinstance(message, kind):
                    return message

    async def until(self, holds: Any) -> Netmap:
        """Listen until `holds(netmap)`; the netmap."""
        async with asyncio.timeout(WAIT_S):
            while self.netmap is None or not holds(self.netmap):
                await self.hear()
        return self.netmap

    def proof(self) -> bytes:
        """The proof of the machine's node key in this session."""
        machine = self.machine
        return control.registration_proof(machine.node, self._server_key, self.channel.hash, machine.node.public, machine.discovery.public)

    async def register(self, auth_key: str = "", **more: Any) -> control.Registered | control.State | control.Refused:
        """Register; the server's answer."""
        self._requests += 1
        machine = self.machine
        values: dict[str, Any] = {
            "request": self._requests,
            "node_key": machine.node.public,
            "discovery_key": machine.discovery.public,
            "proof": self.proof(),
            "hostname": machine.hostname,
            "auth_key": auth_key,
        }
        await self.say(control.Register(**(values | more)))
        answer: control.Registered | control.State | control.Refused = await self.answer(self._requests)
        return answer

    async def request(self, build: Any) -> Any:
        """Send `build(number)` and wait for the answer with that number."""
        self._requests += 1
        await self.say(build(self._requests))
        return await self.answer(self._requests)

    async def answer(self, number: int) -> Any:
        """The message that answers request `number`."""
        async with asyncio.timeout(WAIT_S):
            while True:
                message = await self.hear()
                if getattr(message, "request", None) == number:
                    return message

    async def join(self, auth_key: str) -> NodeId:
        """Register with a key and subscribe; returns this node's id once its netmap is there."""
        answer = await self.register(auth_key)
        assert isinstance(answer, control.Registered), answer
        await self.subscribe()
        return NodeId(answer.node)

    async def subscribe(self) -> Netmap:
        """Subscribe with the netmap held; the netmap afterwards."""
        await self.say(control.Subscribe(0 if self.netmap is None else self.netmap.version))
        async with asyncio.timeout(WAIT_S):
            while not isinstance(await self.hear(), control.NetmapFull | control.NetmapDelta | control.NetmapUnchanged):
                pass
        assert self.netmap is not None
        return self.netmap

    async def closed(self) -> tuple[int | None, str]:
        """Wait until the server has closed the connection: (code, reason)."""
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.socket.recv()
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason or ""
