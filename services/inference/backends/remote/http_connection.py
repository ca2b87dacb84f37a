"""Sends requests over connections to an HTTP server and reads the responses, under deadlines. A pool bounds the connections, reuses idle
ones and queues for them in order.

Only one task at a time uses a connection. Deadlines use the loop's clock. Each connection has one timer, which is set again if it
fires too early: under load a wait lasts a millisecond and its deadline a minute, so a timer per wait would be wasted.
"""

import asyncio
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, cast

from services.inference.backends.remote.http_messages import BrokenReply, HttpFailure, HttpReply, ReplyHead, ServerOrigin

#: Buffered for a slow reader, plus one piece of at most 256 KiB.
MAX_WAITING_BYTES = 128 * 1024
#: A slow line: 1.2 Mbit/s, as for bodies with images at the gateway.
LEAST_BYTES_PER_SECOND = 150_000
#: For a connection to become free.
TURN_SECONDS = 10.0
#: To send a request, beside the time for its bytes.
WRITE_SECONDS = 30.0
#: Less than the 5 s after which uvicorn, and so vLLM, closes an idle connection.
IDLE_SECONDS = 4.0


class WriteTimedOut(HttpFailure):
    """The server doesn't read the request. Sending it again would take as long."""

    retryable: ClassVar[bool] = False


class StaleConnection(BrokenReply):
    """The server closed a reused connection before it answered: it had dropped it as idle."""


