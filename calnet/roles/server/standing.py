"""The words of the registry's answers: what a machine asks, where it stands, and what a commit changed for whom."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from calnet.model import ControlKey, DiscoveryKey, NodeId, NodeKey


class NodeState(enum.Enum):
    """Where a machine stands; the values are those of the control session's `State` message."""

    UNREGISTERED = "unregistered"
    """No such machine, or deleted."""
    PENDING = "pending"
    """Waits for an admin's approval of its code."""
    ACTIVE = "active"
    EXPIRED = "expired"
    """Its node key expired, or it logged out: it has to log in again."""
    DISABLED = "disabled"


class Login(NamedTuple):
    """Where a person signs in for a machine that waits; no URL where that can't be done now."""

    url: str = ""
    user_code: str = ""
    """What has to be entered there, where the URL does not say it."""


NO_LOGIN = Login()


@dataclass(frozen=True, slots=True)
class Standing:
    """`node` is None for an unregistered machine; `code` is the approval code of a pending one, else empty."""

    state: NodeState
    node: NodeId | None = None
    code: str = ""
    key_expires: float | None = None


UNREGISTERED = Standing(NodeState.UNREGISTERED)


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """What a machine says when it registers; `control_key` and the possession of `node_key` were proved before. `auth_key` is empty or the printable key."""

    control_key: ControlKey
    node_key: NodeKey
    discovery_key: DiscoveryKey
    hostname: str
    os: str = ""
    version: str = ""
    routes: tuple[str, ...] = ()
    auth_key: str = ""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """What one batch of changes did, once it is durable.

    `netmaps`: nodes whose netmap may have changed. `standings`: nodes whose state changed (approved, expired, disabled, enabled, deleted, key renewed):
    send them their State, and close relay and control sessions that are no longer allowed. `urgent`: access was taken away, so tell it at once.
    """

    netmaps: frozenset[NodeId]
    standings: frozenset[NodeId]
    urgent: bool = False
