"""Serves /api/jobs: runs a request that nobody waits for, and shows, cancels and deletes jobs."""

from contextlib import suppress
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from features.jobs import contract as api
from features.jobs.contract import BatchEndpoint, JobFacts, JobKind, Metadata
from features.jobs.gateway import job_orders
from features.jobs.gateway.job_orders import JobOrders
from features.jobs.gateway.single_jobs import SingleJob, SingleJobs, SingleRequest
from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import request_bodies
from services.gateway.http_api.chat_messages import JsonObject
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from shared import errors
from shared.rpc import RpcCall
from shared.types import NodeId

_SECONDS = 15.0
#: For a client that asks too early.
_RETRY_AFTER = [(b"retry-after", b"2")]


class JobBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    endpoint: BatchEndpoint
    #: Of the request, as the endpoint takes it; without `stream`.
    body: JsonObject
    #: batch: behind live requests, at the price of batches.
    priority: Literal["live", "batch"] = "batch"
    metadata: Metadata = msgspec.field(default_factory=dict)


class JobsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: JobKind | None = None
    #: The id of the last job of the page before.
    after: api.JobId | None = None
    limit: Annotated[int, Meta(ge=1, le=api.MAX_PAGE)] = api.MAX_PAGE


class JobAnswer(JobFacts, frozen=True):
    """A job. One of a single request also has what the endpoint answered, once it has."""

    status_code: int | None = None
    #: Also of a request that never ran.
    error_code: str | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class DeletedJob(msgspec.Struct, frozen=True):
    id: str
    deleted: bool = True


class RestJobs:
    def __init__(self, singles: SingleJobs, orders: JobOrders, node: NodeId) -> None:
        self._singles, self._orders, self._node = singles, orders, node

    def routes(self) -> tuple[HttpRoute, ...]:
        every, one = "/api/jobs", "/api/jobs/{job}"
        return (
            HttpRoute("POST", every, self._create, "processInferenceRequest", "Run a request that you don't wait for",
                      body=JobBody, answer=JobAnswer, status=202),
            HttpRoute("GET", every, self._list, "listJobs", "List your jobs, newest first", query=JobsQuery, answer=api.Jobs),
            HttpRoute("GET", one, self._get, "getJob", "Get a job, with the answer to its request", answer=JobAnswer),
            HttpRoute("GET", f"{one}/result", self._result, "getJob",
                      "Get the answer to the request of a job as its endpoint gives it; 202 with the job until there is one",
                      pending=JobAnswer),
            HttpRoute("POST", f"{one}/cancel", self._cancel, "cancelJob", "Cancel a job", answer=JobAnswer),
            HttpRoute("DELETE", one, self._delete, "cancelJob", "Cancel a job if it runs, and delete it", answer=DeletedJob),
        )  # fmt: skip

    async def _create(self, call: HttpCall) -> None:
        body = await call.read_fields(JobBody)
        if body.body.get("stream"):
            raise BadField("body.stream", "is not possible: nobody waits for the answer of a job")
        request = SingleRequest(
            kind=JobKind.SINGLE, endpoint=body.endpoint, body=body.body, flex=body.priority == "batch", metadata=body.metadata
        )
        made = await self._singles.order(call.caller, request, call.idempotency_key)
        call.add_headers([(b"location", f"/api/jobs/{made.job.public_id}".encode())])
        await call.answer(self._shown(made), status=202)

    async def _list(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, JobsQuery)
        await call.answer(await self._orders.list(api.ListJobs(query.kind, query.after, query.limit), self._as_rpc(call)))

    async def _get(self, call: HttpCall) -> None:
        await self._answer(call, call.rest_of_path)

    async def _result(self, call: HttpCall) -> None:
        found = await self._singles.find(call.caller.tenant_id, call.rest_of_path)
        if found is None:
            raise BadField("job", "is a batch: its answers are in its output file")
        if not found.has_ended:
            call.add_headers(_RETRY_AFTER)
            await call.answer(self._shown(found), status=202)
            return
        await call.answer_bytes(self._singles.result_of(found), b"application/json", status=found.line.status_code or 200)

    async def _cancel(self, call: HttpCall) -> None:
        await self._singles.cancel(call.caller, call.rest_of_path)
        await self._answer(call, call.rest_of_path)

    async def _delete(self, call: HttpCall) -> None:
        await self._singles.delete(call.caller, call.rest_of_path)
        await call.answer(DeletedJob(call.rest_of_path))

    async def _answer(self, call: HttpCall, job: str) -> None:
        found = await self._singles.find(call.caller.tenant_id, job)
        await call.answer(await self._orders.get(api.GetJob(job), self._as_rpc(call)) if found is None else self._shown(found))

    def _shown(self, found: SingleJob) -> JobAnswer:
        line, facts = found.line, job_orders.facts_of(found.job)
        answer = JobAnswer(**msgspec.structs.asdict(facts), status_code=line.status_code, error_code=line.error_code)
        with suppress(errors.AnswerGone):
            return msgspec.structs.replace(answer, result=msgspec.Raw(self._singles.result_of(found)))
        return answer

    def _as_rpc(self, call: HttpCall) -> RpcCall:
        return call.as_rpc(self._node, _SECONDS)
