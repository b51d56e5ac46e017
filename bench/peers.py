"""What many peers cost a node: python -m bench.peers [--quick]. The node at one end of a veth pair, ours and Debian's wireguard-go in turns, with 1,000 peers
configured, of which 1, 10 and 100 are active; and, for comparison, with one peer in all.

One process at the other end speaks for all peers (crowd.py), with our own tunnel machine: each has its session, addresses and counters, and everything that it
sends and takes is sealed and authenticated. What the peers send comes in turns, one peer after the other, and is sent back by a program beside the node: each
packet goes through the node both ways. So much is under way at any time, however many are active: 8 bursts of 40 datagrams of 1,200 bytes, each of one peer, as
a kernel hands over bulk data (`bulk`); or 128 datagrams of 64 bytes that come and go one by one (`singly`). Where one peer is active these come in a row, and
a Calnet node takes what comes in a row together; where several are, each is of another peer than the last: that, not their number, is the step from 1 to 10.

Counted are what came back, and the node's CPU time and memory. The crowd and the program that sends back share the cores with the node, so CPU time is the
result, as a ratio to one active peer of the same run, not Mbit/s. Our node and the crowd speak in chunks, as Calnet nodes do among each other; wireguard-go
can't. Prints JSON lines, then tables.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import socket
import statistics
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

from bench.crowd import NODES, Child, Member, Wire, begin, finish, grow, members, prepare, receive, segmented, serve
from bench.disturbance import settle
from bench.table import Found, Row, print_table
from bench.tunnel_lab import OVERLAY, End, Lab
from calnet.crypto.keys import decode_key, encode_key
from calnet.errors import CalnetError
from calnet.model import Buffer
from calnet.tunnel.capabilities import CHUNKS
from calnet.tunnel.cookie import CookieMemory
from calnet.tunnel.inbound import Inbound
from calnet.tunnel.outbound import START, Outbound
from calnet.tunnel.segment import Super
from calnet.tunnel.session import Session
from calnet.tunnel.timestamps import timestamp_of
from calnet.wire.ip import IPV4_HEADER_SIZE, NO_VIRTIO, UDP_HEADER_SIZE, Protocol, checksum
from calnet.wire.tunnel import CookieReply, Response, parse_handshake

CONFIGURED: Final = 1000
ACTIVE: Final = (1, 10, 100)
ECHO_PORT: Final = 7007
HEADER: Final = IPV4_HEADER_SIZE + UDP_HEADER_SIZE
MTU: Final = 1420
SECONDS, QUICK_SECONDS = 1.2, 0.4
ROUNDS, QUICK_ROUNDS = 3, 1
WARM_S: Final = 0.2
TRIES: Final = 50
"""Initiations without an answer before a peer gives up."""
GROWTH: Final = 1.25
"""What a packet may cost with 100 active peers, to what it costs with one (bulk) or ten (singly); and with 1,000 configured, to one."""
NODE_MB: Final = 70.0

SHOWN: Final = (
    ("bulk", "mbits", "bulk: Mbit/s", 0),
    ("bulk", "packets", "bulk: packets/s", 0),
    ("bulk", "cpu_gb", "bulk: CPU s/GB", 2),
    ("singly", "packets", "singly: packets/s", 0),
    ("singly", "cpu_us", "singly: CPU µs a packet", 1),
    ("singly", "memory_mb", "memory, MB", 1),
)
"""Lines of the table: (load, figure, what it is called, digits)."""


class Load(NamedTuple):
    """Datagrams of `size` bytes, `burst` of one peer at a time, `bursts` under way."""

    size: int
    burst: int
    bursts: int


LOADS: Final = {"bulk": Load(1200, 40, 8), "singly": Load(64, 1, 128)}


class Figure(NamedTuple):
    """One measurement. Packets are counted once for each way through the node, and bytes are those of their payload."""

    mbits: float
    packets: float
    """A second."""
    cpu_gb: float
    """CPU seconds a GB…"""
    cpu_us: float
    """…and µs a packet."""
    memory_mb: float
    lost: float
    """Part of the packets."""


Case = tuple[str, str, int, int]
"""(the node's program, the load, peers configured, peers active)."""

# --- In the child process at end `b` ---


class Crowd:
    """The active peers, with a session each."""

    def __init__(self, node_key: bytes, port: int, count: int, chunks: bool) -> None:
        self._wire, self._chunks = Wire(port), chunks
        self._outbound = Outbound(MTU, self._send)
        self._sessions = self._join(members(count), node_key)
        by_index = {session.local_index: session for session in self._sessions}
        self._inbound = Inbound(
            vnet=True, tcp=False, udp=True, session=by_index.get, opened=_nothing, accept=lambda session, packet: True, write=self._write, other=_nothing
        )
        self._came = self._size = 0

    def _join(self, crowd: Sequence[Member], node_key: bytes) -> list[Session]:
        """One handshake after the other; the sender index is the peer's number. TimeoutError if the node doesn't answer."""
        joined, buffer = [], memoryview(bytearray(65536))
        for one in crowd:
            pending, body = begin(one, node_key, one.number, timestamp_of(time.time()))
            cookies = CookieMemory(node_key)
            for _ in range(TRIES):
                self._wire.send(one.number, cookies.finish(body, time.monotonic()))
                length, _ = self._wire.receive(buffer)
                answer = parse_handshake(bytes(buffer[:length])) if length else None
                if isinstance(answer, Response):
                    break
                if isinstance(answer, CookieReply):
                    cookies.receive(answer, time.monotonic())
            else:
                raise TimeoutError(f"no answer to peer {one.number}")
            joined.append(finish(one, pending, answer, time.monotonic()))
            self._wire.send(one.number, joined[-1].seal(b""))
        return joined

    def play(self, active: int, load: Load, seconds: float) -> dict[str, float]:
        """Send and take for a while: how many packets came back, in how many seconds, and how many didn't."""
        packets = [template(Member(number).overlay, load) for number in range(active)]
        buffer, take = self._inbound.buffer, self._inbound.receive
        self._came, self._size = 0, load.size
        sent = lost = turn = 0
        began = now = time.monotonic()
        while now < began + seconds:
            while sent - lost - self._came <= load.burst * (load.bursts - 1):
                self._seal(self._sessions[turn % active], packets[turn % active], load)
                turn, sent = turn + 1, sent + load.burst
            length, size = self._wire.receive(buffer)
            if length:
                take(length, size)
            else:
                lost = sent - self._came
            now = time.monotonic()
        came = self._came
        while self._wire.receive(buffer)[0]:
            pass
        return {"came": came, "seconds": now - began, "lost": lost}

    def _seal(self, session: Session, packet: bytes, load: Load) -> None:
        self._outbound.plain[START : START + len(packet)] = packet
        if load.burst == 1:
            self._outbound.add_packet(session, len(packet))
        else:
            shape = Super(4, Protocol.UDP, IPV4_HEADER_SIZE, HEADER, load.size, len(packet))
            (self._outbound.send_chunks if self._chunks else self._outbound.add_super)(session, shape)
        self._outbound.flush()

    def _send(self, session: Session, datagrams: memoryview, size: int) -> None:
        self._wire.send(session.local_index, datagrams, size)

    def _write(self, parts: Sequence[Buffer]) -> None:
        self._came += (sum(map(len, parts)) - len(NO_VIRTIO) - HEADER) // self._size


def template(source: str, load: Load) -> bytes:
    """The IPv4 packet of a burst to the echo, as a kernel gives it; without UDP checksum, as IPv4 lets it."""
    payload = load.size * load.burst
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(OVERLAY["a"][0]).packed
    ip = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, HEADER + payload, 0, 0x4000, 64, Protocol.UDP, 0) + ends)
    ip[10:12] = checksum(ip).to_bytes(2, "big")
    return bytes(ip) + struct.pack(">HHHH", ECHO_PORT, ECHO_PORT, UDP_HEADER_SIZE + payload, 0) + bytes(payload)


