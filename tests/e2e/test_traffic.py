"""The traffic tools, on a plain wire: what they report is what happened."""

from __future__ import annotations

import hashlib
import os

import pytest

from calnet.roles.demo import traffic
from calnet.roles.demo.lab import Lab
from calnet.roles.demo.product import eventually

pytestmark = pytest.mark.e2e


def test_ping_stream_over_a_whole_wire_loses_nothing() -> None:
    with Lab() as lab:
        one, other = lab.public_host("one"), lab.public_host("other")
        for address in (other.ipv4, other.ipv6 or ""):
            task = one.namespace.task("ping", traffic.ping_stream(address, interval_s=0.01))
            first = task.next_event(10)
            assert first is not None
            assert traffic.number(first, "first_reply_s") < 5
            result = task.result()
            assert result["lost"] == []
            assert result["refused"] == 0
            assert result["sent"] == result["received"] == len(traffic.numbers(result, "rtts_ms"))


def test_ping_stream_over_a_broken_wire_counts_the_losses() -> None:
    with Lab() as lab:
        one, other = lab.public_host("one"), lab.public_host("other")
        lab.core.nft("table ip cut { chain f { type filter hook forward priority 0; drop\n}\n}")
        task = one.namespace.task("ping", traffic.ping_stream(other.ipv4, interval_s=0.01))
        assert eventually(lambda: "forward" in lab.core.run("nft", "list", "ruleset").stdout, 5)
        result = task.result()
        assert result["received"] == 0
        assert result["first_reply_s"] is None
        assert len(traffic.numbers(result, "lost")) == result["sent"]


def test_tcp_bytes_sent_are_the_bytes_received() -> None:
    with Lab() as lab:
        one, other = lab.public_host("one"), lab.public_host("other")
        sink = other.namespace.task("sink", traffic.sink(other.ipv4))
        port = int(traffic.number(sink.next_event(10) or {}, "port"))
        sent = one.namespace.task("source", traffic.source(other.ipv4, port, seconds=0.3)).result(20, stop=False)
        received = sink.result(20, stop=False)
        assert received["bytes"] == sent["bytes"] != 0


def test_file_arrives_with_the_hash_it_left_with() -> None:
    with Lab() as lab:
        one, other = lab.public_host("one"), lab.public_host("other")
        path = lab.directory / "sent"
        path.write_bytes(os.urandom(1_234_567))
        sink = other.namespace.task("sink", traffic.sink(other.ipv4, save=lab.directory / "got"))
        port = int(traffic.number(sink.next_event(10) or {}, "port"))
        sent = one.namespace.task("source", traffic.send_file(other.ipv4, port, path)).result(20, stop=False)
        received = sink.result(20, stop=False)
        assert sent["sha256"] == received["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (lab.directory / "got").read_bytes() == path.read_bytes()
