"""A whole gateway with a worker and a store of files, over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from features.files.settings import FileSettings
from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared.api import auth, inference
from shared.api.generation import GenerationEnd
from shared.node import Node
from shared.node.http_server import Operations
from shared.rpc import RpcCall, StreamCall, serves
from shared.types import Role
from tests.services.gateway.fakes import PERSON, TOKEN
from tests.services.gateway.test_service import StandInAuth, StandInWorker
from tests.stopwatch import HANG_SECONDS
from tests.testnet import MESH, testnet, until


class Auth(StandInAuth):
    @serves(auth.identify_owner)
    async def identify_owner(self, request: auth.IdentifyOwner, _call: RpcCall) -> auth.Principal:
        assert (request.user_id, request.key_id, request.team_id) == (PERSON.user_id, None, None)
        return PERSON


class Worker(StandInWorker):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.prompts: list[Any] = []

    @serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: StreamCall[inference.Chunk]) -> GenerationEnd:
        self.prompts.append(request.prompt)
        return await super().process(request, stream)


@dataclass
class Mesh:
    http: httpx.AsyncClient
    worker: Worker

    async def poll(self, path: str, *, until_not: set[Any], field: str) -> Any:
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                found = await self.http.get(path)
                assert found.status_code in {200, 202}, found.text
                if found.json().get(field) not in until_not:
                    return found.json()
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running_mesh(postgres_url: str, valkey_url: str, tmp_path: Path, **more: Any) -> AsyncIterator[Mesh]:
    async with testnet() as net:
        await net.start(Auth)
        worker = await net.start(Worker)
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32, more=(FileSettings(files_url=str(tmp_path / "store")),), **more,
        )  # fmt: skip
        running = await net.start(GatewayService, settings)
        await until(lambda: running.node.directory.usable(Role.AUTH) and running.node.directory.usable(Role.WORKER))
        app = Operations(running.node, settings)
        app.open(running.service)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", headers=headers) as http:
            yield Mesh(http, worker.service)
