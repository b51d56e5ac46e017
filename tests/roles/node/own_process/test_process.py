"""The real process: what it opens, what it refuses, how it ends, what survives it. As root, with TUN devices that vanish with their processes."""

from __future__ import annotations

import asyncio
import base64
import json
import mmap
import os
import shutil
import signal
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from calnet.crypto.keys import PrivateKey
from calnet.errors import HostError, NotFoundError, TimedOutError
from calnet.host.process import self_command
from calnet.model import Netmap, NodeId, NodeKey
from calnet.roles.cli.bundle import Bundle
from calnet.roles.node.engine import Identity
from calnet.roles.node.handshake_log import HEADER, RECORD_SIZE, build_record, parse_records
from calnet.roles.node.own_process import proxy, start
from calnet.roles.node.own_process.proxy import ProxyEngine
from calnet.roles.node.own_process.start import Program, process_opener
from calnet.roles.node.own_process.stream import QUEUE_BYTES
from calnet.tunnel import handshake
from calnet.tunnel.cookie import CookieMemory
from calnet.tunnel.timestamps import step_after, timestamp_of
from calnet.wire.tunnel import Response, parse_handshake
from tests.roles.node.fakes import a_netmap, a_peer, until
from tests.roles.node.full_disk import fill_up
from tests.roles.node.own_process.test_proxy import Host

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

BOB, CAROL = NodeId(2), NodeId(3)
IDENTITY = Identity(PrivateKey(os.urandom(32)), PrivateKey(os.urandom(32)), PrivateKey(os.urandom(32)))
BOBS = PrivateKey(os.urandom(32))
SILENT_S = 1.0
"""An answer on loopback takes some milliseconds."""


def netmap() -> Netmap:
    return a_netmap(1, (a_peer(2, node_key=NodeKey(BOBS.public)), a_peer(3)))


class Machine:
    """Opens data paths in processes, and knows these."""

    def __init__(self, tmp_path: Path, program: Program | None = None) -> None:
        self.host, self.stamps, self.tun = Host(), tmp_path / "stamps", f"cop{os.getpid() % 1_000_000}"
        self.engines: list[ProxyEngine] = []
        self.program = program or Program(self_command())

    def open(self, port: int = 0) -> ProxyEngine:
        opener = process_opener(self.program, lambda: IDENTITY, self.stamps, tun=self.tun, mtu=1280, capabilities=(), debug=False)
        engine = opener(port, self.host)
        assert isinstance(engine, ProxyEngine)
        self.engines.append(engine)
        return engine

    def has_tun(self) -> bool:
        return Path(f"/sys/class/net/{self.tun}").exists()


def pid_of(engine: ProxyEngine) -> int:
    return cast(Any, engine._process).pid  # type: ignore[no-any-return]


def lives(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    return Path(f"/proc/{pid}").exists()


def run(tmp_path: Path, script: Callable[[Machine], Coroutine[Any, Any, None]], program: Program | None = None) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, program)
        try:
            async with asyncio.timeout(100):
                await script(machine)
        finally:
            for engine in machine.engines:
                engine.close()
        await asyncio.sleep(0)
        assert not machine.has_tun()

    asyncio.run(main())


class Bob:
    """Speaks to the data path by UDP on loopback."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)

    def __enter__(self) -> Bob:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def answer(self, datagram: bytes) -> bytes | None:
        """What comes back for this one; None where nothing does."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, datagram)
        try:
            async with asyncio.timeout(SILENT_S):
                return await loop.sock_recv(self._socket, 2000)
        except TimeoutError:
            return None


def initiation(stamp: bytes, index: int) -> tuple[handshake.Pending, bytes]:
    pending, body = handshake.begin(BOBS, IDENTITY.node.public, None, stamp, index, os.urandom)
    return pending, CookieMemory(IDENTITY.node.public).finish(body, 0.0)


def proves(pending: handshake.Pending, answer: bytes | None) -> bool:
    """Whether it is the genuine response. AuthenticationError for a forged one."""
    assert answer is not None
    response = parse_handshake(answer)
    assert isinstance(response, Response)
    return bool(handshake.finish(pending, response))


