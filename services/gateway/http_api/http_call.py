"""Handles one HTTP request: reads its body within limits and its credential, and writes its response or stream of events."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import msgspec

from services.gateway.facts import body_values
from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import http_errors, request_bodies, tolerant_json
from services.gateway.http_api.body_load import BodyTurns
from services.gateway.http_api.response_formats import SERVER_SENT_EVENTS, ErrorBody, EventStream, Headers, ServerSentEvent
from services.gateway.http_api.tolerant_json import BodyDialect, Ignored
from services.gateway.idempotency import cache_keys
from shared import errors
from shared.api.auth import Principal
from shared.api.gateway import ConversationId
from shared.mail import letters
from shared.protocol import field_errors
from shared.protocol.request_memory import HeldRequest
from shared.rpc import RpcCall
from shared.timing.bounded_waits import BoundedWaits
from shared.types import Credential, NodeId, Peer, RequestId, Role

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

#: ASGI messages are open dicts by specification.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: In a scope: the ``HeldRequest`` that already has the memory of the body.
HELD = "aimesh.held"
#: The limit of a mesh message. Prompts may be longer.
MAX_BODY_BYTES = 1024 * 1024
#: For a longer body: 17 MiB at 1.2 Mbit/s.
LONG_BODY_SECONDS = 120.0
#: 1 MiB at 0.3 Mbit/s; anything slower is an attack or hopeless.
BODY_SECONDS = 30.0
#: Minimum rate after the first seconds, against clients that only hold connections.
BODY_GRACE_SECONDS, BODY_BYTES_PER_SECOND = 5.0, 1024
#: A deadline that is noticed so late says nothing about the client: the machine slept, or the process was stopped.
STANDSTILL_SECONDS = 1.0
#: A client that reads nothing for this long is considered gone, and its generation is canceled.
WRITE_SECONDS = 30.0

#: A long answer is written in parts: a slow client takes one within WRITE_SECONDS, and messages of the mesh have 1 MiB.
_PART_BYTES = 256 * 1024

#: Proxies close a connection that is idle for 30 to 60 s; a long prompt or queue takes longer.
HEARTBEAT_SECONDS = 10.0

_encode = msgspec.json.Encoder().encode
#: Like Stripe's and OpenAI's keys; event ids are shorter.
_TOKEN = re.compile(rb"[!-~](?:[ -~]{0,253}[!-~])?")
#: Headers that name the person, for a key that may: the first one counts.
_PERSON = (b"x-aimesh-user", b"x-openwebui-user-email")
#: Headers that must not be repeated, because parsers disagree on which one counts.
_SINGLE = frozenset(
    {
        b"authorization", b"x-api-key", b"content-type", b"content-encoding", b"content-length", b"idempotency-key", b"last-event-id",
        *_PERSON,
    }
)  # fmt: skip

#: Headers that change what the body of a prompt asks for.
_OPTIONS = frozenset({b"idempotency-key", b"last-event-id", b"cache-control", b"x-cache", b"x-conversation-id", b"x-aimesh-external"})

_MAX_AGENT = 200
_MAX_HOST = 253
_COMMON: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class PromptTooLarge(errors.ContextExceeded, status=413):
    """The body of a prompt is too large to be read. Agents compact their conversation."""


class HttpCall:
    """One HTTP request and its response: ``answer``, or ``send_events`` and then ``end_events``."""

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
        #: Whether its headers say anything about a prompt. Few calls have any.
        self.has_options = not _OPTIONS.isdisjoint(self._headers)
        #: The part of the path matched by the route's braces.
        self.rest_of_path = ""
        self.body = b""
        #: For a large body.
        self.turns: BodyTurns | None = None
        #: The client has sent a part of the body.
        self.has_read = False
        #: In base64 or as data URLs, by the names that stand for them in the body. See ``image_strings``.
        self.images: dict[str, bytes] = {}
        #: The vendor's API whose body it has, and what of the body has no effect. Set by ``read``.
        self.dialect = ""
        self.ignored = Ignored()
        #: Set for routes with a credential.
        self.principal: Principal | None = None
        self.started = False
        self.ended = False
        #: The client disconnected, or has the whole response.
        self.disconnected = False
        self._extra: Headers = []
        #: Formats a failure as events; None unless the response is a stream.
        self._failed: Callable[[ErrorBody], Sequence[ServerSentEvent]] | None = None
        self._stream = SERVER_SENT_EVENTS
        self._is_cut_on_failure = False
        self._loop = asyncio.get_running_loop()
        self._written_at = self._body_began = self._loop.time()
        self._writes = BoundedWaits(WRITE_SECONDS)
        #: The handler and the heartbeat both write.
        self._write_lock = asyncio.Lock()

    @property
    def held(self) -> HeldRequest | None:
        found: HeldRequest | None = self._scope.get(HELD)
        return found

    @property
    def caller(self) -> Principal:
        assert self.principal is not None
        return self.principal

    def as_rpc(self, node: NodeId, seconds: float) -> RpcCall:
        """Return the call of an RPC method of this gateway, ``node``."""
        made = RpcCall(Peer(Role.CLIENT, node), deadline=time.monotonic() + seconds, credential=self.credential, idempotency_key=None)
        made.found = self.principal
        return made

    @property
    def credential(self) -> Credential | None:
        """Return the token of `Authorization: Bearer …` or `X-API-Key: …`. Raises NotAuthenticated for another scheme."""
        authorization = self._headers.get(b"authorization")
        if authorization is not None:
            scheme, _, credential = authorization.decode("latin-1").partition(" ")
            if scheme.lower() != "bearer":
                raise errors.NotAuthenticated(f"the Authorization scheme must be Bearer, not {scheme[:20]!r}")
            return Credential(credential.strip())
        key = self._headers.get(b"x-api-key")
        return None if key is None else Credential(key.decode("latin-1").strip())

    def header(self, name: bytes) -> bytes | None:
        return self._headers.get(name)

    @property
    def origin(self) -> str:
        """Return the address under which the client reaches the gateway, maybe through web. For texts to the client only."""
        host = (self._headers.get(b"x-forwarded-host") or self._headers.get(b"host", b"localhost"))[:_MAX_HOST].decode("latin-1")
        return f"{self._scope.get('scheme', 'http')}://{host}"

    @property
    def address(self) -> str | None:
        """Return the client's address, resolved through trusted proxies."""
        client = self._scope.get("client")
        return client[0] if client else None

    @property
    def agent(self) -> str:
        """Return the printable part of the client's User-Agent."""
        agent = self._headers.get(b"user-agent", b"").decode("latin-1")
        return "".join(letter for letter in agent if letter.isprintable())[:_MAX_AGENT]

    @property
    def person(self) -> str:
        """Return the address that names the person, in lower case; empty if there is none, or if it can't be one."""
        value = next((self._headers[name] for name in _PERSON if name in self._headers), b"").decode("latin-1").strip()
        return value.lower() if letters.may_be_email(value) else ""

    @property
    def query(self) -> bytes:
        found: bytes = self._scope.get("query_string", b"")
        return found

    @property
    def idempotency_key(self) -> str | None:
        """Raises BadRequest unless it has 1 to 255 printable ASCII characters."""
        return self._token(b"idempotency-key", "Idempotency-Key")

    def refuse_idempotency_key(self) -> None:
        """Raise BadField if the call has one."""
        if self.idempotency_key is not None:
            raise BadField("Idempotency-Key", "is not supported here; send the request again without it")

    @property
    def cache_request(self) -> cache_keys.CacheRequest:
        """Return what `Cache-Control` and `X-Cache` ask for."""
        cache_control, x_cache = (self._headers.get(name) for name in (b"cache-control", b"x-cache"))
        return cache_keys.read_headers(*(None if value is None else value.decode("latin-1") for value in (cache_control, x_cache)))

    @property
    def conversation_id(self) -> str | None:
        """Raises BadRequest unless it has 1 to 128 printable ASCII characters."""
        found = self._token(b"x-conversation-id", "X-Conversation-Id")
        return None if found is None else field_errors.convert("X-Conversation-Id", found, ConversationId, BadField)

    @property
    def forbids_external(self) -> bool:
        """Return whether `X-Aimesh-External: forbid` keeps the prompt from providers. Raises BadRequest for another value."""
        found = self._headers.get(b"x-aimesh-external")
        if found is None:
            return False
        if found.strip().lower() != b"forbid":
            raise BadField("X-Aimesh-External", "must be forbid, or absent")
        return True

    @property
    def last_event_id(self) -> str | None:
        """Raises BadRequest like ``idempotency_key``."""
        return self._token(b"last-event-id", "Last-Event-ID")

    def ensure_unambiguous(self) -> None:
        """Raise BadRequest for headers that a proxy before us may have read differently."""
        if self._repeated is not None:
            raise errors.BadRequest(f"the header {self._repeated.decode('latin-1')} occurs twice", hint="send it once")
        if b"transfer-encoding" in self._headers and b"content-length" in self._headers:
            raise errors.BadRequest("the request has both Content-Length and Transfer-Encoding", hint="send only one of them")

    async def read_body(
        self,
        *,
        most_bytes: int = MAX_BODY_BYTES,
        most_seconds: float | None = None,
        held: HeldRequest | None = None,
        any_media_type: bool = False,
        is_prompt: bool = True,
    ) -> None:
        """Read the body; ``held`` gets its size. Raises UnsupportedMedia, TooLarge as soon as it is known, and what ``HeldRequest.resize``
        raises."""
        self._ensure_plain()
        media_type, _, _ = self._headers.get(b"content-type", b"").partition(b";")
        if media_type.strip().lower() != b"application/json" and not any_media_type:
            raise errors.UnsupportedMedia("the body must be JSON", hint="send `Content-Type: application/json`")
        size = self.announced_bytes
        if size > most_bytes:
            raise _too_large(most_bytes, is_prompt=is_prompt)
        if held is not None:
            held.resize(size)
        most_seconds = most_seconds or (LONG_BODY_SECONDS if size > MAX_BODY_BYTES else BODY_SECONDS)
        self.body = await self._read(most_bytes, most_seconds, held, is_prompt=is_prompt)

    async def _read(self, most_bytes: int, most_seconds: float, held: HeldRequest | None, *, is_prompt: bool) -> bytes:
        parts: list[bytes] = []
        size = 0
        self._body_began = self._loop.time()
        while True:
            message = await self._next_piece(size, most_seconds, most_seconds)
            part = message.get("body", b"")
            size += len(part)
            if size > most_bytes:
                raise _too_large(most_bytes, is_prompt=is_prompt)
            self.has_read = self.has_read or size > 0
            if held is not None and size > held.size:
                # The client did not send its length.
                held.resize(size if size <= MAX_BODY_BYTES else most_bytes)
            parts.append(part)
            if not message.get("more_body", False):
                if held is not None:
                    held.resize(size)
                return b"".join(parts)

    async def _next_piece(self, size: int, most_seconds: float, max_pause: float) -> MutableMapping[str, Any]:
        """Return the message with the next piece; ``size``: of those before. Raises BadRequest for a slow sender, and Cancelled."""
        while True:
            whole = self._body_began + min(BODY_GRACE_SECONDS + size / BODY_BYTES_PER_SECOND, most_seconds)
            until = min(whole, self._loop.time() + max_pause)
            try:
                async with asyncio.timeout_at(until):
                    message = await self._receive()
            except TimeoutError:
                if self._loop.time() - until < STANDSTILL_SECONDS:
                    raise _too_slow(most_seconds) from None
                # The gateway stood still, not the sender, whose piece may be here.
                self._body_began = self._loop.time()
                continue
            if message["type"] == "http.disconnect":
                self.disconnected = True
                raise errors.Cancelled("the client disconnected")
            return message

    async def read_pieces(self, most_bytes: int, most_seconds: float) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, instead of ``read_body``. Raises TooLarge as soon as it is known, BadRequest for a slow sender."""
        self._ensure_plain()
        if self.announced_bytes > most_bytes:
            raise _too_large(most_bytes, is_prompt=False)
        size, more = 0, True
        self._body_began = self._loop.time()
        while more:
            message = await self._next_piece(size, most_seconds, BODY_SECONDS)
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > most_bytes:
                raise _too_large(most_bytes, is_prompt=False)
            yield piece

    @property
    def announced_bytes(self) -> int:
        """Return the length of the body that its head says; 0 if it says none."""
        announced = self._headers.get(b"content-length", b"0")
        return int(announced) if announced.isdigit() else 0

    def _ensure_plain(self) -> None:
        if self._headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise errors.UnsupportedMedia("compressed bodies are not supported", hint="send the body without Content-Encoding")

    async def parse(self, reader: Callable[[bytes], T]) -> T:
        """Return what ``reader`` makes of the body. Raises what it raises, and TooManyValues."""
        if self.turns is None:
            return reader(self.body)
        async with self.turn():
            # Afterward, what the reader made of it is enough.
            body, self.body = self.body, b""
            return await asyncio.to_thread(body_values.read, body, reader)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for the caller's turn to read something large, if the body is. Raises Limited."""
        return nullcontext() if self.turns is None else self.turns.turn(self.caller.limited_as)

    async def convert(self, step: Callable[[S], T], body: S) -> T:
        """Return what a further step makes of the parsed body. Raises what it raises."""
        return step(body) if self.turns is None else await asyncio.to_thread(step, body)

    async def read_fields(self, kind: type[S]) -> S:
        """Parse the body of one of our own APIs. Raises BadRequest that names the field."""
        return await self.parse(partial(request_bodies.read_either_case, kind=kind))

    async def read(self, dialect: BodyDialect[S]) -> S:
        """Parse the body of a vendor's API. Raises BadRequest that names the field, and ContextExceeded for too many values."""
        self.dialect = dialect.name
        strict = self._headers.get(b"x-aimesh-strict") == b"1"
        try:
            return await self.parse(lambda body: tolerant_json.read(body, dialect, self.ignored, strict=strict))
        except body_values.TooManyValues as error:
            raise errors.ContextExceeded.because(error.message, hint=error.hint) from None
        finally:
            if self.ignored.labels:
                self.add_headers([(b"x-aimesh-ignored", str(self.ignored).encode())])

    def close(self) -> None:
        self._writes.close()

    def add_headers(self, extra: Headers) -> None:
        """Add response headers before the response starts; the last value of a name counts."""
        self._extra = [*{**dict(self._extra), **dict(extra)}.items()]

    async def answer(self, content: msgspec.Struct, *, status: int = 200) -> None:
        await self.answer_bytes(_encode(content), b"application/json", status=status)

    async def answer_bytes(self, content: bytes, media_type: bytes, *, status: int = 200) -> None:
        await self._start(status, [(b"content-type", media_type), (b"content-length", b"%d" % len(content))])
        last = max(0, len(content) - 1) // _PART_BYTES * _PART_BYTES
        for at in range(0, last, _PART_BYTES):
            await self._write(content[at : at + _PART_BYTES], more=True)
        await self._write(content[last:], more=False)

    async def answer_pieces(self, size: int | None, pieces: AsyncIterator[bytes], media_type: bytes, *, status: int = 200) -> None:
        """Send a body as it comes, of this size if it is known. Nothing is sent before its first piece is there."""
        piece = await anext(pieces, b"")
        self._is_cut_on_failure = True
        length = [] if size is None else [(b"content-length", b"%d" % size)]
        await self._start(status, [(b"content-type", media_type), *length])
        while piece:
            for at in range(0, len(piece), _PART_BYTES):
                await self._write(piece[at : at + _PART_BYTES], more=True)
            piece = await anext(pieces, b"")
        await self._write(b"", more=False)

    async def fail(self, error: errors.AimeshError) -> None:
        """Send the error as the response, or as the last event of a stream. A body of a known size is cut, so that the server closes the
        connection."""
        if self.started and self._is_cut_on_failure:
            return
        content = http_errors.body(error, self.request_id, openai=self._scope["path"].startswith("/v1/"))
        if self.started:
            await self.send_events((ServerSentEvent(content),) if self._failed is None else self._failed(content))
            await self.end_events()
            return
        self.add_headers(http_errors.headers(error))
        status = http_errors.status(error, self._scope["path"])
        await self.answer(http_errors.dialect_at(self._scope["path"]).write_error(content, status), status=status)

    def expect_events(self, failed: Callable[[ErrorBody], Sequence[ServerSentEvent]], stream: EventStream = SERVER_SENT_EVENTS) -> None:
        """Announce a stream of events, which gets heartbeats from now on. ``failed`` formats an error as events."""
        self._failed, self._stream = failed, stream

    async def send_events(self, events: Sequence[ServerSentEvent], event_id: str | None = None) -> None:
        """Send events; wait up to 30 s for a slow reader. The last event carries the id: a client that knows the id has all of them."""
        if not events:
            return
        if not self.started:
            await self._begin_events()
        body, last, write = b"", events[-1], self._stream.write
        for event in events:
            body += write(event, event_id if event is last else None)
        await self._write(body, more=True)

    async def send_comment(self, text: str) -> None:
        """Send a comment, which clients ignore and people can read."""
        if not self.started:
            await self._begin_events()
        await self._write(self._stream.write_comment(text), more=True)

    def idle_seconds(self) -> float | None:
        """Return how long a stream has been idle; None for other responses."""
        if self._failed is None or self.ended:
            return None
        return 0.0 if self._write_lock.locked() else self._loop.time() - self._written_at

    async def end_events(self) -> None:
        await self._write(b"", more=False)

    async def wait_for_disconnect(self) -> None:
        """Wait until the client disconnects. Call it after reading the body."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True

    def _token(self, name: bytes, shown: str) -> str | None:
        found = self._headers.get(name)
        if found is not None and not _TOKEN.fullmatch(found):
            raise BadField(shown, "must have 1 to 255 printable ASCII characters")
        return None if found is None else found.decode("ascii")

    async def _begin_events(self) -> None:
        # Without x-accel-buffering, proxies like nginx would collect the tokens.
        await self._start(200, [(b"content-type", self._stream.media_type), (b"x-accel-buffering", b"no")])

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        # Under OpenAI's name and Anthropic's.
        request_id = [(name, str(self.request_id).encode()) for name in (b"x-request-id", b"request-id")]
        # A route's own headers override the common ones.
        overridden = {name for name, _ in self._extra}
        common = _COMMON if not overridden else [header for header in _COMMON if header[0] not in overridden]
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *request_id, *common, *self._extra]})

    async def _write(self, body: bytes, *, more: bool) -> None:
        await self._write_lock.acquire()
        try:
            if self.ended:
                return  # a late heartbeat
            self.ended = not more
            self._writes.begin()
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except asyncio.CancelledError:
            if self._writes.has_ended():
                raise errors.Cancelled("the client stopped reading") from None
            raise
        finally:
            self._writes.task, self._written_at = None, self._loop.time()
            self._write_lock.release()


def _too_slow(most_seconds: float) -> errors.BadRequest:
    slow = f"the body took longer than {most_seconds:.0f} s, paused, or arrived at less than {BODY_BYTES_PER_SECOND} bytes/s"
    return errors.BadRequest(slow, hint="send the whole body immediately")


def _too_large(most_bytes: int, *, is_prompt: bool) -> errors.CallerError:
    if most_bytes > MAX_BODY_BYTES and is_prompt:
        return PromptTooLarge.because(f"the body is larger than {most_bytes} bytes", hint="shorten it, or send fewer images")
    return errors.TooLarge(f"the body is larger than {most_bytes} bytes")
