"""One relay connection: the key is proved (calnet.wire.relay), then frames are read and sent by a task each, and silence is judged.

Error contract. A frame that does not parse ends its connection with the reason MALFORMED, and no other. Nothing is changed for a key before its proof holds.
"""

from __future__ import annotations

import asyncio
import logging

from calnet.crypto.keys import PrivateKey, RandomBytes
from calnet.errors import CalnetError, RemoteError, UnreachableError
from calnet.roles.server.connection import CLOSE_NORMAL, CLOSE_POLICY, CLOSE_PROTOCOL, Connection
from calnet.roles.server.relay_hub import RelayClient, RelayHub
from calnet.wire import relay
from calnet.wire.relay import Reason

log = logging.getLogger(__name__)


async def serve_relay(hub: RelayHub, connection: Connection, random: RandomBytes) -> None:
    """Run an accepted connection to its end."""
    try:
        async with asyncio.timeout(hub.timing.handshake_s):
            client = await _open(hub, connection, random)
    except TimeoutError:
        await connection.close(CLOSE_POLICY, "no proof of a node key came in time")
    except UnreachableError:
        pass
    except CalnetError as error:
        await connection.close(CLOSE_PROTOCOL, str(error))
    else:
        if client is not None:
            await _run(hub, client, connection, random)


async def _open(hub: RelayHub, connection: Connection, random: RandomBytes) -> RelayClient | None:
    """The admitted client; None where it was refused and told why."""
    channel = relay.server_channel(hub.registry.control_key, PrivateKey.generate(random))
    answer = channel.receive_handshake(await connection.receive())
    if answer is not None:
        await connection.send(answer)
    key = relay.check_proof(channel, await connection.receive())
    connection.authenticated()
    admitted = hub.admit(key)
    if isinstance(admitted, RelayClient):
        try:
            await connection.send(relay.verdict(channel, Reason.WELCOME))
        except BaseException:
            hub.leave(admitted)
            raise
        return admitted
    reason, text = admitted
    await connection.send(relay.verdict(channel, reason, text))
    await connection.close(CLOSE_POLICY, text)
    return None


async def _run(hub: RelayHub, client: RelayClient, connection: Connection, random: RandomBytes) -> None:
    session = _Session(hub, client, connection, random)
    tasks = [asyncio.create_task(part) for part in (session.read(), session.write(), session.keep())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hub.leave(client)
        if not tasks[1].done():
            # The writer sends the reason that `leave` or an error left, if the connection takes it.
            await asyncio.wait(tasks[1:2], timeout=hub.timing.drain_s)
        for task in tasks:
            task.cancel()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(error, Exception) and not isinstance(error, CalnetError):
                log.error("relay_session_failed node=%s", client.node, exc_info=error)
        await connection.close(CLOSE_NORMAL, client.closing[1] if client.closing else "")


class _Session:
    """The three tasks of one connection. The reader and the keeper return once the client is closing; the writer ends with the CLOSE frame."""

    def __init__(self, hub: RelayHub, client: RelayClient, connection: Connection, random: RandomBytes) -> None:
        self._timing = hub.timing
        self._client = client
        self._connection = connection
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._sent_at = self._loop.time()

    async def read(self) -> None:
        receive, take, clock = self._connection.receive, self._client.take_frame, self._loop.time
        try:
            while self._client.closing is None:
                frame = await receive()
                self._heard_at = clock()
                take(frame)
        except RemoteError as error:
            self._client.close(Reason.MALFORMED, str(error))

    async def write(self) -> None:
        client, send, clock = self._client, self._connection.send, self._loop.time
        while True:
            frames = client.take_frames()
            for frame in frames:
                await send(frame)
            if frames:
                self._sent_at = clock()
                if client.closing is None or frames[-1][0] != relay.FrameKind.CLOSE:
                    continue
                return
            client.wake.clear()
            await client.wake.wait()

    async def keep(self) -> None:
        timing, client = self._timing, self._client
        while client.closing is None:
            now = self._loop.time()
            if now - self._heard_at >= timing.relay_silence_s:
                client.close(Reason.SILENT, f"nothing was heard for {timing.relay_silence_s:.0f} s")
                return
            if now - self._sent_at >= timing.relay_keepalive_s:
                client.ping(self._random(relay.TOKEN_SIZE))
            due = min(self._sent_at + timing.relay_keepalive_s, self._heard_at + timing.relay_silence_s)
            await asyncio.sleep(max(timing.relay_keepalive_s / 4, due - now))