def test_opened_one_has_tun_and_port_and_closed_one_has_given_them_back(tmp_path: Path) -> None:
    async def script(machine: Machine) -> None:
        engine = machine.open()
        pid, port = pid_of(engine), engine.port
        assert machine.has_tun()
        assert engine.mtu == 1280
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
            other.bind(("0.0.0.0", port))
        began = time.monotonic()
        engine.close()
        assert time.monotonic() - began < proxy.END_S, "it was not to be killed"
        assert not machine.has_tun()
        assert not lives(pid)
        again = machine.open(port)
        assert again.port == port
        again.close()
        assert [told for told in machine.host.told if told[0] == "ended"] == []

    run(tmp_path, script)


def test_what_the_machine_refuses_is_raised_and_no_process_is_left(tmp_path: Path) -> None:
    async def script(machine: Machine) -> None:
        engine = machine.open()
        with pytest.raises(HostError, match="exists already: another node runs here, or choose another name with --tun"):
            machine.open()
        other = Machine(tmp_path)
        other.tun += "b"
        with pytest.raises(HostError, match=str(engine.port)):
            other.open(engine.port)
        assert not other.has_tun()
        assert children() == {pid_of(engine)}
        engine.close()
        assert children() == set()

    run(tmp_path, script)


def children() -> set[int]:
    """Those of this process, zombies included."""
    return {int(word) for task in Path("/proc/self/task").iterdir() for word in (task / "children").read_text().split()}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/nowhere/python3",), "can't be started: No such file"),
        ((sys.executable, "-IS", "-c", "raise SystemExit(7)"), "did not start: it ended with exit code 7"),
        ((sys.executable, "-IS", "-c", "import os; os.kill(os.getpid(), 9)"), "did not start: it was ended by SIGKILL"),
        (
            (sys.executable, "-IS", "-c", "import os, sys; os.write(int(sys.argv[-1]), bytes(9)); os.read(int(sys.argv[-1]), 1)"),
            "did not start: a frame of 0 bytes",
        ),
        ((sys.executable, "-IS", "-c", "import time; time.sleep(60)"), "did not start: it said nothing for 1 s"),
    ],
)
def test_program_that_is_none_of_ours_is_a_host_error_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], words: str) -> None:
    monkeypatch.setattr(start, "START_S", 1.0 if "sleep" in command[-1] else 30.0)

    async def script(machine: Machine) -> None:
        with pytest.raises(HostError, match=words):
            machine.open()
        assert children() == set()

    run(tmp_path, script, Program(command))


