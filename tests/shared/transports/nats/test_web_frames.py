"""A WebSocket's frames, however the network cuts them."""

import base64
import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.transports.nats import web_frames
from shared.transports.nats.web_frames import BadFrame, BadHandshake, FrameReader


def frame(payload: bytes, opcode: int = 2, *, final: bool = True) -> bytes:
    """Return a frame as a server sends it."""
    size = len(payload)
    first = bytes([(0x80 if final else 0) | opcode])
    if size <= 125:
        return first + bytes([size]) + payload
    return first + (bytes([126]) + size.to_bytes(2, "big") if size < 1 << 16 else bytes([127]) + size.to_bytes(8, "big")) + payload


def unmasked(data: bytes) -> bytes:
    """Return the payload of one frame of a client."""
    assert data[0] & 0x80
    assert data[1] & 0x80, "a client masks"
    size, at = data[1] & 0x7F, 2
    if size > 125:
        wide = 2 if size == 126 else 8
        size, at = int.from_bytes(data[2 : 2 + wide], "big"), 2 + wide
    mask, payload = data[at : at + 4], data[at + 4 :]
    assert len(payload) == size
    return bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


@given(
    frames=st.lists(st.tuples(st.binary(max_size=300), st.sampled_from([0, 2]), st.booleans()), max_size=6),
    pings=st.lists(st.binary(max_size=125), max_size=2),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_the_payload_is_the_same_however_it_is_cut(frames: list[tuple[bytes, int, bool]], pings: list[bytes], cuts: list[int]) -> None:
    sent = b"".join(frame(payload, opcode, final=final) for payload, opcode, final in frames) + b"".join(frame(p, 9) for p in pings)
    places = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    reader = FrameReader()
    got = b"".join(reader.feed(sent[start:end]) for start, end in itertools.pairwise(places))
    assert got == b"".join(payload for payload, _, _ in frames)
    assert [unmasked(answer) for answer in reader.answers] == pings


def test_a_huge_frame_is_passed_on_as_it_comes() -> None:
    reader, size = FrameReader(), 64 * 1024 * 1024
    assert reader.feed(bytes([0x82, 127]) + size.to_bytes(8, "big") + b"abc") == b"abc"
    assert reader.feed(b"d" * 1000) == b"d" * 1000


@given(st.binary(max_size=70_000))
def test_what_is_sent_is_masked_and_whole(payload: bytes) -> None:
    assert unmasked(web_frames.render(payload)) == payload


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"\x81\x01x", id="text"),
        pytest.param(b"\xc2\x01x", id="a reserved bit, as of compression"),
        pytest.param(b"\x82\x81abcdx", id="masked"),
        pytest.param(b"\x89\x7e\x00\x80", id="a long ping"),
        pytest.param(b"\x09\x00", id="a ping in parts"),
        pytest.param(b"\x83\x00", id="an unknown kind"),
    ],
)
def test_what_no_server_sends_is_refused(bad: bytes) -> None:
    with pytest.raises(BadFrame):
        FrameReader().feed(bad)


def test_nothing_is_read_after_a_close() -> None:
    reader = FrameReader()
    assert reader.feed(frame(b"a") + frame(b"\x03\xe8", 8) + frame(b"b")) == b"a"
    assert reader.is_over
    assert [unmasked(answer) for answer in reader.answers] == [b"\x03\xe8"]


def accepted(key: str) -> bytes:
    return base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())


def test_an_answer_to_our_own_key_is_accepted() -> None:
    key = web_frames.new_key()
    head = b"HTTP/1.1 101 Switching Protocols\r\nUPGRADE: WebSocket\r\nSec-WebSocket-Accept: %b\r\n\r\n"
    web_frames.check_answer(head % accepted(key), key)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n", "answered with status 200 instead of 101"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n", "answered without a WebSocket"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "answered without a WebSocket"),
        (b"INFO {}\r\n\r\n", "doesn't speak HTTP"),
        (b"", "doesn't speak HTTP"),
    ],
)
def test_whoever_speaks_no_websocket_is_refused(head: bytes, why: str) -> None:
    with pytest.raises(BadHandshake, match=why):
        web_frames.check_answer(head, web_frames.new_key())
