"""The connection to a NATS server: log in, publish, subscribe, and open another connection after every loss.

Writes never wait: ``is_full`` tells producers to wait. Callbacks run one after the other on the event loop and must not wait. If one
raises, the error is logged and counted, and only that message is lost.
"""

import asyncio
import math
import random
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from shared import errors
from shared.identity import login_tokens, node_keys
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.timing.bounded_waits import wait_until_set
from shared.transports.nats import servers
from shared.transports.nats.login import NatsFiles, NatsLogin, NatsLoginUnanswered
from shared.transports.nats.server_connection import NatsMessage, ServerConnection
from shared.transports.nats.server_socket import ServerSocket
from shared.transports.nats.servers import ServerAddress, ServerList
from shared.transports.nats.web_socket import WebSocket

#: The login timeout per server. It doubles up to the second value while logins take too long, because the servers may be overloaded. The
#: server asks auth, and waits 2 s: a shorter first attempt finds an auth that has just started.
LOGIN_SECONDS = (1.0, 10.0)
#: Its first value after a loss for clients that hurry: the server is new, and auth may have missed its question.
_HURRIED_LOGIN_SECONDS = 0.5
#: For the login at another server, while this one still works.
_MOVE_SECONDS = 2.0
_MOVED_SECONDS = 1.0
#: While a server refuses us. Jitter protects it from all clients reconnecting at once.
RETRY_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=2.0, jitter=0.5)
#: While no server listens, or auth doesn't answer it: a node is back within a second.
AWAY_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=0.4, jitter=0.5)
#: Auth's own, without which no other node is admitted.
_LEADING_BACKOFF = Backoff(first_seconds=0.05, longest_seconds=0.1, jitter=0.5)
#: After a loss, a login begins so long after the server has accepted the connection. Auth's own come first; the server would not repeat its
#: question to an auth that is not there yet. It is random, so that not all nodes log in at once.
_SETTLE_SECONDS = (0.15, 0.3)
HIGH_WATER_BYTES = 1024 * 1024
#: At most one failed callback per this time is logged with its traceback. All are counted.
LOG_SECONDS = 10.0

OnMessage = Callable[[NatsMessage], object]

_log = logs.get(part="nats")
_FAILURES = (OSError, TimeoutError, errors.AimeshError)


@dataclass(frozen=True, slots=True)
class _Subscription:
    subject: str
    queue: str
    callback: OnMessage