def test_nothing_secret_is_in_argv_or_environment_and_no_core_is_dumped(tmp_path: Path) -> None:
    async def script(machine: Machine) -> None:
        engine = machine.open()
        place = Path(f"/proc/{pid_of(engine)}")
        shown = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        assert b"node-data-path" in shown
        for key in (IDENTITY.node, IDENTITY.discovery, cast(PrivateKey, IDENTITY.previous)):
            secret = key.secret_bytes()
            for form in (secret, secret.hex().encode(), base64.b64encode(secret), base64.urlsafe_b64encode(secret)):
                assert form.rstrip(b"=") not in shown
        limits = (place / "limits").read_text()
        (core,) = (line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core == ["0", "0"]
        engine.close()

    run(tmp_path, script)


def test_handshake_that_was_answered_once_is_not_again_after_the_process_was_killed(tmp_path: Path) -> None:
    async def script(machine: Machine) -> None:
        engine = machine.open()
        engine.apply(netmap(), accept_routes=False)
        await engine.figures()
        stamp = timestamp_of(time.time())
        pending, first = initiation(stamp, 1)
        with Bob(engine.port) as bob:
            assert proves(pending, await bob.answer(first))
            assert await bob.answer(first) is None
        records, unfinished = parse_records(machine.stamps.read_bytes())
        assert (len(records), unfinished) == (1, False)
        os.kill(pid_of(engine), signal.SIGKILL)
        await until(lambda: ("ended", "was ended by SIGKILL") in machine.host.told)
        assert not lives(pid_of(engine))
        engine.close()

        engine = machine.open()
        engine.apply(netmap(), accept_routes=False)
        await engine.figures()
        with Bob(engine.port) as bob:
            assert await bob.answer(first) is None
            pending, second = initiation(step_after(stamp), 2)
            assert proves(pending, await bob.answer(second))
        engine.close()

    run(tmp_path, script)


def test_handshake_whose_stamp_can_not_be_kept_is_not_answered(tmp_path: Path, small_disk: Path) -> None:
    stamp = timestamp_of(time.time())
    others = [build_record(os.urandom(32), stamp, sent=False) for _ in range((mmap.PAGESIZE - len(HEADER)) // RECORD_SIZE)]

    async def script(machine: Machine) -> None:
        machine.stamps = small_disk / "stamps"
        machine.stamps.write_bytes(HEADER + b"".join(others))  # no room in its last page for one more
        machine.stamps.chmod(0o600)
        engine = machine.open()
        engine.apply(netmap(), accept_routes=False)
        await engine.figures()
        fill_up(small_disk / "filler")
        with Bob(engine.port) as bob:
            assert await bob.answer(initiation(stamp, 1)[1]) is None
            await engine.figures()
            (told,) = (told for told in machine.host.told if told[:2] == ("health", "stamps"))
            assert "no new handshake is possible" in str(told[2])
            (small_disk / "filler").unlink()
            pending, again = initiation(step_after(stamp), 2)
            assert proves(pending, await bob.answer(again))
            await engine.figures()
            assert ("health", "stamps", None) in machine.host.told
        engine.close()

    run(tmp_path, script)


def test_handshake_by_relay_is_answered_by_relay(tmp_path: Path) -> None:
    async def script(machine: Machine) -> None:
        engine = machine.open()
        engine.apply(netmap(), accept_routes=False)
        engine.relay_connected(True)
        pending, first = initiation(timestamp_of(time.time()), 1)
        engine.relayed(BOB, [memoryview(first)])
        await until(lambda: machine.host.relayed)
        peer, answer = machine.host.relayed[0]
        assert peer == BOB
        assert proves(pending, answer)
        engine.close()

    run(tmp_path, script)


def test_questions_are_answered_as_the_engine_does(tmp_path: Path) -> None:
    async def script(machine: Machine) -> None:
        engine = machine.open()
        engine.apply(netmap(), accept_routes=False)
        with pytest.raises(NotFoundError):
            await engine.ping(NodeId(99), 1.0)
        with pytest.raises(TimedOutError, match=r"no answer within 0.05 s"):
            await engine.ping(CAROL, 0.05)
        here, there = await engine.why(CAROL, 0.05)
        assert (here.path, there) == ("none", None)
        assert (await engine.netcheck(0.05)).ipv4 is None
        assert {peer: status.path for peer, status in (await engine.statuses([BOB, CAROL, NodeId(99)])).items()} == {
            BOB: "none",
            CAROL: "none",
            NodeId(99): "none",
        }
        assert (await engine.figures()).path_changes == {}
        before = engine.port
        await engine.change_port()
        assert engine.port != before
        with Bob(engine.port) as bob:
            pending, first = initiation(timestamp_of(time.time()), 1)
            assert proves(pending, await bob.answer(first))
        engine.close()

    run(tmp_path, script)


def test_peer_that_a_change_of_the_netmap_removes_is_answered_no_more(tmp_path: Path) -> None:
    async def script(machine: Machine) -> None:
        engine = machine.open()
        engine.apply(netmap(), accept_routes=False)
        await engine.figures()
        stamp = timestamp_of(time.time())
        with Bob(engine.port) as bob:
            pending, first = initiation(stamp, 1)
            assert proves(pending, await bob.answer(first))
            engine.apply(replace(netmap(), version=2, peers=(a_peer(3),)), accept_routes=False)
            await engine.figures()
            assert await bob.answer(initiation(step_after(stamp), 2)[1]) is None
            engine.apply(replace(netmap(), version=3), accept_routes=False)
            await engine.figures()
            pending, third = initiation(step_after(step_after(stamp)), 3)
            assert proves(pending, await bob.answer(third))
        engine.close()

    run(tmp_path, script)


def test_signals_that_a_service_manager_or_a_terminal_sends_to_all_leave_it_running(tmp_path: Path) -> None:
    async def script(machine: Machine) -> None:
        engine = machine.open()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid_of(engine), number)
        await engine.figures()
        assert lives(pid_of(engine))
        engine.close()

    run(tmp_path, script)


def test_process_that_stands_still_costs_datagrams_and_bounded_memory_but_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "PATIENCE_S", 0.3)

    async def script(machine: Machine) -> None:
        engine = machine.open()
        engine.apply(netmap(), accept_routes=False)
        await engine.figures()
        os.kill(pid_of(engine), signal.SIGSTOP)
        for _ in range(300):
            engine.relayed(BOB, [bytes(1400)] * 45)
        engine.apply(replace(netmap(), version=2, peers=(a_peer(3), a_peer(4))), accept_routes=False)
        assert engine._stream.waiting < QUEUE_BYTES + 200_000
        assert engine._stream.dropped > 45 * 100
        with pytest.raises(TimedOutError):
            await engine.figures()
        assert machine.host.told[-1][:2] == ("health", "data-path-silent")
        os.kill(pid_of(engine), signal.SIGCONT)
        monkeypatch.setattr(proxy, "PATIENCE_S", 30.0)
        figures = await engine.figures()
        assert figures.dropped >= engine._stream.dropped
        assert machine.host.told[-1] == ("health", "data-path-silent", None)
        with Bob(engine.port) as bob:  # the second netmap is without him
            assert await bob.answer(initiation(timestamp_of(time.time()), 1)[1]) is None
        engine.apply(replace(netmap(), version=3), accept_routes=False)
        await engine.figures()
        with Bob(engine.port) as bob:
            pending, datagram = initiation(timestamp_of(time.time()), 2)
            assert proves(pending, await bob.answer(datagram))
        engine.close()

    run(tmp_path, script)


def test_process_that_stands_still_is_killed_when_it_should_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "END_S", 0.2)

    async def script(machine: Machine) -> None:
        engine = machine.open()
        os.kill(pid_of(engine), signal.SIGSTOP)
        engine.close()
        assert not lives(pid_of(engine))

    run(tmp_path, script)


