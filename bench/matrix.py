"""Every pair of kinds of sites in one lab: how soon two nodes there answer each other, by which path, and what was lost: python -m bench.matrix.

One server, two sites of each kind (a symmetric one more for each pair that has to guess ports, since a node guesses for one peer at a time), a node on each.
Pairs are pinged in batches, so that few cores are enough; what needs long goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from bench.network import program
from bench.table import Row, print_table
from calnet.errors import HostError, TimedOutError
from calnet.roles.demo import traffic
from calnet.roles.demo.lab import Lab, Site
from calnet.roles.demo.namespaces import Task
from calnet.roles.demo.nat import EXPECTED, Meeting, NatKind, expected_ipv6, meeting
from calnet.roles.demo.product import Node, Program, Server, eventually

BATCH: Final = 12
INTERVAL_S: Final = 0.25
"""Between a pair's pings."""
FIRST_REPLY_WITHIN_S: Final = 30.0
PUNCHED_WITHIN_S: Final = 30.0
GUESSED_WITHIN_S: Final = 150.0
"""Once in a hundred times the first round of guessing finds nothing, and a minute's rest follows."""
FIRST_REPLY_TARGET_S: Final = 1.0
PUNCHED_TARGET_S: Final = 5.0
AFTER_SWITCH_S: Final = 1.0
"""For how long a pair that is direct is pinged on."""
ON_RELAY_S: Final = 8.0
"""How long at least a pair that stays on the relay is watched."""
_READY_S: Final = 60.0
_THREADS: Final = 3
_DUAL_STACK: Final = frozenset({NatKind.FIREWALL})
"""Kinds whose sites here have IPv6 too."""


@dataclass(frozen=True, slots=True)
class Case:
    """One pair: names of the node that begins and of the other, and how they should meet."""

    kinds: tuple[NatKind, NatKind]
    one: str
    other: str
    meeting: Meeting

    def __str__(self) -> str:
        return f"{self.kinds[0].value} × {self.kinds[1].value}"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case. `direct_s`: from the first ping until both ends used a direct path, None where they did not; `paths` at the end, of both ends."""

    case: Case
    first_reply_s: float | None
    direct_s: float | None
    paths: tuple[object, object]
    sent: int
    lost: int

    @property
    def as_expected(self) -> bool:
        """Whether it got a reply at all, and took the path that the two kinds allow."""
        wanted = "relay" if self.case.meeting is Meeting.NONE else "direct"
        return self.first_reply_s is not None and self.paths == (wanted, wanted)


def name_of(kind: NatKind, number: int) -> str:
    """The name of a kind's site and node, from number 1."""
    return f"{kind.value.replace('-', '')}{number}"


def kinds_meet(one: NatKind, other: NatKind) -> Meeting:
    """How two kinds should meet in this lab."""
    traits = []
    for kind in (one, other):
        four = {} if kind is NatKind.IPV6_ONLY else {4: EXPECTED[kind]}
        traits.append(four | ({6: expected_ipv6(kind)} if kind is NatKind.IPV6_ONLY or kind in _DUAL_STACK else {}))
    return meeting(*traits)


def all_cases() -> list[Case]:
    """Each two kinds once, and each with its own; those that take longest first."""
    made, symmetric = [], itertools.count(3)
    for kinds in itertools.combinations_with_replacement(NatKind, 2):
        way = kinds_meet(*kinds)
        names = [name_of(kind, number) for number, kind in enumerate(kinds, start=1)]
        if way is Meeting.GUESSING:
            names[kinds.index(NatKind.SYMMETRIC)] = name_of(NatKind.SYMMETRIC, next(symmetric))
        made.append(Case(kinds, names[0], names[1], way))
    order = [Meeting.GUESSING, Meeting.NONE, Meeting.PUNCHING]
    return sorted(made, key=lambda case: order.index(case.meeting))


@dataclass(eq=False)
class _Running:
    """A case under way."""

    case: Case
    pings: Task
    begun: float
    first_reply_s: float | None = None
    direct_s: float | None = None


