"""Reads the request log, and stores feedback. Every method may raise Unavailable."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from shared.api.usage_report import GetUsageReport, ListRequests, LoggedRequest, UsageBucket, UsageOfKey, UsageOfModel, UsageSum
from shared.stores import database
from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, TenantId, UserId

_FIRST = UUID(int=0)
#: A report on a busy year sorts a million response times.
_REPORT_SECONDS = 20.0
#: PostgreSQL's resolution of times, and more requests than one tenant has in one microsecond.
_NEXT_MOMENT, _MOST_AT_ONCE = timedelta(microseconds=1), 1000


@dataclass(frozen=True, slots=True)
class Sums:
    """A report as PostgreSQL returns it: without empty buckets."""

    total: UsageSum
    buckets: tuple[UsageBucket, ...]
    models: tuple[UsageOfModel, ...]
    keys: tuple[UsageOfKey, ...]


class UsageStore:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def sums(self, tenant: TenantId | None, query: GetUsageReport) -> Sums:
        """Sum up one tenant's usage, or everybody's for None."""
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
                of_that_time = await newest(last + _NEXT_MOMENT, _MOST_AT_ONCE)
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
            return bool(await transaction.run("rate_request", request, tenant, user, rating))

    async def unrate(self, tenant: TenantId, user: UserId, request: RequestId) -> None:
        async with self._database.bound(tenant) as transaction:
            await transaction.run("unrate_request", request, tenant, user)

    async def delete_old(self, days: int, most: int) -> int:
        """Delete old rows in partitions that can't be dropped; return their number."""
        deleted: int = await self._database.value("end_old_requests", days, most, deadline_seconds=30)
        return deleted + await self._database.run("end_old_feedback", days, most, deadline_seconds=30)


async def _sums(transaction: database.Transaction, time: tuple[TenantId | None, datetime, datetime], query: GetUsageReport) -> Sums:
    pieces = await transaction.rows("sum_time", *time, query.bucket.value)
    groups = await transaction.rows("sum_groups", *time)
    thumbs = {row["model"]: row for row in await transaction.rows("sum_feedback", *time)}
    total = next((_sum(row) for row in groups if not row["is_model"] and not row["is_key"]), UsageSum())
    models = (row for row in groups if row["is_model"] and row["model_used"] is not None)
    return Sums(
        total,
        tuple(UsageBucket(row["at"].replace(tzinfo=UTC), _sum(row)) for row in pieces),
        tuple(_of_model(row, thumbs.get(row["model_used"])) for row in models),
        tuple(UsageOfKey(_key(row["api_key_id"]), _sum(row)) for row in groups if row["is_key"]),
    )


def _of_model(row: database.DatabaseRow, thumbs: database.DatabaseRow | None) -> UsageOfModel:
    up, down = (0, 0) if thumbs is None else (thumbs["up"], thumbs["down"])
    return UsageOfModel(ModelName(row["model_used"]), _sum(row), up, down)


def _sum(row: database.DatabaseRow) -> UsageSum:
    return UsageSum(
        requests=row["requests"],
        errors=row["errors"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        cost_micro=MicroCredits(row["cost_micro"]),
        cached=row["cached"],
        p50_ms=row["p50_ms"],
        p95_ms=row["p95_ms"],
    )


def _logged(row: database.DatabaseRow) -> LoggedRequest:
    return LoggedRequest(
        id=RequestId(row["id"]),
        created_at=row["created_at"],
        user_id=UserId(row["user_id"]),
        key_id=_key(row["api_key_id"]),
        model=None if row["model_used"] is None else ModelName(row["model_used"]),
        status=RequestStatus(row["status"]),
        error_code=row["error_code"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        response_time_ms=row["response_time_ms"],
        cost_micro=MicroCredits(row["cost_micro"]),
        cached=row["cached"],
        rating=row["rating"],
    )


def _key(found: UUID | None) -> KeyId | None:
    return None if found is None else KeyId(found)


def last_of(rows: Sequence[LoggedRequest]) -> tuple[datetime, RequestId]:
    """Return where the next page starts."""
    return rows[-1].created_at, rows[-1].id
