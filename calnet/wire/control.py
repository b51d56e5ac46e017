"""The control session's messages: what a node and its server say to each other inside a `Channel`. MessagePack maps with the message's name under `t`.

A session: the server sends `Welcome`; the node sends `Register` where it has to, then `Subscribe`, and is told `NetmapFull`, `NetmapUnchanged` or
`NetmapDelta`, and deltas from then on. Requests carry a number that the answer repeats (`Registered`, `Done`, `Refused`). The node sends `Ping`
after 25 s without sending, the server after 25 s without hearing, and is answered by `Pong`; 120 s of silence is a dead session. An unknown field is
ignored; an unknown message is answered by `Refused` with request 0.

Binary values are raw; addresses, prefixes and endpoints are text; times are Unix seconds. `decode` raises WireError and nothing else.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from calnet.crypto.hash import equal, hkdf, hmac_blake2s
from calnet.crypto.keys import PrivateKey
from calnet.errors import WireError

KEEPALIVE_S: Final = 25.0
SILENCE_LIMIT_S: Final = 120.0
GATHER_S: Final = 0.25
"""Changes are gathered for at most this long before a delta; what takes access away is sent at once."""
MAX_ENDPOINTS: Final = 32
MAX_ROUTES: Final = 64
PROOF_LABEL: Final = b"calnet registration v1"

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
ShortText = Annotated[str, msgspec.Meta(max_length=255)]
Endpoints = Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=MAX_ENDPOINTS)]
RouteTexts = Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=MAX_ROUTES)]
CapabilityTexts = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=40)], ...], msgspec.Meta(max_length=16)]


class Message(msgspec.Struct, frozen=True, tag_field="t", tag=True, omit_defaults=True):
    """Base of all messages: the class's name is its tag."""


# --- the node speaks ---


class Register(Message, frozen=True):
    """Make or renew this machine's registration. `proof` is `registration_proof`'s. With a new `node_key` on a known control key it renews the node key.

    `auth_key` is the printable pre-auth key or empty: without one a new node becomes pending. Answers: Registered, State(pending), Refused.
    """

    request: int
    node_key: Key
    discovery_key: Key
    proof: Key
    hostname: ShortText
    os: ShortText = ""
    version: ShortText = ""
    auth_key: ShortText = ""
    routes: RouteTexts = ()
    capabilities: CapabilityTexts = ()


class Subscribe(Message, frozen=True):
    """Begin the netmap stream. `version` is the netmap the node holds, 0 for none. Only an active node is served; others get it once they are.

    `software` is Calnet's version (None leaves what is known) and `capabilities` the protocol extensions that the node has now: its program may have been
    replaced, by an older one too, since it registered. None of them is what a program says that knows of none.
    """

    version: int = 0
    software: ShortText | None = None
    capabilities: CapabilityTexts | None = None


class Update(Message, frozen=True):
    """Change what the node says of itself; None leaves a value as it is. Answers: Done or Refused."""

    request: int
    hostname: ShortText | None = None
    routes: RouteTexts | None = None
    os: ShortText | None = None
    version: ShortText | None = None


class Publish(Message, frozen=True):
    """The node's own candidates now (they become `Peer.endpoints` of those who see it)."""

    endpoints: Endpoints


class Candidates(Message, frozen=True):
    """Candidates of the sender for one peer, asking it to probe now. From node to server `peer` is the receiver, from server to node the sender."""

    peer: int
    endpoints: Endpoints


class HealthLine(msgspec.Struct, frozen=True):
    """One thing a node has to say of its own health."""

    code: Annotated[str, msgspec.Meta(max_length=40)]
    severity: Annotated[str, msgspec.Meta(max_length=20)]
    text: Annotated[str, msgspec.Meta(max_length=400)]


class Health(Message, frozen=True):
    """What `status` shows as the node's health now, for those who manage it."""

    lines: Annotated[tuple[HealthLine, ...], msgspec.Meta(max_length=32)] = ()


class Logout(Message, frozen=True):
    """End this machine's registration's use: its node key expires at once. Answer: Done."""

    request: int


class Ping(Message, frozen=True):
    """Keepalive, either way."""

    number: int


# --- the server speaks ---


class Welcome(Message, frozen=True):
    """First message of a session. `node` is the node this control key is registered as, 0 for none; `state` as in State."""

    server_time: float
    version: str
    node: int = 0
    state: str = "unregistered"
    code: str = ""


class State(Message, frozen=True):
    """Where this machine stands: `unregistered`, `pending` (with the approval code), `active`, `expired`, `disabled`. Sent on each change.

    `login_url` is where a person signs in for a pending machine, empty without single sign-on; `user_code` is what has to be entered there, empty where the
    URL says it.
    """

    state: str
    code: str = ""
    request: int = 0
    login_url: str = ""
    user_code: str = ""


