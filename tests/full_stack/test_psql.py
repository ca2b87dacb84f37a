"""`aicli stack psql` opens the embedded database, and the commands of the runbooks work in it."""

import asyncio
import sys
from pathlib import Path

from tests.stacks import REPOSITORY, RunningStack

RUNBOOKS = REPOSITORY / "docs" / "runbooks"


async def run(stack: RunningStack, commands: str) -> str:
    """Run the commands in a shell that stops at the first error, with this checkout's programs instead of those on the PATH."""
    aicli = f"{sys.executable} -m cli.main"
    commands = commands.replace(".venv/bin/python", sys.executable).replace("make ", f"{aicli} stack ").replace("aicli ", f"{aicli} ")
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", commands,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        cwd=REPOSITORY, env=stack.environment,
    )  # fmt: skip
    async with asyncio.timeout(240):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_psql_opens_as_each_role_and_answers_what_the_runbooks_ask(stack: RunningStack) -> None:
    whoami = "SELECT current_user, current_setting('search_path'), current_setting('aimesh.tenant', true)"
    for service in ("auth", "gateway", "metrics"):
        done = await stack.aicli("stack", "psql", service, "-At", "-c", whoami)
        assert done.out == f"{service}|{service}|*\n", done.err
    done = await stack.aicli("stack", "psql", "-At", stdin="SELECT rolsuper FROM pg_roles WHERE rolname = current_user;")
    assert done.out == "t\n", done.err
    # PGHOST and PGUSER from the environment are ignored.
    done = await stack.aicli("stack", "psql", "gateway", "-At", "-c", "SELECT current_user", PGHOST="/nowhere", PGUSER="x")
    assert done.out == "gateway\n", done.err
    done = await stack.aicli("stack", "psql", "web")
    assert (done.status, "one of auth, gateway, metrics" in done.err) == (2, True)
    asked = [
        line
        for page in sorted(RUNBOOKS.glob("*.md"))
        for line in page.read_text(encoding="utf-8").splitlines()
        if "aicli stack psql" in line
    ]
    assert len(asked) >= 4
    for line in asked:
        await run(stack, line.strip().strip("`.").removeprefix("- `"))


async def test_psql_says_so_where_nothing_runs(tmp_path: Path) -> None:
    nowhere = RunningStack(tmp_path, {"PATH": "/usr/bin:/bin", "AIMESH_HOME": str(tmp_path / "home")})
    done = await nowhere.aicli("stack", "psql", "gateway")
    assert done.status == 1
    assert "make up" in done.err
