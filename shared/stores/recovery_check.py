"""What a service checks in a restored database: the frame of `python -m services.auth.recovery_check` and of the gateway's.

Such a program knows a database address and nothing else. It first brings an older schema to this version, as a start of the service would.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import asyncpg
import msgspec

from shared import config, errors, features
from shared.config import Variable
from shared.stores import migrations, queries, server_sessions
from shared.stores.server_sessions import ServerPlace

_SQL = queries.load(Path(__file__).with_name("recovery_check.sql"))
_LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


class RecoveryCheckSettings(config.Settings, frozen=True, kw_only=True):
    database_url: Annotated[str, Variable("DATABASE_URL", "PostgreSQL", secret=True)]


class SchemaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of every service's schema."""

    #: The newest migration, before this version added its own.
    migration: int
    #: schema.table -> rows; a partitioned table counts once.
    rows: dict[str, int]
    #: The newest line of the recovery log; 0 without a log.
    log_head: int
    failures: tuple[str, ...]


class RecoveryCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON object that the program prints."""

    facts: SchemaFacts
    #: One sentence for each check that failed, those of ``facts`` included.
    failures: tuple[str, ...]
    #: The gateway's ledger.
    ledger_entries: int = 0
    ledger_micro: int = 0
    #: auth's audit log: chain -> its newest row.
    audit_heads: dict[str, int] = {}
    #: Rows that the anchors know and the database lacks.
    lost_rows: int = 0
    #: Ended by ``--strict-before``.
    revoked_keys: int = 0
    disabled_users: int = 0


class RecoveryCheckFailed(msgspec.Struct, frozen=True):
    """The JSON object if the checks cannot run."""

    error: str
    hint: str


async def read_facts(url: str, schema: str, package: Path) -> SchemaFacts:
    """Reads every row, in bounded memory. Raises BadSettings for a schema of a newer version, and the driver's errors."""
    connection = await server_sessions.open_first(ServerPlace(url, schema))
    try:
        migration: int = await connection.fetchval(_SQL["newest_migration"].text)
        known = _newest(package / "migrations")
        if migration > known:
            raise errors.BadSettings(
                f"the schema {schema} has migration {migration}, and this version knows {known}", hint="use the version that wrote it"
            )
        if await connection.fetchval(_SQL["has_feature_migrations"].text):
            for row in await connection.fetch(_SQL["newest_feature_migrations"].text):
                if row["feature"] in features.known() and row["number"] > _newest(features.FOLDER / row["feature"] / "migrations" / schema):
                    what = f"the schema {schema} has migration {row['number']} of {row['feature']}, which this version lacks"
                    raise errors.BadSettings(what, hint="use the version that wrote it")
        counts = await connection.fetch(await connection.fetchval(_SQL["plan_counts"].text))
        head, broken = 0, None
        if await connection.fetchval(_SQL["has_recovery_log"].text):
            head = await connection.fetchval(_SQL["recovery_log_head"].text)
            broken = await connection.fetchrow(_SQL["find_broken_line"].text)
        failures = () if broken is None else (f"line {broken['number']} of the recovery log of {schema}: {broken['why']}",)
        return SchemaFacts(migration=migration, rows={row["name"]: row["rows"] for row in counts}, log_head=head, failures=failures)
    finally:
        connection.terminate()


def _newest(folder: Path) -> int:
    return max((each.number for each in migrations.read(folder)), default=0)


def run(check: Callable[[str], Awaitable[RecoveryCheck]]) -> int:
    """Print the result of ``check``, which gets the database's address. Return the exit status: 1 if something is wrong, 2 if unknown."""
    try:
        result = asyncio.run(_check(check, config.load(RecoveryCheckSettings, os.environ).database_url))
    except errors.AimeshError as error:
        _print(RecoveryCheckFailed(error.message, error.hint))
        return 2
    _print(result)
    return 1 if result.failures else 0


async def _check(check: Callable[[str], Awaitable[RecoveryCheck]], url: str) -> RecoveryCheck:
    try:
        return await check(url)
    except _LOST as error:
        raise errors.Unavailable(f"the database cannot be checked: {error}", hint="is it running, and is DATABASE_URL right?") from error


def _print(result: msgspec.Struct) -> None:
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
