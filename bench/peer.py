"""One end of a tunnel without a server: a data path made from a JSON document on stdin, for measurements and for tests against stock WireGuard.

    {"tun": NAME, "port": 0, "mtu": 1280, "plain": false, "tell_paths": true, "private_key": B64, "capabilities": [NAME, …],
     "self": {"id": 1, "addresses": [A, …], "routes": [P, …]},
     "peers": [{"id": 2, "node_key": B64, "addresses": [A, …], "endpoint": "host:port"|null, "psk": B64|null, "keepalive_s": 0, "routes": [P, …],
                "capabilities": [NAME, …]}]}

Prints `ready PORT` once it reads; whoever started it configures the interface. Every peer is of the kind `wireguard`. SIGUSR1 lets 121 s pass on the tunnel's
clock at once (so a rekey is due); SIGUSR2 prints a JSON line of each peer's status; SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import ipaddress
import json
import os
import signal
import sys
import time
from typing import Any

from calnet.crypto.choice import choose, load_library
from calnet.crypto.keys import PrivateKey
from calnet.host.tun import open_tun
from calnet.host.udp import open_udp
from calnet.model import Endpoint, FilterRule, Netmap, NodeId, NodeKey, Peer, PeerKind, SelfNode
from calnet.paths.paths import Paths
from calnet.roles.node.datapath import DataPath
from calnet.roles.node.engine import NoHost
from calnet.roles.node.rehearsal import keep_warm
from calnet.tunnel.tunnel import Tunnel

REKEY_JUMP_S = 121.0


class Clock:
    """Monotonic time that can be moved on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def jump(self) -> None:
        self.ahead += REKEY_JUMP_S


class Alone(NoHost):
    """A host without relay, server or disk."""

    def __init__(self, *, tell_paths: bool) -> None:
        self._tell_paths = tell_paths

    def path_changed(self, peer: NodeId, description: str, endpoint: Endpoint | None) -> None:
        if self._tell_paths:
            print(f"path {peer}: {description}", file=sys.stderr, flush=True)

    def health(self, code: str, text: str | None) -> None:
        if text:
            print(f"{code}: {text}", file=sys.stderr, flush=True)


def _endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return Endpoint(host.strip("[]"), int(port))


def _addresses(document: dict[str, Any]) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    return tuple(ipaddress.ip_address(text) for text in document["addresses"])


def _prefixes(document: dict[str, Any]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in document.get("routes", ()))


def _peer(document: dict[str, Any]) -> Peer:
    return Peer(
        id=NodeId(document["id"]),
        name=f"peer{document['id']}",
        node_key=NodeKey(base64.b64decode(document["node_key"])),
        addresses=_addresses(document),
        routes=_prefixes(document),
        endpoints=(_endpoint(document["endpoint"]),) if document.get("endpoint") else (),
        preshared_key=base64.b64decode(document["psk"]) if document.get("psk") else None,
        keepalive_s=document.get("keepalive_s", 0),
        kind=PeerKind.WIREGUARD,
        capabilities=tuple(document.get("capabilities", ())),
    )


def netmap_of(document: dict[str, Any]) -> Netmap:
    """The netmap value that the document describes, with a filter that lets everything in."""
    everywhere = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    own = SelfNode(NodeId(document["self"]["id"]), "self", _addresses(document["self"]), routes=_prefixes(document["self"]))
    return Netmap(1, own, (), tuple(_peer(one) for one in document["peers"]), (FilterRule(everywhere, everywhere),))


async def run(document: dict[str, Any]) -> None:
    """Carry packets until SIGTERM."""
    loop = asyncio.get_running_loop()
    identity = PrivateKey(base64.b64decode(document["private_key"]))
    clock, host = Clock(), Alone(tell_paths=document.get("tell_paths", True))
    tun = open_tun(document["tun"], plain=document.get("plain", False))
    udp = open_udp(document.get("port", 0), offload=not document.get("plain", False), report=host.health)
    new_batch = choose(time.perf_counter, load_library()).new_batch
    path = DataPath(
        loop=loop,
        tun=tun,
        udp=udp,
        tunnel=Tunnel(identity, random=os.urandom, new_batch=new_batch),
        paths=Paths(node_key=identity.public, discovery=PrivateKey.generate(os.urandom), random=os.urandom),
        host=host,
        monotonic=clock,
        wall=time.time,
        random=os.urandom,
        mtu=document.get("mtu", 1280),
        capabilities=tuple(document.get("capabilities", ())),
    )
    netmap = netmap_of(document)
    path.apply(netmap, accept_routes=True)
    path.start()
    cool = keep_warm(path, tun.offloads, loop, monotonic=clock, random=os.urandom, new_batch=new_batch)
    ended = asyncio.Event()

    def status() -> None:
        print(
            json.dumps({peer.id: [one.tx_bytes, one.rx_bytes, one.last_handshake_at] for peer in netmap.peers if (one := path.peer_status(peer.id))}),
            flush=True,
        )

    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGUSR1, clock.jump)
    loop.add_signal_handler(signal.SIGUSR2, status)
    gc.collect()
    gc.freeze()
    print("ready", udp.port, flush=True)
    await ended.wait()
    cool()
    path.close()
    udp.close()
    tun.close()


def main() -> None:
    document = json.loads(sys.stdin.readline())
    runner: Any = asyncio
    if document.get("uvloop", True):
        import uvloop

        runner = uvloop
    runner.run(run(document))


if __name__ == "__main__":
    main()
