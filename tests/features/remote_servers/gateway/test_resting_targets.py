"""Two gateways share a worker for an upstream. When the upstream asks for a pause, both gateways respect it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from features.remote_servers.worker import openai
from features.remote_servers.worker.remote_backend import RemoteBackend
from services.gateway.facts import model_names, model_routes
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.inference.announcements import Announcements
from shared import context, errors
from shared.api import inference
from shared.api.gateway import InferenceRequest
from shared.api.generation import GenerationEnd
from shared.api.inference import ModelState
from shared.config_documents import RouteDocument, TargetDocument
from shared.protocol.directory import WorkerLoad
from shared.types import ModelName
from tests.features.remote_servers.worker.test_openai import CHAT, MODELS, one
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService, announcement, node_id
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.standins import Node, Reader, job, until

PAUSE = Answer(["{}"], status=429, headers={"retry-after": "40"})
ROUTE = RouteDocument(
    targets=(TargetDocument(name="api", model="gpt-x", share=100), TargetDocument(name="own", model="local", order=1)),
)


class UpstreamWorker(FakeWorker):
    """Calls the upstream as a real worker does."""

    backend: RemoteBackend

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        reader = Reader()
        end = await self.backend.generate(job("hi", model=prompt.model_config.model), reader)
        yield inference.Chunk(reader.text, ())
        yield end


class Place(Node):
    """The worker's node: it announces its offers to the gateways."""

    def __init__(self, gateways: list[RunningService]) -> None:
        super().__init__()
        self._gateways = gateways

    def offer(self, **offered: Any) -> None:
        super().offer(**offered)
        item = msgspec.structs.replace(announcement(20), models=offered["models"], load=WorkerLoad(slots=4))
        for gateway in self._gateways:
            gateway.directory.apply_announcement(item, "nats")


class Mesh:
    def __init__(self, upstream: FakeServer, backend: RemoteBackend, announcements: Announcements, gateways: list[RunningService]) -> None:
        self.upstream, self.backend, self.announcements, self.gateways = upstream, backend, announcements, gateways

    async def ask(self, gateway: int, model: str = "assistant") -> str:
        context.start()
        request = InferenceRequest(prompt="hi", model=ModelName(model))
        async with self.gateways[gateway].pulled.run(OWNER, request, seconds=10) as running:
            return "".join([chunk.text async for _, chunk in running])

    @property
    def asked(self) -> int:
        return self.upstream.times_asked("/v1/chat/completions")

    def end_pause(self) -> None:
        for served in self.backend.servers[0].models._served.values():
            served.rests_until = 0.0
        self.announcements.changed()


@asynccontextmanager
async def running_mesh(*answers: Answer) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(fakes.running_service(free=10_000)) for _ in range(2)]
        announcements = Announcements(Place(gateways))
        upstream = await stack.enter_async_context(serving({"/v1/models": MODELS, "/v1/chat/completions": list(answers)}))
        opened = openai.opened_all((one(f"{upstream.url}/v1"),), 4, 32, announcements)
        backend = announcements.backend = await stack.enter_async_context(opened)
        await until(lambda: backend.models()[0].state is ModelState.READY)
        announcements.changed()
        worker = UpstreamWorker()
        worker.backend = backend
        names = model_names.ModelNames({}, None, routes={"assistant": model_routes.compile_route("assistant", 1, ROUTE)})
        for gateway in gateways:
            gateway.rpc.workers[node_id(20)] = worker
            gateway.add_worker(11, FakeWorker(words=("Local",)), "local")
            gateway.config = ConfigSnapshot(names=names, limits=gateway.config.limits, policies=gateway.config.policies)
        yield Mesh(upstream, backend, announcements, gateways)


async def test_a_pause_that_one_gateway_met_rests_the_target_at_all() -> None:
    async with running_mesh(PAUSE, CHAT) as mesh:
        assert await mesh.ask(0) == "Local", "the first request falls back"
        assert mesh.asked == 1
        other = mesh.gateways[1]
        while other.workers.budget.spend(other.runs.clock()):
            """No fallback is left."""
        assert [await mesh.ask(number % 2) for number in range(20)] == ["Local"] * 20
        assert other.rpc.workers[node_id(20)].received[1:] == [], "the worker is not asked in vain"
        assert mesh.asked == 1
        row = list(other.store.rows.values())[-1]
        assert row.route is not None
        assert (row.route.variant, row.route.target, row.attempts, row.variant_failed) == ("api", "own", 1, None)
        mesh.end_pause()
        assert [await mesh.ask(1), await mesh.ask(0)] == ["Hello", "Hello"]
        assert mesh.asked == 3


async def test_without_another_target_the_caller_hears_for_how_long() -> None:
    async with running_mesh(PAUSE) as mesh:
        with pytest.raises(errors.Overloaded, match="accepts no more requests now") as first:
            await mesh.ask(0, "gpt-x")
        with pytest.raises(errors.Overloaded, match="has asked for a pause of gpt-x") as second:
            await mesh.ask(1, "gpt-x")
        assert first.value.retry_after_seconds == 40
        assert 0 < (second.value.retry_after_seconds or 0) <= 40
        assert mesh.asked == 1
