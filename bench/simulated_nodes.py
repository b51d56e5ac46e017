"""Many nodes in one process, as a server sees them: real WebSockets, real Noise handshakes, real registrations; of netmaps they read the version alone.

python -m bench.simulated_nodes URL SERVER_KEY_HEX AUTH_KEY COUNT, driven by words on stdin: `register`, `relay`, `watch` (report when each has the next
netmap), `reconnect` (once the server is back: all at once), `quit`. Each answers with one JSON line. Times are CLOCK_MONOTONIC, the same for all processes.

Each node comes from a loopback address of its own, as nodes do from theirs: the server bounds what one source may ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from calnet.crypto.keys import PrivateKey
from calnet.roles.node.control_client import HANDSHAKE_TIMEOUT_S
from calnet.roles.node.underlay import CONNECT_TIMEOUT_S, backoff
from calnet.wire import control, relay
from calnet.wire.channel import Channel

AT_ONCE = 64
"""Nodes that register, or open their relay connection, at a time. They reconnect all at once."""
QUIET_S = 3.0
HEARD_WITHIN_S = 30.0
OPTIONS: dict[str, Any] = {"compression": None, "max_size": 1 << 20, "ping_interval": None, "proxy": None, "open_timeout": CONNECT_TIMEOUT_S}


class Head(msgspec.Struct):
    """What is read of each message."""

    t: str
    version: int | str = 0
    """A netmap's number; in a welcome the server's version."""


class SimulatedNode:
    """One node with its control session and perhaps its relay connection."""

    def __init__(self, url: str, server_key: bytes, number: int) -> None:
        self.url, self.server_key, self.number = "ws" + url.removeprefix("http"), server_key, number
        self.options = OPTIONS | {"local_addr": (f"127.1.{number // 250}.{number % 250 + 1}", 0)}
        self.control, self.node, self.discovery = (PrivateKey.generate(os.urandom) for _ in range(3))
        self.version = 0
        self.netmap_at = 0.0
        self.bytes = 0
        self.relay: ClientConnection | None = None
        self.listening: asyncio.Task[None] | None = None

    async def open(self, auth_key: str) -> None:
        """Connect, register where there is a key, subscribe with the version held, and listen from then on."""
        self.socket = await connect(self.url + "/control/ws", **self.options)
        self.channel = Channel.client(self.control, self.server_key, PrivateKey.generate(os.urandom))
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await self.socket.send(self.channel.opening())
            self.channel.receive_handshake(await self._raw())
            await self._until("Welcome")
        if auth_key:
            proof = control.registration_proof(self.node, self.server_key, self.channel.hash, self.node.public, self.discovery.public)
            name = f"node-{self.number}"
            await self._say(control.Register(1, self.node.public, self.discovery.public, proof, name, "linux", "bench", auth_key))
            await self._until("Registered")
        await self._say(control.Subscribe(self.version))
        self.netmap_at = 0.0
        self.listening = asyncio.create_task(self._listen())

    async def open_again(self) -> int:
        """A session again, however often that takes, with a node's patience and its pauses; how often it took."""
        for attempt in itertools.count():
            try:
                await self.open("")
            except (OSError, EOFError, WebSocketException):
                await asyncio.sleep(backoff(attempt, random.random()))
            else:
                break
        return attempt + 1

    async def open_relay(self) -> None:
        """An idle relay connection."""
        self.relay = await connect(self.url + "/relay", **self.options)
        channel = relay.client_channel(self.node, self.server_key, PrivateKey.generate(os.urandom))
        await self.relay.send(channel.opening())
        answer = await self.relay.recv()
        channel.receive_handshake(answer if isinstance(answer, bytes) else b"")
        await self.relay.send(relay.proof(channel))
        await self.relay.recv()

    async def _raw(self) -> bytes:
        data = await self.socket.recv()
        if not isinstance(data, bytes):
            raise ValueError("a text message")
        return data

    async def _say(self, message: control.Message) -> None:
        for part in self.channel.send(control.encode(message)):
            await self.socket.send(part)

    async def _hear(self) -> Head:
        whole = None
        while whole is None:
            raw = await self._raw()
            self.bytes += len(raw)
            whole = self.channel.receive(raw)
        return msgspec.msgpack.decode(whole, type=Head)

    async def _until(self, name: str) -> Head:
        while True:
            head = await self._hear()
            if head.t == name:
                return head
            if head.t in ("Refused", "Bye"):
                raise ValueError(f"the server said {head.t}")

    async def _listen(self) -> None:
        with contextlib.suppress(WebSocketException, OSError):
            while True:
                head = await self._hear()
                if head.t.startswith("Netmap"):
                    self.version, self.netmap_at = int(head.version), time.monotonic()
                elif head.t == "Ping":
                    await self._say(control.Pong(0))


async def all_of(nodes: list[SimulatedNode], act: Callable[[SimulatedNode], Coroutine[Any, Any, None]]) -> float:
    """Seconds until all have done it, so many at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(node: SimulatedNode) -> None:
        async with gate:
            await act(node)

    started = time.monotonic()
    await asyncio.gather(*(one(node) for node in nodes))
    return time.monotonic() - started


async def settled(nodes: list[SimulatedNode]) -> float:
    """When the last netmap arrived, once each has one and none came for a while."""
    while True:
        await asyncio.sleep(0.25)
        if all(node.netmap_at for node in nodes) and time.monotonic() - (last := max(node.netmap_at for node in nodes)) > QUIET_S:
            return last


class Driver:
    """Carries out the words of stdin."""

    def __init__(self, nodes: list[SimulatedNode], auth_key: str) -> None:
        self.nodes, self.auth_key = nodes, auth_key

    async def register(self) -> dict[str, object]:
        started = time.monotonic()
        seconds = await all_of(self.nodes, lambda node: node.open(self.auth_key))
        last = await settled(self.nodes)
        return {"seconds": seconds, "per_s": len(self.nodes) / seconds, "settled_s": last - started, "bytes": sum(node.bytes for node in self.nodes)}

    async def relay(self) -> dict[str, object]:
        return {"seconds": await all_of(self.nodes, lambda node: node.open_relay())}

    async def watch(self) -> dict[str, object]:
        """When each that hears something heard it, once nothing is under way any more that was told before."""
        await settled(self.nodes)
        started = time.monotonic()
        print(json.dumps({"watching": started}), flush=True)
        while any(node.netmap_at <= started for node in self.nodes) and time.monotonic() < started + HEARD_WITHIN_S:
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)
        return {"times": sorted(round(node.netmap_at, 4) for node in self.nodes if node.netmap_at > started)}

    async def reconnect(self) -> dict[str, object]:
        for node in self.nodes:
            if node.listening is not None:
                node.listening.cancel()
            node.bytes = 0
        started = time.monotonic()
        attempts = await asyncio.gather(*(node.open_again() for node in self.nodes))
        connected = time.monotonic()
        last = await settled(self.nodes)
        times = {"connected_s": connected - started, "settled_s": last - started}
        return {**times, "attempts": sum(attempts), "bytes": sum(node.bytes for node in self.nodes)}


async def main() -> None:
    url, key, auth_key, count = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    driver = Driver([SimulatedNode(url, key, number) for number in range(count)], auth_key)
    while (word := (await asyncio.to_thread(sys.stdin.readline)).strip()) not in ("", "quit"):
        answer = await getattr(driver, word)()
        print(json.dumps(answer), flush=True)


def percentile(values: list[float], share: float) -> float:
    """By the nearest rank."""
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1] if len(values) > 1 else values[0]


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
