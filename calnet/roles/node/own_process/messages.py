"""What daemon and data path say to each other, but for relayed datagrams: MessagePack maps with the message's name under `t`. Pure.

One side speaks the calls of `Engine`, the other those of `EngineHost`. A call that is answered carries a number that its answer repeats: the answer's own
message, or `Failed` with a CalnetError's code and text. `Open` is the first of all, and answered by `Opened` or by `Failed` with number 0.

Netmaps travel as the control session's do: the first whole, then what changed, so that a change costs the data path what is new in it. Their new and changed
peers go before them in portions (`Peers`), so that packets pass while they are taken in.
Prefixes are text. `decode_…` raise WireError for anything else, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Annotated, Any, Final

import msgspec

from calnet.crypto.keys import PrivateKey
from calnet.errors import WireError
from calnet.model import Endpoint, Netmap, NodeId, Peer, Prefix
from calnet.paths.explain import View
from calnet.paths.way import Way
from calnet.roles.node.engine import Figures, Identity, Netcheck, PeerStatus, PingAnswer
from calnet.wire import netmap as netmaps
from calnet.wire.control import NetmapDelta, NetmapFull, WirePeer

PORTION: Final = 32
"""Peers in one message: they take the data path about a millisecond."""

Secret = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Message(msgspec.Struct, frozen=True, tag_field="t", tag=True):
    """Base of all messages: the class's name is its tag."""


# --- the daemon speaks ---


class Secrets(msgspec.Struct, frozen=True):
    """engine.Identity."""

    node: Secret
    discovery: Secret
    previous: Secret | None = None

    def __repr__(self) -> str:
        return "Secrets(…)"


class Open(Message, frozen=True):
    """Open TUN and UDP port. `stamps` is the file of the handshake timestamps."""

    port: int
    tun: str
    mtu: int
    stamps: str
    secrets: Secrets
    capabilities: tuple[str, ...] = ()
    debug: bool = False


class Peers(Message, frozen=True):
    """New and changed peers of the netmap that the next `Apply` brings."""

    put: tuple[WirePeer, ...]


class Apply(Message, frozen=True):
    """Another netmap or other preferences; the peers that came before in `Peers` are put into the netmap. Neither `whole` nor `change`: it is as before."""

    accept_routes: bool
    guess_ports: bool
    ways: dict[int, Way]
    whole: NetmapFull | None = None
    change: NetmapDelta | None = None


class SetClock(Message, frozen=True):
    offset: float


class SetIdentity(Message, frozen=True):
    secrets: Secrets


class RelayConnected(Message, frozen=True):
    connected: bool


class PeerCandidates(Message, frozen=True):
    peer: int
    endpoints: tuple[Endpoint, ...]


class NetworkChanged(Message, frozen=True):
    endpoints: tuple[Endpoint, ...]
    moved: bool


class StunServers(Message, frozen=True):
    endpoints: tuple[Endpoint, ...]


class MappedEndpoints(Message, frozen=True):
    endpoints: tuple[Endpoint, ...]


class ChangePort(Message, frozen=True):
    """Answer: PortChanged."""

    request: int


class Ping(Message, frozen=True):
    """Answer: Pong."""

    request: int
    peer: int
    timeout_s: float


class AskWhy(Message, frozen=True):
    """Answer: Views."""

    request: int
    peer: int
    timeout_s: float


class AskNetcheck(Message, frozen=True):
    """Answer: Netchecked."""

    request: int
    timeout_s: float


class AskStatuses(Message, frozen=True):
    """Answer: Statuses, in this order."""

    request: int
    peers: tuple[int, ...]


class AskFigures(Message, frozen=True):
    """Answer: Counted."""

    request: int


# --- the data path speaks ---


class Opened(Message, frozen=True):
    port: int
    mtu: int
    gso_max_size: int | None


class Failed(Message, frozen=True):
    request: int
    code: str
    text: str


class PortChanged(Message, frozen=True):
    request: int
    port: int


class Pong(Message, frozen=True):
    request: int
    answer: PingAnswer


class Views(Message, frozen=True):
    request: int
    here: View
    there: View | None


class Netchecked(Message, frozen=True):
    request: int
    found: Netcheck


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """engine.PeerStatus."""

    path: str
    endpoint: Endpoint | None
    rtt_s: float | None
    last_handshake_at: float | None
    rx_bytes: int
    tx_bytes: int
    carries: tuple[str, ...]
    mtu: int | None
    left: str
    cipher: str


class Statuses(Message, frozen=True):
    request: int
    standings: tuple[Standing, ...]


class Counted(Message, frozen=True):
    request: int
    figures: Figures


class SendCandidates(Message, frozen=True):
    peer: int
    endpoints: tuple[Endpoint, ...]


class PublishEndpoints(Message, frozen=True):
    endpoints: tuple[Endpoint, ...]


class PathChanged(Message, frozen=True):
    peer: int
    description: str
    endpoint: Endpoint | None


