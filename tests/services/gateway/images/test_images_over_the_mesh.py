"""A request with 12 MiB of images from a client through a real gateway to workers."""

import hashlib
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import gateway, inference
from shared.api.gateway import InferenceRequest, ProcessInferenceRequest
from shared.api.generation import ChatMessage, GenerationEnd, ImagePart, Usage
from shared.node.member import Node
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.rpc import StreamCall, serves
from shared.types import Credential, FinishReason, ModelName, Role
from tests.services.gateway.fakes import KEY
from tests.services.gateway.images.pictures import png
from tests.services.gateway.test_service import GatewayMesh, StandInAuth
from tests.testnet import MESH, NodeService, testnet, until

IMAGE = png(padding=12 * 1024 * 1024 - 200)


class SeeingWorker(NodeService):
    """The first instance that is asked fails before its first token."""

    role: ClassVar[Role] = Role.WORKER
    asked: ClassVar[int] = 0

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.offer(models=(ModelOffer(ModelName("smollm2"), 32_768, abilities=("images",)),), load=WorkerLoad(slots=4))

    @serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: StreamCall[inference.Chunk]) -> GenerationEnd:
        SeeingWorker.asked += 1
        if SeeingWorker.asked == 1:
            raise errors.Unavailable("the engine is gone")
        assert not isinstance(request.prompt, str)
        [message] = request.prompt
        [image] = message.images
        stream.accept(inference.PromptAccepted(777))
        await stream.send(inference.Chunk(f"{message.content}{image.at} {hashlib.sha256(image.data).hexdigest()}", (0,)))
        return GenerationEnd(FinishReason.STOP, Usage(777, 1))


@pytest.fixture
async def mesh(postgres_url: str, valkey_url: str) -> AsyncIterator[GatewayMesh]:
    async with testnet() as net:
        nodes = {"auth": await net.start(StandInAuth), "first": await net.start(SeeingWorker), "second": await net.start(SeeingWorker)}
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32,
        )  # fmt: skip
        nodes["gateway"] = await net.start(GatewayService, settings)
        client = await net.client()
        directory = nodes["gateway"].node.directory
        await until(
            lambda: len(directory.usable(Role.WORKER)) == 2 and directory.usable(Role.AUTH) and client.directory.usable(Role.GATEWAY)
        )
        yield GatewayMesh(net, client, nodes, settings)


def request(image: bytes = IMAGE, key: str | None = None) -> ProcessInferenceRequest:
    messages = (ChatMessage("user", "see", images=(ImagePart(image, 2, digest=b"a caller's own"),)),)
    return ProcessInferenceRequest(InferenceRequest(messages=messages), idempotency_key=key)


@pytest.mark.parametrize("key", [None, "k"])
async def test_an_image_reaches_another_worker_when_the_first_one_fails(mesh: GatewayMesh, key: str | None) -> None:
    SeeingWorker.asked = 0
    asked = mesh.client.rpc.stream(gateway.process_inference_request, request(key=key), credential=KEY)
    async with asked as answer:
        text = "".join([chunk.text async for chunk in answer])
    assert text == f"see2 {hashlib.sha256(IMAGE).hexdigest()}"
    assert SeeingWorker.asked == 2
    assert answer.end.usage.prompt_tokens == 777
    [row] = await mesh.rows("SELECT status, prompt_hash FROM gateway.request_logs")
    assert row["status"] == "success"
    await until(lambda: not mesh.nodes["gateway"].node.dispatcher.memory.held_bytes)


async def test_refusals_come_with_their_reason_and_leave_the_link_alone(mesh: GatewayMesh) -> None:
    SeeingWorker.asked = 1
    stream = mesh.client.rpc.stream
    with pytest.raises(errors.NotAuthenticated, match="key"):
        async with stream(gateway.process_inference_request, request(), credential=Credential(KEY[:-1] + "x")) as answer:
            await anext(answer)
    with pytest.raises(errors.BadRequest, match=r"images\[0\] is not a JPEG"):
        async with stream(gateway.process_inference_request, request(bytes(2**21)), credential=KEY) as answer:
            await anext(answer)
    with pytest.raises(errors.BadRequest, match="all images together"):
        async with stream(gateway.process_inference_request, request(png(padding=13 * 2**20)), credential=KEY) as answer:
            await anext(answer)
    assert SeeingWorker.asked == 1, "no worker was asked"
    async with stream(gateway.process_inference_request, request(png()), credential=KEY) as answer:
        assert len([chunk async for chunk in answer]) == 1


async def test_a_refused_image_counts_as_one_request_per_minute(mesh: GatewayMesh) -> None:
    async def ask() -> None:
        async with mesh.client.rpc.stream(gateway.process_inference_request, request(bytes(2**21)), credential=KEY) as answer:
            await anext(answer)

    for _ in range(10):
        with pytest.raises(errors.BadRequest, match=r"images\[0\] is not a JPEG"):
            await ask()
    with pytest.raises(errors.Limited, match="limit of 10 requests per minute is used up"):
        await ask()
