"""How long traffic takes to flow again after a change of network: real nodes, real changes (changes.py), a stream of pings through the tunnel meanwhile.

A `Stage` has two nodes on a direct path, one of which is changed about. `measure` plays one of CHANGES on it: it leaves both where the next change can
begin, so that they can be played in any order and again and again.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from calnet.errors import HostError
from calnet.roles.demo import changes, traffic
from calnet.roles.demo.changes import Machine, Renumbering
from calnet.roles.demo.lab import Lab, Site
from calnet.roles.demo.namespaces import Task
from calnet.roles.demo.product import Node, Server, eventually

RECOVERY_S: Final = 3.0
"""From the moment when a path exists to the first reply."""
FALL_BACK_S: Final = 1.0
"""…where the direct path died alone, and the relay was there all the while."""

_OUTAGE_S: Final = 5.0
_SLEEP_S: Final = 15.0
_BEFORE_S: Final = 0.5
_AFTER_S: Final = 2.0
_GAP_S: Final = 0.5
"""What counts as silence: more than a busy machine's own pauses."""
_PATIENCE_S: Final = 60.0
_SETTLED_S: Final = 60.0


def pings(source: Node, target: Node | str, *, interval_s: float = 0.05, version: int = 4, size: int = 56) -> Task:
    """A stream of pings through the tunnel, 20 a second; end it by `result()`."""
    address = target if isinstance(target, str) else target.address(version)
    return source.host.namespace.task(f"ping-{source.host.name}", traffic.ping_stream(address, interval_s=interval_s, size=size))


def answers(source: Node, address: str) -> bool:
    """Whether one plain ping to `address` is answered within a second."""
    return source.host.namespace.run("ping", "-c1", "-W1", "-n", address, check=False).returncode == 0


def await_path(one: Node, other: Node, path: str, within: float = _SETTLED_S) -> None:
    """Ping until this (`direct`, `relay`) is the path from `one` to `other`, and back."""
    with contextlib.closing(pings(one, other, interval_s=0.2)):
        for here, there in ((one, other.host.name), (other, one.host.name)):
            eventually(lambda here=here, there=there: here.path_to(there) == path, within, f"the path from {here.host.name} to {there} is {path}")  # type: ignore[misc]


def await_direct(one: Node, other: Node, within: float = _SETTLED_S) -> None:
    """Ping until `one` reaches `other` directly, and back."""
    await_path(one, other, "direct", within)


def let_pass(seconds: float) -> None:
    """Let what runs go on."""
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= end, seconds + 5)


@dataclass
class Stage:
    """`node` is the one that is changed about, between the sites `home` and `cafe`; `peer` stays where it is, at `office`."""

    lab: Lab
    server: Server
    node: Node
    peer: Node
    home: Site
    cafe: Site
    office: Site
    ports: Iterator[int] = field(default_factory=lambda: itertools.count(40_001, 7))
    """Outer ports for a NAT that binds anew."""
    machine: Machine = field(init=False)
    renumbering: Renumbering = field(init=False)

    def __post_init__(self) -> None:
        self.machine = Machine(self.node.host, self.home)
        self.renumbering = Renumbering(self.lab)

    @property
    def here(self) -> Site:
        """Where the node is."""
        return self.machine.plugs["eth0"].site

    @property
    def elsewhere(self) -> Site:
        """Where it could go."""
        return self.cafe if self.here is self.home else self.home


Play = Callable[[Stage], float]
"""Make the change; when (CLOCK_MONOTONIC) there was a path again, at the earliest."""


