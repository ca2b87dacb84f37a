"""Someone replaces the database's folder with an older copy, without our tools: later revocations and payments still apply."""

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import people
from tests.chaos import world
from tests.stacks import RunningStack


async def status_of(stack: RunningStack, key: str) -> int:
    async with stack.http(key) as http:
        return (await http.get("/v1/models")).status_code


async def restorations(stack: RunningStack) -> list[dict[str, Any]]:
    """Return the restored databases in the audit log."""
    rows: list[dict[str, Any]] = (await stack.aicli("admin", "audit", "list", "--action", "database.restored", "--json")).json()
    return rows


async def copy(source: Path, target: Path) -> None:
    """Copy a folder with its owners, which PostgreSQL insists on."""
    process = await asyncio.create_subprocess_exec("cp", "--archive", str(source), str(target))
    assert await process.wait() == 0


async def take_snapshot(stack: RunningStack, target: Path) -> None:
    """Copy the database like a snapshot of a file system: between two writes of PostgreSQL."""
    pid = await stack.signal("postgres", signal.SIGSTOP)
    pids = world.pids_below(pid)
    world.signal_all(pids, signal.SIGSTOP)
    try:
        await copy(stack.home / "postgres", target)
    finally:
        world.signal_all(pids, signal.SIGCONT)


@pytest.mark.timeout(400)
async def test_revocations_and_credits_of_after_the_copy_stand(stack: RunningStack, tmp_path: Path) -> None:
    async with people.api_client(stack) as api_client:
        ann = await api_client.register("ann")
    earlier = await restorations(stack)
    await take_snapshot(stack, tmp_path / "postgres")
    assert await status_of(stack, ann.key.secret) == 200
    revoked = await stack.aicli("keys", "revoke", str(ann.key.id), "--json")
    assert (revoked.json()["is_active"], "logged" in revoked.json()) == (False, False), "only what is not on disk yet says so"
    paid = await stack.aicli("admin", "credits", ann.username, "500", "--note", "invoice", "--json")
    assert (paid.json()["balance_micro"], "logged" in paid.json()) == (500_000_000, False)
    assert (await stack.aicli("policy", "set", "--mesh", "--machines", "own")).status == 0
    assert (await stack.aicli("stack", "down")).status == 0
    shutil.rmtree(stack.home / "postgres")
    await copy(tmp_path / "postgres", stack.home / "postgres")
    assert (await stack.aicli("stack", "up")).status == 0
    assert await status_of(stack, ann.key.secret) == 401
    assert await status_of(stack, stack.api_key) == 200
    assert (await stack.aicli("admin", "credits", ann.username, "1", "--json")).json()["balance_micro"] == 501_000_000
    assert (await stack.aicli("admin", "ledger", "verify")).status == 0
    assert "machines: own" in (await stack.aicli("policy", "show", "--mesh")).out
    acts = [row["act"]["details"] for row in await restorations(stack) if row not in earlier]
    replayed = {details.get("service", "auth"): details["log_lines_replayed"] for details in acts}
    assert replayed == {"auth": "1", "gateway": "2"}
