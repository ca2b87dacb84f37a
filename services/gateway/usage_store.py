"""Reads the request log and the sums of days, and stores feedback. Every method may raise Unavailable."""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from shared.api.business import MAX_ROWS, ActiveUsers, BusinessReport, BusinessRow, BusinessSum, GetBusinessReport
from shared.api.usage_report import (
    GetUsageReport,
    ListRequests,
    LoggedRequest,
    UsageBucket,
    UsageOfKey,
    UsageOfModel,
    UsageSum,
    UsageSummary,
)
from shared.stores import database
from shared.types import MicroCredits, ModelName, RequestId, RequestStatus, TenantId, UserId

_FIRST = UUID(int=0)
#: A report on a busy year sorts a million response times.
_REPORT_SECONDS = 20.0
#: Enough for a million requests.
_ROLL_SECONDS = 55.0
#: PostgreSQL's resolution of times, and more requests than one tenant has in one microsecond.
_NEXT_MOMENT, _MAX_AT_ONCE = timedelta(microseconds=1), 1000


class UsageStore:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def sums(self, tenant: TenantId | None, query: GetUsageReport) -> UsageSummary:
        """Sum up one tenant's usage, or all tenants' for None, without empty buckets."""
        time = tenant, query.since, query.until
        if tenant is None:
            async with self._database.transaction(deadline_seconds=_REPORT_SECONDS) as transaction:
                return await _sums(transaction, time, query)
        async with self._database.bound(tenant, deadline_seconds=_REPORT_SECONDS) as transaction:
            return await _sums(transaction, time, query)

    async def requests(self, tenant: TenantId, query: ListRequests) -> tuple[LoggedRequest, ...]:
        """Return the newest requests, and all of the last one's moment, so that paging with ``before`` misses none."""
        status = None if query.status is None else query.status.value

        async def newest(before: datetime | None, most: int) -> list[database.DatabaseRow]:
            return await transaction.rows("list_requests", tenant, before, status, query.model, query.key_id, most)

        async with self._database.bound(tenant) as transaction:
            await transaction.run("plan_pages")
            found = await newest(query.before, query.limit + 1)
            page, behind = found[: query.limit], found[query.limit :]
            if behind and behind[0]["created_at"] == page[-1]["created_at"]:
                last = page[-1]["created_at"]
                of_that_time = await newest(last + _NEXT_MOMENT, _MAX_AT_ONCE)
                page = [row for row in page if row["created_at"] != last] + [row for row in of_that_time if row["created_at"] == last]
        return tuple(_logged(row) for row in page)

    async def requests_after(self, tenant: TenantId, at: datetime, last: RequestId | None, most: int) -> tuple[LoggedRequest, ...]:
        """Return the next requests, oldest first."""
        async with self._database.bound(tenant) as transaction:
            await transaction.run("plan_pages")
            found = await transaction.rows("export_requests", tenant, at, last or _FIRST, most)
        return tuple(_logged(row) for row in found)

    async def rate(self, tenant: TenantId, user: UserId, request: RequestId, rating: int) -> bool:
        """Rate an answer; return False if this user has no such request that delivered something."""
        async with self._database.bound(tenant) as transaction:
            await transaction.run("judge_rating", request, tenant, user, rating)
            rated = bool(await transaction.run("rate_request", request, tenant, user, rating))
        await self._database.written(tenant)
        return rated

    async def unrate(self, tenant: TenantId, user: UserId, request: RequestId) -> None:
        async with self._database.bound(tenant) as transaction:
            await transaction.run("unrate_request", request, tenant, user)
        await self._database.written(tenant)

    async def delete_old(self, days: int, most: int) -> int:
        """Delete old rows in partitions that can't be dropped; return their number."""
        deleted: int = await self._database.value("end_old_requests", days, most, deadline_seconds=30)
        return deleted + await self._database.run("end_old_feedback", days, most, deadline_seconds=30)


