"""Runs a request and sends its answer in one API's format, as a whole or as a stream of events."""

import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Protocol

import msgspec

from services.gateway.facts.reader import AnswerHead, Piece_contra, Reader
from services.gateway.facts.tally import Tally
from services.gateway.http_api import response_formats, service_tiers
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.response_formats import AnswerFacts, AnswerFormat, Headers
from services.gateway.idempotency.cache_keys import CacheRequest
from services.gateway.requests.repeated_request import NO_REPEAT, RepeatedRequest
from shared import context
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest, EmbeddingResult, Vectors
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.inference import Chunk
from shared.telemetry.version import version
from shared.types import ModelName

#: Added before the first event, or before a whole answer: it isn't known earlier.
_CACHE_HIT: Headers = [(b"x-aimesh-cache", b"hit")]


class Answering(Protocol):
    """What the routes of an API need of ``Runs``, which says what each raises."""

    def longest(self, *, flex: bool | None) -> float: ...

    async def admit_images(self, request: InferenceRequest, written: MutableMapping[str, bytes] | None = None) -> InferenceRequest: ...

    def answer(
        self,
        principal: Principal,
        request: InferenceRequest,
        reader: Reader[AnswerHead, Chunk],
        *,
        seconds: float,
        repeat: RepeatedRequest,
        whole: bool,
        cache: CacheRequest,
        streamed: bool,
    ) -> Awaitable[InferenceResult]: ...

    async def embed(
        self, principal: Principal, request: EmbeddingRequest, reader: Reader[AnswerHead, Vectors], *, seconds: float, key: str | None
    ) -> EmbeddingResult: ...


