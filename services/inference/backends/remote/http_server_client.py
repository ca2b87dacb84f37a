"""The client of one HTTP server: its timeouts and retries, and what its failures mean to a caller."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import Self, TypeVar

from services.inference.backends.remote import http_connection, http_messages, server_errors
from services.inference.backends.remote.event_stream import UNREADABLE, BadStream
from services.inference.backends.remote.http_connection import HttpConnectionPool, HttpServerConnection, PoolExhausted
from services.inference.backends.remote.http_messages import HttpFailure, JsonRequest, ReplyHead, RequestWriter
from services.inference.backends.remote.server_errors import RefusalSource, ServerRefusal
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
#: More than the 256 requests that vLLM runs at once by default.
MAX_CONNECTIONS = 1024
PROBE_CONNECTIONS = 4
#: For the bytes after an answer's end; a connection can only be reused after the last byte.
DRAIN_SECONDS = 0.25

#: If a server needs longer to recover, the gateway tries other workers.
ATTEMPTS = 3
#: Before the second attempt; doubled before the third. Each is multiplied by 0.5 to 1, so that callers don't retry all at once.
BACKOFF_SECONDS = 0.5


class ServerTimedOut(Exception):
    """The server took too long; the message follows "the server did not". Caught by `ServerExchange`."""


#: What `ServerExchange` turns into an AimeshError.
_FAILURES = (PoolExhausted, HttpFailure, ServerTimedOut, BadStream, *UNREADABLE)


@dataclass(slots=True)
class ServerExchange:
    """One request and its response: `async with` sends the request and retries failures before a successful head. Leaving it early,
    or being cancelled, closes the connection, which stops the server.

    A class, because the loop tracks async generators, which takes as long as the rest of a small request.
    """

    server: "Server"
    request: bytes
    #: The media type of the response; empty for any.
    kind: str
    #: Until the head of the response.
    seconds: float
    most_bytes: int
    attempts: int = ATTEMPTS
    _clock: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    _connection: HttpServerConnection = field(init=False)
    #: Seconds for what comes next.
    _left: float = 0.0
    _bytes: int = 0

    async def __aenter__(self) -> Self:
        """Raises what the refusal means, or Unavailable."""
        until = self._clock() + self.seconds
        try:
            self._connection, head = await self._begin(until)
            try:
                _check_type(head, self.kind)
            except BadStream:
                self.server.pool.release(self._connection)
                raise
        except TimeoutError as late:
            raise _meaning(self.server.source, ServerTimedOut(f"begin its answer within {self.seconds:g} s")) from late
        except _FAILURES as failure:
            raise _meaning(self.server.source, failure) from failure
        self._left = until - self._clock()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.server.pool.release(self._connection)
        if isinstance(error, _FAILURES):
            raise _meaning(self.server.source, error) from error

    def allow(self, seconds: float) -> None:
        """Set the time for what comes next. Only call it on progress: comments in a stream are none."""
        self._left = seconds

    async def read_piece(self) -> bytes:
        """Return the next piece of the response; empty at its end. Raises ServerTimedOut and BadStream. The time that the caller
        spends on a piece is not counted."""
        started = self._clock()
        try:
            piece = await self._connection.read(started + self._left)
        except TimeoutError as late:
            raise ServerTimedOut("continue its answer in time") from late
        self.server.pool.heard_at = now = self._clock()
        self._left -= now - started
        if self._left <= 0 and piece:
            # A server that keeps sending without progress would never meet the deadline above.
            raise ServerTimedOut("make progress with its answer in time")
        self._bytes += len(piece)
        if self._bytes > self.most_bytes:
            raise BadStream(f"an answer of more than {self.most_bytes} bytes")
        return piece

    async def read(self) -> bytes:
        """Read the whole response. Raises ServerTimedOut and BadStream."""
        pieces = []
        while piece := await self.read_piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def drain(self) -> None:
        """Read the bytes after the answer's end, so that the connection can be reused."""
        self._left = DRAIN_SECONDS
        with suppress(ServerTimedOut, HttpFailure, BadStream):
            while await self.read_piece():
                pass

    async def _begin(self, until: float) -> tuple[HttpServerConnection, ReplyHead]:
        """Return the head of a successful response and the connection with its body. Raises TimeoutError at ``until``."""
        for attempt in range(1, self.attempts + 1):
            asked_seconds = 0.0
            try:
                connection, head = await self.server.pool.ask(self.request, until)
            except HttpFailure as failure:
                if not failure.retryable or attempt == self.attempts:
                    raise
            else:
                if head.is_success:
                    self.server.note_account(self.request, is_refused=False)
                    return connection, head
                refusal = await self._refusal(connection, head, until)
                if refusal.is_for_account:
                    self.server.note_account(self.request, is_refused=True)
                if not refusal.retryable or attempt == self.attempts:
                    raise refusal.error
                asked_seconds = refusal.retry_after_seconds or 0.0
            log.info("backend_retried", server=self.server.source.name, attempt=attempt)
            backoff = Backoff(BACKOFF_SECONDS, inf, jitter=0.5)
            async with asyncio.timeout_at(until):
                await asyncio.sleep(max(backoff.pause(attempt), asked_seconds))
        raise AssertionError("the last attempt returns or raises")

    async def _refusal(self, connection: HttpServerConnection, head: ReplyHead, until: float) -> ServerRefusal:
        try:
            body = b"" if head.headers.get("content-encoding") else await connection.read_most(MAX_REFUSAL_BYTES, until)
        finally:
            self.server.pool.release(connection)
        retry_after = head.headers.get("retry-after")
        return server_errors.judge(self.server.source, head.status, body[:MAX_REFUSAL_BYTES], retry_after, now=time.time())


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


