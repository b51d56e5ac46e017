"""A crowd: many peers of one node. `serve` runs the node at end `a` of the lab (tunnel_lab.py), ours or wireguard-go, with all of them configured; a process at
end `b` speaks for them by one `Wire`.

Each peer has a key of its own, an overlay address, and an underlay address, from which alone it sends: nothing that a node does by source meets the crowd as
one. The keys follow from the peers' numbers, so that both processes know them.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from bench.tunnel_lab import UNDERLAY, End, Lab
from calnet.crypto.hash import blake2s
from calnet.crypto.keys import PrivateKey, encode_key
from calnet.model import Buffer, NodeId
from calnet.tunnel import handshake
from calnet.tunnel.handshake import Pending
from calnet.tunnel.peer import TunnelPeer, TunnelPeerConfig
from calnet.tunnel.session import Session
from calnet.wire.tunnel import Response

NODES: Final = ("calnet", "wireguard-go")
UNDERLAY_RANGE, OVERLAY_RANGE = ipaddress.ip_network("198.18.0.0/16"), ipaddress.ip_network("10.78.0.0/16")
FIRST_ID: Final = 10
SILENCE_S: Final = 0.1
"""What has not come by then is lost."""
SOCKET_BUFFER: Final = 4 << 20
_IP_PKTINFO, _UDP_SEGMENT, _UDP_GRO, _SO_RCVBUFFORCE = 8, 103, 104, 33


@dataclass(frozen=True)
class Member:
    """One peer of the node."""

    number: int

    @cached_property
    def key(self) -> PrivateKey:
        return PrivateKey(blake2s(b"bench", self.number.to_bytes(4, "big")))

    @property
    def id(self) -> int:
        return FIRST_ID + self.number

    @property
    def underlay(self) -> str:
        return str(UNDERLAY_RANGE[self.number + 1])

    @property
    def overlay(self) -> str:
        return str(OVERLAY_RANGE[self.number + 1])


def members(count: int) -> list[Member]:
    return [Member(number) for number in range(count)]


# --- The node's side ---


def prepare(lab: Lab) -> None:
    """End `b` takes the crowd's addresses for its own, and end `a` finds them there."""
    lab.ends["b"].run("ip", "route", "add", "local", str(UNDERLAY_RANGE), "dev", "lo")
    lab.ends["a"].run("ip", "route", "add", str(UNDERLAY_RANGE), "via", UNDERLAY["b"][0])


def serve(lab: Lab, program: str, crowd: Iterable[Member], capabilities: tuple[str, ...] = ()) -> End:
    """Run the node, one of NODES, that knows the crowd's keys and addresses and waits for it."""
    if program == "calnet":
        end = lab.start_calnet("a", tell_paths=False, capabilities=capabilities, peers=[_document(one, capabilities) for one in crowd])
    else:
        end = lab.start_wireguard_go("a", knows_endpoint=False)
        with tempfile.NamedTemporaryFile("w", dir=lab.files) as file:
            file.writelines(f"[Peer]\nPublicKey = {encode_key(one.key.public)}\nAllowedIPs = {one.overlay}/32\n" for one in crowd)
            file.flush()
            end.run("wg", "addconf", end.device, file.name)
    end.run("ip", "route", "add", str(OVERLAY_RANGE), "dev", end.device)
    return end


def _document(one: Member, capabilities: tuple[str, ...]) -> dict[str, object]:
    return {"id": one.id, "node_key": encode_key(one.key.public), "addresses": [one.overlay], "endpoint": None, "capabilities": capabilities}


class Child:
    """A program in an end's namespace that is driven by words, and answers each line of them with one of JSON. Killed at the end of its context."""

    def __init__(self, end: End, *words: object) -> None:
        self._process: subprocess.Popen[str] = end.start(sys.executable, "-m", *map(str, words))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, *words: object) -> dict[str, Any]:
        """Say it, and wait for the answer."""
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """What it says next. RuntimeError where it ended instead."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the crowd's process ended")
        found: dict[str, Any] = json.loads(answer)
        return found


# --- The crowd's side ---


class Wire:
    """The crowd's one UDP socket: each peer sends from its own address."""

    def __init__(self, port: int) -> None:
        """`port` is the node's."""
        self._node = UNDERLAY["a"][0], port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 0, int(SILENCE_S * 1e6)))
        grow(self._socket)
        self._socket.bind(("", 0))
        self._from: dict[int, tuple[int, int, bytes]] = {}

    def send(self, number: int, datagrams: Buffer, size: int = 0) -> None:
        """Send for this peer; `size`: that of each of several datagrams, side by side."""
        source = self._from.get(number)
        if source is None:
            address = UNDERLAY_RANGE[number + 1].packed
            source = self._from[number] = (socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i4s4s", 0, address, bytes(4)))
        self._socket.sendmsg((datagrams,), (source, *segmented(len(datagrams), size)), 0, self._node)

    def receive(self, buffer: memoryview) -> tuple[int, int]:
        """(length, size of each of the datagrams) of what came; (0, 0) if nothing did within SILENCE_S."""
        try:
            length, size, _ = receive(self._socket, buffer)
        except BlockingIOError:
            return 0, 0
        return length, size


def grow(one: socket.socket) -> None:
    """Room for what comes, and batches."""
    one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER)
    one.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)


def segmented(length: int, size: int) -> tuple[tuple[int, int, bytes], ...]:
    """What tells the kernel that this is several datagrams of `size` bytes; nothing if it is one."""
    return ((socket.IPPROTO_UDP, _UDP_SEGMENT, size.to_bytes(2, sys.byteorder)),) if 0 < size < length else ()


def receive(one: socket.socket, buffer: memoryview) -> tuple[int, int, tuple[str, int]]:
    """(length, size of each datagram, source) of a batch."""
    length, ancillary, _, source = one.recvmsg_into((buffer,), socket.CMSG_SPACE(4))
    for _, kind, value in ancillary:
        if kind == _UDP_GRO:
            return length, int.from_bytes(value[:4], sys.byteorder), source
    return length, length, source


def begin(one: Member, node_key: bytes, index: int, stamp: bytes) -> tuple[Pending, bytes]:
    """An initiation to the node, up to mac1."""
    return handshake.begin(one.key, node_key, None, stamp, index, os.urandom)


def finish(one: Member, pending: Pending, response: Response, now: float) -> Session:
    """The session of a genuine response. AuthenticationError for any other."""
    peer = TunnelPeer(TunnelPeerConfig(NodeId(one.id), pending.remote_static))
    keys = handshake.finish(pending, response)
    return Session(peer, local_index=pending.local_index, remote_index=response.sender, initiator=True, remote_static=pending.remote_static, keys=keys, now=now)
