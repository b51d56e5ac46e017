"""A user's own network as TOML: boxes, nodes, who talks to whom, and what happens when. Pure.

    seconds = 30                    # of virtual time; seed = 1 for other luck
    [[box]]
    name = "home"                   # kind: full-cone, restricted, port-restricted, linux, symmetric, symmetric-sequential, firewall
    address = "203.0.113.1"
    kind = "linux"
    behind = "carrier"              # another box; without it, the internet. Also: udp, tcp, hairpin, latency_ms, loss, jitter_ms, timeout_s
    [[node]]
    name = "laptop"
    address = "192.168.1.2"         # or a list of them
    behind = "home"
    [[talk]]
    from = "laptop"
    to = "server"                   # every_ms = 100, both = true
    [[event]]
    at = 10                         # seconds from the start
    what = "reboot"                 # reboot, rebind, udp-off, udp-on, throttle (kbit/s of UDP, 0: all), latency (ms), loss (of a box);
                                    # sleep, offline (of a node); server-restart
    box = "home"                    # or node = "laptop"
    for = 3                         # seconds

Every mistake is a ConfigError that names it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from calnet.errors import ConfigError
from calnet.sim.internet import Box, Realm, Weather
from calnet.sim.nat import KINDS
from calnet.sim.node import Node
from calnet.sim.world import World

MAX_SECONDS: Final = 86_400.0
_BOX: Final = {"name", "address", "kind", "behind", "udp", "tcp", "hairpin", "latency_ms", "jitter_ms", "loss", "timeout_s"}
_NODE: Final = {"name", "address", "behind"}
_TALK: Final = {"from", "to", "every_ms", "both"}
_EVENT: Final = {"at", "what", "box", "node", "for", "value"}
_TOP: Final = {"seconds", "seed", "box", "node", "talk", "event"}


@dataclass
class Topology:
    """A world to run for so many seconds, its names, and its events in order: (at, text, action)."""

    world: World
    seconds: float
    nodes: dict[str, Node]
    boxes: dict[str, Box]
    talk: list[tuple[str, str, float, bool]]
    events: list[tuple[float, str, Callable[[], None]]]


def parse_topology(text: str, *, seed: int | None = None) -> Topology:
    """The topology of a TOML text; `seed` instead of its own."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"that is no TOML: {error}") from None
    _check_names("the file", document, _TOP)
    world = World(seed if seed is not None else int(_number(document, "seed", 1, 0, 2**63)))
    found = Topology(world, _number(document, "seconds", 30.0, 0.1, MAX_SECONDS), {}, {}, [], [])
    for row in _rows(document, "box", _BOX):
        _add_box(found, row)
    for row in _rows(document, "node", _NODE):
        _add_node(found, row)
    if len(found.nodes) < 2:
        raise ConfigError("name at least two nodes: [[node]]")
    for row in _rows(document, "talk", _TALK):
        pair = _known(found.nodes, row, "from", "node"), _known(found.nodes, row, "to", "node")
        if pair[0] == pair[1]:
            raise ConfigError(f"[[talk]]: {pair[0]} does not talk to itself")
        found.talk.append((*pair, _number(row, "every_ms", 100.0, 1.0, 60_000.0) / 1000, _flag(row, "both", default=True)))
    if not found.talk:
        names = list(found.nodes)
        found.talk = [(one, other, 0.1, True) for place, one in enumerate(names) for other in names[place + 1 :]]
    for row in _rows(document, "event", _EVENT):
        found.events.append(_event(found, row))
    found.events.sort(key=lambda event: event[0])
    return found


def _add_box(found: Topology, row: Mapping[str, Any]) -> None:
    name = _text(row, "name", "[[box]]")
    if name in found.boxes:
        raise ConfigError(f"there are two boxes {name}")
    kind = _text(row, "kind", f"box {name}")
    if kind not in KINDS:
        raise ConfigError(f"box {name}: kind is one of {', '.join(KINDS)}")
    four = replace(
        KINDS[kind], timeout_s=_number(row, "timeout_s", KINDS[kind].timeout_s, 1.0, 1e6), hairpin=_flag(row, "hairpin", default=KINDS[kind].hairpin)
    )
    outer = _realm(found, row)
    address = _addresses(row, f"box {name}")[0]
    if address in outer:
        raise ConfigError(f"box {name}: {address} is taken there")
    realm = found.world.site(address, four, KINDS["firewall"], outer=outer, weather=_weather(row))
    box = realm.box
    assert box is not None
    box.udp, box.tcp = _flag(row, "udp", default=True), _flag(row, "tcp", default=True)
    found.boxes[name] = box


