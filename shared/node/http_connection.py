"""Hardens uvicorn's HTTP connections against untrusted clients: limits what a client may hold, and refuses ambiguous requests.

uvicorn itself stops its timer at the first byte and waits for ever for a reader. It limits neither the head of a request nor the framing
of chunks, treats trailers as headers, and loses the body of a request that offers another protocol. It keeps reading while pipelined
requests wait, answers a broken request before earlier ones, and tells only the last of them that the client is gone.
"""

import asyncio
from collections.abc import Sequence, Sized
from contextlib import suppress
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from shared import addresses
from shared.node import http_tunnel
from shared.node.http_connection_limits import ConnectionRefusal, HttpConnectionLimits
from shared.node.http_tunnel import Tunnel, Tunnels
from shared.protocol import null_characters
from shared.timing.joined_writes import JoinedTransport

#: A request head is usually one packet. Also applies to a connection that sends nothing.
HEAD_SECONDS = 10.0
#: A client that reads nothing for so long, while the buffer is full or the answer ends, is gone.
STALLED_SECONDS = 30.0
#: The server stops, and this connection has not sent its first request yet. A proxy that is about to send one cannot repeat it elsewhere.
FIRST_REQUEST_SECONDS = 1.0
#: Real clients do not pipeline, or send a handful of requests.
PIPELINED_MAX = 100
#: The allowed framing bytes (sizes, line ends, extensions) per byte of a body. A chunk of one byte has 5.
FRAMING_RATIO = 8

#: The same as nginx. Clients send 1 or 2 KiB.
HEAD_BYTES = 32 * 1024
#: The same as Apache. A browser behind two proxies sends 30.
HEADERS_MAX = 100

#: With the Retry-After of each refusal.
_REFUSED = {ConnectionRefusal.FULL: (b"503 Service Unavailable", b"5"), ConnectionRefusal.TOO_MANY: (b"429 Too Many Requests", b"10")}


