"""Telling the service manager how we stand (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(text: str) -> None:
    """Send `text` (`READY=1`, say) to the service manager that started us; nothing happens where there is none."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.sendto(text.encode(), address)
