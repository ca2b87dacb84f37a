"""One TCP connection to a NATS server: the login, PINGs in both directions, the server's messages, and the move to another server."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

from shared import errors
from shared.timing.joined_writes import JoinedWrites
from shared.transports.nats import nats_protocol
from shared.transports.nats.login import NatsLogin
from shared.transports.nats.nats_protocol import Info, NatsMessage, NatsParser, NatsPing, NatsPong, Operation, ServerError
from shared.transports.nats.servers import ServerAddress

#: A server that has not answered our PING for so long is considered lost.
SILENCE_SECONDS = 10.0
HIGH_WATER_BYTES = 1024 * 1024

#: Publishes of one loop turn are joined up to this size and sent at once beyond it, so that both ends and the server work at the same
#: time. With 64 KiB, streams lost a quarter of their rate; below 2 KiB, waking the other side costs more than it gains.
MOST_HELD_BYTES = 4096


class SessionOwner(Protocol):
    """What a session reports to. Called on the event loop; must not wait."""

    def message_arrived(self, message: NatsMessage) -> None: ...

    def callback_failed(self, error: Exception) -> None:
        """A callback for a message raised. The connection stays open."""
        ...

    def request_refused(self, words: str) -> None:
        """The server refused one operation. The connection stays open."""
        ...

    def server_changed(self, session: "NatsSession") -> None:
        """The server sent another INFO: other servers, another limit, or that it is about to close."""
        ...

    def room_made(self) -> None:
        """The socket has room again after ``is_full``."""
        ...

    def session_ended(self, session: "NatsSession") -> None:
        """Called once for every session that was connected, logged in or not."""
        ...


class NatsSession(asyncio.Protocol):
    def __init__(self, owner: SessionOwner, server: ServerAddress) -> None:
        self.server = server
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._parser = NatsParser()
        self._transport: asyncio.Transport | None = None
        self._writes: JoinedWrites | None = None
        self._greeting: asyncio.Future[Info] = self._loop.create_future()
        self._pongs: list[asyncio.Future[None]] = []
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._aborted = False
        self._received_at = self._loop.time()
        #: Why it ended, in the server's words if possible; None while it is open.
        self.problem: Exception | None = None
        self.deliver: Callable[[NatsMessage], None] = owner.message_arrived
        self.is_full = False
        self.is_encrypted = False
        #: Whether we have sent our login.
        self.has_asked = False
        self.info = Info(max_payload=0)

    async def open(self, login: NatsLogin, name: str) -> None:
        """Connect and log in. If it raises or is canceled, nothing stays open."""
        try:
            transport, _ = await self._loop.create_connection(lambda: self, self.server.host, self.server.port)
            self.info = await self._greeting
            if self.server.tls or self.info.tls_required:
                context = login.tls_context()
                self._transport = await self._loop.start_tls(transport, self, context, server_hostname=self.server.certified_name)
                self.is_encrypted = True
            assert self._transport is not None
            self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
            self._writes = JoinedWrites(self._transport, MOST_HELD_BYTES)
            self.write(nats_protocol.connect(name=name, version="0.1.0", credentials=login.options(self.info, self.server)))
            self.has_asked = True
            await self.ping()
            if self._ended.done() or self._transport.is_closing():
                raise self._why_ended(None)
        except BaseException:
            self.abort()
            raise

    async def ping(self) -> None:
        """Make a round trip, after which the server has processed all earlier writes. Raises the reason if the connection ends instead."""
        if self._transport is None or self._transport.is_closing():
            raise self._why_ended(None)
        await self._send_ping()

    @property
    def silent_seconds(self) -> float:
        """Return how long ago the server's last byte came."""
        return self._loop.time() - self._received_at

    def check(self) -> None:
        """End the connection if the server has been silent; otherwise send a PING."""
        if self.silent_seconds > SILENCE_SECONDS:
            self.problem = ConnectionResetError(f"the NATS server has been silent for {SILENCE_SECONDS:.0f} s")
            self.abort()
        else:
            self._send_ping()

    def write(self, data: bytes) -> None:
        if self._writes is not None:
            self._writes.write(data)

    def flush_writes(self) -> None:
        if self._writes is not None:
            self._writes.flush()

    def abort(self) -> None:
        """Drop the connection, even while it is being made. Safe to call twice."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Send what is buffered, then close."""
        if self._transport is not None:
            if self._writes is not None:
                self._writes.flush()
            self._transport.close()
            await asyncio.wait({self._ended}, timeout=1)
        self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses
        if self._aborted:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received_at = self._loop.time()
        try:
            operations = self._parser.feed(data)
        except errors.ProtocolViolation as error:
            self.problem = error
            self.abort()
            return
        self.process(operations)

    def process(self, operations: Iterable[Operation]) -> None:
        """Pass messages to ``deliver`` in order, and handle the rest."""
        deliver = self.deliver
        for operation in operations:
            try:
                if type(operation) is NatsMessage:
                    deliver(operation)
                else:
                    self._control(operation)
            except Exception as error:  # one bad message must not end the connection
                self._owner.callback_failed(error)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._owner.room_made()

    def connection_lost(self, error: Exception | None) -> None:
        self.problem = problem = self._why_ended(error)
        waiting: list[asyncio.Future[Any]] = [self._greeting, *self._pongs]
        for future in waiting:
            if not future.done():
                future.set_exception(problem)
                future.exception()  # mark as retrieved
        self._pongs.clear()
        if not self._ended.done():
            self._ended.set_result(None)
        self._owner.session_ended(self)

    def _control(self, operation: Operation) -> None:
        if isinstance(operation, NatsPing):
            self.write(b"PONG\r\n")
        elif isinstance(operation, NatsPong):
            if self._pongs and not (first := self._pongs.pop(0)).done():
                first.set_result(None)
        elif isinstance(operation, Info):
            self.info = operation
            if self._greeting.done():
                self._owner.server_changed(self)
            else:
                self._greeting.set_result(operation)
        elif isinstance(operation, ServerError):
            if operation.is_fatal:
                self.problem = errors.NotAllowed(f"the NATS server says: {operation.text}")
            else:
                self._owner.request_refused(operation.text)

    def _send_ping(self) -> asyncio.Future[None]:
        """Send a PING and queue its future: a PONG answers the oldest PING."""
        pong: asyncio.Future[None] = self._loop.create_future()
        self._pongs.append(pong)
        self.write(b"PING\r\n")
        return pong

    def _why_ended(self, error: Exception | None) -> Exception:
        return self.problem or error or ConnectionResetError("the NATS server closed the connection")


class Handover:
    """Moves from one server to another without losing or repeating messages, while both connections are subscribed.

    Delivers messages of the old connection at once and holds those of the new one. At the end it returns the held messages that the old
    connection did not deliver."""

    def __init__(self, deliver: Callable[[NatsMessage], None]) -> None:
        self._deliver = deliver
        self._delivered: Counter[NatsMessage] = Counter()
        self._held: list[NatsMessage] = []

    def from_old(self, message: NatsMessage) -> None:
        self._delivered[message] += 1
        self._deliver(message)

    def from_new(self, message: NatsMessage) -> None:
        self._held.append(message)

    def remaining(self) -> list[NatsMessage]:
        """Return what is left to deliver, once the old connection is drained."""
        left = []
        for message in self._held:
            if self._delivered[message]:
                self._delivered[message] -= 1
            else:
                left.append(message)
        return left
