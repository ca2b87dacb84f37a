"""The source of backups: a database of the services with a backup role, the home of a stack, and an empty store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec

from features.backup.settings import BackupSettings
from features.backup.stack import agent_program, backup_place, sealing
from features.backup.stack.agent.source_database import SourceDatabase
from features.backup.stack.agent.wal_shipping import WalShipping
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.site_term import SiteRecord
from shared import config
from shared.stores.database import Database
from shared.stores.objects import ObjectStore, StoredObject, StoreUnavailable
from stack import initialization, secret_files, settings
from stack import stack_home as homes
from stack.features import StackSite
from stack.servers import postgres
from stack.stack_home import StackHome
from tests.servers import PostgresServer, running

_SERVICES = Path(__file__).parents[4] / "services"
ROLES = {role: f"password-of-{role}" for role in secret_files.LOGIN_ROLES}


@contextlib.contextmanager
def provisioned_server() -> Iterator[PostgresServer]:
    """A separate cluster, because the slot and damaged pages affect a whole cluster."""
    with running(PostgresServer) as server:
        postgres.provision(server.server, ROLES)
        yield server


@contextlib.contextmanager
def migrated_server() -> Iterator[PostgresServer]:
    """The same, with the tables of auth and the gateway."""
    with provisioned_server() as server:
        asyncio.run(migrate(server))
        yield server


async def migrate(server: PostgresServer) -> None:
    for service in ("auth", "gateway"):
        async with Database.open(server.server.url(service, ROLES[service]), schema=service, package=_SERVICES / service):
            pass


@dataclass
class FailingStore:
    """Fails writes of names that begin with one of ``failing``."""

    inner: ObjectStore
    failing: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def _check(self, name: str) -> None:
        self.asked.append(name)
        if name.startswith(self.failing):
            raise StoreUnavailable(f"the store failed at {name}: 403")

    async def put(self, name: str, data: bytes) -> None:
        self._check(name)
        await self.inner.put(name, data)

    async def put_stream(self, name: str, pieces: AsyncIterator[bytes], expected_bytes: int = 0) -> int:
        if name.startswith(self.failing):
            # In the middle of the upload, like a full disk.
            await anext(pieces)
        self._check(name)
        return await self.inner.put_stream(name, pieces, expected_bytes)

    async def put_if_absent(self, name: str, data: bytes) -> bool:
        self._check(name)
        return await self.inner.put_if_absent(name, data)

    async def get(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        return await self.inner.get(name, start, end)

    def read(self, name: str) -> AsyncIterator[bytes]:
        return self.inner.read(name)

    async def head(self, name: str) -> StoredObject:
        return await self.inner.head(name)

    def list(self, prefix: str = "") -> AsyncIterator[StoredObject]:
        return self.inner.list(prefix)

    async def delete(self, names: Sequence[str]) -> None:
        await self.inner.delete(names)

    async def delete_unfinished(self) -> None:
        await self.inner.delete_unfinished()


@dataclass(frozen=True)
class CopiedDatabase:
    server: PostgresServer
    home: StackHome
    #: The store's folder.
    folder: Path
    #: The operator's identity.
    identity: str
    place: BackupPlace
    source: SourceDatabase

    @property
    def store(self) -> FailingStore:
        assert isinstance(self.place.store, FailingStore)
        return self.place.store

    async def names(self, prefix: str = "") -> set[str]:
        return {found.name async for found in self.place.store.list(prefix)}

    def agent_environment(self) -> dict[str, str]:
        """Return the settings of the agent's program."""
        recorded = settings.read_recorded(self.home)
        return agent_program.environment(StackSite(home=self.home, settings=settings.load(recorded), recorded=recorded))

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.server.url(postgres.DATABASE))
        try:
            yield connection
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def shipping(self) -> AsyncIterator[WalShipping]:
        """Ship the log as the agent does, without an agent."""
        shipping = WalShipping(self.place, self.source, term=1)
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(shipping.run())
                yield shipping
                task.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


@contextlib.asynccontextmanager
async def copied_database(server: PostgresServer, folder: Path, **variables: str) -> AsyncIterator[CopiedDatabase]:
    """A database with a new home in ``folder``; ``variables`` are settings of `make up`."""
    identity = sealing.new_identity()
    home = homes.locate({"AIMESH_HOME": str(folder / "home")})
    given = {
        "BACKUP_TO": str(folder / "store"),
        "BACKUP_RECIPIENTS": sealing.recipient_of(identity),
        "BACKUP_MB_PER_SECOND": "0",
        "SITE_NAME": "here",
        "DATABASE_URL": server.server.url("auth", ROLES["auth"]),
        "BACKUP_DATABASE_URL": server.server.url("backup", ROLES["backup"]),
        **variables,
    }
    made = initialization.ensure(home, given, folder)
    home.own_site.write_bytes(msgspec.json.encode(SiteRecord(term=1, site="here", at=datetime.now(UTC), nonce="ours")))
    environment = agent_program.environment(StackSite(home=home, settings=made.settings, recorded=settings.read_recorded(home)))
    place = await backup_place.open_place(home, config.load(BackupSettings, environment), made.settings.mesh)
    place = replace(place, store=FailingStore(place.store))
    source = SourceDatabase(place.settings.backup_database_url or "", home.run)
    yield CopiedDatabase(server, home, folder / "store", identity, place, source)
    source.close()
    await source.drop_slot()
