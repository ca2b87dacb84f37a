import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.remote_servers.worker.rules import event_stream
from features.remote_servers.worker.rules.event_stream import BadStream, Lines, StreamEventParser

STREAM = (
    b"\xef\xbb\xbf: a comment\n\ndata: one\n\ndata:two\r\n\r\nevent: error\rdata: three\r\r"
    b"id: 7\nretry: 10\ndata: first line\ndata: second line\nunknown\n\ndata\n\n\n\n: only a comment\n\ndata:  \xc3\xa9\n\ndata: cut off\n"
)
EVENTS = [
    b"one",
    b"two",
    b"three",
    b"first line\nsecond line",
    b"",
    b" \xc3\xa9",
]


def in_pieces(stream: bytes, size: int) -> list[bytes]:
    events = StreamEventParser()
    return [event for at in range(0, len(stream), size) for event in events.push(stream[at : at + size])]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
def test_events_are_the_same_in_pieces_of_any_size(size: int) -> None:
    assert in_pieces(STREAM, size) == EVENTS


@given(st.binary(max_size=200).map(lambda data: data.replace(b"x", b"\r\n").replace(b"y", b"\ndata: ")), st.data())
def test_no_cut_changes_what_is_read(stream: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(stream)))
    events = StreamEventParser()
    assert events.push(stream[:cut]) + events.push(stream[cut:]) == in_pieces(stream, len(stream) or 1)


def test_a_line_end_may_be_cut_in_its_middle() -> None:
    lines = Lines()
    assert [lines.push(piece) for piece in (b"a\r", b"\nb", b"\r", b"\r\n", b"\n")] == [[b"a"], [], [b"b"], [b""], [b""]]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"data: " + b"x" * event_stream.MAX_EVENT_BYTES], id="a line without an end"),
        pytest.param([b"x" * event_stream.MAX_EVENT_BYTES + b"x\n"], id="a line with one"),
        pytest.param([b"x" * 65536] * 17, id="a line in pieces"),
        pytest.param([b"data: " + b"x" * 65536 + b"\n"] * 17, id="an event of many lines"),
    ],
)
def test_nothing_grows_without_bound(pieces: list[bytes]) -> None:
    events = StreamEventParser()
    with pytest.raises(BadStream, match="1048576 bytes"):
        for piece in pieces:
            events.push(piece)


def test_an_event_as_large_as_may_be_is_read() -> None:
    data = b"x" * (event_stream.MAX_EVENT_BYTES - 6)
    assert in_pieces(b"data: " + data + b"\n\n", 65536) == [data]
