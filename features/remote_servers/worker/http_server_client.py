"""The client of one HTTP server, over aiohttp: deadlines, limits, retries, and what its failures mean to a caller."""

import asyncio
import errno
import io
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from types import SimpleNamespace, TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from yarl import URL

from features.remote_servers.worker.rules import server_errors
from features.remote_servers.worker.rules.event_stream import UNREADABLE, BadStream
from features.remote_servers.worker.rules.remote_hosts import RemoteHosts
from features.remote_servers.worker.rules.server_errors import RefusalSource, ServerRefusal
from features.remote_servers.worker.rules.text_answers import JsonRequest
from shared import errors
from shared.errors import AimeshError
from shared.telemetry import logs
from shared.timing.backoff import Backoff

log = logs.get()

JSON = "application/json"
T = TypeVar("T")

LIST_SECONDS = 10.0
#: OpenRouter's list of 400 models has half of it.
MAX_LIST_BYTES = 2 * 1024 * 1024
#: A million tokens, each in an event of 250 bytes.
MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_REFUSAL_BYTES = 64 * 1024
#: Servers send a few hundred bytes of headers, large providers' proxies up to ten thousand.
MAX_FIELD_BYTES = 16 * 1024
#: More than the 256 requests that vLLM runs at once by default.
MAX_REQUESTS = 1024
#: Less than the 5 s after which uvicorn, and so vLLM, closes an idle connection.
IDLE_SECONDS = 4.0
#: For the bytes after an answer's end; a connection can only be reused after the last byte.
DRAIN_SECONDS = 0.25

#: If a server needs longer to recover, the gateway tries other workers.
ATTEMPTS = 3
#: Before the second attempt; doubled before the third. Each is multiplied by 0.5 to 1, so that callers don't retry all at once.
BACKOFF_SECONDS = 0.5

_VERSION = re.compile(r"/v\d+\Z")
#: aiohttp warns of more in one piece, because that blocks the loop.
_PIECE_BYTES = 512 * 1024


class ServerTimedOut(Exception):
    """The server took too long; the message follows "the server did not". Caught by `ServerExchange`."""


#: What `ServerExchange` turns into an AimeshError.
_FAILURES = (aiohttp.ClientError, ServerTimedOut, BadStream, *UNREADABLE)


@dataclass(slots=True)
class ServerExchange:
    """One request and its response: `async with` sends the request and retries failures before a successful head. Leaving it early,
    or being cancelled, closes the connection, which stops the server.

    A class, because the loop tracks async generators, which takes as long as the rest of a small request.
    """

    server: "Server"
    path: str
    #: None for a GET.
    body: bytes | None
    #: The media type of the response; empty for any.
    kind: str
    #: Until the head of the response.
    seconds: float
    most_bytes: int
    attempts: int = ATTEMPTS
    _clock: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    _response: aiohttp.ClientResponse = field(init=False)
    #: Seconds for what comes next.
    _left: float = 0.0
    _bytes: int = 0

    async def __aenter__(self) -> Self:
        """Raises what the refusal means, Unavailable or Overloaded."""
        server = self.server
        if server.running >= MAX_REQUESTS:
            message = f"{server.source.name} has {MAX_REQUESTS} requests of this worker open"
            raise errors.Overloaded(message, retry_after_seconds=10.0)
        server.running += 1
        until = self._clock() + self.seconds
        try:
            async with asyncio.timeout_at(until):
                self._response = await self._begin()
        except BaseException as error:
            server.running -= 1
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
                error = ServerTimedOut(f"begin its answer within {self.seconds:g} s")
            if isinstance(error, _FAILURES):
                raise _meaning(server.source, error) from error
            raise
        self._left = until - self._clock()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._response.close()
        self.server.running -= 1
        if isinstance(error, _FAILURES):
            raise _meaning(self.server.source, error) from error

    def allow(self, seconds: float) -> None:
        """Set the time for what comes next. Only call it on progress: comments in a stream are none."""
        self._left = seconds

    async def read_piece(self) -> bytes:
        """Return the next piece of the response; empty at its end. Raises ServerTimedOut, BadStream and ClientError. The time that the
        caller spends on a piece is not counted."""
        started = self._clock()
        try:
            async with asyncio.timeout_at(started + self._left):
                piece = await self._response.content.readany()
        except TimeoutError as late:
            raise ServerTimedOut("continue its answer in time") from late
        self.server.heard_at = now = self._clock()
        self._left -= now - started
        if self._left <= 0 and piece:
            # A server that keeps sending without progress would never meet the deadline above.
            raise ServerTimedOut("make progress with its answer in time")
        self._bytes += len(piece)
        if self._bytes > self.most_bytes:
            raise BadStream(f"an answer of more than {self.most_bytes} bytes")
        return piece

    async def read(self) -> bytes:
        """Read the whole response. Raises as ``read_piece``."""
        pieces = []
        while piece := await self.read_piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def drain(self) -> None:
        """Read the bytes after the answer's end, so that the connection can be reused."""
        self._left = DRAIN_SECONDS
        with suppress(ServerTimedOut, aiohttp.ClientError, BadStream):
            while await self.read_piece():
                pass

    async def _begin(self) -> aiohttp.ClientResponse:
        """Return a successful response. Raises ClientError, BadStream, and what a refusal means."""
        for attempt in range(1, self.attempts + 1):
            asked_seconds = 0.0
            try:
                response = await self.server.ask_once(self.path, self.body)
            except aiohttp.ClientError:
                if attempt == self.attempts:
                    raise
            else:
                if 200 <= response.status < 300:
                    self.server.refused[response.method] = False
                    _check_type(response, self.kind)
                    return response
                refusal = await self._refusal(response)
                if refusal.is_for_account:
                    self.server.refused[response.method] = True
                if not refusal.retryable or attempt == self.attempts:
                    raise refusal.error
                asked_seconds = refusal.retry_after_seconds or 0.0
            log.info("backend_retried", server=self.server.source.name, attempt=attempt)
            await asyncio.sleep(max(Backoff(BACKOFF_SECONDS, inf, jitter=0.5).pause(attempt), asked_seconds))
        raise AssertionError("the last attempt returns or raises")

    async def _refusal(self, response: aiohttp.ClientResponse) -> ServerRefusal:
        body = await _read_most(response, -1 if response.headers.get("content-encoding") else MAX_REFUSAL_BYTES)
        retry_after = response.headers.get("retry-after")
        return server_errors.judge(self.server.source, response.status, body[:MAX_REFUSAL_BYTES], retry_after, now=time.time())


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """The answer to a probe."""

    #: None if the server didn't answer in time.
    status: int | None = None
    body: bytes = b""
    #: The body is longer.
    is_cut: bool = False
    #: Why there is no status; follows the server's name.
    trouble: str = ""
    #: Its `Server` header.
    program: str = ""


