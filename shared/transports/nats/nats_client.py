"""The connection to a NATS server: log in, publish, subscribe, and come back after every loss.

Writing never waits: bytes go to the socket's buffer, and ``is_full`` says when a producer should. Callbacks run on the
loop, one after the other, and must not wait. One that raises is logged and counted, and loses that message alone.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shared import errors
from shared.identity import node_keys
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.transports.nats import nats_protocol, servers
from shared.transports.nats.handover import Handover
from shared.transports.nats.login import NatsFiles, NatsLogin
from shared.transports.nats.nats_protocol import NatsMessage
from shared.transports.nats.server_connection import NatsSession
from shared.transports.nats.servers import ServerAddress, ServerList

#: How long one server may take to let us in: doubled up to the second figure while none does, because it may be overloaded.
LOGIN_SECONDS = (2.0, 10.0)
#: Between tries after a loss; doubled up to the second figure, with jitter so that a restarted server is not stormed.
RETRY_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=2.0, jitter=0.5)
#: How often the server is pinged.
PING_SECONDS = 4.0
#: Callbacks that raise are counted; at most one in so many seconds is logged with its traceback.
LOG_SECONDS = 10.0

OnMessage = Callable[[NatsMessage], None]

_log = logs.get(part="nats")
#: What a try to connect may end with.
_FAILURES = (OSError, TimeoutError, errors.AimeshError)


@dataclass(frozen=True, slots=True)
class _Subscription:
    subject: str
    queue: str
    callback: OnMessage


class NatsClient:
    """One connection, made again when lost. ``run`` must run while it is used."""

    def __init__(
        self, urls: str, key: node_keys.NodeKey, *, name: str, files: NatsFiles | None = None, least_payload_bytes: int = 0
    ) -> None:
        """``urls``: one or more, separated by commas; nats:// or tls://, with user and password or a token if the server wants these.
        ``least_payload_bytes``: a server that takes only smaller messages is refused.
        Raises BadSettings for addresses and files that cannot be used."""
        self._servers = ServerList(servers.read_urls(urls))
        self._login = NatsLogin(key, files or NatsFiles(), self._servers.configured)
        self._name = name
        self._least_payload_bytes = least_payload_bytes
        self._subscriptions: dict[int, _Subscription] = {}
        self._last_sid = 0
        #: The connection in use: logged in, and alive as far as we know.
        self._session: NatsSession | None = None
        #: The one that takes its place when the server is about to close; it has the same subscriptions.
        self._next: NatsSession | None = None
        #: Every connection that is open or being opened; ``close`` leaves none.
        self._open: set[NatsSession] = set()
        #: The connection was lost, or its server is about to close it.
        self._attention = asyncio.Event()
        self._is_flushing = False
        self._has_room = asyncio.Event()
        self._closing = False
        #: How often in a row the server let us in and then ended the connection with an error.
        self._evictions = 0
        #: Why there is no connection; None while there is one.
        self.trouble: errors.Unavailable | None = None
        self.reconnects = 0
        #: Callbacks that raised.
        self.callback_errors = 0
        self._logged_at = -LOG_SECONDS
        #: Called with False when the server is lost and with True when it is back.
        self.on_connection: Callable[[bool], None] = lambda connected: None
        #: Called with the server's words when it refuses something but keeps the connection: a subject that is not ours.
        self.on_refused: Callable[[str], None] = lambda words: None
        #: Called when the socket has room again after ``is_full``.
        self.on_room: Callable[[], None] = lambda: None

    # --- life ---------------------------------------------------------------------------------------------------

    async def connect(self, *, deadline_seconds: float) -> None:
        """The first connection; raises Unavailable if no server lets us in by then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_seconds
        while True:
            try:
                self._adopt(await self._log_in(LOGIN_SECONDS[0]))
                return
            except errors.Unavailable as error:
                if self._closing or loop.time() + RETRY_BACKOFF.first_seconds >= deadline:
                    raise
                self.trouble = error
                await asyncio.sleep(RETRY_BACKOFF.first_seconds)

    async def run(self) -> None:
        """Keep the connection: ping the server, connect again when it is lost, and leave a server that is about to close. Ends by
        cancellation."""
        while True:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self._attention.wait()
            except TimeoutError:
                if self._session is not None:
                    self._session.check()
            self._attention.clear()
            if self._closing:
                continue
            if self._session is None:
                await self._connect_again()
            elif self._session.info.ldm:
                await self._move(self._session)

    async def close(self) -> None:
        """Send what is buffered, then leave. A connection that is being made is dropped; nothing is delivered afterwards."""
        self._closing = True
        session, self._session = self._session, None
        self._subscriptions.clear()
        for other in self._open - {session}:
            other.abort()
        if session is not None:
            await session.close()

    @property
    def connected(self) -> bool:
        return self._session is not None

    @property
    def is_full(self) -> bool:
        """Whether a producer should wait for ``on_room``."""
        return self._is_flushing or (self._session is not None and self._session.is_full)

    async def wait_for_room(self) -> None:
        """Until ``is_full`` is false; it is also false while there is no server. The caller has a deadline."""
        while self.is_full:
            self._has_room.clear()
            await self._has_room.wait()

    @property
    def max_payload_bytes(self) -> int:
        """The largest message that the server takes, headers included; 0 while there is none."""
        return 0 if self._session is None else self._session.info.max_payload

    # --- messages -----------------------------------------------------------------------------------------------

    def publish(self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Hand a message to the socket; it is dropped while there is no server. Raises TooLarge for one that the server would end the
        connection for."""
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
        """Hand what was published in this turn of the loop to the socket now."""
        if self._session is not None:
            self._session.flush_writes()

    def subscribe(self, subject: str, callback: OnMessage, *, queue: str = "") -> int:
        """Messages go to ``callback`` from now on, and again after a reconnect. Returns the number to unsubscribe with."""
        self._last_sid += 1
        self._subscriptions[self._last_sid] = _Subscription(subject, queue, callback)
        self._write_to_all(nats_protocol.subscribe(self._last_sid, subject, queue))
        return self._last_sid

    def unsubscribe(self, sid: int) -> None:
        if self._subscriptions.pop(sid, None) is not None:
            self._write_to_all(nats_protocol.unsubscribe(sid))

    async def flush(self, *, deadline_seconds: float = 2.0) -> None:
        """Until the server has answered a PING that was sent after everything else; raises Unavailable."""
        session = self._session
        if session is None:
            raise self.trouble or self._login.explain(None, self._servers.configured)
        try:
            async with asyncio.timeout(deadline_seconds):
                await session.ping()
        except _FAILURES as error:
            raise self._login.explain(error, (session.server,)) from error

    # --- inside ---------------------------------------------------------------------------------------------------

    async def _log_in(self, login_seconds: float, *, leaving: NatsSession | None = None) -> NatsSession:
        """A new connection to any server, ``leaving``'s excepted. Raises Unavailable with the reason that says most."""
        problem: Exception | None = None
        for server in self._servers.in_random_order(without=None if leaving is None else leaving.server):
            if self._closing:
                break
            try:
                return await self._log_in_to(server, login_seconds, leaving)
            except _FAILURES as error:
                # A refusal says more than that another server of the cluster is down.
                if problem is None or _says_nothing(problem):
                    problem = error
        raise self._login.explain(problem, self._servers.configured) from problem

    async def _log_in_to(self, server: ServerAddress, login_seconds: float, leaving: NatsSession | None) -> NatsSession:
        session = NatsSession(self, server)
        self._open.add(session)
        try:
            async with asyncio.timeout(login_seconds):
                await session.open(self._login, self._name)
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

    def _adopt(self, session: NatsSession) -> None:
        """Use a connection that has logged in, and only then subscribe: with the first message that arrives, ``publish`` works."""
        self._session = session
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
            # nats-server lets expired credentials in, to throw them out at once.
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

    async def _move(self, old: NatsSession) -> None:
        """Change to another server while the present one still works. If there is none we stay, and ``run`` tries again."""
        try:
            new = self._next = await self._log_in(LOGIN_SECONDS[0], leaving=old)
        except errors.Unavailable as error:
            _log.warning("the NATS server is about to close, and no other one takes us", why=error.message)
            return
        handover = Handover(self.message_arrived)
        old.deliver, new.deliver = handover.from_old, handover.from_new
        try:
            async with asyncio.timeout(LOGIN_SECONDS[0]):
                self._subscribe_all(new)
                await new.ping()
            await self._drain(old)
            if self._session is not old:
                new.abort()  # lost or closed meanwhile; ``run`` connects again
            elif new in self._open:
                self._replace(old, new, handover)
                await old.close()
            else:
                # The new server died while the old one was drained, and that one has none of our subscriptions now.
                old.abort()
        except _FAILURES:
            old.deliver = self.message_arrived
            new.abort()
        finally:
            self._next = None
            self._is_flushing = False
            self._has_room.set()

    async def _drain(self, old: NatsSession) -> None:
        """Until the old server has passed on everything of ours and has nothing more for us. If it fails, the new one serves all the
        same."""
        self._is_flushing = True
        for sid in self._subscriptions:
            old.write(nats_protocol.unsubscribe(sid))
        try:
            async with asyncio.timeout(LOGIN_SECONDS[0]):
                await old.ping()
        except _FAILURES as error:
            _log.info("the NATS server that we leave does not answer", why=str(error))

    def _replace(self, old: NatsSession, new: NatsSession, handover: Handover) -> None:
        _log.info("left a NATS server that is about to close", server=str(old.server), now=str(new.server))
        self._session, self._next, self._is_flushing = new, None, False
        new.deliver = self.message_arrived
        old.deliver = _ignore
        new.process(handover.remaining())
        self.server_changed(new)
        self.room_made()

    # --- called by the session --------------------------------------------------------------------------------------

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
            # An orderly close has taken the session away before, so this is a loss.
            self._session = None
            self._has_room.set()
            self._evictions = min(self._evictions + 1, 10) if isinstance(session.problem, errors.AimeshError) else 0
            self.trouble = self._explain_loss(session)
            self._attention.set()
            self.on_connection(False)

    def _explain_loss(self, session: NatsSession) -> errors.Unavailable:
        if session.problem is None or _says_nothing(session.problem):
            return errors.Unavailable(
                f"the connection to the NATS server at {session.server} was lost", hint="it is being made again", retry_after_seconds=1
            )
        return self._login.explain(session.problem, (session.server,))


def _says_nothing(problem: Exception) -> bool:
    """Whether it is only that nothing answered."""
    return isinstance(problem, OSError) and not isinstance(problem, ssl.SSLError)


def _ignore(message: NatsMessage) -> None:
    """From a server that we have left."""
