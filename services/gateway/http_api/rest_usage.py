"""Serves the /api routes for usage: by day, by request, remaining quota; and accepts feedback."""

from datetime import date, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from services.gateway.http_api import request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.limits import limit_rules
from services.gateway.limits.quotas import Quotas
from services.gateway.rpc_api.account_rpc import AccountRpc
from services.gateway.store import GatewayStore
from services.gateway.usage_reports import UsageReports
from shared import amounts, errors, plan_names
from shared.api.auth import Every, Principal
from shared.api.gateway import KeyBudget
from shared.api.ledger import Account, Allowance, renews_at
from shared.api.usage_report import ListRequests, LoggedRequest
from shared.types import KeyId, ModelName, Moment, PlanName, RequestId, RequestStatus, UserId


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
    #: A limit of a plan, such as requests_per_hour.
    kind: str
    limit: int
    remaining: int
    #: Until the limit is fully available again.
    resets_in_seconds: float


class CreditsAnswer(msgspec.Struct, frozen=True):
    """What the account can spend in money. Amounts are in credits; strings, to keep them exact."""

    #: What a new request may cost; for an account without a bound, balance - reserved.
    available: str
    #: Prepaid credits; below zero: owed.
    balance: str
    #: Held by running requests.
    reserved: str
    #: How far the balance may fall below zero; null without a bound.
    overage: str | None
    #: These three are for SDKs of release 0.3: credits that a tier included each month.
    renews_at: Moment
    included: str = "0"
    monthly: str | None = None

    @classmethod
    def of(cls, account: Account) -> "CreditsAnswer":
        left = account.balance_micro - account.reserved_micro
        return cls(
            available=amounts.written(left if account.free_micro is None else account.free_micro),
            balance=amounts.written(account.balance_micro),
            reserved=amounts.written(account.reserved_micro),
            overage=None if account.overage_micro is None else amounts.written(account.overage_micro),
            renews_at=renews_at(account),
            monthly=None if account.free_micro is None else "0",
        )


class AllowanceAnswer(msgspec.Struct, frozen=True):
    """The tokens that the plan includes in its present period."""

    #: null: as many as are used.
    included: int | None
    used: int
    #: Held by running requests.
    held: int
    #: The end of the period. Unused tokens are lost.
    renews_at: Moment

    @classmethod
    def of(cls, allowance: Allowance) -> "AllowanceAnswer":
        return cls(allowance.included, allowance.used, allowance.held, allowance.renews_at)


class BudgetAnswer(msgspec.Struct, frozen=True):
    """The budget of the calling key, in credits."""

    limit: str
    spent: str
    #: Held by running requests.
    reserved: str
    available: str
    #: When it is renewed: at the start of each UTC day, week or month; null: never.
    every: Every | None

    @classmethod
    def of(cls, budget: KeyBudget) -> "BudgetAnswer":
        micro = (budget.budget_micro, budget.spent_micro, budget.reserved_micro, budget.free_micro)
        limit, spent, reserved, free = map(amounts.written, micro)
        return cls(limit, spent, reserved, free, budget.every)


class QuotaAnswer(msgspec.Struct, frozen=True):
    user_id: UserId
    tier: PlanName
    limit_per_hour: int
    used_this_hour: int
    remaining: int
    resets_in_seconds: float
    #: All limits that apply to the caller.
    limits: tuple[LimitAnswer, ...] = ()
    #: null while PostgreSQL is down.
    credits: CreditsAnswer | None = None
    #: null without one, and for a login.
    budget: BudgetAnswer | None = None
    #: null while MONEY is off, and while PostgreSQL is down.
    allowance: AllowanceAnswer | None = None


class RequestsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Newest first; use ``before`` for the next page."""

    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    before: Annotated[datetime, Meta(tz=True)] | None = None
    status: RequestStatus | None = None
    model: ModelName | None = None


class RequestAnswer(msgspec.Struct, frozen=True):
    """A request without its prompt and answer, which aren't stored."""

    id: RequestId
    created_at: Moment
    api_key_id: KeyId | None
    model: ModelName | None
    status: RequestStatus
    error_code: str | None
    #: The path of the field that it was refused for.
    error_field: str | None
    #: The fields of its body, and the types of its tools, that had no effect.
    ignored_fields: str | None
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


class RestUsage:
    def __init__(self, store: GatewayStore, reports: UsageReports, quotas: Quotas, accounts: AccountRpc) -> None:
        self._store = store
        self._accounts = accounts
        self._reports = reports
        self._quotas = quotas

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("GET", "/api/usage", self._usage, "readUsage", "Get your usage by day", answer=UsageAnswer),
            HttpRoute("GET", "/api/quota", self._quota, "getUserQuota", "Get your remaining quota for this hour", answer=QuotaAnswer),
            HttpRoute("GET", "/api/requests", self._requests, "listRequests", "List your requests, without prompts and answers",
                      query=RequestsQuery, answer=RequestsAnswer),
            HttpRoute("POST", "/api/feedback", self._feedback, "giveFeedback", "Rate an answer", body=FeedbackBody, answer=Given),
        )  # fmt: skip

    async def _usage(self, call: HttpCall) -> None:
        usage = await self._store.read_usage(call.caller.tenant_id)
        await call.answer(msgspec.convert(usage, UsageAnswer, from_attributes=True))

    async def _quota(self, call: HttpCall) -> None:
        caller = call.caller
        states = await self._quotas.read(caller)
        hour = limit_rules.hourly(states)
        limits = tuple(msgspec.convert(state, LimitAnswer, from_attributes=True) for state in states)
        left = await self._read_credits(caller)
        await call.answer(
            QuotaAnswer(
                caller.user_id,
                plan_names.name_of(caller.tier),
                hour.limit,
                hour.used,
                hour.remaining,
                hour.resets_in_seconds,
                limits,
                *left,
            )
        )

    async def _read_credits(self, caller: Principal) -> tuple[CreditsAnswer | None, BudgetAnswer | None, AllowanceAnswer | None]:
        try:
            account, budget = await self._accounts.account_of(caller), await self._accounts.find_key_budget(caller)
        except errors.Unavailable:
            # The limits are counted in Valkey, so they are known without PostgreSQL.
            return None, None, None
        of_plan = None if account.allowance is None else AllowanceAnswer.of(account.allowance)
        return CreditsAnswer.of(account), None if budget is None else BudgetAnswer.of(budget), of_plan

    async def _requests(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, RequestsQuery)
        request_filter = ListRequests(status=query.status, model=query.model, before=query.before, limit=query.limit)
        found = await self._reports.requests(call.caller, request_filter)
        await call.answer(RequestsAnswer(tuple(_answer(request) for request in found)))

    async def _feedback(self, call: HttpCall) -> None:
        body = await call.read_fields(FeedbackBody)
        await self._reports.rate(call.caller, body.request_id, body.rating)
        await call.answer(Given(body.rating))


def _answer(request: LoggedRequest) -> RequestAnswer:
    written = {"api_key_id": request.key_id, "cost": amounts.written(request.cost_micro)}
    return msgspec.convert(msgspec.structs.asdict(request) | written, RequestAnswer)