class NatsClient:
    """One connection, and another when it is lost. ``run`` must be running while it is used."""

    def __init__(
        self,
        urls: str,
        key: node_keys.NodeKey,
        *,
        name: str,
        files: NatsFiles | None = None,
        least_payload_bytes: int = 0,
        token: Callable[[str], str] = login_tokens.without,
        leads: bool = False,
        hurries: bool = False,
    ) -> None:
        """``urls`` are comma-separated nats:// or tls:// URLs, with user and password or a token if required; ``token`` is the node's own,
        for a nonce. Servers that accept only messages smaller than ``least_payload_bytes`` are refused. ``leads``: others can't log in
        before it. ``hurries``: clients wait for it, so auth answers it first. Raises BadSettings for unusable URLs and files."""
        self._servers = ServerList(servers.read_urls(urls))
        self._login = NatsLogin(key, files or NatsFiles(), self._servers.configured, token)
        self._name = name
        self._least_payload_bytes = least_payload_bytes
        self._leads = leads
        self._hurries = hurries
        self._subscriptions: dict[int, _Subscription] = {}
        self._last_sid = 0
        #: The connection in use, which has logged in.
        self._connection: ServerConnection | None = None
        #: The server that accepted us last.
        self._last: ServerAddress | None = None
        #: The connection that is being opened, or that we are moving to.
        self._next: ServerConnection | None = None
        self._attention = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_connected_once = asyncio.Event()
        self._closing = self._is_draining = self._login_is_old = False
        #: How often in a row a server refused us, or accepted us and then closed the connection with an error, as for expired credentials.
        self._failures = 0
        self.trouble: errors.Unavailable | None = None
        self.reconnects = 0
        self.callback_errors = 0
        self._logged_at = -LOG_SECONDS
        #: Called with False when the server is lost and with True when it is back.
        self.on_connection: Callable[[bool], None] = lambda connected: None
        #: Called with the server's text, in lower case, when it refuses an operation, such as a forbidden subject.
        self.on_refused: Callable[[str], None] = lambda words: None
        self.on_room: Callable[[], None] = lambda: None

    async def connect(self, *, deadline_seconds: float) -> None:
        """Make the first connection. Raises Unavailable if no server accepts us by the deadline."""
        await self._open_one(give_up_at=asyncio.get_running_loop().time() + deadline_seconds)
        self._is_connected_once.set()

    def connect_later(self) -> None:
        """Let ``run`` make the first connection, as soon as a server accepts us."""
        self._is_connected_once.set()
        self._attention.set()

    def renew_login(self) -> None:
        """Log in again with the present token, and move to that connection: the server closes one whose certificate has expired."""
        self._login_is_old = True
        self._attention.set()

    async def run(self) -> None:
        """Keep the connection: reconnect when it is lost, leave a server that is about to close. Ends by cancellation. Does nothing before
        ``connect``."""
        await self._is_connected_once.wait()
        while True:
            await wait_until_set(self._attention, 1.0)
            self._attention.clear()
            if self._closing:
                continue
            if self._connection is None:
                await self._connect_again()
            elif self._connection.is_leaving or self._login_is_old:
                await self._move(self._connection)

    async def close(self) -> None:
        """Send what is buffered, then disconnect. A connection that is being made is dropped; nothing is delivered afterwards."""
        self._closing = True
        connection, self._connection = self._connection, None
        self._subscriptions.clear()
        if self._next is not None:
            self._next.socket.cut()
        if connection is not None:
            try:
                await connection.close()
            finally:
                connection.socket.cut()

    @property
    def silent_seconds(self) -> float:
        """Return how long ago the last byte came from the server; 0 without a connection."""
        return 0.0 if self._connection is None else asyncio.get_running_loop().time() - self._connection.socket.heard_at

    @property
    def connected(self) -> bool:
        return self._connection is not None and self._connection.is_connected

    @property
    def is_over_web(self) -> bool:
        """Return whether the server is reached over a WebSocket."""
        return self._connection is not None and self._connection.server.is_web

    @property
    def is_full(self) -> bool:
        """Return whether producers should wait for ``on_room``."""
        connection = self._connection
        return self._is_draining or (connection is not None and connection.pending_data_size > HIGH_WATER_BYTES)

    async def wait_for_room(self) -> None:
        """Wait until ``is_full`` is false, as it also is without a server. The caller needs a deadline."""
        while self.is_full:
            self._has_room.clear()
            await self._has_room.wait()

    @property
    def max_payload_bytes(self) -> int:
        """Return the largest message that the server accepts, headers included; 0 without a server."""
        return 0 if self._connection is None else self._connection.max_payload

    def publish(self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Send a message; it is dropped while there is no server. Raises TooLarge if the server would close the connection for it."""
        connection = self._connection
        if connection is None or not connection.is_connected:
            return
        size = len(payload) + (12 + sum(len(f"{name}: {text}\r\n".encode()) for name, text in headers.items()) if headers else 0)
        if size > connection.max_payload:
            raise errors.TooLarge(
                f"a message of {size} bytes is over the NATS server's limit of {connection.max_payload}",
                hint="raise max_payload in the server's configuration",
            )
        connection.send(subject, payload, reply, dict(headers) if headers else None)

    def subscribe(self, subject: str, callback: OnMessage, *, queue: str = "") -> int:
        """Subscribe, also after reconnects. Returns the number for ``unsubscribe``."""
        self._last_sid += 1
        self._subscriptions[self._last_sid] = _Subscription(subject, queue, callback)
        for connection in (self._connection, self._next):
            if connection is not None:
                connection.add(self._last_sid, subject, queue)
        return self._last_sid

    def unsubscribe(self, sid: int) -> None:
        if self._subscriptions.pop(sid, None) is not None:
            for connection in (self._connection, self._next):
                if connection is not None:
                    connection.remove(sid)

    async def flush(self, *, deadline_seconds: float = 2.0) -> None:
        """Wait until the server has processed everything sent so far. Raises Unavailable."""
        connection = self._connection
        if connection is None:
            raise self.trouble or self._login.explain(None, self._servers.configured)
        try:
            async with asyncio.timeout(deadline_seconds):
                await connection.round_trip()
        except _FAILURES as error:
            raise self._login.explain(error, (connection.server,)) from error

    async def _connect_again(self) -> None:
        if self._failures:
            await asyncio.sleep(RETRY_BACKOFF.pause(self._failures + 1))
        with suppress(errors.Unavailable):  # only while we close
            await self._open_one()
            self.reconnects += 1
            self.on_connection(True)

    async def _open_one(self, *, give_up_at: float = math.inf) -> None:
        """Try until a server accepts us, and use that connection. Raises Unavailable when it is time to give up."""
        is_back = self._is_connected_once.is_set() and not self._leads
        login_seconds, tries = _HURRIED_LOGIN_SECONDS if is_back and self._hurries else LOGIN_SECONDS[0], 0
        while True:
            try:
                self._adopt(await self._log_in(login_seconds, settle_seconds=random.uniform(*_SETTLE_SECONDS) if is_back else 0.0))  # noqa: S311
                return
            except errors.Unavailable as error:
                tries += 1
                self.trouble = error
                if tries == 1 and _is_definite(error):
                    _log.warning("NATS can't be reached; trying again", why=error.message, hint=error.hint)
                pause = self._pause(error, tries) if give_up_at == math.inf else RETRY_BACKOFF.first_seconds
                if self._closing or asyncio.get_running_loop().time() + pause >= give_up_at:
                    raise
                await asyncio.sleep(pause)
                if not isinstance(error.__cause__, ConnectionError):
                    login_seconds = min(2 * login_seconds, LOGIN_SECONDS[1])

    def _pause(self, error: errors.Unavailable, tries: int) -> float:
        """Return how long to wait until the next try. ``error`` is what ``_log_in`` raised."""
        if not _is_definite(error):
            return (_LEADING_BACKOFF if self._leads else AWAY_BACKOFF).pause(tries)
        self._failures = min(self._failures + 1, 10)
        return RETRY_BACKOFF.pause(self._failures)

    async def _log_in(self, login_seconds: float, *, settle_seconds: float = 0.0) -> ServerConnection:
        """Connect to any server. Raises Unavailable with the most informative reason."""
        problem: Exception | None = None
        for server in self._servers.in_order(self._last):
            if self._closing:
                break
            socket = (WebSocket if server.is_web else ServerSocket)(server, self.room_made)
            connection = self._next = ServerConnection(self, socket)
            try:
                await connection.open(self._login, self._name, login_seconds, self._least_payload_bytes, settle_seconds=settle_seconds)
                if not self._closing:
                    return connection
                connection.socket.cut()
            except _FAILURES as error:
                # A refusal is more informative than that another server of the cluster is down.
                if problem is None or _is_uninformative(problem):
                    problem = error
            finally:
                self._next = None
        raise self._login.explain(problem, self._servers.configured) from problem

    def _adopt(self, connection: ServerConnection) -> None:
        """Use a connection that has logged in. Subscribe last, so that ``publish`` works when the first message arrives."""
        self._connection, self._last, self._login_is_old, self.trouble = connection, connection.server, False, None
        self._subscribe_all(connection)
        self.server_changed(connection)

    def _subscribe_all(self, connection: ServerConnection) -> None:
        for sid, subscription in self._subscriptions.items():
            connection.add(sid, subscription.subject, subscription.queue)

    async def _move(self, old: ServerConnection) -> None:
        """Move to another connection while this one still works. If no server accepts us, stay; ``run`` tries again. Messages of the new
        one wait until the old one has no more; what both have is delivered once."""
        try:
            new = await self._log_in(_MOVE_SECONDS)
        except errors.Unavailable as error:
            _log.warning("no NATS server accepts us, and we cannot keep this connection", why=error.message)
            return
        delivered, held = Counter[NatsMessage](), list[NatsMessage]()

        def from_old(message: NatsMessage) -> None:
            delivered[message] += 1
            self.message_arrived(message)

        old.deliver, new.deliver, self._next = from_old, held.append, new
        with suppress(*_FAILURES):
            async with asyncio.timeout(_MOVED_SECONDS):
                self._subscribe_all(new)
                await new.round_trip()
                self._is_draining = True
                await old.drain_messages()
        self._next = None
        if self._connection is old and new.is_connected and self._is_draining:
            _log.info("moved to another connection to NATS", server=str(old.server), now=str(new.server))
            self._connection, self._login_is_old, new.deliver = new, False, self.message_arrived
            for message in held:
                if delivered[message]:
                    delivered[message] -= 1
                else:
                    self.message_arrived(message)
            self.server_changed(new)
            await old.close()
        else:
            old.deliver = self.message_arrived
            new.socket.cut()
            if self._is_draining:  # so the old one has no subscriptions any more; ``run`` reconnects
                await old.close()
        self._is_draining = False
        self.room_made()

    def message_arrived(self, message: NatsMessage) -> None:
        subscription = self._subscriptions.get(message.sid)
        if subscription is not None:
            try:
                subscription.callback(message)
            except Exception as error:  # one bad message must not end the connection
                self._callback_failed(error)

    def _callback_failed(self, error: Exception) -> None:
        self.callback_errors += 1
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            _log.exception("a NATS callback raised", error=type(error).__name__, raised_so_far=self.callback_errors)

    def server_changed(self, connection: ServerConnection) -> None:
        if connection is self._connection:
            found = [each.netloc for each in connection.discovered_servers]
            self._servers.learn(found, by=connection.server, tls=connection.socket.is_encrypted)
            if connection.is_leaving:
                self._attention.set()

    def room_made(self) -> None:
        self._has_room.set()
        self.on_room()

    def connection_ended(self, connection: ServerConnection) -> None:
        if connection is not self._connection:
            return  # closed by us
        self._connection = None
        problem, where = connection.problem, connection.server
        if isinstance(problem, errors.NotAllowed):
            self._failures = min(self._failures + 1, 10)
            self.trouble = self._login.explain(problem, (where,))
        else:
            self._failures = 0
            self.trouble = errors.Unavailable(
                f"the connection to the NATS server at {where} was lost", hint="reconnecting", retry_after_seconds=1
            )
        self._attention.set()
        self._has_room.set()
        self.on_connection(False)


def _is_definite(error: errors.Unavailable) -> bool:
    """Return whether somebody answered, and refused. ``error`` is what ``_log_in`` raised."""
    is_away = error.__cause__ is not None and _is_uninformative(error.__cause__)
    return not (is_away or isinstance(error, NatsLoginUnanswered))


def _is_uninformative(problem: BaseException) -> bool:
    return isinstance(problem, OSError) and not isinstance(problem, ssl.SSLError)
