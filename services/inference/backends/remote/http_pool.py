"""Pools the connections to one HTTP server: bounds their number, reuses idle ones and queues for them in order."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.inference.backends.remote import http_connection
from services.inference.backends.remote.http_connection import HttpServerConnection, StaleConnection
from services.inference.backends.remote.http_reply import ReplyHead
from services.inference.backends.remote.http_request import ServerOrigin


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
    """Created by `opened`. ``give_back`` every connection that ``ask`` returns."""

    def __init__(self, to: ServerOrigin, tls: ssl.SSLContext | None, limits: PoolLimits) -> None:
        self._to = to
        self._tls = tls
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._free = limits.connections
        self._open: set[HttpServerConnection] = set()
        #: The last used one at the right; it is reused first, so that the others can expire.
        self._idle: deque[HttpServerConnection] = deque()
        #: Each gets a connection, or None for the right to open one. Canceled ones stay until they are first in line.
        self._waiting: deque[asyncio.Future[HttpServerConnection | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, request: bytes, until: float) -> tuple[HttpServerConnection, ReplyHead]:
        """Send a request; return the head of the response and the connection with its body. Raises TimeoutError at ``until``,
        PoolExhausted and HttpFailure. Retries once on a new connection if the server dropped an idle one."""
        connection = self._find_idle()
        if connection is None:
            async with asyncio.timeout_at(until):
                connection = await self._next()
        try:
            try:
                return connection, await connection.ask(request, until, write_seconds=self._limits.write_seconds)
            except StaleConnection:
                async with asyncio.timeout_at(until):
                    connection = await self._replace(connection)
                return connection, await connection.ask(request, until, write_seconds=self._limits.write_seconds)
        except BaseException:
            self._drop(connection)
            raise

    def give_back(self, connection: HttpServerConnection) -> None:
        """Keep the connection if its response is complete; else close it at once, which stops the server."""
        if connection not in self._open:
            return
        if not connection.is_reusable:
            self._drop(connection)
            return
        connection.rest(self._loop.time())
        self._keep(connection)

    def close(self) -> None:
        """Close all connections, also those in use."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in self._open:
            connection.abort()
        self._open.clear()
        self._idle.clear()

    def _find_idle(self) -> HttpServerConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._drop(connection)
        return None

    async def _next(self) -> HttpServerConnection:
        if self._free:
            self._free -= 1
        elif (given := await self._turn()) is not None:
            return given
        return await self._connect()

    async def _turn(self) -> HttpServerConnection | None:
        turn: asyncio.Future[HttpServerConnection | None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._limits.turn_seconds):
                return await turn
        except (asyncio.CancelledError, TimeoutError) as error:
            self._give_up(turn)
            if isinstance(error, TimeoutError):
                raise PoolExhausted from error
            raise

    def _give_up(self, turn: asyncio.Future[HttpServerConnection | None]) -> None:
        if turn.done() and not turn.cancelled():
            # It was granted just as the caller gave up.
            given = turn.result()
            if given is None:
                self._free_place()
            else:
                self._keep(given)
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()

    async def _connect(self) -> HttpServerConnection:
        """Open a connection that ``_free`` already counts."""
        try:
            connection = await http_connection.connect(self._to, self._tls, self._limits.connect_seconds)
        except BaseException:
            self._free_place()
            raise
        self._open.add(connection)
        return connection

    async def _replace(self, stale: HttpServerConnection) -> HttpServerConnection:
        self._open.discard(stale)
        stale.abort()
        return await self._connect()

    def _drop(self, connection: HttpServerConnection) -> None:
        connection.abort()
        if connection in self._open:
            self._open.discard(connection)
            self._free_place()

    def _keep(self, connection: HttpServerConnection) -> None:
        if (turn := self._first_waiting()) is not None:
            turn.set_result(connection)
            return
        self._idle.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_at(connection.idle_since + self._limits.idle_seconds, self._expire)

    def _free_place(self) -> None:
        if (turn := self._first_waiting()) is not None:
            turn.set_result(None)
        else:
            self._free += 1

    def _first_waiting(self) -> asyncio.Future[HttpServerConnection | None] | None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                return turn
        return None

    def _expire(self) -> None:
        self._timer = None
        too_old = self._loop.time() - self._limits.idle_seconds
        while self._idle and self._idle[0].idle_since <= too_old:
            self._drop(self._idle.popleft())
        if self._idle:
            self._timer = self._loop.call_at(self._idle[0].idle_since + self._limits.idle_seconds, self._expire)


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
