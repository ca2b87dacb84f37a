"""Frames on the wire: an independent msgpack reads them, and no peer can do harm with them."""

import random
import time
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import errors
from shared.identity import node_keys
from shared.protocol import wire
from shared.protocol.wire import (
    Accepted,
    Announce,
    Call,
    Cancel,
    Credit,
    End,
    Error,
    Frame,
    Goaway,
    Grant,
    Hello,
    Item,
    Piece,
    Ping,
    Pong,
    Reply,
)
from shared.types import NodeId, Role

SEED = b"SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"  # from the NATS documentation, not in use
KEY = node_keys.NodeKey(SEED)
HELLO = Hello(1, Role.WORKER, KEY.id, 1_700_000_000_000, "aimesh/0.1.0", b"")

ONE_OF_EACH: list[tuple[Frame, list[object]]] = [
    (Announce(b"x"), [2, b"x"]),
    (
        Call(1, "auth.loginUser", 2000, b"\x80", credential="k"),
        [3, 1, "auth.loginUser", 2000, b"\x80", False, 0, 0, b"", "", "", "k", 0],
    ),
    (Accepted(1), [4, 1, b""]),
    (Reply(1, b"\x80"), [5, 1, b"\x80", False]),
    (Item(3, b"\x80", True), [6, 3, b"\x80", True]),
    (End(3, b"\x80"), [7, 3, b"\x80", False]),
    (Error(3, errors.Problem("limited", "no")), [8, 3, ["limited", "no", "", "ours", False, None, ""]]),
    (Cancel(3), [9, 3]),
    (Credit(3, 512, 4096, 64), [10, 3, 512, 4096, 64]),
    (Ping(7), [11, 7]),
    (Pong(7, 2), [12, 7, 2]),
    (Goaway("bye"), [13, "bye"]),
    (Piece(3, b"more", False), [14, 3, b"more", False]),
    (Grant(3, 65536), [15, 3, 65536]),
]


@pytest.mark.parametrize(("frame", "plain"), ONE_OF_EACH, ids=[type(frame).__name__ for frame, _ in ONE_OF_EACH])
def test_an_independent_msgpack_library_reads_and_writes_the_same(frame: Frame, plain: list[object]) -> None:
    assert msgpack.unpackb(wire.encode([frame])) == [plain]
    assert wire.decode(msgpack.packb([plain])) == [frame]


def test_the_signed_text_of_hello_never_changes() -> None:
    """A change here locks out every older node. Certificates are further fields; this text stays as it is."""
    text = wire.hello_text(HELLO, NodeId("UPEER"), 42)
    assert msgpack.unpackb(text) == [1, "worker", KEY.id, "UPEER", 42, 1_700_000_000_000]
    assert KEY.sign("hello", text).hex() == (
        "a8d9c464360d7ab7fca78b0be1d20763620a34b2aa7ae7c8d3df93000405a67b54bc856f103b48d5387499de66c9beb2083bf2d4c448797434c1443fc8d9f109"
    )


def test_a_signature_is_valid_only_for_its_purpose_peer_and_link() -> None:
    text = wire.hello_text(HELLO, NodeId("UPEER"), 42)
    signature = KEY.sign("hello", text)
    assert node_keys.verify(KEY.id, "hello", text, signature)
    assert not node_keys.verify(KEY.id, "certificate", text, signature)
    assert not node_keys.verify(KEY.id, "hello", wire.hello_text(HELLO, NodeId("UOTHER"), 42), signature)
    assert not node_keys.verify(KEY.id, "hello", wire.hello_text(HELLO, NodeId("UPEER"), 43), signature)
    assert not node_keys.verify(KEY.id, "hello", text, KEY.sign_bare(text)), "a NATS login must never pass for a HELLO"
    assert not node_keys.verify(NodeId("not a key"), "hello", text, signature)


def test_unknown_fields_are_ignored_and_missing_ones_get_defaults() -> None:
    assert wire.decode(msgpack.packb([[9, 3, "why", {"new": 1}]])) == [Cancel(3)]
    assert wire.decode(msgpack.packb([[3, 1, "a.b", 5, b""]])) == [Call(1, "a.b", 5, b"")]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="a byte that msgpack never uses"),
        pytest.param(wire.encode([Ping(1)])[:-1], id="truncated"),
        pytest.param(wire.encode([Ping(1)]) + b"\x00", id="something after the end"),
        pytest.param(msgpack.packb([[99, 1]]), id="an unknown tag"),
        pytest.param(msgpack.packb([[3]]), id="a call without fields"),
        pytest.param(msgpack.packb([[9, "three"]]), id="a wrong type"),
        pytest.param(msgpack.packb([[9, 2**63]])[:-4], id="half a number"),
        pytest.param(msgpack.packb({"a": 1}), id="a map"),
        pytest.param(msgpack.packb([[13, b"\xff\xfe"]]).replace(b"\xc4", b"\xd9"), id="text that is not UTF-8"),
        pytest.param(b"\x91" * 100_000, id="nested beyond measure"),
        pytest.param(b"\xc0" * (wire.MAX_WRITE_BYTES + 1), id="longer than a write may be"),
        pytest.param(msgpack.packb([[6, 1, msgpack.ExtType(4, b"x"), False]]), id="an extension type"),
    ],
)
def test_invalid_frames_are_refused(data: bytes) -> None:
    with pytest.raises(errors.ProtocolViolation):
        wire.decode(data)


def test_a_write_over_the_limit_is_refused_before_it_is_read() -> None:
    """The frames are valid but too many."""
    frames = [wire.Ping(number) for number in range(wire.MAX_BYTES_BEFORE_HELLO)]
    body = wire.encode(frames)
    assert wire.decode(body) == frames
    assert wire.decode(body, limit=len(body)) == frames
    with pytest.raises(errors.ProtocolViolation, match=f"a write of {len(body)} bytes is over the limit"):
        wire.decode(body, limit=len(body) - 1)


def test_a_huge_array_header_costs_next_to_nothing() -> None:
    """5 KB of array headers that each announce four billion elements; msgpack's Unpacker allocates 70 MB for them."""
    bomb = b"\xdd\xff\xff\xff\xff" * 1000
    fastest = 1.0
    tracemalloc.start()
    for _ in range(20):
        start = time.thread_time()
        with pytest.raises(errors.ProtocolViolation, match=r"not frames: Expected `int`, got `array` - at `\$\[0\]\[0\]"):
            wire.decode(bomb)
        fastest = min(fastest, time.thread_time() - start)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fastest < 0.001
    assert peak < 1_000_000


def _decodes_or_refuses(data: bytes) -> None:
    try:
        wire.decode(data)
    except errors.ProtocolViolation:
        pass


def test_fifty_thousand_corrupted_writes_are_refused_or_decoded() -> None:
    rng = random.Random(20261120)
    good = [wire.encode([frame for frame, _ in rng.choices(ONE_OF_EACH, k=rng.randint(1, 5))]) for _ in range(200)]
    for number in range(50_000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 6)):
            match number % 4:
                case 0:
                    data[rng.randrange(len(data))] = rng.randrange(256)
                case 1:
                    del data[rng.randrange(len(data)) :]
                    data = data or bytearray(b"\x91")
                case 2:
                    at = rng.randrange(len(data))
                    data[at:at] = rng.randbytes(rng.randint(1, 8))
                case _:
                    data = bytearray(rng.randbytes(rng.randint(1, 64)))
        _decodes_or_refuses(bytes(data))


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_are_refused_or_decoded(data: bytes) -> None:
    _decodes_or_refuses(data)
