"""Device authorization (RFC 8628) for machines that wait: one flow at the provider for each, polled as it asks, until somebody has signed in."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

from calnet.errors import CalnetError, ExhaustedError, UnreachableError
from calnet.roles.server.signin.provider import GrantEndedError, Provider, ProviderError

log = logging.getLogger(__name__)

MAX_FLOWS: Final = 256
DEFAULT_INTERVAL_S: Final = 5.0
MAX_FLOW_S: Final = 1800.0

Finished = Callable[[str, dict[str, Any]], Awaitable[None]]
"""(the machine's code, the tokens)."""


class DeviceFlows:
    """The flows that run. One event loop owns it."""

    def __init__(self, provider: Provider, finished: Finished, loop: asyncio.AbstractEventLoop) -> None:
        self._provider = provider
        self._finished = finished
        self._loop = loop
        self._flows: OrderedDict[str, tuple[str, asyncio.Task[None]]] = OrderedDict()

    async def begin(self, code: str) -> str:
        """Where the person signs in; the same while a flow of this code runs. ExhaustedError where too many do."""
        running = self._flows.get(code)
        if running is not None:
            return running[0]
        if len(self._flows) >= MAX_FLOWS:
            raise ExhaustedError("too many machines wait for a sign-in: try again later")
        flow = await self._provider.begin_device_flow()
        url = str(flow.get("verification_uri_complete") or flow.get("verification_uri") or "")
        device_code = flow.get("device_code")
        if not url.startswith(("https://", "http://")) or not url.isprintable() or not isinstance(device_code, str):
            raise UnreachableError("the sign-in provider began no device flow")
        interval, lifetime = _seconds(flow.get("interval"), DEFAULT_INTERVAL_S), min(_seconds(flow.get("expires_in"), MAX_FLOW_S), MAX_FLOW_S)
        task = self._loop.create_task(self._poll(code, device_code, interval, lifetime))
        self._flows[code] = url, task
        task.add_done_callback(lambda _: self._flows.pop(code, None))
        return url

    def close(self) -> None:
        """End all flows."""
        for _, task in list(self._flows.values()):
            task.cancel()

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


def _seconds(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 86_400 else default
