"""Requests for embeddings in the pipeline, with a fake mesh and store."""

import asyncio
import json
import math
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import openai
import pytest

from services.gateway.limits.limit_rules import LimitReached
from shared import context, errors
from shared.api import embedding
from shared.api.auth import Principal
from shared.api.embedding import Embedded, EmbeddingRequest, EmbeddingResult, Vectors
from shared.types import ModelName, TenantId, UserId
from tests.services.gateway import fakes, http_answers, openai_clients
from tests.services.gateway.fakes import KEY_ID, OWNER, USER, FakeWorker, RunningService


def packed(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


@dataclass
class EmbeddingWorker(FakeWorker):
    """The vector of a text is (its length, 1); a test can replace what is sent, to make it lie."""

    vectors: tuple[bytes, ...] | None = None
    claims: int | None = None

    async def run(self, prompt: Any) -> AsyncIterator[Any]:
        assert isinstance(prompt, embedding.Embed)
        if self.fails_with is not None:
            raise self.fails_with
        yield Vectors(waiting="loading smollm2")
        vectors = self.vectors if self.vectors is not None else tuple(packed(len(text), 1) for text in prompt.inputs)
        for position in range(0, len(vectors), 2):
            yield Vectors(vectors[position : position + 2])
            if self.hangs_after is not None:
                self.is_hanging.set()
                await asyncio.Event().wait()
        yield Embedded(2, self.claims if self.claims is not None else self.prompt_tokens)


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with fakes.running_service(free=3) as service:
        service.worker = EmbeddingWorker()
        service.add_worker(1, service.worker, "smollm2")
        yield service


@pytest.fixture
async def client(running_service: RunningService) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_clients.connected(running_service) as client:
        yield client


async def ask(running_service: RunningService, *inputs: str, who: Principal = OWNER, **fields: Any) -> tuple[list[bytes], EmbeddingResult]:
    context.start()  # as an HTTP route does
    async with running_service.pulled.embed(who, EmbeddingRequest(inputs, **fields), seconds=10) as answer:
        found = [vector async for _, vectors in answer for vector in vectors.vectors]
    return found, answer.result


# --- the pipeline --------------------------------------------------------------------------------------------------------


async def test_vectors_arrive_in_order_with_a_row(running_service: RunningService) -> None:
    vectors, result = await ask(running_service, "a", "bb", "ccc", model="llama3")
    assert vectors == [packed(1, 1), packed(2, 1), packed(3, 1)]
    assert (result.model, result.dimensions, result.prompt_tokens) == ("llama3", 2, 7)
    row = running_service.store.only_row
    assert (row.id, row.user_id, row.api_key_id, row.status) == (result.request_id, USER, KEY_ID, "success")
    assert (row.prompt_tokens, row.completion_tokens, row.model_used) == (7, 0, "smollm2")
    assert row.prompt_hash is not None
    (prompt,) = running_service.worker.received
    assert str(USER) not in repr(prompt)
    assert 'tokens_total{model="smollm2",type="input"} 7.0' in running_service.metrics.render()


async def test_an_organization_that_shares_its_founders_limits_waits_as_its_founder(running_service: RunningService) -> None:
    team = msgspec.structs.replace(OWNER, user_id=UserId(uuid4()), team_id=TenantId(uuid4()), founder_id=USER)
    await ask(running_service, "a", who=team)
    served = running_service.dispatch.model_queue(ModelName("smollm2")).queue
    assert served.counter_of(USER) > 0
    assert served.counter_of(team.tenant_id) == 0


async def test_infer_takes_embeddings(running_service: RunningService) -> None:
    async with http_answers.connected(running_service) as http:
        answer = await http.post("/api/infer", json={"model": "smollm2", "payload": {"input": ["a", "bcd", "ef"]}})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["embeddings"] == [[1.0, 1.0], [3.0, 1.0], [2.0, 1.0]]
        usage = running_service.worker.prompt_tokens
        assert body["usage"] == {"prompt_tokens": usage, "completion_tokens": 0, "total_tokens": usage}
        assert (body["model"], body["request_id"]) == ("smollm2", answer.headers["x-request-id"])
        assert not {"response", "finish_reason"} & body.keys()
        # As in OpenAI's API, a flat list of token ids is one input.
        ids = await http.post("/api/infer", json={"payload": {"input": [5, 6, 7]}})
        assert ids.json()["embeddings"] == [[3.0, 1.0]]


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        ({"input": "a", "prompt": "b"}, "payload.prompt"),
        ({"input": "a", "maxTokens": 5}, "payload.max_tokens"),
        ({"input": "a", "stream": True}, "payload.stream"),
        ({"input": ["a", 5]}, "payload.input"),
        ({"prompt": "a", "dimensions": 5}, "payload.dimensions"),
        ({"input": {"text": "a"}}, "payload.input"),
    ],
)
async def test_infer_refuses_embeddings_that_say_two_things(running_service: RunningService, payload: dict[str, Any], param: str) -> None:
    async with http_answers.connected(running_service) as http:
        answer = await http.post("/api/infer", json={"payload": payload})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_embeddings_count_against_the_same_limit_as_prompts(running_service: RunningService) -> None:
    for _ in range(3):
        await ask(running_service, "a")
    with pytest.raises(LimitReached):
        await ask(running_service, "a")
    assert [row.status for row in running_service.store.rows.values()] == ["success"] * 3 + ["limited"]


