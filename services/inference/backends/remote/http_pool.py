"""Pools the connections to one HTTP server: bounds their number, reuses idle ones and queues for them in order."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.inference.backends.remote import http_connection
from services.inference.backends.remote.http_connection import HttpServerConnection, StaleConnection
from services.inference.backends.remote.http_messages import ReplyHead, ServerOrigin


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    connections: int
    connect_seconds: float
    turn_seconds: float
    write_seconds: float
    idle_seconds: float


class PoolExhausted(Exception):
    """No connection became free in time. Caught by `http_server_client.translated`."""


class HttpConnectionPool:
    """Created by `opened`. ``release`` every connection that ``ask`` returns."""

    def __init__(self, to: ServerOrigin, tls: ssl.SSLContext | None, limits: PoolLimits) -> None:
        self._to = to
        self._tls = tls
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        #: One place per connection in use. An idle connection needs none: a new one is only opened if no other is idle.
        self._places = asyncio.Semaphore(limits.connections)
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
                connection = await http_connection.connect(self._to, self._tls, self._limits.connect_seconds)
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
        turn = self._loop.time() + self._limits.turn_seconds
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
            return connection, await connection.ask(request, until, write_seconds=self._limits.write_seconds)
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
        self._timer = self._loop.call_at(oldest.idle_since + self._limits.idle_seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        too_old = self._loop.time() - self._limits.idle_seconds
        while self._idle and self._idle[0].idle_since <= too_old:
            self._idle.popleft().abort()
        if self._idle:
            self._expire_at(self._idle[0])


@asynccontextmanager
async def opened(to: ServerOrigin, limits: PoolLimits) -> AsyncIterator[HttpConnectionPool]:
    """Certificates are checked against the system's authorities, or those in SSL_CERT_FILE."""
    tls = None
    if to.is_tls:
        tls = ssl.create_default_context()
        tls.set_alpn_protocols(["http/1.1"])
    pool = HttpConnectionPool(to, tls, limits)
    try:
        yield pool
    finally:
        pool.close()
