"""Whether gigabytes arrive byte by byte as they were sent, in each way that the data path has: python -m bench.exact [--quick] [--gigabytes N].

Over one veth pair: plain packets, chunks, chunks under AES-256-GCM; whole, then with every hundredth packet lost and no offloads on the wire (a tenth of
it). The sender makes blocks that never repeat, both ends hash them, and memory of the tunnel's programs is read before and after. Prints JSON lines, then a
table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import textwrap
import time
from typing import Final

from bench.table import Row, print_table
from bench.tunnel_lab import OVERLAY, End, Lab
from calnet.errors import CalnetError, HostError
from calnet.tunnel.capabilities import AES, CHUNKS

MTU: Final = 1420
GIGABYTES, QUICK_GIGABYTES = 10.0, 0.2
WAYS: Final = {"plain packets": (), "chunks": (CHUNKS,), "chunks, AES": (CHUNKS, AES)}
PORT: Final = "5001"
GROWN_MB: Final = 4
"""A process may have grown by so much."""

RECEIVER = textwrap.dedent(
    """
    import hashlib, socket, sys
    with socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        digest, size, buffer = hashlib.blake2b(), 0, memoryview(bytearray(1 << 20))
        with connection:
            while count := connection.recv_into(buffer):
                digest.update(buffer[:count])
                size += count
        print(size, digest.hexdigest(), flush=True)
    """
)
SENDER = textwrap.dedent(
    """
    import hashlib, os, socket, sys
    block, digest = bytearray(os.urandom(1 << 20)), hashlib.blake2b()
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as connection:
        for number in range(int(sys.argv[3])):
            block[number % 1000 : number % 1000 + 8] = number.to_bytes(8, "big")
            digest.update(block)
            connection.sendall(block)
    print(int(sys.argv[3]) << 20, digest.hexdigest())
    """
)


def transfer(source: End, target: End, address: str, megabytes: int, timeout_s: float = 3600.0) -> bool:
    """Whether so many MiB arrive as they were sent. HostError where the receiver can't listen."""
    receiver = target.start(sys.executable, "-IS", "-c", RECEIVER, address, PORT)
    try:
        assert receiver.stdout is not None
        if receiver.stdout.readline().strip() != "listening":
            raise HostError(f"nothing can listen on {address}")
        sent = source.run(sys.executable, "-IS", "-c", SENDER, address, PORT, str(megabytes), timeout=timeout_s)
        return receiver.stdout.readline().split() == sent.split()
    finally:
        receiver.kill()
        receiver.communicate()


def run(quick: bool = False, gigabytes: float | None = None) -> list[Row]:
    """All ways; a row for each, and one for memory."""
    whole = int((gigabytes or (QUICK_GIGABYTES if quick else GIGABYTES)) * 1000)
    rows, grown = [], 0.0
    with Lab(prefix="exa", mtu=MTU) as lab:
        for name, capabilities in WAYS.items():
            one, two = lab.start_calnet("a", capabilities=capabilities), lab.start_calnet("b", capabilities=capabilities)
            transfer(one, two, OVERLAY["b"][0], 64)
            before = max(one.memory_mb(), two.memory_mb())
            for lossy in (False, True):
                megabytes = whole // 10 if lossy else whole
                with lab.without_offloads() if lossy else contextlib.nullcontext(), lab.losing(1) if lossy else contextlib.nullcontext():
                    began = time.monotonic()
                    equal = transfer(one, two, OVERLAY["b"][lossy], megabytes) and (lossy or transfer(two, one, OVERLAY["a"][1], megabytes // 10))
                    seconds = time.monotonic() - began
                print(
                    json.dumps({"bench": "exact", "way": name, "lossy": lossy, "megabytes": megabytes, "equal": equal, "seconds": round(seconds, 1)}),
                    flush=True,
                )
                what = f"{megabytes / 1000:g} GB arrive as sent: {name}{', 1 % loss' if lossy else ''}"
                rows.append(Row(what, "yes" if equal else "NO", "yes", 1.0 if equal else 2.0, at_most=True))
            grown = max(grown, max(one.memory_mb(), two.memory_mb()) - before)
            lab.stop()
    rows.append(Row("memory of an end grows over all of it", f"{grown:.1f} MB", f"≤ {GROWN_MB} MB", max(0.0, grown) / GROWN_MB, at_most=True))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.exact", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_GIGABYTES} GB a way")
    parser.add_argument("--gigabytes", type=float)
    args = parser.parse_args()
    try:
        print_table(run(args.quick, args.gigabytes))
    except (CalnetError, RuntimeError, subprocess.SubprocessError) as failure:
        print(f"bench exact failed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
