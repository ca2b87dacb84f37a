"""Idempotency keys, Last-Event-ID and the response cache at the HTTP door, on the fakes."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, House

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
WITH_KEY = {"idempotency-key": "order 17"}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with fakes.house() as made:
        yield made


@pytest.fixture
async def http(house: House) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(house.app())
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        yield client


def ids(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("id: ") for line in answer.text.split("\n") if line.startswith("id: ")]


async def chat(http: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body, headers={**WITH_KEY, **{k.replace("_", "-"): v for k, v in headers.items()}})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/api/inference"])
async def test_a_repeat_gets_the_same_answer_and_is_no_request(http: httpx.AsyncClient, house: House, path: str) -> None:
    body = {"/v1/chat/completions": CHAT, "/v1/responses": {"input": "hi"}}.get(path, {"prompt": "hi"})
    first = await http.post(path, json=body, headers=WITH_KEY)
    again = await http.post(path, json=body, headers=WITH_KEY)
    assert first.status_code == again.status_code == 200, first.text
    assert first.json() == again.json()
    assert len(house.worker.asked) == len(house.store.rows) == 1
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")


async def test_a_stream_and_a_whole_answer_may_repeat_each_other(http: httpx.AsyncClient, house: House) -> None:
    await chat(http, STREAM)
    assert (await chat(http, CHAT)).json()["choices"][0]["message"]["content"] == "Hello world!"
    assert len(house.worker.asked) == 1


async def test_the_rest_of_a_stream(http: httpx.AsyncClient, house: House) -> None:
    whole = await chat(http, STREAM)
    first, second, *_ = ids(whole)
    rest = await chat(http, STREAM, last_event_id=first)
    assert ids(rest)[0] == second
    assert '"Hello"' not in rest.text
    assert '" world"' in rest.text
    assert whole.text.endswith(rest.text[rest.text.index(f"id: {second}") :])
    assert len(house.worker.asked) == 1


async def test_the_rest_of_a_stream_without_its_key_is_refused(http: httpx.AsyncClient, house: House) -> None:
    answer = await http.post("/v1/chat/completions", json=STREAM, headers={"last-event-id": f"{uuid4().hex}-2"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert house.worker.asked == []


async def test_another_body_is_a_conflict_that_is_not_sent_again(http: httpx.AsyncClient) -> None:
    await chat(http, CHAT)
    answer = await chat(http, {**CHAT, "max_tokens": 5})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert answer.headers["x-should-retry"] == "false"


async def test_what_nothing_is_left_of_is_gone(http: httpx.AsyncClient) -> None:
    answer = await chat(http, STREAM, last_event_id=f"{uuid4().hex}-2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "answer_gone")


async def test_several_prompts_under_one_key_are_answered_once_each(http: httpx.AsyncClient, house: House) -> None:
    body = {"prompt": ["a", "b"]}
    first, second = [await http.post("/v1/completions", json=body, headers=WITH_KEY) for _ in range(2)]
    assert first.json()["choices"] == second.json()["choices"]
    assert len(house.worker.asked) == 2
    lost = await http.post("/v1/completions", json=body, headers={**WITH_KEY, "last-event-id": "0" * 32 + "-1"})
    assert (lost.status_code, lost.json()["error"]["param"]) == (400, "Last-Event-ID")


async def test_a_request_that_nobody_wants_any_more_is_withdrawn_by_its_key(http: httpx.AsyncClient) -> None:
    answer = await http.delete("/api/inference", headers=WITH_KEY)
    assert (answer.status_code, answer.json()) == (200, {"idempotency_key": "order 17"})
    nameless = await http.delete("/api/inference")
    assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "Idempotency-Key")
