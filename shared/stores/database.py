"""PostgreSQL: a pool, named queries, transactions and notifications, each with a deadline. Only stores import this.

Errors of a statement (such as a unique violation) pass through for the store to handle. If PostgreSQL does not answer or accepts no
writes, calls raise ``errors.Unavailable``. After a restart, the first call that succeeds uses the server again. Connections to a
read-only server are closed, because the same address may lead to a new primary by now.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import asyncpg

from shared import errors
from shared.api.gateway import Check
from shared.stores import migrations, queries, server_sessions, transactions
from shared.stores.replica_reads import ChosenTransaction, DatabaseOptions, ReplicaReads
from shared.stores.server_sessions import ServerPlace
from shared.stores.transactions import DatabaseReports
from shared.timing.backoff import Backoff

T = TypeVar("T")

DatabaseRow = transactions.DatabaseRow
Transaction = transactions.Transaction

UniqueViolation = asyncpg.UniqueViolationError
#: Any other error of PostgreSQL or its driver about a statement.
Refusal = (asyncpg.PostgresError, asyncpg.InterfaceError)

NO_DATABASE = "PostgreSQL does not answer"
_OPEN_SECONDS = 30
_RECONNECT_BACKOFF = Backoff(first_seconds=0.05, longest_seconds=1.0)
#: Rewriting a large table takes long, as does waiting for another process that does it.
_MIGRATION_SECONDS = 3600
#: The server ends a leader's idle session after this time, so a leader that hangs or is cut off loses its lock.
_LEASE = "SELECT set_config('idle_session_timeout', $1, false)"
_LEASE_SECONDS = 20
_TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('aimesh.leader.' || current_schema() || '.' || $1, 0))"
#: "on" for a standby, and if an administrator or provider has set it.
_ONLY_READS = "SELECT current_setting('transaction_read_only')"
_CONNECTIONS = "SELECT (SELECT sum(numbackends) FROM pg_stat_database) AS used, current_setting('max_connections') AS most"
#: Reads no rows, only the lengths of files. It waits for a table that is being rebuilt, until its deadline.
_SIZE = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'm')
"""
_SIZE_SECONDS = 5.0
_SIZE_EVERY_SECONDS = 300.0
#: Unread notifications. When the queue is full they are dropped, and the reader learns that it missed some.
_UNREAD_NOTIFICATIONS = 1000
#: ``shared.node`` allows 2 s for all checks of a service together. If PostgreSQL hangs, closing the connection takes 0.5 s more.
_CHECK_SECONDS = 1.0
_LISTEN_SECONDS = 5.0
#: How often to check that an idle listening connection is alive: a host that vanished does not close it.
_LISTEN_CHECK_SECONDS = 15

#: PostgreSQL is unreachable, starting or stopping, out of disk or connections, or read-only.
_GONE = (
    OSError,  # includes TimeoutError
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
)
#: What the driver raises if a connection dies in the middle of something, and for mistakes of ours.
_LOST_ITS_PLACE = (asyncpg.InterfaceError, asyncpg.InternalClientError)
#: PostgreSQL rolled back and the call may be repeated: a deadlock, or a conflict on a standby.
_UNDONE = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_UNDONE_TRIES = 3


_NO_OPTIONS = DatabaseOptions()


class _Signal(Enum):
    """What a listener may get instead of a payload."""

    MISSED = "missed"
    CLOSED = "closed"


class Leadership:
    """A session that may hold an advisory lock, which is released when the session ends for any reason.

    The holder must call something at least every ``_LEASE_SECONDS``. Created by ``Database.leadership``; do not use it after Unavailable.
    """

    def __init__(self, connection: asyncpg.Connection, named: dict[str, queries.NamedQuery], lock: str) -> None:
        self._connection = connection
        self._queries = named
        self._lock = lock
        self.is_held = False

    async def take(self) -> bool:
        """Return whether this session holds the lock, acquiring it if possible. Raises Unavailable, also if PostgreSQL is read-only."""
        with _translated():
            async with asyncio.timeout(_CHECK_SECONDS):
                await _check_it_writes(self._connection)
                self.is_held = self.is_held or bool(await self._connection.fetchval(_TRY_LOCK, self._lock))
        return self.is_held

    @contextlib.asynccontextmanager
    async def transaction(self, *, deadline_seconds: float = 10) -> AsyncIterator[Transaction]:
        """Run a transaction in this session, so that it commits only if the lock is still held. Raises Unavailable."""
        with _translated():
            async with asyncio.timeout(deadline_seconds), self._connection.transaction():
                yield Transaction(self._connection, self._queries)


