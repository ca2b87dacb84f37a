"""The connection to a NATS server: log in with the node's key, publish, subscribe, and come back after every loss.

Writing never waits: bytes go to the socket's buffer, and ``is_full`` says when a producer should. Callbacks run on the
loop, one after the other, and must not raise or wait.
"""

import asyncio
import base64
import random
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared import errors, identity
from shared.joined_writes import JoinedWrites
from shared.nats import protocol
from shared.nats.protocol import Info, Message, Parser, Ping, Pong, Refused

#: How long one server may take to let us in.
LOGIN_SECONDS = 2.0
#: Between tries after a loss; doubled up to the second figure, with jitter so that a restarted server is not stormed.
RETRY_SECONDS = (0.1, 2.0)
#: A server that has not answered our PING for this long is as good as gone.
PING_SECONDS, SILENCE_SECONDS = 4.0, 10.0
#: Unsent bytes at which ``is_full`` turns true.
HIGH_WATER_BYTES = 1024 * 1024

OnMessage = Callable[[Message], None]


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
        self._session: _Session | None = None
        self._lost = asyncio.Event()
        self._closing = False
        self.reconnects = 0
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
                if loop.time() + RETRY_SECONDS[0] >= deadline:
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
        """Send what is buffered, then leave."""
        self._closing = True
        session, self._session = self._session, None
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
        session = _Session(self)
        async with asyncio.timeout(LOGIN_SECONDS):
            await session.open(url, self._key, self._name, self._trusted)
            for sid, subscription in self._subscriptions.items():
                session.write(protocol.subscribe(sid, subscription.subject, subscription.queue))
            await session.ping()
        self._session = session

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

    def deliver(self, message: Message) -> None:
        subscription = self._subscriptions.get(message.sid)
        if subscription is not None:
            subscription.callback(message)

    def lost(self, session: "_Session") -> None:
        if self._session is session:
            # An orderly close has taken the session away before, so this is a loss.
            self._session = None
            self._lost.set()
            self.on_connection(False)


class _Session(asyncio.Protocol):
    """One TCP connection, from its INFO to its end."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self._writes: JoinedWrites | None = None
        self._info: asyncio.Future[Info] = self._loop.create_future()
        self._pongs: list[asyncio.Future[None]] = []
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._problem: Exception | None = None
        self._heard_at = self._loop.time()
        self.is_full = False

    async def open(self, url: str, key: identity.NodeKey, name: str, trusted: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "127.0.0.1", parts.port or 4222
        transport, _ = await self._loop.create_connection(lambda: self, host, port)
        self._transport = transport
        try:
            info = await self._info
            if parts.scheme == "tls" or info.tls_required:
                self._transport = await self._loop.start_tls(transport, self, trusted or ssl.create_default_context(), server_hostname=host)
                assert self._transport is not None
            self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
            self._writes = JoinedWrites(self._transport)
            signature = base64.urlsafe_b64encode(key.sign_bare(info.nonce.encode())).rstrip(b"=").decode()
            self.write(protocol.connect(name=name, nkey=key.id, signature=signature, version="0.1.0"))
            await self.ping()
        except BaseException:
            self.abort()
            raise

    async def ping(self) -> None:
        """A round trip: the server has taken all that was written before."""
        if self._transport is None or self._transport.is_closing():
            raise self._problem or ConnectionResetError("the connection to the NATS server is closed")
        pong: asyncio.Future[None] = self._loop.create_future()
        self._pongs.append(pong)
        self.write(b"PING\r\n")
        await pong

    def check(self) -> None:
        """End the connection if the server has been silent; otherwise give it reason to speak."""
        if self._loop.time() - self._heard_at > SILENCE_SECONDS:
            self.abort()
        else:
            self.write(b"PING\r\n")

    def write(self, data: bytes) -> None:
        if self._writes is not None:
            self._writes.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        if self._transport is not None:
            if self._writes is not None:
                self._writes.flush()
            self._transport.close()
            await asyncio.wait({self._gone}, timeout=1)
            self._transport.abort()

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            operations = self._parser.feed(data)
        except errors.ProtocolViolation as error:
            self._problem = error
            self.abort()
            return
        deliver = self._client.deliver
        for operation in operations:
            if type(operation) is Message:
                deliver(operation)
            else:
                self._control(operation)

    def _control(self, operation: protocol.Operation) -> None:
        if isinstance(operation, Ping):
            self.write(b"PONG\r\n")
        elif isinstance(operation, Pong):
            if self._pongs and not (first := self._pongs.pop(0)).done():
                first.set_result(None)
        elif isinstance(operation, Info):
            if not self._info.done():
                self._info.set_result(operation)
        elif isinstance(operation, Refused):
            if operation.is_fatal:
                self._problem = errors.NotAllowed(f"the NATS server says: {operation.text}")
            else:
                self._client.on_refused(operation.text)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._client.on_room()

    def connection_lost(self, error: Exception | None) -> None:
        problem = self._problem or error or ConnectionResetError("the NATS server closed the connection")
        waiting: list[asyncio.Future[Any]] = [self._info, *self._pongs]
        for future in waiting:
            if not future.done():
                future.set_exception(problem)
                future.exception()  # nobody may be left to read it
        self._pongs.clear()
        if not self._gone.done():
            self._gone.set_result(None)
        self._client.lost(self)


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
