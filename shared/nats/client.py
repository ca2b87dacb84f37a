"""The connection to a NATS server: log in with the node's key, publish, subscribe, and come back after every loss.

Writing never waits: bytes go to the socket's buffer, and ``is_full`` says when a producer should. Callbacks run on the
loop, one after the other, and must not wait. One that raises is logged and counted, and loses that message alone.
"""

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared import errors, identity
from shared.nats import protocol
from shared.nats.protocol import Message
from shared.nats.session import NatsSession
from shared.telemetry import logs

#: How long one server may take to let us in.
LOGIN_SECONDS = 2.0
#: Between tries after a loss; doubled up to the second figure, with jitter so that a restarted server is not stormed.
RETRY_SECONDS = (0.1, 2.0)
#: How often the server is pinged.
PING_SECONDS = 4.0
#: Callbacks that raise are counted; at most one in so many seconds is logged with its traceback.
LOG_SECONDS = 10.0

OnMessage = Callable[[Message], None]

_log = logs.get(part="nats")


@dataclass(frozen=True, slots=True)
class _Subscription:
    subject: str
    queue: str
    callback: OnMessage


class NatsClient:
    """One connection, made again when lost. ``run`` must run while it is used."""

    def __init__(self, urls: str, key: identity.NodeKey, *, name: str, ca_file: Path | None = None) -> None:
        """``urls``: one or more, separated by commas; nats:// or tls://. ``ca_file``: who vouches for the servers, in place
        of the public authorities. Raises BadSettings for a file that cannot be used."""
        self._urls = [url.strip() for url in urls.split(",") if url.strip()]
        self._key = key
        self._name = name
        self._trusted = None if ca_file is None else _trusting(ca_file)
        self._subscriptions: dict[int, _Subscription] = {}
        self._last_sid = 0
        #: The connection in use: logged in, and alive as far as we know.
        self._session: NatsSession | None = None
        #: Every connection that is open or being opened; ``close`` leaves none.
        self._open: set[NatsSession] = set()
        self._lost = asyncio.Event()
        self._closing = False
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
                await self._connect_any()
                return
            except (OSError, TimeoutError, errors.AimeshError) as error:
                if self._closing or loop.time() + RETRY_SECONDS[0] >= deadline:
                    raise _not_there(self._urls, error) from error
                await asyncio.sleep(RETRY_SECONDS[0])

    async def run(self) -> None:
        """Keep the connection: ping the server, and connect again when it is lost. Ends by cancellation."""
        while True:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self._lost.wait()
            except TimeoutError:
                if self._session is not None:
                    self._session.check()
                continue
            self._lost.clear()
            if not self._closing:
                await self._connect_again()

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
        return self._session is not None and self._session.is_full

    # --- messages -----------------------------------------------------------------------------------------------

    def publish(self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Hand a message to the socket; it is dropped while there is no server."""
        if self._session is not None:
            self._session.write(protocol.publish(subject, payload, reply, headers))

    def subscribe(self, subject: str, callback: OnMessage, *, queue: str = "") -> int:
        """Messages go to ``callback`` from now on, and again after a reconnect. Returns the number to unsubscribe with."""
        self._last_sid += 1
        self._subscriptions[self._last_sid] = _Subscription(subject, queue, callback)
        if self._session is not None:
            self._session.write(protocol.subscribe(self._last_sid, subject, queue))
        return self._last_sid

    def unsubscribe(self, sid: int) -> None:
        if self._subscriptions.pop(sid, None) is not None and self._session is not None:
            self._session.write(protocol.unsubscribe(sid))

    async def flush(self, *, deadline_seconds: float = 2.0) -> None:
        """Until the server has taken everything sent so far; raises Unavailable."""
        if self._session is None:
            raise _not_there(self._urls, None)
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._session.ping()
        except (TimeoutError, OSError) as error:
            raise _not_there(self._urls, error) from error

    # --- inside ---------------------------------------------------------------------------------------------------

    async def _connect_any(self) -> None:
        problem: Exception = OSError("no NATS_URL is given")
        for url in random.sample(self._urls, len(self._urls)):
            try:
                await self._connect_to(url)
                return
            except (OSError, TimeoutError, errors.AimeshError) as error:
                problem = error
        raise problem

    async def _connect_to(self, url: str) -> None:
        """Log in, and only then subscribe: with the first message that arrives, ``publish`` already works."""
        session = NatsSession(self)
        self._open.add(session)
        try:
            async with asyncio.timeout(LOGIN_SECONDS):
                await session.open(url, self._key, self._name, self._trusted)
            if self._closing:
                raise errors.Unavailable("the connection to NATS was closed while it was being made")
        except BaseException:
            session.abort()
            self._open.discard(session)
            raise
        self._session = session
        for sid, subscription in self._subscriptions.items():
            session.write(protocol.subscribe(sid, subscription.subject, subscription.queue))

    async def _connect_again(self) -> None:
        wait = RETRY_SECONDS[0]
        while not self._closing:
            try:
                await self._connect_any()
            except (OSError, TimeoutError, errors.AimeshError):
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
                wait = min(2 * wait, RETRY_SECONDS[1])
            else:
                self.reconnects += 1
                self.on_connection(True)
                return

    # --- called by the session --------------------------------------------------------------------------------------

    def message_arrived(self, message: Message) -> None:
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

    def room_made(self) -> None:
        self.on_room()

    def session_ended(self, session: NatsSession) -> None:
        self._open.discard(session)
        if self._session is session:
            # An orderly close has taken the session away before, so this is a loss.
            self._session = None
            self._lost.set()
            self.on_connection(False)


def _trusting(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise errors.BadSettings(
            f"NATS_CA_FILE: {ca_file} cannot be used: {error.strerror}", hint="it must hold certificates in PEM form"
        ) from error


def _not_there(urls: list[str], error: Exception | None) -> errors.Unavailable:
    where = ", ".join(_without_password(url) for url in urls)
    if isinstance(error, errors.NotAllowed) and "authorization" in error.message.lower():
        return errors.Unavailable(
            f"the NATS server at {where} refused this node's key", hint="aicli stack init writes the list of nodes it knows"
        )
    if isinstance(error, ssl.SSLError):
        return errors.Unavailable(
            f"the NATS server at {where} cannot show a certificate that is good here: {error.reason or error}",
            hint="NATS_CA_FILE names who vouches for it; the certificate needs the host of NATS_URL among its names",
        )
    return errors.Unavailable(f"no NATS server answers at {where}", hint="start it, or set NATS_URL", retry_after_seconds=1)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
