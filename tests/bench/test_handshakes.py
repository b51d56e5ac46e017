"""The bench of handshakes: its initiations, that the machine answers all of them, and its rows from given results."""

from __future__ import annotations

import random

from bench.crowd import members
from bench.handshakes import attempts, in_memory, rows
from calnet.crypto.keys import PrivateKey
from calnet.tunnel.handshake import read_initiation
from calnet.wire.tunnel import Initiation, parse_handshake

seeded = random.Random(7).randbytes
ROW = "…CPU of each: calnet × wireguard-go (Debian)"


def test_attempts_are_genuine_with_an_index_each_and_later_stamps_each_turn() -> None:
    node = PrivateKey.generate(seeded)
    made = attempts(members(3), node.public, 2, 1_800_000_000.0)
    assert [attempt.member.number for attempt in made] == [0, 1, 2, 0, 1, 2]
    stamps = []
    for place, attempt in enumerate(made):
        message = parse_handshake(attempt.body + bytes(32))
        assert isinstance(message, Initiation)
        assert message.sender == attempt.pending.local_index == place
        _, static, stamp = read_initiation(node, message, seeded)
        assert static == attempt.member.key.public
        stamps.append(stamp)
    assert stamps[0] == stamps[2] < stamps[3] == stamps[5]


def test_in_memory_answers_more_handshakes_than_the_load_meter_lets_through_at_once() -> None:
    spent, alone = in_memory(60, 5)
    assert spent > alone > 0


def test_rows_compare_with_x25519_and_wireguard_go_by_medians() -> None:
    floods = {
        "calnet": [{"rate": rate, "cpu_ms": cpu} for rate, cpu in ((3000.0, 0.3), (1000.0, 0.9), (3200.0, 0.28))],
        "wireguard-go": [{"rate": 5000.0, "cpu_ms": 0.25}],
    }
    made = {row.what: row for row in rows((0.25, 0.125), floods)}
    assert made["handshake, responder in memory: CPU"].measured == "0.25 ms: 4,000 a second"
    assert made["handshake, responder in memory: CPU"].ratio == 1.0
    assert made["…answered on the wire, 500 peers: calnet"].measured == "3,000 a second, 0.30 ms of CPU each"
    assert (made[ROW].measured, made[ROW].verdict) == ("1.20 ×", "met")