async def test_another_worker_takes_over_before_the_first_vector(running_service: RunningService) -> None:
    running_service.worker.fails_with = errors.ModelCrashed("gone")
    running_service.add_worker(2, EmbeddingWorker(), "smollm2")
    running_service.add_worker(3, EmbeddingWorker(fails_with=errors.UnknownMethod("an older one")), "smollm2")
    vectors, _ = await ask(running_service, "a")
    assert vectors == [packed(1, 1)]
    assert running_service.dispatch.in_flight == 0


@pytest.mark.parametrize(
    "lies",
    [
        pytest.param({"vectors": (packed(1, 1),)}, id="too few vectors"),
        pytest.param({"vectors": (packed(1, 1),) * 3}, id="too many vectors"),
        pytest.param({"vectors": (packed(1, 1), packed(1))}, id="vectors of two sizes"),
        pytest.param({"vectors": (b"12345",) * 2}, id="a part of a number"),
        pytest.param({"vectors": (b"",) * 2}, id="empty vectors"),
        pytest.param({"vectors": (packed(math.nan, 1),) * 2}, id="NaN"),
        pytest.param({"vectors": (packed(math.inf, 1),) * 2}, id="infinity"),
        pytest.param({"vectors": (bytes(4 * (embedding.MAX_DIMENSIONS + 1)),) * 2}, id="more numbers than any model gives"),
    ],
)
async def test_a_worker_that_sends_invalid_vectors_is_an_error(running_service: RunningService, lies: dict[str, Any]) -> None:
    running_service.add_worker(1, EmbeddingWorker(**lies), "smollm2")
    with pytest.raises(errors.ProtocolViolation):
        await ask(running_service, "a", "b")
    assert running_service.store.only_row.status == "error"


async def test_vectors_with_the_wrong_dimensions_are_refused(running_service: RunningService) -> None:
    assert (await ask(running_service, "a", dimensions=2))[1].dimensions == 2
    with pytest.raises(errors.ProtocolViolation):
        await ask(running_service, "a", dimensions=1)


async def test_claimed_tokens_are_capped_by_the_bytes(running_service: RunningService) -> None:
    running_service.add_worker(1, EmbeddingWorker(claims=10**12), "smollm2")
    assert (await ask(running_service, "abc"))[1].prompt_tokens == 3 + 4


async def test_a_caller_that_disconnects_cancels_the_work(running_service: RunningService) -> None:
    running_service.worker.hangs_after = 0
    asking = asyncio.create_task(ask(running_service, "a", "b"))
    await running_service.worker.is_hanging.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert running_service.worker.left_early == 1
    async with asyncio.timeout(30):
        while not running_service.store.rows:  # noqa: ASYNC110
            await asyncio.sleep(0)
    # The token count arrived before the first vector.
    assert (running_service.store.only_row.status, running_service.store.only_row.prompt_tokens) == ("cancelled", 7)


# --- OpenAI's API -------------------------------------------------------------------------------------------------------


async def test_openais_client_gets_numbers_in_both_encodings(client: openai.AsyncOpenAI) -> None:
    # By default, the client requests base64 and decodes it.
    for encoding in (openai.omit, "float"):
        answer = await client.embeddings.create(model="llama3", input=["a", "bb"], encoding_format=encoding)
        assert [(one.index, list(one.embedding)) for one in answer.data] == [(0, [1, 1]), (1, [2, 1])]
        assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("llama3", 7, 7)


async def test_openais_client_retries_under_its_key_and_is_answered_once(
    client: openai.AsyncOpenAI, running_service: RunningService
) -> None:
    under_key = {"Idempotency-Key": "page 4"}

    async def ask(encoding: Any, *texts: str) -> Any:
        return await client.embeddings.with_raw_response.create(
            model="smollm2", input=list(texts), encoding_format=encoding, extra_headers=under_key
        )

    answers = [await ask(encoding, "a", "bb") for encoding in ("float", "float", openai.omit)]
    shown = [[list(one.embedding) for one in answer.parse().data] for answer in answers]
    assert shown == [[[1, 1], [2, 1]]] * 3, "the encoding is not part of the request's fingerprint"
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]
    row = running_service.store.only_row
    assert [answer.headers.get("x-original-request-id") for answer in answers] == [None, str(row.id), str(row.id)]
    assert [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers] == ["2", None, None]
    assert (len(running_service.worker.received), row.status, row.prompt_tokens) == (1, "success", 7)
    with pytest.raises(openai.ConflictError) as refused:
        await ask("float", "a", "b")
    assert refused.value.code == "idempotency_conflict"


