"""Two network namespaces on one veth pair, and in each one end of a tunnel: ours (bench/peer.py) or Debian's wireguard-go. Needs root.

Names carry the process's id, because wireguard-go's control sockets are shared between namespaces. Everything made here goes with `close`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from calnet.crypto.keys import PrivateKey, encode_key
from calnet.roles.node.opening import super_packet_size

ROOT = pathlib.Path(__file__).resolve().parent.parent
UNDERLAY = {"a": ("192.0.2.1", "2001:db8::1"), "b": ("192.0.2.2", "2001:db8::2")}
OVERLAY = {"a": ("10.77.0.1", "fd77::1"), "b": ("10.77.0.2", "fd77::2")}
WAIT_S = 20.0


def command(*words: str, stdin: str | None = None, timeout: float = 120.0) -> str:
    """Run a command to its end and return its stdout; CalledProcessError with its stderr in a note where it fails."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()} {done.stdout.strip()[-500:]}")
    return done.stdout


def until(condition: Callable[[], bool], what: str, bound_s: float = WAIT_S) -> None:
    """Poll until the condition holds; TimeoutError naming `what` after the bound."""
    end = time.monotonic() + bound_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {bound_s:g} s")
        time.sleep(0.02)


@dataclass
class End:
    """One end: `process` is the tunnel's program; `port` its UDP port."""

    side: str
    space: str
    device: str
    key: PrivateKey
    process: subprocess.Popen[str] | None = None
    port: int = 0
    program: str = ""

    def run(self, *words: str, stdin: str | None = None, timeout: float = 120.0) -> str:
        """A command in this end's namespace."""
        return command("ip", "netns", "exec", self.space, *words, stdin=stdin, timeout=timeout)

    def start(self, *words: str, quiet: bool = False) -> subprocess.Popen[str]:
        """A program in this end's namespace, its stdin and stdout piped; `quiet`: nothing of what it says is wanted."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.space, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def cpu_s(self) -> float:
        """CPU seconds that the tunnel's program has used."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Resident memory of the tunnel's program."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RuntimeError("not started")
        return self.process.pid


