"""Runs named queries on one connection."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

import asyncpg

from shared.stores import queries
from shared.stores.queries import NamedQuery

T = TypeVar("T")

_SQL = queries.load(Path(__file__).with_name("transactions.sql"))
#: Gets the seconds that a statement took.
Took = Callable[[float], None]


class DatabaseRow(Protocol):
    """A result row, read by column name."""

    def __getitem__(self, column: str) -> Any: ...


class DatabaseReports(Protocol):
    """What is measured of a database."""

    def took(self, seconds: float) -> None:
        """A statement took so long."""

    def pool(self, read: Callable[[], tuple[int, int, int]]) -> None:
        """``read`` returns how many connections are used and open, and may be open."""

    def size(self, schema: str, stored_bytes: int | None) -> None:
        """The tables and indexes of the schema take so much of the disk; None while PostgreSQL does not tell."""

    def changed(self, state: str, detail: str) -> None:
        """The replica's state; ``detail`` is empty if it answers."""

    def read_from(self, server: str) -> None:
        """A marked query was answered by ``server``: replica, or primary with the reason."""

    def lag(self, seconds: float) -> None:
        """The replica is behind by this at most."""


class Transaction:
    """Queries in one transaction, created by ``Database.transaction``."""

    def __init__(self, connection: asyncpg.Connection | None, named: dict[str, NamedQuery], took: Took | None = None) -> None:
        self._connection = connection
        self._queries = named
        self._took = took

    async def row(self, query: str, *args: object) -> DatabaseRow | None:
        found: DatabaseRow | None = await self._send(query, args, asyncpg.Connection.fetchrow)
        return found

    async def rows(self, query: str, *args: object) -> list[DatabaseRow]:
        return list(await self._send(query, args, asyncpg.Connection.fetch))

    async def value(self, query: str, *args: object) -> Any:
        return await self._send(query, args, asyncpg.Connection.fetchval)

    async def run(self, query: str, *args: object) -> int:
        """Return the number of changed rows."""
        return _affected(await self._send(query, args, asyncpg.Connection.execute))

    async def _send(self, query: str, args: tuple[object, ...], send: Callable[..., Awaitable[T]]) -> T:
        assert self._connection is not None
        return await self._timed(send(self._connection, self._queries[query].text, *args))

    async def _timed(self, answer: Awaitable[T]) -> T:
        if self._took is None:
            return await answer
        began = time.perf_counter()
        try:
            return await answer
        finally:
            self._took(time.perf_counter() - began)


async def bind(connection: asyncpg.Connection, tenant: UUID | None) -> None:
    """Show only one tenant's rows in this transaction; None: those of all tenants."""
    if tenant is not None:
        await connection.execute(_SQL["bind"].text, str(tenant))


def _affected(status: str) -> int:
    """Parse ``INSERT 0 3`` or ``UPDATE 3`` to 3; 0 for statements without a count."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdecimal() else 0
