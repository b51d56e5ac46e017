from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calnet.crypto.keys import PrivateKey
from calnet.errors import AuthenticationError, ProtocolError, RemoteError, StateMisuseError, WireError
from calnet.model import NodeKey
from calnet.wire import relay
from calnet.wire.channel import Channel
from calnet.wire.relay import Bound, Close, Data, Gone, Ping, Pong, Reason, RelayDecoder, RelayEncoder, Unknown

RANDOM = random.Random(7)
KEYS = [NodeKey(RANDOM.randbytes(32)) for _ in range(12)]
Pairs = list[tuple[bytes, bytes]]


def key() -> PrivateKey:
    return PrivateKey.generate(RANDOM.randbytes)


def decoded(decoder: RelayDecoder, frames: list[bytes]) -> Pairs:
    found: Pairs = []
    for frame in frames:
        assert len(frame) <= relay.MAX_FRAME_SIZE
        event = decoder.decode(frame)
        if isinstance(event, Data):
            found.extend((peer, bytes(datagram)) for peer, datagram in event.datagrams)
        else:
            assert event == Bound()
    return found


# --- opening ---


def opened() -> tuple[Channel, Channel, PrivateKey]:
    node, control = key(), key()
    client, server = relay.client_channel(node, control.public, key()), relay.server_channel(control, key())
    answer = server.receive_handshake(client.opening())
    assert answer is not None
    client.receive_handshake(answer)
    return client, server, node


def test_opening_proof_and_welcome_names_the_node_key() -> None:
    client, server, node = opened()
    assert relay.check_proof(server, relay.proof(client)) == node.public
    assert relay.read_verdict(client, relay.verdict(server, Reason.WELCOME)) is None


def test_opening_refused_gives_reason_and_text() -> None:
    client, server, _ = opened()
    assert relay.read_verdict(client, relay.verdict(server, Reason.EXPIRED, "the key has expired")) == Close(Reason.EXPIRED, "the key has expired")


def test_opening_first_message_replayed_has_no_proof() -> None:
    node, control = key(), key()
    client = relay.client_channel(node, control.public, key())
    first = client.opening()
    one, other = relay.server_channel(control, key()), relay.server_channel(control, key())
    answer = one.receive_handshake(first)
    assert answer is not None
    client.receive_handshake(answer)
    genuine = relay.proof(client)
    other.receive_handshake(first)
    with pytest.raises(AuthenticationError):
        relay.check_proof(other, genuine)
    assert relay.check_proof(one, genuine) == node.public


def test_opening_with_the_control_prologue_fails() -> None:
    control = key()
    client = Channel.client(key(), control.public, key())
    with pytest.raises(AuthenticationError):
        relay.server_channel(control, key()).receive_handshake(client.opening())


def test_proof_with_content_raises_wire_error() -> None:
    client, server, _ = opened()
    with pytest.raises(WireError):
        relay.check_proof(server, b"".join(client.send(b"hello")))


def test_verdict_in_parts_raises_wire_error() -> None:
    client, server, _ = opened()
    with pytest.raises(WireError):
        relay.read_verdict(client, next(iter(server.send(bytes(100_000)))))


# --- data ---


def test_encoder_batch_is_one_bind_and_one_data_frame() -> None:
    frames = RelayEncoder().encode([(KEYS[0], b"one"), (KEYS[1], b"two"), (KEYS[0], b"three")])
    assert frames == [
        b"\x02\0\0" + KEYS[0] + b"\0\1" + KEYS[1],
        b"\x01\0\0\0\3one\0\1\0\3two\0\0\0\5three",
    ]


def test_encoder_binds_a_key_once() -> None:
    encoder = RelayEncoder()
    assert len(encoder.encode([(KEYS[0], b"one")])) == 2
    assert encoder.encode([(KEYS[0], b"two")]) == [b"\x01\0\0\0\3two"]
    assert encoder.take() == []


def test_encoder_more_than_a_frame_goes_on_in_the_next() -> None:
    pairs: Pairs = [(KEYS[n % 3], bytes([n]) * 1_400) for n in range(200)]
    frames = RelayEncoder().encode(pairs)
    assert len(frames) == 1 + 5
    assert decoded(RelayDecoder(), frames) == pairs


def test_encoder_largest_datagram_fits() -> None:
    pairs: Pairs = [(KEYS[0], bytes(relay.MAX_DATAGRAM_SIZE)), (KEYS[0], b"x")]
    assert decoded(RelayDecoder(), RelayEncoder().encode(pairs)) == pairs


@pytest.mark.parametrize("size", [0, relay.MAX_DATAGRAM_SIZE + 1])
def test_encoder_datagram_of_no_size_to_send_raises_misuse(size: int) -> None:
    encoder = RelayEncoder()
    with pytest.raises(StateMisuseError):
        encoder.add(KEYS[0], bytes(size))
    assert encoder.take() == []


