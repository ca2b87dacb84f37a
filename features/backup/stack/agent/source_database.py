"""The PostgreSQL server that is copied, as a role that may copy and read, and write nothing.

Every method raises Unavailable while the server is down.
"""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

import asyncpg

from features.backup.stack import layout
from features.backup.stack.layout import DatabaseFacts
from shared import errors
from shared.identity import private_file
from shared.stores import queries
from stack import processes
from stack.servers import postgres

SLOT = "aimesh_backup"
_MIN_VERSION = 150000
_CONNECT_SECONDS = 10
_QUERY_SECONDS = 10
_END_SECONDS = 5.0
_SAID_BYTES = 4000
#: Counting a million rows takes a second.
_FACTS_SECONDS = 600
_SQL = queries.load(Path(__file__).with_suffix(".sql"))
#: Table -> the query that counts its rows.
_SCHEMAS = ("auth", "gateway", "metrics")
_COUNTED = {
    "auth.users": "count_users",
    "auth.organisations": "count_organizations",
    "auth.api_keys": "count_keys",
    "auth.nodes": "count_nodes",
    "gateway.accounts": "count_accounts",
    "gateway.prices": "count_prices",
}
_SESSION = {"application_name": "aimesh_backup", "aimesh.tenant": "*", "timezone": "UTC"}


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    system: str
    #: server_version_num.
    postgres: int
    segment_size: int
    database_bytes: int


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """Every commit that was confirmed before ``at`` is below ``lsn``."""

    #: By PostgreSQL's clock.
    at: datetime
    lsn: int
    timeline: int
    #: What the reader of our slot has on its own disk; None without a slot.
    received: int | None = None
    #: pg_replication_slots.wal_status, or `missing`.
    slot_status: str = "missing"
    #: What the slot keeps on the server's disk.
    slot_bytes: int = 0


