"""How soon another policy ends what it forbids: python -m bench.policy [--quick]. Real nodes behind real routers, and a TCP connection through the tunnel on
which both ends speak every few milliseconds.

Ten times (--quick: three) a policy that allows the connection is replaced by one that does not, in turn by one that leaves the nodes in each other's sight and
by one that takes them out of it. Measured from the moment the new policy is sent to the server until the last byte that arrives at either end. Prints a JSON
line for each change, then a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable
from types import TracebackType

from bench.network import pair
from bench.table import Row, print_table
from calnet.errors import TimedOutError
from calnet.roles.cli.rest import Rest
from calnet.roles.demo.product import Node, eventually

ROUNDS, QUICK_ROUNDS = 10, 3
TARGET_S = 1.0
PORT = 6200
EVERY_S = 0.003
QUIET_S = 1.5
"""A connection on which nothing arrived for so long has ended."""
LIMIT_S = 30.0
ALLOWS = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}'
FORBIDS = ('{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}', '{"acls": []}')


class Flow:
    """A TCP connection from one node to another through the tunnel, established."""

    def __init__(self, source: Node, target: Node, port: int = PORT) -> None:
        address = target.address()
        with target.host.namespace.inside():
            listener = socket.create_server((address, port))
        with listener, source.host.namespace.inside():
            here = eventually(lambda: _connected(address, port), LIMIT_S, f"a connection to {address}")
            assert here is not None
            self._here, (self._there, _) = here, listener.accept()
        for end in (self._here, self._there):
            end.setblocking(False)

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._here.close()
        self._there.close()

    def exchange(self) -> bool:
        """Say something at both ends; whether something arrived at one since the last time."""
        arrived = False
        for end in (self._here, self._there):
            with contextlib.suppress(OSError):
                end.send(b"still there?")
            with contextlib.suppress(OSError):
                arrived = bool(end.recv(65_536)) or arrived
        return arrived

    def ends_after(self, change: Callable[[], object], limit_s: float = LIMIT_S) -> float:
        """Seconds from the beginning of `change`, made while both ends speak, to the last byte that arrives. TimedOutError where they go on for `limit_s`."""
        eventually(self.exchange, LIMIT_S, "the connection carries something")
        changing = threading.Thread(target=change)
        started = last = time.monotonic()
        changing.start()
        while (now := time.monotonic()) < last + QUIET_S or changing.is_alive():
            if now > started + limit_s:
                raise TimedOutError(f"the connection went on for {limit_s:.0f} s")
            if self.exchange():
                last = now
            time.sleep(EVERY_S)
        changing.join()
        return last - started


def _connected(address: str, port: int) -> socket.socket | None:
    try:
        return socket.create_connection((address, port), timeout=1.0)
    except OSError:
        return None


def run(quick: bool = False) -> list[Row]:
    """Print a JSON line for each change."""
    took = []
    with pair() as made:
        rest = Rest(socket_path=str(made.server.socket))
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            rest.send("PUT", "/policy", {"text": ALLOWS})
            text = FORBIDS[number % len(FORBIDS)]
            with Flow(made.alice, made.bob) as flow:
                took.append(flow.ends_after(lambda text=text: rest.send("PUT", "/policy", {"text": text})))  # type: ignore[misc]
            print(json.dumps({"bench": "policy", "policy": text, "ends_s": round(took[-1], 3), "ratio": round(took[-1] / TARGET_S, 3)}), flush=True)
    slowest, median = max(took), statistics.median(took)
    return [
        Row(f"TCP connection that a new policy forbids ends, slowest of {len(took)}", f"{slowest:.3f} s", f"≤ {TARGET_S:.0f} s", slowest / TARGET_S, True),
        Row("…median", f"{median:.3f} s", f"≤ {TARGET_S:.0f} s", median / TARGET_S, True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three changes")
    print_table(run(parser.parse_args().quick))
