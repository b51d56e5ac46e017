"""How many handshakes one responder answers: python -m bench.handshakes [--quick].

In memory: `calnet.tunnel.Tunnel` with 500 peers takes a valid initiation of each in turn, answers, and opens the first data, which confirms the session.
Counted is the responder's CPU time for these calls (wire formats, MACs, and the tables of peers and sessions included; sockets not), beside that of the five
X25519 operations that a responder can't do without. Time is an argument, and passes so that the machine never takes itself to be under load.

On the wire: a Calnet node (bench/peer.py) and Debian's wireguard-go, in turns, each alone at its end of a veth pair with the 500 peers configured (crowd.py).
The initiations were made before; 64 are under way at any time, until all are answered. Counted are responses, each checked afterwards to be genuine, and the
CPU time of the responder's program. No first data follows here. Each peer has an address of its own, and its turn comes long after the 20 ms within which
WireGuard answers a peer but once. A Calnet node asks for cookies from some 100 handshakes a second on, wireguard-go once 128 wait, which never happens here:
so Calnet's figure includes a cookie reply for each peer, and checks of mac2. Responder and crowd share the cores; wireguard-go uses them all, Calnet one.

Prints JSON lines, then a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.crowd import NODES, Child, Member, Wire, begin, finish, members, prepare, serve
from bench.disturbance import settle
from bench.table import Row, print_table
from bench.tunnel_lab import Lab
from calnet.crypto.keys import PrivateKey, decode_key, encode_key
from calnet.errors import CalnetError
from calnet.model import Endpoint, NodeId, Source
from calnet.tunnel.constants import HANDSHAKES_PER_SECOND
from calnet.tunnel.cookie import CookieMemory
from calnet.tunnel.effects import SendHandshake
from calnet.tunnel.handshake import Pending
from calnet.tunnel.peer import TunnelPeerConfig
from calnet.tunnel.timestamps import step_after, timestamp_of
from calnet.tunnel.tunnel import Tunnel
from calnet.wire.tunnel import CookieReply, Response, parse_handshake

PEERS: Final = 500
TURNS, QUICK_TURNS = 12, 4
"""Handshakes of each peer in one measurement."""
ROUNDS, QUICK_ROUNDS = 5, 1
UNDER_WAY: Final = 64
MOST_S: Final = 10.0
"""One flood takes no longer."""
BEYOND_X25519: Final = 2.0
"""What all of a handshake may cost, to its X25519 alone…"""
BESIDE_WIREGUARD_GO: Final = 1.5
"""…and to wireguard-go's."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An initiation made beforehand; `body` is all before mac1."""

    member: Member
    pending: Pending
    body: bytes


def attempts(crowd: Sequence[Member], node_key: bytes, turns: int, wall: float) -> list[Attempt]:
    """`turns` of each peer, all peers in turn; the sender index of each is its place here."""
    made: list[Attempt] = []
    stamp = timestamp_of(wall)
    for _ in range(turns):
        made += [Attempt(one, *begin(one, node_key, len(made) + place, stamp)) for place, one in enumerate(crowd)]
        stamp = step_after(stamp)
    return made


# --- In memory ---


def in_memory(count: int, turns: int) -> tuple[float, float]:
    """(CPU ms of a responder for a handshake, of the X25519 in it)."""
    identity, crowd, wall = PrivateKey.generate(os.urandom), members(count), time.time()
    tunnel = Tunnel(identity, random=os.urandom)
    tunnel.configure([TunnelPeerConfig(NodeId(one.id), one.key.public) for one in crowd], 0.0, wall)
    sources = {one.number: Source(Endpoint(one.underlay, 41641)) for one in crowd}
    cookies = CookieMemory(identity.public)
    spent = alone = now = 0.0
    made = attempts(crowd, identity.public, turns, wall)
    for attempt in made:
        now += 1 / HANDSHAKES_PER_SECOND
        datagram, source = cookies.finish(attempt.body, now), sources[attempt.member.number]
        before = time.thread_time()
        effects = tunnel.receive(datagram, source, now, wall)
        spent += time.thread_time() - before
        response = parse_handshake(next(effect.datagram for effect in effects if isinstance(effect, SendHandshake)))
        assert isinstance(response, Response)
        first = finish(attempt.member, attempt.pending, response, now).seal(b"")
        before = time.thread_time()
        session = tunnel.session_by_index(response.sender, now)
        assert session is not None
        session.open(first)
        tunnel.data_received(session, source, now, wall, len(first), data=False)
        spent += time.thread_time() - before
        alone += _x25519_alone(attempt.member.key.public)
    return spent / len(made) * 1000, alone / len(made) * 1000


def _x25519_alone(public: bytes) -> float:
    """CPU seconds of a key pair and four exchanges."""
    before = time.thread_time()
    key = PrivateKey.generate(os.urandom)
    for _ in range(4):
        key.exchange(public)
    return time.thread_time() - before


# --- On the wire ---


