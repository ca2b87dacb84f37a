"""Read and write what the leader of the metrics services saves for the next one. The lock and the tables are in the schema `metrics`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import asyncpg

from shared import errors, features
from shared.stores import database

_POOL_SIZE: Final = 2

Database = database.Database
DatabaseRow = database.DatabaseRow
Leadership = database.Leadership


class State(StrEnum):
    """The rows of the table ``leader_state``. Features have their own."""

    #: Which process led last.
    LEADER = "leader"
    ALERTS = "alerts"
    #: The known workers.
    WORKERS = "workers"


@asynccontextmanager
async def open_database(url: str, *, migrate: bool) -> AsyncIterator[Database]:
    """Raises Unavailable if PostgreSQL is down for 30 s, and BadSettings if it denies access."""
    try:
        async with Database.open(
            url,
            schema="metrics",
            package=Path(__file__).parent,
            more_queries=features.files("metrics.sql"),
            pool_size=_POOL_SIZE,
            migrate=migrate,
        ) as opened:
            yield opened
    except asyncpg.PostgresError as error:
        hint = "DATABASE_URL or METRICS_DATABASE_URL must name a role that may create the schema `metrics`"
        raise errors.BadSettings(f"PostgreSQL denies access to the leader's state: {error}", hint=hint) from error


async def read(opened: Database, name: str, since: float = 0.0) -> bytes | None:
    """Return None if it is missing or older than ``since``."""
    row = await opened.row("read_state", name)
    return row["body"] if row is not None and row["at"].timestamp() >= since else None


async def write(session: Leadership, name: str, body: bytes, now: float) -> None:
    """Raises Unavailable, also if another replica leads now."""
    async with session.transaction() as transaction:
        await transaction.run("write_state", name, moment_of(now), body)


def moment_of(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
