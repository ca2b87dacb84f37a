"""What is revoked ends at all of three gateways: the answers of a key, and those of a version of a model."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from shared.types import Credential, ModelName, Tier
from tests import gguf_files, people, replicas, stacks
from tests.gguf_files import LlamaShape
from tests.integration import asking
from tests.stacks import RunningStack, until

pytestmark = pytest.mark.nightly("stacks")

#: The documents' time for running answers of a revoked key.
END_SECONDS = 5.0
STREAMS = 6
#: At 100 ms a word, two minutes.
LONG = " ".join(f"w{word}" for word in range(1200))
SHAPE = LlamaShape(layers=2, embedding=512, heads=8, kv_heads=4, feed_forward=1024, vocabulary=1024, context=4096)
UNLIMITED = "requests_per_minute=unlimited,requests_per_hour=unlimited,tokens_per_minute=unlimited,concurrency=unlimited"


@asynccontextmanager
async def three_gateways(stack: RunningStack, folder: Path) -> AsyncIterator[list[str]]:
    async with AsyncExitStack() as entered:
        others = [
            await entered.enter_async_context(replicas.replica(stack, "gateway", folder=folder, name=f"gateway-{number}"))
            for number in (2, 3)
        ]
        await asyncio.gather(*(other.ready() for other in others))
        yield [stack.url("gateway"), *(other.url for other in others)]


def client(gateway: str, key: Credential) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway, headers={"authorization": f"Bearer {key}"}, timeout=90, trust_env=False)


async def has(condition: Callable[[], bool]) -> bool:
    return condition()


async def test_answers_of_a_revoked_key_end_everywhere_in_five_seconds(tmp_path: Path) -> None:
    async with (
        stacks.stack(INFERENCE_BACKEND="echo", ECHO_TOKEN_MS="100", TIER_ENTERPRISE=UNLIMITED) as stack,
        people.api_client(stack) as api_client,
        three_gateways(stack, tmp_path) as gateways,
    ):
        ann = await api_client.register("ann", Tier.ENTERPRISE)
        spare = await api_client.make_key(ann, "spare")
        ended_at: list[float] = []

        async def stream(gateway: str) -> None:
            async with client(gateway, spare.secret) as http:
                body = asking.chat_body(LONG, stream=True, max_tokens=2000)
                async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    assert answer.status_code == 200
                    text = "".join([part async for part in answer.aiter_text()])
            ended_at.append(time.monotonic())
            assert '"error"' in text, text[-600:]

        async def are_answered(streams: int) -> bool:
            return await stack.metric("inference", "ai_platform_worker_slots", state="busy") == streams

        async with asyncio.TaskGroup() as tasks:
            for number in range(STREAMS):
                tasks.create_task(stream(gateways[number % len(gateways)]))
            await until(lambda: are_answered(STREAMS), seconds=30, what="the streams run")
            assert (await stack.aicli("keys", "revoke", "spare", AICLI_API_KEY=ann.key.secret)).status == 0
            revoked_at = time.monotonic()
            await until(lambda: are_answered(0), seconds=END_SECONDS, what="the worker answers nobody")
        assert len(ended_at) == STREAMS
        assert max(ended_at) - revoked_at < END_SECONDS


async def test_after_revoke_has_returned_no_gateway_begins_an_answer_of_the_version(tmp_path: Path) -> None:
    async with (
        stacks.stack(MODEL_MEMORY="1GiB", ENGINE_THREADS="1", TIER_ENTERPRISE=UNLIMITED) as stack,
        people.api_client(stack) as api_client,
        three_gateways(stack, tmp_path) as gateways,
    ):
        ann = await api_client.register("ann", Tier.ENTERPRISE)
        model = tmp_path / "tiny.gguf"
        gguf_files.write_llama(model, SHAPE, weights="q8_0", seed=1)
        for words in (("push", str(model), "tiny"), ("promote", "tiny"), ("deploy", "tiny", "--preload", "--wait")):
            done = await stack.aicli("models", *words)
            assert done.status == 0, done
        #: Of the answers: when each was asked for.
        answered: list[float] = []
        refused: dict[str, int] = dict.fromkeys(gateways, 0)
        is_over = False

        async def ask(gateway: str, name: ModelName) -> None:
            async with client(gateway, ann.key.secret) as http:
                while not is_over:
                    began = time.monotonic()
                    asked = {"model": name, "prompt": "Count.", "max_tokens": 2}
                    if (await http.post("/v1/completions", json=asked)).status_code == 200:
                        answered.append(began)
                    else:
                        refused[gateway] += 1

        async with asyncio.TaskGroup() as tasks:
            for gateway in gateways:
                for name in ("tiny", "tiny@1"):
                    tasks.create_task(ask(gateway, ModelName(name)))
            await until(partial(has, lambda: len(answered) > 30), seconds=60, what="all gateways answer")
            assert (await stack.aicli("models", "revoke", "tiny@1", "--reason", "it leaks")).status == 0
            revoked_at = time.monotonic()
            # Each gateway has been asked after that.
            before = dict(refused)
            have_refused = partial(has, lambda: all(refused[each] > before[each] + 10 for each in gateways))
            await until(have_refused, seconds=30, what="all gateways refuse")
            is_over = True
        assert max(answered) < revoked_at
