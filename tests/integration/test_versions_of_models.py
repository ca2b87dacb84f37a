"""A publisher, an administrator and a person with versions of a model, at their terminals, on a whole stack with two workers."""

import asyncio
import json
from pathlib import Path

import pytest

from services.inference.models.model_copy import BURST_BLOCKS
from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.models.block_list import BLOCK_BYTES
from shared.types import ModelName, Tier
from tests import gguf_files, people, stacks
from tests.chaos import streams
from tests.gguf_files import LlamaShape
from tests.shared.models.publishers import Publisher
from tests.stacks import RunningStack

SHAPE = LlamaShape(layers=2, embedding=512, heads=8, kv_heads=4, feed_forward=1024, vocabulary=1024, context=4096)
#: A copy takes longer than an order of the gateway may.
RATE, ORDER_SECONDS = 500_000, 5
STREAMS = 20
UNLIMITED = "requests_per_minute=unlimited,requests_per_hour=unlimited,tokens_per_minute=unlimited,concurrency=unlimited"


@pytest.mark.nightly("stacks")
async def test_versions_are_copied_switched_under_load_and_with_enforce_1_is_loaded_and_2_refused(tmp_path: Path) -> None:
    publisher, key, public = Publisher(), tmp_path / "publisher.key", tmp_path / "publisher.pub"
    key.write_bytes(publisher.private)
    public.write_text(publisher.public)
    variables = {"MODEL_MEMORY": "1GiB", "MODEL_COPY_RATE": f"{RATE}", "ENGINE_THREADS": "1"}
    async with (
        stacks.stack(**variables, TIER_ENTERPRISE=UNLIMITED) as stack,
        streams.worker(stack, backend="llama", MODEL_STORE=str(tmp_path / "second"), **variables),
        people.api_client(stack) as api_client,
    ):
        ann = await api_client.register("ann", Tier.ENTERPRISE)

        async def aicli(*words: str, fails: str = "") -> str:
            done = await stack.aicli(*words)
            assert bool(done.status) is bool(fails), done
            assert fails in done.err
            return done.out

        async def ask(model: str = "tiny") -> str:
            """Raises unless the answer is whole."""
            asked = InferenceRequest(prompt="Count to ten.", model=ModelName(model), max_tokens=8, temperature=0.0)
            request = gateway.ProcessInferenceRequest(asked, fresh=True)
            method, key = gateway.process_inference_request, ann.key.secret
            async with api_client.mesh.rpc.stream(method, request, credential=key, deadline_seconds=60) as answer:
                return "".join([chunk.text async for chunk in answer])

        async def serves(text: str) -> None:
            async def is_served() -> bool:
                return await ask() == text

            await stacks.until(is_served, seconds=60, what="requests use the other version")

        async def push(seed: int) -> int:
            model = tmp_path / f"{seed}.gguf"
            gguf_files.write_llama(model, SHAPE, weights="q8_0", seed=seed)
            assert f"tiny@{seed} is ready" in await aicli("models", "push", str(model), "tiny")
            return model.stat().st_size

        size = await push(1)
        assert size - BURST_BLOCKS * BLOCK_BYTES > ORDER_SECONDS * RATE
        await aicli("models", "promote", "tiny")
        before = await _blocks_sent(stack)
        await aicli("models", "deploy", "tiny", "--copies", "2", "--preload", "--wait")
        # Each worker reads the manifest and the list of blocks itself.
        assert await _blocks_sent(stack) - before <= 1.1 * (size / BLOCK_BYTES + 1) + 4, "one copy in all comes from the mesh's store"

        await push(2)
        one, answers, is_over = await ask("tiny@1"), set[str](), False

        async def stream() -> None:
            while not is_over:
                answers.add(await ask())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(STREAMS):
                tasks.create_task(stream())
            before = await _blocks_sent(stack)
            await aicli("models", "promote", "tiny", "2", "--wait")
            assert await _blocks_sent(stack) - before <= 1.1 * (size / BLOCK_BYTES + 1) + 4
            await serves(two := await ask("tiny@2"))
            await aicli("models", "rollback", "tiny", "--wait")
            await serves(one)
            is_over = True
        assert answers == {one, two}, "each answer is one version's"
        assert one != two

        await aicli("models", "undeploy", "tiny")
        assert "Signed tiny@1 (sha256:" in await aicli("models", "sign", "tiny@1", "--key", str(key))
        await aicli("models", "trust", "set", "tiny*", "--mode", "enforce", "--key", str(public))
        assert "enforce" in await aicli("models", "trust", "show")
        assert "A trusted key has signed tiny@1" in await aicli("models", "verify", "tiny@1")
        await aicli("models", "verify", "tiny@2", fails="tiny@2 is not trusted: nobody has signed it")
        await aicli("models", "deploy", "tiny@1", "--preload", "--wait")
        await aicli("models", "deploy", "tiny@2", "--preload")
        await stacks.until(
            lambda: _is_refused(stack, "tiny@2", "nobody has signed it"), seconds=60, what="the copy of version 2 is refused"
        )
        await aicli("infer", "hi", "--model", "tiny@1", "--max-tokens", "5")
        await aicli("infer", "hi", "--model", "tiny@2", fails="tiny@2")
        assert "tiny@2: nobody has signed it" in (await stack.aicli("models")).err
        # Its publisher signs it, and it is loaded.
        await aicli("models", "sign", "tiny@2", "--key", str(key))
        await aicli("models", "deploy", "tiny@2", "--preload", "--wait")
        await aicli("infer", "hi", "--model", "tiny@2", "--max-tokens", "5")
        # It must not run any more.
        await aicli("models", "revoke", "tiny@2", "--reason", "it leaks")
        assert "it leaks" in await aicli("models", "versions", "tiny")
        await stacks.until(lambda: _is_gone(stack, "tiny@2"), seconds=60, what="version 2 is gone")
        await aicli("infer", "hi", "--model", "tiny@1", "--max-tokens", "5")


async def _blocks_sent(stack: RunningStack) -> float:
    """Return what workers have read from the mesh's store, each block with a call of its own."""
    return await stack.metric("gateway", "ai_platform_requests_total", method="gateway.readBlob")


async def _is_refused(stack: RunningStack, name: str, why: str) -> bool:
    copies = json.loads((await stack.aicli("models", "copies", name, "--json")).out)
    return any(copy["state"] == "refused" and why in copy["reason"] for copy in copies)


async def _is_gone(stack: RunningStack, name: str) -> bool:
    return bool((await stack.aicli("infer", "hi", "--model", name, "--max-tokens", "5")).status)