class Registered(Message, frozen=True):
    """The registration stands. `key_expires` is null where the key does not expire."""

    request: int
    node: int
    key_expires: float | None = None


class Done(Message, frozen=True):
    """The request was carried out and is durable."""

    request: int


class Refused(Message, frozen=True):
    """The request was not carried out. `code` is a CalnetError's code, `text` its text."""

    request: int
    code: str
    text: str


class Pong(Message, frozen=True):
    """Answer to Ping, with the server's clock (0 from a node)."""

    number: int
    server_time: float = 0.0


class Bye(Message, frozen=True):
    """The server ends the session and says why. `code`: `replaced`, `deleted`, `disabled`, `expired`, `shutdown`, `protocol`."""

    code: str
    text: str = ""


# --- the netmap ---


class WirePeer(msgspec.Struct, frozen=True, omit_defaults=True):
    """model.Peer on the wire."""

    id: int
    name: str
    node_key: Key
    addresses: tuple[str, ...]
    previous_node_key: Key | None = None
    discovery_key: Key | None = None
    user: str = ""
    tags: tuple[str, ...] = ()
    os: str = ""
    routes: tuple[str, ...] = ()
    backup_routes: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    online: bool = False
    last_seen_at: float | None = None
    key_expires: float | None = None
    preshared_key: Key | None = None
    keepalive_s: int = 0
    kind: str = "calnet"
    capabilities: tuple[str, ...] = ()


class WireSelf(msgspec.Struct, frozen=True, omit_defaults=True):
    """model.SelfNode on the wire."""

    id: int
    name: str
    addresses: tuple[str, ...]
    user: str = ""
    tags: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    advertised_routes: tuple[str, ...] = ()
    key_expires: float | None = None


class WireRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """model.FilterRule on the wire; `ports` are (first, last)."""

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    protocols: tuple[int, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()


class NetmapFull(Message, frozen=True):
    """The whole netmap."""

    version: int
    self: WireSelf
    prefixes: tuple[str, ...]
    peers: tuple[WirePeer, ...] = ()
    filter: tuple[WireRule, ...] = ()
    reject: bool = False
    relays: tuple[str, ...] = ()
    stun: tuple[str, ...] = ()


class NetmapUnchanged(Message, frozen=True):
    """The netmap that the node named is current."""

    version: int


class NetmapDelta(Message, frozen=True):
    """From netmap `since` to `version`: peers put (new or changed) and removed; the other parts whole where they changed, else null."""

    since: int
    version: int
    put: tuple[WirePeer, ...] = ()
    removed: tuple[int, ...] = ()
    self: WireSelf | None = None
    prefixes: tuple[str, ...] | None = None
    filter: tuple[WireRule, ...] | None = None
    reject: bool | None = None
    relays: tuple[str, ...] | None = None
    stun: tuple[str, ...] | None = None


NodeMessage = Register | Subscribe | Update | Publish | Candidates | Health | Logout | Ping | Pong
ServerMessage = Welcome | State | Registered | Done | Refused | Ping | Pong | Bye | NetmapFull | NetmapUnchanged | NetmapDelta | Candidates

_encoder: Final = msgspec.msgpack.Encoder()
_node_decoder: Final = msgspec.msgpack.Decoder(NodeMessage)
_server_decoder: Final = msgspec.msgpack.Decoder(ServerMessage)
_netmap_decoder: Final = msgspec.msgpack.Decoder(NetmapFull)


def encode(message: Message) -> bytes:
    """The bytes of a message, for `Channel.send`."""
    return _encoder.encode(message)


def decode_from_node(data: bytes) -> NodeMessage:
    """What a node said; WireError if it is none of a node's messages."""
    message: NodeMessage = _decode(_node_decoder, data)
    return message


def decode_from_server(data: bytes) -> ServerMessage:
    """What a server said; WireError if it is none of a server's messages."""
    message: ServerMessage = _decode(_server_decoder, data)
    return message


def decode_stored_netmap(data: bytes) -> NetmapFull:
    """A `NetmapFull` alone, as a node keeps it on disk; WireError for anything else."""
    message: NetmapFull = _decode(_netmap_decoder, data)
    return message


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a message of the control protocol: {error}") from error


def registration_proof(private: PrivateKey, other_public: bytes, handshake_hash: bytes, node_key: bytes, discovery_key: bytes) -> bytes:
    """The 32-byte MAC that proves possession of the node key: keyed by DH(node key, server's control key), bound to this session by its handshake hash.

    The node passes its node private key and the server's public control key; the server its control private key and `node_key`. AuthenticationError
    for a small-order key.
    """
    (key,) = hkdf(PROOF_LABEL, private.exchange(other_public), 1)
    return hmac_blake2s(key, handshake_hash, node_key, discovery_key)


def proof_holds(proof: bytes, expected: bytes) -> bool:
    """Comparison in constant time."""
    return equal(proof, expected)
