"""Failures of an OTLP endpoint, each over a real socket: they are distinguished, and none blocks anything."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from services.metrics.export import otlp_endpoint
from services.metrics.export.otlp_endpoint import Post
from services.metrics.export.partial_success import Rejection
from shared import errors

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answering_with(text: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(text.encode())
        await writer.drain()

    return answer


async def hangs(writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


async def drips(writer: asyncio.StreamWriter) -> None:
    """Keep sending, and never finish."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"1\r\nx\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


class Floods:
    """Sends an endless answer as fast as it is read."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            self.sent += 65536


@asynccontextmanager
async def answering(answer: Answer, headers: Mapping[str, str] | None = None) -> AsyncIterator[Post]:
    """Yield a post to a server that reads a request and then calls ``answer``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client closed the connection
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with otlp_endpoint.opened(f"http://127.0.0.1:{port}/", headers or {}) as post:
            yield post
    finally:
        server.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_endpoint, "_SECONDS", 1.0)


@pytest.mark.parametrize(
    ("answer", "words", "seconds"),
    [
        pytest.param(answering_with("HTTP/1.1 503 x\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n"), "returned 503", 7, id="says when"),
        pytest.param(answering_with("HTTP/1.1 429 x\r\ncontent-length: 0\r\n\r\n"), "returned 429", None, id="does not say when"),
        pytest.param(
            answering_with("HTTP/1.1 503 x\r\nretry-after: Sat, 21 Nov 2026 14:00:00 GMT\r\n\r\n"), "returned 503", None, id="a date"
        ),
        pytest.param(answering_with("HTTP/1.1 503 x\r\nretry-after: -1\r\n\r\n"), "returned 503", None, id="says nonsense"),
        pytest.param(answering_with("SSH-2.0-x\r\n\r\n"), "is not responding: RemoteProtocolError", None, id="is no HTTP"),
        pytest.param(
            answering_with("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"), "is not responding: RemoteProtocolError", None, id="breaks off"
        ),
        pytest.param(answering_with(""), "is not responding: RemoteProtocolError", None, id="hangs up"),
        pytest.param(hangs, r"is not responding: \w*Timeout", None, id="says nothing"),
        pytest.param(drips, r"is not responding: \w*Timeout", None, id="comes byte by byte"),
    ],
)
async def test_temporary_failures_can_be_retried(answer: Answer, words: str, seconds: float | None) -> None:
    async with answering(answer) as post:
        with pytest.raises(errors.Unavailable, match=words) as refused:
            await post("/v1/traces", b"{}")
    assert refused.value.retry_after_seconds == seconds


async def test_endless_response_is_cut_off() -> None:
    floods = Floods()
    async with answering(floods) as post:
        await post("/v1/traces", b"{}")
    # This includes what was in the buffers of both sockets.
    assert floods.sent < 16 * 1024 * 1024


@pytest.mark.parametrize("status", [301, 400, 404, 500])
async def test_permanent_failures_are_reported(status: int) -> None:
    async with answering(answering_with(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n")) as post:
        with pytest.raises(errors.BadRequest, match=f"rejected /v1/traces with {status}"):
            await post("/v1/traces", b"{}")


async def test_invalid_body_of_a_successful_response_is_ignored() -> None:
    for form in ("", "content-type: application/json\r\n"):
        answer = answering_with(f"HTTP/1.1 200 OK\r\n{form}content-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x01\x02\x03")
        async with answering(answer) as post:
            assert await post("/v1/traces", b"{}") is None


def rejecting(why: str) -> Answer:
    body = json.dumps({"partialSuccess": {"rejectedSpans": "1", "errorMessage": why}})
    return answering_with(f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}")


async def test_rejection_is_reported_without_a_quoted_key() -> None:
    headers = {"authorization": "Bearer abcdef123456", "x-tenant": "7"}
    async with answering(rejecting("7 of abcdef123456 are too old, Bearer"), headers) as post:
        assert await post("/v1/traces", b"{}") == Rejection(1, "7 of … are too old, Bearer")


def test_headers_are_parsed_like_opentelemetry() -> None:
    assert otlp_endpoint.read_headers("") == {}
    assert otlp_endpoint.read_headers("Authorization=Bearer a=b, x-scope-orgid = 1 ,") == {
        "authorization": "Bearer a=b",
        "x-scope-orgid": "1",
    }


@pytest.mark.parametrize("text", ["secret-token", "a b=c", "=secret", "ä=secret", "a\nb=c", "a=b\nc"])
def test_invalid_headers_are_refused_without_quoting_them(text: str) -> None:
    with pytest.raises(ValueError, match="header 1") as caught:
        otlp_endpoint.read_headers(text)
    assert "secret" not in str(caught.value)
