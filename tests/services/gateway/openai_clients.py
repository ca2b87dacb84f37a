"""OpenAI's own Python client connected to a gateway with a fake mesh and store, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai

from shared.node.http_server import HttpServer
from shared.node.settings import NodeSettings
from tests.services.gateway.fakes import KEY, RunningService


@asynccontextmanager
async def listening(running_service: RunningService) -> AsyncIterator[int]:
    """Yield the port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        server = HttpServer(running_service.app(), sock, NodeSettings(node_key_file=Path("/nowhere")))
        serving = asyncio.create_task(server.run())
        yield sock.getsockname()[1]
        server.stop()
        await serving


@asynccontextmanager
async def connected(running_service: RunningService) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        listening(running_service) as port,
        openai.AsyncOpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as client,
    ):
        yield client
