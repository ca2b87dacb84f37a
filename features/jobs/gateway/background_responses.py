"""Serves responses in the background: `background: true` is answered at once, and the response is asked for until it has ended."""

import msgspec

from features.jobs.contract import JobKind
from features.jobs.gateway.single_jobs import SingleJob, SingleJobs, SingleRequest
from features.jobs.rules.states import LineState
from services.gateway.facts import line_run
from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import request_bodies, service_tiers
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.response_formats import AnswerFacts, ErrorBody
from services.gateway.openai_api import response_format, response_request
from services.gateway.openai_api.response_events import Response, ResponseProblem
from services.gateway.openai_api.response_format import ResponsesFormat
from services.gateway.openai_api.response_request import ResponseBody
from shared import errors
from shared.types import ModelName, RequestId

_ENDPOINT = "/v1/responses"
_STATUSES = {LineState.QUEUED: "queued", LineState.RUNNING: "in_progress", LineState.CANCELLED: "cancelled"}
_FAILED = {LineState.FAILED, LineState.EXPIRED}


class ResponseQuery(msgspec.Struct, frozen=True):
    #: Refused: events are not kept.
    stream: bool = False


class BackgroundResponses:
    def __init__(self, singles: SingleJobs) -> None:
        self._singles = singles

    def routes(self) -> tuple[HttpRoute, ...]:
        one = f"{_ENDPOINT}/{{response}}"
        return (
            HttpRoute("GET", one, self._get, "getJob", "Get a response that runs, or ran, in the background",
                      query=ResponseQuery, answer=Response),
            HttpRoute("POST", f"{one}/cancel", self._cancel, "cancelJob", "Cancel a response in the background", answer=Response),
        )  # fmt: skip

    async def begin(self, call: HttpCall, body: ResponseBody) -> None:
        """Let a request run, and answer it. Raises BadRequest, and what ``SingleJobs.order`` raises."""
        if line_run.current.get() is not None:
            raise BadField("background", "is not possible in a job, for which nobody waits anyway")
        if body.stream:
            raise BadField("stream", f"is not possible in the background; ask for the response with GET {_ENDPOINT}/ID until it has ended")
        if not body.store:
            raise BadField("store", "must be true in the background: the answer is stored until it is fetched")
        if call.images:
            raise errors.TooLarge("the images are too large for a response in the background", hint="send smaller ones, or wait for it")
        await call.convert(response_request.to_request, body)
        alone = await call.convert(
            lambda body: msgspec.to_builtins(msgspec.structs.replace(body, background=False, previous_response_id=None)), body
        )
        request = SingleRequest(
            kind=JobKind.RESPONSE, endpoint=_ENDPOINT, body=alone, flex=service_tiers.wants_flex(body.service_tier), metadata=body.metadata
        )
        await self._answer(call, await self._singles.order(call.caller, request, call.idempotency_key), body)

    async def _get(self, call: HttpCall) -> None:
        if request_bodies.read_query(call.query, ResponseQuery).stream:
            raise BadField("stream", "is not possible: the events of responses in the background are not kept")
        await self._answer(call, await self._find(call))

    async def _cancel(self, call: HttpCall) -> None:
        await self._find(call)
        await self._singles.cancel(call.caller, call.rest_of_path)
        await self._answer(call, await self._find(call))

    async def delete(self, call: HttpCall) -> None:
        """Raises NotFound."""
        await self._find(call)
        await self._singles.delete(call.caller, call.rest_of_path)

    async def _answer(self, call: HttpCall, found: SingleJob, body: ResponseBody | None = None) -> None:
        """``body``: of its request, if the caller has just sent it."""
        if found.line.state is not LineState.DONE or found.job.cancelling_at is not None:
            asked = ResponseBody(input="", metadata=found.job.metadata) if body is None else body
            await call.answer(_unfinished(found, asked, self._problem(found)))
            return
        shown = msgspec.json.decode(self._singles.result_of(found), type=dict[str, object])
        shown |= {"id": found.job.public_id, "created_at": int(found.job.created_at.timestamp()), "background": True}
        await call.answer_bytes(msgspec.json.encode(shown), b"application/json")

    async def _find(self, call: HttpCall) -> SingleJob:
        """Raises NotFound."""
        try:
            found = await self._singles.find(call.caller.tenant_id, call.rest_of_path)
        except errors.NotFound:
            found = None
        if found is None or found.job.kind is not JobKind.RESPONSE:
            raise errors.NotFound(
                f"there is no stored response {call.rest_of_path[:60]!r}: those in the background are stored, for a day after their end",
                hint="send `background: true`, or keep the response yourself",
            )
        return found

    def _problem(self, found: SingleJob) -> ResponseProblem | None:
        """Return why it has failed."""
        if found.line.state not in _FAILED:
            return None
        try:
            plain = self._singles.result_of(found)
        except errors.AnswerGone as error:
            return ResponseProblem("server_error", error.message)
        return response_format.problem_of(msgspec.json.decode(plain, type=ErrorBody))


def _unfinished(found: SingleJob, body: ResponseBody, problem: ResponseProblem | None) -> Response:
    """Return a response without an answer."""
    job = found.job
    form = ResponsesFormat(body, is_stored=True)
    form.begin(AnswerFacts(RequestId(job.id), job.model or ModelName(""), int(job.created_at.timestamp())))
    status = "failed" if problem is not None else "cancelled" if job.cancelling_at is not None else _STATUSES[found.line.state]
    return msgspec.structs.replace(form.without_output(status), error=problem, id=job.public_id, background=True)
