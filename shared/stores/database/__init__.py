"""PostgreSQL: a pool, named queries, transactions and notifications, each with a deadline. Only stores import this.

What PostgreSQL refuses (a unique violation) passes through for the store to translate; that it does not answer, or takes no
writes now, becomes ``errors.Unavailable``. A server that was restarted is used again by the first call after it accepts
connections, and one that only reads is left: behind the same address there may be another by now, which writes.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

import asyncpg

from shared import errors
from shared.api.gateway import Check
from shared.stores.database import migrations, queries, server_sessions
from shared.stores.database.server_sessions import ServerPlace
from shared.timing.backoff import Backoff

T = TypeVar("T")

UniqueViolation = asyncpg.UniqueViolationError
#: Whatever else PostgreSQL or its driver says to a statement that cannot be done.
Refusal = (asyncpg.PostgresError, asyncpg.InterfaceError)

_OPEN_SECONDS = 30
_RECONNECT_BACKOFF = Backoff(first_seconds=0.05, longest_seconds=1.0)
#: Rewriting a large table takes long, and waiting for another process that does so takes as long.
_MIGRATION_SECONDS = 3600
_BIND = "SELECT set_config('aimesh.tenant', $1, true)"
#: The server ends a leader's session that says nothing for so long: a leader that hangs, or whose host vanished, loses its lock.
_LEASE = "SELECT set_config('idle_session_timeout', $1, false)"
_LEASE_SECONDS = 20
_TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('aimesh.leader.' || current_schema() || '.' || $1, 0))"
#: "on" at a standby, and where an administrator or a provider has set it.
_ONLY_READS = "SELECT current_setting('transaction_read_only')"
#: Notifications that nobody has read yet. When it is full they are dropped and the reader learns that it missed some.
_UNREAD_NOTIFICATIONS = 1000
#: ``shared.node`` gives all checks of a service 2 s together. Where PostgreSQL hangs, letting go of the connection takes 0.5 s more.
_CHECK_SECONDS = 1.0
#: How often an idle listening connection is asked whether it still lives: a host that vanished sends no goodbye.
_LISTEN_CHECK_SECONDS = 15

#: PostgreSQL is not there, is starting or stopping, has no room for one more row or connection, cannot use its disk, or only reads.
_GONE = (
    OSError,  # TimeoutError is one
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
)
#: What the driver makes of a connection that died in the middle of something, or of a mistake of ours.
_LOST_ITS_PLACE = (asyncpg.InterfaceError, asyncpg.InternalClientError)
#: PostgreSQL has undone all of it, and it may be done again: two wanted each other's rows, or a standby had to get on.
_UNDONE = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_UNDONE_TRIES = 3


class _Instead(Enum):
    """What a listener may get instead of a payload."""

    MISSED = "missed"
    CLOSED = "closed"


class DatabaseRow(Protocol):
    """A row of an answer, read by column name."""

    def __getitem__(self, column: str) -> Any: ...


class Transaction:
    """Queries that all happen or none; made by ``Database.transaction``."""

    def __init__(self, connection: asyncpg.Connection, named: dict[str, queries.NamedQuery]) -> None:
        self._connection = connection
        self._queries = named

    async def row(self, query: str, *args: object) -> DatabaseRow | None:
        found: DatabaseRow | None = await self._connection.fetchrow(self._queries[query].text, *args)
        return found

    async def rows(self, query: str, *args: object) -> list[DatabaseRow]:
        return list(await self._connection.fetch(self._queries[query].text, *args))

    async def value(self, query: str, *args: object) -> Any:
        return await self._connection.fetchval(self._queries[query].text, *args)

    async def run(self, query: str, *args: object) -> int:
        """The number of rows that it changed."""
        return _affected(await self._connection.execute(self._queries[query].text, *args))


class Leadership:
    """A session of its own that may hold an advisory lock; the lock is free again when the session ends, whoever ends it.

    The holder has to call something at least every ``_LEASE_SECONDS``. Made by ``Database.leadership``; after Unavailable it is of no
    use any more.
    """

    def __init__(self, connection: asyncpg.Connection, named: dict[str, queries.NamedQuery], lock: str) -> None:
        self._connection = connection
        self._queries = named
        self._lock = lock
        self.is_held = False

    async def take(self) -> bool:
        """Whether this session holds the lock, now at the latest. Raises Unavailable, also where PostgreSQL takes no writes."""
        with _translated():
            async with asyncio.timeout(_CHECK_SECONDS):
                await _check_it_writes(self._connection)
                self.is_held = self.is_held or bool(await self._connection.fetchval(_TRY_LOCK, self._lock))
        return self.is_held

    @contextlib.asynccontextmanager
    async def transaction(self, *, deadline_seconds: float = 10) -> AsyncIterator[Transaction]:
        """In this session: what it commits was committed by the holder of the lock. Raises Unavailable."""
        with _translated():
            async with asyncio.timeout(deadline_seconds), self._connection.transaction():
                yield Transaction(self._connection, self._queries)


class Database:
    """The pool of one service for its own schema. Every method may raise ``errors.Unavailable``.

    A plain SELECT whose connection turns out to be dead is sent once more; a write never is, since it may have happened. What was
    undone because two waited for each other is sent again, but for a transaction's, which is its caller's to repeat.
    """

    def __init__(self, place: ServerPlace, pool: asyncpg.Pool, named: dict[str, queries.NamedQuery]) -> None:
        self._place = place
        self._pool = pool
        self._queries = named

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, *, schema: str, package: Path, pool_size: int = 10) -> AsyncIterator["Database"]:
        """Connect (for up to 30 s, with backoff), migrate, and load ``package``'s queries.

        Raises Unavailable if PostgreSQL does not come, and BadSettings if it refuses us, does not keep sessions, or a migration was edited.
        """
        place = ServerPlace(url, schema)
        named = queries.load_package(package)
        await _migrate(place, migrations.read(package / "migrations"))
        pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=pool_size,
            connect=lambda _url, **driver: place.connect(**driver),
            reset=_keep_session,
        )
        async with pool:
            try:
                yield cls(place, pool, named)
            finally:
                # Nothing is running any more after the drain; what still is would make a graceful close wait for ever.
                pool.terminate()

    async def row(self, query: str, *args: object, deadline_seconds: float = 5) -> DatabaseRow | None:
        return await self._ask(query, deadline_seconds, lambda tx: tx.row(query, *args))

    async def rows(self, query: str, *args: object, deadline_seconds: float = 5) -> list[DatabaseRow]:
        return await self._ask(query, deadline_seconds, lambda tx: tx.rows(query, *args))

    async def value(self, query: str, *args: object, deadline_seconds: float = 5) -> Any:
        """The first column of the first row; None if there is none."""
        return await self._ask(query, deadline_seconds, lambda tx: tx.value(query, *args))

    async def run(self, query: str, *args: object, deadline_seconds: float = 5) -> int:
        """The number of rows that it changed."""
        return await self._ask(query, deadline_seconds, lambda tx: tx.run(query, *args))

    @contextlib.asynccontextmanager
    async def transaction(self, *, deadline_seconds: float = 10) -> AsyncIterator[Transaction]:
        """Commits at the end of the block; an exception rolls back. If the connection dies at the commit, nobody knows."""
        async with self._connection(deadline_seconds) as connection, connection.transaction():
            yield Transaction(connection, self._queries)

    @contextlib.asynccontextmanager
    async def bound(self, tenant: UUID, *, deadline_seconds: float = 10) -> AsyncIterator[Transaction]:
        """A transaction that sees one tenant's rows and no others, whatever its queries ask for (row-level security). Two round trips
        more than a query of ``row`` and ``rows``: for what people ask for, not for what every request needs."""
        async with self._connection(deadline_seconds) as connection, connection.transaction():
            await connection.execute(_BIND, str(tenant))
            yield Transaction(connection, self._queries)

    @contextlib.asynccontextmanager
    async def leadership(self, lock: str) -> AsyncIterator[Leadership]:
        """For the one of several processes that does what must not be done twice."""
        with _translated():
            connection = await self._place.connect()
        try:
            with _translated():
                await connection.fetchval(_LEASE, f"{_LEASE_SECONDS}s", timeout=_CHECK_SECONDS)
            yield Leadership(connection, self._queries, lock)
        finally:
            connection.terminate()

    async def listen(self, channel: str) -> AsyncGenerator[str | None]:
        """The payloads of a channel, for ever, over a connection of its own. Close it with ``contextlib.aclosing``.

        None means: listening now (again), or too slow to keep up; look at the tables, you may have missed some.
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
        """Whether PostgreSQL answers and takes writes, for /readyz; sooner than its asker gives up, who would not hear why."""
        try:
            async with self._connection(_CHECK_SECONDS) as connection:
                await _check_it_writes(connection)
        except errors.Unavailable as error:
            return Check("postgresql", ok=False, detail=f"{error.message} ({_reason(error.__cause__)}); {error.hint}")
        return Check("postgresql", ok=True)

    async def _ask(self, query: str, deadline_seconds: float, ask: Callable[[Transaction], Awaitable[T]]) -> T:
        only_reads = self._queries[query].only_reads
        for attempt in itertools.count(1):
            try:
                async with self._connection(deadline_seconds) as connection:
                    return await ask(Transaction(connection, self._queries))
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
                except asyncpg.InterfaceError as error:
                    # Mostly a mistake of ours, such as a wrong number of arguments; but a dead connection gives it too.
                    if not _is_dead(connection):
                        raise
                    raise ConnectionResetError(str(error)) from error
                except asyncpg.InternalClientError as error:
                    # The driver lost its place, as it does when the server's goodbye meets our next statement.
                    connection.terminate()
                    raise ConnectionResetError(str(error)) from error
                finally:
                    # Also where its caller is cancelled once more meanwhile.
                    await asyncio.shield(_release(self._pool, connection))
        except _UNDONE as error:
            if isinstance(error, asyncpg.SerializationError):
                # With our isolation level only a standby says that; the next connection may reach the primary.
                await self._pool.expire_connections()
            raise errors.Unavailable("two wanted the same rows of PostgreSQL at once", hint="try again", retry_after_seconds=0.1) from error
        except _GONE as error:
            if _count_cancels() > cancels:
                # The error, of a rollback for example, took the place of the cancel, and the task would go on for ever.
                raise asyncio.CancelledError from error
            if not isinstance(error, TimeoutError):
                # Where one connection died the idle ones have probably died too; the next caller gets a new one.
                await self._pool.expire_connections()
            raise _unavailable(error) from error

    async def _acquire(self) -> asyncpg.Connection:
        try:
            return await self._pool.acquire()
        except _LOST_ITS_PLACE as error:
            raise ConnectionResetError(str(error)) from error

    async def _listen_once(self, channel: str) -> AsyncGenerator[str | None]:
        connection = await self._place.connect()
        unread: asyncio.Queue[str | _Instead] = asyncio.Queue(_UNREAD_NOTIFICATIONS)

        def arrived(what: str | _Instead) -> None:
            if unread.full():
                while not unread.empty():
                    unread.get_nowait()
                unread.put_nowait(_Instead.MISSED)
            unread.put_nowait(what)

        try:
            connection.add_termination_listener(lambda _connection: arrived(_Instead.CLOSED))
            await connection.add_listener(channel, lambda _connection, _pid, _channel, payload: arrived(payload))
            yield None
            while True:
                try:
                    # No wait_for: of one who is cancelled in the moment in which something comes it makes one who goes on (Python 3.11).
                    async with asyncio.timeout(_LISTEN_CHECK_SECONDS):
                        what = await unread.get()
                except TimeoutError:
                    # A primary that became a standby behind our back notifies nobody.
                    await _check_it_writes(connection)
                    continue
                if what is _Instead.CLOSED:
                    return
                yield None if what is _Instead.MISSED else what
        finally:
            connection.terminate()


