"""Serves /v1/messages/batches, compatible with Anthropic's clients: batches of requests to /v1/messages."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from features.files.gateway.file_storage import FileStorage
from features.jobs import contract as api
from features.jobs.contract import JobKind, JobState, LineError
from features.jobs.feature import MESSAGE_BATCHES
from features.jobs.gateway import job_orders
from features.jobs.gateway.batch_output import OutputLine
from features.jobs.gateway.job_orders import JobOrders
from features.jobs.gateway.rules.batch_input import BatchInput
from features.jobs.gateway.store import Job, JobStore
from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import http_app, request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from shared import body_limits, errors
from shared.api.auth import Principal
from shared.protocol import field_errors
from shared.types import ModelName, Moment

_PATH, _CANCEL, _RESULTS = MESSAGE_BATCHES, "/cancel", "/results"
_ENDPOINT = "/v1/messages"
#: What a thread writes at a time.
_PIECE_BYTES, _PIECE_LINES = 256 << 10, 200


class BatchRequest(msgspec.Struct, frozen=True):
    custom_id: str
    #: A body of /v1/messages. All requests name the same model.
    params: msgspec.Raw


class MessageBatchBody(msgspec.Struct, frozen=True):
    requests: Annotated[tuple[BatchRequest, ...], Meta(min_length=1)]


class MessageBatchesQuery(msgspec.Struct, frozen=True):
    #: The id of the last batch of the page before.
    after_id: api.JobId | None = None
    limit: Annotated[int, Meta(ge=1, le=api.MAX_PAGE)] = 20


class MessageCounts(msgspec.Struct, frozen=True):
    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatch(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: MessageCounts
    created_at: Moment
    expires_at: Moment
    ended_at: Moment | None
    cancel_initiated_at: Moment | None
    results_url: str | None
    archived_at: Moment | None = None
    type: str = "message_batch"
    #: Why it was never begun, or doesn't move; Anthropic's batches have none.
    errors: tuple[LineError, ...] | UnsetType = UNSET
    waiting: str | UnsetType = UNSET


class MessageBatchList(msgspec.Struct, frozen=True):
    data: tuple[MessageBatch, ...]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedMessageBatch(msgspec.Struct, frozen=True):
    id: str
    type: str = "message_batch_deleted"


class _Error(msgspec.Struct, frozen=True):
    message: str
    type: str = "api_error"


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _Error
    type: str = "error"


class _Result(msgspec.Struct, frozen=True):
    type: Literal["succeeded", "errored", "canceled", "expired"]
    message: msgspec.Raw | UnsetType = UNSET
    error: msgspec.Raw | _ErrorBody | UnsetType = UNSET


class _ResultLine(msgspec.Struct, frozen=True):
    custom_id: str
    result: _Result


class _InputLine(msgspec.Struct, frozen=True):
    custom_id: str
    body: msgspec.Raw
    method: str = "POST"
    url: str = _ENDPOINT


_encode = msgspec.json.Encoder().encode
_decode_output = msgspec.json.Decoder(OutputLine).decode


class MessageBatchRoutes:
    def __init__(self, orders: JobOrders, store: JobStore, files: FileStorage, may_run: Callable[[Principal, ModelName], bool]) -> None:
        self._orders, self._store, self._files, self._may_run = orders, store, files, may_run

    def routes(self) -> tuple[HttpRoute, ...]:
        one = _PATH + "/{batch}"
        return (
            HttpRoute("POST", _PATH, self._create, "createBatch", "Anthropic's message batches", body=MessageBatchBody,
                      max_body_bytes=body_limits.LARGE_BYTES[_PATH], answer=MessageBatch),
            HttpRoute("GET", _PATH, self._list, "listJobs", "List your message batches, newest first", query=MessageBatchesQuery,
                      answer=MessageBatchList),
            HttpRoute("GET", one, self._get, "getJob", "Describe a message batch", answer=MessageBatch),
            HttpRoute("GET", one + _RESULTS, self._results, "getJob", "The results of a message batch, as lines of JSON"),
            HttpRoute("POST", one + _CANCEL, self._cancel, "cancelJob", "Cancel a message batch", answer=MessageBatch),
            HttpRoute("DELETE", one, self._delete, "cancelJob", "Delete a message batch that has ended, and its results",
                      answer=DeletedMessageBatch),
        )  # fmt: skip

    async def _create(self, call: HttpCall) -> None:
        key, caller = call.idempotency_key, call.caller
        job = None if key is None else await self._store.find_repeated(caller.tenant_id, key)
        if job is None:
            lines = _Lines((await call.parse(_read)).requests)
            file = await self._orders.store_input(caller, self._write(lines, call))
            job = await self._orders.add_batch(caller, file, _ENDPOINT, key)
        elif job.endpoint != _ENDPOINT:
            raise job_orders.other_job()
        await call.answer(_show(job, call))

    async def _write(self, lines: "_Lines", call: HttpCall) -> AsyncIterator[bytes]:
        """Raises BadField, UnknownModel, and Limited."""
        while True:
            async with call.turn():
                piece = await asyncio.to_thread(lines.write_some)
            if not piece:
                return
            model = lines.reading.model
            assert model is not None  # of its first line
            if not self._may_run(call.caller, model):
                raise errors.UnknownModel(f"there is no model {model} that you may use", hint="GET /v1/models lists them")
            yield piece

    async def _list(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, MessageBatchesQuery)
        asked = api.ListJobs(JobKind.BATCH, query.after_id, query.limit)
        found, has_more = await self._orders.page(call.caller.tenant_id, asked, _ENDPOINT)
        data = tuple(_show(job, call) for job in found)
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        await call.answer(MessageBatchList(data, has_more, first, last))

    async def _find(self, call: HttpCall) -> Job:
        return await self._orders.find_batch(call.caller.tenant_id, call.rest_of_path, _ENDPOINT)

    async def _get(self, call: HttpCall) -> None:
        await call.answer(_show(await self._find(call), call))

    async def _cancel(self, call: HttpCall) -> None:
        await self._find(call)
        await call.answer(_show(await self._orders.cancel_of(call.caller, call.rest_of_path), call))

    async def _delete(self, call: HttpCall) -> None:
        job = await self._find(call)
        if job.ended_at is None:
            raise errors.InUse("the batch has not ended", hint="cancel it, and wait for its end")
        for file in filter(None, job.written_files):
            await self._files.give_up(job.tenant_id, file)
        await self._store.forget(job.id)
        await call.answer(DeletedMessageBatch(job.public_id))

    async def _results(self, call: HttpCall) -> None:
        job = await self._find(call)
        if job.ended_at is None:
            raise errors.NotFound("the batch has no results before its end", hint="ask for its processing_status")
        async with aclosing(self._read_results(job)) as pieces:
            await http_app.until_disconnect(call, call.answer_pieces(None, pieces, b"application/x-jsonl"))

    async def _read_results(self, job: Job) -> AsyncGenerator[bytes]:
        """Raises NotFound if their owner has deleted them, and what ``FileStorage.read`` raises."""
        for file in filter(None, job.written_files):
            found, rest = await self._files.find_used(job.tenant_id, file), b""
            async with aclosing(self._files.read(found, 0, found.facts.size)) as pieces:
                async for piece in pieces:
                    *lines, rest = (rest + piece).split(b"\n")
                    for at in range(0, len(lines), _PIECE_LINES):
                        yield await asyncio.to_thread(_write_results, lines[at : at + _PIECE_LINES])


class _Lines:
    """Writes requests as the lines of a batch, and reads them as its validation will."""

    def __init__(self, requests: Iterable[BatchRequest]) -> None:
        self._requests = iter(requests)
        self.reading = BatchInput(_ENDPOINT)

    def write_some(self) -> bytes:
        """Return the next lines; nothing after the last. Raises BadField."""
        written = bytearray()
        while len(written) < _PIECE_BYTES and (request := next(self._requests, None)) is not None:
            # Without line breaks.
            line = _encode(_InputLine(request.custom_id, msgspec.Raw(msgspec.json.format(request.params, indent=-1)))) + b"\n"
            for _ in self.reading.read(line):
                written += line
            if self.reading.errors:
                raise _mistake(self.reading.errors[0])
        return bytes(written)


def _read(content: bytes) -> MessageBatchBody:
    """Raises BadField, and BadRequest."""
    request_bodies.ensure_without_null(content)
    try:
        return msgspec.json.decode(content, type=MessageBatchBody)
    except msgspec.ValidationError as error:
        field, must, known = field_errors.explain(error, MessageBatchBody)
        raise BadField(field or "body", must, known=known) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise errors.BadRequest("the body is not valid JSON") from error


def _mistake(error: LineError) -> BadField:
    place = f"requests[{(error.line or 1) - 1}]"
    field = "" if error.param is None else f".{error.param.replace('body', 'params', 1)}"
    return BadField(place + field, error.message)


def _show(job: Job, call: HttpCall) -> MessageBatch:
    has_ended, rest = job.ended_at is not None, job.total - job.done - job.failed
    is_cancelled = job.state is JobState.CANCELLED
    counts = MessageCounts(
        0 if has_ended else rest, job.done, job.failed, rest if is_cancelled else 0, rest if has_ended and not is_cancelled else 0
    )
    return MessageBatch(
        id=job.public_id,
        processing_status="ended" if has_ended else "canceling" if job.cancelling_at is not None else "in_progress",
        request_counts=counts,
        created_at=job.created_at,
        expires_at=job.expires_at,
        ended_at=job.ended_at,
        cancel_initiated_at=job.cancelling_at,
        results_url=f"{call.origin}{_PATH}/{job.public_id}{_RESULTS}" if has_ended else None,
        errors=job.errors or UNSET,
        waiting=job.waiting or UNSET,
    )


def _write_results(lines: Iterable[bytes]) -> bytes:
    return b"".join(_encode(_result(_decode_output(line))) + b"\n" for line in lines)


def _result(line: OutputLine) -> _ResultLine:
    if line.response is not None:
        body, is_good = line.response.body, line.response.status_code < errors.BadRequest.status
        return _ResultLine(line.custom_id, _Result("succeeded", message=body) if is_good else _Result("errored", error=body))
    assert line.error is not None
    match line.error.code:
        case "batch_expired":
            result = _Result("expired")
        case "batch_cancelled":
            result = _Result("canceled")
        case _:
            result = _Result("errored", error=_ErrorBody(_Error(line.error.message)))
    return _ResultLine(line.custom_id, result)
