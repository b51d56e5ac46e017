"""What a node keeps on disk: keys, server, preferences (`node.json`), the last netmap (`netmap`), handshake timestamps (handshake_log.py).

All 0600 in a 0700 directory. Writes are whole and durable on return; a file that doesn't parse is never overwritten: StateError says which and what to
do. `node.json` is precious (the machine's identity); the netmap is a copy of what the server knows, so a damaged one is set aside beside the
others and the node asks for a new one.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import msgspec

from calnet.crypto.keys import PrivateKey, RandomBytes, decode_key, encode_key
from calnet.errors import InvalidError, StateError, WireError
from calnet.files import PrivateLock, private_directory, read_private, remove_private, write_private
from calnet.host.netlink import Numbers
from calnet.model import Netmap
from calnet.roles.node.engine import Identity
from calnet.roles.node.handshake_log import HandshakeLog
from calnet.wire.netmap import decode_netmap, encode_netmap

FORMAT: Final = 1
STATE_FILE: Final = "node.json"
NETMAP_FILE: Final = "netmap"
STAMPS_FILE: Final = "stamps"
HOST_FILE: Final = "host.json"
LOCK_FILE: Final = "lock"
_NETMAP_HEADER: Final = b"calnet netmap 1\n"


@dataclass(frozen=True, slots=True)
class Keys:
    """This machine's keys. `previous` is the node key before the last renewal, while it may still be in use."""

    control: PrivateKey
    node: PrivateKey
    discovery: PrivateKey
    previous: PrivateKey | None = None

    @classmethod
    def generate(cls, random: RandomBytes) -> Keys:
        return cls(PrivateKey.generate(random), PrivateKey.generate(random), PrivateKey.generate(random))

    def identity(self) -> Identity:
        """What the data path is to know of them."""
        return Identity(self.node, self.discovery, self.previous)

    def renewed(self, random: RandomBytes) -> Keys:
        """The same machine with new node and discovery keys."""
        return Keys(self.control, PrivateKey.generate(random), PrivateKey.generate(random), self.node)


@dataclass(frozen=True, slots=True)
class Pin:
    """A peer whose key may not change: whatever has this id, name or one of these addresses must have this node key."""

    id: int
    name: str
    addresses: tuple[str, ...]
    node_key: bytes


@dataclass(frozen=True, slots=True)
class Prefs:
    """What the user asked for."""

    want_up: bool = False
    hostname: str = ""
    """Empty: the machine's."""
    advertise_routes: tuple[str, ...] = ()
    accept_routes: bool = False
    operator: str = ""
    """A local user who may change things besides root."""
    port: int = 0
    """The UDP port; drawn once and kept."""
    pins: tuple[Pin, ...] = ()
    snat_routes: bool = True
    """As a router, send to advertised networks by this machine's own address; without it they need a route back to the overlay."""
    map_ports: bool = True
    """Ask the router for a port that leads to ours (port_mapping.py)."""
    ways: tuple[tuple[int, str], ...] = ()
    """(peer's id, `relay` or `direct`): what is wanted of a path instead of the best."""
    guess_ports: bool = True
    """Where a NAT gives each destination another port, find a direct path by guessing (paths/spray.py)."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """The content of `node.json`."""

    keys: Keys
    server_url: str = ""
    server_key: bytes | None = None
    """The server's pinned control key."""
    registered: bool = False
    """The server has accepted this machine's keys (or made it wait for approval) at least once."""
    logged_out: bool = False
    """`logout` was called: no registration until `login` or `up`."""
    unconfirmed: bool = False
    """The node key was renewed here, and the server has not confirmed it yet."""
    renewed_at: float = 0.0
    """Unix time at which `keys.previous` was replaced."""
    prefs: Prefs = field(default_factory=Prefs)


class _PinDocument(msgspec.Struct):
    id: int
    name: str
    addresses: list[str]
    node_key: str


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    """node.json as JSON; keys in base64."""

    format: int
    control_key: str
    node_key: str
    discovery_key: str
    previous_node_key: str | None = None
    server_url: str = ""
    server_key: str | None = None
    registered: bool = False
    logged_out: bool = False
    unconfirmed: bool = False
    renewed_at: float = 0.0
    want_up: bool = False
    hostname: str = ""
    advertise_routes: list[str] = []
    accept_routes: bool = False
    snat_routes: bool = True
    guess_ports: bool = True
    map_ports: bool = True
    ways: list[tuple[int, Literal["relay", "direct"]]] = []
    operator: str = ""
    port: int = 0
    pins: list[_PinDocument] = []


class _HostDocument(msgspec.Struct):
    tun: str
    table: int
    priority: int


def encode_state(state: NodeState) -> bytes:
    """The bytes of `node.json`."""
    keys, prefs = state.keys, state.prefs
    document = _Document(
        format=FORMAT,
        control_key=encode_key(keys.control.secret_bytes()),
        node_key=encode_key(keys.node.secret_bytes()),
        discovery_key=encode_key(keys.discovery.secret_bytes()),
        previous_node_key=None if keys.previous is None else encode_key(keys.previous.secret_bytes()),
        server_url=state.server_url,
        server_key=None if state.server_key is None else encode_key(state.server_key),
        registered=state.registered,
        logged_out=state.logged_out,
        unconfirmed=state.unconfirmed,
        renewed_at=state.renewed_at,
        want_up=prefs.want_up,
        hostname=prefs.hostname,
        advertise_routes=list(prefs.advertise_routes),
        accept_routes=prefs.accept_routes,
        snat_routes=prefs.snat_routes,
        guess_ports=prefs.guess_ports,
        map_ports=prefs.map_ports,
        ways=list(prefs.ways),  # type: ignore[arg-type]  # checked when it was set
        operator=prefs.operator,
        port=prefs.port,
        pins=[_PinDocument(pin.id, pin.name, list(pin.addresses), encode_key(pin.node_key)) for pin in prefs.pins],
    )
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def decode_state(data: bytes) -> NodeState:
    """What `encode_state` wrote. StateError, with the reason alone, for anything else."""
    try:
        document = msgspec.json.decode(data, type=_Document)
        if document.format != FORMAT:
            raise StateError(f"it has format {document.format}, and this Calnet knows format {FORMAT}: use the version that wrote it")
        return _state_of(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidError) as error:
        raise StateError(f"it does not parse: {error}") from error


