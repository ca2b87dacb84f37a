"""Acts to fill a log with, and a superuser's connection to change it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.auth.audit.audit_store import AuditStore
from shared.api.audit import AuditedAct, AuditRow, Result
from shared.types import TenantId, UserId

BEGIN = datetime(2026, 2, 1, tzinfo=UTC)
ALICE = UserId(UUID(int=1))
TENANT = TenantId(UUID(int=7))


def act(number: int = 0, **changed: Any) -> AuditedAct:
    one = AuditedAct(
        at=BEGIN + timedelta(seconds=number),
        action="key.create",
        tenant_id=TENANT,
        actor=ALICE,
        target=f"key {number}",
        address="203.0.113.9",
        request_id=f"r{number}",
        details={"name": f"n{number}"},
    )
    return msgspec.structs.replace(one, **changed)


def refusal(number: int = 0, **changed: Any) -> AuditedAct:
    return act(number, **{"result": Result.REFUSED, "target": "", "details": {"why": "no"}, **changed})


async def fill(rows: AuditStore, *acts: AuditedAct) -> None:
    async with rows.transaction() as transaction:
        await rows.append(transaction, acts)


async def all_rows(rows: AuditStore, chain: str = str(TENANT)) -> list[AuditRow]:
    return [row async for page in rows.read_chain(chain) for row in page]


@asynccontextmanager
async def superuser(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection with every right, and with triggers turned off."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "auth", "session_replication_role": "replica"})
    try:
        yield connection
    finally:
        await connection.close()
