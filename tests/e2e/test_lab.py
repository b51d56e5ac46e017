"""The lab itself: its routers are of the kinds they claim to be, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from calnet.errors import HostError, InvalidError, TimedOutError
from calnet.roles.demo import namespaces, nat
from calnet.roles.demo.lab import Lab, Site
from calnet.roles.demo.nat import Behaviour, NatKind

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]


def _leftovers(pid: int) -> list[str]:
    names = [entry.name for entry in namespaces.RUN_NETNS.iterdir()] if namespaces.RUN_NETNS.is_dir() else []
    names += [path.name for path in Path("/tmp").glob(f"{namespaces.NAME_PREFIX}*")]
    return [name for name in names if namespaces.owner_of(name) == pid]


@pytest.mark.parametrize("kind", list(NatKind))
@pytest.mark.parametrize("ipv6", [False, True])
def test_site_of_each_kind_behaves_as_its_kind_and_reaches_web_servers(kind: NatKind, ipv6: bool) -> None:
    with Lab() as lab:
        server = lab.public_host("server")
        if kind is NatKind.CGNAT and ipv6:
            with pytest.raises(InvalidError):
                lab.site("home", kind, ipv6=True)
            return
        site = lab.site("home", kind, ipv6=ipv6)
        observed = site.verify()
        if observed.traits.mapping is not Behaviour.NO_UDP and kind is not NatKind.IPV6_ONLY:
            assert observed.external is not None
            assert observed.external[0] == site.public_ipv4
        for address in (server.ipv4, server.ipv6):
            assert address is not None
            if (":" in address) in {":" in own for own in site.host.addresses}:
                with _listener(server.namespace, address, nat.HTTP_PORTS[-1]) as listener, site.host.namespace.inside():
                    socket.create_connection(listener.getsockname()[:2], timeout=5).close()


def _listener(namespace: namespaces.Namespace, address: str, port: int) -> socket.socket:
    with namespace.inside():
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen()
    return listener


def test_sites_probed_at_the_same_time_are_each_of_their_kind() -> None:
    with Lab() as lab:
        lab.public_host("server")
        sites = [lab.site(kind.value.replace("-", ""), kind) for kind in NatKind]
        with ThreadPoolExecutor(4) as pool:
            seen = list(pool.map(Site.verify, sites))
        assert [one.traits for one in seen] == [nat.EXPECTED[kind] for kind in NatKind]


def test_customers_of_one_carrier_have_one_public_address_and_meet_through_it_where_it_hairpins() -> None:
    with Lab() as lab:
        server = lab.public_host("server")
        carrier = lab.carrier("carrier", NatKind.HAIRPIN)
        one, other = (lab.site(name, NatKind.CGNAT, carrier=carrier) for name in ("one", "other"))
        assert one.public_ipv4 == other.public_ipv4 == carrier.public_ipv4
        assert one.host.ipv4 != other.host.ipv4
        with ExitStack() as stack:
            outside, first, second = (stack.enter_context(_udp(host.namespace, port)) for host, port in ((server, 9), (one.host, 40_001), (other.host, 40_002)))
            mapped = []
            for inside in (first, second):
                inside.sendto(b"who am I", (server.ipv4, 9))
                mapped.append(outside.recvfrom(64)[1])
            first.sendto(b"opens its own router", mapped[1])
            second.sendto(b"hello", mapped[0])
            assert first.recvfrom(64) == (b"hello", mapped[1])


def _udp(namespace: namespaces.Namespace, port: int = 0) -> socket.socket:
    with namespace.inside():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("0.0.0.0", port))
    made.settimeout(5)
    return made


def test_site_of_the_wrong_kind_is_found_out() -> None:
    with Lab() as lab:
        site = lab.site("home", NatKind.PORT_RESTRICTED)
        site.kind = NatKind.FULL_CONE
        with pytest.raises(HostError, match="address-and-port-dependent"):
            site.verify()


@pytest.mark.parametrize(("kind", "kept"), [(NatKind.PORT_RESTRICTED, True), (NatKind.LINUX, False)])
def test_unsolicited_packet_takes_the_port_from_the_host_behind_a_plain_linux_router_alone(kind: NatKind, kept: bool) -> None:
    with Lab() as lab:
        far = lab.public_host("far")
        site = lab.site("home", kind)
        with _udp(far.namespace, 9) as outside, _udp(site.host.namespace, 40123) as inside:
            for _ in range(3):
                outside.sendto(b"early", (site.public_ipv4, 40123))
            inside.sendto(b"hello", (far.ipv4, 9))
            host, port = outside.recvfrom(64)[1]
            assert host == site.public_ipv4
            assert (port == 40123) is kept


def test_sites_with_ipv6_reach_public_hosts_and_are_not_reached() -> None:
    with Lab() as lab:
        server = lab.public_host("server")
        site = lab.site("home", NatKind.PORT_RESTRICTED, ipv6=True)
        assert server.ipv6 is not None
        assert site.host.ipv6 is not None
        site.host.namespace.run("ping", "-6", "-c1", "-W5", server.ipv6)
        assert server.namespace.run("ping", "-6", "-c1", "-W1", site.host.ipv6, check=False).returncode != 0


def test_cut_loses_udp_between_two_sites_alone_until_healed() -> None:
    with Lab() as lab:
        one, other = lab.site("one", NatKind.OPEN), lab.site("other", NatKind.OPEN)
        with one.host.namespace.inside():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with other.host.namespace.inside():
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender, receiver:
            receiver.bind((other.host.ipv4, 0))
            lab.cut_udp(one, other)
            sender.sendto(b"lost", receiver.getsockname())
            one.host.namespace.run("ping", "-c1", "-W5", other.host.ipv4)
            lab.heal_udp()
            sender.sendto(b"through", receiver.getsockname())
            receiver.settimeout(5)
            assert receiver.recv(64) == b"through"


def test_hosts_of_one_site_reach_each_other_directly() -> None:
    with Lab() as lab:
        site = lab.site("home", NatKind.PORT_RESTRICTED, hosts=("left", "right"))
        site.hosts[0].namespace.run("ping", "-c1", "-W5", site.hosts[1].ipv4)


def test_lab_left_by_an_exception_leaves_nothing() -> None:
    def use_and_fail() -> None:
        with Lab() as lab:
            lab.site("home", NatKind.PORT_RESTRICTED).host.namespace.start("sleeper", ["sleep", "1000"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert _leftovers(os.getpid()) == []


def test_process_that_ignores_sigterm_is_killed() -> None:
    with Lab() as lab:
        process = lab.core.start("stubborn", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])
        deadline = time.monotonic() + 10
        while "up" not in process.output() and time.monotonic() < deadline:
            os.sched_yield()
        assert process.stop(patience=0.3) == -signal.SIGKILL


def _count_until_stopped(stop: namespaces.StopSignal, emit: namespaces.Emit) -> None:
    emit({"n": 1})
    stop.wait(30)
    emit({"n": 2})


def test_task_emits_events_and_its_failure_is_reported() -> None:
    with Lab() as lab:
        task = lab.core.task("counting", _count_until_stopped)
        assert task.next_event(10) == {"n": 1}
        with pytest.raises(TimedOutError):
            task.next_event(0.05)
        assert task.result() == {"n": 2}
        broken = lab.core.task("broken", lambda stop, emit: emit({"n": 1 // 0}))
        with pytest.raises(HostError, match="ZeroDivisionError"):
            broken.result()


def test_killed_lab_is_swept_by_the_next_one() -> None:
    script = """
import time
from calnet.roles.demo.lab import Lab
lab = Lab().__enter__()
lab.core.start("sleeper", ["sleep", "1000"])
print("up", flush=True)
time.sleep(1000)
"""
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    child.kill()
    child.wait(10)
    child.stdout.close()
    assert _leftovers(child.pid) != []
    namespaces.sweep()
    assert _leftovers(child.pid) == []


def test_interrupted_lab_leaves_nothing() -> None:
    script = """
import time
from calnet.roles.demo.lab import Lab
with Lab() as lab:
    print("up", flush=True)
    time.sleep(1000)
"""
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGINT)
    child.wait(20)
    child.stdout.close()
    assert _leftovers(child.pid) == []


def test_observed_behaviours_are_named_as_rfc_4787_names_them() -> None:
    assert {b.value for b in Behaviour} == {"endpoint-independent", "address-dependent", "address-and-port-dependent", "no-udp"}
