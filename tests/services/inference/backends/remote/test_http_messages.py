import gc
import weakref

import pytest

from services.inference.backends.remote import http_messages
from services.inference.backends.remote.http_messages import BrokenReply, HttpReply

LENGTH = b"HTTP/1.1 200 OK\r\nX-A:\r\nContent-Type: text/plain\r\ncontent-length: 11\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;name=value\r\n \r\n5\r\nworld\r\n0\r\nx-trailer: 1\r\ncontent-type: x\r\n\r\n"
)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhello world"
INFORMED = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"


def pushed(*pieces: bytes) -> HttpReply:
    reply = HttpReply()
    for piece in pieces:
        reply.push(piece)
    return reply


def told(reply: HttpReply) -> tuple[object, ...]:
    assert reply.head is not None
    return reply.head.status, dict(reply.head.headers), reply.take(), reply.has_ended, reply.keeps_alive


@pytest.mark.parametrize("stream", [LENGTH, CHUNKED, INFORMED + CHUNKED], ids=["length", "chunked", "informed"])
def test_an_answer_is_the_same_cut_anywhere(stream: bytes) -> None:
    whole = told(pushed(stream))
    assert whole[2:] == (b"hello world", True, True)
    for cut in range(len(stream)):
        assert told(pushed(stream[:cut], stream[cut:])) == whole
    assert told(pushed(*(stream[at : at + 1] for at in range(len(stream))))) == whole


@pytest.mark.parametrize("stream", [LENGTH, CHUNKED, INFORMED + CHUNKED], ids=["length", "chunked", "informed"])
def test_a_connection_that_ends_within_an_answer_breaks_it_wherever_it_does(stream: bytes) -> None:
    for cut in range(len(stream)):
        reply = pushed(stream[:cut])
        with pytest.raises(BrokenReply, match="closed the connection"):
            reply.close()
        assert (reply.is_untouched, reply.has_ended) == (cut == 0, False)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    reply = pushed(UNTIL_CLOSE)
    assert not reply.has_ended
    reply.close()
    assert told(reply) == (200, {"content-type": "text/plain"}, b"hello world", True, False)


def test_heads() -> None:
    head = pushed(b"HTTP/1.1 404 No\r\nA: 1\r\nB: caf\xe9\r\na: 2\r\ncontent-length: 0\r\n\r\n").head
    assert head is not None
    assert (head.status, head.is_success) == (404, False)
    assert head.headers == {"a": "1, 2", "b": "café", "content-length": "0"}


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\na", id="it says so"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", id="an older protocol"),
        pytest.param(LENGTH + b"HTTP/1.1 200 OK\r\n", id="another answer"),
        pytest.param(LENGTH + b"garbage", id="garbage"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nabc", id="more than it said"),
    ],
)
def test_what_cannot_be_used_again(stream: bytes) -> None:
    reply = pushed(stream)
    assert (reply.has_ended, reply.keeps_alive) == (True, False)
    assert reply.take() in (b"a", b"hello world")


def test_what_comes_late_behind_the_end_counts_too() -> None:
    reply = pushed(LENGTH)
    assert reply.keeps_alive
    reply.push(b"\n")
    assert (reply.keeps_alive, reply.take()) == (False, b"hello world")


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        pytest.param(b"SSH-2.0-OpenSSH_9\r\n", "protocol", id="no HTTP"),
        pytest.param(b"HTTP/2 200 OK\r\n\r\n", "protocol", id="another version"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", "Length", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", "Length", id="two ways to end"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", "Length", id="less than nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "chunk", id="a chunk of no length"),
        pytest.param(b"HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", "another protocol", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000, "more than 65536 bytes", id="an endless header"),
        pytest.param(b"HTTP/1.1 100 Go\r\n\r\n" * 4_000, "more than 65536 bytes", id="endless information"),
        pytest.param(CHUNKED[:-2] + b"x: " + b"a" * 70_000, "more than 65536 bytes", id="an endless trailer"),
        pytest.param(CHUNKED[:-40] + b"1;" + b"a" * 70_000, "protocol", id="an endless chunk's length"),
    ],
)
@pytest.mark.parametrize("size", [7, 4096])
def test_what_is_not_of_the_protocol(stream: bytes, said: str, size: int) -> None:
    with pytest.raises(BrokenReply, match=said):
        pushed(*(stream[at : at + size] for at in range(0, len(stream), size)))


def test_a_long_stream_of_small_chunks_is_not_too_much() -> None:
    reply = pushed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * http_messages.MAX_BARE_BYTES, b"0\r\n\r\n")
    assert (reply.has_ended, len(reply.take())) == (True, http_messages.MAX_BARE_BYTES)


def test_an_answer_that_has_ended_is_freed_at_once() -> None:
    class Watched(HttpReply):
        __slots__ = ("__weakref__",)

    gc.disable()
    try:
        reply = Watched()
        reply.push(LENGTH)
        freed = weakref.ref(reply)
        del reply
        assert freed() is None
    finally:
        gc.enable()
