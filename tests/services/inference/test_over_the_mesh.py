"""The service as the gateway sees it: over real links, found in the directory, canceled over the network."""

import asyncio
from typing import Any

import msgspec
import pytest

from services.inference.backends import echo
from services.inference.receipts import ReceiptKeeper
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import errors, rpc
from shared.api import embedding, inference
from shared.api.generation import ChatMessage, Usage
from shared.context import new_request_id
from shared.identity import node_keys
from shared.node.member import member
from shared.node.settings import NodeSettings
from shared.types import ModelName, NodeId, Role
from tests.testnet import MESH, RunningNode, TestNet, until

ECHO = ModelName("echo")


async def start(net: TestNet, *, token_ms: float = 0, slots: int = 256, queue: int = 32) -> RunningNode:
    key = net.server.key("worker", Role.WORKER)
    settings = InferenceSettings(
        mesh=MESH, nats_url=net.server.url, node_key_file=key, backend="echo", echo_token_ms=token_ms, echo_slots=slots, queue=queue
    )
    return await net.start(InferenceService, settings)


def gateway_settings(net: TestNet) -> NodeSettings:
    return NodeSettings(mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY))


def prompt(text: str, model: ModelName = ECHO) -> inference.ProcessPrompt:
    return inference.ProcessPrompt(text, inference.ModelConfig(model=model), new_request_id())


async def test_gateway_finds_the_model_streams_an_answer_and_reads_the_usage(net: TestNet) -> None:
    await start(net, queue=5)
    async with member(gateway_settings(net), Role.GATEWAY) as gateway:
        await until(lambda: gateway.directory.usable(Role.WORKER))
        (worker,) = gateway.directory.usable(Role.WORKER)
        assert (worker.announcement.load.slots, worker.announcement.load.queue) == (256, 5)
        assert [(offer.name, offer.context_tokens) for offer in worker.announcement.models] == [("echo", echo.CONTEXT_TOKENS)]
        async with gateway.rpc.stream(inference.process_prompt, prompt("one two three"), to=worker.node) as answer:
            texts = [chunk.text async for chunk in answer]
        assert texts == ["one", " two", " three"]
        assert answer.end.usage == Usage(3, 3)
        with pytest.raises(errors.UnknownModel, match="it serves: echo"):
            async with gateway.rpc.stream(inference.process_prompt, prompt("a", ModelName("llama3")), to=worker.node) as answer:
                _ = [chunk async for chunk in answer]


async def test_gateway_gets_tokens_and_rendered_chats(net: TestNet) -> None:
    await start(net)
    async with member(gateway_settings(net), Role.GATEWAY) as gateway:
        await until(lambda: gateway.directory.usable(Role.WORKER))

        async def convert(method: Any, request: inference.Conversion) -> bytes:
            content = b""
            async with gateway.rpc.stream(method, request) as answer:
                async for part in answer:
                    assert part.start == len(content)
                    content += part.content
            assert answer.end == inference.Converted(echo.CONTEXT_TOKENS)
            return content

        messages = (ChatMessage("system", "be brief"), ChatMessage("user", "one two"))
        tokens = await convert(inference.tokenize, inference.Tokenize(ECHO, messages))
        asked = inference.ProcessPrompt(messages, inference.ModelConfig(model=ECHO), new_request_id())
        async with gateway.rpc.stream(inference.process_prompt, asked) as answer:
            _ = [chunk async for chunk in answer]
        assert len(tokens) == 4 * answer.end.usage.prompt_tokens == 16
        assert await convert(inference.render_chat, inference.RenderChat(ECHO, messages)) == b"be brief\none two"
        # Twice what fits in one message.
        text = ChatMessage("user", "a " * 480_000)
        assert len(await convert(inference.tokenize, inference.Tokenize(ECHO, (text,), raw=True))) == 4 * 480_000
        assert await convert(inference.tokenize, inference.Tokenize(ECHO, (ChatMessage("user", ""),), raw=True)) == b""
        with pytest.raises(errors.BadRequest, match="hashes of words"):
            await convert(inference.detokenize, inference.Detokenize(ECHO, tokens))
        for method, bad, said in (
            (inference.tokenize, inference.Tokenize(ECHO, (), raw=True), "prompt is missing"),
            (inference.tokenize, inference.Tokenize(ECHO, (ChatMessage("robot", "a"),)), r"messages\[0\].role must be"),
            (inference.render_chat, inference.RenderChat(ECHO, ()), "the prompt is empty"),
        ):
            with pytest.raises(errors.BadRequest, match=said):
                await convert(method, bad)
        with pytest.raises(errors.UnknownModel, match="it serves: echo"):
            await convert(inference.detokenize, inference.Detokenize(ModelName("llama3"), tokens))


async def test_gateway_gets_the_vectors_of_texts(net: TestNet) -> None:
    await start(net)
    async with member(gateway_settings(net), Role.GATEWAY) as gateway:
        await until(lambda: gateway.directory.usable(Role.WORKER))
        sent = embedding.Embed(ECHO, ("one two", "two one"), new_request_id(), dimensions=8)
        async with gateway.rpc.stream(embedding.embed, sent) as answer:
            vectors = [vector async for item in answer for vector in item.vectors]
        assert answer.accepted == inference.PromptAccepted(4)
        assert answer.end == embedding.Embedded(8, 4)
        assert vectors[0] == vectors[1]
        assert len(vectors[0]) == 8 * 4
        with pytest.raises(errors.BadRequest, match=r"inputs\[0\] is empty"):
            async with gateway.rpc.stream(embedding.embed, embedding.Embed(ECHO, ("",), new_request_id())) as answer:
                _ = [item async for item in answer]


