import pytest
from aimesh.errors import ProtocolError
from aimesh.event_stream import MAX_EVENT_BYTES, SseEvent, SseParser

STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b'id: 1\ndata: {"text": "gr\xc3\xbc\xc3\x9fe \xf0\x9f\x90\x98"}\n\n'
    b"event: other\r\ndata:no space\r\ndata\r\ndata: third\r\n\r\n"
    b"id: \xff\ndata: with an id of no use\n\n"
    b"id: of nothing\n\n"
    b"data: by CR alone\r\r"
    b"retry: 100\nunknown: field\ndata: last\n\n"
    b"data: cut off"
)
EXPECTED = [
    SseEvent('{"text": "grüße 🐘"}'.encode(), "1"),
    SseEvent(b"no space\n\nthird", name="other"),
    SseEvent(b"with an id of no use"),
    SseEvent(b"by CR alone"),
    SseEvent(b"last"),
]


def test_stream_in_one_piece() -> None:
    assert SseParser().push(STREAM) == EXPECTED


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stream_in_small_pieces(size: int) -> None:
    events = SseParser()
    found = [event for start in range(0, len(STREAM), size) for event in events.push(STREAM[start : start + size])]
    assert found == EXPECTED


def test_stream_split_at_every_byte() -> None:
    for split in range(len(STREAM) + 1):
        events = SseParser()
        assert events.push(STREAM[:split]) + events.push(STREAM[split:]) == EXPECTED, f"split at {split}"


def test_empty_piece_changes_nothing() -> None:
    events = SseParser()
    assert events.push(b"data: a\r") + events.push(b"") + events.push(b"\n\r\n") == [SseEvent(b"a")]


def test_endless_line_is_refused_before_it_fills_the_memory() -> None:
    events = SseParser()
    with pytest.raises(ProtocolError, match=f"more than {MAX_EVENT_BYTES} bytes"):
        for _ in range(2 * MAX_EVENT_BYTES // 65_536):
            events.push(b"x" * 65_536)


def test_event_of_endless_lines_is_refused() -> None:
    events = SseParser()
    with pytest.raises(ProtocolError, match=f"more than {MAX_EVENT_BYTES} bytes"):
        for _ in range(2 * MAX_EVENT_BYTES // 1000):
            events.push(b"data: " + b"x" * 1000 + b"\n")


def test_many_events_are_not_one_long_event() -> None:
    events = SseParser()
    for _ in range(3):
        assert len(events.push(b"data: " + b"x" * (MAX_EVENT_BYTES - 10) + b"\n\n")) == 1
