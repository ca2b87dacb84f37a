"""Connections to Valkey. Many calls may wait on one connection; the answers come in the order of the calls.

If a caller stops waiting, its answer is dropped when it arrives. No call is sent twice. A connection to a replica or a server that is
not ready is closed, because the same address may lead to another server by now.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple, cast

from shared import errors
from shared.stores import resp
from shared.stores.resp import Reply, ReplyError, RespParser, Word
from shared.stores.valkey_url import ValkeyUrl
from shared.timing.joined_writes import JoinedWrites

CONNECT_SECONDS = 1.0
#: A server that has not answered the oldest call for so long is considered lost.
SILENCE_SECONDS = 2.0
#: Before that, what has arrived while this program was busy is read.
_LAST_LOOK_SECONDS = 0.01
#: Unanswered calls per connection. The limits allow 128 at once; the rest are calls whose callers have given up.
MAX_CALLS = 1024
#: Unsent bytes per connection: sixteen of the largest values.
MAX_UNSENT_BYTES = 4 * 1024 * 1024


_NOT_THE_ONE = frozenset({"READONLY", "MASTERDOWN", "LOADING", "CLUSTERDOWN", "UNBLOCKED"})
_CLOSED = "the connection is closed"

Finder = Callable[[], Awaitable[ValkeyUrl]]


class LoginRefused(ReplyError):
    """The server rejects this name, password or database; the text is the server's."""


class _PendingCommand(NamedTuple):
    asked_at: float
    command: bytes
    answer: "asyncio.Future[Reply]"


