"""Our data path against Debian's wireguard-go: real TUN devices, real UDP, two network namespaces. Each side begins, keys are renewed, files arrive whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from bench.tunnel_lab import OVERLAY, End, Lab, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (shutil.which("wireguard-go") and shutil.which("wg")), reason="needs wireguard-go and wg (apt install wireguard-go wireguard-tools)"
    ),
]

FILE_SIZE = 50_000_000
PORT = 5001

RECEIVER = textwrap.dedent(
    """
    import hashlib, socket, sys
    with socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        digest, size = hashlib.sha256(), 0
        with connection:
            while piece := connection.recv(1 << 20):
                digest.update(piece)
                size += len(piece)
        print(size, digest.hexdigest(), flush=True)
    """
)
SENDER = textwrap.dedent(
    """
    import socket, sys
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection, open(sys.argv[3], "rb") as file:
        connection.sendfile(file)
    """
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(prefix="wgi") as made:
        yield made


def _ping(end: End, address: str, count: int = 3) -> None:
    end.run("ping", "-c", str(count), "-i", "0.2", "-W", "5", address)


def _both_ways(lab: Lab) -> None:
    for side, other in ("ab", "ba"):
        for address in OVERLAY[other]:
            _ping(lab.ends[side], address)


def _wireguard_handshake_at(end: End) -> int:
    return int(end.run("wg", "show", end.device, "latest-handshakes").split()[1])


def _our_status(end: End) -> tuple[int, int, float | None]:
    """Bytes sent and received, and when the last handshake was, as our end has it."""
    assert end.process is not None
    assert end.process.stdout is not None
    end.process.send_signal(signal.SIGUSR2)
    sent, received, handshake = json.loads(end.process.stdout.readline())["2"]
    return sent, received, handshake


def _send_file(source: End, target: End, address: str, path: str, digest: str) -> None:
    receiver = target.start(sys.executable, "-IS", "-c", RECEIVER, address, str(PORT))
    try:
        assert receiver.stdout is not None
        assert receiver.stdout.readline().strip() == "listening"
        source.run(sys.executable, "-IS", "-c", SENDER, address, str(PORT), path)
        assert receiver.stdout.readline().split() == [str(FILE_SIZE), digest]
    finally:
        receiver.kill()
        receiver.communicate()


@pytest.mark.parametrize("ipv6", [False, True], ids=["over-ipv4", "over-ipv6"])
@pytest.mark.parametrize("psk", [None, b"p" * 32], ids=["no-psk", "psk"])
def test_we_begin_and_both_families_pass_both_ways(lab: Lab, ipv6: bool, psk: bytes | None) -> None:
    theirs = lab.start_wireguard_go("b", knows_endpoint=False, psk=psk)
    ours = lab.start_calnet("a", ipv6=ipv6, psk=psk)
    _ping(ours, OVERLAY["b"][0])
    _both_ways(lab)
    assert _wireguard_handshake_at(theirs) > 0


@pytest.mark.parametrize("ipv6", [False, True], ids=["over-ipv4", "over-ipv6"])
def test_wireguard_go_begins_and_both_families_pass_both_ways(lab: Lab, ipv6: bool) -> None:
    lab.start_calnet("a", knows_endpoint=False)
    theirs = lab.start_wireguard_go("b", ipv6=ipv6)
    _ping(theirs, OVERLAY["a"][1])
    _both_ways(lab)


def test_other_psk_lets_nothing_through(lab: Lab) -> None:
    lab.start_wireguard_go("b", knows_endpoint=False, psk=b"p" * 32)
    ours = lab.start_calnet("a", psk=b"q" * 32)
    with pytest.raises(RuntimeError, match="100% packet loss"):
        ours.run("ping", "-c", "2", "-i", "0.2", "-W", "1", OVERLAY["b"][0])


def test_we_renew_the_key_and_nothing_is_lost(lab: Lab) -> None:
    theirs = lab.start_wireguard_go("b", knows_endpoint=False)
    ours = lab.start_calnet("a")
    _ping(ours, OVERLAY["b"][0])
    first, theirs_first = _our_status(ours)[2], _wireguard_handshake_at(theirs)
    assert first is not None
    assert ours.process is not None
    ours.run("sleep", "1.1")  # `wg show` counts in whole seconds
    pinging = ours.start("ping", "-c", "30", "-i", "0.05", "-W", "5", OVERLAY["b"][0])
    until(lambda: _our_status(ours)[0] > 1000, "some pings sent")
    ours.process.send_signal(signal.SIGUSR1)
    output, _ = pinging.communicate(timeout=30)
    assert " 0% packet loss" in output
    assert (_our_status(ours)[2] or 0) > first
    assert _wireguard_handshake_at(theirs) > theirs_first
    _both_ways(lab)


def test_wireguard_go_handshakes_anew_and_traffic_goes_on(lab: Lab) -> None:
    ours = lab.start_calnet("a", knows_endpoint=False)
    theirs = lab.start_wireguard_go("b")
    _ping(theirs, OVERLAY["a"][0])
    first = _our_status(ours)[2]
    theirs.run("wg", "set", theirs.device, "peer", theirs.run("wg", "show", theirs.device, "peers").strip(), "remove")
    lab.set_wireguard_peer(theirs, ours, knows_endpoint=True)
    _ping(theirs, OVERLAY["a"][0], 5)
    assert (_our_status(ours)[2] or 0) > (first or 0)
    _both_ways(lab)


@pytest.mark.parametrize("plain", [False, True], ids=["offload", "plain"])
@pytest.mark.parametrize("mtu", [1280, 1420])
def test_file_arrives_whole_both_ways(lab: Lab, mtu: int, plain: bool, tmp_path: object) -> None:
    lab.mtu = mtu
    lab.start_wireguard_go("b", knows_endpoint=False)
    lab.start_calnet("a", plain=plain)
    ours, theirs = lab.ends["a"], lab.ends["b"]
    _ping(ours, OVERLAY["b"][0])
    data = os.urandom(FILE_SIZE)
    digest = hashlib.sha256(data).hexdigest()
    path = f"{tmp_path}/file"
    with open(path, "wb") as file:
        file.write(data)
    family = int(mtu == 1420)
    _send_file(ours, theirs, OVERLAY["b"][family], path, digest)
    _send_file(theirs, ours, OVERLAY["a"][family], path, digest)


def test_file_arrives_whole_in_the_other_family_too(lab: Lab, tmp_path: object) -> None:
    lab.mtu = 1420
    lab.start_calnet("b", knows_endpoint=False)
    lab.start_calnet("a", ipv6=True)
    data = os.urandom(FILE_SIZE)
    path = f"{tmp_path}/file"
    with open(path, "wb") as file:
        file.write(data)
    for family in (0, 1):
        _send_file(lab.ends["a"], lab.ends["b"], OVERLAY["b"][family], path, hashlib.sha256(data).hexdigest())


def test_udp_of_all_sizes_and_fragments_arrive(lab: Lab) -> None:
    lab.start_wireguard_go("b", knows_endpoint=False)
    ours = lab.start_calnet("a")
    for size in (0, 1, 15, 16, 1000, 1392, 1393, 3000, 20_000):
        for address in OVERLAY["b"]:
            ours.run("ping", "-c", "2", "-i", "0.2", "-W", "5", "-s", str(size), address)


def test_nothing_is_left_behind() -> None:
    with Lab(prefix="wgx") as made:
        made.start_wireguard_go("b", knows_endpoint=False)
        made.start_calnet("a")
        spaces = [end.space for end in made.ends.values()]
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(space in listed for space in spaces)
