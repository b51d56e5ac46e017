"""The relay under load: python -m bench.relay [--quick]. A real server on loopback, and clients that speak the real protocol in processes of their own.

One pair floods: datagrams of 1,452 bytes (an inner packet of 1,420), what arrives each second. One pair plays ping-pong, alone, and while somebody floods a
client that reads, and one that never does: round trips through the relay and back. Everything shares this machine's cores. Prints JSON lines, then a table.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.control import ROOT, ServerProcess
from bench.simulated_nodes import SimulatedNode, percentile
from bench.table import Row, print_table
from calnet.model import Buffer, NodeKey
from calnet.wire import relay

DATAGRAM = 1452
IN_FRAME = 40
SECONDS, QUICK_SECONDS = 5.0, 1.5
ROUNDS, QUICK_ROUNDS = 5, 1
DERPER_MBITS = 440.0
"""The better of what was measured of tailscale's derper on such a machine, one flooding pair."""
LATENCY_MS = 1.0
SLOW_READER = 1.2
"""What one that never reads may cost others, against one that reads."""


class Client:
    """A node with a relay connection, in the child process."""

    def __init__(self, url: str, key: bytes, auth_key: str, number: int) -> None:
        self.node, self.auth_key = SimulatedNode(url, key, number), auth_key
        self.encoder, self.decoder = relay.RelayEncoder(), relay.RelayDecoder()

    async def open(self) -> None:
        await self.node.open(self.auth_key)
        await self.node.open_relay()
        assert self.node.relay is not None
        self.socket = self.node.relay

    async def keep_alive(self) -> None:
        """As a node does: the server ends what it hears nothing of."""
        while True:
            await asyncio.sleep(relay.KEEPALIVE_S)
            await self.socket.send(relay.ping_frame(bytes(relay.TOKEN_SIZE)))

    async def data(self) -> list[tuple[NodeKey, memoryview]]:
        """The next frame's datagrams."""
        while True:
            frame = await self.socket.recv()
            if isinstance(frame, bytes) and isinstance(found := self.decoder.decode(frame), relay.Data):
                return found.datagrams

    async def send(self, datagrams: Iterable[tuple[bytes, Buffer]]) -> bytes:
        """The last frame that was sent."""
        frames = self.encoder.encode(datagrams)
        for frame in frames:
            await self.socket.send(frame)
        return frames[-1]

    async def flood(self, peer: bytes, seconds: float) -> dict[str, object]:
        frame = await self.send([(peer, bytes(DATAGRAM))] * IN_FRAME)
        end, sent = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            await self.socket.send(frame)
            sent += 1
        return {"sent_mbits": sent * IN_FRAME * DATAGRAM * 8 / seconds / 1e6}

    async def sink(self, seconds: float) -> dict[str, object]:
        """Datagrams a second from the first on."""
        began, end, size = 0.0, 0.0, 0
        try:
            async with asyncio.timeout(seconds + 2.0):
                while True:
                    datagrams = await self.data()
                    end = time.monotonic()
                    began = began or end
                    size += sum(len(datagram) for _, datagram in datagrams)
        except TimeoutError:
            return {"mbits": size * 8 / (end - began) / 1e6 if end > began else 0.0}

    async def echo(self, seconds: float) -> dict[str, object]:
        """Send back what comes."""
        try:
            async with asyncio.timeout(seconds + 2.0):
                while True:
                    await self.send(await self.data())
        except TimeoutError:
            return {}

    async def ping(self, peer: bytes, seconds: float) -> dict[str, object]:
        times: list[float] = []
        end = time.monotonic() + seconds
        while (sent := time.monotonic()) < end:
            await self.send([(peer, bytes(100))])
            await self.data()
            times.append((time.monotonic() - sent) * 1000)
            await asyncio.sleep(0.005)
        return {"p50_ms": statistics.median(times), "p99_ms": percentile(times, 0.99)}

    async def idle(self, seconds: float) -> dict[str, object]:
        """Read nothing: not even the WebSocket's own buffer is emptied."""
        self.socket.transport.pause_reading()
        await asyncio.sleep(seconds)
        return {}


