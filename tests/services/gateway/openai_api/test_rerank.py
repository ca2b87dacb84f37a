"""Ranking texts: what workers receive, what callers get and pay, and what is refused."""

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import msgspec
import pytest

from services.gateway.facts.policies import Policies
from shared import errors
from shared.api import embedding
from shared.api.embedding import Embedded, Vectors
from shared.config_documents import PolicyDocument
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, FakeWorker, RunningService
from tests.services.gateway.guard.test_guarded_requests import CARD

ASK = {"query": "why", "documents": ["a", {"text": "ccc"}, "bb"], "model": "smollm2"}


@dataclass
class RankingWorker(FakeWorker):
    """Scores a text by its length, up to ten characters; a test can make it lie."""

    scores: tuple[bytes, ...] | None = None

    async def run(self, prompt: Any) -> AsyncIterator[Any]:
        assert isinstance(prompt, embedding.Embed)
        if self.fails_with is not None:
            raise self.fails_with
        yield Vectors(waiting="loading smollm2")
        yield Vectors(self.scores if self.scores is not None else tuple(struct.pack("<f", len(text) / 8) for text in prompt.inputs))
        yield Embedded(1, self.prompt_tokens)


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    async with fakes.running_service(free=3) as running:
        running.worker = RankingWorker()
        running.add_worker(1, running.worker, "smollm2")
        yield running


async def post(service: RunningService, body: dict[str, Any]) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers=headers) as http:
        return await http.post("/v1/rerank", json=body)


async def test_the_most_relevant_comes_first_with_a_row(service: RunningService) -> None:
    answer = await post(service, ASK)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["results"] == [
        {"index": 1, "relevance_score": 0.375},
        {"index": 2, "relevance_score": 0.25},
        {"index": 0, "relevance_score": 0.125},
    ]
    usage = service.worker.prompt_tokens
    assert body["usage"] == {"prompt_tokens": usage, "total_tokens": usage}
    (asked,) = service.worker.received
    assert (asked.query, asked.inputs, asked.dimensions) == ("why", ("a", "ccc", "bb"), None)
    row = service.store.only_row
    assert (row.status, row.prompt_tokens, row.completion_tokens, row.model_used) == ("success", usage, 0, "smollm2")
    assert 'gen_ai_operation_name="rerank"' in service.metrics.render()


async def test_only_the_top_with_their_texts(service: RunningService) -> None:
    answer = await post(service, ASK | {"top_n": 1, "return_documents": True})
    assert answer.json()["results"] == [{"index": 1, "relevance_score": 0.375, "document": {"text": "ccc"}}]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"query": ""}, 400, "query is empty"),
        ({"documents": []}, 400, "documents is empty"),
        ({"documents": ["x"] * 1001}, 400, "documents must have 1 to 1000 entries"),
        ({"documents": ["x", ""]}, 400, "documents[1] is empty"),
        ({"top_n": 0}, 400, "top_n must be a whole number that is at least 1"),
        ({"documents": ["x" * 1_000_000]}, 413, "the texts have 1000003 bytes"),
        ({"documents": [{"image": "x"}]}, 400, "documents[0]"),
    ],
)
async def test_refused(service: RunningService, change: dict[str, Any], status: int, says: str) -> None:
    answer = await post(service, ASK | change)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert says in error["message"], error
    assert not service.worker.received


@pytest.mark.parametrize("scores", [(b"\0" * 4,), (b"\0" * 8,) * 3, (b"\0" * 4,) * 4, (struct.pack("<f", float("nan")),) * 3])
async def test_a_worker_that_lies_is_found_out(service: RunningService, scores: tuple[bytes, ...]) -> None:
    assert isinstance(service.worker, RankingWorker)
    service.worker.scores = scores
    answer = await post(service, ASK)
    assert answer.status_code >= 500
    assert "the worker sent" in answer.json()["error"]["message"]


async def test_a_model_that_cannot_rank_says_so(service: RunningService) -> None:
    service.worker.fails_with = errors.BadRequest("this model cannot rank texts", hint="use a reranking model")
    answer = await post(service, ASK)
    assert answer.status_code == 400
    assert "cannot rank texts" in answer.json()["error"]["message"]


async def test_query_and_documents_are_guarded(service: RunningService) -> None:
    policies = Policies({"mesh": msgspec.convert({"guard": {"prompt": {"card": "mask"}}}, PolicyDocument)})
    service.config = replace(service.config, policies=policies)
    assert (await post(service, ASK | {"query": f"pay {CARD}", "documents": ["a", f"paid {CARD}"]})).status_code == 200
    (asked,) = service.worker.received
    assert CARD not in asked.query + "".join(asked.inputs)
