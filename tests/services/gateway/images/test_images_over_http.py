"""Images in requests over HTTP: what reaches a worker, what is refused and why, and what a gateway keeps in memory."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from services.gateway.facts import tiers
from services.gateway.facts.tiers import LimitRules
from services.gateway.http_api import http_call
from services.gateway.requests import image_admission
from shared.api import generation, inference
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, GenerationEnd, ImageDetail, ImagePart, Usage
from shared.protocol.request_memory import RequestMemory
from shared.types import Ability, FinishReason, Tier
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, FakeWorker, RunningService
from tests.services.gateway.images.pictures import gif, jpeg, png, webp

MIB = 1024 * 1024
KEYED = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
SEES = (str(Ability.IMAGES),)


def url(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def part(image: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image, **more}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as service:
        service.add_worker(1, service.worker, "smollm2", abilities=SEES)
        yield service


@pytest.fixture
async def http(running_service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with _client(running_service) as client:
        yield client


@asynccontextmanager
async def _client(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers=KEYED) as client:
        yield client


async def ask(http: httpx.AsyncClient, *content: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": content}], **fields}
    return await http.post("/v1/chat/completions", content=json.dumps(body).encode())


def seen(service: RunningService) -> tuple[ChatMessage, ...]:
    [prompt] = service.worker.received
    assert not isinstance(prompt.prompt, str)
    return prompt.prompt


@pytest.mark.parametrize("image", [png(), jpeg(), gif(), webp()])
async def test_an_image_of_each_format_reaches_the_worker(http: httpx.AsyncClient, running_service: RunningService, image: bytes) -> None:
    """The declared type does not matter."""
    answer = await ask(http, text("what "), part(url(image, "bmp"), detail="low"), text("is it?"))
    assert answer.status_code == 200, answer.text
    [message] = seen(running_service)
    assert message.content == "what is it?"
    [found] = message.images
    assert (found.data, found.at, found.detail, len(found.digest)) == (image, 5, ImageDetail.LOW, 32)


async def test_responses_and_messages_take_images_too(http: httpx.AsyncClient, running_service: RunningService) -> None:
    content = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": url(png()), "file_id": None}]
    answer = await http.post("/v1/responses", json={"model": "smollm2", "input": [{"role": "user", "content": content}]})
    assert answer.status_code == 200, answer.text
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    blocks = [{"type": "text", "text": "a"}, {"type": "image", "source": source, "cache_control": {"type": "ephemeral"}}]
    asked = {"model": "smollm2", "max_tokens": 5, "messages": [{"role": "user", "content": blocks}]}
    answer = await http.post("/v1/messages", json=asked)
    assert answer.status_code == 200, answer.text
    prompts = [prompt.prompt for prompt in running_service.worker.received]
    assert prompts[0] == prompts[1]
    assert isinstance(prompts[0], tuple)
    assert prompts[0][0].images[0].data == png()


async def test_images_count_against_a_limit_of_images(http: httpx.AsyncClient, running_service: RunningService) -> None:
    plan = replace(tiers.NO_LIMITS, images_per_day=3, tokens_per_day=100_000)
    running_service.config = replace(running_service.config, limits=LimitRules({Tier.FREE: plan}))
    images = [part(url(png())) for _ in range(4)]
    assert (await ask(http, text("a"), *images[:2])).status_code == 200
    refused = await ask(http, text("a"), *images[:2])
    assert (refused.status_code, refused.json()["error"]["message"].partition(" is ")[0]) == (
        429,
        "the free tier's limit of 3 images per day",
    )
    assert int(refused.headers["retry-after"]) > 86_000
    too_many = await ask(http, text("a"), *images)
    assert (too_many.status_code, "4 images, but the limit is 3 images per day" in too_many.text) == (400, True)
    answer = await ask(http, text("no image"))
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
    left = {each["kind"]: each["limit"] - each["remaining"] for each in (await http.get("/api/quota")).json()["limits"]}
    assert left["images_per_day"] == 2
    assert 0 < left["tokens_per_day"] < 1_000, "what was reserved is returned"


async def test_codex_asks_for_an_image_as_it_is(http: httpx.AsyncClient, running_service: RunningService) -> None:
    content = [{"type": "input_image", "image_url": url(png()), "detail": "original"}]
    answer = await http.post("/v1/responses", json={"model": "smollm2", "input": [{"role": "user", "content": content}]})
    assert answer.status_code == 200, answer.text
    [message] = seen(running_service)
    assert [image.detail for image in message.images] == [ImageDetail.HIGH]


def result(call: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": content}


@pytest.mark.parametrize("asks_on", [True, False])
async def test_images_of_tools_go_into_the_message_behind_their_results(
    http: httpx.AsyncClient, running_service: RunningService, asks_on: bool
) -> None:
    """Few chat templates and no server of OpenAI's kind show images in a result."""
    one, two, three = png(1, 1), png(2, 2), png(3, 3)
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "tool_calls": [call, {**call, "id": "b"}]},
        result("a", text("one: "), part(url(one)), text("!")),
        result("b", part(url(two), detail="low")),
        *([{"role": "user", "content": [text("and "), part(url(three))]}] if asks_on else []),
    ]
    answer = await http.post("/v1/chat/completions", json={"model": "smollm2", "messages": messages})
    assert answer.status_code == 200, answer.text
    *_, first, second, user = seen(running_service)
    assert [(found.content, found.images, found.tool_call_id) for found in (first, second)] == [("one: !", (), "a"), ("", (), "b")]
    label = "Images from the tool results:\n"
    assert (user.role, user.content) == ("user", f"{label}\nand " if asks_on else label)
    places = [(found.data, found.at, found.detail) for found in user.images]
    moved = [(one, len(label), ImageDetail.AUTO), (two, len(label), ImageDetail.LOW)]
    assert places == [*moved, *([(three, len(f"{label}\nand "), ImageDetail.AUTO)] if asks_on else [])]