class Database:
    """The pool of one service for its own schema. Every method may raise ``errors.Unavailable``.

    A plain SELECT is sent again if its connection was dead; a write never is, since it may have happened. After a deadlock a query is sent
    again, but a transaction must be repeated by its caller.
    """

    def __init__(
        self, place: ServerPlace, pool: asyncpg.Pool, named: dict[str, queries.NamedQuery], reports: DatabaseReports | None = None
    ) -> None:
        self._place = place
        self._pool = pool
        self._queries = named
        self._replica: ReplicaReads | None = None
        self._took = None if reports is None else reports.took
        if reports is not None:
            reports.pool(lambda: (pool.get_size() - pool.get_idle_size(), pool.get_size(), pool.get_max_size()))

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        schema: str,
        package: Path,
        more_queries: Sequence[Path] = (),
        pool_size: int = 10,
        migrate: bool = True,
        options: DatabaseOptions = _NO_OPTIONS,
    ) -> AsyncIterator["Database"]:
        """Connect (for up to 30 s, with backoff), migrate, and load the queries of ``package`` and of the folders ``more_queries``. Without
        ``migrate`` it only checks that the schema is new enough. If the replica is down, the primary answers.

        Raises Unavailable if PostgreSQL stays down, and BadSettings if it refuses us or does not keep sessions, or a migration was edited.
        """
        place = ServerPlace(url, schema)
        named = queries.load_package(package, *more_queries)
        await _migrate(place, migrations.read_all(package / "migrations", schema), migrations.run if migrate else migrations.check)
        replica, reports = options.replica, options.reports
        async with contextlib.AsyncExitStack() as stack:
            found = cls(place, await stack.enter_async_context(_pool(place, pool_size)), named, reports)
            if replica is not None:
                of_replica = ServerPlace(server_sessions.standby_url(replica.url), schema)
                standby = cls(of_replica, await stack.enter_async_context(_pool(of_replica, pool_size)), named)
                found._replica = ReplicaReads(replica, found._connection, standby._connection, reports)
            watches = [] if reports is None else [found._watch_size(reports)]
            if found._replica is not None:
                watches.append(found._replica.watch())
            tasks = asyncio.TaskGroup()
            await tasks.__aenter__()
            # A callback, so that the TaskGroup does not wrap the block's own errors in an ExceptionGroup.
            stack.push_async_callback(tasks.__aexit__, None, None, None)
            for watch in watches:
                stack.callback(tasks.create_task(watch).cancel)
            yield found

    async def row(self, query: str, *args: object, deadline_seconds: float = 5) -> DatabaseRow | None:
        return await self._ask(query, deadline_seconds, lambda tx: tx.row(query, *args))

    async def rows(self, query: str, *args: object, deadline_seconds: float = 5) -> list[DatabaseRow]:
        return await self._ask(query, deadline_seconds, lambda tx: tx.rows(query, *args))

    async def value(self, query: str, *args: object, deadline_seconds: float = 5) -> Any:
        """Return the first column of the first row; None if there is no row."""
        return await self._ask(query, deadline_seconds, lambda tx: tx.value(query, *args))

    async def run(self, query: str, *args: object, deadline_seconds: float = 5) -> int:
        """Return the number of changed rows."""
        return await self._ask(query, deadline_seconds, lambda tx: tx.run(query, *args))

    def transaction(self, *, deadline_seconds: float = 10) -> AbstractAsyncContextManager[Transaction]:
        """Commit at the end of the block, or roll back on an exception. If the connection is lost at the commit, the outcome is unknown."""
        return self._begun(None, deadline_seconds)

    def bound(self, tenant: UUID, *, deadline_seconds: float = 10) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction that sees only one tenant's rows, whatever its queries ask for (row-level security). Two round trips more than
        ``row`` and ``rows``: for what users ask for, not for what every request needs."""
        return self._begun(tenant, deadline_seconds)

    @contextlib.asynccontextmanager
    async def _begun(self, tenant: UUID | None, deadline_seconds: float) -> AsyncIterator[Transaction]:
        if self._replica is not None:
            async with ChosenTransaction(self._replica, self._queries, self._took, tenant, deadline_seconds) as chosen:
                yield chosen
            return
        async with self._connection(deadline_seconds) as connection, connection.transaction():
            await transactions.bind(connection, tenant)
            yield Transaction(connection, self._queries, self._took)

    async def written(self, *tenants: UUID) -> None:
        """Call after a commit that changed what these tenants read by queries marked `-- replica`, before they are answered."""
        if self._replica is not None:
            await self._replica.written(tenants)

    def check_replica(self) -> tuple[Check, ...]:
        """Return whether the replica answers, for /dependencies; nothing without a replica."""
        return () if self._replica is None else (self._replica.check(),)

    @contextlib.asynccontextmanager
    async def leadership(self, lock: str) -> AsyncIterator[Leadership]:
        """Open a session for electing a leader among several processes."""
        with _translated():
            connection = await self._place.connect()
        try:
            with _translated():
                await connection.fetchval(_LEASE, f"{_LEASE_SECONDS}s", timeout=_CHECK_SECONDS)
            yield Leadership(connection, self._queries, lock)
        finally:
            connection.terminate()

    async def listen(self, channel: str) -> AsyncGenerator[str | None]:
        """Yield the payloads of a channel for ever, over a separate connection. Close it with ``contextlib.aclosing``.

        None means that listening has (re)started, or that notifications were missed: read the tables.
        """
        failures = 0
        while True:
            try:
                async with contextlib.aclosing(self._listen_once(channel)) as payloads:
                    async for payload in payloads:
                        failures = 0
                        yield payload
            except (*_GONE, *_LOST_ITS_PLACE):
                failures += 1
                await asyncio.sleep(_RECONNECT_BACKOFF.pause(failures))

    async def check(self) -> Check:
        """Return whether PostgreSQL answers and accepts writes, and its connections in use, before the caller's timeout."""
        try:
            async with self._connection(_CHECK_SECONDS) as connection:
                await _check_it_writes(connection)
                server = await connection.fetchrow(_CONNECTIONS)
        except errors.Unavailable as error:
            return Check("postgresql", ok=False, detail=f"{error.message} ({_reason(error.__cause__)}); {error.hint}")
        pool = f"{self._pool.get_size() - self._pool.get_idle_size()} of {self._pool.get_max_size()} by this service"
        return Check("postgresql", ok=True, detail=f"connections in use: {server['used']} of {server['most']}; {pool}")

    async def _watch_size(self, reports: DatabaseReports) -> NoReturn:
        while True:
            size = None
            with contextlib.suppress(errors.Unavailable, asyncpg.PostgresError, *_LOST_ITS_PLACE):
                async with self._connection(_SIZE_SECONDS) as connection:
                    size = await connection.fetchval(_SIZE)
            reports.size(self._place.schema, size)
            await asyncio.sleep(_SIZE_EVERY_SECONDS)

    async def _ask(self, query: str, deadline_seconds: float, ask: Callable[[Transaction], Awaitable[T]]) -> T:
        only_reads = self._queries[query].only_reads
        for attempt in itertools.count(1):
            try:
                if self._replica is not None and self._queries[query].on_replica:
                    async with self._begun(None, deadline_seconds) as chosen:
                        return await ask(chosen)
                async with self._connection(deadline_seconds) as connection:
                    return await ask(Transaction(connection, self._queries, self._took))
            except errors.Unavailable as error:
                if not _may_be_repeated(error.__cause__, attempt, only_reads=only_reads):
                    raise
        raise AssertionError("the last attempt returns or raises")

    @contextlib.asynccontextmanager
    async def _connection(self, deadline_seconds: float) -> AsyncIterator[asyncpg.Connection]:
        cancels = _count_cancels()
        try:
            async with asyncio.timeout(deadline_seconds):
                connection = await self._acquire()
                try:
                    yield connection
                except (asyncpg.InterfaceError, AttributeError) as error:
                    # Usually a mistake of ours, such as a wrong number of arguments, but a dead connection raises them too: the second one
                    # if it is closed between two steps of a statement.
                    if not _is_dead(connection):
                        raise
                    raise ConnectionResetError(str(error)) from error
                except asyncpg.InternalClientError as error:
                    # The driver lost its place, for example when the server's goodbye crosses our next statement.
                    connection.terminate()
                    raise ConnectionResetError(str(error)) from error
                finally:
                    # A second cancellation does not stop it. The pool shields it, too, but then logs the error for which nobody waits.
                    await asyncio.shield(_return(self._pool, connection))
        except _UNDONE as error:
            if isinstance(error, asyncpg.SerializationError):
                # At our isolation level only a standby raises this. The next connection may reach the primary.
                await self._pool.expire_connections()
            raise errors.Unavailable("two calls needed the same rows at once", hint="try again", retry_after_seconds=0.1) from error
        except _GONE as error:
            if _count_cancels() > cancels:
                # The error, for example of a rollback, has replaced the cancellation, and the task would continue.
                raise asyncio.CancelledError from error
            if not isinstance(error, TimeoutError):
                # If one connection died, the idle ones probably have too. The next caller gets a new one.
                await self._pool.expire_connections()
            raise _unavailable(error) from error

    async def _acquire(self) -> asyncpg.Connection:
        try:
            return await self._pool.acquire()
        except _LOST_ITS_PLACE as error:
            raise ConnectionResetError(str(error)) from error

    async def _listen_once(self, channel: str) -> AsyncGenerator[str | None]:
        connection = await self._place.connect()
        unread: asyncio.Queue[str | _Signal] = asyncio.Queue(_UNREAD_NOTIFICATIONS)

        def arrived(what: str | _Signal) -> None:
            if unread.full():
                while not unread.empty():
                    unread.get_nowait()
                unread.put_nowait(_Signal.MISSED)
            unread.put_nowait(what)

        try:
            connection.add_termination_listener(lambda _connection: arrived(_Signal.CLOSED))
            async with asyncio.timeout(_LISTEN_SECONDS):
                await connection.add_listener(channel, lambda _connection, _pid, _channel, payload: arrived(payload))
            yield None
            while True:
                try:
                    # Not wait_for: in Python 3.11 it loses a cancellation that arrives together with the result.
                    async with asyncio.timeout(_LISTEN_CHECK_SECONDS):
                        what = await unread.get()
                except TimeoutError:
                    # A primary that became a standby does not notify.
                    await _check_it_writes(connection)
                    continue
                if what is _Signal.CLOSED:
                    return
                yield None if what is _Signal.MISSED else what
        finally:
            connection.terminate()


