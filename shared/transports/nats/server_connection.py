"""One connection to one NATS server, by nats-py. It is never reused: ``NatsClient`` opens the next one."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from shared import errors
from shared.transports.nats.login import NatsLogin, NatsLoginUnanswered
from shared.transports.nats.server_socket import ServerSocket

#: A server that has not answered so many PINGs, one a second, is considered lost.
MAX_PINGS = 10
#: A refusal that took so long is the server's, because auth did not answer.
_UNANSWERED_SECONDS = 1.8

_T = TypeVar("_T")


class NatsMessage(NamedTuple):
    """A published message. A tuple, for speed."""

    sid: int
    subject: bytes
    reply: bytes
    headers: bytes
    payload: bytes


class ConnectionOwner(Protocol):
    """What a connection reports to, on the event loop. Must not wait or raise."""

    on_refused: Callable[[str], None]

    def message_arrived(self, message: NatsMessage) -> None: ...

    def server_changed(self, connection: "ServerConnection") -> None: ...

    def connection_ended(self, connection: "ServerConnection") -> None: ...


class ServerConnection(Client):
    def __init__(self, owner: ConnectionOwner, socket: ServerSocket) -> None:
        super().__init__()
        self.server = socket.server
        self.socket = self._transport = socket
        self.deliver: Callable[[NatsMessage], None] = owner.message_arrived
        #: Lame duck mode: the server is about to close its connections.
        self.is_leaving = False
        self._owner = owner
        #: Whether we have answered the server's nonce.
        self._has_signed = False
        self._nonce = ""
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._theirs: dict[int, Subscription] = {}
        #: The owner's number of each subscription, by nats-py's.
        self._numbers: dict[int, int] = {}

    async def open(self, login: NatsLogin, name: str, seconds: float, least_payload_bytes: int, *, settle_seconds: float = 0.0) -> None:
        """Connect, wait for ``settle_seconds``, and log in. If it raises or is canceled, nothing stays open."""
        self.socket.settle_seconds = settle_seconds
        started = asyncio.get_running_loop().time()
        try:
            with _cancellation_kept():
                async with asyncio.timeout(settle_seconds + seconds):
                    await self._log_in(login, name)
            if self.max_payload < least_payload_bytes:
                raise errors.Unavailable(
                    f"the NATS server at {self.server} takes messages of up to {self.max_payload} bytes, and the mesh needs "
                    f"{least_payload_bytes}",
                    hint="set max_payload to 2MB in the server's configuration",
                )
        except BaseException as error:
            self.socket.cut()
            took = asyncio.get_running_loop().time() - started
            if self._has_signed and (
                isinstance(error, TimeoutError) or (isinstance(error, errors.NotAllowed) and took >= _UNANSWERED_SECONDS)
            ):
                raise NatsLoginUnanswered(
                    f"the NATS login at {self.server} needs auth, which does not answer", hint="start auth", retry_after_seconds=1
                ) from error
            raise

    async def _log_in(self, login: NatsLogin, name: str) -> None:
        def sign(nonce: str) -> bytes:
            self._has_signed, self._nonce = True, nonce
            return login.sign(nonce)

        server, jwt = self.server, login.jwt
        self._public_nkey = login.node  # nats-py takes only a seed, and needs another package for it
        signs = not server.has_credentials
        try:
            await self.connect(
                str(server), name=name, allow_reconnect=False, connect_timeout=60, ping_interval=1, max_outstanding_pings=MAX_PINGS,
                # So nothing waits in nats-py, see _at_once; the bounds are ``NatsClient.is_full`` and ``max_payload``.
                pending_size=0, flusher_queue_size=0,
                error_cb=self._note_error, closed_cb=self._end, lame_duck_mode_cb=self._leave, discovered_server_cb=self._learn,
                tls=login.context, tls_hostname=server.certified_name,
                user=server.user or None, password=server.password if server.user else None,
                token=(lambda: login.token(self._nonce)) if signs and jwt is None else server.token or None,
                signature_cb=sign if signs else None, user_jwt_cb=None if jwt is None else jwt.encode,
            )  # fmt: skip
        except nats.errors.Error as error:
            raise self.problem from error
        if not self.is_connected:
            raise self.problem

    @property
    def problem(self) -> Exception:
        """Return why it ended: NotAllowed with the server's words, or that it was lost."""
        error = self.last_error
        words = str(error).removeprefix("nats: ").strip().strip("'")
        if isinstance(error, nats.errors.AuthorizationError) or (type(error) is nats.errors.Error and "expecting INFO" not in words):
            return errors.NotAllowed(f"the NATS server says: {words}")
        return ConnectionResetError("the NATS server closed the connection")

    async def round_trip(self) -> None:
        """After this the server has processed what was sent before. Raises the reason if the connection ends instead."""
        pong: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.is_connected:
            with _cancellation_kept():
                await self._flush_pending(force_flush=True)  # nats-py writes a PING before what waits
                await self._send_ping(pong)
            await asyncio.wait({pong, self._over}, return_when=asyncio.FIRST_COMPLETED)
        if not pong.done():
            raise self.problem

    def send(self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None) -> None:
        _at_once(self.publish(subject, payload, reply, headers))

    def add(self, number: int, subject: str, queue: str) -> None:
        if self.is_connected:
            self._theirs[number] = found = _at_once(self.subscribe(subject, queue))
            self._numbers[found._id] = number

    def remove(self, number: int) -> None:
        if (found := self._theirs.pop(number, None)) is not None:
            del self._numbers[found._id]
            if self.is_connected:
                _at_once(found.unsubscribe())

    async def close(self) -> None:
        with _cancellation_kept():
            await super().close()

    async def drain_messages(self) -> None:
        """Unsubscribe, and wait until all messages of before are delivered."""
        for found in self._theirs.values():
            if self.is_connected:
                _at_once(found.unsubscribe())
        await self.round_trip()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """Deliver in the order of arrival and read nothing meanwhile. nats-py would have a queue and a task for each subscription."""
        if (number := self._numbers.get(sid)) is not None:
            self.deliver(NatsMessage(number, subject, reply, headers or b"", data))

    async def _note_error(self, error: Exception) -> None:
        if self._status in (Client.DISCONNECTED, Client.CONNECTING):
            raise error  # or nats-py would try the same server again, and hide why

    async def _process_err(self, err_msg: str) -> None:
        words = err_msg.strip("'")
        if words.startswith(("permissions violation", "maximum subscriptions exceeded")):
            self._owner.on_refused(words)  # the server keeps the connection; nats-py would close it for the second
        else:
            await super()._process_err(err_msg)

    async def _learn(self) -> None:
        self._owner.server_changed(self)

    async def _leave(self) -> None:
        self.is_leaving = True
        self._owner.server_changed(self)

    async def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
        self._owner.connection_ended(self)


@contextmanager
def _cancellation_kept() -> Iterator[None]:
    """Raise CancelledError at the end of a block in which the task was canceled. nats-py loses a cancellation, and so does
    ``asyncio.wait_for`` of Python 3.11 if it arrives together with the result or the error."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    except Exception as error:
        if task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError


def _at_once(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine of nats-py that does not wait, so that callers need no task."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast("_T", done.value)
    work.close()
    raise RuntimeError("nats-py waits where it did not")
