"""`aicli serve` on a running stack: over the mesh and over HTTPS, for programs that only know a port of their machine."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from shared.protocol import wire
from tests.stacks import RunningStack, until
from tests.stopwatch import HANG_SECONDS
from tests.testnet import free_port

WAYS = ("mesh", "https")


def variables(stack: RunningStack, way: str) -> dict[str, str]:
    return {} if way == "mesh" else {"AIMESH_URL": stack.url("web"), "AIMESH_API_KEY": stack.api_key}


@asynccontextmanager
async def serving(stack: RunningStack, way: str) -> AsyncIterator[httpx.AsyncClient]:
    port = free_port()
    process = await stack.start_aicli("serve", "--port", str(port), has_input=False, **variables(stack, way))
    try:
        async with (
            asyncio.timeout(HANG_SECONDS),
            httpx.AsyncClient(base_url=f"http://localhost:{port}", trust_env=False, timeout=60) as http,
        ):
            assert process.stdout is not None
            assert f"http://localhost:{port}".encode() in await process.stdout.readline()
            await until(lambda: _answers(http), what="the mesh answers at localhost")
            yield http
    finally:
        process.terminate()
        out, err = await process.communicate()
        assert process.returncode == 130, out + err


async def _answers(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/v1/models")).status_code == 200
    except httpx.ConnectError:
        return False


def chat(words: str, **fields: object) -> dict[str, object]:
    return {"model": "echo", "messages": [{"role": "user", "content": words}], **fields}


@pytest.mark.parametrize("way", WAYS)
async def test_openais_api(stack: RunningStack, way: str) -> None:
    async with serving(stack, way) as http:
        # Programs send a key because their library wants one.
        http.headers["authorization"] = "Bearer ollama"
        answer = await http.post("/v1/chat/completions", json=chat("one two"))
        assert answer.json()["choices"][0]["message"]["content"] == "one two"
        async with http.stream("POST", "/v1/chat/completions", json=chat("one two", stream=True)) as streamed:
            lines = [line async for line in streamed.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert streamed.headers["content-type"].startswith("text/event-stream")
        refused = await http.post("/v1/chat/completions", json=chat("hi", temperature=9))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
        # As long as the gateway takes: in OpenAI's words if it is longer.
        filler = "x" * (wire.MAX_REQUEST_BYTES - 64 * 1024)
        assert (await http.post("/v1/chat/completions", json=chat("hi", filler=filler))).status_code == 200
        large = await http.post("/v1/chat/completions", json=chat("hi", filler=filler * 2))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "context_length_exceeded")
        assert (await http.get("/rpc/auth.getAccount")).status_code == 404


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_ends_the_generation(stack: RunningStack, way: str) -> None:
    async def running() -> float:
        return await stack.metric("gateway", "ai_platform_inflight_requests")

    async with serving(stack, way) as http:
        before = await running()
        async with http.stream("POST", "/v1/chat/completions", json=chat("word " * 5000, stream=True)) as answer:
            await anext(answer.aiter_lines())
            assert await running() > before

        async def has_ended() -> bool:
            return await running() <= before

        await until(has_ended, seconds=10, what="the gateway ends the request")


async def test_a_gateway_that_is_away_is_503_and_comes_back(stack: RunningStack) -> None:
    async with serving(stack, "mesh") as http:
        killed = await stack.kill("gateway")
        answer = await http.post("/v1/chat/completions", json=chat("hi"))
        assert answer.status_code == 503
        assert json.loads(answer.content)["error"]["message"]
        await stack.restarted("gateway", killed, seconds=60)
        await until(lambda: _answers(http), seconds=30, what="it answers again by itself")
