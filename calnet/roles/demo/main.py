"""`calnet demo`: two machines behind NATs reach each other, on this machine, in namespaces, as it happens.

It shows a server and two nodes being brought up, the first packet (by relay), the switch to a direct path, throughput and a file arriving whole, and
then removes all it made, on Ctrl-C and after errors too. `--json` prints one final document to stdout; the story then goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from calnet.errors import CalnetError, HostError, NotPermittedError, TimedOutError
from calnet.host.process import self_command
from calnet.roles.demo import traffic
from calnet.roles.demo.lab import Lab, Site
from calnet.roles.demo.namespaces import Task
from calnet.roles.demo.nat import NatKind
from calnet.roles.demo.product import Node, Server
from calnet.roles.demo.story import Story

_PING_S: Final = 0.05
_DIRECT_S: Final = 20.0
_WATCH_AFTER_S: Final = 1.5
"""How long the pings go on after the switch, to see whether it lost one."""
_THROUGHPUT_S: Final = 3.0
_FILE_BYTES: Final = 50_000_000
_INTERRUPTED: Final = 130
_TOOLS: Final = {"ip": "iproute2", "nft": "nftables"}

_PICTURE: Final = """\
    alice ── NAT {alice} ──╮
                                  ├── the internet ── server {server}
    bob ──── NAT {bob} ──╯"""


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if all of it worked, 1 if not, 130 after Ctrl-C. CalnetError where it can't run here at all."""
    check_machine()
    as_json = bool(getattr(args, "json", False))
    story = Story(sys.stderr if as_json else sys.stdout)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    result: dict[str, object] = {}
    try:
        with Lab() as lab:
            status = _Demo(lab, story, result).play()
            story.waiting("cleaning up")
    except KeyboardInterrupt:
        story.note("\ninterrupted; everything that the demo made is removed")
        return _INTERRUPTED
    result["total_s"] = round(story.elapsed_s, 3)
    story.tell("clean", "namespaces, processes and files of the demo are removed")
    if as_json:
        print(json.dumps(result))
    return status


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def check_machine() -> None:
    """Raise for what this machine lacks, and say how to get it."""
    if os.geteuid() != 0:
        raise NotPermittedError("the demo makes network namespaces: run it as root (sudo)")
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise HostError(f"the demo needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    if not Path("/dev/net/tun").exists():
        raise HostError("the demo needs /dev/net/tun: modprobe tun (in a container, start it with --device /dev/net/tun --cap-add NET_ADMIN)")


class _Demo:
    """The scenes, in order. Each tells its line and leaves its figures in `result`."""

    def __init__(self, lab: Lab, story: Story, result: dict[str, object]) -> None:
        self._lab, self._story, self._result = lab, story, result
        self._program = self_command()
        self._failed = False

    def play(self) -> int:
        self._story.title("Calnet demo: two machines behind NATs reach each other. All of it happens in network namespaces of this machine.")
        try:
            server, sites = self._internet()
            self._start(server)
            alice, bob = (Node(site.host, self._program) for site in sites)
            key = server.create_key("--reusable")
            for node, site in zip((alice, bob), sites, strict=True):
                self._bring_up(node, server, key, site)
            self._first_packet_and_switch(alice, bob)
            self._throughput(alice, bob)
            self._file(alice, bob)
        except CalnetError as failure:
            self._story.tell("failed", str(failure), good=False)
            self._result["error"] = str(failure)
            return 1
        return 1 if self._failed else 0

    def _internet(self) -> tuple[Server, list[Site]]:
        self._story.waiting("making an internet")
        server = Server(self._lab.public_host("server"), self._program)
        sites = [self._lab.site(name, NatKind.PORT_RESTRICTED, ipv6=False) for name in ("alice", "bob")]
        mappings = [site.verify() for site in sites]
        self._story.picture(_PICTURE.format(alice=f"{sites[0].public_ipv4:<14}", bob=f"{sites[1].public_ipv4:<14}", server=server.host.ipv4))
        self._story.tell("internet", f"made; both routers let in only answers from the very address and port asked ({mappings[0].traits.filtering.value})")
        return server, sites

    def _start(self, server: Server) -> None:
        self._story.waiting("starting the server")
        begun = time.monotonic()
        server.start()
        self._result["server_ready_s"] = round(time.monotonic() - begun, 3)
        self._story.tell("server", f"ready at {server.url} after {time.monotonic() - begun:.1f} s")

    def _bring_up(self, node: Node, server: Server, key: str, site: Site) -> None:
        name = node.host.name
        self._story.waiting(f"bringing {name} up")
        node.start()
        begun = time.monotonic()
        answer = node.up(server, "--hostname", name, key=key)
        if answer.status != 0:
            raise HostError(f"{name} did not come up (exit {answer.status}): {answer.err.strip() or answer.out.strip()}")
        taken = time.monotonic() - begun
        addresses = node.own().get("ips")
        listed = ", ".join(map(str, addresses)) if isinstance(addresses, list) else "no address"
        self._result[name] = {"addresses": addresses, "behind": site.public_ipv4, "up_s": round(taken, 3)}
        self._story.tell(name, f"up after {taken:.1f} s: {listed} (at {node.host.ipv4} behind {site.public_ipv4})")

    def _first_packet_and_switch(self, alice: Node, bob: Node) -> None:
        self._story.until(lambda: alice.peer("bob"), 15, "alice hears of bob")
        begun = time.monotonic()
        pings = alice.host.namespace.task("ping", traffic.ping_stream(bob.address(), interval_s=_PING_S))
        first = self._first_reply(pings)
        path = alice.path_to("bob")
        self._result["first_packet"] = {"s": round(first, 4), "path": path}
        self._story.tell("first ping", f"bob answers alice {first * 1000:.0f} ms after the first ping{', by relay' if path == 'relay' else ''}")
        switched = self._await_direct(alice, begun)
        if switched is None:
            pings.result()
            return
        self._until_time(time.monotonic() + _WATCH_AFTER_S, "watching the switch")
        report = pings.result()
        self._tell_switch(alice, switched, report)

    def _first_reply(self, pings: Task) -> float:
        event = pings.next_event(15)
        if event is None:
            raise TimedOutError("bob does not answer alice's pings")
        return traffic.number(event, "first_reply_s")

    def _await_direct(self, alice: Node, begun: float) -> float | None:
        try:
            self._story.until(lambda: alice.path_to("bob") == "direct", _DIRECT_S, "looking for a direct path")
        except TimedOutError as late:
            self._failed = True
            self._story.tell("direct", f"{late}: traffic stays on the relay", good=False)
            return None
        return time.monotonic() - begun

    def _tell_switch(self, alice: Node, switched: float, report: dict[str, object]) -> None:
        lost, sent = len(traffic.numbers(report, "lost")), int(traffic.number(report, "sent"))
        endpoint = (alice.peer("bob") or {}).get("endpoint")
        rtts = traffic.numbers(report, "rtts_ms")
        self._result["direct"] = {"s": round(switched, 3), "endpoint": endpoint, "pings": sent, "lost": lost, "rtt_ms": round(statistics.median(rtts[-10:]), 3)}
        self._failed |= lost > 0
        self._story.tell("direct", f"alice → bob at {endpoint} after {switched:.1f} s; of {sent} pings across the switch {lost or 'none'} lost", good=not lost)

    def _until_time(self, deadline: float, text: str) -> None:
        self._story.until(lambda: time.monotonic() >= deadline, deadline - time.monotonic() + 5, text)

    def _throughput(self, alice: Node, bob: Node) -> None:
        figures = {}
        for sender, receiver in ((alice, bob), (bob, alice)):
            label = f"{sender.host.name} → {receiver.host.name}"
            sink = receiver.host.namespace.task("sink", traffic.sink(receiver.address()))
            port = int(traffic.number(sink.next_event(10) or {}, "port"))
            source = sender.host.namespace.task("source", traffic.source(receiver.address(), port, seconds=_THROUGHPUT_S))
            self._until_time(time.monotonic() + _THROUGHPUT_S, f"TCP {label}")
            source.result(20, stop=False)
            received = sink.result(20, stop=False)
            figures[label] = traffic.number(received, "bytes") * 8 / 1e6 / max(traffic.number(received, "seconds"), 1e-6)
        self._result["throughput_mbit_s"] = {label.replace(" → ", "_to_"): round(figure, 1) for label, figure in figures.items()}
        told = ", ".join(f"{figure:,.0f} Mbit/s {label}" for label, figure in figures.items())
        self._story.tell("throughput", f"{told} (one TCP stream; both ends and the internet share this machine)")

    def _file(self, alice: Node, bob: Node) -> None:
        path = self._lab.directory / "sent.bin"
        path.write_bytes(os.urandom(_FILE_BYTES))
        sink = bob.host.namespace.task("sink", traffic.sink(bob.address(), save=self._lab.directory / "received.bin"))
        port = int(traffic.number(sink.next_event(10) or {}, "port"))
        self._story.waiting("sending a file")
        sent = alice.host.namespace.task("source", traffic.send_file(bob.address(), port, path)).result(40, stop=False)
        got = sink.result(40, stop=False)
        whole = sent["sha256"] == got["sha256"]
        self._failed |= not whole
        seconds = traffic.number(got, "seconds")
        self._result["file"] = {"bytes": got["bytes"], "s": round(seconds, 3), "whole": whole, "sha256": got["sha256"]}
        text = f"{_FILE_BYTES / 1e6:.0f} MB from alice to bob in {seconds:.1f} s: "
        self._story.tell("file", text + (f"arrived whole (sha256 {str(got['sha256'])[:16]}…)" if whole else "NOT the same bytes"), good=whole)