async def answer(
    runs: Answering,
    call: HttpCall,
    request: InferenceRequest,
    form: AnswerFormat,
    *,
    stream: bool,
    before_end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Run the request and answer the call. ``before_end`` is called when the answer is complete. Raises what ``Runs.answer`` raises."""
    request = await runs.admit_images(request, call.images)
    if stream:
        call.expect_events(form.failed, form.stream)
    repeat, cache = NO_REPEAT, CacheRequest.NOTHING
    if call.has_options:
        repeat, cache = read_repeat(call), call.cache_request
    if call.has_options or call.ignored.labels:
        request = with_call(call, request)
    reader = HttpReader(call, form, stream=stream, after=0 if repeat.rest is None else repeat.rest.after)
    result = await runs.answer(
        call.caller,
        request,
        reader,
        seconds=runs.longest(flex=request.flex),
        repeat=repeat,
        whole=True,
        cache=cache,
        streamed=stream,
    )
    if before_end is not None:
        await before_end()
    await reader.finish(result)


class HeadReader(Reader[AnswerHead, Piece_contra]):
    """Adds the headers of an answer to a call."""

    head: AnswerHead
    #: Another call has started the answer.
    is_repeat = False

    def __init__(self, call: HttpCall) -> None:
        self.call = call

    def begin(self, head: AnswerHead) -> None:
        self.head = head
        now = context.current.get()
        self.is_repeat = now is not None and head.request_id != now.request_id
        self.call.add_headers(headers(head, is_repeat=self.is_repeat))


class HttpReader(HeadReader[Chunk]):
    """Sends an answer, or several one after another, in the form of one API."""

    def __init__(self, call: HttpCall, form: AnswerFormat, *, stream: bool, after: int = 0, with_ids: bool = True) -> None:
        """``after``: the chunk that the caller already has. ``with_ids``: whether the stream can be resumed."""
        super().__init__(call)
        self._form = form
        self._stream, self._after, self._with_ids = stream, after, with_ids

    def begin(self, head: AnswerHead) -> None:
        super().begin(head)
        assert head.model is not None  # known before the first chunk
        self._event_id_start = response_formats.event_id_start(head.request_id)
        began_at, tier = int(head.began_at.timestamp()), service_tiers.FLEX if head.is_flex else service_tiers.DEFAULT
        self._form.begin(AnswerFacts(head.request_id, head.model, began_at, _fingerprint(head.model), tier))

    async def take(self, number: int, piece: Chunk, at: Tally) -> bool:
        """Nothing is sent before the first text or waiting notice: until then, an error can have its own status."""
        if not number:
            if self._stream:
                await self.call.send_comment(piece.waiting)
        elif not self._stream:
            self._form.gather(piece)
        else:
            # The format needs to see the earlier chunks, too.
            events = self._form.events(piece)
            if number > self._after:
                if not self.call.started:
                    self._show_origin()
                await self.call.send_events(events, f"{self._event_id_start}{number}" if self._with_ids else None)
        return True

    def _show_origin(self) -> None:
        if not self.call.started and self.head.cached:
            self.call.add_headers(_CACHE_HIT)

    async def finish(self, result: InferenceResult) -> None:
        self._show_origin()  # an answer may have no chunk
        if self._stream:
            await self.call.send_events(self._form.last_events(result))
            await self.call.end_events()
        else:
            await self.call.answer(self._form.whole(result))


class _EncodingReader(HeadReader[Vectors]):
    def __init__(self, call: HttpCall, encode: Callable[[int, bytes], msgspec.Raw]) -> None:
        super().__init__(call)
        self._encode = encode
        self.encoded: list[msgspec.Raw] = []

    async def take(self, number: int, piece: Vectors, at: Tally) -> bool:
        # Encoding all vectors at once would delay other streams.
        self.encoded += [self._encode(index, vector) for index, vector in enumerate(piece.vectors, len(self.encoded))]
        return True


async def embed(
    runs: Answering, call: HttpCall, request: EmbeddingRequest, encode: Callable[[int, bytes], msgspec.Raw]
) -> tuple[list[msgspec.Raw], EmbeddingResult]:
    """Run the request; ``encode`` gets the number of each vector. Raises what ``Runs.embed`` raises."""
    request = msgspec.structs.replace(request, forbid_external=call.forbids_external)
    reader = _EncodingReader(call, encode)
    result = await runs.embed(call.caller, request, reader, seconds=runs.longest(flex=request.flex), key=call.idempotency_key)
    return reader.encoded, result


def with_call(call: HttpCall, request: InferenceRequest) -> InferenceRequest:
    """Add what `X-Conversation-Id` and `X-Aimesh-External` say, and which fields had no effect. Raises BadRequest for invalid values."""
    if call.ignored.labels:
        request = msgspec.structs.replace(request, ignored_fields=str(call.ignored))
    if (conversation_id := call.conversation_id) is not None:
        request = msgspec.structs.replace(request, conversation_id=conversation_id)
    return msgspec.structs.replace(request, forbid_external=True) if call.forbids_external else request


def read_repeat(call: HttpCall) -> RepeatedRequest:
    """Read from the headers whether the call repeats another. Raises BadRequest for invalid ones."""
    event_id = call.last_event_id
    return RepeatedRequest(key=call.idempotency_key, rest=None if event_id is None else response_formats.read_event_id(event_id))


def headers(head: AnswerHead, *, is_repeat: bool) -> Headers:
    """Return the headers about limits and repeats."""
    found: Headers = []
    # A repeat isn't limited.
    if not is_repeat and (allowance := head.allowance) is not None:
        found += response_formats.allowance_headers(allowance)
    if not is_repeat and (clamped_to := head.clamped_to) is not None:
        found.append((b"x-budget-clamped", b"%d" % clamped_to))
    if (route := head.shown_route) is not None:
        found.append((b"x-aimesh-route", f"{route.route}@{route.version}".encode()))
        if route.variant is not None:
            found.append((b"x-aimesh-variant", route.variant.encode()))
    if head.version is not None:
        found.append((b"x-aimesh-version", head.version.encode()))
    if is_repeat:
        # As Stripe does: this call has its own id in the log; the answer and its cost belong to the first call.
        found += [(b"idempotent-replayed", b"true"), (b"x-original-request-id", str(head.request_id).encode())]
    return found


@lru_cache(maxsize=256)  # more models than any mesh serves
def _fingerprint(model: ModelName) -> str:
    return "fp_" + hashlib.sha256(f"{version()}:{model}".encode()).hexdigest()[:10]
