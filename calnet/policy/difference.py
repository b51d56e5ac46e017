"""Who would gain and who would lose what, were another policy to hold. Pure.

Places (a node, one of its addresses where they fare differently, a part of what it routes) that both policies treat alike are one class: the comparison
costs as much as there are pairs of classes, and says each thing once. Whether two nodes are one user's is a question for the pair, not for the class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from calnet.model import Address, Prefix, UserId
from calnet.policy.document import Permit, Policy
from calnet.policy.engine import PolicyNode
from calnet.policy.explain import End, decide_builtin, is_target, source_of
from calnet.policy.selectors import PROTOCOL_NAMES, WITH_PORTS, Selector, Service

Access = dict[int, list[tuple[int, int]]]
"""Protocol → ranges of ports (0 to 65535 for a protocol without); OTHER stands for all protocols that no rule of the two policies names."""

OTHER: Final = -1
_ALL_PORTS: Final = [(0, 65_535)]
ANY, OWN, OTHERS = "any", "own", "others"
"""Values of `Shift.between`."""


@dataclass(frozen=True, slots=True)
class Shift:
    """These sources gain (or lose) these services at each of these destinations.

    Both are names: a node's, `NODE (ADDRESS)`, `PREFIX via NODE`; where all nodes of a kind are meant `all nodes`, `all tagged nodes`, `all users' nodes`, a
    tag, or a user. `between` OWN: only where both ends are of one user; OTHERS: only where they are not. A node does not stand against itself.
    """

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    services: tuple[str, ...]
    between: str = ANY


@dataclass(frozen=True, slots=True)
class Difference:
    """All that a change of policy changes on the nodes there are."""

    gained: tuple[Shift, ...]
    lost: tuple[Shift, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Addresses that both policies treat alike: the ends hold one for each family."""

    label: str
    ends: tuple[End, ...]
    keys: tuple[_Keys, ...]
    """By each of the two policies."""

    @property
    def node(self) -> PolicyNode:
        return self.ends[0].node

    @property
    def owner(self) -> UserId | None:
        return None if self.node.tagged or self.ends[0].routed else self.node.user


_Keys = tuple[tuple[bool, ...], tuple[bool, ...]]


def difference(old: Policy | None, new: Policy | None, nodes: Iterable[PolicyNode]) -> Difference:
    """From `old` to `new` (None: the built-in policy)."""
    nodes = sorted(nodes, key=lambda node: node.id)
    views = (_View(old), _View(new))
    protocols = tuple(sorted(set(PROTOCOL_NAMES).union(*(view.protocols() for view in views))))
    places = [place for node in nodes for place in _places(node, views)]
    words = _Words(places)
    gained, lost = _Shifts(words, protocols), _Shifts(words, protocols)
    sources, targets = (_classes(places, number) for number in (0, 1))
    for sending in sources:
        for receiving in targets:
            samples = list(_samples(sending, receiving))
            accesses = [[view.access(source, target, protocols) for view in views] for _, source, target in samples]
            kinds = [between for between, _, _ in samples]
            gained.add(sending, receiving, kinds, [minus(after, before) for before, after in accesses])
            lost.add(sending, receiving, kinds, [minus(before, after) for before, after in accesses])
    return Difference(gained.joined(), lost.joined())


class _View:
    """What one policy makes of ends. A selector that stands in many rules is asked once."""

    def __init__(self, policy: Policy | None) -> None:
        self._permits: Sequence[Permit] | None = None if policy is None else policy.permits
        numbers: dict[Selector, int] = {}
        self._sources = [[numbers.setdefault(selector, len(numbers)) for selector in permit.sources] for permit in self._permits or ()]
        self._targets = [numbers.setdefault(target.selector, len(numbers)) for permit in self._permits or () for target in permit.targets]
        self._selectors = tuple(numbers)

    def protocols(self) -> set[int]:
        """Those that rules name."""
        return {number for permit in self._permits or () for target in permit.targets for service in target.services for number in service.protocols}

    def prefixes(self) -> set[Prefix]:
        """Those that rules tell addresses apart by."""
        return {selector.prefix for selector in self._selectors if selector.prefix is not None}

    def keys(self, end: End) -> _Keys:
        """Equal in the first for ends that are sources of the same rules, in the second for targets of the same, `autogroup:self` aside."""
        if self._permits is None:
            return (end.routed, end.node.tagged), (end.routed, end.node.tagged)
        means = [selector.means(end.node, end.address, routed=end.routed) for selector in self._selectors]
        return tuple(any(means[number] for number in numbers) for numbers in self._sources), tuple(means[number] for number in self._targets)

    def access(self, source: End, destination: End, protocols: Iterable[int]) -> Access:
        """What the source may reach of the destination."""
        found: Access = defaultdict(list)
        if self._permits is None:
            services = [Service()] if decide_builtin(source, destination).allowed else []
        else:
            permits = [permit for permit in self._permits if source_of(permit, source) is not None]
            targets = [target for permit in permits for target in permit.targets if is_target(target, source, destination)]
            services = [service for target in targets for service in target.services]
        for service in services:
            _add(found, service, protocols)
        return found


def _places(node: PolicyNode, views: Sequence[_View]) -> Iterator[_Place]:
    alike: dict[tuple[_Keys, ...], list[End]] = {}
    for address in node.addresses:
        end = End(node.name, node, address)
        alike.setdefault(tuple(view.keys(end) for view in views), []).append(end)
    for keys, ends in alike.items():
        yield _Place(node.name if len(alike) == 1 else f"{node.name} ({', '.join(str(end.address) for end in ends)})", tuple(ends), keys)
    prefixes = set().union(*(view.prefixes() for view in views))
    for route in node.routes:
        for part, address in _parts(route, prefixes):
            end = End(node.name, node, address, route)
            yield _Place(f"{part} via {node.name}", (end,), tuple(view.keys(end) for view in views))


def _parts(route: Prefix, prefixes: Iterable[Prefix]) -> Iterator[tuple[Prefix, Address]]:
    """The route, and each of the prefixes that is a part of it, with an address that is in no smaller part; those that smaller ones fill are left out."""
    inside = {prefix for prefix in prefixes if prefix.version == route.version and prefix.prefixlen > route.prefixlen and prefix.network_address in route}
    parts = sorted({route, *inside}, key=lambda part: (int(part.network_address), part.prefixlen))
    for part in parts:
        at, end = int(part.network_address), int(part.broadcast_address)
        for smaller in parts:
            if smaller.prefixlen > part.prefixlen and int(smaller.network_address) <= at <= int(smaller.broadcast_address):
                at = int(smaller.broadcast_address) + 1
        if at <= end:
            yield part, type(part.network_address)(at)


def _classes(places: Iterable[_Place], number: int) -> list[list[_Place]]:
    """Places with the same keys of this number (0: as sources), of the same families, and users' among themselves."""
    found: dict[object, list[_Place]] = {}
    for place in places:
        families = tuple(sorted(end.address.version for end in place.ends if end.address is not None))
        found.setdefault((families, place.owner is None, tuple(keys[number] for keys in place.keys)), []).append(place)
    return list(found.values())


def _samples(sending: list[_Place], receiving: list[_Place]) -> Iterator[tuple[str, End, End]]:
    """A pair that stands for all of its kind: of one user, of different ones; of either kind where users don't come in. None for kinds that don't occur."""
    if sending[0].owner is None or receiving[0].owner is None:
        one, other = sending[0], receiving[0]
        behind = next(((one, place) for place in receiving if place.node.id != one.node.id), None)
        yield from _sample(ANY, behind or next(((place, other) for place in sending if place.node.id != other.node.id), None))
        return
    by_user: dict[UserId | None, list[_Place]] = {}
    for place in receiving:
        by_user.setdefault(place.owner, []).append(place)
    own = ((one, other) for one in sending for other in by_user.get(one.owner, [])[:2] if one.node.id != other.node.id)
    others = ((one, group[0]) for one in sending for owner, group in list(by_user.items())[:2] if owner != one.owner)
    yield from _sample(OWN, next(own, None))
    yield from _sample(OTHERS, next(others, None))


def _sample(between: str, pair: tuple[_Place, _Place] | None) -> Iterator[tuple[str, End, End]]:
    if pair is None:
        return
    for source in pair[0].ends:
        for target in pair[1].ends:
            if source.address and target.address and source.address.version == target.address.version:
                yield between, source, target
                return


# --- words


class _Words:
    """Names for sets of places: short ones where all nodes of a kind are in it."""

    def __init__(self, places: Iterable[_Place]) -> None:
        names: dict[str, set[str]] = defaultdict(set)
        for place in places:
            if not place.ends[0].routed:
                for kind in _kinds(place.node):
                    names[kind].add(place.label)
        self._kinds = {kind: frozenset(labels) for kind, labels in names.items() if len(labels) > 1}

    def of(self, places: Iterable[_Place]) -> tuple[str, ...]:
        """The names, in the order of the places."""
        left = {place.label: place for place in places}
        found: list[str] = []
        for place in list(left.values()):
            kind = next((kind for kind in _kinds(place.node) if self._kinds.get(kind, frozenset()) and self._kinds[kind] <= left.keys()), None)
            if place.label not in left or place.ends[0].routed or kind is None:
                continue
            found.append(kind)
            for label in self._kinds[kind]:
                del left[label]
        return (*found, *left)


def _kinds(node: PolicyNode) -> tuple[str, ...]:
    """Of the widest to the narrowest."""
    if node.tagged:
        return "all nodes", "all tagged nodes", *node.tags
    return "all nodes", "all users' nodes", *node.user_names[:1]


class _Shifts:
    """Gathers shifts; those that differ in one thing alone become one."""

    def __init__(self, words: _Words, protocols: tuple[int, ...]) -> None:
        self._words, self._protocols = words, protocols
        self._found: dict[tuple[tuple[str, ...], str, int], tuple[list[_Place], dict[str, _Place]]] = {}

    def add(self, sending: list[_Place], receiving: list[_Place], kinds: list[str], accesses: list[Access]) -> None:
        """What pairs of each kind that occurs gain, or lose; where that is the same, it is said once."""
        if all(access == accesses[0] for access in accesses):
            kinds, accesses = [ANY], accesses[:1]
        for between, access in zip(kinds, accesses, strict=False):
            if not access:
                continue
            _, targets = self._found.setdefault((access_texts(access, self._protocols), between, id(sending)), (sending, {}))
            targets.update((place.label, place) for place in receiving)

    def joined(self) -> tuple[Shift, ...]:
        """As few as are left when sources with the same destinations are one."""
        same: dict[tuple[tuple[str, ...], str, tuple[str, ...]], tuple[list[_Place], list[_Place]]] = {}
        for (services, between, _), (sending, targets) in self._found.items():
            sources, _ = same.setdefault((services, between, tuple(targets)), ([], list(targets.values())))
            sources += sending
        return tuple(Shift(self._words.of(sources), self._words.of(targets), services, between) for (services, between, _), (sources, targets) in same.items())


# --- what is reached


def _add(access: Access, service: Service, protocols: Iterable[int]) -> None:
    ranges = [(ports.first, ports.last) for ports in service.ports] or _ALL_PORTS
    for protocol in service.protocols or (*protocols, OTHER):
        if not service.ports or protocol in WITH_PORTS:
            access[protocol] = _merged([*access[protocol], *ranges])


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def minus(left: Access, right: Access) -> Access:
    """What of `left` is not in `right`."""
    found: Access = {}
    for protocol, ranges in left.items():
        rest = ranges
        for first, last in right.get(protocol, []):
            rest = [piece for begin, end in rest for piece in ((begin, min(end, first - 1)), (max(begin, last + 1), end)) if piece[0] <= piece[1]]
        if rest:
            found[protocol] = rest
    return found


def access_texts(access: Access, protocols: Iterable[int]) -> tuple[str, ...]:
    """`everything`, or `tcp/80,443`, `icmp` and the like."""
    if all(access.get(protocol) == _ALL_PORTS for protocol in (*protocols, OTHER)):
        return ("everything",)
    texts = []
    for protocol, ranges in sorted(access.items(), key=lambda item: (item[0] == OTHER, item[0])):
        name = "other protocols" if protocol == OTHER else PROTOCOL_NAMES.get(protocol, f"protocol {protocol}")
        ports = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
        texts.append(name if ranges == _ALL_PORTS else f"{name}/{ports}")
    return tuple(texts)
