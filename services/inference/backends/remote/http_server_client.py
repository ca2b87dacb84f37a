"""The client of one HTTP server: its timeouts and retries, and what its failures mean to a caller."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from types import TracebackType

from services.inference.backends.remote import http_pool, http_request, server_errors
from services.inference.backends.remote.event_stream import UNREADABLE, BadStream
from services.inference.backends.remote.http_connection import HttpServerConnection
from services.inference.backends.remote.http_pool import HttpConnectionPool, PoolExhausted, PoolLimits
from services.inference.backends.remote.http_reply import HttpFailure, ReplyHead
from services.inference.backends.remote.http_request import RequestWriter
from services.inference.backends.remote.server_errors import RefusalSource, ServerRefusal
from shared import errors
from shared.errors import AimeshError
from shared.telemetry import logs
from shared.timing.backoff import Backoff

log = logs.get()

LIST_SECONDS = 10.0
#: OpenRouter's list of 400 models has half of it.
MAX_LIST_BYTES = 2 * 1024 * 1024
#: A million tokens, each in an event of 250 bytes.
MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_REFUSAL_BYTES = 64 * 1024
#: The maximum of ENGINE_SLOTS.
MAX_CONNECTIONS = 256
POOL_SECONDS = 10.0
#: Enough for a prompt of 1 MiB on a slow line.
WRITE_SECONDS = 30.0
#: Less than the 5 s after which uvicorn, and so vLLM, closes an idle connection.
KEEP_ALIVE_SECONDS = 4.0
#: For the bytes after an answer's end; a connection can only be reused after the last byte.
DRAIN_SECONDS = 0.25

#: If a server needs longer to recover, the gateway tries other workers.
ATTEMPTS = 3
#: Before the second attempt; doubled before the third. Each is multiplied by 0.5 to 1, so that callers don't retry all at once.
BACKOFF_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    connect_seconds: float = 10.0
    #: Until the first piece of an answer; a server may need minutes to load the model.
    first_token_seconds: float = 300.0
    idle_seconds: float = 60.0
    backoff_seconds: float = BACKOFF_SECONDS


class ServerTimedOut(Exception):
    """The server took too long; the message follows "the server did not". Caught by `translated`."""


class ServerAnswer:
    """The body of one response, read under a deadline."""

    def __init__(self, connection: HttpServerConnection, seconds: float) -> None:
        self.connection = connection
        self._clock = asyncio.get_running_loop().time
        self._left = seconds
        self._bytes = 0

    def allow(self, seconds: float) -> None:
        """Set the time for what comes next. Only call it on progress: comments in a stream are none."""
        self._left = seconds

    def pieces(self) -> AsyncIterator[bytes]:
        """Raises ServerTimedOut and BadStream. The time that the caller spends on a piece is not counted."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._next()
        if not piece:
            raise StopAsyncIteration
        self._bytes += len(piece)
        if self._bytes > MAX_ANSWER_BYTES:
            raise BadStream(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        return piece

    async def drain(self) -> None:
        """Read the bytes after the answer's end, so that the connection can be reused."""
        self._left = DRAIN_SECONDS
        with suppress(ServerTimedOut, HttpFailure):
            while await self._next():
                pass

    async def _next(self) -> bytes:
        started = self._clock()
        try:
            piece = await self.connection.read(started + self._left)
        except TimeoutError as late:
            raise ServerTimedOut("continue its answer in time") from late
        self._left -= self._clock() - started
        if self._left <= 0 and piece:
            # A server that keeps sending without progress would never meet the deadline above.
            raise ServerTimedOut("make progress with its answer in time")
        return piece


class Server:
    """One server and its pool of connections."""

    def __init__(self, source: RefusalSource, pool: HttpConnectionPool, requests: RequestWriter, timeouts: ServerTimeouts) -> None:
        self.source = source
        self.timeouts = timeouts
        self._pool = pool
        self._requests = requests
        self._clock = asyncio.get_running_loop().time

    async def get(self, path: str) -> bytes:
        """Get a small JSON document. Raises Unavailable, or what the refusal means."""
        async with translated(self.source):
            try:
                return await self._listed(path, self._clock() + LIST_SECONDS)
            except TimeoutError as late:
                raise _too_late(LIST_SECONDS) from late

    def post(self, path: str, body: bytes, kind: str) -> AbstractAsyncContextManager[ServerAnswer]:
        """Post a request whose response has the media type ``kind``. Raises what the refusal means, or Unavailable. Leaving it
        early, or being cancelled, closes the connection, which stops the server."""
        return _Posting(self, path, body, kind)

    async def begin(self, path: str, body: bytes, kind: str) -> ServerAnswer:
        """Post a request and return the response to a successful one; call ``end`` with it."""
        seconds = self.timeouts.first_token_seconds
        until = self._clock() + seconds
        try:
            connection, head = await self._begin(self._requests.post_json(path, body), until)
        except TimeoutError as late:
            raise _too_late(seconds) from late
        try:
            _check_type(head, kind)
        except BadStream:
            self._pool.give_back(connection)
            raise
        return ServerAnswer(connection, until - self._clock())

    def end(self, answer: ServerAnswer) -> None:
        self._pool.give_back(answer.connection)

    async def ask(self, path: str, body: bytes, *, most: int) -> bytes:
        """Post a request and return its JSON response of at most ``most`` bytes, within ``idle_seconds``. Raises as ``post``."""
        read = bytearray()
        async with self.post(path, body, "application/json") as answer:
            answer.allow(self.timeouts.idle_seconds)
            async for piece in answer.pieces():
                read += piece
                if len(read) > most:
                    raise BadStream(f"a body of more than {most} bytes")
        return bytes(read)

    async def _listed(self, path: str, until: float) -> bytes:
        connection, head = await self._pool.ask(self._requests.get(path), until)
        try:
            if not head.is_success:
                raise (await self._refusal(connection, head, until)).error
            _check_type(head, "application/json")
            return await _read(connection, MAX_LIST_BYTES, until)
        finally:
            self._pool.give_back(connection)

    async def _begin(self, request: bytes, until: float) -> tuple[HttpServerConnection, ReplyHead]:
        """Return the head of a successful response and the connection with its body. Retries failures before the head.
        Raises TimeoutError at ``until``."""
        for attempt in range(ATTEMPTS):
            refusal = None
            try:
                connection, head = await self._pool.ask(request, until)
            except HttpFailure as failure:
                if not failure.retryable or attempt == ATTEMPTS - 1:
                    raise
            else:
                if head.is_success:
                    return connection, head
                try:
                    refusal = await self._refusal(connection, head, until)
                finally:
                    self._pool.give_back(connection)
                if not refusal.retryable or attempt == ATTEMPTS - 1:
                    raise refusal.error
            log.info("backend_retried", server=self.source.name, attempt=attempt + 1)
            async with asyncio.timeout_at(until):
                await asyncio.sleep(self._pause(attempt, refusal))
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, attempt: int, refusal: ServerRefusal | None) -> float:
        backoff = Backoff(self.timeouts.backoff_seconds, inf, jitter=0.5).pause(attempt + 1)
        asked = refusal.retry_after_seconds if refusal is not None else None
        return backoff if asked is None else max(backoff, asked)

    async def _refusal(self, connection: HttpServerConnection, head: ReplyHead, until: float) -> ServerRefusal:
        body = b"" if head.headers.get("content-encoding") else await _read(connection, MAX_REFUSAL_BYTES, until, cut=True)
        return server_errors.judge(self.source, head.status, body, head.headers.get("retry-after"), now=time.time())


