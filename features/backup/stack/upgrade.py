"""Restore points before migrations, so that an upgrade has a way back: `aicli stack restore --before-upgrade VERSION`.

The file ``run/restore_points.jsonl`` lists them, the newest last.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from features.backup.stack import agent_program
from shared import errors
from shared.stores import queries
from shared.telemetry.version import version
from shared.types import Moment
from stack import processes
from stack import stack_home as homes
from stack.servers.postgres import Postgres
from stack.servers.program import Program
from stack.stack_home import StackHome

#: The supervisor runs this.
_log = logging.getLogger("supervisor")
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


def notes_of(points: Iterable[RestorePoint], *, backs_up: bool) -> list[str]:
    off = "" if backs_up else "; backup is off (BACKUP_TO), so you cannot restore to it"
    return [f"wrote restore point {point.name} before the migrations{off}" for point in points]


async def before_migrations(home: StackHome, server: Postgres, agent: Program | None) -> RestorePoint:
    """Write a restore point. ``agent`` makes a base backup first, unless the last one is younger than a day: a restore cannot stop before
    the end of its base backup. None if backup is off. Raises AimeshError."""
    import asyncpg  # only the supervisor needs the driver; `aicli stack up` reads the list

    if agent is not None:
        await _back_up(home, agent)
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
    _log.info("postgres: restore point %s, before the migrations", point.name)
    return point


async def _back_up(home: StackHome, agent: Program) -> None:
    """Make a base backup if one is due. A store that fails must not prevent an upgrade."""
    _log.info("backup: one is made before the migrations if it is due")
    file = home.log(agent.name)
    output = await asyncio.to_thread(file.open, "ab")
    with output:
        process = await asyncio.create_subprocess_exec(
            *(*agent.command, agent_program.ONCE), env=agent.environment, cwd=homes.checkout(),
            stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            preexec_fn=processes.dies_with_parent(signal.SIGTERM, os.getpid()),
        )  # fmt: skip
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:  # we are stopping
            await processes.stop(process, signal.SIGTERM, agent.grace_seconds)
    if status != 0:
        _log.error("backup: none was made before the migrations (status %d); see %s; continuing without it", status, file)
