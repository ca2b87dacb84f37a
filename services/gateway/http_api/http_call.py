"""One HTTP request: its body within limits, its credential, and its answer, at once or as a stream of events."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from services.gateway.admission.prompt_admission import BadField
from services.gateway.http_api import http_errors
from services.gateway.http_api.error_bodies import ErrorBody
from services.gateway.http_api.http_errors import Headers
from services.gateway.http_api.response_formats import ServerSentEvent
from services.gateway.idempotency import cache_keys
from shared import errors
from shared.api.auth import Principal
from shared.timing.bounded_waits import BoundedWaits
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
#: Who sends less than this after the first seconds holds a connection and does not mean to ask anything.
BODY_GRACE_SECONDS, BODY_BYTES_PER_SECOND = 5.0, 1024
#: A reader that takes nothing for so long is gone; its generation is cancelled.
WRITE_SECONDS = 30.0

#: Proxies close a connection on which nothing came for 30 to 60 s; a long prompt, or a long queue, takes longer.
HEARTBEAT_SECONDS = 15.0

_encode = msgspec.json.Encoder().encode
#: As Stripe's and OpenAI's keys; an event's id is shorter.
_TOKEN = re.compile(rb"[!-~](?:[ -~]{0,253}[!-~])?")
#: Of these a second one would be read by some and passed over by others.
_SINGLE = frozenset(
    {b"authorization", b"x-api-key", b"content-type", b"content-encoding", b"content-length", b"idempotency-key", b"last-event-id"}
)

_LONGEST_AGENT = 200
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
        self._repeated: bytes | None = None
        for name, value in scope["headers"]:
            if name in self._headers and name in _SINGLE:
                self._repeated = name
            self._headers.setdefault(name, value)
        #: Behind the last `/`… of a route for many things: which one is asked for.
        self.which = ""
        self.body = b""
        #: Set for routes that need a credential.
        self.principal: Principal | None = None
        self.started = False
        self.ended = False
        #: Nobody reads any more: its client has gone, or has the whole answer.
        self.left = False
        self._extra: Headers = []
        #: How a failure is told where events are the answer; None where they are not.
        self._failed: Callable[[ErrorBody], Sequence[ServerSentEvent]] | None = None
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._writes = BoundedWaits(WRITE_SECONDS)
        #: The handler and the heartbeat both write.
        self._turn = asyncio.Lock()

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

    @property
    def address(self) -> str | None:
        """Whence it comes, behind trusted proxies."""
        client = self._scope.get("client")
        return client[0] if client else None

    @property
    def agent(self) -> str:
        """What the client calls itself, as far as it can be shown."""
        said = self._headers.get(b"user-agent", b"").decode("latin-1")
        return "".join(letter for letter in said if letter.isprintable())[:_LONGEST_AGENT]

    @property
    def query(self) -> bytes:
        """What stands behind the question mark."""
        found: bytes = self._scope.get("query_string", b"")
        return found

    @property
    def idempotency_key(self) -> str | None:
        """Raises BadRequest where it is longer than 255 characters, or has others than printable ASCII."""
        return self._token(b"idempotency-key", "Idempotency-Key")

    @property
    def cache_wish(self) -> cache_keys.CacheRequest:
        """By `Cache-Control` and `X-Cache`."""
        said, ours = (self._headers.get(name) for name in (b"cache-control", b"x-cache"))
        return cache_keys.read_headers(*(None if value is None else value.decode("latin-1") for value in (said, ours)))

    @property
    def last_event_id(self) -> str | None:
        """Raises BadRequest as ``idempotency_key`` does."""
        return self._token(b"last-event-id", "Last-Event-ID")

    def ensure_unambiguous(self) -> None:
        """Raises BadRequest for headers that a proxy before us may have read in another way."""
        if self._repeated is not None:
            raise errors.BadRequest(f"the header {self._repeated.decode('latin-1')} is there twice", hint="send it once")
        if b"transfer-encoding" in self._headers and b"content-length" in self._headers:
            raise errors.BadRequest("a body has a Content-Length or a Transfer-Encoding, not both", hint="send one of them")

    async def read_body(self, *, most_bytes: int = MAX_BODY_BYTES, most_seconds: float | None = None) -> None:
        """Raises UnsupportedMedia, or TooLarge as soon as it is known, without reading on."""
        if self._headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise errors.UnsupportedMedia("compressed bodies are not taken", hint="send the body without Content-Encoding")
        media_type, _, _ = self._headers.get(b"content-type", b"").partition(b";")
        if media_type.strip().lower() != b"application/json":
            raise errors.UnsupportedMedia("the body must be JSON", hint="send `Content-Type: application/json`")
        most_seconds = BODY_SECONDS if most_seconds is None else most_seconds
        announced = self._headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > most_bytes:
            raise _too_large(most_bytes)
        try:
            async with asyncio.timeout(min(BODY_GRACE_SECONDS, most_seconds)) as limit:
                self.body = await self._read(limit, most_bytes, most_seconds)
        except TimeoutError:
            slow = f"the body did not arrive within {most_seconds:.0f} s, or came with less than {BODY_BYTES_PER_SECOND} bytes/s"
            raise errors.BadRequest(slow, hint="send it at once") from None

    async def _read(self, limit: asyncio.Timeout, most_bytes: int, most_seconds: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        began = asyncio.get_running_loop().time()
        while True:
            if parts:
                limit.reschedule(began + min(BODY_GRACE_SECONDS + size / BODY_BYTES_PER_SECOND, most_seconds))
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.left = True
                raise errors.Cancelled("the client went away")
            part = message.get("body", b"")
            size += len(part)
            if size > most_bytes:
                raise _too_large(most_bytes)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def close(self) -> None:
        """When nobody answers any more."""
        self._writes.close()

    def add_headers(self, extra: Headers) -> None:
        """Before the answer starts. Of one name the last one counts."""
        self._extra = [*{**dict(self._extra), **dict(extra)}.items()]

    async def answer(self, content: msgspec.Struct, *, status: int = 200) -> None:
        await self.answer_bytes(_encode(content), b"application/json", status=status)

    async def answer_bytes(self, content: bytes, media_type: bytes, *, status: int = 200) -> None:
        await self._start(status, [(b"content-type", media_type), (b"content-length", b"%d" % len(content))])
        await self._write(content, more=False)

    async def fail(self, error: errors.AimeshError) -> None:
        """As the answer; or, where a stream of events has begun, as its last event."""
        content = http_errors.body(error, self.request_id)
        if self.started:
            await self.send_events((ServerSentEvent(content),) if self._failed is None else self._failed(content))
            await self.end_events()
            return
        self.add_headers(http_errors.headers(error))
        await self.answer(content, status=http_errors.status(error))

    def expect_events(self, failed: Callable[[ErrorBody], Sequence[ServerSentEvent]]) -> None:
        """The answer will be a stream of events, in which ``failed`` tells of a failure: from now on it is kept alive."""
        self._failed = failed

    async def send_events(self, events: Sequence[ServerSentEvent], event_id: str | None = None) -> None:
        """On their way when this returns; waits while the reader is slow, up to 30 s. The last one carries the id: a reader that
        knows it has them all."""
        if not events:
            return
        await self._begin_events()
        await self._write(b"".join(_written(event, event_id if event is events[-1] else None) for event in events), more=True)

    async def send_comment(self, text: str) -> None:
        """What clients of server-sent events pass over, and people who look at the stream read."""
        await self._begin_events()
        await self._write(b": " + " ".join(text.split()).encode() + b"\n\n", more=True)

    def quiet_seconds(self) -> float | None:
        """How long nothing was written to a stream that is to be kept alive; None for other answers."""
        if self._failed is None or self.ended:
            return None
        return 0.0 if self._turn.locked() else self._loop.time() - self._written_at

    async def beat(self) -> None:
        """Show the reader, and the proxies before it, that the answer is still being made."""
        await self.send_comment("still here")

    async def end_events(self) -> None:
        await self._write(b"", more=False)

    async def wait_for_disconnect(self) -> None:
        """Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True

    def _token(self, name: bytes, shown: str) -> str | None:
        found = self._headers.get(name)
        if found is not None and not _TOKEN.fullmatch(found):
            raise BadField(shown, "must have 1 to 255 printable ASCII characters")
        return None if found is None else found.decode("ascii")

    async def _begin_events(self) -> None:
        if not self.started:
            # x-accel-buffering: or a proxy like nginx would collect the tokens.
            await self._start(200, [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")])

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        request_id = (b"x-request-id", str(self.request_id).encode())
        # What a route says itself goes before what all of them say.
        said = {name for name, _ in self._extra}
        common = _COMMON if not said else [header for header in _COMMON if header[0] not in said]
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, request_id, *common, *self._extra]})

    async def _write(self, body: bytes, *, more: bool) -> None:
        async with self._turn:
            if self.ended:
                return  # a heartbeat that comes too late
            self.ended = not more
            try:
                with self._writes:
                    await self._send({"type": "http.response.body", "body": body, "more_body": more})
            except TimeoutError:
                raise errors.Cancelled("the client stopped reading") from None
            finally:
                self._written_at = self._loop.time()


def _too_large(most_bytes: int) -> errors.TooLarge:
    hint = "shorten the prompt or split it" if most_bytes == MAX_BODY_BYTES else ""
    return errors.TooLarge(f"the body is larger than {most_bytes} bytes", hint=hint)


def _written(event: ServerSentEvent, event_id: str | None) -> bytes:
    content = event.content if isinstance(event.content, bytes) else _encode(event.content)
    name = b"event: " + event.name.encode() + b"\n" if event.name else b""
    identity = b"id: " + event_id.encode() + b"\n" if event_id is not None else b""
    return b"%b%bdata: %b\n\n" % (name, identity, content)