def _nothing(_stage: Stage) -> None:
    """Neither preparation nor repair."""


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of change. `prepare` before traffic flows, `repair` after it was measured. `relayed`: the pair talks by relay when it begins."""

    name: str
    play: Play
    bound_s: float = RECOVERY_S
    prepare: Callable[[Stage], None] = _nothing
    repair: Callable[[Stage], None] = _nothing
    relayed: bool = False


def _link_down_and_up(stage: Stage) -> float:
    stage.machine.link_down("eth0")
    let_pass(_OUTAGE_S)
    exists = time.monotonic()
    stage.machine.link_up("eth0")
    return exists


def _another_address(stage: Stage) -> float:
    exists = time.monotonic()
    stage.machine.readdress("eth0")
    return exists


def _second_uplink(stage: Stage) -> None:
    stage.machine.plug_in("eth1", stage.elsewhere)


def _unplug_second(stage: Stage) -> None:
    stage.machine.link_up("eth0")
    stage.machine.unplug("eth1")


def _default_route_moved(stage: Stage) -> float:
    exists = time.monotonic()
    stage.machine.use("eth1")
    return exists


def _uplink_failed(stage: Stage) -> float:
    stage.machine.link_down("eth0")
    exists = time.monotonic()
    stage.machine.use("eth1")
    return exists


def _another_lan(stage: Stage) -> float:
    there = stage.elsewhere
    stage.machine.unplug("eth0")
    exists = time.monotonic()
    stage.machine.plug_in("eth0", there)
    stage.machine.use("eth0")
    return exists


def _rebinding(stage: Stage) -> float:
    port = int(str(stage.node.own()["udp_port"]))
    exists = time.monotonic()
    changes.rebind(stage.here, port, outside=next(stage.ports))
    return exists


def _router_reboot(stage: Stage) -> float:
    changes.power_off(stage.here)
    let_pass(_OUTAGE_S)
    exists = time.monotonic()
    stage.renumbering.power_on(stage.here)
    return exists


def _sleep(stage: Stage) -> float:
    """The machine has no network while it sleeps, and the process stands still. (Its clocks go on: a test of the daemon stops those.)"""
    process = stage.node.process
    if process is None:
        raise HostError("the node does not run")
    process.signal(signal.SIGSTOP)
    stage.machine.link_down("eth0")
    let_pass(_SLEEP_S)
    stage.machine.link_up("eth0")
    exists = time.monotonic()
    process.signal(signal.SIGCONT)
    return exists


def _server_restart(stage: Stage) -> float:
    stage.server.stop()
    let_pass(_OUTAGE_S)
    stage.server.start()
    return time.monotonic()


def _cut(stage: Stage) -> float:
    exists = time.monotonic()
    stage.lab.cut_udp(stage.here, stage.office)
    return exists


def _cut_before(stage: Stage) -> None:
    _cut(stage)


def _heal(stage: Stage) -> None:
    stage.lab.heal_udp()


CHANGES: Final = (
    Change("interface down and up", _link_down_and_up),
    Change("another address", _another_address),
    Change("default route moved", _default_route_moved, prepare=_second_uplink, repair=_unplug_second),
    Change("uplink failed over to another", _uplink_failed, prepare=_second_uplink, repair=_unplug_second),
    Change("moved to another LAN", _another_lan),
    Change("NAT rebinding", _rebinding),
    Change("router reboot", _router_reboot),
    Change("sleep and resume", _sleep),
    Change("server restart", _server_restart),
    Change("relay restart", _server_restart, prepare=_cut_before, repair=_heal, relayed=True),
    Change("direct path died", _cut, bound_s=FALL_BACK_S, repair=_heal),
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a change did to a stream of pings. `seconds`: from when a path existed to the reply that ended the last silence, at least 0."""

    change: Change
    seconds: float
    sent: int
    lost: int
    duplicates: int

    @property
    def within(self) -> bool:
        """Whether traffic flowed again within the change's bound."""
        return self.seconds <= self.change.bound_s


def measure(stage: Stage, change: Change) -> Recovery:
    """Play `change` while pings flow. TimedOutError where they don't flow again in a minute."""
    change.prepare(stage)
    try:
        if change.relayed:
            await_path(stage.node, stage.peer, "relay")
        else:
            await_direct(stage.node, stage.peer)
        with contextlib.closing(pings(stage.node, stage.peer)) as stream:
            stream.next_event(_PATIENCE_S)
            let_pass(_BEFORE_S)
            exists = change.play(stage)
            address = stage.peer.address()
            eventually(lambda: answers(stage.node, address), _PATIENCE_S, f"{change.name}: traffic flows again")
            let_pass(_AFTER_S)
            result = stream.result()
    finally:
        change.repair(stage)
    seconds = silence_after(exists, traffic.arrivals(result))
    return Recovery(change, seconds, int(traffic.number(result, "sent")), len(traffic.numbers(result, "lost")), int(traffic.number(result, "duplicates")))


def silence_after(exists: float, arrivals: list[float]) -> float:
    """From `exists` to the arrival that ended the last silence; where there was none, to the first arrival."""
    times = [exists, *(at for at in arrivals if at > exists)]
    ended = [after for before, after in itertools.pairwise(times) if after - before >= _GAP_S]
    return (ended[-1] if ended else times[min(1, len(times) - 1)]) - exists
