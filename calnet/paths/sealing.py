"""Who a discovery message is from, and sealing ours: discovery keys, node keys, and the boxes between them. Keys before a renewal still open and answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from calnet.crypto.box import BOX_NONCE_SIZE, SharedBox
from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import RemoteError
from calnet.model import DiscoveryKey, NodeId, NodeKey, Peer
from calnet.wire.discovery import DiscoveryMessage, open_message, parse_sealed, seal_message


class Identity(NamedTuple):
    """Keys of ours that belong together."""

    discovery: PrivateKey
    node_key: NodeKey


@dataclass(slots=True)
class _Keys:
    """A peer's keys, the newest first, two of each at most; `boxes` by (our public key, its key)."""

    discovery: list[DiscoveryKey]
    node: list[NodeKey]
    boxes: dict[tuple[bytes, bytes], SharedBox] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opened:
    """An authentic message: `own` is the identity of ours that it was sealed to, `theirs` the peer's key; answer with the same two.

    `length` is that of its datagram, in bytes: where the source may be forged, no answer is longer.
    """

    peer: NodeId
    message: DiscoveryMessage
    own: Identity
    theirs: DiscoveryKey
    length: int


class Sealer:
    """Holds our discovery keys and those of the peers. A peer without a discovery key, or with one of small order, is nobody here."""

    def __init__(self, identity: Identity, random: RandomBytes) -> None:
        self._random = random
        self._own = [identity]
        self._peers: dict[NodeId, _Keys] = {}
        self._owners: dict[DiscoveryKey, NodeId] = {}

    @property
    def identity(self) -> Identity:
        """What we speak as."""
        return self._own[0]

    def set_identity(self, identity: Identity) -> None:
        """Renewed keys: we speak with these, and still open and answer what is sealed to the ones before."""
        self._own = [identity, *(old for old in self._own if old.discovery.public != identity.discovery.public)][:2]

    def set_peers(self, peers: Iterable[Peer]) -> None:
        """The whole table. While a peer's previous node key counts, so does the discovery key we knew with it."""
        old = self._peers
        self._peers = {peer.id: _renewed(old.get(peer.id), peer, peer.discovery_key) for peer in peers if peer.discovery_key is not None}
        self._owners = {}
        for position in (1, 0):  # a current key outranks one that was another's before
            for number, keys in self._peers.items():
                self._owners.update((key, number) for key in keys.discovery[position : position + 1])

    def seal(self, peer: NodeId, message: DiscoveryMessage) -> bytes | None:
        """The datagram for `peer`, between the newest keys; None if it can't be spoken to."""
        keys = self._peers.get(peer)
        return None if keys is None else self._seal(keys, self._own[0], keys.discovery[0], message)

    def answer(self, to: Opened, message: DiscoveryMessage) -> bytes | None:
        """The datagram that answers `to`, between the keys that it used."""
        keys = self._peers.get(to.peer)
        return None if keys is None else self._seal(keys, to.own, to.theirs, message)

    def open(self, datagram: bytes) -> Opened | None:
        """Who sent what; None unless it is from a peer, sealed to us, and names a node key of that peer."""
        try:
            sealed = parse_sealed(datagram)
        except RemoteError:
            return None
        peer = self._owners.get(sealed.sender)
        if peer is None:
            return None
        keys = self._peers[peer]
        for own in self._own:
            try:
                message = open_message(self._box(keys, own, sealed.sender), sealed)
            except RemoteError:
                continue
            return Opened(peer, message, own, sealed.sender, len(datagram)) if message.node_key in keys.node else None
        return None

    def _seal(self, keys: _Keys, own: Identity, theirs: DiscoveryKey, message: DiscoveryMessage) -> bytes | None:
        try:
            box = self._box(keys, own, theirs)
        except RemoteError:
            return None
        return seal_message(box, own.discovery.public, self._random(BOX_NONCE_SIZE), message)

    def _box(self, keys: _Keys, own: Identity, theirs: DiscoveryKey) -> SharedBox:
        names = (own.discovery.public, theirs)
        box = keys.boxes.get(names)
        if box is None:
            box = keys.boxes[names] = SharedBox(own.discovery, theirs)
        return box


def _renewed(old: _Keys | None, peer: Peer, discovery: DiscoveryKey) -> _Keys:
    """The peer's keys now: one of each, or two while the netmap names a previous node key. Boxes are kept while the keys stay."""
    if peer.previous_node_key is None:
        keys = _Keys([discovery], [peer.node_key])
    else:
        before = [] if old is None else [key for key in old.discovery if key != discovery]
        keys = _Keys([discovery, *before[:1]], [peer.node_key, peer.previous_node_key])
    if old is not None and old.discovery == keys.discovery:
        keys.boxes = old.boxes
    return keys