def _state_of(document: _Document) -> NodeState:
    previous = document.previous_node_key
    keys = Keys(
        PrivateKey(decode_key(document.control_key)),
        PrivateKey(decode_key(document.node_key)),
        PrivateKey(decode_key(document.discovery_key)),
        None if previous is None else PrivateKey(decode_key(previous)),
    )
    prefs = Prefs(
        want_up=document.want_up,
        hostname=document.hostname,
        advertise_routes=tuple(document.advertise_routes),
        accept_routes=document.accept_routes,
        snat_routes=document.snat_routes,
        guess_ports=document.guess_ports,
        map_ports=document.map_ports,
        ways=tuple(document.ways),
        operator=document.operator,
        port=document.port,
        pins=tuple(Pin(pin.id, pin.name, tuple(pin.addresses), decode_key(pin.node_key)) for pin in document.pins),
    )
    server_key = None if document.server_key is None else decode_key(document.server_key)
    return NodeState(
        keys,
        document.server_url,
        server_key,
        registered=document.registered,
        logged_out=document.logged_out,
        unconfirmed=document.unconfirmed,
        renewed_at=document.renewed_at,
        prefs=prefs,
    )


class StateDirectory:
    """The state directory of one running daemon, locked by it. `state` is what `node.json` holds; `stamps` the handshake timestamps."""

    def __init__(self, path: Path, random: RandomBytes) -> None:
        """Open `path`, made where missing, with new keys where it holds none. StateError for a damaged file, a full disk, or another daemon on it."""
        private_directory(path)
        self.path = path
        self._lock = PrivateLock(path / LOCK_FILE, f"another daemon uses {path}: stop it, or choose another --state-dir")
        try:
            self.state = self._load_state(random)
            self.stamps = HandshakeLog(path / STAMPS_FILE)
        except StateError:
            self._lock.close()
            raise

    def close(self) -> None:
        """Give the directory up; a second call does nothing."""
        self.stamps.close()
        self._lock.close()

    def save(self, state: NodeState) -> NodeState:
        """Make `state` durable, then current. StateError: the old one still is both."""
        write_private(self.path / STATE_FILE, encode_state(state))
        self.state = state
        return state

    def save_prefs(self, prefs: Prefs) -> None:
        """`save` with other preferences."""
        if prefs != self.state.prefs:
            self.save(replace(self.state, prefs=prefs))

    def save_netmap(self, netmap: Netmap | None) -> None:
        """Keep the netmap for a start without the server; None removes it."""
        path = self.path / NETMAP_FILE
        if netmap is None:
            remove_private(path)
            return
        body = encode_netmap(netmap)
        write_private(path, _NETMAP_HEADER + zlib.crc32(body).to_bytes(4, "big") + body)

    def load_netmap(self) -> tuple[Netmap | None, Path | None]:
        """(the last netmap, None); or, where the file is damaged, (None, where it was set aside). StateError where it can't be read."""
        path = self.path / NETMAP_FILE
        data = read_private(path)
        if data is None:
            return None, None
        start = len(_NETMAP_HEADER) + 4
        body = data[start:]
        try:
            if not data.startswith(_NETMAP_HEADER) or zlib.crc32(body).to_bytes(4, "big") != data[start - 4 : start]:
                raise WireError("its checksum does not hold")
            return decode_netmap(body), None
        except WireError:
            aside = path.with_suffix(".damaged")
            try:
                os.replace(path, aside)
            except OSError as error:
                raise StateError(f"{path} is damaged and can't be set aside: {error.strerror}; move it away") from error
            return None, aside

    def record_host(self, tun: str, numbers: Numbers | None) -> None:
        """Note what is about to be set up on this machine (None: nothing stands any more), for the next start to clean after a crash."""
        path = self.path / HOST_FILE
        if numbers is None:
            remove_private(path)
        else:
            write_private(path, msgspec.json.encode(_HostDocument(tun, numbers.table, numbers.priority)))

    def recorded_host(self) -> tuple[str, Numbers] | None:
        """(interface, numbers) that a crashed daemon may have left, or None. A note that doesn't parse is worth nothing and ignored."""
        data = read_private(self.path / HOST_FILE)
        if data is None:
            return None
        try:
            note = msgspec.json.decode(data, type=_HostDocument)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return note.tun, Numbers(note.table, note.priority)

    def _load_state(self, random: RandomBytes) -> NodeState:
        path = self.path / STATE_FILE
        data = read_private(path)
        if data is None:
            fresh = NodeState(Keys.generate(random))
            write_private(path, encode_state(fresh))
            return fresh
        try:
            return decode_state(data)
        except StateError as error:
            raise StateError(f"{path} is damaged ({error}); restore it from a backup, or move it away to log in as a new machine") from None