class SourceProgram:
    """One of PostgreSQL's programs, which copies from the server."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._said = b""

    @property
    def said(self) -> str:
        """Return the end of what it has said."""
        return " / ".join(self._said.decode(errors="replace").strip().splitlines()[-4:])[:1000]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def listen(self) -> None:
        assert self.process.stderr is not None
        while more := await self.process.stderr.read(_SAID_BYTES):
            self._said = (self._said + more)[-_SAID_BYTES:]


class SourceDatabase:
    def __init__(self, url: str, folder: Path) -> None:
        """``folder`` gets a file with the password, which PostgreSQL's programs read."""
        parts = urlsplit(url)
        self._url = url
        #: For PostgreSQL's programs: no secret is in it.
        self._connection = _without_password(parts)
        self._password_file = folder / "backup.pgpass"
        password = unquote(parts.password or "").replace("\\", "\\\\").replace(":", "\\:")
        #: Of ``position``, which is asked every second.
        self._held: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()
        private_file.replace(self._password_file, f"*:*:*:*:{password}\n".encode())

    @contextlib.asynccontextmanager
    async def program(self, name: str, *options: str, stdout: int | BinaryIO = DEVNULL) -> AsyncIterator[SourceProgram]:
        """Run one of PostgreSQL's programs. It has ended when the block has."""
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LC_ALL": "C.UTF-8",
            "PGPASSFILE": str(self._password_file),
            "PGCONNECT_TIMEOUT": str(_CONNECT_SECONDS),
            "PGAPPNAME": "aimesh_backup",
        }
        process = await asyncio.create_subprocess_exec(
            *(str(postgres.binaries() / name), *options, "--no-password", "-d", self._connection),
            env=environment, stdin=DEVNULL, stdout=stdout, stderr=PIPE,
            preexec_fn=processes.dies_with_parent(signal.SIGKILL, os.getpid()),
        )  # fmt: skip
        running = SourceProgram(process)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(running.listen())
                try:
                    yield running
                finally:
                    await processes.stop(process, signal.SIGTERM, _END_SECONDS)
        except BaseExceptionGroup as group:
            raise errors.first_of(group) from None

    async def identity(self) -> SourceIdentity:
        """Raises BadSettings if the server is too old."""
        async with self._connect() as connection:
            row = await connection.fetchrow(_SQL["read_identity"].text)
        if row["postgres"] < _MIN_VERSION:
            raise errors.BadSettings(
                f"backups need PostgreSQL 15 or newer, and this is {row['postgres'] // 10000}",
                hint="upgrade it, or set BACKUP_DATABASE=managed and let its provider make backups",
            )
        return SourceIdentity(row["system"], row["postgres"], row["segment_size"], row["database_bytes"])

    async def position(self) -> SourcePosition:
        async with self._turn:
            with _one_error():
                try:
                    if self._held is None or self._held.is_closed():
                        self._held = await self._open(_QUERY_SECONDS)
                    row = await self._held.fetchrow(_SQL["read_position"].text, SLOT)
                except BaseException:
                    self.close()
                    raise
        received = None if row["received"] is None else layout.parse_lsn(row["received"])
        return SourcePosition(
            row["at"], layout.parse_lsn(row["lsn"]), row["timeline"], received, row["slot_status"], max(0, row["slot_bytes"])
        )

    def close(self) -> None:
        """It may be used again."""
        if self._held is not None:
            self._held.terminate()
            self._held = None

    async def ensure_slot(self) -> None:
        """Make the server keep its log from now on, until the slot's reader has it."""
        # Two at once may both find none.
        async with self._connect() as connection:
            with contextlib.suppress(asyncpg.DuplicateObjectError):
                await connection.fetch(_SQL["create_slot"].text, SLOT)

    async def drop_slot(self) -> None:
        """Does nothing if there is none, or if it is being read."""
        async with self._connect() as connection:
            with contextlib.suppress(asyncpg.UndefinedObjectError, asyncpg.ObjectInUseError):
                await connection.fetch(_SQL["drop_slot"].text, SLOT)

    async def count_audit_rows(self) -> int:
        async with self._connect() as connection:
            found: int = await connection.fetchval(_SQL["count_audit_rows"].text)
        return found

    async def facts(self) -> DatabaseFacts:
        """Read all in one snapshot."""
        async with self._connect(_FACTS_SECONDS) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            tables = {row["name"] for row in await connection.fetch(_SQL["list_tables"].text)}

            async def number(query: str) -> int:
                found: int = await connection.fetchval(_SQL[query].text)
                return found

            ledger = {"entries": 0, "micro": 0}
            if {"gateway.entries", "gateway.ledger_checkpoints"} <= tables:
                ledger = dict(await connection.fetchrow(_SQL["sum_ledger"].text))
            of_features: dict[str, int] = {}
            for schema in _SCHEMAS:
                if f"{schema}.feature_migrations" in tables:
                    found = await connection.fetch(_SQL[f"list_feature_migrations_of_{schema}"].text)
                    of_features |= {f"{schema}/{row['feature']}": row["number"] for row in found}
            heads = await connection.fetch(_SQL["list_audit_heads"].text) if "auth.audit_heads" in tables else []
            return DatabaseFacts(
                migrations={schema: await number(f"read_migration_of_{schema}") for schema in _SCHEMAS if f"{schema}.migrations" in tables}
                | of_features,
                rows={table: await number(query) for table, query in _COUNTED.items() if table in tables},
                ledger_entries=ledger["entries"],
                ledger_micro=ledger["micro"],
                audit_heads={row["chain"]: row["sequence"] for row in heads},
                log_heads={
                    service: await number(f"read_log_head_of_{service}")
                    for service in ("auth", "gateway")
                    if f"{service}.recovery_log" in tables
                },
            )

    @contextlib.asynccontextmanager
    async def _connect(self, seconds: float = _QUERY_SECONDS) -> AsyncIterator[asyncpg.Connection]:
        with _one_error():
            connection = await self._open(seconds)
            try:
                yield connection
            finally:
                connection.terminate()

    async def _open(self, seconds: float) -> asyncpg.Connection:
        return await asyncpg.connect(self._url, timeout=_CONNECT_SECONDS, command_timeout=seconds, server_settings=_SESSION)


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise errors.Unavailable("PostgreSQL did not answer in time") from error
    except OSError as error:
        raise errors.Unavailable(f"PostgreSQL cannot be reached: {error.strerror or type(error).__name__}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise errors.Unavailable(f"PostgreSQL refused: {str(error)[:300]}", hint="check the role of BACKUP_DATABASE_URL") from error


def _without_password(parts: SplitResult) -> str:
    user, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}").geturl()