@dataclass
class Matrix:
    """The lab with all nodes up."""

    lab: Lab
    server: Server
    cases: Sequence[Case]
    sites: dict[str, Site] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    def prepare(self, program: Program) -> None:
        """Make the sites, prove each to be of its kind, and bring a node up on each."""
        for name, kind in sorted({(name, kind) for case in self.cases for name, kind in zip((case.one, case.other), case.kinds, strict=True)}):
            self.sites[name] = self.lab.site(name, kind, ipv6=kind in _DUAL_STACK)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(Site.verify, self.sites.values()))
        self._check_cases()
        self.nodes = {name: Node(site.host, program) for name, site in self.sites.items()}
        for node in self.nodes.values():
            node.launch()
        for node in self.nodes.values():
            node.await_ready()
        key = self.server.create_key("--reusable")
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda node: self._bring_up(node, key), self.nodes.values()))
        eventually(self._all_acquainted, _READY_S, "all nodes know each other", every=0.2)

    def _check_cases(self) -> None:
        """What was expected of the kinds is what the prober saw of the sites."""
        for case in self.cases:
            if meeting(self.sites[case.one].seen, self.sites[case.other].seen) is not case.meeting:
                raise HostError(f"{case}: the two sites meet otherwise than their kinds should")

    def _bring_up(self, node: Node, key: str) -> None:
        answer = node.up(self.server, "--hostname", node.host.name, key=key)
        if answer.status != 0:
            raise HostError(f"{node.host.name} did not come up: {answer.err}")

    def _all_acquainted(self) -> bool:
        return all(len(peers) == len(self.nodes) - 1 for node in self.nodes.values() if isinstance(peers := node.status().get("peers"), list))

    def run(self) -> list[Result]:
        """Ping in all cases; results in their order. Nothing raises for what the product does."""
        results: dict[Case, Result] = {}
        long: list[_Running] = []
        for start in range(0, len(self.cases), BATCH):
            batch = [self._begin(case) for case in self.cases[start : start + BATCH]]
            for running in batch:
                running.first_reply_s = _first_reply(running.pings)
            punching = [running for running in batch if running.case.meeting is Meeting.PUNCHING]
            self._watch(punching, PUNCHED_WITHIN_S, also=long)
            results |= {running.case: self._end(running) for running in punching}
            long += [running for running in batch if running not in punching]
        relayed_until = time.monotonic() + ON_RELAY_S
        self._watch([running for running in long if running.case.meeting is Meeting.GUESSING], GUESSED_WITHIN_S, also=long)
        self._watch([], max(0.0, relayed_until - time.monotonic()), also=long, whole=True)
        results |= {running.case: self._end(running) for running in long}
        return [results[case] for case in self.cases]

    def _begin(self, case: Case) -> _Running:
        address = self.nodes[case.other].address()
        begun = time.monotonic()
        pings = self.nodes[case.one].host.namespace.task(f"ping {case}", traffic.ping_stream(address, interval_s=INTERVAL_S))
        return _Running(case, pings, begun)

    def _watch(self, wanted: Sequence[_Running], within: float, *, also: Sequence[_Running], whole: bool = False) -> None:
        """See when `wanted` and `also` become direct, until `wanted` have been for a while, or (`whole`: and not before) `within` seconds are over."""
        watched = list(dict.fromkeys([*wanted, *also]))

        def settled() -> bool:
            self._look(watched)
            now = time.monotonic()
            return not whole and all(running.direct_s is not None and now >= running.begun + running.direct_s + AFTER_SWITCH_S for running in wanted)

        with contextlib.suppress(TimedOutError):
            eventually(settled, within, "direct paths")

    def _look(self, watched: Sequence[_Running]) -> None:
        """Note which have become direct at both ends."""
        waiting = [running for running in watched if running.direct_s is None]
        paths = {name: self._paths_of(name) for name in {name for running in waiting for name in (running.case.one, running.case.other)}}
        now = time.monotonic()
        for running in waiting:
            one, other = running.case.one, running.case.other
            if (paths[one].get(other), paths[other].get(one)) == ("direct", "direct"):
                running.direct_s = now - running.begun

    def _paths_of(self, name: str) -> dict[str, object]:
        peers = self.nodes[name].status().get("peers")
        return {peer["name"]: peer["path"] for peer in peers} if isinstance(peers, list) else {}

    def _end(self, running: _Running) -> Result:
        case = running.case
        paths = self.nodes[case.one].path_to(case.other), self.nodes[case.other].path_to(case.one)
        report = running.pings.result()
        return Result(case, running.first_reply_s, running.direct_s, paths, int(traffic.number(report, "sent")), len(traffic.numbers(report, "lost")))


def _first_reply(pings: Task) -> float | None:
    try:
        event = pings.next_event(FIRST_REPLY_WITHIN_S)
    except TimedOutError:
        return None
    return None if event is None else traffic.number(event, "first_reply_s")


@contextlib.contextmanager
def matrix(program: Program, cases: Sequence[Case]) -> Iterator[Matrix]:
    """A lab with all that these cases need, up."""
    with Lab() as lab:
        server = Server(lab.public_host("server"), program)
        server.start()
        made = Matrix(lab, server, cases)
        made.prepare(program)
        yield made


def markdown(results: Sequence[Result]) -> str:
    """The results as a table."""
    lines = ["| pair | first reply | direct after | by | path at the end | lost | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for result in results:
        first, direct = ("" if value is None else f"{value:.2f} s" for value in (result.first_reply_s, result.direct_s))
        end = " / ".join(map(str, dict.fromkeys(result.paths)))
        way = "relay" if result.case.meeting is Meeting.NONE else result.case.meeting.value
        lines.append(f"| {result.case} | {first} | {direct} | {way} | {end} | {result.lost} of {result.sent} | {'' if result.as_expected else 'wrong'} |")
    return "\n".join(lines)


def run(quick: bool = False) -> list[Row]:
    """Print the whole table; return rows of what it comes to. `quick` is the same: it takes two minutes."""
    with matrix(program(), all_cases()) as made:
        results = made.run()
    print(markdown(results), flush=True)
    right = sum(result.as_expected for result in results)
    first = max(math.inf if result.first_reply_s is None else result.first_reply_s for result in results)
    punched = max(math.inf if result.direct_s is None else result.direct_s for result in results if result.case.meeting is Meeting.PUNCHING)
    lost = sum(result.lost for result in results)
    return [
        Row("pairs of kinds of NAT with the path that they allow", f"{right} of {len(results)}", "all", right / len(results), False),
        Row("…longest wait for a first reply", f"{first:.2f} s", f"≤ {FIRST_REPLY_TARGET_S:g} s", first / FIRST_REPLY_TARGET_S, True),
        Row("…longest until direct by punching", f"{punched:.2f} s", f"≤ {PUNCHED_TARGET_S:g} s", punched / PUNCHED_TARGET_S, True),
        Row("…pings lost on the way", f"{lost} of {sum(result.sent for result in results)}", "0", math.inf if lost else 0.0, True),
    ]


if __name__ == "__main__":
    print_table(run())
    sys.exit(0)
