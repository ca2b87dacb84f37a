"""Backups of a database with the tables of auth and the gateway are tested, whole and damaged."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from services.auth import store as auth_store
from services.auth.audit.anchoring import Anchoring, AnchorKeys
from services.auth.audit.audit_store import AuditStore
from services.gateway import store as gateway_store
from services.gateway.billing.ledger_store import LedgerStore
from shared import errors
from shared.stores import objects
from shared.stores.recovery_check import RecoveryCheck, SchemaFacts
from shared.types import MeshName, MicroCredits, RequestId, TenantId
from stack import processes
from stack.recovery import catalog, layout, throwaway, verify
from stack.recovery.layout import BackupManifest
from stack.recovery.recovered_database import RestoreSource
from stack.recovery.sealing import DamagedObject
from stack.recovery.verify import VerifiedBackup
from stack.secret_files import DATABASE_ROLES
from stack.servers import postgres as stack_postgres
from tests import servers
from tests.backups import BackupMaker
from tests.services.auth.audit.deeds import act, fill

PASSWORDS = {role: f"password-of-{role}" for role in DATABASE_ROLES}
OWNER = TenantId(UUID(int=1))


class Site:
    """A cluster with two services' tables, whose backups are in ``maker.folder``."""

    def __init__(self, folder: Path, server: servers.PostgresServer) -> None:
        self.server = server
        self.maker = BackupMaker(folder / "store", server)
        self.anchors = folder / "audit_anchors.jsonl"

    def url(self, role: str) -> str:
        return self.server.server.url(role, PASSWORDS[role])

    async def begin(self) -> None:
        await self.maker.begin()
        await asyncio.to_thread(stack_postgres.provision, self.server.server, PASSWORDS)
        async with auth_store.opened(self.url("auth")) as database:
            rows = AuditStore(database)
            anchoring = Anchoring(rows, AnchorKeys.of(bytes(32)), MeshName("home"), self.anchors)
            await anchoring.write()
            await fill(rows, *map(act, range(9)))
            await anchoring.write()
        await self.top_up(5)

    async def top_up(self, micro: int) -> None:
        async with gateway_store.opened(self.url("gateway")) as database:
            await LedgerStore(database).top_up(RequestId(uuid4()), OWNER, MicroCredits(micro), "", None)

    async def execute(self, role: str, *statements: str) -> None:
        """As somebody with every right, and without triggers."""
        connection = await asyncpg.connect(
            self.server.url("aimesh"), server_settings={"search_path": role, "session_replication_role": "replica"}
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def base(self) -> BackupManifest:
        secrets, files = {"secrets/mesh_ca": b"seed", "keys/auth.nk": b"key"}, {"audit_anchors.jsonl": self.anchors.read_bytes()}
        return await self.maker.base(secrets=secrets, files=files)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a backup, and a top-up behind it."""
    with servers.running(servers.PostgresServer) as server:
        made = Site(tmp_path_factory.mktemp("site"), server)

        async def begin() -> None:
            await made.begin()
            await made.base()
            await made.top_up(7)
            await made.maker.ship()

        asyncio.run(begin())
        yield made


class CopiedStore:
    """Tests copies of the site's backups as the agent does: it has the stack's own identity."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.work = site, folder / "work"
        self.folder = folder / "store"
        shutil.copytree(site.maker.folder, self.folder)
        self.store = objects.open_store(str(self.folder), {})

    def source(self, identity: str | None = None) -> RestoreSource:
        return RestoreSource(self.store, self.site.maker.store_mesh, (identity or self.site.maker.own_identity,))

    async def verify(self, which: str = "latest", *, identity: str | None = None) -> VerifiedBackup:
        return await verify.verify(
            self.source(identity), which, self.work, lambda *_: None, opens_secrets=identity is not None, key=self.site.maker.key
        )

    def object(self, ending: str) -> str:
        """Return the name of the first object with this ending."""
        return min(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if str(path).endswith(ending))


@pytest.fixture
def copied(site: Site, tmp_path: Path) -> CopiedStore:
    return CopiedStore(site, tmp_path)


async def test_a_good_backup_passes_and_the_result_is_kept(copied: CopiedStore) -> None:
    result = await copied.verify()
    assert (result.failures, result.ok, result.secrets_opened) == ((), True, False)
    assert (result.ledger_entries, result.audit_rows, result.lost_rows) == (4, 9, 0), "with the top-up behind the backup"
    assert 0 < result.seconds <= result.present_seconds
    kept = (await catalog.read(copied.store, copied.site.maker.store_mesh)).tests
    assert kept is not None
    assert (kept.backup, kept.ok, kept.passed) == (result.backup, True, {result.backup: result.at})
    assert list(copied.work.iterdir()) == [], "nothing is left"
