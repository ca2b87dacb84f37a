"""Serves /v1/batches, compatible with OpenAI's clients."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from features.files.contract import FileId
from features.jobs import contract as api
from features.jobs.contract import JobKind, JobState, LineError
from features.jobs.gateway import job_orders
from features.jobs.gateway.job_orders import JobOrders
from features.jobs.gateway.store import Job
from services.gateway.http_api import request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.tolerant_json import BodyDialect

_CANCEL = "/cancel"


class BatchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input_file_id: FileId
    endpoint: api.BatchEndpoint
    completion_window: api.BatchWindow
    metadata: api.Metadata | None = None


class BatchesQuery(msgspec.Struct, frozen=True):
    #: The id of the last batch of the page before.
    after: api.JobId | None = None
    limit: Annotated[int, Meta(ge=1, le=api.MAX_PAGE)] = 20


_BODY = BodyDialect("batches", BatchBody)


class RequestCounts(msgspec.Struct, frozen=True):
    total: int
    completed: int
    failed: int


class BatchErrors(msgspec.Struct, frozen=True):
    data: tuple[LineError, ...]
    object: str = "list"


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    endpoint: str
    input_file_id: str | None
    completion_window: str
    status: JobState
    model: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    cancelling_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelled_at: int | None
    output_file_id: str | None
    error_file_id: str | None
    errors: BatchErrors | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None
    #: Why it doesn't move; OpenAI's batches have none.
    waiting: str | None
    object: str = "batch"


class BatchList(msgspec.Struct, frozen=True):
    data: tuple[Batch, ...]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


class BatchRoutes:
    def __init__(self, orders: JobOrders) -> None:
        self._orders = orders

    def routes(self) -> tuple[HttpRoute, ...]:
        every, one = "/v1/batches", "/v1/batches/{batch}"
        return (
            HttpRoute("POST", every, self._create, "createBatch", "Run the lines of a file as requests", body=BatchBody, answer=Batch),
            HttpRoute("GET", every, self._list, "listJobs", "List your batches, newest first", query=BatchesQuery, answer=BatchList),
            HttpRoute("GET", one, self._get, "getJob", "Describe a batch", answer=Batch),
            HttpRoute("POST", one + _CANCEL, self._cancel, "cancelJob", "Cancel a batch", answer=Batch),
        )

    async def _create(self, call: HttpCall) -> None:
        body = await call.read(_BODY)
        order = api.CreateBatch(body.input_file_id, body.endpoint, body.completion_window, body.metadata or {})
        await call.answer(_batch(await self._orders.order_batch(call.caller, order, call.idempotency_key)))

    async def _list(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, BatchesQuery)
        found, has_more = await self._orders.page(call.caller.tenant_id, api.ListJobs(JobKind.BATCH, query.after, query.limit))
        data = tuple(map(_batch, found))
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        await call.answer(BatchList(data, has_more, first, last))

    async def _get(self, call: HttpCall) -> None:
        await call.answer(_batch(await self._orders.find_batch(call.caller.tenant_id, call.rest_of_path)))

    async def _cancel(self, call: HttpCall) -> None:
        await self._orders.find_batch(call.caller.tenant_id, call.rest_of_path)
        await call.answer(_batch(await self._orders.cancel_of(call.caller, call.rest_of_path)))


def _batch(job: Job) -> Batch:
    facts = job_orders.facts_of(job)

    def ended_as(state: JobState) -> int | None:
        return _seconds(facts.ended_at) if facts.state is state else None

    return Batch(
        id=facts.id,
        endpoint=facts.endpoint,
        input_file_id=facts.input_file,
        completion_window=job_orders.window_of(job),
        status=facts.state,
        model=facts.model,
        created_at=int(facts.created_at.timestamp()),
        expires_at=int(facts.expires_at.timestamp()),
        in_progress_at=_seconds(facts.in_progress_at),
        finalizing_at=_seconds(facts.finalizing_at),
        cancelling_at=_seconds(facts.cancelling_at),
        completed_at=ended_as(JobState.COMPLETED),
        failed_at=ended_as(JobState.FAILED),
        expired_at=ended_as(JobState.EXPIRED),
        cancelled_at=ended_as(JobState.CANCELLED),
        output_file_id=facts.output_file,
        error_file_id=facts.error_file,
        errors=BatchErrors(facts.errors) if facts.errors else None,
        request_counts=RequestCounts(facts.total, facts.done, facts.failed),
        usage=BatchUsage(
            facts.input_tokens,
            InputDetails(facts.cached_tokens),
            facts.output_tokens,
            OutputDetails(),
            facts.input_tokens + facts.output_tokens,
        ),
        metadata=facts.metadata or None,
        waiting=facts.waiting,
    )


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())
