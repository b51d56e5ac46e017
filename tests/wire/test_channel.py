"""The secure channel: whole messages both ways, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.crypto.keys import PrivateKey
from calnet.errors import AuthenticationError, CalnetError, ProtocolError, RemoteError, StateMisuseError, WireError
from calnet.wire.channel import CHUNK_SIZE, MAX_CLIENT_MESSAGE, VERSION, Channel


def key(number: int) -> PrivateKey:
    return PrivateKey(bytes((number,)) * 32)


def pair() -> tuple[Channel, Channel]:
    """An established channel: (client, server)."""
    client = Channel.client(key(1), key(2).public, key(3))
    server = Channel.server(key(2), key(4))
    answer = server.receive_handshake(client.opening())
    assert answer is not None
    assert client.receive_handshake(answer) is None
    return client, server


def carry(sender: Channel, receiver: Channel, message: bytes) -> bytes | None:
    results = [receiver.receive(part) for part in sender.send(message)]
    assert all(result is None for result in results[:-1])
    return results[-1]


def test_handshake_between_genuine_sides_agrees_on_keys_and_hash() -> None:
    client, server = pair()
    assert client.established
    assert server.established
    assert client.hash == server.hash
    assert server.remote_static == key(1).public
    assert client.remote_static == key(2).public


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE, 200_000])
def test_message_of_any_size_arrives_whole_both_ways(size: int) -> None:
    client, server = pair()
    message = bytes(index % 251 for index in range(size))
    for sender, receiver in ((client, server), (server, client), (client, server)):
        assert carry(sender, receiver, message) == message


def test_every_part_is_at_most_a_noise_message() -> None:
    client, _ = pair()
    assert all(len(part) <= 65_535 for part in client.send(bytes(300_000)))


def test_message_over_the_bound_is_refused() -> None:
    client, server = pair()
    with pytest.raises(ProtocolError, match="longer"):
        carry(client, server, bytes(MAX_CLIENT_MESSAGE + 1))


def test_endless_empty_parts_are_refused() -> None:
    client, server = pair()
    part = bytearray(17)
    assert client._sending is not None
    client._sending.seal_into(bytes(12), b"\x01", None, part)
    with pytest.raises(ProtocolError):
        server.receive(bytes(part))


def test_part_with_an_unknown_flag_is_refused() -> None:
    client, server = pair()
    part = bytearray(18)
    assert client._sending is not None
    client._sending.seal_into(bytes(12), b"\x02x", None, part)
    with pytest.raises(WireError):
        server.receive(bytes(part))


def test_wrong_server_key_is_refused_by_the_server() -> None:
    client = Channel.client(key(1), key(9).public, key(3))
    with pytest.raises(AuthenticationError):
        Channel.server(key(2), key(4)).receive_handshake(client.opening())


def test_other_version_is_named() -> None:
    opening = bytes((VERSION + 1,)) + Channel.client(key(1), key(2).public, key(3)).opening()[1:]
    with pytest.raises(WireError, match="version"):
        Channel.server(key(2), key(4)).receive_handshake(opening)


def test_replayed_and_reordered_parts_do_not_authenticate() -> None:
    client, server = pair()
    first = next(client.send(b"one"))
    assert server.receive(first) == b"one"
    with pytest.raises(AuthenticationError):
        server.receive(first)


def test_payload_in_a_handshake_message_is_refused() -> None:
    client = Channel.client(key(1), key(2).public, key(3))
    opening = bytes((VERSION,)) + client._handshake.write_message(b"request")
    with pytest.raises(ProtocolError):
        Channel.server(key(2), key(4)).receive_handshake(opening)


def test_calls_before_the_handshake_are_misuse() -> None:
    server = Channel.server(key(2), key(4))
    with pytest.raises(StateMisuseError):
        next(server.send(b""))
    with pytest.raises(StateMisuseError):
        server.receive(bytes(20))
    with pytest.raises(StateMisuseError):
        _ = server.remote_static


@given(st.binary(max_size=200))
def test_random_bytes_raise_remote_errors_alone(data: bytes) -> None:
    with pytest.raises(RemoteError):
        Channel.server(key(2), key(4)).receive_handshake(data)
    _, server = pair()
    with pytest.raises(RemoteError):
        server.receive(data)


def test_truncated_handshake_at_every_length_is_refused() -> None:
    opening = Channel.client(key(1), key(2).public, key(3)).opening()
    for size in range(len(opening)):
        with pytest.raises(CalnetError):
            Channel.server(key(2), key(4)).receive_handshake(opening[:size])
    with pytest.raises(CalnetError):
        Channel.server(key(2), key(4)).receive_handshake(opening + b"\0")
