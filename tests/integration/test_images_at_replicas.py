"""Images and thoughts at three gateways and three workers, each with its own upstream."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import replicas
from tests.integration.asking import events
from tests.people import Person
from tests.replicas import Replica
from tests.services.gateway.images import pictures
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.stacks import RunningStack, until

MODEL = "three/eyes"
MODELS = Answer([json.dumps({"data": [{"id": "eyes", "abilities": ["images"], "max_model_len": 8192}]})])
#: Larger than a mesh message.
IMAGE = pictures.png(padding=2 * 1024 * 1024)
DIGEST = hashlib.sha256(IMAGE).hexdigest()


def describe(request: Any) -> Answer:
    """Think, and answer with the digest of the image."""
    picture, _ = request["messages"][-1]["content"]
    data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
    deltas = [{"reasoning_content": "I see "}, {"reasoning_content": "it."}, {"content": hashlib.sha256(data).hexdigest()}]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 900, "completion_tokens": 9}})
    return Answer([f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"])


@dataclass
class Mesh:
    gateways: list[str]
    workers: list[Replica]
    upstreams: list[FakeServer]
    http: httpx.AsyncClient
    #: How many of the next requests get no answer.
    unanswered: int = 0

    def answer(self, request: Any) -> Answer:
        self.unanswered -= 1
        return describe(request) if self.unanswered < 0 else Answer([], silent=True, hang=True)

    async def ask(self, number: int, *, key: str = "", stream: bool = True) -> httpx.Response:
        url = f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"What is it? {key or number}"}]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": stream}
        headers = {"Idempotency-Key": key} if key else {}
        return await self.http.post(f"{self.gateways[number % 3]}/v1/chat/completions", json=body, headers=headers)


def read(answer: httpx.Response) -> tuple[str, str]:
    """Return the thoughts and the text."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("application/json"):
        parts: list[Mapping[str, Any]] = [answer.json()["choices"][0]["message"]]
    else:
        parts = [choice["delta"] for event in events(answer) for choice in event["choices"]]
    return "".join(part.get("reasoning_content") or "" for part in parts), "".join(part.get("content") or "" for part in parts)


@asynccontextmanager
async def open_mesh(stack: RunningStack, caller: Person, folder: Path) -> AsyncIterator[Mesh]:
    """Not a fixture: its cleanup needs the running stack."""
    async with AsyncExitStack() as running:
        http = httpx.AsyncClient(trust_env=False, timeout=60, headers={"Authorization": f"Bearer {caller.key.secret}"})
        mesh = Mesh([stack.url("gateway")], [], [], await running.enter_async_context(http))
        for number in range(3):
            upstream = await running.enter_async_context(serving({"/v1/models": MODELS, "/v1/chat/completions": mesh.answer}))
            file = folder / f"upstreams{number}.toml"
            file.write_text(f'[rack]\nurl = "{upstream.url}/v1"\nprefix = "three/"\n')
            settings = {"INFERENCE_BACKEND": "openai", "OPENAI_UPSTREAMS": str(file)}
            opened = replicas.replica(stack, "inference", folder=folder, name=f"eyes{number}", settings=settings)
            mesh.workers.append(await running.enter_async_context(opened))
            mesh.upstreams.append(upstream)
        opened_gateways = [replicas.replica(stack, "gateway", folder=folder, name=f"gateway{number}") for number in (2, 3)]
        gateways = [await running.enter_async_context(gateway) for gateway in opened_gateways]
        for replica in (*mesh.workers, *gateways):
            await replica.ready()
        mesh.gateways += [gateway.url for gateway in gateways]

        async def is_served() -> bool:
            lists = [(await http.get(f"{gateway}/v1/models")).json()["data"] for gateway in mesh.gateways]
            return all(any(model["id"] == MODEL and "images" in model["abilities"] for model in models) for models in lists)

        await until(is_served, seconds=60, what="all gateways see the model")
        yield mesh


@pytest.mark.nightly("stacks")
async def test_images_and_thoughts_pass_three_gateways_and_three_workers(stack: RunningStack, ann: Person, tmp_path: Path) -> None:
    async with open_mesh(stack, ann, tmp_path) as mesh:
        numbers = count()

        async def have_all_answered() -> bool:
            """Ask each gateway twice. A gateway may choose the same worker again, or not know all of them yet."""
            answers = await asyncio.gather(*(mesh.ask(next(numbers), stream=number % 2 > 0) for number in range(6)))
            assert {read(answer) for answer in answers} == {("I see it.", DIGEST)}
            return all(upstream.times_asked("/v1/chat/completions") for upstream in mesh.upstreams)

        await until(have_all_answered, seconds=60, what="all workers have answered")
        asked = sum(upstream.times_asked("/v1/chat/completions") for upstream in mesh.upstreams)
        assert asked == next(numbers), "each request is made once"

        # One idempotency key at all gateways: only the first request runs.
        repeated = [await mesh.ask(number, key="once", stream=number > 0) for number in range(3)]
        assert [read(answer) for answer in repeated] == [("I see it.", DIGEST)] * 3
        assert [answer.headers.get("idempotent-replayed") for answer in repeated] == [None, "true", "true"]
        assert sum(upstream.times_asked("/v1/chat/completions") for upstream in mesh.upstreams) == asked + 1

        # The worker dies with the image before its first token.
        before = [upstream.times_asked("/v1/chat/completions") for upstream in mesh.upstreams]
        mesh.unanswered = 1
        asking = asyncio.create_task(mesh.ask(1))

        async def find_asked() -> Replica | None:
            counts = [upstream.times_asked("/v1/chat/completions") for upstream in mesh.upstreams]
            return next((worker for worker, count, old in zip(mesh.workers, counts, before, strict=True) if count > old), None)

        (await until(find_asked, seconds=30, what="a worker has the request")).process.kill()
        assert read(await asking) == ("I see it.", DIGEST)