def _count_cancels() -> int:
    """How often somebody has cancelled this task; what ``asyncio.timeout`` cancels does not count once it is over."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _may_be_repeated(cause: BaseException | None, attempt: int, *, only_reads: bool) -> bool:
    if isinstance(cause, _UNDONE):
        return attempt < _UNDONE_TRIES
    return only_reads and attempt == 1 and not isinstance(cause, TimeoutError)


async def _release(pool: asyncpg.Pool, connection: asyncpg.Connection) -> None:
    """Waits for the server to confirm a cancelled statement; where it does not, the connection is thrown away."""
    with contextlib.suppress(*_GONE, *_LOST_ITS_PLACE):
        await pool.release(connection, timeout=0.5)


def _is_dead(connection: asyncpg.Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool took it back when it died
        return True


async def _check_it_writes(connection: asyncpg.Connection) -> None:
    """Raises what a write would."""
    if await connection.fetchval(_ONLY_READS, timeout=2) == "on":
        raise asyncpg.ReadOnlySQLTransactionError("the server is a standby, or was set to read only")


async def _keep_session(_connection: asyncpg.Connection) -> None:
    """Nothing here changes a session outside of a transaction, so the reset that costs a round trip per query is not needed."""


async def _migrate(place: ServerPlace, known: list[migrations.Migration]) -> None:
    give_up_at = asyncio.get_running_loop().time() + _OPEN_SECONDS
    failures = 0
    while True:
        try:
            connection = await server_sessions.open_first(place)
            try:
                async with asyncio.timeout(_MIGRATION_SECONDS):
                    await migrations.run(connection, place.schema, known)
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
    """For a session of one owner."""
    cancels = _count_cancels()
    try:
        yield
    except (*_GONE, *_LOST_ITS_PLACE, *_UNDONE) as error:
        if _count_cancels() > cancels:
            raise asyncio.CancelledError from error
        raise _unavailable(error) from error


def _unavailable(cause: Exception) -> errors.Unavailable:
    # The cause, which has addresses in it, stays on our side of the wire.
    if isinstance(cause, asyncpg.ReadOnlySQLTransactionError):
        hint = "is it a standby, or set to read only because its disk is full? DATABASE_URL must lead to the primary"
        return errors.Unavailable("PostgreSQL only reads and takes no writes", hint=hint)
    if isinstance(cause, asyncpg.InsufficientResourcesError | asyncpg.PostgresSystemError):
        return errors.Unavailable("PostgreSQL has no room or cannot use its disk", hint="see its log, its disk and its max_connections")
    return errors.Unavailable("PostgreSQL does not answer", hint="is it running, and is DATABASE_URL right?")


def _reason(cause: BaseException | None) -> str:
    return "no answer in time" if isinstance(cause, TimeoutError) else str(cause)


def _affected(status: str) -> int:
    """``INSERT 0 3`` or ``UPDATE 3`` -> 3; 0 for statements that count nothing."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdecimal() else 0