def _nothing(*_: object) -> None:
    """Who answers, and when, is the node's affair."""


def child(node_key: str, port: str, count: str, chunks: str) -> None:
    crowd = Crowd(decode_key(node_key), int(port), int(count), chunks == CHUNKS)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        active, load, seconds = line.split()
        print(json.dumps(crowd.play(int(active), LOADS[load], float(seconds))), flush=True)


# --- In the child process at end `a`, beside the node ---


def echo() -> None:
    """Send back whatever comes."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    grow(one)
    one.bind((OVERLAY["a"][0], ECHO_PORT))
    print(json.dumps({"ready": True}), flush=True)
    buffer = memoryview(bytearray(65536))
    while True:
        length, size, source = receive(one, buffer)
        one.sendmsg((buffer[:length],), segmented(length, size), 0, source)


# --- The figures ---


def run(quick: bool = False) -> Found:
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    results: dict[Case, list[Figure]] = defaultdict(list)
    with Lab(prefix="pr", mtu=MTU) as lab:
        prepare(lab)
        for number in range(rounds):
            settle()
            for program in NODES:
                turned = ACTIVE[:: -1 if number % 2 else 1]  # what else goes on meets all alike
                for configured, actives in ((1, (1,)), (CONFIGURED, turned)):
                    for case, figure in measured(lab, program, configured, actives, seconds).items():
                        results[case].append(figure)
                        named = dict(zip(("node", "load", "configured", "active"), case, strict=True))
                        print(json.dumps({"bench": "peers", "round": number, **named, **figure._asdict()}), flush=True)
    middle = {case: Figure(*(statistics.median(values) for values in zip(*figures, strict=True))) for case, figures in results.items()}
    everything = table(middle, f"{rounds} rounds of {seconds:g} s, median: peers active, of those configured")
    print("\n" + everything, flush=True)
    return Found(rows(middle), everything)


def measured(lab: Lab, program: str, configured: int, actives: Sequence[int], seconds: float) -> dict[Case, Figure]:
    """All loads on one node."""
    chunks = (CHUNKS,) if program == "calnet" else ()
    found: dict[Case, Figure] = {}
    try:
        node = serve(lab, program, members(configured), chunks)
        words = ("child", encode_key(node.key.public), node.port, max(actives), *(chunks or ("plain",)))
        with Child(node, "bench.peers", "echo") as beside, Child(lab.ends["b"], "bench.peers", *words) as crowd:
            beside.answer()
            crowd.answer()
            for active in actives:
                for load in LOADS:
                    crowd.ask(active, load, WARM_S)
                    found[program, load, configured, active] = _one(node, crowd, active, load, seconds)
    finally:
        lab.stop()
    return found


def _one(node: End, crowd: Child, active: int, load: str, seconds: float) -> Figure:
    before = node.cpu_s()
    told = crowd.ask(active, load, seconds)
    return figure_of(told, LOADS[load].size, node.cpu_s() - before, node.memory_mb())


def figure_of(told: dict[str, float], size: int, cpu_s: float, memory_mb: float) -> Figure:
    """The figure of what the crowd told. RuntimeError if nothing came back."""
    packets = told["came"] * 2
    if not packets:
        raise RuntimeError("the node sent nothing back")
    rate = packets / told["seconds"]
    lost = told["lost"] / (told["came"] + told["lost"])
    return Figure(rate * size * 8 / 1e6, rate, cpu_s / (packets * size / 1e9), cpu_s / packets * 1e6, memory_mb, lost)


def table(middle: dict[Case, Figure], title: str) -> str:
    """Everything, as Markdown."""
    cases = [(configured, active) for program, load, configured, active in middle if (program, load) == (NODES[0], "bulk")]
    lines = [
        f"| {title} | {' | '.join(f'{active:,} of {configured:,}' for configured, active in cases)} |",
        f"| --- |{' --- |' * len(cases)}",
    ]
    for program in NODES:
        for load, name, what, digits in SHOWN:
            cells = [f"{getattr(middle[program, load, *case], name):,.{digits}f}" for case in cases]
            lines.append(f"| {program}, {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rows(middle: dict[Case, Figure]) -> list[Row]:
    """How the cost of a packet grows with the peers, and the memory of our node with all of them."""
    many, few, most = f"{CONFIGURED:,} peers", ACTIVE[1], ACTIVE[-1]
    made = [
        _growth(middle, "bulk", f"{many} × 1, one active", (1, 1), (CONFIGURED, 1), GROWTH),
        _growth(middle, "bulk", f"{many}, {most} active × 1", (CONFIGURED, 1), (CONFIGURED, most), GROWTH),
        _growth(middle, "singly", f"{many} × 1, one active", (1, 1), (CONFIGURED, 1), GROWTH),
        _growth(middle, "singly", f"{many}, {few} active × 1", (CONFIGURED, 1), (CONFIGURED, few), None),  # another mode, see above
        _growth(middle, "singly", f"{many}, {most} active × {few}", (CONFIGURED, few), (CONFIGURED, most), GROWTH),
    ]
    for load in LOADS:
        ours, theirs = (middle[program, load, CONFIGURED, most].cpu_us for program in NODES)
        beside = f"{ours / theirs:.2f} × ({ours:.1f} to {theirs:.1f} µs)"
        made.append(Row(f"CPU of a packet, {load}, {most} active: calnet × wireguard-go (Debian)", beside, "", None, at_most=True))
    memory = max(middle["calnet", load, CONFIGURED, most].memory_mb for load in LOADS)
    made.append(Row(f"memory of a node, {many}, {most} active", f"{memory:.0f} MB", f"≤ {NODE_MB:.0f} MB", memory / NODE_MB, at_most=True))
    return made


def _growth(middle: dict[Case, Figure], load: str, what: str, less: tuple[int, int], more: tuple[int, int], bound: float | None) -> Row:
    """The CPU time of a packet in one case to that in another, each (configured, active)."""
    ours, theirs = (middle[program, load, *more].cpu_us / middle[program, load, *less].cpu_us for program in NODES)
    told = f"{ours:.2f} × (wireguard-go: {theirs:.2f} ×)"
    target, ratio = ("", None) if bound is None else (f"≤ {bound:g} ×", ours / bound)
    return Row(f"CPU of a packet, {load}: {what}", told, target, ratio, at_most=True)


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        return 0
    if sys.argv[1:2] == ["echo"]:
        echo()
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    try:
        print_table(run(parser.parse_args().quick).rows)
    except (CalnetError, RuntimeError, OSError) as failure:
        print(f"bench peers failed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
