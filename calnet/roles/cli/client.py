"""The CLI's end of the local API: one blocking request over a Unix socket."""

from __future__ import annotations

import socket

from calnet.errors import CalnetError, TimedOutError, UnreachableError, WireError
from calnet.wire import local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    OnEvent = Callable[[dict[str, object]], None]

CONNECT_TIMEOUT_S = 5.0


class NobodyThereError(UnreachableError):
    """Nobody answers on the socket at all (unlike an UnreachableError that a daemon answers with, which is about its server)."""


def request(
    path: str,
    op: str,
    args: dict[str, object],
    *,
    on_event: OnEvent | None = None,
    timeout_s: float | None = None,
    who: str = "the Calnet daemon",
) -> object:
    """The result of `op`; events go to `on_event` as they come.

    Raises the error that the other side names, NobodyThereError when nobody listens at `path` or the connection breaks, TimedOutError after
    `timeout_s` seconds without a line (None waits for ever). `who` names the other side in errors.
    """
    line = local.encode_request(op, args)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _connect(connection, path, who)
        connection.settimeout(timeout_s)
        try:
            connection.sendall(line)
            return _answer(connection, on_event, who)
        except TimeoutError:
            raise TimedOutError(f"{who} at {path} gave no answer in {timeout_s:g} s") from None
        except OSError as error:
            raise NobodyThereError(f"the connection to {who} at {path} broke: {error.strerror or error}") from None
        except WireError as error:
            raise CalnetError(f"{who} at {path} answered with {error}; is it of another version?") from None


def _connect(connection: socket.socket, path: str, who: str) -> None:
    connection.settimeout(CONNECT_TIMEOUT_S)
    try:
        connection.connect(path)
    except PermissionError:
        raise NobodyThereError(f"{who} at {path} can't be reached: this user may not open that socket; try as root") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NobodyThereError(f"{who} can't be reached at {path}: {reason}") from None


def _answer(connection: socket.socket, on_event: OnEvent | None, who: str) -> object:
    lines = local.LineBuffer()
    while True:
        data = connection.recv(65536)
        if not data:
            raise NobodyThereError(f"{who} closed the connection without an answer; its log may say why")
        for line in lines.feed(data):
            answer = local.decode_answer(line)
            if answer[0] == "error":
                raise answer[1]
            if answer[0] == "result":
                return answer[1]
            if on_event is not None:
                on_event(answer[1])