def _count_cancels() -> int:
    """Return how often this task was canceled. Cancellations by ``asyncio.timeout`` do not count once it is over."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _may_be_repeated(cause: BaseException | None, attempt: int, *, only_reads: bool) -> bool:
    if isinstance(cause, _UNDONE):
        return attempt < _UNDONE_TRIES
    return only_reads and attempt == 1 and not isinstance(cause, TimeoutError)


async def _return(pool: asyncpg.Pool, connection: asyncpg.Connection) -> None:
    """Wait for the server to confirm a canceled statement. If it does not, close the connection."""
    with contextlib.suppress(*_GONE, *_LOST_ITS_PLACE):
        await pool.release(connection, timeout=0.5)


def _is_dead(connection: asyncpg.Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool took it back when it died
        return True


async def _check_it_writes(connection: asyncpg.Connection) -> None:
    """Raises what a write would raise."""
    if await connection.fetchval(_ONLY_READS, timeout=2) == "on":
        raise asyncpg.ReadOnlySQLTransactionError("the server is a standby, or was set to read only")


@contextlib.asynccontextmanager
async def _pool(place: ServerPlace, size: int) -> AsyncIterator[asyncpg.Pool]:
    pool = asyncpg.create_pool(
        place.url, min_size=0, max_size=size, connect=lambda _url, **driver: place.connect(**driver), reset=_keep_session
    )
    async with pool:
        try:
            yield pool
        finally:
            # After the drain nothing should be running, and anything that does would make a graceful close wait for ever.
            pool.terminate()


async def _keep_session(_connection: asyncpg.Connection) -> None:
    """Does nothing: sessions are not changed outside transactions, so asyncpg's reset, one round trip per query, is not needed."""


