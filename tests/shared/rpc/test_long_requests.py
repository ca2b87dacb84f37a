"""Requests of up to 17 MiB between real nodes, over NATS and over Hyperswarm: their memory, and their effect on other calls."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import msgspec
import pytest

from shared import errors, rpc
from shared.api import gateway, inference
from shared.api.auth import Principal
from shared.api.generation import MAX_PROMPT_BYTES, ChatMessage, GenerationEnd, ImagePart, Usage
from shared.api.method import Body
from shared.node.client_node import ClientNode
from shared.node.member import Node, Service
from shared.protocol import long_bodies, request_memory, wire
from shared.protocol.long_bodies import OutgoingBody
from shared.protocol.request_memory import RequestMemory
from shared.rpc import calling
from shared.rpc.connection import RpcConnection
from shared.types import Credential, FinishReason, ModelName, Role
from tests import tiers
from tests.shared.rpc.test_mesh import REQUEST_ID
from tests.shared.rpc.test_swarm_mesh import sees
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import NodeService, RunningNode, TestNet, testnet, until

MIB = 1024 * 1024


class Net:
    """Starts nodes, and waits until each sees those started before: on a busy machine, that takes longer than a call waits."""

    def __init__(self, opened: TestNet | SwarmNet) -> None:
        self._opened = opened
        self._nodes: list[RunningNode] = []

    async def start(self, service: type[Service]) -> RunningNode:
        node = await self._opened.start(service)
        await self._find_nodes(node)
        self._nodes.append(node)
        return node

    async def client(self) -> ClientNode:
        node = await self._opened.client()
        await self._find_nodes(node)
        return node

    async def _find_nodes(self, node: RunningNode | ClientNode) -> None:
        for other in self._nodes:
            await sees(node, other, seconds=30)


@pytest.fixture(params=tiers.by_day(("nats", "swarm"), "nats", group="long"))
async def net(request: pytest.FixtureRequest) -> AsyncIterator[Net]:
    async with testnet() if request.param == "nats" else swarmnet() as opened:
        yield Net(opened)


class _Service(NodeService):
    role: ClassVar[Role]

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.running = 0
        self.may_end = asyncio.Event()


class Worker(_Service):
    """Returns the images' total size, and ends when the test lets it."""

    role: ClassVar[Role] = Role.WORKER

    @rpc.serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: rpc.StreamCall[inference.Chunk]) -> GenerationEnd:
        sizes = [len(image.data) for message in request.prompt if isinstance(message, ChatMessage) for image in message.images]
        self.running += 1
        try:
            await stream.send(inference.Chunk(str(sum(sizes)), (1,)))
            await self.may_end.wait()
        finally:
            self.running -= 1
        return GenerationEnd(FinishReason.STOP, Usage(1, 1))


class Gateway(_Service):
    role: ClassVar[Role] = Role.GATEWAY

    @rpc.serves(gateway.process_inference_request)
    async def process(
        self, request: gateway.ProcessInferenceRequest, stream: rpc.StreamCall[gateway.InferenceChunk]
    ) -> gateway.InferenceResult:
        await stream.send(gateway.InferenceChunk("seen"))
        return gateway.InferenceResult(REQUEST_ID, ModelName("m"), FinishReason.STOP, Usage(1, 1), 1, 1)


def chat(size: int) -> tuple[ChatMessage, ...]:
    return (ChatMessage("user", "what is it?", images=(ImagePart(bytes(size)),)),)


def prompt(size: int) -> inference.ProcessPrompt:
    return inference.ProcessPrompt(chat(size), inference.ModelConfig(model=ModelName("m")), REQUEST_ID)


def memory(node: RunningNode) -> RequestMemory:
    return node.node.dispatcher.memory


@pytest.mark.parametrize("net", ["nats", "swarm"], indirect=True)
async def test_twelve_mebibytes_arrive_and_their_memory_is_freed_when_the_answer_ends(net: Net) -> None:
    worker, door = await net.start(Worker), await net.start(Gateway)
    assert isinstance(worker.service, Worker)
    async with door.node.rpc.stream(inference.process_prompt, prompt(12 * MIB)) as answer:
        assert (await anext(answer)).text == str(12 * MIB)
        assert 12 * MIB <= memory(worker).held_bytes <= 12 * MIB + 1000
        worker.service.may_end.set()
        assert [chunk async for chunk in answer] == []
    await until(lambda: not memory(worker).held_bytes)


async def test_twenty_callers_with_16_mib_each_hold_at_most_256_mib_and_the_others_are_told_to_retry(net: Net) -> None:
    worker, door = await net.start(Worker), await net.start(Gateway)
    assert isinstance(worker.service, Worker)
    most = 0

    async def ask() -> str:
        nonlocal most
        async with door.node.rpc.stream(inference.process_prompt, prompt(16 * MIB - 1000)) as answer:
            text = (await anext(answer)).text
            most = max(most, memory(worker).held_bytes)
            return text + "".join([chunk.text async for chunk in answer])

    asked = [asyncio.create_task(ask()) for _ in range(20)]
    async with asyncio.timeout(60):
        await until(lambda: sum(task.done() for task in asked) == 4 and worker.service.running == 16, seconds=60)
        worker.service.may_end.set()
        ends = await asyncio.gather(*asked, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, BaseException)]
    assert [type(end) for end in refused] == [errors.Overloaded] * 4
    assert isinstance(refused[0], errors.Overloaded)
    assert refused[0].retry_after_seconds
    assert 15 * 16 * MIB < most <= request_memory.MAX_HELD_BYTES
    await until(lambda: not memory(worker).held_bytes)


