"""Restore points before migrations, so that an upgrade has a way back: `aicli stack restore --before-upgrade VERSION`.

The file ``run/restore_points.jsonl`` lists them, the newest last.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from shared import errors
from shared.stores import queries
from shared.telemetry.version import version
from shared.types import Moment
from stack import secret_files
from stack import stack_home as homes
from stack.servers.postgres import Postgres
from stack.stack_home import StackHome

_SECONDS = 30


class RestorePoint(msgspec.Struct, frozen=True):
    name: str
    #: The version that was about to run.
    version: str
    at: Moment
    lsn: str


def read_points(home: StackHome) -> list[RestorePoint]:
    file = home.restore_points
    return parse_points(file.read_bytes()) if file.exists() else []


def parse_points(lines: bytes) -> list[RestorePoint]:
    return [msgspec.json.decode(line, type=RestorePoint) for line in lines.splitlines()]


async def before_migrations(home: StackHome, server: Postgres, back_up: Callable[[], Awaitable[None]] | None = None) -> RestorePoint | None:
    """Write a restore point if the services are about to migrate existing tables. None if they are not.

    ``back_up`` makes a base backup, unless the last one is younger than a day; None if backup is off. It runs first, because a restore
    cannot stop before the end of its base backup. Raises AimeshError.
    """
    import asyncpg  # only the supervisor needs the driver; `aicli stack up` reads the list

    from stack.recovery import schema_migrations

    urls = {role: server.url(role, secret_files.read(home, f"postgres_{role}")) for role in secret_files.DATABASE_ROLES}
    statuses = await schema_migrations.read(urls)
    if not any(status.applied and status.pending_pre for status in statuses):
        return None
    if back_up is not None:
        await back_up()
    name = f"before-{version()[:32]}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"  # PostgreSQL allows 63 bytes
    sql = queries.load(Path(__file__).with_name("upgrade.sql"))
    try:
        async with asyncio.timeout(_SECONDS):
            connection = await asyncpg.connect(server.url(server.admin, server.admin_password.read_text(encoding="utf-8").strip()))
            try:
                row = await connection.fetchrow(sql["create_restore_point"].text, name)
            finally:
                connection.terminate()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise errors.Unavailable(f"no restore point could be written: {error}", hint="aicli stack logs postgres") from error
    point = RestorePoint(name, version(), row["at"], row["lsn"])
    lines = [msgspec.json.encode(each).decode() + "\n" for each in (*read_points(home), point)]
    await asyncio.to_thread(homes.write_private, home.restore_points, "".join(lines))
    return point
