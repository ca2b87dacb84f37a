"""Whatever one key sends within the limits of bodies, the gateway is never silent for long."""

import asyncio
import gc
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.policies import Policies
from services.gateway.http_api import http_call
from services.gateway.http_api.http_app import HttpApp
from shared import errors
from shared.api.embedding import Embed, Embedded, Vectors
from shared.api.gateway import process_inference_request
from shared.config_documents import GuardAction, GuardDocument, GuardKind, GuardPattern, PolicyDocument
from shared.node import program
from shared.protocol import request_memory, wire
from shared.rpc import Handler
from tests import loop_time
from tests.services.gateway import fakes, hostile_client, openai_clients
from tests.services.gateway.fakes import KEY, FakeWorker, RunningService
from tests.services.gateway.hostile_bodies import BODIES
from tests.services.gateway.http_api.test_numbers import resident_bytes
from tests.services.gateway.requests.test_embedding_runs import packed

#: Of the event loop's thread, for one callback.
MAX_SECONDS = 0.1
#: What all bodies together may leave in memory. One tenant's bodies take up to a third of it, and the allocator keeps some of the rest.
MAX_GROWTH_BYTES = 3 * request_memory.MAX_TENANT_BYTES
GUARD = GuardDocument(
    prompt=dict.fromkeys(GuardKind, GuardAction.MASK),
    countries=("US", "DE", "FR"),
    patterns=(GuardPattern(name="long", pattern="[a-z]{10,}", max_length=5),),
)


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    """A gateway whose policies guard prompts in every way."""
    async with fakes.running_service(free=1_000_000) as running:
        allowing = PolicyDocument(external=("*",))
        documents = {"mesh": PolicyDocument(external=("*",), guard=GUARD), "default": allowing}
        running.config = ConfigSnapshot(names=running.names, limits=running.config.limits, policies=Policies(documents))
        running.own[process_inference_request.name] = Handler(process_inference_request, _refuse)
        running.add_worker(1, Worker(), "smollm2", context_tokens=0)
        yield running


async def _refuse(_request: Any, _call: Any) -> Any:
    raise errors.NotFound("the handler was reached")


class Nothing(list[Any]):
    def append(self, one: Any) -> None:
        """Keep no prompt, because the gateway's memory is measured."""


class Worker(FakeWorker):
    """Answers prompts, and texts with vectors or scores."""

    def __init__(self) -> None:
        super().__init__(received=Nothing())

    async def run(self, prompt: Any) -> AsyncIterator[Any]:
        if isinstance(prompt, Embed):
            vector = packed(1) if prompt.query is not None else packed(1, 1)
            yield Vectors((vector,) * len(prompt.inputs))
            yield Embedded(len(vector) // 4, self.prompt_tokens)
            return
        async for item in super().run(prompt):
            yield item


async def _send(app: HttpApp, path: str, body: bytes) -> int:
    """Post as uvicorn does, in pieces of 64 KiB; return the status."""
    pieces = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await (asyncio.sleep(0) if pieces else asyncio.Event().wait())
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return int(sent[0]["status"])


@pytest.fixture
def _collect_as_services_do() -> Iterator[None]:
    """Python's own threshold makes the decoding of many lists three times as long."""
    thresholds = gc.get_threshold()
    gc.set_threshold(*program.COLLECT_AFTER)
    yield
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("_collect_as_services_do")
async def test_no_body_holds_the_event_loop(service: RunningService) -> None:
    app, sending = service.app(), dict[str, asyncio.Task[int]]()
    with loop_time.measured() as callbacks:
        for name, (path, body) in BODIES.items():
            if len(body) > http_call.MAX_BODY_BYTES:
                continue
            with loop_time.subject(name):
                sending[name] = asyncio.create_task(_send(app, path, body))
        await asyncio.wait(sending.values())
        statuses = {name: task.result() for name, task in sending.items()}
        # One tenant may not send all of these at once. Guardrails take as long for each of their characters as for shorter texts.
        service.config = replace(service.config, policies=fakes.ALLOWING)
        long_ones = {name: sent for name, sent in BODIES.items() if name not in sending}
        for name, (path, body) in long_ones.items():
            with loop_time.subject(name):
                statuses[name] = await asyncio.create_task(_send(app, path, body))
    # A slow machine lets some wait for too long.
    assert not {name: status for name, status in statuses.items() if status not in (200, 400, 404, 413, 429)}
    assert list(statuses.values()).count(200) >= 30
    assert {statuses[name] for name in long_ones} == {200, 400}
    callbacks.ensure_below(MAX_SECONDS)


def test_the_bodies_are_within_the_limits_of_bodies() -> None:
    assert len(BODIES) >= 80
    assert max(len(body) for _, body in BODIES.values()) <= wire.MAX_REQUEST_BYTES


@pytest.mark.nightly("clock")
@pytest.mark.usefixtures("_collect_as_services_do")
async def test_healthz_answers_while_all_bodies_come_at_once(service: RunningService) -> None:
    async with openai_clients.listening(service) as port:
        before = resident_bytes()
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.services.gateway.hostile_client", str(port), KEY, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(client.communicate(), hostile_client.TIMEOUT_SECONDS)
        grown = resident_bytes() - before
    found = json.loads(output)
    assert found["longest"] < MAX_SECONDS, found
    assert sum(found["statuses"].values()) == len(BODIES)
    assert grown < MAX_GROWTH_BYTES
