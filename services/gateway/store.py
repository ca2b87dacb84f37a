"""The gateway's tables: request_logs and usage_stats. Only this module talks to PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shared import database
from shared.api.gateway import Check
from shared.api.usage import UsageDay, UserUsage
from shared.types import KeyId, ModelName, RequestId, RequestStatus, UserId


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """How one request ended."""

    id: RequestId
    user_id: UserId
    #: None for a request with an access token.
    api_key_id: KeyId | None
    #: None where it was refused before it had a prompt.
    prompt_hash: str | None
    #: After aliases; None where no worker was chosen.
    model_used: ModelName | None
    response_time_ms: int
    prompt_tokens: int
    completion_tokens: int
    status: RequestStatus
    #: None for success.
    error_code: str | None
    #: When it began.
    created_at: datetime

    @property
    def tokens_used(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Store:
    """Every method may raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Store"]:
        async with database.Database.open(url, schema="gateway", package=Path(__file__).parent) as opened:
            yield cls(opened)

    async def write_requests(self, rows: Sequence[RequestRow]) -> None:
        """All of them or none, in one statement; writing a row again changes nothing."""
        columns = zip(*(_columns(row) for row in rows), strict=True)
        await self._database.run("write_requests", *columns)

    async def read_usage(self, user_id: UserId) -> UserUsage:
        days = await self._database.rows("list_usage_days", user_id)
        total = await self._database.row("sum_usage", user_id)
        assert total is not None  # an aggregate without GROUP BY always has one row
        return UserUsage(
            user_id=user_id,
            request_count=total["request_count"],
            tokens_used=total["tokens_used"],
            days=tuple(UsageDay(day["date"], day["api_key_id"], day["request_count"], day["tokens_used"]) for day in days),
        )

    async def check(self) -> Check:
        return await self._database.check()


def _columns(row: RequestRow) -> tuple[object, ...]:
    """In the order of the query's parameters."""
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
    )