@dataclass(slots=True)
class Server:
    """One server and its connections."""

    source: RefusalSource
    url: str
    session: aiohttp.ClientSession
    running: int = 0
    #: When the last part of an answer arrived, by the loop's clock.
    heard_at: float = -1.0
    #: Whether it refused this worker's key or account, by method, because a server without credit may still list its models.
    refused: dict[str, bool] = field(default_factory=dict)

    @property
    def is_refused(self) -> bool:
        """Whether it refuses the key or account, by the last answer to any kind of request."""
        return any(self.refused.values())

    async def ask_once(self, path: str, body: bytes | None = None) -> aiohttp.ClientResponse:
        """Send a request, and again on another connection if the server had dropped an idle one. Paths are below the URL; with a leading
        slash they are beside the API's version: `/health` if the URL ends in `/v1`. Raises ClientError. Close the response."""
        url = URL(f"{_VERSION.sub('', self.url)}{path}" if path.startswith("/") else f"{self.url}/{path}", encoded=True)
        while True:
            data = body if body is None or len(body) < _PIECE_BYTES else io.BytesIO(body)
            headers = {} if body is None else {"content-type": JSON}
            seen = SimpleNamespace(is_reused=False)
            try:
                return await self.session.request(
                    "GET" if body is None else "POST", url, data=data, headers=headers, allow_redirects=False, trace_request_ctx=seen
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not seen.is_reused:
                    raise

    async def probe(self, path: str, seconds: float, *, most: int, body: bytes | None = None) -> ProbeReply:
        """Get a page once (with a POST if there is a ``body``) and read at most ``most`` bytes of it, all within ``seconds``. Never fails,
        and never waits for requests."""
        try:
            async with asyncio.timeout(seconds):
                response = await self.ask_once(path, body)
                page = await _read_most(response, most)
        except aiohttp.ClientError as failure:
            return ProbeReply(trouble=f"does not answer: {self.source.cleaned(_reason(failure))}")
        except TimeoutError:
            return ProbeReply(trouble=f"did not answer within {seconds:g} s")
        return ProbeReply(response.status, page[:most], is_cut=len(page) > most, program=response.headers.get("server", ""))

    async def get(self, path: str, read: Callable[[bytes], T], kind: str = JSON) -> T:
        """Get a small document of a media type, empty for any, without a retry, and ``read`` it. Raises Unavailable, or what the refusal
        means."""
        async with ServerExchange(self, path, None, kind, LIST_SECONDS, most_bytes=MAX_LIST_BYTES, attempts=1) as exchange:
            return read(await exchange.read())

    def post(self, path: str, body: bytes, kind: str, *, most: int | None = None, attempts: int = ATTEMPTS) -> ServerExchange:
        """Post a request whose response has the media type ``kind``, and at most ``most`` bytes."""
        seconds = self.source.upstream.first_token_seconds
        return ServerExchange(self, path, body, kind, seconds, MAX_ANSWER_BYTES if most is None else most, attempts)

    async def ask(self, request: JsonRequest[T], *, attempts: int = ATTEMPTS) -> T:
        """Post a request and read its JSON response, within ``idle_seconds`` of its head. Raises Unavailable, or what the refusal means."""
        async with self.post(request.path, request.body, JSON, most=request.most, attempts=attempts) as exchange:
            exchange.allow(self.source.upstream.idle_seconds)
            return request.read(await exchange.read())


@asynccontextmanager
async def connected(source: RefusalSource, hosts: RemoteHosts | None = None) -> AsyncIterator[Server]:
    """Open connections to a server as they are needed; every request has its key. They use no proxy from the environment and follow no
    redirect, because the key and the prompt are only for this address. ``hosts`` checks the address of each connection."""
    upstream = source.upstream

    def open_socket(address: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
        # Here, because the name's address may have changed since an earlier check.
        if hosts is not None and (why := hosts.mistake(upstream.url, str(address[4][0]))):
            raise OSError(errno.EACCES, why)
        return socket.socket(*address[:3])

    key = {} if upstream.key is None else {"authorization": f"Bearer {upstream.key.text}"}
    url = str(URL(upstream.url)).rstrip("/")
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    connector = aiohttp.TCPConnector(
        # SSL_CERT_FILE counts now, not when aiohttp was imported.
        limit=0, keepalive_timeout=IDLE_SECONDS, ssl=ssl.create_default_context() if url.startswith("https") else True,
        socket_factory=open_socket,
    )  # fmt: skip
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None, connect=upstream.connect_seconds), trace_configs=[tracing],
        # A compressed answer could grow a thousandfold, and text in small pieces gains nothing.
        headers={"accept": "*/*", "accept-encoding": "identity", "user-agent": "aimesh", **key}, auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(), max_line_size=MAX_FIELD_BYTES, max_field_size=MAX_FIELD_BYTES,
    ) as session:  # fmt: skip
        yield Server(source, url, session)


