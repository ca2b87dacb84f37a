"""The memory of bodies: it is free as soon as the request has ended, without a collection, and bounded meanwhile."""

import asyncio
import base64
import gc
import json
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest

from services.gateway.facts import tiers as tiers_of_users
from services.gateway.facts.tiers import LimitRules
from services.gateway.http_api.http_app import HttpApp
from shared import errors
from shared.api import inference
from shared.api.generation import GenerationEnd
from shared.node import program
from shared.protocol.request_memory import RequestMemory
from shared.types import Ability, TenantId, Tier
from tests.services.gateway import fakes, openai_clients
from tests.services.gateway.fakes import KEY, OWNER, FakeWorker, RunningService
from tests.services.gateway.http_answers import BEARER, problem
from tests.services.gateway.http_answers import CHAT as HI
from tests.services.gateway.images.pictures import png
from tests.testnet import until

MIB = 1024 * 1024
LONG = "x" * 900_000
#: Of a model that can read it.
CONTEXT = 2**20
CHAT, MESSAGES, RESPONSES, COMPLETIONS, REST = (
    "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions", "/api/inference",
)  # fmt: skip
#: Text that a cycle may keep: names, messages of errors.
SHORT = 10_000


def chat(content: object = LONG, **fields: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], **fields}).encode()


def image(data: bytes) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}]


@dataclass(frozen=True)
class Sent:
    status: int
    #: Lives as long as the call.
    call: "weakref.ref[Any]"


