"""Device authorization (RFC 8628) for machines that wait: one flow at the provider for each, polled as it asks, until somebody has signed in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from calnet.errors import CalnetError, ExhaustedError, UnreachableError
from calnet.roles.server.signin.provider import GrantEndedError, Provider, ProviderError
from calnet.roles.server.standing import Login

log = logging.getLogger(__name__)

MAX_FLOWS: Final = 256
DEFAULT_INTERVAL_S: Final = 5.0
MAX_FLOW_S: Final = 1800.0
MAX_URL: Final = 2048
MAX_USER_CODE: Final = 64

Finished = Callable[[str, dict[str, Any]], Awaitable[None]]
"""(the machine's code, the tokens)."""


class DeviceFlows:
    """The flows that run. One event loop owns it."""

    def __init__(self, provider: Provider, finished: Finished, loop: asyncio.AbstractEventLoop) -> None:
        self._provider = provider
        self._finished = finished
        self._loop = loop
        self._urls: dict[str, asyncio.Task[Login]] = {}
        """Of each flow that runs or is being begun."""
        self._polls: set[asyncio.Task[None]] = set()

    async def begin(self, code: str) -> Login:
        """Where the person signs in; the same while a flow of this code runs. ExhaustedError where too many do; ProviderError where the provider begins none
        for this client."""
        if code not in self._urls:
            if len(self._urls) >= MAX_FLOWS:
                raise ExhaustedError("too many machines wait for a sign-in: try again later")
            self._urls[code] = self._loop.create_task(self._begin(code))
        return await asyncio.shield(self._urls[code])  # whoever stops waiting does not end it for the others

    def close(self) -> None:
        """End all flows."""
        for task in (*self._urls.values(), *self._polls):
            task.cancel()

    async def _begin(self, code: str) -> Login:
        try:
            flow = await self._provider.begin_device_flow()
            login, device_code = login_of(flow), flow.get("device_code")
            if login is None or not isinstance(device_code, str):
                raise UnreachableError("the sign-in provider began no device flow")
        except BaseException:
            del self._urls[code]
            raise
        interval, lifetime = _seconds(flow.get("interval"), DEFAULT_INTERVAL_S), min(_seconds(flow.get("expires_in"), MAX_FLOW_S), MAX_FLOW_S)
        poll = self._loop.create_task(self._poll(code, device_code, interval, lifetime))
        self._polls.add(poll)
        poll.add_done_callback(self._polls.discard)
        poll.add_done_callback(lambda _: self._urls.pop(code))
        return login

    async def _poll(self, code: str, device_code: str, interval: float, lifetime: float) -> None:
        until = self._loop.time() + lifetime
        while self._loop.time() < until:
            await asyncio.sleep(interval)
            try:
                tokens = await self._provider.poll_device_flow(device_code)
            except GrantEndedError as error:
                log.info("device_flow_ended code=%s reason=%s", code, error)
                return
            except ProviderError as error:
                interval += 5.0 if error.error == "slow_down" else 0.0
                if error.error not in ("authorization_pending", "slow_down"):
                    log.warning("device_flow_failed code=%s reason=%s", code, error)
                    return
            except UnreachableError as error:
                log.warning("device_flow_waits code=%s reason=%s", code, error)
                interval = min(interval * 2, 60.0)
            else:
                await self._finish(code, tokens)
                return

    async def _finish(self, code: str, tokens: dict[str, Any]) -> None:
        try:
            await self._finished(code, tokens)
        except CalnetError as error:
            log.warning("device_not_admitted code=%s reason=%s", code, error)


def login_of(flow: Mapping[str, object]) -> Login | None:
    """Where the person signs in (RFC 8628 section 3.2), with the code to enter there where the URL does not have it: Entra ID gives no complete URL, and Google
    says `verification_url`. None for an answer that names no place, or no code for it."""
    complete = flow.get("verification_uri_complete") or flow.get("verification_url_complete")
    if complete:
        return Login(str(complete)) if _is_place(complete) else None
    place, user_code = flow.get("verification_uri") or flow.get("verification_url"), flow.get("user_code")
    if not _is_place(place) or not isinstance(user_code, str) or not 0 < len(user_code) <= MAX_USER_CODE or not user_code.isprintable():
        return None
    return Login(str(place), user_code)


def _is_place(url: object) -> bool:
    return isinstance(url, str) and url.startswith(("https://", "http://")) and url.isprintable() and len(url) <= MAX_URL


def _seconds(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 86_400 else default