class _Posting:
    """Posts on entering and gives the connection back on leaving. A class, like `_Translation`: the loop tracks async generators,
    which takes as long as the rest of a small request."""

    def __init__(self, server: Server, path: str, body: bytes, kind: str) -> None:
        self._server = server
        self._asked = path, body, kind
        self._translation = _Translation(server.source)
        self._answer: ServerAnswer | None = None

    async def __aenter__(self) -> ServerAnswer:
        async with self._translation:
            self._answer = await self._server.begin(*self._asked)
        return self._answer

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._answer is not None
        self._server.end(self._answer)
        await self._translation.__aexit__(kind, error, traceback)


@asynccontextmanager
async def connected(source: RefusalSource, url: str, timeouts: ServerTimeouts) -> AsyncIterator[Server]:
    """Open a pool of connections to ``url``; every request has the source's key. It uses no proxy from the environment and
    follows no redirect, because the key and the prompt are only for this address. Raises BadSettings."""
    key = {} if source.key is None else {"authorization": f"Bearer {source.key.text}"}
    # A compressed answer could grow a thousandfold, and text in small pieces gains nothing.
    headers = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "aimesh", **key}
    try:
        origin = http_request.origin(url)
        requests = RequestWriter(origin, headers)
    except ValueError as error:
        raise errors.BadSettings(f"{source.url_setting}: {error}", hint="see docs/howto/other-backends.md") from error
    limits = PoolLimits(
        connections=MAX_CONNECTIONS,
        connect_seconds=timeouts.connect_seconds,
        turn_seconds=POOL_SECONDS,
        write_seconds=WRITE_SECONDS,
        idle_seconds=KEEP_ALIVE_SECONDS,
    )
    async with http_pool.opened(origin, limits) as pool:
        yield Server(source, pool, requests, timeouts)


