"""The whole procedure of the manual: a stack with backups loses its home, and is restored from the store and the identity alone.

This is one test, because a stack takes seconds to start. ``make drill`` does the same under load, and more.
"""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import people, stacks
from tests.full_stack.conftest import Surroundings
from tests.stacks import RunningStack


@pytest.fixture
def usb(surroundings: Surroundings, tmp_path: Path) -> Path:
    """The file in which the operator keeps the identity."""
    file = tmp_path / "aimesh.age"
    file.write_text(surroundings.identity)
    return file


async def good(stack: RunningStack, *words: str) -> str:
    outcome = await stack.aicli(*words)
    assert outcome.status == 0, (words, outcome.out, outcome.err)
    return outcome.out


async def said(stack: RunningStack, *words: str) -> Any:
    outcome = await stack.aicli(*words, "--json")
    assert outcome.status == 0, (words, outcome.out, outcome.err)
    return outcome.json()


async def status_of(stack: RunningStack, key: str) -> int:
    async with stack.http(key) as http:
        return (await http.get("/v1/models")).status_code


async def now_of(stack: RunningStack) -> datetime:
    async with stack.database("gateway") as database:
        now: datetime = await database.fetchval("SELECT clock_timestamp()")
        return now


async def is_recoverable(stack: RunningStack, moment: datetime) -> bool:
    until = (await said(stack, "stack", "backups"))["recoverable_until"]
    return until is not None and datetime.fromisoformat(until) >= moment


async def entries_of(stack: RunningStack) -> list[tuple[Any, ...]]:
    async with stack.database("gateway") as database:
        return [tuple(row) for row in await database.fetch("SELECT * FROM entries ORDER BY 1")]


async def infer(stack: RunningStack, person: people.Person, prompt: str) -> None:
    async with stack.http(person.key.secret) as http:
        answer = await http.post("/v1/completions", json={"model": "echo", "prompt": prompt, "max_tokens": 8})
    assert answer.status_code == 200, answer.text


async def restore(stack: RunningStack, store: Path, usb: Path, *options: str) -> Any:
    outcome = await stack.aicli(
        "stack", "restore", "latest", "--from", str(store), "--identity", str(usb), *options, "--yes", "--json", deadline_seconds=180
    )
    assert outcome.status == 0, (outcome.out, outcome.err)
    return outcome.json()


@pytest.mark.timeout(400)
async def test_a_lost_home_comes_back_stricter_and_a_mistake_is_undone(stack: RunningStack, surroundings: Surroundings, usb: Path) -> None:
    store = surroundings.store
    async with people.api_client(stack) as api_client:
        ann, bob = await api_client.register("ann"), await api_client.register("bob")
    await infer(stack, bob, "one two three")
    await good(stack, "stack", "backup", "--label", "before the move")

    # --- the home is lost after more changes since the backup (D4, D5) ---
    assert await status_of(stack, ann.key.secret) == 200
    await good(stack, "keys", "revoke", str(ann.key.id))
    await good(stack, "admin", "credits", bob.username, "500", "--note", "invoice 7")
    await infer(stack, bob, "four five six")
    await stacks.until(lambda: has_requests(stack, bob, 2), what="his request is written")
    before, moment = await entries_of(stack), await now_of(stack)
    await stacks.until(lambda: is_recoverable(stack, moment), what="everything is in the store", seconds=60)
    await good(stack, "stack", "down")
    shutil.rmtree(stack.home)
    report = await restore(stack, store, usb)
    assert (report["lost_rows"], datetime.fromisoformat(report["reached_at"]) >= moment) == (0, True)
    await good(stack, "stack", "up")
    assert (await status_of(stack, ann.key.secret), await status_of(stack, bob.key.secret)) == (401, 200)
    assert await entries_of(stack) == before
    await good(stack, "admin", "ledger", "verify")
    await infer(stack, bob, "a worker of before answers without a new ticket")

    # --- someone deletes rows of the ledger (D2) ---
    await stacks.until(lambda: has_requests(stack, bob, 3), what="his request is written")
    before, moment = await entries_of(stack), await now_of(stack)
    await good(stack, "stack", "psql", "-d", "aimesh", "-c", "SET session_replication_role = replica; DELETE FROM gateway.entries")
    await stacks.until(lambda: is_recoverable(stack, moment + timedelta(seconds=1)), what="the mistake is in the store", seconds=60)
    assert await entries_of(stack) == []
    await good(stack, "stack", "down")

    # --- the database's folder is lost, too: the stack creates no empty one (D1) ---
    shutil.rmtree(stack.home / "postgres")
    refused = await stack.aicli("stack", "up")
    assert (refused.status, "the database in" in refused.err, "is gone" in refused.err) == (2, True, True), refused.err
    report = await restore(stack, store, usb, "--at", f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", "--replace")
    await good(stack, "stack", "up")
    assert await entries_of(stack) == before
    await good(stack, "admin", "ledger", "verify")
    assert len(list(stack.home.parent.glob(f"{stack.home.name}.before-restore-*"))) == 1


async def has_requests(stack: RunningStack, person: people.Person, count: int) -> bool:
    async with stack.database("gateway") as database:
        found: int = await database.fetchval("SELECT count(*) FROM request_logs WHERE user_id = $1", person.id)
    return found == count