async def test_disconnected_gateway_stops_the_generation(net: TestNet) -> None:
    await start(net, token_ms=20)
    async with member(gateway_settings(net), Role.GATEWAY) as gateway:
        await until(lambda: gateway.directory.usable(Role.WORKER))
        async with gateway.rpc.stream(inference.process_prompt, prompt("word " * 500)) as answer:
            async for _ in answer:
                assert await running(gateway.rpc) == 1
                break
        async with asyncio.timeout(30):
            while await running(gateway.rpc):
                pass


async def test_gateway_reads_receipts_of_finished_and_running_requests(net: TestNet) -> None:
    await start(net, token_ms=5)
    async with member(gateway_settings(net), Role.GATEWAY) as gateway:
        await until(lambda: gateway.directory.usable(Role.WORKER))
        (worker,) = gateway.directory.usable(Role.WORKER)
        whole, left = prompt("one two three"), prompt("word " * 500)
        async with gateway.rpc.stream(inference.process_prompt, whole) as answer:
            assert len([chunk async for chunk in answer]) == 3
        async with gateway.rpc.stream(inference.process_prompt, left) as answer:
            await anext(aiter(answer))
            assert (await receipts(gateway.rpc, worker.node, left))[0].ended == inference.RUNNING
        async with asyncio.timeout(30):
            while await running(gateway.rpc):
                pass
        first, second = await receipts(gateway.rpc, worker.node, whole, left)
        assert (first.request_id, first.prompt_tokens, first.completion_tokens, first.ended) == (whole.request_id, 3, 3, "stop")
        assert (second.request_id, second.prompt_tokens, second.ended) == (left.request_id, 500, "cancelled")
        assert 1 <= second.completion_tokens < 500


async def test_worker_that_stops_ends_its_queue_and_saves_its_receipts_but_takes_no_more(net: TestNet) -> None:
    """This is how a pool scales to zero: requests that a worker has accepted, including queued ones, finish and can be billed later."""
    worker = await start(net, token_ms=5, slots=1)
    async with member(gateway_settings(net), Role.GATEWAY) as gateway:
        await until(lambda: gateway.directory.usable(Role.WORKER))
        prompts = [prompt("word " * 40) for _ in range(3)]

        async def ask(asked: inference.ProcessPrompt) -> int:
            async with gateway.rpc.stream(inference.process_prompt, asked, to=worker.node.id) as answer:
                return len([chunk async for chunk in answer])

        asking = [asyncio.create_task(ask(asked)) for asked in prompts]
        await until(lambda: worker.node.dispatcher.running == 3)
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: not gateway.directory.usable(Role.WORKER))
        with pytest.raises(errors.Draining, match="shutting down"):
            await ask(prompt("late"))
        assert await asyncio.gather(*asking) == [40, 40, 40]
        await stopping
    assert isinstance(worker.service, InferenceService)
    again = ReceiptKeeper(worker.service._settings.receipts_path, worker.node.trust.me)
    again._recall(again._load())
    kept = [msgspec.msgpack.decode(one.text, type=inference.Receipt) for one in again.read(tuple(one.request_id for one in prompts))]
    assert [(receipt.completion_tokens, receipt.ended) for receipt in kept] == [(40, "stop")] * 3


async def test_worker_credits_what_was_read_not_what_was_sent(net: TestNet) -> None:
    """Streams cut at 102 to 105 of 200 tokens were once billed as 200."""
    # Slow enough that the reader stops before the end arrives; after the end, nothing is credited.
    await start(net, token_ms=5)
    async with member(gateway_settings(net), Role.GATEWAY) as gateway:
        await until(lambda: gateway.directory.usable(Role.WORKER))
        (worker,) = gateway.directory.usable(Role.WORKER)
        for paced, credited in ((True, 64), (False, 0)):
            sent = msgspec.structs.replace(prompt("word " * 200), reader_paced=paced)
            async with gateway.rpc.stream(inference.process_prompt, sent) as answer:
                taken = 0
                async for _ in answer:
                    taken += 1
                    if taken == 102:
                        break
                # The reader stops here, but the worker does not.
                async with asyncio.timeout(30):
                    while (found := (await receipts(gateway.rpc, worker.node, sent))[0]).ended == inference.RUNNING:
                        pass
            assert (found.completion_tokens, found.credited_tokens) == (200, credited)


async def receipts(client: rpc.RpcClient, node: NodeId, *prompts: inference.ProcessPrompt) -> list[inference.Receipt]:
    """Return the receipts, after checking their signatures."""
    sent = inference.ReadReceipts(tuple(one.request_id for one in prompts))
    found_receipts = (await client.call(inference.read_receipts, sent, to=node)).receipts
    assert all(node_keys.verify(node, inference.RECEIPT_PURPOSE, one.text, one.signature) for one in found_receipts)
    return [msgspec.msgpack.decode(one.text, type=inference.Receipt) for one in found_receipts]


async def running(client: rpc.RpcClient) -> int:
    status = await client.call(inference.get_model_status, inference.GetModelStatus(ECHO))
    return status.running
