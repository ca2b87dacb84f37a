"""Ollama's API of a running stack."""

import json

import httpx

from tests.cases import case
from tests.integration.test_serve import serving
from tests.stacks import RunningStack

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two"}]}


async def use(http: httpx.AsyncClient, base: str) -> None:
    assert (await http.get(f"{base}/")).text == "Ollama is running"
    assert "echo:latest" in [model["name"] for model in (await http.get(f"{base}/api/tags")).json()["models"]]
    streamed = await http.post(f"{base}/api/chat", json=CHAT)
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert "".join(json.loads(line)["message"]["content"] for line in streamed.text.splitlines()) == "one two"
    vectors = await http.post(f"{base}/api/embed", json={"model": "echo", "input": ["one", "two"]})
    assert len(vectors.json()["embeddings"]) == 2
    refused = await http.post(f"{base}/api/show", json={"model": "none"})
    assert (refused.status_code, refused.json()["code"]) == (404, "unknown_model")


async def test_it_is_at_the_gateway_at_web_and_at_localhost(stack: RunningStack) -> None:
    for service in ("gateway", "web"):
        with case(service):
            async with stack.http(stack.api_key, service=service) as http:
                await use(http, "/ollama")
    async with serving(stack, "mesh") as http:
        await use(http, "")
