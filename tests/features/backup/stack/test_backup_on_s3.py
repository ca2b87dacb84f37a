"""Everything that a backup writes, on a real S3 server with credentials; and what a restore reads from it."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from features.backup.stack import catalog, sealing
from features.backup.stack.agent import base_backup, recovery_log_copy
from features.backup.stack.layout import LogPart
from features.backup.stack.restoring import recovered_database, restore_plan
from features.backup.stack.restoring.recovered_database import RestoreSource
from features.backup.stack.restoring.restore_plan import LATEST, RestoreTarget
from shared.stores import objects
from stack.secret_files import POSTGRES_ADMIN
from tests import object_server, people, stacks
from tests.features.backup.stack import copied_database
from tests.features.backup.stack.copied_database import CopiedDatabase
from tests.object_server import ObjectServer
from tests.servers import PostgresServer
from tests.stacks import RunningStack

LINES = [b'{"line": %d}\n' % number for number in range(1, 6)]


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectServer]:
    with object_server.running() as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with copied_database.migrated_server() as running:
        yield running


@pytest.fixture
async def copied(s3: ObjectServer, server: PostgresServer, tmp_path: Path) -> AsyncIterator[CopiedDatabase]:
    address = f"{s3.address}/{tmp_path.name}"
    async with copied_database.copied_database(server, tmp_path, BACKUP_TO=address, **s3.credentials) as made:
        yield made


@pytest.mark.nightly("recovery")
async def test_what_a_backup_writes_to_s3_is_restored_to_its_last_commit(copied: CopiedDatabase, tmp_path: Path) -> None:
    place = copied.place
    async with copied.admin() as admin, copied.shipping() as shipping:
        await admin.execute(f"CREATE ROLE {POSTGRES_ADMIN} SUPERUSER LOGIN; CREATE TABLE kept (number int)")
        await admin.execute("INSERT INTO kept VALUES (1)")
        made = await base_backup.make(place, copied.source, label="on S3")
        await admin.execute("INSERT INTO kept VALUES (2)")
        async with asyncio.timeout(30):
            while True:
                await shipping.ship_partial()
                found = await catalog.read(place.store, place.mesh)
                if found.state is not None and found.state.until > made.finished_at and await is_stored(copied, found.state.lsn):
                    break
                await asyncio.sleep(0.05)
    (backup,) = found.backups
    assert (backup.name, backup.label, {part.name for part in backup.parts}) == (made.name, "on S3", {"data", "secrets", "files"})
    # With only the operator's identity, as after the loss of the machine.
    source = RestoreSource(place.store, place.mesh, (copied.identity,))
    plan = restore_plan.plan(found, LATEST, RestoreTarget(), await source.histories(found.histories))
    await recovered_database.fetch_and_unpack(source, plan, tmp_path / "new", lambda *_: None)
    await recovered_database.unpack(source, backup, "secrets", tmp_path / "new" / "home", progress=lambda *_: None)
    assert (tmp_path / "new/home/secrets/data_key").read_bytes() == (copied.home.secrets / "data_key").read_bytes()
    async with recovered_database.recovered(tmp_path / "new", plan, lambda *_: None, is_durable=False) as database:
        connection = await asyncpg.connect(database.url)
        numbers = [row["number"] for row in await connection.fetch("SELECT number FROM kept ORDER BY number")]
        await connection.close()
    assert numbers == [1, 2]


async def is_stored(copied: CopiedDatabase, lsn: int) -> bool:
    return lsn >= (await copied.source.position()).lsn


async def test_fetch_log_writes_what_auth_and_the_gateway_read_at_their_start(
    copied: CopiedDatabase, s3: ObjectServer, tmp_path: Path
) -> None:
    folder, identity = tmp_path / "log", tmp_path / "usb.age"
    identity.write_text(f"# signed by: {copied.place.key.id}\n{copied.identity}\n", encoding="utf-8")
    for part in (LogPart("auth", 1, 3), LogPart("auth", 3, 5), LogPart("gateway", 1, 2), LogPart("anchors", 1, 1)):
        await recovery_log_copy.write(copied.place, part, b"".join(LINES[part.first - 1 : part.last]))
    store = f"{s3.address}/{tmp_path.name}"

    async def fetch(*arguments: str, **variables: str) -> tuple[int, str]:
        """Run `aicli stack fetch-log` as on another machine, without a home."""
        base = {"PATH": os.environ["PATH"], "AIMESH_HOME": str(tmp_path / "none"), "RECOVERY_LOG_DIR": str(folder), **s3.credentials}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "stack", "fetch-log", *arguments), cwd=stacks.REPOSITORY, env={**base, **variables},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
        return process.returncode or 0, said.decode()

    assert await fetch("--from", store, "--identity", str(identity)) == (0, f"the recovery logs are in {folder}\n")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert kept == {
        "auth-restored.jsonl": b"".join(LINES),
        "gateway-restored.jsonl": b"".join(LINES[:2]),
        "audit_anchors.jsonl": LINES[0],
    }
    # A refusal leaves the files as they are.
    other = tmp_path / "other.age"
    other.write_text("# signed by: UAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n" + copied.identity + "\n", encoding="utf-8")
    missing = LogPart("gateway", 4, 5)
    await recovery_log_copy.write(copied.place, missing, b"".join(LINES[3:]))
    refused = await asyncio.gather(
        fetch("--from", store, "--identity", str(identity)),
        fetch("--from", store, "--identity", str(other)),
        fetch("--from", f"{store}-other", "--identity", str(identity)),
        fetch("--from", store),
        fetch("--identity", str(identity)),
    )
    words = ["lines 3 to 3 of the recovery log of gateway are missing", "sign", "has no backups", "cannot be read", "no store is known"]
    for (status, said), expected in zip(refused, words, strict=True):
        assert (status, expected in said) == (2, True), said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


# --- a whole stack --------------------------------------------------------------------------------------------------------------------


async def said(stack: RunningStack, *words: str) -> Any:
    return (await stack.aicli(*words, "--json", deadline_seconds=180)).json()


async def status_of(stack: RunningStack, key: people.Key) -> int:
    async with stack.http(key.secret) as http:
        return (await http.get("/v1/models")).status_code


async def read_books(stack: RunningStack) -> tuple[list[tuple[Any, ...]], datetime]:
    """Return the ledger's entries, and a moment before which all of them were committed."""
    async with stack.database("gateway") as database:
        rows = [tuple(row) for row in await database.fetch("SELECT * FROM entries ORDER BY 1, 2, 3, 4")]
        return rows, await database.fetchval("SELECT clock_timestamp()")