async def _migrate(
    place: ServerPlace,
    known: list[migrations.Migration],
    work: Callable[[asyncpg.Connection, str, list[migrations.Migration]], Awaitable[object]],
) -> None:
    give_up_at = asyncio.get_running_loop().time() + _OPEN_SECONDS
    failures = 0
    while True:
        try:
            connection = await server_sessions.open_first(place)
            try:
                async with asyncio.timeout(_MIGRATION_SECONDS):
                    await work(connection, place.schema, known)
                return
            finally:
                connection.terminate()
        except (*_GONE, *_LOST_ITS_PLACE) as error:
            if asyncio.get_running_loop().time() > give_up_at:
                raise _unavailable(error) from error
            failures += 1
            await asyncio.sleep(_RECONNECT_BACKOFF.pause(failures))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translate the errors of a session outside the pool."""
    cancels = _count_cancels()
    try:
        yield
    except (*_GONE, *_LOST_ITS_PLACE, *_UNDONE) as error:
        if _count_cancels() > cancels:
            raise asyncio.CancelledError from error
        raise _unavailable(error) from error


def _unavailable(cause: Exception) -> errors.Unavailable:
    # The cause, which contains addresses, is not sent to callers.
    if isinstance(cause, asyncpg.ReadOnlySQLTransactionError):
        hint = "is it a standby, or read-only because its disk is full? DATABASE_URL must lead to the primary"
        return errors.Unavailable("PostgreSQL is read-only", hint=hint)
    if isinstance(cause, asyncpg.InsufficientResourcesError | asyncpg.PostgresSystemError):
        return errors.Unavailable("PostgreSQL is out of resources or cannot use its disk", hint="check its log, disk and max_connections")
    return errors.Unavailable(NO_DATABASE, hint="is it running, and is DATABASE_URL right?")


def _reason(cause: BaseException | None) -> str:
    return "no answer in time" if isinstance(cause, TimeoutError) else str(cause)