@dataclass
class Lab:
    """Ends `a` and `b`, one hop apart over IPv4 and IPv6."""

    prefix: str = "dp"
    mtu: int = 1420
    ends: dict[str, End] = field(default_factory=dict)
    files: pathlib.Path = pathlib.Path()
    """A folder for configurations and keys, gone afterwards."""

    others: list[subprocess.Popen[str]] = field(default_factory=list)
    """What else runs until `stop`."""

    def __enter__(self) -> Lab:
        self.files = pathlib.Path(tempfile.mkdtemp(prefix="calnet-bench-"))
        tag = f"{self.prefix}{os.getpid() % 100000}"
        for side in "ab":
            space = f"{tag}{side}"
            command("ip", "netns", "add", space)
            self.ends[side] = End(side, space, f"{tag}t{side}", PrivateKey.generate(os.urandom))
        spaces = [end.space for end in self.ends.values()]
        command("ip", "-n", spaces[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", spaces[1])
        for side, end in self.ends.items():
            command("ip", "-n", end.space, "link", "set", "lo", "up")
            for address, length in zip(UNDERLAY[side], (24, 64), strict=True):
                command("ip", "-n", end.space, "address", "add", f"{address}/{length}", "dev", "veth0", *(("nodad",) if ":" in address else ()))
            command("ip", "-n", end.space, "link", "set", "veth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.files, ignore_errors=True)
        for end in self.ends.values():
            with contextlib.suppress(RuntimeError):
                command("ip", "netns", "delete", end.space)

    def also(self, end: End, *words: str) -> subprocess.Popen[str]:
        """Run one more program in an end's namespace."""
        self.others.append(end.start(*words, quiet=True))
        return self.others[-1]

    def stop(self) -> None:
        """End all programs; the namespaces stay."""
        while self.others:
            other = self.others.pop()
            other.terminate()
            other.communicate(timeout=20)
        for end in self.ends.values():
            if end.process is not None:
                end.process.terminate()
                try:
                    end.process.wait(10)
                except subprocess.TimeoutExpired:
                    end.process.kill()
                    end.process.wait()
                for pipe in (end.process.stdin, end.process.stdout):
                    if pipe is not None:
                        pipe.close()
                end.process = None
                until(lambda end=end: not has_link(end), f"{end.device} gone")  # type: ignore[misc]

    @contextlib.contextmanager
    def without_offloads(self) -> Iterator[None]:
        """The wire like one between cards without segmentation offload."""
        features = ("tso", "gso", "tx-udp-segmentation")
        try:
            for end in self.ends.values():
                end.run("ethtool", "-K", "veth0", *(word for feature in features for word in (feature, "off")))
            yield
        finally:
            for end in self.ends.values():
                end.run("ethtool", "-K", "veth0", *(word for feature in features for word in (feature, "on")))

    @contextlib.contextmanager
    def losing(self, percent: int) -> Iterator[None]:
        """Packets are lost by chance as they arrive, at both ends."""
        rules = (
            "table inet loss {\n  chain arrive {\n    type filter hook input priority raw; policy accept;\n"
            f'    iifname "veth0" numgen random mod 100 < {percent} drop\n  }}\n}}\n'
        )
        try:
            for end in self.ends.values():
                end.run("nft", "-f", "-", stdin=rules)
            yield
        finally:
            for end in self.ends.values():
                end.run("nft", "delete", "table", "inet", "loss")

    def other(self, end: End) -> End:
        return self.ends["b" if end.side == "a" else "a"]

    def start_calnet(
        self, side: str, *, knows_endpoint: bool = True, ipv6: bool = False, psk: bytes | None = None, capabilities: tuple[str, ...] = (), **settings: object
    ) -> End:
        """Our end, knowing the other's endpoint or not (then it only answers). The other end must have a port already, or be given one later."""
        end = self.ends[side]
        peer = self.other(end)
        document = {
            "tun": end.device,
            "mtu": self.mtu,
            "port": end.port,
            "capabilities": capabilities,
            "private_key": base64.b64encode(end.key.secret_bytes()).decode(),
            "self": {"id": 1, "addresses": OVERLAY[side]},
            "peers": [
                {
                    "id": 2,
                    "node_key": encode_key(peer.key.public),
                    "addresses": OVERLAY[peer.side],
                    "endpoint": self.endpoint(peer, ipv6) if knows_endpoint else None,
                    "psk": base64.b64encode(psk).decode() if psk else None,
                    "capabilities": capabilities,
                }
            ],
            **settings,
        }
        end.program = "calnet"
        end.process = end.start(sys.executable, "-IS" if os.environ.get("CALNET_BENCH_ISOLATED") else "-B", str(ROOT / "bench" / "peer.py"))
        assert end.process.stdin is not None
        assert end.process.stdout is not None
        end.process.stdin.write(json.dumps(document) + "\n")
        end.process.stdin.flush()
        words = end.process.stdout.readline().split()
        if words[:1] != ["ready"]:
            raise RuntimeError("our end did not start")
        end.port = int(words[1])
        self._bring_up(end)
        end.run("ip", "link", "set", end.device, "gso_max_size", str(super_packet_size(self.mtu)))
        return end

    def start_wireguard_go(self, side: str, *, knows_endpoint: bool = True, ipv6: bool = False, psk: bytes | None = None, program: str = "wireguard-go") -> End:
        """Debian's wireguard-go, or another build of it."""
        end = self.ends[side]
        peer = self.other(end)
        end.program = "wireguard-go"
        end.process = end.start(program, "-f", end.device, quiet=True)
        until(lambda: pathlib.Path(f"/var/run/wireguard/{end.device}.sock").exists() and has_link(end), "wireguard-go")
        port = ("listen-port", str(end.port)) if end.port else ()
        with _secret(base64.b64encode(end.key.secret_bytes()).decode()) as path:
            end.run("wg", "set", end.device, "private-key", path, *port)
        end.port = int(end.run("wg", "show", end.device, "listen-port"))
        self.set_wireguard_peer(end, peer, knows_endpoint=knows_endpoint, ipv6=ipv6, psk=psk)
        self._bring_up(end)
        return end

    def set_wireguard_peer(self, end: End, peer: End, *, knows_endpoint: bool, ipv6: bool = False, psk: bytes | None = None) -> None:
        """Add `peer` to a wireguard-go end."""
        words = ["wg", "set", end.device, "peer", encode_key(peer.key.public), "allowed-ips", ",".join(OVERLAY[peer.side])]
        if knows_endpoint:
            words += ["endpoint", self.endpoint(peer, ipv6)]
        with _secret(base64.b64encode(psk or bytes(32)).decode()) as path:
            end.run(*words, "preshared-key", path)

    def endpoint(self, end: End, ipv6: bool) -> str:
        """Where `end` listens (a fixed port, if it doesn't run yet)."""
        if not end.port:
            end.port = 41000 + (end.side == "b")
        return f"[{UNDERLAY[end.side][1]}]:{end.port}" if ipv6 else f"{UNDERLAY[end.side][0]}:{end.port}"

    def _bring_up(self, end: End) -> None:
        other = self.other(end)
        end.run("ip", "link", "set", end.device, "mtu", str(self.mtu), "up")
        for own, peer in zip(OVERLAY[end.side], OVERLAY[other.side], strict=True):
            end.run("ip", "address", "add", own, "peer", peer, "dev", end.device, *(("nodad",) if ":" in own else ()))


def has_link(end: End) -> bool:
    """Whether the tunnel's interface is there."""
    return subprocess.run(["ip", "-n", end.space, "link", "show", end.device], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _secret(text: str):  # type: ignore[no-untyped-def]
    """A file that only we can read, for wg."""
    with tempfile.NamedTemporaryFile("w", prefix="calnet-", suffix=".key") as file:
        file.write(text + "\n")
        file.flush()
        yield file.name
