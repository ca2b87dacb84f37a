"""Reads and writes request_logs and usage_stats."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from services.gateway.billing import request_record
from services.gateway.billing.request_record import RequestRow
from services.gateway.billing.usage_recorder import RowsRefused
from shared.api.gateway import Check
from shared.api.usage_report import DailyUsage, UserUsage
from shared.stores import database
from shared.types import TenantId, UserId


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[database.Database]:
    """Open the gateway's database for all of its stores."""
    async with database.Database.open(url, schema="gateway", package=Path(__file__).parent) as gateway_database:
        yield gateway_database


class GatewayStore:
    """Access to requests and usage. Every method may raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def write_requests(self, rows: Sequence[RequestRow]) -> None:
        """Write all rows or none; writing a row again changes nothing. Raises RowsRefused, too."""
        columns = zip(*(_columns(row) for row in rows), strict=True)
        try:
            await self._database.run("write_requests", *columns)
        except database.Refusal as error:
            # Without the error's text, which may quote the row.
            raise RowsRefused(f"{type(error).__name__} ({getattr(error, 'sqlstate', None) or 'of the driver'})") from error

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

    async def check(self) -> Check:
        return await self._database.check()


def _columns(row: RequestRow) -> tuple[object, ...]:
    return (
        row.id,
        row.user_id,
        row.api_key_id,
        row.prompt_hash,
        row.model_used,
        row.response_time_ms,
        row.prompt_tokens,
        row.completion_tokens,
        row.status.value,
        row.error_code,
        row.created_at,
        row.cost_micro,
        row.reservation.value,
        row.cached,
        row.tenant_id,
        row.worker_owner,
        msgspec.json.encode(dict(row.worker_labels)).decode(),
        row.begins_conversation,
        row.saved_micro,
        *request_record.route_columns(row.route),
    )