async def child() -> None:
    url, key, auth_key, number = sys.argv[2], bytes.fromhex(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    client = Client(url, key, auth_key, number)
    await client.open()
    alive = asyncio.create_task(client.keep_alive())
    print(json.dumps({"key": client.node.node.public.hex()}), flush=True)
    while words := (await asyncio.to_thread(sys.stdin.readline)).split():
        arguments: list[Any] = [bytes.fromhex(words[1])] if len(words) == 3 else []
        print(json.dumps(await getattr(client, words[0])(*arguments, float(words[-1]))), flush=True)
    alive.cancel()


class Child:
    """One client's process, driven by words."""

    def __init__(self, server: ServerProcess, number: int) -> None:
        auth_key = str(server.rest.send("POST", "/keys", {})["key"])
        words = [server.url, base64.b64decode(server.key).hex(), auth_key, str(number)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.relay", "child", *words], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.key = str(self.answer()["key"])

    def say(self, *words: object) -> None:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run(quick: bool = False) -> list[Row]:
    seconds, rounds = (QUICK_SECONDS, QUICK_ROUNDS) if quick else (SECONDS, ROUNDS)
    floods, alone, beside, cpu = [], [], [], []
    with tempfile.TemporaryDirectory() as directory:
        server = ServerProcess(Path(directory))
        server.start()
        clients: list[Child] = []
        try:
            clients += [Child(server, number) for number in range(4)]
            one, other, flooder, sloth = clients
            time.sleep(1.0)
            for _ in range(rounds):
                before = server.cpu()
                other.say("sink", seconds)
                one.say("flood", other.key, seconds)
                sent, got = one.answer(), other.answer()
                cpu.append((server.cpu() - before) / max(got["mbits"] * seconds / 8000, 1e-9))
                floods.append(got["mbits"])
                print(json.dumps({"flood": {**sent, **got, "server_cpu_s_per_gb": cpu[-1]}}), flush=True)
                other.say("echo", seconds)
                one.say("ping", other.key, seconds)
                alone.append(one.answer())
                other.answer()
                print(json.dumps({"ping": alone[-1]}), flush=True)
            for name, reads in (("reader", True), ("slow_reader", False)):
                sloth.say("sink" if reads else "idle", seconds + 1.0)
                flooder.say("flood", sloth.key, seconds + 1.0)
                time.sleep(0.5)
                other.say("echo", seconds)
                one.say("ping", other.key, seconds)
                beside.append(one.answer())
                print(json.dumps({f"ping_beside_a_{name}": {**beside[-1], **flooder.answer()}}), flush=True)
                other.answer()
                sloth.answer()
        finally:
            for client in clients:
                client.close()
            server.stop()
    flood, passing = statistics.median(floods), statistics.median(one["p50_ms"] / 2 for one in alone)
    reads, stalls = (one["p50_ms"] / 2 for one in beside)
    return [
        Row("relay, one flooding pair, Mbit/s", f"{flood:.0f} ({min(floods):.0f}-{max(floods):.0f})", f"≥ {DERPER_MBITS:.0f}", flood / DERPER_MBITS, False),
        Row("relay, one pass alone, median, ms", f"{passing:.2f}", f"≤ {LATENCY_MS:.0f}", passing / LATENCY_MS, True),
        Row(
            "relay, one pass beside a flooded client that never reads, median, ms",
            f"{stalls:.2f}",
            f"{SLOW_READER} × {reads:.2f} (it reads)",
            stalls / reads / SLOW_READER,
            True,
        ),
        Row("relay, server's CPU seconds a GB", f"{statistics.median(cpu):.2f}", "", None, True),
    ]


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(child())
        return
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print_table(run(parser.parse_args().quick))


if __name__ == "__main__":
    main()
