"""Single jobs and background responses over HTTP; lines end without a worker."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai

from features.jobs.gateway.background_responses import BackgroundResponses
from features.jobs.gateway.rest_jobs import RestJobs
from features.jobs.gateway.single_jobs import SingleJobs
from services.gateway.http_api.http_app import HttpAccess, HttpApp
from services.gateway.openai_api.openai_routes import OpenAiRoutes
from shared import errors
from shared.api.auth import Principal
from shared.node.http_server import HttpServer
from shared.node.settings import NodeSettings
from shared.stores.objects import ObjectStore
from shared.telemetry import Metrics
from shared.types import Credential, ModelName
from tests.features.files.gateway.file_site import KEYS, PEOPLE, SECRET
from tests.features.jobs.gateway import batch_site
from tests.features.jobs.gateway.batch_site import MODEL, BatchSite
from tests.services.gateway import fakes


class NoLimits:
    """In place of the quotas."""

    def limits(self, _caller: Principal) -> Sequence[Any]:
        return ()

    def ensure_left(self, *_what: object) -> None: ...

    async def count_refused(self, *_what: object) -> None: ...


class NoItems:
    """In place of the stored items."""

    async def drop_conversation(self, *_what: object) -> bool:
        return False


@dataclass
class SingleSite:
    batches: BatchSite
    singles: SingleJobs
    refuses_flex: bool = False

    def app(self) -> HttpApp:
        nowhere: Any = None
        limits: Any = NoLimits()
        no_items: Any = NoItems()

        async def identify(credential: Credential | None) -> Principal:
            assert credential is not None
            return PEOPLE[credential.partition(".")[0]]

        background = BackgroundResponses(self.singles)
        parts = (
            RestJobs(self.singles, self.batches.orders, fakes.node_id(1)),
            OpenAiRoutes(nowhere, lambda _caller: (), no_items, background),
            background,
        )
        routes = tuple(route for part in parts for route in part.routes())
        return HttpApp(routes, HttpAccess(identify=identify, quotas=limits), Metrics("gateway"), memory=self.batches.files.memory)

    def http(self, who: str = "ada") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {KEYS[who]}"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app()), base_url="http://gateway", headers=headers)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[openai.AsyncOpenAI]:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            server = HttpServer(self.app(), sock, NodeSettings(node_key_file=Path("/nowhere")))
            serving = asyncio.create_task(server.run())
            async with openai.AsyncOpenAI(
                api_key=KEYS["ada"], base_url=f"http://127.0.0.1:{sock.getsockname()[1]}/v1", max_retries=0
            ) as client:
                yield client
            server.stop()
            await serving


@asynccontextmanager
async def running(url: str, objects: ObjectStore) -> AsyncIterator[SingleSite]:
    async with batch_site.running(url, objects) as batches:

        def choose_model(_by: Principal, named: str | None) -> ModelName:
            if named not in (None, MODEL):
                raise errors.UnknownModel(f"there is no model {named}")
            return MODEL

        def runs_as_batch(_by: Principal, wanted: bool | None) -> bool:
            if wanted and site.refuses_flex:
                raise errors.PolicyForbidden("flex requests are not allowed here")
            return bool(wanted)

        rules = replace(batches.rules, choose_model=choose_model, runs_as_batch=runs_as_batch)
        site = SingleSite(batches, SingleJobs(batches.orders, batches.jobs, batches.files.storage, rules, secret=SECRET))
        yield site
