"""Idempotency keys, Last-Event-ID and the response cache over HTTP, with a fake mesh and store."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk, ProcessPrompt
from tests.services.gateway.fakes import FakeWorker, RunningService
from tests.services.gateway.thinking import Thinks

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
WITH_KEY = {"idempotency-key": "order 17"}


def ids(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("id: ") for line in answer.text.split("\n") if line.startswith("id: ")]


async def chat(http: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body, headers={**WITH_KEY, **{k.replace("_", "-"): v for k, v in headers.items()}})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/api/inference"])
async def test_a_repeat_gets_the_same_answer_and_is_not_billed(http: httpx.AsyncClient, running_service: RunningService, path: str) -> None:
    body = {"/v1/chat/completions": CHAT, "/v1/responses": {"input": "hi"}}.get(path, {"prompt": "hi"})
    first = await http.post(path, json=body, headers=WITH_KEY)
    again = await http.post(path, json=body, headers=WITH_KEY)
    assert first.status_code == again.status_code == 200, first.text
    assert first.json() == again.json()
    assert len(running_service.worker.received) == len(running_service.store.rows) == 1
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")


async def test_a_stream_and_a_whole_answer_may_repeat_each_other(http: httpx.AsyncClient, running_service: RunningService) -> None:
    await chat(http, STREAM)
    assert (await chat(http, CHAT)).json()["choices"][0]["message"]["content"] == "Hello world!"
    assert len(running_service.worker.received) == 1


async def test_a_stream_is_resumed(http: httpx.AsyncClient, running_service: RunningService) -> None:
    whole = await chat(http, STREAM)
    first, second, *_ = ids(whole)
    rest = await chat(http, STREAM, last_event_id=first)
    assert ids(rest)[0] == second
    assert '"Hello"' not in rest.text
    assert '" world"' in rest.text
    assert whole.text.endswith(rest.text[rest.text.index(f"id: {second}") :])
    assert len(running_service.worker.received) == 1


FUNCTION = {"name": "look_up", "parameters": {"type": "object"}}
THINKING = {
    "/v1/chat/completions": {**CHAT, "tools": [{"type": "function", "function": FUNCTION}]},
    "/v1/responses": {"input": "hi", "tools": [{"type": "function", **FUNCTION}]},
    "/v1/messages": {
        **CHAT, "max_tokens": 9, "thinking": {"type": "adaptive"}, "tools": [{"name": "look_up", "input_schema": {"type": "object"}}],
    },
    "/api/inference": {**CHAT, "tools": [{"type": "function", "function": FUNCTION}]},
}  # fmt: skip


@pytest.mark.parametrize("path", THINKING)
async def test_a_stream_is_resumed_in_a_thought_or_call(http: httpx.AsyncClient, running_service: RunningService, path: str) -> None:
    running_service.add_worker(1, worker := Thinks(), "smollm2")
    body = {**THINKING[path], "stream": True}
    whole = await http.post(path, json=body, headers=WITH_KEY)
    assert "Let me" in whole.text
    *all_but_last, last = ids(whole)
    for event_id in all_but_last:
        rest = await http.post(path, json=body, headers={**WITH_KEY, "last-event-id": event_id})
        # One chunk may be several events.
        _, _, expected = whole.text.rpartition(f"id: {event_id}\n")
        assert rest.text.rstrip().endswith(expected.partition("\n\n")[2].rstrip()), rest.text
        assert last in ids(rest)
    repeated, fresh = [await http.post(path, json=THINKING[path], headers=headers) for headers in (WITH_KEY, {})]
    for whole_answer in (repeated, fresh):
        assert all(word in whole_answer.text for word in ("Let me think.", "I look.", "c1", "c2"))
    assert len(worker.received) == 2


async def test_resuming_a_stream_without_its_key_is_refused(http: httpx.AsyncClient, running_service: RunningService) -> None:
    answer = await http.post("/v1/chat/completions", json=STREAM, headers={"last-event-id": f"{uuid4().hex}-2"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert running_service.worker.received == []


async def test_a_different_body_is_a_conflict_that_is_not_retried(http: httpx.AsyncClient) -> None:
    await chat(http, CHAT)
    answer = await chat(http, {**CHAT, "max_tokens": 5})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert answer.headers["x-should-retry"] == "false"


async def test_resuming_an_expired_answer_is_gone(http: httpx.AsyncClient) -> None:
    answer = await chat(http, STREAM, last_event_id=f"{uuid4().hex}-2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "answer_gone")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/api/inference"])
async def test_a_repeated_stream_is_the_same_stream_and_can_be_resumed(
    http: httpx.AsyncClient, running_service: RunningService, path: str
) -> None:
    body = {"/v1/chat/completions": CHAT, "/v1/responses": {"input": "hi"}}.get(path, {"prompt": "hi"}) | {"stream": True}
    first, again = [await http.post(path, json=body, headers=WITH_KEY) for _ in range(2)]
    assert first.status_code == again.status_code == 200, first.text
    assert first.text == again.text
    rest = await http.post(path, json=body, headers=WITH_KEY | {"last-event-id": ids(first)[0]})
    behind = f"id: {ids(first)[0]}\n"
    assert first.text.endswith(rest.text)
    assert 0 < len(rest.text) < len(first.text) - first.text.index(behind)
    assert len(running_service.worker.received) == 1


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/completions", "/api/inference"])
async def test_a_different_body_under_the_key_is_refused_by_every_api(
    http: httpx.AsyncClient, running_service: RunningService, path: str
) -> None:
    name = "input" if path == "/v1/responses" else "prompt"
    await http.post(path, json={name: "hi"}, headers=WITH_KEY)
    answer = await http.post(path, json={name: "ho"}, headers=WITH_KEY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert len(running_service.worker.received) == 1


SEVERAL = [{"prompt": ["a", "b"]}, {"prompt": ["a"]}, {"prompt": "b"}, {"prompt": ["a", "b", "c"]}, {"prompt": ["a", "c"]}]


@pytest.mark.parametrize("first", SEVERAL, ids=str)
async def test_one_prompt_more_or_less_is_a_different_request(
    http: httpx.AsyncClient, running_service: RunningService, first: dict[str, Any]
) -> None:
    for body in (first, *(each for each in SEVERAL if each != first)):
        answer = await http.post("/v1/completions", json=body, headers=WITH_KEY)
        assert answer.status_code == (200 if body == first else 409), body
    assert len(running_service.worker.received) == len(first["prompt"])


class HangsAt(FakeWorker):
    """Hangs in the middle of its answer to the prompt with this number."""

    number = 1

    async def run(self, prompt: ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
        self.hangs_after = 1 if len(self.received) == self.number else None
        async for item in super().run(prompt):
            yield item


@pytest.mark.parametrize("number", [1, 2])
async def test_several_prompts_are_canceled_by_their_one_key(http: httpx.AsyncClient, running_service: RunningService, number: int) -> None:
    worker = HangsAt()
    worker.number = number
    running_service.add_worker(1, worker, "smollm2")
    asking = asyncio.create_task(http.post("/v1/completions", json={"prompt": ["a", "b", "c"]}, headers=WITH_KEY))
    await worker.is_hanging.wait()
    await http.delete("/api/inference", headers=WITH_KEY)
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled"), "a waiting caller is told"
    assert len(worker.received) == number, "the next prompt is not started"


async def test_several_prompts_under_one_key_run_once_each(http: httpx.AsyncClient, running_service: RunningService) -> None:
    body = {"prompt": ["a", "b"]}
    first, second = [await http.post("/v1/completions", json=body, headers=WITH_KEY) for _ in range(2)]
    assert first.json()["choices"] == second.json()["choices"]
    assert len(running_service.worker.received) == 2
    assert second.headers.get_list("idempotent-replayed") == ["true"]
    assert len(first.headers.get_list("x-ratelimit-remaining-requests")) == 1
    lost = await http.post("/v1/completions", json=body, headers={**WITH_KEY, "last-event-id": "0" * 32 + "-1"})
    assert (lost.status_code, lost.json()["error"]["param"]) == (400, "Last-Event-ID")


async def test_a_request_is_canceled_by_its_key(http: httpx.AsyncClient) -> None:
    answer = await http.delete("/api/inference", headers=WITH_KEY)
    assert (answer.status_code, answer.json()) == (200, {"idempotency_key": "order 17"})
    nameless = await http.delete("/api/inference")
    assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "Idempotency-Key")