@given(st.lists(st.tuples(st.integers(0, 11), st.binary(min_size=1, max_size=90)), max_size=60), st.integers(1, 4), st.integers(100, 300))
def test_encoder_with_few_ids_and_small_frames_loses_and_mixes_up_nothing(script: list[tuple[int, bytes]], ids: int, size: int) -> None:
    encoder, decoder = RelayEncoder(max_frame=size, max_bindings=ids), RelayDecoder(max_bindings=ids)
    pairs: Pairs = [(KEYS[number], data) for number, data in script]
    half = len(pairs) // 2
    assert decoded(decoder, encoder.encode(pairs[:half])) == pairs[:half]
    assert decoded(decoder, encoder.encode(pairs[half:])) == pairs[half:]


def test_encoder_thousands_of_keys_stay_within_bounds() -> None:
    keys = [NodeKey(struct.pack("!Q", n) * 4) for n in range(5_000)]
    pairs: Pairs = [(peer, b"x") for peer in keys]
    assert decoded(RelayDecoder(), RelayEncoder().encode(pairs)) == pairs


def test_decoder_views_are_of_the_frame() -> None:
    decoder = RelayDecoder()
    bind, data = RelayEncoder().encode([(KEYS[0], b"one")])
    decoder.decode(bind)
    event = decoder.decode(data)
    assert isinstance(event, Data)
    assert event.datagrams[0][1].obj is data


# --- other frames ---


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        (relay.ping_frame(b"12345678"), Ping(b"12345678")),
        (relay.pong_frame(b"12345678"), Pong(b"12345678")),
        (relay.close_frame(Reason.REPLACED, "a newer connection"), Close(Reason.REPLACED, "a newer connection")),
        (relay.close_frame(Reason.OTHER), Close(Reason.OTHER, "")),
        (b"\x05\x12\x34\x1b[2J", Close(Reason.OTHER, "?[2J")),
        (relay.gone_frame(KEYS[:2]), Gone((KEYS[0], KEYS[1]))),
        (b"\x7fwhatever", Unknown(0x7F)),
    ],
)
def test_decoder_control_frame_is_read(frame: bytes, event: relay.RelayFrame) -> None:
    assert RelayDecoder().decode(frame) == event


def test_close_long_text_is_cut_between_characters() -> None:
    event = RelayDecoder().decode(relay.close_frame(Reason.OTHER, "é" * 300))
    assert event == Close(Reason.OTHER, "é" * 127)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes(relay.MAX_FRAME_SIZE + 1), id="too long"),
        pytest.param(b"\x01", id="no record"),
        pytest.param(b"\x01\0\0\0", id="half a record"),
        pytest.param(b"\x01\0\0\0\2x", id="past the end"),
        pytest.param(b"\x01\0\0\0\0", id="empty datagram"),
        pytest.param(b"\x01\0\0\0\1xy", id="trailing"),
        pytest.param(b"\x02", id="no binding"),
        pytest.param(b"\x02\0\0" + bytes(31), id="half a binding"),
        pytest.param(b"\x03short", id="ping"),
        pytest.param(b"\x04too long by one", id="pong"),
        pytest.param(b"\x05\0", id="close"),
        pytest.param(b"\x05\0\0\xff", id="close text"),
        pytest.param(b"\x05\0\0" + bytes(256), id="close long text"),
        pytest.param(b"\x06", id="gone"),
        pytest.param(b"\x06" + bytes(33), id="gone with a tail"),
    ],
)
def test_decoder_malformed_frame_raises_wire_error(frame: bytes) -> None:
    decoder = RelayDecoder()
    decoder.decode(b"\x02\0\0" + KEYS[0])
    with pytest.raises(WireError):
        decoder.decode(frame)
    assert decoder.decode(b"\x01\0\0\0\1x") == Data([(KEYS[0], memoryview(b"x"))])


def test_decoder_unbound_id_raises_protocol_error_and_delivers_nothing() -> None:
    decoder = RelayDecoder()
    decoder.decode(b"\x02\0\0" + KEYS[0])
    with pytest.raises(ProtocolError):
        decoder.decode(b"\x01\0\0\0\1x\0\1\0\1y")


def test_decoder_id_out_of_bounds_raises_protocol_error_and_binds_nothing() -> None:
    decoder = RelayDecoder()
    with pytest.raises(ProtocolError):
        decoder.decode(b"\x02\0\0" + KEYS[0] + b"\x10\0" + KEYS[1])
    with pytest.raises(ProtocolError):
        decoder.decode(b"\x01\0\0\0\1x")


@given(st.binary(max_size=200), st.integers(1, 7))
def test_decoder_fuzzed_raises_its_errors_alone(data: bytes, kind: int) -> None:
    decoder = RelayDecoder()
    decoder.decode(b"\x02\0\0" + KEYS[0])
    for frame in (data, bytes((kind,)) + data):
        with contextlib.suppress(RemoteError):
            decoder.decode(frame)


@given(st.data())
def test_decoder_truncated_frame_is_the_start_of_it_or_an_error(data: st.DataObject) -> None:
    pairs: Pairs = [(KEYS[n], bytes([n + 1]) * (n + 1)) for n in range(5)]
    bind, frame = RelayEncoder().encode(pairs)
    decoder = RelayDecoder()
    decoder.decode(bind)
    try:
        found = decoded(decoder, [frame[: data.draw(st.integers(0, len(frame)))]])
    except WireError:
        return
    assert found == pairs[: len(found)]