async def _sums(transaction: database.Transaction, time: tuple[TenantId | None, datetime, datetime], query: GetUsageReport) -> UsageSummary:
    pieces = await transaction.rows("sum_time", *time, query.bucket.value)
    groups = await transaction.rows("sum_groups", *time)
    thumbs = {row["model"]: row for row in await transaction.rows("sum_feedback", *time)}
    total = next((_sum(row) for row in groups if not row["is_model"] and not row["is_key"]), UsageSum())
    models = (row for row in groups if row["is_model"] and row["model_used"] is not None and row["requests"])
    return UsageSummary(
        total,
        tuple(UsageBucket(row["at"].replace(tzinfo=UTC), _sum(row)) for row in pieces),
        tuple(_of_model(row, thumbs.get(row["model_used"])) for row in models),
        tuple(UsageOfKey(row["api_key_id"], _sum(row)) for row in groups if row["is_key"] and row["requests"]),
    )


def _of_model(row: database.DatabaseRow, thumbs: database.DatabaseRow | None) -> UsageOfModel:
    up, down = (0, 0) if thumbs is None else (thumbs["up"], thumbs["down"])
    return UsageOfModel(ModelName(row["model_used"]), _sum(row), up, down)


def _sum(row: database.DatabaseRow) -> UsageSum:
    return UsageSum(**{name: row[name] for name in UsageSum.__struct_fields__})


def _logged(row: database.DatabaseRow) -> LoggedRequest:
    renamed = {"key_id": row["api_key_id"], "model": row["model_used"], "status": RequestStatus(row["status"])}
    return LoggedRequest(**{name: row[name] for name in LoggedRequest.__struct_fields__ if name not in renamed}, **renamed)


class DaysStore:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def open_days(self) -> None:
        """Add every day since the last known one, including today, to the days to sum up."""
        await self._database.run("open_days")

    async def roll_one(self) -> date | None:
        """Sum up pieces until a day is complete; None if nothing is left, or other gateways are doing it."""
        while (piece := await self._roll_piece()) is not None:
            if piece["is_last"]:
                day: date = piece["day"]
                return day
        return None

    async def _roll_piece(self) -> database.DatabaseRow | None:
        """Sum up one piece. Nothing is counted twice: later requests add themselves (see migration 0014)."""
        async with self._database.transaction(deadline_seconds=_ROLL_SECONDS) as transaction:
            piece = await transaction.row("take_roll_piece")
            if piece is None:
                return None
            await transaction.run("roll_piece", piece["since"], piece["until"])
            if piece["is_last"]:
                await transaction.run("join_pieces", piece["day"])
            await transaction.run("end_piece", piece["day"], piece["until"], piece["is_last"])
        return piece

    async def compare_cost(self) -> float:
        """Return what the alert cost_anomaly watches; 0 until something is usual."""
        found: float = await self._database.value("compare_cost", deadline_seconds=_REPORT_SECONDS)
        return found

    async def sum_upstream(self) -> MicroCredits:
        """Return what providers have cost in this month."""
        return MicroCredits(await self._database.value("sum_upstream", deadline_seconds=_REPORT_SECONDS))

    async def close_days(self, days: int) -> None:
        """Freeze days whose rows may be deleted after ``days``: they are never summed up again."""
        await self._database.run("close_days", days)

    async def report(self, query: GetBusinessReport) -> BusinessReport:
        """Report on all tenants; a consistent snapshot except for refunds and active users."""
        async with self._database.transaction(deadline_seconds=_REPORT_SECONDS) as transaction:
            # One row is the total, and another tells whether there are more than MAX_ROWS.
            found = await transaction.rows("report_days", query.since, query.until, query.by.value, query.label, MAX_ROWS + 2)
            refunded = await transaction.value("sum_refunds", query.since, query.until)
            active = await transaction.row("count_active_users")
            repeated = await transaction.value("count_repeated", query.since, query.until) if query.counts_repeated else None
        assert active is not None  # an aggregate without GROUP BY always has one row
        total = next((_business_sum(row) for row in found if row["is_total"] and row["succeeded"] is not None), BusinessSum())
        rows = tuple(BusinessRow(row["name"], _business_sum(row)) for row in found if not row["is_total"])
        return BusinessReport(
            total=total,
            rows=rows[:MAX_ROWS],
            more=len(rows) > MAX_ROWS,
            given_back_micro=MicroCredits(refunded),
            active=ActiveUsers(hour=active["hour"], day=active["day"], week=active["week"], month=active["month"]),
            repeated=repeated,
        )


def _business_sum(row: database.DatabaseRow) -> BusinessSum:
    return BusinessSum(**{name: row[name] for name in BusinessSum.__struct_fields__})
