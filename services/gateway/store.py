"""Reads and writes request_logs and usage_stats."""

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path

import msgspec

from services.gateway.facts import request_record
from services.gateway.facts.request_record import RequestRow, RowsRefused
from shared import features
from shared.api.gateway import Check
from shared.api.usage_report import DailyUsage, UserUsage
from shared.background import deferred_rows
from shared.recovery import recovery_store
from shared.stores import database
from shared.types import MicroCredits, RequestId, TenantId, UserId

#: Opens the gateway's database for all of its stores.
opened = partial(
    database.Database.open,
    schema="gateway",
    package=Path(__file__).parent,
    more_queries=(recovery_store.QUERIES, deferred_rows.QUERIES, *features.files("gateway.sql")),
)


class GatewayStore:
    """Access to requests and usage. Every method may raise Unavailable."""

    def __init__(self, opened: database.Database, *, exports_usage: bool = False) -> None:
        self._database = opened
        self._exports_usage = exports_usage

    async def write_requests(self, rows: Sequence[RequestRow]) -> None:
        """Write all rows or none; writing a row again changes nothing. Raises RowsRefused, too."""
        try:
            if not any(row.guard for row in rows):
                await self._database.rows("write_requests", *self._columns_of(rows))
            else:
                async with self._database.transaction() as transaction:
                    await self.write_within(transaction, rows)
            await self._database.written(*(row.tenant_id for row in rows))
        except database.Refusal as error:
            # Without the error's text, which may quote the row.
            raise RowsRefused(f"{type(error).__name__} ({getattr(error, 'sqlstate', None) or 'of the driver'})") from error

    def _columns_of(self, rows: Sequence[RequestRow]) -> tuple[object, ...]:
        spent = [(row.id, one.route, one.target, one.micro) for row in rows for one in row.spending]
        return (
            *zip(*(_columns(row) for row in rows), strict=True),
            *(zip(*spent, strict=True) if spent else ((), (), (), ())),
            self._exports_usage,
            [row.is_batch for row in rows],
        )

    async def write_within(self, transaction: database.Transaction, rows: Sequence[RequestRow]) -> None:
        """Write rows together with what else the transaction writes."""
        written = {row["id"] for row in await transaction.rows("write_requests", *self._columns_of(rows))}
        found = [
            (row.created_at, row.tenant_id, row.api_key_id, str(one.kind), one.action.value, one.place.value, one.matches)
            for row in rows
            if row.id in written
            for one in row.guard
        ]
        if found:
            await transaction.rows("count_guard_matches", *zip(*found, strict=True))

    async def find_unknown(self, requests: Sequence[RequestId]) -> set[RequestId]:
        """Return those that this database has never seen."""
        return {RequestId(row["id"]) for row in await self._database.rows("find_unknown_requests", list(requests))}

    async def read_usage(self, tenant: TenantId) -> UserUsage:
        async with self._database.bound(tenant) as transaction:
            days = await transaction.rows("list_usage_days", tenant)
            total = await transaction.row("sum_usage", tenant)
        assert total is not None  # an aggregate without GROUP BY always has one row
        return UserUsage(
            user_id=UserId(tenant),
            request_count=total["request_count"],
            tokens_used=total["tokens_used"],
            days=tuple(
                DailyUsage(day["date"], day["api_key_id"], day["request_count"], day["tokens_used"], day["cost_micro"]) for day in days
            ),
            cost_micro=total["cost_micro"],
        )

    async def read_spending(self) -> dict[tuple[str, str], tuple[MicroCredits, MicroCredits]]:
        """Return what targets, by route and name, have cost upstream today, and what running requests hold."""
        rows = await self._database.rows("list_spending")
        return {(row["route"], row["target"]): (row["spent_micro"], row["reserved_micro"]) for row in rows}

    async def checks(self) -> tuple[Check, ...]:
        return await self._database.check(), *self._database.check_replica()


#: The columns of a row before its labels and route, and after them.
_BEFORE = attrgetter(
    *("id", "user_id", "api_key_id", "prompt_hash", "model_used", "response_time_ms", "prompt_tokens", "completion_tokens"),
    *("status.value", "error_code", "created_at", "cost_micro", "reservation.value", "cached", "tenant_id", "worker_owner"),
)
_AFTER = attrgetter("provider", "attempts", "upstream_micro", "avoided_micro", "first_token_ms", "variant_failed")


def _columns(row: RequestRow) -> tuple[object, ...]:
    labels, is_compared = msgspec.json.encode(dict(row.worker_labels)).decode(), row.route is not None and row.route.is_compared
    use = (labels, row.begins_conversation, row.saved_micro, *request_record.route_columns(row.route))
    rest = (is_compared, row.is_counted_late, row.error_field, row.ignored_fields, row.covered_tokens, row.plan, row.job_id)
    return (*_BEFORE(row), *use, *_AFTER(row), *rest)