class RouterMoved(Message, frozen=True):
    prefix: str
    old: int
    new: int
    why: str


class MtuRaised(Message, frozen=True):
    mtu: int
    gso_max_size: int | None


class Health(Message, frozen=True):
    code: str
    text: str | None


FromDaemon = (
    Open
    | Peers
    | Apply
    | SetClock
    | SetIdentity
    | RelayConnected
    | PeerCandidates
    | NetworkChanged
    | StunServers
    | MappedEndpoints
    | ChangePort
    | Ping
    | AskWhy
    | AskNetcheck
    | AskStatuses
    | AskFigures
)
Answer = PortChanged | Pong | Views | Netchecked | Statuses | Counted | Failed
FromDataPath = Opened | Answer | SendCandidates | PublishEndpoints | PathChanged | RouterMoved | MtuRaised | Health

_encoder: Final = msgspec.msgpack.Encoder()
_daemon_decoder: Final = msgspec.msgpack.Decoder(FromDaemon)
_data_path_decoder: Final = msgspec.msgpack.Decoder(FromDataPath)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def decode_from_daemon(data: bytes | memoryview) -> FromDaemon:
    """What the daemon said."""
    message: FromDaemon = _decode(_daemon_decoder, data)
    return message


def decode_from_data_path(data: bytes | memoryview) -> FromDataPath:
    """What the data path said."""
    message: FromDataPath = _decode(_data_path_decoder, data)
    return message


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes | memoryview) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a message between daemon and data path: {error}") from error


def secrets_of(identity: Identity) -> Secrets:
    """engine.Identity → Secrets."""
    previous = identity.previous
    return Secrets(identity.node.secret_bytes(), identity.discovery.secret_bytes(), None if previous is None else previous.secret_bytes())


def identity_of(secrets: Secrets) -> Identity:
    """Secrets → engine.Identity."""
    return Identity(PrivateKey(secrets.node), PrivateKey(secrets.discovery), None if secrets.previous is None else PrivateKey(secrets.previous))


def told_netmap(old: Netmap | None, new: Netmap, *, accept_routes: bool, guess_ports: bool, ways: Mapping[NodeId, Way]) -> Iterator[Peers | Apply]:
    """How `Engine.apply` is told to one who has `old`."""
    before = {} if old is None else {peer.id: peer for peer in old.peers}
    put = [netmaps.wire_peer(peer) for peer in new.peers if before.get(peer.id) != peer]
    for at in range(0, len(put), PORTION):
        yield Peers(tuple(put[at : at + PORTION]))
    whole = change = None
    if old is None:
        whole = netmaps.full(new, new.version, ())
    elif old != new:
        removed = before.keys() - {peer.id for peer in new.peers}
        change = netmaps.delta(old, new, since=old.version, version=new.version, removed=tuple(sorted(removed)))
    yield Apply(accept_routes, guess_ports, {int(peer): way for peer, way in ways.items()}, whole, change)


def peers_of(message: Peers) -> list[Peer]:
    """Peers → model.Peer. WireError where a text does not parse."""
    return [netmaps.model_peer(peer) for peer in message.put]


def netmap_of(old: Netmap | None, put: Iterable[Peer], message: Apply) -> Netmap:
    """The netmap that `Apply` leads to from `old` where the peers `put` came before it, peers in order of id. WireError where it doesn't."""
    if message.whole is not None:
        made = netmaps.model_netmap(message.whole)
    elif old is None:
        raise WireError("a change of a netmap that was never told")
    else:
        made = old if message.change is None else netmaps.apply(old, message.change)
    peers = {peer.id: peer for peer in made.peers} | {peer.id: peer for peer in put}
    return replace(made, peers=tuple(peers[number] for number in sorted(peers)))


def ways_of(message: Apply) -> Mapping[NodeId, Way]:
    """By the peers' ids."""
    return {NodeId(peer): way for peer, way in message.ways.items()}


def standings_of(statuses: Sequence[PeerStatus]) -> tuple[Standing, ...]:
    """engine.PeerStatus → Standing."""
    return tuple(
        Standing(
            one.path,
            one.endpoint,
            one.rtt_s,
            one.last_handshake_at,
            one.rx_bytes,
            one.tx_bytes,
            tuple(str(prefix) for prefix in one.carries),
            one.mtu,
            one.left,
            one.cipher,
        )
        for one in statuses
    )


def status_of(standing: Standing) -> PeerStatus:
    """Standing → engine.PeerStatus."""
    return PeerStatus(
        standing.path,
        standing.endpoint,
        standing.rtt_s,
        standing.last_handshake_at,
        standing.rx_bytes,
        standing.tx_bytes,
        tuple(prefix_of(text) for text in standing.carries),
        standing.mtu,
        standing.left,
        standing.cipher,
    )


def prefix_of(text: str) -> Prefix:
    """A prefix; WireError for anything else."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise WireError(f"{text!r} is no prefix") from error
