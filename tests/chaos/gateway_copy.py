"""Copies the gateway's tables of a running stack, and puts them back as an administrator does: with `pg_restore`, while no gateway runs."""

import asyncio
from pathlib import Path

import asyncpg

from stack import secret_files, stack_plan
from stack.servers import postgres
from tests.stacks import RunningStack

_SECONDS = 120


async def copy(stack: RunningStack, file: Path) -> None:
    """Write the tables as they are at one moment."""
    await _run(stack, "pg_dump", "--format=custom", "--compress=0", "--schema=gateway", f"--file={file}", f"--dbname={postgres.DATABASE}")


async def put_back(stack: RunningStack, file: Path) -> None:
    """Replace the tables. Sessions of gateways end."""
    server = stack_plan.postgres_of(stack.place)
    url = server.url(server.admin, secret_files.read(stack.place, secret_files.POSTGRES_ADMIN))
    connection = await asyncpg.connect(url, timeout=30)
    try:
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gateway'")
        await connection.execute("DROP SCHEMA gateway CASCADE", timeout=_SECONDS)
    finally:
        await connection.close(timeout=5)
    await _run(stack, "pg_restore", "--exit-on-error", f"--dbname={postgres.DATABASE}", str(file))


async def _run(stack: RunningStack, program: str, *words: str) -> None:
    server = stack_plan.postgres_of(stack.place)
    place = ("-h", str(server.sockets), "-p", str(postgres.PORT), "-U", server.admin)
    process = await asyncio.create_subprocess_exec(
        *postgres.unprivileged(str(postgres.binaries() / program), *place, *words),
        env={"PATH": "/usr/bin:/bin", "PGPASSWORD": secret_files.read(stack.place, secret_files.POSTGRES_ADMIN).strip()},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_SECONDS):
        _, error = await process.communicate()
    assert process.returncode == 0, f"{program}: {error.decode()}"
