"""Lets a replica answer the queries that are marked `-- replica`, while it is fresh enough. The mark chooses, not the caller.

Before each use, the replica says how far it has replayed the primary's log. It must have what the primary had DATABASE_READ_LAG_SECONDS
ago, and what the tenant has just written (see ``recent_writes``). Otherwise, and after any error, the primary answers.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self, TypeVar
from uuid import UUID

import asyncpg

from shared import errors
from shared.api.gateway import Check
from shared.stores import queries, replica_lag, transactions
from shared.stores.queries import NamedQuery
from shared.stores.replica_lag import ReplicaLag, ReplicaState, ServerPosition
from shared.stores.transactions import DatabaseReports, Took, Transaction

T = TypeVar("T")

_SQL = queries.load(Path(__file__).with_name("replica_reads.sql"))
_LOOK_EVERY_SECONDS = 1.0
_LOOK_SECONDS = 1.0
#: The share of a call's deadline after which the primary gets the rest.
_SHARE = 0.5
#: A healthy replica needs a few milliseconds for what was just written.
_PATIENCE_SECONDS = (0.01, 0.03, 0.1)
_FAILURES = (errors.Unavailable, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
#: Errors of one statement, such as a conflict with what the replica replays. They say nothing about the replica.
_OF_STATEMENT = (asyncpg.SerializationError, asyncpg.SyntaxOrAccessError, asyncpg.DataError, asyncpg.QueryCanceledError)


class WriteMarks(Protocol):
    """``shared.stores.recent_writes.RecentWrites``. Every method may raise Unavailable."""

    #: How long a write is remembered.
    seconds: float

    async def note(self, tenants: Iterable[UUID], position: int) -> None: ...

    async def find(self, tenant: UUID | None) -> int: ...


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """Where the replica is, and when it may answer."""

    url: str
    lag_seconds: float
    #: None if no caller reads what it has just written.
    writes: WriteMarks | None = None


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """What a database may have besides its pool."""

    replica: ReplicaPlan | None = None
    reports: DatabaseReports | None = None


#: Opens a connection for so many seconds.
Opening = Callable[[float], AbstractAsyncContextManager[asyncpg.Connection]]


class ReplicaReads:
    def __init__(self, plan: ReplicaPlan, primary: Opening, replica: Opening, reports: DatabaseReports | None) -> None:
        self._plan = plan
        self.primary = primary
        self._replica = replica
        self._reports = reports
        self._lag = ReplicaLag(plan.lag_seconds)
        self._state = ReplicaState.UNKNOWN
        #: Until then, Valkey may lack a write.
        self._distrusted_until = -math.inf

    async def watch(self) -> NoReturn:
        """Look at both servers once a second. Only this makes the replica used again after a failure."""
        while True:
            with contextlib.suppress(*_FAILURES):
                async with self.primary(_LOOK_SECONDS) as connection:
                    self._lag.note_primary(await _look(connection), _now())
            try:
                async with self._replica(_LOOK_SECONDS) as connection:
                    state = self._lag.judge(await _look(connection), _now())
            except _FAILURES:
                state = ReplicaState.AWAY
            self._set(state)
            if self._reports is not None:
                self._reports.lag(self._lag.seconds(_now()))
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    def check(self) -> Check:
        return Check("postgresql replica", self._state is ReplicaState.USED, replica_lag.DETAILS[self._state], needed=False)

    async def written(self, tenants: Iterable[UUID]) -> None:
        """Remember that what these tenants read has changed. Never raises Unavailable; then this process reads from the primary."""
        if self._plan.writes is None:
            return
        try:
            async with self.primary(_LOOK_SECONDS) as connection:
                position = await connection.fetchval(_SQL["written"].text)
            await self._plan.writes.note(set(tenants), position)
        except _FAILURES:
            self._distrust(self._plan.writes)

    async def enter(self, stack: AsyncExitStack, tenant: UUID | None, deadline_seconds: float) -> asyncpg.Connection | None:
        """Open a connection in ``stack`` if the replica may answer this tenant, or all tenants for None."""
        if self._state is not ReplicaState.USED:
            self._refused(self._state)
            return None
        try:
            async with asyncio.timeout(deadline_seconds * _SHARE), AsyncExitStack() as opened:
                written = await self._find_written(tenant)
                if written is None:
                    self._refused("own_write")
                    return None
                connection = await opened.enter_async_context(self._replica(deadline_seconds))
                if not await self._is_fresh(connection, written):
                    return None
                stack.push_async_exit(opened.pop_all())
        except _FAILURES as error:
            self.failed(error)
            return None
        if self._reports is not None:
            self._reports.read_from("replica")
        return connection

    def failed(self, error: Exception) -> None:
        """The primary answers now. ``watch`` tells when the replica may be used again."""
        self._refused("error")
        if not isinstance(error, _OF_STATEMENT):
            self._set(ReplicaState.AWAY)

    async def _is_fresh(self, connection: asyncpg.Connection, written: int) -> bool:
        for pause in (*_PATIENCE_SECONDS, None):
            found = await _look(connection)
            state = self._lag.judge(found, _now())
            if state is not ReplicaState.USED:
                self._set(state)
                self._refused(state)
                return False
            if found.position >= written:
                return True
            if pause is not None:
                await asyncio.sleep(pause)
        self._refused("own_write")
        return False

    async def _find_written(self, tenant: UUID | None) -> int | None:
        """Return None if it is unknown."""
        writes = self._plan.writes
        if writes is None:
            return 0
        if _now() < self._distrusted_until:
            return None
        try:
            return await writes.find(tenant)
        except errors.Unavailable:
            self._distrust(writes)
            return None

    def _distrust(self, writes: WriteMarks) -> None:
        self._distrusted_until = _now() + writes.seconds

    def _refused(self, reason: str) -> None:
        if self._reports is not None:
            self._reports.read_from(f"primary_{reason}")

    def _set(self, state: ReplicaState) -> None:
        if state is not self._state:
            self._state = state
            if self._reports is not None:
                self._reports.changed(state, replica_lag.DETAILS[state])


class ChosenTransaction(Transaction):
    """A transaction whose first query chooses the server. If the replica fails, it continues at the primary with the same settings: both
    show each statement what is committed, and the primary shows more. Use it as a context manager."""

    def __init__(
        self, replica: ReplicaReads, named: dict[str, NamedQuery], took: Took | None, tenant: UUID | None, deadline_seconds: float
    ) -> None:
        super().__init__(None, named, took)
        self._replica = replica
        self._tenant = tenant
        self._deadline_seconds = deadline_seconds
        self._stack = AsyncExitStack()
        self._is_at_replica = False
        self._settings: list[tuple[str, tuple[object, ...]]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._stack.__aexit__(*error)
        except _FAILURES as failure:
            # What was read is true, even if the replica does not confirm the end.
            if error[1] is not None or not self._is_at_replica:
                raise
            self._replica.failed(failure)

    async def _send(self, query: str, args: tuple[object, ...], send: Callable[..., Awaitable[T]]) -> T:
        named = self._queries[query]
        if self._connection is None:
            self._is_at_replica = named.on_replica and await self._begin_at_replica()
            if not self._is_at_replica:
                await self._begin_at_primary()
        if self._is_at_replica:
            if not named.on_replica:
                raise RuntimeError(f"{query} is not marked `-- replica`, but its transaction began with a query that is")
            try:
                async with asyncio.timeout(self._deadline_seconds * _SHARE):
                    answer = await self._timed(send(self._connection, named.text, *args))
            except _FAILURES as error:
                await self._leave_replica(error)
            else:
                if named.only_sets:
                    self._settings.append((named.text, args))
                return answer
        return await self._timed(send(self._connection, named.text, *args))

    async def _begin_at_replica(self) -> bool:
        connection = await self._replica.enter(self._stack, self._tenant, self._deadline_seconds)
        if connection is None:
            return False
        try:
            async with asyncio.timeout(self._deadline_seconds * _SHARE):
                await self._begin(connection)
        except _FAILURES as error:
            await self._close_replica(error)
            return False
        return True

    async def _begin_at_primary(self) -> None:
        await self._begin(await self._stack.enter_async_context(self._replica.primary(self._deadline_seconds)))

    async def _begin(self, connection: asyncpg.Connection) -> None:
        await self._stack.enter_async_context(connection.transaction())
        await transactions.bind(connection, self._tenant)
        self._connection = connection

    async def _leave_replica(self, error: Exception) -> None:
        await self._close_replica(error)
        self._is_at_replica = False
        await self._begin_at_primary()
        assert self._connection is not None
        for text, args in self._settings:
            await self._connection.execute(text, *args)

    async def _close_replica(self, error: Exception) -> None:
        stack, self._stack = self._stack, AsyncExitStack()
        with contextlib.suppress(*_FAILURES):
            await stack.__aexit__(type(error), error, error.__traceback__)
        self._replica.failed(error)


async def _look(connection: asyncpg.Connection) -> ServerPosition:
    found = await connection.fetchrow(_SQL["look"].text, timeout=_LOOK_SECONDS)
    return ServerPosition(found["is_standby"], found["system"], found["position"])


def _now() -> float:
    return asyncio.get_running_loop().time()
