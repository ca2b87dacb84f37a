"""The sidecar's codec: whole frames, frames split anywhere, and refused ones."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyhyperswarm import sidecar_frames

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=8)


def encode(sent: list[sidecar_frames.Frame]) -> bytes:
    return b"".join(sidecar_frames.header(kind, number, len(payload)) + payload for kind, number, payload in sent)


@given(FRAMES, st.lists(st.integers(0, 2000), max_size=12))
def test_splitting_anywhere_gives_the_same_frames(sent: list[sidecar_frames.Frame], cuts: list[int]) -> None:
    stream = encode(sent)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parser = sidecar_frames.SidecarParser()
    found = [frame for start, end in itertools.pairwise(edges) for frame in parser.feed(stream[start:end])]
    assert found == sent


def test_splitting_at_every_byte_gives_the_same_frames() -> None:
    sent = [(sidecar_frames.DATA, 7, b"hello"), (sidecar_frames.CLOSE, 1, b""), (sidecar_frames.PART, 2**32 - 1, bytes(300))]
    parser = sidecar_frames.SidecarParser()
    assert [frame for byte in encode(sent) for frame in parser.feed(bytes([byte]))] == sent


@pytest.mark.parametrize("length", [0, 4, sidecar_frames.MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_an_impossible_length_is_refused_before_anything_is_buffered(length: int) -> None:
    with pytest.raises(sidecar_frames.BadFrame):
        sidecar_frames.SidecarParser().feed(length.to_bytes(4, "little") + bytes(5))


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_incomplete(garbage: bytes) -> None:
    try:
        sidecar_frames.SidecarParser().feed(garbage)
    except sidecar_frames.BadFrame:
        pass


@pytest.mark.parametrize("payload", [b"", b"123", b"12345"])
def test_a_number_has_four_bytes(payload: bytes) -> None:
    with pytest.raises(sidecar_frames.BadFrame):
        sidecar_frames.number(payload)
    assert sidecar_frames.number(sidecar_frames.encode_number(70_000)) == 70_000