class HttpConnection(HttpToolsProtocol):
    """Closes connections that do not complete a request head in time."""

    #: Runs until a request head is complete, or until the last answer is read.
    _deadline: asyncio.TimerHandle | None = None
    #: Runs while the write buffer is full.
    _stalled: asyncio.TimerHandle | None = None
    #: The request being answered; ``cycle`` is the last one read.
    _answering: RequestResponseCycle | None = None
    #: The answer to an invalid request, after which nothing is read.
    _refusal: bytes | None = None
    #: The server stops: the next request is the last one.
    _is_stopping = False
    #: A tunnel has the connection now.
    _is_handed_over = False
    #: Bytes since the last head or body ended, minus the allowance for body bytes.
    _surplus = 0

    def __init__(self, *args: Any, limits: "HttpConnectionLimits[HttpConnection]", tunnels: Tunnels, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._tunnels = tunnels

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport = cast("asyncio.Transport", JoinedTransport(transport))
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        address = None if self.client is None else self.client[0]
        refusal = self._limits.enter(self, address)
        if refusal is ConnectionRefusal.FULL and (other := self._limits.longest_waiting()) is not None:
            other.make_room()
            refusal = self._limits.enter(self, address)
        if refusal is not None:
            status, seconds = _REFUSED[refusal]
            self._refuse_now(_plain(status, refusal.value, b"retry-after: %b\r\n" % seconds))
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.leave(self)
        self._rest()
        self._end_stall()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close when what runs is answered. A new connection may still send its request."""
        self._is_stopping = True
        if self.cycle is None and self._refusal is None:
            self._rest()
            self._deadline = self.loop.call_later(FIRST_REQUEST_SECONDS, self._end_at_deadline)
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_stall()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def make_room(self) -> None:
        self._limits.leave(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._surplus += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            found = error.__context__
            self._refuse(str(found) if isinstance(found, _Mistake) else "this is not HTTP/1.1")
            return
        if self._is_handed_over:
            return
        if self._surplus > HEAD_BYTES:
            self._refuse(f"more than {HEAD_BYTES} bytes that belong to no body")
        elif self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr]  # it is None before the first request
            self._watch()
        else:
            self._rest()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == HEADERS_MAX:
            raise _Mistake(f"more than {HEADERS_MAX} headers")
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self._surplus = 0
        method = self.parser.get_method().decode("ascii")
        mistake = find_mistake(method, self.url, self.parser.get_http_version(), self.headers)
        if mistake is not None:
            raise _Mistake(mistake)
        if len(self.pipeline) == PIPELINED_MAX:
            raise _Mistake(f"more than {PIPELINED_MAX} requests wait for their answers")
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            if self._is_stopping:
                self.cycle.keep_alive = False
            # Trailers after a chunked body are not headers of this request.
            self.headers = []

    def on_body(self, body: bytes) -> None:
        self._surplus -= (1 + FRAMING_RATIO) * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._surplus = 0
        if not self.parser.should_upgrade():
            # uvicorn leaves it if the answer came before the body, and the next head's mistake would count as this body's.
            self.cycle.more_body = False
            super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._refusal is None or self.pipeline or self.transport.is_closing():
            super().on_response_complete()
        else:
            self._refuse_now(self._refusal)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._ensure_flushed()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, partial(self._answer, app))

    async def _answer(self, app: Any, *call: Any) -> None:
        try:
            # When a drain times out, uvicorn cancels what still runs, which is not the application's fault.
            with suppress(asyncio.CancelledError):
                await app(*call)
        finally:
            # Runs after uvicorn has closed the connection, if it does not keep it alive.
            self.loop.call_soon(self._ensure_flushed)

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                # The parser now expects another protocol, and there may be a body.
                method, version = self.parser.get_method().decode("ascii"), self.parser.get_http_version()
                rest = data[offer.args[0] :]
                if not rest and self._begin_tunnel(method):
                    return None
                data = without_upgrade(method, self.url, version, self.headers) + rest
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _begin_tunnel(self, method: str) -> bool:
        """Hand the connection over if this request offers a WebSocket, and earlier ones are answered."""
        target, tasks = self._tunnels.target, self._tunnels.opening
        if target is None or tasks is None:
            return False
        address = self._client_address()
        head = http_tunnel.find_offer(target, method, self.url, self.headers, address)
        if head is None or not (self.cycle is None or self.cycle.response_complete):  # type: ignore[redundant-expr]
            return False
        if not addresses.is_loopback(address) and not self._tunnels.rates.count(address, self.loop.time()):
            self._refuse_now(_TOO_MANY)
            return True

        def ended() -> None:
            self.connections.discard(tunnel)
            self._limits.leave(self)

        self._is_handed_over = True
        self._rest()
        self._limits.await_request(self)
        self.loop.call_later(http_tunnel.LOGIN_SECONDS, self._limits.request_received, self)
        self.transport.pause_reading()
        tunnel = Tunnel(self.transport, lambda: self._refuse_now(_AWAY), ended)
        self.connections.discard(self)
        self.connections.add(tunnel)  # type: ignore[arg-type]  # it needs only ``shutdown``
        self.transport.set_protocol(tunnel)
        tunnel.begin(tasks, target, head)
        return True

    def _client_address(self) -> str:
        host = "" if self.client is None else self.client[0]
        trusted = cast("ProxyHeadersMiddleware", self.config.loaded_app).trusted_hosts
        forwarded = b", ".join(value for name, value in self.headers if name == b"x-forwarded-for").decode("latin-1")
        return trusted.get_trusted_client_address(forwarded)[0] if forwarded and host in trusted else host

    def _refuse(self, why: str) -> None:
        """Send the refusal once earlier requests are answered."""
        self._refusal = _plain(b"400 Bad Request", why)
        self._rest()
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not cycle.more_body):  # type: ignore[redundant-expr]
            self._refuse_now(self._refusal)
        elif cycle.more_body and self.pipeline:
            # Its turn will never come.
            self.pipeline.popleft()
        elif cycle.more_body:
            answer = b"" if cycle.response_started else self._refusal
            cycle.disconnected = True
            cycle.message_event.set()
            self._refuse_now(answer)

    def _refuse_now(self, answer: bytes) -> None:
        self._refusal = answer
        self.transport.write(answer)
        self._end()

    def _end(self) -> None:
        self.transport.close()
        self._ensure_flushed()

    def _ensure_flushed(self) -> None:
        """Limit how long a closing transport waits for its reader."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._rest()
            self._deadline = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def _watch(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._end_at_deadline)
            self._limits.await_request(self)

    def _end_at_deadline(self) -> None:
        self._deadline = None
        self._end()

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._limits.request_received(self)


class _Mistake(Exception):
    """The reason for refusing a request, raised through the parser."""


class _Flow(FlowControl):
    """Keeps reading paused while requests wait: any call that waits for its body or for a disconnect would resume it."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


def _plain(status: bytes, text: str, headers: bytes = b"") -> bytes:
    body = text.encode()
    head = b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n"
    return head % (status, len(body), headers) + body


_TOO_MANY = _plain(b"429 Too Many Requests", f"more than {http_tunnel.MAX_OFFERS} offers in a second", b"retry-after: 1\r\n")
_AWAY = _plain(b"502 Bad Gateway", "the mesh's NATS server doesn't answer")
#: Python reads no number of more than 4,300 digits, and no body is so long.
_LENGTH_DIGITS = 18


def find_mistake(method: str, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """Return a sentence for the client about a head that is too large or that two servers could read differently, or None. Pure.

    Header names must be lowercase. The parser itself refuses bare line feeds, folded lines, control characters, and invalid, repeated or
    conflicting lengths.
    """
    if version not in {"1.0", "1.1"}:
        return "this port only supports HTTP/1.1"
    # Proxies send only the path. A full URL and the Host header could name different hosts.
    if method == "CONNECT" or not target.startswith(b"/") or b"#" in target:
        return "the request target must be a path"
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return "a request needs exactly one Host header"
    if b"transfer-encoding" in names:
        found = [value.lower() for name, value in headers if name == b"transfer-encoding"]
        # In HTTP/1.0 it is invalid framing (RFC 9112 §6.1).
        if found != [b"chunked"] or version == "1.0":
            return "the only supported Transfer-Encoding is chunked, in HTTP/1.1"
    if len(target) + sum(map(len, names)) + sum(len(value) for _, value in headers) > HEAD_BYTES:
        return f"the head is larger than {HEAD_BYTES} bytes"
    return _find_unreadable(target, headers)


def _find_unreadable(target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """Return a sentence about what the applications can't read, or None."""
    if b"%00" in target:
        return f"the request target {null_characters.MISTAKE}"
    if any(len(value) > _LENGTH_DIGITS for name, value in headers if name == b"content-length"):
        return "the Content-Length has too many digits"
    return None


def without_upgrade(method: str, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the head without the offer of another protocol, which a server may ignore (RFC 9110 §7.8)."""
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method.encode(), target, version.encode(), b"".join(lines))
