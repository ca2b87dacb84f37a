"""Clients that send slowly, or don't speak HTTP, over real sockets."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httptools
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.node import http_connection
from tests import stopwatch
from tests.shared.node import http_ports
from tests.shared.node.http_ports import REQUEST, Place, answer, connected
from tests.stopwatch import HANG_SECONDS


async def _app(scope: Any, receive: Any, send: Any) -> None:
    body = await http_ports.read_body(receive)
    said = b" ".join(name + b"=" + value for name, value in scope["headers"])
    await http_ports.respond(
        send, b"%b %b?%b %b %b" % (scope["path"].encode(), scope["raw_path"], scope["query_string"], said, body or b"")
    )


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with http_ports.serving(_app) as place:
        yield place


HEAD = b"GET /x HTTP/1.1\r\nHost: h"


@pytest.mark.parametrize(("answered", "begun"), [(b"", 0), (b"", 1), (b"", len(HEAD)), (REQUEST, 3)])
async def test_an_incomplete_request_head_closes_the_connection(
    place: Place, monkeypatch: pytest.MonkeyPatch, answered: bytes, begun: int
) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 0.2)
    async with connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(answered + HEAD[:begun])
        began = asyncio.get_running_loop().time()
        trickling = asyncio.create_task(_trickle(writer, HEAD[begun:]))
        with suppress(ConnectionResetError):  # the server may close before it has read all bytes
            await reader.read()
        trickling.cancel()
        took = asyncio.get_running_loop().time() - began
        assert took > 0.1
        assert took < 2 or not stopwatch.bounds_hold


async def _trickle(writer: asyncio.StreamWriter, rest: bytes) -> None:
    """A byte now and then does not keep the connection open."""
    for byte in itertools.chain(rest, itertools.repeat(ord("a"))):
        await asyncio.sleep(0.03)
        writer.write(bytes([byte]))


async def test_an_idle_connection_is_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 0.1)
    async with connected(place) as (reader, _), asyncio.timeout(HANG_SECONDS):
        assert await reader.read() == b""


async def test_500_slow_request_heads_do_not_block_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 1.0)
    async with asyncio.timeout(120):
        slow = [await asyncio.open_connection(*place) for _ in range(500)]
        for _, writer in slow:
            writer.write(b"GET /x HTTP/1.1\r\n")
        async with httpx.AsyncClient(base_url="http://{}:{}".format(*place)) as client:
            assert [(await client.get("/x")).status_code for _ in range(20)] == [200] * 20
        for reader, writer in slow:
            assert await reader.read() == b""
            writer.close()


async def test_a_connection_may_be_idle_between_two_requests(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    head_seconds = 0.4
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", head_seconds)
    async with connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        for _ in range(2):
            writer.write(REQUEST)
            assert b"200" in await answer(reader)
            await asyncio.sleep(1.5 * head_seconds)  # longer than an unfinished head may take


async def test_pipelined_requests_are_answered_in_order(place: Place) -> None:
    async with connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(b"".join(b"GET /x HTTP/1.1\r\nHost: here\r\nN: %d\r\n\r\n" % number for number in range(50)))
        for number in range(50):
            assert b"n=%d" % number in await answer(reader)


CHUNKS = b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
TWO = b"GET /y HTTP/1.1\r\nHost: here\r\n\r\n"
NO_HTTP = {
    "two different lengths": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length that is no number": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: +1\r\n\r\n",
    "a negative length": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: -1\r\n\r\n",
    "an encoding of the transfer that is none": b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "two encodings of the transfer": b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a space before the colon": b"GET /x HTTP/1.1\r\nHost : here\r\n\r\n",
    "a folded header": b"GET /x HTTP/1.1\r\nHost: here\r\n\tfolded\x00: x\r\n\r\n",
    "a NUL in a header": b"GET /x HTTP/1.1\r\nHost: here\r\nX: a\x00b\r\n\r\n",
    "two hosts": b"GET /x HTTP/1.1\r\nHost: here\r\nHost: there\r\n\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "a bad chunk": b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nab\r\n",
    "a head without an end": b"GET /x HTTP/1.1\r\nHost: here\r\nX: " + b"x" * 200_000,
    "a head that is too large": b"GET /x HTTP/1.1\r\nHost: here\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
    "a target that is too long": b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
    "too many headers": b"GET /x HTTP/1.1\r\nHost: here\r\n" + b"X: y\r\n" * 100 + b"\r\n",
    "empty lines without an end": b"\r\n" * 300_000,
    "line feeds alone": b"GET /x HTTP/1.1\nHost: here\n\n",
    "a head that ends with a line feed": b"GET /x HTTP/1.1\r\nHost: here\n\r\n",
    "a line of a header that goes on": b"GET /x HTTP/1.1\r\nHost: here\r\nX: a\r\n b\r\n\r\n",
    "a carriage return in a header": b"GET /x HTTP/1.1\r\nHost: here\r\nX: a\rb\r\n\r\n",
    "a tab for a space": b"GET\t/x HTTP/1.1\r\nHost: here\r\n\r\n",
    "a tab in the target": b"GET /x\ty HTTP/1.1\r\nHost: here\r\n\r\n",
    "a length and an encoding": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an encoding and a length": b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two equal lengths": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "two lengths in one": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 1, 1\r\n\r\na",
    "a length beyond all numbers": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "chunks of chunks": b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks, said twice": CHUNKS[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKS.replace(b"/1.1", b"/1.0") + b"0\r\n\r\n",
    "a chunk's size in another notation": CHUNKS + b"0x1\r\na\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKS + b"1\r\nab\r\n0\r\n\r\n",
    "a chunk's size before a line feed": CHUNKS + b"1\na\r\n0\r\n\r\n",
    "a chunk's extension of a megabyte": CHUNKS + b"1;" + b"x" * 1_000_000 + b"\r\na\r\n0\r\n\r\n",
    "extensions of many chunks": CHUNKS + (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 1000 + b"0\r\n\r\n",
    "trailers without an end": CHUNKS + b"0\r\n" + b"X: " + b"x" * 1_000_000,
    "many trailers": CHUNKS + b"0\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    "a length after the body": CHUNKS + b"0\r\nContent-Length: 5\r\n\r\n",
    "the address of another host": b"GET http://there/x HTTP/1.1\r\nHost: here\r\n\r\n",
    "a tunnel": b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n\r\n",
    "a part of a page": b"GET /x#y HTTP/1.1\r\nHost: here\r\n\r\n",
    "no version": b"GET /x\r\n\r\n",
    "another version": b"GET /x HTTP/2.0\r\nHost: here\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_ambiguous_framing_ends_the_connection(place: Place, name: str) -> None:
    async with connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(NO_HTTP[name] + TWO)
        try:
            said = await reader.read()
        except ConnectionResetError:  # the server may close before it has read all bytes
            assert len(NO_HTTP[name]) > 10_000
            said = b""
        assert said.startswith(b"HTTP/1.1 400 ") or not said, said
        assert said.count(b"HTTP/1.1 ") == 1 or len(NO_HTTP[name]) > 10_000
    assert b"200 OK" in await http_ports.ask(place)


#: The request, and what the application receives: path, target, headers, body.
HTTP = {
    "a path with escapes": (b"GET /a%2Fb/%C3%A9//c?d=%20 HTTP/1.1\r\nHost: here\r\n\r\n", "/a/b/é//c /a%2Fb/%C3%A9//c?d=%20 host=here "),
    "dot segments": (b"GET /a/../b/./c HTTP/1.1\r\nHost: here\r\n\r\n", "/a/../b/./c /a/../b/./c? host=here "),
    "two slashes": (b"GET //there/x HTTP/1.1\r\nHost: here\r\n\r\n", "//there/x //there/x? host=here "),
    "spaces around a value": (b"GET /x HTTP/1.1\r\nHost: \t here \t\r\nX:\r\n\r\n", "/x /x? host=here x= "),
    "HTTP/1.0": (b"GET /x HTTP/1.0\r\n\r\n", "/x /x?  "),
    "a body in chunks": (CHUNKS + b"1\r\na\r\n2;b=c\r\nbc\r\n0\r\n\r\n", "/x /x? host=here transfer-encoding=chunked abc"),
    "trailers": (
        CHUNKS + b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\nHost: there\r\n\r\n",
        "/x /x? host=here transfer-encoding=chunked a",
    ),
    "an offer of HTTP/2": (
        b"POST /x HTTP/1.1\r\nHost: here\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        "/x /x? host=here connection=Upgrade, HTTP2-Settings content-length=3 abc",
    ),
    "an offer of HTTP/2 with chunks": (
        CHUNKS[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "/x /x? host=here transfer-encoding=chunked connection=Upgrade abc",
    ),
    "an offer of WebSocket": (
        b"GET /x HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "/x /x? host=here connection=Upgrade ",
    ),
    "a body of many small chunks": (
        CHUNKS + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n",
        "/x /x? host=here transfer-encoding=chunked " + "a" * 20_000,
    ),
    "empty lines before it": (b"\r\n\r\n" + REQUEST, "/x /x? host=here "),
}


@pytest.mark.parametrize("name", HTTP)
async def test_the_application_sees_the_request_as_sent(place: Place, name: str) -> None:
    asked, seen = HTTP[name]
    cut = min(len(asked), 300)
    for size in (1, 7, cut):
        async with connected(place) as (reader, writer), asyncio.timeout(30):
            for begin in range(0, cut, size):
                writer.write(asked[begin : min(begin + size, cut)])
                await asyncio.sleep(0)
            writer.write(asked[cut:])
            assert (await answer(reader)).decode() == "HTTP/1.1 200 OK " + seen
            if name != "HTTP/1.0":
                writer.write(REQUEST)
                assert b"host=here" in await answer(reader)


async def test_expect_continue_is_answered(place: Place) -> None:
    async with connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await answer(reader)).endswith(b" abc")


async def test_an_http_1_0_connection_is_closed_after_its_response(place: Place) -> None:
    async with connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(b"GET /x HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"/x /x?  ")


HOST = (b"host", b"here")
CHUNKED = (b"transfer-encoding", b"Chunked")


@pytest.mark.parametrize(
    ("method", "target", "version", "headers"),
    [
        ("GET", b"/", "1.1", [HOST]),
        ("GET", b"/", "1.0", []),
        ("GET", b"//a/%2e?b=/c", "1.1", [HOST]),
        ("POST", b"/", "1.1", [HOST, CHUNKED]),
        ("POST", b"/", "1.1", [HOST, (b"content-length", b"9" * 18)]),
        ("GET", b"/a%2500", "1.1", [HOST]),
        ("GET", b"/", "1.1", [HOST, (b"x", b"x" * (http_connection.HEAD_BYTES - 10))]),
    ],
)
def test_unambiguous_heads_are_accepted(method: str, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert http_connection.find_mistake(method, target, version, headers) is None


@pytest.mark.parametrize(
    ("method", "target", "version", "headers"),
    [
        ("GET", b"/", "0.9", []),
        ("GET", b"/", "2.0", [HOST]),
        ("GET", b"/", "1.1", []),
        ("GET", b"/", "1.1", [HOST, HOST]),
        ("GET", b"/", "1.0", [HOST, HOST]),
        ("GET", b"http://there/", "1.1", [HOST]),
        ("OPTIONS", b"*", "1.1", [HOST]),
        ("CONNECT", b"here:80", "1.1", [HOST]),
        ("CONNECT", b"/", "1.1", [HOST]),
        ("GET", b"/x#y", "1.1", [HOST]),
        ("GET", b"/keys/a%00b", "1.1", [HOST]),
        ("GET", b"/keys?search=%00", "1.1", [HOST]),
        ("POST", b"/", "1.1", [HOST, (b"content-length", b"0" * 4999 + b"2")]),
        ("POST", b"/", "1.1", [HOST, CHUNKED, CHUNKED]),
        ("POST", b"/", "1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")]),
        ("POST", b"/", "1.1", [HOST, (b"transfer-encoding", b"identity")]),
        ("POST", b"/", "1.0", [CHUNKED]),
        ("GET", b"/", "1.1", [HOST, (b"x", b"x" * http_connection.HEAD_BYTES)]),
        ("GET", b"/" + b"x" * http_connection.HEAD_BYTES, "1.1", [HOST]),
        ("GET", b"/", "1.1", [HOST, *[(b"x" * 1000, b"")] * 33]),
    ],
)
def test_ambiguous_heads_are_refused(method: str, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert http_connection.find_mistake(method, target, version, headers)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_the_path_of_a_target_ends_at_its_question_mark(text: str) -> None:
    target = b"/" + text.encode()
    if http_connection.find_mistake("GET", target, "1.1", [HOST]) is None:
        found = httptools.parse_url(target)
        path, _, query = target.partition(b"?")
        assert (found.path, found.query or b"") == (path, query)


def test_an_upgrade_offer_is_removed_from_the_head() -> None:
    headers = [HOST, (b"upgrade", b"h2c"), (b"content-length", b"3")]
    assert (
        http_connection.without_upgrade("POST", b"/x?y", "1.1", headers) == b"POST /x?y HTTP/1.1\r\nhost: here\r\ncontent-length: 3\r\n\r\n"
    )
