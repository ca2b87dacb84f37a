"""One HTTP request: its body within limits, its credential, and its answer, at once or as a stream of events."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from services.gateway import http_errors
from services.gateway.http_errors import Headers
from shared import errors
from shared.api.auth import Principal
from shared.types import Credential, RequestId

#: The types of ASGI: its messages are open dicts by specification.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: As a message on the mesh; a longer prompt could not be sent to a worker.
MAX_BODY_BYTES = 1024 * 1024
#: A body of 1 MiB over 0.3 Mbit/s; slower is an attack, or hopeless.
BODY_SECONDS = 30.0
#: A reader that takes nothing for so long is gone; its generation is cancelled.
WRITE_SECONDS = 30.0

_encode = msgspec.json.Encoder().encode

_COMMON: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class HttpCall:
    """What a route's handler works with. It answers once: by ``answer``, or by ``send_event`` and then ``end_events``."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: RequestId) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.request_id = request_id
        self._headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self._headers.setdefault(name, value)
        self.body = b""
        #: Set for routes that need a credential.
        self.principal: Principal | None = None
        self.started = False
        self.ended = False
        self._extra: Headers = []

    @property
    def caller(self) -> Principal:
        """Of a route that needs a credential."""
        assert self.principal is not None
        return self.principal

    @property
    def credential(self) -> Credential | None:
        """`Authorization: Bearer …` or `X-API-Key: …`; raises NotAuthenticated for another scheme."""
        authorization = self._headers.get(b"authorization")
        if authorization is not None:
            scheme, _, credential = authorization.decode("latin-1").partition(" ")
            if scheme.lower() != "bearer":
                raise errors.NotAuthenticated(f"the scheme of Authorization must be Bearer, not {scheme[:20]!r}")
            return Credential(credential.strip())
        key = self._headers.get(b"x-api-key")
        return None if key is None else Credential(key.decode("latin-1").strip())

    async def read_body(self) -> None:
        """Raises UnsupportedMedia, or TooLarge as soon as it is known, without reading on."""
        if self._headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise errors.UnsupportedMedia("compressed bodies are not taken", hint="send the body without Content-Encoding")
        media_type, _, _ = self._headers.get(b"content-type", b"").partition(b";")
        if media_type.strip().lower() != b"application/json":
            raise errors.UnsupportedMedia("the body must be JSON", hint="send `Content-Type: application/json`")
        announced = self._headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                self.body = await self._read()
        except TimeoutError:
            raise errors.BadRequest(f"the body did not arrive within {BODY_SECONDS:.0f} s") from None

    async def _read(self) -> bytes:
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise errors.Cancelled("the client went away")
            part = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def add_headers(self, extra: Headers) -> None:
        """Before the answer starts."""
        self._extra += extra

    async def answer(self, content: msgspec.Struct, *, status: int = 200) -> None:
        await self.answer_bytes(_encode(content), b"application/json", status=status)

    async def answer_bytes(self, content: bytes, media_type: bytes, *, status: int = 200) -> None:
        await self._start(status, [(b"content-type", media_type), (b"content-length", b"%d" % len(content))])
        await self._write(content, more=False)

    async def fail(self, error: errors.AimeshError) -> None:
        """As the answer; or, where a stream of events has begun, as its last event."""
        content = http_errors.body(error, self.request_id)
        if self.started:
            await self.send_event(_encode(content))
            await self.end_events()
            return
        self._extra = http_errors.headers(error)
        await self.answer(content, status=http_errors.status(error))

    async def send_event(self, event: bytes) -> None:
        """One server-sent event, on its way when this returns; waits while the reader is slow, up to 30 s."""
        await self._begin_events()
        await self._write(b"data: " + event + b"\n\n", more=True)

    async def send_comment(self, text: str) -> None:
        """What clients of server-sent events pass over, and people who look at the stream read."""
        await self._begin_events()
        await self._write(b": " + " ".join(text.split()).encode() + b"\n\n", more=True)

    async def end_events(self) -> None:
        await self._write(b"", more=False)

    async def wait_for_disconnect(self) -> None:
        """Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _begin_events(self) -> None:
        if not self.started:
            # x-accel-buffering: or a proxy like nginx would collect the tokens.
            await self._start(200, [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")])

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        request_id = (b"x-request-id", str(self.request_id).encode())
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, request_id, *_COMMON, *self._extra]})

    async def _write(self, body: bytes, *, more: bool) -> None:
        self.ended = not more
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise errors.Cancelled("the client stopped reading") from None


def _too_large() -> errors.TooLarge:
    return errors.TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes", hint="shorten the prompt or split it")
