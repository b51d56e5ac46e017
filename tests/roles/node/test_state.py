"""The node's state directory: what it keeps, who may read it, what damage and a full disk do."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calnet.errors import StateError
from calnet.host.netlink import Numbers
from calnet.model import Netmap, NodeId, NodeKey, Peer, SelfNode
from calnet.roles.node.state import Keys, NodeState, Pin, Prefs, StateDirectory, decode_state, encode_state
from tests.roles.node.full_disk import fill_up


def open_directory(path: Path, seed: int = 1) -> StateDirectory:
    return StateDirectory(path, Random(seed).randbytes)


def a_netmap(version: int = 3) -> Netmap:
    peer = Peer(NodeId(2), "bob", NodeKey(b"k" * 32), (ip_address("100.70.0.2"),), key_expires=99.0)
    return Netmap(version, SelfNode(NodeId(1), "alice", (ip_address("100.70.0.1"),)), (ip_network("100.70.0.0/24"),), (peer,))


def test_directory_first_opened_makes_keys_and_keeps_them(tmp_path: Path) -> None:
    first = open_directory(tmp_path / "state")
    public = first.state.keys.control.public
    first.close()
    second = open_directory(tmp_path / "state", seed=2)
    assert second.state.keys.control.public == public
    second.close()


def test_directory_in_use_is_refused_to_a_second_daemon(tmp_path: Path) -> None:
    first = open_directory(tmp_path / "state")
    with pytest.raises(StateError, match="another daemon uses"):
        open_directory(tmp_path / "state")
    first.close()
    open_directory(tmp_path / "state").close()


def test_state_encoded_and_decoded_is_the_same() -> None:
    keys = Keys.generate(Random(1).randbytes)
    renewed = keys.renewed(Random(2).randbytes)
    assert renewed.control is keys.control
    assert renewed.previous is keys.node
    prefs = Prefs(True, "alice", ("10.0.0.0/8",), True, "op", 4242, (Pin(2, "bob", ("100.70.0.2",), b"p" * 32),))
    state = NodeState(renewed, "http://s:8080", b"s" * 32, True, False, True, 12.5, prefs)
    again = decode_state(encode_state(state))
    assert replace(again, keys=keys) == replace(state, keys=keys)
    pairs = zip(
        (again.keys.control, again.keys.node, again.keys.discovery, again.keys.previous),
        (renewed.control, renewed.node, renewed.discovery, renewed.previous),
        strict=True,
    )
    for read, written in pairs:
        assert read is not None
        assert written is not None
        assert read.secret_bytes() == written.secret_bytes()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_decode_state_of_random_bytes_raises_its_documented_error(data: bytes) -> None:
    with pytest.raises(StateError):
        decode_state(data)


def test_decode_state_truncated_anywhere_raises_its_documented_error() -> None:
    whole = encode_state(NodeState(Keys.generate(Random(1).randbytes)))
    for length in range(len(whole) - 2):
        with pytest.raises(StateError):
            decode_state(whole[:length])


def test_decode_state_of_a_newer_format_names_it() -> None:
    data = encode_state(NodeState(Keys.generate(Random(1).randbytes))).replace(b'"format": 1', b'"format": 2')
    with pytest.raises(StateError, match="format 2"):
        decode_state(data)


def test_directory_with_a_damaged_state_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_directory(tmp_path / "state").close()
    path = tmp_path / "state" / "node.json"
    damaged = path.read_bytes()[:-40]
    path.write_bytes(damaged)
    with pytest.raises(StateError, match=r"node\.json is damaged .*restore it from a backup"):
        open_directory(tmp_path / "state")
    assert path.read_bytes() == damaged


def test_netmap_saved_is_loaded_again_and_removed(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "state")
    assert directory.load_netmap() == (None, None)
    directory.save_netmap(a_netmap())
    assert directory.load_netmap() == (a_netmap(), None)
    directory.save_netmap(None)
    assert directory.load_netmap() == (None, None)
    directory.close()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:20] + b"\xff" + data[21:], lambda data: b"", lambda data: data + b"x"])
def test_netmap_damaged_is_set_aside_and_nothing_is_lost(tmp_path: Path, damage: object) -> None:
    directory = open_directory(tmp_path / "state")
    directory.save_netmap(a_netmap())
    path = tmp_path / "state" / "netmap"
    damaged = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(damaged)
    netmap, aside = directory.load_netmap()
    assert netmap is None
    assert aside is not None
    assert aside.read_bytes() == damaged
    assert not path.exists()
    directory.close()


def test_prefs_saved_on_a_full_disk_leave_the_old_ones(small_disk: Path) -> None:
    directory = open_directory(small_disk / "state")
    before = directory.state
    fill_up(small_disk / "fill")
    with pytest.raises(StateError, match="no space left"):
        directory.save_prefs(Prefs(want_up=True, hostname="x" * 63))
    assert directory.state is before
    directory.close()
    again = open_directory(small_disk / "state")
    assert not again.state.prefs.want_up
    again.close()


def test_host_note_recorded_is_found_by_the_next_start(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "state")
    assert directory.recorded_host() is None
    directory.record_host("calnet0", Numbers(7070))
    assert directory.recorded_host() == ("calnet0", Numbers(7070))
    directory.record_host("calnet0", None)
    assert directory.recorded_host() is None
    (tmp_path / "state" / "host.json").write_bytes(b"{")
    (tmp_path / "state" / "host.json").chmod(0o600)
    assert directory.recorded_host() is None
    directory.close()


def test_all_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        directory = open_directory(tmp_path / "state")
        directory.save_netmap(a_netmap())
        directory.record_host("calnet0", Numbers(7070))
        directory.stamps.persist(b"k" * 32, b"t" * 12, sent=True)
        directory.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    files = list((tmp_path / "state").iterdir())
    assert len(files) == 5
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
