"""However much of the write-ahead log reached the store: the restored ledger is a prefix of the committed one, and its sums add up."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from features.backup.stack import catalog, sealing
from features.backup.stack.layout import BackupManifest, Segment, WalObject
from features.backup.stack.restoring import recovered_database, restore_plan
from features.backup.stack.restoring.recovered_database import RestoreSource
from features.backup.stack.restoring.restore_plan import LATEST, RestoreTarget
from services.gateway import recovery_check
from services.gateway import store as gateway_store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import NO_PLAN
from shared.stores import objects
from shared.types import MicroCredits, RequestId, TenantId
from stack.secret_files import LOGIN_ROLES
from stack.servers import postgres as stack_postgres
from tests import servers, tiers
from tests.features.backup.stack.backups import SEGMENT, BackupMaker

PASSWORDS = {role: f"password-of-{role}" for role in LOGIN_ROLES}
#: Several segments of log, the last one unfinished.
COMMITS, PER_SEGMENT = 24, 7
CUTS = 40 if tiers.is_nightly() else 1


class History:
    """A series of top-ups; each changes an account and adds two entries."""

    def __init__(self, folder: Path, server: servers.PostgresServer) -> None:
        self.maker = BackupMaker(folder, server)
        #: In commit order: the transfer, and the log's end after it.
        self.commits: list[tuple[UUID, int]] = []

    async def write(self) -> BackupManifest:
        await self.maker.begin()
        await asyncio.to_thread(stack_postgres.provision, self.maker.server.server, PASSWORDS)
        async with gateway_store.opened(self.maker.server.server.url("gateway", PASSWORDS["gateway"])) as database:
            ledger = LedgerStore(database)
            backup = await self.maker.base()
            for number in range(1, COMMITS + 1):
                transfer = RequestId(uuid4())
                await ledger.top_up(transfer, TenantId(UUID(int=number % 3)), MicroCredits(number), "", NO_PLAN)
                self.commits.append((transfer, int(str(await self.maker.run("SELECT pg_current_wal_flush_lsn()")))))
                if number % PER_SEGMENT == 0:
                    await self.maker.run("SELECT pg_switch_wal()")
        await self.maker.ship()
        return backup

    async def cut(self, end: int, folder: Path) -> RestoreSource:
        """Return a copy of the store that has the log up to a position, which may be inside a record."""
        await asyncio.to_thread(shutil.copytree, self.maker.folder, folder)
        source = RestoreSource(objects.open_store(str(folder), {}), self.maker.store_mesh, (self.maker.own_identity,))
        for segment in (await catalog.read(source.store, source.mesh)).segments:
            start = segment.number * SEGMENT
            if start + SEGMENT > end:
                whole = await source.segment(segment, SEGMENT)
                await source.store.delete([segment.object(SEGMENT)])
                if start < end:
                    name = Segment(segment.timeline, segment.number, is_partial=True).object(SEGMENT)
                    body = msgspec.msgpack.encode(WalObject(data=whole.data[: end - start], until=whole.until, lsn=end))
                    mesh, maker = self.maker.mesh, self.maker
                    await source.store.put(name, sealing.seal_bytes(name, body, maker.key, mesh, maker.recipients))
        return source


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[History, BackupManifest]]:
    with servers.running(servers.PostgresServer) as server:
        made = History(tmp_path_factory.mktemp("history"), server)
        yield made, asyncio.run(made.write())


@pytest.mark.nightly("recovery")
@pytest.mark.parametrize("number", range(CUTS))
async def test_a_cut_gives_a_prefix_whose_sums_add_up(history: tuple[History, BackupManifest], tmp_path: Path, number: int) -> None:
    written, backup = history
    end = random.Random(number).randint(backup.stop_lsn, written.commits[-1][1])
    source = await written.cut(end, tmp_path / "store")
    found = await catalog.read(source.store, source.mesh)
    plan = restore_plan.plan(found, LATEST, RestoreTarget(), await source.histories(found.histories))
    await recovered_database.fetch_and_unpack(source, plan, tmp_path, lambda *_: None)
    async with recovered_database.recovered(tmp_path, plan, lambda *_: None, is_durable=False) as database:
        connection = await asyncpg.connect(database.url)
        transfers = [row["transfer"] for row in await connection.fetch("SELECT transfer FROM gateway.entries GROUP BY 1 ORDER BY min(id)")]
        await connection.close()
        checked = await recovery_check.check(database.url_of("gateway"))
    assert transfers == [transfer for transfer, _ in written.commits[: len(transfers)]]
    assert len(transfers) == sum(position <= end for _, position in written.commits), "every commit whose record is there"
    assert checked.failures == ()
    assert checked.ledger_entries == 2 * len(transfers)