async def test_a_body_canceled_half_way_frees_its_memory_and_the_link_goes_on(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, door = await net.start(Worker), await net.start(Gateway)
    assert isinstance(worker.service, Worker)
    sent = asyncio.Event()
    send_piece = RpcConnection._send_piece

    def stop_half_way(connection: RpcConnection) -> None:
        if memory(worker).held_bytes:
            sent.set()
        send_piece(connection)

    monkeypatch.setattr(RpcConnection, "_send_piece", stop_half_way)

    async def ask() -> None:
        async with door.node.rpc.stream(inference.process_prompt, prompt(12 * MIB)):
            raise AssertionError("it was canceled before its body was sent")

    asking = asyncio.create_task(ask())
    await sent.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    await until(lambda: not memory(worker).held_bytes)
    worker.service.may_end.set()
    async with door.node.rpc.stream(inference.process_prompt, prompt(12 * MIB)) as answer:
        assert [chunk.text async for chunk in answer] == [str(12 * MIB)]
    assert worker.service.running == 0


async def test_a_refused_credential_ends_the_call_before_its_body_is_read(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    door = await net.start(Gateway)
    caller = await net.client()
    asked: list[Credential | None] = []
    pieces: list[wire.Piece] = []
    next_piece = OutgoingBody.next_piece
    monkeypatch.setattr(OutgoingBody, "next_piece", lambda body: pieces.append(next_piece(body)) or pieces[-1])

    class Gate:
        async def admit(self, method: object, request: msgspec.Struct, call: rpc.RpcCall) -> Principal | None:
            asked.append(call.credential)
            assert isinstance(request, Body)
            if call.credential != "good":
                assert not memory(door).held_bytes
                raise errors.NotAuthenticated("no such key")
            return None

    door.node.dispatcher.gate = Gate()
    request = gateway.ProcessInferenceRequest(gateway.InferenceRequest(messages=chat(12 * MIB)))
    with pytest.raises(errors.NotAuthenticated, match="no such key"):
        async with caller.rpc.stream(gateway.process_inference_request, request, credential=Credential("bad")) as answer:
            await anext(answer)
    assert asked == ["bad"]
    assert not pieces
    async with caller.rpc.stream(gateway.process_inference_request, request, credential=Credential("good")) as answer:
        assert [chunk.text async for chunk in answer] == ["seen"]


async def test_a_request_over_17_mib_and_a_long_one_of_another_method_are_refused(net: Net) -> None:
    await net.start(Worker)
    door = await net.start(Gateway)
    with pytest.raises(errors.TooLarge, match="the limit is 17825792"):
        async with door.node.rpc.stream(inference.process_prompt, prompt(17 * MIB)):
            pass
    long = inference.PullModel("x" * (wire.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(errors.TooLarge, match="the limit is 1048576"):
        async with door.node.rpc.stream(inference.pull_model, long):
            pass


@pytest.mark.parametrize("net", ["nats", "swarm"], indirect=True)
async def test_four_mebibytes_of_text_arrive(net: Net) -> None:
    worker, door = await net.start(Worker), await net.start(Gateway)
    assert isinstance(worker.service, Worker)
    text = msgspec.structs.replace(prompt(0), prompt=(ChatMessage("user", "x" * MAX_PROMPT_BYTES),))
    async with door.node.rpc.stream(inference.process_prompt, text) as answer:
        assert (await anext(answer)).text == "0"
        assert MAX_PROMPT_BYTES <= memory(worker).held_bytes <= MAX_PROMPT_BYTES + 1000
        worker.service.may_end.set()
        assert [chunk async for chunk in answer] == []
    await until(lambda: not memory(worker).held_bytes)


async def test_a_caller_that_sends_a_long_request_for_another_method_anyway_gets_an_error(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    await net.start(Gateway)
    caller = await net.client()
    monkeypatch.setattr(calling, "most_request_bytes", lambda method: wire.MAX_REQUEST_BYTES)
    long = gateway.PullOnWorkers("x" * (2 * MIB))
    with pytest.raises(errors.AimeshError, match=r"the limit is 1048576|there is no method"):
        async with caller.rpc.stream(gateway.pull_model, long) as answer:
            await anext(answer)


async def test_a_caller_that_stops_sending_loses_its_place(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, door = await net.start(Worker), await net.start(Gateway)
    monkeypatch.setattr("shared.rpc.connection.PIECE_SECONDS", 0.3)
    monkeypatch.setattr(RpcConnection, "_send_piece", lambda connection: None)
    with pytest.raises(errors.DeadlineExceeded, match="did not arrive in time"):
        async with door.node.rpc.stream(inference.process_prompt, prompt(12 * MIB)) as answer:
            await anext(answer)
    assert not memory(worker).held_bytes


async def test_frames_of_other_calls_go_between_the_pieces(net: Net) -> None:
    """The link queues a piece only when nothing else waits."""
    worker, door = await net.start(Worker), await net.start(Gateway)
    assert isinstance(worker.service, Worker)
    worker.service.may_end.set()
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, *(connection.link.unsent_bytes for connection in door.node.pool.connections()), 0)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async with door.node.rpc.stream(inference.process_prompt, prompt(12 * MIB)) as answer:
        assert [chunk.text async for chunk in answer] == [str(12 * MIB)]
    watching.cancel()
    assert most < 2 * wire.MAX_BODY_BYTES < long_bodies.GRANT_BYTES