async def test_an_image_in_a_tool_result_of_anthropics_api(http: httpx.AsyncClient, running_service: RunningService) -> None:
    """Claude Code's Read tool answers so."""
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    blocks = [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": source}]}, text("Go on.")]
    messages = [{"role": "user", "content": blocks}, {"role": "system", "content": "Be brief."}]
    answer = await http.post("/v1/messages", json={"model": "smollm2", "max_tokens": 5, "messages": messages})
    assert answer.status_code == 200, answer.text
    tool, user, system = seen(running_service)
    assert (tool.content, tool.images, system.content) == ("", (), "Be brief.")
    assert (user.content, user.images[0].data) == ("Images from the tool results:\n\nGo on.", png())


async def test_twelve_mebibytes_hold_up_nobody_and_are_forgotten(
    http: httpx.AsyncClient, running_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = png(padding=12 * MIB - 200)
    body = json.dumps({"model": "smollm2", "messages": [{"role": "user", "content": [text("a"), part(url(image)), text("b")]}]}).encode()
    turns: list[float] = []
    run = asyncio.Handle._run  # type: ignore[attr-defined]  # what the event loop calls

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        turns.append(time.thread_time() - began)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    answer = await http.post("/v1/chat/completions", content=pieces(), headers={"content-length": str(len(body))})
    assert answer.status_code == 200, answer.text
    assert seen(running_service)[0].images[0].data == image
    assert max(turns) < 0.05, "parsed in one go it is 0.3 s"
    assert not running_service.memory.held_bytes


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param([part(url(b"no image"))], "is not a JPEG, PNG, WebP or GIF", id="wrong bytes"),
        pytest.param([part(url(png(60_000, 60_000)))], "has 60000 x 60000 pixels", id="60,000 x 60,000"),
        pytest.param([part(url(png(8000, 8000)))], "has 8000 x 8000 pixels", id="too many pixels"),
        pytest.param([part(url(jpeg()[:-2]))], "is truncated", id="truncated"),
        pytest.param([part(url(png()))] * 65, "has 65 images; the limit is 64", id="one too many"),
        pytest.param([part("http://example.com/a.png")], "send the image itself", id="http"),
        pytest.param([part("https://example.com/a.png")], "send the image itself", id="https"),
        pytest.param([part("file:///etc/passwd")], "send the image itself", id="file"),
        pytest.param([part("data:image/png,abc")], "must be a URL that begins with", id="not base64"),
        pytest.param([part("data:text/html;base64,PGI+")], "must be a URL that begins with", id="another type"),
        pytest.param([part(url(png()) + "!")], "is not valid base64", id="broken base64"),
        pytest.param([part("data:image/png;base64,iVBORw0K=AAA" + "A" * 100)], "is not valid base64", id="padding inside"),
        pytest.param([part(url(png(padding=4 * MIB)))] * 4, "all images together have at most", id="16 MiB"),
        pytest.param([part(url(png()), detail="ultra")], "detail", id="an unknown detail"),
        pytest.param([{"type": "input_audio", "input_audio": {}}], "audio and files are not supported", id="a sound"),
    ],
)
async def test_a_bad_image_is_refused_with_the_reason_before_any_work(
    http: httpx.AsyncClient, running_service: RunningService, content: list[dict[str, Any]], why: str
) -> None:
    began = time.perf_counter()
    answer = await ask(http, text("a"), *content)
    assert time.perf_counter() - began < 2
    assert answer.status_code in {400, 413}, answer.text
    assert why in answer.json()["error"]["message"] or answer.status_code == 413
    assert not running_service.worker.received
    assert not running_service.memory.held_bytes


