"""The connection to a NATS server: log in, publish, subscribe, and reconnect after every loss.

Writes never wait: they go to the socket's buffer, and ``is_full`` tells producers to wait. Callbacks run one after the other on the event
loop and must not wait. If one raises, the error is logged and counted, and only that message is lost.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shared import errors
from shared.identity import login_tokens, node_keys
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.timing.bounded_waits import wait_until_set
from shared.transports.nats import nats_protocol, servers
from shared.transports.nats.login import NatsFiles, NatsLogin
from shared.transports.nats.nats_protocol import NatsMessage
from shared.transports.nats.server_connection import Handover, NatsSession
from shared.transports.nats.servers import ServerAddress, ServerList

#: The login timeout per server. It doubles up to the second value while no server accepts us, because they may be overloaded. The server
#: asks auth, and waits 2 s: a shorter first attempt finds an auth that has just started.
LOGIN_SECONDS = (1.0, 10.0)
#: A refusal that took so long is the server's, because auth did not answer.
_UNANSWERED_SECONDS = 1.8
#: Jitter protects a restarted server from all clients reconnecting at once.
RETRY_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=2.0, jitter=0.5)
#: Shorter than a link's silence: in a small mesh, nothing else shows whether the peer or the server is silent.
PING_SECONDS = 1.0
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
    """One connection, which is reopened when lost. ``run`` must be running while it is used."""

    def __init__(
        self,
        urls: str,
        key: node_keys.NodeKey,
        *,
        name: str,
        files: NatsFiles | None = None,
        least_payload_bytes: int = 0,
        token: Callable[[str], str] = login_tokens.without,
    ) -> None:
        """``urls`` are comma-separated nats:// or tls:// URLs, with user and password or a token if required; ``token`` is the node's own,
        for a nonce. Servers that accept only messages smaller than ``least_payload_bytes`` are refused. Raises BadSettings for unusable
        URLs and files."""
        self._servers = ServerList(servers.read_urls(urls))
        self._login = NatsLogin(key, files or NatsFiles(), self._servers.configured, token)
        self._name = name
        self._least_payload_bytes = least_payload_bytes
        self._subscriptions: dict[int, _Subscription] = {}
        self._last_sid = 0
        #: The connection in use, which has logged in.
        self._session: NatsSession | None = None
        self._next: NatsSession | None = None
        #: Every connection that is open or being opened, so that ``close`` leaves none.
        self._open: set[NatsSession] = set()
        self._attention = asyncio.Event()
        self._is_flushing = False
        self._has_room = asyncio.Event()
        self._closing = False
        self._is_connected_once = asyncio.Event()
        self._login_is_old = False
        #: How often in a row the server accepted our login and then closed the connection with an error.
        self._evictions = 0
        self.trouble: errors.Unavailable | None = None
        self.reconnects = 0
        self.callback_errors = 0
        self._logged_at = -LOG_SECONDS
        #: Called with False when the server is lost and with True when it is back.
        self.on_connection: Callable[[bool], None] = lambda connected: None
        #: Called with the server's text when it refuses an operation, such as a forbidden subject, but keeps the connection.
        self.on_refused: Callable[[str], None] = lambda words: None
        self.on_room: Callable[[], None] = lambda: None

    async def connect(self, *, deadline_seconds: float) -> None:
        """Make the first connection. Raises Unavailable if no server accepts us by the deadline."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_seconds
        login_seconds = LOGIN_SECONDS[0]
        while True:
            try:
                self._adopt(await self._log_in(login_seconds))
                self._is_connected_once.set()
                return
            except errors.Unavailable as error:
                if self._closing or loop.time() + RETRY_BACKOFF.first_seconds >= deadline:
                    raise
                self.trouble = error
                await asyncio.sleep(RETRY_BACKOFF.first_seconds)
                login_seconds = min(2 * login_seconds, LOGIN_SECONDS[1])

    def renew_login(self) -> None:
        """Log in again with the present token, and move to that connection: the server closes one whose certificate has expired."""
        self._login_is_old = True
        self._attention.set()

    async def run(self) -> None:
        """Keep the connection: ping the server, reconnect when it is lost, leave a server that is about to close. Ends by cancellation.
        Does nothing before ``connect``."""
        await self._is_connected_once.wait()
        while True:
            if not await wait_until_set(self._attention, PING_SECONDS) and self._session is not None:
                self._session.check()
            self._attention.clear()
            if self._closing:
                continue
            if self._session is None:
                await self._connect_again()
            elif self._session.info.ldm:
                await self._switch_server(self._session, leaving=self._session)
            elif self._login_is_old:
                await self._switch_server(self._session, leaving=None)

    async def close(self) -> None:
        """Send what is buffered, then disconnect. A connection that is being made is dropped; nothing is delivered afterwards."""
        self._closing = True
        session, self._session = self._session, None
        self._subscriptions.clear()
        for other in self._open - {session}:
            other.abort()
        if session is not None:
            await session.close()

    @property
    def silent_seconds(self) -> float:
        """Return how long ago the last byte came from the server; 0 without a connection."""
        return 0.0 if self._session is None else self._session.silent_seconds

    @property
    def connected(self) -> bool:
        return self._session is not None

    @property
    def is_full(self) -> bool:
        """Return whether producers should wait for ``on_room``."""
        return self._is_flushing or (self._session is not None and self._session.is_full)

    async def wait_for_room(self) -> None:
        """Wait until ``is_full`` is false, as it also is without a server. The caller needs a deadline."""
        while self.is_full:
            self._has_room.clear()
            await self._has_room.wait()

    @property
    def max_payload_bytes(self) -> int:
        """Return the largest message that the server accepts, headers included; 0 without a server."""
        return 0 if self._session is None else self._session.info.max_payload

    def publish(self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Send a message; it is dropped while there is no server. Raises TooLarge if the server would close the connection for it."""
        session = self._session
        if session is None:
            return
        size = len(payload) + (len(nats_protocol.encode_headers(headers)) if headers else 0)
        if size > session.info.max_payload:
            raise errors.TooLarge(
                f"a message of {size} bytes is over the NATS server's limit of {session.info.max_payload}",
                hint="raise max_payload in the server's configuration",
            )
        session.write(nats_protocol.publish(subject, payload, reply, headers))

    def flush_writes(self) -> None:
        """Send now what was published in this turn of the event loop."""
        if self._session is not None:
            self._session.flush_writes()

    def subscribe(self, subject: str, callback: OnMessage, *, queue: str = "") -> int:
        """Subscribe, also after reconnects. Returns the number for ``unsubscribe``."""
        self._last_sid += 1
        self._subscriptions[self._last_sid] = _Subscription(subject, queue, callback)
        self._write_to_all(nats_protocol.subscribe(self._last_sid, subject, queue))
        return self._last_sid

    def unsubscribe(self, sid: int) -> None:
        if self._subscriptions.pop(sid, None) is not None:
            self._write_to_all(nats_protocol.unsubscribe(sid))

    async def flush(self, *, deadline_seconds: float = 2.0) -> None:
        """Wait until the server has processed everything sent so far. Raises Unavailable."""
        session = self._session
        if session is None:
            raise self.trouble or self._login.explain(None, self._servers.configured)
        try:
            async with asyncio.timeout(deadline_seconds):
                await session.ping()
        except _FAILURES as error:
            raise self._login.explain(error, (session.server,)) from error

    async def _log_in(self, login_seconds: float, *, leaving: NatsSession | None = None) -> NatsSession:
        """Connect to any server except ``leaving``'s. Raises Unavailable with the most informative reason."""
        problem: Exception | None = None
        for server in self._servers.in_random_order(without=None if leaving is None else leaving.server):
            if self._closing:
                break
            try:
                return await self._log_in_to(server, login_seconds, leaving)
            except _FAILURES as error:
                # A refusal is more informative than that another server of the cluster is down.
                if problem is None or _is_uninformative(problem):
                    problem = error
        raise self._login.explain(problem, self._servers.configured) from problem

    async def _log_in_to(self, server: ServerAddress, login_seconds: float, leaving: NatsSession | None) -> NatsSession:
        session = NatsSession(self, server)
        self._open.add(session)
        try:
            await self._open_session(session, login_seconds)
            if self._closing:
                raise errors.Unavailable("the connection to NATS was closed while it was being made")
            if leaving is not None and session.info.server_id == leaving.info.server_id:
                raise ConnectionRefusedError("it is the same server under another address")
            if session.info.max_payload < self._least_payload_bytes:
                raise errors.Unavailable(
                    f"the NATS server at {server} takes messages of up to {session.info.max_payload} bytes, and the mesh needs "
                    f"{self._least_payload_bytes}",
                    hint="set max_payload to 2MB in the server's configuration",
                )
        except BaseException:
            session.abort()
            self._open.discard(session)
            raise
        return session

    async def _open_session(self, session: NatsSession, login_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(login_seconds):
                await session.open(self._login, self._name)
        except (TimeoutError, errors.NotAllowed) as error:
            if not session.has_asked or (isinstance(error, errors.NotAllowed) and loop.time() - started < _UNANSWERED_SECONDS):
                raise
            raise errors.Unavailable(
                f"the NATS login at {session.server} needs auth, which does not answer", hint="start auth", retry_after_seconds=1
            ) from error

    def _adopt(self, session: NatsSession) -> None:
        """Use a connection that has logged in. Subscribe last, so that ``publish`` works when the first message arrives."""
        self._session = session
        self._login_is_old = False
        self.trouble = None
        self._subscribe_all(session)
        self.server_changed(session)

    def _subscribe_all(self, session: NatsSession) -> None:
        for sid, subscription in self._subscriptions.items():
            session.write(nats_protocol.subscribe(sid, subscription.subject, subscription.queue))

    def _write_to_all(self, data: bytes) -> None:
        for session in (self._session, self._next):
            if session is not None:
                session.write(data)

    async def _connect_again(self) -> None:
        failures, login_seconds = 0, LOGIN_SECONDS[0]
        if self._evictions:
            # nats-server accepts expired credentials and disconnects at once.
            await asyncio.sleep(RETRY_BACKOFF.pause(self._evictions + 1))
        while not self._closing:
            try:
                session = await self._log_in(login_seconds)
            except errors.Unavailable as error:
                self.trouble = error
                failures += 1
                await asyncio.sleep(RETRY_BACKOFF.pause(failures))
                login_seconds = min(2 * login_seconds, LOGIN_SECONDS[1])
            else:
                self._adopt(session)
                self.reconnects += 1
                self.on_connection(True)
                return

    async def _switch_server(self, old: NatsSession, leaving: NatsSession | None) -> None:
        """Move to another connection while the current one still works, to another server than ``leaving``'s. If there is none, stay and
        let ``run`` try again."""
        try:
            new = self._next = await self._log_in(2 * LOGIN_SECONDS[0], leaving=leaving)
        except errors.Unavailable as error:
            _log.warning("no NATS server accepts us, and we cannot keep this connection", why=error.message)
            return
        handover = Handover(self.message_arrived)
        old.deliver, new.deliver = handover.from_old, handover.from_new
        try:
            async with asyncio.timeout(LOGIN_SECONDS[0]):
                self._subscribe_all(new)
                await new.ping()
            await self._drain(old)
            if self._session is not old:
                new.abort()  # lost or closed in the meantime; ``run`` reconnects
            elif new in self._open:
                self._replace(old, new, handover)
                await old.close()
            else:
                # The new server was lost during the drain, and the old one has no subscriptions any more.
                old.abort()
        except _FAILURES:
            old.deliver = self.message_arrived
            new.abort()
        finally:
            self._next = None
            self._is_flushing = False
            self._has_room.set()

    async def _drain(self, old: NatsSession) -> None:
        """Wait until the old server has delivered everything in both directions. If that fails, the new server is used anyway."""
        self._is_flushing = True
        for sid in self._subscriptions:
            old.write(nats_protocol.unsubscribe(sid))
        try:
            async with asyncio.timeout(LOGIN_SECONDS[0]):
                await old.ping()
        except _FAILURES as error:
            _log.info("the NATS server that we are leaving does not answer", why=str(error))

    def _replace(self, old: NatsSession, new: NatsSession, handover: Handover) -> None:
        _log.info("moved to another connection to NATS", server=str(old.server), now=str(new.server))
        self._session, self._next, self._is_flushing, self._login_is_old = new, None, False, False
        new.deliver = self.message_arrived
        old.deliver = _ignore
        new.process(handover.remaining())
        self.server_changed(new)
        self.room_made()

    def message_arrived(self, message: NatsMessage) -> None:
        subscription = self._subscriptions.get(message.sid)
        if subscription is not None:
            subscription.callback(message)

    def callback_failed(self, error: Exception) -> None:
        self.callback_errors += 1
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            _log.exception("a NATS callback raised", error=type(error).__name__, raised_so_far=self.callback_errors)

    def request_refused(self, words: str) -> None:
        self.on_refused(words)

    def server_changed(self, session: NatsSession) -> None:
        if session is not self._session:
            return
        if session.info.connect_urls:
            self._servers.learn(session.info.connect_urls, by=session.server, tls=session.is_encrypted)
        if session.info.ldm:
            self._attention.set()

    def room_made(self) -> None:
        self._has_room.set()
        self.on_room()

    def session_ended(self, session: NatsSession) -> None:
        self._open.discard(session)
        if self._session is session:
            # Not closed by us, so this is a loss.
            self._session = None
            self._has_room.set()
            self._evictions = min(self._evictions + 1, 10) if isinstance(session.problem, errors.AimeshError) else 0
            self.trouble = self._explain_loss(session)
            self._attention.set()
            self.on_connection(False)

    def _explain_loss(self, session: NatsSession) -> errors.Unavailable:
        if session.problem is None or _is_uninformative(session.problem):
            return errors.Unavailable(
                f"the connection to the NATS server at {session.server} was lost", hint="reconnecting", retry_after_seconds=1
            )
        return self._login.explain(session.problem, (session.server,))


def _is_uninformative(problem: Exception) -> bool:
    return isinstance(problem, OSError) and not isinstance(problem, ssl.SSLError)


def _ignore(_message: NatsMessage) -> None: ...
