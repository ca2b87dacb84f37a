"""A stack with BACKUP_TO: commits and revocations reach the store, and an unavailable store doesn't block anyone."""

import asyncio
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from features.backup.contract import BackupReport, BackupState
from features.backup.stack import catalog, sealing
from features.backup.stack.catalog import StoreCatalog
from shared.api import auth, recovery
from shared.identity import node_keys
from shared.recovery.recovery_lines import RecoveryLine
from shared.stores import objects
from tests import people, stacks
from tests.full_stack.conftest import Surroundings
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

pytestmark = pytest.mark.timeout(180)
#: What the agent logs while it cannot write lines of the recovery log.
NOT_COPIED = "the recovery log is not copied"


@dataclass(frozen=True, slots=True)
class BackedUpStack:
    stack: RunningStack
    #: The store.
    folder: Path

    async def read_catalog(self) -> StoreCatalog:
        store = objects.open_store(str(self.folder), {})
        mesh = await catalog.read_mesh(store, {node_keys.load(self.stack.place.secrets / "recovery.nk").id})
        assert mesh is not None
        return await catalog.read(store, mesh)

    async def until_(self) -> datetime | None:
        state = (await self.read_catalog()).state
        return None if state is None else state.until

    def log_lines(self, service: str) -> list[RecoveryLine]:
        """Return the lines of a service's recovery log that are in the store."""
        identity = (self.stack.place.secrets / "backup_identity").read_text(encoding="utf-8").strip()
        key = node_keys.load(self.stack.place.secrets / "recovery.nk").id
        found: list[RecoveryLine] = []
        for path in sorted((self.folder / "log" / service).glob("*.age")):
            name = str(path.relative_to(self.folder))
            lines = sealing.open_bytes(name, path.read_bytes(), [identity], {key}, stacks.MESH)
            found += [msgspec.json.decode(line, type=RecoveryLine) for line in lines.splitlines()]
        return found

    async def until_revoked(self, key: people.Key, *, seconds: float) -> None:
        async def is_there() -> bool:
            return str(key.id) in {line.subject for line in self.log_lines("auth") if line.kind == "key.revoked"}

        await until(is_there, seconds=seconds, what=f"the revocation of {key.id} is in the store")


@pytest.fixture
def backed_up(stack: RunningStack, surroundings: Surroundings) -> BackedUpStack:
    return BackedUpStack(stack, surroundings.store)


async def report_of(api_client: ApiClient) -> BackupReport | None:
    """Return the report that an administrator sees; None until it has a backup and the recovery logs of both services are copied."""
    found = await api_client.mesh.rpc.call(recovery.get_backups, recovery.GetBackups(), credential=api_client.admin_key)
    assert found.state is BackupState.ON
    report = found.report
    return report if report is not None and report.backups and report.log_behind_seconds == 0 else None


async def revoke(api_client: ApiClient, person: Person) -> people.Key:
    key = await api_client.make_key(person, "leaked")
    await api_client.mesh.rpc.call(auth.revoke_api_key, auth.RevokeApiKey(key.id), credential=person.access_token)
    return key


def numbers(found: StoreCatalog) -> list[int]:
    """Return the numbers of the segments since the start of the newest backup."""
    newest = found.backups[-1]
    return sorted({each.number for each in found.segments if each.number >= newest.start_lsn // newest.segment_size})


async def test_commits_and_revocations_reach_the_store_whatever_fails(backed_up: BackedUpStack, api_client: ApiClient) -> None:
    stack, folder = backed_up.stack, backed_up.folder

    async def later_than(moment: datetime) -> bool:
        now = await backed_up.until_()
        return now is not None and now > moment

    ann = await api_client.register("ann")
    await backed_up.until_revoked(await revoke(api_client, ann), seconds=2)
    report = await until(lambda: report_of(api_client), seconds=25, what="a report with a backup")
    (backup,) = report.backups
    assert [each.name for each in (await backed_up.read_catalog()).backups] == [backup.name]
    assert (report.term, report.store_failing_since) == (1, None)
    assert report.recoverable_from is not None

    # --- the store is unavailable
    before = await backed_up.until_()
    assert before is not None
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("no folder")
    failures = stack.log("backup").count(NOT_COPIED)
    leaked = await revoke(api_client, ann)
    async with stack.http(ann.key.secret) as http:
        assert (await http.get("/v1/models")).status_code == 200
    await until(lambda: _says(stack, failures + 1), seconds=10, what="the agent notices")
    folder.unlink()
    await asyncio.to_thread(shutil.move, away, folder)
    await backed_up.until_revoked(leaked, seconds=8)
    await until(lambda: later_than(before), seconds=8, what="later commits are in the store")

    # --- the agent is killed
    pid = await stack.kill("backup")
    leaked = await revoke(api_client, ann)
    await stack.restarted("backup", pid)
    await backed_up.until_revoked(leaked, seconds=10)
    before = await backed_up.until_()
    assert before is not None
    await until(lambda: later_than(before), seconds=10, what="later commits are in the store")
    found = await backed_up.read_catalog()
    assert len(found.backups) == 1
    assert numbers(found) == list(range(numbers(found)[0], numbers(found)[-1] + 1)), "no segment is missing"
    assert numbers(found)[0] == found.backups[0].start_lsn // found.backups[0].segment_size
    lines = backed_up.log_lines("auth")
    assert sorted({line.number for line in lines}) == list(range(1, max(line.number for line in lines) + 1))


async def _says(stack: RunningStack, times: int) -> bool:
    return stack.log("backup").count(NOT_COPIED) >= times
