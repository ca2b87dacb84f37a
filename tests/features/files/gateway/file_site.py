"""Storage of files on a database and a store, its HTTP API, and files to upload."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import openai

from features.files.contract import FileFacts, FilePurpose
from features.files.gateway.file_objects import FileObjects
from features.files.gateway.file_routes import FileRoutes
from features.files.gateway.file_storage import FileStorage
from features.files.gateway.store import FileOwner, FileRows, NewFile
from services.gateway import store
from services.gateway.http_api.http_app import HttpAccess, HttpApp, HttpRoute
from shared import errors
from shared.api.auth import Principal
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.node.http_server import HttpServer
from shared.node.settings import NodeSettings
from shared.protocol.request_memory import RequestMemory
from shared.rpc.audit_reporting import AuditReporting
from shared.stores.database import Database
from shared.stores.objects import ObjectStore
from shared.telemetry import Metrics
from shared.types import Credential, TenantId, Tier, UserId, UserRole
from tests.services.gateway.models.registries import Acts

ADA = Principal(UserId(UUID(int=8)), "ada", UserRole.USER, Tier.FREE, team_id=TenantId(UUID(int=80)))
EVE = Principal(UserId(UUID(int=9)), "eve", UserRole.USER, Tier.FREE)
PEOPLE = {"ada": ADA, "eve": EVE}
KEYS = {name: Credential(f"{name}.eyJleHAiOjk5OTk5OTk5OTl9.x") for name in PEOPLE}
SECRET = "s" * 32


@dataclass
class Site:
    database: Database
    rows: FileRows
    objects: FileObjects
    storage: FileStorage
    acts: Acts
    memory: RequestMemory
    metrics: Metrics
    most_bytes: int | None = None
    more_routes: tuple[HttpRoute, ...] = ()

    def app(self) -> HttpApp:
        quotas: Any = None  # no route runs a model

        async def identify(credential: Credential | None) -> Principal:
            if credential is None:
                raise errors.NotAuthenticated("no credential")
            return PEOPLE[credential.partition(".")[0]]

        routes = (*FileRoutes(self.storage, lambda _caller: self.most_bytes).routes(), *self.more_routes)
        return HttpApp(routes, HttpAccess(identify=identify, quotas=quotas), Metrics("gateway"), memory=self.memory)

    def http(self, who: str = "ada") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {KEYS[who]}"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app()), base_url="http://gateway", headers=headers)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Yield the port."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            server = HttpServer(self.app(), sock, NodeSettings(node_key_file=Path("/nowhere")))
            serving = asyncio.create_task(server.run())
            yield sock.getsockname()[1]
            server.stop()
            await serving

    @asynccontextmanager
    async def client(self, who: str = "ada") -> AsyncIterator[openai.AsyncOpenAI]:
        async with (
            self.listening() as port,
            openai.AsyncOpenAI(api_key=KEYS[who], base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as client,
        ):
            yield client

    async def store(self, data: bytes, by: Principal = ADA, *, name: str = "a.jsonl", announced: int = 0, **more: Any) -> FileFacts:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 300_000):
                yield data[at : at + 300_000]

        new = NewFile(name, more.pop("purpose", FilePurpose.USER_DATA), **more)
        owner = FileOwner(by.tenant_id, by.user_id, self.most_bytes)
        return await self.storage.store(owner, pieces(), lambda: new, announced=announced)

    async def read(self, file: str, by: Principal = ADA, start: int = 0, end: int | None = None) -> bytes:
        found = await self.storage.find(by.tenant_id, file)
        return b"".join([piece async for piece in self.storage.read(found, start, found.facts.size if end is None else end)])

    async def count(self, table: str) -> int:
        """Return the rows of all tenants."""
        async with self.database.transaction() as transaction:
            assert transaction._connection is not None
            count: int = await transaction._connection.fetchval(f"SELECT count(*) FROM {table}")
            return count


@asynccontextmanager
async def running(url: str, objects: ObjectStore, *, most_bytes: int | None = None) -> AsyncIterator[Site]:
    async with store.opened(url) as database:
        rows, memory, metrics = FileRows(database), RequestMemory(), Metrics("gateway")
        file_objects = FileObjects(objects, rows, metrics)
        acts = Acts()
        storage = FileStorage(
            rows,
            file_objects,
            memory,
            cast("AuditReporting", acts),
            items=BackgroundItems(DeferredRows(database, "gateway"), Metrics("gateway")),
            secret=SECRET,
        )
        yield Site(database, rows, file_objects, storage, acts, memory, metrics, most_bytes)
