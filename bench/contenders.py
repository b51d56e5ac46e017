"""The tunnels that the bench measures, each with what it takes to run it at both ends of `tunnel_lab.Lab`: ours in its three ways, and what Debian ships.

Every one gets the lab's MTU inside (the largest that Ethernet's 1,500 bytes carry, with its own default ciphers), runs in the foreground, and is ended by
its process. `--peer NAME=/path/to/program` adds another build of one of them: `NAME` begins with the name of the kind (wireguard-go-2025, nebula-head).
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.tunnel_lab import OVERLAY, ROOT, UNDERLAY, End, Lab, command, has_link, until
from calnet.errors import HostError, InvalidError
from calnet.tunnel.capabilities import AES, CHUNKS

ANCHOR = "wireguard-go"
"""What every ratio is to."""
PORT = 4242


@dataclass(frozen=True, slots=True)
class Contender:
    """`start` runs it at both ends, and returns once their interfaces stand; `target` is the address of end `b` to measure through."""

    name: str
    start: Callable[[Lab], None]
    needs: tuple[str, ...] = ()
    target: str = OVERLAY["b"][0]

    def missing(self) -> list[str]:
        """Programs that it needs and this machine lacks."""
        return [program for program in self.needs if shutil.which(program) is None]


def _calnet(*capabilities: str) -> Callable[[Lab], None]:
    def start(lab: Lab) -> None:
        lab.start_calnet("a", capabilities=capabilities)
        lab.start_calnet("b", capabilities=capabilities)

    return start


def _no_tunnel(lab: Lab) -> None:
    """The bare wire."""


def _calnet_to_wireguard_go(lab: Lab) -> None:
    lab.endpoint(lab.ends["b"], ipv6=False)
    lab.start_calnet("a")
    lab.start_wireguard_go("b")


def _wireguard_go(program: str) -> Callable[[Lab], None]:
    def start(lab: Lab) -> None:
        for side in "ab":
            lab.endpoint(lab.ends[side], ipv6=False)
        for side in "ab":
            lab.start_wireguard_go(side, program=program)

    return start


def _calnet_by_relay(lab: Lab) -> None:
    """A server beside end `a`, and nodes whose data goes by its relay alone. Its CPU time is not counted."""
    place = lab.files / "relay"
    program = (sys.executable, "-B", str(ROOT / "calnet.py"))
    one = lab.ends["a"]
    server = lab.also(one, *program, "server", "--state-dir", str(place / "server"), "--listen", f"{UNDERLAY['a'][0]}:8080")
    asked = ("ip", "netns", "exec", one.space, *program, "admin", "--state-dir", str(place / "server"), "keys", "create", "--reusable")
    made: list[str] = []

    def has_key() -> bool:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if server.poll() is not None:
            raise HostError("the server ended at once")
        made.append(done.stdout.strip())
        return done.returncode == 0

    until(has_key, "the server answers")
    sockets = {}
    for side, end in lab.ends.items():
        socket = sockets[side] = str(place / f"{side}.sock")
        end.program = "calnet"
        end.process = end.start(*program, "node", "--state-dir", str(place / side), "--socket", socket, "--tun", end.device, "--mtu", str(lab.mtu), quiet=True)
        until(pathlib.Path(socket).is_socket, "the node's socket")
        joining = ("up", "--socket", socket, "--server", f"http://{UNDERLAY['a'][0]}:8080", "--auth-key", "-", "--hostname", side)
        end.run(*program, *joining, stdin=made[-1] + "\n")
    for side, end in lab.ends.items():
        words = ("ip", "netns", "exec", end.space, *program, "set", "--socket", sockets[side], "--path", f"{lab.other(end).side}=relay")
        until(lambda words=words: subprocess.run(words, capture_output=True, check=False).returncode == 0, "the peer is known")  # type: ignore[misc]


def _each(lab: Lab, folder: str) -> Iterable[tuple[str, End, End, pathlib.Path]]:
    """(side, end, the other end, a folder of its own) of both ends."""
    for side, end in lab.ends.items():
        own = lab.files / folder / side
        own.mkdir(parents=True, exist_ok=True)
        yield side, end, lab.other(end), own


def _launch(lab: Lab, end: End, name: str, *words: str, addressed: bool = False) -> None:
    """Run the program, wait for its interface, and give that its address and MTU, unless the program does (`addressed`)."""
    end.program = name
    end.process = end.start(*words, quiet=True)
    until(lambda: has_link(end), f"{name}'s interface")
    if addressed:
        end.run("ip", "link", "set", end.device, "mtu", str(lab.mtu))
        return
    end.run("ip", "link", "set", end.device, "mtu", str(lab.mtu), "up")
    end.run("ip", "address", "add", OVERLAY[end.side][0], "peer", OVERLAY[lab.other(end).side][0], "dev", end.device)


def _nebula(program: str) -> Callable[[Lab], None]:
    def start(lab: Lab) -> None:
        place = lab.files / "nebula"
        place.mkdir(exist_ok=True)
        if not (place / "ca.crt").exists():
            command("nebula-cert", "ca", "-name", "bench", "-out-crt", str(place / "ca.crt"), "-out-key", str(place / "ca.key"))
        for side, end, other, own in _each(lab, "nebula"):
            if not (own / "host.crt").exists():
                signer = ("-ca-crt", str(place / "ca.crt"), "-ca-key", str(place / "ca.key"))
                made = ("-out-crt", str(own / "host.crt"), "-out-key", str(own / "host.key"))
                command("nebula-cert", "sign", *signer, "-name", side, "-ip", f"{OVERLAY[side][0]}/24", *made)
            (own / "config.yml").write_text(
                f"pki: {{ca: {place}/ca.crt, cert: {own}/host.crt, key: {own}/host.key}}\n"
                f"static_host_map: {{'{OVERLAY[other.side][0]}': ['{UNDERLAY[other.side][0]}:{PORT}']}}\n"
                f"listen: {{host: 0.0.0.0, port: {PORT}}}\n"
                f"tun: {{dev: {end.device}, mtu: {lab.mtu}}}\n"
                "lighthouse: {am_lighthouse: false}\n"
                "firewall: {outbound: [{port: any, proto: any, host: any}], inbound: [{port: any, proto: any, host: any}]}\n"
            )
            _launch(lab, end, "nebula", program, "-config", str(own / "config.yml"), addressed=True)

    return start


def _fastd(lab: Lab) -> None:
    keys = {}
    for side in "ab":
        made = subprocess.run(["fastd", "--generate-key"], capture_output=True, text=True, check=True).stdout
        keys[side] = {line.split()[0]: line.split()[1] for line in made.splitlines() if line[:6] in ("Secret", "Public")}
    for side, end, other, own in _each(lab, "fastd"):
        (own / "fastd.conf").write_text(
            f'mode tun; interface "{end.device}"; mtu {lab.mtu}; bind {UNDERLAY[side][0]}:{PORT};\n'
            f'secret "{keys[side]["Secret:"]}"; method "salsa2012+umac";\n'
            f'peer "other" {{ key "{keys[other.side]["Public:"]}"; remote {UNDERLAY[other.side][0]}:{PORT}; }}\n'
        )
        _launch(lab, end, "fastd", "fastd", "-c", str(own / "fastd.conf"))


def _tinc(lab: Lab) -> None:
    hosts: dict[str, str] = {}
    for side, end, other, own in _each(lab, "tinc"):
        (own / "hosts").mkdir(exist_ok=True)
        (own / "tinc.conf").write_text(f"Name = {side}\nInterface = {end.device}\nDeviceType = tun\nMode = router\nConnectTo = {other.side}\nPort = {PORT}\n")
        (own / "tinc-up").write_text("#!/bin/sh\n")
        (own / "tinc-up").chmod(0o755)
        if not (own / "rsa_key.priv").exists():
            command("tincd", "-c", str(own), "-K2048", stdin="\n\n")
        written = own / "hosts" / side if (own / "hosts" / side).exists() else own / "rsa_key.pub"
        _, begin, key = written.read_text().partition("-----BEGIN")
        hosts[side] = f"Address = {UNDERLAY[side][0]} {PORT}\nSubnet = {OVERLAY[side][0]}/32\n{begin}{key}"
    for _, end, _, own in _each(lab, "tinc"):
        for name, text in hosts.items():
            (own / "hosts" / name).write_text(text)
        _launch(lab, end, "tinc", "tincd", "-c", str(own), "-D", f"--pidfile={own}/pid")


def _openvpn(lab: Lab) -> None:
    prints = {}
    for side, _, _, own in _each(lab, "openvpn"):
        key, crt = str(own / "key"), str(own / "crt")
        if not pathlib.Path(crt).exists():
            curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
            command("openssl", "req", "-x509", *curve, "-keyout", key, "-out", crt, "-subj", f"/CN={side}")
        prints[side] = command("openssl", "x509", "-in", crt, "-noout", "-fingerprint", "-sha256").partition("=")[2].strip()
    for side, end, other, own in _each(lab, "openvpn"):
        role: tuple[str, ...] = ("--tls-server", "--dh", "none") if side == "a" else ("--tls-client",)
        words = ("--dev", end.device, "--dev-type", "tun", "--tun-mtu", str(lab.mtu), "--proto", "udp", "--port", str(PORT))
        role += ("--remote", UNDERLAY[other.side][0])
        secrets = ("--cert", str(own / "crt"), "--key", str(own / "key"), "--peer-fingerprint", prints[other.side])
        _launch(lab, end, "openvpn", "openvpn", "--mode", "p2p", *words, *role, *secrets, "--disable-dco", "--verb", "1")


CONTENDERS = (
    Contender("no tunnel", _no_tunnel, target=UNDERLAY["b"][0]),
    Contender("calnet", _calnet(CHUNKS)),
    Contender("calnet AES", _calnet(CHUNKS, AES)),
    Contender("calnet, plain packets", _calnet()),
    Contender("calnet by relay", _calnet_by_relay, target="100.70.0.2"),
    Contender("calnet to wireguard-go", _calnet_to_wireguard_go, ("wireguard-go", "wg")),
    Contender(ANCHOR, _wireguard_go("wireguard-go"), ("wireguard-go", "wg")),
    Contender("nebula", _nebula("nebula"), ("nebula", "nebula-cert")),
    Contender("fastd", _fastd, ("fastd",)),
    Contender("tinc", _tinc, ("tincd",)),
    Contender("openvpn", _openvpn, ("openvpn", "openssl")),
)


def named(words: Iterable[str]) -> list[Contender]:
    """The contenders that `--peer NAME=PROGRAM` adds. InvalidError for what is none of the kinds, HostError for a program that isn't there."""
    added = []
    for word in words:
        name, equals, program = word.partition("=")
        makers = {"wireguard-go": _wireguard_go, "nebula": _nebula}
        kind = next((kind for kind in makers if name.startswith(kind)), None)
        if kind is None or not equals:
            raise InvalidError(f"--peer {word}: write wireguard-go-SOMETHING=PROGRAM or nebula-SOMETHING=PROGRAM")
        found = shutil.which(program)
        if found is None:
            raise HostError(f"--peer {word}: there is no program {program}")
        added.append(Contender(name, makers[kind](found), ("wg",) if kind == "wireguard-go" else ("nebula-cert",)))
    return added
