"""`gateway.serveHttp`: HTTP requests over the mesh, through a real gateway to a worker."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import gateway, inference
from shared.api.gateway import HttpPart, HttpRequest
from shared.protocol import windows, wire
from shared.types import Credential, Role
from tests.services.gateway.fakes import KEY, TOKEN
from tests.services.gateway.http_answers import CHAT
from tests.services.gateway.test_service import ADMIN_TOKEN, GatewayMesh, StandInAuth, StandInWorker
from tests.testnet import MESH, testnet, until

JSON = (b"content-type", b"application/json")
#: An event of the test below.
MAX_PART_BYTES = 1000


@pytest.fixture
async def mesh(postgres_url: str, valkey_url: str) -> AsyncIterator[GatewayMesh]:
    async with testnet() as net:
        nodes = {"auth": await net.start(StandInAuth), "worker": await net.start(StandInWorker)}
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32,
        )  # fmt: skip
        nodes["gateway"] = await net.start(GatewayService, settings)
        client = await net.client()
        directory = nodes["gateway"].node.directory
        await until(lambda: directory.usable(Role.WORKER) and directory.usable(Role.AUTH) and client.directory.usable(Role.GATEWAY))
        yield GatewayMesh(net, client, nodes, settings)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Mapping[bytes, bytes]
    text: str
    parts: int


def chat(**fields: Any) -> HttpRequest:
    return HttpRequest("POST", "/v1/chat/completions", headers=(JSON,), body=json.dumps({**CHAT, **fields}).encode())


async def send(mesh: GatewayMesh, request: HttpRequest, credential: Credential | None = KEY) -> Response:
    async with mesh.client.rpc.stream(gateway.serve_http, request, credential=credential, deadline_seconds=60) as answer:
        first, *rest = parts = [part async for part in answer]
    assert not any(part.status or part.headers for part in rest)
    return Response(first.status, dict(first.headers), b"".join(part.body for part in parts).decode(), len(parts))


async def test_a_request_is_answered_as_over_http(mesh: GatewayMesh) -> None:
    whole = await send(mesh, chat())
    assert (whole.status, whole.headers[b"content-type"], whole.parts) == (200, b"application/json", 1)
    assert json.loads(whole.text)["choices"][0]["message"]["content"] == "Hello world"
    assert int(whole.headers[b"x-ratelimit-remaining-requests"]) > 0
    streamed = await send(mesh, chat(stream=True, no_such_field=1))
    assert (streamed.status, streamed.headers[b"x-aimesh-ignored"]) == (200, b"no_such_field")
    assert streamed.headers[b"content-type"].startswith(b"text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")
    # Its first text, its second one, and its end.
    assert streamed.parts == 3
    assert (await mesh.ended()) == [("success", 2)] * 2
    listed = await send(mesh, HttpRequest("GET", "/v1/models"))
    assert [model["id"] for model in json.loads(listed.text)["data"]] == ["smollm2"]


async def test_errors_are_those_of_the_route(mesh: GatewayMesh) -> None:
    refused = await send(mesh, chat(temperature=9))
    assert (refused.status, json.loads(refused.text)["error"]["param"]) == (400, "temperature")
    missing = await send(mesh, HttpRequest("GET", "/v1/v1/models", headers=((b"host", b"localhost:11434"),)))
    assert missing.status == 404
    assert "set the base URL of your client to http://localhost:11434" in missing.text
    large = await send(mesh, HttpRequest("POST", "/v1/chat/completions", headers=(JSON, (b"content-length", b"%d" % 2**40))))
    assert (large.status, json.loads(large.text)["error"]["code"]) == (413, "context_length_exceeded")


@pytest.mark.parametrize("path", ["/rpc/gateway.topUp", "/api/auth/api-keys", "/metrics", "/", "/v1", "/infill", "/V1/models", ""])
async def test_only_the_apis_of_vendors_are_served(mesh: GatewayMesh, path: str) -> None:
    with pytest.raises(errors.NotFound, match=r"only /v1/, (/\w+/, )*/api/models/blobs/ are served"):
        await send(mesh, HttpRequest("POST", path, headers=(JSON,), body=b"{}"), ADMIN_TOKEN)
    # Nor by way of another path.
    assert (await send(mesh, HttpRequest("POST", f"/v1/..{path or '/'}", headers=(JSON,), body=b"{}"), ADMIN_TOKEN)).status == 404


async def test_the_user_is_the_calls_and_not_the_headers(mesh: GatewayMesh) -> None:
    request = HttpRequest("GET", "/v1/models", headers=((b"authorization", b"Bearer " + TOKEN.encode()), (b"x-api-key", KEY.encode())))
    assert (await send(mesh, request)).status == 200
    for credential, why in ((None, "credential"), (Credential("aip_live_wrong"), "key")):
        with pytest.raises(errors.NotAuthenticated, match=why):
            await send(mesh, request, credential)
    # A key that a proxy vouches for, and an address.
    spoofed = HttpRequest("GET", "/v1/models", headers=((b"x-forwarded-for", b"10.0.0.1"), (b"x-aimesh-web-secret", b"x")))
    assert (await send(mesh, spoofed)).status == 200


async def test_a_request_is_counted_once(mesh: GatewayMesh) -> None:
    await send(mesh, chat())
    await send(mesh, HttpRequest("GET", "/v1/nothing"))
    with pytest.raises(errors.NotFound, match="only /v1/"):
        await send(mesh, HttpRequest("GET", "/api/usage"))
    with pytest.raises(errors.NotAuthenticated, match="key"):
        await send(mesh, chat(), Credential("unknown"))
    text = mesh.nodes["gateway"].node.metrics.render()
    counted = re.findall(r'^ai_platform_requests_total{method="(\w+)",service="gateway",status="(\w+)"} (\S+)', text, re.MULTILINE)
    assert sorted(one for one in counted if not one[0].startswith("read")) == [
        ("processInferenceRequest", "success", "1.0"),
        # Those that the API never saw.
        ("serveHttp", "not_authenticated", "1.0"),
        ("serveHttp", "not_found", "1.0"),
        ("unknown", "not_found", "1.0"),
    ]


async def test_a_reader_that_leaves_ends_the_generation(mesh: GatewayMesh) -> None:
    worker: StandInWorker = mesh.nodes["worker"].service  # type: ignore[assignment]
    worker.hangs = True
    async with mesh.client.rpc.stream(gateway.serve_http, chat(stream=True), credential=KEY) as answer:
        async for _ in answer:
            break
    await until(lambda: worker.cancelled == 1)
    assert await mesh.ended() == [("cancelled", 1)]
    async with mesh.client.rpc.stream(gateway.serve_http, chat(), credential=KEY) as answer:
        await until(lambda: worker.ran == 2)
    await until(lambda: worker.cancelled == 2)


async def test_a_reader_that_reads_nothing_stops_the_worker(mesh: GatewayMesh) -> None:
    worker: StandInWorker = mesh.nodes["worker"].service  # type: ignore[assignment]
    piece, count = "x" * 100, 2000
    worker.chunks = tuple(inference.Chunk(piece, (number,)) for number in range(count))
    async with mesh.client.rpc.stream(gateway.serve_http, chat(stream=True, max_tokens=count), credential=KEY) as answer:
        first = await anext(answer)
        assert first.status == 200
        unread: list[int] = []

        async def is_still() -> None:
            while len(unread) < 20 or unread[-20] != unread[-1]:
                await asyncio.sleep(0.02)
                unread.append(sum(map(len, answer._bodies)))

        async with asyncio.timeout(60):
            await is_still()
        assert unread[-1] <= windows.LARGEST_BYTES + MAX_PART_BYTES
        texts = first.body + b"".join([part.body async for part in answer])
    assert texts.count(piece.encode()) == count


async def test_long_bodies_are_held_once_and_released(mesh: GatewayMesh) -> None:
    memory = mesh.nodes["gateway"].node.dispatcher.memory
    filler = "x" * (16 * 1024 * 1024)
    # One tenant has room for three of them, not for one and a half.
    requests = [HttpRequest("POST", "/v1/chat/completions", headers=(JSON,), body=json.dumps({**CHAT, "filler": filler}).encode())] * 3
    answers = await asyncio.gather(*(send(mesh, request) for request in requests))
    assert {(answer.status, answer.headers[b"x-aimesh-ignored"]) for answer in answers} == {(200, b"filler")}
    assert memory.held_bytes == 0
    with pytest.raises(errors.TooLarge, match="the request is"):
        await send(mesh, HttpRequest("POST", "/v1/chat/completions", headers=(JSON,), body=b"x" * wire.MAX_REQUEST_BYTES))


async def test_parts_have_the_head_first(mesh: GatewayMesh) -> None:
    async with mesh.client.rpc.stream(gateway.serve_http, HttpRequest("OPTIONS", "/v1/models"), credential=KEY) as answer:
        parts: list[HttpPart] = [part async for part in answer]
    assert [part.status for part in parts] == [405]