async def _note_reuse(_session: aiohttp.ClientSession, context: SimpleNamespace, _: aiohttp.TraceConnectionReuseconnParams) -> None:
    context.trace_request_ctx.is_reused = True


async def _read_most(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body, without what follows the piece that exceeds ``most`` bytes, and close the response."""
    body = bytearray()
    try:
        while len(body) <= most and (piece := await response.content.readany()):
            body += piece
    finally:
        response.close()
    return bytes(body)


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not trusted ({error.certificate_error}); SSL_CERT_FILE adds authorities"
        case aiohttp.ClientConnectorError():
            # The library's own words name the address, and differ with its event loop. Lookups of names have negative numbers.
            number = error.errno or 0
            return f"no connection ({os.strerror(number).lower() if number in errno.errorcode else error.strerror})"
        case aiohttp.ServerTimeoutError():
            return "no connection in time"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return "it closed the connection within its answer"
        case aiohttp.ClientResponseError():
            return f"no HTTP ({error.message.partition(chr(10))[0]})"
    return str(error)


def _meaning(source: RefusalSource, error: Exception) -> AimeshError:
    """Turn the errors of connections, msgspec and the parsers into Unavailable,."""
    reason = source.cleaned(_reason(error))
    match error:
        case aiohttp.ClientOSError() if error.errno == errno.EACCES:
            return errors.Unavailable(f"{source.name} is not asked: {error.strerror}", hint=f"change {source.url_setting}")
        case aiohttp.ClientError():
            hint = f"is it running? see {source.url_setting}"
            return errors.Unavailable(f"{source.name} does not answer: {reason}", hint=hint, retry_after_seconds=5.0)
        case ServerTimedOut():
            return errors.Unavailable(f"{source.name} did not {reason}", hint="look at the server's own log")
    return errors.Unavailable(f"{source.name} broke its protocol: {reason}")


def _check_type(response: aiohttp.ClientResponse, kind: str) -> None:
    """``kind`` is empty for any type. Raises BadStream, and closes the response then."""
    encoding = response.headers.get("content-encoding", "").strip().lower().replace("identity", "")
    found = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if encoding or (kind and found != kind):
        response.close()
        if encoding:
            raise BadStream(f"it is compressed ({encoding[:20]!r}), which was not requested")
        raise BadStream(f"content of type {found[:60]!r} instead of {kind!r}; is this the address of its API?")