async def send(app: HttpApp, path: str, body: bytes, headers: dict[str, str] | None = None) -> Sent:
    """Call the application as its server does, in its own task, and keep no reference to the body."""
    messages, statuses = [{"type": "http.request", "body": body, "more_body": False}], []
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def take(message: Any) -> None:
        statuses.append(message.get("status"))

    given = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "content-length": f"{len(body)}", **(headers or {})}
    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "client": ("::1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    await asyncio.create_task(app(scope, receive, take))
    return Sent(statuses[0], weakref.ref(receive))


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    async with fakes.running_service(free=10**6) as service:
        service.add_worker(1, service.worker, "smollm2", abilities=(str(Ability.IMAGES),), context_tokens=CONTEXT)
        yield service


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what other tests have left
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def find_garbage() -> tuple[int, Counter[str]]:
    """Return the bytes of long texts that only a collection would free, and the types of what refers to them."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    texts = {
        id(text): len(text)
        for found in gc.garbage
        for text in gc.get_referents(found)
        if isinstance(text, str | bytes | bytearray) and len(text) > SHORT
    }
    return sum(texts.values()), Counter(type(found).__name__ for found in gc.garbage)


REFUSED: dict[str, tuple[int, str, bytes, dict[str, str]]] = {
    "an invalid image": (400, CHAT, chat(image(bytes(2 * MIB))), {}),
    "a body that is too large": (413, CHAT, chat(LONG * 20), {}),
    "a prompt that is too large": (400, CHAT, chat(LONG * 5), {}),
    "a prompt that no model can read": (400, CHAT, chat(model="tiny"), {}),
    "nested arrays": (400, CHAT, b"[" * 900_000, {}),
    "cut JSON": (400, CHAT, chat()[:-2], {}),
    "an impossible field": (400, CHAT, chat(temperature=9), {}),
    "an unknown field": (400, REST, json.dumps({"prompt": LONG, "colour": 1}).encode(), {}),
    "an unknown model": (404, CHAT, chat(model="none"), {}),
    "a model without images": (400, CHAT, chat(image(png(padding=2 * MIB)), model="blind"), {}),
    "too many answers": (400, COMPLETIONS, json.dumps({"prompt": LONG, "n": 9}).encode(), {}),
    "an unknown role": (400, MESSAGES, json.dumps({"max_tokens": 5, "messages": [{"role": "x", "content": LONG}]}).encode(), {}),
    "an unknown item": (400, RESPONSES, json.dumps({"input": [{"type": "x", "content": LONG}]}).encode(), {}),
    "a field under a key": (400, CHAT, chat(temperature=9), {"idempotency-key": "a"}),
    "a model under a key": (404, CHAT, chat(model="none"), {"idempotency-key": "b"}),
    "a stream": (404, CHAT, chat(model="none", stream=True), {}),
    "too many tokens for the worker": (400, CHAT, chat(model="small"), {}),
    "a worker that fails": (503, CHAT, chat(model="broken"), {}),
    "a worker that fails late": (200, CHAT, chat(model="dying", stream=True), {}),
}
ACCEPTED: dict[str, tuple[int, str, bytes, dict[str, str]]] = {
    "a chat": (200, CHAT, chat(), {}),
    "an image": (200, CHAT, chat(image(png(padding=2 * MIB)), model="smollm2"), {}),
    "a text that is an image": (200, CHAT, chat(f"data:image/png;base64,{base64.b64encode(png(padding=2 * MIB)).decode()}"), {}),
    "a stream": (200, CHAT, chat(stream=True), {}),
    "a key": (200, CHAT, chat(), {"idempotency-key": "c"}),
    "messages": (200, MESSAGES, json.dumps({"max_tokens": 5, "messages": [{"role": "user", "content": LONG}]}).encode(), {}),
    "a response": (200, RESPONSES, json.dumps({"input": LONG}).encode(), {}),
    "a completion": (200, COMPLETIONS, json.dumps({"prompt": LONG}).encode(), {}),
    "several completions": (200, COMPLETIONS, json.dumps({"prompt": [LONG, "y"]}).encode(), {}),
    "another worker": (200, CHAT, chat(model="half-broken"), {}),
}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("request_", [pytest.param(request, id=name) for name, request in [*REFUSED.items(), *ACCEPTED.items()]])
async def test_a_request_is_in_no_cycle(service: RunningService, request_: tuple[int, str, bytes, dict[str, str]]) -> None:
    """Each refused image of 15 MB would stay until a collection, which comes after 20,000 new objects: 80 of them killed a gateway."""
    failing = {
        "small": errors.ContextExceeded("too long"),
        "broken": errors.ModelCrashed("crashed"),
        "dying": errors.LinkLost("lost"),
    }
    for number, (model, error) in enumerate(failing.items(), 2):
        service.add_worker(number, FakeWorker(fails_with=error, fails_after=model == "dying"), model, context_tokens=CONTEXT)
    service.add_worker(7, FakeWorker(), "tiny", context_tokens=8192)
    service.add_worker(8, FakeWorker(), "blind", context_tokens=CONTEXT)
    service.add_worker(9, FakeWorker(fails_with=errors.Overloaded("full")), "half-broken", context_tokens=CONTEXT)
    service.add_worker(10, FakeWorker(), "half-broken", context_tokens=CONTEXT)
    status, path, body, headers = request_
    sent = await send(service.app(), path, body, headers)
    for worker in service.rpc.workers.values():
        worker.received.clear()
    assert sent.status == status
    # Tasks that the request has left, and the thread that read its body, end soon.
    await until(lambda: sent.call() is None)
    size, kinds = find_garbage()
    assert size == 0, kinds


@pytest.fixture
def gateway_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(*program.COLLECT_AFTER)
    yield
    gc.set_threshold(*before)


@pytest.mark.nightly("long")
@pytest.mark.usefixtures("gateway_thresholds")
@pytest.mark.parametrize("status", [400, 200])
async def test_memory_stays_flat_over_large_requests(service: RunningService, status: int) -> None:
    """Two MiB each, 1 GiB in all."""
    body = chat(image(png(padding=2 * MIB) if status == 200 else bytes(2 * MIB)))
    fields = ("Host: x", f"Authorization: Bearer {KEY}", "Content-Type: application/json", f"Content-Length: {len(body)}")
    head = "\r\n".join((f"POST {CHAT} HTTP/1.1", *fields, "", ""))
    rss: list[int] = []
    async with openai_clients.listening(service) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(20 + 500):
            writer.write(head.encode() + body)
            assert (await reader.readline()).split()[1] == b"%d" % status
            length = 0
            while (line := await reader.readline()) != b"\r\n":
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            await reader.readexactly(length)
            service.worker.received.clear()
            rss.append(psutil.Process().memory_info().rss)
        writer.close()
    assert max(rss[20:]) - rss[19] < 60 * MIB


# --- bounds ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def http(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers=BEARER) as client:
        yield client


def set_limit(service: RunningService, requests_per_minute: int) -> None:
    plan = replace(tiers_of_users.NO_LIMITS, requests_per_minute=requests_per_minute)
    service.config = replace(service.config, limits=LimitRules({Tier.FREE: plan}))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, chat(image(bytes(2 * MIB))), id="an invalid image"),
        pytest.param(CHAT, chat("x" * 5 * MIB), id="too much text"),
        pytest.param(CHAT, b"[", id="no JSON"),
        pytest.param(CHAT, chat("hi", model="none"), id="an unknown model"),
        pytest.param("/v1/embeddings", b"{}", id="no input"),
        pytest.param("/v1/rerank", b"{}", id="no query"),
        pytest.param("/v1/tokenize", b"{}", id="no prompt"),
    ],
)
async def test_a_refused_body_counts_as_a_request(service: RunningService, http: httpx.AsyncClient, path: str, body: bytes) -> None:
    set_limit(service, 2)
    sent = {"content": body, "headers": {"content-type": "application/json"}}
    answers = [await http.post(path, **sent) for _ in range(3)]
    assert [400 <= answer.status_code < 429 for answer in answers] == [True, True, False]
    assert [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers] == ["1", "0", "0"]
    problem(answers[2], 429, "rate_limited")
    assert int(answers[2].headers["retry-after"]) == 30
    problem(await http.post(CHAT, json=HI), 429, "rate_limited")


async def test_a_flood_of_refused_bodies_is_refused_unread(service: RunningService, http: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    set_limit(service, 1)
    for _ in range(2):
        await http.post(CHAT, content=b"[", headers={"content-type": "application/json"})
    for length in ({}, {"content-length": str(12 * MIB)}):
        problem(await http.post(CHAT, content=body(), headers={"content-type": "application/json", **length}), 429, "rate_limited")


async def test_other_requests_count_once(service: RunningService, http: httpx.AsyncClient) -> None:
    """Refused before its body was read: not at all."""
    set_limit(service, 100)

    async def left() -> str:
        return (await http.post(CHAT, json=HI)).headers["x-ratelimit-remaining-requests"]

    assert await left() == "99"
    service.add_worker(2, FakeWorker(fails_with=errors.ContextExceeded("too long")), "small")
    problem(await http.post(CHAT, json={**HI, "model": "small"}), 400, "context_length_exceeded")
    assert await left() == "97"
    service.books.away = True
    problem(await http.post(CHAT, json=HI), 503, "ledger_unavailable")
    service.books.away = False
    assert await left() == "95"
    await http.post(CHAT, content=b"[", headers={"content-type": "text/plain"})
    await http.post(CHAT, content=b"[", headers={"content-type": "application/json", "content-length": str(100 * MIB)})
    assert await left() == "94"


async def test_a_tenant_may_hold_a_part_of_the_memory_only(service: RunningService) -> None:
    """Small bodies count, too; others still get in."""
    service.memory = RequestMemory(40 * MIB, 10 * MIB)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers=BEARER) as client:
        with service.memory.hold(10 * MIB - 1000, OWNER.limited_as) as held:
            error = problem(
                await client.post(CHAT, content=chat("x" * 1000), headers={"content-type": "application/json"}), 429, "rate_limited"
            )
            assert error["message"] == "your requests in progress have 9 MiB; the limit is 10 MiB"
            with service.memory.hold(9 * MIB, TenantId(UUID(int=77))):
                pass
            held.resize(9 * MIB)
            assert (await client.post(CHAT, json={**HI, "user": "x" * 1000})).status_code == 200
    assert not service.memory.held_bytes


async def test_a_body_is_held_until_its_answer_ends(service: RunningService, http: httpx.AsyncClient) -> None:
    held: list[int] = []

    class Looks(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
            held.append(service.memory.held_bytes)
            async for item in super().run(prompt):
                yield item

    service.add_worker(1, Looks(), "smollm2", context_tokens=CONTEXT)

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(LONG), 65536):
            yield chat()[at : at + 65536]

    for content in (chat(), parts()):
        answer = await http.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
    assert held == [len(chat())] * 2
    assert not service.memory.held_bytes
