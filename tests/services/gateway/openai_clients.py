"""OpenAI's own Python client at a gateway on fakes, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import uvicorn

from tests.services.gateway.fakes import KEY, House


@asynccontextmanager
async def connected(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        server = uvicorn.Server(uvicorn.Config(house.app(), lifespan="off", log_config=None, access_log=False, http="h11"))
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{sock.getsockname()[1]}/v1", max_retries=0) as made:
            yield made
        server.should_exit = True
        await serving
