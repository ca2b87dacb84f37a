"""Serves the /api routes for usage: by day, by request, remaining quota; and accepts feedback."""

from datetime import date, datetime
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from services.gateway.http_api import request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.limits import limit_rules
from services.gateway.limits.quotas import Quotas
from shared import amounts
from shared.api.auth import Principal
from shared.api.usage_report import ListRequests, LoggedRequest, UserUsage
from shared.types import KeyId, ModelName, RequestId, RequestStatus, TenantId, Tier, UserId


class UsageDayAnswer(msgspec.Struct, frozen=True):
    date: date
    api_key_id: KeyId | None
    request_count: int
    tokens_used: int


class UsageAnswer(msgspec.Struct, frozen=True):
    user_id: UserId
    request_count: int
    tokens_used: int
    #: Newest first; at most a year.
    days: tuple[UsageDayAnswer, ...]


class LimitAnswer(msgspec.Struct, frozen=True):
    """One limit and what is left of it."""

    #: user or key.
    scope: str
    #: requests_per_hour, requests_per_minute, tokens_per_minute or concurrency.
    kind: str
    limit: int
    remaining: int
    #: Until the limit is fully available again.
    resets_in_seconds: float


class QuotaAnswer(msgspec.Struct, frozen=True):
    user_id: UserId
    tier: Tier
    limit_per_hour: int
    used_this_hour: int
    remaining: int
    resets_in_seconds: float
    #: All limits that apply to the caller.
    limits: tuple[LimitAnswer, ...] = ()


class RequestsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Newest first; use ``before`` for the next page."""

    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    before: Annotated[datetime, Meta(tz=True)] | None = None
    status: RequestStatus | None = None
    model: ModelName | None = None


class RequestAnswer(msgspec.Struct, frozen=True):
    """A request without its prompt and answer, which aren't stored."""

    id: RequestId
    created_at: datetime
    api_key_id: KeyId | None
    model: ModelName | None
    status: RequestStatus
    error_code: str | None
    prompt_tokens: int
    completion_tokens: int
    response_time_ms: int
    #: In credits; a string, to keep it exact.
    cost: str
    cached: bool
    #: 1 or -1; null if not rated.
    rating: int | None


class RequestsAnswer(msgspec.Struct, frozen=True):
    requests: tuple[RequestAnswer, ...]


class FeedbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request_id: RequestId
    #: 1 or -1; 0 removes the rating.
    rating: Annotated[int, Meta(ge=-1, le=1)]


class Given(msgspec.Struct, frozen=True):
    rating: int


class UsageReader(Protocol):
    """See ``GatewayStore``."""

    async def read_usage(self, tenant: TenantId) -> UserUsage: ...


class Reports(Protocol):
    """See ``UsageReports``."""

    async def requests(self, caller: Principal, query: ListRequests) -> tuple[LoggedRequest, ...]: ...

    async def rate(self, caller: Principal, request: RequestId, rating: int) -> None: ...


class RestUsage:
    """Handlers for usage and feedback."""

    def __init__(self, usage: UsageReader, reports: Reports, quotas: Quotas) -> None:
        self._usage_of = usage.read_usage
        self._reports = reports
        self._quotas = quotas

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute(
                verb="GET", path="/api/usage", handler=self._usage, method="readUsage",
                summary="Get your usage by day", answer=UsageAnswer,
            ),
            HttpRoute(
                verb="GET", path="/api/quota", handler=self._quota, method="getUserQuota",
                summary="Get your remaining quota for this hour", answer=QuotaAnswer,
            ),
            HttpRoute(
                verb="GET", path="/api/requests", handler=self._requests, method="listRequests",
                summary="List your requests, without prompts and answers", query=RequestsQuery, answer=RequestsAnswer,
            ),
            HttpRoute(
                verb="POST", path="/api/feedback", handler=self._feedback, method="giveFeedback",
                summary="Rate an answer", body=FeedbackBody, answer=Given,
            ),
        )  # fmt: skip

    async def _usage(self, call: HttpCall) -> None:
        usage = await self._usage_of(call.caller.tenant_id)
        await call.answer(msgspec.convert(usage, UsageAnswer, from_attributes=True))

    async def _quota(self, call: HttpCall) -> None:
        allowances = await self._quotas.read(call.caller)
        hour, caller = limit_rules.hourly(allowances), call.caller
        limits = tuple(
            LimitAnswer(allowance.scope, allowance.kind, allowance.limit, allowance.remaining, allowance.resets_in_seconds)
            for allowance in allowances
        )
        await call.answer(QuotaAnswer(caller.user_id, caller.tier, hour.limit, hour.used, hour.remaining, hour.resets_in_seconds, limits))

    async def _requests(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, RequestsQuery)
        request_filter = ListRequests(status=query.status, model=query.model, before=query.before, limit=query.limit)
        found = await self._reports.requests(call.caller, request_filter)
        await call.answer(RequestsAnswer(tuple(_answer(request) for request in found)))

    async def _feedback(self, call: HttpCall) -> None:
        body = request_bodies.read_either_case(call.body, FeedbackBody)
        await self._reports.rate(call.caller, body.request_id, body.rating)
        await call.answer(Given(body.rating))


def _answer(request: LoggedRequest) -> RequestAnswer:
    return RequestAnswer(
        id=request.id,
        created_at=request.created_at,
        api_key_id=request.key_id,
        model=request.model,
        status=request.status,
        error_code=request.error_code,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.completion_tokens,
        response_time_ms=request.response_time_ms,
        cost=amounts.written(request.cost_micro),
        cached=request.cached,
        rating=request.rating,
    )
