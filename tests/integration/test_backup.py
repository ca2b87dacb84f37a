"""The commands of the pages, as an operator types them: a backup of a running stack is restored where nothing was left, and psql opens."""

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.api import gateway
from tests import people, stacks
from tests.stacks import REPOSITORY, RunningStack

PAGE = REPOSITORY / "docs" / "howto" / "deploy.md"
RUNBOOKS = REPOSITORY / "docs" / "runbooks"


@pytest.fixture
async def stack() -> AsyncIterator[RunningStack]:
    async with stacks.stack(INFERENCE_BACKEND="echo", HYPERSWARM="off") as running:
        yield running


def shown(page: Path, heading: str) -> list[str]:
    """The shell blocks below a heading."""
    _, _, below = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    section = below.partition("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


async def run(stack: RunningStack, commands: str, **instead: str) -> str:
    """In a shell that ends at the first mistake; this checkout's own programs in place of those on the PATH."""
    aicli = f"{sys.executable} -m cli.main"
    commands = commands.replace(".venv/bin/python", sys.executable).replace("make ", f"{aicli} stack ").replace("aicli ", f"{aicli} ")
    for written, really in instead.items():
        commands = commands.replace(written, really)
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", commands,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        cwd=REPOSITORY, env=stack.environment,
    )  # fmt: skip
    async with asyncio.timeout(240):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.mark.timeout(400)
async def test_a_backup_by_the_page_is_restored_by_the_page(stack: RunningStack, tmp_path: Path) -> None:
    back_up, restore = shown(PAGE, "Backup")
    place = {"/srv/backup/aimesh": str(tmp_path / "backup")}
    async with people.api_client(stack) as api_client:
        ann = await api_client.register("ann")
    await infer(stack, ann)
    await stacks.until(lambda: has_requests(stack, 1), what="her request is written")
    await run(stack, back_up, **place)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "backup").iterdir()} == {
        "aimesh.dump": 0o600,
        "files.tar": 0o600,
    }
    # What happens afterwards is not in it.
    await infer(stack, ann)
    assert (await stack.aicli("stack", "down")).status == 0
    shutil.rmtree(stack.home)
    await run(stack, restore, **place)
    assert await count_requests(stack) == 1
    await infer(stack, ann)
    await stacks.until(lambda: has_requests(stack, 2), what="her second request is written")
    # The node key of the profile is known, and so is the admin's key.
    async with stack.client() as mesh:
        assert (await mesh.rpc.call(gateway.list_nodes, gateway.ListNodes(), credential=stack.api_key)).nodes
    await check_psql(stack)


async def count_requests(stack: RunningStack) -> int:
    async with stack.database("gateway") as database:
        return int(await database.fetchval("SELECT count(*) FROM request_logs"))


async def has_requests(stack: RunningStack, count: int) -> bool:
    return await count_requests(stack) == count


async def infer(stack: RunningStack, person: people.Person) -> None:
    async with stack.http(person.key.secret) as http:
        answer = await http.post("/api/inference", json={"model": "echo", "prompt": "hello"})
    assert answer.status_code == 200, answer.text


async def check_psql(stack: RunningStack) -> None:
    """As each role, and what the runbooks ask."""
    whoami = "SELECT current_user, current_setting('search_path'), current_setting('aimesh.tenant', true)"
    for service in ("auth", "gateway", "metrics"):
        done = await stack.aicli("stack", "psql", service, "-At", "-c", whoami)
        assert done.out == f"{service}|{service}|*\n", done.err
    done = await stack.aicli("stack", "psql", "-At", stdin="SELECT rolsuper FROM pg_roles WHERE rolname = current_user;")
    assert done.out == "t\n", done.err
    # Somebody else's variables do not lead elsewhere.
    done = await stack.aicli("stack", "psql", "gateway", "-At", "-c", "SELECT count(*) FROM request_logs", PGHOST="/nowhere", PGUSER="x")
    assert done.out == "2\n", done.err
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