@dataclass(frozen=True, slots=True)
class Server:
    """One server and its pool of connections."""

    source: RefusalSource
    pool: HttpConnectionPool
    requests: RequestWriter
    #: Connections of their own, so that probes never wait for requests.
    probes: HttpConnectionPool
    #: By method, because a server without credit may still list its models.
    refused: dict[bytes, bool] = field(default_factory=dict)

    def note_account(self, request: bytes, *, is_refused: bool) -> None:
        """Note whether the server refused this worker's key or account."""
        self.refused[request.partition(b" ")[0]] = is_refused

    @property
    def is_refused(self) -> bool:
        """Whether it refuses the key or account, by the last answer to any kind of request."""
        return any(self.refused.values())

    async def probe(self, path: str, seconds: float, *, most: int) -> ProbeReply:
        """Get a page once and read at most ``most`` bytes of it, all within ``seconds``. Never fails."""
        until = asyncio.get_running_loop().time() + seconds
        try:
            connection, head = await self.probes.ask(self.requests.get(path), until)
            try:
                body = await connection.read_most(most, until)
            finally:
                self.probes.release(connection)
        except (TimeoutError, PoolExhausted):
            return ProbeReply(trouble=f"did not answer within {seconds:g} s")
        except HttpFailure as failure:
            return ProbeReply(trouble=f"does not answer: {self.source.cleaned(str(failure))}")
        return ProbeReply(head.status, body[:most], is_cut=len(body) > most)

    async def get(self, path: str, read: Callable[[bytes], T], kind: str = JSON) -> T:
        """Get a small document of a media type, empty for any, without a retry, and ``read`` it. Raises Unavailable, or what the refusal
        means."""
        async with ServerExchange(self, self.requests.get(path), kind, LIST_SECONDS, most_bytes=MAX_LIST_BYTES, attempts=1) as exchange:
            return read(await exchange.read())

    def post(self, path: str, body: bytes, kind: str, *, most: int | None = None, attempts: int = ATTEMPTS) -> ServerExchange:
        """Post a request whose response has the media type ``kind``, and at most ``most`` bytes."""
        request, seconds = self.requests.post_json(path, body), self.source.upstream.first_token_seconds
        return ServerExchange(self, request, kind, seconds, MAX_ANSWER_BYTES if most is None else most, attempts)

    async def ask(self, request: JsonRequest[T], *, attempts: int = ATTEMPTS) -> T:
        """Post a request and read its JSON response, within ``idle_seconds`` of its head. Raises Unavailable, or what the refusal means."""
        async with self.post(request.path, request.body, JSON, most=request.most, attempts=attempts) as exchange:
            exchange.allow(self.source.upstream.idle_seconds)
            return request.read(await exchange.read())


@asynccontextmanager
async def connected(source: RefusalSource) -> AsyncIterator[Server]:
    """Open a pool of connections to a server; every request has its key. It uses no proxy from the environment and
    follows no redirect, because the key and the prompt are only for this address. Raises BadSettings."""
    upstream = source.upstream
    key = {} if upstream.key is None else {"authorization": f"Bearer {upstream.key.text}"}
    # A compressed answer could grow a thousandfold, and text in small pieces gains nothing.
    headers = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "aimesh", **key}
    try:
        origin = http_messages.origin(upstream.url)
        requests = RequestWriter(origin, headers)
    except ValueError as error:
        raise errors.BadSettings(f"{source.url_setting}: {error}", hint="see docs/howto/other-backends.md") from error
    async with (
        http_connection.opened(origin, MAX_CONNECTIONS, upstream.connect_seconds) as pool,
        http_connection.opened(origin, PROBE_CONNECTIONS, upstream.connect_seconds) as probes,
    ):
        yield Server(source, pool, requests, probes)


def _meaning(source: RefusalSource, error: Exception) -> AimeshError:
    """Turn the errors of connections, msgspec and the parsers into Unavailable, and a full pool into Overloaded."""
    reason = source.cleaned(str(error))
    match error:
        case PoolExhausted():
            message = f"{source.name} has {MAX_CONNECTIONS} requests of this worker open"
            return errors.Overloaded(message, retry_after_seconds=http_connection.TURN_SECONDS)
        case HttpFailure():
            hint = f"is it running? see {source.url_setting}"
            return errors.Unavailable(f"{source.name} does not answer: {reason}", hint=hint, retry_after_seconds=5.0)
        case ServerTimedOut():
            return errors.Unavailable(f"{source.name} did not {reason}", hint="look at the server's own log")
    return errors.Unavailable(f"{source.name} broke its protocol: {reason}")


def _check_type(head: ReplyHead, kind: str) -> None:
    """``kind`` is empty for any type."""
    if encoding := head.headers.get("content-encoding", "").strip().lower().replace("identity", ""):
        raise BadStream(f"it is compressed ({encoding[:20]!r}), which was not requested")
    found = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and found != kind:
        raise BadStream(f"content of type {found[:60]!r} instead of {kind!r}; is this the address of its API?")