def translated(source: RefusalSource) -> AbstractAsyncContextManager[None]:
    """Turn the errors of connections, msgspec and the parsers into Unavailable, and a full pool into Overloaded."""
    return _Translation(source)


class _Translation:
    def __init__(self, source: RefusalSource) -> None:
        self._source = source

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None and (meaning := _meaning(self._source, error)) is not None:
            raise meaning from error


def _meaning(source: RefusalSource, error: BaseException) -> AimeshError | None:
    """Return None for errors that aren't the server's."""
    name = source.name
    match error:
        case PoolExhausted():
            return errors.Overloaded(f"{name} has {MAX_CONNECTIONS} requests of this worker open", retry_after_seconds=POOL_SECONDS)
        case HttpFailure():
            said, hint = source.cleaned(str(error)), f"is it running? see {source.url_setting}"
            return errors.Unavailable(f"{name} does not answer: {said}", hint=hint, retry_after_seconds=5.0)
        case ServerTimedOut():
            return errors.Unavailable(f"{name} did not {error}", hint="look at the server's own log")
        case BadStream():
            return errors.Unavailable(f"{name} broke its protocol: {error}")
        case _ if isinstance(error, UNREADABLE):
            return errors.Unavailable(f"{name} broke its protocol: {source.cleaned(str(error))}")
    return None


def _too_late(seconds: float) -> ServerTimedOut:
    return ServerTimedOut(f"begin its answer within {seconds:g} s")


def _check_type(head: ReplyHead, kind: str) -> None:
    if encoding := head.headers.get("content-encoding", "").strip().lower().replace("identity", ""):
        raise BadStream(f"it is compressed ({encoding[:20]!r}), which was not requested")
    found = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != kind:
        raise BadStream(f"content of type {found[:60]!r} instead of {kind!r}; is this the address of its API?")


async def _read(connection: HttpServerConnection, most: int, until: float, *, cut: bool = False) -> bytes:
    """Read the body. A longer one than ``most`` bytes is cut with ``cut``; else raises BadStream."""
    read = bytearray()
    while piece := await connection.read(until):
        read += piece
        if len(read) > most:
            if not cut:
                raise BadStream(f"a body of more than {most} bytes")
            break
    return bytes(read[:most])