class ValkeyConnection:
    """A connection that opens on demand and reopens after a loss. Its task belongs to ``tasks``."""

    def __init__(self, address: ValkeyUrl, trusted: ssl.SSLContext | None, tasks: asyncio.TaskGroup, find: Finder | None = None) -> None:
        """``trusted`` has the CAs for TLS; None without TLS. ``find`` returns the address for a new connection, or raises OSError."""
        self._address = address
        self._find = find
        self._trusted = trusted
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._session: _Session | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: deque[_PendingCommand] = deque()
        self._waiting_bytes = 0
        self._is_closed = False

    def ask(self, words: Sequence[Word]) -> "asyncio.Future[Reply]":
        """Send a command. The future gets a reply, ReplyError or OSError within about 2 s. Raises OSError if too many calls wait."""
        command = resp.command(words)
        if self._session is not None:
            return self._session.ask(command)
        if self._is_closed:
            raise ConnectionError(_CLOSED)
        if len(self._waiting) >= MAX_CALLS or self._waiting_bytes >= MAX_UNSENT_BYTES:
            raise ConnectionError("too many calls wait for a connection")
        call = _PendingCommand(self._loop.time(), command, self._loop.create_future())
        self._waiting.append(call)
        self._waiting_bytes += len(command)
        if self._connecting is None:
            self._connecting = self._tasks.create_task(self._connect())
        return call.answer

    async def parts(self) -> "Sequence[ValkeyConnection]":
        """Return a connection to each server that has a part of the keys."""
        return (self,)

    def close(self) -> None:
        """Close for good. Waiting calls fail."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for call in self._take_waiting():
            fail(call.answer, ConnectionError(_CLOSED))
        if self._session is not None:
            self._session.end(ConnectionError(_CLOSED))

    async def _connect(self) -> None:
        problem: Exception = ConnectionError(_CLOSED)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._session = await self._open()
        except TimeoutError:
            problem = TimeoutError(f"no connection within {CONNECT_SECONDS:g} s")
        except (OSError, ReplyError) as error:
            problem = error
        finally:
            self._connecting = None
            for call in self._take_waiting():
                if self._session is None:
                    fail(call.answer, problem)
                elif not call.answer.done():
                    self._session.send(call)

    async def _open(self) -> "_Session":
        address = self._address if self._find is None else await self._find()
        session = _Session(self._lost)
        if address.path is not None:
            await self._loop.create_unix_connection(lambda: session, address.path)
        else:
            await self._loop.create_connection(lambda: session, address.host, address.port, ssl=self._trusted)
        try:
            for words in _login(address):
                await session.ask(resp.command(words))
        except ReplyError as error:
            session.end(error)
            raise LoginRefused(*error.args) from None
        except BaseException:
            session.end(ConnectionError("the connection is no longer needed"))
            raise
        if session.is_over:
            raise ConnectionResetError("Valkey closed the connection")
        return session

    def _take_waiting(self) -> deque[_PendingCommand]:
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        return waiting

    def _lost(self, session: "_Session") -> None:
        if self._session is session:
            self._session = None


class _Session(asyncio.Protocol):
    def __init__(self, lost: Callable[["_Session"], None]) -> None:
        self._tell_lost = lost
        self._loop = asyncio.get_running_loop()
        self._parser = RespParser()
        self._transport: asyncio.Transport | None = None
        self._writes: JoinedWrites | None = None
        self._unanswered: deque[tuple[float, asyncio.Future[Reply]]] = deque()
        self._is_full = False
        self.is_over = False
        self._watch: asyncio.TimerHandle | None = None
        #: The oldest call if it seems overdue. It is checked once more.
        self._suspect: asyncio.Future[Reply] | None = None

    def ask(self, command: bytes) -> "asyncio.Future[Reply]":
        if self._is_full or len(self._unanswered) >= MAX_CALLS:
            raise ConnectionError("too many calls wait for an answer")
        call = _PendingCommand(self._loop.time(), command, self._loop.create_future())
        self.send(call)
        return call.answer

    def send(self, call: _PendingCommand) -> None:
        assert self._writes is not None
        self._unanswered.append((call.asked_at, call.answer))
        self._writes.write(call.command)
        if self._watch is None:
            self._watch = self._loop.call_later(call.asked_at + SILENCE_SECONDS - self._loop.time(), self._look)

    def end(self, problem: Exception) -> None:
        """Close the connection and fail all waiting calls. Safe to call twice."""
        if self.is_over:
            return
        self.is_over = True
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._tell_lost(self)
        while self._unanswered:
            fail(self._unanswered.popleft()[1], problem)

    def _look(self) -> None:
        """End the connection if the oldest call is overdue, but first read what has arrived while this program was busy."""
        self._watch = None
        if not self._unanswered:
            return
        asked_at, oldest = self._unanswered[0]
        seconds_left = asked_at + SILENCE_SECONDS - self._loop.time()
        if seconds_left > 0:
            self._watch = self._loop.call_later(seconds_left, self._look)
        elif self._suspect is not oldest:
            self._suspect = oldest
            self._watch = self._loop.call_later(_LAST_LOOK_SECONDS, self._look)
        else:
            self.end(TimeoutError(f"no answer within {SILENCE_SECONDS:g} s"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        self._writes = JoinedWrites(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._parser.feed(data)
        except errors.ProtocolViolation as error:
            self.end(ConnectionError(error.message))
            return
        unanswered = self._unanswered
        refusal: ReplyError | None = None
        for reply in replies:
            if not unanswered:
                self.end(ConnectionError("Valkey sent an unexpected answer"))
                return
            _, answer = unanswered.popleft()
            if isinstance(reply, ReplyError):
                fail(answer, reply)
                refusal = reply if reply.word in _NOT_THE_ONE else refusal
            elif not answer.done():
                answer.set_result(reply)
        if refusal is not None:
            self.end(refusal)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False

    def connection_lost(self, error: Exception | None) -> None:
        self.end(error or ConnectionResetError("Valkey closed the connection"))


def fail(answer: "asyncio.Future[Reply]", problem: Exception) -> None:
    """Fail a call, unless it is already done."""
    if not answer.done():
        answer.set_exception(problem)
        answer.exception()  # mark as retrieved: the caller may be canceled in this very turn


def _login(address: ValkeyUrl) -> Iterator[tuple[resp.Word, ...]]:
    if address.password is not None:
        yield ("AUTH", address.username, address.password) if address.username else ("AUTH", address.password)
    if address.database:
        yield "SELECT", address.database