async def has_backup(stack: RunningStack, term: int) -> bool:
    return any(each["name"].endswith(f"-{term}") for each in (await said(stack, "stack", "backups"))["backups"])


async def is_in_the_store(stack: RunningStack, s3: ObjectServer, moment: datetime) -> bool:
    """Return whether the store has every commit before the moment, and lines of both recovery logs."""
    until = (await said(stack, "stack", "backups"))["recoverable_until"]
    store = objects.open_store(f"{s3.address}/whole", s3.credentials)
    logs = {found.name.split("/")[1] async for found in store.list("log")}
    return until is not None and datetime.fromisoformat(until) >= moment and logs >= {"auth", "gateway"}


@pytest.mark.timeout(400)
@pytest.mark.nightly("long")
async def test_the_agent_of_a_stack_copies_all_to_s3_and_a_lost_home_comes_back(s3: ObjectServer, tmp_path: Path) -> None:
    usb, store = tmp_path / "usb.age", f"{s3.address}/whole"
    usb.write_text(sealing.new_identity(), encoding="utf-8")
    variables = {"BACKUP_TO": store, "BACKUP_RECIPIENTS": sealing.recipient_of(usb.read_text(encoding="utf-8")), "BACKUP_SHIP_SECONDS": "1"}
    async with stacks.stack(INFERENCE_BACKEND="echo", HYPERSWARM="off", **variables, **s3.credentials) as stack:
        await stacks.until(lambda: has_backup(stack, 1), seconds=60, what="the agent makes a backup")
        async with people.api_client(stack) as api_client:
            ann, bob = await api_client.register("ann"), await api_client.register("bob")
        assert await status_of(stack, ann.key) == 200
        for words in (("keys", "revoke", str(ann.key.id)), ("admin", "credits", bob.username, "500", "--note", "invoice 7")):
            assert (await stack.aicli(*words)).status == 0
        before, moment = await read_books(stack)
        assert before
        await stacks.until(lambda: is_in_the_store(stack, s3, moment), seconds=60, what="all is in the store")
        verified = await said(stack, "stack", "verify", "--identity", str(usb))
        assert (verified["ok"], verified["failures"], verified["secrets_opened"]) == (True, [], True)
        assert (await stack.aicli("stack", "down", deadline_seconds=200)).status == 0
        shutil.rmtree(stack.home)

        report = await said(stack, "stack", "restore", "latest", "--from", store, "--identity", str(usb), "--yes")
        assert (report["lost_rows"], datetime.fromisoformat(report["reached_at"]) >= moment) == (0, True)
        await stack.up()
        assert (await status_of(stack, ann.key), await status_of(stack, bob.key)) == (401, 200)
        assert (await read_books(stack))[0] == before
        assert (await stack.aicli("admin", "ledger", "verify")).status == 0
        # The restored site has the next term, and its agent continues with that term.
        await stacks.until(lambda: has_backup(stack, 2), seconds=60, what="the agent makes a backup of the new term")
