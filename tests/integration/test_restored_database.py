"""Somebody puts an older copy of the database's folder in place, without any tool of ours: what was revoked since stays revoked."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import people, stacks
from tests.stacks import RunningStack


@pytest.fixture
async def stack() -> AsyncIterator[RunningStack]:
    async with stacks.stack(INFERENCE_BACKEND="echo", HYPERSWARM="off") as running:
        yield running


async def status_of(stack: RunningStack, key: str) -> int:
    async with stack.http(key) as http:
        return (await http.get("/v1/models")).status_code


async def copy(source: Path, target: Path) -> None:
    """With the owners, which PostgreSQL insists on."""
    process = await asyncio.create_subprocess_exec("cp", "--archive", str(source), str(target))
    assert await process.wait() == 0


@pytest.mark.timeout(400)
async def test_a_key_that_was_revoked_after_the_copy_stays_revoked(stack: RunningStack, tmp_path: Path) -> None:
    async with people.api_client(stack) as api_client:
        ann = await api_client.register("ann")
    assert (await stack.aicli("stack", "down")).status == 0
    await copy(stack.home / "postgres", tmp_path / "postgres")
    assert (await stack.aicli("stack", "up")).status == 0
    assert await status_of(stack, ann.key.secret) == 200
    revoked = await stack.aicli("keys", "revoke", str(ann.key.id), "--json")
    assert (revoked.json()["is_active"], "logged" in revoked.json()) == (False, False), "only what is not on disk yet says so"
    assert (await stack.aicli("stack", "down")).status == 0
    shutil.rmtree(stack.home / "postgres")
    await copy(tmp_path / "postgres", stack.home / "postgres")
    assert (await stack.aicli("stack", "up")).status == 0
    assert await status_of(stack, ann.key.secret) == 401
    assert await status_of(stack, stack.api_key) == 200
    (row,) = (await stack.aicli("admin", "audit", "list", "--action", "database.restored", "--json")).json()
    assert row["act"]["details"]["log_lines_replayed"] == "1"
