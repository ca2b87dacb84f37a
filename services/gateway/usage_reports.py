"""Serves usage reports, the request log and feedback, sums up days, and deletes old rows."""

from datetime import UTC, datetime, timedelta

import msgspec

from services.gateway.usage_store import DaysStore, UsageStore
from shared import access_table, errors
from shared.api import business, usage_report
from shared.api.auth import Principal
from shared.api.business import BusinessGrouping, GetBusinessReport
from shared.api.ledger import MICRO
from shared.api.method import Nothing
from shared.api.usage_report import Bucket, GetUsageReport, LoggedRequests, UsageBucket, UsageSum, UsageSummary
from shared.rpc import RpcCall, StreamCall, serves
from shared.telemetry import Metrics, logs
from shared.types import Permission, RequestId, TenantId

_STEP = {Bucket.MINUTE: timedelta(minutes=1), Bucket.HOUR: timedelta(hours=1), Bucket.DAY: timedelta(days=1)}
_EXPORTED_AT_ONCE = 500
_ENDED_AT_ONCE = 5000
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

_log, _report_log = logs.get(part="usage"), logs.get(part="reports")


class UsageReports:
    def __init__(self, store: UsageStore, *, request_log_days: int) -> None:
        self._store = store
        self._days = request_log_days

    @serves(usage_report.get_usage_report)
    async def get_usage_report(self, request: GetUsageReport, call: RpcCall) -> UsageSummary:
        starts = buckets(request)
        if request.everybody and not access_table.may(call.principal, Permission.EVERYTHING):
            raise errors.NotAllowed("only an administrator can see everybody's usage", hint="leave everybody out to see your own")
        sums = await self._store.sums(None if request.everybody else _subject(call.principal, request.tenant_id), request)
        found = {bucket.at: bucket.sum for bucket in sums.buckets}
        all_buckets = tuple(UsageBucket(at, found.get(at, UsageSum())) for at in starts)
        return msgspec.structs.replace(sums, buckets=all_buckets)

    @serves(usage_report.list_requests)
    async def list_requests(self, request: usage_report.ListRequests, call: RpcCall) -> LoggedRequests:
        return LoggedRequests(await self.requests(call.principal, request))

    async def requests(self, caller: Principal, query: usage_report.ListRequests) -> tuple[usage_report.LoggedRequest, ...]:
        """List requests. Raises BadRequest for an invalid ``before``."""
        before = None if query.before is None else _moment("before", query.before)
        return await self._store.requests(_subject(caller, query.tenant_id), msgspec.structs.replace(query, before=before))

    @serves(usage_report.export_requests)
    async def export_requests(self, request: usage_report.ExportRequests, stream: StreamCall[LoggedRequests]) -> Nothing:
        since = _LONG_AGO if request.since is None else _moment("since", request.since)
        at, last, tenant = since, None, stream.principal.tenant_id
        while rows := await self._store.requests_after(tenant, at, last, _EXPORTED_AT_ONCE):
            await stream.send(LoggedRequests(rows))
            at, last = rows[-1].created_at, rows[-1].id
        return Nothing()

    @serves(usage_report.give_feedback)
    async def give_feedback(self, request: usage_report.GiveFeedback, call: RpcCall) -> Nothing:
        await self.rate(call.principal, request.request_id, request.rating)
        return Nothing()

    async def rate(self, caller: Principal, request: RequestId, rating: int) -> None:
        """Rate an answer, complete or not. Raises NotFound for a request that isn't the caller's, or that delivered nothing."""
        if rating == 0:
            await self._store.unrate(caller.tenant_id, caller.user_id, request)
        elif not await self._store.rate(caller.tenant_id, caller.user_id, request, rating):
            raise errors.NotFound("you have no answered request with this id", hint="find the id in the answer or the request log")

    async def delete_old(self) -> None:
        """Delete rows past their retention, a few thousand at a time. Raises Unavailable."""
        while deleted := await self._store.delete_old(self._days, _ENDED_AT_ONCE):
            _log.info("deleted old rows of the request log", rows=deleted, older_than_days=self._days)


def buckets(query: GetUsageReport) -> tuple[datetime, ...]:
    """Return the start of each bucket. Raises BadRequest for an invalid period, or one with too many buckets."""
    step, since, until = _STEP[query.bucket], _moment("since", query.since), _moment("until", query.until)
    if since >= until:
        raise errors.BadRequest("since and until must be times with a time zone, since before until")
    first = since.replace(second=0, microsecond=0)
    if query.bucket is not Bucket.MINUTE:
        first = first.replace(minute=0)
    if query.bucket is Bucket.DAY:
        first = first.replace(hour=0)
    number = -int((first - until) // step)
    if number > usage_report.MAX_BUCKETS:
        most = usage_report.MAX_BUCKETS
        raise errors.BadRequest(f"the period has {number} {query.bucket}s; the limit is {most}", hint="choose a shorter period")
    return tuple(first + step * position for position in range(number))


def _moment(field: str, at: datetime) -> datetime:
    if at.tzinfo is None:
        raise errors.BadRequest(f"{field} has no time zone", hint="write it like 2026-03-01T12:00:00Z")
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise errors.BadRequest(f"{field} is not between the years 1 and 9999", hint="write it like 2026-03-01T12:00:00Z") from error


def _subject(caller: Principal, tenant: TenantId | None) -> TenantId:
    if tenant is None or tenant == caller.tenant_id or access_table.may(caller, Permission.EVERYTHING):
        return tenant or caller.tenant_id
    raise errors.NotAllowed("this belongs to another tenant", hint="omit tenantId for your own; only an administrator can read others")


class BusinessReports:
    """Handlers of the report on all tenants' usage. Any number of gateways may sum up at the same time: each takes another day."""

    def __init__(self, store: DaysStore, *, request_log_days: int, upstream_monthly: float = 0.0) -> None:
        self._store = store
        self._days = request_log_days
        self._upstream_monthly = upstream_monthly

    @serves(business.get_business_report)
    async def get_business_report(self, request: GetBusinessReport, call: RpcCall) -> business.BusinessReport:
        check_period(request)
        return await self._store.report(request)

    async def roll(self, metrics: Metrics) -> None:
        """Sum up everything that is over, and compare its cost with the usual. Raises Unavailable."""
        await self._store.open_days()
        while (day := await self._store.roll_one()) is not None:
            _report_log.info("usage day summed up", day=day.isoformat())
        await self._store.close_days(self._days)
        metrics.cost_of_usual.set(await self._store.compare_cost())
        if self._upstream_monthly:
            metrics.upstream_of_month.set(await self._store.sum_upstream() / MICRO / self._upstream_monthly)


def check_period(query: GetBusinessReport) -> None:
    """Raise BadRequest for an invalid or too long period, and for a label without ``by``."""
    days = (query.until - query.since).days
    if days <= 0:
        raise errors.BadRequest("since must be before until", hint="until is the first day that is not included")
    if days > business.MAX_DAYS:
        raise errors.BadRequest(f"the period has {days} days; the limit is {business.MAX_DAYS}", hint="choose a shorter period")
    if query.label is not None and query.by is not BusinessGrouping.LABEL:
        raise errors.BadRequest("a label requires grouping by label", hint='leave it out, or set by to "label"')