async def test_an_invalid_key_is_a_400(http: httpx.AsyncClient, running_service: RunningService) -> None:
    answer = await http.post("/v1/embeddings", json={"input": "a"}, headers={"idempotency-key": "x" * 256})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert not running_service.worker.received


async def test_base64_is_the_vector_unchanged(http: httpx.AsyncClient, running_service: RunningService) -> None:
    answer = await http.post("/v1/embeddings", json={"input": "abc", "encoding_format": "base64", "user": "me", "dimensions": None})
    assert answer.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": "AABAQAAAgD8="}],
        "model": "smollm2",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert answer.headers["x-request-id"] == str(running_service.store.only_row.id)
    assert answer.headers["x-ratelimit-remaining-requests"] == "2"
    metrics = running_service.metrics.render()
    assert 'requests_total{method="embed",service="gateway",status="success"} 1.0' in metrics
    assert metrics.count('request_duration_seconds_count{method="embed"') == 1


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("abc", ("abc",)),
        (["a"] * 2048, ("a",) * 2048),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ([[1, 2], "a"], ((1, 2), "a")),
    ],
    ids=["a text", "the most texts", "token ids", "lists of token ids", "both"],
)
async def test_inputs_reach_the_worker(
    http: httpx.AsyncClient, running_service: RunningService, given: Any, inputs: tuple[Any, ...]
) -> None:
    answer = await http.post("/v1/embeddings", json={"input": given})
    assert answer.status_code == 200, answer.text
    assert [(one["index"], one["embedding"]) for one in answer.json()["data"]] == [(n, [len(one), 1]) for n, one in enumerate(inputs)]
    (prompt,) = running_service.worker.received
    assert prompt.inputs == inputs  # type: ignore[attr-defined]


async def test_too_many_numbers_are_refused_by_their_limit(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, EmbeddingWorker(vectors=(packed(*[1.0] * 2049),) * 2048), "smollm2")
    answer = await http.post("/v1/embeddings", json={"input": ["a"] * 2048})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "2049 dimensions" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"), ({"input": ""}, "input"), ({"input": []}, "input"), ({"input": ["a", ""]}, "input[1]"),
        ({"input": None}, "input"), ({"input": 5}, "input"), ({"input": {"a": 1}}, "input"), ({"input": [None]}, "input[0]"),
        ({"input": [True]}, "input[0]"), ({"input": ["a", 1]}, "input"), ({"input": [[1], 1]}, "input"), ({"input": [-1]}, "input[0]"),
        ({"input": [[]]}, "input[0]"), ({"input": [[1], []]}, "input[1]"), ({"input": [[2**31]]}, "input[0][0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"), ({"input": "a", "dimensions": -1}, "dimensions"),
        ({"input": "a", "dimensions": 2.5}, "dimensions"), ({"input": "a", "dimensions": "2"}, "dimensions"),
        ({"input": "a", "dimensions": True}, "dimensions"), ({"input": "a", "dimensions": 10**30}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"), ({"input": "a", "encoding_format": 1}, "encoding_format"),
        ({"input": "a", "model": ""}, "model"), ({"input": "a", "model": 5}, "model"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)  # fmt: skip
async def test_a_wrong_field_is_a_400_that_names_it(
    http: httpx.AsyncClient, running_service: RunningService, body: dict[str, Any], param: str
) -> None:
    answer = await http.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "bad_request", param), error
    assert not running_service.worker.received


async def test_errors_of_the_worker_keep_their_status(http: httpx.AsyncClient, running_service: RunningService) -> None:
    for error, status in [(errors.BadRequest("input[0] has 9 tokens; this model takes 8"), 400), (errors.UnknownMethod("no vectors"), 404)]:
        running_service.worker.fails_with = error
        answer = await http.post("/v1/embeddings", json={"input": "a"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (status, error.message)


async def test_texts_that_fit_a_body_but_not_a_message_are_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/embeddings", json={"input": "x" * (1024 * 1024 - 100)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


async def test_a_prompt_for_an_embedding_model_reaches_no_worker(http: httpx.AsyncClient, running_service: RunningService) -> None:
    worker = EmbeddingWorker()
    running_service.add_worker(2, worker, "bge", only_embeds=True)
    shown = {model["id"]: model["only_embeds"] for model in (await http.get("/v1/models")).json()["data"]}
    assert shown == {"smollm2": False, "bge": True}
    body = {"model": "bge", "messages": [{"role": "user", "content": "hi"}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "bge is an embedding model" in answer.json()["error"]["message"]
    assert not worker.received
    assert (await http.post("/v1/embeddings", json={"model": "bge", "input": "hi"})).status_code == 200