async def test_an_image_in_an_answer_is_refused(http: httpx.AsyncClient) -> None:
    messages = [{"role": "assistant", "content": [part(url(png()))]}, {"role": "user", "content": "a"}]
    answer = await http.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    assert "must be in a message of the user" in answer.text


async def test_a_model_without_images_refuses_them_before_any_work(running_service: RunningService) -> None:
    running_service.add_worker(1, running_service.worker, "smollm2")
    async with _client(running_service) as http:
        answer = await ask(http, part(url(png())))
    assert answer.status_code == 400
    assert "smollm2 doesn't support images" in answer.json()["error"]["message"]
    assert not running_service.worker.received


async def test_images_go_only_to_workers_that_see_them(http: httpx.AsyncClient, running_service: RunningService) -> None:
    blind = FakeWorker()
    for number in range(2, 6):
        running_service.add_worker(number, blind, "smollm2")
    for _ in range(8):
        assert (await ask(http, part(url(png())))).status_code == 200
    assert len(running_service.worker.received) == 8
    assert not blind.received
    await asyncio.gather(*(ask(http, text("no image")) for _ in range(8)))
    assert blind.received


async def test_images_count_as_prompt_tokens_up_to_the_bound(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.prompt_tokens = 3000
    assert (await ask(http, part(url(png(640, 480))))).json()["usage"]["prompt_tokens"] == 3000
    running_service.worker.prompt_tokens = 10**6
    assert (await ask(http, part(url(png(640, 480))))).json()["usage"]["prompt_tokens"] < 8000
    assert (await ask(http, text("x"))).json()["usage"]["prompt_tokens"] < 1000


async def test_a_credential_is_refused_before_the_body_is_read(running_service: RunningService) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with _client(running_service) as http:
        headers = {"authorization": "Bearer nobody", "content-length": str(12 * MIB)}
        answer = await http.post("/v1/chat/completions", content=body(), headers=headers)
    assert answer.status_code == 401


@pytest.mark.parametrize("is_announced", [True, False])
async def test_bodies_over_the_memory_are_refused_unread(running_service: RunningService, is_announced: bool) -> None:
    running_service.memory = RequestMemory(30 * MIB)
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(12):
            sent += 1
            yield b" " * MIB

    headers = {"content-length": str(12 * MIB)} if is_announced else {}
    with running_service.memory.hold(20 * MIB):
        async with _client(running_service) as http:
            answer = await http.post("/v1/chat/completions", content=body(), headers=headers)
            short = await ask(http, text("short ones need no memory"))
    assert (answer.status_code, short.status_code) == (503, 200)
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "overloaded"
    assert sent <= 2
    assert not running_service.memory.held_bytes


async def test_a_client_that_disconnects_half_way_frees_the_memory(running_service: RunningService) -> None:
    half = asyncio.Event()
    parts = iter([{"type": "http.request", "body": bytes(6 * MIB), "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        assert running_service.memory.held_bytes == 12 * MIB
        half.set()
        return next(parts)

    async def send(_message: object) -> None: ...

    headers = [(name.encode(), value.encode()) for name, value in {**KEYED, "content-length": str(12 * MIB)}.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": headers,
        "query_string": b"",
        "client": ("::1", 1),
    }
    await running_service.app()(scope, receive, send)
    assert half.is_set()
    assert not running_service.memory.held_bytes


async def test_what_is_no_image_in_a_long_body(http: httpx.AsyncClient) -> None:
    call = {"type": "tool_use", "id": "c", "name": "draw", "input": {"data": url(png(padding=2 * MIB))}}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [call]}, {"role": "user", "content": "go on"}]
    answer = await http.post("/v1/messages", json={"max_tokens": 5, "messages": messages})
    assert answer.status_code == 400
    assert "not an image" in answer.json()["error"]["message"]
    answer = await http.post("/v1/embeddings", content=b" " * (http_call.MAX_BODY_BYTES + 1))
    assert answer.status_code == 413


async def test_an_image_is_held_while_a_request_under_a_key_runs(http: httpx.AsyncClient, running_service: RunningService) -> None:
    image = png(padding=2 * MIB)
    held: list[int] = []

    class Looks(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
            held.append(running_service.memory.held_bytes)
            yield inference.Chunk("a", (1,))
            yield GenerationEnd(FinishReason.STOP, Usage(7, 1))

    running_service.add_worker(1, Looks(), "smollm2", abilities=SEES)
    for _ in range(2):
        answer = await http.post(
            "/v1/chat/completions",
            content=json.dumps({"messages": [{"role": "user", "content": [part(url(image))]}]}).encode(),
            headers={"idempotency-key": "k"},
        )
        assert answer.status_code == 200, answer.text
    assert len(image) <= held[0] < len(image) + 200, "the base64 is forgotten"
    assert len(held) == 1, "run once"
    answer = await http.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": [part(url(png()))]}]}, headers={"idempotency-key": "k"}
    )
    assert answer.status_code == 409, "another image is another request"
    assert not running_service.memory.held_bytes


async def test_models_show_their_abilities(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(2, FakeWorker(), "smollm2", abilities=("images", "tools"))
    [model] = (await http.get("/v1/models")).json()["data"]
    assert model["abilities"] == ["images"], "what every worker can"


def test_another_image_is_another_prefix() -> None:
    def hashes(*images: ImagePart) -> tuple[bytes, ...]:
        return generation.hash_prefixes([ChatMessage("user", "x" * 1000, images=images)], "salt")

    first, second = (ImagePart(b"", 500, digest=bytes([number]) * 32) for number in range(2))
    assert hashes(first) == hashes(first)
    shared = [left == right for left, right in zip(hashes(first), hashes(second), strict=True)]
    assert shared == [True] + [False] * (len(shared) - 1)
    assert len(hashes(first)) > len(hashes())


async def test_places_outside_of_a_text_are_refused() -> None:
    request = InferenceRequest(messages=(ChatMessage("user", "abc", images=(ImagePart(png(), 4),)),))
    with pytest.raises(image_admission.BadField, match="outside of its text"):
        await image_admission.ImageLimits().admit(request)