class HttpServerConnection(asyncio.Protocol):
    """Created by `connect`. Abort it unless the response was read to its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport
        #: The response to the current request; None between two.
        self._reply: HttpReply | None = None
        self._failure: HttpFailure | None = None
        self._is_used = False
        self._is_writing = False
        self._is_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.idle_since = 0.0

    @property
    def is_open(self) -> bool:
        # After an error, the transport is closing before `connection_lost` is called.
        return self._failure is None and not self._transport.is_closing()

    @property
    def is_reusable(self) -> bool:
        """The request was sent, the response is complete, and reading isn't paused by unread data."""
        reply = self._reply
        return reply is not None and reply.has_ended and reply.keeps_alive and self.is_open and not (self._is_writing or self._is_paused)

    async def ask(self, request: bytes, until: float, *, write_seconds: float) -> ReplyHead:
        """Send a request and return the head of the response. Raises TimeoutError at ``until``, WriteTimedOut, StaleConnection and
        BrokenReply; then, and when cancelled, the connection is unusable."""
        self._reply = reply = HttpReply()
        if self.is_open:
            self._transport.write(request)
        else:
            self._fail(BrokenReply("it closed the connection"))
        if self._is_writing:
            await self._written(reply, until, write_seconds)
        while reply.head is None:
            if self._failure is not None:
                if self._is_used and reply.is_untouched and isinstance(self._failure, BrokenReply):
                    raise StaleConnection(str(self._failure)) from self._failure
                raise self._failure
            await self._wait(until)
        self._is_used = True
        return reply.head

    async def read(self, until: float) -> bytes:
        """Return the next piece of the body; empty at its end. Raises TimeoutError at ``until``, and BrokenReply."""
        reply = self._reply
        assert reply is not None
        while not reply.body_bytes:
            if reply.has_ended:
                return b""
            if self._failure is not None:
                raise self._failure
            await self._wait(until)
        if self._is_paused and self.is_open:
            self._is_paused = False
            self._transport.resume_reading()
        return reply.take()

    async def read_most(self, most: int, until: float) -> bytes:
        """Return the body, without what follows the piece that exceeds ``most`` bytes. Raises as ``read``."""
        body = bytearray()
        while len(body) <= most and (piece := await self.read(until)):
            body += piece
        return bytes(body)

    def rest(self, now: float) -> None:
        """Mark the connection as idle; data that arrives now closes it."""
        self._reply = None
        self.idle_since = now

    def abort(self) -> None:
        """Close the connection at once. Safe to call twice."""
        self._transport.abort()
        self._fail(BrokenReply("the connection was closed here"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        # Pause writing as long as any part of a request is unsent.
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            self.abort()
            return
        try:
            reply.push(data)
        except BrokenReply as broken:
            self._fail(broken)
            self.abort()
            return
        if reply.body_bytes > MAX_WAITING_BYTES and not self._is_paused and self.is_open:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        try:
            if self._reply is not None:
                self._reply.close()
        except BrokenReply as broken:
            self._fail(broken)
        self._fail(BrokenReply("it closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(BrokenReply("it closed the connection" if exc is None else f"the connection was lost ({_reason(exc)})"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        self._is_writing = True

    def resume_writing(self) -> None:
        self._is_writing = False
        self._wake()

    async def _written(self, reply: HttpReply, until: float, seconds: float) -> None:
        """Wait until the request is sent, or the server answers before it has read all of it, usually with a refusal."""
        late = self._loop.time() + seconds
        while self._is_writing and reply.head is None and self._failure is None:
            try:
                await self._wait(min(until, late))
            except TimeoutError:
                if until <= late:
                    raise
                raise WriteTimedOut(f"it did not read the request within {seconds:g} s") from None

    async def _wait(self, until: float) -> None:
        self._waiter = self._loop.create_future()
        self._deadline = until
        if self._timer is None or self._timer_at > until:
            self._set_timer(until)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._set_timer(self._deadline)
        else:
            self._waiter.set_exception(TimeoutError())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: HttpFailure) -> None:
        if self._failure is None:
            self._failure = failure
        self._wake()


async def connect(to: ServerOrigin, tls: ssl.SSLContext | None, seconds: float) -> HttpServerConnection:
    """Try every address of the host. Raises HttpFailure."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            _, connection = await loop.create_connection(
                lambda: HttpServerConnection(loop), to.host, to.port, ssl=tls, server_hostname=to.host.partition("%")[0] if tls else None
            )
    except ssl.SSLCertVerificationError as error:
        raise HttpFailure(f"its certificate is not trusted ({error.verify_message}); SSL_CERT_FILE adds authorities") from error
    except TimeoutError as error:
        raise HttpFailure(f"no connection within {seconds:g} s") from error
    except OSError as error:
        raise HttpFailure(f"no connection ({_reason(error)})") from error
    return connection


def _reason(error: Exception) -> str:
    """Return the same text for asyncio and uvloop, without the address that both repeat."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(getattr(error, "strerror", None) or "") or str(error) or type(error).__name__


class PoolExhausted(Exception):
    """No connection became free in time. Caught by `http_server_client.ServerExchange`."""


class HttpConnectionPool:
    """Created by `opened`. ``release`` every connection that ``ask`` returns."""

    def __init__(self, to: ServerOrigin, tls: ssl.SSLContext | None, connections: int, connect_seconds: float) -> None:
        self._to = to
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._loop = asyncio.get_running_loop()
        #: One place per connection in use. An idle connection needs none: a new one is only opened if no other is idle.
        self._places = asyncio.Semaphore(connections)
        self._used: set[HttpServerConnection] = set()
        #: The last used one at the right; it is reused first, so that the others can expire.
        self._idle: deque[HttpServerConnection] = deque()
        self._timer: asyncio.TimerHandle | None = None
        #: When the last part of an answer arrived, by the loop's clock.
        self.heard_at = -1.0

    async def ask(self, request: bytes, until: float) -> tuple[HttpServerConnection, ReplyHead]:
        """Send a request; return the head of the response and the connection with its body. Raises TimeoutError at ``until``,
        PoolExhausted and HttpFailure. Retries once on a new connection if the server dropped an idle one."""
        await self._wait_for_place(until)
        try:
            if (idle := self._find_idle()) is not None:
                try:
                    return await self._send(idle, request, until)
                except StaleConnection:
                    pass
            async with asyncio.timeout_at(until):
                connection = await connect(self._to, self._tls, self._connect_seconds)
            return await self._send(connection, request, until)
        except BaseException:
            self._places.release()
            raise

    def release(self, connection: HttpServerConnection) -> None:
        """Keep the connection if its response is complete; else close it at once, which stops the server."""
        self._used.discard(connection)
        if connection.is_reusable:
            connection.rest(self._loop.time())
            self._idle.append(connection)
            if self._timer is None:
                self._expire_at(connection)
        else:
            connection.abort()
        self._places.release()

    def close(self) -> None:
        """Close all connections, also those in use."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in (*self._used, *self._idle):
            connection.abort()
        self._idle.clear()

    async def _wait_for_place(self, until: float) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        turn = self._loop.time() + TURN_SECONDS
        try:
            async with asyncio.timeout_at(min(until, turn)):
                await self._places.acquire()
        except TimeoutError as error:
            if until <= turn:
                raise
            raise PoolExhausted from error

    async def _send(self, connection: HttpServerConnection, request: bytes, until: float) -> tuple[HttpServerConnection, ReplyHead]:
        self._used.add(connection)
        try:
            seconds = WRITE_SECONDS + len(request) / LEAST_BYTES_PER_SECOND
            return connection, await connection.ask(request, until, write_seconds=seconds)
        except BaseException:
            self._used.discard(connection)
            connection.abort()
            raise

    def _find_idle(self) -> HttpServerConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            connection.abort()
        return None

    def _expire_at(self, oldest: HttpServerConnection) -> None:
        self._timer = self._loop.call_at(oldest.idle_since + IDLE_SECONDS, self._expire)

    def _expire(self) -> None:
        self._timer = None
        too_old = self._loop.time() - IDLE_SECONDS
        while self._idle and self._idle[0].idle_since <= too_old:
            self._idle.popleft().abort()
        if self._idle:
            self._expire_at(self._idle[0])


@asynccontextmanager
async def opened(to: ServerOrigin, connections: int, connect_seconds: float) -> AsyncIterator[HttpConnectionPool]:
    """Certificates are checked against the system's authorities, or those in SSL_CERT_FILE."""
    tls = None
    if to.is_tls:
        tls = ssl.create_default_context()
        tls.set_alpn_protocols(["http/1.1"])
    pool = HttpConnectionPool(to, tls, connections, connect_seconds)
    try:
        yield pool
    finally:
        pool.close()