class Flood:
    """In the child process: initiations to the node, some under way at any time."""

    def __init__(self, node_key: bytes, port: int, count: int, turns: int) -> None:
        self._wire = Wire(port)
        self._attempts = attempts(members(count), node_key, turns, time.time())
        self._cookies = {number: CookieMemory(node_key) for number in range(count)}
        self._responses: dict[int, Response] = {}

    def run(self) -> dict[str, float]:
        """What became of them. AuthenticationError for a response that isn't genuine."""
        buffer = memoryview(bytearray(65536))
        waiting = deque(range(len(self._attempts)))
        under_way: set[int] = set()
        cookies = 0
        began = end = time.monotonic()
        while (waiting or under_way) and end < began + MOST_S:
            while waiting and len(under_way) < UNDER_WAY:
                under_way.add(place := waiting.popleft())
                self._send(place)
            length, size = self._wire.receive(buffer)
            end = time.monotonic()
            if not length:
                under_way.clear()  # lost, or late
                continue
            for at in range(0, length, size):
                message = parse_handshake(bytes(buffer[at : at + size]))
                if isinstance(message, CookieReply):
                    cookies += 1
                    if self._cookies[self._attempts[message.receiver].member.number].receive(message, end):
                        self._send(message.receiver)
                elif isinstance(message, Response):
                    under_way.discard(message.receiver)
                    self._responses[message.receiver] = message
        self._check()
        answered = len(self._responses)
        return {"answered": answered, "seconds": end - began, "cookies": cookies, "lost": len(self._attempts) - len(waiting) - answered}

    def _send(self, place: int) -> None:
        attempt = self._attempts[place]
        number = attempt.member.number
        self._wire.send(number, self._cookies[number].finish(attempt.body, time.monotonic()))

    def _check(self) -> None:
        for place, response in self._responses.items():
            finish(self._attempts[place].member, self._attempts[place].pending, response, 0.0)


def child(node_key: str, port: str, count: str, turns: str) -> None:
    flood = Flood(decode_key(node_key), int(port), int(count), int(turns))
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(flood.run()), flush=True)


def on_the_wire(lab: Lab, program: str, turns: int) -> dict[str, float]:
    """One flood of one responder: `rate` a second, `cpu_ms` of each, and what the child told."""
    try:
        node = serve(lab, program, members(PEERS))
        with Child(lab.ends["b"], "bench.handshakes", "child", encode_key(node.key.public), node.port, PEERS, turns) as crowd:
            crowd.answer()
            before = node.cpu_s()
            found = crowd.ask("go")
            spent = node.cpu_s() - before
    finally:
        lab.stop()
    if not found["answered"]:
        raise RuntimeError(f"{program} answered no handshake")
    return {**found, "rate": found["answered"] / found["seconds"], "cpu_ms": spent / found["answered"] * 1000}


# --- The figures ---


def run(quick: bool = False) -> list[Row]:
    rounds, turns = (QUICK_ROUNDS, QUICK_TURNS) if quick else (ROUNDS, TURNS)
    settle()
    alone = in_memory(PEERS, turns)
    print(json.dumps({"bench": "handshakes", "in_memory_cpu_ms": alone[0], "x25519_cpu_ms": alone[1]}), flush=True)
    floods: dict[str, list[dict[str, float]]] = {program: [] for program in NODES}
    with Lab(prefix="hs") as lab:
        prepare(lab)
        for number in range(rounds):
            settle()
            for program in NODES:
                floods[program].append(on_the_wire(lab, program, turns))
                print(json.dumps({"bench": "handshakes", "round": number, "responder": program, **floods[program][-1]}), flush=True)
    return rows(alone, floods)


def rows(alone: tuple[float, float], floods: dict[str, list[dict[str, float]]]) -> list[Row]:
    """`alone` as `in_memory` gives it, the floods by program."""
    spent, x25519 = alone
    cpu, rate = ({program: statistics.median(one[name] for one in found) for program, found in floods.items()} for name in ("cpu_ms", "rate"))
    measured, target = f"{spent:.2f} ms: {1000 / spent:,.0f} a second", f"≤ {BEYOND_X25519:g} × {x25519:.2f} ms (its X25519)"
    made = [Row("handshake, responder in memory: CPU", measured, target, spent / x25519 / BEYOND_X25519, at_most=True)]
    made += [
        Row(f"…answered on the wire, {PEERS} peers: {program}", f"{rate[program]:,.0f} a second, {cpu[program]:.2f} ms of CPU each", "", None, at_most=False)
        for program in NODES
    ]
    ratio = cpu["calnet"] / cpu["wireguard-go"]
    target = f"≤ {BESIDE_WIREGUARD_GO:g} ×"
    made.append(Row("…CPU of each: calnet × wireguard-go (Debian)", f"{ratio:.2f} ×", target, ratio / BESIDE_WIREGUARD_GO, at_most=True))
    return made


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m bench.handshakes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of fewer handshakes")
    try:
        print_table(run(parser.parse_args().quick))
    except (CalnetError, RuntimeError, OSError) as failure:
        print(f"bench handshakes failed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
