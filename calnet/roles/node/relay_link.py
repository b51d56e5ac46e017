"""The node's one relay connection, and its change of key without a gap.

A renewed node key is proved by a second connection beside the first, some seconds later, when the peers that are online know the key: the relay lets the new
one take the old one's place in one step, so nothing is lost between. Until then the old key serves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.model import Buffer
from calnet.roles.node.escape import shown
from calnet.roles.node.relay_client import RelayClient
from calnet.roles.node.underlay import Dial

log = logging.getLogger(__name__)

CHANGE_KEY_AFTER_S: Final = 5.0
"""Peers hear of a new key within the server's 250 ms and their connection's delay."""


class RelayUser(Protocol):
    """What the daemon hears. No call may block."""

    def relay_changed(self, connected: bool) -> None:
        """The relay can be used now, or no more."""

    def relayed(self, sender: bytes, datagrams: list[memoryview]) -> None:
        """Datagrams of the peer with this node key, in order. The views are valid during the call."""


class _Leg:
    """One client with its task; says whose events are whose."""

    def __init__(self, link: RelayLink, key: PrivateKey, client: Callable[[_Leg], RelayClient]) -> None:
        self.link, self.key = link, key
        self.client = client(self)
        self.task = asyncio.create_task(self.client.run())
        self.task.add_done_callback(link.leg_ended)

    def stop(self) -> None:
        """End it now; told to the client too, as a connection that breaks at this moment would swallow the cancel."""
        self.client.end_with_connection()
        self.task.cancel()

    def relay_connected(self, connected: bool, reason: str) -> None:
        self.link.leg_changed(self, connected, reason)

    def relay_stalled(self) -> None:
        self.link.leg_stalled(self)

    def relayed(self, sender: bytes, datagrams: list[memoryview]) -> None:
        self.link.user.relayed(sender, datagrams)


class RelayLink:
    """See the module's docstring. `use` says what should stand, `stop` that nothing should."""

    def __init__(self, user: RelayUser, *, dial: Dial, random: RandomBytes, clock: Callable[[], float], change_key_after: float = CHANGE_KEY_AFTER_S) -> None:
        self.user = user
        self._dial, self._random, self._clock, self._change_key_after = dial, random, clock, change_key_after
        self._url, self._server_key = "", b""
        self._leg: _Leg | None = None
        self._next: _Leg | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled = False
        """The successor is there because the connection gave no sign of life, or leads from elsewhere: should that end, nothing serves."""
        self._down_since: float | None = None
        self.reason = ""

    @property
    def connected(self) -> bool:
        """Whether it can be used now."""
        return self._leg is not None and self._leg.client.connected

    def use(self, url: str, server_key: bytes, node_key: PrivateKey) -> None:
        """Be connected to `url` (empty: to none) with this key."""
        if (url, server_key) != (self._url, self._server_key):
            self.stop()
            self._url, self._server_key = url, server_key
        if not url:
            return
        if self._leg is None:
            self._down_since = self._clock()
            self._leg = self._new_leg(node_key)
        elif (self._next or self._leg).key.public != node_key.public and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._change_key_after, self._change_key, node_key)

    def _change_key(self, node_key: PrivateKey) -> None:
        self._timer = None
        self._make_successor(node_key)

    def _make_successor(self, node_key: PrivateKey) -> None:
        """In place of the one that is under way, if there is one."""
        if self._next is not None:
            self._next.stop()
        if self._leg is not None:
            self._leg.client.end_with_connection()  # it would take its place back from the successor
        self._next = self._new_leg(node_key)

    def _new_leg(self, node_key: PrivateKey) -> _Leg:
        return _Leg(
            self, node_key, lambda leg: RelayClient(self._url, self._server_key, node_key, dial=self._dial, events=leg, random=self._random, clock=self._clock)
        )

    def leg_stalled(self, leg: _Leg) -> None:
        """A connection gives no sign of life. It goes on, in case it does, until a second one takes its place."""
        if leg is self._leg and self._next is None:
            log.warning("relay_stalled url=%s", shown(self._url))
            self._stalled = True
            self._make_successor(leg.key)

    def leg_changed(self, leg: _Leg, connected: bool, reason: str) -> None:
        """A client's event. The successor is the one as soon as it is connected, or the old connection ends: the relay says the latter a moment earlier."""
        if self._next is not None and (leg is self._next) == connected:
            if self._leg is not None:
                self._leg.stop()
            self._leg, self._next = self._next, None
            stalled, self._stalled = self._stalled, False
            if not connected and not stalled:
                return
            leg = self._leg
        if leg is not self._leg:
            return
        if connected:
            log.info("relay_connected url=%s", shown(self._url))
            self._down_since = None
        else:
            if self._down_since is None or reason != self.reason:
                log.warning("relay_lost error=%s", shown(reason, 400))
            self._down_since = self._down_since or self._clock()
        self.reason = reason
        self.user.relay_changed(connected)

    def leg_ended(self, task: asyncio.Task[None]) -> None:
        """A client's task ended: cancelled, or by a defect that should have cost a connection alone."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_failed task=relay error=%r", error, exc_info=error)

    def stop(self) -> None:
        """Disconnect."""
        if self._timer is not None:
            self._timer.cancel()
        for leg in (self._leg, self._next):
            if leg is not None:
                leg.stop()
        was = self._leg is not None
        self._leg = self._next = self._timer = self._down_since = None
        self._stalled = False
        self._url, self._server_key = "", b""
        if was:
            self.user.relay_changed(False)

    def send(self, key: bytes, datagrams: Sequence[Buffer]) -> None:
        """Queue datagrams for the peer with this node key; copied."""
        if self._leg is not None:
            self._leg.client.send(key, datagrams)

    def reconnect_now(self) -> None:
        """Don't wait for a backoff: the network changed."""
        for leg in (self._leg, self._next):
            if leg is not None:
                leg.client.reconnect_now()

    def moved(self) -> None:
        """Packets leave from elsewhere, but not those of the connection: another one is made beside it at once. What was being made is made anew."""
        leg = self._leg
        if leg is None:
            return
        if self._next is not None or leg.client.connected:
            self._stalled = True
            self._make_successor((self._next or leg).key)
        else:
            leg.stop()
            self._leg = self._new_leg(leg.key)

    async def measure(self) -> float | None:
        """The round trip to the relay in seconds, or None."""
        return None if self._leg is None else await self._leg.client.measure()

    def down_s(self) -> float | None:
        """For how long it has been out of reach; None while connected or not wanted."""
        return None if self._down_since is None else self._clock() - self._down_since
