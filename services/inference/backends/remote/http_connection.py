"""Sends requests over one connection to an HTTP server and reads the responses, under deadlines.

Only one task at a time uses a connection. Deadlines use the loop's clock. Each connection has one timer, which is set again if it
fires too early: under load a wait lasts a millisecond and its deadline a minute, so a timer per wait would be wasted.
"""

import asyncio
import os
import ssl
from typing import ClassVar, cast

from services.inference.backends.remote.http_messages import BrokenReply, HttpFailure, HttpReply, ReplyHead, ServerOrigin

#: Buffered for a slow reader, plus one piece of at most 256 KiB.
MAX_WAITING_BYTES = 128 * 1024


class ConnectFailed(HttpFailure):
    """No connection could be opened."""


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
    """Try every address of the host. Raises ConnectFailed."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            _, connection = await loop.create_connection(
                lambda: HttpServerConnection(loop), to.host, to.port, ssl=tls, server_hostname=to.host.partition("%")[0] if tls else None
            )
    except ssl.SSLCertVerificationError as error:
        raise ConnectFailed(f"its certificate is not trusted ({error.verify_message}); SSL_CERT_FILE adds authorities") from error
    except TimeoutError as error:
        raise ConnectFailed(f"no connection within {seconds:g} s") from error
    except OSError as error:
        raise ConnectFailed(f"no connection ({_reason(error)})") from error
    return connection


def _reason(error: Exception) -> str:
    """Return the same text for asyncio and uvloop, without the address that both repeat."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(getattr(error, "strerror", None) or "") or str(error) or type(error).__name__
