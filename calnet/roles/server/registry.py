"""The server's registry: users, pre-auth keys, nodes, their routes, names and addresses, and each node's netmap.

Every change is a plan computed on the newest snapshot by one writer thread, committed with the plans that came meanwhile in one durable transaction, and
then published: readers see exactly what the store holds. A method that changes something returns a `concurrent.futures.Future` that is done once the
change is durable (`await asyncio.wrap_future(…)`); it raises a RefusedError where the change can't be granted, StateError where the disk refuses (then
nothing was changed). Reading methods answer at once from the snapshot, on any thread. Presence (online, last seen, endpoints) is kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from ipaddress import IPv4Network
from typing import Any

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.model import ControlKey, Endpoint, Netmap, NodeId, NodeKey, Prefix, Relay
from calnet.roles.server.standing import Changed, RegisterRequest, Standing
from calnet.store.interface import Store

Json = dict[str, Any]


class Registry:
    """See the module. `clock` gives Unix seconds, `random` secure bytes."""

    control_key: PrivateKey
    """The server's control key, made at the first start."""
    prefixes: tuple[Prefix, ...]
    """The overlay: IPv4, then the ULA /64."""

    def __init__(self, store: Store, *, clock: Callable[[], float], random: RandomBytes, prefix: IPv4Network | None = None) -> None:
        """Load the store; at the first start create control key, ULA prefix and the user `admin` in one commit. `prefix` None keeps the stored one
        (100.70.0.0/24 at first); a larger one around it grows the overlay; ConfigError for any other. The registry closes the store."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish what was asked, then stop the writer and close the store."""
        raise NotImplementedError

    def subscribe(self, listener: Callable[[Changed], None]) -> None:
        """Call `listener` after each durable batch and each change of presence, on whichever thread made it (`loop.call_soon_threadsafe` in it)."""
        raise NotImplementedError

    # --- machines

    def standing(self, control_key: ControlKey) -> Standing:
        """Where the machine of this control key stands now."""
        raise NotImplementedError

    def standing_of(self, node: NodeId) -> Standing:
        """Where this node stands now; UNREGISTERED once deleted."""
        raise NotImplementedError

    def register(self, request: RegisterRequest) -> Future[Standing]:
        """Register, log in again or renew the node key. The standing is ACTIVE or PENDING (with the code to approve).

        ForbiddenError: the auth key is unknown, expired, revoked or used up, or the node is disabled. ConflictError: another machine holds the node key.
        InvalidError: a small-order key or a route that is no prefix. ExhaustedError: no address is left.
        """
        raise NotImplementedError

    def update(
        self, node: NodeId, *, hostname: str | None = None, routes: tuple[str, ...] | None = None, os: str | None = None, version: str | None = None
    ) -> Future[None]:
        """Change what a node says of itself; None leaves a value. InvalidError for a route that is no prefix."""
        raise NotImplementedError

    def logout(self, node: NodeId) -> Future[None]:
        """The node's key expires now; an ephemeral node is deleted."""
        raise NotImplementedError

    def connected(self, node: NodeId) -> None:
        """The node has a control session now."""
        raise NotImplementedError

    def disconnected(self, node: NodeId) -> None:
        """The node's (last) control session ended."""
        raise NotImplementedError

    def publish(self, node: NodeId, endpoints: tuple[Endpoint, ...]) -> None:
        """The node's candidates now."""
        raise NotImplementedError

    def netmap(self, node: NodeId, relays: tuple[Relay, ...] = (), stun: tuple[str, ...] = ()) -> Netmap:
        """The node's netmap now. Its version grows with each change of content, also across restarts; the same content gives the same version.
        NotFoundError for a node that is not active."""
        raise NotImplementedError

    def sees(self, node: NodeId, other: NodeId) -> bool:
        """Whether each is in the other's netmap (so that candidates may be passed on and relay frames exchanged)."""
        raise NotImplementedError

    def node_of_key(self, node_key: NodeKey) -> NodeId | None:
        """The active node that holds this node key, now or until its peers know the new one: who may use the relay with it."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """Unix time of the next thing `housekeeping` will find: call it then."""
        raise NotImplementedError

    def housekeeping(self) -> Future[None]:
        """Do what time brings: expire keys, forget renewed ones, delete ephemeral nodes gone for 5 minutes and pending ones gone for a day."""
        raise NotImplementedError

    # --- users: rows {id, name, role, created}

    def create_user(self, name: str) -> Future[Json]:
        """InvalidError for a name that is not DNS-safe, ConflictError for a taken one."""
        raise NotImplementedError

    def users(self) -> list[Json]:
        raise NotImplementedError

    def rename_user(self, user: str, name: str) -> Future[Json]:
        raise NotImplementedError

    def delete_user(self, user: str) -> Future[None]:
        """ConflictError while the user has nodes, or is the last owner; its keys go with it."""
        raise NotImplementedError

    # --- pre-auth keys: rows {id, user, tags, reusable, ephemeral, created, expires, used, revoked, valid}

    def create_key(
        self, *, user: str | None = None, reusable: bool = False, ephemeral: bool = False, expires_s: float = 86400.0, tags: tuple[str, ...] = ()
    ) -> Future[Json]:
        """{"key": the printable key, shown this once, "id": …}. `user` None is `admin`."""
        raise NotImplementedError

    def keys(self) -> list[Json]:
        raise NotImplementedError

    def revoke_key(self, key_id: str) -> Future[None]:
        """The key admits nobody from now on; nodes that used it stay."""
        raise NotImplementedError

    # --- nodes, named by id, name or address: rows {id, name, hostname, user, tags, addresses, os, version, online, last_seen, key_expires, disabled,
    #     pending, state, code, ephemeral, routes: {advertised, approved}, created, node_key, control_key}

    def nodes(self) -> list[Json]:
        raise NotImplementedError

    def node(self, node: str) -> Json:
        raise NotImplementedError

    def rename_node(self, node: str, name: str) -> Future[Json]:
        raise NotImplementedError

    def tag_node(self, node: str, tags: tuple[str, ...]) -> Future[Json]:
        """Replace its tags: a tagged node has no owner and its key does not expire. InvalidError for an empty list (a node can't be given back)."""
        raise NotImplementedError

    def approve_node(self, code_or_node: str, user: str | None = None) -> Future[Json]:
        """Admit a pending node, or renew the key expiry of an active or expired one. `user` None: its owner so far, else `admin`."""
        raise NotImplementedError

    def disable_node(self, node: str) -> Future[Json]:
        raise NotImplementedError

    def enable_node(self, node: str) -> Future[Json]:
        raise NotImplementedError

    def expire_node(self, node: str) -> Future[Json]:
        """Its key expires now: it has to log in again."""
        raise NotImplementedError

    def delete_node(self, node: str) -> Future[None]:
        raise NotImplementedError

    def routes(self, node: str | None = None) -> list[Json]:
        """Rows {node, name, route, advertised, approved}."""
        raise NotImplementedError

    def approve_routes(self, node: str, routes: tuple[str, ...]) -> Future[Json]:
        """InvalidError for a route that overlaps the overlay, a default route, or no unicast prefix; ConflictError where another node has it."""
        raise NotImplementedError

    def revoke_routes(self, node: str, routes: tuple[str, ...]) -> Future[Json]:
        raise NotImplementedError

    def policy(self) -> Json:
        """The policy in force, for `policy show`."""
        raise NotImplementedError