def test_one_file_starts_itself_again_even_when_it_was_replaced_meanwhile(tmp_path: Path, pyz: Path) -> None:
    file = tmp_path / "calnet.pyz"
    shutil.copy(pyz, file)
    with zipfile.ZipFile(file) as archive:
        build = str(json.loads(archive.read("index.json"))["build"])
    path, descriptor = Bundle(str(file), build).again()
    (tmp_path / "other").write_bytes(b"another version")
    (tmp_path / "other").replace(file)

    async def script(machine: Machine) -> None:
        engine = machine.open()
        engine.apply(netmap(), accept_routes=False)
        pending, first = initiation(timestamp_of(time.time()), 1)
        await engine.figures()
        with Bob(engine.port) as bob:
            assert proves(pending, await bob.answer(first))
        engine.close()

    run(tmp_path, script, Program((sys.executable, "-IS", path), (descriptor,)))


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.roles.node.own_process.test_process import Machine, pid_of

async def main():
    machine = Machine(Path(sys.argv[1]))
    print(pid_of(machine.open()), machine.tun, flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


def test_process_ends_with_its_parent(tmp_path: Path) -> None:
    async def main() -> None:
        root = Path(__file__).resolve().parents[4]
        parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=root)
        assert parent.stdout is not None
        pid, tun = (await parent.stdout.readline()).decode().split()
        assert Path(f"/sys/class/net/{tun}").exists()
        assert lives(int(pid))
        os.kill(parent.pid, signal.SIGKILL)
        await parent.wait()
        await until(lambda: not lives(int(pid)))
        assert not Path(f"/sys/class/net/{tun}").exists()

    asyncio.run(main())