def _add_node(found: Topology, row: Mapping[str, Any]) -> None:
    name = _text(row, "name", "[[node]]")
    if name in found.nodes:
        raise ConfigError(f"there are two nodes {name}")
    realm, addresses = _realm(found, row), _addresses(row, f"node {name}")
    for address in addresses:
        if address in realm:
            raise ConfigError(f"node {name}: {address} is taken there")
    found.nodes[name] = found.world.node(realm, *addresses)
    box = realm.box
    if box is not None and not box.four.behaviour.translates:
        for address in addresses:
            if ":" not in address:
                box.route(address)


def _event(found: Topology, row: Mapping[str, Any]) -> tuple[float, str, Callable[[], None]]:
    what, at = _text(row, "what", "[[event]]"), _number(row, "at", 0.0, 0.0, MAX_SECONDS)
    lasts = _number(row, "for", 1.0, 0.0, MAX_SECONDS)
    world = found.world
    if what == "server-restart":
        return at, f"the server is away for {lasts:g} s", lambda: world.restart_server(lasts)
    if what in ("sleep", "offline"):
        name = _known(found.nodes, row, "node", "node")
        node = found.nodes[name]
        begin, end = (node.sleep, node.wake) if what == "sleep" else (lambda: _link(node, up=False), lambda: _link(node, up=True))
        return at, f"{name}: {what} for {lasts:g} s", lambda: _for(world, lasts, begin, end)
    name = _known(found.boxes, row, "box", "box")
    box = found.boxes[name]
    value = _number(row, "value", 0.0, 0.0, 1e6)
    actions: dict[str, Callable[[], None]] = {
        "reboot": lambda: _for(world, lasts, lambda: setattr(box, "up", False), lambda: _booted(box)),
        "rebind": box.rebind,
        "udp-off": lambda: setattr(box, "udp", False),
        "udp-on": lambda: setattr(box, "udp", True),
        "throttle": lambda: box.throttle(value * 125 or None),
        "latency": lambda: setattr(box.weather, "latency_s", value / 1000),
        "loss": lambda: setattr(box.weather, "loss", min(value, 1.0)),
    }
    if what not in actions:
        raise ConfigError(f"event: what is one of {', '.join((*actions, 'sleep', 'offline', 'server-restart'))}")
    return at, f"{name}: {what}", actions[what]


def _for(world: World, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> None:
    begin()
    world.agenda.after(seconds, end)


def _link(node: Node, *, up: bool) -> None:
    node.link.outward = node.link.inward = up
    if up:
        node.network_changed()


def _booted(box: Box) -> None:
    box.up = True
    box.reboot()


def _weather(row: Mapping[str, Any]) -> Weather:
    return Weather(
        latency_s=_number(row, "latency_ms", 5.0, 0.0, 60_000.0) / 1000,
        jitter_s=_number(row, "jitter_ms", 0.0, 0.0, 60_000.0) / 1000,
        loss=_number(row, "loss", 0.0, 0.0, 1.0),
    )


def _realm(found: Topology, row: Mapping[str, Any]) -> Realm:
    return found.world.internet.public if "behind" not in row else found.boxes[_known(found.boxes, row, "behind", "box")].inner


def _rows(document: Mapping[str, Any], name: str, known: set[str]) -> Iterable[Mapping[str, Any]]:
    rows = document.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{name}: write [[{name}]] before each")
    for row in rows:
        _check_names(f"[[{name}]]", row, known)
    return rows


def _check_names(where: str, row: Mapping[str, Any], known: set[str]) -> None:
    for name in row:
        if name not in known:
            raise ConfigError(f"{where}: there is no {name!r}; there are {', '.join(sorted(known))}")


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 60:
        raise ConfigError(f"{where}: {name} is a text")
    return value


def _known(names: Mapping[str, object], row: Mapping[str, Any], name: str, what: str) -> str:
    value = _text(row, name, what)
    if value not in names:
        raise ConfigError(f"{name}: there is no {what} {value!r} above")
    return value


def _number(row: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = row.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{name} is a number from {least:g} to {most:g}")
    return float(value)


def _flag(row: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = row.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is true or false")
    return value


def _addresses(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = row.get("address")
    texts = value if isinstance(value, list) and value else [value]
    try:
        return tuple(str(ip_address(text)) for text in texts if isinstance(text, str)) or _no_address(where)
    except ValueError:
        return _no_address(where)


def _no_address(where: str) -> tuple[str, ...]:
    raise ConfigError(f"{where}: address is an IP address, or a list of them")
